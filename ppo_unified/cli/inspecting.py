"""`inspect`: every quantity of PPO at every step of a stored sample, as JSON or as a table that fits the terminal."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ppo_unified.errors import UsageError
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run, find, to_json
from ppo_unified.runs.samples import QUANTITIES, Quantity, Sample, Stored
from ppo_unified.text import can_color, clean, columns_of, pad, say, table

NUMBER = "#"  # the table's first column
WANTED = (  # in this order as far as the width allows, once the texts have theirs
    *("reward", "value", "advantage", "ratio", "clipped", "delta", "return", "kl", "next_value", "action"),
    *("logprob_new", "logprob_old", "logprob_ref", "score", "kl_full", "token", "advantage_used"),
)
WIDEST_TEXT = 20
DIGITS = 4  # of the largest number of a column

Steps = list[dict[str, Any]]


def inspect(options: argparse.Namespace) -> int:
    """Print one sample of a stored iteration, or all of them."""
    run = find(options.run, options.folder)
    stored = samples.read(run, _iteration(run, options.iteration))
    there = stored.samples()
    chosen = _chosen(options.sample, len(there), stored.iteration)
    if options.json:
        each = [_document(stored, number, there[number]) for number in chosen]
        about: dict[str, Any] = {"run": run.name, "iterations": samples.iterations(run), "samples": len(there)}
        about |= {"iteration_steps" if name == "steps" else name: getattr(stored, name) for name in samples.SINGLE}
        say(to_json(about | ({"each": each} if options.sample == "all" else each[0]), indent=None))
    else:
        width = shutil.get_terminal_size().columns
        say("\n".join(_picture(run, stored, there, chosen, width, can_color(sys.stdout))))
    return 0


def _document(stored: Stored, number: int, sample: Sample) -> dict[str, Any]:
    before = {"before": stored.text_before(sample)} if "text" in stored.columns else {}
    return {"sample": number, "row": sample.row, **before, "steps": stored.steps_of(sample)}


def _iteration(run: Run, asked: int | None) -> int:
    """The stored iteration that is meant. Raises UsageError naming those there are."""
    there = samples.iterations(run)
    if not there:
        raise UsageError(
            f"{run.name} has stored no samples (yet): they come with iteration 1, every log.samples_every iterations "
            "and the last one, unless log.samples_every = 0"
        )
    if asked is not None and asked not in there:
        raise UsageError(
            f"--iteration {asked}: {run.name} has stored no samples of it; there are {', '.join(map(str, there))}"
        )
    return there[-1] if asked is None else asked


def _chosen(asked: str, count: int, iteration: int) -> Sequence[int]:
    """The numbers of the samples that are meant. Raises UsageError naming the range."""
    if asked == "all":
        return range(count)
    if not asked.isdecimal() or len(asked) > 9 or int(asked) >= count:
        raise UsageError(
            f"--sample {clean(asked)[:20]}: iteration {iteration} has the samples 0 to {count - 1}; "
            "name one of them, or all"
        )
    return [int(asked)]


def _picture(
    run: Run, stored: Stored, there: Sequence[Sample], chosen: Sequence[int], width: int, color: bool
) -> list[str]:
    heading, meanings, tables = parts(run, stored, there, chosen, width, color)
    return [*heading, *meanings, *tables]


def parts(
    run: Run, stored: Stored, there: Sequence[Sample], chosen: Sequence[int], width: int, color: bool = False
) -> tuple[list[str], list[str], list[str]]:
    """What the numbers are, what the columns mean, and a table for each chosen sample, each as lines within `width` as
    far as the narrowest columns fit."""
    steps = {number: stored.steps_of(there[number]) for number in chosen}
    spelled = _spelled([step for rows in steps.values() for step in rows])
    sums = {number: {name: _sum(rows, name) for name in spelled} for number, rows in steps.items()}
    shown, hidden = _fitting(
        {name: [*cells, *(x[name] for x in sums.values())] for name, cells in spelled.items()}, width
    )
    meanings, tables = _meanings(shown, hidden, width), list[str]()
    start = 0
    for number, rows in steps.items():
        cells = [{name: spelled[name][start + i] for name in shown} for i in range(len(rows))]
        start += len(rows)
        cells.append({name: sums[number][name] for name in shown})
        tables += ["", *textwrap.wrap(_title(number, there, rows), width)]
        if before := stored.text_before(there[number]):
            line = f"After {clean(json.dumps(before, ensure_ascii=False))}:"
            tables.append(pad(line, min(width, columns_of(line))))
        tables += table([{_about(name).header: cell for name, cell in row.items()} for row in cells], color)
    return _heading(run, stored, width), meanings, tables


def _meanings(shown: Sequence[str], hidden: Sequence[str], width: int) -> list[str]:
    headers = [_about(name).header for name in shown]
    indent = " " * (4 + max(map(len, headers)))
    lines: list[str] = []
    for name, header in zip(shown, headers, strict=True):
        lines += textwrap.wrap(f"  {header}".ljust(len(indent)) + _about(name).meaning, width, subsequent_indent=indent)
    if hidden:
        names = ", ".join(_about(name).header for name in hidden)
        lines += textwrap.wrap(f"Not shown for lack of room: {names}. A wider terminal or --json shows them.", width)
    return lines


def _about(name: str) -> Quantity:
    if name == NUMBER:
        return Quantity(NUMBER, "column of the rollout")
    taken = any(name == known.header for known in QUANTITIES.values())
    return QUANTITIES.get(name, Quantity(f"{name}_" if taken else name, "as the adapter gives it"))


def _heading(run: Run, stored: Stored, width: int) -> list[str]:
    """Which iteration, and how its numbers hang together."""
    held = int(stored.columns["mask"].sum())
    kept = "" if held == stored.steps else f", of which the first {held:,} are kept"
    clip = f"{stored.clip:.4g}" + (f" (upwards {stored.clip_high:.4g})" if stored.clip_high != stored.clip else "")
    facts = f"gamma {stored.gamma:.6g}, lam {stored.lam:.6g}, clip {clip}"
    about = f"{clean(run.name)}, iteration {stored.iteration}, up to step {stored.step:,}: {stored.steps:,} steps{kept}"
    advantages = {
        "gae": "A = delta + gamma*lam*A'",
        "td": "A = delta",
        "reward-to-go": "A = r + gamma*A' (V' for A' where the rollout cuts an episode)",
        "return": "A = the episode's discounted rewards from its first step here",
    }
    to_go = "return = r + gamma*return' (V' for return' where the rollout cuts an episode)"
    returns = f"return = {'A' if stored.advantage_kind == 'gae' else 'GAE'} + V"
    formulas = (
        "delta = r + gamma*V' - V",
        advantages.get(stored.advantage_kind, f"A as ppo.advantage = {clean(stored.advantage_kind)!r} says"),
        returns if stored.value_target == "lambda" else to_go,
    )
    return [line for text in (about, facts, "; ".join(formulas)) for line in textwrap.wrap(text, width)] + [""]


def _title(number: int, there: Sequence[Sample], rows: Steps) -> str:
    end = "goes on" if rows[-1]["continues"] else "ends"
    steps = f"{len(rows)} step{'s' if len(rows) > 1 else ''}, then the episode {end}"
    return f"Sample {number} (of 0 to {len(there) - 1}), row {there[number].row} of the rollout: {steps}"


def _spelled(rows: Steps) -> dict[str, list[str]]:
    """Every quantity but `continues` as cells of even precision, by name."""
    names = [name for name in rows[0] if name not in ("column", "continues")]
    return {NUMBER: [str(row["column"]) for row in rows]} | {
        name: _cells([row[name] for row in rows]) for name in names
    }


def _cells(values: Sequence[Any]) -> list[str]:
    if isinstance(values[0], str):
        return [_text(value) for value in values]
    if isinstance(values[0], bool):
        return ["*" if value else "" for value in values]
    if isinstance(values[0], int):
        return [str(value) for value in values]
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if 0 < largest < 1e-3:
        return [f"{value:.1e}" for value in values]
    if all(value == round(value) for value in values if math.isfinite(value)):
        return [f"{value:.0f}" for value in values]
    digits = min(DIGITS, max(0, DIGITS - 1 - math.floor(math.log10(largest))))
    return [f"{value:z.{digits}f}" for value in values]  # z: no minus before a zero


def _text(value: str) -> str:
    """A text in one narrow cell; in quotes and with escapes where blanks or unprintable characters would be lost."""
    shown = clean(value) if clean(value) == value else clean(json.dumps(value, ensure_ascii=False))
    return pad(shown, min(WIDEST_TEXT, columns_of(shown)))


def _fitting(spelled: Mapping[str, Sequence[str]], width: int) -> tuple[list[str], list[str]]:
    """The names of the columns that fit side by side, the most wanted first to be taken, and those left out.

    The first is taken however narrow it is.
    """
    widths = {name: max(map(columns_of, (_about(name).header, *cells))) + 2 for name, cells in spelled.items()}
    texts = [name for name in spelled if name not in (NUMBER, *WANTED)]
    order = [NUMBER, *dict.fromkeys(["text", *WANTED, *texts])]
    taken: list[str] = []
    for name in order:
        if name in spelled and (not taken or sum(widths[x] for x in taken) + widths[name] - 2 <= width):
            taken.append(name)
    return [name for name in spelled if name in taken], [name for name in spelled if name not in taken]


def _sum(rows: Steps, name: str) -> str:
    """A cell of the last line: the sum of what adds up."""
    if name == NUMBER:
        return "sum"
    if not _about(name).adds_up:
        return ""
    total = sum(row[name] for row in rows)
    return str(total) if isinstance(total, int) else f"{total:z.4g}"
