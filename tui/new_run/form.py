"""A new run's options, judged as one types, and the command line that says the same."""

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
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.timer import Timer
from textual.widgets import Button, Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from ppo_unified.config.sweep import SEED
from ppo_unified.errors import UsageError
from ppo_unified.text import clean
from tui.actions import Place, bindings
from tui.new_run import form_model
from tui.new_run.fields import Fields
from tui.new_run.form_model import NAME, RECIPE, Field, Verdict

WAIT_S = 0.1  # after a key press, before what was typed is judged
NAME_FIELD = Field(
    NAME,
    "",
    "text",
    "name of the run's folder; left empty, it is made of the preset and the seed",
    "text",
    (),
    "",
    True,
)
SEVERAL = "; several, such as 1-5 or 1,2,7, are a run each"
MANY = "  several values, separated by commas, are a run each"


class Form(Screen[None]):
    """The second half of starting a run.

    `typed` is the caller's: it always holds what differs, so that leaving and coming back loses nothing. `start` takes
    the arguments of `train`, a list for each run.
    """

    CSS_PATH = "form.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("form"),
        Binding("q", "cancel", show=False),  # with the focus on Start it must not end the program
        Binding("up", "app.focus_previous", "Field before", show=False),
        Binding("down", "app.focus_next", "Next field", show=False),
    ]
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
        self.recipe = typed.get(RECIPE, recipe)  # "" there is none, chosen
        self.options = Fields(typed)
        self.verdict = Verdict({}, (), (), None, 0, "")
        self.waiting = False  # for a process that was started to show itself, or to refuse
        self._refused = ""
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        about = form_model.find_pick(self.target)
        yield Static(Content(f"New run: {clean(self.target)}"), id="top")
        yield Static(Content(_expectation(about)), id="title")
        with Horizontal(id="head"):
            yield Button("Start", id="start", variant="primary", compact=True)
            yield Input(placeholder="/  search options", id="search", compact=True)
            yield Static(id="recipe")
        yield self.options
        yield Static(id="about")
        with VerticalScroll(id="bar", can_focus=False):
            yield Static(id="said")
            yield Static(id="command")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self._load()
        self.query_one("#start").focus()
        self.check_options()

    def _load(self) -> None:
        """The target's options and values, the recipe's over them; what cannot be read is the verdict's to say."""
        with suppress(UsageError):
            found = dict(form_model.fields(self.target, self.recipe))
            found[SEED] = found[SEED]._replace(description=found[SEED].description + SEVERAL)
            known = {NAME: NAME_FIELD, **found}
            for option in self.typed.keys() - known.keys() - {RECIPE}:
                del self.typed[option]  # remembered from another version's schema
            self.options.set_fields(known)

    # judging

    def on_fields_typed(self) -> None:
        """Judge when the fingers rest."""
        self._schedule_check()

    def on_fields_moved(self) -> None:
        self._describe_option()

    def _schedule_check(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(WAIT_S, self.check_options)

    def check_options(self) -> None:
        """Hold what is typed to the schema, and show what comes of it."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        self._refused = ""
        self.verdict = form_model.check_typed(self.target, self.recipe, self.typed, self.runs)
        self._paint()

    def _paint(self) -> None:
        self.options.problems = self.verdict.problems
        self.options.rebuild_lines()
        self._show("recipe", Content(f"recipe: {clean(self.recipe) or 'none'}"))
        self._show("said", self._verdict_text())
        self._show("command", Content(f"$ {clean(self.verdict.command)}" if self.verdict.good else ""))

    def _show(self, name: str, content: Content) -> None:
        """Another text has the whole screen laid out anew, so only where it is another."""
        place = self.query_one(f"#{name}", Static)
        if place.content != content:
            place.update(content)
            place.set_class(not content.plain, "-empty")

    def _verdict_text(self) -> Content:
        """What is wrong, or what differs from the target."""
        verdict = self.verdict
        wrong = [self._refused] if self._refused else list(verdict.general)
        if verdict.problems and not self._refused:
            wrong.append(f"to mend: {', '.join(verdict.problems)}")
        if wrong:
            return Content.styled("\n".join(clean(line) for text in wrong for line in text.split("\n")), "$text-error")
        over = f"{clean(self.target)} with {clean(self.recipe)}" if self.recipe else clean(self.target)
        runs = f"{verdict.runs} runs" if verdict.runs > 1 else "one run"
        changes = [f"{d.option} {clean(d.before) or 'none'} -> {clean(d.after) or 'none'}" for d in verdict.differences]
        return Content(f"{runs} of {over}" + (": " + ", ".join(changes) if changes else " as it is"))

    def show_refusal(self, text: str) -> None:
        """Show why the process that was started has refused; it stands until something changes."""
        self._refused, self.waiting = text, False
        self._paint()
        self._describe_option()
        self.app.bell()

    # what is under the focus

    @property
    def option(self) -> Field | None:
        """The option with the focus."""
        return self.options.option if self.focused in (self.options.lines, self.options.editor) else None

    def on_descendant_focus(self) -> None:
        self._describe_option()

    def _describe_option(self) -> None:
        option = self.option
        about = (
            "Enter starts the run; Tab and the arrows go through the options" if option is None else _short_help(option)
        )
        self._show("about", Content(about))

    def explain(self) -> str | None:
        """The focused option, for the page of keys."""
        return None if self.option is None else _full_help(self.option)

    # actions

    @on(Button.Pressed, "#start")
    def _start(self) -> None:
        self.action_start()

    def action_start(self) -> None:
        """Start what was typed, once, or go to the first field that is wrong."""
        if self.waiting:
            return
        self.check_options()
        if self.verdict.good:
            self.waiting = True
            self._show("about", Content("starting ..."))
            self.start(form_model.train_arguments(self.target, self.recipe, self.typed, runs=self.runs))
            return
        order = [*self.options.above, *chain(*self.options.sections.values())]
        wrong = [option for option in order if option in self.verdict.problems]
        if wrong:
            self.query_one("#search", Input).clear()
            self.options.go_to(wrong[0])
        self.app.bell()

    def action_copy_command(self) -> None:
        self.check_options()
        if self.verdict.good:
            self.app.copy_to_clipboard(self.verdict.command)
            self.notify(f"Copied: {clean(self.verdict.command)}", markup=False)
        else:
            self.notify("There is no command until everything is mended.", severity="warning", markup=False)

    def action_recipe(self) -> None:
        """Lay another recipe over the target, or none."""
        try:
            known = form_model.recipes_for(self.target)
        except UsageError:
            known = []
        if not known:
            self.notify("There is no recipe for what is trained here.", markup=False)
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

    def action_search(self) -> None:
        self.query_one("#search").focus()

    @on(Input.Changed, "#search")
    def _filter_options(self, event: Input.Changed) -> None:
        self.options.words = event.value.lower().split()
        self.options.rebuild_lines()

    @on(Input.Submitted)
    def _leave_input(self, event: Input.Submitted) -> None:
        """From the search to the first option that was found, from an option to Start."""
        if event.input.id == "search" and event.value and self.options.shown:
            self.options.go_to_first()
        else:
            self.query_one("#start").focus()

    def on_fields_left(self, event: Fields.Left) -> None:
        self.query_one("#search" if event.by < 0 else "#start").focus()

    def action_cancel(self) -> None:
        """Out of a search first, then out of the form."""
        search = self.query_one("#search", Input)
        if search.value:
            search.clear()
        else:
            self.app.pop_screen()


def _expectation(about: form_model.TargetChoice) -> str:
    score = f"score to expect: {about.score}" if about.score else ""
    return "; ".join(clean(part) for part in (about.title, score, about.time) if part)


def _short_help(field: Field) -> str:
    expected = f" ({field.expected})" if field.kind in ("int", "float", "list", "table") else ""
    return f"{field.name}: {field.description}{expected}. Unchanged: {clean(field.default) or 'none'}"


def _full_help(field: Field) -> str:
    many = [MANY] if field.kind in ("int", "float") else []
    lines = [field.name, f"  {field.description}", f"  {field.expected}", *many]
    return "\n".join([*lines, f"  unchanged: {clean(field.default) or 'none'}"])


class Recipes(ModalScreen[str | None]):
    """The recipes that fit, and none; answers None where the user went back."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss(None)", "Back")]

    def __init__(self, known: Sequence[tuple[str, str]], current: str) -> None:
        super().__init__()
        self.recipes = [("", "the target's own options"), *known]
        self.current = current

    def compose(self) -> ComposeResult:
        room = min(100, self.app.size.width * 9 // 10 - 6)
        with Vertical(classes="box"):
            yield Static("Lay a known system's options over the target's", classes="title")
            lines = [_hang_indent(name or "none", clean(title), room) for name, title in self.recipes]
            yield OptionList(*(Option(Content(line)) for line in lines), compact=True, markup=False)
            yield Static("Enter: choose    Esc: back", classes="hint")

    def on_mount(self) -> None:
        names = [name for name, _ in self.recipes]
        picks = self.query_one(OptionList)
        picks.highlighted = names.index(self.current) if self.current in names else 0
        picks.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.recipes[event.option_index][0])


def _hang_indent(name: str, title: str, room: int) -> str:
    """A name, and its title beside it in as many lines as it takes."""
    return textwrap.fill(title, room, initial_indent=f"{name:<17} ", subsequent_indent=" " * 18)
