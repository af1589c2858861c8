"""`train`: train one run, or one run for each combination of the listed option values."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ppo_unified.cli.common import add_detach, add_runs_folder, foreign_code, preload
from ppo_unified.cli.run_training import EXIT, describe_background, run_training
from ppo_unified.config import presets
from ppo_unified.config.grid import expand
from ppo_unified.config.recipes import apply_recipe
from ppo_unified.config.schema import RunConfig, typed_options
from ppo_unified.config.values import format_flag
from ppo_unified.errors import UsageError
from ppo_unified.runs import control, preparation
from ppo_unified.runs.folder import free_name, free_space
from ppo_unified.runs.signals import Interrupted, StopRequest
from ppo_unified.text import clean, clean_lines, print_err, print_out

if TYPE_CHECKING:
    from ppo_unified.runs.source import Reference

ABOUT = (
    "These are the options of {} and their defaults. The flags --name NAME, --init RUN, --runs DIR, --plan and "
    "--detach are also accepted. If you give an option several values, such as --seed 1-3 or --optim.lr 1e-3,3e-3, a "
    "separate run is trained for each value. The runs are trained one after the other, or all at the same time with "
    "--detach."
)


class Job(NamedTuple):
    """A run to be trained."""

    config: RunConfig
    name: str  # name of the run folder; empty for the first free name of default, default-2, ...
    default: str
    is_derived: bool  # True if `default` is the name that a process with only these flags chooses
    flags: Sequence[str]  # the options that turn the target's configuration into `config`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="preset, TOML file, Gymnasium environment id, module:EnvId, FILE.py, or FILE.py:EnvId",
    )
    parser.add_argument(
        "-h", "--help", action="store_true", help="show this help; with TARGET, list all of its options"
    )
    parser.add_argument("--recipe", default="", metavar="NAME", help="recipe to apply to the target (default: none)")
    parser.add_argument("--name", default="", help="name of the run folder (default: target, changed options and seed)")
    parser.add_argument(
        "--init",
        metavar="RUN|PATH",
        help="start with the policy of this run's best checkpoint, or of this checkpoint folder (default: new weights)",
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the memory, disk space and time that the run needs, and do not train"
    )
    add_detach(parser)
    add_runs_folder(parser)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Validate the options, create the run folders and train, in this process or in the background."""
    if options.target is None and options.help:
        options.parser.print_help()
        print("\nTo list all options of a preset with their defaults, run: ppo-unified train cartpole --help")
        return 0
    if options.target is None:
        raise UsageError(
            "ppo-unified train: missing target; expected a preset (see ppo-unified envs), a TOML or Python file, "
            "or a Gymnasium id"
        )
    with foreign_code():
        config = presets.load_target(options.target)
    if options.recipe:
        config = apply_recipe(config, options.recipe)
    reference = None
    if options.init is not None and not options.help:
        from ppo_unified.runs.source import find_reference

        reference = find_reference(options.init, options.folder)
        options.init = reference.word
    source = reference.run.name if reference else ""
    jobs = _make_jobs(config, options, [*rest, *(["--help"] if options.help else [])], source)
    if options.plan and options.detach:
        raise UsageError("ppo-unified train: --plan starts no run, so it cannot be combined with --detach; remove one")
    if options.plan:
        return _plan(options, jobs, reference)
    if options.detach:
        return _train_detached(options, jobs)
    codes = list(_train_here(options, jobs, reference))
    if len(codes) < len(jobs):
        print_err(_count_unstarted(len(codes), len(jobs)))
    return max(codes)


def _count_unstarted(started: int, total: int) -> str:
    return f"{total - started} of {total} runs {'was' if total - started == 1 else 'were'} not started"


def _make_jobs(config: RunConfig, options: argparse.Namespace, flags: Sequence[str], source: str) -> list[Job]:
    """Return the runs that the flags describe. `source` is the name of the run whose policy they start with, or "".

    Raises UsageError before any run starts if a flag or a name is wrong.
    """
    base = presets.naming_base(options.target, config)
    if not flags:
        config = presets.apply_changes(config, {}, "command line")
        return [Job(config, options.name, preparation.run_name(config, base, source=source), True, ())]
    from ppo_unified.cli.flags import configure, read_flags

    prog, about = f"ppo-unified train {options.target}", ABOUT.format(config.origin)
    typed = read_flags(config, flags, prog, about, options.parser.flags)
    jobs = []
    for combination in expand(typed, typed_options(type(config))):
        own = configure(config, combination.typed)
        name = preparation.run_name(own, base, combination.varied, options.name, source)
        if not combination.varied:
            return [Job(own, options.name, name, True, flags)]
        values, declared = own.flatten(), typed_options(type(own))
        words = [word for name in combination.typed for word in format_flag(name, values[name], declared[name])]
        if options.name and os.path.lexists(options.folder / name):
            raise UsageError(f"{options.folder / name} already exists; choose another --name")
        is_derived = name == preparation.run_name(own, base, source=source)
        jobs.append(Job(own, name if options.name else "", name, is_derived, words))
    return jobs


def _complete_all(reference: Reference, jobs: Sequence[Job]) -> tuple[dict[str, Any], list[tuple[RunConfig, str]]]:
    """Check all options. Return the entry `init` for run.json, and the results of `preparation.complete`.

    Raises UsageError if an adapter rejects the options, or if a run cannot start with the policy of its source.
    """
    preload("ppo_unified.training.initialization")
    from ppo_unified.training.initialization import check_fit, open_source

    source = open_source(reference)
    completed = [preparation.complete(job.config) for job in jobs]
    for config, _ in completed:
        check_fit(source, config)
    return source.record(), completed


def _plan(options: argparse.Namespace, jobs: Sequence[Job], reference: Reference | None) -> int:
    """Print what each run needs. Return 0 if all of them fit, otherwise 2."""
    completed: list[tuple[RunConfig, str]] = []
    fits = []
    for number, job in enumerate(jobs):
        with foreign_code():
            if reference and not completed:
                completed = _complete_all(reference, jobs)[1]
            config, note = completed[number] if completed else preparation.complete(job.config)
            if note:
                print_err(note)
            preload("ppo_unified.training.session")
            from ppo_unified.training.session import plan

            found = plan(config)
        heading = [job.default] if len(jobs) > 1 else []
        print_out(clean_lines("\n".join([*heading, *found.table(free_space(options.folder))])))
        fits.append(found.fits)
    return 0 if all(fits) else 2


def _train_here(options: argparse.Namespace, jobs: Sequence[Job], reference: Reference | None) -> Iterator[int]:
    """Train the runs one after the other and yield the exit code of each. A stopped run ends the sequence.

    If there is a `reference`, the runs start with its policy.
    """
    init: dict[str, Any] = {}
    completed: list[tuple[RunConfig, str]] = []
    for number, job in enumerate(jobs):
        config, name, default, _, flags = job
        stop = StopRequest()
        with stop.handle_signals():
            command = ["ppo-unified", "train", *_target_words(options), *flags, *_place_words(options, name)]
            try:
                with foreign_code():
                    with stop.interruptible():
                        if reference and not init:
                            init, completed = _complete_all(reference, jobs)
                        config, note = completed[number] if completed else preparation.complete(config)
                    run = preparation.prepare(config, options.folder, name, command, init=init, default=default)
            except Interrupted:
                print_err(f"{stop.reason} before a run was created")
                yield EXIT["stopped"]
                return
            code = run_training(run, config, stop, lambda run=run: preparation.discard(run), note)  # type: ignore[misc]
        yield code
        if code == EXIT["stopped"]:
            return


def _train_detached(options: argparse.Namespace, jobs: Sequence[Job]) -> int:
    """Start a background process for each run. Each process validates its own options."""
    for number, job in enumerate(jobs):
        name = job.name or ("" if job.is_derived else free_name(options.folder, job.default))
        own_name = ["--name", name] if name else []
        try:
            run = control.start([*_target_words(options), *own_name, *job.flags], options.folder)
        except UsageError as error:
            if len(jobs) > 1:
                raise UsageError(f"{error}; {_count_unstarted(number, len(jobs))}") from None
            raise
        print_out(clean(run.path))
        print_err(describe_background(run))
    return 0


def _place_words(options: argparse.Namespace, name: str) -> list[str]:
    folder = [] if options.folder == Path("runs") else ["--runs", str(options.folder)]
    return [*(["--name", name] if name else []), *folder]


def _target_words(options: argparse.Namespace) -> list[str]:
    pairs = ("--recipe", options.recipe), ("--init", options.init)
    return [options.target, *(word for pair in pairs if pair[1] for word in pair)]
