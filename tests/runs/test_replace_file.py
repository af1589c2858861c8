"""Atomic replacement of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ppo_unified.runs.folder import replace_file, write_atomically


def test_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with replace_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.name == f".a.json.{os.getpid()}.tmp"  # the name that `checkpoint.find_leftovers` expects
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_error_while_replacing_keeps_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replace_file(path) as temporary:
        temporary.write_bytes(bytes(1 // temporary.write_text("")))
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]
