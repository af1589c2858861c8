"""The pane that summarizes an iteration: counts, the range of the ratios, and their histogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tui.inspector.lines import Line, LinesPane, rule
from tui.inspector.numbers import cell
from tui.inspector.shown import Shown

BARS = (" ▁▂▃▄▅▆▇█", " .:-=+*#@")  # with and without Unicode


class SummaryPane(LinesPane):
    """Shows how many steps of the iteration are outside the clip range and cut, and a histogram of the ratios."""

    def signature(self, shown: Shown) -> object:
        return id(shown.stored), shown.now.settings, shown.moment, shown.look

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        now, mask = shown.now, shown.stored.columns["mask"]
        unit = "tokens" if shown.has_text else "steps"
        outside, cut = int((now.columns["outside"] != 0)[mask].sum()), int(now.columns["cut"][mask].sum())
        ratio = now.columns["ratio"][mask].astype(np.float64)
        ratio = ratio[np.isfinite(ratio)]
        lines: list[Line] = [rule("this iteration", width, shown.unicode)]
        lines.append([(f"{unit:<14}{int(mask.sum()):>9,}", "")])
        lines.append([(f"{'ratio outside':<14}{outside:>9,}", ""), (f"  {share(outside, mask)}", "muted")])
        lines.append([(f"{'gradient cut':<14}{cut:>9,}", ""), (f"  {share(cut, mask)}", "muted")])
        low, high = (cell(float(ratio.min())), cell(float(ratio.max()))) if ratio.size else ("-", "-")
        lines.append([(f"{'ratios':<14}{low:>9} .. {high}", "")])
        terms = now.settings.terms
        lines += histogram(ratio, (1 - terms.below, 1 + terms.above), width, shown.unicode)
        logged = shown.stored.metrics.get("policy/clip_fraction")
        if logged is not None:
            lines.append([(f"outside in the last epoch{100 * logged:6.1f} %", "muted")])
        return lines[:height]


def share(count: int, mask: np.ndarray) -> str:
    """Return a count as a percentage of the valid steps."""
    return f"{100 * count / max(1, int(mask.sum())):.1f} %"


def histogram(ratio: np.ndarray, clip: tuple[float, float], width: int, unicode: bool) -> list[Line]:
    """Return a histogram of log ratios with its axis; the ends of the clip range are drawn as lines.

    Heights are square roots of counts, so that single steps remain visible.
    """
    low, high = np.log(max(clip[0], 0.02)), np.log(clip[1])
    reach = max(2 * max(-low, high), 1e-6)
    bins = max(10, min(width - 2, 60))
    counts, edges = np.histogram(np.clip(np.log(np.maximum(ratio, 1e-9)), -reach, reach), bins, (-reach, reach))
    bars = BARS[0 if unicode else 1]
    heights = np.ceil(np.sqrt(counts / max(1, counts.max())) * (len(bars) - 1)).astype(int)
    text = "".join(bars[height] for height in heights)
    edge = "│" if unicode else "|"
    places = [int(np.searchsorted(edges, end)) for end in (low, high)]
    middle = bins // 2
    first, second = (min(max(place, 1), bins) for place in places)
    labels = [" "] * (bins + 8)
    for place, label in ((first, f"{clip[0]:.3g}"), (middle + 1, "1"), (second + 1, f"{clip[1]:.3g}")):
        start = max(0, place - len(label) // 2)
        if all(c == " " for c in labels[max(0, start - 1) : start + len(label) + 1]):
            labels[start : start + len(label)] = label
    return [
        [(text[:first], "cut"), (edge, "muted"), (text[first:second], ""), (edge, "muted"), (text[second:], "cut")],
        [("".join(labels)[:width], "muted")],
    ]
