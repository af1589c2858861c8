"""Actions on one run, which the list of runs and the run page share."""

from __future__ import annotations

import os
from typing import Any

from textual.screen import Screen

from ppo_unified.errors import UsageError
from ppo_unified.runs import control, notes, processes
from ppo_unified.runs.folder import ALIVE, SOLVED, Run, check_name
from ppo_unified.text import clean
from tui.actions import is_write_action
from tui.charts.metric_screen import MetricScreen
from tui.charts.plots import Plots
from tui.dialogs import ConfirmDialog, PromptDialog
from tui.runs.entries import Entry, sweep_name
from tui.services import Services
from tui.store import Store

INTERRUPTED = ("stopped", "crashed", "failed")  # states of runs that the user probably wants to resume


class RunActions(Screen[None]):
    """A screen whose actions apply to one run, `entry`. Subclasses add the bindings of the place "control"."""

    store: Store

    def __init__(self, services: Services) -> None:
        super().__init__()
        self.services = services
        self._conditions: frozenset[str] = frozenset()  # as the footer shows them

    @property
    def entry(self) -> Entry | None:
        """The run to which the actions apply."""
        raise NotImplementedError

    @property
    def conditions(self) -> frozenset[str]:
        """The action conditions that hold for the run. Subclasses add those of the screen."""
        return run_conditions(self.entry)

    @property
    def has_colors(self) -> bool:
        """True if colors can distinguish the curves. Without Braille dots, each curve is drawn with
        its letter instead.
        """
        return self.services.unicode and not self.app.no_color

    def refresh_footer(self) -> None:
        """Update the footer if the set of available actions has changed. Listing all keys for each move of the cursor
        would be slow.
        """
        if self.conditions != self._conditions:
            self._conditions = self.conditions
            self.refresh_bindings()

    def on_plots_updated(self) -> None:
        self.refresh_footer()

    def on_plots_enlarged(self, message: Plots.Enlarged) -> None:
        self.app.push_screen(MetricScreen(message.plots, message.tag))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable actions that change runs if the UI is read-only."""
        return not (self.services.readonly and is_write_action(action))

    def _own_run(self, what: str) -> Entry | None:
        """Return the run. If no run is selected or another program wrote it, show a warning and return None."""
        entry = self.entry
        if entry is None:
            self._warn("No run is selected.")
        elif entry.foreign:
            self._warn(f"Cannot {what} {clean(entry.key)}: it was written by another program.")
        else:
            return entry
        return None

    def _warn(self, text: str) -> None:
        self.notify(text, severity="warning", markup=False)

    def action_stop(self) -> None:
        if entry := self._own_run("stop"):
            run = Run(entry.path)
            if not _is_active(entry):
                self._warn(f"Cannot stop {clean(run.name)}: it is {clean(entry.state)}.")
                return
            self.notify(f"{clean(run.name)}: writing a checkpoint and stopping ...", markup=False)
            self.services.run_in_thread(lambda: f"{clean(run.name)} is {processes.stop(run, kill=False)}")

    def action_kill(self) -> None:
        if entry := self._own_run("kill"):
            run = Run(entry.path)
            if not _is_active(entry):
                self._warn(f"Cannot kill {clean(run.name)}: it is {clean(entry.state)}.")
                return

            def on_answer(yes: bool | None) -> None:
                if yes:
                    self.services.run_in_thread(lambda: f"{clean(run.name)} is {processes.stop(run, kill=True)}")

            detail = "All progress since its last checkpoint will be lost."
            self.app.push_screen(ConfirmDialog(f"Kill {clean(run.name)}?", detail), on_answer)

    def action_resume(self) -> None:
        if entry := self._own_run("resume"):
            if _is_active(entry):
                self._warn(f"Cannot resume {clean(entry.path.name)}: it is {entry.state}.")
            elif entry.status.state == "finished":
                self._resume_further(entry)
            else:
                self._resume(entry)

    def _resume(self, entry: Entry, *flags: str) -> None:
        """Resume a run, after a confirmation if it must restart at step 0."""
        run = Run(entry.path)

        def resume_run() -> str:
            control.resume(run, *flags)
            return f"{clean(run.name)} is running"

        def on_answer(yes: bool | None) -> None:
            if yes:
                self.notify(f"{clean(run.name)}: resuming ...", markup=False)
                self.services.run_in_thread(resume_run)

        def ask_if_needed() -> None:
            if loss := control.describe_restart(run, entry.status):
                self.app.push_screen(
                    ConfirmDialog(f"Restart {clean(run.name)} at step 0?", clean(loss) + "."), on_answer
                )
            else:
                on_answer(True)

        self.services.attempt(ask_if_needed)

    def _resume_further(self, entry: Entry) -> None:
        """Ask for a larger step limit, which a finished run needs to continue, and resume the run."""
        step = entry.status.step

        def check(text: str) -> None:
            if not text.isdecimal() or len(text) > 18 or int(text) <= step:
                raise UsageError(f"expected an integer > {step}, got '{text}'")

        def on_answer(text: str | None) -> None:
            if text:
                self._resume(entry, f"--total-steps={text}")

        verb = "was solved" if entry.state == SOLVED else "finished"
        title = f"{clean(entry.key)} {verb} after {step:,} steps. New total number of steps:"
        self.app.push_screen(PromptDialog(title, str(2 * step), check=check), on_answer)

    def action_rerun(self) -> None:
        if entry := self._own_run("rerun"):
            self.services.open_rerun(entry)

    def action_rename(self) -> None:
        if entry := self._own_run("rename"):
            run = Run(entry.path)
            if _is_active(entry):
                self._warn(f"Cannot rename {clean(run.name)}: it is {entry.state}.")
                return

            def check(text: str) -> None:
                if text != run.name:
                    check_name(text)
                    if os.path.lexists(run.path.parent / text):
                        raise UsageError(f"{text} already exists; choose another name")

            def on_answer(text: str | None) -> None:
                if text and text != run.name:
                    self.services.attempt(lambda: self.services.on_run_renamed(entry.key, control.rename(run, text)))

            self.app.push_screen(PromptDialog(f"New name for {clean(run.name)}", run.name, check=check), on_answer)

    def action_note(self) -> None:
        if entry := self._own_run("annotate"):
            run = Run(entry.path)
            first, end, others = notes.read_note(run).partition("\n")
            ask = PromptDialog(f"Note for {clean(run.name)}{' (first line)' if others else ''}", first)

            def on_answer(text: str | None) -> None:
                if text is not None and text != ask.value:
                    self.services.attempt(lambda: notes.write_note(run, text + end + others))

            self.app.push_screen(ask, on_answer)

    def action_delete(self) -> None:
        if entry := self._own_run("delete"):
            run = Run(entry.path)

            def on_answer(yes: bool | None) -> None:
                def delete() -> None:
                    control.delete(run)
                    self.services.on_run_deleted(entry.key)

                if yes:
                    self.services.attempt(delete)

            detail = f"This permanently deletes the curves, checkpoints and samples of {entry.status.step:,} steps."
            self.app.push_screen(ConfirmDialog(f"Delete {clean(run.path)}?", detail), on_answer)

    def action_inspect(self) -> None:
        if entry := self._own_run("inspect"):
            from tui.inspector.screen import InspectorScreen  # imported late to show the first screen sooner

            self.app.push_screen(InspectorScreen(self.services, self.store, entry.key))

    def action_sweep(self) -> None:
        if not (name := sweep_name(self.entry)):
            self._warn("The selected run is not a trial of a sweep. To start a sweep, use ppo-unified sweep.")
            return
        from tui.runs.sweep_screen import SweepScreen  # imported late to show the first screen sooner

        self.app.push_screen(SweepScreen(self.store, name, self.services.unicode))

    def action_play(self) -> None:
        if entry := self._own_run("watch"):
            self.services.attempt(lambda: self._watch(Run(entry.path)))

    def _watch(self, run: Run) -> None:
        from tui.watch.player import play_command  # imported late to show the first screen sooner
        from tui.watch.screen import WatchScreen

        if not run.checkpoint_folders():
            self._warn(f"Cannot watch {clean(run.name)}: it has not written a checkpoint yet.")
            return
        self.app.push_screen(WatchScreen(run.name, play_command(run), self.has_colors))

    def action_copy_command(self) -> None:
        if entry := self._own_run("copy the command of"):
            path: Any = Run(entry.path).command
            try:
                command = path.read_text(encoding="utf-8", errors="replace").strip()
            except OSError as error:
                self.services.show_error(f"{path}: cannot read the file ({error.strerror})")
                return
            self.app.copy_to_clipboard(clean(command))  # one line, so that pasting into a shell runs nothing
            self.notify(f"Copied: {clean(command)}", markup=False)


def run_conditions(entry: Entry | None) -> frozenset[str]:
    """Return the action conditions that hold for a run."""
    if entry is None:
        return frozenset()
    if entry.foreign:
        return frozenset({"run"})
    found = {"run", "own", "active" if _is_active(entry) else "ended"}
    found |= {"checkpoint"} if entry.has_checkpoint else set()
    found |= {"sweep"} if sweep_name(entry) else set()
    return frozenset(found | ({"interrupted"} if entry.state in INTERRUPTED else set()))


def chart_conditions(plots: Plots) -> frozenset[str]:
    """Return the conditions of chart actions that hold."""
    shown = {"curves": bool(plots.tags), "pages": len(plots.plots) < len(plots.matching_tags())}
    return plots.settings.conditions | {condition for condition, holds in shown.items() if holds}


def _is_active(entry: Entry) -> bool:
    return entry.state in ALIVE
