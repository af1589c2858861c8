"""The base of the inspector's panes: widgets that paint lines of styled text, and only the visible ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from tui.inspector.shown import Shown

Span: TypeAlias = tuple[str, str | Style]  # a text and its style: the name of a component class, or the style itself
Line: TypeAlias = Sequence[Span]
STYLES = ("muted", "bold", "cursor", "inverse", "accent", "cut")


class StripWidget(Widget):
    """Paints lines of spans and caches them. It has no border and no padding."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"lines--{name}" for name in STYLES}
    DEFAULT_CSS = """
    StripWidget { background: $background; color: $foreground; }
    StripWidget > .lines--muted { color: $foreground-muted; }
    StripWidget > .lines--bold { text-style: bold; }
    StripWidget > .lines--cursor { background: $primary; color: $text; text-style: bold; }
    StripWidget > .lines--inverse { background: $foreground; color: $background; text-style: bold; }
    StripWidget > .lines--accent { color: $text-accent; text-style: bold; }
    StripWidget > .lines--cut { color: $text-error; text-style: bold; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._strips: list[Strip] | None = None
        self._painted_for = Size(0, 0)
        self._styles: dict[str | Style, Style] = {}  # name or own style of a span -> style after the app's filters

    def paint(self, width: int, height: int) -> Sequence[Line]:
        """Return at most `height` lines of at most `width` columns."""
        raise NotImplementedError

    def repaint(self) -> None:
        """Paint all lines again."""
        self._strips = None
        self.refresh()

    def notify_style_update(self) -> None:
        """Discard the cached lines when the theme changes."""
        self._strips, self._styles = None, {}
        super().notify_style_update()

    def render_lines(self, crop: Region) -> list[Strip]:
        """Return the lines directly, because there is no border or padding and the styles are already filtered."""
        size = self.size
        if self._strips is None or self._painted_for != size:
            self._painted_for = size
            lines = self.paint(size.width, size.height) if size.width > 1 and size.height else ()
            self._strips = [self._strip(line, size.width) for line in lines]
        blank = Strip.blank(size.width, self._style(""))
        strips = [self._strips[y] if y < len(self._strips) else blank for y in crop.line_range]
        first, end = crop.column_span
        return strips if (first, end) == (0, size.width) else [strip.crop(first, end) for strip in strips]

    def _strip(self, line: Line, width: int) -> Strip:
        return Strip([Segment(text, self._style(style)) for text, style in line]).adjust_cell_length(
            width, self._style("")
        )

    def _style(self, style: str | Style) -> Style:
        if style not in self._styles:
            if isinstance(style, Style):
                found = self.rich_style + style
            else:
                found = self.get_component_rich_style(f"lines--{style}") if style else self.rich_style
            segments = [Segment("", found)]
            for line_filter in self.get_line_filters():
                segments = line_filter.apply(segments, self.background_colors[1])
            self._styles[style] = segments[0].style or found
        return self._styles[style]


class LinesPane(StripWidget):
    """Paints a part of the shown state."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.shown: Shown | None = None
        self._signature: object = None

    def update_shown(self, shown: Shown) -> None:
        """Show another state, and paint again if the painted part has changed."""
        self.shown, before = shown, self._signature
        self._signature = self.signature(shown)
        if self._signature != before:
            self.repaint()

    def signature(self, shown: Shown) -> object:
        """Return values that change whenever the painted lines change."""
        return shown

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        """Return at most `height` lines of at most `width` columns."""
        raise NotImplementedError

    def paint(self, width: int, height: int) -> Sequence[Line]:
        return self.make_lines(self.shown, width, height) if self.shown is not None else ()


class LineWidget(StripWidget):
    """Shows one line."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self._line: Line = ()

    def set_line(self, line: Line) -> None:
        """Show another line."""
        if line != self._line:
            self._line = line
            self.repaint()

    def paint(self, width: int, height: int) -> Sequence[Line]:
        return [self._line]


def rule(title: str, width: int, unicode: bool) -> Line:
    """Return a line with a title."""
    dash = "─" if unicode else "-"
    text = f"{dash} {title} " if title else ""
    return [(text + dash * max(0, width - cell_len(text)), "muted")]
