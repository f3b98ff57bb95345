from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from tiny.run import synthetic_run
from tinyhat.report.card import write_card


def card_of(made) -> tuple[ModelCard, str]:
    write_card(made.run)
    text = (made.run.model / "README.md").read_text(encoding="utf-8")
    return ModelCard(text), text


@pytest.mark.parametrize(("task", "metric"), [("single", "accuracy"), ("multi", "micro_f1"), ("regression", "pearson")])
def test_the_hub_reads_the_card(tmp_path, task, metric):
    made = synthetic_run(tmp_path / "run", task)
    metrics = json.loads(made.run.metrics.read_text())
    card, text = card_of(made)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    results = {r.metric_type: r for r in card.data.eval_results}
    assert results[metric].metric_value == pytest.approx(metrics[metric], abs=1e-6)
    assert results[metric].dataset_split == "dev"
    assert results[metric].dataset_name == "laws"
    low, high = metrics["intervals"][metric]
    line = f"| {metrics[metric]:.3f} | [{low:.3f}, {high:.3f}] | {metrics['baseline'][metric]:.3f} |"
    assert line in text
    assert "ab" * 32 in text
    function = {"single": "softmax", "multi": "sigmoid", "regression": "none"}[task]
    assert f'function_to_apply="{function}"' in text


def test_no_path_of_this_machine_goes_in(tmp_path):
    _, text = card_of(synthetic_run(tmp_path / "run", "multi"))
    assert "/home" not in text
    assert str(tmp_path) not in text
    assert "there is no test split in laws; numbers are from dev." in text
    assert "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2" in text


def test_a_local_encoder_is_no_base_model(tmp_path):
    made = synthetic_run(tmp_path / "run", "multi")
    manifest = json.loads(made.run.manifest.read_text())
    for name in (str(tmp_path), "../encoder", "/models/encoder"):
        manifest["config"]["encoder"]["model"] = name
        made.run.manifest.write_text(json.dumps(manifest))
        card, text = card_of(made)
        assert card.data.base_model is None
        assert "fine-tuned from" not in text


def test_the_linear_model_is_tinyhats_own(tmp_path):
    made = synthetic_run(tmp_path / "run", "multi")
    (made.run.model / "config.json").unlink()
    card, text = card_of(made)
    assert card.data.library_name == "tinyhat"
    assert card.data.base_model is None
    assert "from transformers" not in text


def test_a_strategy_transformers_does_not_know_is_said(tmp_path):
    made = synthetic_run(tmp_path / "run", "multi")
    path = made.run.model / "decision.json"
    tree = json.loads(path.read_text())
    tree["reading"]["strategy"] = "tail"
    path.write_text(json.dumps(tree))
    assert "read by the strategy `tail` here; transformers reads their beginning" in card_of(made)[1]


def test_every_file_may_be_missing(tmp_path):
    made = synthetic_run(tmp_path / "run", "multi", names=tuple(f"---\nlabel: {j}" for j in range(12)))
    for path in (made.run.metrics, made.run.manifest):
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()))))
        card_of(made)
        path.unlink()
    (made.run.model / "decision.json").unlink()
    card, text = card_of(made)
    assert card.data.eval_results is None
    assert "metrics.json holds no score" in text
