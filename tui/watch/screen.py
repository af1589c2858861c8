"""The screen that shows how a run's policy acts, or how a language model responds to prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Static

from ppo_unified.runs.play_messages import ErrorReply, FrameReply, PromptReply, Ready, Reply
from ppo_unified.text import clean, display_width, pad
from tui.action import Place
from tui.actions import bindings
from tui.status_row import StatusRow
from tui.watch import chat
from tui.watch.chat import ChatView
from tui.watch.frames import FramesView
from tui.watch.player import Ended, Player

GAP = "  "
SCROLL_ACTIONS = {"scroll_up", "scroll_down"}
FRAME_ACTIONS = {"pause", "step", "faster", "slower", "next_episode"}


class WatchScreen(Screen[None]):
    """Shows the policy of one run, which a child process plays until the screen is closed."""

    CSS = """
    WatchScreen { layout: vertical; }
    WatchScreen #head { height: 1; padding: 0 1; background: $panel; }
    WatchScreen #body { height: 1fr; }
    WatchScreen #notice { width: 1fr; height: 1fr; padding: 1 2; }
    WatchScreen #notice.-below { dock: bottom; height: auto; max-height: 50%; padding: 0 1; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = bindings("watch")
    places: tuple[Place, ...] = ("watch",)

    class Received(Message):
        """The child process has sent a reply, or has ended."""

        def __init__(self, reply: Reply | Ended, pixels: bytes) -> None:
            super().__init__()
            self.reply, self.pixels = reply, pixels

    def __init__(self, name: str, command: Sequence[str], color: bool) -> None:
        """Create a screen that shows the run `name` and starts `command`. Without `color`, pictures consist of
        characters.
        """
        super().__init__()
        self._run_name, self._command, self._color = clean(name), command, color
        self._checkpoint = ""
        self._began = time.monotonic()
        self._view: FramesView | ChatView | None = None
        self._player: Player | None = None
        self._is_over = False  # the process has ended
        self._head = Content("")

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        with Container(id="body"):
            yield Static(id="notice", markup=False)
        yield StatusRow()

    def on_mount(self) -> None:
        self._show_loading()
        self._ticker = self.set_interval(0.5, self._show_loading)
        self._player = Player(self._command, lambda reply, pixels: self.post_message(self.Received(reply, pixels)))

    def on_unmount(self) -> None:
        if self._player is not None:
            self._player.close()

    def _show_loading(self) -> None:
        self.query_one("#notice", Static).update(f"Loading the policy ... {time.monotonic() - self._began:.0f} s")
        self._show_head()

    def _show_head(self) -> None:
        """Show the run, the checkpoint, and whether actions are greedy or sampled. Cut the run's name to fit."""
        view, width = self._view, max(1, self.size.width - 2)
        facts = [self._checkpoint] if self._checkpoint else []
        facts += [] if view is None else [_describe_decoding(view)]
        text = GAP.join(["", *facts]) if facts else ""
        name = pad(self._run_name, min(display_width(self._run_name), max(8, width - len(text))))
        head = Content.assemble((name, "bold"), text)
        if head != self._head:
            self._head = head
            self.query_one("#head", Static).update(head)

    def on_resize(self) -> None:
        self._show_head()

    # messages of the child process

    async def on_watch_screen_received(self, message: Received) -> None:
        reply, view = message.reply, self._view
        if isinstance(reply, Ended):
            self._show_end(reply)
        elif isinstance(reply, Ready):
            await self._open_view(reply)
        elif isinstance(reply, FrameReply) and isinstance(view, FramesView):
            view.show(reply, message.pixels)
            self._checkpoint = clean(reply.checkpoint)
            self._show_head()
        elif isinstance(reply, PromptReply | ErrorReply) and isinstance(view, ChatView):
            view.show(reply)
            self._show_head()

    async def _open_view(self, ready: Ready) -> None:
        assert self._player is not None
        self._ticker.stop()
        self._checkpoint = clean(ready.checkpoint)
        self._view = ChatView(self._player.send) if ready.chat else FramesView(self._player.send, self._color)
        self.query_one("#notice").display = False
        await self.query_one("#body").mount(self._view)
        self._show_head()
        self.refresh_bindings()

    def _show_end(self, ended: Ended) -> None:
        """Show why the process has ended, below the last frame or the conversation."""
        self._ticker.stop()
        self._is_over = True
        notice, what = self.query_one("#notice", Static), "Cannot watch"
        if self._view is not None:
            self._view.end()
            notice.add_class("-below")
            what = "Stopped watching"
        notice.display = True
        lines = [
            Content.styled(f"{what} {self._run_name}: {ended.reason}.", "$text-error"),
            *map(Content, ended.lines),
        ]
        notice.update(Content("\n").join([*lines, Content(""), Content("Press Esc to return.")]))
        self._show_head()
        self.refresh_bindings()

    # actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enable the actions of the current view. When the process has ended, a conversation can only be scrolled."""
        if action in FRAME_ACTIONS:
            return isinstance(self._view, FramesView) and not self._is_over
        if action in chat.ACTIONS:
            return isinstance(self._view, ChatView) and (action in SCROLL_ACTIONS or not self._is_over)
        return action != "decoding" or not (self._view is None or self._is_over)

    def _frames(self) -> FramesView:
        assert isinstance(self._view, FramesView)
        return self._view

    def _chat(self) -> ChatView:
        assert isinstance(self._view, ChatView)
        return self._view

    def action_back(self) -> None:
        self.dismiss()

    def action_pause(self) -> None:
        self._frames().toggle_pause()

    def action_step(self) -> None:
        self._frames().step()

    def action_faster(self) -> None:
        self._frames().change_speed(1)

    def action_slower(self) -> None:
        self._frames().change_speed(-1)

    def action_next_episode(self) -> None:
        self._frames().next_episode()

    def action_decoding(self) -> None:
        if self._view is not None:
            self._view.toggle_greedy()
            self._show_head()

    def action_send(self) -> None:
        self._chat().submit()

    def action_example(self) -> None:
        self._chat().request(None)

    def action_earlier_prompt(self) -> None:
        self._chat().recall(-1)

    def action_later_prompt(self) -> None:
        self._chat().recall(1)

    def action_scroll_up(self) -> None:
        self._chat().scroll_page(-1)

    def action_scroll_down(self) -> None:
        self._chat().scroll_page(1)


def _describe_decoding(view: FramesView | ChatView) -> str:
    """Return how the visible actions or tokens are chosen, such as 'greedy' or 'greedy (next episode: sampled)'."""
    shown, following = ("greedy" if greedy else "sampled" for greedy in (view.shown_greedy, view.greedy))
    unit = "prompt" if isinstance(view, ChatView) else "episode"
    return shown if shown == following else f"{shown} (next {unit}: {following})"
