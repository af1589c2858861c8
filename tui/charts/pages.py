"""Divides metrics into pages of charts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tui.charts.settings import Settings, layout


class Page(NamedTuple):
    """The charts of one page."""

    tags: Sequence[str]
    columns: int
    rows: int
    position: str  # such as '1-6 of 10'


class Pages(NamedTuple):
    """All metrics, divided into pages of `columns` x `rows` charts."""

    tags: Sequence[str]
    columns: int
    rows: int

    @property
    def size(self) -> int:
        """The number of charts on a full page."""
        return self.columns * self.rows

    @property
    def page_count(self) -> int:
        """The number of pages, at least 1."""
        return max(1, -(-len(self.tags) // self.size))

    def page(self, number: int) -> Page:
        """Return a page, or the last page if `number` is too large."""
        first = min(number, self.page_count - 1) * self.size
        tags = self.tags[first : first + self.size]
        position = f"{first + 1}-{first + len(tags)} of {len(self.tags)}" if tags else "no charts"
        return Page(tags, self.columns, self.rows, position + ("  [ ] turn page" if self.page_count > 1 else ""))


def divide(tags: Sequence[str], grid: int, width: int, height: int) -> Pages:
    """Divide metrics into pages with at most `grid` charts, or fewer if the screen is small."""
    return Pages(tags, *layout(width, height, max(1, min(grid, len(tags)))))


def group_of(tag: str) -> str:
    """Return the group of a metric: the word before the slash."""
    return tag.split("/")[0]


def next_group(tags: Sequence[str], group: str) -> str:
    """Return the group of metrics that follows `group`. "" stands for all metrics and precedes the first group."""
    groups = ["", *dict.fromkeys(map(group_of, tags))]
    at = groups.index(group) if group in groups else -1
    return groups[(at + 1) % len(groups)]


def matching_tags(tags: Sequence[str], settings: Settings) -> list[str]:
    """Return the metrics that match the selected group and words."""
    words, group = re.split(r"[\s,|]+", settings.words.strip().lower()), settings.group
    return [tag for tag in tags if (not group or group_of(tag) == group) and any(word in tag.lower() for word in words)]
