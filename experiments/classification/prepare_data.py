"""Bring EURLEX57K into one folder of JSON Lines with its label list.

    python experiments/classification/prepare_data.py [--source hub|zenodo|PATH] [--out data/eurlex57k]

PATH is a folder or zip of the corpus, ``hub`` Hugging Face's copy, ``zenodo`` a direct download of the authors' archive
(which lies at archive.org; the note calls it so). The label space is fixed here, once: the list that comes with the
corpus, or the labels of all its splits where those are the 4,271.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path

from tinyhat.config import DataConfig
from tinyhat.data.corpora.eurlex57k import read
from tinyhat.data.raw import RawDataset
from tinyhat.errors import UserError
from tinyhat.run import atomic_path, write_bytes
from tinyhat.train.grid import require_folder

ARCHIVE = "https://archive.org/download/EURLEX57K/dataset.zip"


def main() -> None:
    """Write the splits; exit code 2 and one sentence where the corpus cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="hub", help="hub, zenodo, or a folder or zip")
    parser.add_argument("--out", type=Path, default=Path("data/eurlex57k"))
    options = parser.parse_args()
    try:
        require_folder(options.out)
        source = None if options.source == "hub" else options.source
        if source == "zenodo":
            source = str(_download(options.out.parent / "EURLEX57K.zip"))
        _write(read(DataConfig(path="eurlex57k", source=source)), options.out)
    except UserError as error:
        print(f"experiments/classification/prepare_data.py: {error}", file=sys.stderr)
        sys.exit(2)


def _download(path: Path) -> Path:
    if not path.exists():
        try:
            with urllib.request.urlopen(ARCHIVE, timeout=30) as stream, atomic_path(path) as temporary:
                temporary.write_bytes(stream.read())
        except OSError as error:
            raise UserError(f"{ARCHIVE} cannot be reached ({error}): give --source PATH") from None
    return path


def _write(raw: RawDataset, out: Path) -> None:
    for name, split in raw.splits.items():
        with atomic_path(out / f"{name}.jsonl") as temporary, temporary.open("w", encoding="utf-8") as stream:
            for id_, text, labels in zip(split.ids, split.texts, split.labels, strict=True):
                law = {"celex_id": id_, "text": text, "eurovoc_concepts": labels}
                stream.write(json.dumps(law, ensure_ascii=False) + "\n")
        print(f"{name}: {len(split):,} laws")
    if raw.declared is not None:
        write_bytes(out / "labels.txt", "".join(f"{label}\n" for label in raw.declared).encode())
    print(f"{len(raw.declared or ()):,} declared labels; notes: {'; '.join(raw.notes) or 'none'}")


if __name__ == "__main__":
    main()
