"""`play`: show a run's policy acting in the terminal, or answer prompts with a language model."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from shutil import get_terminal_size
from typing import TextIO

from ppo_unified.cli.common import (
    add_checkpoint,
    add_run,
    add_runs_folder,
    check_episodes,
    foreign_code,
    integer,
    number,
)
from ppo_unified.cli.play_server import serve
from ppo_unified.cli.policy import (
    LoadedPolicy,
    describe_checkpoint,
    describe_decoding,
    exchange_blocks,
    held_out_exchanges,
    load_policy,
    play_frames,
)
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.spec import Chat, Exchange, Frame
from ppo_unified.errors import UsageError
from ppo_unified.terminal.chat import format_blocks
from ppo_unified.terminal.frames import Style, draw
from ppo_unified.terminal.screen import Screen, open_screen, style_for
from ppo_unified.text import can_color, clean, is_drawable, print_err, print_out, replace_surrogates

FPS = 30.0  # the highest default frame rate
PAUSE_FRAMES = 30  # the last frame of an episode is shown for the time of this many frames
SIGN = "> "  # before each prompt that the user types


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_checkpoint(parser)
    parser.add_argument(
        "--episodes",
        type=integer,
        metavar="N",
        help="number of episodes or held-out prompts (default: 1)",
    )
    parser.epilog = "If the run trained a language model, it answers prompts from stdin unless --episodes is given."
    parser.add_argument(
        "--seed", type=integer, default=0, metavar="N", help="random seed of the first episode (default: 0)"
    )
    parser.add_argument(
        "--sampled", action="store_true", help="sample actions (tokens at llm.temperature) instead of acting greedily"
    )
    parser.add_argument(
        "--fps",
        type=number,
        default=0.0,
        metavar="RATE",
        help="frames per second (default: the environment's rate)",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="read requests from stdin and write frames or responses to stdout, as described in "
        "ppo_unified/runs/play_messages.py",
    )
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Show a run's policy acting, or answer prompts if the run trained a language model.

    Episodes are drawn on a terminal. If stdout is not a terminal, each episode is reported in one line.
    """
    check_episodes(options)
    if not math.isfinite(options.fps) or options.fps < 0:
        raise UsageError(f"--fps: expected a number > 0, or 0 for the environment's rate, got {options.fps:g}")
    if options.serve:
        _check_serve(options)
        return serve(options)
    with foreign_code() as stdout:
        loaded = load_policy(options)
        if not find_adapter(loaded.config.kind).chat:
            with closing(loaded.adapter):
                _watch(loaded, options, stdout)
            return 0
    with closing(loaded.adapter):  # not in the block above, because `input` edits lines only on the original stdout
        _chat(loaded, options)
    return 0


def _check_serve(options: argparse.Namespace) -> None:
    """Raise UsageError for options whose values are part of each request."""
    given = {"--episodes": options.episodes, "--sampled": options.sampled, "--fps": options.fps}
    for flag in (flag for flag, value in given.items() if value):
        raise UsageError(f"{flag} has no effect with --serve; omit it")


def _watch(loaded: LoadedPolicy, options: argparse.Namespace, stdout: TextIO) -> None:
    draws, greedy = is_drawable(stdout), not options.sampled
    how, shows = describe_decoding(greedy), ("picture", "text") if draws else ()
    frames = play_frames(loaded, options.episodes or 1, options.seed, greedy, shows)
    if draws:
        title = f"{clean(loaded.run.name)}, {describe_checkpoint(loaded)}, {how}"
        style = style_for(stdout)
        with open_screen(stdout) as shown:
            ends = [frame for frame in _show_frames(frames, shown, style, options.fps, title) if frame.ended]
        _print_ends(iter(ends), how, stdout)
    else:
        _print_ends((frame for frame in frames if frame.ended), how, stdout)


def _chat(loaded: LoadedPolicy, options: argparse.Namespace) -> None:
    """Answer the prompts on stdin. If stdin contains no prompts or --episodes is given, answer held-out prompts."""
    if options.fps:
        raise UsageError("--fps has no effect on a language model; omit it")
    chat: Chat = load(find_adapter(loaded.config.kind).chat)(loaded.adapter, options.seed, not options.sampled)
    how = describe_decoding(not options.sampled)
    typed = sys.stdin is not None and sys.stdin.isatty() and not options.episodes
    if typed:
        about = f"{clean(loaded.run.name)}, {describe_checkpoint(loaded)}, {how}"
        print(f"{about}: type a prompt; press Ctrl-D to quit", file=sys.stderr)
    answered = 0
    for prompt in () if options.episodes else _ask_prompts() if typed else _read_prompts():
        answered += 1
        try:
            _print_exchange(chat.answer(prompt), how, with_prompt=not typed)
        except UsageError as error:
            print_err(str(error))
    if not answered and not typed:
        for exchange in held_out_exchanges(chat, options.episodes or 1):
            _print_exchange(exchange, how, with_prompt=True)


def _ask_prompts() -> Iterator[str]:
    """Yield the lines that the user types, up to an empty line or Ctrl-D.

    The sign before each line is written to stderr if stdout is redirected.
    """
    if sys.stdout.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  # adds arrow keys and a history to `input`
    while True:
        try:
            if sys.stdout.isatty():
                line = input(SIGN)
            else:
                print(SIGN, end="", file=sys.stderr, flush=True)
                line = sys.stdin.readline().removesuffix("\n")
        except EOFError:
            print()
            return
        if not line.strip():
            return
        yield replace_surrogates(line)


def _read_prompts() -> Iterator[str]:
    """Yield the lines of stdin that are not blank, or nothing if stdin is closed."""
    try:
        for line in sys.stdin or ():
            if line.strip():
                yield replace_surrogates(line.removesuffix("\n"))
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: expected one prompt per line in UTF-8 ({error.reason})") from None


def _print_exchange(exchange: Exchange, how: str, with_prompt: bool) -> None:
    columns = get_terminal_size().columns if sys.stdout.isatty() else 0
    blocks = exchange_blocks(exchange, how)
    prompt = exchange.prompt if with_prompt else None
    for line in [*format_blocks(blocks, columns, can_color(sys.stdout), prompt, exchange.remark), ""]:
        print_out(line)
    sys.stdout.flush()


def _show_frames(frames: Iterator[Frame], shown: Screen, style: Style, fps: float, title: str) -> Iterator[Frame]:
    """Show each frame for its duration, then yield it."""
    due = time.monotonic()
    for frame in frames:
        columns, lines = shown.size()
        rows = draw(frame.picture, columns, lines - 1, style)
        shown.paint([*rows, *[""] * (lines - 1 - len(rows)), _status_line(frame, title, columns)])
        seconds = 1 / fps if fps else max(1 / FPS, frame.seconds)
        # if the terminal is slow, delay the episode instead of catching up with a burst of frames
        due = max(time.monotonic(), due + seconds * (PAUSE_FRAMES if frame.ended else 1))
        time.sleep(max(0.0, due - time.monotonic()))
        yield frame


def _status_line(frame: Frame, title: str, columns: int) -> str:
    """Describe a frame in one line, with the title if it fits."""
    action = f"  action {clean(frame.action)}" if frame.action else ""
    line = f"episode {frame.episode}  step {frame.step}  return {frame.total:.1f}{action}   Ctrl-C: quit"
    return (f"{line}   {title}" if len(line) + 3 + len(title) <= columns else line)[:columns]


def _print_ends(ends: Iterator[Frame], how: str, stdout: TextIO) -> None:
    for frame in ends:
        cut = "; cut at this limit, because the environment has no time limit" if frame.cut else ""
        line = f"episode {frame.episode}: return {frame.total:.6g} ({how}) in {frame.step} steps{cut}"
        print(line, file=stdout, flush=True)
