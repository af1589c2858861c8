"""The actions of the inspector that select samples, steps and epochs, and the heat, order and filter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ppo_unified.errors import UsageError
from ppo_unified.text import clean
from tui.dialogs import PromptDialog
from tui.inspector.export import write_sample
from tui.inspector.formula_pane import copied_text
from tui.inspector.frame_pane import FramePane
from tui.inspector.inspection import Inspection
from tui.inspector.panes import PanesScreen
from tui.inspector.sample_pane import SamplePane
from tui.inspector.shown import Shown
from tui.inspector.steps_pane import StepsPane


class CursorActions(PanesScreen):
    """Moves the cursor and changes what the panes show."""

    def need(self) -> Inspection | None:
        """Return the inspection, or show a warning and return None if nothing is loaded."""
        if self.inspection is None:
            self.notify("No iteration is shown yet.", severity="warning", markup=False)
        return self.inspection

    def _act(self, change: Callable[[Inspection], object]) -> None:
        """Change the inspection and show the result."""
        if inspection := self.need():
            change(inspection)
            self.update_panes()

    def action_step_right(self) -> None:
        self._act(lambda inspection: inspection.move_step(1))

    def action_step_left(self) -> None:
        self._act(lambda inspection: inspection.move_step(-1))

    def action_step_first(self) -> None:
        self._act(lambda inspection: inspection.select_step(0))

    def action_step_last(self) -> None:
        self._act(lambda inspection: inspection.select_step(1 << 30))

    def action_line_down(self) -> None:
        self.move_lines(1)

    def action_line_up(self) -> None:
        self.move_lines(-1)

    def move_lines(self, sign: int) -> None:
        """Move the cursor half a page down (1) or up (-1)."""
        if inspection := self.need():
            pane = self.steps_pane()
            inspection.select_step(pane.step_by_lines(sign * max(1, pane.size.height // 2)))
            self.update_panes()

    def action_sample_next(self) -> None:
        self._act(lambda inspection: inspection.move_sample(1))

    def action_sample_previous(self) -> None:
        self._act(lambda inspection: inspection.move_sample(-1))

    def action_best(self) -> None:
        self._act(lambda inspection: inspection.select_extreme(True))

    def action_worst(self) -> None:
        self._act(lambda inspection: inspection.select_extreme(False))

    def action_cut_next(self) -> None:
        self._move_to_cut(1)

    def action_cut_previous(self) -> None:
        self._move_to_cut(-1)

    def _move_to_cut(self, by: int) -> None:
        if inspection := self.need():
            if not inspection.move_to_cut(by):
                where = "a later step or sample" if by > 0 else "an earlier step or sample"
                self.notify(f"The clip cut no gradient at {where} of the list.", markup=False)
            self.update_panes()

    def action_heat(self) -> None:
        self._act(Inspection.next_heat)

    def action_sort(self) -> None:
        self._act(Inspection.next_sort)

    def action_moment_next(self) -> None:
        self._act(lambda inspection: inspection.move_moment(1))

    def action_moment_previous(self) -> None:
        self._act(lambda inspection: inspection.move_moment(-1))

    def action_filter(self) -> None:
        if inspection := self.need():
            ask = PromptDialog(
                "List only samples that match:",
                inspection.view.query,
                "wrong   cut   kl>1   score<0.5   a word of the text",
                check=self._check_query,
                preview=self._preview_query,
            )
            self.app.push_screen(ask)

    def _check_query(self, text: str) -> None:
        if self.inspection is not None:
            self.inspection.listing.filter(text)

    def _preview_query(self, text: str) -> None:
        if self.inspection is not None:
            try:
                self.inspection.set_query(text)
            except UsageError:
                return
            if self.inspection.order and self.inspection.number not in self.inspection.order:
                self.inspection.select(self.inspection.order[0])
            self.update_panes()

    def action_copy(self) -> None:
        if shown := self.shown():
            self.app.copy_to_clipboard(copied_text(shown))
            self.notify("Copied the formulas of this step.", markup=False)

    def action_export(self) -> None:
        if shown := self.shown():
            self.services.attempt(lambda: self._export(shown))

    def _export(self, shown: Shown) -> None:
        path = write_sample(Path("exports"), self.run_folder.name, shown)
        self.notify(f"Wrote {clean(path)}", markup=False)

    def action_frames(self) -> None:
        for pane in self.query(FramePane):
            if pane.needs_permission:
                pane.allow_code()

    # mouse

    def on_steps_pane_clicked(self, message: StepsPane.Clicked) -> None:
        self._act(lambda inspection: inspection.select_step(message.step))

    def on_sample_pane_clicked(self, message: SamplePane.Clicked) -> None:
        self._act(lambda inspection: inspection.select(message.number))
