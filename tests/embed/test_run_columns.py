"""Which columns predict and embed read of a new file: those of the run's training data, unless others are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyhat.predict import text_columns


@pytest.fixture
def run(tmp_path):
    def write(value) -> Path:
        (tmp_path / "manifest.json").write_text(json.dumps(value))
        return tmp_path

    return write


def test_columns_that_are_named_take_the_place_of_the_runs(run):
    pairs = run({"config": {"data": {"path": "p.csv", "text": None, "pair": ["a", "b"]}}})
    assert text_columns(pairs, {}).pair == ("a", "b")
    named = text_columns(pairs, {"text": ["a"], "pair": None})
    assert (named.text, named.pair) == (("a",), None)
    assert text_columns(pairs, {"id": "n"}).pair == ("a", "b")
    single = run({"config": {"data": {"path": "p.csv", "text": ["t"], "pair": None}}})
    named = text_columns(single, {"pair": ("a", "b")})
    assert (named.text, named.pair) == ((), ("a", "b"))
    assert text_columns(run({"config": {"data": {"path": "eurlex57k"}}}), {}).text == (
        "header",
        "recitals",
        "main_body",
    )


@pytest.mark.parametrize("other", [{"name": "a web app"}, ["list"], {"config": 3}, {"config": {"data": None}}])
def test_a_manifest_of_another_program_says_nothing_about_columns(run, other):
    assert text_columns(run(other), {}).text == ()
