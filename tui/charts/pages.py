"""Metrics divided into pages of charts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tui.charts.settings import Settings, layout


class Page(NamedTuple):
    """The charts in sight."""

    tags: Sequence[str]
    columns: int
    rows: int
    position: str  # which of how many these are, in words


class Pages(NamedTuple):
    """Metrics on pages of so many columns and rows."""

    tags: Sequence[str]
    columns: int
    rows: int

    @property
    def size(self) -> int:
        """Charts on a full page."""
        return self.columns * self.rows

    @property
    def page_count(self) -> int:
        return max(1, -(-len(self.tags) // self.size))

    def page(self, number: int) -> Page:
        """One page; the last one if there are not so many."""
        first = min(number, self.page_count - 1) * self.size
        tags = self.tags[first : first + self.size]
        position = f"{first + 1}-{first + len(tags)} of {len(self.tags)}" if tags else "no charts"
        return Page(tags, self.columns, self.rows, position + ("  [ ] pages" if self.page_count > 1 else ""))


def divide(tags: Sequence[str], grid: int, width: int, height: int) -> Pages:
    """Pages of at most `grid` charts, as many as have room."""
    return Pages(tags, *layout(width, height, max(1, min(grid, len(tags)))))


def group_of(tag: str) -> str:
    """The word before the slash."""
    return tag.split("/")[0]


def matching_tags(tags: Sequence[str], settings: Settings) -> list[str]:
    """The metrics that group and words leave."""
    words, group = re.split(r"[\s,|]+", settings.words.strip().lower()), settings.group
    return [tag for tag in tags if (not group or group_of(tag) == group) and any(word in tag.lower() for word in words)]
