"""Tests of LoRA reward models: their folder, and their scores when they share the policy's base."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.llm.adapter import REWARD, LLMAdapter
from envs.llm.data import Pair
from envs.llm.model import POLICY, load_trunk
from envs.llm.options import LLMConfig
from envs.llm.quiet import silence_peft
from envs.llm.rewards.functions import load_reward
from envs.llm.rewards.lora_reward_model import WEIGHTS, read_lora_folder
from envs.llm.rewards.reward_model import RewardModel, SharedRewardModel
from ppo_unified import load_preset
from ppo_unified import run as train
from ppo_unified.cli.main import main
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.training import checkpoint, session
from tests.models import save_model

PAIRS = [Pair(f"q{i}: ", f"{'abc'[i % 3]}!", "abcd"[i % 4]) for i in range(24)]
PROMPTS, RESPONSES = ["q1: ", "q2: ", "longer question: "], ["yes!", "no", "neither of the two"]


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.exhaustive)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, another model of the same shape, a LoRA reward model on the base, and prompts."""
    folder = tmp_path_factory.mktemp("lora")
    save_model(folder / "base", request.param)
    save_model(folder / "other", request.param, seed=1)
    save_lora_reward_model(folder / "base", folder / "reward-model")
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p.prompt}) for p in PAIRS), encoding="utf-8")
    return folder


def save_lora_reward_model(base: Path, out: Path, **options: Any) -> None:
    from envs.llm.rewards import train_reward_model  # imports TRL, which only one of several test processes needs

    settings: dict[str, Any] = {"lr": 1e-2, "epochs": 2, "lora_rank": 4, "lora_only": True, "device": "cpu"} | options
    train_reward_model.train(PAIRS, train_reward_model.Settings(str(base), **settings), out, lambda progress: None)


def config(folder: Path, model: str = "base", **llm: Any) -> LLMConfig:
    own = {"model": str(folder / model), "prompts": str(folder / "prompts.jsonl")}
    own["reward"] = str(folder / "reward-model")
    sizes = {"max_new_tokens": 6, "rollout_batch": 8, "lora_rank": 2, "critic": "shared"}
    small = {
        "total_steps": 0,
        "total_iterations": 2,
        "threads": 1,
        "eval": {"episodes": 4},
        "optim": {"lr": 1e-2, "anneal": False},
        "ppo": {"epochs": 1, "minibatches": 2},
    }
    return LLMConfig.model_validate(small | {"llm": own | sizes | llm})


def build(folder: Path, model: str = "base", **llm: Any) -> LLMAdapter:
    return LLMAdapter(config(folder, model, **llm), torch.device("cpu"))


def own_scores(folder: Path) -> Tensor:
    return torch.tensor(RewardModel(str(folder / "reward-model"))(PROMPTS, RESPONSES))


def test_lora_folder_loads_in_peft(folder: Path) -> None:
    """peft computes the same scores from the folder as the reward model."""
    path = str(folder / "reward-model")
    with silence_peft():
        model = AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=1).eval()
    tokenizer = RewardModel(path).tokenizer
    rows = [torch.tensor([tokenizer(p + r)["input_ids"]]) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    with torch.no_grad():
        scores = torch.cat([model(input_ids=ids).logits[:, 0] for ids in rows])
    torch.testing.assert_close(scores, own_scores(folder), rtol=1e-5, atol=1e-5)
    assert len(set(scores.tolist())) == len(scores)
    assert not (folder / "reward-model" / "model.safetensors").exists()


@pytest.mark.parametrize("options", [{}, {"critic": "independent"}, {"lora_targets": ["q_proj", "c_attn"]}])
def test_shared_base_gives_the_same_scores(folder: Path, options: dict[str, Any]) -> None:
    targets = options.get("lora_targets")
    if targets:
        options = {"lora_targets": [targets["gpt2" in (folder / "base" / "config.json").read_text()]]}
    with closing(build(folder, **options)) as adapter:
        assert isinstance(adapter.rewards.functions[0], SharedRewardModel)
        assert adapter.rewards.functions[0].network is adapter.policy.network
        torch.testing.assert_close(
            torch.tensor(adapter.rewards.functions[0](PROMPTS, RESPONSES)), own_scores(folder), rtol=1e-5, atol=1e-5
        )


def test_two_lora_reward_models_coexist(folder: Path) -> None:
    second = folder / "second"
    if not second.exists():
        save_lora_reward_model(folder / "base", second, seed=5)
    with closing(build(folder, reward=[str(folder / "reward-model"), str(second)])) as adapter:
        models = [x for x in adapter.rewards.functions if isinstance(x, SharedRewardModel)]
        assert [x.name for x in models] == [f"{REWARD}0", f"{REWARD}1"]
        theirs = torch.tensor(RewardModel(str(second))(PROMPTS, RESPONSES))
        torch.testing.assert_close(torch.tensor(models[1](PROMPTS, RESPONSES)), theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            torch.tensor(adapter.rewards.functions[0](PROMPTS, RESPONSES)), own_scores(folder), rtol=1e-5, atol=1e-5
        )


def test_policy_and_reference_are_unaffected_by_lora_reward(folder: Path) -> None:
    """Policy and reference are unchanged after a call of the reward model, which activates its LoRA weights."""
    with closing(build(folder)) as adapter, closing(build(folder, reward="regex:a")) as plain, torch.no_grad():
        tokens = torch.arange(20)[None]
        adapter.rewards.functions[0](PROMPTS, RESPONSES)
        for name in (POLICY, None):
            ours, theirs = (x.policy.network.trunk(tokens, name) for x in (adapter, plain))
            assert torch.equal(ours, theirs)
        assert adapter.reference.network.fingerprint() == plain.reference.network.fingerprint()


def test_lora_reward_model_is_never_trained_or_saved(folder: Path, tmp_path: Path) -> None:
    with closing(build(folder)) as adapter:
        network = adapter.policy.network
        trained = {name for name, p in adapter.policy.named_parameters() if p.requires_grad}
        assert trained
        assert not [name for name in trained if f".{REWARD}0." in name]
        for name in (f"{REWARD}0", None, POLICY, f"{REWARD}0"):  # peft unfreezes the LoRA weights that it activates
            network.use_lora(name)
            assert {n for n, p in adapter.policy.named_parameters() if p.requires_grad} == trained
        assert set(adapter.policy.state_dict()) == trained
    outcome = train(config(folder), tmp_path / "runs", "a")
    assert outcome.state == "finished"
    loaded = load_preset(str(tmp_path / "runs" / "a" / "config.toml"))
    after, _ = session.load_adapter(Run(tmp_path / "runs" / "a"), loaded, "best")
    assert isinstance(after, LLMAdapter)
    with closing(after):
        assert torch.equal(torch.tensor(after.rewards.functions[0](PROMPTS, RESPONSES)), scores_before(folder))
    assert main(["export", "a", "--to", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]) == 0
    for path in tmp_path.rglob("*.safetensors"):
        assert not [key for key in load_file(path) if REWARD in key or "score" in key], path


def scores_before(folder: Path) -> Tensor:
    with closing(build(folder)) as adapter:
        return torch.tensor(adapter.rewards.functions[0](PROMPTS, RESPONSES))


def test_training_starts_at_ratio_one_and_keeps_reward_model(folder: Path) -> None:
    with closing(build(folder)) as adapter:
        rollout = adapter.collect()
        frozen = [p.clone() for p in adapter.policy.network.lora_parameters(REWARD)]
        found = adapter.policy.evaluate(rollout.obs, rollout.actions)
        ratio = (found.logprobs - rollout.logprobs)[rollout.mask].exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-5)
        found.logprobs.sum().backward()
        for before, now in zip(frozen, adapter.policy.network.lora_parameters(REWARD), strict=True):
            assert now.grad is None
            assert torch.equal(before, now)


def test_resumed_run_with_lora_reward_equals_uninterrupted(folder: Path, tmp_path: Path) -> None:
    uninterrupted = train(config(folder), tmp_path, "uninterrupted")
    one = config(folder).model_copy(update={"total_iterations": 1})
    train(one, tmp_path, "resumed")
    assert main(["resume", "resumed", "--total-iterations", "2", "--runs", str(tmp_path)]) == 0
    names = ("uninterrupted", "resumed")
    checkpoints = [checkpoint.load_newest(Run(tmp_path / name), torch.device("cpu")) for name in names]
    weights = [found.policy for found in checkpoints if found]
    assert uninterrupted.state == "finished"
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("options", [{"model": "other"}, {"lora_rank": 0}])
def test_other_base_or_full_model_loads_separately(folder: Path, options: dict[str, Any]) -> None:
    with closing(build(folder, **options)) as adapter:
        assert type(adapter.rewards.functions[0]) is RewardModel
        torch.testing.assert_close(torch.tensor(adapter.rewards.functions[0](PROMPTS, RESPONSES)), own_scores(folder))


def test_critic_can_start_from_lora_reward_model(folder: Path, tmp_path: Path) -> None:
    trunk, head = load_trunk(str(folder / "reward-model"), "llm.critic_init", torch.device("cpu"), torch.float32)
    assert head is not None
    options = {"critic": "independent", "critic_init": "reward"}
    with closing(build(folder, **options)) as adapter, torch.no_grad():
        critic, tokens = adapter.policy.critic, torch.arange(20)[None]
        assert critic is not None
        assert critic.trunk is not None
        assert torch.equal(critic.head.weight, head.weight.float())
        torch.testing.assert_close(critic.trunk.trunk(tokens), trunk(input_ids=tokens).last_hidden_state)
    train(config(folder, **options), tmp_path, "a")
    assert main(["export", "a", "--to", str(tmp_path / "out"), "--runs", str(tmp_path)]) == 0
    assert (tmp_path / "out" / "critic" / "model.safetensors").exists()


def test_changed_base_is_detected(folder: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "reward-model"
    shutil.copytree(folder / "base", base)
    save_lora_reward_model(base, out)
    for path in (folder / "other").glob("*.safetensors"):
        shutil.copy(path, base)
    with pytest.raises(UsageError, match=r"the base .*base has changed since this LoRA was trained") as separate:
        load_reward(str(out))
    with pytest.raises(UsageError, match="has changed since this LoRA was trained") as shared:
        build(folder, model=str(base), reward=str(out))
    assert "\n" not in str(separate.value) + str(shared.value)


def test_unusable_lora_folder_is_a_one_line_error(folder: Path, tmp_path: Path) -> None:
    def copy_folder(name: str) -> Path:
        return Path(shutil.copytree(folder / "reward-model", tmp_path / name))

    headless, torn, lost, odd = (copy_folder(name) for name in ("headless", "torn", "lost", "odd"))
    weights = {key: x for key, x in load_file(headless / WEIGHTS).items() if ".score." not in key}
    save_file(weights, headless / WEIGHTS, metadata={"format": "pt"})
    (torn / WEIGHTS).write_bytes((torn / WEIGHTS).read_bytes()[:100])
    options = json.loads((lost / "adapter_config.json").read_text())
    (lost / "adapter_config.json").write_text(json.dumps(options | {"base_model_name_or_path": str(tmp_path / "no")}))
    (odd / "adapter_config.json").write_text("[1]")
    cases = [(headless, "has no score head"), (torn, "cannot read LoRA weights (")]
    cases += [(lost, "no local folder or hub model has this name"), (odd, "cannot read the LoRA configuration (")]
    for path, message in cases:
        with pytest.raises(UsageError) as caught:
            load_reward(str(path))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora-only"], "--lora-only requires --lora-rank; without it there are no LoRA weights to save"),
        (
            ["--lora-only", "--lora-rank", "2", "--model", "REWARD-MODEL"],
            "expected a full model, got a LoRA folder; use its base",
        ),
    ],
)
def test_unsuitable_lora_training_options_are_rejected(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(p._asdict()) for p in PAIRS), encoding="utf-8")
    flags = [str(folder / "reward-model") if flag == "REWARD-MODEL" else flag for flag in flags]
    where = ["--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["reward-model", "--model", str(folder / "base"), *where, *flags]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_lora_for_another_task_is_not_a_reward_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"task_type": "CAUSAL_LM"}))
    assert read_lora_folder(str(tmp_path)) is None
    assert read_lora_folder(str(tmp_path / "nowhere")) is None
