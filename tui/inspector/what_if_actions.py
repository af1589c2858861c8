"""The actions of the what-if pane."""

from __future__ import annotations

from textual import events
from textual.widgets import Input

from ppo_unified.errors import UsageError
from ppo_unified.inspection.what_if import Settings
from tui.dialogs import PromptDialog
from tui.inspector.cursor_actions import CursorActions
from tui.inspector.what_if_pane import WhatIfPane, change_option, format_value, neighbor_value, parse_value


class WhatIfActions(CursorActions):
    """Changes options and recomputes the iteration."""

    def action_what_if(self) -> None:
        if self.need():
            self.what_if = not self.what_if
            self.arrange_panes()
            self.refresh_bindings()

    def action_option_next(self) -> None:
        self.query_one(WhatIfPane).move(1)

    def action_option_previous(self) -> None:
        self.query_one(WhatIfPane).move(-1)

    def action_more(self) -> None:
        self._change(1)

    def action_less(self) -> None:
        self._change(-1)

    def _change(self, by: int) -> None:
        inspection, option = self.inspection, self.query_one(WhatIfPane).option
        if inspection is None:
            return
        value = neighbor_value(inspection.stored, inspection.settings, option, by)
        self._set_option(option, value)

    def _set_option(self, option: str, value: object) -> None:
        if inspection := self.inspection:
            try:
                self._set_settings(change_option(inspection.stored, inspection.settings, option, value))
            except UsageError as error:
                self.notify(str(error), severity="warning", markup=False)

    def _set_settings(self, settings: Settings) -> None:
        if self.inspection is not None:
            self.inspection.change(settings)
            self.update_panes()

    def action_reset(self) -> None:
        if self.inspection is not None:
            self._set_settings(self.inspection.own)

    def action_edit(self) -> None:
        if inspection := self.inspection:
            option = self.query_one(WhatIfPane).option
            self._ask_value(option, format_value(getattr(inspection.settings, option)))

    def _ask_value(self, option: str, text: str) -> None:
        """Open a dialog with `text` for the value of an option, unless the option cannot be changed."""
        inspection = self.inspection
        assert inspection is not None
        stored, before = inspection.stored, inspection.settings
        known = tuple(getattr(settings, option) for settings in (before, inspection.own))

        def parse(typed: str) -> object:
            return parse_value(stored, option, typed, known)

        def preview(typed: str) -> None:
            try:
                self._set_settings(change_option(stored, before, option, parse(typed)))
            except UsageError:
                self._set_settings(before)

        def close(result: str | None) -> None:
            if result is None:  # canceled
                self._set_settings(before)

        try:
            change_option(stored, before, option, known[0])
        except UsageError as error:
            self.notify(str(error), severity="warning", markup=False)
        else:
            ask = PromptDialog(f"{option} (run: {format_value(known[1])})", text, check=parse, preview=preview)
            self.app.push_screen(ask, close)

    async def on_key(self, event: events.Key) -> None:
        """Start typing the value of an option with a digit."""
        character = event.character or ""
        if self.what_if and (character.isdecimal() or character == "."):
            event.stop()
            self._ask_value(self.query_one(WhatIfPane).option, character)
            self.app.call_later(self._end_selection)

    def _end_selection(self) -> None:
        for field in self.app.screen.query(Input):
            field.action_end()
