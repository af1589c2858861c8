"""Shows the frames of an environment, at a speed that the user controls."""

from __future__ import annotations

import math
import select
import sys
import time
from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.timer import Timer
from textual.widgets import Static

from ppo_unified.runs.play_messages import FrameReply, FrameRequest
from ppo_unified.text import clean, pad
from tui.watch.picture import Picture, frame_lines
from tui.watch.speed import SHORTEST_S, SPEEDS, format_speed, frame_interval_s, steps_due

LATE_S = 2.0  # the status shows the waiting time if a frame takes longer than this


class FramesView(Vertical):
    """The current frame, with a status line below it. It requests a frame only when it can show it."""

    DEFAULT_CSS = """
    FramesView Picture { width: 1fr; height: 1fr; }
    FramesView #episode { width: 1fr; height: 1; padding: 0 1; background: $panel; }
    """

    def __init__(self, send: Callable[[FrameRequest], object], color: bool) -> None:
        """Create a view that requests frames with `send`. Without `color`, pictures consist of characters."""
        super().__init__()
        self.paused, self.speed, self.greedy = False, 1.0, True
        self.frame: FrameReply | None = None
        self._send, self._color = send, color
        self._requested = 0.0  # time of the last request
        self._clock = 0.0  # time at which the current step was due
        self._waiting = False  # the reply has not arrived yet
        self._pending: tuple[int, bool] | None = None  # steps and `new_episode` that were requested while waiting
        self._is_over = False  # the process has ended
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        yield Picture()
        yield Static(id="episode", markup=False)

    def on_mount(self) -> None:
        self.set_interval(0.5, self._report_delay)
        self.call_after_refresh(self.request)

    @property
    def shown_greedy(self) -> bool:
        """True if the actions of the visible episode are greedy."""
        return self.frame.greedy if self.frame is not None else self.greedy

    def request(self, steps: int = 1, new_episode: bool = False) -> None:
        """Request a frame now, or as soon as the awaited one has arrived."""
        if self._is_over:
            return
        if self._waiting:
            before = self._pending or (0, False)
            self._pending = steps + before[0], new_episode or before[1]
            return
        if self._timer is not None:
            self._timer.stop()
        self._waiting, self._pending = True, None
        self._requested = self._clock = time.monotonic()
        columns, lines = self.query_one(Picture).size
        self._send(FrameRequest(columns, lines, self.greedy, self._color, new_episode, steps, SHORTEST_S))

    def show(self, frame: FrameReply, pixels: bytes) -> None:
        """Show a frame that has arrived."""
        self._waiting, self.frame = False, frame
        picture = self.query_one(Picture)
        picture.show(frame_lines(frame, pixels, self._color, *picture.size))
        self.update_status()
        if self._pending is not None:
            steps, new_episode = self._pending
            self.request(min(steps, 1), new_episode)  # a request for several steps can end early, see FrameRequest
            if steps > 1 and not new_episode:
                self._pending = steps - 1, False
        elif not self.paused:
            self._schedule()

    def end(self) -> None:
        """Keep the last frame, because the process has ended."""
        self._is_over, self._waiting = True, False
        if self._timer is not None:
            self._timer.stop()
        self.update_status()

    def _schedule(self) -> None:
        """Request the next frame when it is due, after the terminal has received the current one."""
        assert self.frame is not None
        due = self._clock + frame_interval_s(self.frame.seconds, self.speed, self.frame.ended)
        self._timer = self.set_timer(max(0.001, due - time.monotonic()), self._request_due)

    def _request_due(self) -> None:
        if self.frame is None or self.paused or self._waiting:
            return
        if has_backlog():
            self._timer = self.set_timer(SHORTEST_S, self._request_due)
            return
        steps = steps_due(time.monotonic() - self._clock, self.frame.seconds, self.speed)
        clock = self._clock + steps * self.frame.seconds / self.speed
        self.request(steps)
        if not (self.frame.ended or math.isinf(self.speed)):
            self._clock = clock  # not the current time, because steps are rounded

    def on_resize(self) -> None:
        """Draw the current frame in the new size."""
        if self.frame is not None:
            self.request(0)
        self.update_status()

    # the status line

    def _report_delay(self) -> None:
        if self._is_late():
            self.update_status()

    def _is_late(self) -> bool:
        return self._waiting and time.monotonic() - self._requested > LATE_S

    def update_status(self) -> None:
        """Show the state of the episode."""
        line = self.query_one("#episode", Static)
        line.update(pad(self._status(), max(1, line.content_size.width)).rstrip())

    def _status(self) -> str:
        frame = self.frame
        state = "stopped" if self._is_over else "paused" if self.paused else "playing"
        if self._is_late():
            state = f"waiting for the environment ... {time.monotonic() - self._requested:.0f} s"
        if frame is None:
            return state
        end = (" cut, because the environment has no time limit" if frame.cut else " ended") if frame.ended else ""
        facts = [state, format_speed(self.speed), f"episode {frame.episode}{end}", f"step {frame.step}"]
        facts += [f"return {clean(frame.total)}"]
        facts += [f"reward {clean(frame.reward)}"] if frame.reward else []
        facts += [f"action {clean(frame.action)}"] if frame.action else []
        return "  ".join(facts)

    # actions

    def toggle_pause(self) -> None:
        self.paused = not self.paused
        if not self.paused:
            self.request()
        self.update_status()

    def step(self) -> None:
        """Advance a paused episode by one step, or pause."""
        if self.paused:
            self.request()
        else:
            self.toggle_pause()

    def next_episode(self) -> None:
        self.request(new_episode=True)

    def toggle_greedy(self) -> None:
        """Switch between greedy and sampled actions, and start a new episode."""
        self.greedy = not self.greedy
        self.request(new_episode=True)

    def change_speed(self, by: int) -> None:
        """Select the next higher or lower speed."""
        self.speed = SPEEDS[min(len(SPEEDS) - 1, max(0, SPEEDS.index(self.speed) + by))]
        if not (self.paused or self._waiting or self.frame is None):
            if self._timer is not None:
                self._timer.stop()
            self._schedule()
        self.update_status()


def has_backlog() -> bool:
    """Return True if the terminal accepts no output at the moment. More frames would then delay the effect of keys."""
    terminal = sys.__stderr__  # Textual writes to the original stderr
    return terminal is not None and not select.select((), (terminal,), (), 0)[1]
