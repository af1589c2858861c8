"""Train a run in this process, with its progress on the screen: what `train` and `resume` do last."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from ppo_unified.cli.imports import preload
from ppo_unified.cli.progress import Progress, summary
from ppo_unified.config.registry import find_adapter
from ppo_unified.config.schema import RunConfig
from ppo_unified.errors import StartError, UsageError
from ppo_unified.runs import log_tee
from ppo_unified.runs.folder import Run
from ppo_unified.runs.signals import StopRequest
from ppo_unified.text import clean, clean_lines, print_err, print_out

EXIT = {"finished": 0, "stopped": 130, "failed": 1}


def run_training(run: Run, config: RunConfig, stop: StopRequest, undo: Callable[[], object]) -> int:
    """Train in a claimed folder and say how it ended. Raises Refused, after `undo`, where it can't begin."""
    stop.show_in(run)
    with log_tee.log_output(run) as log:
        print_err(f"training in {run.path}")
        preload("ppo_unified.training.session")  # imports torch: the folder and the signal handlers are there by now
        from ppo_unified.training.session import train_in

        progress = Progress(log)
        try:
            status = train_in(run, config, stop, progress, undo)
        except Exception as error:
            progress.finish()
            if isinstance(error, StartError):
                raise
            kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
            print_err(f"{run.name} failed: {kind}{error}")
            kept = f"; checkpoints are kept: {format_command('resume', run)}" if run.checkpoints.is_dir() else ""
            if run.log.exists():
                print_err(f"the traceback is in {run.log}{kept}")
            return EXIT["failed"]
        progress.finish()
        print_out(clean_lines(summary(run, status)))
        spec = find_adapter(config.kind)
        verb, what = "eval", "score it"
        if status.state == "stopped":
            verb, what = "resume", "go on"
        elif spec.play or spec.chat:
            verb, what = "play", "watch it" if spec.play else "talk to it"
        print_out(clean(f"Next: {what} with: {format_command(verb, run)}"))
    return EXIT[status.state]


def format_command(verb: str, run: Run) -> str:
    """The command line that applies `verb` to a run, wherever its runs folder is."""
    folder = run.path.parent
    return shlex.join(["ppo-unified", verb, run.name, *([] if folder == Path("runs") else ["--runs", str(folder)])])
