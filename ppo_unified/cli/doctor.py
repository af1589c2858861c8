"""`doctor`: check the installation and suggest how to fix problems.

The imports at the top of this module need only the standard library, so that the command runs if packages are missing.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

from ppo_unified.cli.common import add_json
from ppo_unified.cli.shadowing import DISTRIBUTION, hidden_folders, shadowed_packages
from ppo_unified.terminal.screen import style_for
from ppo_unified.text import can_unicode, clean, print_out

EXTRAS = {  # extra of this project -> the module that it installs, and the feature that needs it
    "box2d": ("Box2D", "Box2D environments"),
    "atari": ("ale_py", "Atari games"),
    "mujoco": ("mujoco", "MuJoCo environments"),
    "minigrid": ("minigrid", "MiniGrid environments"),
    "trl": ("trl", "ppo-unified reward-model"),
    "data": ("datasets", "prompts in Parquet files and data sets"),
    "reasoning": ("reasoning_gym", "prompts of reasoning-gym"),
    "math": ("math_verify", "the reward math"),
    "smollm2": ("gguf", "ppo-unified fetch smollm2"),
    "vader": ("vaderSentiment", "the reward vader"),
    "sweep": ("optuna", "ppo-unified sweep"),
}
STYLES = {"truecolor": "24-bit colour", "256": "256 colours", "ascii": "plain characters"}
SMALLEST = (80, 24)  # columns and lines that curves and pictures need

Verdict: TypeAlias = Literal["ok", "warn", "missing"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    required: bool = False  # training needs it


def run(options: argparse.Namespace) -> int:
    """Check everything that a run needs or can use. Return 1 if something required is missing or broken."""
    checks = [check_python(), *check_dependencies(), check_torch(), *check_extras(), check_terminal(), check_runs()]
    checks += check_names()
    broken = [check for check in checks if check.required and check.verdict == "missing"]
    if options.json:
        print(json.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}))
        return 1 if broken else 0
    width = max(len(check.name) for check in checks)
    for check in checks:
        remedy = f"; {check.remedy}" if check.remedy else ""
        print_out(clean(f"{check.verdict:8} {check.name:{width}}  {check.found}{remedy}"))
    print(f"broken: {', '.join(check.name for check in broken)}" if broken else "all required packages work")
    return 1 if broken else 0


def check_python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    try:
        needed = metadata(DISTRIBUTION)["Requires-Python"] or ""
    except PackageNotFoundError:
        needed = ""
    ok = at_least(found, lower_bound(needed))
    remedy = "" if ok else f"create the virtual environment with Python {needed}"
    return Check("python", "ok" if ok else "missing", found, remedy, required=True)


def check_dependencies() -> list[Check]:
    """Check the version of every required package against the lower bound that the project declares."""
    try:
        requirements = metadata(DISTRIBUTION).get_all("Requires-Dist") or []
    except PackageNotFoundError:
        return [
            Check(DISTRIBUTION, "missing", "not installed", "run pip install -e . in the project folder", required=True)
        ]
    return [_check_requirement(line) for line in requirements if ";" not in line]


def _check_requirement(line: str) -> Check:
    """Check one requirement from pyproject.toml, such as `gymnasium[toy-text]>=1.3`."""
    name, lowest = re.split(r"[^\w.-]", line, maxsplit=1)[0], lower_bound(line)
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name, "missing", "not installed", f"pip install '{line}'", required=True)
    if at_least(found, lowest):
        return Check(name, "ok", found, required=True)
    return Check(name, "missing", f"{found} is older than {lowest}", f"pip install '{line}'", required=True)


def lower_bound(requirement: str) -> str:
    """Return a requirement's lower bound, such as '1.3' for 'gymnasium[toy-text]>=1.3,<2', or "" if it has none."""
    bound = re.search(r">=\s*([\d.]+)", requirement)
    return bound[1] if bound else ""


def at_least(found: str, lowest: str) -> bool:
    """Return True if a version such as '2.13.0+cpu' is at least `lowest`. Only the numbers are compared."""
    numbers, bound = ([int(part) for part in re.findall(r"\d+", text.partition("+")[0])] for text in (found, lowest))
    return numbers + [0] * (len(bound) - len(numbers)) >= bound


def check_torch() -> Check:
    """Check that torch can be imported, and that it can use the GPU if there is one."""
    driver = _find_driver()
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch import", "missing", first_line(error), "reinstall torch", required=True)
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
        return Check("gpu", "ok", f"{names}; torch {build}, NVIDIA driver {driver or 'version unknown'}")
    if not driver:
        return Check("gpu", "ok", f"none (no NVIDIA driver, torch {build}); runs train on the CPU")
    if torch.version.cuda is None:
        remedy = "install a CUDA build of torch: pytorch.org/get-started"
        return Check("gpu", "warn", f"NVIDIA driver {driver}, but torch is {build}", remedy)
    why = first_line(caught[0].message) if caught else "torch cannot find a GPU"
    remedy = "check nvidia-smi and CUDA_VISIBLE_DEVICES, or install a torch build that supports this driver"
    return Check("gpu", "warn", f"NVIDIA driver {driver}, torch {build}: {why}", remedy)


def _find_driver() -> str:
    """Return the version of the NVIDIA driver, or "" without a driver. The CPU build of torch cannot report it."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            if done.returncode == 0:
                return done.stdout.strip().partition("\n")[0]
    with suppress(OSError):
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").partition("\n")[0]
        found = re.search(r"\d+\.\d+(?:\.\d+)?", first)
        return found[0] if found else "version unknown"
    return ""


def check_extras() -> list[Check]:
    """Check the packages that only some environments or commands need."""
    checks = []
    for extra, (module, needed_by) in EXTRAS.items():
        installed = find_spec(module) is not None
        remedy = "" if installed else f"for {needed_by}: pip install '{DISTRIBUTION}[{extra}]'"
        found = "installed" if installed else "not installed"
        checks.append(Check(extra, "ok" if installed else "missing", found, remedy))
    if find_spec("pygame") is None:
        remedy = "for play and eval --video: pip install 'gymnasium[classic-control]'"
        checks.append(Check("pygame", "missing", "not installed", remedy))
    return checks


def check_terminal() -> Check:
    """Check how well this terminal can show curves and pictures."""
    utf8 = can_unicode(sys.stdout)
    if not sys.stdout.isatty():
        return Check("terminal", "ok", f"stdout is not a terminal: plain output, {'UTF-8' if utf8 else 'ASCII'}")
    columns, lines = shutil.get_terminal_size()
    found = f"{columns} x {lines}, {'UTF-8' if utf8 else 'no UTF-8'}, {STYLES[style_for(sys.stdout)]}"
    if not utf8:
        return Check("terminal", "warn", found, "for smooth curves and pictures: export LANG=C.UTF-8")
    if columns < SMALLEST[0] or lines < SMALLEST[1]:
        return Check("terminal", "warn", found, f"enlarge the window to at least {SMALLEST[0]} x {SMALLEST[1]}")
    return Check("terminal", "ok", found)


def check_runs(folder: Path = Path("runs")) -> Check:
    """Check that run folders can be created and locked in `folder`. Some network file systems do not support locks."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        remedy = "use another working directory, or choose a folder on a local disk with --runs DIR"
        return Check("runs folder", "warn", f"{folder.absolute()}: {error.strerror}", remedy)
    return Check("runs folder", "ok", f"{folder.absolute()} is writable")


def check_names() -> list[Check]:
    problems = shadowed_packages()
    if not problems and (hidden := hidden_folders()):
        found = f"packages of this program have the same names as your folders and shadow them: {', '.join(hidden)}"
        remedy = f"rename them, or use paths such as {hidden[0]}/FILE.py:EnvId as targets"
        return [Check("packages", "warn", found, remedy)]
    if not problems:
        return [Check("packages", "ok", "no name clashes")]
    divided = [problem.rpartition("; ") for problem in problems]
    return [Check("packages", "missing", found, remedy, required=True) for found, _, remedy in divided]


def first_line(error: object) -> str:
    """Return the first line of a message, cut to 200 characters."""
    return clean(str(error).strip().partition("\n")[0])[:200]
