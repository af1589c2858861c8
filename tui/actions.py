"""The table of all actions in the terminal UI. Keys, footer, command palette, help and docs are derived from it.

A screen or widget gets its bindings from `bindings(PLACE)` and has one method `action_NAME` for each of them. The
`conditions` attribute of a screen lists the conditions that currently hold. The footer and the palette contain only
actions whose condition holds. Keys of impossible actions stay enabled, so that the action's method can explain why it
is impossible.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from textual.binding import Binding, BindingType

from tui.action import ALWAYS, NEEDS, PLACE_NEEDS, Action, Place
from tui.inspector.actions import INSPECTOR_ACTIONS

if TYPE_CHECKING:
    from textual.app import App
    from textual.screen import Screen

ACTIONS: tuple[Action, ...] = (
    Action("new", "n", "New run", "Select a target and start a new run", "runs", rank=1, writes=True),
    Action(
        "open",
        "enter",
        "Open",
        "Open the selected run's page with its curves, options, log, samples, system and events",
        "runs",
        rank=1,
        needs="run",
    ),
    Action(
        "mark",
        "space",
        "Mark",
        "Mark or unmark the selected run; the charts show the marked runs",
        "runs",
        rank=1,
        needs="run",
    ),
    Action("mark_all", "a", "Mark all", "Mark all listed runs, or unmark them if all are marked", "runs", needs="runs"),
    Action(
        "pin",
        "p",
        "Pin",
        "Pin or unpin the selected run; the charts always draw the pinned run on top",
        "runs",
        rank=6,
        needs="run",
    ),
    Action("stop", "s", "Stop", "Write a checkpoint and stop the run", "control", rank=2, needs="active", writes=True),
    Action(
        "kill",
        "K",
        "Kill",
        "Kill the run immediately, without writing a checkpoint",
        "control",
        rank=2,
        needs="active",
        writes=True,
    ),
    Action(
        "resume",
        "r",
        "Resume",
        "Resume the run from its latest checkpoint",
        "control",
        rank=5,
        needs="ended",
        prominent="interrupted",
        writes=True,
    ),
    Action(
        "rerun",
        "R",
        "Rerun",
        "Open the form with this run's options to start a new run",
        "control",
        rank=4,
        needs="own",
        writes=True,
    ),
    Action("rename", "e", "Rename", "Rename the run", "control", needs="ended", writes=True),
    Action("note", "N", "Note", "Write a one-line note about the run", "control", rank=8, needs="own", writes=True),
    Action(
        "delete",
        "d,delete",
        "Delete",
        "Delete the run folder after you confirm",
        "control",
        rank=6,
        needs="ended",
        writes=True,
    ),
    Action(
        "compare",
        "c",
        "Compare",
        "Compare the results and options of the runs in the charts",
        "runs",
        rank=6,
        needs="runs",
    ),
    Action(
        "sweep",
        "S",
        "Sweep",
        "Show all trials of the selected run's sweep: each searched option against the objective, and a table",
        "control",
        rank=5,
        needs="sweep",
    ),
    Action(
        "inspect",
        "i",
        "Inspect",
        "Show every token or step of a stored iteration with its formulas, and what the clip did there",
        "control",
        rank=6,
        needs="own",
    ),
    Action(
        "play",
        "w",
        "Watch",
        "Watch the policy act, or type prompts for the language model",
        "control",
        rank=3,
        needs="checkpoint",
    ),
    Action("copy_command", "y", "Copy command", "Copy the command line that started the run", "control", 8, "own"),
    Action(
        "filter",
        "slash",
        "Filter",
        "List only the runs that match a query: word, key:value, key>1, !x (not), x|y (or)",
        "runs",
        rank=4,
        needs="runs",
    ),
    Action(
        "sort",
        "o",
        "Sort",
        "Sort the list by the next column; you can also click a column header",
        "runs",
        rank=6,
        needs="runs",
    ),
    Action("sort_reverse", "O", "Reverse", "Reverse the sort order of the list", "runs", needs="runs"),
    Action(
        "columns",
        "C",
        "Columns",
        "Select the options that the list shows as columns; by default, it shows options that differ",
        "runs",
        needs="runs",
    ),
    Action("details", "t", "Details", "Show or hide the details of the selected run", "runs", rank=5, needs="runs"),
    Action("wider", "greater_than_sign", "Larger list", "Give the list more space", "runs"),
    Action("narrower", "less_than_sign", "Smaller list", "Give the charts more space", "runs"),
    Action(
        "metrics",
        "m",
        "Metrics",
        "Show only metrics whose names contain any of the words that you type",
        "charts",
        rank=5,
    ),
    Action(
        "enlarge",
        "f",
        "Enlarge",
        "Show one metric in full screen, with a table of every run's values",
        "charts",
        rank=6,
    ),
    Action("grid", "g", "More charts", "Show more but smaller charts per page (up to 36)", "charts"),
    Action("grid_less", "G", "Fewer charts", "Show fewer but larger charts per page", "charts"),
    Action("page_next", "right_square_bracket", "Next page", "Show the next page of charts", "charts", needs="pages"),
    Action(
        "page_previous",
        "left_square_bracket",
        "Previous page",
        "Show the previous page of charts",
        "charts",
        9,
        "pages",
    ),
    Action(
        "group",
        "v",
        "Group",
        "Show only one group of metrics, such as policy/; press the key again for the next group",
        "charts",
    ),
    Action(
        "x_axis",
        "x",
        "X axis",
        "Switch the x axis between steps, elapsed time and time of day",
        "charts",
        rank=7,
        needs="ungrouped",
    ),
    Action("log_y", "l", "Log y", "Switch the y axis of the current chart between linear and logarithmic", "charts"),
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
        "Draw runs that differ only in their seed as one curve over steps: their median and interquartile range",
        "charts",
    ),
    Action("export", "E", "Export", "Export the chart as a CSV file and an SVG file", "charts"),
    Action("back", "escape,f,q", "Back", "Show all charts again", "metric", rank=ALWAYS),
    Action("next", "n,right_square_bracket", "Next metric", "Show the next metric", "metric", rank=1),
    Action("previous", "N,left_square_bracket", "Previous metric", "Show the previous metric", "metric", rank=3),
    Action("back", "escape,q", "Back", "Return to the list of runs", "run", rank=ALWAYS),
    Action("tab_next", "greater_than_sign", "Next tab", "Show the next tab; digit keys select a tab", "run", rank=1),
    Action("tab_previous", "less_than_sign", "Previous tab", "Show the previous tab", "run"),
    Action("follow", "F", "Follow log", "Jump to the end of the log and follow new lines", "run", 2, "log"),
    Action("older", "left_curly_bracket", "Older sample", "Show the previous stored sample", "run", 2, "older"),
    Action("newer", "right_curly_bracket", "Newer sample", "Show the next stored sample", "run", 2, "newer"),
    Action(
        "difference",
        "D",
        "Differences",
        "Switch between all options and those that differ from the pinned run or a marked run",
        "run",
        rank=2,
        needs="options",
    ),
    *INSPECTOR_ACTIONS,
    Action("pause", "space", "Pause", "Pause or continue the episode", "watch", rank=1),
    Action(
        "step",
        "full_stop,right",
        "Step",
        "Pause, then advance the episode by one step per key press",
        "watch",
        rank=1,
    ),
    Action(
        "faster",
        "plus,equals_sign",
        "Faster",
        "Play faster: up to 8 times the environment's speed, then without a limit",
        "watch",
        rank=2,
    ),
    Action("slower", "minus", "Slower", "Play slower: down to a quarter of the environment's speed", "watch", rank=2),
    Action("next_episode", "n", "Next episode", "Start the next episode, with a new seed", "watch", rank=3),
    Action("send", "enter", "Send", "Send the prompt to the language model", "watch", rank=1),
    Action("example", "ctrl+n", "Example", "Send a held-out prompt to the language model", "watch", rank=2),
    Action("earlier_prompt", "up", "Earlier prompt", "Edit the previous prompt", "watch"),
    Action("later_prompt", "down", "Later prompt", "Edit the next prompt", "watch"),
    Action("scroll_up", "pageup", "Scroll up", "Show earlier responses", "watch"),
    Action("scroll_down", "pagedown", "Scroll down", "Show later responses", "watch"),
    Action(
        "decoding",
        "g,ctrl+g",
        "Greedy/sampled",
        "Switch between greedy and sampled actions or tokens",
        "watch",
        rank=3,
    ),
    Action("back", "escape,q", "Back", "Stop watching and go back", "watch", rank=ALWAYS),
    Action("back", "escape,q", "Back", "Return to the list of runs", "compare", rank=ALWAYS),
    Action("equal", "D", "Equal options", "Show or hide the options that are equal in all runs", "compare", rank=1),
    Action("back", "escape,q", "Back", "Return to the list of runs", "sweep", rank=ALWAYS),
    Action("choose", "enter", "Select", "Open the form for the selected target", "picker", rank=1),
    Action("cancel", "escape", "Cancel", "Return to the list of runs without starting a run", "picker", rank=ALWAYS),
    Action(
        "start",
        "ctrl+s,f5",
        "Start",
        "Start the run, or one run per combination if options have several values",
        "form",
        rank=1,
        writes=True,
    ),
    Action("copy_command", "ctrl+y", "Copy command", "Copy the command line that starts this run", "form", 2, "valid"),
    Action(
        "recipe",
        "ctrl+r",
        "Recipe",
        "Apply a recipe (a published system's options) on top of the target's options",
        "form",
        rank=2,
    ),
    Action("search", "slash", "Search", "Search the options by name or description", "form", rank=3),
    Action("reset_field", "ctrl+z", "Reset field", "Reset the selected option to its default", "form", 3, "option"),
    Action(
        "cancel",
        "escape",
        "Cancel",
        "Clear the search; if it is empty, close the form and keep your input",
        "form",
        rank=ALWAYS,
    ),
    Action(
        "help", "question_mark,f1", "Help", "Explain the focused chart or option, and list all keys", "app", rank=ALWAYS
    ),
    Action("messages", "M,f2", "Messages", "Show all messages of this session, the newest first", "app"),
    Action("quit", "q", "Quit", "Quit the terminal UI; runs continue in the background", "app", rank=ALWAYS),
    Action("command_palette", "ctrl+p", "Palette", "Find an action by name", "app"),
    Action("theme", "T", "Theme", "Switch to the next color theme", "app"),
)


def actions_of(place: Place) -> Iterator[Action]:
    """Return the actions of a place, in the table's order."""
    return (action for action in ACTIONS if action.place == place)


def bindings(place: Place) -> list[BindingType]:
    """Return Textual's bindings of a place, in the table's order."""
    return [
        Binding(a.keys, a.name, a.label, show=False, tooltip=a.help, system=a.name == "command_palette")
        for a in actions_of(place)
    ]


def available_actions(app: App[Any], screen: Screen[Any]) -> Iterator[tuple[Place, list[Action]]]:
    """Yield each place with its actions that are available now. Hidden tabs and --readonly make actions unavailable."""
    for place in (*getattr(screen, "places", ()), "app"):
        owner = app if place == "app" else screen
        accepted = [action for action in actions_of(place) if owner.check_action(action.name, ()) is not False]
        if accepted:
            yield place, accepted


def conditions_of(screen: Screen[Any]) -> Collection[str]:
    """Return the conditions that hold on a screen. Screens that have neither runs nor charts have none."""
    conditions: Collection[str] = getattr(screen, "conditions", ())
    return conditions


def missing_condition(action: Action, conditions: Collection[str]) -> str:
    """Return the unmet need of an action, such as 'needs a run', or "" if the action applies."""
    needed = action.needs or PLACE_NEEDS.get(action.place, "")
    return NEEDS[needed] if needed and needed not in conditions else ""


def applicable_actions(app: App[Any], screen: Screen[Any]) -> Iterator[Action]:
    """Yield the available actions whose conditions hold."""
    conditions = conditions_of(screen)
    for _, actions in available_actions(app, screen):
        yield from (action for action in actions if not missing_condition(action, conditions))


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
