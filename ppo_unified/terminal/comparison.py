"""Formats a comparison of runs: their results, and the options in which they differ. This module does not import torch.

Runs that differ only in the seed form one group, because their results are samples of the same distribution.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from statistics import mean, stdev
from typing import Any, NamedTuple, Protocol, TypeAlias

from ppo_unified.terminal.chat import wrap_text
from ppo_unified.terminal.option_diff import (
    Options,
    difference_lines,
    find_differences,
    format_option,
    options_by_run,
    seedless_key,
)
from ppo_unified.text import clean, format_duration, format_number, format_table, max_display_width

SEVERAL = ", "  # between the seeds of a group
SCORES = "score, best: the last and the best greedy evaluation. time: training time without pauses."
REPEATED = " *"  # follows the name of a run that is not counted


class Results(Protocol):
    """The results of a run, such as its `Status`."""

    step: int
    score: float | None
    best_score: float | None
    solved_step: int | None
    elapsed_s: float


RESULTS = tuple(Results.__annotations__)  # the names of the results


class ComparedRun(NamedTuple):
    """A run with its unique name, its state, its seed, its options and its results."""

    name: str
    state: str
    seed: int
    options: Options  # dotted keys, as returned by `query.compared_options`
    results: Results


# {name: (results, options)} -> {seed: the name of the run that represents it}, such as `seeds.one_run_per_seed`
OneRunPerSeed: TypeAlias = Callable[[Mapping[str, tuple[Any, Options]]], Mapping[int, str]]


class Group(NamedTuple):
    """Runs that differ only in the seed. `counted` contains one run per seed."""

    runs: Sequence[ComparedRun]
    counted: Sequence[ComparedRun]

    def statistics(self, name: str) -> Statistics:
        """Return the statistics over the seeds of a result such as 'score'."""
        values = [getattr(run.results, name) for run in self.counted]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        return Statistics(mean(finite) if finite else None, stdev(finite) if len(finite) > 1 else None, finite)

    def mean(self, name: str) -> float | None:
        """Return the mean of a result over the seeds. For a single run, return its result, even if it is not finite."""
        own: float | None = getattr(self.runs[0].results, name)
        return own if len(self.runs) == 1 else self.statistics(name).mean


class Statistics(NamedTuple):
    """The mean and the sample standard deviation of finite values. A single value has no standard deviation."""

    mean: float | None
    std: float | None
    values: Sequence[float]


class Block(NamedTuple):
    """A part of a comparison."""

    title: str
    lines: Sequence[str]


def group_runs(runs: Sequence[ComparedRun], one_run_per_seed: OneRunPerSeed) -> list[Group]:
    """Group the runs that differ only in the seed, in the order of each group's first run. Sort each group by seed."""
    by_options: dict[str, list[ComparedRun]] = {}
    for run in runs:
        by_options.setdefault(seedless_key(run.options), []).append(run)
    groups = []
    for members in by_options.values():
        members.sort(key=lambda run: run.seed)
        used = set(one_run_per_seed({run.name: (run.results, run.options) for run in members}).values())
        groups.append(Group(members, [run for run in members if run.name in used]))
    return groups


def compare(
    groups: Sequence[Group],
    width: int,
    color: bool = False,
    paint: Mapping[str, Mapping[str, str]] | None = None,
    show_equal: bool = False,
) -> list[Block]:
    """Format the results of runs and the options in which they differ, in lines of at most `width` columns if possible.

    If the names of the runs do not fit beside their results and above their options, letters replace them. `paint` is
    the same as in `format_table`. If `show_equal` is true, the options that are equal in all runs are added.
    """
    count = sum(len(group.runs) for group in groups)
    names, letters = [_group_name(group) for group in groups], [_letter(number) for number in range(len(groups))]
    for labels, compact in ((names, False), (names, True), (letters, False), (letters, True)):
        rows = _result_rows(groups, labels, labels is names, compact)
        tables = {label: _group_options(group) for label, group in zip(labels, groups, strict=True)}
        named_options = options_by_run(tables) if labels is names else []
        if max_display_width([*format_table(rows), *named_options]) <= width:
            break
    legend = _legend(groups, width) if labels is letters else []
    head = f"Comparison of {count} runs"
    if len(groups) == 1:
        head += " that differ only in the seed" if len(groups[0].counted) > 1 else " with the same options and seed"
    elif len(groups) < count:
        head += f" in {len(groups)} groups; the runs of a group differ only in the seed"
    results = Block("Results", [*format_table(rows, color, paint), *_notes(groups, width)])
    return [Block(head, legend), results, *_option_blocks(groups, tables, width, color, show_equal)]


def _option_blocks(
    groups: Sequence[Group], tables: Mapping[str, Options], width: int, color: bool, show_equal: bool
) -> list[Block]:
    first, *_ = tables.values()
    keys = dict.fromkeys(key for options in tables.values() for key in options)
    different = find_differences(list(tables.values()))
    foreign = {key for key in different if _belongs_to_one_adapter(key, list(tables.values()))}
    several = {"seed"} if len({run.seed for group in groups for run in group.runs}) > 1 else set()
    equal = [key for key in keys if key not in different and key not in several]
    shown = {label: {key: options[key] for key in options if key not in foreign} for label, options in tables.items()}
    title = f"Options that differ: {len(different) - len(foreign)}; equal options: {len(equal)}"
    title += f"; options of one adapter only: {len(foreign)}" if foreign else ""
    blocks = [Block(title, difference_lines(shown, width, color))] if different else []
    if show_equal:
        widest = max(map(len, map(clean, equal)), default=0)
        lines = [f"{clean(key):<{widest}}  {format_option(first.get(key))}" for key in equal]
        blocks.append(Block("Equal options", lines))
    return blocks


def _belongs_to_one_adapter(key: str, tables: Sequence[Options]) -> bool:
    """Return True if all runs that have the option agree on its value, and all other runs use a different adapter."""
    kinds = {options.get("kind") for options in tables if key in options}
    others = [options for options in tables if options.get("kind") not in kinds]
    return bool(others) and not find_differences([{key: o.get(key)} for o in tables if o.get("kind") in kinds])


def _letter(number: int) -> str:
    """Return A, B, ..., Z, AA, AB, ..."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _group_name(group: Group) -> str:
    """Return the run's name or, for several runs, the first and the last name, such as 'cartpole-s1 ... s3'."""
    first, last = clean(group.runs[0].name), clean(group.runs[-1].name)
    parts = zip(*(re.split("(?<=[-_. ])", name) for name in (first, last)), strict=False)
    shared = sum(len(one) for one, other in takewhile(lambda pair: pair[0] == pair[1], parts))
    return first if len(group.runs) == 1 else f"{first} ... {last[shared:]}"


def _group_options(group: Group) -> Options:
    seeds = SEVERAL.join(str(run.seed) for run in group.counted)
    return {**group.runs[0].options, **({"seed": seeds} if len(group.counted) > 1 else {})}


def _legend(groups: Sequence[Group], width: int) -> list[str]:
    lines = []
    for number, group in enumerate(groups):
        letter = _letter(number)
        names = ", ".join(clean(run.name) for run in group.runs)
        first, *further = wrap_text(names, width - len(letter) - 2)
        lines += [f"{letter}  {first}", *(" " * (len(letter) + 2) + line for line in further)]
    return lines


def _result_rows(groups: Sequence[Group], labels: Sequence[str], named: bool, compact: bool) -> list[dict[str, str]]:
    """Return one row per run, below a row with the statistics of its group if the group has several runs."""
    rows = []
    several = any(len(group.runs) > 1 for group in groups)
    for label, group in zip(labels, groups, strict=True):
        rows.append(_result_row(label, group, several, compact))
        for run in group.runs if len(group.runs) > 1 else ():
            name = clean(run.name) if named else f"seed {run.seed}"
            repeated = "" if run in group.counted else REPEATED
            rows.append(_result_row(f"  {name}{repeated}", Group([run], [run]), several, compact))
    return rows


def _result_row(label: str, group: Group, several: bool, compact: bool) -> dict[str, str]:
    score, solved = group.statistics("score"), group.statistics("solved_step")
    states = {clean(run.state) for run in group.runs}
    format_steps: Callable[[float], str] = format_number if compact else "{:,.0f}".format
    greedy, single = "" if compact else " (greedy)", len(group.runs) == 1
    row = {"run": label, "state": states.pop() if len(states) == 1 else "various"}
    row |= {"steps": format_steps(group.mean("step") or 0), f"score{greedy}": format_number(group.mean("score"))}
    if several:
        row |= {"+-": format_number(score.std), "n": "-" if single else str(len(score.values))}
    row |= {f"best{greedy}": format_number(group.mean("best_score"))}
    if several:
        row |= {"solved": "-" if single else f"{len(solved.values)} of {len(group.counted)}"}
    return row | {
        "at step" if several else "solved at": "-" if solved.mean is None else format_steps(solved.mean),
        "time": format_duration(group.mean("elapsed_s") or 0),
    }


def _notes(groups: Sequence[Group], width: int) -> list[str]:
    """Explain the columns of the results."""
    texts = [SCORES]
    if any(len(group.runs) > 1 for group in groups):
        texts.append(
            "A group's row shows means over its seeds, n of which have a score. +-: sample standard deviation."
        )
        texts.append(
            "solved: number of seeds that solved the task. at step: mean of the steps at which they solved it."
        )
    if any(len(group.counted) < len(group.runs) for group in groups):
        texts.append("* not counted, because another run has the same options and seed")
    return [line for text in texts for line in wrap_text(text, width)]
