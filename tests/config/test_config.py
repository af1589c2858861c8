"""The schema: bounds, combinations, files, flags, presets."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import ClassVar

import pytest

from envs.gym.options import GymConfig
from ppo_unified import load_preset
from ppo_unified.cli.flags import HIDDEN, parse_flags
from ppo_unified.config.presets import from_file, from_table, list_presets, load_target, preset_files
from ppo_unified.config.schema import known_options, overlay, read_toml, validate
from ppo_unified.errors import UsageError
from ppo_unified.runs.preparation import prepare


def flags(*arguments: str, config: GymConfig | None = None) -> GymConfig:
    return parse_flags(config or GymConfig(), arguments, "ppo-unified train x", "")


def test_defaults_are_those_of_the_literature() -> None:
    config = GymConfig()
    assert (config.optim.eps, config.optim.max_grad_norm, config.optim.anneal) == (1e-5, 0.5, True)
    assert (config.ppo.clip, config.ppo.gamma, config.ppo.lam, config.ppo.value_clip) == (0.2, 0.99, 0.95, 0.0)
    assert not config.gym.normalize_obs
    assert not config.gym.normalize_reward


@pytest.mark.parametrize("preset", sorted(preset_files()))
def test_a_preset_written_as_toml_reads_back_the_same(preset: str, tmp_path: Path) -> None:
    config = load_target(preset)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert from_file(path) == config


def test_every_preset_says_what_to_expect() -> None:
    for about in list_presets():
        assert about.title
        assert about.score
        assert about.time, about.name
    assert {about.name for about in list_presets()} >= {"cartpole", "lunarlander-continuous", "taxi"}


def test_flags_lie_over_the_preset() -> None:
    config = load_target("cartpole")
    assert isinstance(config, GymConfig)
    changed = flags("--ppo.clip", "0.1", "--policy.hidden", "32", "16", "--gym.normalize-obs", config=config)
    assert (changed.ppo.clip, changed.policy.hidden, changed.gym.normalize_obs) == (0.1, [32, 16], True)
    assert changed.ppo.lam == config.ppo.lam == 0.9
    assert flags("--gym.no-normalize-obs", config=changed).gym.normalize_obs is False
    assert flags("--gym.env-kwargs", '{"continuous": true}').gym.env_kwargs == {"continuous": True}
    assert flags("--gym.wrappers", "A", "m:B").gym.wrappers == ["A", "m:B"]


def test_every_option_has_a_flag_and_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        flags("--help")
    shown = capsys.readouterr().out
    for name, section in known_options(GymConfig).items():
        field = section.model_fields[name.rpartition(".")[2]]
        assert field.description, name
        assert name in HIDDEN or f"--{name.replace('_', '-')}" in shown, name


MISTAKES = {
    ("--ppo.clip-range", "0.1"): r"no option --ppo.clip-range; did you mean --ppo.clip\?",
    ("--lr", "0.1"): r"no option --lr; did you mean --optim.lr\?",
    ("--optim.lr", "nan"): r"optim.lr = nan: should be a finite number",
    ("--optim.lr", "-1"): r"optim.lr = -1.0: should be greater than 0",
    ("--ppo.epochs", "2.5"): r"^command line: --ppo.epochs '2.5': should be a whole number, in digits$",
    ("--total-steps", "1e6"): r"^command line: --total-steps '1e6': should be a whole number, in digits$",
    ("--optim.lr", "fast"): r"^command line: --optim.lr 'fast': should be a number$",
    ("--ppo.objective", "trpo"): r"trpo.*clip",
    ("--gym.env-kwargs", "{"): r"env_kwargs = '\{' is not JSON",
    ("stray",): r"unexpected argument 'stray'",
    ("--ppo.objective", "ratio", "--ppo.clip", "0.1"): r"ppo.clip = 0.1 has no effect with ppo.objective = 'ratio'",
    ("--ppo.penalty-target", "0.1"): r"ppo.penalty_target = 0.1 has no effect with ppo.objective = 'clip'",
    ("--optim.no-joint", "--ppo.value-coef", "1"): r"ppo.value_coef = 1.0 has no effect with optim.joint = false",
    ("--optim.critic-lr", "0.1"): r"optim.critic_lr = 0.1 has no effect with optim.joint = true",
    ("--ppo.loss-mean", "sequence"): r"ppo.loss_mean = 'sequence' has no effect with kind = 'gym'",
    ("--stop-when-solved",): r"stop_when_solved = True has no effect with no eval.threshold",
    ("--total-steps", "0"): r"would never end",
    ("--ppo.dual-clip", "0.5"): r"ppo.dual_clip = 0.5: must be above 1",
    ("--optim.betas", "0.9", "1.0"): r"optim.betas",
    ("--ppo.minibatches", "9999"): r"more than gym.num_envs x gym.num_steps = 1024",
    ("--policy.shared", "--optim.no-joint"): r"policy.shared = true needs optim.joint = true",
    ("--policy.hidden", "0"): r"every width must be at least 1",
    ("--ppo.advantage", "td", "--ppo.value-target", "monte-carlo", "--ppo.lam", "0.5"): r"ppo.lam = 0.5 has no effect",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_gets_one_line_that_names_it(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=MISTAKES[arguments]) as caught:
        flags(*arguments)
    assert "\n" not in str(caught.value)


def test_a_file_with_mistakes_names_file_table_and_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('kind = "gym"\n[ppo]\nclip_range = 0.2\n[optim]\nlr = 0\n', encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        from_file(path)
    first, second = str(caught.value).splitlines()
    assert first == f"{path}: [ppo] has no option 'clip_range'; did you mean 'clip'?"
    assert second.startswith(f"{path}: optim.lr = 0: should be greater than 0")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff\xfe\x00\x01", "is not a text file"), (b"[ppo\nx", "is not valid TOML"), (b"seed = 1", "says no adapter")],
)
def test_what_is_no_configuration_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        from_file(path)
    path.write_text('kind = "gym"\nppo = 3', encoding="utf-8")
    with pytest.raises(UsageError, match=r"\[ppo\] is a table of options, not 3"):
        from_file(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_toml(tmp_path / "absent.toml")


def test_a_file_cannot_name_its_runs_out_of_the_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('kind = "gym"\npreset = "../../out"', encoding="utf-8")
    config = from_file(tmp_path / "x.toml")
    with pytest.raises(UsageError, match="names a folder inside the runs folder"):
        prepare(config, tmp_path / "runs")
    assert load_target(str(tmp_path / "x.toml")).preset == "out"


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'cartpole'"):
        load_target("cartpol")
    with pytest.raises(UsageError, match=r"no adapter 'gim'.*did you mean 'gym'"):
        from_table({"kind": "gim"}, "x")


def test_python_gets_the_same_checks() -> None:
    assert load_preset("cartpole", seed=3, ppo={"clip": 0.1}).seed == 3
    with pytest.raises(UsageError, match=r"load_preset\('cartpole'\): ppo.clip = 7: should be less than 1"):
        load_preset("cartpole", ppo={"clip": 7})


def test_an_overlay_changes_what_it_names_and_nothing_else() -> None:
    base = {"a": 1, "t": {"x": 1, "y": 2}}
    assert overlay(base, {"t": {"y": 3}, "b": 4}) == {"a": 1, "b": 4, "t": {"x": 1, "y": 3}}
    assert base == {"a": 1, "t": {"x": 1, "y": 2}}


def test_toml_holds_every_option_but_those_that_are_not_set() -> None:
    table = tomllib.loads(GymConfig().to_toml())
    assert "threshold" not in table["eval"]
    assert validate(GymConfig, table, "x") == GymConfig()


class Refusing(GymConfig):
    refused: ClassVar[dict[str, str]] = {"gym.frame_skip": "the rewards of skipped frames would be lost"}


@pytest.mark.parametrize("flag", ["--gym.frame-skip", "--gym.frame_skip=4", "--frame-skip"])
def test_an_option_that_is_refused_says_why_as_flag_and_as_key(flag: str) -> None:
    reason = "is refused: the rewards of skipped frames would be lost"
    with pytest.raises(UsageError) as caught:
        parse_flags(Refusing(), [flag, "4"], "ppo-unified train x", "")
    assert str(caught.value) in (f"{flag.partition('=')[0]} {reason}", f"--gym.frame-skip {reason}")
    with pytest.raises(UsageError, match=rf"^x\.toml: gym\.frame_skip {reason}$"):
        validate(Refusing, {"gym": {"frame_skip": 4}}, "x.toml")
    assert Refusing().ratio_tolerance == GymConfig().ratio_tolerance == 1e-2
