"""Store all PPO quantities at every step of selected iterations, and the responses of evaluations.

`samples/<iteration>.npz` contains arrays and a few single values.
`samples/responses.jsonl` contains one line per evaluation. Loading either file executes no code. To keep startup fast,
this module avoids torch.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ppo_unified.errors import UsageError
from ppo_unified.parsing import parse_fields, parse_json, read_lines
from ppo_unified.runs.arrays import read_arrays, write_arrays
from ppo_unified.runs.folder import Run, replace_file, to_json, write_atomically
from ppo_unified.runs.stored_iteration import EPOCH_QUANTITIES
from ppo_unified.runs.stored_iteration import QUANTITIES as QUANTITIES
from ppo_unified.runs.stored_iteration import Alternatives as Alternatives
from ppo_unified.runs.stored_iteration import StoredIteration as StoredIteration
from ppo_unified.text import clean

MAX_STEPS = 1 << 17  # maximum number of valid steps in one file; later rows are not stored
GROUPS = ("json", "strings", "epochs", "alternatives", "observations", "raw")  # prefixes of the names in a file
POLICIES = ("old", "new", "ref")  # the policies whose likeliest actions are stored
RESPONSES = "responses.jsonl"
MAX_TEXT = 4 << 20  # maximum length of a JSON text in a file; its values can take twenty times as much memory
MAX_INTEGER = 1 << 64  # in options, state and metrics
HEADER = 1 << 10  # more than the bytes that a file needs for the name, type and shape of an array
REQUEST = ".sample-next"  # this file requests the samples of the next iteration

REQUIRED_IN_EPOCHS = EPOCH_QUANTITIES.keys() - {"advantage_used"}
SINGLE = (
    "iteration",
    "step",
    "steps",
    "gamma",
    "lam",
    "clip",
    "clip_high",
    "advantage_kind",
    "value_target",
    "metrics",
)
MAX_BYTES = 1 << 27  # maximum uncompressed size of a file; a small file can decompress to a huge one
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("iteration", "step", "steps"), (int,)),
    **dict.fromkeys(("gamma", "lam", "clip", "clip_high"), (float, int)),
    **dict.fromkeys(("advantage_kind", "value_target"), (str,)),
    "metrics": (dict,),
}


def sample_path(run: Run, iteration: int) -> Path:
    return run.samples / f"{iteration:08d}.npz"


def iterations(run: Run) -> list[int]:
    """List the iterations whose samples are stored, in ascending order. Files with other names are ignored."""
    files = run.samples.glob("*.npz") if run.samples.is_dir() else ()
    numbers = {path: int(path.stem) for path in files if path.stem.isdecimal()}
    return sorted(number for path, number in numbers.items() if path == sample_path(run, number))


def rows_to_keep(mask: np.ndarray, row_bytes: int = 0) -> int:
    """Return the number of leading rows of a mask [N, T] that one file stores, at least 1.

    These rows have at most MAX_STEPS valid steps in total and, if each takes `row_bytes`, most of MAX_BYTES.
    """
    rows = int(np.searchsorted(mask.sum(1).cumsum(), MAX_STEPS, side="right"))
    return max(1, min(rows, MAX_BYTES * 9 // 10 // row_bytes) if row_bytes else rows)


def write(run: Run, stored: StoredIteration) -> None:
    """Write an iteration's samples atomically, so that readers find either a complete file or none.

    If all rows together would exceed MAX_BYTES or MAX_TEXT, only the first ones are stored. If even one row would,
    its observations are left out. Raises OSError.
    """
    run.samples.mkdir(exist_ok=True)
    arrays = _to_arrays(stored)
    while (excess := _excess(arrays)) > 1:
        rows = len(stored.columns["mask"])
        if rows > 1:
            stored = stored.head(max(1, min(rows - 1, int(rows / excess))))
        elif stored.observations:
            stored = replace(stored, observations={})
        else:
            raise OSError(errno.EFBIG, f"one row of samples exceeds the limit {excess:.1f} times")
        arrays = _to_arrays(stored)
    with replace_file(sample_path(run, stored.iteration)) as temporary, open(temporary, "wb") as file:
        write_arrays(file, arrays)


def read(run: Run, iteration: int) -> StoredIteration:
    """Read the samples of an iteration. Raises UsageError if the file is not a valid sample file."""
    path = sample_path(run, iteration)
    try:
        found = read_arrays(path, MAX_BYTES)
        if missing := {*SINGLE, "mask", "continues"} - found.keys():
            raise ValueError(f"missing: {', '.join(sorted(missing))}")
        return _from_arrays(found, str(path))
    except ValueError as error:
        raise UsageError(f"{path}: invalid sample file ({clean(error)[:200]}); delete the file") from None


def _excess(arrays: Mapping[str, np.ndarray]) -> float:
    """Return the size of a file relative to the limits of `read`; a file above 1 cannot be read."""
    longest = max(x.nbytes // np.dtype("U1").itemsize for name, x in arrays.items() if x.dtype.kind == "U")
    return max(sum(x.nbytes + HEADER for x in arrays.values()) / MAX_BYTES, longest / MAX_TEXT)


def _to_arrays(stored: StoredIteration) -> dict[str, np.ndarray]:
    """Return the arrays of a file. A column of strings becomes a column of indices into a list of its distinct strings.

    The names of all arrays except the single values and the columns have the form GROUP.NAME.
    """
    arrays = {name: np.asarray(getattr(stored, name)) for name in SINGLE if name != "metrics"}
    texts: dict[str, Any] = {"metrics": stored.metrics, "json.options": stored.options, "json.state": stored.state}
    is_long = len(to_json(stored.record, indent=None)) > MAX_TEXT
    texts |= {"json.record": None if is_long else stored.record, "json.vocabulary": stored.vocabulary}
    for name, column in stored.columns.items():
        if column.dtype.kind in "UO":
            codes: dict[str, int] = {}
            indices = [codes.setdefault(text, len(codes)) for text in column.ravel().tolist()]
            texts[f"strings.{name}"] = list(codes)
            arrays[name] = np.array(indices, dtype=np.int32).reshape(column.shape)
        else:
            arrays[name] = column
    arrays |= {name: np.asarray(to_json(value, indent=None)) for name, value in texts.items()}
    arrays |= {f"epochs.{name}": x for name, x in stored.epochs.items()}
    arrays |= {f"observations.{name}": x for name, x in stored.observations.items()}
    for policy, (actions, logprobs) in stored.alternatives.items():
        arrays |= {f"alternatives.{policy}.actions": _shrink(actions), f"alternatives.{policy}.logprobs": logprobs}
    return arrays | ({"raw.actions": stored.actions} if stored.actions is not None else {})


def _shrink(integers: np.ndarray) -> np.ndarray:
    """Return the integers with the smallest type that can represent them, which is faster to read and write."""
    low, high = integers.min(initial=0), integers.max(initial=0)
    kinds = (np.iinfo(kind) for kind in (np.int16, np.int32, np.int64))
    return integers.astype(next(kind.dtype for kind in kinds if kind.min <= low and high <= kind.max))


def _from_arrays(found: dict[str, np.ndarray], where: str) -> StoredIteration:
    """Return the content of the file at the path `where`. Raises ValueError if an array has an unexpected name, shape
    or type."""
    single = {name: _read_scalar(name, found.pop(name)) for name in SINGLE}
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in GROUPS}
    for name in [name for name in found if "." in name]:
        group, _, rest = name.partition(".")
        if group not in groups:
            raise ValueError(f"unexpected array {name!r}")
        groups[group][rest] = found.pop(name)
    for name, strings in groups["strings"].items():
        found[name] = _decode_strings(name, found.get(name), strings)
    _check_columns(found)
    shape = found["mask"].shape
    for group in ("alternatives", "observations", "raw"):
        for name, x in groups[group].items():
            if x.shape[:2] != shape or x.dtype.kind not in "biuf":
                raise ValueError(f"{group}.{name}: expected numbers of shape [{shape[0]}, {shape[1]}, ..]")
    _check_epochs(groups["epochs"], shape)
    documents = {name: _parse_document(name, x) for name, x in groups["json"].items()}
    return StoredIteration(
        **single,
        columns=found,
        options=documents.get("options", {}),
        state=documents.get("state", {}),
        epochs=groups["epochs"],
        alternatives=_read_alternatives(groups["alternatives"]),
        observations=groups["observations"],
        actions=groups["raw"].get("actions"),
        record=documents.get("record"),
        vocabulary={int(action): str(text) for action, text in documents.get("vocabulary", {}).items()},
        where=where,
    )


def _decode_strings(name: str, codes: np.ndarray | None, strings: np.ndarray) -> np.ndarray:
    """Return the column of strings [N, T] that `codes` refers to."""
    known = _parse_document(f"strings.{name}", strings)
    if codes is None or codes.dtype.kind not in "iu" or not isinstance(known, list):
        raise ValueError(f"column {name} has no indices of strings")
    if codes.size and not 0 <= codes.min() <= codes.max() < len(known):
        raise ValueError(f"column {name}: an index of a string is out of range")
    strings_of: np.ndarray = np.array([*map(str, known)], dtype=object)
    decoded: np.ndarray = strings_of[codes]
    return decoded


def _read_alternatives(arrays: Mapping[str, np.ndarray]) -> dict[str, Alternatives]:
    found = {}
    for policy in {name.partition(".")[0] for name in arrays}:
        actions, logprobs = arrays.get(f"{policy}.actions"), arrays.get(f"{policy}.logprobs")
        if policy not in POLICIES:
            raise ValueError(f"alternatives: expected {', '.join(POLICIES)}, got {policy!r}")
        if actions is None or logprobs is None or actions.shape != logprobs.shape or actions.ndim != 3:
            raise ValueError(f"alternatives.{policy}: expected actions and log-probs [N, T, K]")
        if actions.dtype.kind not in "iu" or logprobs.dtype.kind != "f":
            raise ValueError(f"alternatives.{policy}: expected integers and floats")
        found[policy] = Alternatives(actions, logprobs)
    return found


def _check_epochs(epochs: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
    """Raise ValueError unless each array has the shape [E, N, T], where [N, T] is `shape`."""
    if epochs and (missing := REQUIRED_IN_EPOCHS - epochs.keys()):
        raise ValueError(f"missing: {', '.join(f'epochs.{name}' for name in sorted(missing))}")
    for name, x in epochs.items():
        kinds = "i" if name == "minibatch" else "f"
        if x.shape != (len(epochs["minibatch"]), *shape) or x.dtype.kind not in kinds:
            raise ValueError(f"epochs.{name}: expected numbers of shape [E, {shape[0]}, {shape[1]}]")
    numbers = epochs.get("minibatch", np.zeros(1, int))
    if not -1 <= numbers.min(initial=0) <= numbers.max(initial=0) < math.prod(shape):
        raise ValueError("epochs.minibatch: a number is out of range")


def _parse_document(name: str, array: np.ndarray) -> Any:
    """Parse a JSON text. Raises ValueError if it is invalid or does not have the expected type."""
    value = array.item() if array.ndim == 0 else None
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"{name}: expected a JSON text of at most {MAX_TEXT:,} characters")
    document = parse_json(value)
    if name in ("options", "state", "vocabulary") and not isinstance(document, dict):
        raise ValueError(f"json.{name}: expected a table, got {type(document).__name__}")
    if name in ("options", "state"):
        _check_integers(document)
    if name == "state" and not all(isinstance(x, int | float | None) for x in document.values()):
        raise ValueError("json.state: expected a table of numbers")
    if name == "options":
        sections = {key: document.get(key, {}) for key in ("ppo", "optim")}
        if wrong := [key for key, section in sections.items() if not isinstance(section, dict)]:
            raise ValueError(f"json.options: expected a table of {wrong[0]} options")
    return document


def _check_integers(value: Any) -> None:
    """Raise ValueError if a JSON value contains an integer that is too large for a float."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_integers(part)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError(f"expected integers of at most {MAX_INTEGER:,}")


def _read_scalar(name: str, array: np.ndarray) -> Any:
    value = array.item()
    if name == "metrics" and isinstance(value, str):
        value = parse_json(value)
        _check_integers(value)
    if not isinstance(value, _KINDS[name]):
        raise ValueError(f"{name}: expected {_KINDS[name][0].__name__}, got {type(value).__name__}")
    return value


def _check_columns(columns: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless the columns have the shapes and types that `write` stores."""
    mask, continues = columns["mask"], columns["continues"]
    if mask.ndim != 2 or mask.dtype != bool or continues.dtype != bool:
        raise ValueError("mask and continues: expected arrays [N, T] of type bool")
    for name, x in columns.items():
        check_column(name, x, mask.shape)
    if not mask.any():
        raise ValueError("it contains no steps")


def check_column(name: str, x: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the name, shape and type of a column are valid. `shape` is [N, T]."""
    if not name.isidentifier() or name == "column":
        raise ValueError(f"column {name!r}: expected a Python identifier other than 'column' as its name")
    known = QUANTITIES.get(name)
    what, kinds = ("numbers", "biuf") if known is not None and known.adds_up else ("numbers or strings", "biufUO")
    what, kinds = ("strings", "UO") if name == "text" else (what, kinds)
    if x.shape != shape or x.dtype.kind not in kinds or not _has_only_strings(x):
        raise ValueError(f"column {name!r}: expected {what} of shape {[*shape]}, got {x.dtype} of shape {[*x.shape]}")


def _has_only_strings(x: np.ndarray) -> bool:
    """Return True unless an array contains other Python objects than strings."""
    return x.dtype.kind != "O" or all(isinstance(text, str) for text in x.flat)


def request_next(run: Run) -> None:
    """Ask the run's trainer to store the samples of its next iteration. Raises OSError."""
    run.samples.mkdir(exist_ok=True)
    (run.samples / REQUEST).touch()


def is_requested(run: Run) -> bool:
    """Return True if the samples of the next iteration were requested and have not been stored yet."""
    return (run.samples / REQUEST).exists()


def clear_request(run: Run) -> None:
    (run.samples / REQUEST).unlink(missing_ok=True)


def thin_out(run: Run, budget: float) -> None:
    """Delete sample files until the rest takes at most `budget` bytes. The first and the newest one are always kept.

    Among the others, the file is deleted whose neighbors are closest together, relative to its age in iterations.
    Old samples are therefore thinned out first, and the distance between the remaining ones grows with their age.
    """
    sizes = {number: sample_path(run, number).stat().st_size for number in iterations(run)}
    while sum(sizes.values()) > budget and len(sizes) > 2:
        numbers = list(sizes)
        gaps = {
            number: (after - before) / (numbers[-1] - number)
            for before, number, after in zip(numbers, numbers[1:], numbers[2:], strict=False)
        }
        chosen = min(gaps, key=gaps.__getitem__)
        sample_path(run, chosen).unlink(missing_ok=True)
        del sizes[chosen]


def truncate(run: Run, iteration: int, evaluated: int) -> None:
    """Remove the samples of iterations after `iteration`, and the responses of evaluations after the step `evaluated`.

    A resumed run writes these samples and responses again. The next iteration may have been stored only because a user
    requested it, so its removal requests it again.
    """
    later = [number for number in iterations(run) if number > iteration]
    if later[:1] == [iteration + 1]:
        request_next(run)
    for number in later:
        sample_path(run, number).unlink(missing_ok=True)
    path = run.samples / RESPONSES
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _is_whole(line, evaluated)]
        if kept != lines:
            write_atomically(path, b"".join(kept).decode("ascii"))


def _is_whole(line: bytes, evaluated: int) -> bool:
    """Return True if a line is complete and its evaluation was not after the step `evaluated`."""
    try:
        return line.endswith(b"\n") and _parse_evaluation(line.decode("ascii")).step <= evaluated
    except ValueError:
        return False


@dataclass(frozen=True)
class _Evaluation:
    """A line of responses.jsonl."""

    step: int
    responses: list[dict[str, Any]]


def append_responses(run: Run, step: int, iteration: int, responses: list[dict[str, Any]]) -> None:
    """Append an evaluation's responses as one line of JSON. If a crash left an incomplete line, start a new line."""
    run.samples.mkdir(exist_ok=True)
    line = to_json({"step": step, "iteration": iteration, "responses": responses}, indent=None) + "\n"
    with open(run.samples / RESPONSES, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode("ascii"))


def read_responses(run: Run) -> dict[int, list[dict[str, Any]]]:
    """Return the responses of all evaluations, sorted by step. If several lines have the same step, the last counts."""
    found: dict[int, list[dict[str, Any]]] = {}
    try:
        for line in read_lines(run.samples / RESPONSES):
            if not line.startswith("{"):  # faster than parsing: there may be 100,000 incomplete lines
                continue
            with suppress(ValueError):
                evaluation = _parse_evaluation(line)
                found[evaluation.step] = evaluation.responses
    except FileNotFoundError:
        return {}
    return dict(sorted(found.items()))


def _parse_evaluation(line: str) -> _Evaluation:
    """Parse a line of responses.jsonl. Raises ValueError if it is damaged."""
    known = parse_fields(parse_json(line), _Evaluation)
    if len(known) < len(fields(_Evaluation)):
        raise ValueError("the step or the responses are missing")
    return _Evaluation(**known)
