"""Read and write checkpoints. Each checkpoint is a folder with these files:

    policy.safetensors     the policy's weights only; can be loaded on any device
    trainer.safetensors    all other tensors
    trainer.json           all other values that resuming needs
    meta.json              the step, score and versions, the size and checksum of each other file, and its own checksum

A checkpoint is written under a temporary name, synced, verified and renamed, so a crash cannot leave a partial one.
Loading executes no code. If a checkpoint is damaged, the next older one is loaded instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

import google_crc32c
import torch
from safetensors import SafetensorError

from ppo_unified.errors import UsageError
from ppo_unified.parsing import parse_fields, parse_json
from ppo_unified.runs import durable, samples
from ppo_unified.runs.durable import Checksum
from ppo_unified.runs.folder import CHECKPOINT, Run, to_json
from ppo_unified.text import print_err
from ppo_unified.training.tensor_json import encode_tensors, join, read_tensors, split

POLICY, TENSORS, STATE, META = "policy.safetensors", "trainer.safetensors", "trainer.json", "meta.json"
FORMAT = 2
MAX_META_BYTES = 1 << 20  # maximum size of meta.json in bytes
DAMAGED, TEMPORARY = ".damaged", ".tmp"  # name suffixes of damaged checkpoints and of unfinished files

T = TypeVar("T")


class DamagedCheckpointError(UsageError):
    """A checkpoint cannot be loaded. The message names the file and the problem."""


@dataclass(frozen=True)
class Meta:
    """The content of meta.json."""

    step: int
    iteration: int = 0
    time: float = 0.0  # seconds since the epoch
    score: float | None = None  # score of the evaluation at this step; None if there was no evaluation
    best: bool = False  # True if the score was the run's best at that time
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Checksum] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The content of a complete checkpoint."""

    meta: Meta
    policy: dict[str, Any]
    trainer: dict[str, Any]


def save(run: Run, policy: Mapping[str, Any], trainer: Mapping[str, Any], meta: Meta) -> Path:
    """Write a new checkpoint and return its folder. Existing checkpoints remain unchanged, even those of the same step.

    Raises OSError if the checkpoint cannot be written, DamagedCheckpointError if its verification fails, and TypeError
    if the state contains unsupported types.
    """
    if not run.checkpoints.is_dir():
        run.checkpoints.mkdir()
        durable.sync_folder(run.path)
    last = max((writing for step, writing, _ in run.checkpoint_folders() if step == meta.step), default=-1)
    final = run.checkpoints / (f"{meta.step:012d}" + (f".{last + 1}" if last >= 0 else ""))
    temporary = run.checkpoints / f".{final.name}.{os.getpid()}{TEMPORARY}"
    try:
        if temporary.exists():
            durable.remove(temporary)
        temporary.mkdir()
        _write(temporary, policy, trainer, meta)
        durable.sync_folder(temporary)
        check(temporary)
        durable.rename(temporary, final)
    except BaseException:
        with suppress(OSError):  # if this fails, the next trainer removes the folder
            durable.remove(temporary)
        raise
    return final


def _write(folder: Path, policy: Mapping[str, Any], trainer: Mapping[str, Any], meta: Meta) -> None:
    document, tensors = split(dict(trainer))
    text = json.dumps(document, allow_nan=False).encode("ascii")
    parts = ((POLICY, encode_tensors(policy)), (TENSORS, encode_tensors(tensors)), (STATE, [text]))
    files = {name: durable.write_file(folder / name, chunks) for name, chunks in parts}
    durable.write_file(folder / META, [_encode_meta(meta, files)])


def _encode_meta(meta: Meta, files: Mapping[str, Checksum]) -> bytes:
    named = {name: {"size": size, "crc32c": f"{crc:08x}"} for name, (size, crc) in files.items()}
    table = {"format": FORMAT} | vars(meta) | {"versions": dict(meta.versions), "files": named}
    table = json.loads(to_json(table))  # the checksum must match the values that will be read
    return to_json(table | {"crc32c": _checksum(table)}).encode("ascii")


def _checksum(table: Mapping[str, Any]) -> str:
    return f"{google_crc32c.value(json.dumps(table, sort_keys=True).encode('ascii')):08x}"


def read_meta(folder: Path) -> Meta:
    """Read and validate a checkpoint's meta.json. Raises DamagedCheckpointError if it is invalid."""
    path = folder / META
    try:
        text = durable.read_prefix(path, MAX_META_BYTES)
        if len(text) > MAX_META_BYTES:
            raise ValueError(f"expected at most {MAX_META_BYTES:,} bytes")
        meta = _parse_meta(parse_json(text.decode("ascii")))
        named = CHECKPOINT.fullmatch(folder.name)  # a temporary folder does not match
        if named and int(named[1]) != meta.step:
            raise ValueError(f"expected step {int(named[1])}, got {meta.step}")
        return meta
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path}: file not found") from None
    except OSError as error:
        raise DamagedCheckpointError(f"{path}: cannot read the file ({error.strerror})") from None
    except ValueError as error:
        raise DamagedCheckpointError(f"{path}: the file is damaged ({_describe(error)})") from None


class _Header(NamedTuple):
    """The fields of meta.json that are not in Meta."""

    format: int
    crc32c: str  # hexadecimal checksum of all other fields


class _FileEntry(NamedTuple):
    size: int
    crc32c: str  # hexadecimal


def _parse_meta(table: Any) -> Meta:
    """Validate the content of meta.json. Raises ValueError for content that `save` cannot have written."""
    header = read_table(table, _Header)
    if header.crc32c != _checksum({key: value for key, value in table.items() if key != "crc32c"}):
        raise ValueError("wrong checksum")
    if header.format > FORMAT:  # check this before all other fields: a later version may change their types
        raise ValueError(f"format {header.format} was written by a later version of this program")
    meta = read_table(table, Meta)
    entries = {name: read_table(entry, _FileEntry) for name, entry in meta.files.items()}
    return replace(meta, files={name: Checksum(entry.size, int(entry.crc32c, 16)) for name, entry in entries.items()})


def read_table(table: Any, cls: type[T]) -> T:
    """Create an instance of `cls` from a table of its fields. Raises ValueError for missing fields and wrong types."""
    known = parse_fields(table, cls)
    missing = [name for name in get_type_hints(cls) if name not in known]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    return cls(**known)


def check(folder: Path, names: Iterable[str] = (POLICY, TENSORS, STATE)) -> Meta:
    """Verify meta.json and the files in `names`, and return the content of meta.json. Raises DamagedCheckpointError."""
    meta = read_meta(folder)
    for name in names:
        path, expected = folder / name, meta.files.get(name)
        try:
            found = path.stat().st_size
            if expected is None:
                raise DamagedCheckpointError(f"{path}: the file is not listed in {META}")
            if found != expected.size:
                raise DamagedCheckpointError(
                    f"{path}: the file is damaged (expected {expected.size:,} bytes, got {found:,})"
                )
            if durable.checksum(path) != expected:
                raise DamagedCheckpointError(
                    f"{path}: the file is damaged (its checksum differs from the one in {META})"
                )
        except FileNotFoundError:
            raise DamagedCheckpointError(f"{path}: file not found") from None
        except OSError as error:
            raise DamagedCheckpointError(f"{path}: cannot read the file ({error.strerror})") from None
    return meta


# Find and choose checkpoints.


def steps(run: Run) -> list[int]:
    """Return the steps of all checkpoints in ascending order."""
    return sorted({step for step, _, _ in run.checkpoint_folders()})


def checkpoint_folder(run: Run, step: int) -> Path:
    """Return the folder of the checkpoint at `step`. The folder might not exist."""
    own = [path for number, _, path in run.checkpoint_folders() if number == step]
    return own[-1] if own else run.checkpoints / f"{step:012d}"


def find_best(run: Run) -> tuple[int, float] | None:
    """Return the best undamaged checkpoint's step and score, or None if no checkpoint has a score."""
    return _find_best(_read_metas({step: path for step, _, path in run.checkpoint_folders()}))


def _read_metas(folders: Mapping[int, Path]) -> dict[int, Meta]:
    """Read the meta.json of each folder, skipping damaged files."""
    metas = {}
    for step, folder in folders.items():
        with suppress(DamagedCheckpointError):
            metas[step] = read_meta(folder)
    return metas


def _find_best(metas: Mapping[int, Meta]) -> tuple[int, float] | None:
    """Return the step and score of the latest checkpoint that was the best when it was written, or None."""
    found = [(step, meta.score) for step, meta in metas.items() if meta.best and meta.score is not None]
    return max(found, default=None)


def best_step(run: Run) -> int | None:
    """Return the step of the best checkpoint, or None if no checkpoint has a score."""
    found = find_best(run)
    return found[0] if found else None


def choose(run: Run, which: str) -> int:
    """Return the step for 'best', 'latest' or a step number. If no checkpoint has a score, 'best' means 'latest'.

    If the policy of 'best' or 'latest' is damaged, print a warning and choose the newest checkpoint with an intact
    policy. Raises UsageError for an unknown checkpoint, and DamagedCheckpointError if the numbered checkpoint or every
    checkpoint is damaged.
    """
    there = steps(run)
    if not there:
        raise UsageError(f"{run.checkpoints}: no checkpoint has been written yet")
    if which in map(str, there):
        check(checkpoint_folder(run, int(which)), [POLICY])
        return int(which)
    if which not in ("best", "latest"):
        raise UsageError(
            f"{run.path}: checkpoint {which[:40]!r} not found; available: best, latest, {', '.join(map(str, there))}"
        )
    order = there[::-1]
    wanted = best_step(run) if which == "best" else None
    if wanted in there:
        order = [wanted, *(step for step in order if step != wanted)]
    return _load_first_undamaged(run, order, lambda folder: check(folder, [POLICY]).step)


def _load_first_undamaged(run: Run, order: list[int], load: Callable[[Path], T]) -> T:
    """Return the result of `load` for the first undamaged checkpoint. If any were skipped, print a single warning."""
    damage: list[str] = []
    for step in order:
        try:
            loaded = load(checkpoint_folder(run, step))
        except DamagedCheckpointError as error:
            damage.append(str(error))
            continue
        if damage:
            print_err(f"{'; '.join(damage)}; using the checkpoint of step {step} instead")
        return loaded
    raise DamagedCheckpointError(
        f"{run.checkpoints}: every checkpoint is damaged; restore one from a backup, or delete this folder and resume "
        f"from step 0 ({'; '.join(damage)})"
    )


# Load checkpoints.


def load_policy(run: Run, step: int, device: torch.device) -> dict[str, Any]:
    """Load only the policy's weights from a checkpoint. Raises DamagedCheckpointError."""
    folder = checkpoint_folder(run, step)
    check(folder, [POLICY])
    return _load_tensors(folder / POLICY, device)


def load(folder: Path, device: torch.device) -> LoadedCheckpoint:
    """Load the checkpoint in a folder: the policy's weights to `device`, and everything else to the CPU.

    Raises DamagedCheckpointError.
    """
    cpu = torch.device("cpu")
    meta = check(folder)
    try:
        trainer = join(_read_state(folder), _load_tensors(folder / TENSORS, cpu))
        if not isinstance(trainer, dict):
            raise ValueError(f"expected a JSON object, got a {type(trainer).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{folder / STATE}: cannot load the file ({_describe(error)})") from None
    return LoadedCheckpoint(meta, _load_tensors(folder / POLICY, device), trainer)


def load_adapter_state(folder: Path) -> dict[str, Any]:
    """Load the adapter's state from a checkpoint, with a placeholder for each tensor. Raises DamagedCheckpointError."""
    try:
        return dict(_read_state(folder)["adapter"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedCheckpointError(f"{folder / STATE}: cannot load the file ({_describe(error)})") from None


def _read_state(folder: Path) -> Any:
    return json.loads((folder / STATE).read_bytes())


def load_newest(run: Run, device: torch.device) -> LoadedCheckpoint | None:
    """Load the newest undamaged checkpoint, or return None if the run has no checkpoint.

    Damaged checkpoints that are newer are reported on stderr and renamed; `prune` removes them later. Raises
    DamagedCheckpointError if all are damaged.
    """
    there = steps(run)
    if not there:
        return None
    loaded = _load_first_undamaged(run, there[::-1], lambda folder: load(folder, device))
    for step, _, path in run.checkpoint_folders():
        if step > loaded.meta.step:
            _rename_damaged(path)
    return loaded


def _rename_damaged(folder: Path) -> None:
    to = folder.with_name(folder.name + DAMAGED)
    if to.exists():
        durable.remove(to)
    durable.rename(folder, to)


def _load_tensors(path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    try:
        return read_tensors(path, device)
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path}: cannot load the file ({_describe(error)})") from None


# Remove checkpoints.


def prune(run: Run, keep: int) -> None:
    """Remove all checkpoints except the `keep` newest, the best one, and the one before the newest recorded iteration.
    Also remove older damaged checkpoints.

    A checkpoint with an unreadable meta.json is kept because it may be the best. Raises OSError.
    """
    there = {step: path for step, _, path in run.checkpoint_folders()}
    readable = _read_metas(there)  # read once, so that all lines below use the same result
    newest_ones, best_one, recorded = list(there)[-keep:], _find_best(readable), samples.iterations(run)[-1:]
    needed = {*newest_ones, *([best_one[0]] if best_one else [])}
    needed |= {step for step, meta in readable.items() if meta.iteration + 1 in recorded}
    unneeded = {there[step] for step in readable if step not in needed}
    for step, _, path in run.checkpoint_folders():
        if path in unneeded or path != there.get(step, path):
            _remove(path)
    for path in run.checkpoints.glob(f"*{DAMAGED}"):
        found = CHECKPOINT.fullmatch(path.name.removesuffix(DAMAGED))
        if found and newest_ones and int(found[1]) <= newest_ones[-1]:
            _remove(path)


def _remove(folder: Path) -> None:
    """Remove a checkpoint. Rename it first, so that a crash cannot leave a partly deleted checkpoint."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}{TEMPORARY}")
    durable.rename(folder, temporary)
    durable.remove(temporary)


def find_leftovers(run: Run) -> Iterator[Path]:
    """Yield the temporary files that killed processes left in a run folder. Only the run's trainer may remove them."""
    for name in ("run.json", "config.toml", "config.begun.toml"):
        yield from run.path.glob(f".{name}.*{TEMPORARY}")
    yield from (run.path / "samples").glob(f".*{TEMPORARY}")
    yield from run.checkpoints.glob(f".*{TEMPORARY}")


def remove_leftovers(run: Run) -> None:
    """Remove the temporary files of killed trainers. Raises OSError."""
    for path in list(find_leftovers(run)):
        durable.remove(path) if path.is_dir() else path.unlink(missing_ok=True)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
