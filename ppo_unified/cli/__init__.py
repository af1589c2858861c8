"""The command line. This module parses; each command's module is imported when it is called, so that `--help` is fast.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 the run failed, 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from ppo_unified import __version__
from ppo_unified.cli.imports import preload
from ppo_unified.errors import UsageError, nearest
from ppo_unified.text import tell


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors that end in UsageError."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


class Command(NamedTuple):
    """One subcommand: its help line and where it lives (a function of a module in this package)."""

    help: str
    module: str
    arguments: Callable[[argparse.ArgumentParser], None]


def _run(parser: argparse.ArgumentParser, many: str = "") -> None:
    if many:
        parser.add_argument("run", nargs=many, help="name under the runs folder, path, or 'latest'")
    else:
        parser.add_argument("run", help="name under the runs folder, path, or 'latest'")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def _tui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--readonly", action="store_true", help="only look: nothing is started, stopped or changed")


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", nargs="?", help="a preset, a TOML file, or a Gymnasium id such as MyEnv-v0 or module:MyEnv-v0"
    )
    parser.add_argument("-h", "--help", action="store_true", help="with a target: every option and its value there")
    parser.add_argument("--recipe", default="", help="lay a known system's options over the target's (see recipes)")
    parser.add_argument("--name", default="", help="name of the run's folder (default: from the preset and the seed)")
    parser.add_argument("--detach", action="store_true", help="train in the background and return at once")


def _resume(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--total-steps", type=int, help="go on to this many steps instead of the first end")
    parser.add_argument("--total-iterations", type=int, help="go on to this many iterations")
    parser.add_argument("--detach", action="store_true", help="train in the background and return at once")


def _stop(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--kill", action="store_true", help="end it at once, without a checkpoint")


def _rename(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("name", help="the new name of the run's folder")


def _note(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("text", nargs="?", help="what to write; '' removes the note; without it the note is printed")


def _delete(parser: argparse.ArgumentParser) -> None:
    _run(parser, many="+")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "query",
        nargs="*",
        help='words, key:value, key>1 (also >= < <= =); all must hold; !x negates, x|y is or, "x y" is one word',
    )
    _json(parser)


def _show(parser: argparse.ArgumentParser) -> None:
    _run(parser, many="+")
    parser.add_argument("--once", action="store_true", help="draw once and exit, also while the run goes on")
    parser.add_argument("--metric", action="append", default=[], help="draw this metric (may be given again)")
    parser.add_argument("--csv", action="store_true", help="print every point as CSV")
    _json(parser)


def _checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="best", help="best, latest, or a step (default: best)")


def _eval(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    _checkpoint(parser)
    parser.add_argument("--episodes", type=int, default=100, help="how many fresh episodes (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes (default: 0)")
    parser.add_argument("--sampled", action="store_true", help="sample actions instead of taking the likeliest")
    parser.add_argument("--video", action="store_true", help="save one episode as an animated GIF in the run's export/")
    _json(parser)


def _play(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    _checkpoint(parser)
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


def _inspect(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--iteration", type=int, help="which stored iteration (default: the newest)")
    parser.add_argument("--sample", default="0", help="which episode or sequence of it, from 0; or all (default: 0)")
    _json(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    _run(parser, many="+")
    parser.add_argument("--seeds", action="store_true", help="group runs that differ in nothing but the seed")
    _json(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    _checkpoint(parser)
    parser.add_argument("--to", required=True, type=Path, help="folder to write into; made if it isn't there")
    parser.add_argument("--merged", action="store_true", help="add a low-rank adapter to the weights it belongs to")


def _recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="one to show, two to compare; without any: list them")
    _json(parser)


def _reward_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder or hub id of the model to start from, or 'tiny'")
    parser.add_argument("--data", required=True, type=Path, help="preference pairs: prompt, chosen, rejected (JSON)")
    parser.add_argument("--out", required=True, type=Path, help="folder to write into; made if it isn't there")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the pairs (default: 1)")
    parser.add_argument(
        "--lr", type=float, default=0.0, help="learning rate (default: 1e-5; with LoRA 1e-4; for 'tiny' 1e-3)"
    )
    parser.add_argument("--batch", type=int, default=8, help="pairs per optimizer step (default: 8)")
    parser.add_argument(
        "--max-length",
        type=int,
        default=0,
        help="leave longer pairs out (default: 1024 tokens, or the model's context)",
    )
    parser.add_argument("--lora-rank", type=int, default=0, help="train adapters of this rank, merged at the end")
    parser.add_argument(
        "--adapter", action="store_true", help="save adapter and head alone: they share the base with a LoRA policy"
    )
    parser.add_argument(
        "--eval-share", type=float, default=0.1, help="share of the pairs to hold out and measure on (default: 0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the new weights and of the order (default: 0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    _json(parser)


def _regress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", nargs="?", default="cartpole", help="preset with a committed baseline (default: cartpole)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds to train (default: 3)")
    parser.add_argument(
        "--baseline", type=Path, help="baseline file (default: benchmarks/baseline.json of this checkout)"
    )
    parser.add_argument("--update", action="store_true", help="write what was measured as the new baseline")
    _json(parser)


def _tensorboard(parser: argparse.ArgumentParser) -> None:
    _run(parser, many="*")
    parser.add_argument("--port", type=int, default=6006, help="port on 127.0.0.1 (default: 6006)")


COMMANDS: dict[str, Command] = {
    "tui": Command("the terminal UI: launch runs and watch them learn (also without a command)", "watching", _tui),
    "envs": Command("what can be trained: presets, expected score and time", "looking", _json),
    "recipes": Command("how known systems set PPO up: list, show or compare", "recipes", _recipes),
    "train": Command("train a preset, a TOML file or a Gymnasium id", "training", _train),
    "resume": Command("go on with a run in the same folder; --section.key VALUE changes options", "training", _resume),
    "stop": Command("checkpoint and stop a run", "training", _stop),
    "rename": Command("give a run another name", "changing", _rename),
    "note": Command("write a line about a run, or print it", "changing", _note),
    "delete": Command("delete runs for good", "changing", _delete),
    "runs": Command("list runs, filtered by a query", "looking", _runs),
    "show": Command("curves in plain text, for pipes and CI", "looking", _show),
    "eval": Command("score a run's policy on fresh episodes", "policies", _eval),
    "play": Command("watch a run's policy act in the terminal; talk to a language model", "policies", _play),
    "inspect": Command("every quantity of PPO at every step of stored samples", "inspecting", _inspect),
    "compare": Command("what differs between runs, and how they scored", "looking", _compare),
    "export": Command("write a policy that runs without this program", "policies", _export),
    "reward-model": Command("preference pairs to a scoring model for llm.reward", "reward_model", _reward_model),
    "prove": Command("do both adapters give the engine the same numbers? (one token MDP, seconds)", "proving", _json),
    "regress": Command("is this checkout's engine still as good as the committed baseline?", "training", _regress),
    "tensorboard": Command("start TensorBoard on 127.0.0.1", "tools", _tensorboard),
    "doctor": Command("what is installed, what is missing, and the remedy", "tools", _json),
}
WITH_OPTIONS = ("train", "resume")  # these take --section.key flags on top


def build_parser() -> Parser:
    parser = Parser(prog="ppo-unified", description="One PPO engine for environments and language models.")
    parser.add_argument("--version", action="version", version=f"ppo-unified {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(name, help=command.help, description=command.help, add_help=name != "train")
        command.arguments(sub)
        sub.set_defaults(parser=sub)
        if name not in ("envs", "recipes", "reward-model", "prove", "doctor"):
            sub.add_argument(
                "--runs",
                dest="folder",
                type=Path,
                default=Path("runs"),
                metavar="DIR",
                help="runs folder (default: ./runs)",
            )
    return parser


def _open_streams() -> None:
    """Put an empty file in for each standard stream that was closed before this process began.

    The first file that is opened takes the number of such a stream: this one, and not a run's lock.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, _empty(mode))


@cache
def _empty(mode: str) -> IO[str]:
    """A file with nothing in it, open as long as the process lives."""
    return open(os.devnull, mode, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    _open_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise UsageError(
                f"there is no command {arguments[0]!r}{nearest(arguments[0], COMMANDS)} (list: ppo-unified --help)"
            )
        parser = build_parser()
        options, rest = parser.parse_known_args(arguments)
        if not options.command:
            if rest:
                raise UsageError(f"ppo-unified: there is no option {rest[0]} (list: ppo-unified --help)")
            if not (sys.stdin.isatty() and sys.stdout.isatty()):
                parser.print_help()
                return 0
            options = parser.parse_args(["tui"])
        if rest and options.command not in WITH_OPTIONS:
            raise UsageError(f"ppo-unified {options.command}: unexpected argument {rest[0]!r}; see --help")
        folder = getattr(options, "folder", None)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UsageError(f"--runs {folder}: is a file; the runs folder was expected")
        command = COMMANDS[options.command]
        module = preload(f"ppo_unified.cli.{command.module}")
        function = getattr(module, options.command.replace("-", "_"))
        code: int = function(options, rest) if options.command in WITH_OPTIONS else function(options)
        return code
    except UsageError as error:
        tell(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk behind stdout, say
        tell(f"ppo-unified: {error}")
        return 1
