"""Adapters learn, are merged into a stock model, and lie beside it as peft reads them."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.tiny.corpus import tiny_dataset
from tests.train.strategies import RATE, lesson
from transformers import AutoModelForSequenceClassification

from tinyhat.encoder.layers import stack_of
from tinyhat.run import Run
from tinyhat.train.classifier import prepare, save_classifier, train_classifier
from tinyhat.train.lora import linear_names

peft = pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 45).view(4, 10)).logits


def with_adapter(model, folder):
    with warnings.catch_warnings():
        # peft asks transformers for a property under its former name
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        return peft.PeftModel.from_pretrained(model, folder)


def names_of(model):
    return {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "albert"])
def test_lora_moves_its_own_matrices_and_the_head(tmp_path, family):
    one = lesson(tmp_path, family, update="lora", lora_rank=2)
    head = set(stack_of(one.encoder.model).head)
    one.step()
    moved = one.moved()  # in the first step B is 0, and A has no gradient yet
    assert {n for n in moved if "lora_" not in n} == head
    assert sum("lora_B" in n for n in moved) == sum("lora_A" in n for n in moved) == len(linear_names(
        one.encoder.model))  # fmt: skip


def test_lora_learns_at_its_own_rate(tmp_path):
    one = lesson(tmp_path, update="lora", adapter_rate=5.0, head_rate=2.0)
    sizes = one.step()
    found = {"lora_B": set(), "classifier.weight": set()}
    for name, size in sizes.items():
        for part in found:
            if part in name:
                found[part].add(round(size / RATE, 2))
    assert found == {"lora_B": {5.0}, "classifier.weight": {2.0}}


@pytest.mark.parametrize("update", ["lora", "bias"])
def test_it_ends_as_a_stock_model_with_its_adapter_beside(tmp_path, update):
    one = lesson(tmp_path, update=update, max_steps=4)
    one.trainer.fit(False, pytest.fail)
    one.trainer.save_beside()
    assert names_of(one.encoder.model) == set(one.before)
    assert all(p.requires_grad for p in one.encoder.model.parameters())
    save_classifier(one.encoder, tmp_path / "out", 48, "head")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model-bert", num_labels=5, ignore_mismatched_sizes=True
    )
    expected = logits(plain)
    found = logits(with_adapter(base, tmp_path / "run" / "adapter"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    files = {p.name for p in (tmp_path / "run" / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    changed = {n for n, old in one.before.items() if not torch.equal(old, dict(plain.named_parameters())[n])}
    if update == "bias":
        assert all(n.endswith("bias") or n.startswith("classifier") for n in changed)
    else:
        assert {n.removesuffix(".weight") for n in changed} == {*linear_names(plain), "classifier", "classifier.bias"}


def test_bias_only_moves_biases_and_the_head(tmp_path):
    one = lesson(tmp_path, update="bias", adapter_rate=4.0)
    sizes = one.step()
    moved = {name for name, size in sizes.items() if size > 0}
    assert {n for n in moved if not n.startswith("classifier")} <= {n for n in sizes if n.endswith(".bias")}
    assert sizes["bert.encoder.layer.0.output.dense.bias"] == pytest.approx(4 * RATE, rel=1e-2)


def test_a_resumed_lora_run_starts_from_the_same_matrices(tmp_path):
    first, again = (lesson(tmp_path, update="lora") for _ in range(2))
    other = lesson(tmp_path, update="lora", seed=1)
    a, b, c = (dict(x.encoder.model.named_parameters()) for x in (first, again, other))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any("lora_A" in n and not torch.equal(a[n], c[n]) for n in a)


@pytest.mark.parametrize("settings", [{"update": "lora", "wise_ft": 0.5}, {"update": "bias", "ema": 0.5}])
def test_the_adapter_is_that_of_the_saved_model_in_the_units_of_the_targets(tmp_path, settings):
    one = lesson(tmp_path, task="regression", max_steps=4, **settings)
    dataset = tiny_dataset(tmp_path / "data-regression", "regression")
    run = Run(tmp_path / "run")
    prepared = prepare(one.config, dataset, lambda _: None)
    trained = train_classifier(prepared, one.config, dataset, run, False, lambda _: None)
    assert trained.outcome.best_value is not None
    plain = AutoModelForSequenceClassification.from_pretrained(run.model)
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model-bert", num_labels=2, ignore_mismatched_sizes=True
    )
    expected = logits(plain)
    assert float(expected[:, 0].mean()) > 50, "folded"
    torch.testing.assert_close(logits(with_adapter(base, run.path / "adapter")), expected, rtol=1e-4, atol=1e-4)


def test_a_mixed_lora_is_half_of_its_change(tmp_path):
    one = lesson(tmp_path, update="lora", wise_ft=0.5, max_steps=4)
    twin = lesson(tmp_path, update="lora", max_steps=4)
    for each in (one, twin):
        each.trainer.fit(False, pytest.fail)
    mixed, whole = (dict(each.encoder.model.named_parameters()) for each in (one, twin))
    for name in stack_of(one.encoder.model).body:
        expected = 0.5 * (one.before[name] + whole[name].detach())
        torch.testing.assert_close(mixed[name].detach(), expected, rtol=1e-5, atol=1e-6, msg=name)
