"""The KL laboratory as text: estimators side by side, truncated sampling, and one response token by token."""

from __future__ import annotations

from ppo_unified.inspection.critic_text import step_labels, visible_steps
from ppo_unified.inspection.kl_lab import WHY, KLReport, token_estimates
from ppo_unified.inspection.sample_statistics import Interval
from ppo_unified.inspection.sections import (
    Canvas,
    Line,
    Section,
    axis_label,
    format_mean,
    format_value,
    interval_plots,
    paragraph,
    plot_room,
    table,
)
from ppo_unified.runs.stored_iteration import Sample, StoredIteration

LABELS = {"k1": "k1", "abs": "|k1|", "k2": "k2", "k3": "k3", "full": "full"}


def kl_sections(report: KLReport, canvas: Canvas) -> list[Section]:
    """Return the sections of an iteration."""
    used = list(LABELS).index(report.used)
    facts = (
        f"{report.tokens:,} tokens of {report.responses:,} responses, sampled by the old policy. The run uses "
        f"{LABELS[report.used]} (llm.kl = {report.used!r}) with the coefficient {report.coef:g} (*). Errors are "
        "standard errors over responses. spread: standard deviation over tokens, relative to that of full."
    )
    lines = [*paragraph(facts, canvas), *table(_estimate_rows(report), canvas, accent=used)]
    sections = [Section("Estimates of the KL to the reference model", lines), _plot_section(report, canvas)]
    return [*sections, _truncation_section(report, canvas)]


def _estimate_rows(report: KLReport) -> list[dict[str, str]]:
    return [
        {
            "estimate": LABELS[x.name] + " *" * (x.name == report.used),
            "per token": format_mean(x.per_token),
            "per response": format_mean(x.per_response),
            "negative": f"{100 * x.negative:.1f} %",
            "spread": "-" if x.relative_spread is None else f"{x.relative_spread:.2f}x",
            "std": format_value(x.spread),
        }
        for x in report.estimates
    ]


def _plot_section(report: KLReport, canvas: Canvas) -> Section:
    intervals = []
    for x in report.estimates:
        half = 1.96 * (x.per_response.error or 0.0)
        intervals.append(Interval(x.per_response.value, x.per_response.value - half, x.per_response.value + half))
    ends = (min(0.0, *(x.low or 0.0 for x in intervals)), max(x.high or 0.0 for x in intervals))
    rows = [{"estimate": LABELS[x.name]} for x in report.estimates]
    room = max(10, plot_room(rows, canvas, 60))
    full = report.estimates[-1].per_response.value
    plots = interval_plots(intervals, ends, room, canvas.unicode, full)
    about = "95 % intervals; the line marks the full KL. k1, k3 and full estimate the same number; |k1| and k2 do not."
    lines = table(rows, canvas, {axis_label(ends, room): plots})
    return Section("KL per response", [*lines, *paragraph(about, canvas)])


def _truncation_section(report: KLReport, canvas: Canvas) -> Section:
    title = "If a truncated sampler had drawn the tokens"
    if not report.truncations:
        return Section(title, paragraph("The likeliest tokens of the old policy are not stored.", canvas))
    rows = [
        {
            "sampler": x.name,
            "mass": f"{100 * x.mass:.1f} %",
            **{LABELS[name]: _format_shift(x.shifts[name].shift.value) for name in LABELS},
            "error of k3": format_value(x.shifts["k3"].shift.error),
            "tokens": f"{x.tokens:,}",
            "excluded": f"{x.excluded:,}",
        }
        for x in report.truncations
    ]
    about = (
        "Each number is the mean per token under that sampler, minus the full KL of the policy without truncation, at "
        "the same prefixes. mass: mean probability of the kept tokens. " + WHY
    )
    lines = table(rows, canvas)
    last = report.truncations[-1]
    if last.excluded:
        about += (
            f" excluded: tokens whose kept set can have more than the {report.stored} stored tokens "
            f"({last.excluded:,} of {last.tokens + last.excluded:,} with {last.name})."
        )
    return Section(title, [*lines, *paragraph(about, canvas)])


def _format_shift(value: float) -> str:
    text = format_value(value)
    return text if text.startswith("-") else f"+{text}"


def tokens_section(
    stored: StoredIteration, number: int, sample: Sample, canvas: Canvas, cursor: int = -1, most: int = 0
) -> Section:
    """Return every estimator at the tokens of a response. If `most` > 0, only tokens around the cursor are shown."""
    found = token_estimates(stored, sample)
    seen = visible_steps(len(sample.columns), cursor, most)
    labels = step_labels(stored, sample, seen, canvas.unicode)
    headers = {**LABELS, "logprob_old": "log old", "logprob_ref": "log ref"}
    rows = [
        {"token": label} | {header: format_value(found[name][step]) for name, header in headers.items()}
        for step, label in zip(seen, labels, strict=True)
    ]
    rows.append(
        {"token": f"sum of {len(sample.columns)}"}
        | {header: format_value(sum(found[name])) for name, header in headers.items()}
    )
    lines: list[Line] = table(rows, canvas, accent=cursor - seen.start if cursor >= 0 else -1)
    return Section(f"Sample {number}: the estimates at each token", lines)
