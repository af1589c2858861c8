"""Name, create, reopen or discard a run folder. This happens before torch is imported, so that errors appear quickly.

A detached trainer also reports its folder to the process that started it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import socket
import stat
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

from ppo_unified.config import presets
from ppo_unified.config.grid import SEED
from ppo_unified.config.schema import RunConfig, typed_options
from ppo_unified.config.values import Auto, Kind, is_verbatim, kind_of
from ppo_unified.runs.background import DETACHED_VARIABLE
from ppo_unified.runs.folder import ACTIVE, Run, Status, create
from ppo_unified.runs.signals import why_ended

LEAVING_S = 10.0  # maximum seconds to wait for an ending trainer to release its lock
OMITTED = frozenset(  # options and sections that are not part of default names, because they do not change the method
    ["total_steps", "total_iterations", "stop_when_solved", "device", "threads", "checkpoint", "eval", "log"]
)
LONGEST_LABELS = 60  # characters of a default name before options are replaced by their number and a hash
LONGEST_VALUE = 24  # characters of the value of a text, list or table in a default name
LONGEST_VALID = 100  # characters of a valid name
_UNSAFE = re.compile(r"[^\w.+=@]+")
_FILE = re.compile(r"(?:.*/)?([^/]+?)(?:\.(?:jsonl|json|txt|toml|py))?/*")  # group 1: name without folder and suffix

C = TypeVar("C", bound=RunConfig)

PACKAGES = ("ppo-unified", "torch", "gymnasium", "transformers", "numpy", "tensorboard")


def prepare(
    config: RunConfig,
    runs: Path,
    name: str = "",
    command: Sequence[str] = (),
    *,
    init: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Any] | None = None,
    default: str = "",
) -> Run:
    """Create and lock a run folder that contains config.toml, command.txt and run.json.

    If `name` is empty, the folder gets the first unused name of default, default-2, ... If `default` is also empty, it
    is the `run_name` of the configuration. `init` and `sweep` are the entries of these names in run.json: the
    checkpoint that the run starts from, and the sweep that it is a trial of. Call `complete` first. If the folder
    cannot be created, raises UsageError and leaves no folder behind.
    """
    default = default or default_name(config, str((init or {}).get("run", "")))

    def fill(run: Run, final_name: str) -> None:
        run.acquire()
        run.config.write_text(config.to_toml(), encoding="utf-8")
        if command:
            run.command.write_text(shlex.join(command) + "\n", encoding="utf-8", errors="surrogateescape")
        status = Status(name=final_name, preset=config.origin, kind=config.kind, seed=config.seed)
        status.init, status.sweep = dict(init or {}), dict(sweep or {})
        run.write_status(claim(status, config))

    run = create(runs, name, default, fill)
    report_folder(run.path)
    return run


def complete(config: C) -> tuple[C, str]:
    """Check a configuration and choose its 'auto' options as `presets.complete` does, which may create an environment.

    A detached process stays detached, but child processes of the checks do not seem so.
    """
    report_descriptor()  # removes the variable that child processes would inherit
    return presets.complete(config)


def default_name(config: RunConfig, source: str = "") -> str:
    """Return the name of a run whose target is not given. Options must not be chosen yet, or the name contains them."""
    return run_name(config, presets.reload_target(config), source=source)


def run_name(config: RunConfig, base: RunConfig, varied: Collection[str] = (), name: str = "", source: str = "") -> str:
    """Return the name of a run, such as 'cartpole-lr3e-3-s1'.

    The name contains the name `source` of the run whose policy this run starts with, if there is one. Then it lists the
    options that differ between `config` and `base`, the target's configuration, except those in OMITTED, and the
    options `varied`, which differ between runs that are started together. Options are in the schema's order. The name
    depends only on their values and not on how the user typed them. If the user chose a `name`, it replaces the
    target's name, and only the varied options are added.
    """
    values, before = config.flatten(), base.flatten()
    declared = typed_options(type(config))
    chosen = [option for option in declared if option in varied or (not name and _is_changed(option, values, before))]
    keys = [option.rpartition(".")[2] for option in chosen]
    labels = [_label("init", source, "text")] if source and not name else []
    for key, option in zip(keys, chosen, strict=True):
        if option != SEED:
            value, kind = values[option], kind_of(declared[option])
            if is_verbatim(declared[option]):
                value, kind = " ".join(value), "text"
            labels.append(_label(option if keys.count(key) > 1 else key, value, kind))
    seed = [f"s{config.seed}"] if SEED in varied or not name else []
    start = name or config.origin
    tail = "-".join([*_shorten(labels, LONGEST_LABELS - len(start)), *seed])
    if labels and not name:
        start = start[: LONGEST_VALID - 1 - len(tail)]
    return "-".join(filter(None, [start, tail]))


def _is_changed(option: str, values: Mapping[str, object], before: Mapping[str, object]) -> bool:
    section, _, key = option.rpartition(".")
    return option != SEED and (section or key) not in OMITTED and values[option] != before.get(option)


def _label(key: str, value: Any, kind: Kind) -> str:
    """Return an option's part of a name: 'lr3e-3', 'no-anneal', 'objective-ratio', 'hidden64x64' or 'prompts-mine'."""
    key = key.replace(".", "-")
    if kind == "bool":
        return key if value else f"no-{key}"
    text = _format_short(value)
    if kind == "text" and (match := _FILE.fullmatch(text)):
        text = match[1]
    text = _UNSAFE.sub("-", text.strip())
    if kind in ("text", "list", "table"):
        text = text.strip("-.")[:LONGEST_VALUE].rstrip("-.")
    numeric = kind in ("int", "float", "list") and re.match(r"[-+.]?\d", text)
    return f"{key}{text}" if numeric else f"{key}-{text or 'none'}"


def _format_short(value: Any) -> str:
    """Format a value as short text. Equal values have the same text: 1000 and 1e3 become '1e3', 0.10 becomes '0.1'."""
    if isinstance(value, list):
        return ("-" if any(isinstance(element, str) for element in value) else "x").join(map(_format_short, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    if isinstance(value, (bool, Auto)) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    number = Decimal(repr(value + 0)).normalize()  # + 0 turns -0.0 into 0.0
    return min(f"{number:f}", f"{number:e}".replace("+", ""), key=len)


def _shorten(labels: Sequence[str], room: int) -> list[str]:
    """Keep the first labels, of at most `room` characters, and replace the others by their number and a hash."""
    kept: list[str] = []
    for label in labels:
        if sum(map(len, kept)) + len(kept) + len(label) > room:
            break
        kept.append(label)
    rest = labels[len(kept) :]
    if not rest:
        return kept
    digest = hashlib.sha256("\n".join(rest).encode()).hexdigest()[:6]
    return [*kept, f"+{len(rest)}-{digest}"]


def reopen(run: Run) -> Status:
    """Lock an existing run to resume it, and return its status with a new entry in `resumes`.

    Raises UsageError if another process trains the run, or if training would write through a symbolic link. If the
    trainer has written its final state but not yet released the lock, this function waits for it.
    """
    deadline = time.monotonic() + LEAVING_S
    while run.read_status().state not in ACTIVE and run.is_locked() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.check_no_links()
    run.acquire()
    status = run.read_status()
    entry: dict[str, Any] = {"time": time.time(), "step": status.step, "from_state": status.state}
    if status.state in ACTIVE:  # the previous process could not record its end
        entry |= {"ended": status.heartbeat, "reason": why_ended(run, status, "crashed")}
    status.resumes.append(entry)
    return status


def claim(status: Status, config: RunConfig) -> Status:
    """Set the fields of `status` for a run that starts in this process, and return it."""
    status.state, status.reason, status.traceback = "starting", "", ""
    status.total_steps, status.total_iterations = config.total_steps, config.total_iterations
    status.host, status.pid = socket.gethostname(), os.getpid()
    status.pid_started = psutil.Process().create_time()
    status.started = status.started or time.time()
    status.heartbeat = status.progressed = time.time()
    status.phase, status.phase_done = "starting", None
    status.versions = {"python": platform.python_version()} | _versions()
    return status


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # for example, this project itself if it runs from source
            continue
    return found


def discard(run: Run) -> None:
    """Remove the folder of a run that failed before training, unless it contains checkpoints.

    A detached process does not remove it. The process that started it does so after reading the error.
    """
    if not run.checkpoints.exists() and not is_detached():
        shutil.rmtree(run.path, ignore_errors=True)
    run.release()


# A detached process reports its folder in an open file that `background.Background` passes to it. The environment
# contains the file's descriptor. A pipe would break if the starting process ended first.


@cache
def report_descriptor() -> int | None:
    """Return the file descriptor to which a detached process reports its folder, or None if it is not detached.

    This also removes the variable from the environment, because child processes would otherwise seem detached.
    """
    text = os.environ.pop(DETACHED_VARIABLE, "")
    with suppress(OSError, ValueError, OverflowError):
        if (descriptor := int(text)) > 2 and stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
    return None


def is_detached() -> bool:
    """Return True if another process started this one in the background and reads its errors."""
    return report_descriptor() is not None


def report_folder(folder: Path) -> None:
    """Report this run's folder to the process that started this one, if this process is detached."""
    descriptor = report_descriptor()
    if descriptor is not None:
        os.write(descriptor, os.fsencode(folder) + b"\0")


def read_reported_folder(file: IO[bytes]) -> Path | None:
    """Return the folder that a detached process reported in `file`, or None if it has not reported yet."""
    path = os.pread(file.fileno(), 1 << 16, 0)  # pread, because the child process shares the file offset
    return Path(os.fsdecode(path[:-1])) if path.endswith(b"\0") else None
