"""The schema of options: bounds, invalid combinations, TOML files, flags and presets."""

from __future__ import annotations

import math
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, field_validator, model_validator

from envs.gym.options import GymConfig
from envs.gym.wrappers import parse_wrapper
from ppo_unified import load_preset
from ppo_unified.cli.flags import configure, read_flags
from ppo_unified.config import suggestions
from ppo_unified.config.presets import (
    from_file,
    from_table,
    list_presets,
    load_target,
    preset_differences,
    preset_files,
)
from ppo_unified.config.registry import config_model, config_models
from ppo_unified.config.schema import (
    RECORDS,
    RunConfig,
    Section,
    known_options,
    overlay,
    read_toml,
    typed_options,
    validate,
)
from ppo_unified.config.values import format_flag, format_value, read_value
from ppo_unified.errors import UsageError
from ppo_unified.runs.preparation import prepare


def flags(*arguments: str, config: GymConfig | None = None) -> GymConfig:
    config = config or GymConfig()
    return configure(config, read_flags(config, arguments, "ppo-unified train x", ""))


def test_defaults_match_the_literature() -> None:
    config = GymConfig()
    assert (config.optim.eps, config.optim.max_grad_norm, config.optim.anneal) == (1e-5, 0.5, True)
    assert (config.ppo.clip, config.ppo.gamma, config.ppo.lam, config.ppo.value_clip) == (0.2, 0.99, 0.95, 0.0)
    assert not config.gym.normalize_obs
    assert not config.gym.normalize_reward


@pytest.mark.parametrize("preset", sorted(preset_files()))
def test_preset_round_trips_through_toml(preset: str, tmp_path: Path) -> None:
    config = load_target(preset)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert from_file(path) == config


def test_every_preset_states_score_and_time() -> None:
    for about in list_presets():
        assert about.title
        assert about.score
        assert about.time, about.name
    assert {about.name for about in list_presets()} >= {"cartpole", "lunarlander-continuous", "taxi"}


def test_each_rung_of_the_ladder_changes_one_option() -> None:
    ladder = [about.name for about in list_presets() if about.group]
    assert ladder == [about.name for about in list_presets()][-9:]
    options = [load_target(name).flatten() for name in ladder]
    changes = [{k: after[k] for k in after if after[k] != before[k]} for before, after in pairwise(options)]
    assert [change.pop("preset") for change in changes] == ladder[1:]
    assert changes == [
        {"ppo.advantage": "reward-to-go"},
        {"ppo.advantage": "gae"},
        {"ppo.lam": 0.0},
        {"ppo.lam": 0.95},
        {"ppo.epochs": 10},
        {"ppo.objective": "ratio"},
        {"ppo.objective": "penalty"},
        {"ppo.objective": "clip"},
    ]
    assert options[-1]["ppo.normalize_advantages"] == "none"  # subtracting the mean would be a baseline


def test_flags_override_the_preset() -> None:
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
        assert name in RECORDS or f"--{name.replace('_', '-')}" in shown, name


VALUES: dict[tuple[str, ...], tuple[str, object]] = {
    ("--total-steps", "1e6"): ("total_steps", 1_000_000),
    ("--total-steps", "600_000"): ("total_steps", 600_000),
    ("--total_steps=2.5e3",): ("total_steps", 2500),
    ("--ppo.clip_high", "0.3"): ("ppo.clip_high", 0.3),
    ("--policy.hidden", "64", "32"): ("policy.hidden", [64, 32]),
    ("--policy.hidden", "64,32"): ("policy.hidden", [64, 32]),
    ("--policy.hidden", "64, 32"): ("policy.hidden", [64, 32]),
    ("--policy.hidden", "[64, 32]"): ("policy.hidden", [64, 32]),
    ("--policy.hidden", "[64,", "32]"): ("policy.hidden", [64, 32]),
    ("--policy.hidden", "[\n    64,\n    32,\n]"): ("policy.hidden", [64, 32]),
    ("--policy.hidden=64 32",): ("policy.hidden", [64, 32]),
    ("--policy.hidden",): ("policy.hidden", []),
    ("--policy.hidden", "[]"): ("policy.hidden", []),
    ("--gym.wrappers", "['A', \"m:B\"]"): ("gym.wrappers", ["A", "m:B"]),
    ("--gym.wrappers", "A(x=1)", "m:B"): ("gym.wrappers", ["A(x=1)", "m:B"]),
    ("--gym.wrappers", "A(x=[1, 'b c'], y=-1.0) B"): ("gym.wrappers", ["A(x=[1, 'b c'], y=-1.0)", "B"]),
    ("--gym.wrappers", "A(x=')'),B"): ("gym.wrappers", ["A(x=')')", "B"]),
    ("--gym.wrappers=[\"A(x=1, y=2)\", 'B']",): ("gym.wrappers", ["A(x=1, y=2)", "B"]),
    ("--gym.wrappers", "[A(x=[1, 2]), B]"): ("gym.wrappers", ["A(x=[1, 2])", "B"]),
    ("--gym.normalize_obs",): ("gym.normalize_obs", True),
    ("--gym.normalize-obs=true",): ("gym.normalize_obs", True),
    ("--gym.normalize-obs", "--gym.no-normalize-obs"): ("gym.normalize_obs", False),
    ("--eval.threshold", "3"): ("eval.threshold", 3.0),
    ("--eval.threshold", "-1e-3"): ("eval.threshold", -1e-3),
    ("--eval.threshold", "3", "--eval.threshold", "None"): ("eval.threshold", None),
    ("--seed", "1", "--seed", "2"): ("seed", 2),
}


@pytest.mark.parametrize("arguments", VALUES, ids=" ".join)
def test_values_are_parsed_as_typed_and_as_printed(arguments: tuple[str, ...]) -> None:
    option, value = VALUES[arguments]
    assert flags(*arguments).flatten()[option] == value


OTHER_NAMES = {
    "--learning-rate": "--optim.lr",
    "--lr": "--optim.lr",
    "--ppo.learning_rate=1": "--optim.lr",
    "--batch-size": "--ppo.minibatches",
    "--n-steps": "--gym.num-steps",
    "--n-envs": "--gym.num-envs",
    "--num-envs": "--gym.num-envs",
    "--n-epochs": "--ppo.epochs",
    "--ent-coef": "--ppo.entropy-coef",
    "--vf-coef": "--ppo.value-coef",
    "--max-grad-norm": "--optim.max-grad-norm",
    "--clip-range": "--ppo.clip",
    "--gae-lambda": "--ppo.lam",
    "--gamma": "--ppo.gamma",
    "--total-timesteps": "--total-steps",
}


@pytest.mark.parametrize("flag", OTHER_NAMES)
def test_option_names_of_other_libraries_get_a_suggestion(flag: str) -> None:
    with pytest.raises(UsageError) as caught:
        flags(flag, "1")
    name = flag.partition("=")[0].replace("_", "-")
    assert str(caught.value).startswith(f"unknown option {name}; did you mean {OTHER_NAMES[flag]}?")
    assert ("not their size" in str(caught.value)) == (flag == "--batch-size")


def test_files_get_the_same_suggestions() -> None:
    for table, text in (
        ({"learning_rate": 1}, "unknown option 'learning_rate'; did you mean 'optim.lr'?"),
        ({"ppo": {"gae_lambda": 1}}, "[ppo] has no option 'gae_lambda'; did you mean 'lam'?"),
        ({"ppo": {"lr": 1}}, "[ppo] has no option 'lr'; did you mean 'optim.lr'?"),
        ({"ppo": {"batch_size": 64}}, "did you mean 'minibatches'? (ppo.minibatches is the number of minibatches"),
        ({"ppo": {"qqq": 64}}, "[ppo] has no option 'qqq'"),
    ):
        with pytest.raises(UsageError) as caught:
            validate(GymConfig, table, "x.toml")
        assert text in str(caught.value)


def test_every_suggested_name_is_an_option() -> None:
    known = {**typed_options(GymConfig), **typed_options(config_model("llm"))}
    assert set(suggestions.OTHER_NAMES.values()) <= known.keys()
    assert not {name for name in suggestions.OTHER_NAMES if name in known}


LITERALS = st.recursive(
    st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(st.sampled_from(("x", "y", "stack_size")), LITERALS, max_size=3)
CALLS = ARGUMENTS.map(lambda arguments: f"m.n:A({', '.join(f'{key}={x!r}' for key, x in arguments.items())})")


@example(["a b", "c"])
@example(["-x", "y"])
@example(["it's"])
@example([""])
@example(["[x]"])
@example(["'", '"'])
@example(["a\u00a0"])
@example(["A(", "B"])
@example(["(b')", "=},-),"])
@given(st.lists(st.one_of(st.text(max_size=8), st.text("()[]{}'\" ,\\ab", max_size=8), CALLS), max_size=4))
def test_lists_round_trip_through_text(value: list[str]) -> None:
    declared = typed_options(GymConfig)["gym.wrappers"]
    assert read_value(format_value(value), declared) == value
    for arguments in (format_flag("gym.wrappers", value), [f"--gym.wrappers={format_value(value)}"]):
        typed = read_flags(GymConfig(), arguments, "ppo-unified train x", "")
        assert read_value(typed["gym.wrappers"], declared) == value


@given(st.lists(CALLS, max_size=3))
def test_calls_are_shown_without_additional_quotes(value: list[str]) -> None:
    assert format_value(value) == " ".join(value)


@given(ARGUMENTS)
def test_wrapper_arguments_keep_their_values(arguments: dict[str, Any]) -> None:
    text = f"A({', '.join(f'{key}={x!r}' for key, x in arguments.items())})"
    assert parse_wrapper(text) == ("A", arguments)


MISTAKES = {
    ("--ppo.clip-range", "0.1"): r"^unknown option --ppo.clip-range; did you mean --ppo.clip\?",
    ("--lr", "0.1"): r"^unknown option --lr; did you mean --optim.lr\?",
    ("--optim.lr", "nan"): r"^--optim.lr: expected a number > 0 and <= 1, got 'nan'$",
    ("--optim.lr", "-1"): r"^--optim.lr: expected a number > 0 and <= 1, got '-1'$",
    ("--optim.lr", "-1e-3"): r"^--optim.lr: expected a number > 0 and <= 1, got '-1e-3'$",
    ("--ppo.epochs", "2.5"): r"^--ppo.epochs: expected an integer >= 1, got '2.5'$",
    ("--ppo.epochs", "ten"): r"^--ppo.epochs: expected an integer >= 1, got 'ten'$",
    ("--ppo.clip",): r"^--ppo.clip needs a value, e.g. --ppo.clip 0.2$",
    ("--ppo.clip", "--seed", "3"): r"^--ppo.clip needs a value, e.g. --ppo.clip 0.2$",
    ("--eval.threshold",): r"^--eval.threshold needs a value, e.g. --eval.threshold FLOAT$",
    ("--eval.threshold", "high"): r"^--eval.threshold: expected a number or None, got 'high'$",
    ("--gym.env-id", "-x"): r"--gym.env-id needs a value.*; for a value that starts with '-' write --gym.env-id=-x$",
    ("--gym.env-id", ""): r"^--gym.env-id: expected non-empty text, got ''$",
    ("--gym.normalize-obs=maybe",): r"^--gym.normalize-obs: expected true or false, got 'maybe'$",
    ("--gym.no-normalize-obs=true",): r"^--gym.no-normalize-obs: expected no value, got 'true'$",
    (
        "--ppo.objective",
        "trpo",
    ): r"^--ppo.objective: expected one of clip, penalty, .*, got 'trpo'$",
    ("--device", "gpu"): r"^--device: expected one of auto, cpu, cuda, got 'gpu'; did you mean 'cuda'\?$",
    ("--no-optim.joint",): r"^unknown option --no-optim.joint; did you mean --optim.no-joint\?$",
    ("--ppo.objective", "pentaly"): r"did you mean 'penalty'\?$",
    ("--gym.env-kwargs", "{"): r"^--gym.env-kwargs: expected a JSON object, got '\{' \(invalid JSON at character 2\)$",
    (
        "--gym.env-kwargs",
        "9" * 5000,
    ): r"^--gym.env-kwargs: expected a JSON object, .* \(an integer has too many digits\)$",
    ("--gym.env-kwargs", "[1]"): r"^--gym.env-kwargs: expected a JSON object, got '\[1\]'$",
    ("--policy.hidden", "64", "wide"): r"^--policy.hidden: expected integers separated by spaces, got '64 wide'$",
    ("--optim.betas", "0.9"): r"^--optim.betas: expected 2 numbers separated by spaces, got '0.9'$",
    ("--gym.wrappers", "'a"): r"quotation",
    ("--seed", "1,2"): r"^--seed: expected an integer >= 0 and <= 2147483647, got '1,2'$",
    (
        "stray",
    ): r"^ppo-unified train x: unexpected argument 'stray'; expected only options here, such as --ppo.clip 0.1",
    ("--seed", "1", "2"): r"unexpected argument '2'; expected only options here, such as --ppo.clip 0.1$",
    ("--clip", "0.1"): r"^unknown option --clip; did you mean --ppo.clip\?$",
    ("--ppo.cli", "0.1"): r"^unknown option --ppo.cli; did you mean --ppo.clip\?$",
    (
        "--ppo.objective",
        "ratio",
        "--ppo.clip",
        "0.1",
    ): r"ppo.clip = 0.1 has no effect because ppo.objective = 'ratio'; remove ppo.clip or change ppo.objective$",
    ("--ppo.penalty-target", "0.1"): r"ppo.penalty_target = 0.1 has no effect because ppo.objective = 'clip'",
    ("--optim.no-joint", "--ppo.value-coef", "1"): r"ppo.value_coef = 1.0 has no effect because optim.joint = false",
    ("--optim.critic-lr", "0.1"): r"optim.critic_lr = 0.1 has no effect because optim.joint = true",
    ("--ppo.loss-mean", "sequence"): r"ppo.loss_mean = 'sequence' has no effect because kind = 'gym'",
    ("--stop-when-solved",): r"stop_when_solved = true has no effect because eval.threshold is not set",
    ("--total-steps", "0"): r"would never end",
    ("--ppo.dual-clip", "0.5"): r"ppo.dual_clip: expected 0 \(off\) or a number > 1, got 0.5",
    ("--optim.betas", "0.9", "1.0"): r"optim.betas: expected two numbers >= 0 and < 1, got \[0.9, 1.0\]",
    ("--ppo.minibatches", "9999"): r"ppo.minibatches: expected at most gym.num_envs x gym.num_steps = 1024, got 9999",
    ("--policy.shared", "--optim.no-joint"): r"policy.shared = true requires optim.joint = true",
    ("--policy.hidden", "0"): r"policy.hidden: expected widths >= 1, got \[0\]",
    ("--ppo.advantage", "td", "--ppo.value-target", "monte-carlo", "--ppo.lam", "0.5"): r"ppo.lam = 0.5 has no effect",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_invalid_flag_is_a_one_line_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=MISTAKES[arguments]) as caught:
        flags(*arguments)
    assert "\n" not in str(caught.value)


def test_invalid_toml_names_file_table_and_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('kind = "gym"\n[ppo]\nclip_range = 0.2\n[optim]\nlr = 0\n', encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        from_file(path)
    first, second = str(caught.value).splitlines()
    assert first == f"{path}: [ppo] has no option 'clip_range'; did you mean 'clip'?"
    assert second == f"{path}: optim.lr: expected a number > 0 and <= 1, got 0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00\x01", r"expected a TOML file in UTF-8, got an invalid byte at offset 0"),
        (b"[ppo\nx", "invalid TOML: "),
        (b'kind = "gymm"', r"x.toml: kind: unknown adapter 'gymm'; did you mean 'gym'\? \(installed: gym, llm\)"),
        (b"kind = 3", "x.toml: kind: expected the name of an adapter, got 3; name the adapter with a line such as"),
        (b'kind = "gym"\n[ppoo]\nclip = 0.1', r"x.toml: unknown section \[ppoo\]; did you mean 'ppo'\?"),
        (b"seed = 1", "missing option 'kind'; name the adapter with a line such as"),
    ],
)
def test_non_configuration_file_is_rejected(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        from_file(path)
    path.write_text('kind = "gym"\nppo = 3', encoding="utf-8")
    with pytest.raises(UsageError, match=r"ppo: expected a table of options, got 3"):
        from_file(path)
    with pytest.raises(UsageError, match="file not found"):
        read_toml(tmp_path / "absent.toml")


def test_preset_file_cannot_name_runs_outside_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('kind = "gym"\npreset = "../../out"', encoding="utf-8")
    config = from_file(path)
    with pytest.raises(UsageError, match="start with a letter or digit"):
        prepare(config, tmp_path / "runs")
    assert load_target(str(path)).preset == "out"


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'cartpole'"):
        load_target("cartpol")
    with pytest.raises(UsageError, match=r"unknown adapter 'gim'; did you mean 'gym'"):
        from_table({"kind": "gim"}, "x")


def test_load_preset_validates_like_the_command_line() -> None:
    assert load_preset("cartpole", seed=3, ppo={"clip": 0.1}).seed == 3
    with pytest.raises(UsageError, match=r"load_preset\('cartpole'\): ppo.clip: expected a number > 0 and < 1, got 7"):
        load_preset("cartpole", ppo={"clip": 7})


def test_overlay_changes_only_its_options() -> None:
    base = {"a": 1, "t": {"x": 1, "y": 2}}
    assert overlay(base, {"t": {"y": 3}, "b": 4}) == {"a": 1, "b": 4, "t": {"x": 1, "y": 3}}
    assert base == {"a": 1, "t": {"x": 1, "y": 2}}


def test_toml_contains_every_set_option() -> None:
    table = tomllib.loads(GymConfig().to_toml())
    assert "threshold" not in table["eval"]
    assert validate(GymConfig, table, "x") == GymConfig()


class SectionWithUnsupported(GymConfig):
    unsupported: ClassVar[dict[str, str]] = {"gym.frame_skip": "the rewards of skipped frames would be lost"}


@pytest.mark.parametrize("flag", ["--gym.frame-skip", "--gym.frame_skip=4", "--frame-skip"])
def test_rejected_option_is_explained_as_flag_and_key(flag: str) -> None:
    reason = "is not supported: the rewards of skipped frames would be lost"
    with pytest.raises(UsageError) as caught:
        read_flags(SectionWithUnsupported(), [flag, "4"], "ppo-unified train x", "")
    assert str(caught.value) in (f"{flag.partition('=')[0]} {reason}", f"--gym.frame-skip {reason}")
    with pytest.raises(UsageError, match=rf"^x\.toml: gym\.frame_skip {reason}$"):
        validate(SectionWithUnsupported, {"gym": {"frame_skip": 4}}, "x.toml")
    assert SectionWithUnsupported().ratio_tolerance == GymConfig().ratio_tolerance == 1e-2


def test_differences_from_preset_include_the_recipe() -> None:
    changed = load_preset("sentiment", recipe="trl-early", seed=3, ppo={"clip": 0.4})
    assert preset_differences(changed) == [("seed", 1, 3), ("ppo.clip", 0.2, 0.4)]
    assert preset_differences(load_target("cartpole")) == []
    assert preset_differences(load_preset("Foo-v1", optim={"lr": 0.1})) == [("optim.lr", 3e-4, 0.1)]
    for unknown in ({"preset": "gone"}, {"recipe": "gone"}, {"preset": "sentiment"}):  # 'sentiment' is of another kind
        assert preset_differences(load_target("cartpole").model_copy(update=unknown)) is None


WRONG_VALUES = [None, True, -1, 10**30, -0.5, math.nan, "", "zzz", "x" * 300, [], [None], [[1]], {}, {"a": {"b": 1}}]
WRONG_TEXTS = ["", "zzz", "-1", "1.5", "nan", "1e400", "[", "{", '{"a": ', "[1,", "'a", "1,,2", "\x00"]
LIBRARY_PHRASES = re.compile(
    r"Input|[Vv]alue error|Assertion|\bshould\b|valid (string|integer|number|list|dict)|[Ee]xtra|permitted|pydantic"
    r"|Expecting|\(char|sys\.|Field required|No closing quotation"
)


@pytest.mark.parametrize("kind", config_models())
def test_every_wrong_value_is_explained_in_our_words(kind: str) -> None:
    """A message contains the option, the expected value and the actual value, whatever the library reports."""
    model = config_models()[kind]
    messages = []
    for option, section in known_options(model).items():
        name, _, key = option.rpartition(".")
        for value in WRONG_VALUES:
            try:
                validate(model, {"kind": kind} | ({name: {key: value}} if name else {key: value}), "a.toml")
            except UsageError as error:
                messages += [(option, line) for line in str(error).split("\n")]
        for text in WRONG_TEXTS:
            try:
                read_value(text, section.model_fields[key])
            except ValueError as error:
                messages.append((option, f"a.toml: {option}: {error}"))
    for name in {option.rpartition(".")[0] for option in known_options(model)} - {""}:
        with pytest.raises(UsageError) as caught:
            validate(model, {"kind": kind, name: "x" * 300}, "a.toml")
        messages.append((name, str(caught.value)))
    assert len(messages) > 500
    for option, message in messages:
        assert re.match(rf"a\.toml: .*\b{re.escape(option)}\b", message), message
        assert re.search("expected .*, got |has no effect|never end|not a multiple|greater than|require", message), (
            message
        )
        assert not LIBRARY_PHRASES.search(message), message
        assert len(message) < 300, message


class Arm(Section):
    """Options of an adapter that another package defines."""

    joints: int = Field(ge=1, description="number of joints")
    speed: float | list[float] = Field(1.0, description="speed")
    names: dict[str, list[int]] = Field({}, description="ids by name")

    @field_validator("joints")
    @classmethod
    def _check_joints(cls, joints: int) -> int:
        if joints == 5:
            raise AssertionError("expected a number other than 5")
        if joints % 2:
            raise ValueError(f"expected an even number, got {joints}")
        return joints


class ArmConfig(RunConfig):
    kind: Literal["arm"] = "arm"
    arm: Arm

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.seed == 9:
            raise AssertionError("seed: expected a seed other than 9, got 9")
        return self


ARM_MISTAKES: list[tuple[object, str]] = [
    ({"arm": {}}, "arm.joints is required: expected an integer >= 1"),
    ({}, "section [arm] is required"),
    ({"arm": {"joints": 3}}, "arm.joints: expected an even number, got 3"),
    ({"arm": {"joints": 5}}, "arm.joints: expected a number other than 5"),
    ({"arm": {"joints": 2}, "seed": 9}, "seed: expected a seed other than 9, got 9"),
    ({"arm": {"joints": 2, "names": {"a": ["x"]}}}, "arm.names: expected a JSON object, got 'x'"),
    ({"arm": {"joints": 2, "names": {"a": 1}}}, "arm.names: expected a JSON object, got 1"),
    ({"arm": {"joints": 2}, "kind": "leg"}, "kind: expected one of arm, got 'leg'"),
    ({"arm": {"joints": 2}, "preset": 3}, "preset: expected text, got 3"),
    ("arm", "expected a table of options, got 'arm'"),
]


@pytest.mark.parametrize(("data", "message"), ARM_MISTAKES)
def test_mistakes_of_other_adapters_are_explained_too(data: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate(ArmConfig, data, "a.toml")
    assert str(caught.value) == f"a.toml: {message}"
