"""The form for the options of a new run. It validates the input as the user types and shows the command line."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.timer import Timer
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from ppo_unified.config.grid import SEED
from ppo_unified.errors import UsageError
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import clean
from tui.action import Place
from tui.actions import bindings
from tui.new_run import form_model
from tui.new_run.fields import Fields
from tui.new_run.form_model import NAME, RECIPE, Field, Verdict
from tui.status_row import StatusRow

BESIDE = 150  # minimum width of the screen to explain the option beside the list
WAIT_S = 0.1  # delay between a key press and the validation
NAME_FIELD = Field(
    NAME,
    "",
    "text",
    "name of the run folder; empty = preset and seed",
    "text",
    (),
    "",
    True,
)
SEVERAL = "; with several seeds, such as 1-5 or 1,2,7, one run is started for each"
MANY = "  with several values, separated by commas, one run is started for each"


class Form(Screen[None]):
    """The second step of starting a run, after the picker.

    `typed` belongs to the caller and always contains the changed options, so that no input is lost when the form
    closes. `start` receives the arguments of `train`, one list per run.
    """

    CSS_PATH = "form.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("form"),
        Binding("q", "cancel", show=False),  # otherwise q would quit the program when the Start button has the focus
        Binding("up", "app.focus_previous", "Previous field", show=False),
        Binding("down", "app.focus_next", "Next field", show=False),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-stacked"), (BESIDE, "-beside")]  # noqa: RUF012 - as Textual declares it
    places: tuple[Place, ...] = ("form",)

    def __init__(
        self,
        target: str,
        recipe: str = "",
        *,
        typed: dict[str, str],
        runs: Path,
        start: Callable[[Sequence[Sequence[str]]], None],
    ) -> None:
        super().__init__()
        self.target, self.typed, self.runs, self.start = target, typed, runs, start
        self.recipe = typed.get(RECIPE, recipe)  # an empty string in `typed` means that the user selected no recipe
        self.options = Fields(typed)
        self.verdict = Verdict({}, (), (), None, 0, "")
        self.waiting = False  # True until the started process creates its run folder or fails
        self._start_error = ""
        self._conditions: frozenset[str] = frozenset()  # as the footer shows them
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        about = form_model.find_choice(self.target)
        yield Static(Content(f"New run: {clean(self.target)}"), id="top")
        yield Static(Content(_expectation(about)), id="title")
        with Horizontal(id="head"):
            yield Button("Start", id="start", variant="primary", compact=True)
            yield Input(placeholder="/  search options", id="search", compact=True)
            yield Static(id="recipe")
        with Container(id="panes"):
            yield self.options
            yield Static(id="about")
        with VerticalScroll(id="bar", can_focus=False):
            yield Static(id="verdict")
            yield Static(id="command")
        yield StatusRow()

    def on_mount(self) -> None:
        self._load()
        self.query_one("#start").focus()
        self.check_options()
        self.call_after_refresh(self.options.open_sections_that_fit)

    def _load(self) -> None:
        """Load the options of the target and the recipe. `check_options` reports errors."""
        with suppress(UsageError):
            found = dict(form_model.fields(self.target, self.recipe))
            found[SEED] = found[SEED]._replace(description=found[SEED].description + SEVERAL)
            known = {NAME: NAME_FIELD, **found}
            for option in self.typed.keys() - known.keys() - {RECIPE}:
                del self.typed[option]  # saved by a version that had other options
            self.options.set_fields(known)

    # validation

    def on_fields_typed(self) -> None:
        """Validate after a short pause in typing."""
        self._schedule_check()

    def on_fields_moved(self) -> None:
        self._describe_option()

    def _schedule_check(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(WAIT_S, self.check_options)

    def check_options(self) -> None:
        """Validate the input and show the result."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        self._start_error = ""
        self.verdict = form_model.check_typed(self.target, self.recipe, self.typed, self.runs)
        self._paint()

    def _paint(self) -> None:
        self.options.problems = self.verdict.problems
        self.options.rebuild_lines()
        self._show("recipe", Content(f"recipe: {clean(self.recipe) or 'none'}"))
        self._show("verdict", self._verdict_text())
        self._show("command", Content(f"$ {clean(self.verdict.command)}" if self.verdict.good else ""))
        self._describe_option()

    def _show(self, name: str, content: Content) -> None:
        """Update a text only if it has changed, because an update causes a new layout of the screen."""
        place = self.query_one(f"#{name}", Static)
        if place.content != content:
            place.update(content)
            place.set_class(not content.plain, "-empty")

    def _verdict_text(self) -> Content:
        """Return the errors or, for valid input, the differences from the target."""
        verdict = self.verdict
        errors = [self._start_error] if self._start_error else list(verdict.general)
        if verdict.problems and not self._start_error:
            errors.append(f"Invalid options: {', '.join(verdict.problems)}")
        if errors:
            return Content.styled("\n".join(clean(line) for text in errors for line in text.split("\n")), "$text-error")
        target = clean(self.target) + (f" with recipe {clean(self.recipe)}" if self.recipe else "")
        runs = f"{verdict.runs} runs" if verdict.runs > 1 else "1 run"
        changes = [f"{d.option} {_shown(d.before)} -> {_shown(d.after)}" for d in verdict.differences]
        return Content(f"{runs} of {target}" + (": " + ", ".join(changes) if changes else ", with default options"))

    def show_start_error(self, text: str) -> None:
        """Show why the started process failed, until the input changes."""
        self._start_error, self.waiting = text, False
        self._paint()
        self.app.bell()

    @property
    def conditions(self) -> frozenset[str]:
        """The conditions of actions that hold."""
        shown = {"valid": self.verdict.good, "option": self.option is not None}
        return frozenset(condition for condition, holds in shown.items() if holds)

    # the focused option

    @property
    def option(self) -> Field | None:
        """The focused option, or None."""
        return self.options.option if self.focused in (self.options.lines, self.options.editor) else None

    def on_descendant_focus(self) -> None:
        self._describe_option()

    def on_resize(self) -> None:
        self._reserve_lines()
        self._describe_option()

    def _reserve_lines(self) -> None:
        """Make the explanation below the options as high as the longest one, so that the options do not move."""
        texts = map(_short_help, self.options.fields.values())
        height = max((len(wrap_text(text, self.size.width - 2)) for text in texts), default=0)
        self.query_one("#about").styles.min_height = max(2, height)

    def _describe_option(self) -> None:
        option = self.option
        if self.conditions != self._conditions:
            self._conditions = self.conditions
            self.refresh_bindings()
        if option is None:
            starts = "starts the run" if self.verdict.good else "selects the first invalid option"
            about = Content(f"Enter {starts}; Tab and the arrow keys select an option.")
        elif self.size.width < BESIDE:
            about = Content(_short_help(option))
        else:
            about = self._explanation(option)
        self._show("about", about)

    def _explanation(self, option: Field) -> Content:
        """Return the full description of an option with its value and its error."""
        name, *lines = _full_help(option).split("\n")
        value = f"value: {_shown(self.options.text(option.name))}"
        parts = [Content.styled(name, "bold"), *(Content(line.strip()) for line in lines), Content(value)]
        if problem := self.verdict.problems.get(option.name, ""):
            parts += [Content(), Content.styled(clean(problem), "$text-error")]
        return Content("\n").join(parts)

    def explain(self) -> str | None:
        """Return the description of the focused option for the help dialog."""
        return None if self.option is None else _full_help(self.option)

    # actions

    @on(Button.Pressed, "#start")
    def _start(self) -> None:
        self.action_start()

    def action_start(self) -> None:
        """Start the runs, or move the cursor to the first invalid option."""
        if self.waiting:
            return
        self.check_options()
        if self.verdict.good:
            self.waiting = True
            self._show("about", Content("Starting ..."))
            self.start(form_model.train_arguments(self.target, self.recipe, self.typed, runs=self.runs))
            return
        order = [*self.options.above, *chain(*self.options.sections.values())]
        invalid = [option for option in order if option in self.verdict.problems]
        if invalid:
            self.query_one("#search", Input).clear()
            self.options.go_to(invalid[0])
        self.app.bell()

    def action_copy_command(self) -> None:
        self.check_options()
        if self.verdict.good:
            self.app.copy_to_clipboard(self.verdict.command)
            self.notify(f"Copied: {clean(self.verdict.command)}", markup=False)
        else:
            self.notify("Fix the errors before you copy the command.", severity="warning", markup=False)

    def action_recipe(self) -> None:
        """Let the user select a recipe, or none."""
        try:
            known = form_model.recipes_for(self.target)
        except UsageError:
            known = []
        if not known:
            self.notify("No recipe applies to this target.", markup=False)
            return
        self.app.push_screen(Recipes(known, self.recipe), self._apply_recipe)

    def _apply_recipe(self, recipe: str | None) -> None:
        if recipe is None:
            return
        self.recipe = recipe
        self.typed[RECIPE] = recipe
        self._load()
        self.check_options()

    def action_reset_field(self) -> None:
        if self.option is not None:
            self.options.reset()
        else:
            self.notify("Select an option first.", severity="warning", markup=False)

    def action_search(self) -> None:
        self.query_one("#search").focus()

    @on(Input.Changed, "#search")
    def _filter_options(self, event: Input.Changed) -> None:
        self.options.words = event.value.lower().split()
        self.options.rebuild_lines()

    @on(Input.Submitted)
    def _leave_input(self, event: Input.Submitted) -> None:
        """Move the focus from the search box to the first match, or from an option to the Start button."""
        if event.input.id == "search" and event.value and self.options.shown:
            self.options.go_to_first()
        else:
            self.query_one("#start").focus()

    def on_fields_left(self, event: Fields.Left) -> None:
        self.query_one("#search" if event.by < 0 else "#start").focus()

    def action_cancel(self) -> None:
        """Clear the search or, if it is empty, close the form."""
        search = self.query_one("#search", Input)
        if search.value:
            search.clear()
        else:
            self.app.pop_screen()


def _expectation(about: form_model.TargetChoice) -> str:
    score = f"expected score: {about.score}" if about.score else ""
    time = f"time: {about.time}" if about.time else ""
    return "; ".join(clean(part) for part in (about.title, score, time) if part)


def _shown(value: str) -> str:
    return clean(value) or "not set"


def _short_help(field: Field) -> str:
    expected = f" ({field.expected})" if field.kind in ("int", "float", "list", "table") else ""
    return f"{field.name}: {field.description}{expected}. Default: {_shown(field.default)}"


def _full_help(field: Field) -> str:
    many = [MANY] if field.kind in ("int", "float") else []
    lines = [field.name, f"  {field.description}", f"  {field.expected}", *many]
    return "\n".join([*lines, f"  default: {_shown(field.default)}"])


class Recipes(ModalScreen[str | None]):
    """A dialog with the recipes for a target. Returns a name, "" for no recipe, or None if the user cancels."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss(None)", "Back")]

    def __init__(self, known: Sequence[tuple[str, str]], current: str) -> None:
        super().__init__()
        self.recipes = [("", "No recipe: use the target's own options"), *known]
        self.current = current

    def compose(self) -> ComposeResult:
        room = min(100, self.app.size.width * 9 // 10 - 6)
        with Vertical(classes="box"):
            yield Static("Apply a published system's options", classes="title")
            lines = [_hang_indent(name or "none", clean(title), room) for name, title in self.recipes]
            yield OptionList(*(Option(Content(line)) for line in lines), compact=True, markup=False)
            yield Static("Enter: apply    Esc: cancel", classes="hint")

    def on_mount(self) -> None:
        names = [name for name, _ in self.recipes]
        picks = self.query_one(OptionList)
        picks.highlighted = names.index(self.current) if self.current in names else 0
        picks.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.recipes[event.option_index][0])


def _hang_indent(name: str, title: str, room: int) -> str:
    """Format a name with its title beside it, wrapped into an indented column."""
    return textwrap.fill(title, room, initial_indent=f"{name:<17} ", subsequent_indent=" " * 18)
