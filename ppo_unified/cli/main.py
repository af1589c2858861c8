"""The command line. Each command is a module of this package, imported only when it is called: `--help` stays fast.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 the run failed, 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import IO

from ppo_unified import __version__
from ppo_unified.cli.common import Parser, preload
from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.text import print_err

COMMANDS = {  # name -> help; the module is named like the command and has `add_arguments` and `run`
    "tui": "the terminal UI: launch runs and watch them learn (also without a command)",
    "envs": "what can be trained: presets, expected score and time",
    "recipes": "how known systems set PPO up: list, show or compare",
    "train": "train a preset, a TOML file or a Gymnasium id",
    "resume": "go on with a run in the same folder; --section.key VALUE changes options",
    "stop": "checkpoint and stop a run",
    "rename": "give a run another name",
    "note": "write a line about a run, or print it",
    "delete": "delete runs for good",
    "runs": "list runs, filtered by a query",
    "show": "curves in plain text, for pipes and CI",
    "eval": "score a run's policy on fresh episodes",
    "play": "watch a run's policy act in the terminal; talk to a language model",
    "inspect": "every quantity of PPO at every step of stored samples",
    "compare": "what differs between runs, and how they scored",
    "export": "write a policy that runs without this program",
    "reward-model": "preference pairs to a scoring model for llm.reward",
    "prove": "do both adapters give the engine the same numbers? (one token MDP, seconds)",
    "regress": "is this checkout's engine still as good as the committed baseline?",
    "tensorboard": "start TensorBoard on 127.0.0.1",
    "doctor": "what is installed, what is missing, and the remedy",
}
WITH_FLAGS = ("train", "resume")  # `run` takes the remaining arguments, which are --section.key flags


def make_parser() -> Parser:
    """The parser of everything that may stand where a command does; it lists the commands."""
    parser = Parser(prog="ppo-unified", description="One PPO engine for environments and language models.")
    parser.add_argument("--version", action="version", version=f"ppo-unified {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, text in COMMANDS.items():
        subparsers.add_parser(name, help=text, add_help=False)
    return parser


def _run_command(name: str, arguments: Sequence[str]) -> int:
    module = preload(f"ppo_unified.cli.{name.replace('-', '_')}")
    parser = Parser(prog=f"ppo-unified {name}", description=COMMANDS[name], add_help=name != "train")
    module.add_arguments(parser)
    parser.set_defaults(parser=parser)
    options, rest = parser.parse_known_args(arguments)
    if rest and name not in WITH_FLAGS:
        hint = did_you_mean(rest[0], parser.flags)
        raise UsageError(f"ppo-unified {name}: unexpected argument {rest[0]!r}{hint or '; see --help'}")
    folder = getattr(options, "folder", None)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"--runs {folder}: is a file; the runs folder was expected")
    code: int = module.run(options, rest) if name in WITH_FLAGS else module.run(options)
    return code


def _open_streams() -> None:
    """Put an empty file in for each standard stream that was closed before this process began.

    The first file that is opened takes the number of such a stream: this one, and not a run's lock.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, _open_empty(mode))


@cache
def _open_empty(mode: str) -> IO[str]:
    """A file with nothing in it, open as long as the process lives."""
    return open(os.devnull, mode, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    _open_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments and not (sys.stdin.isatty() and sys.stdout.isatty()):
            make_parser().print_help()
            return 0
        name, *rest = arguments or ["tui"]
        if name in COMMANDS:
            return _run_command(name, rest)
        make_parser().parse_known_args([name] if name.startswith("-") else [])  # --help and --version exit
        what = "option" if name.startswith("-") else "command"
        raise UsageError(f"there is no {what} {name!r}{did_you_mean(name, COMMANDS)} (list: ppo-unified --help)")
    except UsageError as error:
        print_err(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk behind stdout, say
        print_err(f"ppo-unified: {error}")
        return 1
