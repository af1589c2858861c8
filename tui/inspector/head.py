"""The header of the inspector, and the line with the facts of the selected sample."""

from __future__ import annotations

from collections.abc import Sequence

from ppo_unified.text import clean, display_width, format_number, pad
from tui.inspector.inspection import Inspection
from tui.inspector.lines import Line
from tui.inspector.shown import Shown
from tui.runs.entries import Entry


def format_head(
    name: str, entry: Entry | None, inspection: Inspection | None, numbers: Sequence[int], width: int
) -> Line:
    """Return the run, the iteration and the moment. If space is short, the last facts are dropped."""
    facts: list[str] = []
    if inspection is not None:
        stored, moment = inspection.stored, inspection.view.moment
        at = stored.iteration
        newer = sum(number > at for number in numbers)
        of = len(numbers)
        facts.append(f"iteration {at} ({of - newer} of {of} stored)")
        epochs = len(inspection.moments) - 1
        facts.append("after the update" if moment == "after" else f"epoch {moment} of {epochs}")
        facts += [f"{newer} newer: }}"] if newer else []
        facts.append(f"step {stored.step:,}")
        for label, metric in (("score", "reward/score"), ("clip_fraction", "policy/clip_fraction")):
            if (value := stored.metrics.get(metric)) is not None:
                facts.append(f"{label} {format_number(value)}")
    if entry is not None:
        facts.append(clean(entry.state))
    head = f"{clean(name)} > inspect"
    head = pad(head, min(display_width(head), max(16, width // 2)))
    text = ""
    for fact in facts:
        if display_width(head + text) + display_width(fact) + 3 <= width:
            text += f"   {fact}"
    return [(head, "bold"), (text, "")]


def format_sample(inspection: Inspection, shown: Shown) -> Line:
    """Return the facts of the selected sample."""
    rows, number = inspection.list.columns, shown.number
    unit = "tokens" if shown.has_text else "steps"
    facts = [f"sample {number} of {shown.count}", f"score {format_number(float(rows['score'][number]))}"]
    facts += [f"KL {rows['kl'][number]:.3f}"] if "kl" in rows else []
    facts += [f"{int(rows['length'][number])} {unit}", f"{int(rows['cut'][number])} cut"]
    if number not in inspection.order:
        facts.append("not in the filtered list")
    return [("   ".join(facts), "bold")]
