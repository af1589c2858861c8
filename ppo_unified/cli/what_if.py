"""`what-if`: repeat the update of a stored iteration with other options, without new samples."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ppo_unified.cli.common import add_json, add_run, add_runs_folder, foreign_code, integer, preload
from ppo_unified.cli.inspect import choose_iteration
from ppo_unified.config.schema import RunConfig
from ppo_unified.config.values import WHY_NOT_AUTO, Auto, show_value
from ppo_unified.errors import UsageError
from ppo_unified.runs import samples
from ppo_unified.runs.folder import find, to_json
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.text import can_color, clean, format_table, print_err, print_out

if TYPE_CHECKING:
    from ppo_unified.training.repeated_update import Update

METRICS = (
    "policy/kl",
    "policy/kl_after",
    "policy/clip_fraction",
    "policy/clip_fraction_after",
    "policy/ratio_max",
    "policy/entropy",
    "loss/policy",
    "loss/value",
    "value/explained_variance",
    "optim/grad_norm",
    "optim/steps",
)
REWARD_OPTIONS = (  # the rewards can be recomputed from stored arrays
    *("llm.kl", "llm.kl_coef", "llm.score_clip", "llm.score_normalize", "llm.missing_eos_penalty"),
)
LARGEST_ERROR = 1e-5  # a larger difference between the repeated and the logged update causes a warning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "To change an option, add --section.key VALUE, such as --ppo.clip 0.1. You can change the\n"
        "options in ppo and optim and, for language models,\n"
        f"{', '.join(REWARD_OPTIONS)}.\n"
        "To list all options with their defaults, run: ppo-unified train PRESET --help"
    )
    add_run(parser)
    parser.add_argument(
        "--iteration", type=integer, metavar="N", help="stored iteration whose update is repeated (default: the newest)"
    )
    add_json(parser)
    add_runs_folder(parser)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Repeat an update with the run's own options and with the changed ones, and print how the results differ."""
    run = find(options.run, options.folder)
    stored = samples.read(run, choose_iteration(run, options.iteration))
    with foreign_code():
        preload("ppo_unified.training.repeated_update")
        from ppo_unified.training.repeated_update import options_of, repeat_iteration

        own = options_of(run, stored)
        config, changes = _configure(own, rest, run.name, options.parser.flags)
        changed = _recompute_rewards(stored, changes)
        update = repeat_iteration(run, own, stored)
        report = _compare(stored, update, repeat_iteration(run, config, changed) if changes else update)
    if options.json:
        about = {"run": run.name, "iteration": stored.iteration, "step": stored.step, "changed": changes}
        print_out(to_json(about | report, indent=None))
    else:
        _print_report(f"{run.name}, iteration {stored.iteration}", changes, report)
    error = report["largest_error"]
    if math.isnan(error):
        print_err(
            "the repeated or the logged update contains NaN, so they cannot be compared; the column 'run' contains the "
            "repeated update"
        )
    elif error > LARGEST_ERROR:
        print_err(
            f"the repeated update differs from the logged one by up to {error:.2g}, because the device, the number of "
            "threads or package versions have changed; the column 'run' contains the repeated update"
        )
    return 0


def _configure(
    own: RunConfig, flags: Sequence[str], name: str, command_flags: Sequence[str]
) -> tuple[RunConfig, dict[str, list[Any]]]:
    """Return the options for the update, and the changes of the flags as {option: [old, new]}.

    The returned options contain only changes in `ppo` and `optim`; changes in `llm` concern only the rewards, which
    `_recompute_rewards` computes. Raises UsageError for an option that cannot change.
    """
    if not flags:
        return own, {}
    from ppo_unified.cli.flags import configure, read_flags

    prog, about = f"ppo-unified what-if {name}", f"Options of the run {name}."
    config = configure(own, read_flags(own, flags, prog, about, command_flags))
    old, new = own.flatten(), config.flatten()
    changes = {option: [old[option], new[option]] for option in new if new[option] != old[option]}
    for option, (was, wanted) in changes.items():
        if why := WHY_NOT_AUTO if isinstance(wanted, Auto) else _why_fixed(own, option):
            change = f"{option} cannot be changed from {show_value(was)} to {show_value(wanted)}"
            raise UsageError(f"{name}: {change}, because {why}")
    return own.model_copy(update={"ppo": config.ppo, "optim": config.optim}), changes


def _why_fixed(config: RunConfig, option: str) -> str:
    """Return why an option cannot be changed when an update is repeated, or '' if it can be changed."""
    if option in REWARD_OPTIONS:
        return ""
    if option.partition(".")[0] not in ("ppo", "optim"):
        others = [name for name in REWARD_OPTIONS if name in config.flatten()]
        allowed = ", ".join(others) + " and " * bool(others) + "the options in ppo and optim"
        return f"it concerns the rollout, which is not collected again; what-if can change {allowed}"
    return config.why_fixed(option)


def _recompute_rewards(stored: StoredIteration, changes: Mapping[str, list[Any]]) -> StoredIteration:
    """Return the stored iteration with rewards for the changed options of language models. Raises UsageError if they
    cannot be recomputed."""
    wanted = {option.removeprefix("llm."): new for option, (_, new) in changes.items() if option in REWARD_OPTIONS}
    if not wanted:
        return stored
    from ppo_unified.inspection import what_if

    reasons = what_if.unavailable(stored)
    for name, value in wanted.items():
        if name not in reasons and value not in (known := what_if.choices(stored, name) or (value,)):
            reasons[name] = f"expected {' or '.join(known)}, got {value}"
        if name in reasons:
            raise UsageError(f"llm.{name}: the stored rewards cannot be recomputed: {reasons[name]}")
    recomputed = what_if.recompute(stored, replace(what_if.Settings.of(stored), **wanted)).columns
    names = ("reward", "value", "next_value")
    return replace(stored, columns=stored.columns | {name: recomputed[name] for name in names})


def _compare(stored: StoredIteration, own: Update, changed: Update) -> dict[str, Any]:
    """Return the metrics of both updates, the cosines between them, and the error of the repeated update."""
    from ppo_unified.training.repeated_update import cosine, find_errors

    names = [name for name in METRICS if name in own.metrics and (own.has_critic or name != "loss/value")]
    table = {
        name: {
            "logged": stored.metrics.get(name),
            "run": own.metrics[name],
            "now": changed.metrics[name],
            "difference": changed.metrics[name] - own.metrics[name],
        }
        for name in names
    }
    return {
        "metrics": table,
        "cosine_first_gradient": cosine(own.gradient, changed.gradient),
        "cosine_weight_change": cosine(own.change, changed.change),
        "weight_change": {"run": float(own.change.norm()), "now": float(changed.change.norm())},
        "largest_error": float(np.max([*find_errors(stored, own, names).values()])),  # NaN if one of them is NaN
    }


def _print_report(title: str, changes: Mapping[str, list[Any]], report: Mapping[str, Any]) -> None:
    what = ", ".join(f"{option} {show_value(old)} -> {show_value(new)}" for option, (old, new) in changes.items())
    lines = [f"{clean(title)}: the same rollout, with {clean(what) or 'the options of the run'}", ""]
    rows = [
        {
            "metric": name,
            "run": _show(row["run"]),
            "now": _show(row["now"]),
            "difference": _show(row["difference"], "+"),
        }
        for name, row in report["metrics"].items()
    ]
    norms = report["weight_change"]
    change = {name: _show(x) for name, x in (*norms.items(), ("difference", norms["now"] - norms["run"]))}
    rows.append({"metric": "norm of the weight change", **change})
    lines += [*format_table(rows, can_color(sys.stdout)), ""]
    gradient, weights = (_show(report[f"cosine_{name}"]) for name in ("first_gradient", "weight_change"))
    lines += [
        f"cosine between both first gradients of the policy: {gradient}",
        f"cosine between both weight changes of the policy: {weights}",
    ]
    print_out("\n".join(lines))


def _show(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value + 0.0:{sign}.4g}"
