"""The document classification experiment: every numeric plan, every seed, one record each (PLAN.md).

python experiments/classification/run.py --config amp_bf16 --seed 0
python experiments/classification/run.py --config all --seeds 3
python experiments/classification/run.py --config amp_bf16 --max_steps 100
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from config import LAYOUTS, Settings, parse
from data import FIXED, Data, fingerprint, load, take
from metrics import measure
from model import Objective, build, padded_logits

from tinyhat.data.packing import build_pack, inference_packs
from tinyhat.data.reading import Reading
from tinyhat.encoder.forward import forward_pack
from tinyhat.encoder.untrained import NAME as UNTRAINED
from tinyhat.errors import UserError
from tinyhat.head.output import output_layer, start_at_prior
from tinyhat.run import Run
from tinyhat.train.flops import step_flops
from tinyhat.train.grid import Grid, require_counts, start
from tinyhat.train.loop import Trainer
from tinyhat.train.objective import Material
from tinyhat.train.precision import FP32, choose_train_plan
from tinyhat.train.trial import Bench, Trial
from tinyhat.train.watch import Watch
from tinyhat.types import FloatArray


def main() -> None:
    """Run what the command line asks for."""
    start("experiments/classification/run.py", parse(), Settings, prepare)


def prepare(options: argparse.Namespace, settings: Settings) -> Grid:
    """Read the data and refuse what cannot run.

    Raises:
        UserError: model or data cannot be had, or do not belong together.
    """
    require_counts(options, ("dev_limit",))
    try:
        data = load(options, settings.max_tokens)
        encoder = build(options.model, data.labels, settings.max_tokens, 0, options.head, "padded")
    except UserError as error:
        other = f"; or --model {UNTRAINED}: the same shape, random weights" if "cannot be reached" in str(error) else ""
        raise UserError(f"{error}{other}") from None
    highest = max(int(reading.input_ids.max()) for reading, _ in (data.train, data.dev))
    if highest >= encoder.model.config.vocab_size:
        raise UserError(
            f"the data has token {highest} and {options.model} knows {encoder.model.config.vocab_size}: "
            "give the tokens of its own tokenizer"
        )
    row = {"model": options.model, "head": options.head, "reduction": options.reduction}
    layouts = LAYOUTS if options.layout == "both" else (options.layout,)
    return Grid(
        "classification",
        [row | {"layout": layout} for layout in layouts],
        fingerprint(data),
        lambda trial, scratch: bench(trial, data, settings, options, scratch),
    )


def bench(trial: Trial, data: Data, settings: Settings, options: argparse.Namespace, scratch: Path) -> Bench:
    """Build the model, the loop and the measures of one run."""
    layout = trial.row["layout"]
    encoder = build(options.model, data.labels, settings.max_tokens, trial.seed, options.head, layout)
    if layout == "packed" and not encoder.packed:
        raise UserError(f"{encoder.name} does not pack: {encoder.reason}")
    plan = choose_train_plan(trial.plan, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if plan.softmax and layout != "packed":
        raise UserError(f"plan {plan.name} sets the softmax of packed attention: --layout packed")
    start_at_prior(output_layer(encoder.model, len(data.labels)), data.counts, len(data.train[0]))
    watch = Watch(options.watch)
    objective = Objective(encoder, Material(*data.train), layout, settings.micro_batch, options.reduction == "mean")
    run = Run(scratch)
    trainer = Trainer(encoder, objective, settings.train_config(trial.plan, trial.seed), plan, run, None, (watch,))

    def logits(reading: Reading, exact: bool) -> FloatArray:
        return _logits(trainer, reading, exact)

    def evaluate() -> dict[str, float | None]:
        native = logits(data.dev[0], exact=False)
        exact = logits(data.dev[0], exact=True)
        found = measure(native, data.dev[1], trial.seed)
        found |= {f"fp32_{k}": v for k, v in measure(exact, data.dev[1], trial.seed).items()}
        gap = float(np.abs(native - exact).max())
        return found | {"largest_gap_to_fp32": gap if np.isfinite(gap) else None}

    fixed = take(data.dev[0], np.arange(min(FIXED, len(data.dev[0]))))
    return Bench(
        trainer,
        watch,
        evaluate,
        lambda rows: step_flops(encoder.model, data.train[0].lengths[rows]),
        lambda: logits(fixed, exact=False),
    )


def _logits(trainer: Trainer, reading: Reading, exact: bool) -> FloatArray:
    """Return fp32 [N, L] logits: as the plan computes them in training, or (`exact`) all in fp32."""
    encoder, plan, device = trainer.encoder, trainer.plan, trainer.accelerator.device
    if exact:
        encoder, plan = replace(encoder, model=copy.deepcopy(encoder.model).float()), FP32
    model = encoder.model
    out = np.zeros((len(reading), int(encoder.model.config.num_labels)), dtype=np.float32)
    # training mode, because in evaluation mode the package computes every output layer in fp32; dropout is set to 0
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    rates = [m.p for m in dropouts]
    try:
        model.train()
        for module in dropouts:
            module.p = 0.0
        with torch.no_grad(), plan.context(device):
            for rows in inference_packs(reading.lengths, trainer.config.pack_tokens, out.shape[1]):
                pack = build_pack(reading, rows, encoder.first_position)
                logits = forward_pack if encoder.packed else padded_logits
                out[rows] = logits(encoder, pack, device).float().cpu().numpy()
    finally:
        for module, rate in zip(dropouts, rates, strict=True):
            module.p = rate
    return out


if __name__ == "__main__":
    main()
