"""Windows cover every token in order; what fits one window is read as ever; important sentences are read whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny.models import tiny_tokenizer

from tinyhat.config import ReadingConfig
from tinyhat.data import importance
from tinyhat.data.importance import RANKINGS, choose_important, rank_sentences, sentence_starts
from tinyhat.data.packing import build_pack, capped_lengths, drawn_windows
from tinyhat.data.reading import Reader, window_spans
from tinyhat.errors import UserError
from tinyhat.types import Targets

TEXTS = ["law court market " * 12, "", "fish", "tax trade milk ship " * 7]
TOKENIZER = tiny_tokenizer("wordpiece")


def reader(**settings: object) -> Reader:
    return Reader(TOKENIZER.backend_tokenizer, ReadingConfig(**settings))


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 40), st.integers(0, 10))
def test_every_token_is_covered_in_order(length, room, step, title):
    room, step = room + title, min(step, room)
    spans = window_spans(length, room, step, title)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    for (begin, end), (after, last) in itertools.pairwise(spans):
        assert begin < after <= end < last, "the next window begins where the last one ended or before, and goes on"
        assert last - after <= room - title


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("abclawcourt .,\n", max_size=200), min_size=1, max_size=4), st.integers(8, 30), st.data())
def test_windows_hold_the_texts_tokens_between_its_special_tokens(texts, size, data):
    stride = data.draw(st.integers(1, size - 2))
    reading = reader(strategy="windows", max_tokens=size, stride=stride).read(texts)
    plain = reader(max_tokens=512).read(texts)
    assert len(reading) == len(texts)
    for i in range(len(texts)):
        whole = plain.input_ids[plain.indptr[i] : plain.indptr[i + 1]]
        own = range(*reading.windows[i : i + 2])
        windows = [reading.input_ids[reading.indptr[s] : reading.indptr[s + 1]] for s in own]
        assert all(len(w) <= size and w[0] == whole[0] and w[-1] == whole[-1] for w in windows)
        inner = whole[1:-1]
        for k, window in enumerate(windows):
            assert window[1:-1].tolist() == inner[k * stride : k * stride + size - 2].tolist()
        if len(whole) <= size:
            assert len(windows) == 1
            assert windows[0].tolist() == whole.tolist()
    assert reading.tokens_read.tolist() == reading.tokens_total.tolist()


def test_a_title_is_repeated_in_further_windows_only():
    text = "law court\n" + "fish " * 60
    reading = reader(strategy="windows", max_tokens=24, title_tokens=10).read([text])
    ids = [reading.input_ids[a:b].tolist() for a, b in zip(reading.indptr, reading.indptr[1:], strict=False)]
    title = TOKENIZER("law court", add_special_tokens=False)["input_ids"]
    body = TOKENIZER("fish " * 60, add_special_tokens=False)["input_ids"]
    assert len(ids) > 2
    assert all(window[1 : 1 + len(title)] == title for window in ids)
    assert {t for window in ids for t in window[1 + len(title) : -1]} == set(body)


def test_a_training_pack_holds_a_documents_windows_side_by_side_and_few_of_a_long_one():
    reading = reader(strategy="windows", max_tokens=8).read(TEXTS)
    counts = reading.window_counts
    assert counts[0] > 3
    rows = np.array([0, 0, 2, 3])  # a batch larger than the data repeats documents
    drawn = drawn_windows(reading, rows, 2, seed=1, step=5)
    targets = Targets("single", 4, np.arange(4))
    pack = build_pack(reading, rows, 0, targets, sequences=drawn)
    assert pack.sequence_doc.tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert pack.targets is not None
    assert pack.targets.take(pack.sequence_doc).values.tolist() == [0, 0, 0, 0, 2, 3, 3]
    assert pack.tokens <= capped_lengths(reading, 2)[rows].sum()
    again = drawn_windows(reading, rows, 2, seed=1, step=5)
    assert all((a == b).all() for a, b in zip(drawn, again, strict=True))
    seen = {int(w) for step in range(60) for w in drawn_windows(reading, rows[:1], 2, 1, step)[0]}
    assert seen == set(range(counts[0])), "in time every window is trained on"


def test_a_cached_windowed_reading_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path))
    plain = reader(strategy="windows", max_tokens=8).read(TEXTS)
    for _ in range(2):
        found = reader(strategy="windows", max_tokens=8).read_cached(TEXTS)
        for name, value in vars(plain).items():
            assert np.array_equal(getattr(found, name), value), name


@pytest.mark.parametrize("ranking", RANKINGS)
@settings(max_examples=25, deadline=None)
@given(text=st.text("abcd .!\n", max_size=300), room=st.integers(1, 20))
def test_importance_fills_the_room_in_order_and_is_the_same_each_time(ranking, text, room):
    encoding = TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False)
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    room = min(room, len(offsets))
    chosen = choose_important(offsets, text, room, ranking)
    assert len(chosen) == room
    assert (np.diff(chosen) > 0).all()
    assert chosen.tolist() == choose_important(offsets, text, room, ranking).tolist()


def test_textrank_equals_pagerank_on_the_whole_matrix():
    text = "The law is the law. A court reads the law. Fish swim in the sea. The court sits by the sea. Milk."
    starts = sentence_starts(text)
    found = rank_sentences(text, starts, "textrank")
    from tinyhat.data.importance import _tfidf

    rows = _tfidf(text, starts).toarray()
    similarity = rows @ rows.T - np.diag((rows * rows).sum(1))
    degree = similarity.sum(0)
    move = np.divide(similarity, degree, out=np.zeros_like(similarity), where=degree > 1e-9)
    rank = np.linalg.solve(np.eye(len(starts)) - 0.85 * move, np.full(len(starts), 0.15 / len(starts)))
    np.testing.assert_allclose(found, rank, rtol=1e-3)
    assert found.argmin() == len(starts) - 1


def test_a_stride_that_leaves_tokens_unread_and_pairs_are_mistakes():
    with pytest.raises(UserError, match="unread"):
        reader(strategy="windows", max_tokens=10, stride=9)
    with pytest.raises(UserError, match="pairs"):
        reader(strategy="windows", max_tokens=10).read(["a"], ["b"])


def test_a_sentence_begins_with_its_first_word_where_tokens_hold_the_space_before_them(monkeypatch):
    monkeypatch.setattr(importance, "rank_sentences", lambda *_: np.array([0.0, 1.0, 0.0]))
    text = "law court. fish milk. tax trade."
    encoding = tiny_tokenizer("bpe").backend_tokenizer.encode(text, add_special_tokens=False)
    offsets = np.array(encoding.offsets, np.int32)
    wanted = [i for i, (_, end) in enumerate(encoding.offsets) if text.index("fish") < end <= text.index(" tax")]
    assert text[offsets[wanted[0], 0]] == " ", "its first token begins in the sentence before"
    assert choose_important(offsets, text, len(wanted), "tfidf").tolist() == wanted


def test_windows_behind_a_short_title_use_the_room_it_leaves():
    text = "law court\n" + "fish " * 60
    reading = reader(strategy="windows", max_tokens=24, title_tokens=10).read([text])
    assert (reading.sequence_lengths[:-1] == 24).all()
    assert reading.tokens_read.tolist() == reading.tokens_total.tolist()
    kept = reading.sequence_lengths - 2 - np.r_[0, np.full(len(reading.sequence_lengths) - 1, 2)]
    assert kept.sum() == reading.tokens_total[0], "no token twice but the title"
