"""The command line. Each command is a module in this package.

A module is imported only when its command is used, so that the program starts fast. Results are written to stdout, and
progress and messages to stderr. The exit code is 0 after success, 1 if the run failed, 2 after a usage error and 130
after an interrupt.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import IO

from ppo_unified import __version__
from ppo_unified.cli.common import Parser, preload
from ppo_unified.errors import ForeignCodeError, UsageError, did_you_mean
from ppo_unified.text import print_err

EXIT_S = 2.0  # maximum seconds to wait for threads and processes that an environment has started
COMMANDS = {  # name -> help; each command's module has the functions `add_arguments` and `run`
    "tui": "Open the terminal UI to start and watch runs",
    "envs": "List the presets with their expected scores and training times",
    "recipes": "List, show or compare PPO settings from papers and codebases",
    "train": "Start a training run from a preset, a TOML file or an environment id",
    "sweep": "Search for the best values of options",
    "resume": "Continue a run, optionally with changed options",
    "stop": "Stop a run after saving a checkpoint",
    "rename": "Rename a run",
    "note": "Print, write or remove a run's note",
    "delete": "Delete runs permanently",
    "runs": "List runs, optionally filtered by a query",
    "show": "Plot the metrics of runs in the terminal, or print CSV or JSON",
    "eval": "Evaluate a run's policy on new episodes or held-out prompts",
    "play": "Watch a run's policy act, or talk to a language model",
    "inspect": "Print advantages, ratios and other quantities of stored steps",
    "what-if": "Repeat a stored update with other options, without new samples",
    "critics": "Compare an independent and a shared critic on the same rollouts",
    "compare": "Compare the options and scores of runs",
    "export": "Export a run's policy for use without this program",
    "reward-model": "Train a reward model on preference pairs, for llm.reward",
    "fetch": "Download a pretrained language model, for llm.model",
    "prove": "Check that the Gymnasium and LLM adapters give equal results",
    "regress": "Check that PPO solves a task in as few steps as the baseline",
    "tensorboard": "Start TensorBoard on 127.0.0.1",
    "doctor": "Check the installation and suggest fixes",
}
# Commands that accept --section.key flags, which `run` receives as a list -> the name of the positional argument
WITH_FLAGS = {"train": "TARGET", "sweep": "TARGET", "resume": "RUN", "what-if": "RUN", "critics": "TARGET"}


def make_parser() -> Parser:
    """Return the parser for arguments before the command. Its help lists the commands."""
    about = "Train Gymnasium environments and language models with the same PPO engine."
    more = (
        "Without a command, ppo-unified opens the terminal UI.\nFor help on a command, run: ppo-unified COMMAND --help"
    )
    parser = Parser(prog="ppo-unified", description=about, epilog=more)
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
    if name in WITH_FLAGS and arguments and arguments[0].startswith("-"):
        from ppo_unified.cli.flags import move_target_first

        arguments = move_target_first(arguments, parser, WITH_FLAGS[name])
    options, rest = parser.parse_known_args(arguments)
    if rest and name not in WITH_FLAGS:
        hint = did_you_mean(rest[0], parser.flags)
        raise UsageError(f"ppo-unified {name}: unexpected argument {rest[0]!r}{hint or '; see --help'}")
    folder = getattr(options, "folder", None)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"--runs: expected a folder, but {folder} is a file")
    code: int = module.run(options, rest) if name in WITH_FLAGS else module.run(options)
    return code


def _open_streams() -> None:
    """Open /dev/null for each standard stream that was closed before this process started.

    Otherwise the next file to be opened, such as a run's lock, would get that stream's file descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, _open_empty(mode))


@cache
def _open_empty(mode: str) -> IO[str]:
    """Open /dev/null until the process ends."""
    return open(os.devnull, mode, encoding="utf-8")


def _explain_missing_package(error: ModuleNotFoundError) -> str:
    """If another package shadows one of this project's packages, return the problem and its remedy, otherwise ""."""
    from ppo_unified.cli.shadowing import OPTIONAL, REQUIRED, shadowed_packages

    ours = (error.name or "").partition(".")[0] in REQUIRED + OPTIONAL
    return "\n".join(shadowed_packages()) if ours else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Without `argv`, the process ends after the command in `sys.argv`."""
    _open_streams()
    if argv is not None:
        return _run(argv)
    try:
        code = _run(sys.argv[1:])
    except SystemExit:
        raise
    except BaseException:  # also one that an environment has raised, to end threads of the environment
        traceback.print_exc()
        code = 1
    _end_foreign_code(code)
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        if not arguments and not (sys.stdin.isatty() and sys.stdout.isatty()):
            make_parser().print_help()
            return 0
        name, *rest = arguments or ["tui"]
        if name in COMMANDS:
            return _run_command(name, rest)
        make_parser().parse_known_args([name] if name.startswith("-") else [])  # --help and --version exit
        what = "option" if name.startswith("-") else "command"
        raise UsageError(f"unknown {what} {name!r}{did_you_mean(name, COMMANDS)} (see ppo-unified --help)")
    except UsageError as error:
        print_err(str(error))
        return 2
    except ForeignCodeError as error:
        print_err(str(error))
        return 1
    except ModuleNotFoundError as error:
        if problems := _explain_missing_package(error):
            print_err(problems)
            return 2
        raise
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has exited
        sys.stderr.close()
        return 0
    except OSError as error:  # for example, stdout is redirected to a full disk
        print_err(f"ppo-unified: {error}")
        return 1


def _end_foreign_code(code: int) -> None:
    """Prevent threads, processes and exit functions of an environment from delaying the exit or printing to stdout.

    Python waits for threads and child processes before it exits. If some are left after EXIT_S seconds, end the process
    with the exit code `code`. Also do so if torch has been imported, after the exit functions have run.
    """
    with suppress(OSError, ValueError):  # stdout may be a closed pipe or a full disk
        sys.stdout.flush()
        os.dup2(2, 1)
    current, deadline = threading.current_thread(), time.monotonic() + EXIT_S
    threads = [thread for thread in threading.enumerate() if thread is not current and not thread.daemon]
    children = sys.modules["multiprocessing"].active_children() if "multiprocessing" in sys.modules else []
    processes = [process for process in children if not process.daemon]
    for task in (*threads, *processes):
        task.join(max(0.0, deadline - time.monotonic()))
    left = sorted({task.name for task in (*threads, *processes) if task.is_alive()})
    if left:
        print_err(f"threads or processes are still running and will not be waited for: {', '.join(left)}")
        for process in children:
            process.kill()
        sys.stderr.flush()
        os._exit(code)
    if "torch" in sys.modules:  # deleting all of its objects takes about a fifth of the time to import it
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
