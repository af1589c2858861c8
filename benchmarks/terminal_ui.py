"""Measure the speed and cost of the terminal UI, running as a real program in a pseudo-terminal.

    python benchmarks/terminal_ui.py [--out benchmarks/tui.md]

The program `ppo-unified tui` shows a folder of synthetic runs in a terminal of 120 x 40 cells. The time of a key is
from writing the key to the terminal to reading the first bytes of its effect. Keys are 50 to 250 ms apart, so that they
are spread over the refresh interval. Writers are processes that lock a run and write 20 events of 20 metrics per
second, and run.json once per second. The time to redraw charts is measured as in `benchmarks/charts.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import platform
import pty
import re
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from charts import measure
from inspector_keys import DOWN, SAMPLES, TOKENS, InspectorKeys, store_iteration
from synthetic_runs import METRICS_EACH, POINTS, act_as_trainer, make_run, make_runs, write_events

from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run
from tui.charts.settings import Settings
from tui.view_state import ViewState

WIDTH, HEIGHT = 120, 40
RUNS, BIG = 200, 1_000_000
WRITERS = 4
TIMEOUT_S = 60.0
DOTS = rb"\xe2[\xa0-\xa3][\x80-\xbf]"  # the braille dots of a curve; a single point is drawn differently
IMPORT = "import time; begun = time.perf_counter(); import torch; print(time.perf_counter() - begun)"
STARTED = b"\x1b]0;started\x07"  # a window title that marks the time between the imports and the start
MIB = 2**20


class Row(NamedTuple):
    """A row of the table."""

    what: str
    target: str
    measured: str
    how: str

    def __str__(self) -> str:
        return f"| {' | '.join(self)} |"


# writers


@contextmanager
def run_writers(folders: Sequence[Path]) -> Iterator[None]:
    """Run a process for each run folder that writes to it."""
    started = [
        subprocess.Popen([sys.executable, __file__, "--write-on", str(folder)], stdin=subprocess.PIPE)
        for folder in folders
    ]
    try:
        yield
    finally:
        for process in started:
            process.communicate()


# the program in a terminal


class Screen:
    """A program in a pseudo-terminal, with its output so far."""

    def __init__(self, command: Sequence[str], state: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        environment = os.environ | {"TERM": "xterm-256color", "XDG_STATE_HOME": str(state), "COLORTERM": "truecolor"}
        self.started = time.perf_counter()
        self.process = psutil.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment
        )
        os.close(slave)
        self.output = bytearray()
        self.peak = 0  # peak memory in bytes
        self._mark = 0  # start of the output that `wait_for` searches

    def read_for(self, seconds: float) -> None:
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            self._read(left)

    def wait_for(self, pattern: bytes) -> float:
        """Read until a pattern appears and return the clock time in seconds."""
        deadline = time.perf_counter() + TIMEOUT_S
        while not (match := re.compile(pattern).search(self.output, self._mark)):
            if time.perf_counter() > deadline:
                raise SystemExit(f"{pattern!r} did not appear; the last bytes are {self.output[-2000:]!r}")
            self._read(1.0)
        self._mark = match.end()
        return time.perf_counter()

    def press(self, key: str, pattern: bytes) -> float:
        """Press a key and return the milliseconds until a pattern appears."""
        self._read(0)
        self.skip_output()
        pressed = time.perf_counter()
        os.write(self._master, key.encode())
        return 1000 * (self.wait_for(pattern) - pressed)

    def skip_output(self) -> None:
        """Exclude the output so far from the next search."""
        self._mark = len(self.output)

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """Quit the program like a user, or kill it after 10 s."""
        os.write(self._master, b"q")
        deadline = time.perf_counter() + 10
        while self.process.poll() is None and time.perf_counter() < deadline:
            self._read(0.05)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self, wait_s: float) -> None:
        if select.select([self._master], [], [], min(wait_s, 0.1))[0]:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # the other end of the pseudo-terminal is closed
                data = b""
            self.output += data
        if self.process.poll() is None:
            self.peak = max(self.peak, self.process.memory_info().rss)


@contextmanager
def open_ui(
    runs: Path, view: ViewState, command: Sequence[str] = ("-m", "ppo_unified", "tui", "--runs")
) -> Iterator[Screen]:
    """Open the terminal UI for a runs folder, with `view` as its saved state."""
    with tempfile.TemporaryDirectory() as state:
        before = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = state
        view.save(runs)
        os.environ.pop("XDG_STATE_HOME")
        if before is not None:
            os.environ["XDG_STATE_HOME"] = before
        screen = Screen([sys.executable, *command, str(runs)], Path(state))
        try:
            yield screen
        finally:
            screen.close()


def run_after_imports(runs: Path) -> None:
    """Start the terminal UI after printing a mark that its imports are done."""
    from tui.app import run

    sys.stdout.buffer.write(STARTED)
    sys.stdout.buffer.flush()
    run(runs)


def cursor_pattern(name: str) -> bytes:
    """Return a pattern for the line of the cursor, the only one with a run's name in bold."""
    return rb"\x1b\[1;[0-9;]*m" + name.encode()


def steps_down(names: Sequence[str], count: int) -> list[tuple[str, bytes]]:
    """Return the keys that move the cursor down the list, with the pattern that each key causes."""
    return [("j", cursor_pattern(name)) for name in names[1 : count + 1]]


def steps_up(names: Sequence[str]) -> list[tuple[str, bytes]]:
    return [("k", cursor_pattern(name)) for name in names[-2::-1]]


def chart_keys(count: int) -> list[tuple[str, bytes]]:
    """Return keys that redraw every chart, with the text that each causes in the line below the charts."""
    once = [(".", b"smoothing 0.6"), ("x", b"x: elapsed time"), (".", b"smoothing 0.9 "), ("x", b"x: time of day")]
    once += [(",", b"smoothing 0.6"), ("x", b"x: step"), (".", b"smoothing 0.9 "), (",", b"smoothing 0.6")]
    once += [("l", b"log y"), (".", b"smoothing 0.9 "), ("l", b"smoothing 0.9 "), (",", b"smoothing 0.6")]
    return [*once, *once[1:] * (count // len(once))][:count]


def latencies(screen: Screen, keys: Sequence[tuple[str, bytes]]) -> list[float]:
    rng, found = np.random.default_rng(0), []
    for key, pattern in keys:
        screen.read_for(rng.uniform(0.05, 0.25))
        found.append(screen.press(key, pattern))
    return found


def format_latencies(milliseconds: Sequence[float]) -> str:
    middle, most = np.percentile(milliseconds, [50, 95])
    return f"{most:.0f} ms (median {middle:.0f}, longest {max(milliseconds):.0f}, {len(milliseconds)} keys)"


# the rows of the table


def start_rows(runs: Path, repeats: int) -> Iterator[Row]:
    view = ViewState(sorted_by="name")
    whole, listed, drawn, imported = [], [], [], []
    for _ in range(repeats):
        with open_ui(runs, view) as screen:
            whole.append(screen.wait_for(b"run-000") - screen.started)
        with open_ui(runs, view, (__file__, "--start-only")) as screen:
            imported.append(begun := screen.wait_for(re.escape(STARTED)))
            listed.append(screen.wait_for(b"run-000") - begun)
            drawn.append(screen.wait_for(b"4321") - begun)
    how = f"median of {repeats}; {RUNS} runs x {METRICS_EACH} metrics x {POINTS:,} points"
    yield Row(
        "first paint of the list", "1 s", f"{statistics.median(listed):.2f} s", f"from App.run, after imports; {how}"
    )
    yield Row("first paint of the first run's curves", "1 s", f"{statistics.median(drawn):.2f} s", "the same")
    yield Row(
        "first paint, from the start of the process",
        "-",
        f"{statistics.median(whole):.2f} s",
        "`ppo-unified tui`, including interpreter start and imports",
    )


def key_rows(runs: Path, names: Sequence[str]) -> Iterator[Row]:
    view = ViewState(sorted_by="name", marked=list(names[:WRITERS]))
    with run_writers([runs / name for name in names[:WRITERS]]), open_ui(runs, view) as screen:
        screen.wait_for(b"4 running")
        screen.read_for(2)
        received, cpu_s, began = len(screen.output), screen.cpu_s(), time.perf_counter()
        screen.read_for(15)
        seconds = time.perf_counter() - began
        rate, share = (len(screen.output) - received) / seconds / 1000, (screen.cpu_s() - cpu_s) / seconds
        walking, charting = latencies(screen, steps_down(names, 80)), latencies(screen, chart_keys(60))
    how = f"{WRITERS} processes write to {WRITERS} marked runs of {RUNS}"
    yield Row("key to screen: cursor in the list", "50 ms at the 95th percentile", format_latencies(walking), how)
    yield Row(
        "key to screen: redraw of six charts",
        "50 ms at the 95th percentile",
        format_latencies(charting),
        f"smoothing, x axis, log y; {how}",
    )
    yield Row("output to the terminal", "60 kB/s", f"{rate:.0f} kB/s", f"15 s without keys; {how}")
    yield Row("CPU time during training", "-", f"{share:.1%} of a core", "the same 15 s")
    yield Row("memory, 200 runs", "500 MB", f"{screen.peak / 1e6:.0f} MB", "peak resident memory of the UI's process")


def idle_rows(runs: Path, seconds: float = 20) -> Iterator[Row]:
    with open_ui(runs, ViewState(sorted_by="name")) as screen:
        screen.wait_for(b"4321")
        screen.read_for(5)
        before, received = screen.cpu_s(), len(screen.output)
        screen.read_for(seconds)
        share, rate = (screen.cpu_s() - before) / seconds, (len(screen.output) - received) / seconds
    yield Row(
        "CPU time when idle",
        "2 % of a core",
        f"{share:.1%}",
        f"{RUNS} finished runs, {seconds:.0f} s; {rate:,.0f} bytes/s to the terminal",
    )


def large_run_rows(repeats: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        names = make_runs(runs, 30)
        make_run(runs / "big", BIG)
        seconds, pressed, peak = [], [], 0
        for _ in range(repeats):
            view = ViewState(sorted_by="name", marked=["big"], charts=Settings(smoothing=0.9).to_dict())
            with open_ui(runs, view) as screen:
                begun = screen.wait_for(b"run-000")
                keys = cycle([*steps_down(["", *names], len(names)), *steps_up(["big", *names])])
                while b"4321" not in screen.output:
                    pressed += latencies(screen, [next(keys)])
                seconds.append(time.perf_counter() - begun)
                screen.read_for(1)
                peak = max(peak, screen.peak)
    how = f"{BIG:,} steps x {METRICS_EACH} metrics with smoothing, median of {repeats}"
    yield Row(
        "a large run, completely drawn",
        "25 s",
        f"{statistics.median(seconds):.1f} s",
        f"from the first paint of the list to the last value; {how}",
    )
    yield Row(
        "key to screen while it is read",
        "50 ms at the 95th percentile",
        format_latencies(pressed),
        "cursor in the list",
    )
    yield Row("memory, large run", "500 MB", f"{peak / 1e6:.0f} MB", "peak resident memory of the UI's process")


def launch_rows(repeats: int) -> Iterator[Row]:
    imported = [float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(repeats)]
    for place, others in (("an empty folder", 0), ("a folder with a run", 1)):
        drawn, moved, solved = [], [], []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                for number in range(others):
                    make_run(Path(folder) / f"other-{number}", 0)
                with open_ui(Path(folder), ViewState()) as screen:
                    screen.wait_for(b"New run")
                    screen.press("n", b"select a target")
                    screen.press("\r", rb"\$ ppo-unified train cartpole")
                    screen.press("\r", b"cartpole-s1")
                    drawn.append(screen.wait_for(DOTS) - screen.started)
                    screen.read_for(0.1)  # the rest of this picture
                    screen.skip_output()
                    moved.append(screen.wait_for(DOTS) - screen.started)
                    solved.append(screen.wait_for(b"solved") - screen.started)
        ratio = statistics.median(moved) / statistics.median(imported)
        yield Row(
            f"from the command to a CartPole curve that grows, in {place}",
            "4 keys; 3 s where `import torch` takes 1.5 s",
            f"3 keys; {statistics.median(moved):.2f} s (longest {max(moved):.2f}), {ratio:.2f} x `import torch`",
            f"each key is pressed when its screen appears; median of {repeats}; curve visible after "
            f"{statistics.median(drawn):.2f} s, solved after {statistics.median(solved):.2f} s; `import torch` alone "
            f"takes {statistics.median(imported):.2f} s",
        )


def chart_rows(repeats: int) -> Iterator[Row]:
    new, grown, same = asyncio.run(measure(2_000, Settings(), repeats))
    how = f"three series each at {WIDTH} x {HEIGHT}, headless; median of {repeats}; without new data {same:.0f} ms"
    measured = f"{grown:.1f} ms with 10 new points, {new:.1f} ms with all data new"
    yield Row("redraw of six charts, 2,000 points per series", "15 ms of CPU", measured, how)
    new, grown, same = asyncio.run(measure(100_000, Settings(smoothing=0.9), repeats))
    how = f"the same; without new data {same:.0f} ms"
    measured = f"{grown:.1f} ms with 10 new points, {new:.1f} ms with all data new"
    yield Row("redraw, 100,000 points per series, smoothing", "40 ms of CPU", measured, how)


def inspector_rows(repeats: int) -> Iterator[Row]:
    opened: list[float] = []
    pressed: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder) / "tokens", POINTS)
        stored = store_iteration(Run(Path(folder) / "tokens"))
        for _ in range(repeats):
            keys = InspectorKeys(stored)
            with open_ui(Path(folder), ViewState()) as screen:
                screen.wait_for(b"4321")
                screen.read_for(1)
                opened.append(screen.press("i", keys.step_text()) / 1000)
        with open_ui(Path(folder), ViewState()) as screen:
            screen.wait_for(b"4321")
            screen.press("i", keys.step_text())
            pressed |= {name: latencies(screen, moves) for name, moves in keys.moves(50).items()}
            screen.press("w", keys.option_text("gamma"))
            pressed["what-if"] = latencies(screen, [*keys.changes("gamma", -1, 9), *keys.changes("gamma", 1, 8)])
            for option in ("lam", "clip"):
                screen.press(DOWN, keys.option_text(option))
                pressed["what-if"] += latencies(screen, [*keys.changes(option, -1, 5), *keys.changes(option, 1, 4)])
    how = f"an iteration of {SAMPLES} samples x {TOKENS} tokens"
    longest = f"(longest {max(opened):.2f})"
    yield Row(
        "open the inspector", "0.5 s", f"{statistics.median(opened):.2f} s {longest}", f"{how}, median of {repeats}"
    )
    for name, found in pressed.items():
        yield Row(f"key to screen: {name}", "50 ms at the 95th percentile", format_latencies(found), how)


def reader_rows(repeats: int) -> Iterator[Row]:
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        write_events(Path(folder), 100_000)
        for _ in range(repeats):
            reader, began = EventReader(Path(folder)), time.perf_counter()
            reader.poll()
            rates.append(sum(map(len, reader.series.values())) / (time.perf_counter() - began))
    how = f"an event file with 100,000 events, including checksums; median of {repeats}"
    yield Row("reading event files", "1,000,000 points/s", f"{statistics.median(rates):,.0f} points/s", how)


def table() -> Iterator[Row]:
    yield Row("quantity", "target", "measured", "conditions")
    yield Row(*["---"] * 4)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        names = make_runs(runs, RUNS)
        yield from start_rows(runs, 5)
        yield from idle_rows(runs)
        yield from key_rows(runs, names)
    yield from launch_rows(5)
    yield from large_run_rows(3)
    yield from chart_rows(30)
    yield from inspector_rows(5)
    yield from reader_rows(5)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    for hidden in ("--write-on", "--start-only"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_on:
        act_as_trainer(options.write_on)
        return 0
    if options.start_only:
        run_after_imports(options.start_only)
        return 0
    loads, lines = [os.getloadavg()[0]], []
    for row in table():
        lines.append(str(row))
        loads.append(os.getloadavg()[0])
        print(row, flush=True)
    if options.out:
        packages = ", ".join(f"{package} {version(package)}" for package in ("textual", "rich", "numpy"))
        machine = (
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        )
        head = f"# The terminal UI\n\n{(__doc__ or '').split(chr(10), 4)[4]}\n"
        head += f"Command: `python benchmarks/terminal_ui.py`; {date.today()}; {machine}, {packages}; "
        head += f"load average {min(loads):.1f} to {max(loads):.1f}, including this script's own processes.\n\n"
        options.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
