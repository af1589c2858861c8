"""Opens the forms for new runs, stores their input, and starts the runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from textual.app import App

from ppo_unified.errors import UsageError
from ppo_unified.runs import control
from ppo_unified.runs.background import Standby, StandbySlot
from ppo_unified.runs.folder import Run
from ppo_unified.text import clean
from tui.new_run.form import Form
from tui.new_run.picker import Picker
from tui.runs.entries import Entry
from tui.runs.runs_screen import RunsScreen
from tui.services import Services


class Launcher:
    """Stores the input of each form under the name of the target or, for a rerun, under a name derived from the run."""

    def __init__(
        self, app: App[Any], services: Services, home: RunsScreen, standby_slot: StandbySlot | None = None
    ) -> None:
        """Create a launcher. If there is a `standby_slot`, it is filled before a form opens."""
        self._app, self._services, self._home, self._standby_slot = app, services, home, standby_slot
        self._typed = services.state.typed

    def open_picker(self) -> None:
        """Open the list of targets."""
        self._start_standby()
        self._app.push_screen(Picker(self._open_form))

    def _open_form(self, target: str) -> None:
        self._push_form(target, "", target, {})

    def open_rerun(self, entry: Entry) -> None:
        """Open the form with a run's options. A later run of the same name gets its own input."""
        from tui.new_run.form_model import form_input

        try:
            target, recipe, typed = form_input(Run(entry.path))
        except UsageError as error:
            self._services.show_error(str(error))
            return
        self._start_standby()
        name = _rerun_name(entry.key, entry.status.started)
        for other in self._reruns(entry.key) - {name}:
            del self._typed[other]
        self._push_form(target, recipe, name, typed)

    def on_run_renamed(self, key: str, new: str) -> None:
        """Move the stored input for reruns to the run's new key."""
        for name in self._reruns(key):
            self._typed[_rerun_name(new, name.rpartition(" ")[2])] = self._typed.pop(name)

    def on_run_deleted(self, key: str) -> None:
        """Drop the stored input for reruns of a deleted run, because a new run may get its name."""
        for name in self._reruns(key):
            del self._typed[name]

    def _reruns(self, key: str) -> set[str]:
        """Return the keys of the stored inputs for reruns of this run."""
        return {name for name in self._typed if name.rpartition(" ")[0] == _rerun_name(key)}

    def _start_standby(self) -> None:
        if self._standby_slot is not None:
            self._standby_slot.fill()

    def _push_form(self, target: str, recipe: str, name: str, typed: dict[str, str]) -> None:
        """Open a form with the input stored under this name or, by default, with `typed`."""
        typed = self._typed.setdefault(name, typed)

        def start(arguments: Sequence[Sequence[str]]) -> None:
            self._start_runs(form, name, arguments)

        form = Form(target, recipe=recipe, typed=typed, runs=self._services.runs, start=start)
        self._app.push_screen(form)

    def _is_being_typed(self, texts: dict[str, str] | None) -> bool:
        return any(isinstance(screen, Form) and screen.typed is texts for screen in self._app.screen_stack)

    def _start_runs(self, form: Form, name: str, arguments: Sequence[Sequence[str]]) -> None:
        """Start one process per list of arguments of `train`.

        The form stays open until a run starts, and shows the error if one fails. When a run starts, the input stored
        under `name` is dropped. If a later run fails, that input is restored. Input of a form that was opened meanwhile
        is not changed.
        """
        app, standby = self._app, self._standby_slot.take() if self._standby_slot is not None else None

        def on_created(run: Run) -> None:
            if form in app.screen_stack:
                while app.screen is not self._home:
                    app.pop_screen()
            if self._typed.get(name) is form.typed and not self._is_being_typed(form.typed):
                del self._typed[name]
            self._home.focus_run(run.name)
            self._services.read_now()

        def on_error(text: str) -> None:
            newer = self._typed.get(name)
            if not newer and not self._is_being_typed(newer):
                self._typed[name] = form.typed
            (form.show_start_error if form in app.screen_stack else self._services.show_error)(text)

        def start(one: Sequence[str], standby: Standby | None) -> str:
            runs = self._services.runs
            run = control.start(one, runs, on_created=lambda run: app.call_later(on_created, run), standby=standby)
            return f"{clean(run.name)}: training started"

        for number, one in enumerate(arguments):
            self._services.run_in_thread(partial(start, one, standby if number == 0 else None), on_error)


def _rerun_name(key: str, *started: object) -> str:
    """Return the key under which a run's input for reruns is stored. `started` is the time when the run started."""
    return " ".join(["again:", key, *map(str, started)])
