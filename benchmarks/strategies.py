"""Ways to fine-tune on a tenth of banking77: accuracy, time, peak memory, and what the encoder forgot.

    python benchmarks/strategies.py --source ../shared/data/banking77 --forgetting TEXT [--jobs 2] [--record]

Every arm and seed is a process of its own, so that its peak memory is its own. Results in --out are used again, so
that a benchmark that was stopped goes on; other options need another folder. Of each seed the same documents, steps and
order go to all arms, all with tinyhat's default rates. The last weights are kept and dev is not read. Accuracy is on
the test split. Forgetting is measured on TEXT, which has nothing to do with the task
(../shared/data/eltec_eng/novels.jsonl.zst): cosine and CKA of the last layer before and after (1: the same, and the
same up to rotation), and a linear probe on whether two sentences follow each other. Seconds are of the training steps
alone, CPU seconds over all threads; on a machine that is not idle, wall seconds mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

# settings of the train section beside the common ones
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "head only": {"update": "head"},
    "top 2": {"update": "top", "top_layers": 2},
    "gradual": {"update": "gradual"},
    "LLRD 0.8": {"layer_decay": 0.8},
    "LoRA 8": {"update": "lora", "lora_rank": 8},
    "L2-SP 0.1": {"l2_sp": 0.1},
    "bias only": {"update": "bias"},
    "mixout 0.5": {"mixout": 0.5},
    "EMA": {"ema": 0.99},
    "WiSE-FT 0.5": {"wise_ft": 0.5},
}
ASKED = ("full", "head only", "top 2", "gradual", "LLRD 0.8", "LoRA 8", "L2-SP 0.1")
PRETRAINED = "pretrained"
BATCH = 32
SHARED = ("source", "forgetting", "documents", "epochs", "model", "set")  # what all results in a folder have in common
COLUMNS = ("accuracy", "cpu_seconds", "wall_seconds", "peak_gb", "cka", "cosine", "probe_kept", "probe_refitted")


def main() -> None:
    """Run what is missing, then print the table."""
    options = _options()
    if options.arm:
        print(json.dumps(run_arm(options)))
        return
    _claim(options)
    if not (options.out / "pretrained.npz").exists():
        _start(options, PRETRAINED, 0)
    missing = [(a, s) for s in range(options.seeds) for a in options.arms if not _path(options, a, s).exists()]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda job: _start(options, *job), missing))
    table = _table(options)
    print(table)
    if options.record:
        from results import record

        record("strategies", table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="banking77: folder with train and test")
    parser.add_argument("--forgetting", required=True, help="a text: txt, jsonl, csv or parquet")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"), help="folder for one JSON file a run")
    parser.add_argument("--arms", nargs="*", default=list(ASKED), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=1000, help="training documents: a tenth of 10,003")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="for every arm")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes at a time, sharing the cores (times then differ)"
    )
    parser.add_argument("--arm", choices=[PRETRAINED, *ARMS], help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _claim(options: argparse.Namespace) -> None:
    """Take the folder for these options, or refuse one with results of others: they would be shown as these."""
    path, wanted = options.out / "options.json", {name: getattr(options, name) for name in SHARED}
    options.out.mkdir(parents=True, exist_ok=True)
    if path.exists():
        before = json.loads(path.read_text())
        other = [f"{k} was {before.get(k)!r}, is {v!r}" for k, v in wanted.items() if before.get(k) != v]
        if other:
            raise SystemExit(f"--out {options.out}: {', '.join(other)}; name another folder for other options")
    elif any(options.out.iterdir()):
        raise SystemExit(f"--out {options.out} holds files of other options: name another folder")
    else:
        _write(path, wanted)


def _write(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2))
    temporary.replace(path)


def _path(options: argparse.Namespace, arm: str, seed: int) -> Path:
    return Path(options.out / f"{arm.replace(' ', '_')}-{seed}.json")


def _start(options: argparse.Namespace, arm: str, seed: int) -> None:
    command = [sys.executable, __file__, "--arm", arm, "--seed", str(seed)]
    for name in (*SHARED[:-1], "out"):
        command += [f"--{name}", str(getattr(options, name))]
    for text in options.set:
        command += ["--set", text]
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"arm {arm!r}, seed {seed} failed")
    if arm == PRETRAINED:
        return
    result = json.loads(done.stdout.splitlines()[-1])
    _write(_path(options, arm, seed), result)
    print(f"{arm:12} seed {seed}: " + ", ".join(f"{k} {result[k]:.3g}" for k in COLUMNS), file=sys.stderr, flush=True)


def run_arm(options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm with one seed and measure it."""
    from tinyhat.config import build_config
    from tinyhat.data.dataset import Dataset
    from tinyhat.data.labels import LabelSpace
    from tinyhat.data.read import read_dataset
    from tinyhat.run import Run
    from tinyhat.train.classifier import prepare, train_classifier
    from tinyhat.train.forgetting import Forgetting

    steps = max(1, round(options.documents * options.epochs / BATCH))
    common = {
        "data.path": options.source, "encoder.model": options.model, "reading.max_tokens": 96,
        "train.plan": "fp32", "train.batch_size": BATCH,
        "train.max_steps": steps, "train.seed": options.seed,
        "train.unfreeze_every": max(1, steps // 16),
    }  # fmt: skip
    config = build_config(None, common | {f"train.{k}": v for k, v in ARMS.get(options.arm, {}).items()}, options.set)
    data = read_dataset(config.data, options.seed)
    train = data.splits["train"]
    rows = np.sort(np.random.default_rng(options.seed).permutation(len(train))[: options.documents])
    small = train.take(rows)
    counts = np.bincount(small.targets.values.astype(np.int64), minlength=len(data.labels))
    # without dev nothing is measured while training
    splits = {"train": small, "test": data.splits["test"]}
    data = Dataset(data.name, data.task, LabelSpace(data.labels.names, counts), splits, "")

    def quiet(_: str) -> None:
        pass

    prepared = prepare(config, data, quiet)
    if options.arm == PRETRAINED:
        found = Forgetting(prepared.encoder, options.forgetting, prepared.device, 0).before
        np.savez(options.out / "unfinished.npz", states=found.states, means=found.means)
        (options.out / "unfinished.npz").replace(options.out / "pretrained.npz")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        cpu = _clocked_steps()
        trained = train_classifier(prepared, config, data, Run(Path(folder)), False, quiet)
    test, predictor = data.splits["test"], trained.predictor
    logits = predictor.logits(predictor.reader.read_cached(test.texts, test.pairs))
    # after training, whose peak of memory is known by now
    forgetting = Forgetting(prepared.encoder, options.forgetting, prepared.device, 0, _pretrained(options.out))
    changed = forgetting.report()
    return {
        "arm": options.arm, "seed": options.seed, "steps": steps, "settings": ARMS[options.arm],
        "documents": len(small), "labels_without_documents": int((counts == 0).sum()),
        "accuracy": float(np.mean(logits.argmax(axis=1) == test.targets.values)),
        "cpu_seconds": sum(cpu), "wall_seconds": trained.outcome.seconds, "peak_gb": trained.outcome.peak_memory_gb,
        "cka": changed["layers"][-1]["cka"], "cosine": changed["layers"][-1]["cosine"],
        "probe_before": changed["probe"]["before"], "probe_kept": changed["probe"]["kept"],
        "probe_refitted": changed["probe"]["refitted"], "layers": changed["layers"],
    }  # fmt: skip


def _clocked_steps() -> list[float]:
    """Return a list to which every training step will add its CPU seconds; loading and checkpoints do not count."""
    from tinyhat.train.loop import Trainer

    spent: list[float] = []
    step = Trainer.train_step

    def clocked(trainer: Trainer) -> dict[str, Any]:
        begin = time.process_time()
        line = step(trainer)
        spent.append(time.process_time() - begin)
        return line

    Trainer.train_step = clocked  # type: ignore[method-assign]
    return spent


def _pretrained(folder: Path) -> Any:
    from tinyhat.train.forgetting import Snapshot

    with np.load(folder / "pretrained.npz", allow_pickle=False) as arrays:
        return Snapshot(arrays["states"], arrays["means"], None)


def _table(options: argparse.Namespace) -> str:
    lines = [
        f"{options.documents} training documents, 77 intents, {options.epochs:g} epochs of batches of {BATCH}, "
        f"{options.seeds} seeds; {options.model}",
        f"{'arm':12}{'test accuracy':>18}{'CPU s':>8}{'wall s':>8}{'peak GB':>9}{'CKA':>7}{'cosine':>8}"
        f"{'probe kept':>12}{'refitted':>10}",
    ]
    before = None
    for arm in options.arms:
        found = [json.loads(_path(options, arm, seed).read_text()) for seed in range(options.seeds)]
        mean = {key: float(np.mean([f[key] for f in found])) for key in (*COLUMNS, "probe_before")}
        spread = float(np.std([f["accuracy"] for f in found], ddof=1)) if len(found) > 1 else 0.0
        before = mean["probe_before"]
        lines.append(
            f"{arm:12}{mean['accuracy']:11.4f} ±{spread:.4f}{mean['cpu_seconds']:8.0f}{mean['wall_seconds']:8.0f}"
            f"{mean['peak_gb']:9.2f}{mean['cka']:7.3f}{mean['cosine']:8.3f}{mean['probe_kept']:12.3f}"
            f"{mean['probe_refitted']:10.3f}"
        )
    return "\n".join([*lines, f"probe before fine-tuning: {before:.3f}; ± is the standard deviation over seeds"])


if __name__ == "__main__":
    main()
