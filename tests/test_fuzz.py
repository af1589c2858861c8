"""A short version of `make fuzz` with fixed inputs, and the inputs that failed in the past."""

from __future__ import annotations

import gc
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from ppo_unified.errors import UsageError
from ppo_unified.parsing import DEEPEST, parse_json, parse_toml
from ppo_unified.text import clean_lines
from tests.fuzz import real_files, trials
from tests.fuzz.__main__ import report, rows_of
from tests.fuzz.inputs import MARKS, WORDS
from tests.fuzz.parsers import Parser
from tests.fuzz.parsers import parsers as all_parsers
from tests.fuzz.readers import is_harmless
from tests.fuzz.trials import try_many, try_one

SHARE = 24  # inputs per parser
DEEP = 100_000
NESTED = json.loads("[" * 900 + "]" * 900)
LIST_AS_KEY = b'{"$items": [[[], 1]]}'
SUM = {"size": 1, "crc32c": "0"}
VOCABULARY = json.dumps({str(token): "\x1b[31m" for token in range(150_000)})
STATUS = {"name": "a", "state": "running"}


@pytest.fixture(scope="module")
def parsers() -> dict[str, Parser]:
    return all_parsers()


@pytest.mark.parametrize("name", all_parsers())
def test_fuzzed_input_raises_only_quick_usage_errors(name: str) -> None:
    assert try_many(name, SHARE if name != "command line" else SHARE // 2).inputs


def samples(changes: dict[str, Any]) -> bytes:
    return real_files.pack_arrays(real_files.sample_arrays() | changes)


def make_checkpoint(changes: dict[str, Any]) -> dict[str, bytes]:
    """Return a checkpoint with changes in meta.json and a valid checksum of that file."""
    whole = real_files.checkpoint_files()
    return real_files.with_meta(whole, json.dumps(json.loads(whole["meta.json"]) | changes).encode())


def make_sealed_checkpoint(trainer: bytes) -> dict[str, bytes]:
    """Return a checkpoint with another trainer.json and valid checksums."""
    return real_files.seal_checkpoint(real_files.checkpoint_files() | {"trainer.json": trainer})


ONCE_FAILED: dict[
    str, tuple[str, Any, bool]
] = {  # name -> parser, input or a function that creates it, True if a UsageError is expected
    "run.json nested 100,000 deep": ("run.json", b"[" * DEEP, True),
    "run.json with a nested value": (
        "run.json",
        json.dumps(STATUS | {"versions": {}})[:-1].encode() + b', "x": ' + b"[" * 900 + b"]" * 900 + b"}",
        True,
    ),
    "run.json with a step of 400 digits": ("run.json", json.dumps(STATUS | {"step": 10**400}).encode(), True),
    "run.json with an infinite heartbeat": ("run.json", b'{"heartbeat": Infinity}', True),
    "run.json with resumes that are not objects": ("run.json", b'{"resumes": [1]}', True),
    "configuration nested 100,000 deep": ("configuration", b"a = " + b"[" * DEEP, True),
    "configuration with a key of 20,000 parts": ("configuration", b"a" + b".a" * 20_000 + b" = 1", True),
    "configuration with a number of 5,000 digits": ("configuration", b"a = " + b"9" * 5000, True),
    "remembered view nested 100,000 deep": ("remembered view", b"[" * DEEP, False),
    "responses of 200,000 torn lines": ("responses", b"\x80\n" * 200_000, False),
    "responses nested 100,000 deep": ("responses", b"[" * DEEP, False),
    "prompts nested 900 deep": ("prompts", b'{"prompt": "a", "x": ' + b"[" * 900 + b"]" * 900 + b"}", True),
    "preference pairs with a key as long as a book": ("preference pairs", b'[{"%s": "a"}]' % (b"a" * DEEP), True),
    "checkpoint of no step": ("checkpoint", partial(make_checkpoint, {"step": None}), True),
    "checkpoint of another step": ("checkpoint", partial(make_checkpoint, {"step": 3}), True),
    "checkpoint whose score is a text": ("checkpoint", partial(make_checkpoint, {"score": "x"}), True),
    "checkpoint that names another file": ("checkpoint", partial(make_checkpoint, {"files": {"x": SUM}}), True),
    "checkpoint nested 900 deep": ("checkpoint", partial(make_checkpoint, {"versions": NESTED}), True),
    "checkpoint whose format is a text": ("checkpoint", partial(make_checkpoint, {"format": "2"}), True),
    "checkpoint whose file has no size": ("checkpoint", partial(make_checkpoint, {"files": {"x": {}}}), True),
    "checkpoint with a list for a key": ("checkpoint", partial(make_sealed_checkpoint, LIST_AS_KEY), True),
    "checkpoint of a trainer that is a list": ("checkpoint", partial(make_sealed_checkpoint, b"[]"), True),
    "samples with a column of dates": ("samples", partial(samples, {"value": np.zeros((2, 3), "M8[s]")}), True),
    "samples with texts for numbers": ("samples", partial(samples, {"reward": np.full((2, 3), "x")}), True),
    "samples with a color code in a name": ("samples", partial(samples, {"\x1b[31m": np.zeros((2, 3))}), True),
    "samples with a list for a number": ("samples", partial(samples, {"gamma": [1.0, 2.0]}), True),
    "samples with a metric text of the wrong kind": ("samples", partial(samples, {"metrics": "[]"}), True),
    "samples with 100,000 nested lists of options": ("samples", partial(samples, {"json.options": "[" * DEEP}), True),
    "samples with an index outside its strings": ("samples", partial(samples, {"strings.note": "[]"}), True),
    "samples with a huge vocabulary": ("samples", partial(samples, {"json.vocabulary": VOCABULARY}), False),
    "samples with a text of 5 MB": ("samples", partial(samples, {"json.record": f'"{"x" * (5 << 20)}"'}), True),
    "recipe whose differences are a number": ("recipe", b'kind = "llm"\n[about]\ndiffers = 0\n', True),
    "recipe whose about is a number": ("recipe", b'kind = "llm"\nabout = 1\n', True),
    "recipe of a kind that is a table": ("recipe", b"[kind]\na = 1\n", True),
    "chart of numbers whose differences overflow": ("chart", ([0.0, 1.0], [-1.7e308, 1.7e308], 40, 8, False), False),
    "chart of size 0 with an infinite value": ("chart", ([0.0, float("inf")], [0.0, 0.0], 0, 0, False), False),
    "chart of size 0 with a NaN value": ("chart", ([float("nan")], [0.0], 0, 0, False), False),
    "logarithmic chart of the largest number": ("chart", ([0.0], [1.797e308], 0, 0, True), False),
    "command line with an odd digit for a step": ("command line", ["inspect", "a", "--sample", "\u00b2"], True),
    "command line with a number of 5,000 digits": ("command line", ["inspect", "a", "--sample", "9" * 5000], True),
    "form field nested 100,000 deep": ("form field", ("gym.env_kwargs", "[" * DEEP), False),
}


@pytest.mark.parametrize("what", ONCE_FAILED)
def test_past_fuzz_failures_stay_fixed(parsers: dict[str, Parser], what: str) -> None:
    name, value, rejected = ONCE_FAILED[what]
    assert try_one(parsers[name], value() if callable(value) else value).rejected == rejected


def test_fuzzer_detects_exceeded_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser(st.integers(), lambda value, _: bytearray(value << 20))
    assert not try_one(parser, 1).rejected
    with pytest.raises(AssertionError, match=r"it took .* and 3\d\d MB"):
        try_one(parser, 300)
    monkeypatch.setattr(trials, "SLOWEST_S", 0.0)
    with pytest.raises(AssertionError, match="it took"):
        try_one(parser, 1)


def test_fuzzer_memory_is_not_charged_to_the_parser() -> None:
    passes: list[int] = []

    def read(_: int, __: object) -> None:
        gc.collect()
        passes.append(gc.get_freeze_count())

    before, own = gc.get_freeze_count(), [[k] for k in range(10_000)]
    try_one(Parser(st.integers(), read), 1)
    assert passes[0] > before + len(own)
    assert not gc.get_freeze_count()


def test_fuzz_report_keeps_lines_of_other_runs() -> None:
    rows = {name: f"| {name} | 9 | 1 | 5 ms | +1 MB | 1 | 2026-11-28 |" for name in ("query", "chart")}
    written = report(rows, ["query", "recipe", "chart"])
    assert rows_of(written) == rows
    assert written.index("| query") < written.index("| chart")
    assert "These parsers have no successful run yet: recipe." in written
    assert "yet" not in report(rows, ["query", "chart"])


@pytest.mark.parametrize("parse", [parse_json, parse_toml])
def test_nesting_limit_is_exact(parse: Any) -> None:
    start = "a = " if parse is parse_toml else ""
    inner = DEEPEST - 1 if parse is parse_toml else DEEPEST
    parse(start + "[" * inner + "]" * inner)
    with pytest.raises(ValueError, match="deep"):
        parse(start + "[" * (inner + 1) + "]" * (inner + 1))
    dots = ".a" * DEEPEST
    if parse is parse_toml:
        with pytest.raises(ValueError, match="parts"):
            parse_toml(f"a{dots} = 1")
        with pytest.raises(ValueError, match="parts"):
            parse_toml(f"x = {{ a{dots} = 1 }}")
        assert parse_toml(f"x = 'a{dots}'")


def test_compressed_sample_bomb_is_rejected_before_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppo_unified.runs import samples
    from ppo_unified.runs.folder import Run

    monkeypatch.setattr(samples, "MAX_BYTES", 1 << 20)
    folder = Run(tmp_path).samples
    folder.mkdir()
    np.savez_compressed(folder / "00000003.npz", value=np.zeros(samples.MAX_BYTES // 8 + 1))
    assert (folder / "00000003.npz").stat().st_size < 1 << 14
    with pytest.raises(UsageError, match="its uncompressed size is"):
        samples.read(Run(tmp_path), 3)


@pytest.mark.parametrize("text", [*WORDS, MARKS, "a\r\nb", "  indented\n\ttab", "\x1b]52;c;x"])
def test_multiline_message_is_safe_and_keeps_indentation(text: str) -> None:
    assert is_harmless(clean_lines(text))
    assert clean_lines("  a\n    b") == "  a\n    b"
