"""L2-SP pulls, mixout mixes, WiSE-FT and averages keep what they say."""

from __future__ import annotations

import pytest
import torch
from tests.train.strategies import lesson

from tinyhat.encoder.layers import stack_of
from tinyhat.train.anchor import L2SP, Average, Mixout, WiseFT


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


def strategy_of(one, kind):
    return next(s for s in one.trainer.strategies if isinstance(s, kind))


def gradients(one, steps):
    """Take `steps` steps and return the gradients that reached the clip in the last one."""
    seen = {}

    def clip(self, parameters, *_):
        seen.clear()
        seen.update({n: p.grad.clone() for n, p in one.encoder.model.named_parameters() if p.grad is not None})
        return torch.tensor(1.0)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr("accelerate.Accelerator.clip_grad_norm_", clip)
        for _ in range(steps):
            one.trainer.train_step()
    return seen


def test_l2_sp_adds_alpha_times_the_distance_to_the_bodys_gradient(tmp_path):
    one = lesson(tmp_path, l2_sp=0.5)
    pull = strategy_of(one, L2SP)
    one.trainer.train_step()
    weights = {n: p.detach().clone() for n, p in one.encoder.model.named_parameters()}
    pulled = gradients(one, 1)
    twin = lesson(tmp_path)
    with torch.no_grad():
        for name, parameter in twin.encoder.model.named_parameters():
            parameter.copy_(weights[name])
    twin.trainer.progress.step = 1
    plain = gradients(twin, 1)
    body = set(stack_of(one.encoder.model).body)
    for name, value in pulled.items():
        expected = plain[name] + (0.5 * (weights[name] - one.before[name]) if name in body else 0)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-8, msg=name)
    assert pull.alpha == 0.5


def test_l2_sp_takes_the_place_of_decay_in_the_body(tmp_path):
    one = lesson(tmp_path, l2_sp=0.1, weight_decay=0.2)
    names = {id(p): n for n, p in one.encoder.model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in one.trainer.optimizer.param_groups for p in g["params"]}
    assert {name for name, value in decay.items() if value} == {"classifier.weight"}


def test_a_strong_pull_keeps_the_body_where_it_was(tmp_path):
    def distance(**settings):
        one = lesson(tmp_path, max_steps=30, **settings)
        for _ in range(30):
            one.trainer.train_step()
        now = dict(one.encoder.model.named_parameters())
        return sum(float((now[n].detach() - one.before[n]).square().sum()) for n in stack_of(one.encoder.model).body)

    assert distance(l2_sp=10.0) < 0.2 * distance()


def test_mixout_computes_with_the_mixture_and_learns_the_weights(tmp_path):
    one = lesson(tmp_path, mixout=0.4)
    mixout = strategy_of(one, Mixout)
    one.trainer.train_step()
    model = one.encoder.model
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    mixout.before_step(1)
    mixed = {n: p.detach().clone() for n, p in model.named_parameters()}
    stack = stack_of(model)
    changed = {n for n in weights if not torch.equal(weights[n], mixed[n])}
    assert changed <= {n for n in stack.body if n.endswith("weight") and "Norm" not in n}
    assert "bert.encoder.layer.0.output.dense.weight" in changed
    assert not changed & {*stack.embeddings, *stack.head}
    name = "bert.encoder.layer.0.output.dense.weight"
    start, now, seen = one.before[name], weights[name], mixed[name]
    pretrained = torch.isclose(seen, start, rtol=0, atol=1e-9)
    scaled = torch.isclose(seen, start + (now - start) / 0.6, rtol=1e-4, atol=1e-7)
    assert bool((pretrained | scaled).all())
    moved = now != start
    # in the first step 0.4 of the entries computed with pretrained values, and their weights did not move
    assert float(moved.float().mean()) == pytest.approx(0.6, abs=0.05)
    assert float(pretrained[moved].float().mean()) == pytest.approx(0.4, abs=0.05)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    mixout.after_backward(1)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[n], weights[n]) for n in weights)
    expected = torch.where(pretrained, 0.0, 1 / 0.6)
    torch.testing.assert_close(after[name].grad[moved], expected[moved])
    assert torch.equal(after["classifier.weight"].grad, torch.ones_like(after["classifier.weight"]))


def test_the_mean_of_mixtures_is_the_weight(tmp_path):
    one = lesson(tmp_path, mixout=0.5)
    mixout = strategy_of(one, Mixout)
    one.trainer.train_step()
    parameter = dict(one.encoder.model.named_parameters())["bert.encoder.layer.1.output.dense.weight"]
    now, total = parameter.detach().clone(), torch.zeros_like(parameter)
    for step in range(400):
        mixout.before_step(step)
        total += parameter.detach()
        mixout.after_backward(step)
    assert float((total / 400 - now).abs().max()) < 0.3 * float((now - one.before[
        "bert.encoder.layer.1.output.dense.weight"]).abs().max())  # fmt: skip


def test_wise_ft_measures_and_keeps_a_share_of_the_change_in_the_body(tmp_path):
    one = lesson(tmp_path, wise_ft=0.25, max_steps=6, evaluate_every=2)
    body = set(stack_of(one.encoder.model).body)
    trained, shown = [], []

    def weights():
        return {n: p.detach().clone() for n, p in one.encoder.model.named_parameters()}

    def evaluate():
        shown.append(weights())
        return "accuracy", (0.5, 0.9, 0.7)[len(shown) - 1]

    def show(self):
        trained.append(weights())
        original(self)

    one.trainer.evaluate = evaluate
    original = WiseFT.show
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(WiseFT, "show", show)
        one.trainer.fit(False, pytest.fail)
    for before, mixed in zip(trained, shown, strict=False):
        for name, value in mixed.items():
            expected = 0.75 * one.before[name] + 0.25 * before[name] if name in body else before[name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7, msg=name)
    assert all(torch.equal(value, shown[1][name]) for name, value in weights().items()), "the best one, mixed once"
    twin = lesson(tmp_path, max_steps=6)
    for _ in range(6):
        twin.trainer.train_step()
    now = dict(twin.encoder.model.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in trained[2].items()), "measuring changes no step"


def test_an_average_and_its_mixture_give_way_to_the_trained_weights(tmp_path):
    one = lesson(tmp_path, ema=0.5, wise_ft=0.5)
    for _ in range(3):
        one.trainer.train_step()
    before = {n: p.detach().clone() for n, p in one.encoder.model.named_parameters()}
    one.trainer.evaluate = lambda: ("accuracy", 1.0)
    one.trainer._evaluate()
    assert all(torch.equal(p, before[n]) for n, p in one.encoder.model.named_parameters())


def test_an_average_follows_its_recursion_and_is_what_is_measured_and_kept(tmp_path):
    one = lesson(tmp_path, ema=0.5, max_steps=6, evaluate_every=2)
    model, seen, history = one.encoder.model, [], []
    name = "bert.encoder.layer.0.output.dense.weight"

    def evaluate():
        seen.append(dict(model.named_parameters())[name].detach().clone())
        return "accuracy", float(len(seen))

    one.trainer.evaluate = evaluate
    original = Average.after_step

    def after_step(self, step):
        history.append(dict(model.named_parameters())[name].detach().clone())
        original(self, step)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(Average, "after_step", after_step)
        one.trainer.fit(False, pytest.fail)
    mean, means = history[0].clone(), [history[0].clone()]
    for step, value in enumerate(history[1:], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * value
        means.append(mean.clone())
    for shown, expected in zip(seen, (means[1], means[3], means[5]), strict=True):
        torch.testing.assert_close(shown, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dict(model.named_parameters())[name].detach(), means[5], rtol=1e-5, atol=1e-7)


def test_an_average_and_a_mixture_survive_a_stop(tmp_path):
    settings = {"ema": 0.9, "mixout": 0.3, "l2_sp": 0.1, "max_steps": 6}
    whole = lesson(tmp_path, **settings)
    for step in range(6):
        if step == 4:
            whole.trainer._save()
        whole.trainer.train_step()
    again = lesson(tmp_path, **settings)
    again.trainer._begin(True, pytest.fail)
    assert again.trainer.progress.step == 4
    for _ in range(4, 6):
        again.trainer.train_step()
    means = [strategy_of(one, Average).state() for one in (whole, again)]
    now = [dict(one.encoder.model.named_parameters()) for one in (whole, again)]
    for name in now[0]:
        assert torch.equal(now[0][name], now[1][name]), name
        assert torch.equal(means[0][name], means[1][name]), name
