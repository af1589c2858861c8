"""Writes a sample as a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

from ppo_unified.inspection.heat import quantity
from ppo_unified.text import clean, decode_bytes
from tui.charts.export import new_files
from tui.inspector.shown import Shown
from tui.inspector.table_pane import COLUMNS


def write_sample(folder: Path, run: str, shown: Shown) -> Path:
    """Write every quantity at every step of a sample to a new file in `folder`, and return its path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path, _ = new_files(folder, f"{clean(run)}-iteration-{shown.stored.iteration}-sample-{shown.number}")
    names = [name for name in (*COLUMNS, "outside", "cut") if quantity(shown.stored, shown.now, name) is not None]
    own = [name for name in shown.stored.columns if name not in names and name not in ("mask", "continues")]
    columns = {name: shown.values(name).tolist() for name in (*own, *names)}
    columns |= {name: [*map(decode_bytes, x)] for name, x in columns.items() if isinstance(x[0], str)}
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["column", *columns])
        writer.writerows(zip(shown.sample.columns.tolist(), *columns.values(), strict=True))
    return path
