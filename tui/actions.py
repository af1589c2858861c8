"""The one table of what can be done in the terminal UI: keys, footer, command palette, help and docs come from here.

A screen or widget takes its bindings with `bindings(PLACE)` and has one method `action_NAME` for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from textual.binding import Binding, BindingType

if TYPE_CHECKING:
    from textual.app import App
    from textual.screen import Screen

Place: TypeAlias = Literal["app", "runs", "control", "charts", "metric", "run", "picker", "form"]

PLACES: dict[Place, str] = {  # in the order of help and docs
    "runs": "The list of runs",
    "control": "The run under the cursor, or on the page",
    "charts": "Charts",
    "metric": "One metric",
    "run": "One run",
    "picker": "New run: what to train",
    "form": "New run: its options",
    "app": "Everywhere",
}


@dataclass(frozen=True)
class Action:
    """One thing to do in one place."""

    name: str  # the method is action_NAME
    keys: str  # Textual's names, separated by commas; the first one is shown
    label: str  # at most two words: the footer has little room
    help: str  # one sentence
    place: Place
    footer: bool = False
    writes: bool = False  # changes a run or starts a process: not there with --readonly


ACTIONS: tuple[Action, ...] = (
    Action("new", "n", "New run", "Choose what to train and start it", "runs", footer=True, writes=True),
    Action(
        "open", "enter", "Open", "Look at the run under the cursor: curves, options, log, samples", "runs", footer=True
    ),
    Action("mark", "space", "Mark", "Draw the run in the charts, or no longer", "runs", footer=True),
    Action("mark_all", "a", "Mark all", "Mark every listed run, or none where all are marked", "runs"),
    Action("pin", "p", "Pin", "Make the run the reference: always drawn, on top and in white", "runs"),
    Action("stop", "s", "Stop", "Write a checkpoint and stop the run", "control", footer=True, writes=True),
    Action("kill", "K", "Kill", "End the run at once, without a checkpoint", "control", writes=True),
    Action("resume", "r", "Resume", "Go on from the newest checkpoint", "control", footer=True, writes=True),
    Action(
        "rerun", "R", "Rerun", "Open the form with this run's options, to start another like it", "control", writes=True
    ),
    Action("rename", "e", "Rename", "Give the run another name", "control", writes=True),
    Action("note", "N", "Note", "Write a line about the run", "control", writes=True),
    Action("delete", "d,delete", "Delete", "Delete the run's folder, after a question", "control", writes=True),
    Action("compare", "c", "Compare", "The options in which the marked runs differ", "runs"),
    Action("inspect", "i", "Inspect", "Every quantity of PPO at every step of a stored sample", "control"),
    Action("play", "w", "Watch", "Watch the policy act, or type prompts to the language model", "control"),
    Action("copy_command", "y", "Copy command", "Copy the command line that started the run", "control"),
    Action("filter", "slash", "Filter", "List only some runs: words, key:value, key>1, !x, x|y", "runs", footer=True),
    Action("sort", "o", "Sort", "Sort by the next column; a click on a column's head does it too", "runs"),
    Action("sort_reverse", "O", "Reverse", "Turn the order round", "runs"),
    Action("wider", "greater_than_sign", "Wider list", "Give the list more room", "runs"),
    Action("narrower", "less_than_sign", "Wider charts", "Give the charts more room", "runs"),
    Action("metrics", "m", "Metrics", "Show only metrics whose name has one of these words", "charts", footer=True),
    Action(
        "enlarge",
        "f",
        "Enlarge",
        "One metric on the whole screen, with a table of values: also those that a title's +2 leaves out",
        "charts",
    ),
    Action("grid", "g", "Grid", "More charts on a page: 1, 2, 4, 6, 9, 16, 25, 36", "charts"),
    Action("grid_less", "G", "Larger charts", "Fewer charts on a page", "charts"),
    Action("page_next", "right_square_bracket", "Next page", "The next page of charts", "charts"),
    Action("page_previous", "left_square_bracket", "Page back", "The page of charts before", "charts"),
    Action("group", "v", "Group", "Only the next group of metrics, by the word before the slash", "charts"),
    Action("x_axis", "x", "X axis", "Step, time since the start, or time of day", "charts"),
    Action("log_y", "l", "Log y", "A logarithmic y axis, or a linear one", "charts"),
    Action("log_x", "L", "Log x", "A logarithmic x axis, or a linear one", "charts"),
    Action("smoother", "full_stop", "Smoother", "Draw a longer moving average over the raw curve", "charts"),
    Action("rougher", "comma", "Rougher", "Draw a shorter moving average", "charts"),
    Action(
        "zoom_in",
        "plus,equals_sign",
        "Zoom in",
        "See less of the x axis; at the right end the curve is followed",
        "charts",
    ),
    Action("zoom_out", "minus", "Zoom out", "See more of the x axis", "charts"),
    Action("pan_left", "shift+left,H", "Pan left", "Move the window towards the start", "charts"),
    Action("pan_right", "shift+right,J", "Pan right", "Move the window towards the end", "charts"),
    Action("zoom_reset", "0", "Whole axis", "See everything, and follow what comes", "charts"),
    Action("cross_left", "left", "Read left", "Move the crosshair of all charts to the left", "charts"),
    Action("cross_right", "right", "Read right", "Move the crosshair of all charts to the right", "charts"),
    Action(
        "aggregate", "A", "Seeds", "Runs that differ in the seed only as one: median and interquartile band", "charts"
    ),
    Action("export", "E", "Export", "Write the chart as CSV and SVG", "charts"),
    Action("back", "escape,f,q", "Back", "Back to all charts", "metric", footer=True),
    Action("next", "n,right_square_bracket", "Next metric", "The next metric", "metric", footer=True),
    Action("previous", "N,left_square_bracket", "Metric before", "The metric before", "metric"),
    Action("back", "escape,q", "Back", "Back to the list of runs", "run", footer=True),
    Action("tab_next", "greater_than_sign", "Next tab", "The next tab; digits choose one", "run", footer=True),
    Action("tab_previous", "less_than_sign", "Tab before", "The tab before", "run"),
    Action("follow", "F", "Follow", "Follow the end of the log again", "run"),
    Action("older", "left_curly_bracket", "Older", "The sample stored before", "run"),
    Action("newer", "right_curly_bracket", "Newer", "The sample stored next", "run"),
    Action(
        "difference",
        "D",
        "Differences",
        "Only the options in which this run differs from the pinned or a marked one",
        "run",
    ),
    Action("choose", "enter", "Choose", "Open the form for the line under the cursor", "picker", footer=True),
    Action("cancel", "escape", "Cancel", "Back without starting anything", "picker", footer=True),
    Action(
        "start",
        "ctrl+s,f5",
        "Start",
        "Start the run, or one for each combination of values",
        "form",
        footer=True,
        writes=True,
    ),
    Action("copy_command", "ctrl+y", "Copy command", "Copy the equivalent command line", "form", footer=True),
    Action("recipe", "ctrl+r", "Recipe", "Lay a known system's options over the preset's", "form", footer=True),
    Action("search", "slash", "Search", "Show only options whose name or description has some words", "form"),
    Action("reset_field", "ctrl+z", "Reset field", "Give the field the preset's value back", "form"),
    Action(
        "cancel",
        "escape",
        "Cancel",
        "Out of a search, then back; what was typed is kept",
        "form",
        footer=True,
    ),
    Action(
        "help",
        "question_mark,f1",
        "Help",
        "What the focused chart or field means, and every key here",
        "app",
        footer=True,
    ),
    Action("quit", "q", "Quit", "Leave; running runs go on", "app", footer=True),
    Action("command_palette", "ctrl+p", "Palette", "Find any action by its name", "app"),
    Action("theme", "T", "Theme", "The next theme: dark, light, and colour-blind safe ones", "app"),
)


def actions_of(place: Place) -> Iterator[Action]:
    return (action for action in ACTIONS if action.place == place)


def bindings(place: Place) -> list[BindingType]:
    """Textual's bindings of a place, in the table's order."""
    return [
        Binding(a.keys, a.name, a.label, show=a.footer, tooltip=a.help, system=a.name == "command_palette")
        for a in actions_of(place)
    ]


def available_actions(app: App[Any], screen: Screen[Any]) -> Iterator[tuple[Place, list[Action]]]:
    """By place, the actions that a screen takes now: not those of a hidden tab, nor what --readonly forbids."""
    for place in (*getattr(screen, "places", ()), "app"):
        owner = app if place == "app" else screen
        taken = [action for action in actions_of(place) if owner.check_action(action.name, ()) is not False]
        if taken:
            yield place, taken


def is_write_action(name: str) -> bool:
    """Whether an action is taken away by --readonly."""
    return any(action.writes for action in ACTIONS if action.name == name)


def key_name(key: str) -> str:
    """How a key is written for people: 'slash' -> '/', 'shift+left' -> 'shift+left'."""
    return _SIGNS.get(key, key)


_SIGNS = {
    "slash": "/",
    "question_mark": "?",
    "full_stop": ".",
    "comma": ",",
    "plus": "+",
    "minus": "-",
    "equals_sign": "=",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "left_curly_bracket": "{",
    "right_curly_bracket": "}",
    "greater_than_sign": ">",
    "less_than_sign": "<",
}
