"""Commands that load a trained policy: `eval`, `play`, `export`.

Into a run they write nothing but its export/, so that a trainer in the same folder never notices."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from shutil import get_terminal_size
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ppo_unified.config import presets
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RunConfig
from ppo_unified.config.spec import Chat, Exchange, Frame, Reply
from ppo_unified.engine.rollout import Adapter
from ppo_unified.errors import UsageError
from ppo_unified.parsing import read_json
from ppo_unified.runs.atomic import replace_file
from ppo_unified.runs.folder import Run, find
from ppo_unified.terminal.chat import Block, format_blocks
from ppo_unified.terminal.frames import Style, draw, write_gif
from ppo_unified.terminal.screen import Screen, is_drawable, screen, style_for
from ppo_unified.text import can_color, clean, say, short, tell
from ppo_unified.training import checkpoint
from ppo_unified.training.evaluation import evaluate
from ppo_unified.training.session import load_adapter

FPS = 30.0  # faster is shown at this
PAUSE_FRAMES = 30  # on an episode's end
SIGN = "> "  # asks for a prompt
DESCRIPTION = "policy.json"  # marks an exported folder and lists its files
FORMAT = "ppo-unified policy 1"


class Loaded(NamedTuple):
    """A policy in its world."""

    run: Run
    config: RunConfig
    adapter: Adapter
    step: int  # of the checkpoint


def eval(options: Namespace) -> int:
    """Score a run's policy on fresh episodes, and save a video of one if asked to."""
    _check_episodes(options)
    loaded = _load(options)
    with closing(loaded.adapter):
        video = _video(loaded, options) if options.video else None
        scored = evaluate(loaded.adapter, options.episodes, options.seed, not options.sampled)
    if options.json:
        asked = {"greedy": not options.sampled, "seed": options.seed, "checkpoint": options.checkpoint}
        named = find_adapter(loaded.config.kind).score_tag.rpartition("/")[2]  # what the adapter calls its score
        document = {"score": scored["score"], f"mean_{named}": scored["score"], **scored, **asked, "step": loaded.step}
        print(json.dumps(document | ({"video": str(video)} if video else {})))
        return 0
    how = f"{'sampled' if options.sampled else 'greedy'}, seed {options.seed}, {_which(options, loaded)}"
    episodes = f"{scored['episodes']} {find_adapter(loaded.config.kind).episodes}"
    score = f"score {scored['score']:.4g} +- {scored['std']:.3g} over {episodes}"
    print(f"{clean(loaded.run.name)}: {score} ({how})")
    if video:
        say(clean(f"video: {video}"))
    return 0


def play(options: Namespace) -> int:
    """Show a run's policy acting: drawn on a terminal, one plain line per episode elsewhere; or talk to it."""
    _check_episodes(options)
    if not math.isfinite(options.fps) or options.fps < 0:
        raise UsageError(f"--fps {options.fps:g}: must be above 0, or 0 for the environment's own")
    loaded = _load(options)
    with closing(loaded.adapter):
        if find_adapter(loaded.config.kind).chat:
            _chat(loaded, options)
        else:
            _watch(loaded, options)
    return 0


def _watch(loaded: Loaded, options: Namespace) -> None:
    draws = is_drawable(sys.stdout)
    frames = _play(loaded, options, options.episodes or 1, ("picture", "text") if draws else ())
    if draws:
        title = f"{clean(loaded.run.name)}, {_which(options, loaded)}"
        style = style_for(sys.stdout)
        with screen(sys.stdout) as shown:
            ends = [frame for frame in _shown(frames, shown, style, options.fps, title) if frame.ended]
        _print_ends(iter(ends))
    else:
        _print_ends(frame for frame in frames if frame.ended)


def _chat(loaded: Loaded, options: Namespace) -> None:
    """Answer the prompts on stdin; where there are none, or --episodes is given, those that training does not see."""
    if options.fps:
        raise UsageError(f"--fps {options.fps:g}: a language model's responses are no frames; drop it")
    chat: Chat = load(find_adapter(loaded.config.kind).chat)(loaded.adapter, options.seed, not options.sampled)
    typed = sys.stdin is not None and sys.stdin.isatty() and not options.episodes
    if typed:
        print(f"{clean(loaded.run.name)}, {_which(options, loaded)}: type a prompt; Ctrl-D ends", file=sys.stderr)
    asked = 0
    for prompt in () if options.episodes else _typed() if typed else _piped():
        asked += 1
        try:
            _print_exchange(chat.answer(prompt), with_prompt=not typed)
        except UsageError as error:
            tell(str(error))
    if not asked and not typed:
        for exchange in chat.examples(options.episodes or 1):
            _print_exchange(exchange, with_prompt=True)


def _typed() -> Iterator[str]:
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
        yield _whole(line)


def _piped() -> Iterator[str]:
    """Lines of a stdin that is no terminal, blank ones left out; none where it is closed."""
    try:
        for line in sys.stdin or ():
            if line.strip():
                yield _whole(line.removesuffix("\n"))
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: not UTF-8 ({error.reason}); prompts are text, one a line") from None


def _whole(line: str) -> str:
    """`line` with a '?' for each byte that is no character: Python may pass those on as halves of one."""
    return line.encode("utf-8", "replace").decode("utf-8")


def _print_exchange(exchange: Exchange, with_prompt: bool) -> None:
    columns = get_terminal_size().columns if sys.stdout.isatty() else 0
    policy, reference = exchange.policy, exchange.reference
    blocks = [
        Block("policy", policy.text, f"{facts(policy)}, KL {short(exchange.kl)}"),
        Block("reference", reference.text, facts(reference)),
    ]
    prompt = exchange.prompt if with_prompt else None
    for line in [*format_blocks(blocks, columns, can_color(sys.stdout), prompt, exchange.remark), ""]:
        say(line)
    sys.stdout.flush()


def facts(reply: Reply) -> str:
    """A reply in numbers: 'score 0.5, 3 tokens, ended'."""
    score = [] if reply.score is None else [f"score {short(reply.score)}"]
    count = f"{reply.tokens} token{'s' * (reply.tokens != 1)}"
    return ", ".join([*score, count, "ended" if reply.ended else "cut off"])


def export(options: Namespace) -> int:
    """Write a run's policy in a form that works without this program."""
    folder: Path = options.to
    loaded = _load(options)
    with closing(loaded.adapter):
        spec = find_adapter(loaded.config.kind)
        if not spec.export:
            raise UsageError(f"{loaded.run.name}: policies of kind {loaded.config.kind!r} have no export")
        if options.merged and not spec.export_merged:
            raise UsageError(f"--merged: policies of kind {loaded.config.kind!r} have nothing to merge; drop it")
        _check_target(folder, loaded.run.name)
        about = _about(loaded)
        try:
            with TemporaryDirectory(dir=folder, prefix=".writing-") as aside:
                new, old = Path(aside, "new"), Path(aside, "old")
                new.mkdir()
                facts = load(spec.export_merged if options.merged else spec.export)(loaded.adapter, new, about)
                written = (path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
                files = sorted([*written, DESCRIPTION])
                description = json.dumps(
                    {"format": FORMAT, **about, **facts, "files": files}, indent=1, allow_nan=False
                )
                (new / DESCRIPTION).write_text(description, encoding="utf-8")
                _check_target(folder, loaded.run.name, Path(aside).name)  # again: writing a model takes its time
                _replace(folder, new, old)
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"--to {folder}: cannot be written ({why}); choose another folder") from None
    for name in files:
        say(clean(folder / name))
    return 0


def _replace(folder: Path, new: Path, old: Path) -> None:
    """Move what `folder` holds to `old` and what `new` holds into it; both are below `folder`, so nothing is copied."""
    old.mkdir()
    for source, target in ((folder, old), (new, folder)):
        for name in sorted(os.listdir(source), key=lambda name: name != DESCRIPTION):  # first: it lists the others
            if name != new.parent.name:
                (source / name).rename(target / name)


def _check_episodes(options: Namespace) -> None:
    if options.episodes is not None and options.episodes < 1:
        raise UsageError(f"--episodes {options.episodes}: must be at least 1")
    if options.seed < 0:
        raise UsageError(f"--seed {options.seed}: must be at least 0")


def _load(options: Namespace) -> Loaded:
    """The run and policy that the options name, on the device that suits this machine rather than the trainer's.

    A trainer may remove a checkpoint between choosing and reading it; then the choice is made again.
    """
    run = find(options.run, options.folder)
    config = presets.apply_changes(presets.from_file(run.config), {"device": "auto"}, str(run.config))
    step = checkpoint.choose(run, options.checkpoint)
    try:
        adapter, step = load_adapter(run, config, str(step))
    except UsageError:
        if checkpoint.checkpoint_folder(run, step).exists():
            raise
        adapter, step = load_adapter(run, config, options.checkpoint)
    return Loaded(run, config, adapter, step)


def _which(options: Namespace, loaded: Loaded) -> str:
    kind = f"{options.checkpoint} checkpoint, " if not options.checkpoint.isdigit() else ""
    return f"{kind}step {loaded.step:,}"


def _play(loaded: Loaded, options: Namespace, episodes: int, shows: tuple[str, ...]) -> Iterator[Frame]:
    spec = find_adapter(loaded.config.kind)
    if not spec.play:
        raise UsageError(f"{loaded.run.name}: policies of kind {loaded.config.kind!r} cannot be watched")
    frames: Iterator[Frame] = load(spec.play)(loaded.adapter, episodes, options.seed, not options.sampled, shows)
    return frames


def _shown(frames: Iterator[Frame], shown: Screen, style: Style, fps: float, title: str) -> Iterator[Frame]:
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


def _video(loaded: Loaded, options: Namespace) -> Path:
    """One episode as runs/<run>/export/step<step>-seed<seed>.gif. Raises UsageError where nothing can be drawn."""
    sampled = "-sampled" if options.sampled else ""
    path = loaded.run.export / f"step{loaded.step}-seed{options.seed}{sampled}.gif"
    frames = _play(loaded, options, 1, ("picture",))
    try:
        path.parent.mkdir(exist_ok=True)
        with replace_file(path) as temporary:
            write_gif(temporary, ((frame.picture, frame.seconds) for frame in frames))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def _check_target(folder: Path, run: str, aside: str = "") -> None:
    """Make the folder. Raises UsageError where it holds anything but an earlier export of `run`, naming what; the entry
    `aside` is ours too."""
    try:
        str(folder).encode("utf-8")
    except UnicodeEncodeError:  # what writes models takes nothing else, and ends the process over it
        raise UsageError(f"--to {folder}: this path is not UTF-8; choose another") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(_strangers(folder, _exported_files(folder, run) | {aside}))
    except OSError as error:
        raise UsageError(f"--to {folder}: cannot be made a folder ({error.strerror}); choose another") from None
    if others:
        named = ", ".join(clean(name) for name in others[:5]) + (", ..." if len(others) > 5 else "")
        raise UsageError(f"--to {folder}: holds something else already ({named}); choose an empty or a new folder")


def _strangers(folder: Path, known: set[str], within: str = "") -> Iterator[str]:
    """What is in a folder and isn't known. Looks into no folder without anything known, or `--to ~` would take long."""
    for entry in os.scandir(folder):
        name = within + entry.name
        if entry.is_dir(follow_symlinks=False) and any(path.startswith(f"{name}/") for path in known):
            yield from _strangers(Path(entry), known, f"{name}/")
        elif name not in known:
            yield name


def _exported_files(folder: Path, run: str) -> set[str]:
    """The files of an earlier export of the same run there, which may be replaced."""
    try:
        description = read_json(folder / DESCRIPTION)
        ours = (description["format"], description["run"]) == (FORMAT, run)
        return {name for name in description["files"] if isinstance(name, str)} if ours else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _about(loaded: Loaded) -> dict[str, Any]:
    """Where an exported policy comes from; `score` is the evaluation that chose the best checkpoint, else null."""
    best = loaded.step == checkpoint.best_step(loaded.run)
    versions = {name: version(name) for name in ("ppo-unified", "torch")}
    return {
        "run": loaded.run.name,
        "kind": loaded.config.kind,
        "step": loaded.step,
        "score": loaded.run.read_status().best_score if best else None,
        "versions": {"python": platform.python_version(), **versions},
    }
