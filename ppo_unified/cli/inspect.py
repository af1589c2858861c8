"""`inspect`: show every quantity of PPO at every step of stored samples, how well the critic predicts, and how the
estimates of the KL differ, as text or JSON; or write an HTML page."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo_unified.cli.common import add_json, add_run, add_runs_folder, integer
from ppo_unified.errors import UsageError
from ppo_unified.inspection.html_page import make_page, write_page
from ppo_unified.inspection.laboratories import CriticMicroscope, KLLaboratory
from ppo_unified.inspection.sections import Canvas, format_sections
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run, find, to_json
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.terminal.sample_table import format_samples
from ppo_unified.text import can_color, can_unicode, clean, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--iteration", type=integer, metavar="N", help="stored iteration to show (default: the newest)")
    parser.add_argument(
        "--sample",
        metavar="N",
        help="number of the sample to show, counted from 0, or 'all' (default: 0; with --html, a selection)",
    )
    add_json(parser)
    parser.add_argument(
        "--critic",
        action="store_true",
        help="show how well V predicts the rewards that followed, by position and length",
    )
    parser.add_argument(
        "--kl",
        action="store_true",
        help="show the estimates of the KL to the reference model side by side, and the effect of truncated sampling",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write samples with all their formulas to FILE, a page for a web browser that needs no other files",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="read requests from stdin and write frames of stored episodes to stdout; "
        "ppo_unified/runs/play_messages.py describes the messages",
    )
    parser.add_argument(
        "--trust", action="store_true", help="with --serve: import the code that the run's config.toml names"
    )
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Show one sample or several samples of a stored iteration."""
    views = [flag for flag in ("--critic", "--kl", "--html") if getattr(options, flag[2:])]
    if options.html and options.json:
        raise UsageError("inspect: expected --json or --html, got both; remove one of them")
    if len(views) > 1:
        raise UsageError(f"inspect: expected one of --critic, --kl and --html, got {' and '.join(views)}; remove one")
    run = find(options.run, options.folder)
    if options.serve:
        return _serve(run, options)
    if options.trust:
        raise UsageError("--trust has no effect without --serve; omit it")
    stored = samples.read(run, choose_iteration(run, options.iteration))
    found = stored.samples()
    if options.html:
        numbers = options.sample and _choose_samples(options.sample, len(found), stored.iteration)
        write_page(options.html, make_page(stored, run.name, numbers))
        print_out(clean(options.html))
        return 0
    chosen = _choose_samples(options.sample or "0", len(found), stored.iteration)
    if options.critic or options.kl:
        print_out(_format_laboratory(run, stored, chosen, options))
        return 0
    each = [stored.document(number, found[number]) for number in chosen]
    if options.json:
        about: dict[str, Any] = {"run": run.name, "iterations": samples.iterations(run), "samples": len(found)}
        about |= {"iteration_steps" if name == "steps" else name: getattr(stored, name) for name in samples.SINGLE}
        print_out(to_json(about | ({"each": each} if options.sample == "all" else each[0]), indent=None))
    else:
        width = shutil.get_terminal_size().columns
        meanings, tables = format_samples(each, len(found), stored.quantities(), width, can_color(sys.stdout))
        print_out("\n".join([*wrap_text(stored.summary(run.name), width), "", *meanings, *tables]))
    return 0


def _format_laboratory(run: Run, stored: StoredIteration, chosen: Sequence[int], options: argparse.Namespace) -> str:
    """Return the report of --critic or --kl with the chosen samples, as text or JSON."""
    canvas = Canvas(shutil.get_terminal_size().columns, can_unicode(sys.stdout))
    laboratory = (CriticMicroscope if options.critic else KLLaboratory).of(run, stored)
    if options.json:
        about = {"run": run.name, "iteration": stored.iteration, "step": stored.step}
        return to_json(about | laboratory.document(chosen), indent=None)
    sections = [*laboratory.sections(canvas), *(laboratory.sample_section(number, canvas) for number in chosen)]
    title = f"{clean(run.name)}, iteration {stored.iteration}, step {stored.step:,}"
    return f"{title}\n\n{format_sections(sections)}"


def _serve(run: Run, options: argparse.Namespace) -> int:
    given = {"--iteration": options.iteration, "--sample": options.sample, "--json": options.json or None}
    given |= {"--html": options.html, "--critic": options.critic or None, "--kl": options.kl or None}
    for flag in (flag for flag, value in given.items() if value is not None):
        raise UsageError(f"{flag} has no effect with --serve; omit it")
    from ppo_unified.cli.replay_server import serve  # imports code that draws pictures

    return serve(run, options.trust)


def choose_iteration(run: Run, wanted: int | None) -> int:
    """Return `wanted`, or the newest iteration if it is None. Raises UsageError if the iteration has no samples."""
    stored = samples.iterations(run)
    if not stored:
        raise UsageError(
            f"{run.name} has no stored samples yet; a run stores samples at iteration 1, every log.samples_every "
            "iterations and at the end, unless log.samples_every = 0"
        )
    if wanted is not None and wanted not in stored:
        raise UsageError(
            f"--iteration: {run.name} has no stored samples of iteration {wanted}; available: "
            f"{', '.join(map(str, stored))}"
        )
    return stored[-1] if wanted is None else wanted


def _choose_samples(wanted: str, count: int, iteration: int) -> Sequence[int]:
    """Return the numbers of the wanted samples. Raises UsageError if a sample does not exist."""
    if wanted == "all":
        return range(count)
    if not wanted.isdecimal() or len(wanted) > 9 or int(wanted) >= count:
        raise UsageError(
            f"--sample: expected 'all' or a sample of iteration {iteration} (0 to {count - 1}), "
            f"got '{clean(wanted)[:20]}'"
        )
    return [int(wanted)]
