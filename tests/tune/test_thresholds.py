import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score

from tiny.scores import sparse_targets
from tinyhat.tune.decided import truth
from tinyhat.tune.thresholds import MARGIN, best_cut, global_threshold, label_thresholds

# few distinct values, so that ties are the rule; and extremes
LOGITS = st.one_of(st.sampled_from([-3.0, -1.0, 0.0, 0.25, 0.5, 2.0]), st.floats(-50, 50, width=32))


@st.composite
def labelled(draw):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 5)))
    logits = draw(hnp.arrays(np.float32, shape, elements=LOGITS))
    hot = draw(hnp.arrays(bool, shape))
    if not hot.any():
        hot[0, 0] = True
    return logits, hot


def f1_at(logits, hot, threshold):
    found = logits > threshold
    return 2 * (found & hot).sum() / (found.sum() + hot.sum())


def brute_force(logits, hot):
    """The best F1 over every cut there is: below each distinct value, and above all."""
    return max(f1_at(logits, hot, t) for t in [-np.inf, *np.unique(logits).astype(float)])


@given(labelled())
def test_label_cut_is_the_best_of_all_cuts(case):
    logits, hot = case[0][:, 0], case[1][:, 0]
    if hot.any():
        threshold = best_cut(np.sort(logits), logits[hot])
        assert f1_at(logits, hot, threshold) == brute_force(logits, hot)


@given(labelled())
def test_global_threshold_is_the_best_of_all_cuts(case):
    logits, hot = case
    threshold = global_threshold(logits, truth(sparse_targets(hot)))
    assert f1_at(logits, hot, threshold) == brute_force(logits, hot)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.002, 0.3), st.floats(0, 4))
def test_global_threshold_is_exact_where_pruning_bites(seed, density, signal):
    rng = np.random.default_rng(seed)
    hot = rng.random((200, 30)) < density
    hot[0, 0] = True
    logits = (rng.normal(size=hot.shape) + signal * hot).astype(np.float32).round(1)
    threshold = global_threshold(logits, truth(sparse_targets(hot)))
    assert f1_at(logits, hot, threshold) == brute_force(logits, hot)


@given(labelled(), st.sampled_from([0.0, 1.0, 32.0]))
def test_no_logit_lies_on_a_threshold(case, shrink):
    logits, hot = case
    true = truth(sparse_targets(hot))
    shared = global_threshold(logits, true)
    own = label_thresholds(logits, true, shared, shrink)
    assert not (logits.astype(np.float64) == shared).any()
    assert not (logits.astype(np.float64) == own[None, :]).any()


def test_neighbouring_floats_are_parted_and_equal_ones_are_not():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    threshold = best_cut(np.array([low, high], np.float32), np.array([high]))
    assert float(low) < threshold < float(high)
    tied = np.array([0, 1, 1, 1], np.float32)  # one positive among three equal logits: all or none
    assert best_cut(tied, np.array([1], np.float32)) == 0.5


def test_threshold_is_midway_between_neighbours():
    assert best_cut(np.array([-2, -1, 3, 4], np.float32), np.array([3, 4], np.float32)) == 1.0


def test_among_equal_cuts_the_highest_wins():
    # F1 is 2/3 above 5 (one hit, nothing else) and 2/3 above 1 (two hits, two others)
    logits = np.array([1, 2, 3, 5], np.float32)
    assert best_cut(logits, np.array([1, 5], np.float32)) == 4.0


def test_shrinking_goes_from_the_own_threshold_to_the_global_one():
    rng = np.random.default_rng(0)
    hot = rng.random((400, 6)) < 0.2
    hot[:, 5] = False
    logits = (rng.normal(size=hot.shape) + 2 * hot - np.arange(6)).astype(np.float32)
    true = truth(sparse_targets(hot))
    own = [best_cut(np.sort(logits[:, j]), logits[hot[:, j], j]) for j in range(5)]
    np.testing.assert_allclose(label_thresholds(logits, true, 0.3, 0.0)[:5], own, atol=MARGIN)
    np.testing.assert_allclose(label_thresholds(logits, true, 0.3, 1e9), 0.3, atol=MARGIN)
    count = hot[:, 2].sum()
    half = label_thresholds(logits, true, 0.3, float(count))[2]
    assert abs(half - (own[2] + 0.3) / 2) <= MARGIN
    assert label_thresholds(logits, true, 0.3, 0.0)[5] == 0.3, "a label without positives follows the global threshold"


def test_without_shrinking_every_label_has_the_best_f1():
    rng = np.random.default_rng(1)
    hot = rng.random((300, 7)) < 0.1
    logits = rng.normal(size=hot.shape).astype(np.float32) + hot
    found = logits > label_thresholds(logits, truth(sparse_targets(hot)), 0.0, 0.0)
    expected = [brute_force(logits[:, j], hot[:, j]) for j in range(7)]
    np.testing.assert_allclose(f1_score(hot, found, average=None), expected)


@given(labelled(), st.randoms(use_true_random=False))
def test_order_of_documents_does_not_matter(case, random):
    logits, hot = case
    order = list(range(len(logits)))
    random.shuffle(order)
    results = []
    for rows in (slice(None), order):
        true = truth(sparse_targets(hot[rows]))
        shared = global_threshold(logits[rows], true)
        results.append((shared, label_thresholds(logits[rows], true, shared, 2.0).tolist()))
    assert results[0] == results[1]
