"""Build the wheel, install it outside the checkout, and use it there: python tests/wheel_check.py, or make wheel-check

The new environment contains the dependencies installed here and the project from its wheel. The check fails if a
module, TOML file or style sheet is missing from the wheel or is read from the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ppo_unified", "envs", "tui")
DATA = (".py", ".toml", ".tcss", ".css", ".js", ".html", ".json", ".md", "py.typed")

# Runs in the new environment. The audit hook sees each file that Python opens.
USE = """
import importlib, io, json, pkgutil, sys
from contextlib import redirect_stdout

checkout, dependencies, packages = json.loads(sys.argv[1])
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
modules = [name for package in packages for name in (package, *(
    module.name for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + ".")
)) if not name.endswith("__main__")]
opened |= {importlib.import_module(name).__file__ for name in modules}
from ppo_unified.cli.main import main
with redirect_stdout(io.StringIO()):
    training = "train cartpole --total-steps 2000 --name a"
    commands = "envs", "recipes", training, "show a --once", "inspect a --html a.html"
    for command in commands:
        assert main(command.split()) == 0, command
print(len(modules), "modules imported")
stray = sorted(path for path in opened if path.startswith(checkout) and not path.startswith(dependencies))
sys.exit("read from the checkout: " + ", ".join(stray[:5]) if stray else 0)
"""


def main() -> None:
    dependencies = sysconfig.get_path("purelib")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        source = Path(folder, "source")  # without the build folders of the checkout, whose files setuptools would add
        for name in tracked_files():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, str(source)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        expected = {name for name in tracked_files() if name.split("/")[0] in PACKAGES and name.endswith(DATA)}
        missing = expected - set(zipfile.ZipFile(wheel).namelist())
        if missing:
            sys.exit(f"{wheel.name} lacks {', '.join(sorted(missing)[:5])}; see [tool.setuptools] in pyproject.toml")
        environment = Path(folder, "environment")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        python = str(environment / "bin" / "python")
        purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(subprocess.run([python, "-c", purelib], check=True, capture_output=True, text=True).stdout.strip())
        (site / "dependencies.pth").write_text(dependencies + "\n", encoding="utf-8")  # path files there are not read
        subprocess.run([*pip, "--python", python, "install", "--no-deps", str(wheel)], check=True)
        arguments = json.dumps([f"{ROOT}{os.sep}", dependencies, PACKAGES])
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([python, "-c", USE, arguments], cwd=folder, env=clean, check=False)
    sys.exit(done.returncode)


def tracked_files() -> list[str]:
    """Return the files that git tracks and that still exist, relative to the checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


if __name__ == "__main__":
    main()
