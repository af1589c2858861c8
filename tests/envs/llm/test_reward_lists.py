"""Tests of several weighted rewards, responses that are left out, token-level rewards and chats in rewards."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.llm.adapter import ATTEMPTS, LLMAdapter
from envs.llm.evaluation import report
from envs.llm.options import LLMConfig
from envs.llm.play import chat
from envs.llm.rewards import reward_model
from envs.llm.rewards.errors import RewardError
from envs.llm.rewards.names import TAKEN, reward_names
from ppo_unified import load_preset
from ppo_unified.cli import reward_model as reward_model_command
from ppo_unified.cli.main import main
from ppo_unified.config.presets import from_file
from ppo_unified.config.schema import typed_options
from ppo_unified.config.values import format_flag, format_value, join_words, read_value
from ppo_unified.engine.ppo import make_batch, make_learner, train
from ppo_unified.errors import UsageError
from ppo_unified.runs.metrics import METRICS, find_metric
from tests.models import make_tokenizer, save_model

CPU = torch.device("cpu")
PROMPTS = ["1+2=", "a", "what is longer than the others?", "12", "xy", "7*8 is"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}!{% endif %}"
)
GROUP = {"gamma": 1.0, "lam": 1.0, "value_coef": 0.0, "value_clip": 0.0, "normalize_advantages": "none"}
SEEN: list[dict[str, Any]] = []


def length(prompts: list[str], responses: list[str]) -> list[float]:
    return [0.1 * len(text) for text in responses]


def vowels(prompts: list[str], responses: list[str]) -> list[float | None]:
    """A reward that does not apply to the first response."""
    return [None, *(float(sum(c in "aeiou" for c in text)) for text in responses[1:])]


def odd(prompts: list[str], responses: list[str]) -> list[float | None]:
    """A reward that applies to every second response."""
    return [float(len(text)) if number % 2 else None for number, text in enumerate(responses)]


def nothing(prompts: list[str], responses: list[str]) -> list[None]:
    return [None] * len(responses)


def per_token(prompts: list[str], responses: list[str], token_ids: list[list[int]]) -> list[list[float]]:
    return [[0.25 * (token % 5) for token in row] for row in token_ids]


def too_short(prompts: list[str], responses: list[str], token_ids: list[list[int]]) -> list[list[float]]:
    return [[0.0] * (len(row) - 1) for row in token_ids]


def recording(
    prompts: list[str],
    responses: list[str],
    messages: list[Any],
    raw_prompts: list[Any],
    tokens: list[list[str]],
    token_ids: list[list[int]],
) -> list[float]:
    SEEN.append({"prompts": prompts, "responses": responses, "messages": messages, "raw_prompts": raw_prompts})
    SEEN[-1] |= {"tokens": tokens, "token_ids": token_ids}
    return [0.0] * len(responses)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards")
    (path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS), encoding="utf-8")
    (path / "chats.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n", encoding="utf-8")
    save_model(path / "lm")
    shutil.copytree(path / "lm", path / "chat-lm")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path / "chat-lm")
    return path


def make_config(folder: Path, *rewards: str, weights: list[float] | None = None, **tables: Any) -> LLMConfig:
    llm = {"model": str(folder / "lm"), "prompts": str(folder / "prompts.jsonl"), "reward_weights": weights or []}
    llm |= {"reward": [f"{__name__}:{name}" if name in globals() else name for name in rewards]}
    llm |= {"max_new_tokens": 12, "rollout_batch": 6, "kl_coef": 0.1} | tables.pop("llm", {})
    return LLMConfig.model_validate({"llm": llm, "threads": 1, "total_steps": 10**6} | tables)


def make_adapter(folder: Path, *rewards: str, **options: Any) -> LLMAdapter:
    return LLMAdapter(make_config(folder, *rewards, **options), CPU, notes=False)


# ---------------------------------------------------------------- several rewards


def test_score_is_the_weighted_sum(folder: Path) -> None:
    """A reward that returns None for a response does not apply to it: the score is the sum of the others."""
    adapter = make_adapter(folder, "length", "vowels", "regex:[aeiou]", weights=[2.0, -0.5, 0.0])
    rollout = adapter.collect()
    responses = _texts(adapter, rollout)
    own, other = [0.1 * len(x) for x in responses], [sum(c in "aeiou" for c in x) for x in responses]
    totals = [2 * a - 0.5 * b * (i > 0) for i, (a, b) in enumerate(zip(own, other, strict=True))]
    metrics, ends = rollout.metrics, rollout.extras["score"].sum(1)
    np.testing.assert_allclose(ends, totals, atol=1e-6)
    assert metrics["reward/score"] == pytest.approx(np.mean(totals))
    assert metrics["reward/length-reward"] == pytest.approx(np.mean(own))
    assert metrics["reward/vowels"] == pytest.approx(np.mean(other[1:]))
    assert metrics["reward/regex"] == pytest.approx(np.mean([any(c in "aeiou" for c in x) for x in responses]))
    assert "reward/left_out" not in metrics


def _texts(adapter: LLMAdapter, rollout: Any) -> list[str]:
    rows = [rollout.actions[row, mask].tolist() for row, mask in enumerate(_chosen(rollout))]
    return [adapter.tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]


def _chosen(rollout: Any) -> Tensor:
    mask: Tensor = rollout.mask
    return mask


def test_weight_zero_does_not_change_training(folder: Path) -> None:
    adapters = make_adapter(folder, "length"), make_adapter(folder, "length", "vowels", weights=[1.0, 0.0])
    alone, watched = (adapter.collect() for adapter in adapters)
    assert torch.equal(alone.rewards, watched.rewards)
    assert {"reward/length-reward", "reward/vowels"} == watched.metrics.keys() - alone.metrics.keys()
    assert adapters[1].config.watched_scores == ["reward/vowels"]
    metrics = report(adapters[1], 6, 0).metrics
    assert metrics["eval/length-reward"] == pytest.approx(metrics["eval/sampled_score"])
    assert metrics["eval/vowels"] != metrics["eval/sampled_score"]


def test_reward_names_are_unique_and_safe_as_tags() -> None:
    sources = [
        "my.mod:score",
        "other:good",
        "a/b/good",
        "regex:a,b",
        "regex:c",
        "length:9",
        "org/RM-7b",
        "./x y/",
        "m:_",
    ]
    names = ["score-reward", "good", "good-2", "regex", "regex-2", "length-reward", "RM-7b", "x-y", "_"]
    assert reward_names(sources) == names
    areas = [tag.partition("/")[2] for tag in METRICS if tag.startswith(("reward/", "eval/")) and "NAME" not in tag]
    assert set(areas) - {"info/KEY"} <= TAKEN
    assert find_metric("reward/good") is METRICS["reward/NAME"]
    assert find_metric("reward/score") is METRICS["reward/score"]


VALUES: tuple[list[str], ...] = (
    ["numeric"], ["regex:\\d{1,3}"], ["regex:a, b", "length:3"], ["regex:it's"], ["regex:'a'b \"c\" d", "x"], ["'a'"],
    ["regex:\\(", "b"], ["regex:[a, b]"], ["a b", "c"], [],
)  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_rewards_survive_form_and_command_line(value: list[str]) -> None:
    declared = typed_options(LLMConfig)["llm.reward"]
    assert read_value(format_value(value, declared), declared) == value
    flag = format_flag("llm.reward", value, declared)
    assert flag == ["--llm.reward", *value]
    assert read_value(join_words(flag[1:], declared), declared) == value


def test_rewards_in_a_form_are_separated_by_spaces() -> None:
    declared = typed_options(LLMConfig)["llm.reward"]
    assert read_value(" numeric  regex:\\d{1,3} 'regex:a b' ", declared) == ["numeric", "regex:\\d{1,3}", "regex:a b"]


def test_one_reward_may_be_text() -> None:
    """TOML files and Python code may give a single reward without a list."""
    for given in ("numeric", ["numeric"]):
        config = load_preset("llm", llm={"reward": given})
        assert isinstance(config, LLMConfig)
        assert [tuple(x) for x in config.llm.rewards] == [("numeric", 1.0, "numeric")]


WRONG = {
    "count": (
        ["--llm.reward-weights", "1", "0", "2"],
        "llm.reward_weights: expected 2 numbers, one for each reward in",
    ),
    "all zero": (
        ["--llm.reward-weights", "0", "0"],
        "llm.reward_weights = [0.0, 0.0]: at least one weight must not be",
    ),
    "text": (["--llm.reward-weights", "a"], "--llm.reward-weights: expected numbers separated by spaces, got 'a'"),
    "removed": (
        ["--llm.proxy-of", "numeric"],
        "--llm.proxy-of is not supported: add the reward to llm.reward and give",
    ),
    "unknown": (["--llm.reward", "length:3", "numerc"], "llm.reward = 'numerc': expected a built-in reward,"),
    "column": (["--llm.reward", "length:3", "numeric"], "missing key 'answer', which llm.reward = 'numeric' needs"),
    "critic": (
        ["--llm.critic-init", "reward"],
        "llm.critic_init = 'reward' needs a reward model, but llm.reward = 'length:3', 'regex:a' are functions; set",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rewards_start_no_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    flags, message = WRONG[name]
    given = ["--llm.model", str(folder / "lm"), "--llm.prompts", str(folder / "prompts.jsonl")]
    assert main(["train", "llm", *given, "--llm.reward", "length:3", "regex:a", "--total-iterations", "1", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "runs").exists()


def test_stored_proxy_of_becomes_a_reward_without_weight(tmp_path: Path) -> None:
    config = load_preset("sentiment").to_toml()
    new = 'reward = [\n    "sentiment",\n    "sentiment-gold",\n]\nreward_weights = [\n    1.0,\n    0.0,\n]\n'
    assert new in config
    for old, expected in (('reward = "sentiment"\nproxy_of = "sentiment-gold"\n', ["sentiment", "sentiment-gold"]),
                          ('reward = ""\nproxy_of = "numeric"\n', ["sentiment", "numeric"]),
                          ('reward = "numeric"\nproxy_of = ""\n', ["numeric"])):  # fmt: skip
        (tmp_path / "config.toml").write_text(config.replace(new, old), encoding="utf-8")
        with pytest.raises(UsageError, match=r"llm\.proxy_of is not supported: add the reward to llm\.reward and give"):
            from_file(tmp_path / "config.toml")
        (tmp_path / "run.json").write_text("{}", encoding="utf-8")
        found = from_file(tmp_path / "config.toml")
        assert isinstance(found, LLMConfig)
        assert [(x.source, x.weight) for x in found.llm.rewards] == list(zip(expected, (1.0, 0.0), strict=False))
        (tmp_path / "run.json").unlink()


# ---------------------------------------------------------------- None


@pytest.mark.parametrize("baseline", ["critic", "rloo", "grpo"])
def test_none_leaves_a_response_out_of_the_loss(folder: Path, baseline: str) -> None:
    group = {} if baseline == "critic" else {"baseline": baseline, "group_size": 3}
    tables = {"llm": group | {"score_normalize": "running"}, "ppo": {} if baseline == "critic" else GROUP}
    adapter = make_adapter(folder, "odd", **tables)
    rollout = adapter.collect()
    kept = rollout.mask.any(1)
    assert kept.tolist() == [False, True] * 3
    assert rollout.metrics["reward/left_out"] == 0.5
    scores = rollout.extras["score"].sum(1)
    assert adapter.scores.count == 3
    assert rollout.metrics["reward/score"] == pytest.approx(float(scores[kept].mean()))
    assert (
        rollout.metrics["reward/total"] == pytest.approx(float(rollout.rewards[kept].sum(1).mean()), abs=1e-5) or group
    )
    assert not any(x[~kept].any() for x in (rollout.rewards, rollout.values * rollout.mask, scores))
    assert not rollout.continues[~kept].any()
    batch = make_batch(rollout, adapter.config.ppo)
    assert len(batch) == 3
    if baseline == "rloo":  # of three responses, the group keeps the second, or the first and the third
        returns = rollout.rewards.sum(1)
        advantages = returns - rollout.values.max(1).values.where(kept, torch.zeros(6))
        first, last = (float(rollout.values[row][rollout.mask[row]][0]) for row in (3, 5))
        assert (first, last) == pytest.approx((float(returns[5]), float(returns[3])), rel=1e-5)
        assert math.isfinite(float(advantages.sum()))
        alone = rollout.values[1][rollout.mask[1]]
        torch.testing.assert_close(alone, returns[1].expand_as(alone))


def test_iteration_with_left_out_responses_trains(folder: Path) -> None:
    adapter = make_adapter(folder, "odd", ppo={"epochs": 1, "minibatches": 2, "microbatch_columns": 1})
    learner = make_learner(adapter.policy, adapter.config.ppo, adapter.config.optim, total_iterations=2)
    for iteration in train(adapter, learner):
        assert iteration.metrics["invariant/first_ratio_error"] < 1e-4
        assert iteration.metrics["invariant/optimizer_steps_error"] == 0


def test_batch_without_scores_is_sampled_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(folder, "length")
    scores, results = adapter.rewards.functions[0], iter([[None] * 6, [None] * 6])
    monkeypatch.setattr(adapter.rewards, "functions", [lambda p, r, **_: next(results, None) or scores(p, r)])
    assert adapter.collect().mask.any(1).all()
    assert capsys.readouterr().err == "llm.reward returned None for all 6 responses; sampling new ones\n" * 2
    never = make_adapter(folder, "nothing")
    with pytest.raises(RewardError, match=f"returned None for all responses of {ATTEMPTS} attempts in a row"):
        never.collect()
    with pytest.raises(RewardError, match="returned None for all 6 responses of an evaluation"):
        never.score(6, 0, True)


def test_play_explains_a_missing_score(folder: Path) -> None:
    exchange = chat(make_adapter(folder, "nothing"), 0, True).answer("a")
    assert (exchange.policy.score, exchange.remark) == (None, "no score: the reward returned None")


# ---------------------------------------------------------------- token-level rewards


@pytest.mark.parametrize("normalize", ["none", "running"])
def test_token_rewards_are_added_at_each_token(folder: Path, normalize: str) -> None:
    """The rewards of a response add up to its used score. Without normalization, each token gets its own number."""
    llm = {"kl_coef": 0.0, "score_normalize": normalize, "score_clip": 0.0 if normalize == "none" else 0.5}
    adapter = make_adapter(folder, "per_token", "length", weights=[2.0, 1.0], llm=llm)
    rollout = adapter.collect()
    mask, used = rollout.mask, rollout.extras["score_used"].sum(1)
    torch.testing.assert_close(rollout.rewards.sum(1), used.float(), atol=1e-5, rtol=0)
    own = torch.where(mask, 0.5 * (rollout.actions % 5), 0.0)
    lengths = torch.tensor([0.1 * len(x) for x in _texts(adapter, rollout)])
    torch.testing.assert_close(rollout.extras["score"].sum(1).float(), own.sum(1) + lengths, atol=1e-5, rtol=0)
    last = mask & ~rollout.continues
    inner = mask & ~last
    torch.testing.assert_close(rollout.rewards[inner], own[inner] / adapter.scores.scale, atol=1e-5, rtol=0)
    if normalize == "none":
        torch.testing.assert_close(rollout.rewards[last], own[last] + lengths, atol=1e-5, rtol=0)
    assert (adapter.scores.scale != 1) == (normalize == "running")


def test_token_rewards_need_one_number_per_token(folder: Path) -> None:
    with pytest.raises(RewardError) as caught:
        make_adapter(folder, "too_short").collect()
    error = str(caught.value)
    assert error.startswith(
        "llm.reward: expected one number for each of the response's 12 tokens, which include its end "
    )
    assert "token, got 11 for prompt '" in error
    assert "response '" in error


# ---------------------------------------------------------------- arguments of reward functions


def test_function_receives_the_arguments_that_it_names(folder: Path) -> None:
    SEEN.clear()
    adapter = make_adapter(folder, "recording")
    rollout = adapter.collect()
    (seen,) = SEEN
    assert seen["raw_prompts"] == seen["prompts"]
    assert seen["messages"] == [[{"role": "user", "content": prompt}] for prompt in seen["prompts"]]
    assert seen["token_ids"] == [rollout.actions[row, mask].tolist() for row, mask in enumerate(rollout.mask)]
    assert [len(row) for row in seen["tokens"]] == rollout.mask.sum(1).tolist()
    assert all(
        adapter.tokenizer.decode([i]) == text for i, text in zip(seen["token_ids"][0], seen["tokens"][0], strict=True)
    )


@pytest.mark.parametrize("kind", ["chats.jsonl", "prompts.jsonl"])
def test_function_receives_chat_and_formatted_prompt(folder: Path, kind: str) -> None:
    SEEN.clear()
    llm = {"model": str(folder / "chat-lm"), "prompts": str(folder / kind), "chat_template": kind == "prompts.jsonl"}
    make_adapter(folder, "recording", llm=llm).collect()
    for prompt, messages, raw in zip(*(SEEN[0][x] for x in ("prompts", "messages", "raw_prompts")), strict=True):
        assert messages == (raw if kind == "chats.jsonl" else [{"role": "user", "content": raw}])
        assert prompt == "".join(f"<{m['role']}>{m['content']}" for m in messages) + "!"


def test_column_replaces_an_argument_of_the_same_name(folder: Path, tmp_path: Path) -> None:
    SEEN.clear()
    record = {"prompt": "a", "messages": "own", "tokens": 3}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(record), encoding="utf-8")
    make_adapter(folder, "recording", llm={"prompts": str(tmp_path / "prompts.jsonl"), "rollout_batch": 4}).collect()
    assert SEEN[0]["messages"] == ["own"] * 4
    assert SEEN[0]["tokens"] == [3] * 4


# ---------------------------------------------------------------- chats in reward models


@pytest.fixture(scope="module")
def reward_folder(folder: Path) -> Path:
    from transformers import AutoModelForSequenceClassification

    path = folder / "reward-model"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<", "[").replace(">", "]")
    AutoModelForSequenceClassification.from_pretrained(folder / "lm", num_labels=1).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("case", ["chat", "plain text", "no template", "trained here"])
def test_reward_model_formats_chats_itself(
    folder: Path, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    path = Path(shutil.copytree(reward_folder, tmp_path / "reward"))
    if case == "no template":
        make_tokenizer().save_pretrained(path)
        (path / "chat_template.jinja").unlink(missing_ok=True)
    if case == "trained here":
        (path / reward_model_command.DESCRIPTION).write_text("{}", encoding="utf-8")
    read = list[str]()
    encode = reward_model.encode

    def observe(tokenizer: Any, text: str, **options: Any) -> list[int]:
        read.append(text)
        return encode(tokenizer, text, **options)

    monkeypatch.setattr(reward_model, "encode", observe)
    prompts = folder / ("prompts.jsonl" if case == "plain text" else "chats.jsonl")
    llm = {"model": str(folder / "chat-lm"), "prompts": str(prompts), "rollout_batch": 4}
    adapter = make_adapter(folder, str(path), llm=llm)
    rollout = adapter.collect()
    own, theirs = "[system]Be brief.[user]Hi[assistant]", "<system>Be brief.<user>Hi!"
    starts = {"chat": own, "no template": theirs, "trained here": theirs, "plain text": ""}
    texts = _texts(adapter, rollout)
    for text, response in zip(read, texts, strict=True):
        assert text.startswith(starts[case])
        assert text.endswith(response)
        assert case == "plain text" or text == starts[case] + response
    assert reward_model.TRAINED_ON_TEXT == reward_model_command.DESCRIPTION


def test_failing_reward_template_is_explained(folder: Path, reward_folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(reward_folder, tmp_path / "reward"))
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    tokenizer.save_pretrained(path)
    llm = {"model": str(folder / "chat-lm"), "prompts": str(folder / "chats.jsonl")}
    with pytest.raises(RewardError, match=r"the chat template of its tokenizer failed \(no system messages\)"):
        make_adapter(folder, str(path), llm=llm).collect()
