"""Training speed and quality side by side: HF Trainer (defaults, bf16, tuned) and tinyhat on the same EURLEX documents.

    python benchmarks/train.py [--source PATH] [--documents N] [--json]

All arms start from the same weights, hold fp32 master weights and the same hidden dropout, take AdamW with the same
rates, see the same documents in effective batches of 32, and minimise the same loss (BCE summed over labels). They take
turns, a few steps each, in processes of their own. A rate is documents over the time an arm held its turn (forward,
backward, optimiser, collation, logging) after two warm-up steps, plus its tokenisation. The share of the measured bf16
peak counts the products of the plain model for real tokens. Without --source it reads pydocs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import ARMS, Job, run_arm
from results import one_sentence, record

from tinyhat.config import build_config
from tinyhat.data.read import read_dataset
from tinyhat.data.reading import Reader
from tinyhat.encoder.load import load_tokenizer

WARMUP = 2  # steps left out of the rates: thread pools, allocator, oneDNN's choice of kernels


def main() -> None:
    """Run all arms and print the table, or with --json one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="EURLEX57K: folder or zip; without it pydocs")
    parser.add_argument("--documents", type=int, default=512, help="documents per epoch in every arm")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--dev", type=int, default=500, help="dev documents of the final micro-F1")
    parser.add_argument("--turn", type=int, default=4, help="steps an arm does before the next has its turn")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--out", type=Path, help="folder for the JSON and the plot of the loss curves")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md, the plot beside it")
    options = parser.parse_args()
    with one_sentence("train"):
        result = run(options)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "train.json").write_text(json.dumps(result, indent=2))
        _plot(result, options.out / "train.svg")
    if options.record:
        record("train", _table(result))
        _plot(result, Path(__file__).with_suffix(".svg"))
    print(json.dumps(result) if options.json else _table(result))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train every arm on the same documents, taking turns, and return rates, ratios and final micro-F1."""
    job = _job(options)
    peak = bf16_peak()
    with tempfile.TemporaryDirectory() as folder:
        messages = _take_turns(options, job, Path(folder))
    found = {name: _measured(message, job, peak) for name, message in messages.items()}
    result: dict[str, Any] = {
        "documents": len(job.split) * options.epochs,
        "mean_tokens": float(np.mean(job.lengths)),
        "threads": torch.get_num_threads(),
        "bf16_peak_gflops": peak / 1e9,
        "arms": found,
    }
    for name in options.arms:
        if name != "tinyhat" and "tinyhat" in found:
            ratio = found["tinyhat"]["documents_per_second"] / found[name]["documents_per_second"]
            result[f"vs_{name}"] = round(ratio, 3)
    return result


def _take_turns(options: argparse.Namespace, job: Job, folder: Path) -> dict[str, dict[str, Any]]:
    """Start a process per arm and give each its turn, round after round, until all have sent their result."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in options.arms:
        pipes[name], theirs = context.Pipe()
        context.Process(target=run_arm, args=(name, job, folder / name, theirs, options.turn), daemon=True).start()
    results: dict[str, dict[str, Any]] = {}
    while len(results) < len(pipes):
        for name in [n for n in pipes if n not in results]:
            pipes[name].send(None)
            message = pipes[name].recv()
            if message is not None:
                results[name] = message
            if message and "error" in message:
                raise RuntimeError(f"arm {name}: {message['error']}")
    return results


def _job(options: argparse.Namespace) -> Job:
    settings = {"data.path": "eurlex57k" if options.source else "pydocs", "data.source": options.source}
    config = build_config(None, settings | {"encoder.model": options.model, "train.epochs": options.epochs})
    dataset = read_dataset(config.data, 0)
    chosen = np.random.default_rng(0)
    train, dev = dataset.splits["train"], dataset.splits["dev"]
    split = train.take(np.sort(chosen.permutation(len(train))[: options.documents]))
    dev = dev.take(np.sort(chosen.permutation(len(dev))[: options.dev]))
    # read once here to know the lengths; every arm tokenises again, on its own clock
    lengths = Reader(load_tokenizer(options.model), config.reading).read(split.texts).lengths
    return Job(config, dataset.task, dataset.labels, len(train), split, dev, lengths)


def _measured(message: dict[str, Any], job: Job, peak: float) -> dict[str, Any]:
    kept = message["seconds"][WARMUP:]
    per_document = sum(kept) / (len(kept) * job.config.train.batch_size) + message["tokenise_seconds"] / len(job.split)
    rate = 1.0 / per_document
    return {
        "documents_per_second": round(rate, 3),
        "median_step_seconds": round(statistics.median(kept), 3),
        "tokenise_seconds": round(message["tokenise_seconds"], 2),
        "share_of_bf16_peak": round(rate * job.flops_per_document() / peak, 4),
        f"dev_{message['metric']}": round(message["value"], 4),
        "losses": [round(x, 3) for x in message["losses"]],
    }


def bf16_peak() -> float:
    """Return the best measured bf16 matrix-product rate in FLOP/s (of fp32 where bf16 is slower)."""
    best = 0.0
    for dtype in (torch.bfloat16, torch.float32):
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        for _ in range(12):
            begin = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2 * 2048**3 / (time.perf_counter() - begin))
    return best


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['documents']} documents of {result['mean_tokens']:.0f} tokens, {result['threads']} threads, "
        f"measured bf16 peak {result['bf16_peak_gflops']:.0f} GFLOP/s",
        f"{'arm':14}{'documents/s':>12}{'step s':>9}{'of peak':>9}{'dev micro-F1':>14}{'tinyhat is':>12}",
    ]
    for name, arm in result["arms"].items():
        ratio = result.get(f"vs_{name}")
        lines.append(
            f"{name:14}{arm['documents_per_second']:12.2f}{arm['median_step_seconds']:9.2f}"
            f"{arm['share_of_bf16_peak']:9.1%}{arm.get('dev_micro_f1', 0):14.4f}{f'{ratio:.2f}x' if ratio else '':>12}"
        )
    return "\n".join(lines)


def _plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4))
    for name, arm in result["arms"].items():
        axis.plot(np.arange(1, len(arm["losses"]) + 1), arm["losses"], label=name, linewidth=1.2)
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("loss per document (BCE summed over labels)")
    axis.set_yscale("log")
    axis.legend(frameon=False)
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
