"""The messages of a session. The status row of the current screen shows new ones, and a dialog lists all of them."""

from __future__ import annotations

import math
import time
from collections import deque

from textual.app import App
from textual.content import Content
from textual.events import Event, Key
from textual.notifications import Notification, SeverityLevel

from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import display_width, pad
from tui.status_row import StatusRow

MOST_MESSAGES = 500  # messages in memory
MOST_LINES = 3  # lines of one message in the status row
READ_S = 3.0  # keys remove messages that have been visible for at least this long
WORDS: dict[SeverityLevel, str] = {"information": "", "warning": "Warning: ", "error": "Error: "}
STYLES: dict[SeverityLevel, str] = {
    "information": "",
    "warning": "bold $text-warning",
    "error": "bold $text-error",
}


class MessageApp(App[None]):
    """An app that shows notifications in the status row instead of Textual's toasts, which cover charts and forms."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: deque[Notification] = deque(maxlen=MOST_MESSAGES)
        self._visible: list[Notification] = []

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = True,
    ) -> None:
        """Show a message until its timeout, or until a key is pressed. Errors have no timeout. Thread-safe."""
        text = Content.from_markup(message).plain if markup else message
        seconds = math.inf if severity == "error" else self.NOTIFICATION_TIMEOUT if timeout is None else timeout
        self.call_later(self._add, Notification(f"{title}: {text}" if title else text, "", severity, seconds))

    def _add(self, new: Notification) -> None:
        """Show a message. If it repeats the last message, replace that message."""
        for known in (self.messages, self._visible):
            if known and (known[-1].message, known[-1].severity) == (new.message, new.severity):
                known.pop()
            known.append(new)
        if math.isfinite(new.timeout):
            self.set_timer(new.timeout + 0.05, self._drop_expired)
        self._show_visible()

    def _drop_expired(self) -> None:
        self._keep([message for message in self._visible if not message.has_expired])

    def drop_messages(self, least_age_s: float = 0.0) -> None:
        """Remove the messages that have been visible for at least `least_age_s` seconds from the status row."""
        now = time.time()
        self._keep([message for message in self._visible if now - message.raised_at < least_age_s])

    def _keep(self, messages: list[Notification]) -> None:
        if len(messages) != len(self._visible):
            self._visible = messages
            self._show_visible()

    def on_status_row_dismissed(self) -> None:
        self.drop_messages()

    async def on_event(self, event: Event) -> None:
        if isinstance(event, Key) and self._visible:
            self.drop_messages(READ_S)
        await super().on_event(event)

    def _show_visible(self) -> None:
        """Update all screens, because the screen below a dialog is visible, too."""
        top = self.screen
        if self._visible and top.is_mounted and not top.query(StatusRow):  # such as a dialog
            top.mount(StatusRow())
        for screen in self.screen_stack:
            for row in screen.query(StatusRow):
                row.update_message()

    def message_lines(self, width: int) -> list[Content]:
        """Return the lines of the newest visible message, or [] without a message."""
        return format_message(self._visible[-1], len(self._visible) - 1, width) if self._visible else []

    def all_messages(self, width: int) -> Content:
        """Return all messages of this session with their times, the newest first."""
        lines = []
        for message in reversed(self.messages):
            clock = time.strftime("%H:%M:%S", time.localtime(message.raised_at))
            first, *others = wrap_text(WORDS[message.severity] + message.message, max(1, width - 10))
            lines += [_styled(f"{clock}  {first}", message.severity), *(Content(" " * 10 + line) for line in others)]
        return Content("\n").join(lines) if lines else Content("No messages yet.")


def format_message(message: Notification, others: int, width: int) -> list[Content]:
    """Return at most MOST_LINES lines of a message. The last one ends with the number of `others`, which are the other
    visible messages, and the key that shows all messages if some text is hidden.
    """
    width = max(20, width)
    lines = wrap_text(WORDS[message.severity] + message.message, width)
    note = f"  (+{others} more, F2)" if others else ""
    fits = display_width(lines[-1] + note) <= width
    if len(lines) < MOST_LINES and not fits:
        lines.append(note.strip())
    elif len(lines) > MOST_LINES or not fits:
        note = f" ... {note.strip() or '(F2: all)'}"
        lines = lines[:MOST_LINES]
        lines[-1] = pad(lines[-1], width - len(note)).rstrip() + note
    else:
        lines[-1] += note
    return [_styled(lines[0], message.severity), *map(Content, lines[1:])]


def _styled(line: str, severity: SeverityLevel) -> Content:
    """Return a line in which the word for the severity is styled."""
    word = WORDS[severity].strip()
    before, found, after = line.partition(word) if word else (line, "", "")
    return Content.assemble(before, (found, STYLES[severity]), after)
