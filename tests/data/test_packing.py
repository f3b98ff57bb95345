"""Packs hold exactly their documents; the step plan reads every document once an epoch and depends on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyhat.data.packing import StepPlan, build_pack, cut_packs, inference_packs
from tinyhat.data.reading import Reading
from tinyhat.types import Targets


def reading_of(lengths: list[int]) -> Reading:
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    counts = np.array(lengths, np.int64)
    return Reading(np.arange(indptr[-1], dtype=np.int32), indptr, counts, counts)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(1, 100), st.integers(1, 7))
def test_cut_packs_keeps_every_row_once_within_the_budget(lengths, budget, most):
    packs = cut_packs(np.arange(len(lengths)), np.array(lengths), budget, most)
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    for rows in packs:
        assert len(rows) <= most
        assert len(rows) == 1 or sum(lengths[r] for r in rows) <= budget


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.randoms(use_true_random=False), st.integers(0, 2))
def test_a_pack_holds_the_tokens_of_its_documents(lengths, random, first):
    reading = reading_of(lengths)
    rows = np.array(random.sample(range(len(lengths)), random.randint(1, len(lengths))))
    pack = build_pack(reading, rows, first)
    for i, row in enumerate(rows):
        part = slice(pack.cu_seqlens[i], pack.cu_seqlens[i + 1])
        source = slice(reading.indptr[row], reading.indptr[row + 1])
        assert pack.input_ids[part].tolist() == reading.input_ids[source].tolist()
        assert pack.position_ids[part].tolist() == list(range(first, first + lengths[row]))
    assert pack.tokens == sum(lengths[r] for r in rows)
    assert pack.max_seqlen == max(lengths[r] for r in rows)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_document_is_read_once_an_epoch_over_all_ranks(window, world):
    lengths = np.random.default_rng(0).integers(3, 60, size=101)
    plan = StepPlan(lengths, 5, batch_size=8, pack_tokens=90, seed=3, world_size=world, window=window)
    seen: list[int] = []
    for step in range(plan.steps(2.0)):
        per_rank = [list(plan.packs(step, rank)) for rank in range(world)]
        assert len({len(packs) for packs in per_rank}) == 1, "ranks would wait for each other for ever"
        documents = [r for packs in per_rank for rows, counts in packs if counts for r in rows]
        assert sorted(documents) == sorted(plan.batch(step).tolist())
        seen.extend(plan.batch(step).tolist())
    assert np.bincount(seen[:202], minlength=101).tolist() == [2] * 101


def test_the_plan_is_a_pure_function_of_seed_and_step():
    lengths = np.random.default_rng(1).integers(3, 60, size=50)
    first, again = (StepPlan(lengths.copy(), 5, 8, 100, seed=7) for _ in range(2))
    far = [again.batch(step).tolist() for step in reversed(range(20))][::-1]
    assert [first.batch(step).tolist() for step in range(20)] == far
    assert StepPlan(lengths, 5, 8, 100, seed=8).batch(0).tolist() != far[0]


def test_length_windows_show_no_order_of_length_from_step_to_step():
    lengths = np.random.default_rng(2).integers(3, 500, size=4000)
    plan = StepPlan(lengths, 5, 16, 4096, seed=0, window=16)
    means = np.array([lengths[plan.batch(step)].mean() for step in range(250)])
    spread = np.array([np.ptp(lengths[plan.batch(step)]) for step in range(250)])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.15
    assert np.median(spread) < 60, "documents of one batch are of similar length"


def test_a_batch_larger_than_the_data_repeats_documents_instead_of_shrinking():
    plan = StepPlan(np.array([5, 6, 7]), 2, batch_size=8, pack_tokens=100, seed=0)
    assert len(plan.batch(0)) == 8
    assert set(plan.batch(0).tolist()) == {0, 1, 2}


def test_inference_reads_every_row_once_and_bounds_logits():
    lengths = np.full(9000, 3)
    packs = inference_packs(lengths, 10**9, 4271)
    assert sorted(np.concatenate(packs).tolist()) == list(range(9000))
    assert max(len(p) for p in packs) * 4271 <= 1 << 24


def test_targets_and_weights_travel_with_their_rows():
    targets = Targets("multi", 4, np.array([0, 1, 3, 2]), np.array([0, 2, 2, 4]))
    pack = build_pack(reading_of([3, 4, 5]), np.array([2, 0]), 0, targets, np.array([2.0, 0.5], np.float32))
    assert pack.targets is not None
    assert pack.targets.dense().tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]
    assert pack.weights.tolist() == [2.0, 0.5]
