"""Limits of the architecture: import directions, sizes of functions and files, and a domain-independent engine."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "numpy", "pydantic", "gymnasium", "transformers", "tensorboard", "textual", "rich"}
WORLDS = {"gymnasium", "transformers", "textual", "envs", "tui"}

CODE = ("ppo_unified", "envs", "tui")
MAX_FUNCTION_LINES, MAX_CLASS_LINES, MAX_FILE_LINES, MAX_TEST_NAME = 50, 300, 450, 60

BASE = {"errors", "text", "parsing"}  # every package may import these
ALLOWED = {  # other packages that each package may import, as in docs/architecture.md
    "config": set[str](),
    "engine": {"config"},
    "runs": {"config"},
    "terminal": set[str](),
    "training": {"engine", "runs", "config"},
    "testing": {"config", "engine", "training"},
    "inspection": {"config", "runs"},
    "study": {"inspection", "runs"},
    "cli": {"config", "engine", "runs", "training", "terminal", "testing", "inspection", "study"},
    "envs": {"config", "engine"},
    "tui": {"config", "runs", "terminal", "inspection", "study"},
}
ENTRY_POINTS = {"ppo_unified", "ppo_unified.__main__"}  # these may import from every package

LIGHT = ["ppo_unified", "ppo_unified.errors", "ppo_unified.runs.metrics", "ppo_unified.runs.folder"]
LIGHT += ["ppo_unified.config.spec", "ppo_unified.inspection.token_text", "ppo_unified.terminal.chat"]
LIGHT += ["ppo_unified.terminal.sample_table", "ppo_unified.study.pages"]
WITHOUT_TORCH = ["ppo_unified.config.schema", "ppo_unified.config.presets", "ppo_unified.config.recipes"]
WITHOUT_TORCH += [f"ppo_unified.cli.{name}" for name in ("flags", "train", "sweep", "resume", "show", "export")]
WITHOUT_TORCH += ["ppo_unified.inspection.what_if", "ppo_unified.inspection.html_page", "ppo_unified.study.numbers"]
WITHOUT_TORCH += [
    f"ppo_unified.runs.{name}" for name in ("event_reader", "event_writer", "control", "preparation", "samples")
]
ENGINE = [f"ppo_unified.{name}" for name in ("engine.ppo", "engine.batch", "engine.rollout", "testing")]
INTERFACE = ["tui.app", "tui.new_run.picker", "tui.new_run.form", "tui.new_run.form_model", "tui.runs.run_page"]
INTERFACE += ["tui.inspector.screen"]
BANNED = {  # modules that are imported in one process -> modules that they must not import
    ", ".join(LIGHT): HEAVY,
    ", ".join(WITHOUT_TORCH): {"torch", *WORLDS},
    "ppo_unified.cli.main": HEAVY | WORLDS,
    ", ".join([*ENGINE, "ppo_unified.training.session"]): WORLDS,
    "envs.gym.options": {"torch", "transformers", "textual", "tui"},
    "envs.gym.vector": {"transformers", "textual", "tui", "ppo_unified.training.session", "ppo_unified.cli"},
    "envs.llm.options, envs.llm.data, envs.llm.tasks": {"torch", "transformers", "gymnasium", "textual", "tui"},
    "tui.store": {"torch", "gymnasium", "transformers", "textual", "envs"},
    "envs.llm.rewards.functions, envs.llm.rewards.scoring, envs.llm.rewards.score_transforms": {"torch"},
    ", ".join(INTERFACE): {"torch", "transformers", "gymnasium"},
    "envs.llm.adapter": {
        "gymnasium",
        "peft",
        "trl",
        "textual",
        "tui",
        "ppo_unified.training.session",
        "ppo_unified.cli",
    },
}


# Each child process imports its modules without any other imports, except torch if it is not banned.
IMPORT_IN_EACH = """
import json, os, sys
banned = json.loads(sys.argv[1])
for modules in sorted(banned, key=lambda modules: "torch" not in banned[modules]):
    if "torch" not in banned[modules]:
        import torch
    child = os.fork()
    if not child:
        exec(f"import {modules}")
        print(json.dumps([modules, sorted(set(banned[modules]) & set(sys.modules))]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Return the banned modules that each entry of BANNED imports."""
    banned = json.dumps({modules: sorted(names) for modules, names in BANNED.items()})
    command = [sys.executable, "-c", IMPORT_IN_EACH, banned]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = dict(map(json.loads, process.stdout.splitlines()))
    assert found.keys() == BANNED.keys(), process.stderr
    return found


@pytest.mark.parametrize("modules", BANNED, ids=lambda modules: modules.partition(",")[0])
def test_module_imports_nothing_of_other_layers(modules: str, imported: dict[str, list[str]]) -> None:
    assert not imported[modules]


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, parse(path)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nested statements, exception handlers and cases. `ast.walk` also visits expressions, and is slow."""
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            yield child
            yield from statements(child)


def test_functions_classes_and_files_are_small() -> None:
    """Only test files may have more lines than the limit."""
    found = []
    for path, tree in sources("ppo_unified", "envs", "tui", "tests", "benchmarks", "docs"):
        place, is_test = path.relative_to(ROOT), path.relative_to(ROOT).parts[0] == "tests"
        for node in statements(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            lines = (node.end_lineno or 0) - node.lineno + 1
            limit = MAX_CLASS_LINES if isinstance(node, ast.ClassDef) else MAX_FUNCTION_LINES
            if lines > limit:
                found.append(f"{place}: {node.name} has {lines} lines, more than {limit}")
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if not is_test and lines > MAX_FILE_LINES:
            found.append(f"{place} has {lines} lines, more than {MAX_FILE_LINES}")
    assert not found, "\n".join(found)


def test_test_names_are_short() -> None:
    definition = re.compile(r"^ *(?:async )?def (test_\w+)\(", re.M)
    names = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in definition.findall(path.read_text(encoding="utf-8"))
        if len(name) > MAX_TEST_NAME
    ]
    assert not names, "\n".join(names)


def test_engine_package_has_fewer_than_850_lines() -> None:
    """The faster form of the loss and of Adam for small models, which halves the time of an update, takes 150 lines."""
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path, _ in sources("ppo_unified/engine")}
    assert sum(lines.values()) < 850, lines


@pytest.mark.parametrize("name", ["ppo", "batch", "rollout", "optimizers", "diagnostics", "fused"])
def test_engine_names_no_domain(name: str) -> None:
    """The engine has no identifier of a domain and checks no type, except that observations may be a Tensor."""
    tree = ast.parse((ROOT / "ppo_unified" / "engine" / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute | ast.arg | ast.keyword):
            word = {ast.Name: "id", ast.Attribute: "attr"}.get(type(node), "arg")
            identifier = str(getattr(node, word)).lower()
            assert not any(world in identifier for world in ("gym", "env", "llm", "token", "prompt")), identifier
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            assert ast.unparse(node.args[1]) == "Tensor", ast.unparse(node)


def module_name(path: Path) -> str:
    """Return the module name of a file, such as `ppo_unified.runs.folder`; for `__init__.py` that of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> dict[str, set[str]]:
    """Return the project modules that each module imports, including imports in functions and for types."""
    trees = {module_name(path): tree for path, tree in sources(*CODE)}
    found: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in statements(tree):
            targets = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in trees else str(node.module) for target in names]
            found[name] |= {target for target in targets if target in trees and target != name}
    return found


def package_of(module: str) -> str:
    """Return the package of a module in the table of allowed imports."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ppo_unified" and len(parts) > 1 else parts[0]


def test_imports_follow_the_table() -> None:
    against = [
        f"{module} imports {target}"
        for module, targets in imports().items()
        if module not in ENTRY_POINTS
        for target in sorted(targets)
        if not (package_of(module) == package_of(target) or target == "ppo_unified" or package_of(target) in BASE)
        if package_of(target) not in ALLOWED.get(package_of(module), set())
    ]
    assert not against, "\n".join(against)


def test_there_are_no_import_cycles() -> None:
    graph = imports()

    def find_reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph[name]
        return seen

    cycles = sorted(name for name in graph if name in find_reachable(name))
    assert not cycles, cycles


def test_init_files_are_empty() -> None:
    filled = {module_name(path) for path, tree in sources(*CODE) if path.name == "__init__.py" and len(tree.body) > 1}
    assert filled == {"ppo_unified"}


PRELOAD = """
import gc, sys
from ppo_unified.cli.common import preload
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


def test_preload_pauses_gc_and_freezes_the_module() -> None:
    command = [sys.executable, "-c", PRELOAD, "pydantic.types"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["0", "True", "0", "True", "True"]
