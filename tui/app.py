"""The application of the terminal UI. It has one reader thread, and several screens that share one store."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from textual import work
from textual.binding import Binding, BindingType
from textual.command import CommandPalette
from textual.events import Event, InputEvent
from textual.message import Message
from textual.scrollbar import ScrollBar, ScrollBarRender

from ppo_unified.errors import UsageError
from ppo_unified.runs.background import StandbySlot
from ppo_unified.runs.folder import Run
from ppo_unified.text import can_unicode, clean
from tui.actions import available_actions, bindings, conditions_of, is_write_action, key_name
from tui.dialogs import TextDialog, help_text
from tui.messages import MessageApp
from tui.no_color import NoColorFilter
from tui.notices import Notice, Notices, desktop_notification
from tui.pacing import Pacer
from tui.palette import ActionProvider
from tui.reader import Reader
from tui.runs.entries import Entry
from tui.runs.runs_screen import RunsScreen
from tui.services import StoreListener
from tui.store import Store
from tui.themes import CYCLE, OURS
from tui.view_state import ViewState

if TYPE_CHECKING:
    from tui.new_run.launcher import Launcher

REUSED_BYTES = 1 << 24  # size of freed arrays up to which the process keeps their memory
PRELOAD_S = 0.5  # time from the start until the inspector is imported
BELL_PAUSE_S = 5.0  # minimum time between two bells
SWITCH_S = 0.0005  # thread switch interval; Python's default of 5 ms would delay keys while the reader runs


class _AsciiBar(ScrollBarRender):
    """A scrollbar without block characters."""

    VERTICAL_BARS: ClassVar[list[str]] = [" "] * 8
    HORIZONTAL_BARS: ClassVar[list[str]] = [" "] * 8


class Terminal(MessageApp):
    """The terminal UI for one runs folder. Implements `Services`."""

    TITLE = "ppo-unified"
    COMMANDS: ClassVar[set[Any]] = {ActionProvider}
    BINDINGS: ClassVar[list[BindingType]] = bindings("app")
    CSS_PATH = "app.tcss"

    class Found(Message):
        """The reader has found changes. A newer message replaces a pending one."""

        def can_replace(self, message: Message) -> bool:
            """Return True for a pending message of the same type."""
            return isinstance(message, Terminal.Found)

    def __init__(
        self,
        runs: Path,
        readonly: bool = False,
        store: Store | None = None,
        unicode: bool | None = None,
        rings: bool = True,
        standby_slot: StandbySlot | None = None,
    ) -> None:
        super().__init__()
        self.animation_level = "none"  # animation frames would delay keys over ssh
        if self.no_color:  # Textual's own filter keeps grays
            self._filters[1:] = [NoColorFilter()]
        self.runs, self.readonly, self.rings, self._standby_slot = runs, readonly, rings, standby_slot
        self.state = ViewState.load(runs)
        self.unicode = can_unicode(sys.stdout) if unicode is None else unicode
        ScrollBar.renderer = ScrollBarRender if self.unicode else _AsciiBar  # Textual has one renderer per process
        self.store = store or Store(runs)
        self.pacer, self._notices = Pacer(), Notices()
        self._alerts: list[str] = []  # notices since the last bell
        self._is_quiet = False  # the bell rang less than BELL_PAUSE_S ago
        self.reader = Reader(self.store, self.pacer, lambda: self.post_message(self.Found()))
        self.home = RunsScreen(self, self.store)

    @cached_property
    def _launcher(self) -> Launcher:
        from tui.new_run.launcher import Launcher  # imported late to show the first screen sooner

        return Launcher(self, self, self.home, self._standby_slot)

    def on_mount(self) -> None:
        self.set_class(not self.unicode, "-ascii")
        for theme in OURS:
            self.register_theme(theme)
        self.theme = self.state.theme if self.state.theme in self.available_themes else OURS[0].name
        self.push_screen(self.home)
        self.run_worker(self.reader.run, thread=True, exclusive=True, group="reader")

    def on_ready(self) -> None:
        """Tune memory management, which would otherwise delay keys: a garbage collection alone takes 70 ms."""
        if not self.is_headless:  # a test process creates many applications
            gc.freeze()
            # After this array is freed, glibc keeps the memory of freed arrays up to this size for reuse. Otherwise, it
            # returns the memory to the system each time, which costs the inspector thousands of page faults per key
            np.empty(REUSED_BYTES, np.uint8)
            self.set_interval(1, self._end_without_terminal)
            self.set_timer(PRELOAD_S, self._import_inspector)

    @work(thread=True, group="import", exit_on_error=False)
    def _import_inspector(self) -> None:
        """Import the inspector in a thread once the first screen is shown, so that the inspector opens sooner."""
        import tui.inspector.screen  # noqa: F401  # imported late to show the first screen sooner

    def _end_without_terminal(self) -> None:
        """Exit if the terminal has disappeared. Usually SIGHUP ends the UI first, but nohup ignores it."""
        if not sys.stdin.isatty():
            self.exit(return_code=1)

    def on_unmount(self) -> None:
        self.save_state()
        self.reader.stop()

    # changes found by the reader

    def on_terminal_found(self) -> None:
        """Show the changes as soon as the next redraw is due."""
        wait = self.pacer.wait_s()
        if wait > 0:
            self.set_timer(wait, lambda: self.post_message(self.Found()))
            return
        changes = self.reader.take()
        if not changes.is_news:
            return
        self.reader.pause()
        self.call_after_refresh(self._end_redraw, self.pacer.begin())
        if changes.listed:
            self._show_notices(self._notices.update(self.store.entries))
        for screen in self.screen_stack:
            if isinstance(screen, StoreListener) and screen.is_mounted:
                screen.update_from_store(changes)

    def _end_redraw(self, began: float) -> None:
        self.reader.resume()
        self.pacer.end(began)

    def _show_notices(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            self.notify(notice.text, severity=notice.severity, timeout=10, markup=False)
        self._alerts += [notice.text for notice in notices]
        if self._alerts and not self._is_quiet:
            self._alert()

    def _alert(self) -> None:
        """Ring once for all notices since the last bell, and again for later ones after a pause."""
        self._is_quiet = bool(self._alerts)
        if self._alerts:
            self.bell()
            if self.rings and self._driver is not None and not self.is_headless:
                self._driver.write(desktop_notification(self._alerts[0], len(self._alerts) - 1))
            self._alerts.clear()
            self.set_timer(BELL_PAUSE_S, self._alert)

    def bell(self) -> None:
        """Ring, unless the user turned the bell off."""
        if self.rings:
            super().bell()

    async def on_event(self, event: Event) -> None:
        if isinstance(event, InputEvent):
            self.pacer.touch()
        await super().on_event(event)

    # services

    def save_state(self) -> None:
        self.state.theme = self.theme
        self.state.save(self.runs)

    def read_now(self) -> None:
        self.pacer.hurry()
        self.reader.hurry()

    def attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (UsageError, OSError) as error:
            self.show_error(str(error))
        self.read_now()

    def run_in_thread(self, work: Callable[[], str], on_error: Callable[[str], object] | None = None) -> None:
        # a daemon thread does not delay quitting; runs are separate processes and continue
        threading.Thread(target=self._work, args=(work, on_error or self.show_error), daemon=True).start()
        self.read_now()

    def _work(self, work: Callable[[], str], on_error: Callable[[str], object]) -> None:
        try:
            text = work()
        except (UsageError, OSError) as error:
            self.call_later(on_error, str(error))
        else:
            self.call_later(partial(self.notify, markup=False), text)
        self.read_now()

    def show_error(self, text: str) -> None:
        self.notify("\n".join(map(clean, text.splitlines())), severity="error", markup=False)

    def open_picker(self) -> None:
        self._launcher.open_picker()

    def open_rerun(self, entry: Entry) -> None:
        self._launcher.open_rerun(entry)

    def on_run_renamed(self, key: str, run: Run) -> None:
        new = str(Path(key).with_name(run.name))
        self._launcher.on_run_renamed(key, new)
        self.home.on_run_renamed(key, new)
        self.save_state()

    def on_run_deleted(self, key: str) -> None:
        self._launcher.on_run_deleted(key)
        self.home.on_run_deleted(key)
        self.save_state()

    # actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return not (self.readonly and is_write_action(action))

    def action_help(self) -> None:
        explain = getattr(self.screen, "explain", None)
        offered, width = available_actions(self, self.screen), TextDialog.text_width(self.size.width)
        legend: Any = getattr(self.screen, "legend", tuple)
        text = help_text(offered, conditions_of(self.screen), explain() if explain else None, width, legend())
        self.push_screen(TextDialog("Help", text))

    def action_messages(self) -> None:
        self.push_screen(TextDialog("Messages", self.all_messages(TextDialog.text_width(self.size.width))))

    def action_help_quit(self) -> None:
        """Explain how to quit. Textual calls this on Ctrl-C."""
        self.notify("Press q in the list of runs, or Ctrl-Q anywhere, to quit. Active runs continue.", markup=False)

    def action_command_palette(self) -> None:
        """Open Textual's command palette with a placeholder text in ASCII."""
        if not any(isinstance(screen, CommandPalette) for screen in self.screen_stack):
            self.push_screen(CommandPalette(placeholder="Search for an action", id="--command-palette"))

    def get_key_display(self, binding: Binding) -> str:
        """Return the key as Textual shows it, or in ASCII if the terminal has no Unicode."""
        display = super().get_key_display(binding)
        return display if self.unicode or display.isascii() else key_name(binding.key)

    def action_theme(self) -> None:
        self.theme = CYCLE[(CYCLE.index(self.theme) + 1) % len(CYCLE)] if self.theme in CYCLE else CYCLE[0]

    def watch_theme(self) -> None:
        self.save_state()


def run(
    runs: Path,
    readonly: bool = False,
    rings: bool = True,
    standby_slot: StandbySlot | None = None,
    language: str | None = None,
) -> int:
    """Run the UI until the user quits, and return its exit code."""
    from tui.terminal_modes import restore_terminal

    sys.setswitchinterval(SWITCH_S)
    with restore_terminal():
        app = Terminal(runs, readonly, rings=rings, standby_slot=standby_slot)
        app.state.language = language or app.state.language
        app.run()
    return app.return_code or 0
