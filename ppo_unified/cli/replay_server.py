"""Serves frames of stored samples to another program (`inspect --serve`), by replaying their episodes.

The terminal UI runs this as a separate process, like `play --serve`. A replay needs no policy, so this process never
imports torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from ppo_unified.cli.common import foreign_code
from ppo_unified.cli.message_streams import decode_request, fit_frame, read_requests, send
from ppo_unified.config import presets
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RunConfig
from ppo_unified.config.spec import Frame, ReplayError
from ppo_unified.errors import ForeignCodeError, UsageError
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.play_messages import ErrorReply, FrameReply, Ready, ReplayRequest
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.text import format_number

BACK = 16  # a restarted replay also draws this many states before the requested one, in case the user steps back
MAX_BYTES = 1 << 26  # of frames in memory


def serve(run: Run, trust: bool) -> int:
    """Answer the requests on stdin until it is closed. Raises UsageError if the run's episodes cannot be replayed.

    Code that the run's configuration names is imported only if `trust` is true, because anyone may have written it.
    """
    requests = read_requests()
    config = presets.from_file(run.config)
    spec = find_adapter(config.kind)
    if not spec.replay:
        raise UsageError(f"{run.name}: samples of kind {config.kind!r} cannot be replayed")
    code = load(spec.code)(config) if spec.code and not trust else ""
    with foreign_code() as stdout, closing(Replays(run, config)) as replays:
        send(stdout.buffer, Ready(False, "", code))
        for line in requests:
            request = decode_request(line, ReplayRequest)
            if code:
                send(stdout.buffer, ErrorReply(f"the frames need the code {code}, which is imported only with --trust"))
            else:
                send(stdout.buffer, *replays.answer(request))
    return 0


class Replays:
    """Draws states of stored samples. It replays one sample at a time and keeps the most recently used frames."""

    def __init__(self, run: Run, config: RunConfig) -> None:
        self._run, self._config = run, config
        self._replay = load(find_adapter(config.kind).replay)
        self._stored: StoredIteration | None = None
        self._current = (-1, -1)  # iteration and number of the sample that is being replayed
        self._frames: Iterator[Frame] = iter(())
        self._position = -1  # step of the last frame of `_frames`; -1 if the replay has to be started
        self._problem: ReplayError | None = None  # why the rest of the sample cannot be drawn
        self._kept: OrderedDict[ReplayRequest, tuple[FrameReply, bytes]] = OrderedDict()
        self._bytes = 0  # in `_kept`

    def answer(self, request: ReplayRequest) -> tuple[FrameReply | ErrorReply, bytes]:
        """Return the requested frame with its pixels, or the reason why it cannot be shown."""
        try:
            if request not in self._kept:
                self._advance(request)
            self._kept.move_to_end(request)
            return self._kept[request]
        except (ReplayError, UsageError, ForeignCodeError) as error:
            self.close()
            if isinstance(error, ReplayError):
                self._problem = error
            return ErrorReply(str(error)), b""

    def _advance(self, request: ReplayRequest) -> None:
        """Replay the sample up to the requested step, and keep the frames. Raises ReplayError if that is impossible."""
        if (request.iteration, request.sample) != self._current:
            self.close()
            self._current, self._problem = (request.iteration, request.sample), None
        if self._problem is not None and request.step >= self._problem.step:
            raise self._problem
        if self._position < 0 or not self._position < request.step <= self._position + BACK:
            self._start(request)
        for frame in self._frames:
            self._position = frame.step
            self._keep(replace(request, step=frame.step), frame)
            if frame.step >= request.step:
                return
        raise ReplayError("the state after the last step is not stored, because the rollout ends there", request.step)

    def _start(self, request: ReplayRequest) -> None:
        """Start the replay of a sample. Only the last states up to the requested one are drawn."""
        self.close()
        if self._stored is None or self._stored.iteration != request.iteration:
            if request.iteration not in samples.iterations(self._run):
                raise UsageError(f"the samples of iteration {request.iteration} have been deleted")
            self._stored = samples.read(self._run, request.iteration)
        found = self._stored.samples()
        if not 0 <= request.sample < len(found):
            raise UsageError(f"iteration {request.iteration} has no sample {request.sample}")
        episode = self._stored.episode(found[request.sample])
        if not 0 <= request.step <= len(episode.actions):
            raise UsageError(f"sample {request.sample} of iteration {request.iteration} has no step {request.step}")
        first, shows = max(0, request.step - BACK), ("picture", "text")
        self._frames = self._replay(self._config, self._stored.record, episode, shows, first)

    def _keep(self, request: ReplayRequest, frame: Frame) -> None:
        """Keep a frame as the reply to `request`, and drop the least recently used frames."""
        drawn = fit_frame(frame.picture, request)
        reply = FrameReply(
            columns=drawn.columns,
            lines=drawn.lines,
            text=drawn.text,
            seconds=frame.seconds,
            episode=request.sample,
            step=frame.step,
            total=format_number(frame.total),
            reward="",
            action=frame.action,
            ended=frame.ended,
            cut=frame.cut,
            greedy=False,
            checkpoint="",
        )
        if request in self._kept:  # drawn again on the way to another state
            self._bytes -= _size(*self._kept.pop(request))
        self._kept[request] = reply, drawn.pixels
        self._bytes += _size(reply, drawn.pixels)
        while self._bytes > MAX_BYTES and len(self._kept) > 1:
            self._bytes -= _size(*self._kept.popitem(last=False)[1])

    def close(self) -> None:
        """Close the environment. The next request starts the replay again."""
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()
        self._frames, self._position = iter(()), -1


def _size(reply: FrameReply, pixels: bytes) -> int:
    return len(reply.text) + len(pixels)
