"""The actions of an environment as numbers for charts and as text for tables."""

from __future__ import annotations

import numpy as np

from ppo_unified.inspection.formulas import Array
from ppo_unified.runs.stored_iteration import StoredIteration

MAX_COMPONENTS = 32  # of an action; further ones are omitted


def action_components(stored: StoredIteration) -> dict[str, Array]:
    """Return each component of the actions as numbers [N, T], by its name; {} for tokens or if they are unknown."""
    known = stored.columns.get("action")
    if "text" in stored.columns:
        return {}
    if known is not None and known.dtype.kind in "biuf":
        return {"action": known}
    if stored.actions is None or stored.actions.ndim < 3:
        return {}
    flat = stored.actions.reshape(*stored.actions.shape[:2], -1)
    return {f"action {i + 1}": flat[..., i] for i in range(min(flat.shape[-1], MAX_COMPONENTS))}


def action_labels(stored: StoredIteration, row: int, columns: Array) -> list[str]:
    """Return the action of each of some steps [steps] of a row as text, which is not safe to print; '' if unknown."""
    column = stored.columns.get("action")
    if column is None:
        return [""] * len(columns)
    return [_label(stored, action) for action in column[row, columns]]


def _label(stored: StoredIteration, action: object) -> str:
    if isinstance(action, str):
        return action
    if isinstance(action, np.integer):
        return stored.vocabulary.get(int(action), str(action))
    return f"{float(str(action)):z.4g}" if isinstance(action, np.floating) else str(action)
