"""The tabs of the inspector: the steps of a sample, and one tab per laboratory.

To add a tab, add a `Tab` to TABS, an action `tab_NAME` to tui/inspector/actions.py, and its method to `TabActions`. The
report of a laboratory is computed in a thread, once per iteration.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from textual import work
from textual.message import Message

from ppo_unified.errors import UsageError
from ppo_unified.inspection.laboratories import CriticMicroscope, KLLaboratory, Laboratory
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.text import clean
from tui.inspector.explanation import CRITIC_EXPLANATION, EXPLANATION, KL_EXPLANATION
from tui.inspector.head import HEADING
from tui.inspector.laboratory_pane import LaboratoryPane
from tui.inspector.study_actions import STUDY_KEYS, StudyActions
from tui.services import Services
from tui.store import Store

MOST_REPORTS = 16  # in memory
LEAVES = frozenset(  # actions that a laboratory does not need
    ["heat", "what_if", "table", "list", "sort", "filter", "cut_next", "cut_previous", "moment_next", "moment_previous"]
    + ["copy", "export", "frames", "study", *STUDY_KEYS]
)


Key: TypeAlias = tuple[str, int, int]  # of a report: tab, iteration and step of the run


class Tab(NamedTuple):
    """One view of the iteration."""

    name: str  # the action is tab_NAME
    title: str  # in the header
    explanation: str  # for the help
    laboratory: type[Laboratory] | None = None  # None: the panes with the steps of a sample


TABS = (
    Tab("steps", HEADING, EXPLANATION),
    Tab("critic", "critic", CRITIC_EXPLANATION, CriticMicroscope),
    Tab("kl", "KL", KL_EXPLANATION, KLLaboratory),
)


class TabActions(StudyActions):
    """Selects a tab, and computes the report of a laboratory in a thread."""

    class Examined(Message):
        """A thread has computed the report of a laboratory, or failed with a message."""

        def __init__(self, key: Key, found: Laboratory | str) -> None:
            super().__init__()
            self.key, self.found = key, found

    def __init__(self, services: Services, store: Store, key: str) -> None:
        super().__init__(services, store, key)
        self.tab = TABS[0]
        self._reports: dict[Key, Laboratory | str] = {}

    def action_tab_steps(self) -> None:
        self.select_tab(TABS[0])

    def action_tab_critic(self) -> None:
        self.select_tab(TABS[1])

    def action_tab_kl(self) -> None:
        self.select_tab(TABS[2])

    def select_tab(self, tab: Tab) -> None:
        """Show a tab."""
        if self.need():
            self.tab, self.view_name = tab, tab.title
            self.show_tab()
            self.arrange_panes()
            self.refresh_bindings()

    def show_tab(self) -> None:
        """Show the widgets of the tab."""
        self.query_one("#body").display = self.tab.laboratory is None
        self.query_one(LaboratoryPane).display = self.tab.laboratory is not None

    def leaves_out(self, action: str) -> bool:
        """Return True if an action has no effect in this tab."""
        return self.tab.laboratory is not None and action in LEAVES

    def update_panes(self) -> None:
        super().update_panes()
        inspection, laboratory = self.inspection, self.tab.laboratory
        if inspection is None or laboratory is None:
            return
        stored = inspection.stored
        key = self.tab.name, stored.iteration, stored.step
        found = self._reports.get(key)
        if found is None:
            if len(self._reports) >= MOST_REPORTS:
                self._reports.pop(next(iter(self._reports)))
            self._reports[key] = found = "Computing ..."
            self._examine(key, laboratory, stored)
        self.query_one(LaboratoryPane).show(found, inspection.number, inspection.step, self.services.unicode)

    @work(thread=True, group="laboratory", exit_on_error=False)
    def _examine(self, key: Key, laboratory: type[Laboratory], stored: StoredIteration) -> None:
        """Compute a report in a thread. Does not access any widget."""
        found: Laboratory | str
        try:
            found = laboratory.of(self.run_folder, stored)
        except (UsageError, OSError) as error:
            found = clean(error)
        self.post_message(self.Examined(key, found))

    def on_tab_actions_examined(self, message: Examined) -> None:
        if message.key in self._reports:
            self._reports[message.key] = message.found
            self.update_panes()

    def move_lines(self, sign: int) -> None:
        if self.tab.laboratory is None:
            super().move_lines(sign)
        else:
            pane = self.query_one(LaboratoryPane)
            pane.scroll_lines(sign * max(1, pane.size.height - 2))
