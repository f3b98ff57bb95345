"""eurlex57k from every source it comes in, pydocs from what is installed, and a stand-in for the hub."""

import gzip
import json
import re
import warnings
import zipfile
from pathlib import Path

import pytest

from tinyhat.config import DataConfig
from tinyhat.data.corpora import eurlex57k, pydocs
from tinyhat.data.read import read_dataset
from tinyhat.errors import UserError


def law(number, *concepts):
    return {
        "celex_id": f"3{number}",
        "uri": "http://example.org",
        "type": "Regulation",
        "concepts": list(concepts),
        "title": "never read",
        "header": f"Header {number}",
        "recitals": ",\nWhereas",
        "main_body": ["Article 1", "Article 2"],
        "attachments": "Done",
    }


SPLITS = {
    "train": [law(i, "1", "2") if i % 2 else law(i, "10") for i in range(6)],
    "dev": [law(7, "1"), law(8, "99")],
    "test": [law(9, "2")],
}


def as_jsonl(root, names=tuple(SPLITS)):
    for name in names:
        data = "".join(json.dumps(x) + "\n" for x in SPLITS[name]).encode()
        (root / f"{name}.jsonl.gz").write_bytes(gzip.compress(data))
    return root


def as_folder(root):
    for name, laws in SPLITS.items():
        (root / "dataset" / name).mkdir(parents=True)
        for x in laws:
            (root / "dataset" / name / f"{x['celex_id']}.json").write_text(json.dumps(x))
    return root


def as_zip(root):
    with zipfile.ZipFile(root / "dataset.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, laws in SPLITS.items():
            for x in laws:
                archive.writestr(f"dataset/{name}/{x['celex_id']}.json", json.dumps(x))
            archive.writestr(f"__MACOSX/dataset/{name}/._3.json", b"\0")
    return root / "dataset.zip"


def read(source, **settings):
    return read_dataset(DataConfig(path="eurlex57k", source=str(source), **settings))


@pytest.mark.parametrize("layout", [as_jsonl, as_folder, as_zip])
def test_eurlex_from_every_layout(tmp_path, monkeypatch, layout):
    source = layout(tmp_path)
    data = read(source)
    assert (data.task, list(data.splits)) == ("multi", ["train", "dev", "test"])
    assert data.splits["test"].ids == ["39"]
    assert data.splits["test"].texts == ["Header 9\n,\nWhereas\nArticle 1\nArticle 2"]
    notes = " ".join(data.notes)
    assert "train has 6 documents where the corpus has 45,000" in notes
    # the splits at hand do not hold the 4,271 labels: no list is declared
    assert not data.labels.declared
    assert data.labels.names == ("1", "2", "10")
    assert "4 labels and not its 4,271" in notes
    monkeypatch.setattr(eurlex57k, "LABELS", 4)
    data = read(source)
    assert (data.labels.declared, data.labels.names) == (True, ("1", "10", "2", "99"))


def test_eurlex_with_its_label_file_descriptors_and_an_absent_split(tmp_path):
    as_jsonl(tmp_path, ("train", "dev"))
    (tmp_path / "labels.txt").write_text("1\n10\n2\n77\n99\n")
    descriptors = {"1": {"concept_id": "1", "label": "trade", "parents": []}}
    (tmp_path / "EURLEX57K.json.gz").write_bytes(gzip.compress(json.dumps(descriptors).encode()))
    data = read(tmp_path)
    assert data.labels.names == ("1", "10", "2", "77", "99")
    assert data.labels.train_counts.tolist() == [3, 3, 3, 0, 0]
    assert data.descriptors == {"1": "trade"}
    assert list(data.splits) == ["train", "dev"]
    assert any("the test split is absent" in note for note in data.notes)
    assert data.splits["dev"].targets.labels_of(1).tolist() == [4], "declared, though never in training"


def test_eurlex_mistakes(tmp_path, monkeypatch):
    path = as_zip(tmp_path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="is not a complete zip"):
        read(path)
    with pytest.raises(UserError, match=r"did you mean 'dataset\.zip'"):
        read(tmp_path / "dataset.zp")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither train\.jsonl nor"):
        read(tmp_path / "empty")
    with pytest.raises(UserError, match="has no train split"):
        read(as_jsonl(tmp_path, ("dev",)))
    (tmp_path / "train.jsonl").write_text('{"celex_id": "3", "concepts": []}\n')
    with pytest.raises(UserError, match=r"line 1 is not a law of EURLEX57K \(field 'header'\)"):
        read(tmp_path)


def test_eurlex_from_the_hub_reads_the_converted_branch(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    seen = []

    def load(name, subset, revision=None):
        seen.append((name, subset, revision))
        rows = [
            {"celex_id": f"3{i}", "title": "t", "text": f"law {i}", "eurovoc_concepts": ["1", "2"][: i % 2 + 1]}
            for i in range(4)
        ]
        return {"train": rows, "validation": rows, "test": rows}

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = read_dataset(DataConfig(path="eurlex57k"))
    assert seen == [("NLP-AUEB/eurlex", "eurlex57k", "refs/convert/parquet")]
    assert data.splits["dev"].texts[1] == "law 1"

    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"could not be loaded \(ConnectionError: no route.*or give --source"):
        read_dataset(DataConfig(path="eurlex57k"))


def test_hub_class_names_declare_the_labels_in_their_order(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg", "never"])}
    )

    def split(labels):
        return datasets.Dataset.from_dict(
            {"text": [f"t{i}" for i in range(len(labels))], "label": labels}, features=features
        )

    loaded = datasets.DatasetDict(train=split([0, 1] * 20), validation=split([1, 0]), test=split([-1, -1]))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, revision=None: loaded)
    data = read_dataset(DataConfig(path="hub:someone/films:plain"))
    assert data.labels.names == ("pos", "neg", "never")
    assert data.labels.declared
    assert data.splits["dev"].targets.values.tolist() == [1, 0]
    assert list(data.splits) == ["train", "dev"]
    assert any("hides its labels" in note for note in data.notes)


def test_hub_lists_of_classes(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    classes = datasets.List(datasets.ClassLabel(names=["x", "y"]))
    features = datasets.Features({"text": datasets.Value("string"), "labels": classes})
    table = {"text": [f"t{i}" for i in range(30)], "labels": [[0, 1][: i % 3] for i in range(30)]}
    loaded = datasets.DatasetDict(train=datasets.Dataset.from_dict(table, features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, revision=None: loaded)
    data = read_dataset(DataConfig(path="hub:someone/films"))
    assert (data.task, data.labels.names) == ("multi", ("x", "y"))
    assert list(data.splits) == ["train", "dev", "test"]


def test_hub_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'tinyhat\[hub\]'"):
        read_dataset(DataConfig(path="hub:someone/films"))


SOURCE = '''
"""Short."""

class Widget:
    """{words} Widget of libone, see libone.plots.Widget and PyLibone; plots and plotting, an explorer."""

    def draw(self):
        r"""{other} draws \\d."""

def tiny():
    """Too short."""
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Two libraries of many small modules, importable but never imported."""
    for name in ("libone", "libtwo"):
        for part in ("plots", "_hidden", "tests"):
            folder = tmp_path / name / part
            folder.mkdir(parents=True)
            for file in range(30):
                words = " ".join(f"{name[3:]}{part.strip('_')}{file}word{k}" for k in range(40))
                text = SOURCE.replace("{words}", words).replace("{other}", words[::-1])
                (folder / f"mod{file}.py").write_text(text + "\nraise RuntimeError('imported')\n")
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (tmp_path / name / "broken.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pydocs, "LIBRARIES", ("libone", "libtwo", "absent"))
    monkeypatch.setattr(pydocs, "COMMON", ("libone",))


@pytest.mark.usefixtures("library")
def test_pydocs_labels_paths_and_stripped_texts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_dataset(DataConfig(path="pydocs"))
    documents = {d.id: d.text for split in data.splits.values() for d in split.documents()}
    assert len(documents) == 2 * 2 * 30 * 2
    assert not any("tests" in name for name in documents)
    text = documents["libone.plots.mod3.Widget"]
    assert re.search(r"Widget of\s+, see\s+and\s*; +and +, an explorer\.$", text), text[-60:]
    split = next(s for s in data.splits.values() if "libone._hidden.mod3.Widget" in s.ids)
    labels = split.targets.labels_of(split.ids.index("libone._hidden.mod3.Widget"))
    assert [data.labels.names[j] for j in labels] == ["libone"], "private modules are no labels"
    # a label of the third level has two documents a module: too few
    assert set(data.labels.names) == {"libone", "libtwo", "libone.plots", "libtwo.plots"}
    assert {len(s) > 5 for s in data.splits.values()} == {True}


@pytest.mark.usefixtures("library")
def test_pydocs_limit_reads_a_part_of_the_commonest_libraries():
    data = read_dataset(DataConfig(path="pydocs", limit=40))
    names = [name for split in data.splits.values() for name in split.ids]
    assert {name.split(".")[0] for name in names} == {"libone"}
    assert 30 <= len(data.splits["train"]) <= 40
    assert read_dataset(DataConfig(path="pydocs", limit=40)).sha256 == data.sha256


@pytest.mark.usefixtures("library")
def test_pydocs_near_duplicates_stay_on_one_side(tmp_path):
    words = " ".join(f"w{k}" for k in range(60))
    for file in range(30):
        (tmp_path / "libone" / "plots" / f"copy{file}.py").write_text(f'"""{words} copy number {file}"""\n')
    data = read_dataset(DataConfig(path="pydocs"))
    sides = {split.name for split in data.splits.values() for name in split.ids if ".copy" in name}
    assert len(sides) == 1


def test_pydocs_without_any_library(monkeypatch):
    monkeypatch.setattr(pydocs, "LIBRARIES", ("absent",))
    with pytest.raises(UserError, match="none of absent is installed"):
        read_dataset(DataConfig(path="pydocs"))


REAL = next((p for p in [Path(__file__).parents[3] / "shared/data/eurlex57k"] if p.exists()), None)


@pytest.mark.skipif(REAL is None, reason="the real EURLEX57K is not on this machine")
def test_real_eurlex_has_its_published_label_counts():
    full = eurlex57k.read(DataConfig(path="eurlex57k", source=str(REAL)))
    assert {name: len(split) for name, split in full.splits.items()} == {"train": 45_000, "dev": 6_000}
    assert len(full.declared) == 4271
    trained = {label for labels in full.splits["train"].labels for label in labels}
    assert len(trained) == 4108
    assert trained < set(full.declared)
