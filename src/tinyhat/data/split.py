"""Splits that are missing: a seeded, label-stratified share of the training documents; groups never part.

Randomness comes from ``numpy.random.RandomState``, whose stream is frozen for all numpy versions (NEP 19), so that one
seed gives one split on every machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from tinyhat.errors import UserError
from tinyhat.types import BoolArray, IntArray, Targets

DECILES = 10


def stratified_split(
    targets: Targets, share: float, seed: int, groups: Sequence[str] | None = None
) -> tuple[IntArray, IntArray]:
    """Hold out `share` of N documents so that every label (or decile of the numbers) is held out in that share.

    One label without groups: exact rounding per label by largest remainders. Otherwise iterative stratification
    (Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-label Data, ECML PKDD 2011, algorithm 1) into two
    parts, over groups where there are groups. A label is never held out of training altogether.

    Args:
        targets: of the N documents.
        share: between 0 and 1.
        seed: of the choice.
        groups: N group names, or None.

    Returns:
        Rows kept and rows held out, int64, ascending; both non-empty.

    Raises:
        UserError: fewer than two documents, or all of them in one group.
    """
    count = len(targets)
    if count < 2:
        raise UserError(f"there are too few training documents ({count}) to split: add documents or a dev file")
    random = np.random.RandomState(seed % 2**32)
    if groups is None and targets.task != "multi":
        held = _hold_by_class(_classes(targets), share, random)
    else:
        unit = np.arange(count)
        if groups is not None:
            unit = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
        if unit.max() == 0:
            raise UserError("all training documents are in one group and cannot be split: add groups or a dev file")
        held = _hold_iteratively(_unit_labels(targets, unit), np.bincount(unit), share, random)[unit]
    return np.flatnonzero(~held), np.flatnonzero(held)


def _classes(targets: Targets) -> IntArray:
    """One class per document: its label, or the decile of its (mean standardised) number; -1 for no label."""
    if targets.task != "regression":
        return targets.values.astype(np.int64)
    numbers = targets.values.astype(np.float64)
    spread = numbers.std(axis=0)
    numbers = (numbers - numbers.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    ranks = np.empty(len(numbers), dtype=np.int64)
    ranks[np.argsort(numbers.mean(axis=1), kind="stable")] = np.arange(len(numbers))
    return ranks * DECILES // len(numbers)


def _hold_by_class(classes: IntArray, share: float, random: np.random.RandomState) -> BoolArray:
    """Hold out by largest remainders, so that the total is right even where every class is small."""
    total = max(1, round(share * len(classes)))
    _, members, counts = np.unique(classes, return_inverse=True, return_counts=True)
    exact = counts * (total / len(classes))
    quota = np.minimum(np.floor(exact).astype(np.int64), counts - 1)
    room = counts - 1 - quota
    # remainders in descending order, ties in random order; a class of one document gives none
    order = np.lexsort((random.permutation(len(counts)), -(exact - quota)))
    while quota.sum() < total and room.any():
        for c in order:
            if room[c] and quota.sum() < total:
                quota[c] += 1
                room[c] -= 1
    if quota.sum() == 0:
        quota[order[0]] = 1
    shuffled = random.permutation(len(classes))
    by_class = shuffled[np.argsort(members[shuffled], kind="stable")]
    place = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.zeros(len(classes), dtype=bool)
    held[by_class[place < np.repeat(quota, counts)]] = True
    return held


def _unit_labels(targets: Targets, unit: IntArray) -> sparse.csr_array:
    """Return a sparse matrix [units, L] of how many documents of a unit (a group, or one document) have a label."""
    if targets.indptr is not None:
        rows, columns = np.repeat(unit, np.diff(targets.indptr)), targets.values.astype(np.int64)
        width = targets.width
    else:
        classes = _classes(targets)
        rows, columns = unit[classes >= 0], classes[classes >= 0]
        width = max(targets.width, DECILES)
    ones = np.ones(len(columns), dtype=np.int64)
    matrix = sparse.csr_array(sparse.coo_array((ones, (rows, columns)), shape=(int(unit.max()) + 1, width)))
    matrix.sum_duplicates()
    return matrix


def _hold_iteratively(
    labels: sparse.csr_array, sizes: IntArray, share: float, random: np.random.RandomState
) -> BoolArray:
    """Assign the units of the rarest remaining label first, each to the part that still wants that label most.

    45,000 documents with 228,000 label entries take about a second: plain lists and a heap with stale entries.
    """
    units, width = labels.shape
    indptr, columns, counts = labels.indptr.tolist(), labels.indices.tolist(), labels.data.tolist()
    totals = np.bincount(labels.indices, weights=labels.data, minlength=width)
    remaining = totals.astype(np.int64).tolist()
    # wanted[part][label] and documents[part]: part 0 is kept, part 1 is held
    wanted = [((1 - share) * totals).tolist(), (share * totals).tolist()]
    documents = [(1 - share) * float(sizes.sum()), share * float(sizes.sum())]
    order = random.permutation(units).tolist()
    coins = random.randint(2, size=units).tolist()
    with_label: list[list[int]] = [[] for _ in range(width)]
    for u in order:
        for k in range(indptr[u], indptr[u + 1]):
            with_label[columns[k]].append(u)
    part = [-1] * units

    def assign(u: int, label: int | None) -> None:
        wish = (wanted[0][label], wanted[1][label]) if label is not None else (0.0, 0.0)
        wish = wish if wish[0] != wish[1] else (documents[0], documents[1])
        chosen = int(wish[1] > wish[0]) if wish[0] != wish[1] else coins[u]
        part[u] = chosen
        documents[chosen] -= sizes[u]
        for k in range(indptr[u], indptr[u + 1]):
            wanted[chosen][columns[k]] -= counts[k]
            remaining[columns[k]] -= counts[k]
            heapq.heappush(heap, (remaining[columns[k]], columns[k]))

    heap = [(count, label) for label, count in enumerate(remaining) if count]
    heapq.heapify(heap)
    while heap:
        count, label = heapq.heappop(heap)
        if count == 0 or count != remaining[label]:
            continue  # done, or an entry that a later count replaced
        for u in with_label[label]:
            if part[u] < 0:
                assign(u, label)
    for u in order:
        if part[u] < 0:
            assign(u, None)
    held = np.array(part) == 1
    return _fill_up(held, labels, sizes, share, order)


def _fill_up(
    held: BoolArray, labels: sparse.csr_array, sizes: IntArray, share: float, order: Sequence[int]
) -> BoolArray:
    """Hold out further units where rare labels, which stay in training, have left too few; never a label's last."""
    target = max(1, round(share * float(sizes.sum())))
    total = int(sizes[held].sum())
    kept = np.asarray(labels[np.flatnonzero(~held)].sum(axis=0)).ravel()
    for u in order:
        if total >= target:
            break
        entries = slice(labels.indptr[u], labels.indptr[u + 1])
        columns, counts = labels.indices[entries], labels.data[entries]
        if not held[u] and total + sizes[u] <= target and (kept[columns] > counts).all():
            held[u] = True
            kept[columns] -= counts
            total += int(sizes[u])
    if not held.any():
        held[order[int(np.argmin(sizes[list(order)]))]] = True
    return held
