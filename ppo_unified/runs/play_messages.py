"""The messages between `ppo-unified play RUN --serve` or `inspect RUN --serve` and a program that shows what they send.

The program, such as the terminal UI, writes requests to the stdin of `play` or `inspect` and reads replies from stdout.
A message is one line of JSON. A FrameReply with a picture is followed by `lines * columns * 3` bytes: the RGB values of
the picture's pixels.

The command first sends a Ready message. Afterwards, it sends one reply for each request, so a program that sends its
next request only when it needs a frame never receives frames faster than it can show them. The command ends when its
stdin is closed. If it cannot start or continue, it writes the error to stderr and exits.

`play` answers FrameRequests with FrameReplies, or PromptRequests with PromptReplies and ErrorReplies. `inspect` answers
each ReplayRequest with a FrameReply, or with an ErrorReply if the step cannot be shown.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from ppo_unified.parsing import parse_fields, parse_json

MAX_LINE_BYTES = 1 << 24  # a longer line is not a message
MAX_PIXELS = 1 << 20


@dataclass(frozen=True)
class FrameRequest:
    """Requests the frame after `steps` more steps, or earlier if the episode ends or `seconds` elapse first.

    If the episode has already ended, the next one starts, and its first frame is sent. With 0 steps, the current frame
    is sent again, for example in a new size.
    """

    columns: int  # size of the largest picture in cells
    lines: int
    greedy: bool  # take the most likely actions instead of sampling; a change starts a new episode
    blocks: bool  # a cell shows two pixels, one above the other, instead of one
    new_episode: bool  # end the episode and start the next one
    steps: int
    seconds: float


@dataclass(frozen=True)
class ReplayRequest:
    """Requests the state before a step of a stored sample, which is replayed in the environment."""

    iteration: int
    sample: int  # counted from 0
    step: int  # counted from 0; the number of steps in the sample requests the state after the last step
    columns: int  # size of the largest picture in cells
    lines: int
    blocks: bool  # a cell shows two pixels, one above the other, instead of one


@dataclass(frozen=True)
class PromptRequest:
    """Requests the responses to a prompt. If `prompt` is None, `play` chooses a held-out prompt."""

    prompt: str | None
    greedy: bool


@dataclass(frozen=True)
class Ready:
    """The command accepts requests."""

    chat: bool  # True if `play` accepts only PromptRequests, False otherwise
    checkpoint: str  # such as 'best checkpoint, step 2,048'; "" for `inspect`
    code: str = ""  # code named in config.toml that `inspect` does not import without --trust; it then shows no frame


@dataclass(frozen=True)
class FrameReply:
    """One frame of an episode."""

    columns: int  # size of the picture in pixels; 0 if the frame is a text
    lines: int
    text: str
    seconds: float  # display time of one step at the environment's frame rate
    episode: int  # counted from 1; for `inspect`, the number of the sample, counted from 0
    step: int
    total: str  # return so far
    reward: str  # of the last step; "" at the start of an episode and for `inspect`
    action: str  # the last action; "" at the start of an episode
    ended: bool
    cut: bool  # True if the episode ended only because of this program's own limit on its length
    greedy: bool
    checkpoint: str  # "" for `inspect`


@dataclass(frozen=True)
class PromptReply:
    """The responses of the policy and the reference model to a prompt."""

    prompt: str
    policy: str  # the response
    policy_facts: str  # such as 'greedy, score 0.5, 3 tokens, ended, KL 0.1'
    reference: str
    reference_facts: str
    remark: str


@dataclass(frozen=True)
class ErrorReply:
    """The reason why a prompt cannot be answered, or why a step cannot be shown."""

    text: str


Request: TypeAlias = FrameRequest | ReplayRequest | PromptRequest
Reply: TypeAlias = Ready | FrameReply | PromptReply | ErrorReply
_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (FrameRequest, ReplayRequest, PromptRequest, Ready, FrameReply, PromptReply, ErrorReply)
}


def encode(message: Request | Reply) -> bytes:
    """Return a message as one line."""
    return json.dumps({"message": type(message).__name__} | asdict(message)).encode("ascii") + b"\n"


def decode(line: bytes, expected: str = "") -> Any:
    """Return the message in a line. Raises ValueError if it is not a message, or not of the type named `expected`."""
    try:
        table = parse_json(line.decode("ascii"))
        kind = _TYPES[table["message"]]
        if kind.__name__ != (expected or kind.__name__):
            raise ValueError
        return kind(**parse_fields(table, kind))
    except (KeyError, TypeError, ValueError):
        of_type = f" of type {expected}" if expected else ""
        raise ValueError(f"expected a message{of_type}, got {line[:80]!r}") from None


def picture_bytes(frame: FrameReply) -> int:
    """Return the number of bytes that follow a FrameReply. Raises ValueError for an impossible size."""
    if not 0 <= frame.columns * frame.lines <= MAX_PIXELS:
        raise ValueError(f"expected at most {MAX_PIXELS} pixels, got {frame.columns} x {frame.lines}")
    return 3 * frame.columns * frame.lines
