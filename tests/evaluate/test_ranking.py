import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import ndcg_score

from tiny.scores import sparse_targets, tiny_scores
from tinyhat.evaluate.ranking import ranking_values, reciprocal_ranks, top_labels
from tinyhat.tune.decided import truth

TIED = st.sampled_from([-1.0, 0.0, 0.0, 1.0, 2.0])


@st.composite
def ranked(draw):
    shape = draw(st.tuples(st.integers(1, 10), st.integers(1, 14)))
    return draw(hnp.arrays(np.float32, shape, elements=TIED)), draw(hnp.arrays(bool, shape))


def full_order(logits):
    return np.argsort(-logits, axis=1, kind="stable")  # the lower index first


@given(ranked(), st.integers(1, 16))
def test_top_labels_are_the_head_of_a_full_stable_sort(case, k):
    logits, _ = case
    np.testing.assert_array_equal(top_labels(logits, k), full_order(logits)[:, :k])


@given(ranked())
def test_values_are_their_definitions(case):
    logits, hot = case
    values = ranking_values(logits, truth(sparse_targets(hot)), (1, 3, 5))
    for n, order in enumerate(full_order(logits)):
        relevant = hot[n, order]
        size = int(hot[n].sum())
        for k in (1, 3, 5):
            found = int(relevant[:k].sum())
            assert values[f"precision_at_{k}"][n] == found / k
            assert values[f"recall_at_{k}"][n] == (found / size if size else 0)
            assert values[f"rp_at_{k}"][n] == (found / min(k, size) if size else 0)
            gain = sum(1 / np.log2(2 + i) for i, hit in enumerate(relevant[:k]) if hit)
            ideal = sum(1 / np.log2(2 + i) for i in range(min(k, size)))
            assert values[f"ndcg_at_{k}"][n] == pytest.approx(gain / ideal if size else 0)


@given(ranked())
def test_reciprocal_ranks_find_the_first_true_label(case):
    logits, hot = case
    expected = []
    for n, order in enumerate(full_order(logits)):
        places = np.flatnonzero(hot[n, order])
        expected.append(1 / (1 + places[0]) if len(places) else 0.0)
    np.testing.assert_allclose(reciprocal_ranks(logits, truth(sparse_targets(hot))), expected)


@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_ndcg_is_that_of_sklearn(k):
    scores = tiny_scores("multi", documents=700, labels=40)
    hot = scores.targets.dense()
    assert (hot.sum(axis=1) == 0).any(), "documents without labels are part of the comparison"
    values = ranking_values(scores.logits, truth(scores.targets))
    assert values[f"ndcg_at_{k}"].mean() == pytest.approx(ndcg_score(hot, scores.logits, k=k), abs=1e-12)


def test_fewer_labels_than_places():
    values = ranking_values(np.array([[1.0, 0.0]], np.float32), truth(sparse_targets(np.array([[True, False]]))))
    assert values["precision_at_10"][0] == 0.1
    assert values["recall_at_10"][0] == values["rp_at_10"][0] == values["ndcg_at_10"][0] == 1.0


@given(ranked(), st.randoms(use_true_random=False))
def test_a_rising_transformation_changes_nothing(case, random):
    logits, hot = case
    true = truth(sparse_targets(hot))
    before, after = ranking_values(logits, true), ranking_values(np.exp(logits) * 3 + 1, true)
    assert all((before[name] == after[name]).all() for name in before)
