"""Check that `envs` and `tui` are this project's packages, without importing them or torch.

Other packages have these names too, and Python imports the first one on sys.path. Without this check, a name clash
causes errors in unrelated code.
"""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "ppo-unified"
REQUIRED, OPTIONAL = ("envs",), ("tui",)  # `tui` is checked only if this copy of the project contains it


def shadowed_packages(project: Path | None = None) -> list[str]:
    """Describe each package that `import` finds elsewhere or whose files another distribution may have overwritten.

    Each text contains a problem and a remedy, separated by "; ". `project` is the folder that contains `ppo_unified`.
    """
    home = (project or Path(__file__).resolve().parents[2]).resolve()
    names = REQUIRED + tuple(name for name in OPTIONAL if (home / name / "__init__.py").is_file())
    owners = packages_distributions()
    problems = (
        _problem(name, home, [owner for owner in owners.get(name, []) if owner != DISTRIBUTION]) for name in names
    )
    return [problem for problem in problems if problem]


def hidden_folders() -> list[str]:
    """Return the folders in the current directory that contain Python files and that a package of this project shadows.

    A module in such a folder cannot be imported.
    """
    folders = [Path(name) for name in REQUIRED + OPTIONAL]
    return [f.name for f in folders if any(f.glob("*.py")) and f.resolve() != _locate(f.name)]


def _problem(name: str, home: Path, others: list[str]) -> str:
    """Describe the problem with one package, or return "" if it has no problem."""
    found, ours = _locate(name), home / name
    remedy = f"pip uninstall {others[0]}, or install ppo-unified into a separate virtual environment" if others else ""
    if found is None:
        return f"package {name!r}: not found, expected it in {ours}; reinstall the project: pip install -e ."
    if found != ours:
        elsewhere = f"run `ppo-unified` instead of `python -m ppo_unified`, or remove {found.parent} from PYTHONPATH"
        return f"package {name!r}: import finds {found} instead of {ours}; {remedy or elsewhere}"
    if others:
        return f"package {name!r}: {', '.join(others)} also installs into {ours} and may have replaced files; {remedy}"
    return ""


def _locate(name: str) -> Path | None:
    """Return the folder from which Python imports the package, or None if it is not found."""
    module = sys.modules.get(name)
    spec = module.__spec__ if module is not None else find_spec(name)
    if spec is None:
        return None
    if spec.origin is None:  # a folder without __init__.py, or a namespace of several
        return Path(next(iter(spec.submodule_search_locations or [name]))).resolve()
    origin = Path(spec.origin).resolve()
    return origin.parent if origin.name == "__init__.py" else origin
