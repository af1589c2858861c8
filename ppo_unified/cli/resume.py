"""`resume`: resume a run in its folder, optionally with changed options."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ppo_unified.cli.common import add_detach, add_run, add_runs_folder, add_yes, confirm
from ppo_unified.cli.run_training import EXIT, describe_background, run_training
from ppo_unified.config import presets
from ppo_unified.config.schema import RunConfig, typed_options
from ppo_unified.config.values import WHY_NOT_AUTO, Auto, format_flag, show_value
from ppo_unified.errors import UsageError
from ppo_unified.runs import control, preparation
from ppo_unified.runs.folder import ACTIVE, Run, Status, find, to_json, write_atomically
from ppo_unified.runs.signals import Interrupted, StopRequest
from ppo_unified.text import clean, print_err, print_out

TOTALS = ("total_steps", "total_iterations")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "To change an option, add --section.key VALUE, such as --optim.lr 1e-4.\n"
        "To list all options with their defaults, run: ppo-unified train PRESET --help"
    )
    add_run(parser)
    parser.add_argument("--total-steps", metavar="N", help="new total number of steps (default: unchanged)")
    parser.add_argument("--total-iterations", metavar="N", help="new total number of iterations (default: unchanged)")
    add_detach(parser)
    add_yes(parser, "before restarting a run without a checkpoint at step 0")
    add_runs_folder(parser)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Resume a run from its newest checkpoint. If it has none, restart it at step 0 after the user confirms.

    A run without a checkpoint restarts without confirmation if it has recorded no step.
    """
    run = find(options.run, options.folder)
    totals = {name: getattr(options, name) for name in TOTALS}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in totals.items() if value is not None]
    config, changes = _change(run, [*flags, *rest], options.parser.flags)
    run.check_no_links()
    if not (options.yes or _confirm_restart(run)):
        return EXIT["stopped"]
    if options.detach:
        print_out(clean(control.resume(run, *flags, *rest).path))
        print_err(describe_background(run))
        return 0
    stop = StopRequest()
    with stop.handle_signals():
        try:
            with stop.interruptible():  # the run's last trainer may still be exiting
                status = preparation.reopen(run)
        except Interrupted:
            return EXIT["stopped"]
        try:
            undo = _write_resumed_state(run, config, status, changes)
        except BaseException:
            run.release()
            raise
        if not run.checkpoint_folders():
            found = [clean(path.name) for path in run.checkpoints.glob("*") if not path.name.startswith(".")]
            beside = f" ({run.checkpoints} contains {', '.join(sorted(found))})" if found else ""
            print_err(f"{run.name} has no checkpoint{beside}; training starts at step 0")
        return run_training(run, config, stop, undo)


def _confirm_restart(run: Run) -> bool:
    """Return False if the resume would discard all steps of the run and the user does not confirm this."""
    status = run.read_status()
    if status.state in ACTIVE and run.is_locked():
        return True  # the run is training, so the resume is rejected later
    loss = control.describe_restart(run, status)
    return not loss or confirm(clean(f"{loss}. Restart?"), f"{run.path}: {loss}")


def _write_resumed_state(
    run: Run, config: RunConfig, status: Status, changes: dict[str, list[Any]]
) -> Callable[[], object]:
    """Write run.json and config.toml for a run that resumes with `config`, and return a function that undoes this.

    run.json is written first, so that it always records a change before the change is made. If a file cannot be
    written, nothing changes and UsageError is raised.
    """
    before, written = run.read_status(), run.config.read_text(encoding="utf-8")
    _drop_unapplied_changes(status, presets.from_file(run.config))
    first_change = bool(changes) and not run.original_config.exists()

    def undo() -> None:
        run.write_status(before)
        write_atomically(run.config, written)
        if first_change:
            run.original_config.unlink(missing_ok=True)

    if changes:
        status.resumes[-1]["changed"] = changes
    if changes.keys() - TOTALS:
        status.estimate = {}  # of other options
    try:
        run.write_status(preparation.claim(status, config))
        if first_change:
            write_atomically(run.original_config, written)
        if changes:
            write_atomically(run.config, config.to_toml())
    except OSError as error:
        with suppress(OSError):
            undo()
        raise UsageError(f"{run.path}: cannot write to the run folder ({error.strerror})") from None
    return undo


def _drop_unapplied_changes(status: Status, config: RunConfig) -> None:
    """Remove changes that the previous resume recorded but did not write to config.toml before it was killed."""
    options = config.flatten()
    for entry in status.resumes[-2:-1]:
        recorded = entry.get("changed")
        if isinstance(recorded, dict) and any(
            to_json(options.get(option)) != to_json(values[-1])
            for option, values in recorded.items()
            if isinstance(values, list) and values
        ):
            del entry["changed"]


def _change(run: Run, flags: Sequence[str], command_flags: Sequence[str]) -> tuple[RunConfig, dict[str, list[Any]]]:
    """Return a run's configuration with the flags applied, and the changed options as {option: [old, new]}.

    Raises UsageError for an option that cannot change on resume, and if the run has ended and no new limit is given.
    """
    original, status = presets.from_file(run.config), run.read_status()
    config = _configure(original, flags, run.name, command_flags) if flags else original
    changes = _find_changes(run, original, config)
    extended = any(getattr(config, name) != getattr(original, name) for name in TOTALS)
    solved = original.stop_when_solved and status.solved_step is not None
    if status.state == "finished" and not extended:
        how = f"was solved at {status.solved_step:,} steps" if solved else f"has finished: {status.reason}"
        raise UsageError(f"{run.name} {how}; to train it further, add --total-steps N (above {status.step})")
    if extended and solved and config.eval.threshold == original.eval.threshold:
        config = presets.apply_changes(config, {"stop_when_solved": False}, "resume")
        changes["stop_when_solved"] = [True, False]
    if extended and config.total_steps and status.step >= config.total_steps:
        raise UsageError(
            f"--total-steps: expected an integer above {status.step}, the current step of {run.name}, "
            f"got {config.total_steps}"
        )
    return config, changes


def _find_changes(run: Run, original: RunConfig, config: RunConfig) -> dict[str, list[Any]]:
    """Return the changed options as {option: [old, new]}. Raises UsageError for an option that cannot change."""
    old, new, declared = original.flatten(), config.flatten(), typed_options(type(config))
    changes = {option: [old[option], new[option]] for option in new if new[option] != old[option]}
    for option, (was, wanted) in changes.items():
        if why := WHY_NOT_AUTO if isinstance(wanted, Auto) else original.why_fixed(option):
            change = f"{option} cannot be changed from {show_value(was)} to {show_value(wanted)} on resume"
            flag = format_flag(option, wanted, declared[option])
            command = shlex.join(["ppo-unified", "train", str(run.config), *flag])
            raise UsageError(f"{run.name}: {change}, because {why}; start a new run: {command}")
    return changes


def _configure(config: RunConfig, flags: Sequence[str], name: str, command_flags: Sequence[str]) -> RunConfig:
    from ppo_unified.cli.flags import configure, read_flags

    prog, about = f"ppo-unified resume {name}", f"Options of the run {name}."
    return configure(config, read_flags(config, flags, prog, about, command_flags))
