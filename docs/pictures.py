"""Draws docs/pictures/*.svg: screens of the terminal UI with an artificial runs folder. The result is reproducible.

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
DARK = {"runs": "list of runs", "metric": "enlarged metric", "form": "new run", "page": "run page", "watch": "watch"}
LIGHT = {"runs": "list of runs"}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.scenes import Seen, make_scenes, trainers, visit_screens
    from tui.app import Terminal

    def make_painter(kept: dict[str, str], suffix: str) -> Seen:
        def paint(name: str, app: Terminal) -> None:
            if name in kept:
                svg = app.export_screenshot(title=f"ppo-unified: {kept[name]}")
                (ROOT / "docs" / "pictures" / f"{name}{suffix}.svg").write_text(svg, encoding="utf-8")

        return paint

    (ROOT / "docs" / "pictures").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"XDG_STATE_HOME": f"{folder}/state", "TZ": "UTC"}
        time.tzset()
        os.chdir(folder)
        runs = Path("runs")
        make_scenes(runs)
        with trainers(runs):
            asyncio.run(visit_screens(runs, SIZE, make_painter(DARK, "")))
            asyncio.run(visit_screens(runs, SIZE, make_painter(LIGHT, "-light"), theme="ppo-light"))


if __name__ == "__main__":
    main()
