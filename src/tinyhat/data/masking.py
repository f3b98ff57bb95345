"""Masking for masked-LM training: which tokens are to be predicted, and what stands in their place.

S sequences laid end to end, T tokens, V entries of the vocabulary. numpy only, and a function of its generator: the
same seed masks the same places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tinyhat.types import NOT_ASKED, BoolArray, IntArray

Strategy = Literal["span", "subword", "whole_word"]
MASK, RANDOM, KEEP = 0, 1, 2  # what happens to a chosen token
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # Devlin et al. 2019, section 3.1; the rest is kept
SPAN_P, SPAN_MOD = 1 / 3, 10  # a span is Geometric(1/3) mod 10 tokens long: 3 on average, 9 at most
TRIES = 100


@dataclass(frozen=True)
class Masking:
    """How a text is masked.

    Attributes:
        strategy: subword: every token on its own; whole_word: words; span: stretches of 3 tokens on average.
        share: of the tokens.
        mask_id: the id of [MASK].
        eligible: bool [V], entries that may be masked, and that stand in for others: all but special ones.
        word_starts: bool [V], entries that begin a word.
    """

    strategy: Strategy
    share: float
    mask_id: int
    eligible: BoolArray
    word_starts: BoolArray


def mask_tokens(
    input_ids: IntArray, cu_seqlens: npt.NDArray[np.integer], masking: Masking, random: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Choose tokens and replace them: 80% by [MASK], 10% by a random entry, 10% stay.

    Args:
        input_ids: int64 [T].
        cu_seqlens: [S + 1], where each sequence begins.
        masking: how.
        random: all chance comes from it.

    Returns:
        The masked ids and the targets (the original id of a chosen token, NOT_ASKED elsewhere), int64 [T] both.
    """
    allowed = masking.eligible[input_ids]
    if masking.strategy == "span":
        action = _spans(allowed, cu_seqlens, masking.share, random)
    elif masking.strategy == "whole_word":
        begins = masking.word_starts[input_ids] | ~allowed
        begins[cu_seqlens[:-1][np.diff(cu_seqlens) > 0]] = True
        word = np.cumsum(begins) - 1
        action = _draw(int(word[-1]) + 1 if len(word) else 0, masking.share, random)[word]
    else:
        action = _draw(len(input_ids), masking.share, random)
    action[~allowed] = -1
    masked = input_ids.copy()
    masked[action == MASK] = masking.mask_id
    swapped = np.flatnonzero(action == RANDOM)
    masked[swapped] = random.choice(np.flatnonzero(masking.eligible), len(swapped))
    return masked, np.where(action >= 0, input_ids, NOT_ASKED)


def _draw(count: int, share: float, random: np.random.Generator) -> npt.NDArray[np.int8]:
    """Return for `count` units what happens to each, -1 where nothing does; every unit on its own."""
    action = _actions(count, random)
    action[random.random(count) >= share] = -1
    return action


def _actions(count: int, random: np.random.Generator) -> npt.NDArray[np.int8]:
    drawn = random.random(count)
    return ((drawn >= MASKED_SHARE).astype(np.int8) + (drawn >= MASKED_SHARE + RANDOM_SHARE)).astype(np.int8)


def _spans(
    allowed: BoolArray, cu_seqlens: npt.NDArray[np.integer], share: float, random: np.random.Generator
) -> npt.NDArray[np.int8]:
    """Lay spans until each sequence has its number of chosen tokens, or TRIES spans have been laid.

    The number is Binomial(allowed tokens, share), at least 1; the span that reaches it is not shortened, so that
    slightly more than `share` is chosen. A span begins anywhere from just before the sequence to its end, and never
    covers the last place (as published; a separator stands there). One span, one decision; a place that two spans cover
    keeps the first. All sequences are handled at once, a span each per round.
    """
    begins, lengths = cu_seqlens[:-1].astype(np.int64), np.diff(cu_seqlens).astype(np.int64)
    action = np.full(len(allowed), -1, np.int8)
    sums = np.concatenate([[0], np.cumsum(allowed)])
    free = sums[cu_seqlens[1:]] - sums[cu_seqlens[:-1]]
    wanted = np.minimum(np.maximum(random.binomial(free, share), 1), free)
    active = np.flatnonzero(wanted > 0)
    for _ in range(TRIES):
        if not len(active):
            break
        span = random.geometric(SPAN_P, len(active)) % SPAN_MOD
        total = lengths[active]
        first = random.integers(-(span - 1), np.maximum(total + span - 1, 2 - span))
        low, high = np.maximum(first, 0), np.minimum(first + span, total - 1)
        size = np.maximum(high - low, 0)
        place = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size) + np.repeat(begins[active] + low, size)
        owner = np.repeat(np.arange(len(active)), size)
        new = allowed[place] & (action[place] < 0)
        action[place[new]] = _actions(len(active), random)[owner[new]]
        wanted[active] -= np.bincount(owner[new], minlength=len(active))
        active = active[wanted[active] > 0]
    return action
