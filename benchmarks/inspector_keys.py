"""Create a large stored iteration, and the keys that walk through it in the inspector."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.stored_iteration import StoredIteration
from tui.inspector.inspection import SORTS, Inspection, View
from tui.inspector.what_if_pane import change_option, format_value, neighbor_value

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.stored_tokens import Response, make_token_iteration

SAMPLES, TOKENS, WORDS = 512, 256, 4_000
RIGHT, DOWN = "\x1b[C", "\x1b[B"
Keys = list[tuple[str, bytes]]  # keys, each with a pattern for the text that it causes


def store_iteration(run: Run) -> StoredIteration:
    """Store an iteration of SAMPLES responses with TOKENS tokens each, and return it."""
    rng = np.random.default_rng(0)
    words = [f" w{number}" for number in range(WORDS)]
    responses = [
        Response(f"prompt {number}", [words[word] for word in rng.integers(0, WORDS, TOKENS)], float(rng.normal()))
        for number in range(SAMPLES)
    ]
    stored = make_token_iteration(responses)
    samples.write(run, stored)
    return stored


class InspectorKeys:
    """Presses keys in a copy of the inspector's state, to know the text that each key causes."""

    def __init__(self, stored: StoredIteration) -> None:
        self._state = Inspection(stored, View())

    def step_text(self) -> bytes:
        """Return the start of the title of the selected token's formulas."""
        state = self._state
        return re.escape(f"token {state.samples[state.number].columns[state.step]} '").encode()

    def moves(self, count: int) -> dict[str, Keys]:
        """Return keys that move the cursor or change what is shown, by the name of their effect."""
        state = self._state
        return {
            "next token": self._press(count, RIGHT, lambda: state.move_step(1), self.step_text),
            "next sample": self._press(count, DOWN, lambda: state.move_sample(1), self._sample_text),
            "next cut token": self._press(count, "n", lambda: state.move_to_cut(1), self.step_text),
            "heat": self._press(count, "h", state.next_heat, self._heat_text),
            "epoch": [*self._moment("[", -1), *self._moment("]", 1), *self._moment("[", -1)],
            "order of the list": self._press(count, "o", state.next_sort, self._order_text),
        }

    def changes(self, option: str, by: int, count: int) -> Keys:
        """Return keys that change the selected option of the what-if pane, so that all numbers are recomputed."""
        state = self._state

        def change() -> None:
            value = neighbor_value(state.stored, state.settings, option, by)
            state.change(change_option(state.stored, state.settings, option, value))

        return self._press(count, "<>"[by > 0], change, lambda: self.option_text(option))

    def option_text(self, option: str) -> bytes:
        """Return the text of an option when it is selected in the what-if pane."""
        return re.escape(f"< {format_value(getattr(self._state.settings, option))} >").encode()

    def _moment(self, key: str, by: int) -> Keys:
        """Return keys that show the first epoch, or the numbers after the update."""
        state = self._state
        return self._press(len(state.moments) - 1, key, lambda: state.move_moment(by), self._moment_text)

    def _press(self, count: int, key: str, effect: Callable[[], object], text: Callable[[], bytes]) -> Keys:
        keys: Keys = []
        for _ in range(count):
            effect()
            keys.append((key, text()))
        return keys

    def _sample_text(self) -> bytes:
        return f"sample {self._state.number} of ".encode()

    def _order_text(self) -> bytes:
        return SORTS[self._state.view.sort].encode()

    def _moment_text(self) -> bytes:
        moment = self._state.view.moment
        return b"after the update" if moment == "after" else f"epoch {moment} of ".encode()

    def _heat_text(self) -> bytes:
        label = next(heat.label for heat in self._state.heats if heat.name == self._state.view.heat)
        return re.escape(f"heat {label}").encode() + rb"[\x1b ]"  # the label may be bold
