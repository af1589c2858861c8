"""Tests the form's logic: it agrees with the command line and imports no heavy packages."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.gym.options import GymConfig
from ppo_unified.cli import main as cli
from ppo_unified.config import presets
from ppo_unified.config.recipes import all_recipes, apply_recipe
from ppo_unified.config.schema import RunConfig
from ppo_unified.config.values import format_value
from ppo_unified.errors import UsageError
from ppo_unified.runs import preparation
from ppo_unified.runs.folder import Run, Status
from tui.new_run import form_model
from tui.new_run.form_model import Field

ROOT = Path(__file__).resolve().parents[2]
LLM = {"llm.model": "tiny"}  # the options that the target llm requires
TARGETS = [*presets.preset_files(), "Foo-v1", "some.module:Foo-v0", "ALE/Pong-v5"]
RECIPES = [recipe.name for recipe in all_recipes()]
TEXTS = ("a b", "-x", "--name", "it's", '"', "$HOME", "日本", "a=b", "regex:^\\d+$", "None", "[]", ";")


class PreparedRun(Exception):
    def __init__(self, config: RunConfig, name: str, default: str) -> None:
        super().__init__()
        self.config, self.name, self.default = config, name, default


@pytest.fixture
def _raise_at_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    capture(monkeypatch)


def capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `train` return its configuration before it creates a run folder."""

    def prepare(config: RunConfig, runs: Path, name: str, command: list[str], *, default: str, **_: object) -> None:
        raise PreparedRun(config, name, default)

    monkeypatch.setattr(preparation, "prepare", prepare)
    monkeypatch.setattr(preparation, "complete", lambda config: (config, ""))


def parse_arguments(arguments: list[str]) -> PreparedRun:
    """Return the configurations that the CLI creates from the arguments."""
    with pytest.raises(PreparedRun) as captured:
        cli.main(["train", *arguments])
    return captured.value


def edit(field: Field, rng: random.Random) -> str:
    """Return a text that is probably valid for an option."""
    if field.kind == "bool":
        return rng.choice(["true", "false"])
    if field.kind == "choice":
        return rng.choice(field.choices)
    if field.kind == "int":
        return str(rng.choice([0, 1, 2, 3, 8, 64, 1000, 123_456]))
    if field.kind == "float":
        return rng.choice(["0", "1e-3", "0.5", "1", "2.5", "-3", "1e-08", ""])
    if field.kind == "table":
        return rng.choice(["{}", '{"a": 1}', '{"b": "x y", "c": [1, 2.5]}'])
    if field.kind == "list":
        return rng.choice(["", "64 64", "0.8 0.99", "A(x='b c') c"])
    return rng.choice(TEXTS)


def edit_randomly(target: str, recipe: str, seed: int, start: dict[str, str]) -> Iterator[dict[str, str]]:
    """Change more and more options at random. Invalid changes are reverted."""
    rng, typed = random.Random(seed), dict(start)
    fields = list(form_model.fields(target, recipe).values())
    for _ in range(60):
        field = rng.choice(fields)
        trial = typed | {field.name: edit(field, rng)}
        if form_model.check_typed(target, recipe, trial).good:
            typed = trial
    yield typed


@pytest.mark.usefixtures("_raise_at_prepare")
@pytest.mark.parametrize("target", [*TARGETS, "llm"])
@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_command_line_and_run_reproduce_the_configuration(target: str, seed: int, tmp_path: Path) -> None:
    for typed in edit_randomly(target, "", seed, LLM if target == "llm" else {}):
        verdict = form_model.check_typed(target, "", typed)
        (arguments,) = form_model.train_arguments(target, "", typed)
        assert len(verdict.differences) >= 5
        assert shlex.split(verdict.command) == ["ppo-unified", "train", *arguments]
        assert verdict.config is not None
        assert parse_arguments(arguments).config == verdict.config
        run = write_run(tmp_path / "a", verdict.config, verdict.command)
        again, recipe, texts = form_model.form_input(run)
        assert again == (str(run.config) if target == "llm" else target)
        assert form_model.check_typed(again, recipe, texts).config == verdict.config


@pytest.mark.usefixtures("_raise_at_prepare")
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_applied_between_target_and_input(recipe: str) -> None:
    whole = apply_recipe(presets.load_target("sentiment"), recipe)
    for typed in edit_randomly("sentiment", recipe, 0, {}):
        verdict = form_model.check_typed("sentiment", recipe, typed)
        (arguments,) = form_model.train_arguments("sentiment", recipe, typed)
        assert parse_arguments(arguments).config == verdict.config
        assert arguments[:3] == ["sentiment", "--recipe", recipe]
    defaults = {name: field.default for name, field in form_model.fields("sentiment", recipe).items()}
    assert defaults == {name: format_value(whole.flatten()[name]) for name in defaults}


@pytest.mark.parametrize("target", TARGETS)
def test_typing_all_defaults_changes_nothing(target: str) -> None:
    typed = {name: field.default for name, field in form_model.fields(target).items()}
    verdict = form_model.check_typed(target, "", typed)
    assert verdict.config == presets.load_target(target)
    assert verdict.differences == ()
    assert verdict.command == shlex.join(["ppo-unified", "train", target])


@pytest.mark.parametrize("target", [*TARGETS, "llm"])
def test_fields_match_the_schema(target: str) -> None:
    config, fields = presets.load_target(target), form_model.fields(target)
    assert set(fields) == set(config.flatten()) - {"kind", "preset", "recipe"}
    assert all(field.description for field in fields.values())
    assert {"seed", "total_steps", "optim.lr"} <= {field.name for field in fields.values() if field.matters}
    assert sum(field.matters for field in fields.values()) <= 18


def test_fields_have_bounds_choices_and_kinds() -> None:
    fields = form_model.fields("cartpole")
    assert fields["eval.threshold"].matters
    assert not fields["ppo.dual_clip"].matters
    assert fields["ppo.dual_clip"].expected == "a number >= 0"
    assert fields["ppo.clip"].expected == "a number > 0 and < 1"
    assert fields["eval.threshold"].expected == "a number or None"
    assert fields["ppo.objective"].choices == ("clip", "penalty", "ratio", "policy-gradient")
    kinds = {name: fields[name].kind for name in ("seed", "optim.lr", "optim.anneal", "optim.betas", "gym.env_kwargs")}
    assert list(kinds.values()) == ["int", "float", "bool", "list", "table"]


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ("optim.lr", "2"),
        ("optim.lr", "nan"),
        ("seed", "-1"),
        ("ppo.gamma", "1.5"),
        ("optim.betas", "0.9"),
        ("ppo.dual_clip", "0.5"),
        ("ppo.minibatches", "100000"),
        ("eval.every_steps", "0"),
        ("policy.hidden", "0 3"),
    ],
)
def test_form_errors_match_command_line_errors(option: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = flag.split() if " " in flag else []
    name = f"--{option.replace('_', '-')}"
    code = cli.main(["train", "cartpole", *([name, *words] if words else [f"{name}={flag}"])])
    verdict = form_model.check_typed("cartpole", "", {option: flag})
    assert code == 2
    assert not verdict.good
    assert verdict.command == ""
    error, problem = capsys.readouterr().err, verdict.problems[option]
    assert error in (f"command line: {problem}\n", f"--{problem.replace(option, option.replace('_', '-'))}\n")


def test_problem_is_attached_to_the_typed_option() -> None:
    def problems(target: str, **typed: str) -> dict[str, str]:
        return dict(
            form_model.check_typed(target, "", {name.replace("__", "."): text for name, text in typed.items()}).problems
        )

    assert list(problems("cartpole", gym__num_envs="1", gym__num_steps="2")) == ["gym.num_envs", "gym.num_steps"]
    assert list(problems("cartpole", ppo__objective="penalty", ppo__clip="0.3")) == ["ppo.clip"]
    assert list(problems("cartpole", eval__threshold="")) == ["eval.threshold"]
    assert list(problems("cartpole", optim__lr="x", seed="y", policy__hidden="a")) == [
        "seed",
        "optim.lr",
        "policy.hidden",
    ]
    assert "expected a JSON object" in problems("cartpole", gym__env_kwargs="{")["gym.env_kwargs"]
    assert "quotation" in problems("cartpole", gym__wrappers="'a")["gym.wrappers"]


def test_problem_without_option_is_reported() -> None:
    unknown = form_model.check_typed("cartpole", "", {"ppo.clp": "0.3"})
    assert unknown.general == ("[ppo] has no option 'clp'; did you mean 'clip'?",)
    assert "requires a target of kind 'llm'" in form_model.check_typed("cartpole", "tldr", {}).general[0]
    assert "did you mean 'cartpole'" in form_model.check_typed("cartpol", "", {}).general[0]
    assert "nowhere.toml: file not found" in form_model.check_typed("nowhere.toml", "", {}).general[0]
    assert not unknown.good


def test_llm_target_requires_model_prompts_and_reward() -> None:
    typed: dict[str, str] = {}
    for option, text in (("llm.model", "gpt2"), ("llm.prompts", "prompts.jsonl"), ("llm.reward", "length:40")):
        verdict = form_model.check_typed("llm", "", typed)
        assert list(verdict.problems) == [option]
        typed[option] = text
    assert form_model.check_typed("llm", "", typed).good


def test_integers_accept_short_notation() -> None:
    verdict = form_model.check_typed("cartpole", "", {"total_steps": "2e6", "seed": " 3 "})
    assert verdict.config is not None
    assert (verdict.config.total_steps, verdict.config.seed) == (2_000_000, 3)
    assert verdict.command == "ppo-unified train cartpole --seed 3 --total-steps 2000000"


@pytest.mark.parametrize("text", ["", "a", "1,", "5-1", "1--2", "1-1000000", "1.5,2", "-1,2", "1,3000000000"])
def test_invalid_seed_lists_are_rejected(text: str) -> None:
    verdict = form_model.check_typed("cartpole", "", {"seed": text})
    assert list(verdict.problems) == ["seed"]
    assert not verdict.good


@pytest.mark.usefixtures("_raise_at_prepare")
def test_wrappers_with_arguments_round_trip_through_the_form(tmp_path: Path) -> None:
    wrappers = ["RescaleObservation(min_obs=-1.0, max_obs=1.0)", "a b/my.py:Own(x=['a b', \"it's\"], y={'k': (1, 2)})"]
    verdict = form_model.check_typed("a b/my.py:Env", "", {"gym.wrappers": format_value(wrappers)}, tmp_path)
    assert isinstance(verdict.config, GymConfig)
    assert verdict.config.gym.wrappers == wrappers
    assert parse_arguments(shlex.split(verdict.command)[2:]).config == verdict.config
    run = write_run(tmp_path / "a", verdict.config, verdict.command)
    target, recipe, typed = form_model.form_input(run)
    assert (target, recipe) == ("a b/my.py:Env", "")
    assert form_model.check_typed(target, recipe, typed, tmp_path).config == verdict.config
    (problem,) = form_model.check_typed("cartpole", "", {"gym.wrappers": "TimeLimit(200)"}).problems.values()
    assert problem.startswith("gym.wrappers: expected Name or Name(key=value, ...), got 'TimeLimit(200)'; name each")


SWEEP = {"seed": "2-4", "optim.lr": "0.01, 3e-3", "ppo.objective": "clip,ratio", "gym.wrappers": "A,B"}


@pytest.mark.parametrize("name", ["", "pole", "two words"])
def test_each_value_of_a_list_is_a_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line in the preview starts the same runs as the form."""
    started: list[list[str]] = []

    def start(arguments: list[str], runs: Path) -> Run:
        started.append(arguments)
        return write_run(tmp_path / "a", presets.load_target("cartpole"), "")

    monkeypatch.setattr("ppo_unified.runs.control.start", start)
    monkeypatch.setattr(Run, "read_status", lambda _: Status())
    typed = SWEEP | {"name": name}
    verdict = form_model.check_typed("cartpole", "", typed, tmp_path)
    assert (verdict.runs, dict(verdict.problems)) == (12, {})
    assert "--seed 2-4 --ppo.objective clip,ratio --optim.lr 0.01,3e-3 --gym.wrappers A B" in verdict.command
    assert {(d.option, d.after) for d in verdict.differences} >= {("seed", "2-4"), ("optim.lr", "0.01, 3e-3")}
    lists = form_model.train_arguments("cartpole", "", typed, tmp_path)
    assert cli.main([*shlex.split(verdict.command)[1:], "--detach"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        capture(patch)
        runs = [[parse_arguments(words) for words in each] for each in (started, lists)]
    names = [[run.name or run.default for run in each] for each in runs]
    assert names[0] == names[1]
    assert len(set(names[0])) == 12
    assert names[0][0] == f"{name or 'cartpole'}-objective-clip-lr0.01{'' if name else '-wrappers-A-B'}-s2"
    assert [run.config for run in runs[0]] == [run.config for run in runs[1]]
    assert [run.config.seed for run in runs[0][:4]] == [2, 3, 4, 2]


def test_runs_of_a_sweep_choose_their_own_names_if_possible(tmp_path: Path) -> None:
    """A run whose value equals the preset's, or whose option is not part of default names, gets its name in a flag."""

    def flags(**typed: str) -> list[list[str]]:
        typed = {option.replace("__", "."): text for option, text in typed.items()}
        return [words[words.index("--name") :] if "--name" in words else [] for words in train(typed)]

    def train(typed: dict[str, str]) -> list[list[str]]:
        return form_model.train_arguments("cartpole", "", typed, tmp_path)

    assert flags(optim__lr="3e-3,2e-3", seed="1,2")[:3] == [[], [], ["--name", "cartpole-lr2e-3-s1"]]
    assert flags(total_steps="1e3,2e3")[0] == ["--name", "cartpole-total_steps1e3-s1"]
    assert flags(optim__lr="3e-3") == [[]]


def test_runs_that_differ_only_in_seed_get_default_names(tmp_path: Path) -> None:
    assert form_model.train_arguments("cartpole", "", {"seed": "1,7"}, tmp_path) == [
        ["cartpole"],
        ["cartpole", "--seed", "7"],
    ]
    with pytest.raises(UsageError, match=r"optim\.lr"):
        form_model.train_arguments("cartpole", "", {"optim.lr": "x"})


def test_every_value_of_a_list_is_validated(tmp_path: Path) -> None:
    def problems(**typed: str) -> dict[str, str]:
        return dict(
            form_model.check_typed("cartpole", "", {k.replace("__", "."): v for k, v in typed.items()}).problems
        )

    assert "got '2'" in problems(optim__lr="1e-3,2")["optim.lr"]
    assert (
        "expected at most gym.num_envs x gym.num_steps = 512, got 100000"
        in problems(ppo__minibatches="2,100000")["ppo.minibatches"]
    )
    assert "a value before and after each comma" in problems(optim__lr="1e-3,")["optim.lr"]
    many = form_model.check_typed("cartpole", "", {"seed": "1-40", "optim.lr": "1e-3,2e-3"})
    assert many.general == ("expected at most 64 runs at once, got 80; list fewer values",)


@pytest.mark.usefixtures("_raise_at_prepare")
def test_run_name_must_be_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "old-s2").mkdir()
    assert (
        "use at most 100 characters"
        in form_model.check_typed("cartpole", "", {"name": "a/b"}, tmp_path).problems["name"]
    )
    assert (
        "already exists; choose another name"
        in form_model.check_typed("cartpole", "", {"name": "old-s2"}, tmp_path).problems["name"]
    )
    assert (
        "already exists; choose another name"
        in form_model.check_typed("cartpole", "", {"name": "old", "seed": "1-3"}, tmp_path).problems["name"]
    )
    assert form_model.check_typed("cartpole", "", {"name": "old"}, tmp_path).good
    assert parse_arguments(form_model.train_arguments("cartpole", "", {"name": "new one"})[0]).name == "new one"


def write_run(path: Path, config: RunConfig, command: str) -> Run:
    path.mkdir(exist_ok=True)
    run = Run(path)
    run.config.write_text(config.to_toml())
    run.command.write_text(command + "\n")
    return run


def test_run_with_recipe_yields_its_recipe(tmp_path: Path) -> None:
    verdict = form_model.check_typed("sentiment", "trl-early", {"seed": "4"})
    assert verdict.config is not None
    assert form_model.form_input(write_run(tmp_path / "a", verdict.config, verdict.command)) == (
        "sentiment",
        "trl-early",
        {"seed": "4"},
    )


def test_chosen_numbers_are_not_typed_options(tmp_path: Path) -> None:
    config = form_model.check_typed("arithmetic", "", {"llm.lora_rank": "2"}).config
    assert config is not None
    for flags, typed in (("", {}), (" --llm.lora-rank 2", {"llm.lora_rank": "2"})):
        run = write_run(tmp_path / "a", config, f"ppo-unified train arithmetic{flags}")
        assert form_model.form_input(run) == ("arithmetic", "", typed)
    assert presets.preset_differences(config) == []


def test_run_without_command_or_preset_is_its_own_target(tmp_path: Path) -> None:
    config = presets.load_target("cartpole").model_copy(update={"preset": "gone", "recipe": "gone"})
    run = write_run(tmp_path / "a", config, 'ppo-unified train "')
    target, recipe, typed = form_model.form_input(run)
    assert (target, recipe, typed) == (str(run.config), "", {})
    run.config.write_text("kind = ")
    with pytest.raises(UsageError, match="invalid TOML"):
        form_model.form_input(run)
    with pytest.raises(UsageError, match="file not found"):
        form_model.form_input(Run(tmp_path / "nowhere"))


def test_changed_target_file_is_reread(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('kind = "gym"\nseed = 7\n')
    assert form_model.fields(str(path))["seed"].default == "7"
    path.write_text('kind = "gym"\nseed = 8\n')
    os.utime(path, ns=(1, 1))
    assert form_model.fields(str(path))["seed"].default == "8"


def test_picker_lists_cartpole_first() -> None:
    picks = form_model.list_choices()
    assert picks[0].target == "cartpole"
    assert {pick.target for pick in picks if pick.target} == {*presets.preset_files(), "llm"}
    assert all(pick.title for pick in picks)
    assert form_model.find_choice("taxi").score
    assert form_model.find_choice("Foo-v1").title == ""


WORDS = ["Foo-v1", "ALE/Pong-v5", "my.module:Foo-v0", "mod:ns/Foo-v3", "a/b.toml", "x.toml"]


@pytest.mark.parametrize("word", [*WORDS, "my.py", "a b/my env.py", "../my.py:Own", "my.py:ns/Own-v0"])
def test_valid_target_words_are_accepted(word: str) -> None:
    assert form_model.is_target(word)


@pytest.mark.parametrize("word", ["", "cartpole", "lunar", "two words", "Foo-v", "-v1x", "a b-v1"])
def test_other_words_are_not_targets(word: str) -> None:
    assert not form_model.is_target(word)


def test_form_model_imports_no_heavy_packages() -> None:
    code = f"""
import sys
from tui.new_run import form_model
for target in {[*TARGETS, "llm"]!r}:
    form_model.check_typed(target, "", {{"llm.model": "tiny"}} if target == "llm" else {{"seed": "2"}})
form_model.list_choices(), form_model.recipes_for("sentiment")
print(*sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "gymnasium", "transformers", "numpy", "textual"} & set(process.stdout.split())
