"""Inputs that nobody would write, for every parser that reads what others wrote; `make fuzz` runs many, tests a few.

Half of what is generated is random, half is a real file or command line with a few things changed, which gets further.
A parser may do what its documentation says or raise UsageError in words that no terminal can be hurt with. It never
raises anything else, takes a second, or takes 200 MB.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import signal
import sys
import tempfile
import time
import tomllib
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import google_crc32c
import numpy as np
import tomli_w
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ppo_unified import checkpoint, control, form, samples
from ppo_unified.durable import Sum
from ppo_unified.errors import UsageError
from ppo_unified.runs import Run, Status, all_runs, to_json

SLOWEST_S, LARGEST_MB = 1.0, 200
HANGS_S = 20  # of wall time, after which an input is given up
Case = Callable[[Any, Path], object]


class Parser(NamedTuple):
    """One reader of other people's input."""

    inputs: st.SearchStrategy[Any]
    read: Case  # what is tried: an input, and a folder of its own


# inputs

WORDS = (
    *(
        "",
        "nan",
        "inf",
        "-1",
        "0",
        "1e308",
        "1e999",
        "-0.0",
        "9" * 5000,
        "true",
        "null",
        "[]",
        "{}",
        "..",
        "/",
        "latest",
    ),
    *(
        "a" * 5000,
        "\x1b[31m",
        "\x1b]52;c;aGk=\x07",
        "\x9b31m",
        "\u202e",
        "\u2028",
        "\ufeff",
        "\x00",
        "\n",
        "\t",
        "é",
        "漢",
        "🤖",
    ),
    *(
        "[red]",
        "[@click=app.quit]x[/]",
        "'",
        '"',
        '"""',
        "\\",
        "\\ud800",
        "${HOME}",
        "%s",
        "--",
        "#",
        "=",
        ".",
        ",",
        "|",
        "!",
    ),
)
MARKS = "\x1b\x9b\x07\x00\u202e"
texts = st.one_of(st.text(max_size=40), st.sampled_from(WORDS), st.text("\x1b[]m\x07\x9b\u202e0;a\n", max_size=20))
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from((0, 1, 2**31, 2**63, -(2**63), 2**64, 10**400, 1e308)))
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
edits = st.tuples(
    st.sampled_from(("flip", "cut", "drop", "repeat", "insert", "swap", "deep")), st.floats(0, 1), st.integers(0, 255)
)


def mutated(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """A file after a few accidents."""
    for how, share, number in changes:
        at = int(share * len(content))
        end = at + number
        if how == "flip":
            content = content[:at] + bytes([number]) + content[at + 1 :]
        elif how == "cut":
            content = content[:at]
        elif how == "drop":
            content = content[:at] + content[end:]
        elif how == "repeat":
            content = content[:end] + content[at:end] * (1 + number % 50) + content[end:]
        elif how == "insert":
            content = content[:at] + WORDS[number % len(WORDS)].encode() + content[at:]
        elif how == "swap":
            content = content[:at] + content[end : end + 8] + content[at:end] + content[end + 8 :]
        else:
            content = (
                content[:at] + (b"[", b'{"a":', b"a.", b"\x0a\x80")[number % 4] * (1 << number % 17) + content[at:]
            )
    return content[: 1 << 20]


def files(*real: bytes) -> st.SearchStrategy[bytes]:
    """Contents of a file: real ones with changes, and random ones."""
    changed = st.builds(mutated, st.sampled_from(real), st.lists(edits, max_size=6))
    hardly = st.builds(mutated, st.sampled_from(real), st.lists(edits, max_size=1))
    return st.one_of(
        changed,
        changed,
        hardly,
        hardly,
        st.binary(max_size=300),
        texts.map(lambda text: text.encode("utf-8", "replace")),
    )


def changed_object(real: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """JSON objects in which some values are of another kind."""
    keys = st.one_of(st.sampled_from([*real, *real]), texts)
    values = st.dictionaries(keys, plain, max_size=4)
    return values.map(lambda new: json.dumps(real | new).encode())


def changed_tables(*real: bytes) -> st.SearchStrategy[bytes]:
    """TOML files in which some options have another value."""
    tables = [tomllib.loads(text.decode()) for text in real]
    options = [(section, name) for table in tables for section, x in table.items() if type(x) is dict for name in x]
    value = st.one_of(plain.filter(_has_toml), st.integers(0, 9), st.floats(0, 1), st.booleans(), texts)
    changes = st.lists(st.tuples(st.sampled_from(options), value), max_size=3)

    def written(table: dict[str, Any], changes: list[tuple[tuple[str, str], Any]]) -> bytes:
        for (section, name), new in changes:
            inner = table.get(section)
            table = {**table, section: {**(inner if isinstance(inner, dict) else {}), name: new}}
        return tomli_w.dumps(table).encode("utf-8", "replace")

    return st.builds(written, st.sampled_from(tables), changes)


def _has_toml(value: Any) -> bool:
    """Whether TOML can spell a value."""
    try:
        tomli_w.dumps({"a": value})
    except (TypeError, ValueError):
        return False
    return True


def records(*keys: str) -> st.SearchStrategy[bytes]:
    """JSON Lines and arrays of objects that have these keys, most of them with texts."""
    message = st.fixed_dictionaries({"role": st.sampled_from(("user", "system", "assistant")), "content": texts})
    value = st.one_of(texts, texts, st.lists(message, max_size=3), plain)
    record = st.dictionaries(st.sampled_from(keys), value, min_size=1)
    whole = st.fixed_dictionaries(dict.fromkeys(keys, texts))
    several = st.lists(st.one_of(whole, whole, record), max_size=4)
    as_lines = several.map(lambda found: "\n".join(map(json.dumps, found)))
    return st.one_of(as_lines, several.map(json.dumps)).map(str.encode)


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# what reads them


def is_harmless(text: str) -> bool:
    """Whether a terminal shows a text and does nothing else; a line's end is all right."""
    return all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def read_config(content: bytes, folder: Path) -> None:
    from ppo_unified.config import read_toml
    from ppo_unified.presets import from_file
    from ppo_unified.query import flatten

    path = put(folder, "config.toml", content)
    flatten(read_toml(path))
    config = from_file(path)
    put(folder, "again.toml", config.to_toml().encode())
    assert from_file(folder / "again.toml") == config


def read_recipe(content: bytes, folder: Path) -> None:
    from ppo_unified import recipes

    path = put(folder, "recipe.toml", content)
    recipe = recipes._read("recipe", path)
    recipes.settings(recipe)


def read_prompts(content: bytes, folder: Path) -> None:
    from envs.llm import data

    for reader in (data.read_prompts, data.read_texts):
        for ending in (".jsonl", ".txt"):
            with suppress(UsageError):
                reader(put(folder, "prompts" + ending, content))
    data.read_prompts(folder / "prompts.jsonl", "prompt")


def read_pairs(content: bytes, folder: Path) -> None:
    from envs.llm.data import read_pairs

    read_pairs(put(folder, "pairs.json", content))


def read_events(content: bytes, folder: Path) -> None:
    from ppo_unified.chart import Line, draw
    from ppo_unified.events import EventReader
    from ppo_unified.text import clean

    path = put(folder, "events.out.tfevents.1", content)
    reader = EventReader(folder)
    reader.poll()
    for tag, series in list(reader.series.items())[:20]:
        steps, _, values = series.numpy()
        assert all(map(is_harmless, draw([Line("", steps, values)], 40, 8, clean(tag))))
    with open(path, "ab") as file:
        file.write(content[:50])
    reader.poll()


def read_status(content: bytes, folder: Path) -> None:
    from ppo_unified.cli import looking
    from tui.store import Store

    run = Run(folder / "runs" / "a")
    put(run.path, "run.json", content)
    put(run.path, "config.toml", b'kind = "gym"')
    store = Store(folder / "runs")
    store.turn()
    status = run.read_status()
    to_json(asdict(status))
    control.events_of(run, status)
    seen = [looking.Seen(*pair, pair[0].state(pair[1])) for pair in all_runs(folder / "runs")]
    remarks = looking._remarks(seen, False, looking._health_lines)
    shown = looking._with_notes(looking._run_table(seen, 80, False), remarks)
    assert all(map(is_harmless, shown))


def read_notes(content: bytes, folder: Path) -> None:
    from ppo_unified.text import clean_lines
    from tui.log_view import Tail

    run = Run(folder)
    put(folder, "note.txt", content)
    put(folder, "log.txt", content)
    assert is_harmless(clean_lines(control.read_note(run)))
    assert is_harmless(clean_lines(control.last_lines(run.log)))
    tail = Tail(run.log)
    tail.poll()
    with open(run.log, "ab") as file:
        file.write(content)
    tail.poll()


def read_best(content: bytes, folder: Path) -> None:
    run = Run(folder)
    put(run.checkpoints, "best.json", content)
    (run.checkpoints / f"{12:012d}").mkdir(exist_ok=True)
    checkpoint.choose(run, "best")


def read_checkpoint(content: dict[str, bytes], folder: Path) -> None:
    run = Run(folder)
    for name, written in content.items():
        put(run.checkpoints / f"{12:012d}", name, written)
    best = checkpoint.best(run)
    assert best is None or to_json(best)
    for which in ("best", "latest"):
        with suppress(UsageError):
            step = checkpoint.choose(run, which)
            checkpoint.load_policy(run, step, torch.device("cpu"))
    loaded = checkpoint.newest(run, torch.device("cpu"))
    assert loaded is not None
    assert loaded.meta.step == 12
    assert isinstance(loaded.trainer, dict)
    to_json(vars(loaded.meta) | {"files": []})
    checkpoint.prune(run, 1)


def read_samples(content: bytes, folder: Path) -> None:
    from ppo_unified.cli.inspecting import parts

    run = Run(folder)
    put(samples.folder_of(run), f"{3:08d}.npz", content)
    stored = samples.read(run, 3)
    there = stored.samples()
    for lines in parts(run, stored, there, range(min(2, len(there))), 100):
        assert all(map(is_harmless, lines))
    to_json([stored.steps_of(sample) for sample in there])


def read_responses(content: bytes, folder: Path) -> None:
    run = Run(folder)
    put(samples.folder_of(run), samples.RESPONSES, content)
    to_json(samples.read_responses(run))


def read_view(content: bytes, folder: Path) -> None:
    from tui.chart_settings import Settings
    from tui.state import ViewState

    with patch.object(ViewState, "path", staticmethod(lambda _: folder / "view.json")):
        put(folder, "view.json", content)
        state = ViewState.load(folder)
        Settings.from_dict(state.charts)
        state.save(folder)
        assert ViewState.load(folder) == state


def read_query(text: str, folder: Path) -> None:
    from ppo_unified.query import lookup, parse

    run = Run(folder / "a")
    put(run.path, "config.toml", b'kind = "gym"\n[ppo]\nclip = 0.3\n')
    status = Status(name="a", preset="cartpole", step=10**12, score=1e308, reason="\x1b[31mlost")
    parse(text).matches(lookup(run, status, "failed"))


def read_field(values: tuple[str, str], folder: Path) -> None:
    """A form of the terminal UI with something typed into a field."""
    from ppo_unified.presets import load_target

    option, text = values
    config = load_target("cartpole")
    kind = {"env_kwargs": dict[str, Any], "betas": list[float], "lr": float, "seed": int, "hidden": list[int]}[option]
    try:
        form._read(text, kind)
    except ValueError as error:
        assert is_harmless(str(error).replace("\t", " "))
    assert config.seed == 1


def draw_chart(values: tuple[list[float], list[float], int, int, bool], folder: Path) -> None:
    from ppo_unified.chart import Line, draw, time_ticks

    xs, ys, width, height, log_y = values
    count = min(len(xs), len(ys))
    x, y = np.sort(np.array(xs[:count], np.float64)), np.array(ys[:count])
    lines = draw([Line("a", x, y)], width, height, "title", log_y=log_y)
    assert all(map(is_harmless, lines))
    if count > 1 and np.isfinite([x[0], x[-1]]).all():
        time_ticks(float(x[0]), float(x[-1]), 5, clock=True)


def run_command(arguments: list[str], folder: Path) -> None:
    """A command line, up to the point where it would train, serve or change something."""
    from ppo_unified import cli

    put(folder / "runs" / "a", "run.json", to_json(asdict(Status(name="a", state="finished"))).encode())
    put(folder / "runs" / "a", "config.toml", b'kind = "gym"\n')
    said, told = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with _only_looking(folder), redirect_stdout(said), redirect_stderr(told):
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    assert code in (0, 2), (code, told.getvalue())
    assert is_harmless(told.getvalue())
    said.seek(0)
    if "--json" not in arguments:
        assert is_harmless(said.read().replace("\t", ""))
    if code == 2:
        raise UsageError(told.getvalue())


@contextmanager
def _only_looking(folder: Path) -> Iterator[None]:
    """Inside the block, commands that would do more than look end where they have understood their arguments."""
    from ppo_unified import cli

    harmless = ("envs", "recipes", "runs", "show", "inspect", "compare", "train")
    stubs = {name: command._replace(module="looking") for name, command in cli.COMMANDS.items() if name not in harmless}

    class Stub:
        def __getattr__(self, name: str) -> Callable[..., int]:
            return lambda *_: 0

    def imported(name: str) -> Any:
        return sys.modules.get(name) or __import__(name, fromlist=["x"])

    def refused(*_: Any, **__: Any) -> Any:
        raise UsageError("it would train")

    with (
        patch.object(cli, "import_module", imported),
        patch.dict(cli.COMMANDS, {name: command._replace(module=STUB) for name, command in stubs.items()}),
        patch.dict(sys.modules, {f"ppo_unified.cli.{STUB}": Stub()}),
        patch("ppo_unified.launch.prepare", refused),
        patch("ppo_unified.control.start", refused),
        patch("pathlib.Path.cwd", lambda: folder),
    ):
        yield


STUB = "stub_of_the_fuzzer"


# the table


def _real_config() -> list[bytes]:
    from ppo_unified.presets import load_target, preset_files

    return [load_target(name).to_toml().encode() for name in ("cartpole", "sentiment")] + [
        path.read_bytes() for path in preset_files().values()
    ]


def _real_recipes() -> list[bytes]:
    from ppo_unified.recipes import recipe_files

    return [path.read_bytes() for path in recipe_files().values()]


def _real_events() -> list[bytes]:
    from ppo_unified.events import EventWriter

    found = []
    with tempfile.TemporaryDirectory() as folder:
        writer = EventWriter(Path(folder))
        for step in range(20):
            writer.scalars(step, {"eval/score": step / 3, "policy/kl": float("nan")}, {"h": np.arange(5.0)})
        writer.hyperparameters({"a": 1, "b": "x"})
        writer.close()
        found = [path.read_bytes() for path in Path(folder).iterdir()]
    golden = Path(__file__).parent / "golden" / "logs"
    return found + [path.read_bytes()[:4096] for path in golden.rglob("events.out.*")]


def _framed(payloads: list[bytes]) -> bytes:
    """Records whose checksums are right, whatever is in them."""
    from ppo_unified.events import _CRC, _masked_crc

    content = b""
    for payload in payloads:
        length = len(payload).to_bytes(8, "little")
        content += length + _CRC.pack(_masked_crc(length)) + payload + _CRC.pack(_masked_crc(payload))
    return content


def _payloads(content: bytes) -> list[bytes]:
    found, at = [], 0
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        found.append(content[at + 12 : at + 12 + size])
        at += size + 16
    return found


def _real_checkpoint() -> dict[str, bytes]:
    trainer = {"progress": {"steps": 12}, "generator": torch.arange(9, dtype=torch.uint8), "optimizers": [{"a": [1.5]}]}
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoint.save(Run(Path(folder)), {"weight": torch.eye(3)}, trainer, _META)
        return {path.name: path.read_bytes() for path in saved.iterdir()}


def _sealed(files: dict[str, bytes]) -> dict[str, bytes]:
    """A checkpoint whose meta.json has the sizes and checksums of the other files, whatever is in them."""
    others = {name: content for name, content in files.items() if name != checkpoint.META}
    sums = {name: Sum(len(content), google_crc32c.value(content)) for name, content in others.items()}
    return others | {checkpoint.META: checkpoint._meta_text(_META, sums)}


def _with_meta(files: dict[str, bytes], text: bytes) -> dict[str, bytes]:
    """A checkpoint with another meta.json, which has the checksum of itself where it is an object."""
    with suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
        table = json.loads(text)
        table.pop("crc32c")
        text = json.dumps(table | {"crc32c": checkpoint._own_sum(table)}).encode()
    return files | {checkpoint.META: text}


def _real_samples() -> tuple[dict[str, Any], bytes]:
    mask = np.array([[True, True, False], [True, True, True]])
    floats = np.linspace(-1, 1, 6).reshape(2, 3)
    columns = dict.fromkeys(("reward", "value", "advantage", "ratio", "own"), floats)
    columns |= {"mask": mask, "continues": ~mask, "clipped": mask, "action": mask.astype(np.int64)}
    columns["text"] = np.array([["a", "\x1b[31m", "\n"], ["b", "[red]", "é"]])
    single: dict[str, Any] = {"iteration": 3, "step": 90, "steps": 5}
    single |= {"gamma": 0.9, "lam": 0.8, "clip": 0.2, "clip_high": 0.2}
    single |= {"advantage_kind": "gae", "value_target": "lambda", "metrics": '{"a": 1.5}'}
    return {**columns, **single}, _packed({**columns, **single})


def _packed(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in arrays.items():
            inner = io.BytesIO()
            np.lib.format.write_array(inner, np.asarray(value), allow_pickle=True)
            archive.writestr(f"{name}.npy", inner.getvalue())
    return file.getvalue()


def _events() -> st.SearchStrategy[bytes]:
    real = _real_events()
    payloads = st.sampled_from([payload for content in real for payload in _payloads(content)][:60])
    odd = st.lists(st.builds(mutated, payloads, st.lists(edits, max_size=3)), max_size=6).map(_framed)
    return st.one_of(files(*real), odd, odd, st.lists(st.binary(max_size=60), max_size=4).map(_framed))


def _samples() -> st.SearchStrategy[bytes]:
    arrays, real = _real_samples()
    values = st.one_of(plain.filter(lambda x: not isinstance(x, (dict, list))), st.just(np.zeros((2, 3), "M8[s]")))
    shapes = st.sampled_from(((2, 3), (0, 3), (6,), (3, 2), ()))
    kinds = st.sampled_from(("?", "i1", "u8", "f2", "f8", "c8", "U3", "S3", "M8[s]", "V4"))
    odd = st.builds(np.zeros, shapes, kinds)
    full = st.builds(
        lambda kind: np.array([[1, 0, 7], [3, 2, 1]]).astype(kind), st.sampled_from(("?", "i1", "f4", "U9"))
    )
    floats = st.lists(st.floats(), min_size=6, max_size=6).map(lambda x: np.array(x).reshape(2, 3))
    names = st.one_of(
        st.sampled_from(list(arrays)), st.sampled_from(("column", "x", "\x1b[31m", "kl", "file", "score"))
    )
    changed = st.dictionaries(names, st.one_of(values, odd, full, floats), max_size=3)
    mild = st.dictionaries(
        st.sampled_from(("reward", "value", "ratio", "action", "x", "kl")), st.one_of(floats, full), max_size=3
    )
    return st.one_of(*(x.map(lambda new: _packed(arrays | new)) for x in (changed, mild)), files(real))


def _checkpoints() -> st.SearchStrategy[dict[str, bytes]]:
    real = _real_checkpoint()
    meta = json.loads(real[checkpoint.META])
    names = st.sampled_from([name for name in real if name != checkpoint.META])
    parts = names.flatmap(lambda name: files(real[name]).map(lambda content: real | {name: content}))
    metas = st.one_of(changed_object(meta), files(real[checkpoint.META]))
    entries = st.dictionaries(names, st.dictionaries(st.sampled_from(("size", "crc32c", "x")), plain, max_size=3))
    inner = entries.map(lambda new: json.dumps(meta | {"files": meta["files"] | new}).encode())
    return st.one_of(
        parts.map(_sealed),
        parts.map(_sealed),
        parts,
        st.one_of(metas, inner).map(lambda text: _with_meta(real, text)),
        metas.map(lambda text: real | {checkpoint.META: text}),
    )


def _command_lines() -> st.SearchStrategy[list[str]]:
    from ppo_unified.cli import COMMANDS

    flags = (
        "--json",
        "--once",
        "--csv",
        "--metric",
        "--seeds",
        "--iteration",
        "--sample",
        "--help",
        "--version",
        "--yes",
    )
    options = (
        "--ppo.clip",
        "--ppo.lr",
        "--optim.lr=1e-3",
        "--gym.env-kwargs",
        "--gym.env-id",
        "--seed",
        "--seed=2",
        "-h",
    )
    argument = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
    word = st.one_of(
        st.sampled_from(
            ["a", "latest", "cartpole", "Acrobot-v1", "llm", "tiny", "..", "../a", "score>1", "1", "all", "{}"]
        ),
        st.sampled_from([x for x in WORDS if "\x00" not in x and "\\ud800" not in x]),
        st.sampled_from(flags),
        argument,
    )
    looking = st.sampled_from(("runs", "show", "inspect", "compare", "envs", "recipes"))
    short = st.tuples(st.one_of(st.sampled_from(sorted(COMMANDS)), looking, argument), st.lists(word, max_size=4))
    train = st.tuples(
        st.just("train"),
        st.lists(st.one_of(st.sampled_from(options), word), max_size=4).map(lambda x: ["cartpole", *x]),
    )
    many = st.integers(0, 99).flatmap(lambda n: train if n == 0 else short)  # tyro takes its time
    return many.map(lambda found: [found[0], *found[1]])


_META = checkpoint.Meta(12, 3, 1.7e9, 1.5, True, {"torch": "2.9"})
_STATUS = asdict(
    Status(name="a", preset="cartpole", kind="gym", state="running", step=5, total_steps=10, score=1.5)
) | {
    "started": 1.7e9,
    "heartbeat": 1.7e9,
    "elapsed_s": 3.0,
    "pid": 4242,
    "host": "here",
    "resumes": [{"time": 1.7e9, "step": 3, "from_state": "running"}],
    "versions": {"torch": "2.9"},
}


def _statuses() -> st.SearchStrategy[bytes]:
    """run.json files in which each value has its own kind."""
    kinds = {str: texts, int: st.integers(-(2**63), 2**63 - 1), float: st.floats(allow_nan=False, allow_infinity=False)}
    resumes = st.lists(st.dictionaries(st.sampled_from(("time", "step", "from_state", "x")), plain), max_size=3)
    more = {"resumes": resumes, "versions": st.dictionaries(texts, plain, max_size=2)}
    values = {name: kinds[type(x)] for name, x in _STATUS.items() if type(x) in kinds} | more
    few = st.fixed_dictionaries({}, optional=values)
    return few.map(lambda new: json.dumps(_STATUS | new).encode())


_PROMPTS = (
    b'{"prompt": "a b", "answer": 3}\n{"prompt": "c", "answer": null}\n',
    b'[{"messages": [{"role": "user", "content": "hi"}]}, {"messages": [{"role": "system", "content": "x"}]}]',
    "\ufeffplain\nline\u2028two\n".encode(),
    b'{"question": "\\ud800", "x": 1e999}\r\n',
)
_PAIRS = (b'[{"prompt": "a", "chosen": "b", "rejected": ""}]', b'{"query": "q", "chosen": "b", "rejected": "c"}\n' * 3)
_RESPONSES = (b'{"step": 3, "iteration": 1, "responses": [{"prompt": "a", "response": "b", "score": 1}]}\n' * 2,)


def parsers() -> dict[str, Parser]:
    """Every parser by name."""
    from tui.state import ViewState

    status, view = (
        json.dumps(_STATUS).encode(),
        asdict(ViewState(charts={"grid": 4}, marked=["a"], typed={"x": {"a": "1"}})),
    )
    fields = st.sampled_from(("env_kwargs", "betas", "lr", "seed", "hidden"))
    arrays = st.lists(st.floats(), max_size=30)
    sizes = st.integers(-5, 300)
    queries = st.lists(
        st.one_of(texts, st.sampled_from(("score>=1", "!failed", "|", 'reason:"x', "ppo.clip=0.3", "step<1e400"))),
        max_size=4,
    )
    return {
        "configuration": Parser(st.one_of(changed_tables(*_real_config()), files(*_real_config())), read_config),
        "recipe": Parser(st.one_of(changed_tables(*_real_recipes()), files(*_real_recipes())), read_recipe),
        "prompts": Parser(st.one_of(records("prompt"), records("prompt", "answer"), files(*_PROMPTS)), read_prompts),
        "preference pairs": Parser(st.one_of(records("prompt", "chosen", "rejected"), files(*_PAIRS)), read_pairs),
        "event file": Parser(_events(), read_events),
        "run.json": Parser(st.one_of(changed_object(_STATUS), _statuses(), files(status)), read_status),
        "note and log": Parser(files(b"step 1\nstep 2\r50%\r\x1b[31mred\n"), read_notes),
        "best.json": Parser(
            st.one_of(changed_object({"step": 12, "score": 1.5}), files(b'{"step": 12, "score": 1.5}')), read_best
        ),
        "checkpoint": Parser(_checkpoints(), read_checkpoint),
        "samples": Parser(_samples(), read_samples),
        "responses": Parser(files(*_RESPONSES), read_responses),
        "remembered view": Parser(st.one_of(changed_object(view), files(json.dumps(view).encode())), read_view),
        "query": Parser(queries.map(" ".join), read_query),
        "form field": Parser(st.tuples(fields, st.one_of(texts, plain.map(str))), read_field),
        "chart": Parser(st.tuples(arrays, arrays, sizes, sizes, st.booleans()), draw_chart),
        "command line": Parser(_command_lines(), run_command),
    }


# running them


class Outcome(NamedTuple):
    """What became of the inputs of one parser."""

    inputs: int
    refused: int  # by a UsageError
    slowest_s: float  # of processor time, for one input
    grown_mb: float  # how far the process's memory grew above what it was before, for one input


def try_one(parser: Parser, value: Any) -> bool:
    """Whether an input is refused. Raises what it should not, AssertionError for a slow one included."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        began = time.process_time()
        try:
            parser.read(value, Path(folder))
            refused = False
        except UsageError as error:
            from ppo_unified.text import clean_lines

            assert is_harmless(clean_lines(error))
            assert len(str(error)) < 100_000, "an error as long as a book"
            refused = True
        took = time.process_time() - began
    assert took < SLOWEST_S, f"took {took:.2f} s"
    return refused


def try_many(name: str, count: int, number: int | None = None) -> Outcome:
    """Run a parser on generated inputs; the same ones each time for the same `number`, and where it is None."""
    parser = parsers()[name]
    seen: list[tuple[bool, float, float]] = []

    def each(value: Any) -> None:
        began = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, HANGS_S)
        before = _memory_mb(anew=True)
        try:
            refused = try_one(parser, value)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        grown = _memory_mb() - before
        assert not seen or grown < LARGEST_MB, f"memory grew by {grown:.0f} MB"  # the first one imports what it needs
        seen.append((refused, time.process_time() - began, grown if seen else 0.0))

    options = settings(
        max_examples=count,
        derandomize=number is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    test = options(given(parser.inputs)(each))
    (test if number is None else seed(number)(test))()
    refused, took, grown = zip(*seen, strict=True)
    return Outcome(len(seen), sum(refused), max(took[1:], default=0.0), max(grown))


def _memory_mb(anew: bool = False) -> float:
    """The most memory that this process has had; `anew`: from now on. Linux tells, elsewhere it is 0."""
    if sys.platform != "linux":
        return 0.0
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _hung(*_: Any) -> None:
    raise TimeoutError(f"an input took more than {HANGS_S} s")


def _child(name: str, count: int, number: int, answer: Any) -> None:
    signal.signal(signal.SIGALRM, _hung)
    try:
        with tempfile.TemporaryDirectory() as folder, patch.dict("os.environ", TMPDIR=folder):
            answer.send(try_many(name, count, number))
    except BaseException as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        answer.send(f"{type(error).__name__}: {str(error)[:500]}\n{notes[:3000]}")
        raise


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--inputs", type=int, default=20_000, help="of each parser")
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--only", default="", help="one parser's name")
    words.add_argument("--out", type=Path, help="write the table there")
    options = words.parse_args()
    context = multiprocessing.get_context("spawn")
    lines = ["| input | tried | refused | slowest | memory |", "|:--|--:|--:|--:|--:|"]
    bad = False
    for name in [options.only] if options.only else parsers():
        ours, theirs = context.Pipe()
        child = context.Process(target=_child, args=(name, options.inputs, options.seed, theirs))
        child.start()
        theirs.close()
        try:
            found = ours.recv()
        except EOFError:
            found = "its process died"
        child.join()
        if isinstance(found, str):
            bad = True
            print(f"{name}: {found}", file=sys.stderr, flush=True)
            continue
        slowest = f"{1000 * found.slowest_s:.0f} ms"
        lines.append(f"| {name} | {found.inputs:,} | {found.refused:,} | {slowest} | +{math.ceil(found.grown_mb)} MB |")
        print(lines[-1], flush=True)
    if options.out and not bad:
        options.out.write_text(_REPORT.format(seed=options.seed, table="\n".join(lines)), encoding="utf-8")
    return int(bad)


_REPORT = """# Fuzzing: inputs that nobody would write

`make fuzz` (seed {seed}): random inputs, and real files and command lines with a few things changed, through every
reader of what others wrote. *Refused* are those that ended in a one-line error; the others were read as documented.
None ended in a traceback. Limits that fail the run: a second of processor time for one input, 200 MB of memory above
what the process took before it. A small share runs in every test run (`tests/test_fuzz.py`).

{table}
"""

if __name__ == "__main__":
    sys.exit(main())
