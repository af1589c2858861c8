"""Imports point one way, functions fit a screen, and the engine does not know what it trains."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ("ppo", "batch", "rollout")
HEAVY = {"torch", "numpy", "pydantic", "gymnasium", "transformers", "tensorboard", "textual", "tyro", "rich"}
WORLDS = {"gymnasium", "transformers", "textual", "envs", "tui"}

BANNED = {
    "ppo_unified": HEAVY,
    "ppo_unified.errors": HEAVY,
    "ppo_unified.runs.metrics": HEAVY,
    "ppo_unified.runs.folder": HEAVY,
    "ppo_unified.config.schema": {"torch", "tyro", *WORLDS},
    "ppo_unified.config.presets": {"torch", "tyro", *WORLDS},
    "ppo_unified.cli.flags": {"torch", *WORLDS},
    "ppo_unified.runs.events": {"torch", *WORLDS},
    "ppo_unified.runs.launch": {"torch", *WORLDS},
    "ppo_unified.runs.control": {"torch", *WORLDS},
    "ppo_unified.cli": {"torch", *WORLDS},
    "ppo_unified.engine.ppo, ppo_unified.engine.batch, ppo_unified.engine.rollout, ppo_unified.testing": WORLDS,
    "ppo_unified.training.trainer": WORLDS,
    "ppo_unified.runs.samples, ppo_unified.config.recipes, ppo_unified.terminal.chat": {"torch", *WORLDS},
    "envs.gym.options": {"torch", "transformers", "textual", "tui"},
    "envs.gym.vector": {"transformers", "textual", "tui", "ppo_unified.training.trainer", "ppo_unified.cli"},
    "envs.llm.options, envs.llm.data, envs.llm.tasks": {"torch", "transformers", "gymnasium", "textual", "tui"},
    "tui.app, tui.new_run.picker, tui.new_run.form, tui.runs.run_page, tui.new_run.form_model": {
        "torch",
        "transformers",
        "gymnasium",
        "tyro",
    },
    "envs.llm.adapter": {
        "gymnasium",
        "peft",
        "trl",
        "textual",
        "tui",
        "ppo_unified.training.trainer",
        "ppo_unified.cli",
    },
}


@pytest.mark.parametrize("modules", BANNED)
def test_an_import_pulls_in_nothing_of_another_layer(modules: str) -> None:
    """Seen from a process of its own, where nothing else has imported anything."""
    code = f"import {modules}, sys; print(' '.join(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not BANNED[modules] & set(process.stdout.split())


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_a_function_fits_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"
        for path, tree in sources("ppo_unified", "envs", "tui", "tests", "benchmarks")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert not long


def test_the_engine_fits_a_sitting() -> None:
    lines = {
        name: len((ROOT / "ppo_unified" / "engine" / f"{name}.py").read_text(encoding="utf-8").splitlines())
        for name in ENGINE
    }
    assert sum(lines.values()) < 500, lines


@pytest.mark.parametrize("name", [*ENGINE, "optimizers", "diagnostics"])
def test_the_engine_has_no_word_for_what_it_trains(name: str) -> None:
    """No identifier of a world, and no question after a type but whether observations are a tensor or a mapping."""
    tree = ast.parse((ROOT / "ppo_unified" / "engine" / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute | ast.arg | ast.keyword):
            word = {ast.Name: "id", ast.Attribute: "attr"}.get(type(node), "arg")
            identifier = str(getattr(node, word)).lower()
            assert not any(world in identifier for world in ("gym", "env", "llm", "token", "prompt")), identifier
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            assert ast.unparse(node.args[1]) == "Tensor", ast.unparse(node)


def test_no_module_of_ours_imports_against_the_direction() -> None:
    """ppo_unified never imports envs or tui, envs never the runner or the command line: not even inside a function."""
    forbidden = {"ppo_unified": ("envs", "tui"), "envs": ("tui", "ppo_unified.training.trainer", "ppo_unified.cli")}
    forbidden["tui"] = (
        "envs",
        "torch",
        "transformers",
        "gymnasium",
        "ppo_unified.training.trainer",
        "ppo_unified.engine.ppo",
    )
    for folder, banned in forbidden.items():
        for path, tree in sources(folder):
            for node in ast.walk(tree):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for name in names:
                    against = [b for b in banned if name == b or name.startswith(b + ".")]
                    assert not against, f"{path.relative_to(ROOT)} imports {name}"


PRELOAD = """
import gc, sys
from ppo_unified.cli.imports import preload
before, seen = gc.get_freeze_count(), []
gc.callbacks.append(lambda phase, info: seen.append(phase))
preload(sys.argv[1])
collected, frozen = len(seen), gc.get_freeze_count() - before
preload(sys.argv[1])
again = gc.get_freeze_count() - before - frozen
try:
    preload("no_such_module")
except ModuleNotFoundError:
    pass
print(collected, frozen > 10_000, again, gc.isenabled(), sys.argv[1] in sys.modules)
"""


def test_nothing_is_collected_while_a_module_is_preloaded_and_what_it_made_is_left_alone_later() -> None:
    command = [sys.executable, "-c", PRELOAD, "pydantic.types"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["0", "True", "0", "True", "True"]
