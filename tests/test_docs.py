"""Tables, test names and file names in the documentation match the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import ppo_unified
from ppo_unified.config.registry import config_model
from ppo_unified.config.schema import known_options
from ppo_unified.runs.metrics import METRICS
from ppo_unified.training import health
from tui.action import PLACES
from tui.actions import actions_of, key_name

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "docs/study/**/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
]


def test_readme_stays_within_its_limits() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 900


def test_api_page_describes_every_public_name() -> None:
    described = re.findall(r"^::: [\w.]+\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert set(ppo_unified.__all__) <= set(described)


def broken_table_lines(text: str) -> list[str]:
    """Return the lines that look like table rows but are rendered as text, or with too few or too many cells."""
    lines, broken, rendered = text.splitlines(), [], set()
    columns, inside = 0, ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        inside = token.type.partition("_")[0] if token.type in ("thead_open", "tbody_open") else inside
        if token.type in ("fence", "code_block"):
            assert token.map
            rendered |= set(range(*token.map))
        if token.type == "tr_open":
            assert token.map
            cells = len(re.findall(r"(?<!\\)\|", lines[token.map[0]].strip())) - 1
            columns = cells if inside == "thead" else columns
            broken += [lines[token.map[0]]] if cells != columns else []
            rendered |= {token.map[0], token.map[0] + 1} if inside == "thead" else {token.map[0]}
    return broken + [line for i, line in enumerate(lines) if line.startswith("|") and i not in rendered]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_rendered_completely(page: Path) -> None:
    assert broken_table_lines(page.read_text(encoding="utf-8")) == []


def test_unescaped_pipe_breaks_a_table() -> None:
    head = "| a | b |\n|---|---|\n"
    assert broken_table_lines(head + r"| `x\|y` | 1 |") == []
    assert broken_table_lines(head + "| `x|y` | 1 |") == ["| `x|y` | 1 |"]
    assert broken_table_lines("| a | b |\n|---|\n") == ["| a | b |", "|---|"]


def escape(text: str) -> str:
    """Return a text as a table cell contains it."""
    return text.replace("|", r"\|")


def test_metrics_table_matches_declaration() -> None:
    page = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    for tag, metric in METRICS.items():
        row = f"| `{tag}` | {metric.unit} | {escape(metric.meaning)} | {escape(metric.healthy)} |"
        assert row in page


def checks_table() -> list[str]:
    """Return the lines of the table in docs/health.md."""
    lines = [
        "| check | metrics | warning if | meaning | advice | reason for the limit |",
        "|---|---|---|---|---|---|",
    ]
    for check in health.CHECKS:
        reads = " ".join(f"`{tag}`" for tag in check.reads)
        rule = f"{check.rule} is {'above' if check.is_high else 'below'} {check.limit:g}. {check.scope}".rstrip()
        name = f"**{check.name}**" if check.severe else check.name
        lines.append(f"| {name} | {reads} | {rule} | {check.meaning} | {check.advice} | {check.source} |")
    return lines


def test_health_table_matches_declaration() -> None:
    page = (ROOT / "docs" / "health.md").read_text(encoding="utf-8")
    assert "\n".join(checks_table()) in page
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
            rows.append(f"| {title} | {keys} | {action.label} | {escape(action.help)} |")
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
