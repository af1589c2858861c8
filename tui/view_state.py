"""What the UI remembers of each runs folder: marks, order, filter, charts, theme. Kept apart from the folder itself,
which may be read-only or shared."""

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
from tui.runs.run_list import COLUMNS


@dataclass
class ViewState:
    """One folder's view. Whatever is missing or of another type in the file keeps its default."""

    theme: str = "ppo-dark"
    marked: list[str] = field(default_factory=list)
    pinned: str = ""
    query: str = ""
    sorted_by: str = "age"
    reverse: bool = False
    list_share: int = 40  # per cent of the screen that the list takes
    charts: dict[str, Any] = field(default_factory=dict)
    typed: dict[str, dict[str, str]] = field(default_factory=dict)  # target -> option -> text, of forms not started

    @classmethod
    def load(cls, runs: Path) -> ViewState:
        state = cls()
        with suppress(OSError, ValueError):
            table = read_json(cls.path(runs))
            for f in fields(cls) if isinstance(table, dict) else ():
                if type(table.get(f.name)) is type(getattr(state, f.name)):
                    setattr(state, f.name, table[f.name])
        state.marked = [key for key in state.marked if isinstance(key, str)]
        state.sorted_by = state.sorted_by if state.sorted_by in COLUMNS else "age"
        state.typed = {target: _texts(options) for target, options in state.typed.items() if isinstance(options, dict)}
        return state

    def save(self, runs: Path) -> None:
        """A state that cannot be kept is no reason to disturb anyone."""
        with suppress(OSError):
            self.path(runs).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path(runs), json.dumps(asdict(self) | {"runs": str(runs.resolve())}, indent=1))

    @staticmethod
    def path(runs: Path) -> Path:
        """Where a runs folder's view is kept."""
        name = hashlib.sha256(str(runs.resolve()).encode()).hexdigest()[:16]
        return user_state_path("ppo-unified") / "tui" / f"{name}.json"


def _texts(options: dict[str, Any]) -> dict[str, str]:
    return {option: text for option, text in options.items() if isinstance(text, str)}
