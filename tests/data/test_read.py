"""From files to a dataset: columns, tasks, label spaces, splits; and every mistake in one sentence."""

import json
import tracemalloc

import numpy as np
import pytest

from tinyhat.config import DataConfig
from tinyhat.data.corpora import TEXT_COLUMNS
from tinyhat.data.read import BadRow, read_dataset, read_documents, read_split
from tinyhat.errors import UserError
from tinyhat.types import Document


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count, **columns):
    return [
        {"text": f"document {i}", "label": "ab"[i % 2]} | {k: f(i) for k, f in columns.items()} for i in range(count)
    ]


def read(path, seed=0, **settings):
    return read_dataset(DataConfig(path=str(path), **settings), seed)


def test_one_file_becomes_three_stratified_splits(tmp_path):
    data = read(jsonl(tmp_path / "laws.jsonl", rows(100)))
    assert (data.name, data.task, data.labels.names) == ("laws", "single", ("a", "b"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 80, "dev": 10, "test": 10}
    for split in data.splits.values():
        assert np.bincount(split.targets.values).tolist() == [len(split) // 2] * 2
        for document, label in zip(split.documents(), split.targets.values, strict=True):
            assert document.text == f"document {document.id}"
            assert label == int(document.id) % 2
    assert data.labels.train_counts.tolist() == [40, 40]
    assert sum("is made of" in note for note in data.notes) == 2


def test_the_same_seed_gives_the_same_data_and_another_seed_another(tmp_path):
    path = jsonl(tmp_path / "laws.jsonl", rows(100))
    assert read(path).sha256 == read(path).sha256 != read(path, seed=1).sha256
    # pinned: the same split on every machine
    assert read(path).splits["dev"].ids == DEV_OF_SEED_0


DEV_OF_SEED_0 = ["43", "46", "49", "57", "60", "63", "65", "80", "96", "98"]


def test_sha256_sees_ids_texts_targets_and_weights(tmp_path):
    base = rows(20, id=lambda i: f"d{i}", w=lambda i: 1)
    seen = {read(jsonl(tmp_path / "a.jsonl", base), weight="w").sha256}
    for column, value in [("id", "other"), ("text", "other"), ("label", "b"), ("w", 2)]:
        changed = [dict(row) for row in base]
        changed[0][column] = value
        seen.add(read(jsonl(tmp_path / "a.jsonl", changed), weight="w").sha256)
    assert len(seen) == 5


def test_folder_splits_keep_their_names_and_no_test_is_made(tmp_path):
    for name in ("train", "validation"):
        jsonl(tmp_path / "set" / f"{name}.jsonl", rows(20))
    data = read(tmp_path / "set")
    assert list(data.splits) == ["train", "dev"]
    assert data.name == "set"
    assert any("no test split" in note for note in data.notes)
    jsonl(tmp_path / "set" / "test.jsonl", rows(20))
    (tmp_path / "set" / "validation.jsonl").unlink()
    data = read(tmp_path / "set")
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 18, "dev": 2, "test": 20}


def test_the_label_space_is_trainings(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"text": f"t{i}", "labels": ["x", "y"][: i % 2 + 1]} for i in range(6)])
    jsonl(tmp_path / "dev.jsonl", [{"text": "d", "labels": ["y", "new"]}, {"text": "e", "labels": []}])
    data = read(tmp_path)
    assert data.task == "multi"
    assert data.labels.names == ("x", "y")
    assert data.labels.train_counts.tolist() == [6, 3]
    assert data.splits["dev"].targets.labels_of(0).tolist() == [1]
    assert data.splits["dev"].targets.labels_of(1).tolist() == []
    assert any("dev: 1 answers name 1 labels outside the label space (new)" in note for note in data.notes)


def test_a_declared_list_fixes_order_and_width(tmp_path):
    (tmp_path / "labels.txt").write_text("never\nb\n")
    path = jsonl(tmp_path / "a.jsonl", rows(40))
    (tmp_path / "other.txt").write_text("p\nq\n")
    with pytest.raises(UserError, match="no training label is in the declared list"):
        read(path, label_list=str(tmp_path / "other.txt"))
    data = read(path, label_list=str(tmp_path / "labels.txt"))
    assert data.labels.declared
    assert data.labels.names == ("never", "b")
    assert data.labels.unseen.tolist() == [0]
    assert set(data.splits["train"].targets.values.tolist()) == {1}, "documents of label a cannot be learnt"
    assert set(data.splits["dev"].targets.values.tolist()) == {-1, 1}
    assert any("16 documents have a label outside the declared list" in note for note in data.notes)


def test_whole_number_labels_keep_their_order(tmp_path):
    data = read(jsonl(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": i % 11} for i in range(110)]))
    assert data.labels.names == tuple(map(str, range(11)))
    split = data.splits["train"]
    assert all(int(d.text[1:]) % 11 == y for d, y in zip(split.documents(), split.targets.values, strict=True))


@pytest.mark.parametrize(
    ("values", "task", "names"),
    [
        (["x|y z", "x", ""], "multi", ("x", "y z")),
        (["x; y", "x,1", "y"], "multi", ("x", "x,1", "y")),
        (["x, y", "x", "y"], "multi", ("x", "y")),
        (["['x', 'y']", "[]", '["x"]'], "multi", ("x", "y")),
        ([1, 2, 1], "single", ("1", "2")),
        ([True, False, True], "single", ("false", "true")),
    ],
)
def test_labels_columns(tmp_path, values, task, names):
    data = read(jsonl(tmp_path / "a.jsonl", [{"text": f"t{i}", "labels": values[i % 3]} for i in range(30)]))
    assert (data.task, data.labels.names) == (task, names)


def test_regression_with_several_targets(tmp_path):
    table = [{"body": f"t{i}", "v": i / 7, "d": str(-i)} for i in range(50)]
    data = read(jsonl(tmp_path / "a.jsonl", table), target=("v", "d"))
    assert (data.task, data.labels.names, data.labels.train_counts.tolist()) == ("regression", ("v", "d"), [40, 40])
    split = data.splits["dev"]
    expected = [[int(i) / 7, -int(i)] for i in split.ids]
    np.testing.assert_array_equal(split.targets.values, np.array(expected, np.float32))


def test_numbers_are_detected_as_targets(tmp_path):
    assert read(jsonl(tmp_path / "a.jsonl", rows(20, label=lambda i: i / 2))).task == "regression"
    assert read(jsonl(tmp_path / "a.jsonl", rows(20, label=lambda i: i % 3)), task="regression").task == "regression"


def test_joined_texts_and_pairs(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", rows(20, title=lambda i: "T" if i else "", text=lambda i: f"b{i}"))
    data = read(path, text=("title", "text"))
    texts = {i: t for s in data.splits.values() for i, t in zip(s.ids, s.texts, strict=True)}
    assert (texts["0"], texts["1"]) == ("b0", "T\nb1")
    data = read(jsonl(tmp_path / "b.jsonl", rows(20, other=lambda i: f"p{i}")), pair=("text", "other"))
    assert next(data.splits["dev"].documents()).pair == f"p{data.splits['dev'].ids[0]}"


def test_groups_never_part_and_weights_are_kept(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", rows(90, g=lambda i: i // 3, w=lambda i: i + 0.5))
    data = read(path, group="g", weight="w")
    where = {}
    for split in data.splits.values():
        assert split.weights.tolist() == [int(i) + 0.5 for i in split.ids]
        for group in split.groups:
            assert where.setdefault(group, split.name) == split.name
    assert all(len(split) >= 6 for split in data.splits.values())


def test_limits_are_nested_seeded_and_not_the_first(tmp_path):
    for name in ("train", "dev"):
        jsonl(tmp_path / f"{name}.jsonl", rows(60))
    small, large = (set(read(tmp_path, limit=n).splits["train"].ids) for n in (10, 20))
    assert len(small) == 10
    assert small < large
    assert small != set(map(str, range(10)))
    assert small != set(read(tmp_path, seed=3, limit=10).splits["train"].ids)


def test_ids_are_kept_refused_when_named_twice_or_replaced_when_only_detected(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", rows(20, id=lambda i: f"d{i // 2}", key=lambda i: f"k{i}"))
    assert sorted(read(path, id="key").splits["train"].ids)[0].startswith("k")
    assert sorted(map(int, read(path).splits["dev"].ids + read(path).splits["test"].ids))
    with pytest.raises(UserError, match="id 'd0' names lines 1 and 2"):
        read(path, id="id")


GOOD = rows(12)
MISTAKES = {
    "empty": ([], {}, "a.jsonl is empty"),
    "no such column": (GOOD, {"text": ("txt",)}, r"has no column 'txt' \(it has text, label\); did you mean 'text'"),
    "no label column": ([{"text": "x", "y": 1}] * 3, {}, r"--label, --labels or --target"),
    "two text columns": ([r | {"body": "x"} for r in GOOD], {}, "could take text, body as its text column.*--text"),
    "no text": ([*GOOD, {"text": " ", "label": "a"}], {}, "line 13: there is no text in column 'text'"),
    "number as text": ([*GOOD, {"text": 3, "label": "a"}], {}, "line 13: column 'text' holds the number 3"),
    "half a character": ([*GOOD, {"text": "\ud800", "label": "a"}], {}, "line 13: .*half a character"),
    "no label": ([*GOOD, {"text": "x"}], {}, "line 13: column 'label' has no label"),
    "a list as label": ([*GOOD, {"text": "x", "label": ["a"]}], {"label": "label"}, "line 13: .*use --labels"),
    "a number as label": ([*GOOD, {"text": "x", "label": 0.5}], {"label": "label"}, "line 13: .*use --target"),
    "null labels": ([{"text": "x", "labels": None}, {"text": "y", "labels": ["a"]}], {}, "line 1: .*is missing"),
    "text as target": (GOOD, {"target": ("label",)}, "line 1: .*'a', which is not a number"),
    "nan target": ([{"text": "x", "t": float("nan")}], {"target": ("t",)}, "line 1: .*holds nan"),
    "empty target": ([{"text": "x", "t": ""}], {"target": ("t",)}, "line 1: .*has no number"),
    "constant target": ([{"text": "x", "t": 1}] * 3, {"target": ("t",)}, "target 't' is 1 in every row"),
    "whole numbers": ([{"text": "x", "score": 1}] * 3, {}, "--label score for classes or --target score"),
    "negative weight": (rows(9, w=lambda i: 1 - i), {"weight": "w"}, "line 2: .*weights are positive"),
    "nan weight": (rows(9, w=lambda i: float("nan")), {"weight": "w"}, "line 1: .*weights are positive"),
    "no group": (rows(9, g=lambda i: None), {"group": "g"}, "line 1: .*names no group"),
    "one group": (rows(9, g=lambda i: 1), {"group": "g"}, "all training documents are in one group"),
    "all unique": (rows(9, label=lambda i: f"n{i}"), {}, "looks like an id"),
    "one class": (rows(9, label=lambda i: "a"), {}, "only the label 'a'"),
    "no labels at all": ([{"text": "x", "labels": []}] * 3, {}, "no labels in training"),
    "contradiction": (GOOD, {"task": "multi", "label": "label"}, "--task multi contradicts --label"),
    "two answers": (GOOD, {"label": "label", "labels": "label"}, "exclude each other"),
    "source": (GOOD, {"source": "x"}, "--source says where a known corpus lies"),
    "too few": (GOOD[:1] * 2 + [{"text": "x", "label": "b"}], {"dev_share": 0.5, "test_share": 0.5}, "leave nothing"),
    "missing list": (GOOD, {"label_list": "nowhere.txt"}, "nowhere.txt does not exist"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(tmp_path, name):
    table, settings, sentence = MISTAKES[name]
    path = jsonl(tmp_path / "a.jsonl", table)
    with pytest.raises(UserError, match=sentence) as caught:
        read(path, **settings)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(". ") == 0


def test_mistakes_of_place(tmp_path):
    jsonl(tmp_path / "laws" / "tran.jsonl", GOOD)
    (tmp_path / "laws.txt").write_text("text\n")
    for path, sentence in [
        (tmp_path / "laws", r"has no train, dev or test file \(it has tran.jsonl\)"),
        ("pydoc", r"neither a file.*did you mean 'pydocs'"),
        (tmp_path / "lawz", "did you mean 'laws'"),
        (tmp_path / "laws.txt", "plain text without labels"),
        ("", "there is no data"),
    ]:
        with pytest.raises(UserError, match=sentence):
            read(path)
    jsonl(tmp_path / "half" / "dev.jsonl", GOOD)
    with pytest.raises(UserError, match=r"has no train file \(it has dev\)"):
        read(tmp_path / "half")
    jsonl(tmp_path / "laws" / "train.jsonl", GOOD)
    jsonl(tmp_path / "laws" / "train.json", GOOD)
    with pytest.raises(UserError, match="has two train files"):
        read(tmp_path / "laws")
    (tmp_path / "laws" / "train.json").unlink()
    jsonl(tmp_path / "laws" / "test.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match=r"test.jsonl has no column 'label'"):
        read(tmp_path / "laws")


def test_read_split_uses_the_label_space_of_the_model(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": "b"}, {"text": "y", "label": "z"}])
    split, notes = read_split(DataConfig(path=path), "test", ("a", "b"), "single")
    assert len(notes) == 1
    assert "(z)" in notes[0]
    assert (split.name, split.targets.values.tolist(), split.targets.width) == ("test", [1, -1], 2)
    numbers = jsonl(tmp_path / "n.jsonl", [{"text": "x", "v": 1, "d": 2}])
    split, _ = read_split(DataConfig(path=numbers), "dev", ("v", "d"), "regression")
    assert split.targets.values.tolist() == [[1, 2]]
    jsonl(tmp_path / "set" / "train.jsonl", GOOD)
    jsonl(tmp_path / "set" / "dev.jsonl", GOOD[:5])
    assert len(read_split(DataConfig(path=str(tmp_path / "set")), "dev", ("a", "b"), "single")[0]) == 5
    with pytest.raises(UserError, match=r"has no test split \(it has train, dev\)"):
        read_split(DataConfig(path=str(tmp_path / "set")), "test", ("a", "b"), "single")
    with pytest.raises(UserError, match="is read as single and the model is multi"):
        read_split(DataConfig(path=path, label="label"), "dev", ("a", "b"), "multi")


def test_documents_stream_with_bad_rows_in_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "p", "text": "x"}\nnonsense\n{"id": "q"}\n{"text": 5}\n{"text": "y"}\n')
    found = list(read_documents(path, DataConfig()))
    assert found[0] == Document("p", "x")
    assert found[4] == Document("4", "y")
    assert [(row.id, row.line) for row in found[1:4] if isinstance(row, BadRow)] == [("1", 2), ("q", 3), ("3", 4)]
    assert found[3].error.startswith("line 4: column 'text' holds the number 5")
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert next(iter(read_documents(tmp_path / "a.txt", DataConfig(text=("body",))))) == Document("0", "one")
    assert [type(d).__name__ for d in read_documents(tmp_path / "a.txt", DataConfig())] == [
        "Document",
        "BadRow",
        "Document",
    ]


def test_documents_stream_in_flat_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as stream:
        for i in range(20_000):
            stream.write(json.dumps({"text": f"{i} " + "x" * 1000}) + "\n")
    tracemalloc.start()
    assert sum(1 for _ in read_documents(path, DataConfig())) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000 < path.stat().st_size / 4


def test_documents_that_cannot_be_read_at_all(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("title,year\nx,1\n")
    with pytest.raises(UserError, match=r"no column that is plainly the text column \(it has title, year\).*--text"):
        list(read_documents(path, DataConfig()))
    path.write_text("")
    with pytest.raises(UserError, match="is empty"):
        list(read_documents(path, DataConfig()))


def test_paragraphs_are_joined_and_original_laws_can_be_predicted(tmp_path):
    path = jsonl(tmp_path / "laws.jsonl", [{"celex_id": "x", "header": "H", "recitals": "R", "main_body": ["a", "b"]}])
    (law,) = read_documents(path, DataConfig(text=TEXT_COLUMNS["eurlex57k"], id="celex_id"))
    assert (law.id, law.text) == ("x", "H\nR\na\nb")
    path = jsonl(tmp_path / "bad.jsonl", [{"text": ["a", 3]}])
    (bad,) = read_documents(path, DataConfig(text=("text",)))
    assert isinstance(bad, BadRow)
