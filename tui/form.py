"""A new run's options, judged as one types, and the command line that says the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

from ppo_unified import form
from ppo_unified.errors import UsageError
from ppo_unified.form import NAME, RECIPE, SEED, Field, Verdict
from ppo_unified.text import clean
from tui.actions import Place, bindings
from tui.fields import Fold, Row

WAIT_S = 0.1  # after a key press, before what was typed is judged
NAME_FIELD = Field(
    NAME, "", "text", "name of the run's folder; left empty, it is made of the preset and the seed", "", (), "", True
)
SEVERAL = "; several, such as 1-5 or 1,2,7, are a run each"
TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "choice": "one of a few words",
    "text": "text",
    "list": "words, separated by spaces",
    "table": "a table, as JSON",
}


class Form(Screen[None]):
    """The second half of starting a run.

    `typed` is the caller's: it always holds what differs, so that leaving and coming back loses nothing. `start` takes
    the arguments of `train`, a list for each run.
    """

    CSS_PATH = "form.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 - an instance variable in Textual's types
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("form"),
        Binding("slash", "search", "Search", show=False),
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
        self.recipe = recipe or typed.get(RECIPE, "")
        self.fields: Mapping[str, Field] = {}
        self.above: list[str] = []  # options that are always in sight
        self.sections: dict[str, list[str]] = {}  # the others
        self.rows: dict[str, Row] = {}  # made so far
        self.opened: set[str] = set()
        self.verdict = Verdict({}, (), (), None, (), "")
        self._refused = ""
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        about = form.picked(self.target)
        yield Static(Content(f"New run: {clean(self.target)}"), id="top")
        yield Static(Content(_expectation(about)), id="title")
        with Horizontal(id="head"):
            yield Button("Start", id="start", variant="primary", compact=True)
            yield Input(placeholder="/  search options", id="search", compact=True)
            yield Static(id="recipe")
        self._load()
        with VerticalScroll(id="fields", can_focus=False):
            for option in self.above:
                yield self._made(option)
            for section, options in self.sections.items():
                yield Fold(section, len(options))
                yield Vertical(id=_identifier(section), classes="section")
        yield Static(id="about")
        with VerticalScroll(id="bar", can_focus=False):
            yield Static(id="said")
            yield Static(id="command")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#start").focus()
        self.judge()

    # what there is to fill in

    def _load(self) -> None:
        """The target's options and values, the recipe's over them; what cannot be read is the verdict's to say."""
        with suppress(UsageError):
            found = dict(form.fields(self.target, self.recipe))
            found[SEED] = found[SEED]._replace(description=found[SEED].description + SEVERAL)
            self.fields = {NAME: NAME_FIELD, **found}
        if not self.above:
            self.above = [name for name, field in self.fields.items() if field.matters or name in self.typed]
            for name, field in self.fields.items():
                if name not in self.above:
                    self.sections.setdefault(field.section, []).append(name)

    def _made(self, option: str) -> Row:
        field = self.fields[option]
        row = self.rows[option] = Row(field, self.typed.get(option, field.default))
        return row

    def _arrange(self) -> None:
        """Show what the search asks for, else what stands above and the sections that are open."""
        words = self.query_one("#search", Input).value.lower().split()
        found = {name for name, field in self.fields.items() if _has(field, words)}
        for option in self.above:
            self.rows[option].display = option in found
        for fold in self.query(Fold):
            options = self.sections[fold.section]
            wanted = [option for option in options if option in found and (words or fold.section in self.opened)]
            self._fill(fold.section, wanted)
            fold.display = bool(wanted) or not words
        self._paint()

    def _fill(self, section: str, wanted: Sequence[str]) -> None:
        """Show these rows of a section; a row is made when it is first wanted, at its place."""
        place = self.query_one(f"#{_identifier(section)}", Vertical)
        later: Row | None = None
        for option in reversed(self.sections[section]):
            if option in wanted and option not in self.rows:
                place.mount(self._made(option), before=later)
            if option in self.rows:
                later = self.rows[option]
                later.display = option in wanted
        place.display = bool(wanted)

    @on(Fold.Turned)
    def _turn(self, event: Fold.Turned) -> None:
        self.opened ^= {event.section}
        self._arrange()

    # judging

    def on_row_typed(self, event: Row.Typed) -> None:
        """Remember at once, judge when the fingers rest."""
        if event.text == self.typed.get(event.option):
            return
        if event.text is None:
            self.typed.pop(event.option, None)
        else:
            self.typed[event.option] = event.text
        self._judge_soon()

    def _judge_soon(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(WAIT_S, self.judge)

    def judge(self) -> None:
        """Hold what is typed to the schema, and show what comes of it."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        self._refused = ""
        self.verdict = form.judge(self.target, self.recipe, self.typed, self.runs)
        self._paint()

    def _paint(self) -> None:
        verdict = self.verdict
        for option, row in self.rows.items():
            row.show_problem(verdict.problems.get(option, ""))
        for fold in self.query(Fold):
            options = self.sections[fold.section]
            opened = any(option in self.rows and self.rows[option].display for option in options)
            changed = sum(self._differs(option) for option in options)
            fold.show(opened, changed, sum(option in verdict.problems for option in options))
        self.query_one("#recipe", Static).update(Content(f"recipe: {self.recipe or 'none'}"))
        self.query_one("#said", Static).update(self._said())
        self.query_one("#command", Static).update(Content(f"$ {clean(verdict.command)}" if verdict.good else ""))

    def _differs(self, option: str) -> bool:
        return self.typed.get(option, self.fields[option].default) != self.fields[option].default

    def _said(self) -> Content:
        """What is wrong, or what differs from the target."""
        verdict = self.verdict
        wrong = [self._refused] if self._refused else list(verdict.general)
        if verdict.problems and not self._refused:
            wrong.append(f"to mend: {', '.join(verdict.problems)}")
        if wrong:
            return Content.styled("\n".join(clean(line) for text in wrong for line in text.split("\n")), "$text-error")
        over = f"{clean(self.target)} with {clean(self.recipe)}" if self.recipe else clean(self.target)
        runs = f"{len(verdict.seeds)} runs" if len(verdict.seeds) > 1 else "one run"
        changes = [f"{d.option} {clean(d.before) or 'none'} -> {clean(d.after) or 'none'}" for d in verdict.differences]
        return Content(f"{runs} of {over}" + (": " + ", ".join(changes) if changes else " as it is"))

    def refused(self, text: str) -> None:
        """Show why the process that was started has refused; it stands until something changes."""
        self._refused = text
        self._paint()

    # what is under the focus

    @property
    def row(self) -> Row | None:
        """The row with the focus."""
        focused = self.focused
        return next((w for w in focused.ancestors if isinstance(w, Row)), None) if focused is not None else None

    def on_descendant_focus(self) -> None:
        row = self.row
        about = "Enter starts the run; Tab and the arrows go through the options" if row is None else _brief(row.field)
        self.query_one("#about", Static).update(Content(about))

    def explain(self) -> str | None:
        """The focused option, for the page of keys."""
        return None if self.row is None else _whole(self.row.field)

    # actions

    @on(Button.Pressed, "#start")
    def _pressed(self) -> None:
        self.action_start()

    def action_start(self) -> None:
        """Start what was typed, or go to the first field that is wrong."""
        self.judge()
        if self.verdict.good:
            self.start(form.arguments(self.target, self.recipe, self.typed))
            return
        wrong = [option for option in [*self.above, *chain(*self.sections.values())] if option in self.verdict.problems]
        if wrong:
            self._go_to(wrong[0])
        self.app.bell()

    def _go_to(self, option: str) -> None:
        """Focus a field, its section opened."""
        section = self.fields[option].section
        if option not in self.above:
            self.opened.add(section)
        self.query_one("#search", Input).clear()
        self._arrange()
        self.call_after_refresh(self.rows[option].editor.focus)

    def action_copy_command(self) -> None:
        self.judge()
        if self.verdict.good:
            self.app.copy_to_clipboard(self.verdict.command)
            self.notify(f"Copied: {clean(self.verdict.command)}", markup=False)
        else:
            self.notify("There is no command until everything is mended.", severity="warning", markup=False)

    def action_recipe(self) -> None:
        """Lay another recipe over the target, or none."""
        try:
            known = form.recipes_for(self.target)
        except UsageError:
            known = []
        if not known:
            self.notify("There is no recipe for what is trained here.", markup=False)
            return
        self.app.push_screen(Recipes(known, self.recipe), self._lay)

    def _lay(self, recipe: str | None) -> None:
        if recipe is None:
            return
        self.recipe = recipe
        self.typed[RECIPE] = recipe
        self._load()
        for option, row in self.rows.items():
            row.put(self.typed.get(option, self.fields[option].default), self.fields[option])
        self.judge()

    def action_reset_field(self) -> None:
        if row := self.row:
            row.put(row.field.default, row.field)

    def action_search(self) -> None:
        self.query_one("#search").focus()

    @on(Input.Changed, "#search")
    def _searched(self) -> None:
        self._arrange()

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        """From a field to Start; from the search to the first option that was found."""
        found = [row for row in self.query(Row) if row.display and row.parent is not None and row.parent.display]
        searched = event.input.id == "search" and event.value and found
        (found[0].editor if searched else self.query_one("#start")).focus()

    def action_cancel(self) -> None:
        """Out of a search first, then out of the form."""
        search = self.query_one("#search", Input)
        if search.value:
            search.clear()
        else:
            self.app.pop_screen()


def _identifier(section: str) -> str:
    return f"of-{section or 'general'}"


def _expectation(about: form.Pick) -> str:
    score = f"score to expect: {about.score}" if about.score else ""
    return "; ".join(clean(part) for part in (about.title, score, about.time) if part)


def _has(field: Field, words: Sequence[str]) -> bool:
    """Whether an option's name or description has every word."""
    text = f"{field.name} {field.description}".lower()
    return all(word in text for word in words)


def _brief(field: Field) -> str:
    bounds = f" ({field.bounds})" if field.bounds else ""
    return f"{field.name}: {field.description}{bounds}. Here: {field.default or 'none'}"


def _whole(field: Field) -> str:
    lines = [field.name, f"  {field.description}", f"  {TYPES[field.kind]}"]
    lines[-1] += f": {', '.join(field.choices)}" if field.choices else f", {field.bounds}" if field.bounds else ""
    return "\n".join([*lines, f"  here: {field.default or 'none'}"])


class Recipes(ModalScreen[str | None]):
    """The recipes that fit, and none; answers None where the user went back."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss(None)", "Back")]

    def __init__(self, known: Sequence[tuple[str, str]], current: str) -> None:
        super().__init__()
        self.names = ["", *(name for name, _ in known)]
        self.lines = [
            "none             the target's own options",
            *(f"{name:<16} {clean(title)}" for name, title in known),
        ]
        self.current = current

    def compose(self) -> ComposeResult:
        with Vertical(classes="box"):
            yield Static("Lay a known system's options over the target's", classes="title")
            yield OptionList(*(Option(Content(line)) for line in self.lines), compact=True, markup=False)
            yield Static("Enter: choose    Esc: back", classes="hint")

    def on_mount(self) -> None:
        picks = self.query_one(OptionList)
        picks.highlighted = self.names.index(self.current) if self.current in self.names else 0
        picks.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.names[event.option_index])
