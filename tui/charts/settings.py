"""How one looks at charts, kept between sessions, and how many of them have room."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from ppo_unified.text import clean
from tui.charts.traces import AXES

GRIDS = (1, 2, 4, 6, 9, 16, 25, 36)
LEAST_WIDTH, LEAST_HEIGHT = 36, 6  # of a chart
NARROW = 100  # columns below which there are two charts side by side at most
SHAPE = 3.5  # width of a chart over its height, in cells, that reads best


@dataclass
class Settings:
    """How one looks at charts; kept between sessions."""

    grid: int = 6  # charts on a page, at most
    page: int = 0
    group: str = ""  # only metrics with this word before the slash
    words: str = ""  # only metrics whose name has one of these
    x_axis: str = "step"
    log_x: bool = False
    log_y: bool = False
    smoothing: float = 0.0
    aggregate: bool = False  # runs that differ in the seed only as one curve
    window: tuple[float, float] | None = None  # of the x axis; None: all of it
    follow: bool = True  # the window moves with the newest data

    @property
    def has_log_x(self) -> bool:
        """Whether the x axis is logarithmic; that of the time of day never is."""
        return self.log_x and self.x_axis != "time"

    def describe(self) -> list[str]:
        """What differs from plain charts of everything, in words."""
        parts = [f"x: {self.x_axis}{' log' if self.has_log_x else ''}"]
        parts += [f"smoothing {self.smoothing:g}"] if self.smoothing else []
        parts += ["log y"] if self.log_y else []
        parts += ["seeds as one"] if self.aggregate else []
        parts += [f"group {clean(self.group)}/"] if self.group else []
        parts += [f"words: {clean(self.words)}"] if self.words else []
        if self.window is not None:
            parts.append("zoomed, following" if self.follow else "zoomed")
        return parts

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, table: object) -> Settings:
        """Whatever is missing or makes no sense keeps its default."""
        settings = cls()
        if not isinstance(table, dict):
            return settings
        for f in fields(cls):
            value = table.get(f.name)
            if type(value) is type(getattr(settings, f.name)):
                setattr(settings, f.name, value)
        window = table.get("window")
        if isinstance(window, list | tuple) and len(window) == 2 and all(isinstance(x, int | float) for x in window):
            left, right = map(float, window)
            settings.window = (left, right) if math.isfinite(right - left) and left < right else None
        defaults = cls()
        settings.grid = settings.grid if settings.grid in GRIDS else defaults.grid
        settings.page = max(0, settings.page)
        settings.x_axis = settings.x_axis if settings.x_axis in AXES else defaults.x_axis
        settings.smoothing = settings.smoothing if 0 <= settings.smoothing < 1 else defaults.smoothing
        return settings


def layout(width: int, height: int, count: int) -> tuple[int, int]:
    """Columns and rows for up to `count` charts: as many as have room, in a shape that reads well."""
    most_columns = max(1, min(width // LEAST_WIDTH, 2 if width < NARROW else count, count))
    most_rows = max(1, height // LEAST_HEIGHT)

    def fit_charts(columns: int) -> tuple[int, int]:
        charts = min(count, columns * min(most_rows, -(-count // columns)))
        return charts, max(1, -(-charts // columns))

    def layout_cost(columns: int) -> tuple[int, int, float]:
        charts, rows = fit_charts(columns)
        shape = (width / columns) / (max(1, height) / rows)
        return -charts, columns * rows - charts, abs(math.log(max(shape, 0.1) / SHAPE))

    best = min(range(1, most_columns + 1), key=layout_cost)
    return best, fit_charts(best)[1]
