"""Environments and adapters from other packages can be trained without changes to this project."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from ppo_unified.cli.main import main
from ppo_unified.config.presets import list_presets, load_preset, load_target, preset_files
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.runs.query import _option_kinds, parse
from ppo_unified.training.session import load_adapter, run

WORLD = """
    import gymnasium as gym
    from tests.gym_envs import Locks

    gym.register("Vault-v0", Locks)
"""
OPTIONS = """
    from typing import Literal
    from pydantic import Field
    from ppo_unified import AdapterSpec, RunConfig
    from ppo_unified.config.schema import Section
    from ppo_unified.errors import UsageError

    class Arms(Section):
        rows: int = Field(16, ge=1, description="rows collected")
        row_len: int = Field(4, ge=1, description="columns of a row")

    class ArmsConfig(RunConfig):
        kind: Literal["arms"] = "arms"
        arms: Arms = Arms()

    def check(config):
        if 8 % config.arms.row_len:
            raise UsageError(f"arms.row_len = {config.arms.row_len}: must divide 8")

    def from_target(word):
        return {"total_iterations": 3} if word == "arms!" else None

    SPEC = AdapterSpec(
        config="their_options:ArmsConfig",
        build="their_adapter:build",
        check="their_options:check",
        target="their_options:from_target",
        presets="their_presets",
    )
"""
ADAPTER = """
    from ppo_unified.testing import BanditAdapter

    def build(config, device):
        return BanditAdapter(config.arms.rows, 8, config.arms.row_len, config.seed)
"""
PRESET = """
    kind = "arms"
    total_steps = 4000

    [about]
    title = "Two arms"
    score = "1"
    time = "1 second"

    [arms]
    row_len = 8

    [ppo]
    epochs = 4
    minibatches = 2

    [optim]
    lr = 0.1

    [eval]
    every_steps = 1000
    episodes = 50
"""
MODULES = (
    "my_world",
    "broken_config",
    "broken_presets",
    "broken_target",
    "their_options",
    "their_adapter",
    "their_presets",
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Add a temporary folder to sys.path, in place of site-packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in MODULES:
        sys.modules.pop(name, None)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
    importlib.invalidate_caches()


def publish(site: Path, entry_point: str) -> None:
    """Write the metadata that `pip install` writes for a package with an adapter entry point."""
    info = site / "their_package-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    write(info / "entry_points.txt", f"[ppo_unified.adapters]\n{entry_point}\n")


@pytest.fixture
def arms(site: Path) -> Path:
    for name, text in {"their_options": OPTIONS, "their_adapter": ADAPTER}.items():
        write(site / f"{name}.py", text)
    write(site / "their_presets" / "__init__.py", "")
    write(site / "their_presets" / "two-arms.toml", PRESET)
    publish(site, "arms = their_options:SPEC")
    return site


@pytest.mark.exhaustive
def test_dict_observation_multi_action_masked_env_trains(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module `my_world` is in the current directory; a random policy scores 2, the optimum is 4."""
    write(tmp_path / "my_world.py", WORLD)
    monkeypatch.setattr(sys, "path", [x for x in sys.path if x])
    monkeypatch.chdir(tmp_path)
    config = load_preset(
        "my_world:Vault-v0", total_steps=6000, eval={"episodes": 50}, gym={"num_steps": 32}, optim={"lr": 0.02}
    )
    result = run(config, runs=tmp_path / "runs")
    assert result.state == "finished"
    assert result.score is not None
    assert result.score > 3.6
    adapter, _ = load_adapter(Run(result.path), config, "best")
    assert sum(adapter.score(50, 99, True)) / 50 > 3.5
    adapter.close()


def test_entry_point_adapter_trains_from_toml(tmp_path: Path, arms: Path) -> None:
    write(tmp_path / "mine.toml", PRESET.replace("row_len = 8", "row_len = 2\nrows = 20"))
    config = load_target(str(tmp_path / "mine.toml"))
    assert (config.preset, config.kind) == ("mine", "arms")
    result = run(config, runs=tmp_path / "runs")
    assert (result.state, result.score) == ("finished", 1.0)
    status = Run(result.path).read_status()
    assert (status.kind, status.name) == ("arms", "mine-s1")
    again = load_target(str(result.path / "config.toml"))
    assert again == config


def test_entry_point_presets_targets_and_check_are_used(tmp_path: Path, arms: Path) -> None:
    assert "two-arms" in preset_files()
    assert load_preset("two-arms", seed=5).seed == 5
    assert load_target("arms!").total_iterations == 3
    with pytest.raises(UsageError, match=r"arms\.row_len = 3: must divide 8"):
        run(load_preset("two-arms", arms={"row_len": 3}), runs=tmp_path / "runs")
    with pytest.raises(UsageError, match=r"no option 'rwo_len'; did you mean 'row_len'"):
        load_preset("two-arms", arms={"rwo_len": 3})
    assert not (tmp_path / "runs").exists()


BROKEN = {  # what breaks -> entry point, replaced text of the options module, message
    "attribute": ("arms = their_options:MISSING", "", "cannot load 'their_options:MISSING' (AttributeError: "),
    "module": ("arms = not_there:SPEC", "", "cannot load 'not_there:SPEC' (ModuleNotFoundError: No module named"),
    "type": ("arms = their_options:Arms", "", "(TypeError: expected an AdapterSpec, got ModelMetaclass)"),
    "exit": (
        "arms = their_options:SPEC",
        "raise SystemExit('bye')",
        "cannot load 'their_options:SPEC' (SystemExit: bye)",
    ),
    "config": ("arms = broken_config:SPEC", "", "cannot import 'not_there:Config' (ModuleNotFoundError: "),
    "presets": ("arms = broken_presets:SPEC", "", "cannot find its presets in the package 'not_there' (Module"),
    "target": ("arms = broken_target:SPEC", "", "cannot decide whether 'nope' is a target (ZeroDivisionError: "),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_adapter_does_not_affect_built_in_targets(
    arms: Path, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All commands that consult every adapter work, and each problem is one line that names the package."""
    entry_point, added, message = BROKEN[broken]
    spec = "from ppo_unified import AdapterSpec\nSPEC = AdapterSpec("
    write(arms / "broken_config.py", f"{spec}'not_there:Config', 'a:b')")
    write(arms / "broken_presets.py", f"{spec}'their_options:ArmsConfig', 'a:b', presets='not_there')")
    write(
        arms / "broken_target.py",
        f"{spec}'their_options:ArmsConfig', 'a:b', target='broken_target:f')\nf = lambda _: 1 / 0",
    )
    if added:
        write(arms / "their_options.py", added)
    publish(arms, entry_point)
    _option_kinds.cache_clear()
    assert load_target("cartpole").kind == load_target("CartPole-v1").kind == "gym"
    with pytest.raises(UsageError, match="no preset, file or environment is named 'nope'"):
        load_target("nope")
    assert parse("optim.lr>0").groups
    for command in (["envs"], ["envs", "--json"], ["train", "--seed", "1", "cartpole", "--zzz"], ["recipes"]):
        assert main(command) in (0, 2), command
        assert main(command) in (0, 2), command
    printed = capsys.readouterr()
    assert "unknown option --zzz" in printed.err
    assert "Traceback" not in printed.err
    (warning,) = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: adapter 'arms' of the package 'their-package': cannot ")
    assert message in warning
    assert warning.endswith("; update or uninstall the package")
    _option_kinds.cache_clear()


def test_run_of_a_broken_adapter_reports_the_cause(tmp_path: Path, arms: Path) -> None:
    publish(arms, "arms = not_there:SPEC")
    write(tmp_path / "mine.toml", PRESET)
    with pytest.raises(
        UsageError, match=r"adapter 'arms' of the package 'their-package': cannot load 'not_there:SPEC'"
    ):
        load_target(str(tmp_path / "mine.toml"))


def test_invalid_preset_of_a_package_is_skipped(arms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(arms / "their_presets" / "two-arms.toml", "kind = ")
    write(arms / "their_presets" / "three-arms.toml", 'kind = "arms"\nabout = 3')
    assert {"cartpole", "three-arms"} <= {about.name for about in list_presets()}
    assert "two-arms.toml: invalid TOML" in capsys.readouterr().err


def test_unknown_kind_suggests_the_nearest(tmp_path: Path, arms: Path) -> None:
    write(tmp_path / "mine.toml", 'kind = "arm"')
    with pytest.raises(UsageError, match=r"unknown adapter 'arm'; did you mean 'arms'\? \(installed: gym, llm, arms\)"):
        load_target(str(tmp_path / "mine.toml"))
