"""Shows a conversation with a language model: prompts, and the responses of the policy and the reference model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Input, Static

from ppo_unified.runs.play_messages import ErrorReply, PromptReply, PromptRequest
from ppo_unified.terminal.chat import LABEL, Block, format_blocks, wrap_text
from ppo_unified.text import RED, apply_style, pad
from tui.actions import actions_of

MOST = 100  # prompts whose responses are kept
PROMPT_LINES, FAILED_LINES = 20, 3  # displayed lines of a prompt, and of one without responses
ACTIONS = {"send", "example", "earlier_prompt", "later_prompt", "scroll_up", "scroll_down"}
EMPTY = (
    "Type a prompt and press Enter, or press Ctrl-N for a held-out prompt. Each prompt is independent of the others."
)


class _PromptBox(Input):
    """The input line. It passes the keys of the chat's actions to the screen, so that the footer lists them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(action.keys, f"screen.{action.name}", show=False)
        for action in actions_of("watch")
        if action.name in ACTIONS
    ]


def shorten_prompt(prompt: str, columns: int, most: int) -> str:
    """Return a prompt cut to `most` lines. The lines and the label on their left have `columns` columns."""
    width = max(1, columns - LABEL)
    part = prompt[: 2 * most * width]  # wrapping all of a very long prompt would take seconds
    rows = wrap_text(part, width)
    if len(rows) <= most and part == prompt:
        return prompt
    *others, last = rows[:most]
    return "\n".join([*others, f"{pad(last, width - 4).rstrip()} ..."])


class _Answer(Static):
    """A prompt and the responses to it, or the error."""

    def __init__(self, prompt: str, reply: PromptReply | ErrorReply) -> None:
        super().__init__(markup=False)
        self._prompt, self._reply = prompt, reply
        self._columns = 0

    def on_resize(self) -> None:
        """Wrap the texts to the new width."""
        if self.size.width != self._columns:
            self._columns = self.size.width
            self.update(Text.from_ansi("\n".join(self._format_lines(self._columns))))

    def _format_lines(self, columns: int) -> list[str]:
        reply = self._reply
        if isinstance(reply, ErrorReply):
            error = (apply_style(line, RED) for line in wrap_text(f"error: {reply.text}", columns))
            prompt = shorten_prompt(self._prompt, columns, FAILED_LINES)
            return [*format_blocks([], columns, True, prompt), *error]
        policy = Block("policy", reply.policy, reply.policy_facts)
        reference = Block("reference", reply.reference, reply.reference_facts)
        prompt = shorten_prompt(reply.prompt, columns, PROMPT_LINES)
        return format_blocks([policy, reference], columns, True, prompt, reply.remark)


class ChatView(Vertical):
    """The conversation, with an input line below it."""

    DEFAULT_CSS = """
    ChatView #answers { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    ChatView _Answer { width: 1fr; height: auto; min-height: 2; margin-bottom: 1; }
    ChatView #hint { color: $text-muted; }
    ChatView #state { height: 1; padding: 0 1; background: $panel; }
    ChatView _PromptBox.-textual-compact { padding: 0 1; }
    """

    def __init__(self, send: Callable[[PromptRequest], object]) -> None:
        """Create a view that requests responses with `send`."""
        super().__init__()
        self.greedy = True
        self._send = send
        self._prompts: list[str] = []  # sent by the user, oldest first
        self._place = 0  # index of the shown prompt in `_prompts`, or their number while the draft is shown
        self._draft = ""  # text that the user has not sent
        self._waiting: str | None = None  # the prompt whose responses are awaited
        self._requested = 0.0
        self._requested_greedy = True

    @property
    def shown_greedy(self) -> bool:
        """True if the responses being generated are greedy or, if none are, the next ones will be."""
        return self.greedy if self._waiting is None else self._requested_greedy

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="answers", can_focus=False):
            yield Static(EMPTY, id="hint", markup=False)
        yield Static(id="state", markup=False)
        yield _PromptBox(placeholder="Type a prompt and press Enter", compact=True)

    def on_mount(self) -> None:
        self.query_one(Input).focus()
        self.set_interval(0.5, self._report_progress)
        self._show_state()

    def request(self, prompt: str | None) -> None:
        """Request the responses to a prompt, or to a held-out prompt if it is None, unless responses are awaited."""
        if self._waiting is not None:
            return
        self._waiting, self._requested = prompt or "a held-out prompt", time.monotonic()
        self._requested_greedy = self.greedy
        self._send(PromptRequest(prompt, self.greedy))
        self._show_state()

    def show(self, reply: PromptReply | ErrorReply) -> None:
        """Add the responses, or an error, to the conversation."""
        prompt, self._waiting = self._waiting or "", None
        answers = self.query_one("#answers", VerticalScroll)
        shown = list(answers.query(_Answer))
        self.query_one("#hint").display = False
        for old in shown[: len(shown) + 1 - MOST]:
            old.remove()
        answers.mount(_Answer(prompt, reply))
        answers.anchor()
        self._show_state()

    def end(self) -> None:
        """Keep the conversation and the unsent prompt, because the process has ended."""
        if self._waiting is not None:
            self.show(ErrorReply("no response, because the process has ended"))
        self.query_one(Input).disabled = True

    def _report_progress(self) -> None:
        if self._waiting is not None:
            self._show_state()

    def _show_state(self) -> None:
        text = "greedy: the most likely tokens" if self.greedy else "sampled: random tokens at llm.temperature"
        if self._waiting is not None:
            text = f"generating ... {time.monotonic() - self._requested:.0f} s"
        self.query_one("#state", Static).update(text)

    # actions

    def submit(self) -> None:
        """Send the prompt in the input line."""
        field = self.query_one(Input)
        prompt = field.value
        if not prompt.strip() or self._waiting is not None:
            return
        self._prompts = [*(old for old in self._prompts if old != prompt), prompt]
        self._place, self._draft = len(self._prompts), ""
        field.value = ""
        self.request(prompt)

    def recall(self, by: int) -> None:
        """Show an earlier (-1) or later (1) prompt in the input line."""
        field = self.query_one(Input)
        if self._place == len(self._prompts):
            self._draft = field.value
        self._place = min(len(self._prompts), max(0, self._place + by))
        field.value = [*self._prompts, self._draft][self._place]
        field.cursor_position = len(field.value)

    def toggle_greedy(self) -> None:
        """Switch between greedy and sampled tokens for the next prompts."""
        self.greedy = not self.greedy
        self._show_state()

    def scroll_page(self, by: int) -> None:
        """Scroll the conversation by one page."""
        answers = self.query_one("#answers", VerticalScroll)
        (answers.scroll_page_up if by < 0 else answers.scroll_page_down)(animate=False)
