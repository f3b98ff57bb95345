import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tiny.scores import tiny_scores
from tinyhat.errors import UserError
from tinyhat.evaluate.scores import read_scores, write_scores
from tinyhat.types import Scores


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_what_is_written_is_read(tmp_path, task):
    scores = tiny_scores(task)
    scores = Scores(['é "quoted"\n', *scores.ids[1:]], scores.logits, scores.targets, "bf16")
    write_scores(tmp_path / "scores", "dev", scores)
    again = read_scores(tmp_path / "scores", "dev")
    assert list(again.ids) == list(scores.ids)
    assert again.plan == "bf16"
    assert again.targets.task == task
    np.testing.assert_array_equal(again.logits, scores.logits)
    np.testing.assert_array_equal(again.targets.dense(), scores.targets.dense())
    assert [p.name for p in (tmp_path / "scores").iterdir()] == ["dev.safetensors"], "no temporary file is left"


def test_scores_without_targets(tmp_path):
    scores = tiny_scores()
    write_scores(tmp_path, "test", Scores(scores.ids, scores.logits, None))
    assert read_scores(tmp_path, "test").targets is None


def test_a_slice_of_columns_is_written_as_it_looks(tmp_path):
    scores = tiny_scores("single")
    view = scores.logits[:, ::-1]
    write_scores(tmp_path, "dev", Scores(scores.ids, view, scores.targets))
    np.testing.assert_array_equal(read_scores(tmp_path, "dev").logits, view)


def test_a_missing_split_names_those_there_are(tmp_path):
    write_scores(tmp_path, "dev", tiny_scores())
    with pytest.raises(UserError, match=r"no saved scores of split 'test' .*\(there: dev\)"):
        read_scores(tmp_path, "test")
    with pytest.raises(UserError, match="there: none"):
        read_scores(tmp_path / "nowhere", "dev")


def test_a_truncated_file_is_refused(tmp_path):
    path = write_scores(tmp_path, "dev", tiny_scores())
    for size in (0, 5, 100, path.stat().st_size - 8):
        (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match="damaged"):
            read_scores(tmp_path, "cut")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": np.frombuffer(json.dumps(["a"]).encode(), np.uint8)}, "1 ids"),
        ({"values": np.array([99], np.int64), "indptr": np.array([0] * 60 + [1])}, "outside the label list"),
        ({"indptr": np.array([0, 1])}, "targets of 1"),
        ({"indptr": np.array([3] + [0] * 60)}, "out of order"),
        ({"logits": np.zeros((60, 8))}, "float64"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, change, said):
    path = write_scores(tmp_path, "dev", tiny_scores())
    header = {"format": "tinyhat.scores.1", "plan": "fp32", "task": "multi", "width": "8"}
    save_file(load_file(path) | change, path, metadata=header)
    with pytest.raises(UserError, match=said):
        read_scores(tmp_path, "dev")


def test_another_format_is_refused(tmp_path):
    save_file({"weights": np.zeros(3)}, tmp_path / "dev.safetensors")
    with pytest.raises(UserError, match="format None"):
        read_scores(tmp_path, "dev")


def test_lengths_that_differ_are_not_written(tmp_path):
    scores = tiny_scores()
    with pytest.raises(ValueError, match="2 ids"):
        write_scores(tmp_path, "dev", Scores(["a", "b"], scores.logits, scores.targets))
    assert list(tmp_path.iterdir()) == []
