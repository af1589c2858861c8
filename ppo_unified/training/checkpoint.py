"""Checkpoints: a folder per step, written aside, synced, read back and renamed: one is either whole or not there.

    policy.safetensors     the policy's weights alone, for any device and process
    trainer.safetensors    every other tensor, and
    trainer.json           everything else that going on needs
    meta.json              step, score, versions, and size and checksum of the other files and of itself

Loading executes nothing. A checkpoint that turns out damaged is passed over for the one before.
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
from ppo_unified.runs import durable
from ppo_unified.runs.durable import Checksum
from ppo_unified.runs.folder import CHECKPOINT, Run, to_json
from ppo_unified.text import print_err
from ppo_unified.training.tensor_json import encode_tensors, join, read_tensors, split

POLICY, TENSORS, STATE, META = "policy.safetensors", "trainer.safetensors", "trainer.json", "meta.json"
FORMAT = 2
MOST_META = 1 << 20  # bytes of a meta.json
DAMAGED, ASIDE = ".damaged", ".tmp"  # how the names end of what a trainer found damaged, and of what nobody finished

T = TypeVar("T")


class DamagedCheckpointError(UsageError):
    """A checkpoint that can't be loaded: which file, and what is wrong with it."""


@dataclass(frozen=True)
class Meta:
    """What meta.json says."""

    step: int
    iteration: int = 0
    time: float = 0.0  # seconds since the epoch
    score: float | None = None  # of the evaluation at this step; None without one
    best: bool = False  # that score was the best until then
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Checksum] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A whole checkpoint."""

    meta: Meta
    policy: dict[str, Any]
    trainer: dict[str, Any]


def save(run: Run, policy: Mapping[str, Any], trainer: Mapping[str, Any], meta: Meta) -> Path:
    """Write a checkpoint beside those that are there, even one of the same step, and return its folder.

    Raises OSError if it cannot be written, DamagedCheckpointError if it reads back differently, TypeError for a state
    of unsupported types. Earlier checkpoints stay intact.
    """
    if not run.checkpoints.is_dir():
        run.checkpoints.mkdir()
        durable.sync_folder(run.path)
    last = max((writing for step, writing, _ in run.checkpoint_folders() if step == meta.step), default=-1)
    final = run.checkpoints / (f"{meta.step:012d}" + (f".{last + 1}" if last >= 0 else ""))
    aside = run.checkpoints / f".{final.name}.{os.getpid()}{ASIDE}"
    try:
        if aside.exists():
            durable.remove(aside)
        aside.mkdir()
        _write(aside, policy, trainer, meta)
        durable.sync_folder(aside)
        check(aside)
        durable.rename(aside, final)
    except BaseException:
        with suppress(OSError):  # else the next trainer removes it
            durable.remove(aside)
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
    table = json.loads(to_json(table))  # as it will be read
    return to_json(table | {"crc32c": _checksum(table)}).encode("ascii")


def _checksum(table: Mapping[str, Any]) -> str:
    return f"{google_crc32c.value(json.dumps(table, sort_keys=True).encode('ascii')):08x}"


def read_meta(folder: Path) -> Meta:
    """Raises DamagedCheckpointError."""
    path = folder / META
    try:
        text = durable.read_prefix(path, MOST_META)
        if len(text) > MOST_META:
            raise ValueError(f"it has more than {MOST_META:,} bytes")
        meta = _parse_meta(parse_json(text.decode("ascii")))
        named = CHECKPOINT.fullmatch(folder.name)  # not while it is written
        if named and int(named[1]) != meta.step:
            raise ValueError(f"it is of step {meta.step}")
        return meta
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path}: is missing") from None
    except OSError as error:
        raise DamagedCheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DamagedCheckpointError(f"{path}: is damaged ({_describe(error)})") from None


class _Seal(NamedTuple):
    """What stands in meta.json beside the fields of Meta."""

    format: int
    crc32c: str  # of the rest of the table, hexadecimal


class _FileEntry(NamedTuple):
    size: int
    crc32c: str  # hexadecimal


def _parse_meta(table: Any) -> Meta:
    """The content of meta.json. Raises ValueError for anything that `save` cannot have written."""
    seal = read_table(table, _Seal)
    if seal.crc32c != _checksum({key: value for key, value in table.items() if key != "crc32c"}):
        raise ValueError("its checksum is not its own")
    if seal.format > FORMAT:  # first of all: a later version may mean other things by other kinds
        raise ValueError(f"format {seal.format} was written by a later version of this program")
    meta = read_table(table, Meta)
    entries = {name: read_table(entry, _FileEntry) for name, entry in meta.files.items()}
    return replace(meta, files={name: Checksum(entry.size, int(entry.crc32c, 16)) for name, entry in entries.items()})


def read_table(table: Any, cls: type[T]) -> T:
    """An instance of `cls` from a table of its fields. Raises ValueError if one is missing or of another type."""
    known = parse_fields(table, cls)
    missing = [name for name in get_type_hints(cls) if name not in known]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    return cls(**known)


def check(folder: Path, names: Iterable[str] = (POLICY, TENSORS, STATE)) -> Meta:
    """Read meta.json after verifying it and the named files. Raises DamagedCheckpointError, naming the file."""
    meta = read_meta(folder)
    for name in names:
        path, expected = folder / name, meta.files.get(name)
        try:
            found = path.stat().st_size
            if expected is None:
                raise DamagedCheckpointError(f"{path}: is a file that {META} does not name")
            if found != expected.size:
                raise DamagedCheckpointError(f"{path}: has {found:,} bytes, not {expected.size:,}")
            if durable.checksum(path) != expected:
                raise DamagedCheckpointError(f"{path}: is damaged (its checksum is not the one in {META})")
        except FileNotFoundError:
            raise DamagedCheckpointError(f"{path}: is missing") from None
        except OSError as error:
            raise DamagedCheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    return meta


# which there are


def steps(run: Run) -> list[int]:
    """The steps of all checkpoints, ascending."""
    return sorted({step for step, _, _ in run.checkpoint_folders()})


def checkpoint_folder(run: Run, step: int) -> Path:
    """The folder of a step's checkpoint, whether it is there or not."""
    own = [path for number, _, path in run.checkpoint_folders() if number == step]
    return own[-1] if own else run.checkpoints / f"{step:012d}"


def find_best(run: Run) -> tuple[int, float] | None:
    """Step and score of the best checkpoint that is there; None where none was evaluated. Damaged ones are left out."""
    return _find_best(_read_metas({step: path for step, _, path in run.checkpoint_folders()}))


def _read_metas(folders: Mapping[int, Path]) -> dict[int, Meta]:
    """What the metas of some folders say, of those that can be read."""
    metas = {}
    for step, folder in folders.items():
        with suppress(DamagedCheckpointError):
            metas[step] = read_meta(folder)
    return metas


def _find_best(metas: Mapping[int, Meta]) -> tuple[int, float] | None:
    """Step and score of the last that became the best."""
    found = [(step, meta.score) for step, meta in metas.items() if meta.best and meta.score is not None]
    return max(found, default=None)


def best_step(run: Run) -> int | None:
    """The step of the best checkpoint that is there; None where none was evaluated."""
    found = find_best(run)
    return found[0] if found else None


def choose(run: Run, which: str) -> int:
    """The step that 'best' (the newest where nothing was evaluated yet), 'latest' or a number means.

    Where that policy is damaged, the newest whole one stands in for best and latest, and stderr says so.
    Raises UsageError naming the steps there are; DamagedCheckpointError where a number's checkpoint is, or all are.
    """
    there = steps(run)
    if not there:
        raise UsageError(f"{run.checkpoints}: there is no checkpoint yet")
    if which in map(str, there):
        check(checkpoint_folder(run, int(which)), [POLICY])
        return int(which)
    if which not in ("best", "latest"):
        raise UsageError(
            f"{run.path}: no checkpoint {which[:40]!r}; there are best, latest and {', '.join(map(str, there))}"
        )
    order = there[::-1]
    wanted = best_step(run) if which == "best" else None
    if wanted in there:
        order = [wanted, *(step for step in order if step != wanted)]
    return _load_first_whole(run, order, lambda folder: check(folder, [POLICY]).step)


def _load_first_whole(run: Run, order: list[int], load: Callable[[Path], T]) -> T:
    """What `load` makes of the first folder that it does not find damaged; what was damaged is said once."""
    damage: list[str] = []
    for step in order:
        try:
            loaded = load(checkpoint_folder(run, step))
        except DamagedCheckpointError as error:
            damage.append(str(error))
            continue
        if damage:
            print_err(f"{'; '.join(damage)}; the checkpoint of step {step} is taken instead")
        return loaded
    raise DamagedCheckpointError(
        f"{run.checkpoints}: none of the {len(order)} checkpoints can be loaded: {'; '.join(damage)}; put a copy "
        "of one back, or delete that folder to start at step 0"
    )


# loading


def load_policy(run: Run, step: int, device: torch.device) -> dict[str, Any]:
    """A policy's weights without the rest of the checkpoint. Raises DamagedCheckpointError."""
    folder = checkpoint_folder(run, step)
    check(folder, [POLICY])
    return _load_tensors(folder / POLICY, device)


def load_newest(run: Run, device: torch.device) -> LoadedCheckpoint | None:
    """The newest whole checkpoint, its weights on `device` and the rest on the CPU; None where there never was one.

    Damaged newer ones are reported on stderr and set aside until a later one is written. Raises DamagedCheckpointError
    if all are damaged.
    """
    there = steps(run)
    if not there:
        return None
    loaded = _load_first_whole(run, there[::-1], lambda folder: _load(folder, device))
    for step, _, path in run.checkpoint_folders():
        if step > loaded.meta.step:
            _set_aside(path)
    return loaded


def _set_aside(folder: Path) -> None:
    to = folder.with_name(folder.name + DAMAGED)
    if to.exists():
        durable.remove(to)
    durable.rename(folder, to)


def _load(folder: Path, device: torch.device) -> LoadedCheckpoint:
    cpu = torch.device("cpu")
    meta = check(folder)
    try:
        document = json.loads((folder / STATE).read_bytes())
        trainer = join(document, _load_tensors(folder / TENSORS, cpu))
        if not isinstance(trainer, dict):
            raise ValueError("it holds no table")
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{folder / STATE}: cannot be loaded ({_describe(error)})") from None
    return LoadedCheckpoint(meta, _load_tensors(folder / POLICY, device), trainer)


def _load_tensors(path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    try:
        return read_tensors(path, device)
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path}: cannot be loaded ({_describe(error)})") from None


# tidying


def prune(run: Run, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best one, and what older damage was set aside.

    One whose meta.json can't be read is kept: it may be the best. Raises OSError.
    """
    there = {step: path for step, _, path in run.checkpoint_folders()}
    readable = _read_metas(there)  # read once: what can't be read now isn't taken for unimportant a moment later
    newest_ones, best_one = list(there)[-keep:], _find_best(readable)
    unneeded = {there[step] for step in readable if step not in newest_ones and (not best_one or step != best_one[0])}
    for step, _, path in run.checkpoint_folders():
        if path in unneeded or path != there.get(step, path):
            _remove(path)
    for path in run.checkpoints.glob(f"*{DAMAGED}"):
        found = CHECKPOINT.fullmatch(path.name.removesuffix(DAMAGED))
        if found and newest_ones and int(found[1]) <= newest_ones[-1]:
            _remove(path)


def _remove(folder: Path) -> None:
    """Out of sight first: a crash in the middle leaves no half checkpoint."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}{ASIDE}")
    durable.rename(folder, aside)
    durable.remove(aside)


def find_leftovers(run: Run) -> Iterator[Path]:
    """What killed processes have left unfinished in a run's folders; only its trainer may remove them."""
    for name in ("run.json", "config.toml", "config.begun.toml"):
        yield from run.path.glob(f".{name}.*{ASIDE}")
    yield from (run.path / "samples").glob(f".*{ASIDE}")
    yield from run.checkpoints.glob(f".*{ASIDE}")


def remove_leftovers(run: Run) -> None:
    """Remove the leftovers of killed trainers. Raises OSError."""
    for path in list(find_leftovers(run)):
        durable.remove(path) if path.is_dir() else path.unlink(missing_ok=True)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
