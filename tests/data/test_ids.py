"""Ids that no file of results could hold are bad rows, not tracebacks in the middle of a run."""

from __future__ import annotations

import json

import pytest

from tinyhat.config import DataConfig
from tinyhat.data.read import BadRow, read_dataset, read_documents
from tinyhat.errors import UserError


@pytest.mark.parametrize(("name", "reason"), [("a\ud800b", "half a character"), ("a\0b", "a NUL character")])
def test_an_id_that_cannot_be_written_is_a_bad_row(tmp_path, name, reason):
    rows = [{"id": "ä", "text": "law", "label": "x"}, {"id": name, "text": "fish", "label": "y"}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, bad = read_documents(source, DataConfig())
    assert good.id == "ä"
    assert isinstance(bad, BadRow)
    assert (bad.id, bad.line) == ("a?b", 2)
    assert f"line 2: column 'id' holds {'an id with ' * (name[1] == chr(0))}{reason}" in bad.error
    with pytest.raises(UserError, match=f"line 2: .*{reason}"):
        read_dataset(DataConfig(path=str(source)))
