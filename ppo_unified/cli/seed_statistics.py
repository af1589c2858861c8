"""Statistics over seeds for `compare --seeds`: means, standard deviations and interquartile means of groups of runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ppo_unified.cli.run_table import Snapshot
from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.runs.folder import to_json
from ppo_unified.runs.interquartile import iqm_interval
from ppo_unified.terminal.comparison import Group, Statistics
from ppo_unified.terminal.option_diff import find_differences, format_option
from ppo_unified.text import can_color, clean, format_number, format_table, print_out

RESULTS = ("score", "best_score", "solved_step")


def print_seeds(
    chosen: Mapping[str, Snapshot], groups: Sequence[Group], scale_words: Sequence[str], as_json: bool
) -> None:
    """Print the statistics of groups of runs that differ only in the seed, and of all tasks if there are scales."""
    found = _seed_groups(chosen, groups)
    scales = _parse_scales(scale_words, [group["preset"] for group in found]) if scale_words else {}
    overall = _overall(found, groups, scales) if scales else []
    if as_json:
        print(to_json({"groups": found} | ({"all_tasks": overall} if scales else {})))
    else:
        print_out("\n".join([*_seed_table(found), *_overall_table(overall)]))


def _parse_scales(words: Sequence[str], tasks: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the scale of each task. Raises UsageError for an invalid scale, and if the scale of a task is missing."""
    scales = {}
    for word in words:
        task, _, ends = word.partition("=")
        low, _, high = ends.partition("..")
        if task not in tasks:
            known = did_you_mean(task, tasks) or f"; the tasks are {', '.join(dict.fromkeys(tasks))}"
            raise UsageError(f"--scale: no run of the task {task!r}{known}")
        try:
            scales[task] = float(low), float(high)
        except ValueError:
            scales[task] = 0.0, 0.0
        if not scales[task][0] < scales[task][1]:
            raise UsageError(f"--scale: expected TASK=LOW..HIGH with LOW < HIGH, such as {task}=0..500, got {word!r}")
    if missing := [task for task in dict.fromkeys(tasks) if task not in scales]:
        raise UsageError(f"--scale: expected a scale for each task; add {missing[0]}=LOW..HIGH")
    return scales


def _overall(
    found: Sequence[Mapping[str, Any]], groups: Sequence[Group], scales: Mapping[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    """Return the statistics over all tasks, for each combination of options in which groups of one task differ."""
    settings: dict[str, list[tuple[str, list[float]]]] = {}
    options = {}
    for own, group in zip(found, groups, strict=True):
        low, high = scales[own["preset"]]
        if values := [(value - low) / (high - low) for value in group.statistics("score").values]:
            key = to_json(dict(sorted(own["options"].items())))
            options[key] = own["options"]
            settings.setdefault(key, []).append((own["preset"], values))
    return [
        {
            "options": options[key],
            "tasks": [task for task, _ in parts],
            "runs": sum(len(values) for _, values in parts),
            "score": _interquartile([values for _, values in parts]),
        }
        for key, parts in settings.items()
    ]


def _overall_table(overall: Sequence[Mapping[str, Any]]) -> list[str]:
    if not overall:
        return []
    rows = [
        {
            "options": _join_options(setting["options"]) or "-",
            "tasks": str(len(setting["tasks"])),
            "runs": str(setting["runs"]),
            "score IQM": _format_interval(setting["score"], format_number),
        }
        for setting in overall
    ]
    return ["", *format_table(rows, can_color(sys.stdout))]


def _interquartile(scores: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Return the interquartile mean. A single value has no interval."""
    if not any(scores):
        return {"iqm": None, "iqm_low": None, "iqm_high": None}
    found, has_interval = iqm_interval(scores), any(len(values) > 1 for values in scores)
    low, high = (found.low, found.high) if has_interval else (None, None)
    return {"iqm": found.mean, "iqm_low": low, "iqm_high": high}


def _seed_groups(chosen: Mapping[str, Snapshot], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the statistics of each group as a dict.

    The options of a group are those in which it differs from the other groups with the same preset.
    """
    presets = [chosen[group.runs[0].name].status.preset for group in groups]
    found = []
    for preset, group in zip(presets, groups, strict=True):
        rivals = [other.runs[0].options for other, name in zip(groups, presets, strict=True) if name == preset]
        used = [run.name for run in group.counted]
        found.append(
            {
                "preset": preset,
                "options": {key: group.runs[0].options.get(key) for key in find_differences(rivals) if key != "seed"},
                "runs": used,
                "repeated_runs": [run.name for run in group.runs if run.name not in used],
                "seeds": sorted(run.seed for run in group.counted),
                "greedy": True,
            }
            | {key: _describe(group.statistics(key)) for key in RESULTS}
        )
    return found


def _describe(statistics: Statistics) -> dict[str, Any]:
    average, spread, values = statistics
    ends = {"min": min(values, default=None), "max": max(values, default=None)}
    return {"mean": average, "std": spread, **ends, "runs": len(values)} | _interquartile([values])


def _seed_table(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = format_table([_group_cells(group) for group in groups], can_color(sys.stdout))
    lines += ["", "score, best: the last and the best greedy evaluation of each run"]
    lines += ["mean +- standard deviation (n = number of seeds that have a value; one run per seed)"]
    if any(group[key]["iqm_low"] is not None for group in groups for key in RESULTS):
        lines += ["", *format_table([_interval_cells(group) for group in groups], can_color(sys.stdout))]
        lines += ["IQM: interquartile mean (the mean of the middle half of the seeds) with its 95 % bootstrap interval"]
    for group in groups:
        if repeated := group["repeated_runs"]:
            lines.append(f"not counted, because another run has the same options and seed: {', '.join(repeated)}")
    return lines


def _group_cells(group: Mapping[str, Any]) -> dict[str, str]:
    solved = group["solved_step"]
    return {
        "group": _join(group["preset"], group["options"]),
        "seeds": str(len(group["seeds"])),
        "score (greedy)": _format_statistics(group["score"], format_number),
        "best (greedy)": _format_statistics(group["best_score"], format_number),
        "solved": f"{solved['runs']} of {len(group['runs'])}",
        "solved step": _format_statistics(solved, "{:,.0f}".format),
    }


def _join(name: str, options: Mapping[str, Any]) -> str:
    return f"{clean(name)} {_join_options(options)}".rstrip()


def _join_options(options: Mapping[str, Any]) -> str:
    return clean(" ".join(f"{key}={format_option(value)}" for key, value in options.items()))


def _interval_cells(group: Mapping[str, Any]) -> dict[str, str]:
    return {
        "group": _join(group["preset"], group["options"]),
        "score IQM": _format_interval(group["score"], format_number),
        "best IQM": _format_interval(group["best_score"], format_number),
        "solved step IQM": _format_interval(group["solved_step"], "{:,.0f}".format),
    }


def _format_interval(statistics: Mapping[str, Any], format_one: Callable[[float], str]) -> str:
    """Format an interquartile mean and its interval, such as '487 [470, 495]'."""
    if statistics["iqm"] is None:
        return "-"
    ends = [statistics[key] for key in ("iqm_low", "iqm_high")]
    interval = f" [{', '.join(map(format_one, ends))}]" if None not in ends else ""
    return format_one(statistics["iqm"]) + interval


def _format_statistics(statistics: Mapping[str, Any], format_one: Callable[[float], str]) -> str:
    """Format a mean and the number of values, with the standard deviation if there are several."""
    if not statistics["runs"]:
        return "-"
    spread = "" if statistics["std"] is None else f" +- {format_one(statistics['std'])}"
    return f"{format_one(statistics['mean'])}{spread} (n={statistics['runs']})"
