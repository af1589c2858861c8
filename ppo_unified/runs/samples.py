"""Store all PPO quantities at every step of selected iterations, and the responses of evaluations.

`samples/<iteration>.npz` contains arrays [N, T] and a few single values. `samples/responses.jsonl` contains one line
per evaluation. Loading either file executes no code. To keep startup fast, this module avoids torch.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppo_unified.errors import UsageError
from ppo_unified.parsing import open_file, parse_fields, parse_json, read_lines
from ppo_unified.runs.folder import Run, replace_file, to_json, write_atomically
from ppo_unified.text import clean

LARGEST = 65_536  # maximum number of valid steps in one file; later rows are not stored
RESPONSES = "responses.jsonl"


class Quantity(NamedTuple):
    """One column of a sample."""

    header: str  # short enough for a narrow table
    meaning: str
    adds_up: bool = False  # True if the table shows the quantity's sum over a sample


QUANTITIES: dict[str, Quantity] = {
    "action": Quantity(
        "action",
        "action that the policy chose, in the environment's units; for a continuous action, the value before clipping "
        "to the bounds",
    ),
    "token": Quantity("token", "ID of the token that the policy chose"),
    "text": Quantity(
        "text", "the token as text; `inspect` quotes text that starts or ends with a space or has control characters"
    ),
    "reward": Quantity("r", "reward of the step, including penalties", True),
    "value": Quantity("V", "value estimate for the state before the step, computed during collection"),
    "next_value": Quantity("V'", "value estimate for the state after the step; 0 if the episode terminated"),
    "delta": Quantity("delta", "temporal-difference error, r + gamma*V' - V"),
    "advantage": Quantity("A", "advantage before normalization"),
    "advantage_used": Quantity(
        "A used", "advantage that the loss uses, normalized if ppo.normalize_advantages = 'batch'"
    ),
    "return": Quantity("return", "training target for the critic"),
    "logprob_old": Quantity("logp old", "log-prob of the action under the policy that collected the rollout", True),
    "logprob_new": Quantity(
        "logp new", "log-prob of the action under the policy after the iteration's last update", True
    ),
    "ratio": Quantity("ratio", "probability ratio, exp(logp new - logp old)"),
    "clipped": Quantity(
        "clip",
        "* marks a ratio outside the clip range; the policy gradient is 0 if A pushes the ratio further out",
        True,
    ),
    "logprob_ref": Quantity("logp ref", "log-prob of the action under the reference model", True),
    "kl": Quantity("kl", "estimated KL to the reference model, as used in the reward", True),
    "kl_full": Quantity("kl full", "exact KL to the reference model, summed over all possible actions", True),
    "score": Quantity("score", "score of the response, shown at its last step", True),
    "continues": Quantity("continues", "true if the episode continues after the step"),
}


class Sample(NamedTuple):
    """The part of an episode that is in a rollout, given by its row and its valid columns in ascending order."""

    row: int
    columns: np.ndarray


@dataclass(frozen=True)
class StoredIteration:
    """The samples of one iteration."""

    iteration: int
    step: int  # the run's step after the iteration
    steps: int  # number of valid steps in the iteration; the file may contain fewer
    gamma: float
    lam: float
    clip: float  # ppo.clip after annealing
    clip_high: float
    advantage_kind: str  # ppo.advantage
    value_target: str  # ppo.value_target
    metrics: dict[str, float | None]  # the logged metrics; None if not finite
    columns: dict[str, np.ndarray]  # [N, T] each; entries are undefined if "mask" is False

    def samples(self) -> list[Sample]:
        """Split each row into samples. A sample ends at each valid step for which `continues` is False."""
        found = []
        for row, (valid, continues) in enumerate(zip(self.columns["mask"], self.columns["continues"], strict=True)):
            own = np.flatnonzero(valid)
            ends = np.flatnonzero(~continues[own]) + 1
            found += [Sample(row, part) for part in np.split(own, ends) if part.size]
        return found

    def text_before(self, sample: Sample) -> str:
        """Return the text, such as a prompt, between the row's previous sample and the first step of `sample`."""
        if "text" not in self.columns:
            return ""
        row, first = sample.row, int(sample.columns[0])
        own = np.flatnonzero(self.columns["mask"][row, :first])
        return "".join(self.columns["text"][row, own[-1] + 1 if own.size else 0 : first].tolist())

    def sample_steps(self, sample: Sample) -> list[dict[str, Any]]:
        """Return all quantities at each step of a sample: first those in QUANTITIES, then the adapter's own."""
        names = [name for name in QUANTITIES if name in self.columns]
        names += [name for name in self.columns if name not in QUANTITIES and name != "mask"]
        parts = {name: self.columns[name][sample.row, sample.columns].tolist() for name in names}
        return [
            {"column": int(column)} | {name: part[number] for name, part in parts.items()}
            for number, column in enumerate(sample.columns)
        ]

    def document(self, number: int, sample: Sample) -> dict[str, Any]:
        """Return a sample in the form that `inspect --json` prints. `number` is its index among all samples."""
        before = {"before": self.text_before(sample)} if "text" in self.columns else {}
        return {"sample": number, "row": sample.row, **before, "steps": self.sample_steps(sample)}

    def quantities(self) -> dict[str, Quantity]:
        """Return the declaration of each column. For the adapter's own columns, it contains only a name."""
        headers = {known.header for known in QUANTITIES.values()}
        return {
            name: QUANTITIES.get(
                name, Quantity(f"{name}_" if name in headers else name, "quantity defined by the adapter")
            )
            for name in self.columns
        }

    def summary(self, name: str) -> str:
        """Return lines with the run's name, the iteration, and the formulas that connect the quantities."""
        held = int(self.columns["mask"].sum())
        kept = "" if held == self.steps else f"; only the first {held:,} are stored"
        clip = f"{self.clip:.4g}" + (f" (upper {self.clip_high:.4g})" if self.clip_high != self.clip else "")
        advantages = {
            "gae": "A = delta + gamma*lam*A'",
            "td": "A = delta",
            "reward-to-go": "A = r + gamma*A' (V' instead of A' if the rollout ends before the episode)",
            "return": "A = sum of the episode's discounted rewards from its first step in the rollout",
        }
        to_go = "return = r + gamma*return' (V' instead of return' if the rollout ends before the episode)"
        returns = f"return = {'A' if self.advantage_kind == 'gae' else 'GAE'} + V"
        formulas = (
            "delta = r + gamma*V' - V",
            advantages.get(self.advantage_kind, f"A as defined by ppo.advantage = {clean(self.advantage_kind)!r}"),
            returns if self.value_target == "lambda" else to_go,
        )
        return "\n".join(
            (
                f"{clean(name)}, iteration {self.iteration} (up to step {self.step:,}), "
                f"{self.steps:,} sampled steps{kept}",
                f"gamma {self.gamma:.6g}, lam {self.lam:.6g}, clip {clip}",
                "; ".join(formulas),
            )
        )


SINGLE = tuple(f.name for f in fields(StoredIteration) if f.name != "columns")  # values that are not arrays [N, T]
MOST_BYTES = 1 << 27  # maximum uncompressed size of a file; a small file can decompress to a huge one
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("iteration", "step", "steps"), (int,)),
    **dict.fromkeys(("gamma", "lam", "clip", "clip_high"), (float, int)),
    **dict.fromkeys(("advantage_kind", "value_target"), (str,)),
    "metrics": (dict,),
}


def sample_path(run: Run, iteration: int) -> Path:
    return run.samples / f"{iteration:08d}.npz"


def iterations(run: Run) -> list[int]:
    """List the iterations whose samples are stored, in ascending order."""
    folder = run.samples
    return sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal()) if folder.is_dir() else []


def rows_to_keep(mask: np.ndarray) -> int:
    """Return the number of leading rows of a mask [N, T] that have at most LARGEST valid steps in total, at least 1."""
    return max(1, int(np.searchsorted(mask.sum(1).cumsum(), LARGEST, side="right")))


def write(run: Run, stored: StoredIteration) -> None:
    """Write an iteration's samples atomically, so that readers find either a complete file or none."""
    run.samples.mkdir(exist_ok=True)
    single = {name: getattr(stored, name) for name in SINGLE} | {"metrics": to_json(stored.metrics, indent=None)}
    arrays: dict[str, Any] = stored.columns | {name: np.asarray(x) for name, x in single.items()}
    with replace_file(sample_path(run, stored.iteration)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(run: Run, iteration: int) -> StoredIteration:
    """Read the samples of an iteration. Raises UsageError if the file is not a valid sample file."""
    path = sample_path(run, iteration)
    try:
        found = _read_arrays(path)
        if missing := {*SINGLE, "mask", "continues"} - found.keys():
            raise ValueError(f"missing: {', '.join(sorted(missing))}")
        single = {name: _read_scalar(name, found.pop(name)) for name in SINGLE}
        _check_columns(found)
    except ValueError as error:
        raise UsageError(f"{path}: invalid sample file ({clean(error)[:200]}); delete the file") from None
    return StoredIteration(**single, columns=found)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays in a file. Raises ValueError if it cannot be read."""
    try:
        with open_file(path) as file:
            with zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > MOST_BYTES:
                raise ValueError(f"its uncompressed size is {size:,} bytes, the limit is {MOST_BYTES:,}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # numpy and zipfile raise many kinds of exceptions for a damaged file
        raise ValueError(error) from None


def _read_scalar(name: str, array: np.ndarray) -> Any:
    value = array.item()
    if name == "metrics" and isinstance(value, str):
        value = parse_json(value)
    if not isinstance(value, _KINDS[name]):
        raise ValueError(f"{name}: expected {_KINDS[name][0].__name__}, got {type(value).__name__}")
    return value


def _check_columns(columns: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless the columns have the shapes and types that `write` stores."""
    mask, continues = columns["mask"], columns["continues"]
    if mask.ndim != 2 or any(x.shape != mask.shape for x in columns.values()):
        raise ValueError("expected arrays [N, T] of the same shape")
    if mask.dtype != bool or continues.dtype != bool or any(x.dtype.kind not in "biufU" for x in columns.values()):
        raise ValueError("expected arrays of numbers or strings, and mask and continues of type bool")
    for name, x in columns.items():
        if not name.isidentifier() or name == "column":
            raise ValueError(f"invalid column name {name!r}")
        if (
            name in QUANTITIES
            and (name == "text" or QUANTITIES[name].adds_up)
            and (x.dtype.kind == "U") != (name == "text")
        ):
            raise ValueError(f"column {name} has the wrong type {x.dtype}")
    if not mask.any():
        raise ValueError("it contains no steps")


def truncate(run: Run, iteration: int, evaluated: int) -> None:
    """Remove the samples of iterations after `iteration`, and the responses of evaluations after the step `evaluated`.

    A resumed run writes these samples and responses again.
    """
    for later in iterations(run):
        if later > iteration:
            sample_path(run, later).unlink(missing_ok=True)
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
