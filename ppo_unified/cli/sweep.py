"""`sweep`: search for the best values of options. Each trial is an ordinary run, which a worker process trains."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppo_unified.cli.common import add_runs_folder, foreign_code, integer
from ppo_unified.config import presets
from ppo_unified.config.recipes import apply_recipe
from ppo_unified.config.schema import RunConfig
from ppo_unified.config.space import Choices, Range, Space, drop_ignored, find_values, parse_space
from ppo_unified.errors import UsageError
from ppo_unified.runs import preparation
from ppo_unified.runs.folder import check_name
from ppo_unified.runs.signals import StopRequest
from ppo_unified.runs.trials import OBJECTIVES
from ppo_unified.text import clean, format_number, format_table, print_err, print_out

if TYPE_CHECKING:
    import optuna

    from ppo_unified.runs.study import Definition

POLL_S = 0.3
SHOWN = 5  # number of the best trials that the result lists
MAX_KILLS = 3  # per worker; if more workers are killed before a trial finishes, the sweep ends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "VALUES are a range, such as 1e-4..1e-2, '1e-4..1e-2 log' or 4..20, or a list, such as tanh,relu.\n"
        "To set an option for all trials, add --section.key VALUE, such as --total-steps 30000.\n"
        "To resume a sweep after an interruption, repeat its command. To extend it, increase --trials.\n"
        "example: ppo-unified sweep cartpole --space 'optim.lr=1e-4..1e-2 log' ppo.epochs=4..20 --workers 2"
    )
    parser.add_argument("target", metavar="TARGET", help="preset, TOML file, environment id or Python file")
    parser.add_argument(
        "--space",
        nargs="+",
        required=True,
        metavar="OPTION=VALUES",
        help="options to search and their values, or a TOML file with them",
    )
    parser.add_argument("--trials", type=integer, default=20, metavar="N", help="total number of trials (default: 20)")
    parser.add_argument(
        "--workers", type=integer, default=1, metavar="N", help="number of processes on this machine (default: 1)"
    )
    parser.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="score",
        help="; ".join(f"{name}: {text}" for name, text in OBJECTIVES.items()) + " (default: score)",
    )
    parser.add_argument("--no-prune", action="store_true", help="train unpromising trials to their end")
    parser.add_argument("--recipe", default="", metavar="NAME", help="recipe to apply to the target (default: none)")
    parser.add_argument("--name", default="", help="name of the sweep and prefix of its runs (default: TARGET-sweep)")
    parser.add_argument(
        "--study",
        type=Path,
        metavar="FILE",
        help="journal file, which several machines can share (default: study.journal in the sweep's folder)",
    )
    add_runs_folder(parser)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Check the options, create or open the study, and train its trials in worker processes."""
    for name in ("trials", "workers"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name}: expected an integer >= 1, got {getattr(options, name)}")
    if "=" in options.target:
        raise UsageError(
            "ppo-unified sweep: missing TARGET; write it before --space, because --space takes all words that follow it"
        )
    command = shlex.join(["ppo-unified", "sweep", *_words(options, rest)])
    with foreign_code():
        config = presets.load_target(options.target)
        if options.recipe:
            config = apply_recipe(config, options.recipe)
        base = presets.naming_base(options.target, config)
        if options.objective == "mean_score":  # otherwise, it would ignore the steps before the first evaluation
            rest = [*rest, "--eval.at-start"]
        config, space = _read_options(config, options, rest)
        preparation.complete(config)
    name = options.name or f"{base.origin}-sweep"
    check_name(name)
    if (options.folder / name / "run.json").exists():
        raise UsageError(f"{options.folder / name} is a run; choose another --name")
    journal = options.study or options.folder / name / "study.journal"
    definition = _import_study().Definition(
        command=command,
        target=[options.target, *(["--recipe", options.recipe] if options.recipe else [])],
        flags=list(rest),
        config=config.to_toml(),
        space={option: values._asdict() for option, values in space.items()},
        objective=options.objective,
        pruning=not options.no_prune,
    )
    return Sweep(options, name, journal, definition, space, config).run(find_values(space, config))


def _read_options(
    config: RunConfig, options: argparse.Namespace, rest: Sequence[str]
) -> tuple[RunConfig, dict[str, Range | Choices]]:
    """Return the options of all trials, and the space. Raises UsageError if an option is both set and searched."""
    from ppo_unified.cli.flags import configure, read_flags

    prog = f"ppo-unified sweep {options.target}"
    typed = read_flags(config, rest, prog, f"Options of {config.origin}.", options.parser.flags)
    config = configure(config, typed) if typed else presets.apply_changes(config, {}, "command line")
    space = parse_space(options.space, config)
    if both := [option for option in typed if option in space]:
        raise UsageError(f"{both[0]} is set and also searched; remove it from --space or remove its flag")
    return config, space


def _words(options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Return the arguments that define the sweep, for its command line."""
    words = [options.target, *rest, "--space", *options.space]
    words += ["--objective", options.objective] if options.objective != "score" else []
    words += ["--no-prune"] if options.no_prune else []
    for flag, value in (("--recipe", options.recipe), ("--name", options.name), ("--study", options.study)):
        words += [flag, str(value)] if value else []
    return words + ([] if options.folder == Path("runs") else ["--runs", str(options.folder)])


def _import_study() -> Any:
    try:
        from ppo_unified.runs import study
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UsageError(
            "ppo-unified sweep needs the package optuna; install it: pip install 'ppo-unified[sweep]'"
        ) from None
    return study


class Sweep:
    """A sweep in this process: starts workers, restarts killed ones, prints results, and forwards a stop request."""

    def __init__(
        self,
        options: argparse.Namespace,
        name: str,
        journal: Path,
        definition: Definition,
        space: Space,
        config: RunConfig,
    ) -> None:
        self.options, self.name, self.journal, self.definition = options, name, journal, definition
        self.space, self.config = space, config  # `config` contains the options before those of a trial are applied
        self.logs = options.folder / name
        self.api = _import_study()
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._printed: set[int] = set()  # numbers of the trials whose results have been printed
        self._kills = 0  # number of killed workers since the last result

    def run(self, first: dict[str, str] | None) -> int:
        """Train the trials, print the result and return the exit code."""
        study = self.api.open_study(self.journal, self.name)
        with self.api.TrialLocks(self.journal).choosing():
            is_new = self.api.find_definition(study) is None
            self.api.define(study, self.definition, first)
        self._printed = {trial.number for trial in self.api.finished_trials(study)}
        start = f"resuming after {len(self._printed)} trials" if not is_new else "starting"
        print_err(f"{self.name}: {start}; {self.options.trials} trials, logs of the workers: {self.logs}")
        if self.config.stop_when_solved and self.options.objective != "mean_score":
            print_err(
                "stop_when_solved gives all solved trials nearly the same score; use --objective mean_score to prefer "
                "trials that solve the task sooner"
            )
        if is_new and first is None:
            print_err("the target's own options are outside the space, so they are not the first trial")
        stop = StopRequest()
        with stop.handle_signals():
            problem = self._supervise(study, stop)
        self._print_new(study)
        return self._finish(study, stop, problem)

    def _supervise(self, study: optuna.Study, stop: StopRequest) -> str:
        """Keep the workers running until all trials are finished. Return why this failed, or ""."""
        self.logs.mkdir(parents=True, exist_ok=True)
        missing = max(0, self.options.trials - len(self._printed))
        self._workers = {number: self._start(number) for number in range(1, min(self.options.workers, missing) + 1)}
        problem, forwarded = "", False
        while self._workers:
            time.sleep(POLL_S)
            if stop and not forwarded:
                forwarded = True
                print_err(f"{stop.reason}; the trials write a checkpoint and stop")
                for worker in self._workers.values():
                    worker.send_signal(stop.signal or 15)
            self._print_new(study)
            for number, worker in list(self._workers.items()):
                if (code := worker.poll()) is None:
                    continue
                del self._workers[number]
                if code < 0 and not stop and not problem:
                    problem = self._restart(number, -code)
                elif code not in (0, 130) and not stop:
                    problem = problem or f"worker {number} failed; see {self._log(number)}"
        return problem

    def _restart(self, number: int, signal_number: int) -> str:
        """Restart a killed worker, which resumes its trial. Return an error if no trial finishes between kills."""
        self._kills += 1
        if self._kills > MAX_KILLS * self.options.workers:
            return f"workers were killed {self._kills} times and no trial finished; see {self._log(number)}"
        print_err(f"worker {number} was killed (signal {signal_number}); it is restarted and resumes its trial")
        self._workers[number] = self._start(number)
        return ""

    def _log(self, number: int) -> Path:
        return Path(self.logs / f"worker-{number}.log")

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        words = [self.journal, self.name, self.options.folder, self.options.trials]
        with open(self._log(number), "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "ppo_unified.cli.sweep_worker", *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    def _print_new(self, study: optuna.Study) -> None:
        """Print the results of the trials that have finished since the last call."""
        for trial in self.api.finished_trials(study):
            if trial.number not in self._printed:
                self._printed.add(trial.number)
                self._kills = 0
                print_err(self._describe(study, trial))

    def _describe(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> str:
        result = f"{self.options.objective} {format_number(trial.value)}" if trial.state.name == "COMPLETE" else ""
        best, reason = self.api.best_trial(study), self.api.reason_of(trial)
        values = self._values(trial)
        parts = [f"trial {trial.number}: {result or reason}"]
        parts += [" ".join(f"{option}={text}" for option, text in values.items())]
        parts += [f"{len(self._printed)} of {self.options.trials} trials"]
        parts += [f"best {format_number(best.value)} (trial {best.number})"] if best is not None else []
        return "; ".join(parts)

    def _finish(self, study: optuna.Study, stop: StopRequest, problem: str) -> int:
        """Print the best trials and the command line of the best one, and return the exit code."""
        trials = self.api.finished_trials(study)
        counts = {name: sum(trial.state == state for trial in trials) for name, state in self.api.STATES.items()}
        print_out(f"{self.name}: {', '.join(f'{count} {name}' for name, count in counts.items())}")
        best = self.api.best_trial(study)
        if best is not None:
            complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
            complete.sort(key=lambda trial: (-(trial.value or 0.0), trial.number))
            rows = [self._row(trial) for trial in complete[:SHOWN]]
            print_out(clean_table(rows))
            print_out(f"to train with the options of trial {best.number}: {self._command(best)}")
        for trial in [trial for trial in trials if trial.state.name == "FAIL"][:SHOWN]:
            print_err(f"trial {trial.number} failed: {self.api.reason_of(trial)}")
        if problem:
            print_err(problem)
        if stop:
            print_err("to resume the sweep, repeat the command")
            return 130
        left = self.options.trials - len(trials)
        if left > 0 and not problem:
            print_err(f"{left} trials have no result yet; another machine may be working on them")
        return 1 if problem or best is None else 0

    def _row(self, trial: optuna.trial.FrozenTrial) -> dict[str, str]:
        values = self._values(trial)
        row = {"trial": str(trial.number), "run": f"{self.name}-{trial.number}"}
        row |= {self.options.objective: format_number(trial.value)}
        return row | {option: values.get(option, "-") for option in self.space}

    def _values(self, trial: optuna.trial.FrozenTrial) -> dict[str, str]:
        values, _ = drop_ignored(self.config, self.api.trial_values(trial, self.space))
        return values

    def _command(self, trial: optuna.trial.FrozenTrial) -> str:
        """Return the command line that trains a run with the options of a trial."""
        from ppo_unified.cli.sweep_worker import trial_command

        return shlex.join(trial_command(self.definition, self._values(trial), self.config, self.options.folder))


def clean_table(rows: Sequence[dict[str, str]]) -> str:
    return "\n".join(format_table([{clean(key): clean(cell) for key, cell in row.items()} for row in rows]))
