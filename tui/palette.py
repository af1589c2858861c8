"""The command palette, which searches the table of actions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tui.action import Action
from tui.actions import applicable_actions, key_name


class ActionProvider(Provider):
    """Provides all actions that apply to the current screen and run, with their keys."""

    def _actions(self) -> Iterator[tuple[str, Action]]:
        for action in applicable_actions(self.app, self.screen):
            if action.name != "command_palette":
                yield f"{action.label}  ({key_name(action.keys.split(',')[0])})", action

    async def discover(self) -> Hits:
        """Yield all actions while the search is empty."""
        for text, action in self._actions():
            yield DiscoveryHit(text, partial(self._run, action), help=action.help)

    async def search(self, query: str) -> Hits:
        """Yield the actions whose label or help matches the query."""
        matcher = self.matcher(query)
        for text, action in self._actions():
            score = max(matcher.match(text), 0.6 * matcher.match(action.help))
            if score > 0:
                yield Hit(score, matcher.highlight(text), partial(self._run, action), help=action.help)

    async def _run(self, action: Action) -> None:
        namespace = self.app if action.place == "app" else self.screen
        await self.app.run_action(action.name, default_namespace=namespace)
