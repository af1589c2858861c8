"""`eval`: evaluate a run's policy on new episodes or held-out prompts."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path

from ppo_unified.cli.common import (
    add_checkpoint,
    add_json,
    add_run,
    add_runs_folder,
    check_episodes,
    foreign_code,
    integer,
)
from ppo_unified.cli.policy import LoadedPolicy, describe_checkpoint, describe_decoding, load_policy, play_frames
from ppo_unified.config.registry import find_adapter
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import replace_file
from ppo_unified.text import clean, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_checkpoint(parser)
    parser.add_argument(
        "--episodes",
        type=integer,
        default=100,
        metavar="N",
        help="number of episodes or held-out prompts (default: 100)",
    )
    parser.add_argument(
        "--seed", type=integer, default=0, metavar="N", help="random seed of the evaluation (default: 0)"
    )
    parser.add_argument(
        "--sampled", action="store_true", help="sample actions (tokens at llm.temperature) instead of acting greedily"
    )
    parser.add_argument("--video", action="store_true", help="save one episode as a GIF in the run's export folder")
    add_json(parser)
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate a run's policy and print the score. With --video, also save one episode as a GIF."""
    check_episodes(options)
    with foreign_code():
        loaded = load_policy(options)
        from ppo_unified.training.evaluation import evaluate  # imports torch

        with closing(loaded.adapter):
            video = _video(loaded, options) if options.video else None
            scored = evaluate(loaded.adapter, options.episodes, options.seed, not options.sampled)
    if options.json:
        chosen = {"greedy": not options.sampled, "seed": options.seed, "checkpoint": loaded.checkpoint}
        named = find_adapter(loaded.config.kind).score_tag.rpartition("/")[2]  # the adapter's name for the score
        document = {"score": scored["score"], f"mean_{named}": scored["score"], **scored, **chosen, "step": loaded.step}
        print(json.dumps(document | ({"video": str(video)} if video else {})))
        return 0
    how = f"{describe_decoding(not options.sampled)}, seed {options.seed}, {describe_checkpoint(loaded)}"
    episodes = f"{scored['episodes']} {find_adapter(loaded.config.kind).episodes}"
    score = f"score {scored['score']:.4g} +- {scored['std']:.3g} over {episodes}"
    success = f", success {scored['success']:.0%}" if "success" in scored else ""
    print(f"{clean(loaded.run.name)}: {score}{success} ({how})")
    if video:
        print_out(clean(f"video: {video}"))
    return 0


def _video(loaded: LoadedPolicy, options: argparse.Namespace) -> Path:
    """Save one episode as a GIF in the run's export folder and return its path.

    Raises UsageError if the environment cannot render pictures or the file cannot be written.
    """
    sampled = "-sampled" if options.sampled else ""
    path = loaded.run.export / f"step{loaded.step}-seed{options.seed}{sampled}.gif"
    from ppo_unified.terminal.frames import write_gif

    frames = play_frames(loaded, 1, options.seed, not options.sampled, ("picture",))
    try:
        path.parent.mkdir(exist_ok=True)
        with replace_file(path) as temporary:
            write_gif(temporary, ((frame.picture, frame.seconds) for frame in frames))
    except OSError as error:
        raise UsageError(f"{path}: cannot write the video ({error.strerror})") from None
    return path
