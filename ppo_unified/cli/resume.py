"""`resume`: go on with a run in its folder, perhaps with other options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ppo_unified.cli.common import add_detach, add_run, add_runs_folder
from ppo_unified.cli.run_training import EXIT, run_training
from ppo_unified.config import presets
from ppo_unified.config.schema import RunConfig
from ppo_unified.errors import UsageError
from ppo_unified.runs import control, preparation
from ppo_unified.runs.folder import Run, Status, find, to_json, write_atomically
from ppo_unified.runs.signals import Interrupted, StopRequest
from ppo_unified.text import clean, print_err, print_out

TOTALS = ("total_steps", "total_iterations")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--total-steps", metavar="N", help="go on to this many steps instead of the first end")
    parser.add_argument("--total-iterations", metavar="N", help="go on to this many iterations")
    add_detach(parser)
    add_runs_folder(parser)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Go on from the newest checkpoint; from the start where there is none yet."""
    run = find(options.run, options.folder)
    totals = {name: getattr(options, name) for name in TOTALS}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in totals.items() if value is not None]
    if options.detach:
        print_out(clean(control.resume(run, *flags, *rest).path))
        return 0
    config, changes = _change(run, [*flags, *rest])
    stop = StopRequest()
    with stop.handle_signals():
        try:
            with stop.interruptible():  # it may have to wait for the run's last trainer
                status = preparation.reopen(run)
        except Interrupted:
            return EXIT["stopped"]
        try:
            undo = _write_claim(run, config, status, changes)
        except BaseException:
            run.release()
            raise
        if not run.checkpoint_folders():
            found = [clean(path.name) for path in run.checkpoints.glob("*") if not path.name.startswith(".")]
            beside = f" ({run.checkpoints} holds {', '.join(sorted(found))})" if found else ""
            print_err(f"{run.name} has no checkpoint{beside}: it starts at step 0")
        return run_training(run, config, stop, undo)


def _write_claim(run: Run, config: RunConfig, status: Status, changes: dict[str, list[Any]]) -> Callable[[], object]:
    """Make a locked run's files those of a run that goes on with `config`; what takes that back.

    run.json first, so that no change is ever made that it does not tell. Raises UsageError, with nothing changed, where
    they cannot be written.
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
    try:
        run.write_status(preparation.claim(status, config))
        if first_change:
            write_atomically(run.original_config, written)
        if changes:
            write_atomically(run.config, config.to_toml())
    except OSError as error:
        with suppress(OSError):
            undo()
        raise UsageError(f"{run.path}: cannot be written ({error.strerror})") from None
    return undo


def _drop_unapplied_changes(status: Status, config: RunConfig) -> None:
    """Remove changes from the previous resume's entry that config.toml never received: it was killed in between."""
    options = config.flatten()
    for entry in status.resumes[-2:-1]:
        recorded = entry.get("changed")
        if isinstance(recorded, dict) and any(
            to_json(options.get(option)) != to_json(values[-1])
            for option, values in recorded.items()
            if isinstance(values, list) and values
        ):
            del entry["changed"]


def _change(run: Run, flags: Sequence[str]) -> tuple[RunConfig, dict[str, list[Any]]]:
    """A run's configuration with the options that flags change, and these changes: {option: [from, to]}.

    Raises UsageError for an option that a run which has begun can't change, and where it has ended already.
    """
    begun, status = presets.from_file(run.config), run.read_status()
    config = _configure(begun, flags, run.name) if flags else begun
    further = any(getattr(config, name) != getattr(begun, name) for name in TOTALS)
    solved = begun.stop_when_solved and status.solved_step is not None
    if status.state == "finished" and not further:
        how = f"was solved at {status.solved_step:,} steps" if solved else f"has ended: {status.reason}"
        raise UsageError(f"{run.name} {how}; train it further with --total-steps N (above {status.step})")
    if further and solved and config.eval.threshold == begun.eval.threshold:
        config = presets.apply_changes(config, {"stop_when_solved": False}, "resume")
    if further and config.total_steps and status.step >= config.total_steps:
        raise UsageError(
            f"--total-steps {config.total_steps}: {run.name} is at step {status.step} already; name a higher one"
        )
    old, new = begun.flatten(), config.flatten()
    changes = {option: [old[option], new[option]] for option in new if new[option] != old[option]}
    for option, (was, _) in changes.items():
        if why := begun.why_fixed(option):
            raise UsageError(
                f"{run.name}: {option} = {was!r} can't change any more: {why}; begin anew with: ppo-unified train "
                f"{run.config} --{option.replace('_', '-')} ..."
            )
    return config, changes


def _configure(config: RunConfig, flags: Sequence[str], name: str) -> RunConfig:
    from ppo_unified.cli.flags import configure, read_flags

    return configure(config, read_flags(config, flags, f"ppo-unified resume {name}", f"Options of {name}."))
