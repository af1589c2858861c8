"""The chart settings, which are saved between sessions, and the layout of the charts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ppo_unified.text import clean
from tui.charts.traces import AXES

GRIDS = (1, 2, 4, 6, 9, 16, 25, 36)
AXIS_LABELS = dict(zip(AXES, ("step", "elapsed time", "time of day"), strict=True))
LEAST_WIDTH, LEAST_HEIGHT = 36, 6  # minimum size of a chart in cells
NARROW = 100  # a screen with fewer columns shows at most two charts side by side
SHAPE = 3.5  # preferred ratio of a chart's width to its height, in cells


@dataclass
class Settings:
    """The chart settings, which are saved between sessions."""

    grid: int = 6  # maximum number of charts per page
    page: int = 0
    group: str = ""  # show only metrics with this word before the slash
    words: str = ""  # show only metrics whose name contains one of these words
    x_axis: str = "step"  # the axis that the user selected; see `axis`
    log_x: bool = False
    log_y: list[str] = field(default_factory=list)  # the metrics whose y axis is logarithmic
    smoothing: float = 0.0
    aggregate: bool = False  # draw runs that differ only in the seed as one curve
    window: tuple[float, float] | None = None  # visible part of the x axis; None shows all of it
    follow: bool = True  # move the window with the newest data

    @property
    def axis(self) -> str:
        """The x axis of the charts. While seeds are grouped, it is always steps, because the runs reach different steps
        at the same time.
        """
        return "step" if self.aggregate else self.x_axis

    @property
    def has_log_x(self) -> bool:
        """True if the x axis is logarithmic. The time of day never is."""
        return self.log_x and self.axis != "time"

    @property
    def conditions(self) -> frozenset[str]:
        """The chart action conditions that these settings satisfy."""
        return frozenset() if self.aggregate else frozenset({"ungrouped"})

    def switch_axis(self) -> None:
        """Select the next x axis and show its full range."""
        self.x_axis = AXES[(AXES.index(self.x_axis) + 1) % len(AXES)]
        self.window = None  # it belongs to the previous axis

    def switch_aggregate(self) -> str:
        """Group or ungroup seeds. If this changes the x axis, return the label of the axis that the user selected."""
        before, self.aggregate = self.axis, not self.aggregate
        if self.axis == before:
            return ""
        self.window = None  # it belongs to the previous axis
        return AXIS_LABELS[self.x_axis]

    def for_one_run(self) -> Settings:
        """Return the settings for the page of one run: they look the same, but show all metrics, starting at the first
        page.
        """
        return replace(self, page=0, group="", words="", aggregate=False, window=None, follow=True)

    def toggle_log_y(self, tag: str) -> None:
        """Switch the y axis of one metric between linear and logarithmic."""
        others = [other for other in self.log_y if other != tag]  # a new list, because copies of the settings share it
        self.log_y = others if tag in self.log_y else [*others, tag]

    def describe(self) -> list[str]:
        """Return a short description of the x axis and of each setting that is not the default."""
        parts = [f"x: {AXIS_LABELS[self.axis]}{' log' if self.has_log_x else ''}"]
        parts += [f"smoothing {self.smoothing:g}"] if self.smoothing else []
        parts += ["seeds grouped"] if self.aggregate else []
        parts += [f"group {clean(self.group)}/"] if self.group else []
        parts += [f"words: {clean(self.words)}"] if self.words else []
        if self.window is not None:
            parts.append("zoomed, following new data" if self.follow else "zoomed")
        if self.log_y:
            more = f" +{len(self.log_y) - 2}" if len(self.log_y) > 2 else ""
            parts.append(f"log y: {', '.join(map(clean, self.log_y[:2]))}{more}")
        return parts

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict for the state file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, table: object) -> Settings:
        """Read settings from the state file. Missing or invalid values keep their defaults."""
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
        settings.log_y = [tag for tag in settings.log_y if isinstance(tag, str)]
        defaults = cls()
        settings.grid = settings.grid if settings.grid in GRIDS else defaults.grid
        settings.page = max(0, settings.page)
        settings.x_axis = settings.x_axis if settings.x_axis in AXES else defaults.x_axis
        settings.smoothing = settings.smoothing if 0 <= settings.smoothing < 1 else defaults.smoothing
        return settings


def layout(width: int, height: int, count: int) -> tuple[int, int]:
    """Return the columns and rows that fit the most charts, up to `count`, with the best shape."""
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
