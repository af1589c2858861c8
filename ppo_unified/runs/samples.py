"""What a run keeps to look into: every quantity of PPO at every step of some iterations, and responses as text.

`samples/<iteration>.npz` holds arrays [N, T] and a few single values; `samples/responses.jsonl` one line an evaluation.
Both are plain data: loading executes nothing. No torch.
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

LARGEST = 65_536  # valid steps in one file; the rows behind them are left out
RESPONSES = "responses.jsonl"


class Quantity(NamedTuple):
    """One column of a sample."""

    header: str  # short enough for a narrow table
    meaning: str
    adds_up: bool = False  # whether its sum over a sample says something


QUANTITIES: dict[str, Quantity] = {
    "action": Quantity("action", "what the policy chose, before a continuous one is clipped to the bounds"),
    "token": Quantity("token", "id of the token that the policy chose"),
    "text": Quantity("text", "the token as text, in quotes where blanks or controls matter"),
    "reward": Quantity("r", "reward of the step, penalties included", True),
    "value": Quantity("V", "value of the state before the step, by the critic that collected"),
    "next_value": Quantity("V'", "value of the state after it; 0 where the episode terminated"),
    "delta": Quantity("delta", "what the step brought beyond the critic's expectation"),
    "advantage": Quantity("A", "advantage, before normalisation"),
    "advantage_used": Quantity("A used", "advantage as the loss saw it, normalised or not"),
    "return": Quantity("return", "what the value is trained towards"),
    "logprob_old": Quantity("log old", "log-prob of the action under the policy that collected", True),
    "logprob_new": Quantity("log new", "log-prob of it after the iteration's updates", True),
    "ratio": Quantity("ratio", "exp(log new - log old)"),
    "clipped": Quantity("clip", "* = ratio outside the clip range; no gradient where A pushes further out", True),
    "logprob_ref": Quantity("log ref", "log-prob of it under the reference", True),
    "kl": Quantity("kl", "estimate of KL to the reference, as the reward has it", True),
    "kl_full": Quantity("kl full", "exact KL to the reference, summed over all actions", True),
    "score": Quantity("score", "what the reward function gave, at the last step", True),
    "continues": Quantity("goes on", "the episode goes on after the step"),
}


class Sample(NamedTuple):
    """One episode, or the part of it that a rollout holds: a row and its valid columns, ascending."""

    row: int
    columns: np.ndarray


@dataclass(frozen=True)
class StoredIteration:
    """The samples of one iteration."""

    iteration: int
    step: int  # of the run, after the iteration
    steps: int  # valid steps that the iteration had; the file may hold fewer
    gamma: float
    lam: float
    clip: float  # as annealed
    clip_high: float
    advantage_kind: str  # ppo.advantage
    value_target: str  # ppo.value_target
    metrics: dict[str, float | None]  # as logged; None where not finite
    columns: dict[str, np.ndarray]  # [N, T] each; entries where "mask" is False mean nothing

    def samples(self) -> list[Sample]:
        """Every row, cut behind each valid step after which the episode does not go on."""
        found = []
        for row, (valid, continues) in enumerate(zip(self.columns["mask"], self.columns["continues"], strict=True)):
            own = np.flatnonzero(valid)
            ends = np.flatnonzero(~continues[own]) + 1
            found += [Sample(row, part) for part in np.split(own, ends) if part.size]
        return found

    def text_before(self, sample: Sample) -> str:
        """The text, such as a prompt, that stands before a sample's first step and behind the sample before it."""
        if "text" not in self.columns:
            return ""
        row, first = sample.row, int(sample.columns[0])
        own = np.flatnonzero(self.columns["mask"][row, :first])
        return "".join(self.columns["text"][row, own[-1] + 1 if own.size else 0 : first].tolist())

    def sample_steps(self, sample: Sample) -> list[dict[str, Any]]:
        """Every quantity at every step of a sample, by name, in the order of QUANTITIES; adapters' own come last."""
        names = [name for name in QUANTITIES if name in self.columns]
        names += [name for name in self.columns if name not in QUANTITIES and name != "mask"]
        parts = {name: self.columns[name][sample.row, sample.columns].tolist() for name in names}
        return [
            {"column": int(column)} | {name: part[number] for name, part in parts.items()}
            for number, column in enumerate(sample.columns)
        ]

    def document(self, number: int, sample: Sample) -> dict[str, Any]:
        """A sample, `number` among all, as `inspect --json` prints it."""
        before = {"before": self.text_before(sample)} if "text" in self.columns else {}
        return {"sample": number, "row": sample.row, **before, "steps": self.sample_steps(sample)}

    def quantities(self) -> dict[str, Quantity]:
        """What each column holds; adapters' own are known by their names alone."""
        headers = {known.header for known in QUANTITIES.values()}
        return {
            name: QUANTITIES.get(name, Quantity(f"{name}_" if name in headers else name, "as the adapter gives it"))
            for name in self.columns
        }

    def summary(self, name: str) -> str:
        """Lines on which iteration of the run `name` this is, and how its numbers depend on each other."""
        held = int(self.columns["mask"].sum())
        kept = "" if held == self.steps else f", of which the first {held:,} are kept"
        clip = f"{self.clip:.4g}" + (f" (upwards {self.clip_high:.4g})" if self.clip_high != self.clip else "")
        advantages = {
            "gae": "A = delta + gamma*lam*A'",
            "td": "A = delta",
            "reward-to-go": "A = r + gamma*A' (V' for A' where the rollout cuts an episode)",
            "return": "A = the episode's discounted rewards from its first step here",
        }
        to_go = "return = r + gamma*return' (V' for return' where the rollout cuts an episode)"
        returns = f"return = {'A' if self.advantage_kind == 'gae' else 'GAE'} + V"
        formulas = (
            "delta = r + gamma*V' - V",
            advantages.get(self.advantage_kind, f"A as ppo.advantage = {clean(self.advantage_kind)!r} says"),
            returns if self.value_target == "lambda" else to_go,
        )
        return "\n".join(
            (
                f"{clean(name)}, iteration {self.iteration}, up to step {self.step:,}: {self.steps:,} steps{kept}",
                f"gamma {self.gamma:.6g}, lam {self.lam:.6g}, clip {clip}",
                "; ".join(formulas),
            )
        )


SINGLE = tuple(f.name for f in fields(StoredIteration) if f.name != "columns")  # what is no array [N, T] in a file
MOST_BYTES = 1 << 27  # of a file's arrays unpacked; few bytes can be packed that say they are many
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("iteration", "step", "steps"), (int,)),
    **dict.fromkeys(("gamma", "lam", "clip", "clip_high"), (float, int)),
    **dict.fromkeys(("advantage_kind", "value_target"), (str,)),
    "metrics": (dict,),
}


def sample_path(run: Run, iteration: int) -> Path:
    return run.samples / f"{iteration:08d}.npz"


def iterations(run: Run) -> list[int]:
    """The iterations whose samples are stored, ascending."""
    folder = run.samples
    return sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal()) if folder.is_dir() else []


def rows_to_keep(mask: np.ndarray) -> int:
    """How many of the first rows of a mask [N, T] hold at most LARGEST valid steps; at least one."""
    return max(1, int(np.searchsorted(mask.sum(1).cumsum(), LARGEST, side="right")))


def write(run: Run, stored: StoredIteration) -> None:
    """Write the samples of an iteration; readers see a whole file or none."""
    run.samples.mkdir(exist_ok=True)
    single = {name: getattr(stored, name) for name in SINGLE} | {"metrics": to_json(stored.metrics, indent=None)}
    arrays: dict[str, Any] = stored.columns | {name: np.asarray(x) for name, x in single.items()}
    with replace_file(sample_path(run, stored.iteration)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(run: Run, iteration: int) -> StoredIteration:
    """The samples of an iteration. Raises UsageError where the file is damaged or is no such file."""
    path = sample_path(run, iteration)
    try:
        found = _read_arrays(path)
        if missing := {*SINGLE, "mask", "continues"} - found.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        single = {name: _read_scalar(name, found.pop(name)) for name in SINGLE}
        _check_columns(found)
    except ValueError as error:
        raise UsageError(f"{path}: cannot be read as samples ({clean(error)[:200]}); delete it") from None
    return StoredIteration(**single, columns=found)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file. Raises ValueError where it cannot be read."""
    try:
        with open_file(path) as file:
            with zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > MOST_BYTES:
                raise ValueError(f"unpacked it would take {size:,} bytes")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # numpy and zipfile raise anything on a damaged file
        raise ValueError(error) from None


def _read_scalar(name: str, array: np.ndarray) -> Any:
    value = array.item()
    if name == "metrics" and isinstance(value, str):
        value = parse_json(value)
    if not isinstance(value, _KINDS[name]):
        raise ValueError(f"its {name} is no {_KINDS[name][0].__name__}")
    return value


def _check_columns(columns: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError unless these are columns as `write` has them."""
    mask, continues = columns["mask"], columns["continues"]
    if mask.ndim != 2 or any(x.shape != mask.shape for x in columns.values()):
        raise ValueError("its arrays differ in shape")
    if mask.dtype != bool or continues.dtype != bool or any(x.dtype.kind not in "biufU" for x in columns.values()):
        raise ValueError("its arrays are neither numbers nor texts")
    for name, x in columns.items():
        if not name.isidentifier() or name == "column":
            raise ValueError("an array has no name of a column")
        if (
            name in QUANTITIES
            and (name == "text" or QUANTITIES[name].adds_up)
            and (x.dtype.kind == "U") != (name == "text")
        ):
            raise ValueError(f"its {name} is {x.dtype}")
    if not mask.any():
        raise ValueError("it holds no steps")


def truncate(run: Run, iteration: int, evaluated: int) -> None:
    """Remove the samples of later iterations and the responses of evaluations after the step `evaluated`: a resumed run
    writes them again."""
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
    """Whether a line was finished and is of an evaluation at the step `evaluated` or before."""
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
    """Add an evaluation's responses as one line of JSON; one that a crash left unfinished stays a line of its own."""
    run.samples.mkdir(exist_ok=True)
    line = to_json({"step": step, "iteration": iteration, "responses": responses}, indent=None) + "\n"
    with open(run.samples / RESPONSES, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode("ascii"))


def read_responses(run: Run) -> dict[int, list[dict[str, Any]]]:
    """The responses of every evaluation by step, ascending; the last line of a step counts, unfinished lines do not."""
    found: dict[int, list[dict[str, Any]]] = {}
    try:
        for line in read_lines(run.samples / RESPONSES):
            if not line.startswith("{"):  # quicker than to have it refused: of torn lines there may be 100,000
                continue
            with suppress(ValueError):
                evaluation = _parse_evaluation(line)
                found[evaluation.step] = evaluation.responses
    except FileNotFoundError:
        return {}
    return dict(sorted(found.items()))


def _parse_evaluation(line: str) -> _Evaluation:
    """Raises ValueError for a line that is damaged."""
    known = parse_fields(parse_json(line), _Evaluation)
    if len(known) < len(fields(_Evaluation)):
        raise ValueError("it lacks the step or the responses")
    return _Evaluation(**known)
