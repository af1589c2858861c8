"""The actions of the study pane."""

from __future__ import annotations

from ppo_unified.study.pages import LANGUAGES
from tui.inspector.formula_pane import FormulaPane
from tui.inspector.study_pane import StudyPane, topics_of
from tui.inspector.what_if_actions import WhatIfActions

STUDY_KEYS = frozenset(["topic_next", "topic_previous", "language"])  # they need the study pane


class StudyActions(WhatIfActions):
    """Selects the formula and the language of the study pane."""

    def action_study(self) -> None:
        if self.need():
            self.study = not self.study
            self.query_one(StudyPane).language = self.services.state.language
            self._select_heat()
            self.arrange_panes()
            self.refresh_bindings()

    def action_topic_next(self) -> None:
        self._move_topic(1)

    def action_topic_previous(self) -> None:
        self._move_topic(-1)

    def _move_topic(self, by: int) -> None:
        if shown := self.shown():
            topics, pane = topics_of(shown), self.query_one(StudyPane)
            place = topics.index(pane.topic) if pane.topic in topics else 0
            self._select_topic(topics[(place + by) % len(topics)])

    def _select_topic(self, topic: str) -> None:
        self.query_one(StudyPane).topic = topic
        self.query_one(FormulaPane).selected = topic if self.study else ""
        self.update_panes()

    def action_heat(self) -> None:
        super().action_heat()
        self._select_heat()

    def _select_heat(self) -> None:
        """Select the quantity of the colors."""
        if shown := self.shown():
            pane, topics = self.query_one(StudyPane), topics_of(shown)
            label = next((topic for topic in topics if topic.lower() == shown.heat.label.lower()), None)
            self._select_topic(label or (pane.topic if pane.topic in topics else topics[0]))

    def action_language(self) -> None:
        if not self.services.unicode:
            self.notify("This terminal cannot show Chinese; use one with UTF-8.", severity="warning", markup=False)
            return
        codes, state = list(LANGUAGES), self.services.state
        state.language = codes[(codes.index(state.language) + 1) % len(codes)]
        self.services.save_state()
        self.query_one(StudyPane).language = state.language
        self.update_panes()
