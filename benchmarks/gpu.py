"""One command for a GPU: is packed training right there, and how fast is it, plan by plan, beside HF Trainer.

    python benchmarks/gpu.py [--tokens FILE] [--seconds 240] [--profile] [--record]

First the device is checked: varlen attention against float64, packed logits and gradients of four families against one
by one, the same step twice. Then a RoBERTa-base shape with random weights trains on tokenised EURLEX57K (``--tokens``,
made by benchmarks/tokens.py; without it on random tokens of the corpus' lengths) with the package's own loop, a few
steps an arm. MFU counts the products of the plain model for real tokens, 6 x weights x tokens and attention, over the
data sheet's peak: what padding adds does not count, what packing leaves out does. Without a GPU the checks run on the
processor and the arms at toy size.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_arms import FIRST, LAST, Job, hf_trainer, tinyhat, toy
from gpu_checks import run_checks
from results import one_sentence, record

from tinyhat.data.reading import Reading
from tinyhat.data.tokens import load_tokens
from tinyhat.train.precision import TRAIN_PLANS, choose_train_plan, missing_need
from tinyhat.types import Targets

# deciles 0 to 100 of EURLEX57K's document lengths in MiniLM's tokens, cut at 512: 45,000 laws, mean 443
DECILES = (52, 249, 335, 394, 470, 512, 512, 512, 512, 512, 512)
LABELS = 4271


def main() -> None:
    """Check, measure, print the table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, help="a file of benchmarks/tokens.py")
    parser.add_argument("--seconds", type=float, default=240.0, help="stop starting arms after so many")
    parser.add_argument("--batch", type=int, default=256, help="documents of an optimiser step")
    parser.add_argument("--pack-tokens", type=int, default=65536)
    parser.add_argument("--arms", nargs="*", help="only these (plans, or padded, compiled, hf_trainer)")
    parser.add_argument("--profile", action="store_true", help="print where the time of the package's arms goes")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    begin = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with one_sentence("gpu"):
        job = _job(options, device)
    faults = run_checks(device)
    rows = _measure(options, job, device, begin)
    table = _table(rows, job, device, options.tokens, faults)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "faults": faults}, indent=2))
    if options.record:
        record("gpu", table)
    print(table)
    sys.exit(1 if faults else 0)


def _job(options: argparse.Namespace, device: torch.device) -> Job:
    if options.tokens:
        reading, targets = load_tokens(options.tokens)["train"]
    else:
        random = np.random.default_rng(0)
        lengths = np.interp(random.random(4096), np.linspace(0, 1, 11), DECILES).astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        reading = Reading(random.integers(1000, 30000, ends[-1]).astype(np.int32), ends, lengths, lengths)
        counts = np.full(len(lengths), 5)
        labels = np.concatenate([np.sort(random.choice(LABELS, 5, replace=False)) for _ in counts])
        targets = Targets("multi", LABELS, labels, np.arange(0, 5 * len(counts) + 1, 5))
    job = Job(reading, targets, options.batch, options.pack_tokens)
    return job if device.type == "cuda" else toy(job)


def _measure(options: argparse.Namespace, job: Job, device: torch.device, begin: float) -> list[dict[str, Any]]:
    """Run the arms in order of interest until the seconds are spent; what fails says why in its row."""
    arms = [*FIRST, *(p for p in TRAIN_PLANS if p not in FIRST + LAST), *LAST]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for arm in [a for a in arms if not options.arms or a in options.arms]:
            if time.perf_counter() - begin > options.seconds:
                rows.append({"arm": arm, "reason": "not reached in the seconds given"})
                continue
            started = time.perf_counter()
            try:
                row = _arm(arm, job, device, Path(folder), options.profile)
            except Exception as error:
                # an arm that this machine cannot run is a row, not the end of the table
                row = {"reason": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"}
            row |= {"arm": arm, "arm_seconds": round(time.perf_counter() - started, 1)}
            rows.append(row)
            profile = row.pop("profile", "")
            print(json.dumps(row), *filter(None, [profile]), sep="\n", file=sys.stderr, flush=True)
    return rows


def _arm(arm: str, job: Job, device: torch.device, folder: Path, profiled: bool) -> dict[str, Any]:
    if arm == "hf_trainer":
        return hf_trainer(job, device, folder)
    plan, _, how = arm.partition("+")
    need = missing_need(choose_train_plan(plan, device), device)
    return {"reason": need} if need else tinyhat(plan, how, job, device, folder, profiled)


def _table(rows: list[dict[str, Any]], job: Job, device: torch.device, tokens: Path | None, faults: list[str]) -> str:
    lengths = job.reading.lengths
    where = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU: toy size on the processor, no figures"
    source = "EURLEX57K, tokenised" if tokens else "random tokens of EURLEX57K's lengths"
    base = next((r["documents_per_second"] for r in rows if r["arm"] == "hf_trainer" and "reason" not in r), None)
    lines = [
        f"{where}; torch {torch.__version__}; {job.shape}; {source}: {len(lengths):,} documents, mean "
        f"{lengths.mean():.0f} tokens; {job.batch} documents a step, packs of {job.pack_tokens:,} tokens",
        f"checks: {'; '.join(faults) if faults else 'all passed'}",
        f"{'arm':32}{'documents/s':>12}{'ms a step':>11}{'MFU':>8}{'peak GB':>9}{'loss':>9}{'of HF':>8}",
    ]
    for row in rows:
        if "reason" in row:
            lines.append(f"{row['arm']:32}{row['reason']}")
            continue
        if device.type != "cuda":
            lines.append(f"{row['arm']:32}ran")
            continue
        ratio = f"{row['documents_per_second'] / base:.2f}x" if base else ""
        mfu = f"{row['mfu']:.1%}" if row["mfu"] is not None else ""
        lines.append(
            f"{row['arm']:32}{row['documents_per_second']:12.1f}{row['step_ms']:11.1f}{mfu:>8}"
            f"{row['peak_gb']:9.2f}{row['loss']:9.2f}{ratio:>8}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
