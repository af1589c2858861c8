"""Draws screens of the terminal UI with an artificial runs folder. The result is reproducible.

Some are written to docs/pictures, for the documentation. All screens, in several sizes and themes, are written to
build/pictures, for a review of the UI.

Usage: python docs/pictures.py, or make pictures
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZE = (110, 34)
DARK = {
    "runs": "list of runs",
    "metric": "enlarged metric",
    "sweep": "sweep",
    "form": "new run",
    "page": "run page",
    "watch": "watch",
    "inspector": "inspector",
    "inspector-what-if": "what if",
    "inspector-critic": "critic microscope",
    "inspector-kl": "KL laboratory",
    "inspector-episode": "episode",
}
LIGHT = {"runs": "list of runs"}
STUDY = {"inspector-study": "study mode", "inspector-study-zh": "study mode in Chinese"}  # in the first two sizes

SMALL = {"inspector-critic": "critic microscope", "inspector-kl": "KL laboratory"}  # also at 80x24 and 120x40


GALLERY = ROOT / "build" / "pictures"


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.scenes import SIZES, make_scenes, trainers

    GALLERY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"XDG_STATE_HOME": f"{folder}/state", "TZ": "UTC"}
        time.tzset()
        os.chdir(folder)
        make_scenes(Path("runs"))
        with trainers(Path("runs")):
            paint_screens(ROOT / "docs" / "pictures", SIZE, "ppo-dark", "", DARK)
            paint_screens(ROOT / "docs" / "pictures", SIZE, "ppo-light", "-light", LIGHT)
            for columns, lines in SIZES[:2]:
                paint_screens(
                    ROOT / "docs" / "pictures", (columns, lines), "ppo-dark", f"-{columns}x{lines}", SMALL | STUDY
                )
            for columns, lines in SIZES:
                for theme in ("dark", "light"):
                    paint_screens(GALLERY, (columns, lines), f"ppo-{theme}", f"-{columns}x{lines}-{theme}")
                os.environ["NO_COLOR"] = "1"
                paint_screens(GALLERY, (columns, lines), "ppo-dark", f"-{columns}x{lines}-no-color")
                del os.environ["NO_COLOR"]


def paint_screens(
    folder: Path, size: tuple[int, int], theme: str, suffix: str, titles: dict[str, str] | None = None
) -> None:
    """Write the screens named in `titles`, or all screens, as SVG files."""
    from tests.scenes import visit_screens
    from tui.app import Terminal

    def paint(name: str, app: Terminal) -> None:
        if titles is None or name in titles:
            svg = app.export_screenshot(title=f"ppo-unified: {name if titles is None else titles[name]}")
            (folder / f"{name}{suffix}.svg").write_text(svg, encoding="utf-8")

    asyncio.run(visit_screens(Path("runs"), size, paint, theme=theme))


if __name__ == "__main__":
    main()
