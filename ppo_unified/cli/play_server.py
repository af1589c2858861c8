"""Serves the frames of an environment, or responses to prompts, to another program (`play --serve`).

The terminal UI runs this as a separate process, so that the UI does not import torch and environment code cannot block
or crash the UI. `ppo_unified.runs.play_messages` describes the messages.
"""

from __future__ import annotations

import os
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np

from ppo_unified.cli.common import foreign_code
from ppo_unified.cli.policy import (
    LoadedPolicy,
    describe_checkpoint,
    describe_decoding,
    exchange_blocks,
    load_newer,
    load_policy,
    play_frames,
)
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.spec import Chat, Exchange, Frame
from ppo_unified.errors import UsageError
from ppo_unified.runs.play_messages import (
    ErrorReply,
    FrameReply,
    FrameRequest,
    PromptReply,
    PromptRequest,
    Ready,
    Reply,
    Request,
    decode,
    encode,
)
from ppo_unified.terminal.frames import fit
from ppo_unified.text import format_number, replace_surrogates

GRACE_S = 2.0  # if an environment hangs when stdin is closed, the process ends after this time
MANY = 1000  # episodes, or held-out prompts, that are requested from an adapter at once
MAX_TEXT = 100_000  # characters of a frame that is text
DEFAULT_S = 1 / 30  # display time of a frame if the environment specifies an impossible one


def serve(options: Namespace) -> int:
    """Answer the requests on stdin until it is closed."""
    requests = _read_requests()
    with foreign_code() as stdout:
        loaded = load_policy(options)
        with closing(loaded.adapter):
            answer = _serve_chat if find_adapter(loaded.config.kind).chat else _serve_frames
            answer(loaded, options, requests, stdout.buffer)
    return 0


def _read_requests() -> Iterator[bytes]:
    """Yield lines that a thread reads from stdin, until stdin is closed.

    Environment code sees an empty stdin instead. When stdin is closed, the process exits after a short time, even if it
    hangs.
    """
    own = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    lines: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        with open(own, "rb") as stdin:
            for line in stdin:
                lines.put(line)
        lines.put(b"")
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=read, name="requests", daemon=True).start()
    return iter(lines.get, b"")


def _decode_request(line: bytes, kind: type[Request]) -> Any:
    try:
        return decode(line, kind.__name__)
    except ValueError as error:
        raise UsageError(f"stdin: {error}; see ppo_unified/runs/play_messages.py") from None


def _send(stream: BinaryIO, reply: Reply, pixels: bytes = b"") -> None:
    stream.write(encode(reply) + pixels)
    stream.flush()


# frames of an environment


def _serve_frames(loaded: LoadedPolicy, options: Namespace, requests: Iterator[bytes], stream: BinaryIO) -> None:
    with closing(Episodes(loaded, options)) as episodes:
        _send(stream, Ready(False, describe_checkpoint(loaded)))
        for line in requests:
            request: FrameRequest = _decode_request(line, FrameRequest)
            episodes.advance(request)
            _send(stream, *episodes.reply(request))


class Episodes:
    """Plays one episode after another. Each episode uses the newest checkpoint and its own seed."""

    def __init__(self, loaded: LoadedPolicy, options: Namespace) -> None:
        self._loaded, self._options = loaded, options
        self._frames: Iterator[Frame] = iter(())
        self._frame: Frame | None = None
        self._greedy = True
        self._before = self._episode = 0  # episodes before the first one of `_frames`; number of the current one
        self._reward = ""

    def advance(self, request: FrameRequest) -> None:
        """Play the requested number of steps, or start the next episode if the current one has ended."""
        deadline = time.monotonic() + request.seconds
        if self._frame is None or request.new_episode or request.greedy != self._greedy:
            self._start(request.greedy)
            return
        if self._frame.ended and request.steps:
            self._start_next()
            return
        for _ in range(request.steps):
            self._show(next(self._frames))
            if self._frame.ended or time.monotonic() >= deadline:
                return

    def _start_next(self) -> None:
        """Start the next episode in the same environment, unless there is a newer checkpoint."""
        newer = load_newer(self._loaded, self._options.checkpoint)
        frame = next(self._frames, None) if newer is self._loaded else None
        self._loaded = newer
        if frame is None:
            self._start(self._greedy)
        else:
            self._show(frame)

    def _start(self, greedy: bool) -> None:
        """Start the next episode in a new environment."""
        self.close()
        self._loaded = load_newer(self._loaded, self._options.checkpoint)
        self._greedy, self._before = greedy, self._episode
        seed = self._options.seed + self._before
        self._frames = play_frames(self._loaded, MANY, seed, greedy, ("picture", "text"))
        self._show(next(self._frames))

    def _show(self, frame: Frame) -> None:
        last = self._frame
        self._reward = format_number(frame.total - last.total) if last is not None and frame.step else ""
        self._frame, self._episode = frame, self._before + frame.episode

    def reply(self, request: FrameRequest) -> tuple[FrameReply, bytes]:
        """Return the current frame and its pixels, in the requested size."""
        frame = self._frame
        assert frame is not None
        columns, lines, text, pixels = 0, 0, "", b""
        if isinstance(frame.picture, str):
            text = frame.picture[:MAX_TEXT]
        else:
            picture = fit(frame.picture, request.columns, request.lines, request.blocks)
            lines, columns, pixels = len(picture), picture.shape[1], np.ascontiguousarray(picture).tobytes()
        reply = FrameReply(
            columns=columns,
            lines=lines,
            text=text,
            seconds=frame.seconds if 0 <= frame.seconds < 60 else DEFAULT_S,
            episode=self._episode,
            step=frame.step,
            total=format_number(frame.total),
            reward=self._reward,
            action=frame.action,
            ended=frame.ended,
            cut=frame.cut,
            greedy=self._greedy,
            checkpoint=describe_checkpoint(self._loaded),
        )
        return reply, pixels

    def close(self) -> None:
        """Close the environment."""
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()


# responses of a language model


def _serve_chat(loaded: LoadedPolicy, options: Namespace, requests: Iterator[bytes], stream: BinaryIO) -> None:
    make_chat, chats, examples = load(find_adapter(loaded.config.kind).chat), {}, {}
    for greedy in (True, False):
        chat: Chat = make_chat(loaded.adapter, options.seed, greedy)
        chats[greedy], examples[greedy] = chat, _example_exchanges(chat)
    _send(stream, Ready(True, describe_checkpoint(loaded)))
    for line in requests:
        request: PromptRequest = _decode_request(line, PromptRequest)
        try:
            if request.prompt is None:
                exchange = next(examples[request.greedy])
            else:
                exchange = chats[request.greedy].answer(replace_surrogates(request.prompt))
        except UsageError as error:
            examples[request.greedy] = _example_exchanges(chats[request.greedy])  # an error ends the old iterator
            _send(stream, ErrorReply(str(error)))
        else:
            policy, reference = exchange_blocks(exchange, describe_decoding(request.greedy))
            texts = (policy.text, policy.facts, reference.text, reference.facts)
            _send(stream, PromptReply(exchange.prompt, *texts, exchange.remark))


def _example_exchanges(chat: Chat) -> Iterator[Exchange]:
    """Endlessly yield responses to held-out prompts."""
    while True:
        yield from chat.examples(MANY)
