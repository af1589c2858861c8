"""The base of the inspector's panes: widgets that paint lines of styled text, and only the visible ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget

from tui.inspector.shown import Shown

Span: TypeAlias = tuple[str, str | Style]  # a text and its style: the name of a component class, or the style itself
Line: TypeAlias = Sequence[Span]
STYLES = ("muted", "bold", "cursor", "accent", "cut")


class LinesPane(Widget):
    """Paints the lines that `make_lines` returns. It repaints only if the shown state or the size has changed."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"lines--{name}" for name in STYLES}
    DEFAULT_CSS = """
    LinesPane { background: $background; color: $foreground; }
    LinesPane > .lines--muted { color: $foreground-muted; }
    LinesPane > .lines--bold { text-style: bold; }
    LinesPane > .lines--cursor { background: $primary; color: $text; text-style: bold; }
    LinesPane > .lines--accent { color: $text-accent; text-style: bold; }
    LinesPane > .lines--cut { color: $text-error; text-style: bold; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.shown: Shown | None = None
        self._strips: list[Strip] | None = None
        self._painted_for = Size(0, 0)

    def update_shown(self, shown: Shown) -> None:
        """Show another state."""
        if shown != self.shown:
            self.shown = shown
            self.repaint()

    def repaint(self) -> None:
        """Paint all lines again."""
        self._strips = None
        self.refresh()

    def notify_style_update(self) -> None:
        """Discard the cached lines when the theme changes."""
        self._strips = None
        super().notify_style_update()

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        """Return at most `height` lines of at most `width` columns."""
        raise NotImplementedError

    def render_line(self, y: int) -> Strip:
        size = self.content_size
        if self._strips is None or self._painted_for != size:
            self._painted_for = size
            lines = self.make_lines(self.shown, size.width, size.height) if self.shown and size.width > 1 else ()
            styles = {"": self.rich_style} | {name: self._style(name) for name in STYLES}
            self._strips = [self._strip(line, size.width, styles) for line in lines]
        if y < len(self._strips):
            return self._strips[y]
        return Strip.blank(size.width, self.rich_style)

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"lines--{name}")

    def _strip(self, line: Line, width: int, styles: dict[str, Style]) -> Strip:
        base = styles[""]
        segments = [Segment(text, base + (styles[style] if isinstance(style, str) else style)) for text, style in line]
        return Strip(segments).adjust_cell_length(width, base)


def rule(title: str, width: int, unicode: bool) -> Line:
    """Return a line with a title."""
    dash = "─" if unicode else "-"
    text = f"{dash} {title} " if title else ""
    return [(text + dash * max(0, width - len(text)), "muted")]
