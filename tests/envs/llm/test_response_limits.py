"""Tests of the options that limit prompts and responses: stop strings, the minimum length and long prompts."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from envs.llm.adapter import LLMAdapter
from envs.llm.export import export
from envs.llm.generate import Responses
from envs.llm.options import LLMConfig
from envs.llm.play import LLMChat
from envs.llm.policy import NOT_CHOSEN, tokens_of
from envs.llm.rewards.errors import RewardError
from envs.llm.rewards.scoring import Scores
from envs.llm.stop_strings import StopStrings
from ppo_unified.errors import UsageError
from ppo_unified.testing import check_adapter
from tests.models import make_tokenizer, save_model

CPU = torch.device("cpu")
END = 257
PROMPTS = ["1+2=", "a", "12", "xy", "7*8 is", "longer than the others"]
SEEN: list[str] = []  # the responses that the reward function received


def remember(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    SEEN.extend(responses)
    return [float(len(text)) for text in responses]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("limits")
    (path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS), encoding="utf-8")
    save_model(path / "lm")
    return path


def make_config(folder: Path, **llm: Any) -> LLMConfig:
    given = {"model": str(folder / "lm"), "prompts": str(folder / "prompts.jsonl"), "reward": f"{__name__}:remember"}
    sizes = {"max_new_tokens": 24, "rollout_batch": 12, "kl_coef": 0.1}
    return LLMConfig.model_validate({"llm": given | sizes | llm, "total_steps": 10**6, "threads": 1})


def make_adapter(folder: Path, **llm: Any) -> LLMAdapter:
    return LLMAdapter(make_config(folder, **llm), CPU)


def full_texts(adapter: LLMAdapter, responses: Responses) -> list[str]:
    ids = [responses.response(row) for row in range(len(responses.lengths))]
    return list(adapter.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


# stop strings


def test_response_ends_where_a_stop_string_is_complete(folder: Path) -> None:
    """Up to this token, responses equal those without stop strings; the reward gets the text before the string."""
    plain = make_adapter(folder)
    prompts = plain.prompts.tokens
    free = plain.respond(prompts, None)
    texts = full_texts(plain, free)
    stop = sorted({text[4:6] for text in texts if len(text) > 8})[:2]
    adapter = make_adapter(folder, stop=stop)
    found = adapter.respond(prompts, None)
    assert found.ended.any()
    for row, text in enumerate(texts):
        whole, ids = free.response(row), found.response(row)
        assert ids == whole[: len(ids)]
        starts = [text.find(string) for string in stop if string in text]
        assert bool(found.ended[row]) == bool(starts) or ids[-1] == END
        if starts:
            assert not any(string in full_texts(adapter, found)[row][:-1] for string in stop)
            assert adapter.texts(found)[row] == text[: min(starts)]


def test_reward_and_metrics_use_the_ended_response(folder: Path) -> None:
    SEEN.clear()
    adapter = make_adapter(folder, stop=["e", "\n", "a"])
    rollout = adapter.collect()
    assert len(SEEN) == 12
    assert not any(set(text) & set("e\na") for text in SEEN)
    assert rollout.metrics["response/eos_rate"] > make_adapter(folder).collect().metrics["response/eos_rate"]
    check_adapter(lambda: make_adapter(folder, stop=["e", "\n", "a"], min_new_tokens=3), tolerance=2e-5)


class WordTokenizer:
    """A tokenizer in the style of SentencePiece, whose `decode` drops a leading space."""

    pieces = ("<s>", "\u2581", "\u2581Question", ":", "Que", "stion", "\n", "é"[0], "Q", "u")
    all_special_ids = (0,)

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.pieces[i] for i in ids if i).replace("\u2581", " ").removeprefix(" ")


@pytest.mark.parametrize("stop", [["\nQuestion:"], [" Question"], ["Que"], ["\n ", "é"], ["stion:", "uu"]])
def test_stop_string_is_found_at_the_token_that_completes_it(stop: list[str]) -> None:
    """The result equals a search in the whole decoded text, for all short sequences of tokens."""
    tokenizer = WordTokenizer()
    strings = StopStrings(tokenizer, stop)
    for ids in product(range(len(tokenizer.pieces)), repeat=4):
        before, after = tokenizer.decode(list(ids[:-1])), tokenizer.decode(list(ids))
        if not any(string in before for string in stop):
            assert strings.completes(ids) == any(string in after for string in stop), ids


def test_stop_string_of_several_bytes_per_character() -> None:
    tokenizer = make_tokenizer()
    strings = StopStrings(tokenizer, ["语言", "é!"])
    ids = tokenizer("ab 语言 é!")["input_ids"]
    assert [strings.completes(ids[: i + 1]) for i in range(len(ids))].index(True) == len("ab 语言".encode()) - 1 + (
        ids[0] == tokenizer.bos_token_id
    )
    assert strings.cut("ab 语言 é!") == "ab "
    assert strings.cut("ab é! 语言") == "ab "
    assert strings.cut("abc") == "abc"


def test_special_tokens_inside_a_stop_string_are_ignored() -> None:
    tokenizer = make_tokenizer()
    strings, special = StopStrings(tokenizer, ["ab"]), tokenizer.pad_token_id
    a, b = (tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "ab")
    assert strings.completes([a, *[special] * 9, b])
    assert not strings.completes([a, b, special])


def test_play_and_export_use_the_stop_strings(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter(folder, stop=["e", "\n", "a"], min_new_tokens=2)
    chat = LLMChat(adapter, 0, greedy=True)
    for prompt in PROMPTS:
        assert not set(chat.answer(prompt).policy.text) & set("e\na")
    export(adapter, tmp_path, {"run": "a", "kind": "llm", "step": 1, "score": None, "versions": {}})
    settings = GenerationConfig.from_pretrained(tmp_path)
    assert (settings.stop_strings, settings.min_new_tokens) == (["e", "\n", "a"], 2)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert 'A response ends with "e" or "\\n" or "a"; this string is not part of its text.' in page
    code = (
        page.split("```python\n")[1]
        .split("```")[0]
        .replace("model.generate(ids", "model.generate(ids, do_sample=False")
    )
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), values)
    shortest = min(adapter.held_out.data.prompts, key=len)
    assert values["text"] == chat.answer(str(shortest)).policy.text


# the minimum length


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_early_tokens_cannot_be_end_tokens(folder: Path, temperature: float) -> None:
    """Sampling, log-probs, reference and KL refer to the distribution without end tokens in the first steps."""
    adapter = make_adapter(folder, min_new_tokens=5, temperature=temperature)
    adapter.policy.end_tokens = adapter.end_tokens = [*adapter.end_tokens, *range(32, 127)]  # most text would end
    plain = make_adapter(folder, temperature=temperature)
    plain.policy.end_tokens = plain.end_tokens = list(adapter.end_tokens)
    lengths = plain.collect().mask.sum(1)
    rollout = adapter.collect()
    assert lengths.min() < 5 <= int(rollout.mask.sum(1).min()) < 10
    tokens = tokens_of(rollout.obs)
    for row, mask in enumerate(rollout.mask):
        states = tokens[row, : int(mask.nonzero().max()) + 1]
        with torch.no_grad():
            logits = adapter.policy.network.model(states[None]).logits[0] / temperature
        logits = logits[mask[: len(states)]]
        logits[:5, adapter.end_tokens] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, rollout.actions[row, mask][:, None]).squeeze(1)
        torch.testing.assert_close(rollout.logprobs[row, mask], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.extras["logprob_ref"], rollout.logprobs)
    assert rollout.extras["kl_full"].abs().max() < 1e-6
    evaluation = adapter.policy.evaluate(rollout.obs, rollout.actions)
    torch.testing.assert_close(evaluation.logprobs, rollout.logprobs, atol=1e-5, rtol=0)
    assert evaluation.entropy.isfinite().all()
    evaluation.logprobs.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in adapter.policy.parameters())


def test_end_tokens_are_allowed_after_the_minimum(folder: Path) -> None:
    adapter = make_adapter(folder, min_new_tokens=2)
    tokens, actions = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[NOT_CHOSEN, 9, 9, END]])
    policy = adapter.policy
    found, _, own = policy.likeliest(tokens, actions != NOT_CHOSEN, actions, 1000, adapter.reference)
    assert own.isfinite().all()
    assert [int(row.tolist().index(END) == len(row) - 1) for row in found] == [1, 1, 0]


@pytest.mark.parametrize(
    ("llm", "expected"),
    [
        ({"min_new_tokens": 25}, "llm.min_new_tokens = 25 is greater than llm.max_new_tokens = 24"),
        ({"stop": ["a", ""]}, "llm.stop: expected strings that are not empty, got ''"),
    ],
)
def test_invalid_limits_are_rejected(folder: Path, llm: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make_config(folder, **llm)


# long prompts


def test_long_prompts_are_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make_adapter(folder, max_new_tokens=120, long_prompts="skip")
    kept = [prompt for prompt in PROMPTS if len(prompt) <= 8]
    assert adapter.prompts.texts == adapter.prompts.data.prompts == kept
    adapter.collect()
    expected = f"prompts.jsonl: skipped 1 of {len(PROMPTS)} prompts, which have more than 8 tokens\n"
    assert capsys.readouterr().err.count(expected) == 1
    with pytest.raises(UsageError, match="expected a prompt of at most 8 tokens"):
        LLMChat(adapter, 0, greedy=True).answer(PROMPTS[-1])


def test_long_prompts_lose_their_start(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make_adapter(folder, max_new_tokens=120, long_prompts="cut")
    assert adapter.prompts.texts == PROMPTS
    assert adapter.tokenizer.decode(adapter.prompts.tokens[-1]) == "e others"
    adapter.collect()
    assert "cut off the start of 1 of 6 prompts, which have more than 8 tokens\n" in capsys.readouterr().err
    assert LLMChat(adapter, 0, greedy=True).answer(PROMPTS[-1]).prompt == PROMPTS[-1]


def test_error_if_no_prompt_is_left(folder: Path) -> None:
    (folder / "long.jsonl").write_text('{"prompt": "longer than the context"}\n', encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"long.jsonl: all 1 prompts have more than 8 tokens .*, so none is left; lower"
    ):
        make_adapter(folder, prompts=str(folder / "long.jsonl"), max_new_tokens=120, long_prompts="skip")


# truncated responses


def test_truncated_responses_are_left_out_of_the_loss(folder: Path) -> None:
    ends = {"max_new_tokens": 6, "stop": ["e", "a", "\n", "1"]}
    plain, adapter = make_adapter(folder, **ends), make_adapter(folder, **ends, drop_truncated=True)
    rollout = adapter.collect()
    kept = rollout.mask.any(1)
    everything = plain.collect()
    ended = everything.metrics["response/eos_rate"]
    assert 0 < ended < 1
    assert rollout.metrics["response/eos_rate"] == ended
    assert kept.float().mean().item() == pytest.approx(ended)
    assert rollout.metrics["reward/left_out"] == pytest.approx(1 - ended)
    assert torch.equal(rollout.mask[kept], everything.mask[kept])
    torch.testing.assert_close(rollout.rewards[kept], everything.rewards[kept])
    assert not rollout.rewards[~kept].any()
    check_adapter(lambda: make_adapter(folder, **ends, drop_truncated=True), tolerance=2e-5)


def test_means_of_rewards_exclude_left_out_responses() -> None:
    scores = Scores([1.0, 2.0, None], {"a": [1.0, 4.0, None], "b": [0.5, 0.0, None]}, None).leave_out(
        [True, False, True]
    )
    assert scores.totals == [1.0, None, None]
    assert scores.means("reward") == {"reward/a": 1.0, "reward/b": 0.5}


def test_run_fails_if_every_response_is_truncated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make_adapter(folder, max_new_tokens=1, min_new_tokens=1, drop_truncated=True)
    with pytest.raises(
        RewardError, match=r"llm.max_new_tokens was reached, for all responses .*; raise llm.max_new_tokens"
    ):
        adapter.collect()


def test_eos_penalty_is_rejected_with_dropped_responses(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"llm.missing_eos_penalty = 1.0 has no effect because llm.drop_truncated"):
        make_config(folder, drop_truncated=True, missing_eos_penalty=1.0)
