"""Votes over windows: against plain loops, in every task; learned ones leave a single window as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyhat.config import ReadingConfig
from tinyhat.errors import UserError
from tinyhat.head.learned_vote import attach_vote, check_vote, learned_logits, vote_of, without_vote
from tinyhat.head.predictor import _groups
from tinyhat.head.vote import as_rectangle, segment_mean, vote_logits

PLAIN = ("mean", "mean_probability", "max", "top_k", "majority")


def by_hand(x: torch.Tensor, task: str, vote: str, k: int) -> torch.Tensor:
    """One document's logits from float64 [W, L]."""
    count = len(x)
    if count == 1:
        return x[0]
    if vote == "mean" or (vote == "mean_probability" and task == "regression"):
        return x.mean(0)
    if vote == "max":
        return x.max(0).values
    if vote == "top_k":
        return x.sort(0, descending=True).values[:k].mean(0)
    if task == "regression":
        return torch.quantile(x, 0.5, dim=0)
    p = x.softmax(1) if task == "single" else x.sigmoid()
    share = p.mean(0)
    if vote == "majority":
        chosen = nn.functional.one_hot(x.argmax(1), x.shape[1]) if task == "single" else (x > 0)
        share = (chosen.double().sum(0) + share) / (count + 1)
    return share.log() if task == "single" else share.logit()


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
@pytest.mark.parametrize("vote", PLAIN)
@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=6), seed=st.integers(0, 99), k=st.integers(1, 4))
def test_every_vote_equals_a_plain_loop_over_documents(task, vote, counts, seed, k):
    x = 3 * torch.randn(sum(counts), 4, generator=torch.Generator().manual_seed(seed))
    owner = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    found = vote_logits(x, owner, len(counts), task, ReadingConfig(vote=vote, vote_k=k))
    for b in range(len(counts)):
        rows = x[owner == b]
        torch.testing.assert_close(found[b].double(), by_hand(rows.double(), task, vote, k), rtol=1e-4, atol=1e-4)
        if len(rows) == 1:
            assert torch.equal(found[b], rows[0])


@pytest.mark.parametrize("vote", PLAIN[:-1])
@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_gradients_reach_every_window_that_counts(task, vote):
    x = torch.randn(5, 3, requires_grad=True)
    owner = torch.tensor([0, 0, 1, 1, 1])
    vote_logits(x, owner, 2, task, ReadingConfig(vote=vote)).square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).any(dim=1).all() or vote == "max"


def test_extreme_logits_stay_finite():
    x = torch.tensor([[900.0, -900.0], [-900.0, 900.0], [900.0, -900.0]])
    for task in ("single", "multi"):
        for vote in PLAIN:
            assert torch.isfinite(vote_logits(x, torch.tensor([0, 0, 1]), 2, task, ReadingConfig(vote=vote))).all()


def test_a_rectangle_keeps_windows_in_order_and_a_mean_weighs_documents():
    out, there = as_rectangle(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 1]), 2, -1.0)
    assert out.tolist() == [[1, 2], [3, -1]]
    assert there.tolist() == [[True, True], [True, False]]
    assert segment_mean(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 1]), 2).tolist() == [1.5, 3.0]


class Body(nn.Module):
    base_model_prefix = "base"

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 8)
        self.base_model = self.base
        self.out = nn.Linear(8, 2)


@pytest.mark.parametrize("vote", ["attention", "transformer"])
def test_a_learned_vote_learns_and_leaves_a_single_window_alone(vote):
    torch.manual_seed(0)
    model = Body()
    attach_vote(model, 2, vote, seed=1)
    module = vote_of(model)
    assert module is not None
    vectors = torch.randn(4, 8)
    both = torch.cat([model.out(vectors), vectors], dim=1)
    owner = torch.tensor([0, 1, 1, 1])
    found = learned_logits(module, model.out, both, owner, 2)
    assert torch.equal(found[0], both[0, :2])
    found[1].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    assert sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None) > 0
    if vote == "attention":  # it starts as the mean
        torch.testing.assert_close(found[1], model.out(vectors[1:].mean(0)))
    with without_vote(model) as taken:
        assert taken is module
        assert not any("vote" in name for name in model.state_dict())
    assert vote_of(model) is module


def test_votes_that_cannot_work_are_named():
    with pytest.raises(UserError, match="needs windows"):
        check_vote(ReadingConfig(vote="max"))
    with pytest.raises(UserError, match="no gradient"):
        check_vote(ReadingConfig(strategy="windows", vote="majority", learn="document"))
    for changes in ({"stride": 9}, {"title_tokens": 3}, {"learn": "document"}):
        with pytest.raises(UserError, match=f"reading.{next(iter(changes))} = .* needs windows"):
            check_vote(ReadingConfig(**changes))
        check_vote(ReadingConfig(strategy="windows", **changes))


@pytest.mark.parametrize(("width", "heads"), [(5, 0), (40, 0), (40, 4)])
def test_a_vote_holds_so_many_numbers_at_a_time(width, heads):
    counts = np.array([1, 2, 1, 30, 1, 1, 200, 1, 3])
    groups = list(_groups(counts, 2000, width, heads))
    assert [end for _, end in groups][:-1] == [begin for begin, _ in groups][1:]
    assert (groups[0][0], groups[-1][1]) == (0, len(counts))
    for begin, end in groups:
        side = counts[begin:end].max()
        assert (end - begin) * side * (width + heads * side) <= 2000 or end - begin == 1
