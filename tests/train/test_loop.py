"""The loop: packs do not change what is learned, one seed gives one result, and it learns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.tiny.corpus import tiny_dataset
from tests.tiny.models import save_tiny
from tests.train.strategies import lesson

from tinyhat.config import Config, build_config
from tinyhat.errors import UserError
from tinyhat.run import Run
from tinyhat.train.classifier import prepare, train_classifier


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


def settings(model, **changes) -> Config:
    base = {
        "encoder.model": str(model), "encoder.hidden_dropout": 0.0, "reading.max_tokens": 48, "train.plan": "fp32",
        "train.batch_size": 8, "train.learning_rate": 1e-3, "train.max_steps": 6, "train.evaluate_every": 100,
    }  # fmt: skip
    return build_config(None, base | changes)


def trained(tmp_path, name, config, dataset, resume=False):
    run = Run(tmp_path / name)
    run.path.mkdir(exist_ok=True)
    prepared = prepare(config, dataset, lambda _: None)
    result = train_classifier(prepared, config, dataset, run, resume, lambda _: None)
    return result, {n: p.detach().clone() for n, p in result.predictor.encoder.model.named_parameters()}


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in map(json.loads, run.log.read_text().splitlines()) if "loss" in line]


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_size_of_packs_changes_nothing(tmp_path, task, family):
    dataset = tiny_dataset(tmp_path / "data", task)
    model = save_tiny(tmp_path / "model", family)
    _, whole = trained(tmp_path, "whole", settings(model), dataset)
    _, small = trained(tmp_path, "small", settings(model, **{"train.pack_tokens": 40}), dataset)
    _, padded = trained(tmp_path, "padded", settings(model, **{"encoder.path": "padded"}), dataset)
    np.testing.assert_allclose(losses(Run(tmp_path / "small")), losses(Run(tmp_path / "whole")), rtol=1e-4)
    for name, value in whole.items():
        # Adam divides by the gradient's size: one that is zero up to rounding moves its weight by up to the rate
        torch.testing.assert_close(small[name], value, rtol=1e-3, atol=2e-3, msg=name)
    assert set(padded) == set(whole)


def test_padded_and_packed_take_the_same_steps_on_the_same_batches(tmp_path):
    dataset = tiny_dataset(tmp_path / "data", "multi")
    model = save_tiny(tmp_path / "model", "bert")
    config = settings(model, **{"train.batch_size": 96, "train.max_steps": 4})
    trained(tmp_path, "packed", config, dataset)
    trained(
        tmp_path,
        "padded",
        settings(
            model,
            **{
                "train.batch_size": 96,
                "train.max_steps": 4,
                "encoder.path": "padded",
                "encoder.attention_dropout": 0.0,  # packed runs without it
            },
        ),
        dataset,
    )
    np.testing.assert_allclose(losses(Run(tmp_path / "packed")), losses(Run(tmp_path / "padded")), rtol=1e-4)


def test_one_seed_gives_identical_weights_and_another_does_not(tmp_path):
    dataset = tiny_dataset(tmp_path / "data", "multi")
    model = save_tiny(tmp_path / "model", "bert")
    config = settings(model, **{"encoder.hidden_dropout": 0.1})
    _, first = trained(tmp_path, "first", config, dataset)
    _, again = trained(tmp_path, "again", config, dataset)
    _, other = trained(tmp_path, "other", settings(model, **{"encoder.hidden_dropout": 0.1, "train.seed": 1}), dataset)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_it_learns_and_keeps_the_best_weights(tmp_path, task):
    dataset = tiny_dataset(tmp_path / "data", task)
    model = save_tiny(tmp_path / "model", "bert")
    config = settings(model, **{"train.max_steps": 160, "train.evaluate_every": 40, "train.learning_rate": 3e-3})
    result, _ = trained(tmp_path, "run", config, dataset)
    lines = [json.loads(line) for line in Run(tmp_path / "run").log.read_text().splitlines()]
    measured = {line["step"]: line["evaluation"]["value"] for line in lines if "evaluation" in line}
    assert list(measured) == [40, 80, 120, 160]
    assert result.outcome.best_value == max(measured.values())
    assert result.outcome.best_value > 0.55  # chance is 0.2, 0.5 and 0
    assert result.outcome.best_step == max(measured, key=lambda s: (measured[s], -s))


def test_early_stopping_stops(tmp_path):
    dataset = tiny_dataset(tmp_path / "data", "single")
    model = save_tiny(tmp_path / "model", "bert")
    config = settings(
        model, **{"train.learning_rate": 1e-9, "train.max_steps": 50, "train.evaluate_every": 1, "train.patience": 3}
    )
    result, _ = trained(tmp_path, "run", config, dataset)
    assert result.outcome.stopped_early
    assert result.outcome.steps < 50


def test_document_weights_scale_each_documents_gradient(tmp_path):
    dataset = tiny_dataset(tmp_path / "data", "multi", train=8, dev=4, test=0)
    model = save_tiny(tmp_path / "model", "bert")
    captured = {}

    def gradient(name, weights, monkey):
        split = dataset.splits["train"]
        changed = type(split)(split.name, split.ids, split.texts, split.targets, None, weights)
        data = type(dataset)(dataset.name, dataset.task, dataset.labels, {"train": changed}, "x")

        def clip(self, parameters, *_):
            captured[name] = torch.cat([p.grad.flatten().double() for p in parameters])
            return torch.tensor(1.0)

        monkey.setattr("accelerate.Accelerator.clip_grad_norm_", clip)
        trained(tmp_path, name, settings(model, **{"train.max_steps": 1}), data)

    with pytest.MonkeyPatch.context() as monkey:
        gradient("even", np.full(8, 3.0, np.float32), monkey)
        gradient("none", None, monkey)
        parts = np.ones((2, 8), np.float32)
        parts[0, :4], parts[1, 4:] = 1e-9, 1e-9
        for i, part in enumerate(parts):
            gradient(f"part{i}", part, monkey)
    torch.testing.assert_close(captured["even"], captured["none"])
    # weights have mean 1: each half counts double, so the two halves average to the whole
    torch.testing.assert_close((captured["part0"] + captured["part1"]) / 2, captured["none"], rtol=1e-3, atol=1e-6)


def test_a_loss_that_is_no_number_stops_with_one_sentence(tmp_path):
    dataset = tiny_dataset(tmp_path / "data", "multi")
    config = settings(save_tiny(tmp_path / "model", "bert"), **{"train.learning_rate": 1e30, "train.warmup_ratio": 0.0})
    with pytest.raises(UserError, match=r"diverged at step \d+ .*train.learning_rate"):
        trained(tmp_path, "run", config, dataset)


def test_a_regression_model_speaks_in_the_targets_units(tmp_path):
    dataset = tiny_dataset(tmp_path / "data", "regression")
    config = settings(save_tiny(tmp_path / "model", "bert"), **{"train.max_steps": 60, "train.learning_rate": 3e-3})
    result, _ = trained(tmp_path, "run", config, dataset)
    dev = dataset.splits["dev"]
    values = result.predictor.logits(result.predictor.reader.read(dev.texts))
    assert abs(values[:, 0].mean() - dev.targets.values[:, 0].mean()) < 5
    assert np.corrcoef(values[:, 0], dev.targets.values[:, 0])[0, 1] > 0.3


def test_a_log_line_says_what_a_step_did(tmp_path):
    dataset = tiny_dataset(tmp_path / "data", "multi")
    trained(tmp_path, "run", settings(save_tiny(tmp_path / "model", "bert")), dataset)
    lines = [json.loads(line) for line in Run(tmp_path / "run").log.read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "gradient_norm", "rate", "documents_per_second", "tokens_per_second", "memory_gb"):
        assert all(line[key] > 0 for line in steps), key


def test_a_rate_that_an_optimizer_keeps_as_a_tensor_is_logged_as_a_number(tmp_path):
    one = lesson(tmp_path)
    for group in one.trainer.optimizer.param_groups:  # torchao's fp8 AdamW does so
        group["base_lr"] = torch.tensor(group["base_lr"])
    assert json.loads(json.dumps(one.trainer.train_step()))["rate"] == pytest.approx(1e-3)
