"""Forms of new runs: opening them, keeping what is typed there, and starting the runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from textual.app import App

from ppo_unified.errors import UsageError
from ppo_unified.runs import control
from ppo_unified.runs.folder import Run
from ppo_unified.text import clean
from tui.new_run.form import Form
from tui.new_run.picker import Picker
from tui.runs.entries import Entry
from tui.runs.runs_screen import RunsScreen
from tui.services import Services


class Launcher:
    """What is typed in a form is kept under a name, its target's or that of the run to start again."""

    def __init__(self, app: App[Any], services: Services, home: RunsScreen) -> None:
        self._app, self._services, self._home = app, services, home
        self._typed = services.state.typed

    def open_picker(self) -> None:
        self._app.push_screen(Picker(self._open_form))

    def _open_form(self, target: str) -> None:
        self._push_form(target, "", target, {})

    def open_rerun(self, entry: Entry) -> None:
        """What is typed into its form is kept for this run; another one that gets its name has its own options."""
        from tui.new_run.form_model import form_input

        try:
            target, recipe, typed = form_input(Run(entry.path))
        except UsageError as error:
            self._services.show_error(str(error))
            return
        name = _rerun_name(entry.key, entry.status.started)
        for other in self._reruns(entry.key) - {name}:
            del self._typed[other]
        self._push_form(target, recipe, name, typed)

    def on_run_renamed(self, key: str, new: str) -> None:
        """Keep what was typed to start a run again that has another key now."""
        for name in self._reruns(key):
            self._typed[_rerun_name(new, name.rpartition(" ")[2])] = self._typed.pop(name)

    def on_run_deleted(self, key: str) -> None:
        """Drop what was typed to start a run again: another one may get its name."""
        for name in self._reruns(key):
            del self._typed[name]

    def _reruns(self, key: str) -> set[str]:
        """Under what names texts are kept of forms that were to start runs like this one."""
        return {name for name in self._typed if name.rpartition(" ")[0] == _rerun_name(key)}

    def _push_form(self, target: str, recipe: str, name: str, typed: dict[str, str]) -> None:
        """Open a form over what is kept under this name, or over `typed` where nothing is."""
        typed = self._typed.setdefault(name, typed)

        def start(arguments: Sequence[Sequence[str]]) -> None:
            self._start_runs(form, name, arguments)

        form = Form(target, recipe=recipe, typed=typed, runs=self._services.runs, start=start)
        self._app.push_screen(form)

    def _is_being_typed(self, texts: dict[str, str] | None) -> bool:
        return any(isinstance(screen, Form) and screen.typed is texts for screen in self._app.screen_stack)

    def _start_runs(self, form: Form, name: str, arguments: Sequence[Sequence[str]]) -> None:
        """Start a process for each list of arguments of `train`.

        The form stays open until a run begins and shows why one does not. The input kept under `name` is dropped once a
        run has begun; `open_rerun` offers it again, and a refusal restores it. Another form may have been opened in
        between; its input stays.
        """
        app = self._app

        def on_created(run: Run) -> None:
            if form in app.screen_stack:
                while app.screen is not self._home:
                    app.pop_screen()
            if self._typed.get(name) is form.typed and not self._is_being_typed(form.typed):
                del self._typed[name]
            self._home.focus_run(run.name)
            self._services.read_now()

        def on_refusal(text: str) -> None:
            newer = self._typed.get(name)
            if not newer and not self._is_being_typed(newer):
                self._typed[name] = form.typed
            (form.show_refusal if form in app.screen_stack else self._services.show_error)(text)

        def start(one: Sequence[str]) -> str:
            run = control.start(one, self._services.runs, on_created=lambda run: app.call_later(on_created, run))
            return f"{clean(run.name)} is training"

        for one in arguments:
            self._services.run_in_thread(partial(start, one), on_refusal)


def _rerun_name(key: str, *started: object) -> str:
    """Under what name texts are kept of the form that is to start a run like this one, started then."""
    return " ".join(["again:", key, *map(str, started)])
