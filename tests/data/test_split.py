"""Made splits: stratified, seeded, never parting a group, never taking a label's last training document."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyhat.data.labels import encode_labels
from tinyhat.data.split import stratified_split
from tinyhat.errors import UserError
from tinyhat.types import Targets


def single(values):
    return Targets("single", max(values) + 1, np.array(values, dtype=np.int64))


def multi(label_lists, width):
    names = [str(j) for j in range(width)]
    return encode_labels([[str(j) for j in labels] for labels in label_lists], names, "multi")[0]


def counts(targets, rows):
    values = targets.take(rows).values.astype(np.int64)
    return np.bincount(values, minlength=targets.width)


def check_parts(targets, kept, held):
    assert sorted([*kept, *held]) == list(range(len(targets)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    assert len(held)


def test_single_label_shares_are_exact():
    targets = single([0] * 50 + [1] * 30 + [2] * 20)
    kept, held = stratified_split(targets, 0.1, 0)
    check_parts(targets, kept, held)
    assert counts(targets, held).tolist() == [5, 3, 2]


def test_many_small_classes_still_give_the_whole_share():
    targets = single([j for j in range(100) for _ in range(4)])  # 0.4 documents of each class
    _, held = stratified_split(targets, 0.1, 0)
    assert len(held) == 40
    assert counts(targets, held).max() == 1


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=80).filter(lambda v: max(np.bincount(v)) > 1),
    st.floats(0.05, 0.5),
    st.integers(0, 5),
)
def test_single_label_properties(values, share, seed):
    targets = single(values)
    kept, held = stratified_split(targets, share, seed)
    check_parts(targets, kept, held)
    every, out = np.bincount(values, minlength=targets.width), counts(targets, held)
    assert (out < np.maximum(every, 1)).all(), "no label loses its last training document"
    np.testing.assert_array_equal(held, stratified_split(targets, share, seed)[1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=8, max_size=80),
    st.floats(0.1, 0.4),
    st.booleans(),
    st.integers(0, 5),
)
def test_multi_label_properties(label_lists, share, grouped, seed):
    targets = multi(label_lists, 10)
    groups = [f"g{i % 5}" for i in range(len(label_lists))] if grouped else None
    kept, held = stratified_split(targets, share, seed, groups)
    check_parts(targets, kept, held)
    if groups:
        assert not {groups[i] for i in kept} & {groups[i] for i in held}
    np.testing.assert_array_equal(held, stratified_split(targets, share, seed, groups)[1])


def long_tail(documents, width, seed):
    random = np.random.RandomState(seed)
    weights = 1 / np.arange(1, width + 1)
    return multi([random.choice(width, 3, replace=False, p=weights / weights.sum()) for _ in range(documents)], width)


def test_iterative_stratification_is_closer_than_chance():
    targets = long_tail(2000, 200, 0)
    every = counts(targets, np.arange(2000))
    kept, held = stratified_split(targets, 0.1, 0)
    assert abs(len(held) - 200) < 20
    assert (counts(targets, kept)[every > 0] > 0).all()
    chance = [np.random.RandomState(s).choice(2000, len(held), replace=False) for s in range(5)]
    error = np.abs(counts(targets, held) - 0.1 * every).mean()
    assert error < 0.5 * min(np.abs(counts(targets, rows) - 0.1 * every).mean() for rows in chance)


def test_every_label_is_rare_and_a_dev_split_is_still_made():
    targets = multi([[j] for j in range(50) for _ in range(2)], 50)
    kept, held = stratified_split(targets, 0.1, 0)
    assert len(held) == 10
    assert (counts(targets, kept) >= 1).all()


def test_regression_holds_out_every_decile():
    numbers = np.linspace(0, 1, 1000, dtype=np.float32)[np.random.RandomState(0).permutation(1000), None]
    targets = Targets("regression", 1, numbers)
    _, held = stratified_split(targets, 0.1, 0)
    assert np.bincount((numbers[held, 0] * 9.999).astype(int)).tolist() == [10] * 10


def test_groups_of_single_labels_and_numbers_stay_whole():
    groups = [f"g{i // 4}" for i in range(200)]
    for targets in (single([i % 3 for i in range(200)]), Targets("regression", 1, np.arange(200.0)[:, None])):
        kept, held = stratified_split(targets, 0.2, 0, groups)
        assert not {groups[i] for i in kept} & {groups[i] for i in held}
        assert 30 <= len(held) <= 50


def test_what_cannot_be_split():
    with pytest.raises(UserError, match="too few training documents"):
        stratified_split(single([0]), 0.1, 0)
    with pytest.raises(UserError, match="one group"):
        stratified_split(single([0, 1, 0]), 0.1, 0, ["g"] * 3)
