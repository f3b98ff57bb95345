"""Embedding side by side with sentence-transformers: the same documents, both truncating, arms in turn.

    python benchmarks/embed.py --source ../shared/data/eurlex57k --documents 256

Each arm has a process of its own, because kernel caches and heaps are those of a process and tinyhat bounds its own.
Documents per second are medians over rounds; cosines are to the vectors of sentence-transformers in fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from results import record
from sentence_transformers import SentenceTransformer

from tinyhat.config import build_config
from tinyhat.data.read import read_dataset
from tinyhat.embed.embedder import load_embedder
from tinyhat.encoder.load import _source
from tinyhat.types import FloatArray

REFERENCE = "sentence-transformers fp32"


def main() -> None:
    """Time the arms and print the table, or with --json one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="EURLEX57K: folder or zip; without it pydocs")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--batch", type=int, default=32, help="of sentence-transformers; 32 is its default")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    result = run(options)
    if options.record:
        record("embed", table(result))
    print(json.dumps(result) if options.json else table(result))


def run(options: argparse.Namespace) -> dict:
    """Return documents a second and cosines of every arm."""
    settings = {"data.path": "eurlex57k" if options.source else "pydocs", "data.source": options.source}
    config = build_config(None, settings | {"data.limit": options.documents})
    texts = list(read_dataset(config.data, 0).splits["train"].texts[: options.documents])
    arms = {
        REFERENCE: _Arm(_sentence_transformers, options, texts, torch.float32),
        "sentence-transformers bf16": _Arm(_sentence_transformers, options, texts, torch.bfloat16),
        "tinyhat": _Arm(_tinyhat, options, texts, False),
        "tinyhat --exact": _Arm(_tinyhat, options, texts, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    vectors: dict[str, FloatArray] = {}
    for step in range(options.rounds + 1):
        for name, arm in arms.items():
            took, vectors[name] = arm()
            if step:
                seconds[name].append(took)
    rates = {name: len(texts) / statistics.median(s) for name, s in seconds.items()}
    cosines = {name: _cosines(v, vectors[REFERENCE]) for name, v in vectors.items()}
    return {
        "documents": len(texts),
        "tokens": options.tokens,
        "threads": torch.get_num_threads(),
        "documents_per_second": rates,
        "spread": {name: [len(texts) / max(s), len(texts) / min(s)] for name, s in seconds.items()},
        "cosine_median": {name: float(np.median(c)) for name, c in cosines.items()},
        "cosine_least": {name: float(c.min()) for name, c in cosines.items()},
    }


def _cosines(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the cosine of each pair of rows; vectors that were normalised in bf16 are not quite of length 1."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a.astype(np.float64), b.astype(np.float64)))
    cosines: FloatArray = np.einsum("nd,nd->n", a, b)
    return cosines


def table(result: dict) -> str:
    """Return the result as lines of text."""
    rates = result["documents_per_second"]
    others = [name for name in rates if name.startswith("sentence")]
    lines = [f"{result['documents']} documents, at most {result['tokens']} tokens, {result['threads']} threads"]
    heads = f"{'arm':28}{'documents/s':>12}{'slowest..fastest':>18}{'x st fp32':>11}{'x st bf16':>11}"
    lines.append(f"{heads}{'cosine':>10}{'least':>10}")
    for name, rate in rates.items():
        low, high = result["spread"][name]
        ratios = "".join(f"{rate / rates[other]:11.2f}" for other in others)
        cosine, least = result["cosine_median"][name], result["cosine_least"][name]
        lines.append(f"{name:28}{rate:12.2f}{f'{low:.2f}..{high:.2f}':>18}{ratios}{cosine:10.6f}{least:10.6f}")
    return "\n".join(lines)


class _Arm:
    """One library in one setting, in a process that holds nothing else."""

    def __init__(self, make: Callable[..., Callable[[], FloatArray]], *arguments: object) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _begin, (make, arguments))

    def __call__(self) -> tuple[float, FloatArray]:
        """Return the seconds of one pass over the texts, and its vectors."""
        return self._process.submit(_timed).result()


_ready: list[Callable[[], FloatArray]] = []  # in the process of an arm: what is timed there


def _begin(make: Callable[..., Callable[[], FloatArray]], arguments: tuple[object, ...]) -> None:
    _ready.append(make(*arguments))


def _timed() -> tuple[float, FloatArray]:
    begin = time.perf_counter()
    vectors = _ready[0]()
    return time.perf_counter() - begin, vectors


def _sentence_transformers(
    options: argparse.Namespace, texts: list[str], dtype: torch.dtype
) -> Callable[[], FloatArray]:
    model = SentenceTransformer(str(_source(options.model)), model_kwargs={"dtype": dtype})
    model.max_seq_length = options.tokens

    def arm() -> FloatArray:
        found = model.encode(texts, batch_size=options.batch, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, np.float32)

    return arm


def _tinyhat(options: argparse.Namespace, texts: list[str], exact: bool) -> Callable[[], FloatArray]:
    embedder = load_embedder(options.model, max_tokens=options.tokens, long="truncate", normalize=True, exact=exact)
    return lambda: embedder.embed(texts)


if __name__ == "__main__":
    main()
