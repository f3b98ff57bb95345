"""The document classification experiment: every numeric plan, every seed, one record each (PLAN.md).

python experiments/classification/run.py --config amp_bf16 --seed 0
python experiments/classification/run.py --config all --seeds 3
python experiments/classification/run.py --config amp_bf16 --max_steps 100
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from config import Settings, parse
from data import FIXED, Data, load, take
from metrics import measure
from model import RANDOM, Objective, build, rectangle

from tinyhat.data.packing import build_pack, inference_packs
from tinyhat.data.reading import Reading
from tinyhat.encoder.forward import forward_pack
from tinyhat.errors import UserError
from tinyhat.head.output import output_layer, start_at_prior
from tinyhat.run import Run
from tinyhat.train.flops import step_flops
from tinyhat.train.loop import Trainer
from tinyhat.train.objective import Material
from tinyhat.train.precision import FP32, choose_train_plan
from tinyhat.train.trial import Bench, Trial, choose_plans, list_plans, run_grid
from tinyhat.train.watch import Watch
from tinyhat.types import FloatArray


def main() -> None:
    """Run what the command line asks for; exit code 2 and one sentence for a mistake."""
    options, settings = parse()
    if options.list:
        print(list_plans())
        return
    try:
        layouts = ("packed", "padded") if options.layout == "both" else (options.layout,)
        seeds = [options.seed] if options.seed is not None else range(options.seeds)
        plans = choose_plans(options.config)
        tokenizer = "minilm" if options.model == RANDOM else options.model
        data = load(options.data, options.tokens, tokenizer, settings.max_tokens, options.limit)
        if options.dev_limit:
            rows = np.arange(min(options.dev_limit, len(data.dev[0])))
            data = replace(data, dev=(take(data.dev[0], rows), data.dev[1].take(rows)))
        build(options.model, data.labels, settings.max_tokens, 0, options.head, "padded")  # refused now or never
        row = {"model": options.model, "head": options.head, "reduction": options.reduction}
        trials = [
            Trial("classification", plan, seed, row | {"layout": layout})
            for layout in layouts
            for seed in seeds  # a grid that is stopped has seen every plan
            for plan in plans
        ]
        with tempfile.TemporaryDirectory() as scratch:
            run_grid(
                trials,
                lambda trial: bench(trial, data, settings, options, Path(scratch)),
                options.out,
                options.only_missing,
                settings.eval_steps,
                lambda sentence: print(sentence, file=sys.stderr, flush=True),
            )
    except UserError as error:
        other = f"; or --model {RANDOM}: the same shape, random weights" if "cannot be reached" in str(error) else ""
        print(f"experiments/classification/run.py: {error}{other}", file=sys.stderr)
        sys.exit(2)


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
                if encoder.packed:
                    found = forward_pack(encoder, pack, device)
                else:
                    found = model(**rectangle(pack, encoder.pad_token_id, device)).logits
                out[rows] = found.float().cpu().numpy()
    finally:
        for module, rate in zip(dropouts, rates, strict=True):
            module.p = rate
    return out


if __name__ == "__main__":
    main()
