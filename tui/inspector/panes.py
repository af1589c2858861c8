"""The panes of the inspector: which are shown, where, and how large."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Container, Horizontal, Vertical
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from ppo_unified.runs.folder import Run
from tui.inspector.formula_pane import FormulaPane
from tui.inspector.frame_pane import FramePane, has_frames
from tui.inspector.head import HEADING, format_head, format_sample
from tui.inspector.inspection import Inspection
from tui.inspector.laboratory_pane import LaboratoryPane
from tui.inspector.lines import LinesPane, LineWidget
from tui.inspector.probability_pane import ProbabilityPane
from tui.inspector.sample_pane import SamplePane
from tui.inspector.shown import Look, Shown
from tui.inspector.steps_pane import StepsPane
from tui.inspector.strips_pane import StripsPane
from tui.inspector.study_pane import LEAST as STUDY
from tui.inspector.study_pane import StudyPane
from tui.inspector.summary_pane import SummaryPane
from tui.inspector.table_pane import TablePane
from tui.inspector.text_pane import TextPane
from tui.inspector.what_if_pane import WhatIfPane
from tui.inspector.words_pane import LEAST, WordsPane
from tui.services import Services
from tui.status_row import StatusRow
from tui.store import Store
from tui.watch.player import replay_command

TINY = 70  # columns of a screen in which the what-if pane covers everything else
WIDE, HUGE = 110, 170  # columns of a screen with one pane at its left, and with two
LIST, LARGE_LIST = 36, 50  # columns of a pane at the left
BESIDE, CHANCES = 140, 62  # columns: of a right side with the probabilities beside the formulas, and of the former
FORMULAS = 110  # columns; in a wider pane, the results would be far from the formulas
LOW = 30  # lines; a lower screen has a single line of facts
LAYOUTS = ("formulas", "table", "text")  # what gets most of the space


class PanesScreen(Screen[None]):
    """A screen that shows an `Inspection` in panes. Subclasses load it and change it."""

    def __init__(self, services: Services, store: Store, key: str) -> None:
        super().__init__()
        self.services, self.store, self.key = services, store, key
        self.run_folder = Run(store.entries[key].path if key in store.entries else services.runs / key)
        self.numbers: list[int] = []  # stored iterations, ascending
        self.inspection: Inspection | None = None
        self.awaited = 0  # the iteration from which on a new one is shown when it is stored, or 0
        self.what_if = False  # the what-if pane is open
        self.study = False  # the study pane is open
        self.view_name = HEADING  # of the tab, in the header
        self._list_hidden = self._list_full = False  # by the user: beside the sample, in a narrow screen
        self._layout = LAYOUTS[0]

    def compose(self) -> ComposeResult:
        yield LineWidget("head")
        yield Static("Reading the samples ...", id="notice", markup=False)
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield SamplePane("samples")
                yield FramePane(self.has_colors, "frame-left", command=replay_command)
                yield SummaryPane("summary")
            yield WhatIfPane("what-if")
            with Vertical(id="right"):
                yield LineWidget("sample")
                yield TextPane("text")
                yield StripsPane("strips")
                yield FramePane(self.has_colors, "frame", command=replay_command)
                yield TablePane("table")
                with Container(id="bottom"):
                    yield FormulaPane("formulas")
                    yield ProbabilityPane("probabilities")
                yield WordsPane("words")
                yield StudyPane("study")
        yield LaboratoryPane("laboratory")
        yield StatusRow()

    @property
    def is_wide(self) -> bool:
        """True if the list has room beside the sample."""
        return self.size.width >= WIDE

    @property
    def is_list_alone(self) -> bool:
        """True if the list covers a narrow screen."""
        return self._list_full and not self.is_wide and not self.what_if

    def steps_pane(self) -> StepsPane:
        """Return the pane that shows all steps of the sample."""
        inspection = self.inspection
        has_text = inspection is not None and "text" in inspection.stored.columns
        return self.query_one(TextPane) if has_text else self.query_one(StripsPane)

    def on_resize(self) -> None:
        self.arrange_panes()

    def arrange_panes(self) -> None:
        """Show the panes that fit, with their sizes, and update them."""
        inspection = self.inspection
        if inspection is None:
            self.update_head()
            return
        wide, huge, low = self.is_wide, self.size.width >= HUGE, self.size.height < LOW
        list_alone = self.is_list_alone
        has_list = list_alone or (wide and not self._list_hidden and (huge or not self.what_if))
        beside = LARGE_LIST if huge else LIST
        left, right, what_if = (self.query_one(f"#{name}") for name in ("left", "right", "what-if"))
        is_tiny = self.what_if and self.size.width < TINY
        left.display, right.display, what_if.display = has_list, not (list_alone or is_tiny), self.what_if
        left.styles.width, what_if.styles.width = "1fr" if list_alone else beside, LIST + 2 * has_list
        self._arrange_frames(inspection, has_list and not list_alone)
        self.query_one("#summary").display = not low
        self.query_one("#sample").display = not low
        is_beside = has_list or self.what_if
        what_if.set_class(has_list, "-beside")
        right.set_class(is_beside, "-beside")
        width = self.size.width - beside * has_list - (LIST + 2 * has_list) * self.what_if - (3 if is_beside else 2)
        self.query_one(StudyPane).display = self.study
        arrange = self._arrange_study if self.study else self._arrange_right
        arrange(inspection, max(20, width), self.size.height - (2 if low else 3))
        self.update_panes()

    def _arrange_frames(self, inspection: Inspection, has_list: bool) -> None:
        """Show the environment below the list, or, if the strips have most of the space, below the strips."""
        possible = has_frames(str(inspection.stored.options.get("kind", "")))
        below = self._layout == "text" and not self.study
        self.query_one("#frame").display = possible and below
        self.query_one("#frame-left").display = possible and has_list and not below and self.size.height >= LOW

    def _arrange_right(self, inspection: Inspection, width: int, height: int) -> None:
        """Distribute the height of the right side over its panes."""
        shown, steps, low = inspection.show(self._look()), self.steps_pane(), self.size.height < LOW
        for pane in (self.query_one(TextPane), self.query_one(StripsPane)):
            pane.display = pane is steps
        formulas, chances = self.query_one(FormulaPane), self.query_one(ProbabilityPane)
        bottom, table, words = self.query_one("#bottom"), self.query_one(TablePane), self.query_one(WordsPane)
        bottom.display, table.display = self._layout == "formulas", self._layout != "text"
        words.display = bottom.display and not low
        beside = width >= BESIDE and bool(shown.stored.alternatives)
        bottom.set_class(beside, "-beside")
        formulas.is_compact, formulas.compares = low, self.what_if
        formula_lines = formulas.lines_wanted(shown, width - CHANCES - 2 if beside else min(width, FORMULAS))
        below = 0 if beside or height - formula_lines < 18 else chances.lines_wanted(shown)
        chances.display = beside or bool(below)
        chances.styles.height = formula_lines if beside else below
        formulas.styles.height, bottom.styles.height = formula_lines, formula_lines + below
        room = height - (formula_lines + below if bottom.display else 0)
        longest = 1 + max(len(sample.columns) for sample in inspection.samples)
        wanted = steps.lines_wanted(shown, width) + (not low)
        rows = min(longest, max(3 if low else 5, room // 4)) if table.display else 0
        lines = max(3, min(wanted, room - rows)) if table.display or self.query_one("#frame").display else room
        steps.styles.height = lines
        least = LEAST if words.display else 0
        rows = max(2, min(longest, max(rows, room - lines - least)))
        table.styles.height = rows
        words.styles.height = max(0, min(words.lines_wanted(shown, width), room - lines - rows))

    def _arrange_study(self, inspection: Inspection, width: int, height: int) -> None:
        """Show the steps above the study text, and the formulas between them if they leave enough lines for it."""
        shown, steps, formulas = inspection.show(self._look()), self.steps_pane(), self.query_one(FormulaPane)
        for name in ("text", "strips", "table", "words", "probabilities"):
            self.query_one(f"#{name}").display = False
        bottom, low = self.query_one("#bottom"), self.size.height < LOW
        bottom.set_class(False, "-beside")
        formulas.is_compact, formulas.compares = True, self.what_if
        wanted = formulas.lines_wanted(shown, min(width, FORMULAS))
        steps.display, lines = True, max(3, min(steps.lines_wanted(shown, width) + (not low), height // 5))
        bottom.display = not low and height - lines - wanted >= STUDY
        steps.styles.height, formulas.styles.height, bottom.styles.height = lines, wanted, wanted
        self.query_one(StudyPane).styles.height = height - lines - wanted * bottom.display

    @property
    def has_colors(self) -> bool:
        """True if colors can show the heat."""
        return self.services.unicode and not self.app.no_color

    def _look(self) -> Look:
        theme = self.app.current_theme
        return Look(theme.dark, self.has_colors, self.services.unicode, theme.background or "#000000")

    def shown(self) -> Shown | None:
        """Return the state that the panes show."""
        return self.inspection.show(self._look()) if self.inspection is not None else None

    def update_panes(self) -> None:
        """Show the current state in all visible panes."""
        shown, inspection = self.shown(), self.inspection
        if shown is None or inspection is None:
            self.update_head()
            return
        for pane in self.query(LinesPane):
            if _is_displayed(pane):
                pane.update_shown(shown)
        for frame in self.query(FramePane):
            if _is_displayed(frame):
                frame.border_title = f" before the action of step {shown.column} "
                frame.show(self.run_folder, shown.stored.iteration, shown.number, shown.step)
        self.query_one("#sample", LineWidget).set_line([("   ".join(format_sample(inspection, shown)), "bold")])
        self.update_head()

    def update_head(self) -> None:
        """Show the run, the iteration and, in a low screen, the sample."""
        entry = self.store.entries.get(self.key)
        inspection, shown = self.inspection, self.shown()
        low = self.size.height < LOW and inspection is not None and shown is not None
        sample = format_sample(inspection, shown) if low and inspection and shown else []
        width, name = max(20, self.size.width), self.run_folder.name
        head = format_head(name, entry, inspection, self.numbers, sample, width, self.view_name)
        self.query_one("#head", LineWidget).set_line(head)

    def action_list(self) -> None:
        if self.is_wide:
            self._list_hidden = not self._list_hidden
        else:
            self._list_full = not self._list_full
        self.arrange_panes()

    def action_table(self) -> None:
        self._layout = LAYOUTS[(LAYOUTS.index(self._layout) + 1) % len(LAYOUTS)]
        self.arrange_panes()


def _is_displayed(widget: Widget) -> bool:
    """Return True if neither the widget nor a container of it is hidden."""
    return all(node.display for node in widget.ancestors_with_self if isinstance(node, Widget))
