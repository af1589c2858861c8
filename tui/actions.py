"""The table of all actions in the terminal UI. Keys, footer, command palette, help and docs are derived from it.

A screen or widget gets its bindings from `bindings(PLACE)` and has one method `action_NAME` for each of them.
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

PLACES: dict[Place, str] = {  # headings, in the order of help and docs
    "runs": "List of runs",
    "control": "Selected run",
    "charts": "Charts",
    "metric": "Enlarged metric",
    "run": "Run page",
    "picker": "New run: target",
    "form": "New run: options",
    "app": "Everywhere",
}


@dataclass(frozen=True)
class Action:
    """One action of one place."""

    name: str  # the method is action_NAME
    keys: str  # Textual's key names, separated by commas; the footer shows the first one
    label: str  # at most two words, because the footer has little space
    help: str  # one sentence
    place: Place
    footer: bool = False
    writes: bool = False  # changes a run or starts a process, so it is unavailable with --readonly


ACTIONS: tuple[Action, ...] = (
    Action("new", "n", "New run", "Select a target and start a new run", "runs", footer=True, writes=True),
    Action(
        "open",
        "enter",
        "Open",
        "Open the selected run's page with its curves, options, log, samples, system and events",
        "runs",
        footer=True,
    ),
    Action(
        "mark", "space", "Mark", "Mark or unmark the selected run; the charts show the marked runs", "runs", footer=True
    ),
    Action("mark_all", "a", "Mark all", "Mark all listed runs, or unmark them if all are marked", "runs"),
    Action("pin", "p", "Pin", "Pin or unpin the selected run; the charts always draw the pinned run on top", "runs"),
    Action("stop", "s", "Stop", "Write a checkpoint and stop the run", "control", footer=True, writes=True),
    Action("kill", "K", "Kill", "Kill the run immediately, without writing a checkpoint", "control", writes=True),
    Action("resume", "r", "Resume", "Resume the run from its latest checkpoint", "control", footer=True, writes=True),
    Action("rerun", "R", "Rerun", "Open the form with this run's options to start a new run", "control", writes=True),
    Action("rename", "e", "Rename", "Rename the run", "control", writes=True),
    Action("note", "N", "Note", "Write a one-line note about the run", "control", writes=True),
    Action("delete", "d,delete", "Delete", "Delete the run folder after you confirm", "control", writes=True),
    Action("compare", "c", "Compare", "Show the options that differ between the marked runs", "runs"),
    Action("inspect", "i", "Inspect", "Show every PPO quantity at every step of a stored sample", "control"),
    Action("play", "w", "Watch", "Watch the policy act, or type prompts for the language model", "control"),
    Action("copy_command", "y", "Copy command", "Copy the command line that started the run", "control"),
    Action(
        "filter",
        "slash",
        "Filter",
        "List only the runs that match a query: word, key:value, key>1, !x (not), x|y (or)",
        "runs",
        footer=True,
    ),
    Action("sort", "o", "Sort", "Sort the list by the next column; you can also click a column header", "runs"),
    Action("sort_reverse", "O", "Reverse", "Reverse the sort order of the list", "runs"),
    Action("wider", "greater_than_sign", "Larger list", "Give the list more space", "runs"),
    Action("narrower", "less_than_sign", "Smaller list", "Give the charts more space", "runs"),
    Action(
        "metrics",
        "m",
        "Metrics",
        "Show only metrics whose names contain any of the words that you type",
        "charts",
        footer=True,
    ),
    Action(
        "enlarge",
        "f",
        "Enlarge",
        "Show one metric in full screen, with a table of every run's values",
        "charts",
    ),
    Action("grid", "g", "More charts", "Show more but smaller charts per page (up to 36)", "charts"),
    Action("grid_less", "G", "Fewer charts", "Show fewer but larger charts per page", "charts"),
    Action("page_next", "right_square_bracket", "Next page", "Show the next page of charts", "charts"),
    Action("page_previous", "left_square_bracket", "Previous page", "Show the previous page of charts", "charts"),
    Action(
        "group",
        "v",
        "Group",
        "Show only one group of metrics, such as policy/; press the key again for the next group",
        "charts",
    ),
    Action("x_axis", "x", "X axis", "Switch the x axis between steps, elapsed time and time of day", "charts"),
    Action("log_y", "l", "Log y", "Switch the y axis between linear and logarithmic", "charts"),
    Action("log_x", "L", "Log x", "Switch the x axis between linear and logarithmic", "charts"),
    Action("smoother", "full_stop", "Smooth more", "Smooth the curves more; the raw values stay visible", "charts"),
    Action("rougher", "comma", "Smooth less", "Smooth the curves less", "charts"),
    Action(
        "zoom_in",
        "plus,equals_sign",
        "Zoom in",
        "Zoom in on the x axis; if the newest values are visible, the chart follows new data",
        "charts",
    ),
    Action("zoom_out", "minus", "Zoom out", "Zoom out on the x axis", "charts"),
    Action("pan_left", "shift+left,H", "Pan left", "Move the visible range to the left", "charts"),
    Action("pan_right", "shift+right,J", "Pan right", "Move the visible range to the right", "charts"),
    Action("zoom_reset", "0", "Reset zoom", "Show the full range of the x axis and follow new data", "charts"),
    Action("cross_left", "left", "Crosshair left", "Move the crosshair to the left in all charts", "charts"),
    Action("cross_right", "right", "Crosshair right", "Move the crosshair to the right in all charts", "charts"),
    Action(
        "aggregate",
        "A",
        "Group seeds",
        "Draw runs that differ only in their seed as one curve: their median and interquartile range",
        "charts",
    ),
    Action("export", "E", "Export", "Export the chart as a CSV file and an SVG file", "charts"),
    Action("back", "escape,f,q", "Back", "Show all charts again", "metric", footer=True),
    Action("next", "n,right_square_bracket", "Next metric", "Show the next metric", "metric", footer=True),
    Action("previous", "N,left_square_bracket", "Previous metric", "Show the previous metric", "metric"),
    Action("back", "escape,q", "Back", "Return to the list of runs", "run", footer=True),
    Action(
        "tab_next", "greater_than_sign", "Next tab", "Show the next tab; digit keys select a tab", "run", footer=True
    ),
    Action("tab_previous", "less_than_sign", "Previous tab", "Show the previous tab", "run"),
    Action("follow", "F", "Follow log", "Jump to the end of the log and follow new lines", "run"),
    Action("older", "left_curly_bracket", "Older sample", "Show the previous stored sample", "run"),
    Action("newer", "right_curly_bracket", "Newer sample", "Show the next stored sample", "run"),
    Action(
        "difference",
        "D",
        "Differences",
        "Switch between all options and those that differ from the pinned run or a marked run",
        "run",
    ),
    Action("choose", "enter", "Select", "Open the form for the selected target", "picker", footer=True),
    Action("cancel", "escape", "Cancel", "Return to the list of runs without starting a run", "picker", footer=True),
    Action(
        "start",
        "ctrl+s,f5",
        "Start",
        "Start the run, or one run per combination if options have several values",
        "form",
        footer=True,
        writes=True,
    ),
    Action("copy_command", "ctrl+y", "Copy command", "Copy the command line that starts this run", "form", footer=True),
    Action(
        "recipe",
        "ctrl+r",
        "Recipe",
        "Apply a recipe (a published system's options) on top of the target's options",
        "form",
        footer=True,
    ),
    Action("search", "slash", "Search", "Search the options by name or description", "form"),
    Action("reset_field", "ctrl+z", "Reset field", "Reset the selected option to its default", "form"),
    Action(
        "cancel",
        "escape",
        "Cancel",
        "Clear the search; if it is empty, close the form and keep your input",
        "form",
        footer=True,
    ),
    Action(
        "help", "question_mark,f1", "Help", "Explain the focused chart or option, and list all keys", "app", footer=True
    ),
    Action("quit", "q", "Quit", "Quit the terminal UI; runs continue in the background", "app", footer=True),
    Action("command_palette", "ctrl+p", "Palette", "Find an action by name", "app"),
    Action("theme", "T", "Theme", "Switch to the next color theme", "app"),
)


def actions_of(place: Place) -> Iterator[Action]:
    """Return the actions of a place, in the table's order."""
    return (action for action in ACTIONS if action.place == place)


def bindings(place: Place) -> list[BindingType]:
    """Return Textual's bindings of a place, in the table's order."""
    return [
        Binding(a.keys, a.name, a.label, show=a.footer, tooltip=a.help, system=a.name == "command_palette")
        for a in actions_of(place)
    ]


def available_actions(app: App[Any], screen: Screen[Any]) -> Iterator[tuple[Place, list[Action]]]:
    """Yield each place with its actions that are available now. Hidden tabs and --readonly make actions unavailable."""
    for place in (*getattr(screen, "places", ()), "app"):
        owner = app if place == "app" else screen
        accepted = [action for action in actions_of(place) if owner.check_action(action.name, ()) is not False]
        if accepted:
            yield place, accepted


def is_write_action(name: str) -> bool:
    """Return True if --readonly disables an action."""
    return any(action.writes for action in ACTIONS if action.name == name)


def key_name(key: str) -> str:
    """Return a key as the UI displays it, such as '/' for 'slash'."""
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
