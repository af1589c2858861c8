"""Whether `envs` and `tui` are this project's packages. No torch, and neither package is imported.

Others of these names exist, and the first on sys.path wins: without this check the error shows up far from its cause.
"""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "ppo-unified"
REQUIRED, OPTIONAL = ("envs",), ("tui",)  # the latter only where this copy of the project has it


def shadowed_packages(project: Path | None = None) -> list[str]:
    """A sentence and a remedy, divided by "; ", for each package that `import` finds elsewhere, or whose files another
    distribution may have overwritten. `project` is the folder that holds `ppo_unified`."""
    home = (project or Path(__file__).resolve().parents[2]).resolve()
    names = REQUIRED + tuple(name for name in OPTIONAL if (home / name / "__init__.py").is_file())
    owners = packages_distributions()
    problems = (
        _problem(name, home, [owner for owner in owners.get(name, []) if owner != DISTRIBUTION]) for name in names
    )
    return [problem for problem in problems if problem]


def _problem(name: str, home: Path, others: list[str]) -> str:
    """What is wrong with one package; "" if nothing is."""
    found, ours = _locate(name), home / name
    remedy = (
        f"pip uninstall {others[0]}, or install ppo-unified into a virtual environment of its own" if others else ""
    )
    if found is None:
        return f"package {name!r}: not found, not even {ours}; install the project again: pip install -e ."
    if found != ours:
        elsewhere = f"start `ppo-unified` (not `python -m`) from another folder, or take {found.parent} off PYTHONPATH"
        return f"package {name!r}: import finds {found} instead of {ours}; {remedy or elsewhere}"
    if others:
        return f"package {name!r}: {', '.join(others)} installs into {ours} too and may have replaced files; {remedy}"
    return ""


def _locate(name: str) -> Path | None:
    """The folder that `import name` takes, or has taken."""
    module = sys.modules.get(name)
    spec = module.__spec__ if module is not None else find_spec(name)
    if spec is None:
        return None
    if spec.origin is None:  # a folder without __init__.py, or a namespace of several
        return Path(next(iter(spec.submodule_search_locations or [name]))).resolve()
    origin = Path(spec.origin).resolve()
    return origin.parent if origin.name == "__init__.py" else origin
