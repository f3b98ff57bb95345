"""The right parameters move, at the right rate, at the right step; and no others."""

from __future__ import annotations

import pytest
import torch
from tests.train.strategies import RATE, lesson

from tinyhat.encoder.layers import stack_of
from tinyhat.errors import UserError
from tinyhat.train.optim import rate_factors

LAYER = "bert.encoder.layer.{}."
# softmax does not see the key bias, and the last layer's gradient of it is exactly 0 (docs/decisions/first_row.md)
DEAF = ("attention.self.key.bias",)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


def hearing(names):
    return {name for name in names if not name.endswith(DEAF)}


def test_everything_moves_by_default(tmp_path):
    one = lesson(tmp_path)
    assert hearing(one.moved()) == hearing(one.before)


def test_the_head_alone(tmp_path):
    one = lesson(tmp_path, update="head")
    assert one.moved() == set(stack_of(one.encoder.model).head) == {"classifier.weight", "classifier.bias"}
    assert sum(len(g["params"]) for g in one.trainer.optimizer.param_groups) == 2


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert"])
def test_the_top_layers(tmp_path, family):
    one = lesson(tmp_path, family, update="top", top_layers=1)
    stack = stack_of(one.encoder.model)
    moved = one.moved()
    learns = {*stack.head, *stack.pooler, *stack.layers[-1]}
    assert moved <= learns
    assert {n for n in learns if "weight" in n} <= moved


def test_embeddings_can_be_frozen(tmp_path):
    one = lesson(tmp_path, freeze_embeddings=True)
    assert hearing(one.moved()) == hearing(set(one.before) - set(stack_of(one.encoder.model).embeddings))


def test_gradual_unfreezing_takes_one_part_more_at_its_step(tmp_path):
    one = lesson(tmp_path, update="gradual", unfreeze_every=2, weight_decay=0.1)
    groups = [set(group) for group in stack_of(one.encoder.model).groups()]
    assert len(groups) == 4  # head; pooler and layer 1; layer 0; embeddings
    for step in range(8):
        learns = set().union(*groups[: step // 2 + 1])
        assert hearing(one.moved()) == hearing(learns), step


def test_a_gradual_run_resumed_in_the_middle_ends_with_the_same_bits(tmp_path):
    settings = {"update": "gradual", "unfreeze_every": 2, "max_steps": 7}
    whole = lesson(tmp_path, **settings)
    for step in range(7):
        if step == 3:  # between two unfreezings: head and top layer learn, the rest has no optimiser state
            whole.trainer._save()
        whole.trainer.train_step()
    again = lesson(tmp_path, **settings)
    again.trainer._begin(True, pytest.fail)
    assert again.trainer.progress.step == 3
    for _ in range(3, 7):
        again.trainer.train_step()
    for (name, a), (_, b) in zip(
        whole.encoder.model.named_parameters(), again.encoder.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    states = [lessons.trainer.optimizer.optimizer.state_dict()["state"] for lessons in (whole, again)]
    assert len(states[0]) == len(states[1]) == len(whole.before)


def test_an_epoch_a_part_is_the_default(tmp_path):
    one = lesson(tmp_path, update="gradual")  # 96 documents, 8 a step
    assert [s.every for s in one.trainer.strategies] == [12]


def test_rates_fall_layer_by_layer(tmp_path):
    one = lesson(tmp_path, layer_decay=0.5)
    sizes = one.step()
    # Adam's first step moves every entry by its rate where the gradient is well above eps
    expected = {"classifier.weight": 10, "bert.pooler.dense.weight": 1, LAYER.format(1) + "output.dense.weight": 1}
    expected |= {LAYER.format(0) + "output.dense.weight": 0.5, "bert.embeddings.word_embeddings.weight": 0.25}
    for name, factor in expected.items():
        assert sizes[name] == pytest.approx(RATE * factor, rel=1e-3), name
    factors = rate_factors(one.encoder.model, one.config.train)
    assert sorted(set(factors.values())) == [0.25, 0.5, 1.0, 10.0]
    groups = one.trainer.optimizer.param_groups
    assert {round(g["base_lr"] / RATE, 6) for g in groups} == {0.25, 0.5, 1.0, 10.0}
    assert groups[0]["base_lr"] == RATE  # the one the log shows is the body's


def test_head_and_body_have_their_rates(tmp_path):
    sizes = lesson(tmp_path, head_rate=3.0).step()
    assert sizes["classifier.weight"] == pytest.approx(3 * RATE, rel=1e-3)
    assert sizes["bert.pooler.dense.weight"] == pytest.approx(RATE, rel=1e-3)


def test_top_layers_start_anew_and_the_rest_does_not(tmp_path):
    one = lesson(tmp_path, reinit_layers=1)
    stack = stack_of(one.encoder.model)
    now = dict(one.encoder.model.named_parameters())
    changed = {name for name, old in one.before.items() if not torch.equal(old, now[name])}
    assert changed == {*stack.layers[-1], *stack.pooler}
    weight = now[LAYER.format(1) + "intermediate.dense.weight"]
    assert float(weight.detach().std()) == pytest.approx(one.encoder.model.config.initializer_range, rel=0.1)
    again = dict(lesson(tmp_path, reinit_layers=1).encoder.model.named_parameters())
    assert all(torch.equal(value, again[name]) for name, value in now.items())
    other = dict(lesson(tmp_path, reinit_layers=1, seed=1).encoder.model.named_parameters())
    assert not torch.equal(weight, other[LAYER.format(1) + "intermediate.dense.weight"])


@pytest.mark.parametrize("key", ["reinit_layers", "top_layers"])
def test_more_layers_than_there_are_is_one_sentence(tmp_path, key):
    with pytest.raises(UserError, match=rf"train.{key} = 3: .* has 2 layers; set it to 2 or less"):
        lesson(tmp_path, **{key: 3} | ({"update": "top"} if key == "top_layers" else {}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"update": "head", "l2_sp": 0.1}, "train.l2_sp acts on the weights of the layers"),
        ({"update": "lora", "mixout": 0.1}, "train.mixout acts on"),
        ({"update": "bias", "layer_decay": 0.9}, "train.layer_decay acts on"),
        ({"update": "top", "top_layers": 1, "reinit_layers": 2}, "random layers would stay random"),
        ({"update": "head", "replay": "text.txt"}, "train.replay pulls on the body"),
        ({"pos_weight": 3.0}, "pos_weight is for multi labels, and the task is single"),
        ({"loss": "asymmetric"}, "is for multi labels"),
        ({"plan": "bf16_pure", "l2_sp": 0.1}, "train.l2_sp needs fp32 weights"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        lesson(tmp_path, **settings)


def test_frozen_embeddings_keep_their_biases_too(tmp_path):
    one = lesson(tmp_path, update="bias", freeze_embeddings=True)
    stack = stack_of(one.encoder.model)
    moved = one.moved()
    assert not moved & set(stack.embeddings)
    assert {n for n in moved if n.endswith("bias")} & set(stack.layers[0])


def test_gradual_unfreezing_says_what_it_never_comes_to(tmp_path):
    strategy = lesson(tmp_path, update="gradual", unfreeze_every=5).trainer.strategies[0]
    assert strategy.note(16) is None
    assert "1 of 4 parts never learn" in strategy.note(15)
    assert "train.unfreeze_every to 4 or less" in strategy.note(15)
