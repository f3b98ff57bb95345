from __future__ import annotations

import builtins
import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from tiny.run import synthetic_run
from tinyhat.report.mistakes import snippets
from tinyhat.report.page import build_report
from tinyhat.run import Run
from tinyhat.types import Scores

TASKS = ["single", "multi", "regression"]
VOID = {"meta", "line", "circle", "br", "path", "use", "wbr", "rect", "image", "clippath", "link", "img"}


class Page(HTMLParser):
    """What a browser would see: texts, tags opened and closed, and every address a tag points to."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(source.replace("<wbr>", ""))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.addresses += [
            values[k] for k in ("src", "href", "xlink:href", "data", "action", "poster") if values.get(k)
        ]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def build(made, name="laws", split=True) -> str:
    path = build_report(made.run, name, made.labels, made.scores, made.decided, snippets(made.split) if split else {})
    assert path == made.run.report
    return path.read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without plots, which take nine tenths of the time, for tests of the words."""
    monkeypatch.setattr("tinyhat.report.plots.available", lambda: False)


@pytest.fixture(scope="module", params=TASKS)
def source(request, tmp_path_factory):
    return request.param, build(synthetic_run(tmp_path_factory.mktemp(request.param) / "run", request.param))


def test_page_is_whole_and_self_contained(source):
    task, text = source
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert not page.open, "every tag is closed"
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in page.addresses)
    assert not re.search(r"https?://", text)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    # each drawing has its own ids, or a clip path of one would cut another
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert len(text) < 1_000_000
    assert task in page.text


def test_numbers_on_the_page_are_those_of_the_metrics(source):
    task, text = source
    page = Page(text)
    assert page.text.count("95% interval") >= 2
    for word in (
        "Learning curves",
        "Lengths, and what was cut off",
        "Mistakes to read",
        "45,000 train",
        "bf16 · packed",
    ):
        assert word in page.text
    for word in {
        "multi": ["precision (micro)", "By label frequency", "thresh."],
        "single": ["share decided right"],
    }.get(task, ["predicted target 0", "predicted − true target 0", "By target"]):
        assert word in page.text
    assert "12 documents of dev also occur in train." in page.text
    assert text.count('role="img"') >= 6


def test_values_intervals_and_baseline_are_shown(tmp_path, undrawn):
    made = synthetic_run(tmp_path / "run", "multi")
    metrics = json.loads(made.run.metrics.read_text())
    page = Page(build(made)).text
    low, high = metrics["intervals"]["micro_f1"]
    value, base = metrics["micro_f1"], metrics["baseline"]["micro_f1"]
    assert f"Micro-F1 is {value:.3f}, 95% interval [{low:.3f}, {high:.3f}]" in page
    assert f"The linear baseline reaches {base:.3f}: this model is {value - base:.3f} ahead" in page
    assert f"micro-F1 {value:.3f} [{low:.3f}, {high:.3f}] {base:.3f} +{value - base:.3f}" in page
    assert "cross-fitted over 5 folds" in page
    reading = metrics["reading"]
    assert f"{reading['documents_cut']:,} of 2,000 documents" in page


def test_colours_follow_the_page(source):
    _, text = source
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    for drawing in drawings:
        # stand-in colours are gone; what is left of fixed colours is in pixels only
        assert not re.search(r"#(010203|040506|070809|0a0b0c|0d0e0f|101112|131415)", drawing)
        assert not re.search(r"(fill|stroke): #", drawing)
        ElementTree.fromstring(drawing.replace("xlink:href", "href"))


HOSTILE = '<script>alert("x")</script> & </textarea> {{ 7 * 7 }} {% raw %} \x00 <!-- ]]> \' " מילה 🎩'


@pytest.mark.parametrize("task", TASKS)
def test_hostile_texts_and_labels_stay_text(tmp_path, task):
    names = tuple(f"{HOSTILE} {j}" for j in range(12))
    made = synthetic_run(tmp_path / "run", task, width=3, names=names[:3])
    split = dataclasses.replace(made.split, texts=["\ud800" + HOSTILE + " word" * 500] * 200, pairs=[HOSTILE] * 200)
    made = dataclasses.replace(made, split=split)
    page = Page(build(made, name=HOSTILE))
    assert not page.open
    assert "script" not in page.tags
    assert "textarea" not in page.tags
    assert "7 * 7" in page.text
    assert 'alert("x")' in page.text


def test_mathematics_in_names_is_not_typeset(tmp_path):
    made = synthetic_run(tmp_path / "run", "single", names=tuple(f"$\\frac{{{j}}}_$ a_b^c" for j in range(12)))
    assert "$\\frac{3}_$ a_b^c" in Page(build(made)).text


def test_texts_are_shortened_and_found_by_id(tmp_path, undrawn):
    made = synthetic_run(tmp_path / "run", "multi")
    backwards = made.split.take(np.arange(len(made.split))[::-1])
    marked = dataclasses.replace(backwards, texts=[f"text-of-{name} " + "word " * 2000 for name in backwards.ids])
    text = build(dataclasses.replace(made, split=marked))
    found = re.findall(r'<div class="id"><b>.*?</b> · (doc-\d+)</div>\s*<p dir="auto">(.*?)</p>', text)
    assert len(found) == text.count('class="mistake"') > 5
    for name, shown in found:
        assert shown.startswith(f"text-of-{name} ")
        assert len(shown) <= 402
    assert "<p dir=" not in build(made, split=False)


def test_without_matplotlib_the_page_says_so(tmp_path, monkeypatch):
    made = synthetic_run(tmp_path / "run", "multi")
    genuine = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return genuine(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    page = Page(build(made)).text
    assert "matplotlib is not installed: pip install 'tinyhat[report]'" in page
    assert "Learning curves" not in page
    assert "Micro-F1 is" in page
    assert "Worst labels" in page or "All labels" in page


@pytest.mark.parametrize("task", TASKS)
def test_every_key_may_be_missing(tmp_path, task):
    made = synthetic_run(tmp_path / "run", task, width=3)
    metrics, manifest = json.loads(made.run.metrics.read_text()), json.loads(made.run.manifest.read_text())
    for path, tree in ((made.run.metrics, metrics), (made.run.manifest, manifest)):
        path.write_text(json.dumps(dict.fromkeys(tree)))
        assert "laws" in Page(build(made)).text, "every value null"
    for path in (made.run.metrics, made.run.manifest, made.run.log, made.run.model / "decision.json"):
        path.unlink()
    page = Page(build(made)).text
    assert "metrics.json holds no score" in page
    assert "Mistakes to read" in page


def test_a_log_cut_by_a_kill_and_scores_without_targets(tmp_path):
    made = synthetic_run(tmp_path / "run", "multi")
    made.run.log.write_text(made.run.log.read_text() + '{"step": 121, "lo')
    assert "training loss" in build(made)
    bare = dataclasses.replace(made, scores=Scores(made.scores.ids, made.scores.logits, None), decided=None)
    assert "Mistakes to read" not in Page(build(bare)).text


def test_perfect_decisions_leave_no_mistakes(tmp_path, undrawn):
    made = synthetic_run(tmp_path / "run", "single")
    assert made.scores.targets is not None
    truth = made.scores.targets.dense()
    perfect = Scores(made.scores.ids, (20 * truth).astype(np.float32), made.scores.targets)
    decided = type(made.decided)(truth.astype(bool))
    page = Page(build(dataclasses.replace(made, scores=perfect, decided=decided))).text
    assert "Mistakes to read" not in page
    assert "taken for another" not in page


def test_thousands_of_labels_stay_small(tmp_path):
    made = synthetic_run(tmp_path / "run", "multi", documents=400, width=4271, steps=5000, bootstrap=0)
    text = build(made)
    assert len(text) < 1_000_000
    assert "Worst labels" in text
    assert "Best labels" in text


def test_a_failed_page_leaves_the_old_one(tmp_path, monkeypatch, undrawn):
    made = synthetic_run(tmp_path / "run", "multi")
    before = build(made)
    monkeypatch.setattr("tinyhat.report.page._render", lambda page: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(made)
    assert Run(made.run.path).report.read_text() == before
    assert not list(made.run.path.glob(".*"))
