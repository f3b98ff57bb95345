"""Training LTG-BERT packed against its padded eager form, side by side in one run, on CPU or GPU.

    python benchmarks/ltg_bert.py [--source ../shared/data/eurlex57k] [--size base] [--steps 5] [--record]

All arms train the same model from the same weights on documents of the same lengths (EURLEX57K read by MiniLM's
tokenizer and cut at --tokens; without --source the docstrings of pydocs), random token ids, 4,271 labels, AdamW, and
--documents documents a step. The padded arms take them in random order in batches of --batch, padded to the longest of
the batch, with the published dropouts (0.1 everywhere); the packed arms have no dropout of attention probabilities.
The arms take turns; a rate is documents over the median step (wall clock, or CPU time where OMP_NUM_THREADS is 1).
`--arms` picks; the flex arm exists on CUDA only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from results import one_sentence, record

from tinyhat.config import build_config
from tinyhat.data.packing import cut_packs
from tinyhat.data.read import read_dataset
from tinyhat.data.reading import Reader
from tinyhat.encoder.dropout import install_fast_dropout
from tinyhat.encoder.load import load_tokenizer
from tinyhat.encoder.ltg_bert import LtgBertConfig, LtgBertForSequenceClassification, packed
from tinyhat.encoder.masked_lm import SIZES
from tinyhat.encoder.path import install_packing
from tinyhat.encoder.precision import pick_device
from tinyhat.types import IntArray

LABELS = 4271
# name: attention ("packed" or a transformers implementation), autocast to bf16, dropout of attention probabilities
ARMS = {
    "eager fp32": ("eager", False, 0.1),
    "eager bf16": ("eager", True, 0.1),
    "sdpa bf16, no attention dropout": ("sdpa", True, 0.0),
    "packed fp32": ("packed", False, 0.0),
    "packed bf16": ("packed", True, 0.0),
    "packed bf16, flex": ("flex", True, 0.0),
}
Step = Callable[[IntArray], None]


def main() -> None:
    """Time the arms and print the table, or with --json one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="EURLEX57K: folder or zip; without it pydocs")
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--documents", type=int, default=32, help="a step")
    parser.add_argument("--batch", type=int, default=8, help="documents of a padded batch")
    parser.add_argument("--pack-tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    with one_sentence("ltg_bert"):
        result = run(options)
    if options.record:
        record("ltg_bert", table(result))
    print(json.dumps(result) if options.json else table(result))


def run(options: argparse.Namespace) -> dict:
    """Return documents a second of every arm, and how many times the eager arms the packed ones are."""
    device = pick_device()
    lengths = _lengths(options)
    names = options.arms or [n for n, (kind, *_) in ARMS.items() if kind != "flex" or device.type == "cuda"]
    arms = {name: _arm(options, device, lengths, *ARMS[name]) for name in names}
    # one thread: CPU time, which a busy machine disturbs less
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    random = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for step in range(options.steps + 1):
        rows = random.permutation(len(lengths))[: options.documents]
        for name, arm in arms.items():
            begin = clock()
            arm(rows)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if step:
                seconds[name].append(clock() - begin)
    rates = {name: options.documents / statistics.median(s) for name, s in seconds.items()}
    return {
        "size": options.size,
        "layers": options.layers,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "mean_tokens": float(lengths.mean()),
        "documents_per_second": {name: round(rate, 3) for name, rate in rates.items()},
        "slowest_and_fastest": {name: [round(max(s), 3), round(min(s), 3)] for name, s in seconds.items()},
    }


def table(result: dict) -> str:
    """Return the result as lines of text; a packed arm's ratios are to the eager arms of the run."""
    rates = result["documents_per_second"]
    eager = [name for name in rates if name.startswith("eager")]
    lines = [f"LTG-BERT {result['size']}, {result['layers']} layers, {result['device']}, {result['threads']} threads, "
             f"mean {result['mean_tokens']:.0f} tokens"]  # fmt: skip
    lines.append(f"{'arm':34}{'documents/s':>12}" + "".join(f"{'x ' + name:>14}" for name in eager))
    for name, rate in rates.items():
        lines.append(f"{name:34}{rate:12.2f}" + "".join(f"{rate / rates[other]:14.2f}" for other in eager))
    return "\n".join(lines)


def _lengths(options: argparse.Namespace) -> IntArray:
    settings = {"data.path": "eurlex57k" if options.source else "pydocs", "data.source": options.source}
    config = build_config(None, settings | {"data.limit": 512, "reading.max_tokens": options.tokens})
    split = read_dataset(config.data, 0).splits["train"]
    return Reader(load_tokenizer("minilm"), config.reading).read(split.texts).lengths


def _arm(
    options: argparse.Namespace, device: torch.device, lengths: IntArray, kind: str, low: bool, dropout: float
) -> Step:
    """Return a function that does one training step on the documents it is given."""
    hidden, intermediate, heads = SIZES[options.size]
    torch.manual_seed(0)
    config = LtgBertConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_hidden_layers=options.layers,
        num_labels=LABELS,
        problem_type="multi_label_classification",
        attn_implementation=kind if kind in ("eager", "sdpa") else "eager",
    )
    model = LtgBertForSequenceClassification(config)
    for layer in model.transformer.layers:
        layer.attention.dropout_prob = dropout
    if kind in ("packed", "flex"):
        install_fast_dropout(model)
        fault = install_packing(model, 0, None, set())
        assert not fault, fault
    model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    batches = _packs if kind in ("packed", "flex") else _padded

    def step(rows: IntArray) -> None:
        packed.CUDA_WAY = "flex" if kind == "flex" else "blocks"
        for inputs, count in batches(options, lengths, rows, device):
            labels = torch.zeros(count, LABELS, device=device)
            labels[:, :5] = 1
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                logits = model(**inputs).logits
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")
            (loss / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


def _padded(options: argparse.Namespace, lengths: IntArray, rows: IntArray, device: torch.device) -> list:
    found = []
    for begin in range(0, len(rows), options.batch):
        size = torch.from_numpy(lengths[rows[begin : begin + options.batch]])
        mask = (torch.arange(int(size.max())) < size[:, None]).long()
        ids = torch.randint(5, 16384, mask.shape)
        found.append(({"input_ids": ids.to(device), "attention_mask": mask.to(device)}, len(size)))
    return found


def _packs(options: argparse.Namespace, lengths: IntArray, rows: IntArray, device: torch.device) -> list:
    found = []
    for part in cut_packs(rows, lengths, options.pack_tokens, len(rows)):
        taken = lengths[part]
        cu = torch.tensor(np.concatenate([[0], np.cumsum(taken)]).astype(np.int32), device=device)
        ids = torch.randint(5, 16384, (1, int(taken.sum())), device=device)
        inputs = {"input_ids": ids, "cu_seqlens": cu, "max_seqlen": int(taken.max()), "gather": True}
        found.append((inputs, len(part)))
    return found


if __name__ == "__main__":
    main()
