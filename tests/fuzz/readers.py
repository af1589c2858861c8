"""Readers: each one passes an input to a parser, in an empty folder, and checks the result.

A reader raises UsageError if the parser rejects the input, and AssertionError if the parser misbehaves.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from envs.gym.options import GymConfig
from ppo_unified.config.schema import typed_options
from ppo_unified.config.values import read_value
from ppo_unified.errors import UsageError
from ppo_unified.runs import control, notes, samples
from ppo_unified.runs.folder import Run, Status, all_runs, to_json
from ppo_unified.training import checkpoint


def write_input(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def is_harmless(text: str) -> bool:
    """Return True if printing the text has no effect on a terminal other than showing it. Line ends are allowed."""
    return all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def read_config(content: bytes, folder: Path) -> None:
    from ppo_unified.config.presets import from_file
    from ppo_unified.config.schema import read_toml
    from ppo_unified.runs.query import flatten

    path = write_input(folder, "config.toml", content)
    flatten(read_toml(path))
    config = from_file(path)
    write_input(folder, "again.toml", config.to_toml().encode())
    assert from_file(folder / "again.toml") == config


def read_recipe(content: bytes, folder: Path) -> None:
    from ppo_unified.config import recipes

    path = write_input(folder, "recipe.toml", content)
    recipe = recipes._read("recipe", path)
    recipes.settings(recipe)


def read_prompts(content: bytes, folder: Path) -> None:
    from envs.llm import data

    for reader in (data.read_prompts, data.read_texts):
        for ending in (".jsonl", ".csv", ".txt"):
            with suppress(UsageError):
                reader(write_input(folder, "prompts" + ending, content))
    data.read_prompts(folder / "prompts.jsonl", "prompt")


def read_pairs(content: bytes, folder: Path) -> None:
    from envs.llm.data import read_pairs

    read_pairs(write_input(folder, "pairs.json", content))


def read_events(content: bytes, folder: Path) -> None:
    from ppo_unified.runs.event_reader import EventReader
    from ppo_unified.terminal.chart import Line, draw
    from ppo_unified.text import clean

    path = write_input(folder, "events.out.tfevents.1", content)
    reader = EventReader(folder)
    reader.poll()
    for tag, series in list(reader.series.items())[:20]:
        steps, _, values = series.numpy()
        assert all(map(is_harmless, draw([Line("", steps, values)], 40, 8, clean(tag))))
    with open(path, "ab") as file:
        file.write(content[:50])
    reader.poll()


def read_status(content: bytes, folder: Path) -> None:
    from ppo_unified.cli import run_table
    from tui.runs.run_head import format_head
    from tui.store import Store

    run = Run(folder / "runs" / "a")
    write_input(run.path, "run.json", content)
    write_input(run.path, "config.toml", b'kind = "gym"')
    store = Store(folder / "runs")
    store.update()
    for entry in store.entries.values():
        assert all(is_harmless(format_head(entry, width, 24).plain) for width in (20, 80))
    status = run.read_status()
    to_json(asdict(status))
    control.list_events(run, status)
    seen = [run_table.Snapshot(*pair, pair[0].state(pair[1])) for pair in all_runs(folder / "runs")]
    remarks = run_table.make_remarks(seen, False, run_table.health_lines)
    shown = run_table.interleave(run_table.run_table(seen, 80, False), remarks)
    assert all(map(is_harmless, shown))


def read_notes(content: bytes, folder: Path) -> None:
    from ppo_unified.text import clean_lines
    from tui.runs.log_view import Tail

    run = Run(folder)
    write_input(folder, "note.txt", content)
    write_input(folder, "log.txt", content)
    assert is_harmless(clean_lines(notes.read_note(run)))
    assert is_harmless(clean_lines(control.last_lines(run.log)))
    tail = Tail(run.log)
    tail.poll()
    with open(run.log, "ab") as file:
        file.write(content)
    tail.poll()


def read_checkpoint(content: dict[str, bytes], folder: Path) -> None:
    run = Run(folder)
    for name, written in content.items():
        write_input(run.checkpoints / f"{12:012d}", name, written)
    best = checkpoint.find_best(run)
    assert best is None or to_json(best)
    for which in ("best", "latest"):
        with suppress(UsageError):
            step = checkpoint.choose(run, which)
            checkpoint.load_policy(run, step, torch.device("cpu"))
    loaded = checkpoint.load_newest(run, torch.device("cpu"))
    assert loaded is not None
    assert loaded.meta.step == 12
    assert isinstance(loaded.trainer, dict)
    to_json(vars(loaded.meta) | {"files": []})
    checkpoint.prune(run, 1)


def read_samples(content: bytes, folder: Path) -> None:
    from ppo_unified.terminal.sample_table import format_samples

    run = Run(folder)
    write_input(run.samples, f"{3:08d}.npz", content)
    stored = samples.read(run, 3)
    there = stored.samples()
    assert all(map(is_harmless, stored.summary(run.name).splitlines()))
    first = [stored.document(number, sample) for number, sample in enumerate(there[:2])]
    for lines in format_samples(first, len(there), stored.quantities(), 100):
        assert all(map(is_harmless, lines))
    to_json([stored.sample_steps(sample) for sample in there])


def read_responses(content: bytes, folder: Path) -> None:
    run = Run(folder)
    write_input(run.samples, samples.RESPONSES, content)
    to_json(samples.read_responses(run))


def read_view(content: bytes, folder: Path) -> None:
    from tui.charts.settings import Settings
    from tui.view_state import ViewState

    with patch.object(ViewState, "path", staticmethod(lambda _: folder / "view.json")):
        write_input(folder, "view.json", content)
        state = ViewState.load(folder)
        Settings.from_dict(state.charts)
        state.save(folder)
        assert ViewState.load(folder) == state


def read_query(text: str, folder: Path) -> None:
    from ppo_unified.runs.query import lookup, parse, read_options

    run = Run(folder / "a")
    write_input(run.path, "config.toml", b'kind = "gym"\n[ppo]\nclip = 0.3\n')
    status = Status(name="a", preset="cartpole", step=10**12, score=1e308, reason="\x1b[31mlost")
    parse(text).matches(lookup(status, "failed", lambda: read_options(run), lambda: ""))


def read_field(values: tuple[str, str], folder: Path) -> None:
    """Validate a text that was typed into a form field of the terminal UI."""
    option, text = values
    try:
        read_value(text, typed_options(GymConfig)[option])
    except ValueError as error:
        assert is_harmless(str(error).replace("\t", " "))


def draw_chart(values: tuple[list[float], list[float], int, int, bool], folder: Path) -> None:
    from ppo_unified.terminal.chart import Line, draw
    from ppo_unified.terminal.ticks import time_ticks

    xs, ys, width, height, log_y = values
    count = min(len(xs), len(ys))
    x, y = np.sort(np.array(xs[:count], np.float64)), np.array(ys[:count])
    lines = draw([Line("a", x, y)], width, height, "title", log_y=log_y)
    assert all(map(is_harmless, lines))
    if count > 1 and np.isfinite([x[0], x[-1]]).all():
        time_ticks(float(x[0]), float(x[-1]), 5, clock=True)


def run_command(arguments: list[str], folder: Path) -> None:
    """Run a command line, but stop before it trains, serves or changes anything."""
    from ppo_unified.cli import main as cli

    write_input(folder / "runs" / "a", "run.json", to_json(asdict(Status(name="a", state="finished"))).encode())
    write_input(folder / "runs" / "a", "config.toml", b'kind = "gym"\n')
    stdout, stderr = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with _forbid_changes(folder), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    assert code in (0, 2), (code, stderr.getvalue())
    assert is_harmless(stderr.getvalue())
    stdout.seek(0)
    if "--json" not in arguments:
        assert is_harmless(stdout.read().replace("\t", ""))
    if code == 2:
        raise UsageError(stderr.getvalue())


@contextmanager
def _forbid_changes(folder: Path) -> Iterator[None]:
    """Inside the block, commands that are not read-only stop after parsing their arguments."""
    from ppo_unified.cli import main as cli

    harmless = ("envs", "recipes", "runs", "show", "inspect", "compare", "train")

    def load(name: str) -> Any:
        module = import_module(name)
        command = name.rpartition(".")[2].replace("_", "-")
        if command in harmless or command not in cli.COMMANDS:
            return module
        return SimpleNamespace(add_arguments=module.add_arguments, run=lambda *_: 0)

    def reject(*_: Any, **__: Any) -> Any:
        raise UsageError("it would train")

    with (
        patch.object(cli, "preload", load),
        patch("ppo_unified.runs.preparation.prepare", reject),
        patch("ppo_unified.runs.control.start", reject),
        chdir(folder),
    ):
        yield
