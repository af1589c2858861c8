"""The pane that shows the steps of an episode as strips over time."""

from __future__ import annotations

from collections.abc import Sequence

from tui.inspector.lines import Line
from tui.inspector.shown import Shown
from tui.inspector.steps_pane import StepsPane, heat_legend


class StripsPane(StepsPane):
    """Shows action, reward, V, the heat, the ratio and the entropy as rows, one column per step."""

    def lines_wanted(self, shown: Shown, width: int) -> int:
        return 8

    def step_by_lines(self, by: int) -> int:
        assert self.shown is not None
        return self.shown.step + 10 * by

    def step_at(self, x: int, y: int) -> int | None:
        return None

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        return [heat_legend(shown, width)]
