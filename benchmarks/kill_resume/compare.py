"""Check that every file in two run folders is readable, and that the runs are bit-for-bit equal.

    python -m benchmarks.kill_resume.compare RUN RUN

The metrics under time/ and system/ and the times in run.json are ignored, because they depend on the clock.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo_unified.config import presets
from ppo_unified.errors import UsageError
from ppo_unified.runs import samples
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run
from ppo_unified.runs.series import Series
from ppo_unified.training import checkpoint

CPU = torch.device("cpu")
BY_CLOCK = ("time/", "system/")
# compared fields of run.json
STATUS = ("state", "reason", "step", "iteration", "score", "best_score", "best_step", "solved_step")


def find_unreadable(run: Run) -> list[str]:
    """List the unreadable files of a run, each with the reason. An incomplete last record is not an error."""
    reader = EventReader(run.path)
    reader.poll()
    found = list(reader.damage.values())
    attempts: list[Callable[[], object]] = [run.read_status, partial(presets.from_file, run.config)]
    attempts += [partial(samples.read, run, iteration) for iteration in samples.iterations(run)]
    attempts += [partial(samples.read_responses, run), partial(checkpoint.find_best, run)]
    for step in checkpoint.steps(run):
        attempts.append(partial(checkpoint.check, checkpoint.checkpoint_folder(run, step)))
        attempts.append(partial(checkpoint.load_policy, run, step, CPU))
    attempts.append(partial(checkpoint.load_newest, run, CPU))
    for attempt in attempts:
        try:
            attempt()
        except UsageError as error:
            found.append(str(error))
    return found


def find_differences(run: Run, other: Run) -> list[str]:
    """List the differences between two runs, compared bit for bit."""
    return [
        *_compare_status(run, other),
        *_compare_metrics(run, other),
        *_compare_samples(run, other),
        *_compare_checkpoints(run, other),
    ]


def _compare_status(run: Run, other: Run) -> Iterator[str]:
    one, two = run.read_status(), other.read_status()
    for name in STATUS:
        if getattr(one, name) != getattr(two, name):
            yield f"run.json: {name} is {getattr(one, name)!r} instead of {getattr(two, name)!r}"


def _compare_metrics(run: Run, other: Run) -> Iterator[str]:
    one, two = _read_curves(run), _read_curves(other)
    for tag in sorted(one.keys() | two.keys()):
        if tag not in one or tag not in two:
            yield f"{tag}: only in {(run if tag in one else other).name}"
            continue
        if np.any(np.diff(one[tag].steps) <= 0):
            yield f"{tag}: steps do not increase"
        if not np.array_equal(one[tag].steps, two[tag].steps):
            yield f"{tag}: {_describe_steps(one[tag].steps, two[tag].steps)}"
        elif not np.array_equal(one[tag].values, two[tag].values, equal_nan=True):
            at = int(np.flatnonzero(one[tag].values != two[tag].values)[0])
            yield f"{tag}: at step {one[tag].steps[at]}, {one[tag].values[at]} instead of {two[tag].values[at]}"


def _describe_steps(one: np.ndarray, two: np.ndarray) -> str:
    only, missing = np.setdiff1d(one, two).tolist(), np.setdiff1d(two, one).tolist()
    return f"{len(one)} points instead of {len(two)}; extra steps {only[:3]}, missing steps {missing[:3]}"


def _read_curves(run: Run) -> Mapping[str, Series]:
    reader = EventReader(run.path)
    reader.poll()
    return {tag: curve for tag, curve in reader.series.items() if not tag.startswith(BY_CLOCK)}


def _compare_samples(run: Run, other: Run) -> Iterator[str]:
    if samples.iterations(run) != samples.iterations(other):
        yield f"samples: iterations {samples.iterations(run)} instead of {samples.iterations(other)}"
        return
    for iteration in samples.iterations(run):
        one, two = (_comparable_fields(samples.read(found, iteration)) for found in (run, other))
        different = sorted(name for name in one.keys() | two.keys() if not _equal(one.get(name), two.get(name)))
        if different:
            yield f"samples of iteration {iteration}: different {', '.join(different)}"
    if samples.read_responses(run) != samples.read_responses(other):
        yield "samples: different responses"


def _comparable_fields(stored: samples.StoredIteration) -> dict[str, Any]:
    single = {name: getattr(stored, name) for name in samples.SINGLE}
    single["metrics"] = {tag: x for tag, x in stored.metrics.items() if not tag.startswith(BY_CLOCK)}
    return single | stored.columns


def _compare_checkpoints(run: Run, other: Run) -> Iterator[str]:
    one, two = checkpoint.find_best(run), checkpoint.find_best(other)
    if one != two:
        yield f"checkpoints: the best is {one} instead of {two}"
    elif one and not _equal(*(checkpoint.load_policy(found, one[0], CPU) for found in (run, other))):
        yield f"best checkpoint (step {one[0]}): different weights"
    ours, theirs = checkpoint.load_newest(run, CPU), checkpoint.load_newest(other, CPU)
    if ours is None or theirs is None or ours.meta.step != theirs.meta.step:
        yield f"newest checkpoint: step {ours and ours.meta.step} instead of {theirs and theirs.meta.step}"
        return
    if not _equal(ours.policy, theirs.policy):
        yield f"newest checkpoint (step {ours.meta.step}): different weights"
    for key in sorted((ours.trainer.keys() | theirs.trainer.keys()) - {"elapsed_s"}):
        if not _equal(ours.trainer.get(key), theirs.trainer.get(key)):
            yield f"newest checkpoint (step {ours.meta.step}): different state of {key}"


def _equal(one: Any, two: Any) -> bool:
    """Return True if two nested structures of tensors, arrays and plain values are bit-for-bit equal."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_equal, one, two))
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and one.numpy().tobytes() == two.numpy().tobytes()
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    return type(one) is type(two) and (json.dumps(one) == json.dumps(two) if isinstance(one, float) else one == two)


def main(folders: Sequence[str]) -> int:
    """Print the differences between two run folders. Return 1 if there are any, else 0."""
    one, two = (Run(Path(folder)) for folder in folders)
    found = [*find_unreadable(one), *find_unreadable(two), *find_differences(one, two)]
    print(
        "\n".join(found)
        or f"{one.path} and {two.path}: {len(_read_curves(one))} metrics, the samples and the weights are equal"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
