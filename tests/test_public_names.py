"""Public names of `ppo_unified` are imported when they are first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ppo_unified

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ppo_unified.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(ppo_unified, name).__name__ == name
    assert name in dir(ppo_unified)


def test_type_checkers_see_the_same_public_names() -> None:
    tree = ast.parse(Path(ppo_unified.__file__).read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == {name: f"ppo_unified.{module}" for name, module in ppo_unified._MODULES.items()}
    assert sorted(declared) == sorted(ppo_unified.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ppo_unified' has no attribute 'trian'"):
        ppo_unified.trian  # noqa: B018


def test_importing_the_package_imports_no_submodule() -> None:
    code = "import ppo_unified, sys; dir(ppo_unified); print([name for name in sys.modules if 'ppo_unified.' in name])"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
