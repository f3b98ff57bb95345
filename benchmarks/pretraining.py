"""What pretraining buys: an LTG-BERT pretrained on a text, fine-tuned beside the same model from random weights.

    python benchmarks/pretraining.py --data ../shared/data --out runs/pretraining [--size small] [--steps 2000]

`--data` is a folder with eltec_eng, banking77 and eurlex57k. Pretraining runs on all of eltec_eng; then both
models, of one tokenizer, are fine-tuned with the same settings on banking77 (test accuracy) and on a hundredth of
EURLEX57K (450 laws; micro-F1 on 450 dev laws). Runs on a GPU where there is one. Started again with the same flags and
`--out` it goes on where it was stopped; finished runs are not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from results import one_sentence, record

import tinyhat

TASKS = {  # data below --data, settings, steps, the figure that counts
    "banking77": ("banking77", {"train.batch_size": 64}, 700, "accuracy"),
    "eurlex57k / 100": (
        "eurlex57k",
        {"data.limit": 450, "train.batch_size": 16, "reading.max_tokens": 256},  # half the time of 512, .001 micro-F1
        560,
        "micro_f1",
    ),
}
ARMS = ("pretrained", "random")


def main() -> None:
    """Pretrain, fine-tune four times a seed, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with eltec_eng, banking77, eurlex57k")
    parser.add_argument("--out", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--size", default="xs", choices=("xs", "small", "base"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32, help="sequences of 128 tokens a step")
    parser.add_argument("--optimizer", default="adamw", choices=("lamb", "adamw"))
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--pack-tokens", type=int, default=8192)
    parser.add_argument("--tuning", type=float, default=1.0, help="multiple of the 700 and 560 steps of fine-tuning")
    parser.add_argument("--seeds", type=int, default=1, help="fine-tunings of each arm")
    parser.add_argument("--record", action="store_true", help="write the table into benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    with one_sentence("pretraining"):
        table = "\n".join([*pretraining(arguments), "", *fine_tuning(arguments)])
    print(table)
    if arguments.record:
        record("pretraining", table)


def pretraining(arguments: argparse.Namespace) -> list[str]:
    """Pretrain and write the random model of the same shape and tokenizer; return what the table says of it."""
    corpus, run = arguments.data / "eltec_eng", arguments.out / "pretrained"
    settings: dict[str, Any] = {
        "pretrain.size": arguments.size,
        "pretrain.max_steps": arguments.steps,
        "pretrain.batch_size": arguments.batch_size,
        "pretrain.optimizer": arguments.optimizer,
        "pretrain.pack_tokens": arguments.pack_tokens,
        "pretrain.learning_rate": arguments.learning_rate,
    }
    metrics = _run(run, lambda resume: tinyhat.pretrain(corpus, run, settings, resume=resume))
    random = arguments.out / "random"
    nothing = settings | {"pretrain.max_steps": 0, "pretrain.tokenizer": str(run)}
    _run(random, lambda resume: tinyhat.pretrain(corpus, random, nothing, resume=resume))
    history = "  ".join(f"{step}: {loss:.3f}" for step, loss in metrics["history"])
    return [
        f"{arguments.size}, {metrics['parameters'] / 1e6:.1f}M parameters, {metrics['steps']} steps of "
        f"{arguments.batch_size} x 128 tokens, {metrics['tokens_per_second']:.0f} tokens/s, "
        f"{metrics['train_seconds']:.0f} s, {metrics['peak_memory_gb']:.2f} GB",
        f"validation masked-LM loss {metrics['masked_lm_loss']:.4f}, unigram entropy {metrics['unigram_entropy']:.4f}",
        f"by step  {history}",
    ]


def fine_tuning(arguments: argparse.Namespace) -> list[str]:
    """Fine-tune both arms on both tasks; return the lines of the table."""
    lines = [f"{'task':<18}{'figure':<22}" + "".join(f"{arm:>14}" for arm in ARMS) + f"{'seconds':>10}"]
    for task, (folder, changes, steps, figure) in TASKS.items():
        steps = max(1, round(steps * arguments.tuning))
        changes = changes | {"train.max_steps": steps, "train.evaluate_every": max(1, steps // 3)}
        cells, seconds, split = [], 0.0, ""
        for arm in ARMS:
            found = []
            for seed in range(arguments.seeds):
                metrics = _fine_tune(arguments, folder, changes, arm, seed)
                found.append(metrics[figure])
                seconds += metrics["train_seconds"]
                split = metrics["split"]
            cells.append(f"{sum(found) / len(found):>14.4f}")
        lines.append(f"{task:<18}{f'{figure} ({split})':<22}" + "".join(cells) + f"{seconds:>10.0f}")
    return lines


def _fine_tune(arguments: argparse.Namespace, folder: str, changes: dict[str, Any], arm: str, seed: int) -> Any:
    run = arguments.out / f"{folder}_{arm}_{seed}"
    settings = {
        "encoder.model": str(arguments.out / arm),
        "train.seed": seed,
        "train.pack_tokens": arguments.pack_tokens,
        "evaluate.baseline": False,
        "evaluate.bootstrap": 0,
        **changes,
    }
    data = arguments.data / folder
    if folder == "eurlex57k":
        settings["data.source"], data = str(data), Path(folder)
    return _run(run, lambda resume: tinyhat.train(data, run, settings, resume=resume))


def _run(path: Path, start: Any) -> Any:
    """Make a run, go on with it, or take it as it is; return its metrics."""
    metrics = path / "metrics.json"
    if not metrics.exists():
        begin = time.perf_counter()
        start((path / "manifest.json").exists())
        print(f"{path}: {time.perf_counter() - begin:.0f} s", flush=True)
    return json.loads(metrics.read_text())


if __name__ == "__main__":
    main()
