"""The last part of the help for the list of runs: the columns, and the signs in the list and the charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tui.runs.run_list import ASCII_MARKS, Column

Legend: TypeAlias = Sequence[tuple[str, Mapping[str, str]]]  # sections: heading, and sign -> meaning

_SIGNS = {
    "●": "a marked run, in the color of its curve",
    "◆": "the pinned run",
    "•": "a run that the charts draw although it is not marked",
    "A B C": "letters that label curves and their runs",
    "~": "part of the text is hidden, because space is short",
    "+2": "number of curves or values that do not fit",
    "n=3": "number of seeds in the median at the crosshair, or at the end of the curve",
    "n=1 of 3": "some seeds have no value there; the value of a single seed is not a median",
    "pin": "the value of the pinned run",
    "dashed line": "eval.threshold (solved), or the limit of a health check",
}


def list_legend(columns: Mapping[str, Column], unicode: bool) -> Legend:
    """Return the meanings of the visible columns and of all signs."""
    signs = {sign if unicode else ASCII_MARKS.get(sign, sign): meaning for sign, meaning in _SIGNS.items()}
    heads = {column.head: column.help for column in columns.values() if column.help}
    return [("Columns of the list", heads), ("Signs in the list and the charts", signs)]
