"""Atomic writes: the old file or the new one, never half of either, and never a folder lost."""

from __future__ import annotations

import json
import os
import stat

import pytest

from tinyhat.errors import UserError
from tinyhat.run import atomic_path, read_json, write_bytes, write_json


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "model"
    for name in ("old", "new"):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").write_text("mine")
    with pytest.raises(UserError, match="is a folder"):
        write_bytes(tmp_path / "precious", b"x")
    assert (tmp_path / "precious" / "thesis").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_files_get_the_usual_permissions(tmp_path):
    before = os.umask(0o022)
    try:
        with atomic_path(tmp_path / "x") as temporary:
            temporary.touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    (tmp_path / "y.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "y.json")
