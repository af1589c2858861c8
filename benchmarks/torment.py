"""Runs that are killed again and again, and what became of them."""

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

from sameness import differences, unreadable
from victims import KINDS, WHENS, Death, Order, Victim, read_ledger

from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import ACTIVE, Run

MOST_KILLS = 6  # of one run
PATIENCE_S = 300.0  # a run that takes longer hangs
TOLD = 4  # differences of one run
FRESH = 0.1  # share of the runs that an interpreter of its own ends, not a fork


class Case(NamedTuple):
    """Runs of one kind, each of some seconds."""

    name: str
    arguments: Sequence[str]
    share: int  # of all kills, in hundredths


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
CASES = (
    Case("cartpole, a checkpoint every iteration", (*CARTPOLE, *OFTEN), 35),
    Case("cartpole, checkpoints at evaluations only", (*CARTPOLE, *SELDOM), 15),
    Case("arithmetic, a checkpoint every iteration", (*ARITHMETIC, *OFTEN), 30),
    Case("arithmetic, checkpoints at evaluations only", (*ARITHMETIC, *SELDOM), 10),
    Case("lunarlander, a checkpoint every iteration", (*LUNARLANDER, *OFTEN), 10),
)


class Untouched(NamedTuple):
    """The run that nobody touches, and what it did."""

    run: Run
    seconds: float
    operations: dict[str, int]  # by kind of file


@dataclass
class Outcome:
    """What became of runs that were killed; kills by the kind of file at work, "" for a random moment."""

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
    def complaints(self) -> list[str]:
        return [*self.lost, *self.unreadable, *self.different]


class Kill(NamedTuple):
    """An attempt to kill whoever carries out an order."""

    kind: str  # of the file at work; empty for a random moment
    told: str  # when it was to happen
    code: int | None  # the exit code


def torture(case: Case, count: int, seed: int, processes: int, folder: Path) -> Iterator[Outcome]:
    """What became of runs of a case, one after another, until there were `count` kills."""
    running: set[Future[Outcome]] = set()
    done = number = 0
    with ProcessPoolExecutor(processes) as pool:
        untouched = pool.submit(leave_alone, case, folder / "untouched").result()
        while done < count or running:
            while done < count and len(running) < processes:
                running.add(pool.submit(torment, case, untouched, folder / str(number), seed + number))
                number += 1
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done += len(future.result().kills)
                yield future.result()


def leave_alone(case: Case, folder: Path) -> Untouched:
    """Train a case to its end."""
    folder.mkdir(parents=True)
    began, ledger = time.monotonic(), folder / "ledger.json"
    code = Victim(Order(["train", *case.arguments, "--name", "run"], folder, ledger=ledger)).wait(PATIENCE_S)
    if code != 0:
        raise RuntimeError(f"{case.name}: ended with {code}: {(folder / 'said.txt').read_text(errors='replace')}")
    return Untouched(Run(folder / "runs" / "run"), time.monotonic() - began, read_ledger(ledger))


def torment(case: Case, untouched: Untouched, folder: Path, seed: int) -> Outcome:
    """Start a run, kill it some times, let it end, and compare it with the one that was left alone."""
    rng, outcome, told = random.Random(seed), Outcome(runs=1), []
    folder.mkdir(parents=True)
    run = Run(folder / "runs" / "run")
    for _ in range(rng.randint(1, MOST_KILLS)):
        kill = kill_once(order_for(case, run, folder), untouched, rng)
        if kill.code != -signal.SIGKILL:
            break  # it ended before; or badly, and so it will below
        told.append(kill.told)
        outcome.kills.append(kill.kind)
        outcome.unreadable += [f"{folder.name}, killed {kill.told}: {text}" for text in after_kill(run)]
    history = f"{folder.name}, killed {', then '.join(told)}"
    if said := bring_to_an_end(case, run, folder, fresh=rng.random() < FRESH):
        outcome.lost.append(f"{history}: {said}")
    elif found := differences(run, untouched.run):
        more = f"; {len(found) - TOLD} more" if len(found) > TOLD else ""
        outcome.different.append(f"{history}: {'; '.join(found[:TOLD])}{more}")
    if not outcome.complaints:
        shutil.rmtree(folder)
    return outcome


def bring_to_an_end(case: Case, run: Run, folder: Path, fresh: bool) -> str:
    """Resume a run to its end; what went wrong, empty if nothing did."""
    try:
        if run.path.exists() and run.read_status().state == "finished":
            return ""
    except UsageError as error:
        return str(error)
    code = Victim(order_for(case, run, folder), fresh).wait(PATIENCE_S)
    said = (folder / "said.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "" if code == 0 else f"ended with {code}: {said[-1] if said else ''}"


def order_for(case: Case, run: Run, folder: Path) -> Order:
    """What brings a run on: to start it, or to resume it if it is there."""
    if run.path.exists():
        return Order(["resume", "run"], folder)
    return Order(["train", *case.arguments, "--name", "run"], folder)


def kill_once(order: Order, untouched: Untouched, rng: random.Random) -> Kill:
    """Carry out an order and kill who does it, at a moment or at a file operation."""
    if rng.random() < 0.5:
        seconds = rng.uniform(0, untouched.seconds)
        victim = Victim(order)
        victim.wait(seconds)
        victim.signal(signal.SIGKILL)
        return Kill("", f"after {seconds:.2f} s", victim.wait())
    kind = rng.choice([kind for kind in KINDS if untouched.operations.get(kind)])
    death = Death(kind, rng.randrange(untouched.operations[kind]), rng.choice(WHENS))
    code = Victim(order._replace(death=death)).wait(PATIENCE_S)
    return Kill(kind, f"{death.when} operation {death.number} on {death.kind}", code)


def after_kill(run: Run) -> list[str]:
    """What is wrong with the folder of a run that was just killed."""
    if not run.path.exists():
        return []  # it had not begun
    if found := unreadable(run):
        return found
    status = run.read_status()
    state = run.state(status)
    return [f"it is dead and shown as {state}"] if status.state in ACTIVE and state != "crashed" else []
