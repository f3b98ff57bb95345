"""How fast a run trains and how much memory it takes, read off the steps that nothing else was looking at."""

from __future__ import annotations

import gc
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinyhat.encoder.precision import Plan
from tinyhat.train.flops import peak_flops
from tinyhat.train.loop import peak_memory_gb

WARMUP = 5  # steps left out of speed and MFU: compilation, allocator, choice of kernels; short runs leave out the first


@dataclass(frozen=True)
class _Step:
    seconds: float
    documents: int
    tokens: int
    flops: float
    watched: bool


class Meter:
    """Clock, work and peak memory of a run, step by step.

    A watched step holds a copy of all matrices, an evaluation an fp32 copy of the model: training takes neither.
    Watched steps count in nothing. Peak memory ends with the first evaluation, after which a process may hold more.

    Args:
        plan: of the run. Where its products are emulated there is no speed and no MFU.
        device: where it runs.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.steps: list[_Step] = []
        self.peak_gb: float | None = None
        self.evaluated = False
        self._began = 0.0

    def begin(self) -> None:
        """Start a step: the peak anew, then the clock."""
        reset_peak()
        self._began = time.perf_counter()

    def end(self, documents: int, tokens: int, flops: float, watched: bool) -> None:
        """Note a step that is done.

        Args:
            documents: of the step.
            tokens: real ones of the step.
            flops: of the step, see `step_flops`.
            watched: weights were copied and compared in it.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.steps.append(_Step(time.perf_counter() - self._began, documents, tokens, flops, watched))
        if not watched and not self.evaluated:
            self.peak_gb = max(self.peak_gb or 0.0, peak_memory_gb())

    def facts(self) -> dict[str, Any]:
        """Return the columns of a run's record; None where no step tells, or products were emulated."""
        skip = WARMUP if len(self.steps) > 2 * WARMUP else 1
        timed = [s for s in self.steps[skip:] if not s.watched]
        seconds = sum(s.seconds for s in timed)
        emulated = self.plan.emulated(self.device)
        found: dict[str, Any] = {
            "products": "emulated" if emulated else "native",
            "timed_steps": len(timed),
            "samples_per_second": None,
            "tokens_per_second": None,
            "warmup_seconds": round(sum(s.seconds for s in self.steps[:skip]), 3),
            "mfu": None,
            "peak_flops": None,
            "peak_flops_from": None,
            "peak_memory_gb": None if self.peak_gb is None else round(self.peak_gb, 3),
        }
        if emulated or not timed:
            return found
        peak, source = peak_flops(self.plan, self.device)
        mfu = sum(s.flops for s in timed) / seconds / peak
        return found | {
            "samples_per_second": round(sum(s.documents for s in timed) / seconds, 3),
            "tokens_per_second": round(sum(s.tokens for s in timed) / seconds, 1),
            "mfu": round(mfu, 4) if mfu <= 1 else None,
            "peak_flops": peak,
            "peak_flops_from": source,
        }


def reset_memory() -> None:
    """Give back what the last run held, and start the peak anew."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    reset_peak()


def reset_peak() -> None:
    """Start the peak anew: of the GPU's allocator, or of this process where the system lets it (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # the peak is then that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")
