"""Draws docs/cartpole.svg: a CartPole run trained on the spot, as `ppo-unified show` prints it on a terminal.

python docs/make_picture.py
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 100


def main() -> None:
    program = [sys.executable, "-m", "ppo_unified"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*program, "train", "cartpole", "--runs", folder], check=True, capture_output=True)
        show = [*program, "show", "cartpole-s1", "--once", "--runs", folder]
        environment = os.environ | {"COLUMNS": str(COLUMNS), "LINES": "60", "PYTHONIOENCODING": "utf-8"}
        shown = subprocess.run(show, check=True, capture_output=True, env=environment).stdout.decode()
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(shown))
    console.save_svg(str(Path(__file__).with_name("cartpole.svg")), title="ppo-unified show cartpole-s1")


if __name__ == "__main__":
    main()
