"""Recipes apply to every target and cite their sources; overlay order, names, errors, list and diff."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from envs.llm.options import LLMConfig
from ppo_unified import load_preset
from ppo_unified.cli.flags import configure, read_flags
from ppo_unified.cli.main import main
from ppo_unified.config.presets import load_target, preset_files
from ppo_unified.config.recipes import (
    all_recipes,
    apply_recipe,
    difference,
    load_recipe,
    parse_comments,
    recipe_files,
    settings,
)
from ppo_unified.config.schema import RunConfig, read_toml, validate
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from tests import fork_server

ROOT = Path(__file__).parents[2]
RECIPES = {recipe.name: recipe for recipe in all_recipes()}
TARGETS = ["llm", *(name for name, path in preset_files().items() if read_toml(path).get("kind") == "llm")]
EXPECTED = [
    *("deepspeed-chat", "grpo", "instructgpt-ptx", "oai-2019", "plain-ratio", "rloo", "tldr", "trian-ppo"),
    "trl-early",
]
METHODS = ("grpo", "rloo")  # recipes that leave the options in TARGET_OPTIONS to the target
TARGET_OPTIONS = re.findall(
    r"[\w.]+",
    """total_steps total_iterations llm.reference llm.kl_coef llm.kl_target llm.score_clip llm.score_normalize
    llm.missing_eos_penalty llm.temperature llm.max_new_tokens llm.rollout_batch llm.lora_rank optim.lr optim.anneal
    optim.eps optim.betas optim.max_grad_norm""",
)

# Each setting names its source (a file, a paper, a section or a study note) or the reason why it has none.
SOURCE = re.compile(
    r"[\w/-]+\.(py|sh|sbatch|md|json)\b|\bnbs/\d+|(App\.|[Ss]ection) [\w.]+|\bnote \d{3}\b|^(paper|open|short|here): "
)
ALWAYS = re.findall(
    r"[\w.]+",
    """total_steps total_iterations llm.critic llm.reference llm.kl llm.kl_coef llm.kl_target llm.score_clip
    llm.score_normalize llm.whiten_rewards llm.missing_eos_penalty llm.temperature llm.max_new_tokens llm.rollout_batch
    llm.lora_rank ppo.epochs ppo.minibatches ppo.gamma ppo.lam ppo.objective ppo.value_clip ppo.value_coef
    ppo.entropy_coef ppo.normalize_advantages ppo.loss_mean optim.lr optim.anneal optim.joint optim.critic_lr optim.eps
    optim.betas optim.max_grad_norm""",
)
NEVER = ("llm.model", "llm.prompts", "llm.reward", "seed", "device", "threads")


def test_expected_recipes_exist() -> None:
    assert list(RECIPES) == EXPECTED


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_cites_a_source_for_each_setting(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.title
    assert recipe.source
    assert recipe.differs
    table = tomllib.loads(recipe.text)
    options = {
        f"{section}.{key}"
        for section, inner in table.items()
        if isinstance(inner, dict) and section != "about"
        for key in inner
    } | {key for key, value in table.items() if not isinstance(value, dict) and key != "kind"}
    assert set(recipe.sources) == options
    for option, source in recipe.sources.items():
        assert SOURCE.search(source), f"{option}: {source!r}"
    assert max(map(len, recipe.text.splitlines())) <= 120


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_sets_all_ppo_options_and_no_task_option(name: str) -> None:
    options, config = set(RECIPES[name].sources), settings(RECIPES[name])
    wanted = set(ALWAYS)
    wanted |= {"llm.critic_init"} if config["llm.critic"].value == "independent" else set()
    wanted |= {"ppo.clip"} if config["ppo.objective"].value == "clip" else set()
    wanted |= {"llm.kl_horizon"} if config["llm.kl_target"].value else set()
    wanted |= {"llm.ptx_batch"} if config["llm.ptx_coef"].value else set()
    wanted -= set(TARGET_OPTIONS) if name in METHODS else set()
    assert wanted <= options, sorted(wanted - options)
    assert not options & set([*NEVER, *TARGET_OPTIONS] if name in METHODS else NEVER)
    assert name in METHODS or config["total_steps"].value == 0  # or the run could end before its last iteration


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_applies_to_every_target(name: str, target: str) -> None:
    if name == "instructgpt-ptx" and target.startswith("smollm2"):
        with pytest.raises(UsageError, match=r"llm\.ptx_data is not set"):  # only `tiny` has texts of its own
            load_preset(target, recipe=name)
        return
    before, after = load_target(target).flatten(), load_preset(target, recipe=name).flatten()
    own = settings(RECIPES[name])
    for option, value in after.items():
        if option == "recipe":
            assert value == name
        else:
            assert value == (own[option].value if option in RECIPES[name].sources else before[option]), option


def test_flags_override_the_recipe() -> None:
    config = apply_recipe(load_target("llm"), "tldr")
    changed = configure(config, {"llm.kl_coef": "0.3", "total_iterations": "7"})
    assert isinstance(changed, LLMConfig)
    assert (changed.llm.kl_coef, changed.total_iterations) == (0.3, 7)
    assert (changed.llm.temperature, changed.recipe) == (0.7, "tldr")
    with pytest.raises(UsageError, match=r"^unknown option --recipe"):
        read_flags(config, ["--recipe", "x"], "train llm", "")


def test_flags_resolve_target_and_recipe_conflicts(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('kind = "llm"\n[llm]\nmodel = "gpt2"\n[ppo]\nclip_high = 0.3\n', encoding="utf-8")
    for name, option in (("plain-ratio", "ppo.clip_high"), ("instructgpt-ptx", "llm.ptx_coef")):
        with pytest.raises(UsageError, match=rf"{option} = .* has no effect") as caught:
            load_preset(str(path), recipe=name)
        assert "\n" not in str(caught.value)
    config = apply_recipe(load_target(str(path)), "instructgpt-ptx")
    assert configure(config, {"llm.ptx_data": "texts.txt"}).recipe == "instructgpt-ptx"
    assert apply_recipe(load_target(str(path)), "plain-ratio").model_dump()["ppo"]["clip_high"] == 0.3


MISTAKES = {
    ("train", "llm", "--recipe", "trl-erly"): "unknown recipe 'trl-erly'; did you mean 'trl-early'?",
    ("train", "llm", "--recipe", "zzz"): "unknown recipe 'zzz' (list: ppo-unified recipes)",
    (
        "train",
        "cartpole",
        "--recipe",
        "tldr",
    ): "--recipe tldr requires a target of kind 'llm', but cartpole is of kind 'gym'; choose another target or recipe",
    ("train", "llm", "--recipe", "tldr"): "llm.model is required: use a folder, a hub id",
    (
        "train",
        "llm",
        "--recipe",
        "tldr",
        "--llm.rollout-batch",
        "0",
    ): "expected an integer >= 1 or auto, got '0'",
    ("recipes", "tdlr"): "did you mean 'tldr'",
    ("recipes", "tldr", "tldr", "tldr"): "ppo-unified recipes: expected at most two recipe names, got 3",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_usage_error_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert MISTAKES[arguments] in output.err
    assert len(output.err.splitlines()) == 1
    assert output.out == ""
    assert not list(tmp_path.iterdir())


def test_help_shows_recipe_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "llm", "--recipe", "deepspeed-chat", "--help"])
    shown = capsys.readouterr().out
    assert "llm-deepspeed-chat" in shown
    assert "(default: 9.65e-06)" in shown
    assert "--recipe" not in shown


# output of the `recipes` command


def recipes_output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["recipes", *arguments]) == 0
    return capsys.readouterr().out


def test_recipes_command_lists_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    shown = recipes_output(capsys)
    listed = json.loads(recipes_output(capsys, "--json"))["recipes"]
    assert [entry["name"] for entry in listed] == list(RECIPES)
    for entry in listed:
        assert entry.keys() == {"name", "kind", "title", "source"}
        assert entry["title"] in shown
        assert entry["source"] in " ".join(shown.split())


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_command_prints_the_recipe_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes_output(capsys, name) == recipe_files()[name].read_text(encoding="utf-8")
    shown = json.loads(recipes_output(capsys, name, "--json"))
    assert shown["differs"] == list(RECIPES[name].differs)
    config = validate(LLMConfig, {"kind": "llm", **RECIPES[name].options}, name).flatten()
    assert shown["options"] == {
        option: {"value": config[option], "source": source} for option, source in RECIPES[name].sources.items()
    }


@pytest.mark.parametrize("first", RECIPES)
@pytest.mark.parametrize("second", RECIPES)
def test_difference_maps_one_configuration_to_the_other(first: str, second: str) -> None:
    one, other = (load_preset("llm", recipe=name).flatten() for name in (first, second))
    changed = difference(RECIPES[first], RECIPES[second])
    for option, (left, right) in changed.items():
        assert (left.value, right.value) == (one[option], other[option])
        assert left.value != right.value
        assert left.source or right.source, option
        assert all(s.source is not None or s.value == LLMConfig().flatten()[option] for s in (left, right))
    assert one | {option: pair[1].value for option, pair in changed.items()} | {"recipe": second} == other
    assert set(changed) == set(difference(RECIPES[second], RECIPES[first]))
    assert bool(changed) == (first != second)


def test_printed_difference_shows_values_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    shown = recipes_output(capsys, "trl-early", "trian-ppo").splitlines()
    assert shown[0].split() == ["option", "trl-early", "trian-ppo"]
    row = next(number for number, line in enumerate(shown) if line.startswith("llm.kl "))
    assert shown[row].split() == ["llm.kl", '"k1"', '"full"']
    assert shown[row + 1].startswith("    trl-early: trl/ppo.py compute_rewards")
    assert shown[row + 2] == '    trian-ppo: train_ppo.py: PPOConfig(kl_penalty="full")'
    row = next(number for number, line in enumerate(shown) if line.startswith("llm.lora_rank "))
    assert shown[row].split() == ["llm.lora_rank", "0", "8"]
    assert shown[row + 1] == "    trl-early: trl/gpt2.py: all weights are trained"
    document = json.loads(recipes_output(capsys, "trl-early", "trian-ppo", "--json"))
    assert document["recipes"] == ["trl-early", "trian-ppo"]
    assert list(document["options"]) == list(difference(RECIPES["trl-early"], RECIPES["trian-ppo"]))
    assert recipes_output(capsys, "tldr", "tldr") == "the options are the same\n"
    document = json.loads(recipes_output(capsys, "grpo", "tldr", "--json"))
    assert document["options"]["optim.lr"]["grpo"] == {"value": "auto", "source": None}


def test_remarks_come_from_comments_beside_settings() -> None:
    text = """
        # of nothing
        kind = "llm"  # no option
        seed = 3  # one
        name = "a # b"  # two
           # lines
        # of it

        # of nothing either
        [llm]  # a section
        betas = [0.9, 0.95]#three
        bare = 1
        [about]
        title = "x"  # not an option
    """
    assert parse_comments(dedent(text)) == {
        "seed": "one",
        "name": "two lines of it",
        "llm.betas": "three",
        "llm.bare": "",
    }


# a recipe from another package, from the command line to a resumed run

PARTS = {
    "cook_options.py": """
        from typing import Literal
        from ppo_unified.config.spec import AdapterSpec
        from ppo_unified.config.schema import RunConfig, Section

        class Arms(Section):
            rows: int = 16

        class ArmsConfig(RunConfig):
            kind: Literal["arms"] = "arms"
            arms: Arms = Arms()

        SPEC = AdapterSpec(
            config="cook_options:ArmsConfig", build="cook_adapter:build",
            presets="cook_presets", recipes="cook_recipes",
        )
    """,
    "cook_adapter.py": """
        from ppo_unified.testing import BanditAdapter

        def build(config, device):
            return BanditAdapter(config.arms.rows, 8, 4, config.seed)
    """,
    "cook_presets/__init__.py": "",
    "cook_presets/two-arms.toml": """
        kind = "arms"
        total_steps = 0
        total_iterations = 9
        [about]
        title = "Two arms"
        score = "1"
        time = "1 second"
        [arms]
        rows = 20
        [ppo]
        epochs = 5
        minibatches = 2
    """,
    "cook_recipes/__init__.py": "",
    "cook_recipes/quick.toml": """
        kind = "arms"
        total_iterations = 3  # here: enough
        [about]
        title = "Quick"
        source = "nobody"
        [ppo]
        epochs = 2  # here: enough
    """,
    "cook_recipes/wrong.toml": 'kind = "arms"\n[ppo]\nepoch = 2\n',
    "cook_recipes/odd.toml": "seed = 2\n",
    "cook-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: cook\nVersion: 1.0\n",
    "cook-1.0.dist-info/entry_points.txt": "[ppo_unified.adapters]\narms = cook_options:SPEC\n",
}


@pytest.fixture
def package_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a package with an adapter, a preset and recipes, and change to an empty folder."""
    site, work = tmp_path / "site", tmp_path / "work"
    for name, text in PARTS.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(dedent(text), encoding="utf-8")
    work.mkdir()
    importlib.invalidate_caches()
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(work)
    yield work
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("cook_")]:
        del sys.modules[name]


def config_of(run: Run) -> RunConfig:
    return load_target(str(run.config))


def test_recipe_run_is_named_repeatable_and_resumable(package_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "two-arms", "--recipe", "quick", "--optim.lr", "0.1"]) == 0
    run = Run(package_folder / "runs" / "two-arms-quick-lr0.1-s1")
    status, config = run.read_status(), config_of(run)
    assert (status.preset, status.iteration, config.recipe, config.preset) == ("two-arms-quick", 3, "quick", "two-arms")
    assert (config.ppo.epochs, config.ppo.minibatches, config.optim.lr) == (2, 2, 0.1)
    command = run.command.read_text(encoding="utf-8")
    assert command == "ppo-unified train two-arms --recipe quick --optim.lr 0.1\n"
    assert main([*shlex.split(command)[1:], "--name", "again"]) == 0
    assert config_of(Run(package_folder / "runs" / "again")) == config
    assert main(["resume", "two-arms-quick-lr0.1-s1", "--total-iterations", "5"]) == 0
    assert (run.read_status().iteration, config_of(run).recipe) == (5, "quick")
    assert main(["train", str(run.config)]) == 0  # the configuration of a run starts another run of the same name
    assert (package_folder / "runs" / "two-arms-quick-lr0.1-s1-2").exists()
    capsys.readouterr()
    assert main(["runs", "recipe:quick", "preset:two-arms", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert main(["recipes", "quick", "tldr"]) == 0  # recipes of different kinds: '-' marks a missing option
    assert re.search(r"^arms\.rows +16 +-$", capsys.readouterr().out, re.M)


def test_detached_run_uses_the_recipe(package_folder: Path) -> None:
    train = ["-m", "ppo_unified", "train", "two-arms", "--recipe", "quick", "--total-iterations", "2", "--detach"]
    environment = os.environ | {"PYTHONPATH": str(package_folder.parent / "site")}
    done = fork_server.run(train, package_folder, environment)
    assert done.returncode == 0, done.stderr
    run = Run(package_folder / "runs" / "two-arms-quick-s1")
    deadline = time.monotonic() + 60
    while run.read_status().state != "finished":
        assert time.monotonic() < deadline, "the run did not finish within 60 seconds"
        time.sleep(0.02)
    config = config_of(run)
    assert (config.recipe, config.ppo.epochs, config.total_iterations) == ("quick", 2, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "recipe wrong: [ppo] has no option 'epoch'; did you mean 'epochs'?"),
        ("odd", "missing option 'kind'; name the adapter"),
    ],
)
def test_broken_recipe_file_is_reported(
    name: str, message: str, package_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "two-arms", "--recipe", name]) == 2
    assert message in capsys.readouterr().err


def test_load_preset_accepts_recipe(package_folder: Path) -> None:
    config = load_preset("two-arms", recipe="quick", ppo={"epochs": 7}, seed=4)
    assert (config.total_iterations, config.ppo.epochs, config.ppo.minibatches, config.recipe) == (3, 7, 2, "quick")
    assert load_recipe("quick").sources == {"total_iterations": "here: enough", "ppo.epochs": "here: enough"}


def test_docs_page_describes_every_recipe() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)` \|", page, re.M) == list(RECIPES)
