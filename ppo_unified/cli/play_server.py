"""Serves the frames of an environment, or responses to prompts, to another program (`play --serve`).

The terminal UI runs this as a separate process, so that the UI does not import torch and environment code cannot block
or crash the UI. `ppo_unified.runs.play_messages` describes the messages.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO

from ppo_unified.cli.common import foreign_code
from ppo_unified.cli.message_streams import decode_request, fit_frame, read_requests, send
from ppo_unified.cli.policy import (
    LoadedPolicy,
    describe_checkpoint,
    describe_decoding,
    exchange_blocks,
    held_out_exchanges,
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
)
from ppo_unified.text import format_number, replace_surrogates

MANY = 1000  # episodes, or held-out prompts, that are requested from an adapter at once
DEFAULT_S = 1 / 30  # display time of a frame if the environment specifies an impossible one


def serve(options: Namespace) -> int:
    """Answer the requests on stdin until it is closed."""
    requests = read_requests()
    with foreign_code() as stdout:
        loaded = load_policy(options)
        with closing(loaded.adapter):
            answer = _serve_chat if find_adapter(loaded.config.kind).chat else _serve_frames
            answer(loaded, options, requests, stdout.buffer)
    return 0


# frames of an environment


def _serve_frames(loaded: LoadedPolicy, options: Namespace, requests: Iterator[bytes], stream: BinaryIO) -> None:
    with closing(Episodes(loaded, options)) as episodes:
        send(stream, Ready(False, describe_checkpoint(loaded)))
        for line in requests:
            request: FrameRequest = decode_request(line, FrameRequest)
            episodes.advance(request)
            send(stream, *episodes.reply(request))


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
        drawn = fit_frame(frame.picture, request)
        reply = FrameReply(
            columns=drawn.columns,
            lines=drawn.lines,
            text=drawn.text,
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
        return reply, drawn.pixels

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
    send(stream, Ready(True, describe_checkpoint(loaded)))
    for line in requests:
        request: PromptRequest = decode_request(line, PromptRequest)
        try:
            if request.prompt is None:
                exchange = next(examples[request.greedy])
            else:
                exchange = chats[request.greedy].answer(replace_surrogates(request.prompt))
        except UsageError as error:
            examples[request.greedy] = _example_exchanges(chats[request.greedy])  # an error ends the old iterator
            send(stream, ErrorReply(str(error)))
        else:
            policy, reference = exchange_blocks(exchange, describe_decoding(request.greedy))
            texts = (policy.text, policy.facts, reference.text, reference.facts)
            send(stream, PromptReply(exchange.prompt, *texts, exchange.remark))


def _example_exchanges(chat: Chat) -> Iterator[Exchange]:
    """Endlessly yield responses to held-out prompts. Raises UsageError if there are none."""
    while True:
        yield from held_out_exchanges(chat, MANY)
