"""Tests of the JSON, TOML and line readers that the fuzz tests do not cover."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ppo_unified import parsing
from ppo_unified.cli.main import main
from ppo_unified.runs import control, notes, samples
from ppo_unified.runs.folder import Run, Status
from ppo_unified.training import checkpoint


def test_lines_are_read_one_by_one_up_to_a_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "LARGEST", 8)
    path = tmp_path / "lines"
    lines = [b"short\n", b"exactly\n", b"longer 9\n", b"much longer than eight\n", b"\n", b"\xff\n", b"torn"]
    path.write_bytes(b"".join(lines))
    assert list(parsing.read_lines(path)) == ["short\n", "exactly\n", "\n", "\ufffd\n", "torn"]


@pytest.mark.parametrize("name", ["run.json", "note.txt", "log.txt", "samples/responses.jsonl", "samples/00000001.npz"])
def test_reader_does_not_wait_for_a_silent_pipe(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither this file nor the metadata of a checkpoint may be a pipe that blocks the reader."""
    run = Run(tmp_path / "a")
    (run.path / "samples").mkdir(parents=True)
    (run.checkpoints / "000000000001").mkdir(parents=True)
    run.write_status(Status(name="a", state="running"))
    (run.path / name).unlink(missing_ok=True)
    for path in (run.path / name, run.checkpoints / "000000000001" / checkpoint.META):
        os.mkfifo(path)
    for command in (["runs"], ["note", "a"], ["inspect", "a"], ["show", "a"], ["resume", "a"]):
        assert main([*command, "--runs", str(tmp_path)]) in (0, 2)
    assert not notes.read_note(run)
    assert control.list_events(run, Status(state="running"))
    with suppress(OSError):
        assert not samples.read_responses(run)
    with pytest.raises(checkpoint.DamagedCheckpointError):
        checkpoint.read_meta(run.checkpoints / "000000000001")
    assert "Traceback" not in capsys.readouterr().err


@dataclass
class Row:
    step: int
    score: float | None = None
    names: list[dict[str, Any]] = field(default_factory=list)


def test_table_reads_known_fields_only() -> None:
    table = {"step": 3, "score": 2, "names": [{}], "later": object()}
    assert Row(**parsing.parse_fields(table, Row)) == Row(3, 2, [{}])
    assert parsing.parse_fields({}, Row) == {}


WRONG = ({"step": True}, {"step": 1.0}, {"step": 1 << 63}, {"score": float("inf")}, {"names": 1}, {"names": [1]})


@pytest.mark.parametrize("table", [[], "step", None, *WRONG])
def test_wrong_table_type_is_rejected(table: Any) -> None:
    with pytest.raises(ValueError, match=r"expected (a table|an integer|a number or null|a list of tables), got"):
        parsing.parse_fields(table, Row)
