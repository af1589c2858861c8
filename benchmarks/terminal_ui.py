"""What the terminal UI costs and how fast it answers, as the real program in a pseudo-terminal.

    python benchmarks/terminal_ui.py [--out benchmarks/tui.md]

Made-up folders of runs are watched by `ppo-unified tui` in a terminal of 120 x 40; a key's time is from writing it to
the terminal to reading the bytes of its effect from it. Between keys pass 50 to 250 ms, so that they fall on every
part of a refresh. Writers are processes that hold a run's lock and write 20 events of 20 metrics a second and
run.json once a second. Charts alone are measured as `benchmarks/charts.py` does.
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
from synthetic_runs import METRICS_EACH, POINTS, act_as_trainer, make_run, make_runs, write_events

from ppo_unified.runs.event_reader import EventReader
from tui.charts.settings import Settings
from tui.view_state import ViewState

WIDTH, HEIGHT = 120, 40
RUNS, BIG = 200, 1_000_000
WRITERS = 4
TIMEOUT_S = 60.0
DOTS = rb"\xe2[\xa0-\xa3][\x80-\xbf]"  # of a curve; a single point is none
IMPORT = "import time; begun = time.perf_counter(); import torch; print(time.perf_counter() - begun)"
STARTED = b"\x1b]0;started\x07"  # a title that the program is given between its imports and its start
MIB = 2**20


class Row(NamedTuple):
    what: str
    target: str
    measured: str
    how: str

    def __str__(self) -> str:
        return f"| {' | '.join(self)} |"


# folders of runs


@contextmanager
def run_writers(folders: Sequence[Path]) -> Iterator[None]:
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
    """The program in a pseudo-terminal whose output is read all the time."""

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
        self.peak = 0  # bytes of memory
        self._mark = 0  # where the output since the last key or find starts

    def read_for(self, seconds: float) -> None:
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            self._read(left)

    def wait_for(self, pattern: bytes) -> float:
        """The clock when a pattern was read."""
        deadline = time.perf_counter() + TIMEOUT_S
        while not (match := re.compile(pattern).search(self.output, self._mark)):
            if time.perf_counter() > deadline:
                raise SystemExit(f"{pattern!r} did not come; the last bytes: {self.output[-2000:]!r}")
            self._read(1.0)
        self._mark = match.end()
        return time.perf_counter()

    def press(self, key: str, pattern: bytes) -> float:
        """Milliseconds from a key to a pattern."""
        self._read(0)
        self.skip_output()
        pressed = time.perf_counter()
        os.write(self._master, key.encode())
        return 1000 * (self.wait_for(pattern) - pressed)

    def skip_output(self) -> None:
        """What was read so far answers no `until` any more."""
        self._mark = len(self.output)

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """Leave as a user does."""
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
            except OSError:  # how a pseudo-terminal says that nobody writes to it any more
                data = b""
            self.output += data
        if self.process.poll() is None:
            self.peak = max(self.peak, self.process.memory_info().rss)


@contextmanager
def open_ui(
    runs: Path, view: ViewState, command: Sequence[str] = ("-m", "ppo_unified", "tui", "--runs")
) -> Iterator[Screen]:
    """The terminal UI over a folder of runs, as a user left it with `view`."""
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
    """The program with its imports done before the clock starts."""
    from tui.app import run

    sys.stdout.buffer.write(STARTED)
    sys.stdout.buffer.flush()
    run(runs)


def cursor_pattern(name: str) -> bytes:
    """The cursor's line: the only one with a run's name in bold."""
    return rb"\x1b\[1;[0-9;]*m" + name.encode()


def steps_down(names: Sequence[str], count: int) -> list[tuple[str, bytes]]:
    """Keys that walk down the list, and what each brings."""
    return [("j", cursor_pattern(name)) for name in names[1 : count + 1]]


def steps_up(names: Sequence[str]) -> list[tuple[str, bytes]]:
    return [("k", cursor_pattern(name)) for name in names[-2::-1]]


def chart_keys(count: int) -> list[tuple[str, bytes]]:
    """Keys that draw every chart anew, and what the line below the charts says then."""
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


# the lines of the table


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
        "first paint: the list", "1 s", f"{statistics.median(listed):.2f} s", f"from App.run, imports done; {how}"
    )
    yield Row("first paint: the curves of the first run, too", "1 s", f"{statistics.median(drawn):.2f} s", "the same")
    yield Row(
        "first paint from the process's start",
        "-",
        f"{statistics.median(whole):.2f} s",
        "`ppo-unified tui`: interpreter and imports, too",
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
    how = f"{WRITERS} processes write into {WRITERS} marked runs of {RUNS}"
    yield Row("key to screen: cursor in the list", "50 ms at the 95th percentile", format_latencies(walking), how)
    yield Row(
        "key to screen: six charts drawn anew",
        "50 ms at the 95th percentile",
        format_latencies(charting),
        f"smoothing, x axis, log y; {how}",
    )
    yield Row("written to the terminal", "60 kB/s", f"{rate:.0f} kB/s", f"15 s without a key; {how}")
    yield Row("processor time meanwhile", "-", f"{share:.1%} of a core", "the same 15 s")
    yield Row("memory, 200 runs", "500 MB", f"{screen.peak / 1e6:.0f} MB", "most resident memory of the UI's process")


def idle_rows(runs: Path, seconds: float = 20) -> Iterator[Row]:
    with open_ui(runs, ViewState(sorted_by="name")) as screen:
        screen.wait_for(b"4321")
        screen.read_for(5)
        before, received = screen.cpu_s(), len(screen.output)
        screen.read_for(seconds)
        share, rate = (screen.cpu_s() - before) / seconds, (len(screen.output) - received) / seconds
    yield Row(
        "processor time when nothing moves",
        "2 % of a core",
        f"{share:.1%}",
        f"{RUNS} ended runs, {seconds:.0f} s; {rate:,.0f} bytes/s to the terminal",
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
        "a large run, drawn to its end",
        "25 s",
        f"{statistics.median(seconds):.1f} s",
        f"from the list on screen to the last value; {how}",
    )
    yield Row(
        "key to screen meanwhile", "50 ms at the 95th percentile", format_latencies(pressed), "cursor in the list"
    )
    yield Row("memory, large run", "500 MB", f"{peak / 1e6:.0f} MB", "most resident memory of the UI's process")


def launch_rows(repeats: int) -> Iterator[Row]:
    drawn, moved, solved, imported = [], [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder, open_ui(Path(folder), ViewState()) as screen:
            screen.wait_for(b"New run")
            screen.press("n", b"select a target")
            screen.press("\r", rb"\$ ppo-unified train cartpole")
            screen.press("\r", b"cartpole-s1")
            drawn.append(screen.wait_for(DOTS) - screen.started)
            screen.read_for(0.1)  # the rest of that picture
            screen.skip_output()
            moved.append(screen.wait_for(DOTS) - screen.started)
            solved.append(screen.wait_for(b"solved") - screen.started)
        imported.append(float(subprocess.check_output([sys.executable, "-c", IMPORT])))
    yield Row(
        "from the command to a CartPole whose curve moves",
        "4 keys and 5 s",
        f"3 keys, {statistics.median(moved):.1f} s (longest {max(moved):.1f})",
        f"an empty folder; each key as soon as its screen is there; median of {repeats}; drawn at "
        f"{statistics.median(drawn):.1f} s, solved on screen at {statistics.median(solved):.1f} s; of it "
        f"{statistics.median(imported):.1f} s for `import torch` in the trainer",
    )


def chart_rows(repeats: int) -> Iterator[Row]:
    new, grown, same = asyncio.run(measure(2_000, Settings(), repeats))
    how = f"six of three series at {WIDTH} x {HEIGHT}, headless; median of {repeats}; with nothing new {same:.0f} ms"
    yield Row(
        "redraw of six charts, 2,000 points a series", "15 ms of CPU", f"{grown:.1f} ms, all data new {new:.1f} ms", how
    )
    new, grown, same = asyncio.run(measure(100_000, Settings(smoothing=0.9), repeats))
    how = f"the same; with nothing new {same:.0f} ms"
    measured = f"{grown:.1f} ms, all data new {new:.1f} ms"
    yield Row("redraw, 100,000 points a series, smoothing", "40 ms of CPU", measured, how)


def reader_rows(repeats: int) -> Iterator[Row]:
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        write_events(Path(folder), 100_000)
        for _ in range(repeats):
            reader, began = EventReader(Path(folder)), time.perf_counter()
            reader.poll()
            rates.append(sum(map(len, reader.series.values())) / (time.perf_counter() - began))
    how = f"a run's file of 100,000 events, checksums included; median of {repeats}"
    yield Row("reader", "1,000,000 points/s", f"{statistics.median(rates):,.0f} points/s", how)


def table() -> Iterator[Row]:
    yield Row("what", "target", "measured", "how")
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
    yield from reader_rows(5)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table here too")
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
        head += f"load average {min(loads):.1f} to {max(loads):.1f}, this script's own processes included.\n\n"
        options.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
