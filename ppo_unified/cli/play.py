"""`play`: watch a run's policy act in the terminal, or talk to a language model."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from shutil import get_terminal_size

from ppo_unified.cli.common import add_checkpoint, add_run, add_runs_folder, check_episodes
from ppo_unified.cli.policy import Loaded, describe_checkpoint, load_policy, play_frames
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.spec import Chat, Exchange, Frame, Reply
from ppo_unified.errors import UsageError
from ppo_unified.terminal.chat import Block, format_blocks
from ppo_unified.terminal.frames import Style, draw
from ppo_unified.terminal.screen import Screen, open_screen, style_for
from ppo_unified.text import can_color, clean, format_number, is_drawable, print_err, print_out

FPS = 30.0  # faster is shown at this
PAUSE_FRAMES = 30  # on an episode's end
SIGN = "> "  # asks for a prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_checkpoint(parser)
    parser.add_argument(
        "--episodes",
        type=int,
        help="how many episodes to watch (default: 1); a language model answers as many held-out prompts, else stdin's",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode (default: 0)")
    parser.add_argument("--sampled", action="store_true", help="sample actions instead of taking the likeliest")
    parser.add_argument(
        "--fps", type=float, default=0.0, help="frames per second (default: the environment's own, at most 30)"
    )
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Show a run's policy acting: drawn on a terminal, one plain line per episode elsewhere; or talk to it."""
    check_episodes(options)
    if not math.isfinite(options.fps) or options.fps < 0:
        raise UsageError(f"--fps {options.fps:g}: must be above 0, or 0 for the environment's own")
    loaded = load_policy(options)
    with closing(loaded.adapter):
        if find_adapter(loaded.config.kind).chat:
            _chat(loaded, options)
        else:
            _watch(loaded, options)
    return 0


def _watch(loaded: Loaded, options: argparse.Namespace) -> None:
    draws = is_drawable(sys.stdout)
    frames = play_frames(loaded, options, options.episodes or 1, ("picture", "text") if draws else ())
    if draws:
        title = f"{clean(loaded.run.name)}, {describe_checkpoint(options, loaded)}"
        style = style_for(sys.stdout)
        with open_screen(sys.stdout) as shown:
            ends = [frame for frame in _show_frames(frames, shown, style, options.fps, title) if frame.ended]
        _print_ends(iter(ends))
    else:
        _print_ends(frame for frame in frames if frame.ended)


def _chat(loaded: Loaded, options: argparse.Namespace) -> None:
    """Answer the prompts on stdin; where there are none, or --episodes is given, those that training does not see."""
    if options.fps:
        raise UsageError(f"--fps {options.fps:g}: a language model's responses are no frames; drop it")
    chat: Chat = load(find_adapter(loaded.config.kind).chat)(loaded.adapter, options.seed, not options.sampled)
    typed = sys.stdin is not None and sys.stdin.isatty() and not options.episodes
    if typed:
        about = f"{clean(loaded.run.name)}, {describe_checkpoint(options, loaded)}"
        print(f"{about}: type a prompt; Ctrl-D ends", file=sys.stderr)
    asked = 0
    for prompt in () if options.episodes else _ask_prompts() if typed else _read_prompts():
        asked += 1
        try:
            _print_exchange(chat.answer(prompt), with_prompt=not typed)
        except UsageError as error:
            print_err(str(error))
    if not asked and not typed:
        for exchange in chat.examples(options.episodes or 1):
            _print_exchange(exchange, with_prompt=True)


def _ask_prompts() -> Iterator[str]:
    """Lines from a terminal up to an empty one or Ctrl-D, each asked for by a sign that a redirected stdout lacks."""
    if sys.stdout.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  # gives `input` arrow keys and a history
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
        yield _replace_surrogates(line)


def _read_prompts() -> Iterator[str]:
    """Lines of a stdin that is no terminal, blank ones left out; none where it is closed."""
    try:
        for line in sys.stdin or ():
            if line.strip():
                yield _replace_surrogates(line.removesuffix("\n"))
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: not UTF-8 ({error.reason}); prompts are text, one a line") from None


def _replace_surrogates(line: str) -> str:
    """`line` with a '?' for each byte that is no character: Python may pass those on as halves of one."""
    return line.encode("utf-8", "replace").decode("utf-8")


def _print_exchange(exchange: Exchange, with_prompt: bool) -> None:
    columns = get_terminal_size().columns if sys.stdout.isatty() else 0
    policy, reference = exchange.policy, exchange.reference
    blocks = [
        Block("policy", policy.text, f"{describe_reply(policy)}, KL {format_number(exchange.kl)}"),
        Block("reference", reference.text, describe_reply(reference)),
    ]
    prompt = exchange.prompt if with_prompt else None
    for line in [*format_blocks(blocks, columns, can_color(sys.stdout), prompt, exchange.remark), ""]:
        print_out(line)
    sys.stdout.flush()


def describe_reply(reply: Reply) -> str:
    """A reply in numbers: 'score 0.5, 3 tokens, ended'."""
    score = [] if reply.score is None else [f"score {format_number(reply.score)}"]
    count = f"{reply.tokens} token{'s' * (reply.tokens != 1)}"
    return ", ".join([*score, count, "ended" if reply.ended else "cut off"])


def _show_frames(frames: Iterator[Frame], shown: Screen, style: Style, fps: float, title: str) -> Iterator[Frame]:
    """Paint each frame, wait for its time to pass, and pass it on."""
    due = time.monotonic()
    for frame in frames:
        columns, lines = shown.size()
        rows = draw(frame.picture, columns, lines - 1, style)
        shown.paint([*rows, *[""] * (lines - 1 - len(rows)), _status_line(frame, title, columns)])
        seconds = 1 / fps if fps else max(1 / FPS, frame.seconds)
        # a terminal that is slower than the episode delays it: no burst of frames makes up for it afterwards
        due = max(time.monotonic(), due + seconds * (PAUSE_FRAMES if frame.ended else 1))
        time.sleep(max(0.0, due - time.monotonic()))
        yield frame


def _status_line(frame: Frame, title: str, columns: int) -> str:
    """What the frame shows, in words; the title only where it fits."""
    action = f"  action {clean(frame.action)}" if frame.action else ""
    line = f"episode {frame.episode}  step {frame.step}  return {frame.total:.1f}{action}   Ctrl-C ends"
    return (f"{line}   {title}" if len(line) + 3 + len(title) <= columns else line)[:columns]


def _print_ends(ends: Iterator[Frame]) -> None:
    for frame in ends:
        print(f"episode {frame.episode}: return {frame.total:.6g} in {frame.step} steps", flush=True)
