"""Runs the UI in tmux: sends keys, resizes the window, and checks the screen and the restored terminal."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from ppo_unified.runs.folder import ALIVE, Run
from ppo_unified.runs.processes import stop
from tests.scenes import make_scenes
from tui.pacing import REFRESH_S
from tui.reader import QUIET_S
from tui.store import Store

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="these tests need tmux, which is not installed")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = f"{sys.executable} -P -m ppo_unified"
LONG = "cartpole --no-stop-when-solved --total-steps 100000000"
COLORS = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[\d;]*)?m")  # 39 and 49 are the default
CRASH_SHOWN_S = 2.0  # maximum time until a killed trainer is shown as crashed


class Terminal:
    """A tmux window with a shell, on a separate tmux server."""

    def __init__(self, folder: Path, socket: str, size: tuple[int, int], extra: Mapping[str, str]) -> None:
        self.folder, self.socket = folder, socket
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
        home = {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder / "config")}
        shell = {"SHELL": "/bin/sh", "PS1": "ready> ", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}
        self.environment = kept | home | shell | dict(extra)
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(size[0]), "-y", str(size[1]), "exec /bin/sh")
        if "TERM" in extra:
            self.type(f"export TERM={extra['TERM']}")
        self.wait_until(lambda: "ready>" in self.screen())

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-L", self.socket, *arguments]
        found = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, check=True)
        return found.stdout.decode()

    def keys(self, *names: str) -> None:
        """Press keys, given by their tmux names."""
        self._tmux("send-keys", *names)

    def type(self, line: str) -> None:
        """Enter a command in the shell. Enter works in every terminal mode."""
        self._tmux("send-keys", "-l", line)
        self._tmux("send-keys", "C-j")

    def screen(self, colors: bool = False) -> str:
        return self._tmux("capture-pane", "-p", *(["-e"] if colors else []))

    def modes(self) -> str:
        """Return flags for mouse reports, the alternate screen and the visible cursor."""
        return self._tmux("display-message", "-p", "#{mouse_any_flag} #{alternate_on} #{cursor_flag}").strip()

    def line_modes(self) -> str:
        """Return the output of stty for the terminal."""
        device = self._tmux("display-message", "-p", "#{pane_tty}").strip()
        with open(device, encoding="ascii") as terminal:
            return subprocess.run(["stty", "-a"], stdin=terminal, capture_output=True, check=True).stdout.decode()

    def programs(self) -> list[int]:
        """Return the process ids of the shell's child processes."""
        shell = self._tmux("display-message", "-p", "#{pane_pid}").strip()
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", shell], capture_output=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def resize(self, columns: int, lines: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def wait_until(self, condition: Callable[[], object], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"timed out:\n{self.screen()}"
            time.sleep(0.05)

    def shows(self, *texts: str) -> None:
        """Wait until all of these texts are on the screen."""
        self.wait_until(lambda: all(text in self.screen() for text in texts))

    def close(self) -> None:
        """Stop the server if it still runs."""
        subprocess.run(
            ["tmux", "-L", self.socket, "kill-server"], env=self.environment, capture_output=True, check=False
        )


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Open terminals; their servers and trainers are stopped after the test."""
    opened: list[Terminal] = []

    def open_one(size: tuple[int, int] = (120, 40), **extra: str) -> Terminal:
        socket = f"ppo-{os.getpid()}-{request.node.name[:40]}-{len(opened)}"
        opened.append(Terminal(tmp_path, socket, size, extra))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
    for path in (tmp_path / "runs").glob("*/run.json"):
        run = Run(path.parent)
        if run.state(run.read_status()) in ALIVE:
            stop(run, kill=True)


def curve_of(screen: str) -> str:
    """Return the Braille dots on the screen."""
    return "\n".join(re.sub(r"[^\u2801-\u28ff]", " ", line) for line in screen.splitlines())


def state_of(terminal: Terminal, name: str) -> str:
    """Return the state of a run from run.json and its lock."""
    run = Run(terminal.folder / "runs" / name)
    return run.state(run.read_status()) if (run.path / "run.json").exists() else ""


def start_long_run(terminal: Terminal, name: str) -> None:
    """Start a run in the background that does not end by itself."""
    terminal.type(f"{PROGRAM} train {LONG} --name {name} --detach")
    terminal.wait_until(lambda: state_of(terminal, name) == "running")


def test_three_keys_solve_cartpole_in_a_real_terminal(terminal: Open) -> None:
    one = terminal()
    one.type(PROGRAM)
    one.shows("No runs yet", "New run")
    one.keys("n")
    one.shows("New run: select a target", "cartpole")
    one.keys("Enter")
    one.shows("New run: cartpole", "$ ppo-unified train cartpole")
    one.keys("Enter")
    one.shows("cartpole-s1", "running")
    seen: set[str] = set()

    def is_solved() -> bool:
        screen = one.screen()
        seen.add(curve_of(screen))
        return "cartpole-s1: solved after" in screen

    one.wait_until(is_solved)
    assert len({picture for picture in seen if picture.strip()}) >= 3  # the curves have changed
    assert "eval/score" in one.screen()
    one.keys("q")
    one.wait_until(lambda: not one.programs())
    one.wait_until(lambda: one.modes() == "0 0 1")


def test_stop_resume_quit_and_restart(terminal: Open) -> None:
    one = terminal((80, 24))
    one.type(f"{PROGRAM} train {LONG} --name long --detach && clear && {PROGRAM}")
    one.shows("long", "running", "New run")
    one.keys("s")
    one.shows("long  stopped")
    assert state_of(one, "long") == "stopped"
    one.keys("r")
    one.wait_until(lambda: state_of(one, "long") == "running")
    one.shows("long  running")
    one.keys("q")
    one.wait_until(lambda: not one.programs())
    assert state_of(one, "long") == "running"
    one.type(PROGRAM)
    one.shows("long  running", "1 running")


def test_killed_ui_keeps_runs_and_next_one_restores_terminal(terminal: Open) -> None:
    one = terminal()
    start_long_run(one, "long")
    one.type(PROGRAM)
    one.shows("long", "running", "New run")
    os.kill(one.programs()[0], signal.SIGKILL)
    one.wait_until(lambda: not one.programs())
    assert one.modes() == "1 1 0"
    assert "-icanon" in one.line_modes()
    assert "-echo " in one.line_modes()
    assert state_of(one, "long") == "running"
    one.type(PROGRAM)
    one.shows("long", "running", "New run")
    one.keys("q")
    one.wait_until(lambda: not one.programs())
    one.wait_until(lambda: one.modes() == "0 0 1")
    assert not {"-icanon", "-echo", "-isig", "-opost", "-icrnl"} & set(one.line_modes().replace(";", " ").split())
    one.wait_until(lambda: one.screen().rstrip().endswith("ready>"))
    prompts = one.screen().count("ready>")
    one.keys("C-c")
    one.wait_until(lambda: one.screen().count("ready>") > prompts)  # the shell would discard earlier input
    one.type("echo a$((1+1))b")  # the shell echoes the input
    one.shows("a2b")


def test_killed_trainer_is_shown_as_crashed(terminal: Open) -> None:
    one = terminal()
    start_long_run(one, "long")
    one.type(PROGRAM)
    one.shows("long", "running", "1 running")
    run, now = Run(one.folder / "runs" / "long"), time.time()
    store = Store(run.path.parent, clock=lambda: now)
    store.update()
    assert store.entries["long"].state == "running"
    os.kill(run.read_status().pid, signal.SIGKILL)
    one.wait_until(lambda: not run.is_locked())
    waited = REFRESH_S  # the UI's own delays, independent of the machine's speed
    while store.entries["long"].state != "crashed":
        now, waited = now + QUIET_S, waited + QUIET_S
        assert waited <= CRASH_SHOWN_S
        store.update()
    one.shows("long", "crashed", "0 running")


def test_watch_survives_ctrl_c_and_ends_with_the_ui(terminal: Open) -> None:
    one = terminal()
    one.type(f"{PROGRAM} train cartpole --total-steps 2048 --name short && {PROGRAM}")
    one.shows("short", "finished", "New run")
    one.keys("w")
    one.shows("episode 1", "return", "Next episode")
    one.keys("C-c")
    one.shows("Ctrl-Q anywhere")
    one.shows("episode 1")
    one.keys("C-q")
    one.wait_until(lambda: not one.programs())
    one.wait_until(lambda: one.modes() == "0 0 1")


def test_missing_terminal_is_a_one_line_error(terminal: Open) -> None:
    one = terminal(TERM="dumb")
    one.type(f"{PROGRAM} tui")
    message = "ppo-unified tui requires a terminal (TERM=dumb); without one, use ppo-unified runs and ppo-unified show"
    one.shows(message)
    command = [*PROGRAM.split(), "tui"]
    result = subprocess.run(command, env=one.environment, cwd=one.folder, capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.count(b"\n") == 1
    assert b"requires a terminal (stdin or stdout is not a terminal)" in result.stderr


def test_colors_and_unicode_can_be_disabled(terminal: Open) -> None:
    make_scenes(terminal().folder / "runs")
    plain = terminal(NO_COLOR="1", LC_ALL="C")
    plain.type(PROGRAM)
    plain.shows("cartpole", "eval/score")
    for keys, text in (((), "New run"), (("f",), "Next metric"), (("q", "n"), "select a target")):
        plain.keys(*keys)
        plain.shows(text)
        assert not COLORS.search(plain.screen(colors=True))
        assert plain.screen().isascii()
    colored = terminal()
    colored.type(PROGRAM)
    colored.shows("cartpole", "eval/score", "New run")
    assert COLORS.search(colored.screen(colors=True))
    assert not colored.screen().isascii()


def test_resizing_keeps_everything_on_screen(terminal: Open) -> None:
    one = terminal((200, 60))
    make_scenes(one.folder / "runs")
    one.type(PROGRAM)
    one.shows("cartpole", "eval/score", "New run", "Quit")
    for columns, lines in ((80, 24), (120, 40), (200, 60)):
        one.resize(columns, lines)

        def fits(lines: int = lines) -> bool:
            screen = one.screen().splitlines()
            edges = len(screen) == lines and "New run" in screen[-1] and "ppo-unified" in screen[0]
            return edges and "eval/score" in one.screen() and "sentiment-s1" in one.screen()

        one.wait_until(fits)
        assert max(map(len, one.screen().splitlines())) <= columns


def test_ui_exits_when_its_terminal_disappears(tmp_path: Path) -> None:
    """Without a controlling terminal, the UI gets no SIGHUP."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ppo_unified", "tui", "--runs", str(tmp_path)],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
    )
    os.close(its)
    output = b""
    while b"New run" not in output:
        output += os.read(ours, 65536)
    assert process.poll() is None
    os.close(ours)
    try:
        assert process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
