"""`train`, `resume`, `stop` and `regress`."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppo_unified.cli.imports import preload
from ppo_unified.cli.progress import Progress, summary
from ppo_unified.config import presets
from ppo_unified.config.recipes import apply_recipe
from ppo_unified.config.registry import find_adapter
from ppo_unified.config.schema import C, RunConfig
from ppo_unified.errors import Refused, UsageError
from ppo_unified.parsing import read_json
from ppo_unified.runs import control, log_tee, preparation, processes
from ppo_unified.runs.atomic import write_atomically
from ppo_unified.runs.folder import Run, Status, find, to_json
from ppo_unified.runs.signals import Interrupted, StopRequest
from ppo_unified.text import clean, clean_lines, say, tell

TOTALS = ("total_steps", "total_iterations")
EXIT = {"finished": 0, "stopped": 130, "failed": 1}
FIGURES = ("seeds", "solved", "median_steps", "worst_steps")  # of a preset in a baseline file
SLACK = 1.25  # a median this much worse than the baseline's worst seed is a regression


def train(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Validate, make the run folder, then train in it, here or in the background."""
    if options.target is None and options.help:
        options.parser.print_help()
        print("\nEvery option and its value in a preset: ppo-unified train cartpole --help")
        return 0
    if options.target is None:
        raise UsageError("ppo-unified train: name a preset (see ppo-unified envs), a TOML file or a Gymnasium id")
    config = presets.load_target(options.target)
    if options.recipe:
        config = apply_recipe(config, options.recipe)
    about = f"Options of {config.origin} and their values there; besides them --name NAME, --runs DIR and --detach."
    config = _parsed(config, [*rest, *(["--help"] if options.help else [])], f"train {options.target}", about)
    if options.detach:
        return _train_detached(options, rest)
    stop = StopRequest()
    with stop.handle_signals():
        command = ["ppo-unified", "train", *_begun_from(options), *rest]
        run = preparation.prepare(config, options.folder, options.name, command)
        return _work(run, config, stop, lambda: preparation.discard(run))


def _parsed(config: C, flags: Sequence[str], command: str, about: str) -> C:
    """`config` with flags laid over it; without any, none of the quarter of a second that their parser takes."""
    if not flags:
        return config
    from ppo_unified.cli.flags import parse_flags

    return parse_flags(config, flags, f"ppo-unified {command}", about)


def _begun_from(options: argparse.Namespace) -> list[str]:
    return [options.target, *(["--recipe", options.recipe] if options.recipe else [])]


def _train_detached(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Leave it to a process of its own, which refuses what can be refused."""
    name = ["--name", options.name] if options.name else []
    run = control.start([*_begun_from(options), *name, *rest], options.folder)
    say(clean(run.path))
    process = run.read_status().pid
    tell(f"training in the background, process {process}; stop it: {_command('stop', run)}")
    return 0


def resume(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Go on from the newest checkpoint; from the start where there is none yet."""
    run = find(options.run, options.folder)
    totals = {name: getattr(options, name) for name in TOTALS}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in totals.items() if value is not None]
    if options.detach:
        say(clean(control.resume(run, *flags, *rest).path))
        return 0
    config, changes = _changed(run, [*flags, *rest])
    stop = StopRequest()
    with stop.handle_signals():
        try:
            with stop.interruptible():  # it may have to wait for the run's last trainer
                status = preparation.reopen(run)
        except Interrupted:
            return EXIT["stopped"]
        try:
            undo = _claim(run, config, status, changes)
        except BaseException:
            run.release()
            raise
        if not run.checkpoint_folders():
            found = [clean(path.name) for path in run.checkpoints.glob("*") if not path.name.startswith(".")]
            beside = f" ({run.checkpoints} holds {', '.join(sorted(found))})" if found else ""
            tell(f"{run.name} has no checkpoint{beside}: it starts at step 0")
        return _work(run, config, stop, undo)


def _claim(run: Run, config: RunConfig, status: Status, changes: dict[str, list[Any]]) -> Callable[[], object]:
    """Make a locked run's files those of a run that goes on with `config`; what takes that back.

    run.json first, so that no change is ever made that it does not tell. Raises UsageError, with nothing changed, where
    they cannot be written.
    """
    before, written = run.read_status(), run.config.read_text(encoding="utf-8")
    _forget_unmade(status, presets.from_file(run.config))
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


def _forget_unmade(status: Status, config: RunConfig) -> None:
    """Take back what the resume before told of a change, where it was killed before `config` had it."""
    options = config.flatten()
    for entry in status.resumes[-2:-1]:
        told = entry.get("changed")
        if isinstance(told, dict) and any(
            to_json(options.get(option)) != to_json(values[-1])
            for option, values in told.items()
            if isinstance(values, list) and values
        ):
            del entry["changed"]


def _changed(run: Run, flags: Sequence[str]) -> tuple[RunConfig, dict[str, list[Any]]]:
    """A run's configuration with flags laid over it, and what that changes: {option: [from, to]}.

    Raises UsageError for an option that a run which has begun can't change, and where it has ended already.
    """
    begun, status = presets.from_file(run.config), run.read_status()
    about = f"Options of {run.name} and their values now."
    config = _parsed(begun, flags, f"resume {run.name}", about)
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


def _work(run: Run, config: RunConfig, stop: StopRequest, undo: Callable[[], object]) -> int:
    """Train in a claimed folder and say how it ended. Raises Refused, after `undo`, where it can't begin."""
    stop.show_in(run)
    with log_tee.log_output(run) as log:
        tell(f"training in {run.path}")
        preload("ppo_unified.training.session")  # imports torch: the folder and the signal handlers are there by now
        from ppo_unified.training.session import train_in

        progress = Progress(log)
        try:
            status = train_in(run, config, stop, progress, undo)
        except Exception as error:
            progress.finish()
            if isinstance(error, Refused):
                raise
            kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
            tell(f"{run.name} failed: {kind}{error}")
            kept = f"; checkpoints are kept: {_command('resume', run)}" if run.checkpoints.is_dir() else ""
            if run.log.exists():
                tell(f"the traceback is in {run.log}{kept}")
            return EXIT["failed"]
        progress.finish()
        say(clean_lines(summary(run, status)))
        spec = find_adapter(config.kind)
        verb, what = "eval", "score it"
        if status.state == "stopped":
            verb, what = "resume", "go on"
        elif spec.play or spec.chat:
            verb, what = "play", "watch it" if spec.play else "talk to it"
        say(clean(f"Next: {what} with: {_command(verb, run)}"))
    return EXIT[status.state]


def _command(verb: str, run: Run) -> str:
    """The command line that applies `verb` to a run, wherever its runs folder is."""
    folder = run.path.parent
    return shlex.join(["ppo-unified", verb, run.name, *([] if folder == Path("runs") else ["--runs", str(folder)])])


def stop(options: argparse.Namespace) -> int:
    run = find(options.run, options.folder)
    state = processes.stop(run, options.kill)
    tell(f"{run.name} {'was killed' if options.kill else f'is {state}'}; go on with: {_command('resume', run)}")
    return 0


def regress(options: argparse.Namespace) -> int:
    """Train fresh seeds of a preset and hold score and steps to solve against the committed baseline."""
    path = options.baseline or Path(__file__).parents[2] / "benchmarks" / "baseline.json"
    baseline = _read_baseline(path)
    if options.target not in baseline and not options.update:
        raise UsageError(
            f"{path}: no baseline for {options.target!r}; there are {', '.join(baseline) or 'none'}; "
            "add one with --update"
        )
    if options.seeds < 1:
        raise UsageError(f"--seeds {options.seeds}: must be at least 1")
    measured = _measure(options.target, options.seeds)
    if options.update:
        if measured["solved"] < options.seeds:
            raise UsageError(
                f"{options.target}: only {measured['solved']} of {options.seeds} seeds solved; no baseline written"
            )
        baseline[options.target] = measured
        path.write_text(json.dumps(baseline, indent=1) + "\n", encoding="utf-8")
        print(f"{path}: baseline of {options.target} updated", file=sys.stderr)
    known = baseline[options.target]
    good = measured["solved"] == options.seeds and measured["median_steps"] <= SLACK * known["worst_steps"]
    verdict = {"preset": options.target, "good": good, "measured": measured, "baseline": known}
    if options.json:
        print(json.dumps(verdict))
    else:
        for name, figures in (("measured", measured), ("baseline", known)):
            solved = f"{figures['solved']} of {figures['seeds']} seeds solved"
            print(f"{name}: {solved}, median {figures['median_steps']:,.0f} steps, worst {figures['worst_steps']:,}")
        print("as good as the baseline" if good else "WORSE than the baseline")
    return 0 if good else 1


def _read_baseline(path: Path) -> dict[str, Any]:
    try:
        table = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(f"{path}: is not a baseline file ({error})") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(table, dict) or not all(_are_figures(known) for known in table.values()):
        raise UsageError(f"{path}: is not a baseline file (one holds {', '.join(FIGURES)} for each preset)")
    return table


def _are_figures(known: object) -> bool:
    return isinstance(known, dict) and all(type(known.get(name)) in (int, float) for name in FIGURES)


def _measure(preset: str, seeds: int) -> dict[str, Any]:
    """Steps to the confirmed threshold over seeds 1, 2, ...; unsolved seeds count their whole run."""
    preload("ppo_unified.training.session")
    from ppo_unified.training.session import run

    steps, solved = [], 0
    for seed in range(1, seeds + 1):
        config = presets.load_preset(preset, seed=seed)
        if config.eval.threshold is None:
            raise UsageError(f"preset {preset!r} has no eval.threshold to be solved by")
        with tempfile.TemporaryDirectory() as folder:
            result = run(config, folder)
        if result.state == "stopped":
            raise KeyboardInterrupt
        solved += result.solved_step is not None
        steps.append(result.solved_step or config.total_steps)
        print(
            f"seed {seed}: {'solved' if result.solved_step else 'not solved'} at {steps[-1]:,} steps", file=sys.stderr
        )
    return {"seeds": seeds, "solved": solved, "median_steps": statistics.median(steps), "worst_steps": max(steps)}
