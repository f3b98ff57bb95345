"""From the train section to strategy objects, and which settings exclude each other."""

from __future__ import annotations

from pathlib import Path

import torch

from tinyhat.config import TrainConfig
from tinyhat.data.passages import require_text
from tinyhat.encoder.layers import stack_of
from tinyhat.encoder.load import Encoder
from tinyhat.encoder.precision import Plan
from tinyhat.errors import UserError
from tinyhat.train.anchor import L2SP, Average, Mixout, WiseFT
from tinyhat.train.freeze import Freeze, Gradual, Reinitialise, require_layers
from tinyhat.train.lora import BiasOnly, Lora, require_peft
from tinyhat.train.precision import TrainPlan
from tinyhat.train.replay import Replay, require_masked_lm
from tinyhat.train.strategy import Strategy
from tinyhat.types import Task


def check_strategies(config: TrainConfig, task: Task) -> None:
    """Refuse settings that contradict each other, before anything is loaded.

    Raises:
        UserError: they do.
    """
    small = config.update in ("lora", "bias", "head")
    for key in ("l2_sp", "mixout", "layer_decay", "reinit_layers"):
        if small and getattr(config, key) != TrainConfig.model_fields[key].default:
            raise UserError(
                f"train.{key} acts on the weights of the layers, which train.update = {config.update!r} freezes: "
                "leave one of the two out"
            )
    if config.update == "top" and config.reinit_layers > config.top_layers:
        raise UserError(
            f"train.reinit_layers = {config.reinit_layers} are more layers than the {config.top_layers} that "
            "train.update = 'top' lets learn: random layers would stay random; raise train.top_layers"
        )
    if config.update == "head" and config.replay:
        raise UserError("train.replay pulls on the body, which train.update = 'head' freezes: leave one of the two out")
    _check_loss(config, task)


def check_parts(config: TrainConfig, encoder: Encoder, plan: Plan) -> None:
    """Refuse what this encoder or this machine does not have, before time is spent.

    Raises:
        UserError: more layers than there are, an adapter without peft, a text or a masked-LM head that is not there, or
            a plan that stores weights or scales gradients so that a strategy would miss its aim.
    """
    _check_plan(config, plan)
    layers = len(stack_of(encoder.model).layers)
    if config.update == "top":
        require_layers("top_layers", config.top_layers, layers, encoder.name)
    require_layers("reinit_layers", config.reinit_layers, layers, encoder.name)
    if config.update in ("lora", "bias"):
        require_peft(f"train.update = {config.update!r}")
    for path in (config.replay, config.forgetting):
        if path is not None:
            require_text(path)
    if config.replay:
        require_masked_lm(encoder)  # loaded once more for the training: a baseline may take minutes before it


def _check_loss(config: TrainConfig, task: Task) -> None:
    wrong = [
        ("loss = 'focal'", config.loss == "focal", ("single", "multi")),
        ("loss = 'asymmetric'", config.loss == "asymmetric", ("multi",)),
        ("class_weights", config.class_weights, ("single",)),
        ("pos_weight", config.pos_weight is not None, ("multi",)),
        ("label_smoothing", config.label_smoothing > 0, ("single", "multi")),
        ("balanced_sampling", config.balanced_sampling > 0, ("single", "multi")),
    ]
    for name, asked, tasks in wrong:
        if asked and task not in tasks:
            raise UserError(f"train.{name} is for {' or '.join(tasks)} labels, and the task is {task}: leave it out")
    if config.loss == "asymmetric" and (config.label_smoothing or config.pos_weight):
        raise UserError(
            "train.loss = 'asymmetric' weighs positives and negatives itself: leave train.pos_weight and "
            "train.label_smoothing out"
        )


def _check_plan(config: TrainConfig, plan: Plan) -> None:
    """Refuse plans under which copies of weights are not what the optimiser moves, or gradients are scaled."""
    keys = [key for key in ("l2_sp", "mixout", "ema", "wise_ft", "replay") if getattr(config, key)]
    low = isinstance(plan, TrainPlan) and (plan.body != torch.float32 or plan.scale != "none")
    if keys and low:
        raise UserError(
            f"train.{keys[0]} needs fp32 weights and unscaled gradients, which train.plan = {plan.name} does not have: "
            "take fp32 or amp_bf16"
        )


def build_strategies(
    config: TrainConfig, encoder: Encoder, epoch_steps: int, adapter: Path, plan: Plan, device: torch.device
) -> list[Strategy]:
    """Return what the train section asks for, in the order in which the hooks must run.

    Layers start anew before anything takes copies of weights; adapters come before averages and mixtures, because they
    are merged first at the end; gradual unfreezing drops gradients after all others have added theirs.

    Args:
        config: the train section.
        encoder: as loaded.
        epoch_steps: optimiser steps of an epoch.
        adapter: folder for an adapter.
        plan: in which replay computes.
        device: where.
    """
    found: list[Strategy] = []
    if config.reinit_layers:
        found.append(Reinitialise(config.reinit_layers, config.seed))
    if config.update in ("head", "top"):
        found.append(Freeze(config.update, config.top_layers))
    elif config.update == "lora":
        found.append(Lora(config.lora_rank, config.lora_alpha, adapter, config.seed))
    elif config.update == "bias":
        found.append(BiasOnly(adapter))
    if config.freeze_embeddings and config.update in ("all", "gradual", "bias"):
        found.append(Freeze("embeddings"))
    if config.replay:
        found.append(Replay(encoder, config, plan, device))
    if config.l2_sp:
        found.append(L2SP(config.l2_sp))
    if config.mixout:
        found.append(Mixout(config.mixout, config.seed))
    if config.update == "gradual":
        found.append(Gradual(config.unfreeze_every or epoch_steps))
    if config.ema is not None:
        found.append(Average(config.ema))
    if config.wise_ft is not None:
        found.append(WiseFT(config.wise_ft))
    return found
