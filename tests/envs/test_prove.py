"""`prove` passes for this project and fails for copies with a relevant defect."""
# ruff: noqa: E501 - one line per mutant

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from envs.llm.kl import token_rewards
from envs.prove import TOLERANCE, Proof, prove
from envs.token_mdp import TokenMDP, decode_obs
from ppo_unified.cli.main import main
from ppo_unified.engine.ppo import gae
from ppo_unified.engine.rollout import Rollout
from tests import fork_server
from tests.mutants import Mutant, copy_project

ADAPTER, SAMPLED, KL = "envs/llm/adapter.py", "envs/llm/generate.py", "envs/llm/kl.py"
TOKEN_POLICY = "envs/llm/policy.py"
VECTOR, PPO = "envs/gym/vector.py", "ppo_unified/engine/ppo.py"
SAMPLER = "so the responses do not come from the policy that is trained"  # an error that prevents the comparison
MUTANTS = {  # mutant -> a quantity that must differ, or SAMPLER
    Mutant("mask: with the prompt's last token", SAMPLED, "self.prompt_lengths[:, None] - 1)", "self.prompt_lengths[:, None] - 2)"): "steps",
    Mutant("mask: without the last token", SAMPLED, "self.lengths[:, None] - 1)", "self.lengths[:, None] - 2)"): SAMPLER,
    Mutant("bootstrap: a value after the end", ADAPTER, "torch.where(last, 0.0, values.roll(-1, 1))", "torch.where(last, values, values.roll(-1, 1))"): "next_values",
    Mutant("bootstrap: the step's own value", ADAPTER, "torch.where(last, 0.0, values.roll(-1, 1))", "torch.where(last, 0.0, values)"): "next_values",
    Mutant("kl reward: sign", KL, "-coef * kl", "coef * kl"): "rewards",
    Mutant("kl reward: one step late", KL, "-coef * kl", "-coef * kl.roll(1, 1)"): "rewards",
    Mutant("score: one token early", ADAPTER, "last_steps(mask)[:, None], True) & mask", "last_steps(mask)[:, None], True).roll(-1, 1) & mask"): "rewards",
    Mutant("alignment: actions are the states' own tokens", ADAPTER, "torch.where(mask, responses.tokens[:, 1:]", "torch.where(mask, responses.tokens[:, :-1]"): "steps",
    Mutant("alignment: old log-probs of the states' own tokens", ADAPTER, "tokens[:, 1 : longest + 1]", "tokens[:, :longest]"): SAMPLER,
    Mutant("alignment: values after the token", ADAPTER, "values=values,", "values=values.roll(-1, 1),"): "values",
    Mutant("alignment: the update reads other columns", TOKEN_POLICY, "trunk(tokens)[chosen]\n        logprobs, ", "trunk(tokens)[chosen.roll(-1, 1)]\n        logprobs, "): "gradient: policy",
    Mutant("gymnasium: a value after termination", VECTOR, "values[:, 1:] * ~died", "values[:, 1:]"): "next_values",
    Mutant("gymnasium: reset columns are steps", VECTOR, "valid.append(~self.ended)", "valid.append(self.ended | True)"): "steps",
    Mutant("engine: no trace", PPO, "torch.addcmul(delta, carry, running)", "delta"): "advantages by definition",
    Mutant("engine: sign of the objective", PPO, "    return -gain\n", "    return gain\n"): "exact policy gradient",
}  # fmt: skip
ALWAYS = {  # the other mutants are tested only by `make exhaustive`
    "kl reward: sign",
}
UNBROKEN = Mutant("nothing", PPO, "    return -gain\n", "    return -gain\n")


def mutant_param(mutant: Mutant, exhaustive: bool) -> Any:
    return pytest.param(mutant, id=mutant.name, marks=[pytest.mark.exhaustive] if exhaustive else [])


def write_mutant(mutant: Mutant, folder: Path) -> Path:
    """Copy the packages to `folder` and apply the mutant."""
    copy_project(folder)
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, (
        f"{mutant.name}: expected its text once, found it {text.count(mutant.old)} times"
    )
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return folder


def prove_in(folder: Path) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the JSON of `prove` in a copy of the project, or {} after the error SAMPLER."""
    done = fork_server.run(["-m", "ppo_unified", "prove", "--json"], folder)
    if SAMPLER in done.stderr:
        return done.returncode, {}
    assert not done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("mutant", [mutant_param(mutant, mutant.name not in ALWAYS) for mutant in MUTANTS])
def test_prove_detects_and_names_each_defect(mutant: Mutant, tmp_path: Path) -> None:
    code, document = prove_in(write_mutant(mutant, tmp_path / "copy"))
    assert code == 1
    assert not document.get("ok")
    failed = [check["quantity"] for check in document["checks"] if not check["ok"]] if document else [SAMPLER]
    assert MUTANTS[mutant] in failed


@pytest.mark.exhaustive
def test_prove_passes_on_an_unmodified_copy(tmp_path: Path) -> None:
    """If `prove` failed for an unmodified copy, its failures for mutants would be meaningless."""
    code, document = prove_in(write_mutant(UNBROKEN, tmp_path / "copy"))
    assert (code, document["ok"]) == (0, True)


@pytest.fixture(scope="module")
def computed() -> Proof:
    return prove()


@pytest.fixture
def proof(computed: Proof, monkeypatch: pytest.MonkeyPatch) -> Proof:
    """The result of `prove` in this process, which the command then prints without computing it again."""
    monkeypatch.setattr("envs.prove.prove", lambda: computed)
    return computed


def test_prove_command_passes(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove"]) == 0
    output = capsys.readouterr()
    assert "Both adapters give the engine the same numbers" in output.out
    assert not output.err


@pytest.mark.parametrize(
    ("seed", "critic"), [pytest.param(1, "independent", marks=pytest.mark.exhaustive), (2, "shared")]
)
def test_prove_holds_for_other_seeds_and_a_shared_critic(seed: int, critic: Literal["independent", "shared"]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        proof = prove(seed, critic)
        assert torch.get_num_threads() == 2  # restored to the caller's value
    finally:
        torch.set_num_threads(before)
    assert [check for check in proof.checks if not check.ok] == []
    assert all(proof.cases.values())


def test_prove_json_contains_every_number(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    checks = {check["quantity"]: check for check in document["checks"]}
    assert document["ok"]
    assert document["tolerance"] == TOLERANCE
    assert checks["steps"]["largest"] > 20
    needed = {"logprobs", "values", "rewards", "next_values", "advantages", "returns", "loss: total"}
    assert needed | {"gradient: policy", "gradient: critic", "exact policy gradient"} <= checks.keys()
    for name in needed | {"gradient: policy", "gradient: critic"}:
        assert checks[name]["largest"] > 0
        assert checks[name]["difference"] <= TOLERANCE * max(1.0, checks[name]["largest"])


# The environment


def uniform(prefix: list[int]) -> np.ndarray:
    return np.full(4, np.log(0.25))


OPTIONS: dict[str, Any] = {
    "prompts": [[0], [1, 2], [2, 0, 1]],
    "vocabulary": 4,
    "end_tokens": [3],
    "max_new_tokens": 3,
    "policy": uniform,
    "reference": uniform,
    "score": lambda prompt, response: float(10 * len(prompt) + len(response)),
    "kl_coef": 0.1,
}


def test_token_mdp_passes_gymnasium_check() -> None:
    """Gymnasium's environment check reports problems as warnings, which are errors in these tests."""
    check_env(TokenMDP(**OPTIONS), skip_render_check=True)
    env = gym.make("envs.token_mdp:TokenMDP-v0", **OPTIONS)
    check_env(env.unwrapped, skip_render_check=True)


def test_prompts_are_drawn_without_replacement() -> None:
    env, seen = TokenMDP(**OPTIONS), []
    for number in range(6):
        prompt, response = decode_obs(env.reset(seed=7 if number == 0 else None)[0].tolist())
        assert response == []
        seen.append(prompt)
    assert sorted(seen[:3]) == sorted(seen[3:]) == OPTIONS["prompts"]


@pytest.mark.parametrize(("actions", "score"), [([0, 3], 12.0), ([3], 11.0), ([0, 1, 2], 13.0), ([0, 1, 3], 13.0)])
def test_token_episode_ends_and_is_scored_at_eos_or_limit(actions: list[int], score: float) -> None:
    env = TokenMDP(**OPTIONS | {"prompts": [[1]]})
    env.reset(seed=0)
    for number, action in enumerate(actions, 1):
        obs, reward, terminated, truncated, _ = env.step(np.int64(action))
        assert decode_obs(obs.tolist()) == ([1], actions[:number])
        assert terminated == (number == len(actions))
        assert reward == (score if terminated else 0.0)
        assert not truncated


def test_worked_rollout_agrees_in_both_adapters() -> None:
    """This is the example in docs/prove.md: a prompt of two tokens, the response "a b END", kl_coef = 0.1 and score 1."""
    log_ratios = {2: 0.2, 3: -0.1, 4: 0.3}  # length of the prefix -> log ratio of the next token
    a, b, end = 0, 1, 2

    def policy(prefix: list[int]) -> np.ndarray:
        return uniform(prefix)[:3] + log_ratios[len(prefix)]

    mdp = OPTIONS | {"prompts": [[a, b]], "vocabulary": 3, "end_tokens": [end], "policy": policy}
    mdp |= {"reference": lambda prefix: uniform(prefix)[:3], "score": lambda prompt, response: 1.0}
    env = TokenMDP(**mdp)
    env.reset(seed=0)
    stepped = [env.step(np.int64(token))[1] for token in (a, b, end)]
    assert stepped == pytest.approx([-0.02, 0.01, 0.97])

    mask = torch.tensor([[False, True, True, True]])
    read_whole = token_rewards(torch.ones(1), torch.tensor([[9.0, 0.2, -0.1, 0.3]]), 0.1, mask)
    assert read_whole[0].tolist() == pytest.approx([0.0, *stepped])

    values = torch.tensor([[0.5, 0.6, 0.8]])
    expected = [0.432925, 0.3715, 0.17]
    assert advantages(torch.tensor([stepped]), values, mask[:, 1:])[0].tolist() == pytest.approx(expected)
    padded = torch.cat([torch.full((1, 1), 9.0), values], 1)
    assert advantages(read_whole, padded, mask)[0].tolist() == pytest.approx([0.0, *expected])


def advantages(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return GAE with gamma = 1 and lambda = 0.95 for one episode that ends in the last column."""
    last = torch.arange(mask.shape[1]) == mask.shape[1] - 1
    rollout = Rollout(
        obs=torch.zeros(mask.shape),
        actions=torch.zeros(mask.shape),
        logprobs=torch.zeros(mask.shape),
        values=values,
        rewards=rewards,
        next_values=torch.where(last, 0.0, values.roll(-1, 1)),
        continues=mask & ~last,
        mask=mask,
        row_len=1,
    )
    return gae(rollout, 1.0, 0.95)
