"""The inputs of each reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from ppo_unified.training import checkpoint
from tests.fuzz import readers, real_files
from tests.fuzz.inputs import WORDS, edits, files, json_objects, mutate, plain, records, texts, toml_files


class Parser(NamedTuple):
    """A reader of external data, and its inputs."""

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any, Path], object]  # called with an input and an empty folder
    usual: Sequence[Any] = ()  # typical inputs that make the reader import all its modules


def _events() -> st.SearchStrategy[bytes]:
    whole = real_files.event_files()
    payloads = st.sampled_from([payload for content in whole for payload in real_files.read_payloads(content)][:60])
    odd = st.lists(st.builds(mutate, payloads, st.lists(edits, max_size=3)), max_size=6).map(real_files.frame_records)
    return st.one_of(
        files(*whole), odd, odd, st.lists(st.binary(max_size=60), max_size=4).map(real_files.frame_records)
    )


def _samples() -> st.SearchStrategy[bytes]:
    arrays = real_files.sample_arrays()
    values = st.one_of(plain.filter(lambda x: not isinstance(x, (dict, list))), st.just(np.zeros((2, 3), "M8[s]")))
    shapes = st.sampled_from(((2, 3), (0, 3), (6,), (3, 2), ()))
    odd = st.builds(np.zeros, shapes, st.sampled_from(("?", "i1", "u8", "f2", "f8", "c8", "U3", "S3", "M8[s]", "V4")))
    full = st.builds(np.array([[1, 0, 7], [3, 2, 1]]).astype, st.sampled_from(("?", "i1", "f4", "U9")))
    floats = st.lists(st.floats(), min_size=6, max_size=6).map(lambda x: np.array(x).reshape(2, 3))
    more = st.sampled_from(("column", "x", "\x1b[31m", "kl", "file", "score"))
    names = st.one_of(st.sampled_from(list(arrays)), more)
    tables = json_objects({"0": "a", "row_len": 3}).map(lambda content: content.decode("utf-8", "replace"))
    documents = st.one_of(tables, plain.map(json.dumps)).map(np.asarray)
    changed = st.dictionaries(names, st.one_of(values, odd, full, floats, documents), max_size=3)
    few = st.sampled_from(("reward", "value", "ratio", "action", "x", "kl"))
    mild = st.dictionaries(few, st.one_of(floats, full), max_size=3)
    odd_ones = [new.map(lambda new: real_files.pack_arrays(arrays | new)) for new in (changed, mild)]
    return st.one_of(*odd_ones, files(real_files.pack_arrays(arrays)))


def _checkpoints() -> st.SearchStrategy[dict[str, bytes]]:
    whole = real_files.checkpoint_files()
    meta = json.loads(whole[checkpoint.META])
    names = st.sampled_from([name for name in whole if name != checkpoint.META])
    parts = names.flatmap(lambda name: files(whole[name]).map(lambda content: whole | {name: content}))
    metas = st.one_of(json_objects(meta), files(whole[checkpoint.META]))
    entries = st.dictionaries(names, st.dictionaries(st.sampled_from(("size", "crc32c", "x")), plain, max_size=3))
    inner = entries.map(lambda new: json.dumps(meta | {"files": meta["files"] | new}).encode())
    return st.one_of(
        parts.map(real_files.seal_checkpoint),
        parts.map(real_files.seal_checkpoint),
        parts,
        st.one_of(metas, inner).map(lambda text: real_files.with_meta(whole, text)),
        metas.map(lambda text: whole | {checkpoint.META: text}),
    )


_ARGUMENTS = ("a", "latest", "cartpole", "Acrobot-v1", "llm", "tiny", "..", "../a", "score>1", "1", "all", "{}")
_LOOKING = ("--json", "--once", "--csv", "--metric", "--seeds", "--iteration", "--sample")
_FLAGS = (*_LOOKING, "--help", "--version", "--yes")
_ENVIRONMENT = ("--gym.env-kwargs", "--gym.env-id")
_NUMBERS = ("--ppo.clip", "--ppo.lr", "--optim.lr=1e-3", "--seed", "--seed=2", "--seed=1-3", "1,2", "[64,", "64]")
_OPTIONS = (*_NUMBERS, *_ENVIRONMENT, "--policy.hidden", "--gym.no-normalize-obs", "-h")


def _command_lines() -> st.SearchStrategy[list[str]]:
    from ppo_unified.cli.main import COMMANDS

    argument = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
    words = st.sampled_from([x for x in WORDS if "\x00" not in x and "\\ud800" not in x])
    word = st.one_of(st.sampled_from(_ARGUMENTS), words, st.sampled_from(_FLAGS), argument)
    looking = st.sampled_from(("runs", "show", "inspect", "compare", "envs", "recipes"))
    command = st.one_of(st.sampled_from(sorted(COMMANDS)), looking, argument)
    short = st.builds(lambda name, rest: [name, *rest], command, st.lists(word, max_size=4))
    several = st.lists(st.one_of(st.sampled_from(_OPTIONS), word), max_size=4)
    train = several.map(lambda rest: ["train", "cartpole", *rest])
    return st.integers(0, 9).flatmap(lambda n: train if n == 0 else short)


def _usual_command_lines() -> list[list[str]]:
    """Return `--help` for every command, and valid arguments for the commands that are really run."""
    from ppo_unified.cli.main import COMMANDS

    looking = ["runs a", "show a --once", "inspect a", "compare a a", "envs --json", "recipes", "recipes zephyr"]
    training = ["train cartpole --help", "train cartpole --ppo.clip 2", "train cartpole", "train tiny", "train llm"]
    return [[name, "--help"] for name in COMMANDS] + [line.split() for line in (*looking, *training)]


def _statuses() -> st.SearchStrategy[bytes]:
    """Generate run.json files in which each value has the right type."""
    kinds = {str: texts, int: st.integers(-(2**63), 2**63 - 1), float: st.floats(allow_nan=False, allow_infinity=False)}
    resumes = st.lists(st.dictionaries(st.sampled_from(("time", "step", "from_state", "x")), plain), max_size=3)
    more = {"resumes": resumes, "versions": st.dictionaries(texts, plain, max_size=2)}
    values = {name: kinds[type(x)] for name, x in real_files.STATUS.items() if type(x) in kinds} | more
    few = st.fixed_dictionaries({}, optional=values)
    return few.map(lambda new: json.dumps(real_files.STATUS | new).encode())


def _views() -> st.SearchStrategy[bytes]:
    from tui.view_state import ViewState

    view = asdict(ViewState(charts={"grid": 4}, marked=["a"], typed={"x": {"a": "1"}}))
    return st.one_of(json_objects(view), files(json.dumps(view).encode()))


def _queries() -> st.SearchStrategy[str]:
    terms = st.sampled_from(("score>=1", "!failed", "|", 'reason:"x', "ppo.clip=0.3", "step<1e400"))
    return st.lists(st.one_of(texts, terms), max_size=4).map(" ".join)


def _charts() -> st.SearchStrategy[tuple[list[float], list[float], int, int, bool]]:
    arrays, sizes = st.lists(st.floats(), max_size=30), st.integers(-5, 300)
    return st.tuples(arrays, arrays, sizes, sizes, st.booleans())


def parsers() -> dict[str, Parser]:
    """Return all parsers by name."""
    configs, recipes, status = real_files.configs(), real_files.recipes(), json.dumps(real_files.STATUS).encode()
    log = b"step 1\nstep 2\r50%\r\x1b[31mred\n"
    fields = [("optim.lr", "1e-3"), ("gym.env_kwargs", "{}")]
    options = st.sampled_from(("gym.env_kwargs", "optim.betas", "optim.lr", "seed", "policy.hidden", "gym.wrappers"))
    prompts, pairs = (records("prompt"), records("prompt", "answer")), records("prompt", "chosen", "rejected")
    return {
        "configuration": Parser(st.one_of(toml_files(*configs), files(*configs)), readers.read_config, configs),
        "recipe": Parser(st.one_of(toml_files(*recipes), files(*recipes)), readers.read_recipe, recipes),
        "prompts": Parser(st.one_of(*prompts, files(*real_files.PROMPTS)), readers.read_prompts, real_files.PROMPTS),
        "preference pairs": Parser(st.one_of(pairs, files(*real_files.PAIRS)), readers.read_pairs, real_files.PAIRS),
        "event file": Parser(_events(), readers.read_events, real_files.event_files()),
        "run.json": Parser(
            st.one_of(json_objects(real_files.STATUS), _statuses(), files(status)), readers.read_status, [status]
        ),
        "note and log": Parser(files(log), readers.read_notes, [log]),
        "checkpoint": Parser(_checkpoints(), readers.read_checkpoint, [real_files.checkpoint_files()]),
        "samples": Parser(_samples(), readers.read_samples, [real_files.pack_arrays(real_files.sample_arrays())]),
        "responses": Parser(files(*real_files.RESPONSES), readers.read_responses, real_files.RESPONSES),
        "remembered view": Parser(_views(), readers.read_view, [b"{}"]),
        "query": Parser(_queries(), readers.read_query, ["ppo.clip=0.3 score>1"]),
        "form field": Parser(st.tuples(options, st.one_of(texts, plain.map(str))), readers.read_field, fields),
        "chart": Parser(_charts(), readers.draw_chart, [([0.0, 1.0], [1.0, 2.0], 40, 8, True)]),
        "command line": Parser(_command_lines(), readers.run_command, _usual_command_lines()),
    }
