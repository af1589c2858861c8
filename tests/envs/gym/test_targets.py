"""Environments in modules and Python files: which one a target selects, and what an error suggests."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from envs.gym import targets
from envs.gym.export import export
from envs.gym.make import make_env, make_own_vector
from envs.gym.options import Gym, GymConfig, from_target, resolve
from envs.gym.vector import GymAdapter
from ppo_unified.config.presets import load_target
from ppo_unified.errors import UsageError
from tests import fork_server

CLASS = """
import gymnasium as gym, numpy as np
class {name}(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def __init__(self, reward={reward}, render_mode=None): self.paid = reward
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {{}}
    def step(self, action):
        return np.zeros(2, np.float32), self.paid, False, False, {{}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder. Modules, files and environments that a test loads are unloaded afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules, registered = set(sys.modules), dict(gym.registry)
    yield tmp_path
    targets.load_file.cache_clear()
    gym.registry.clear()
    gym.registry.update(registered)
    for name in set(sys.modules) - modules:
        places = getattr(sys.modules[name], "__file__", ""), *getattr(sys.modules[name], "__path__", ())
        if any(str(place).startswith(str(tmp_path)) for place in places):
            del sys.modules[name]


def write(path: str, *lines: str, name: str = "Own", reward: float = 1.0) -> None:
    """Write a file that defines an environment class whose reward identifies it, followed by `lines`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(CLASS.format(name=name, reward=reward) + "\n".join(lines), encoding="utf-8")


def reward_of(env_id: str, **env_kwargs: Any) -> float:
    env = make_env(Gym(env_id=env_id, env_kwargs=env_kwargs))
    env.reset(seed=0)
    return float(env.step(0)[1])


def problem(env_id: str) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(env_id)
    assert "\n" not in str(caught.value)
    return str(caught.value)


REGISTER = {
    "no registration": "",
    "class": 'gym.register("Own-v0", Own, max_episode_steps=7)',
    "string": 'gym.register("Own-v0", "own:Own", max_episode_steps=7)',
    "main": 'gym.register("Own-v0", "__main__:Own", max_episode_steps=7)',
    "package": 'gym.register("Own-v0", "envs.own:Own", max_episode_steps=7)',
    "name": 'gym.register("Own-v0", f"{__name__}:Own", max_episode_steps=7)',
}


@pytest.mark.parametrize("how", REGISTER)
@pytest.mark.parametrize("path", ["own.py", "./own.py", "envs/own.py", "a dir/own.py", "{cwd}/a:b/own.py"])
def test_file_with_one_environment_selects_it(how: str, path: str) -> None:
    path = path.format(cwd=Path.cwd())
    write(path, REGISTER[how], reward=3)
    assert reward_of(path) == 3
    assert reward_of(f"{path}:Own") == 3
    assert reward_of(f"{path}:Own", reward=4) == 4
    if how != "no registration":
        assert reward_of(f"{path}:Own-v0") == 3
        assert [resolve(f"{path}{name}").max_episode_steps for name in ("", ":Own", ":Own-v0")] == [7, 7, 7]


@pytest.mark.parametrize("name", ["my-env.py", "my env.py", "random.py", "my.env.py", "gymnasium.py"])
def test_any_file_name_can_be_loaded(name: str) -> None:
    write(name, reward=5)
    assert reward_of(name) == reward_of(f"{name}:Own") == 5
    import random

    assert random.randint(1, 1) == 1


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize("how", REGISTER)
def test_two_files_with_the_same_name_are_different(how: str) -> None:
    write("a/own.py", REGISTER[how], reward=1)
    write("b/own.py", REGISTER[how], reward=2)
    suffix = ":Own" if how == "no registration" else ":Own-v0"
    for _ in range(2):
        assert [reward_of(f"{folder}/own.py{name}") for folder in "ab" for name in ("", suffix)] == [1, 1, 2, 2]


def test_file_is_executed_once() -> None:
    write("own.py", "with open('count', 'a') as file: file.write('x')", REGISTER["string"])
    for env_id in ("own.py", "own.py:Own", "./own.py:Own-v0", str(Path("own.py").absolute())):
        assert reward_of(env_id) == 1
    assert Path("count").read_text() == "x"


PARSES = """
import argparse
argparse.ArgumentParser().parse_args()
class Parses(Own):
    def __init__(self, **kwargs):
        argparse.ArgumentParser().parse_args()
        super().__init__(**kwargs)
class ParsesAll(gym.vector.SyncVectorEnv):
    def __init__(self, num_envs):
        argparse.ArgumentParser().parse_args()
        super().__init__([Own] * num_envs)
gym.register("Parses-v0", Parses)
gym.register("ParsesAll-v0", vector_entry_point=ParsesAll)
"""


def test_foreign_code_cannot_parse_the_arguments_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """This also holds in the user's own Python programs."""
    monkeypatch.setattr(sys, "argv", ["program", "--unknown"])
    write("own.py", PARSES)
    assert reward_of("own.py:Parses-v0") == 1
    make_own_vector(Gym(env_id="own.py:ParsesAll-v0"), 2).close()
    assert sys.argv == ["program", "--unknown"]


def test_file_imports_its_neighbours() -> None:
    Path("parts").mkdir()
    Path("parts", "values.py").write_text("REWARD = 8")
    write("parts/own.py", "from values import REWARD", "gym.register('Own-v0', lambda **_: Own(REWARD))")
    assert reward_of("parts/own.py") == 8


def test_module_class_needs_no_registration() -> None:
    write("package/inner.py", "def create(reward=6):", "    return Own(reward)", reward=2)
    assert reward_of("package.inner:Own") == 2
    assert reward_of("package.inner:create") == 6
    assert reward_of("package.inner:create", reward=7) == 7


def test_class_takes_precedence_over_a_foreign_id() -> None:
    """Without a version, 'CartPole' would otherwise select Gymnasium's CartPole-v1."""
    write("mine.py", name="CartPole", reward=9)
    assert reward_of("mine:CartPole") == reward_of("mine.py:CartPole") == 9
    assert resolve("mine:CartPole-v1").id == "CartPole-v1"


def test_registered_class_keeps_its_time_limit() -> None:
    write("limited.py", 'gym.register("Own-v2", "limited:Own", max_episode_steps=2)')
    write("limited.py", 'gym.register("Own-v10", "limited:Own", max_episode_steps=10)')
    assert resolve("limited:Own").max_episode_steps == 10


def test_several_environments_are_listed() -> None:
    write("two.py", 'gym.register("A-v0", Own)', 'gym.register("B-v0", Own)')
    assert problem("two.py") == (
        "gym.env_id = 'two.py': the file contains 2 environments; use one of two.py:A-v0, two.py:B-v0"
    )
    assert problem("two.py:C-v0") == (
        "gym.env_id = 'two.py:C-v0': file 'two.py' does not register the environment 'C-v0'; use two.py:A-v0 or "
        "two.py:B-v0"
    )
    write("classes.py", "class Other(Own): pass", "class Plus(gym.RewardWrapper): pass")
    assert problem("classes.py").endswith("2 environments; use one of classes.py:Other, classes.py:Own")
    assert problem("classes.py:Otter").endswith(
        "does not register the environment 'Otter'; use classes.py:Other or classes.py:Own"
    )
    assert problem("classes:np").endswith("does not register the environment 'np'; use classes:Other or classes:Own")


def test_registered_environments_precede_imported_ones() -> None:
    Path("others.py").write_text('import gymnasium as gym\ngym.register("Other-v0", "others:Other")')
    write("own.py", "import others", 'gym.register("Own-v0", Own)', reward=4)
    assert reward_of("own.py") == 4
    assert resolve("own.py:Other-v0").id == "Other-v0"


PROBLEMS = {
    "nothing.py": "no file 'nothing.py' in {cwd}",
    "onw.py:Own": "no file 'onw.py' in {cwd}; did you mean 'own.py'?",
    "sub/own.py": "no file 'own.py' in {cwd}/sub",
    "bare.py": "the file contains no subclass of gymnasium.Env and registers no environment",
    "bare.py:A-v0": "file 'bare.py' does not register the environment 'A-v0'; call gymnasium.register() in the file",
    "raises.py": "cannot import file 'raises.py' (ValueError: no map, in raises.py, line 2)",
    "exits.py:Own": "cannot import file 'exits.py' (SystemExit: 3, in exits.py, line 2)",
    "syntax.py": "cannot import file 'syntax.py' (SyntaxError: ",
    "needs.py": "cannot import file 'needs.py' (ModuleNotFoundError: No module named 'nowhere_to_be_found', in needs",
    "deep/own:Own": "cannot import module 'deep/own'; use deep/own.py:Own",
    "envs.mine:Own-v0": "cannot import module 'envs.mine', because the package {root}/envs shadows envs/mine.py; "
    "rename the folder 'envs' or use envs/mine.py:Own-v0",
    "tui.mine:Own": "shadows tui/mine.py; rename the folder 'tui' or use tui/mine.py:Own",
    "hidden.py": "cannot import file 'hidden.py', because the package {root}/envs shadows envs/mine.py; rename",
    "Own-v0": "unknown Gymnasium environment (if your own code registers it, use module:EnvId or FILE.py:EnvId)",
    "panda_gym:PandaReach-v3": "cannot import module 'panda_gym'; to install it: pip install panda-gym",
    "highway-v0": "pip install highway-env; then use highway_env:highway-v0",
    "gym_pusht/PushT-v0": "unknown Gymnasium environment; to install it: pip install gym-pusht; then use gym_pusht:",
    "Acrobat-v1": "unknown Gymnasium environment; did you mean 'Acrobot-v1'?",
}


@pytest.mark.parametrize("env_id", PROBLEMS)
def test_wrong_target_gets_one_line_with_a_fix(env_id: str) -> None:
    import tui

    for path in ("own.py", "deep/own.py", "envs/mine.py", "tui/mine.py"):
        write(path)
    texts = {"bare": "", "raises": "\nraise ValueError('no map')", "exits": "import sys\nsys.exit(3)", "syntax": "x ="}
    texts |= {"needs": "import nowhere_to_be_found", "hidden": "import envs.mine"}
    for name, text in texts.items():
        Path(f"{name}.py").write_text(text)
    expected = PROBLEMS[env_id].format(cwd=Path.cwd(), root=Path(tui.__path__[0]).parent)
    assert problem(env_id).startswith(f"gym.env_id = {env_id!r}: ")
    assert expected in problem(env_id)


@pytest.mark.parametrize(("env_id", "module"), [("gym_pusht/PushT-v0", "gym_pusht"), ("new_games/Own-v0", "new_games")])
def test_installed_package_is_suggested_if_it_registers_the_id(
    env_id: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(f"{module}.py", f'gym.register("{env_id}", "{module}:Own")', reward=2)
    about = Path(f"{module}-1.0.dist-info")
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\nRequires-Dist: gymnasium>=1\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert f"unknown Gymnasium environment; use {module}:{env_id}, which" in problem(env_id)
    assert reward_of(f"{module}:{env_id}") == 2
    wrong = env_id.replace("-v", "g-v")
    assert problem(wrong).endswith(f"does not register the environment {wrong!r}; use {module}:{env_id}")


WORDS = {
    "CartPole-v1": "CartPole-v1",
    "ALE/Pong-v5": "ALE/Pong-v5",
    "HalfCheetah": "HalfCheetah-v5",
    "my env.py": "my env.py",
    "../x/my.py:ns/Own-v0": "../x/my.py:ns/Own-v0",
    "cartpol": "",
    "own": "",
}


@pytest.mark.parametrize("word", WORDS)
def test_target_words_select_environments(word: str) -> None:
    assert from_target(word) == ({"gym": {"env_id": WORDS[word]}} if WORDS[word] else None)


FILES = {
    "own": "no preset, file or environment is named 'own'; did you mean 'own.py'? (list: ppo-unified envs)",
    "games": "games is a folder; expected a preset, an environment id, or a TOML or Python file, such as games/a.py",
    "empty": "empty is a folder; expected a preset, an environment id, or a TOML or Python file",
    "runs/a1": "runs/a1 is a run folder; to start a new run with its options, use runs/a1/config.toml",
    "own.ipynb": "own.ipynb: expected a Python file, got a notebook; copy the environment's class to a file FILE.py",
    "cartpol": "no preset, file or environment is named 'cartpol'; did you mean 'cartpole'? (list: ppo-unified envs)",
}


@pytest.mark.parametrize("target", FILES)
def test_wrong_file_target_gets_a_suggestion(target: str) -> None:
    for path in ("own.py", "games/a.py", "games/__init__.py", "runs/a1/config.toml", "own.ipynb"):
        write(path)
    Path("empty").mkdir()
    with pytest.raises(UsageError) as caught:
        load_target(target)
    assert str(caught.value) == FILES[target]


def test_run_is_named_after_the_file() -> None:
    assert load_target("some dir/my env.py").preset == "my-env"
    assert load_target("some dir/my env.py:Own-v0").preset == "Own-v0"


HALF = """
class Half(gym.RewardWrapper):
    def reward(self, reward): return reward / 2
"""


@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("my envs/random.py", "no registration"),
        pytest.param("my envs/random.py", "string", marks=pytest.mark.exhaustive),
        pytest.param("sub/types.py", "string", marks=pytest.mark.exhaustive),
        pytest.param("my.env-2.py", "name", marks=pytest.mark.exhaustive),
        ("sub/own.py", "package"),
    ],
)
def test_exported_example_loads_any_file(path: str, how: str, folder: Path) -> None:
    """The example runs in a new process, and executes the file of the environment and of its wrapper once."""
    count = "with open('count', 'a') as file: file.write('x')"
    write(path, HALF, REGISTER[how].replace("own:", f"{Path(path).stem}:"), count, reward=3)
    wrappers = ["TimeLimit(max_episode_steps=7)", f"{path}:Half"]
    table = {"env_id": path, "num_envs": 1, "num_steps": 8, "wrappers": wrappers}
    config = GymConfig.model_validate({"gym": table, "ppo": {"minibatches": 1}})
    about = {"run": "a", "kind": "gym", "step": 1, "score": None, "versions": {}}
    with closing(GymAdapter(config, torch.device("cpu"))) as adapter:
        export(adapter, folder, about)
    Path("count").unlink()
    played = fork_server.run(["-W", "error::UserWarning", "play.py"])
    assert (played.stdout, played.stderr) == ("mean return 10.5 over 10 episodes\n", "")
    assert Path("count").read_text(encoding="utf-8") == "x"


def test_spawned_process_finds_the_environments() -> None:
    for path in ("own.py", "envs/own.py", "package/own.py"):
        write(path, REGISTER["string"])
    worker = multiprocessing.get_context("spawn").Process(target=check_rewards)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0


def check_rewards() -> None:
    assert [reward_of(env_id) for env_id in ("own.py", "envs/own.py:Own-v0", "package.own:Own")] == [1, 1, 1]
