"""Measure the speed of CartPole runs, before and after a change or beside stable-baselines3.

    python benchmarks/classic_speed.py --before REVISION [--only zoo start] [--repeat 3] [--out FILE]
    python benchmarks/classic_speed.py --peer-python PYTHON [--repeat 10] [--out FILE]

`zoo` trains with the hyper-parameters of the RL Zoo, `64` and `4096` with that many environments, all for a fixed
number of steps. `start` trains the preset until 2 x 100 greedy episodes confirm a mean of 475. stable-baselines3 is
evaluated in the same way, but always uses the hyper-parameters of the RL Zoo.

Each measurement runs in its own process, and the versions alternate. Steps/s are those of the training loop. In this
project, the loop also writes metrics, samples and checkpoints and, except in `start`, plays one greedy episode at the
end. In `zoo`, stable-baselines3 writes no files and plays no evaluation episodes. The wall time is from the start of
the process to its end, and the operating system reports the CPU time and the peak memory. No table is printed if other
processes used more than a tenth of a CPU core during a measurement.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[1]
OTHER_LOAD = 0.1  # largest accepted use by other processes, in CPU cores
ZOO = (
    "--gym.num-envs 8 --gym.num-steps 32 --ppo.epochs 20 --ppo.minibatches 1 --ppo.gamma 0.98 --ppo.lam 0.8 "
    "--ppo.anneal-clip --ppo.value-coef 1 --optim.lr 1e-3"
)
# One evaluation episode remains, at the end. With a threshold, reaching it would add 200 episodes.
FIXED = "--no-stop-when-solved --eval.every-steps 0 --eval.episodes 1 --eval.threshold None"
FLAGS = {
    "zoo": f"{ZOO} --total-steps 25600 {FIXED}",
    "64": f"--gym.num-envs 64 --ppo.epochs 4 --total-steps 102400 {FIXED}",
    "4096": f"--gym.num-envs 4096 --ppo.epochs 4 --total-steps 524288 {FIXED}",
    "start": "--eval.threshold 475",
}
PEER_STEPS = {"zoo": 25_600, "start": 100_000}


class Version(NamedTuple):
    """A version to measure: this project's sources in a folder, or stable-baselines3 with its own interpreter."""

    name: str
    folder: Path | None = None
    python: str = sys.executable


class Measurement(NamedTuple):
    steps_per_s: float
    wall_s: float
    cpu_s: float
    peak_mb: float
    steps: int
    other_load: float  # CPU cores used by other processes


def busy_seconds() -> float:
    """Return the seconds that all CPU cores together were busy, or taken by other virtual machines."""
    times = psutil.cpu_times()
    return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")))


def measure(which: Version, work: str, seed: int, threads: int) -> Measurement:
    """Run one process. Raises SystemExit if it fails or does not solve the task of `start`."""
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryFile("w+") as output:
        if which.folder is None:
            script = ROOT / "benchmarks" / "classic_peer.py"
            command = [which.python, str(script), work, str(seed), str(PEER_STEPS[work]), str(threads)]
        else:
            command = [which.python, "-m", "ppo_unified", "train", "cartpole", *FLAGS[work].split()]
            command += ["--seed", str(seed), "--threads", str(threads), "--runs", runs]
        variables = os.environ | {"OMP_NUM_THREADS": str(threads)}
        variables |= {"PYTHONPATH": str(which.folder)} if which.folder else {}
        busy, started = busy_seconds(), time.perf_counter()
        # Python imports modules of the current folder first
        process = subprocess.Popen(command, cwd=which.folder, stdout=output, stderr=subprocess.STDOUT, env=variables)
        _, status, used = os.wait4(process.pid, 0)
        wall, busy = time.perf_counter() - started, busy_seconds() - busy
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}:\n{text}")
        if which.folder is None:
            found = json.loads(text.split("RESULT ", 1)[1])
        else:
            state = json.loads(next(Path(runs).glob("*/run.json")).read_text(encoding="utf-8"))
            found = {"steps": state["step"], "seconds": state["elapsed_s"], "solved": state["solved_step"]}
    if work == "start" and found["solved"] is None:
        raise SystemExit(f"{which.name}: the run with seed {seed} was not solved after {found['steps']:,} steps")
    cpu = used.ru_utime + used.ru_stime
    peak = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)  # bytes on macOS, kilobytes elsewhere
    return Measurement(found["steps"] / found["seconds"], wall, cpu, peak, found["steps"], (busy - cpu) / wall)


def unpack(revision: str, folder: Path) -> Version:
    """Extract a revision of this repository into `folder`."""
    git = ["git", "-C", str(ROOT)]
    short = subprocess.run([*git, "rev-parse", "--short", revision], check=True, capture_output=True, text=True).stdout
    archive = subprocess.run([*git, "archive", revision], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return Version(f"before ({short.strip()})", folder)


def find_peer(python: Path) -> Version:
    """Return the installed version of stable-baselines3. `python` is the interpreter of its own environment."""
    code = "from importlib.metadata import version as v; print('stable-baselines3', v('stable-baselines3'))"
    name = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    return Version(name.strip(), None, str(python))


def table(measured: dict[str, dict[str, list[Measurement]]]) -> list[str]:
    """Return the medians of each kind of run and version, with the ratios of the first version to the second."""
    lines = ["| run | version | steps/s | wall (s) | CPU (s) | peak memory (MB) | steps | n |", f"|{'---|' * 8}"]
    for work, versions in measured.items():
        medians = {
            name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in versions.items()
        }
        for name, (speed, wall, cpu, peak, steps, _) in medians.items():
            spread = f"{min(x.wall_s for x in versions[name]):.2f} to {max(x.wall_s for x in versions[name]):.2f}"
            cells = f"{speed:,.0f} | {wall:.2f} ({spread}) | {cpu:.2f} | {peak:,.0f} | {steps:,.0f}"
            lines.append(f"| {work} | {name} | {cells} | {len(versions[name])} |")
        if len(medians) == 2:
            first, second = medians.values()
            cells = " | ".join(f"{a / b:.2f}" for a, b in zip(first[:4], second[:4], strict=True))
            lines.append(f"| {work} | {' / '.join(medians)} | {cells} | | |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", metavar="REVISION", help="also measure this Git revision")
    parser.add_argument("--peer-python", type=Path, metavar="PYTHON", help="interpreter with stable-baselines3")
    parser.add_argument("--only", nargs="+", choices=FLAGS, help="kinds of runs (default: those of both versions)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind and version (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    if options.before and options.peer_python:
        raise SystemExit("--before and --peer-python: expected at most one of them; remove one")
    with tempfile.TemporaryDirectory() as folder:
        versions = [Version("now", ROOT)]
        versions += [unpack(options.before, Path(folder))] if options.before else []
        versions += [find_peer(options.peer_python)] if options.peer_python else []
        for which in versions:  # otherwise, the first process of a version would also compile its modules
            if which.folder:
                compiling = [which.python, "-m", "compileall", "-qq", "ppo_unified", "envs"]
                subprocess.run(compiling, check=True, cwd=which.folder)
        measured: dict[str, dict[str, list[Measurement]]] = {}
        for work in options.only or (PEER_STEPS if options.peer_python else FLAGS):
            measured[work] = {which.name: [] for which in versions}
            for seed in range(1, options.repeat + 1):
                for which in versions if seed % 2 else reversed(versions):
                    found = measure(which, work, seed, options.threads)
                    measured[work][which.name].append(found)
                    print(f"{work}, {which.name}, seed {seed}: {found.wall_s:.2f} s", file=sys.stderr, flush=True)
    loads = [run.other_load for versions in measured.values() for runs in versions.values() for run in runs]
    if max(loads) > OTHER_LOAD:
        busy = sum(load > OTHER_LOAD for load in loads)
        raise SystemExit(
            f"other processes used more than {OTHER_LOAD:g} CPU cores (at most {max(loads):.2f}) during {busy} of "
            f"{len(loads)} measurements, so the times are not reported; stop these processes and run this again"
        )
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "gymnasium", "numpy"))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    command = shlex.join(["python", "benchmarks/classic_speed.py", *sys.argv[1:]])
    if options.peer_python:
        command = command.replace(str(options.peer_python), "PYTHON")
    where = f"{date.today()}; {machine}, {packages}; {options.threads} thread(s)."
    lines = [f"Command: `{command}`; {where}", "", *table(measured)]
    print("\n".join(lines))
    if options.out:
        about = (__doc__ or "").split("\n\n", 2)[2]
        options.out.write_text("\n".join(["# Speed of CartPole runs", "", about, *lines, ""]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
