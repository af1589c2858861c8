"""The pane with the probability of the chosen token or action, and the likeliest alternatives, under each policy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from ppo_unified.inspection.token_text import pieces_of
from ppo_unified.runs.stored_iteration import Alternatives
from ppo_unified.text import pad
from tui.inspector.lines import Line, LinesPane, Span, rule
from tui.inspector.numbers import percent
from tui.inspector.shown import Shown

MOST = 30  # columns of one policy
POLICIES = {"ref": "reference model", "old": "when sampled (old)", "new": "after update (new)"}  # key -> heading


class ProbabilityPane(LinesPane):
    """Shows the likeliest tokens or actions under the reference, old and new policy, side by side."""

    def lines_wanted(self, shown: Shown) -> int:
        """Return the number of lines that the pane needs, or 0 if there are no alternatives."""
        return max((2 + found.actions.shape[-1] for found in shown.stored.alternatives.values()), default=0)

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        policies = [name for name in POLICIES if name in shown.stored.alternatives]
        unit = "tokens" if shown.has_text else "actions"
        lines: list[Line] = [rule(f"likeliest {unit} here (> marks the sampled one)", width, shown.unicode)]
        room = min(MOST, (width - 2 * (len(policies) - 1)) // max(1, len(policies)))
        blocks = [_alternatives(shown, name, room) for name in policies]
        for number in range(max(map(len, blocks), default=0)):
            spans: list[Span] = []
            for block in blocks:
                text, style = block[number] if number < len(block) else (" " * room, "")
                spans += [*([("  ", "")] * bool(spans)), (text, style)]
            lines.append(spans)
        return lines[:height]


def _alternatives(shown: Shown, policy: str, width: int) -> list[Span]:
    """Return the heading of a policy and its likeliest tokens, each padded to `width` columns."""
    block: list[Span] = [(pad(POLICIES[policy], width), "muted")]
    found: Alternatives | None = shown.stored.alternatives.get(policy)
    if found is None:
        return block
    row, column = shown.sample.row, shown.column
    chosen = _chosen_action(shown)
    texts = [shown.stored.vocabulary.get(int(action), str(int(action))) for action in found.actions[row, column]]
    for action, text, logprob in zip(
        found.actions[row, column].tolist(),
        pieces_of(texts, shown.unicode),
        found.logprobs[row, column].tolist(),
        strict=True,
    ):
        share = percent(logprob)
        size = max(4, width - len(share) - 3)
        label = text + " " * (size - cell_len(text)) if cell_len(text) <= size else pad(text, size)
        mark = ">" if action == chosen else " "
        block.append((pad(f"{mark}{label} {share}", width), "bold" if action == chosen else ""))
    return block


def _chosen_action(shown: Shown) -> int | None:
    for name in ("token", "action"):
        if name in shown.stored.columns:
            return int(shown.stored.columns[name][shown.sample.row, shown.column])
    return None
