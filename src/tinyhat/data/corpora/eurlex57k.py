"""EURLEX57K: 57,000 EU laws with EUROVOC concepts (Chalkidis et al., Large-Scale Multi-Label Text Classification on EU
Legislation, ACL 2019): 45,000 train, 6,000 dev, 6,000 test, 4,271 labels of which 4,108 occur in train.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyhat.config import DataConfig
from tinyhat.data.assemble import read_label_list
from tinyhat.data.files import split_files
from tinyhat.data.hub import load_hub
from tinyhat.data.raw import RawDataset, RawSplit
from tinyhat.data.tables import read_rows
from tinyhat.errors import UserError, did_you_mean

COUNTS = {"train": 45_000, "dev": 6_000, "test": 6_000}
LABELS = 4_271
HUB = "NLP-AUEB/eurlex"
HUB_NAMES = {"train": "train", "dev": "validation", "test": "test"}
Laws = Iterator[tuple[str, dict[str, Any]]]
"""Place (for sentences) and law, in order."""


def read(config: DataConfig) -> RawDataset:
    """Read EURLEX57K from ``config.source`` (the original zip, its folder, or a folder of JSON Lines) or from the hub.

    The text is header, recitals and main body, as on the dataset card; the title is left out. Splits are never made.

    Raises:
        UserError: nothing is found, the zip is cut off, a law lacks a field.
    """
    descriptors, declared = {}, None
    if config.source is None:
        splits = {name: _split(laws) for name, laws in _from_hub().items()}
    else:
        source = Path(config.source)
        if not source.exists():
            siblings = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
            raise UserError(
                f"--source {source} does not exist{did_you_mean(source.name, siblings) or ': check the path'}"
            )
        splits = {name: _split(laws) for name, laws in _from_path(source).items()}
        if source.is_dir():
            descriptors = _read_descriptors(source)
            declared = read_label_list(str(source / "labels.txt")) if (source / "labels.txt").exists() else None
    if "train" not in splits:
        raise UserError(f"EURLEX57K in {config.source or HUB} has no train split: give the folder or zip that holds it")
    notes = _count_notes(splits)
    if declared is None:
        declared, note = _declared_by_splits(splits)
        notes += note
    return RawDataset("multi", splits, (), declared, notes, descriptors, split_missing="dev" not in splits)


def _count_notes(splits: dict[str, RawSplit]) -> list[str]:
    notes = []
    for name, count in COUNTS.items():
        if name not in splits:
            notes.append(f"EURLEX57K: the {name} split is absent, so no figure is from it")
        elif len(splits[name]) != count:
            notes.append(
                f"EURLEX57K: {name} has {len(splits[name]):,} documents where the corpus has {count:,}, so figures are "
                "not comparable with published ones"
            )
    return notes


def _declared_by_splits(splits: dict[str, RawSplit]) -> tuple[tuple[str, ...] | None, list[str]]:
    """The three splits together hold the 4,271 labels; a subset of them declares nothing."""
    found = {label for split in splits.values() for labels in split.labels for label in labels}
    if len(found) == LABELS:
        return tuple(sorted(found)), []
    return None, [
        f"EURLEX57K: the splits at hand hold {len(found):,} labels and not its {LABELS:,}, so the label space is "
        "that of train; put labels.txt beside them or use --label-list"
    ]


def _split(laws: Laws) -> RawSplit:
    split = RawSplit()
    for where, law in laws:
        try:
            if "text" in law:  # as the hub has it
                text = law["text"]
            else:
                text = "\n".join([law["header"], law["recitals"], *law["main_body"]])
            concepts = law["concepts"] if "concepts" in law else law["eurovoc_concepts"]
            split.ids.append(str(law["celex_id"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"{where} is not a law of EURLEX57K (field {error}): give the original files") from None
        if not text.strip():
            raise UserError(f"{where}: law {law['celex_id']} has no text: download the corpus again")
        split.texts.append(text)
        split.labels.append([str(concept) for concept in concepts])
    return split


def _from_path(source: Path) -> dict[str, Laws]:
    if source.is_file():
        return _from_zip(source)
    files = split_files(source)
    if files:
        return {name: _from_rows(file) for name, file in files.items()}
    root = source / "dataset" if (source / "dataset").is_dir() else source
    folders = {name: root / name for name in COUNTS if (root / name).is_dir()}
    if not folders:
        raise UserError(
            f"--source {source} holds neither train.jsonl nor dataset/train/*.json: give the EURLEX57K folder"
        )
    return {name: _from_folder(folder) for name, folder in folders.items()}


def _from_rows(file: Path) -> Laws:
    for row in read_rows(file):
        if row.error:
            raise UserError(f"{file}, line {row.line}: {row.error}")
        yield f"{file}, line {row.line}", row.values


def _from_folder(folder: Path) -> Laws:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"folder {folder} holds no *.json file: unpack the EURLEX57K zip again")
    for file in files:
        yield str(file), _parse(file.read_bytes(), str(file))


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        law = json.loads(data)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}): unpack or download the corpus again") from None
    if not isinstance(law, dict):
        raise UserError(f"{where} is not a JSON object: unpack or download the corpus again")
    return law


def _from_zip(file: Path) -> dict[str, Laws]:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{file} is not a complete zip ({error}): download it again") from None
    members: dict[str, list[str]] = {}
    for member in sorted(archive.namelist()):
        parts = member.split("/")
        # dataset/train/<celex_id>.json in the original release, train.jsonl in the hub's copy
        name = parts[-2] if len(parts) > 1 and member.endswith(".json") else parts[-1].removesuffix(".jsonl")
        if name in COUNTS and member.endswith((".json", ".jsonl")) and "__MACOSX" not in parts:
            members.setdefault(name, []).append(member)
    if not members:
        raise UserError(f"{file} holds no dataset/train/*.json: it is not the EURLEX57K zip")
    return {name: _from_members(archive, members[name], file) for name in COUNTS if name in members}


def _from_members(archive: zipfile.ZipFile, members: list[str], file: Path) -> Laws:
    try:
        for member in members:
            data = archive.read(member)
            lines = data.splitlines() if member.endswith(".jsonl") else [data]
            for line in lines:
                yield f"{file}, {member}", _parse(line, f"{file}, {member}")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{file} is damaged or cut off ({error}): download it again") from None


def _from_hub() -> dict[str, Laws]:
    """The hub's data set is a script, which datasets 4 refuses; its converted branch holds the same rows as Parquet."""
    try:
        loaded = load_hub(HUB, "eurlex57k", revision="refs/convert/parquet")
    except UserError as error:
        raise UserError(
            f"{error}; or give --source with the EURLEX57K zip or folder (archive.org/details/EURLEX57K)"
        ) from None
    return {
        name: ((f"hub:{HUB} {name}", law) for law in loaded[key]) for name, key in HUB_NAMES.items() if key in loaded
    }


def _read_descriptors(folder: Path) -> dict[str, str]:
    """Concept id to its English descriptor, from EURLEX57K.json of the authors' release, plain or compressed."""
    for file in sorted(folder.glob("EURLEX57K.json*")):
        rows = list(read_rows(file))
        if len(rows) == 1 and not rows[0].error:
            return {str(k): str(v["label"]) for k, v in rows[0].values.items() if isinstance(v, dict) and "label" in v}
        raise UserError(f"{file} is not one JSON object of descriptors: copy it again or remove it")
    return {}
