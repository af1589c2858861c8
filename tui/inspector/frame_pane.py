"""The pane that shows the environment at a step of a stored sample, or why it cannot be shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Static

from ppo_unified.config.registry import find_adapter
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.runs.play_messages import ErrorReply, FrameReply, Ready, ReplayRequest, Reply
from ppo_unified.text import clean
from tui.watch.picture import Picture, frame_lines
from tui.watch.player import Ended, Player, replay_command

PATIENCE_S = 0.4  # a frame of another step is hidden if the wanted one takes longer than this


def has_frames(kind: str) -> bool:
    """Return True if the samples of a run of this kind can be replayed."""
    try:
        return bool(find_adapter(kind).replay)
    except UsageError:  # its package is not installed
        return False


class Place(NamedTuple):
    """A step of a stored sample."""

    iteration: int
    sample: int
    step: int


class FramePane(Vertical):
    """Shows the state of the environment before a step. A child process replays the samples of the run."""

    DEFAULT_CSS = """
    FramePane Picture { width: 1fr; height: 1fr; }
    FramePane #frame-notice { width: 1fr; height: 1fr; padding: 0 1; color: $text-muted; }
    """

    class Received(Message):
        """The child process has sent a reply, or has ended."""

        def __init__(self, player: int, reply: Reply | Ended, pixels: bytes) -> None:
            super().__init__()
            self.player, self.reply, self.pixels = player, reply, pixels

    def __init__(
        self,
        color: bool,
        id: str | None = None,
        key: str = "f",
        command: Callable[[Run, bool], list[str]] = replay_command,
    ) -> None:
        """Create an empty pane. Without `color`, pictures consist of characters.

        `key` is the key that calls `allow_code`, for a notice. `command` returns the command of the child process, with
        or without permission to import the run's code.
        """
        super().__init__(id=id)
        self._color, self._key, self._command = color, key, command
        self._allowed = False  # the child process may import the code that the run's configuration names
        self._code = ""  # the code that needs permission
        self._run: Run | None = None
        self._player: Player | None = None
        self._players = 0  # number of players that were started
        self._is_ready = False  # the player has sent its first message
        self._wanted: Place | None = None
        self._sent: tuple[Place, ReplayRequest] | None = None  # the request that has not been answered
        self._failed: tuple[int, int] | None = None  # the sample at which the player has ended; it is not tried again
        self._since = 0.0  # when the wanted place was not visible for the first time
        self._ticker: Timer | None = None

    def compose(self) -> ComposeResult:
        yield Picture()
        yield Static(id="frame-notice", markup=False)

    def on_mount(self) -> None:
        self._ticker = self.set_interval(0.2, self._report_delay, pause=True)
        self._notify("")

    def on_unmount(self) -> None:
        self._close_player()

    def on_resize(self) -> None:
        """Draw the current state in the new size."""
        self._request()

    def show(self, run: Run, iteration: int, sample: int, step: int) -> None:
        """Show the state before a step of a sample, or why it cannot be shown. Both numbers are counted from 0.

        The number of the sample's steps shows the state after the last step.
        """
        place = Place(iteration, sample, step)
        if self._run is None or run.path != self._run.path:
            self._close_player()
            self._run, self._allowed, self._code, self._failed = run, False, "", None
        elif place == self._wanted:
            return
        self._wanted = place
        if self._sent is None:
            self._since = time.monotonic()
        self._request()

    @property
    def needs_permission(self) -> bool:
        """True if frames need code that the run's configuration names, and `allow_code` has not been called."""
        return bool(self._code)

    def allow_code(self) -> None:
        """Let the child process import the code that the run's configuration names, and show frames."""
        self._close_player()
        self._allowed, self._code, self._since = True, "", time.monotonic()
        self.screen.refresh_bindings()
        self._request()

    def _request(self) -> None:
        """Request the wanted place, unless a reply is awaited; then it is requested afterwards."""
        columns, lines = self.size
        if self._code or self._wanted is None or self._run is None or self._sent is not None or not columns * lines:
            return
        if self._player is None:
            if self._wanted[:2] == self._failed:
                return
            self._players, self._is_ready = self._players + 1, False
            number = self._players
            self._player = Player(
                self._command(self._run, self._allowed),
                lambda reply, pixels: self.post_message(self.Received(number, reply, pixels)),
            )
        request = ReplayRequest(*self._wanted, columns, lines, self._color)
        self._sent = self._wanted, request
        self._player.send(request)
        if self._ticker is not None:
            self._ticker.resume()

    def _close_player(self) -> None:
        if self._player is not None:
            self._player.close()
        self._player, self._sent = None, None

    # messages of the child process

    def on_frame_pane_received(self, message: Received) -> None:
        reply = message.reply
        if message.player != self._players or self._player is None:
            return
        if isinstance(reply, Ready):
            self._is_ready, self._code = True, clean(reply.code)
            if self._code:
                self.screen.refresh_bindings()  # of the key that gives permission
                self._close_player()
                self._notify(
                    f"Frames need code that the run's config.toml names: {self._code}. If you trust it, "
                    f"press {self._key} to show them."
                )
        elif isinstance(reply, Ended):
            self._failed = self._sent[0][:2] if self._sent else None
            self._close_player()
            self._notify("\n".join([f"No frames: {reply.reason}.", *reply.lines]))
        elif self._sent is not None:
            place, request = self._sent
            self._sent = None
            if isinstance(reply, FrameReply):
                self._show_frame(reply, message.pixels)
            elif isinstance(reply, ErrorReply):
                self._notify(f"No frame: {clean(reply.text)}.")
            if place != self._wanted or (request.columns, request.lines) != self.size:
                self._since = time.monotonic()
                self._request()

    def _show_frame(self, frame: FrameReply, pixels: bytes) -> None:
        picture = self.query_one(Picture)
        self._notify("")
        picture.show(frame_lines(frame, pixels, self._color, *self.size))

    def _report_delay(self) -> None:
        """Replace the frame of another step by a notice if the wanted frame does not arrive soon."""
        if self._sent is None:
            if self._ticker is not None:
                self._ticker.pause()
            return
        seconds = time.monotonic() - self._since
        if seconds > PATIENCE_S:
            what = "Replaying the episode" if self._is_ready else "Starting the environment"
            self._notify(f"{what} ... {seconds:.0f} s")

    def _notify(self, text: str) -> None:
        """Show a text instead of the picture, or the picture if the text is empty."""
        notice = self.query_one("#frame-notice", Static)
        notice.display, self.query_one(Picture).display = bool(text), not text
        notice.update(Content(text))
