"""The saved view of each runs folder, such as marks, order, filter, charts and theme.

The file is stored outside the runs folder, which may be read-only or shared.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from ppo_unified.parsing import read_json
from ppo_unified.runs.folder import write_atomically
from ppo_unified.study.pages import LANGUAGES


@dataclass
class ViewState:
    """The saved view of one runs folder. Missing or invalid values in the file keep their defaults."""

    theme: str = "ppo-dark"
    language: str = "en"  # of the study text
    marked: list[str] = field(default_factory=list)
    pinned: str = ""
    query: str = ""
    sorted_by: str = "age"
    reverse: bool = False
    columns: list[str] = field(default_factory=list)  # options that the list shows; if empty, those that differ
    list_share: int = 40  # percentage of the height that the list above the charts may use
    list_width: int = 0  # percentage of the width of the list beside the charts; 0 adapts it to the columns
    details: bool = False  # show the details in place of the charts
    details_beside: bool = True  # show the details below a list that is beside the charts
    charts: dict[str, Any] = field(default_factory=dict)
    typed: dict[str, dict[str, str]] = field(default_factory=dict)  # input of unstarted forms: target -> option -> text

    @classmethod
    def load(cls, runs: Path) -> ViewState:
        """Load the state of a runs folder, or the defaults if the file cannot be read."""
        state = cls()
        with suppress(OSError, ValueError):
            table = read_json(cls.path(runs))
            for f in fields(cls) if isinstance(table, dict) else ():
                if type(table.get(f.name)) is type(getattr(state, f.name)):
                    setattr(state, f.name, table[f.name])
        state.language = state.language if state.language in LANGUAGES else cls.language
        state.marked = [key for key in state.marked if isinstance(key, str)]
        state.columns = [name for name in state.columns if isinstance(name, str)]
        state.typed = {target: _texts(options) for target, options in state.typed.items() if isinstance(options, dict)}
        return state

    def toggle_details(self, beside: bool) -> None:
        """Show or hide the details in the current layout (list beside or above the charts)."""
        if beside:
            self.details_beside = not self.details_beside
        else:
            self.details = not self.details

    def save(self, runs: Path) -> None:
        """Save the state. Errors are ignored because losing the view is harmless."""
        with suppress(OSError):
            self.path(runs).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path(runs), json.dumps(asdict(self) | {"runs": str(runs.resolve())}, indent=1))

    @staticmethod
    def path(runs: Path) -> Path:
        """Return the path of the file that stores a runs folder's view."""
        name = hashlib.sha256(str(runs.resolve()).encode()).hexdigest()[:16]
        return user_state_path("ppo-unified") / "tui" / f"{name}.json"


def _texts(options: dict[str, Any]) -> dict[str, str]:
    return {option: text for option, text in options.items() if isinstance(text, str)}
