"""The report shows what was forgotten where it was measured, and nothing where it was not."""

from __future__ import annotations

from tinyhat.report.forgetting import forgetting_section

FACTS = {
    "text": "novels.txt", "tokens": 4000,
    "layers": [{"layer": i, "cosine": 1 - i / 5, "cka": 1 - i / 10} for i in range(4)],
    "probe": {"task": "neighbours or not", "pairs": 500, "before": 0.8, "kept": 0.6, "refitted": 0.7},
    "masked_lm_loss": {"before": 2.5, "after": 4.25},
}  # fmt: skip


def test_all_that_was_measured_is_shown():
    section = forgetting_section({"forgetting": FACTS}, True)
    assert [(before, after) for _, before, after in section["lines"]] == [(0.8, 0.7), (0.8, 0.6), (2.5, 4.25)]
    assert section["plot"].startswith("<svg")
    assert "CKA" in section["plot"]
    assert section["text"] == "novels.txt"
    without = forgetting_section({"forgetting": FACTS | {"masked_lm_loss": None}}, False)
    assert len(without["lines"]) == 2
    assert "plot" not in without


def test_nothing_measured_is_no_section():
    assert forgetting_section({}, True) == {}
    assert forgetting_section({"forgetting": None}, True) == {}
