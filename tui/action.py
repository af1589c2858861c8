"""What an action of the terminal UI is, where it can occur, and what it can need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

# fmt: off
Place: TypeAlias = Literal[
    "app", "runs", "control", "charts", "metric", "run", "inspector", "what_if", "watch", "compare", "sweep", "picker",
    "form",
]
# fmt: on

PLACES: dict[Place, str] = {  # headings, in the order of help and docs
    "runs": "List of runs",
    "control": "Selected run",
    "charts": "Charts",
    "metric": "Enlarged metric",
    "run": "Run page",
    "inspector": "Inspector",
    "what_if": "Inspector: what if",
    "watch": "Watch",
    "compare": "Comparison",
    "sweep": "Sweep",
    "picker": "New run: target",
    "form": "New run: options",
    "app": "Everywhere",
}


NEEDS: dict[str, str] = {  # condition of a screen -> what an action needs, for the help
    "runs": "needs a run",
    "run": "needs a selected run",
    "sweep": "needs a trial of a sweep",
    "own": "needs a run of this program",
    "active": "needs an active run",
    "ended": "needs a run that has ended",
    "checkpoint": "needs a checkpoint",
    "curves": "needs a chart",
    "pages": "needs several pages of charts",
    "log": "first opens the tab Log",
    "older": "needs an older stored sample on the tab Samples",
    "newer": "needs a newer stored sample on the tab Samples",
    "options": "first opens the tab Options",
    "option": "needs a selected option",
    "valid": "needs valid options",
    "ungrouped": "needs ungrouped seeds",
    "sample": "needs a stored iteration",
    "reference": "needs an iteration with the KL to a reference model",
    "iterations": "needs several stored iterations",
    "study": "needs the study text",
    "epochs": "needs an iteration whose epochs are stored",
    "permission": "needs an environment that the run's own code draws",
}
PLACE_NEEDS: dict[Place, str] = {"charts": "curves"}
ALWAYS, PROMINENT = 0, 2  # ranks


@dataclass(frozen=True)
class Action:
    """One action of one place."""

    name: str  # the method is action_NAME
    keys: str  # Textual's key names, separated by commas; the footer shows the first one that works
    label: str  # at most two words, because the footer has little space
    help: str  # one sentence
    place: Place
    rank: int = 9  # if the footer has no room for all actions, those with the lowest rank stay; rank 0 always stays
    needs: str = ""  # the condition without which the action does nothing
    prominent: str = ""  # a condition, such as an interrupted run, under which the action has the rank PROMINENT
    writes: bool = False  # changes a run or starts a process, so it is unavailable with --readonly
