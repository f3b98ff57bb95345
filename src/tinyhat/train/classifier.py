"""From a dataset to a trained classifier on disk: load the encoder, read, train, fold, save."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyhat.config import Config, TuneConfig
from tinyhat.data.dataset import Dataset, Split
from tinyhat.data.reading import Reader
from tinyhat.encoder.load import Encoder, backend_tokenizer, load_encoder
from tinyhat.encoder.long import long_notes
from tinyhat.encoder.precision import pick_device
from tinyhat.errors import UserError
from tinyhat.evaluate.metrics import MAIN_METRIC
from tinyhat.head.imbalance import build_loss, sampling
from tinyhat.head.learned_vote import attach_vote, check_vote, save_vote, without_vote
from tinyhat.head.output import fold_scale, output_layer, start_at_prior
from tinyhat.head.predictor import TorchPredictor
from tinyhat.run import Run, atomic_path
from tinyhat.train.chosen import build_strategies, check_parts, check_strategies
from tinyhat.train.forgetting import Forgetting
from tinyhat.train.loop import Evaluation, Outcome, Trainer
from tinyhat.train.objective import Classify, Material
from tinyhat.train.optim import base_rate
from tinyhat.train.precision import TrainPlan, choose_train_plan, describe
from tinyhat.train.ranks import is_first
from tinyhat.tune.decided import decide, label_counts, truth
from tinyhat.tune.rule import fit_rule
from tinyhat.types import FloatArray, Scores, Targets

Say = Callable[[str], None]
Watch = Callable[[float], None]


@dataclass(frozen=True)
class Trained:
    """A trained classifier: its predictor, how training went, and facts for the manifest."""

    predictor: TorchPredictor
    outcome: Outcome
    facts: dict[str, Any]
    forgetting: dict[str, Any] | None = None


@dataclass(frozen=True)
class Prepared:
    """What training needs, loaded and found to fit together before any time is spent."""

    encoder: Encoder
    plan: TrainPlan
    device: torch.device


def fix_threads(threads: int | None, say: Say) -> int:
    """Compute with the CPU threads a run began with (None: it begins now); another number rounds sums differently."""
    if threads is not None and threads != torch.get_num_threads():
        say(
            f"threads: the run began with {threads} CPU threads, they are used again so that it ends with the same bits"
        )
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def prepare(config: Config, dataset: Dataset, say: Say) -> Prepared:
    """Load the encoder with a fresh head and choose the plan.

    Raises:
        UserError: unknown model or plan, too many tokens for the model, a head that cannot learn this task, a reading
            that does not fit, parts that are not there.
    """
    check_strategies(config.train, dataset.task)
    device = pick_device()
    plan = choose_train_plan(config.train.plan, device)
    names, tokens, seed = dataset.labels.names, config.reading.max_tokens, config.train.seed
    encoder = load_encoder(config.encoder.model, dataset.task, names, config.encoder, tokens, seed)
    if dataset.task == "regression" and output_layer(encoder.model, len(names)).bias is None:
        raise UserError(
            f"encoder.model = {encoder.name!r}: its head has no bias and cannot learn numbers; take another"
        )
    check_vote(config.reading)
    check_parts(config.train, encoder, plan)
    first = next(iter(dataset.splits.values())).take(np.arange(1))
    Reader(backend_tokenizer(encoder), config.reading).read(first.texts, first.pairs)  # strides, pairs in windows
    if config.reading.strategy == "windows":
        attach_vote(encoder.model, len(names), config.reading.vote, seed)
    say(f"encoder: {encoder.name}, {_parameters(encoder) / 1e6:.1f}M parameters, {encoder.reason}")
    for note in encoder.notes:
        say(f"encoder: {note}")
    say(f"plan: {plan.name} on {device.type} ({plan.reason}); weights are stored in {describe(plan)['body']}")
    return Prepared(encoder, plan, device)


def train_classifier(
    prepared: Prepared, config: Config, dataset: Dataset, run: Run, resume: bool, say: Say, watch: Watch | None = None
) -> Trained:
    """Train on the train split and save the classifier into ``run.model``.

    Args:
        prepared: by `prepare`, with the same configuration.
        config: the whole configuration.
        dataset: with a train and a dev split.
        run: the run folder.
        resume: go on from the newest checkpoint.
        say: where remarks for people go.
        watch: is told every dev value; what it raises ends training.
    """
    encoder, plan, device = prepared.encoder, prepared.plan, prepared.device
    reader = Reader(backend_tokenizer(encoder), config.reading)
    predictor = TorchPredictor(encoder, reader, plan.at_prediction(device), device, config.train.pack_tokens)
    forgetting = _forgetting(prepared, config, say)
    evaluate = _evaluation(predictor, dataset.splits["dev"], config, watch) if "dev" in dataset.splits else None
    trainer, mean, std = build_trainer(prepared, config, dataset, run, evaluate)
    layer = output_layer(encoder.model, len(dataset.labels))
    assert isinstance(trainer.objective, Classify)
    longest = int(trainer.objective.material.reading.sequence_lengths.max())
    for note in long_notes(encoder.model, longest):
        say(f"encoder: {note}")
    rate = base_rate(config.train, int(encoder.model.config.hidden_size))
    say(f"train: {len(dataset.splits['train'])} documents, {trainer.steps} steps of {config.train.batch_size}, "
        f"rate {rate:.2g} (head x {config.train.head_rate:g}), {config.train.schedule} schedule")  # fmt: skip
    for strategy in trainer.strategies:
        if (remark := strategy.note(trainer.steps)) is not None:
            say(f"train: {remark}")
    outcome = trainer.fit(resume, say)
    if dataset.task == "regression":
        fold_scale(layer, mean, std)
    trainer.save_beside()
    if is_first():
        save_classifier(encoder, run.model, config.reading.max_tokens, config.reading.strategy)
    facts = {
        "name": encoder.name,
        "parameters": _parameters(encoder),
        "packed": encoder.packed,
        "reason": encoder.reason,
        "train_plan": describe(plan),
    }
    return Trained(predictor, outcome, facts, forgetting.report() if forgetting else None)


def build_trainer(
    prepared: Prepared, config: Config, dataset: Dataset, run: Run, evaluate: Evaluation | None
) -> tuple[Trainer, FloatArray, FloatArray]:
    """Return the loop over the train split, and mean and deviation of regression targets to be folded in at the end.

    Args:
        prepared: by `prepare`, with the same configuration.
        config: the whole configuration.
        dataset: with a train split.
        run: the run folder.
        evaluate: measures the dev split while training, or None.
    """
    encoder, settings = prepared.encoder, config.train
    split = dataset.splits["train"]
    reading = Reader(backend_tokenizer(encoder), config.reading).read_cached(split.texts, split.pairs)
    targets, mean, std = _standardise(split.targets)
    if dataset.task == "multi" and config.head.prior_bias:
        start_at_prior(output_layer(encoder.model, len(dataset.labels)), dataset.labels.train_counts, len(split))
    material = Material(reading, targets, _mean_one(split.weights))
    draw = sampling(targets, settings.balanced_sampling)
    objective = Classify(encoder, material, build_loss(settings, targets), draw, config.reading)
    epoch = math.ceil(len(split) / settings.batch_size)
    strategies = build_strategies(settings, encoder, epoch, run.path / "adapter", prepared.plan, prepared.device)
    return Trainer(encoder, objective, settings, prepared.plan, run, evaluate, strategies), mean, std


def _forgetting(prepared: Prepared, config: Config, say: Say) -> Forgetting | None:
    """Measure the encoder before training, where the configuration names a text to measure it on."""
    path = config.train.forgetting
    if path is None or not is_first():
        return None
    say(f"forgetting: the encoder is measured on {path} before and after training")
    return Forgetting(prepared.encoder, path, prepared.device, config.train.seed)


def save_classifier(encoder: Encoder, folder: Path, max_tokens: int, strategy: str) -> None:
    """Write a Hugging Face checkpoint with its tokenizer; plain transformers then reads and scores as tinyhat does.

    The tokenizer's ``model_max_length`` is set to `max_tokens`, and its truncation side follows the strategy.
    """
    tokenizer = encoder.tokenizer
    tokenizer.model_max_length = max_tokens
    tokenizer.truncation_side = "left" if strategy == "tail" else "right"
    with atomic_path(folder) as temporary:
        with without_vote(encoder.model) as vote:  # model/ stays a plain Hugging Face checkpoint
            encoder.save(temporary)
        if vote is not None:
            save_vote(vote, temporary)
        tokenizer.save_pretrained(temporary)


def _parameters(encoder: Encoder) -> int:
    return sum(p.numel() for p in encoder.model.parameters())


def _standardise(targets: Targets) -> tuple[Targets, FloatArray, FloatArray]:
    """Return regression targets with mean 0 and standard deviation 1, and both; other targets unchanged."""
    if targets.task != "regression":
        return targets, np.zeros(0, np.float32), np.ones(0, np.float32)
    values = targets.values.astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    scaled = ((values - mean) / std).astype(np.float32)
    return replace(targets, values=scaled), mean.astype(np.float32), std.astype(np.float32)


def _mean_one(weights: FloatArray | None) -> FloatArray | None:
    """Document weights with mean 1, so that they do not change the learning rate."""
    return None if weights is None else (weights / weights.mean()).astype(np.float32)


def _evaluation(predictor: TorchPredictor, dev: Split, config: Config, watch: Watch | None) -> Evaluation:
    """Return the measure taken while training, on a seeded sample of the dev split; `watch` is told every value."""
    count = min(len(dev), config.train.evaluate_documents)
    rows = np.sort(np.random.default_rng(config.train.seed).permutation(len(dev))[:count])
    sample = dev.take(rows)
    reading = predictor.reader.read_cached(sample.texts, sample.pairs)

    def evaluate() -> tuple[str, float]:
        metric, value = quick_metric(Scores(sample.ids, predictor.logits(reading), sample.targets, predictor.plan))
        if watch is not None:
            watch(value)
        return metric, value

    return evaluate


def quick_metric(scores: Scores) -> tuple[str, float]:
    """Return one number that ranks checkpoints: micro-F1 at the best global threshold, accuracy, or mean Pearson r."""
    assert scores.targets is not None
    metric = MAIN_METRIC[scores.targets.task]
    if scores.targets.task == "multi":
        rule = fit_rule(scores, TuneConfig(rule="global"))
        return metric, float(label_counts(truth(scores.targets), decide(rule, scores.logits)).micro_f1())
    if scores.targets.task == "single":
        return metric, float(np.mean(scores.logits.argmax(axis=1) == scores.targets.values))
    values = scores.targets.values.astype(np.float64)
    found = [_pearson(scores.logits[:, k].astype(np.float64), values[:, k]) for k in range(values.shape[1])]
    return metric, float(np.mean(found))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
