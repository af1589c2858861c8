"""The terminal UI's program: one reader thread, screens over one store, runs started as processes of their own."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import CommandPalette
from textual.events import Event, InputEvent
from textual.message import Message
from textual.screen import Screen
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.worker import get_current_worker

from ppo_unified.errors import UsageError
from ppo_unified.runs import control
from ppo_unified.runs.folder import ACTIVE, Run, read_warnings
from ppo_unified.text import can_unicode, clean
from tui.actions import Action, Place, at, bindings, key_name, writes
from tui.charts.metric_screen import MetricScreen
from tui.dialogs import Read, help_text
from tui.external_command import run_outside
from tui.new_run.form import Form
from tui.new_run.picker import Picker
from tui.no_color import Plain
from tui.palette import Actions
from tui.runs.run_page import RunPage
from tui.runs.runs_view import RunsScreen
from tui.state import ViewState
from tui.store import Changes, Entry, Store
from tui.themes import CYCLE, OURS

BUSY_S, QUIET_S = 0.02, 0.5  # between two turns of the reader: more to read at once, or nothing new
EAGER_S, EAGER_FOR_S = 0.05, 3.0  # while a run that trains has yet to write its first point; and after it
SWITCH_S = 0.0005  # the reader's thread lets a key in after this long; Python's own is ten times that
REFRESH_S = 0.5  # between two pictures of what the reader found
LONGEST_PICTURE_S = 1.0  # that the reader waits for at most
IDLE_SHARE, TYPING_SHARE = 10, 60  # pictures take at most this part of the time; while one types, few keys wait for one
TYPING_S = 2.0  # after a key or the mouse
MESSAGES = {"finished": "information", "failed": "error", "crashed": "error", "stalled": "warning"}


class _AsciiBar(ScrollBarRender):
    """Without the blocks that tell eighths of a line."""

    VERTICAL_BARS: ClassVar[list[str]] = [" "] * 8
    HORIZONTAL_BARS: ClassVar[list[str]] = [" "] * 8


class Terminal(App[None]):
    """The UI over one runs folder."""

    TITLE = "ppo-unified"
    COMMANDS: ClassVar[set[Any]] = {Actions}
    BINDINGS: ClassVar[list[BindingType]] = bindings("app")
    CSS_PATH = "app.tcss"

    class Found(Message):
        """The reader has something new; a later one takes the place of an earlier one not yet seen."""

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Terminal.Found)

    class News(Message):
        """A thread has something for a function that touches widgets. Where the user has left, nobody hears it."""

        def __init__(self, take: Callable[[Any], object], what: object) -> None:
            super().__init__()
            self.take, self.what = take, what

    def __init__(
        self, runs: Path, readonly: bool = False, store: Store | None = None, unicode: bool | None = None
    ) -> None:
        super().__init__()
        self.animation_level = "none"  # over ssh every frame of one is bytes, and a key waits for it
        if self.no_color:  # Textual's own filter for it leaves greys
            self._filters[1:] = [Plain()]
        self.runs, self.readonly = runs, readonly
        self.state = ViewState.load(runs)
        self.unicode = can_unicode(sys.stdout) if unicode is None else unicode
        ScrollBar.renderer = ScrollBarRender if self.unicode else _AsciiBar  # Textual has one for all of a program
        self.store = store or Store(runs)
        self._leaving, self._hurry = threading.Event(), threading.Event()
        self._undisturbed = threading.Event()  # nothing is being drawn: two threads at once would take twice as long
        self._undisturbed.set()
        self._lock = threading.Lock()
        self._changes = Changes(False, frozenset(), False)  # found since the last picture
        self._states: dict[str, str] = {}  # as last told of
        self._warned: dict[str, set[str]] = {}  # names of the health checks that fired then
        self._painted = 0.0  # when the last picture was, on the monotonic clock
        self._took = deque((0.0, 0.0, 0.0), maxlen=3)  # seconds of the last pictures
        self._eager_until = 0.0  # while first curves grow
        self._touched = 0.0  # when a key or the mouse was last heard of, on the monotonic clock
        self.typed: dict[str, dict[str, str]] = self.state.typed

    def on_mount(self) -> None:
        self.set_class(not self.unicode, "-ascii")
        for theme in OURS:
            self.register_theme(theme)
        self.theme = self.state.theme if self.state.theme in self.available_themes else OURS[0].name
        self.push_screen(RunsScreen(self.store))
        self.read_on()

    def on_ready(self) -> None:
        """Spare the garbage collector what stays until the end: looking through it held keys up for 70 ms."""
        if not self.is_headless:  # a test's process makes many applications
            gc.freeze()
            self.set_interval(1, self._end_without_terminal)

    def _end_without_terminal(self) -> None:
        """Nobody sees or types anything any more. SIGHUP tells it first, where it isn't ignored as under nohup."""
        if not sys.stdin.isatty():
            self.exit(return_code=1)

    def on_unmount(self) -> None:
        self.remember()
        self._leaving.set()
        self._hurry.set()

    # reading

    @work(thread=True, exclusive=True, group="reader", exit_on_error=True)
    def read_on(self) -> None:
        """Read what runs write until the program ends. Touches no widget."""
        worker = get_current_worker()
        while not (worker.is_cancelled or self._leaving.is_set()):
            self._undisturbed.wait(LONGEST_PICTURE_S)
            awaited = self.store.is_eager()
            changes = self.store.turn()
            if changes.listed or changes.advanced:
                if awaited and not self.store.is_eager():  # the first curves are shown at once
                    self._painted, self._eager_until = 0.0, time.monotonic() + EAGER_FOR_S
                with self._lock:
                    before = self._changes
                    self._changes = Changes(
                        before.listed or changes.listed, before.advanced | changes.advanced, changes.pending
                    )
                self.post_message(self.Found())
            eager = self.store.is_eager() or time.monotonic() < self._eager_until
            self._hurry.wait(BUSY_S if changes.pending else EAGER_S if eager else QUIET_S)
            self._hurry.clear()

    def hurry(self) -> None:
        """Let the reader look at once, and show what it finds: something was started or asked for."""
        self._painted = 0.0
        self.store.look_again()
        self._hurry.set()

    def on_terminal_found(self) -> None:
        """Show it, no sooner after the last picture than `_refresh_s` says."""
        wait = self._painted + self._refresh_s() - time.monotonic()
        if wait > 0:
            self.set_timer(wait, lambda: self.post_message(self.Found()))
            return
        with self._lock:
            changes, self._changes = self._changes, Changes(False, frozenset(), False)
        if not (changes.listed or changes.advanced):
            return
        self._painted = began = time.monotonic()
        self._undisturbed.clear()
        self.call_after_refresh(self._pictured, began)
        if changes.listed:
            self._tell_ends()
            self._tell_warnings()
        for screen in self.screen_stack:
            if isinstance(screen, RunsScreen | RunPage | MetricScreen) and screen.is_mounted:
                screen.store_changed(changes)

    def _pictured(self, began: float) -> None:
        """A picture that was begun at this time, on the monotonic clock, is on screen."""
        self._undisturbed.set()
        self._took.append(time.monotonic() - began)

    def _refresh_s(self) -> float:
        """Between two pictures. A single long one, such as the first with other charts, tells little of the next."""
        now = time.monotonic()
        least = REFRESH_S / 4 if now < self._eager_until else REFRESH_S
        if now - self._touched < TYPING_S:
            return max(least, TYPING_SHARE * self._took[-1])
        return max(least, IDLE_SHARE * median(self._took))

    async def on_event(self, event: Event) -> None:
        if isinstance(event, InputEvent):
            self._touched = time.monotonic()
        await super().on_event(event)

    def _tell_ends(self) -> None:
        """A word where a run that was seen alive has ended or hangs."""
        entries = self.store.entries
        for key, entry in entries.items():
            before = self._states.get(key)
            if before in (*ACTIVE, "stalled") and entry.state in MESSAGES and entry.state != before:
                self._tell(entry)
        self._states = {key: entry.state for key, entry in entries.items()}

    def _tell_warnings(self) -> None:
        """A word where a health check of a run that was seen before has begun to fire."""
        warned = {key: read_warnings(entry.status) for key, entry in self.store.entries.items()}
        for key, warnings in warned.items():
            for warning in warnings:
                if warning.name not in self._warned.get(key, {warning.name}):
                    text = f"{key}: {warning.name}: {warning.text}"
                    self.notify(clean(text), severity="warning", timeout=10, markup=False)
        self._warned = {key: {warning.name for warning in warnings} for key, warnings in warned.items()}

    def _tell(self, entry: Entry) -> None:
        status = entry.status
        reason = f" ({clean(status.reason)})" if status.reason else ""
        score = "" if status.best_score is None else f", best score {status.best_score:.4g}"
        text = f"{clean(entry.key)}: {entry.state}{reason} after {status.step:,} steps{score}"
        severity: Any = MESSAGES[entry.state]
        self.notify(text, severity=severity, timeout=10, markup=False)
        self.bell()
        if self._driver is not None and not self.is_headless:
            self._driver.write(f"\x1b]9;{text}\x07")  # a desktop notification, where the terminal has them

    # what screens ask for

    def remember(self) -> None:
        self.state.theme = self.theme
        self.state.save(self.runs)

    def attempt(self, work: Callable[[], object]) -> None:
        """Do something quick to a run folder; a refusal is shown."""
        try:
            work()
        except (UsageError, OSError) as error:
            self.complain(str(error))
        self.hurry()

    def in_thread(self, work: Callable[[], str], refused: Callable[[str], object] | None = None) -> None:
        """Do something slow to a run; what it answers is shown, and so is why it was refused, unless `refused` does.

        The program does not wait for it when the user leaves: what was begun goes on in a process of its own.
        """
        threading.Thread(target=self._do, args=(work, refused or self.complain), daemon=True).start()
        self.hurry()

    def _do(self, work: Callable[[], str], refused: Callable[[str], object]) -> None:
        try:
            answer = work()
        except (UsageError, OSError) as error:
            self.post_message(self.News(refused, str(error)))
        else:
            self.post_message(self.News(partial(self.notify, markup=False), answer))
        self.hurry()

    def on_terminal_news(self, message: Terminal.News) -> None:
        message.take(message.what)

    def complain(self, text: str) -> None:
        self.notify("\n".join(map(clean, text.splitlines())), severity="error", timeout=15, markup=False)

    def open_picker(self) -> None:
        self.push_screen(Picker(self.open_form))

    def open_form(self, target: str) -> None:
        self._push_form(target, "", target, {})

    def open_rerun(self, entry: Entry) -> None:
        """What is typed into its form is kept for this run; another one that gets its name has its own options."""
        from tui.new_run.form_model import arguments_of

        try:
            target, recipe, typed = arguments_of(Run(entry.path))
        except UsageError as error:
            self.complain(str(error))
            return
        kept = _rerun_of(entry.key, entry.status.started)
        for other in self._reruns(entry.key) - {kept}:
            del self.typed[other]
        self._push_form(target, recipe, kept, typed)

    def _reruns(self, key: str) -> set[str]:
        """Under what names texts are kept of forms that were to start runs like this one."""
        return {name for name in self.typed if name.rpartition(" ")[0] == _rerun_of(key)}

    def _push_form(self, target: str, recipe: str, kept: str, typed: dict[str, str]) -> None:
        """Open a form over what is kept under this name, or over `typed` where nothing is."""
        typed, start = self.typed.setdefault(kept, typed), partial(self.start_runs, kept=kept)
        self.push_screen(Form(target, recipe=recipe, typed=typed, runs=self.runs, start=start))

    def _is_being_typed(self, texts: dict[str, str] | None) -> bool:
        return any(isinstance(screen, Form) and screen.typed is texts for screen in self.screen_stack)

    def start_runs(self, arguments: Sequence[Sequence[str]], kept: str = "") -> None:
        """Start a process for each list of arguments of `train`. The form they come from stays until a run begins, and
        shows why one does not. What was typed there, kept under this name, is then let go of: `rerun` brings it back,
        and a refusal does. Another form may have been opened meanwhile; what is typed there stays as it is."""
        form = self.screen if isinstance(self.screen, Form) else None

        def begun(run: Run) -> None:
            if form is not None and form in self.screen_stack:
                while not isinstance(self.screen, RunsScreen):
                    self.pop_screen()
            if form is not None and self.typed.get(kept) is form.typed and not self._is_being_typed(form.typed):
                del self.typed[kept]
            for screen in self.screen_stack:
                if isinstance(screen, RunsScreen):
                    screen.focus_run(run.name)
            self.hurry()

        def refused(text: str) -> None:
            newer = self.typed.get(kept)
            if form is not None and not newer and not self._is_being_typed(newer):
                self.typed[kept] = form.typed
            form.refused(text) if form is not None and form in self.screen_stack else self.complain(text)

        def work(one: Sequence[str]) -> str:
            run = control.start(one, self.runs, on_created=lambda run: self.post_message(self.News(begun, run)))
            return f"{clean(run.name)} is training"

        for one in arguments:
            self.in_thread(partial(work, one), refused)

    def renamed(self, key: str, run: Run) -> None:
        """Keep marks, pin, cursor and what was typed to rerun it of a run that has another name now."""
        state, new = self.state, str(Path(key).with_name(run.name))
        for name in self._reruns(key):
            self.typed[_rerun_of(new, name.rpartition(" ")[2])] = self.typed.pop(name)
        state.marked = [new if name == key else name for name in state.marked]
        state.pinned = new if state.pinned == key else state.pinned
        self.remember()
        for screen in self.screen_stack:
            if isinstance(screen, RunsScreen):
                screen.run_list.move_to(new)

    def deleted(self, key: str) -> None:
        """Forget marks, pin and what was typed to rerun it of a run that is gone: another one may get its name."""
        state = self.state
        for name in self._reruns(key):
            del self.typed[name]
        state.marked = [name for name in state.marked if name != key]
        state.pinned = "" if state.pinned == key else state.pinned
        self.remember()

    def outside(self, command: str, run: Run) -> None:
        """Let another command have the terminal until it ends."""
        run_outside(self, [command, run.name, "--runs", str(run.path.parent)])
        self.hurry()

    # actions

    def offered(self, screen: Screen[Any]) -> Iterator[tuple[Place, list[Action]]]:
        """By place, the actions that a screen takes now: not those of a hidden tab, nor what --readonly forbids."""
        for place in (*getattr(screen, "places", ()), "app"):
            owner = self if place == "app" else screen
            taken = [action for action in at(place) if owner.check_action(action.name, ()) is not False]
            if taken:
                yield place, taken

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return not (self.readonly and writes(action))

    def action_help(self) -> None:
        screen = self.screen
        explain = getattr(screen, "explain", None)
        width = Read.room(self.size.width)
        text = help_text(self.offered(screen), explain() if explain else None, width)
        self.push_screen(Read("Keys", text))

    def action_help_quit(self) -> None:
        """Ctrl-C, which ends other programs."""
        self.notify("q in the list, or Ctrl-Q anywhere, leaves; running runs go on.", markup=False)

    def action_command_palette(self) -> None:
        """Textual's own, without its three dots: not every terminal has them."""
        if not any(isinstance(screen, CommandPalette) for screen in self.screen_stack):
            self.push_screen(CommandPalette(placeholder="words of what you want to do", id="--command-palette"))

    def get_key_display(self, binding: Binding) -> str:
        """As Textual shows a key, but in ASCII where that is all there is."""
        display = super().get_key_display(binding)
        return display if self.unicode or display.isascii() else key_name(binding.key)

    def action_theme(self) -> None:
        self.theme = CYCLE[(CYCLE.index(self.theme) + 1) % len(CYCLE)] if self.theme in CYCLE else CYCLE[0]

    def watch_theme(self) -> None:
        self.remember()
        for screen in self.screen_stack:
            if isinstance(screen, RunsScreen) and screen.is_mounted:
                self.call_after_refresh(screen.theme_changed)


def _rerun_of(key: str, *started: object) -> str:
    """Under what name texts are kept of the form that is to start a run like this one, started then."""
    return " ".join(["again:", key, *map(str, started)])


def run(runs: Path, readonly: bool = False) -> int:
    """Run the UI until the user leaves; its exit code."""
    from tui.terminal import restored

    sys.setswitchinterval(SWITCH_S)
    with restored():
        app = Terminal(runs, readonly)
        app.run()
    return app.return_code or 0
