"""The header of the inspector, and the line with the facts of the selected sample."""

from __future__ import annotations

from collections.abc import Sequence

from ppo_unified.text import clean, display_width, format_number, pad
from tui.inspector.inspection import Inspection
from tui.inspector.lines import Line
from tui.inspector.shown import Shown
from tui.runs.entries import Entry

HEADING = "inspect"  # name of the view with the steps of a sample; a low screen omits it


def format_head(
    name: str,
    entry: Entry | None,
    inspection: Inspection | None,
    numbers: Sequence[int],
    sample: Sequence[str],
    width: int,
    view_name: str = HEADING,
) -> Line:
    """Return the run, the iteration, the moment, and the given facts of the sample.

    Facts that do not fit are dropped.
    """
    facts = _facts(inspection, numbers, short=bool(sample)) if inspection is not None else []
    facts[1:1] = sample
    facts += [clean(entry.state)] if entry is not None else []
    head = clean(name)
    head = " " + pad(head, min(display_width(head), max(12, width // 3)))
    text = f" > {view_name}" if not sample or view_name != HEADING else ""
    for fact in facts:
        if display_width(head + text + fact) + 3 <= width:
            text += f"   {fact}"
    return [(head, "bold"), (text, "")]


def _facts(inspection: Inspection, numbers: Sequence[int], short: bool) -> list[str]:
    """Return the iteration and facts about it, most important first."""
    stored, moment = inspection.stored, inspection.view.moment
    at, of = stored.iteration, len(numbers)
    newer = sum(number > at for number in numbers)
    stands = f"{of - newer}/{of}" if short else f"{of - newer} of {of} stored"
    stands = stands if at in numbers else "no longer stored"
    facts = [f"iteration {at} ({stands})"]
    facts += [f"}} shows {newer} newer"] if newer else []
    facts.append("after the update" if moment == "after" else f"epoch {moment} of {len(inspection.moments) - 1}")
    if inspection.view.changes:
        facts.append("what if: " + ", ".join(inspection.view.changes))
    for label, metric in (("mean score", "reward/score"), ("clip_fraction", "policy/clip_fraction")):
        if (value := stored.metrics.get(metric)) is not None:
            facts.append(f"{label} {format_number(value)}")
    return [*facts, f"step {stored.step:,}"]


def format_sample(inspection: Inspection, shown: Shown) -> list[str]:
    """Return the facts of the selected sample, most important first."""
    unit, number = "tokens" if shown.has_text else "steps", shown.number
    score = "score" if "score" in shown.stored.columns else "reward"
    facts = [f"sample {number} of {shown.count}", f"score {format_number(float(shown.values(score).sum()))}"]
    facts += [f"KL {shown.values('kl').sum():.3f}"] if "kl" in shown.now.columns else []
    facts += ["not in the filtered list"] if number not in inspection.order else []
    facts.insert(2, f"{int(shown.values('cut').sum())} of {len(shown.sample.columns)} {unit} cut")
    return facts
