"""Kill and resume runs repeatedly, and compare them with an uninterrupted run."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kill_resume.commands import KINDS, OUTPUT, WHENS, Command, KillPoint, Process, read_counts
from kill_resume.compare import find_differences, find_unreadable
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import ACTIVE, Run

MOST_KILLS = 6  # per run
PATIENCE_S = 300.0  # a run that takes longer counts as hanging
MOST_REPORTED = 4  # differences reported per run
FRESH = 0.1  # share of the runs that are finished by a new interpreter instead of a fork


class Case(NamedTuple):
    """Runs with the same options; each takes a few seconds."""

    name: str
    arguments: Sequence[str]
    share: int  # percentage of all kills


OFTEN, SELDOM = ("--checkpoint.every-s", "1e-9"), ("--checkpoint.every-s", "1000")
CARTPOLE = (
    *("cartpole", "--total-steps", "4096", "--no-stop-when-solved", "--log.samples-every", "4"),
    *("--eval.every-steps", "1500", "--eval.episodes", "5"),
)
ARITHMETIC = (
    *("arithmetic", "--total-iterations", "6", "--llm.rollout-batch", "64", "--log.samples-every", "2"),
    *("--eval.every-steps", "400", "--eval.episodes", "16"),
)
LUNARLANDER = (
    *("lunarlander", "--total-steps", "1536", "--gym.num-envs", "4", "--gym.num-steps", "64", "--ppo.epochs", "2"),
    *("--eval.every-steps", "1000", "--eval.episodes", "1"),
)
FEW_STEPS = (
    *("--total-steps", "1536", "--gym.num-envs", "4", "--gym.num-steps", "64", "--ppo.epochs", "2"),
    *("--no-stop-when-solved", "--eval.every-steps", "1000", "--eval.episodes", "5", "--log.samples-every", "2"),
)
CASES = (
    Case("cartpole, a checkpoint every iteration", (*CARTPOLE, *OFTEN), 30),
    Case("cartpole, checkpoints at evaluations only", (*CARTPOLE, *SELDOM), 15),
    Case("arithmetic, a checkpoint every iteration", (*ARITHMETIC, *OFTEN), 25),
    Case("arithmetic, checkpoints at evaluations only", (*ARITHMETIC, *SELDOM), 10),
    Case("lunarlander, a checkpoint every iteration", (*LUNARLANDER, *OFTEN), 10),
    Case("catch (images), a checkpoint every iteration", ("catch", *FEW_STEPS, *OFTEN), 10),
    Case("tmaze (recurrent), a checkpoint every iteration", ("tmaze", *FEW_STEPS, *OFTEN), 10),
)


class Reference(NamedTuple):
    """The uninterrupted run, with its duration and file operations."""

    run: Run
    seconds: float
    operations: dict[str, int]  # number of operations by kind of file


@dataclass
class Outcome:
    """The results of runs that were killed. `kills` contains the kind of file of each kill, or "" for a timed kill."""

    runs: int = 0
    kills: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.runs += other.runs
        for name in ("kills", "lost", "unreadable", "different"):
            getattr(self, name).extend(getattr(other, name))

    @property
    def problems(self) -> list[str]:
        return [*self.lost, *self.unreadable, *self.different]


class Kill(NamedTuple):
    """An attempt to kill the process of a command."""

    kind: str  # kind of the file in use; empty for a timed kill
    when: str
    code: int | None  # the exit code


def kill_runs(case: Case, count: int, seed: int, processes: int, folder: Path) -> Iterator[Outcome]:
    """Kill runs of a case until there were `count` kills, and yield the outcome of each run."""
    running: set[Future[Outcome]] = set()
    done = number = 0
    with ProcessPoolExecutor(processes) as pool:
        reference = pool.submit(train_reference, case, folder / "reference").result()
        while done < count or running:
            while done < count and len(running) < processes:
                running.add(pool.submit(kill_and_resume, case, reference, folder / str(number), seed + number))
                number += 1
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done += len(future.result().kills)
                yield future.result()


def train_reference(case: Case, folder: Path) -> Reference:
    """Train a case to its end without interruption."""
    folder.mkdir(parents=True)
    began, counts = time.monotonic(), folder / "operations.json"
    code = Process(Command(["train", *case.arguments, "--name", "run"], folder, counts=counts)).wait(PATIENCE_S)
    if code != 0:
        raise RuntimeError(f"{case.name}: exited with code {code}: {(folder / OUTPUT).read_text(errors='replace')}")
    return Reference(Run(folder / "runs" / "run"), time.monotonic() - began, read_counts(counts))


def kill_and_resume(case: Case, reference: Reference, folder: Path, seed: int) -> Outcome:
    """Start a run, kill it a few times, resume it to its end, and compare it with the uninterrupted run."""
    rng, outcome, moments = random.Random(seed), Outcome(runs=1), []
    folder.mkdir(parents=True)
    run = Run(folder / "runs" / "run")
    for _ in range(rng.randint(1, MOST_KILLS)):
        kill = kill_once(command_for(case, run, folder), reference, rng)
        if kill.code != -signal.SIGKILL:
            break  # it finished before the kill, or it failed, which `finish` reports
        moments.append(kill.when)
        outcome.kills.append(kill.kind)
        outcome.unreadable += [f"{folder.name}, killed {kill.when}: {text}" for text in check_killed(run)]
    history = f"{folder.name}, killed {', then '.join(moments)}"
    if problem := finish(case, run, folder, fresh=rng.random() < FRESH):
        outcome.lost.append(f"{history}: {problem}")
    elif found := find_differences(run, reference.run):
        more = f"; {len(found) - MOST_REPORTED} more" if len(found) > MOST_REPORTED else ""
        outcome.different.append(f"{history}: {'; '.join(found[:MOST_REPORTED])}{more}")
    if not outcome.problems:
        shutil.rmtree(folder)
    return outcome


def finish(case: Case, run: Run, folder: Path, fresh: bool) -> str:
    """Resume a run to its end. Return a description of the error, or an empty string."""
    try:
        if run.path.exists() and run.read_status().state == "finished":
            return ""
    except UsageError as error:
        return str(error)
    code = Process(command_for(case, run, folder), fresh).wait(PATIENCE_S)
    output = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "" if code == 0 else f"exited with code {code}: {output[-1] if output else ''}"


def command_for(case: Case, run: Run, folder: Path) -> Command:
    """Return the command that resumes a run if it exists, or starts it."""
    if run.path.exists():
        return Command(["resume", "run", "--yes"], folder)
    return Command(["train", *case.arguments, "--name", "run"], folder)


def kill_once(command: Command, reference: Reference, rng: random.Random) -> Kill:
    """Run a command and kill its process, at a random time or at a file operation."""
    if rng.random() < 0.5:
        seconds = rng.uniform(0, reference.seconds)
        process = Process(command)
        process.wait(seconds)
        process.signal(signal.SIGKILL)
        return Kill("", f"after {seconds:.2f} s", process.wait())
    kind = rng.choice([kind for kind in KINDS if reference.operations.get(kind)])
    point = KillPoint(kind, rng.randrange(reference.operations[kind]), rng.choice(WHENS))
    code = Process(command._replace(kill_at=point)).wait(PATIENCE_S)
    return Kill(kind, f"{point.when} operation {point.number} on {point.kind}", code)


def check_killed(run: Run) -> list[str]:
    """List the problems in the folder of a run that was just killed."""
    if not run.path.exists():
        return []  # killed before the folder was created
    if found := find_unreadable(run):
        return found
    status = run.read_status()
    state = run.state(status)
    return [f"the killed run is shown as {state}"] if status.state in ACTIVE and state != "crashed" else []
