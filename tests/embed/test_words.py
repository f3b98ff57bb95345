"""Words: pieces pooled, aligned to the characters of the text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny.models import save_tiny

from tinyhat.embed.embedder import load_embedder
from tinyhat.embed.words import pieces_to_words
from tinyhat.errors import UserError

TEXTS = {"bert": "The  milk-ships of Zürich, taxed", "roberta": "the  milk ships  taxes trade"}
WORDS = {"bert": ["The", "milk", "ships", "of", "Zürich", "taxed"], "roberta": ["milk", "ships", "taxes", "trade"]}
TEXT = TEXTS["bert"]


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_words_are_their_pieces(tmp_path, family, pooling):
    embedder, text = load_embedder(save_tiny(tmp_path / family, family), plan="fp32"), TEXTS[family]
    words = embedder.words([text, "law"], pooling)[0]
    states = embedder.hidden_states([text])
    texts = [text[a:b].strip() for a, b in words.spans]
    assert [t for t in texts if t.isalpha()][-len(WORDS[family]) :] == WORDS[family]
    for (begin, end), vector in zip(words.spans, words.vectors, strict=True):
        own = (states.offsets[0][:, 0] >= begin) & (states.offsets[0][:, 1] <= end) & (states.offsets[0][:, 1] > 0)
        pieces = states[-1][0][own]
        expected = {"first": pieces[0], "last": pieces[-1], "mean": pieces.mean(0), "max": pieces.max(0)}[pooling]
        np.testing.assert_allclose(vector, expected, atol=2e-6)


def test_a_span_is_the_pieces_it_touches(bert):
    embedder = load_embedder(bert, plan="fp32")
    words = embedder.words([TEXT])[0]
    begin, end = words.spans[1]
    np.testing.assert_array_equal(embedder.span(TEXT, begin, end), words.vectors[1])
    with pytest.raises(UserError, match="no token touches"):
        embedder.span(TEXT, 3, 5)


def test_words_of_a_long_document_are_all_there(bert):
    text = " ".join(["court", "fish"] * 60)
    words = load_embedder(bert, max_tokens=16).words([text])[0]
    assert [text[a:b] for a, b in words.spans] == text.split()
    with pytest.raises(UserError, match="first, last, mean, max"):
        load_embedder(bert).words([text], "cls")


@given(st.lists(st.integers(1, 4), max_size=8), st.sampled_from(["first", "last", "mean", "max"]), st.booleans())
def test_pieces_to_words_is_a_loop_over_words(sizes, pooling, gap):
    numbers = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    if gap:
        numbers = np.concatenate([[-1], numbers]).astype(np.int32)
    states = np.random.default_rng(0).standard_normal((len(numbers), 3)).astype(np.float32)
    places = np.arange(len(numbers), dtype=np.int32)
    words = pieces_to_words(states, numbers, np.stack([places, places + 1], axis=1), pooling)
    assert len(words.vectors) == len(sizes)
    for w, vector in enumerate(words.vectors):
        own = states[numbers == w]
        expected = {"first": own[0], "last": own[-1], "mean": own.mean(0), "max": own.max(0)}[pooling]
        np.testing.assert_allclose(vector, expected, atol=1e-6)
        assert words.spans[w].tolist() == [np.flatnonzero(numbers == w)[0], np.flatnonzero(numbers == w)[-1] + 1]
