"""What the documentation says is true: tables, tests that it names, files that it lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ppo_unified.config.registry import config_model
from ppo_unified.config.schema import known_options
from ppo_unified.runs.metrics import METRICS
from ppo_unified.training import health
from tui.actions import PLACES, actions_of, key_name

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_metrics_table_matches_declaration() -> None:
    page = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    for tag, metric in METRICS.items():
        assert f"| `{tag}` | {metric.unit} | {metric.meaning} | {metric.healthy} |" in page


def test_health_table_matches_declaration() -> None:
    page = (ROOT / "docs" / "health.md").read_text(encoding="utf-8")
    assert "\n".join(health.checks_table()) in page
    options = known_options(config_model("gym")) | known_options(config_model("llm"))
    for check in health.CHECKS:
        assert set(check.reads) <= set(METRICS)
        for name in re.findall(r"`(\w+\.\w+)`", check.advice):
            assert name in options, f"{check.name}: {name}"


def test_key_table_matches_declaration() -> None:
    page = (ROOT / "docs" / "tui.md").read_text(encoding="utf-8")
    rows = []
    for place, title in PLACES.items():
        for action in actions_of(place):
            keys = " ".join(f"`{key_name(key)}`" for key in action.keys.split(","))
            told = action.help.replace("|", r"\|")
            rows.append(f"| {title} | {keys} | {action.label} | {told} |")
    table = page.split("|---|---|---|---|\n")[1].split("\n\n")[0]
    assert table.split("\n") == rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_to_existing_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_named_in_docs_exist(page: Path) -> None:
    options = known_options(config_model("gym")) | known_options(config_model("llm"))
    sections = {name.partition(".")[0] for name in options if "." in name}
    for section, key in re.findall(r"`(\w+)\.(\w+)(?: = [^`]*)?`", page.read_text(encoding="utf-8")):
        module = ROOT / "ppo_unified" / "engine" / f"{section}.py"  # `ppo.gae` is a function, `ppo.clip` an option
        defined = module.exists() and re.search(rf"^(def|class) {key}\b", module.read_text(encoding="utf-8"), re.M)
        if section in sections and key not in ("txt", "pt", "safetensors") and not defined:
            assert f"{section}.{key}" in options, f"{page.name}: {section}.{key}"


@pytest.mark.parametrize(("page", "count"), [("details.md", 37), ("details-rlhf.md", 32)])
def test_details_are_listed_with_existing_tests_and_places(page: str, count: int) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.M)] == list(range(1, count + 1))
    for path in re.findall(r"[\w/]*test_\w+\.py", text):
        assert (ROOT / "tests" / path).is_file(), path
    tests = re.findall(r"([\w/]*test_\w+\.py): `(test_\w+)`", text)
    assert len(tests) == len(re.findall(r"`test_\w+`", text)), "name the file of each test"
    places = re.findall(r"`((?:envs|ppo_unified)/[\w/]+\.py): (\w+)", text)
    for path, name in [*((f"tests/{path}", name) for path, name in tests), *places]:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def |class |){name}\b", source, re.M), f"{path}: {name}"


def test_annotated_tree_names_existing_files() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("```\nppo_unified/ ")[1].split("```")[0]
    paths = {path.relative_to(ROOT) for folder in ("ppo_unified", "envs", "tui") for path in (ROOT / folder).rglob("*")}
    for name in re.findall(r"[\w/]+(?:\.py\b|/(?=\s))", tree):
        assert (ROOT / name).is_dir() or any(path.match(name) for path in paths), name
