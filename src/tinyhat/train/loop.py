"""The one training loop: packs in, a trained classifier out, killed and resumed at any moment without a trace."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tinyhat.config import LoopConfig
from tinyhat.encoder.load import Encoder
from tinyhat.encoder.precision import Plan
from tinyhat.run import Run, process_memory_gb
from tinyhat.train.checkpoint import Progress, load_best, load_checkpoint, save_best, save_checkpoint
from tinyhat.train.log import Bar, StepLog
from tinyhat.train.objective import Objective
from tinyhat.train.optim import rate_factor, set_rate
from tinyhat.train.precision import as_train_plan
from tinyhat.train.ranks import shared, wait
from tinyhat.train.strategy import Strategy
from tinyhat.train.update import DivergedError, Update
from tinyhat.types import Pack


@dataclass(frozen=True)
class Outcome:
    """How training went: steps done, whether it stopped early, the best evaluation, and rates over the whole run."""

    steps: int
    stopped_early: bool
    best_step: int
    best_value: float | None
    documents_per_second: float
    tokens_per_second: float
    peak_memory_gb: float
    seconds: float


Evaluation = Callable[[], tuple[str, float]]
"""Measures the dev split: metric name and value, higher is better."""


class Trainer:
    """Trains one encoder for one objective; `fit` is the whole loop, `train_step` one optimiser step.

    Args:
        encoder: the model to train, in place.
        objective: what its packs are and cost.
        config: the train section.
        plan: the numeric plan.
        run: the run folder for log and checkpoints.
        evaluate: measures the dev split, or None to keep the last weights.
        strategies: what happens around the steps, in this order.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        config: LoopConfig,
        plan: Plan,
        run: Run,
        evaluate: Evaluation | None = None,
        strategies: Sequence[Strategy] = (),
    ) -> None:
        self.config, self.run, self.objective, self.evaluate = config, run, objective, evaluate
        self.plan, self.strategies = as_train_plan(plan), strategies
        # precision is ours (train/precision.py): accelerate only places, wraps and reduces
        self.accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
        self.bare = encoder
        encoder.model.to(self.accelerator.device)  # strategies keep copies of weights where they will be used
        for strategy in strategies:
            strategy.prepare(encoder)
        width = int(encoder.model.config.hidden_size)
        self.update = Update(encoder.model, config, self.plan, width)
        self.update.check_company(strategies, self.accelerator.num_processes)
        model, self.optimizer = self.accelerator.prepare(encoder.model, self.update.optimizer)
        self.encoder = replace(encoder, model=model)
        self.steps_plan = objective.step_plan(config, self.accelerator.num_processes)
        self.steps = config.max_steps or self.steps_plan.steps(config.epochs)
        self.progress = Progress()
        self.factor = lambda step: rate_factor(step, self.steps, config)  # the rate finder takes another

    def fit(self, resume: bool, warn: Callable[[str], None]) -> Outcome:
        """Train to the end, from the newest whole checkpoint when `resume` is set.

        Raises:
            UserError: the loss or the gradient is not a finite number; the last checkpoint stays.
        """
        self._begin(resume, warn)
        every = self.config.evaluate_every or self._evaluate_every()
        first = self.accelerator.is_main_process
        log = StepLog(self.run.log if first else Path(os.devnull), self.progress.step, self._tensorboard())
        saved = time.monotonic()
        try:
            with Bar("train", self.steps, self.progress.step, first) as bar:
                while self.progress.step < self.steps and not self.progress.stopped:
                    line = self.train_step()
                    log.write(line)
                    bar.advance(1, _facts(line))
                    done = self.progress.step == self.steps
                    evaluated = self.evaluate is not None and (self.progress.step % every == 0 or done)
                    if evaluated:
                        log.write({"step": self.progress.step, "evaluation": self._evaluate()})
                    if done or self._due(evaluated, saved) or self.progress.stopped:
                        self._save()
                        saved = time.monotonic()
        finally:
            log.close()
        return self._outcome()

    def save_beside(self) -> None:
        """Write what strategies keep beside the model, once its weights are as they will be saved."""
        for strategy in self.strategies:
            strategy.save()

    def train_step(self) -> dict[str, Any]:
        """Do one optimiser step and return its log line."""
        begin = time.perf_counter()
        step = self.progress.step
        model = self.encoder.model
        model.train()
        # dropout depends on (seed, step, rank) and on nothing that happened before: that is what makes resume exact
        torch.manual_seed(_mix(self.config.seed, step, self.accelerator.process_index))
        set_rate(self.optimizer, self.factor(step))
        for strategy in self.strategies:
            strategy.before_step(step)
        batch = self.steps_plan.batch(step)
        scale = self.accelerator.num_processes / self.objective.denominator(batch, step)
        packs = list(self.steps_plan.packs(step, self.accelerator.process_index))
        loss = torch.zeros((), device=self.accelerator.device)
        tokens = 0
        for i, (rows, counts) in enumerate(packs):
            last = i == len(packs) - 1
            pack = self.objective.pack(rows, step)
            with nullcontext() if last else self.accelerator.no_sync(model):
                loss += self._backward(pack, scale if counts else 0.0)
            tokens += pack.tokens if counts else 0
        self.update.unscale()
        for strategy in self.strategies:
            strategy.after_backward(step)
        gradient_norm = self.update.norm(self.accelerator)
        facts = torch.stack([self.accelerator.reduce(loss, "mean"), gradient_norm.to(loss)])
        numbers = _on_their_way(facts)
        if not self.update.may_skip:
            self.update.step(self.optimizer)  # launched before the host waits: a GPU need not wait for the host
        mean_loss, norm = numbers()
        if not math.isfinite(mean_loss) or not (math.isfinite(norm) or self.update.overflowed(norm)):
            raise DivergedError(
                f"training diverged at step {step + 1} (loss {mean_loss}, gradient norm {norm}); "
                "start a new run with a lower train.learning_rate or with train.plan=fp32 (--resume keeps the settings)"
            )
        if self.update.may_skip:
            self.update.step(self.optimizer, math.isfinite(norm))
        for strategy in self.strategies:
            strategy.after_step(step)
        return self._line(mean_loss, norm, len(batch), tokens, time.perf_counter() - begin)

    def _backward(self, pack: Pack, scale: float) -> torch.Tensor:
        """Add the gradient of one pack; return its share of the effective batch's loss (times world size, for DDP)."""
        with self.plan.context(self.accelerator.device):
            losses = self.objective.losses(self.encoder, pack, self.accelerator.device)
        share = losses.sum() * scale
        self.update.backward(share, self.accelerator)
        return share.detach()

    def _begin(self, resume: bool, warn: Callable[[str], None]) -> None:
        if not resume:
            return
        found = load_checkpoint(self.run.checkpoints, self.bare.model, self.optimizer.optimizer, warn)
        if found is None:
            warn("no checkpoint was written before the run stopped: training starts at step 0")
            return
        self.progress, kept = found
        self.update.load_state(kept)
        for i, strategy in enumerate(self.strategies):
            prefix = f"{i}."
            strategy.load_state({k.removeprefix(prefix): t for k, t in kept.items() if k.startswith(prefix)})

    def _evaluate_every(self) -> int:
        """Return the steps between evaluations: four a run, and at least one an epoch."""
        return max(1, min(math.ceil(self.steps / 4), self.steps_plan.steps(1.0)))

    def _evaluate(self) -> dict[str, Any]:
        assert self.evaluate is not None
        for strategy in self.strategies:
            strategy.show()
        metric, value = shared(self.evaluate() if self.accelerator.is_main_process else None)
        best = self.progress.best_value
        if best is None or value > best:
            self.progress.best_value, self.progress.best_step, self.progress.worse = value, self.progress.step, 0
            if self.accelerator.is_main_process:
                save_best(self.run.checkpoints, self.bare.model)
        else:
            self.progress.worse += 1
            patience = self.config.patience
            self.progress.stopped = patience is not None and self.progress.worse >= patience
        for strategy in reversed(self.strategies):
            strategy.hide()
        return {"metric": metric, "value": value}

    def _due(self, evaluated: bool, saved: float) -> bool:
        every = self.config.checkpoint_every
        planned = self.progress.step % every == 0 if every else evaluated
        return planned or time.monotonic() - saved > 60 * self.config.checkpoint_minutes

    def _save(self) -> None:
        # the others do not wait: by the clock only rank 0 knows when, and they meet it again in the next step
        if self.accelerator.is_main_process:
            kept = self.update.state()
            kept |= {f"{i}.{k}": t for i, strategy in enumerate(self.strategies) for k, t in strategy.state().items()}
            save_checkpoint(self.run.checkpoints, self.bare.model, self.optimizer.optimizer, self.progress, kept)

    def _tensorboard(self) -> Any:
        wanted = self.config.tensorboard and self.accelerator.is_main_process
        return self.run.path / "tensorboard" if wanted else None

    def _line(self, loss: float, norm: float, documents: int, tokens: int, seconds: float) -> dict[str, Any]:
        self.progress.step += 1
        self.progress.documents += documents
        self.progress.tokens += tokens
        self.progress.seconds += seconds
        return {
            "step": self.progress.step,
            "epoch": round(self.steps_plan.epoch_of(self.progress.step), 4),
            "loss": loss,
            "gradient_norm": norm if math.isfinite(norm) else None,
            "rate": float(self.optimizer.param_groups[0]["lr"]),
            **self.update.facts(),
            "documents_per_second": round(documents / seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1),
            "memory_gb": round(peak_memory_gb(), 3),
            "seconds": round(self.progress.seconds, 3),
        }

    def _outcome(self) -> Outcome:
        for strategy in self.strategies:
            strategy.show()
        if self.progress.best_value is not None and self.progress.best_step != self.progress.step:
            wait()  # until rank 0 has written it
            load_best(self.run.checkpoints, self.bare.model)
        for strategy in self.strategies:
            strategy.finish()
        trained = self.progress.seconds
        return Outcome(
            steps=self.progress.step,
            stopped_early=self.progress.stopped,
            best_step=self.progress.best_step or self.progress.step,
            best_value=self.progress.best_value,
            documents_per_second=round(self.progress.documents / trained, 2) if trained else 0.0,
            tokens_per_second=round(self.progress.tokens / trained, 1) if trained else 0.0,
            peak_memory_gb=round(peak_memory_gb(), 3),
            seconds=round(trained, 1),
        )


def peak_memory_gb() -> float:
    """Return the most memory held so far in GB (10^9 bytes): of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return process_memory_gb()


def _on_their_way(facts: torch.Tensor) -> Callable[[], list[float]]:
    """Return what waits for `facts` to arrive on the host, and for nothing launched later."""
    if not facts.is_cuda:
        return facts.tolist
    copy = facts.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait_for_them() -> list[float]:
        arrived.synchronize()
        found: list[float] = copy.tolist()
        return found

    return wait_for_them


def _facts(line: dict[str, Any]) -> str:
    rates = f"{line['documents_per_second']:.1f} documents/s {line['tokens_per_second']:.0f} tokens/s"
    return f"loss {line['loss']:.4g} {rates}"


def _mix(seed: int, step: int, rank: int) -> int:
    """Return one 63-bit seed for (seed, step, rank); numpy's SeedSequence spreads neighbouring values apart."""
    from numpy.random import SeedSequence

    return int(SeedSequence([seed, step, rank]).generate_state(1, dtype="uint64")[0]) >> 1
