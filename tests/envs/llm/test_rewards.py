"""Tests of rewards: references, built-in rewards, validation of scores, reward models, and score transforms."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from envs.llm.data import PromptData
from envs.llm.options import LLM
from envs.llm.rewards import reward_model
from envs.llm.rewards.errors import RewardError
from envs.llm.rewards.functions import check_columns, check_reward, last_number, load_reward
from envs.llm.rewards.reward_model import RewardModel
from envs.llm.rewards.score_transforms import ScoreTransforms
from envs.llm.rewards.scoring import score
from envs.llm.tasks import task_prompts
from ppo_unified.errors import UsageError
from tests.models import FAMILIES, VOCABULARY, make_tokenizer, save_model

PROMPTS, RESPONSES = ["one", "two", "three"], ["a", "", "long\x1b[31m\nline " + "x" * 90]


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    logging.disable_progress_bar()


def error_message(call: Any, *arguments: Any, **options: Any) -> str:
    """Return the one-line UsageError of a call."""
    with pytest.raises(UsageError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def failure(reward: Any, prompts: list[str] = PROMPTS, responses: list[str] = RESPONSES, **columns: list[Any]) -> str:
    """Return the one-line RewardError of a reward."""
    with pytest.raises(RewardError) as caught:
        score(reward, "llm.reward", prompts, responses, columns)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(("llm.reward ", "llm.reward: "))
    return str(caught.value)


def numbers(*arguments: Any) -> list[float]:
    """Return the scores of a reward that returns one number per response."""
    scores = score(*arguments)
    assert all(isinstance(x, float) for x in scores)
    return [x for x in scores if isinstance(x, float)]


# ---------------------------------------------------------------- verifiers


def scores_of(reference: str, responses: list[str], **columns: list[Any]) -> list[float]:
    return numbers(load_reward(reference), reference, ["?"] * len(responses), responses, columns)


def test_exact_reward_ignores_surrounding_whitespace() -> None:
    responses = [" Paris\n", "paris", "Paris.", "7", "7"]
    assert scores_of("exact", responses, answer=["Paris", "Paris", "Paris", 7, "7 "]) == [1, 0, 0, 1, 1]


LAST_NUMBERS = {
    "The answer is 7.": 7,
    "1,234,567.50 dollars": 1234567.5,
    "1,2,3": 3,
    "12,34": 34,
    "12,3456": 3456,
    "x = -3": -3,
    "5-3": 3,
    "f(x)-2": 2,
    "between 3-4": 4,
    "(-2)": -2,
    "\u22122.5": -2.5,
    "+.5": 0.5,
    "2e3 or 1.5E-2": 0.015,
    "10 - 4 = 6": 6,
    "10 -4": -4,
    "first 1 then 2.": 2,
    "50%": 50,
    "$72$": 72,
    "18\n#### 72": 72,
    "007": 7,
    "9" * 400: None,
    "none": None,
    "": None,
}


@pytest.mark.parametrize("text", LAST_NUMBERS)
def test_last_number_is_extracted(text: str) -> None:
    assert last_number(text) == LAST_NUMBERS[text]


def test_python_number_formats_are_parsed() -> None:
    rng = random.Random(0)
    for _ in range(300):
        number = rng.choice([rng.randint(-(10**9), 10**9), rng.uniform(-1e4, 1e4), rng.uniform(-1, 1) * 1e-9])
        for written in (f"{number}", f"{number:,}", f"so it is {number}.", f"={number}"):
            assert last_number(written) == pytest.approx(number)


def test_numeric_reward_tolerates_one_millionth() -> None:
    responses = ["about 3.1415926", "3.14", "-1,000", "1000", "no idea", "0", "0.0000001", "so 2 + 2 = 4"]
    answers = [math.pi, math.pi, "-1000", -1000, 5, 0, 0, "Two and two.\n#### 4"]
    assert scores_of("numeric", responses, answer=answers) == [1, 0, 1, 0, 0, 1, 0, 1]


def test_regex_reward_matches_anywhere() -> None:
    assert scores_of("regex:^<a>.*</a>$|x:y", ["<a>1</a>", " <a></a>", "so x:y it is", "x"]) == [1, 0, 1, 0]


def test_length_reward_falls_linearly_down_to_minus_one() -> None:
    sizes = range(30)
    scores = scores_of("length:10", ["x" * size for size in sizes])
    assert scores == [-min(1.0, abs(size - 10) / 10) for size in sizes]
    assert scores_of("length:2", ["谢谢"]) == [0.0]


WRONG_REFERENCES = {
    "": "llm.reward is required: use exact, numeric, math, regex:PATTERN, length:N, reasoning-gym, module:function or "
    "a reward model",
    "exat": "llm.reward = 'exat': expected a built-in reward, module:function, a folder or a hub id; did you mean "
    "'exact'?",
    "./gone": "llm.reward = './gone': expected a built-in reward, module:function, a folder or a hub id",
    "regex:": "llm.reward = 'regex:': expected a pattern after the colon",
    "regex:(": "llm.reward: invalid regular expression '(' (missing ), unterminated subpattern at position 0)",
    "length:": "llm.reward: expected 'length:N' with an integer N >= 1, got 'length:'",
    "length:0": "llm.reward: expected 'length:N' with an integer N >= 1, got 'length:0'",
    "length:1.5": "llm.reward: expected 'length:N' with an integer N >= 1, got 'length:1.5'",
}


@pytest.mark.parametrize("reference", WRONG_REFERENCES)
def test_unknown_reward_reference_is_rejected(reference: str) -> None:
    assert error_message(load_reward, reference) == WRONG_REFERENCES[reference]
    assert error_message(check_reward, reference, "llm.other") == WRONG_REFERENCES[reference].replace(
        "reward", "other", 1
    )


# ---------------------------------------------------------------- module:function

MODULE = """
import torch
limit = 3
class Judge:
    pass
def plain(prompts, responses):
    return [float(len(p)) for p in prompts]
def picky(prompts, responses, answer, weight=(2, 2, 2), *, level):
    return [a * w + l for a, w, l in zip(answer, weight, level)]
def open_(prompts, responses, **columns):
    return [len(columns)] * len(prompts)
def one(prompts):
    return [0.0]
async def late(prompts, responses):
    return [0.0]
"""


@pytest.fixture
def module_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with reward functions in the current folder."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield name
    sys.modules.pop(name, None)


def test_reward_function_gets_its_parameters_columns(module_name: str) -> None:
    columns: dict[str, list[Any]] = {"answer": [1, 2, 3], "level": [0, 0, 10], "other": [None] * 3}
    called = {
        name: score(load_reward(f"{module_name}:{name}"), name, PROMPTS, RESPONSES, columns)
        for name in ("plain", "picky")
    }
    assert called == {"plain": [3, 3, 5], "picky": [2, 4, 16]}
    assert score(load_reward(f"{module_name}:open_"), "", PROMPTS, RESPONSES, columns) == [3, 3, 3]


def test_reference_without_a_function_is_rejected(module_name: str, tmp_path: Path) -> None:
    name = module_name
    (tmp_path / "broken.py").write_text("raise RuntimeError('first\\nsecond')")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)")
    expected = {
        f"{name}:plan": f"llm.reward = '{name}:plan': module '{name}' has no 'plan'; did you mean '{name}:plain'?",
        f"{name}:limit": f"llm.reward = '{name}:limit': expected a function, got a value of type int (3)",
        f"{name}:Judge": f"llm.reward = '{name}:Judge': expected a function, got a class",
        f"{name}:late": f"llm.reward = '{name}:late': expected a function that is not async; remove 'async'",
        "nowhere:f": "llm.reward = 'nowhere:f': cannot import module 'nowhere' (ModuleNotFoundError: No module ",
        "broken:f": "llm.reward = 'broken:f': cannot import module 'broken' (RuntimeError: first second)",
        "leaving:f": "llm.reward = 'leaving:f': cannot import module 'leaving' (SystemExit: 3)",
    }
    for reference, line in expected.items():
        assert error_message(load_reward, reference).startswith(line)


def test_hidden_reward_module_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "mine.py").write_text("def reward(prompts, responses): return [0.0] * len(prompts)")
    monkeypatch.chdir(tmp_path)
    error = error_message(load_reward, "envs.mine:reward")
    assert error.startswith("llm.reward = 'envs.mine:reward': cannot import module 'envs.mine', because the package ")
    assert error.endswith(" shadows envs/mine.py; rename the folder 'envs'")


def test_missing_reward_columns_are_rejected(module_name: str) -> None:
    error = error_message(check_columns, "exact", {"answers": ["x"], "level": [1]}, "a.jsonl")
    assert error == (
        "a.jsonl: missing key 'answer', which llm.reward = 'exact' needs (found: 'answers', 'level'); "
        "rename 'answers' to 'answer'"
    )
    error = error_message(check_columns, f"{module_name}:picky", {"answer": [1]}, "a.jsonl", "llm.other")
    assert error.startswith(
        f"a.jsonl: missing key 'level', which llm.other = '{module_name}:picky' needs (found: 'answer')"
    )
    for reference in ("numeric", "exact"):
        error = error_message(check_columns, reference, {}, "a.txt")
        assert error == f"a.txt: missing key 'answer', which llm.reward = {reference!r} needs"
    for reference in ("regex:x", "length:3", f"{module_name}:plain", f"{module_name}:open_", "sentiment-gold"):
        check_columns(reference, {"anything": [1]}, "a.jsonl")
    check_columns(f"{module_name}:picky", {"answer": [1], "level": [2], "other": [3]}, "a.jsonl")


def test_function_with_wrong_signature_is_rejected(module_name: str) -> None:
    assert "cannot be called as reward(prompts, responses, **columns): too many" in error_message(
        check_columns, f"{module_name}:one", {}, "a.jsonl"
    )


def test_unmatchable_answers_are_rejected() -> None:
    wrong: dict[str, list[Any]] = {"exact": [None], "numeric": ["x", "none"]}
    errors = {
        name: error_message(check_columns, name, {"answer": ["1", *values]}, "a.jsonl")
        for name, values in wrong.items()
    }
    assert errors == {
        "exact": "a.jsonl: 'answer' of prompt 2: expected text or a number, got None",
        "numeric": "a.jsonl: 'answer' of prompt 2: expected a number, got 'x'",
    }


@pytest.mark.parametrize("task", ["arithmetic", "sentiment-gold"])
def test_built_in_reward_scores_its_task(task: str) -> None:
    data: PromptData
    for data in task_prompts(task.removesuffix("-gold")):
        prompts = [str(prompt) for prompt in data.prompts[:20]]
        columns = data.take(range(20)).columns
        check_columns(task, columns, data.where)
        answers = columns.get("answer", [" good."] * 20)
        right = numbers(load_reward(task), task, prompts, answers, columns)
        wrong = numbers(load_reward(task), task, prompts, [" bad."] * 20, columns)
        assert min(right) > max(wrong)


# ---------------------------------------------------------------- return values of a reward


@pytest.mark.parametrize(
    "given",
    [
        [1, 2.5, True],
        (1, 2.5, True),
        (value for value in (1, 2.5, True)),
        torch.tensor([1, 2.5, 1], requires_grad=True),
        torch.tensor([1, 2.5, 1], dtype=torch.bfloat16),
        np.array([1, 2.5, 1], dtype=np.float32),
        [np.float32(1), np.float64(2.5), np.bool_(True)],
        [torch.tensor(1), torch.tensor([2.5]), np.int64(1)],
    ],
)
def test_numpy_and_torch_numbers_are_valid_scores(given: Any) -> None:
    scores = score(lambda prompts, responses: given, "r", PROMPTS, RESPONSES, {})
    assert scores == [1.0, 2.5, 1.0]
    assert {type(value) for value in scores} == {float}


BAD_VALUES = {
    "nan": (math.nan, "nan"),
    "infinity": (-math.inf, "-inf"),
    "too large": (10**400, "inf"),
    "tensor": (torch.tensor(math.nan), "nan"),
    "array": (np.float32("inf"), "inf"),
    "text": ("1.0", "a value of type str ('1.0')"),
    "complex": (1j, "a value of type complex"),
    "list": ([0.5], "a value of type list ([0.5])"),
    "several": (torch.ones(2), "a value of type Tensor"),
    "several in an array": (np.ones(2), "a value of type ndarray"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_nonfinite_score_names_prompt_and_response(case: str) -> None:
    value, shown = BAD_VALUES[case]
    error = failure(lambda prompts, responses: [0.0, value, 0.0])
    found = f"got {shown} for prompt 'two', response ''"
    assert error == f"llm.reward: expected a finite number for each response, {found}"


BAD_KINDS = {
    "a number": (0.5, "a value of type float (0.5)"),
    "one tensor": (torch.tensor(0.5), "a value of type Tensor"),
    "a text": ("012", "a value of type str ('012')"),
    "a mapping": ({1: 1, 2: 2, 3: 3}, "a value of type dict ({1: 1, 2: 2, 3: 3})"),
    "a set": ({1.0, 2.0, 3.0}, "a value of type set"),
}


@pytest.mark.parametrize("case", BAD_KINDS)
def test_non_list_scores_are_rejected(case: str) -> None:
    given, shown = BAD_KINDS[case]
    error = failure(lambda prompts, responses: given)
    first = "first response: prompt 'one', response 'a'"
    assert error == f"llm.reward: expected a list of numbers, got {shown}; {first}"


def test_wrong_number_of_scores_is_rejected() -> None:
    assert failure(lambda prompts, responses: [0.0]) == (
        "llm.reward returned 1 score for 3 responses; first response without a score: prompt 'two', response ''"
    )
    assert failure(lambda prompts, responses: []).endswith("without a score: prompt 'one', response 'a'")
    numbers = itertools.count()
    endless = failure(lambda prompts, responses: (0.0 * number for number in numbers))
    assert next(numbers) == 4  # only one superfluous score is read
    assert endless.startswith("llm.reward returned more than 3 scores for 3 responses; last response: prompt 'three'")
    assert endless.endswith("response 'long line " + "x" * 47 + "...'")


def failing_reward(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    raise ValueError(f"first\nsecond {columns['answer'][0]}")


def exiting_reward(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    sys.exit("enough")


def late_failing_reward(prompts: list[str], responses: list[str], **columns: Any) -> Iterator[float]:
    yield 1.0
    raise KeyError("x")


def test_reward_exception_is_reported_with_its_prompt() -> None:
    first = "on 3 responses ({}); first response: prompt 'one', response 'a'"
    for reward, why in (
        (failing_reward, "ValueError: first second 1"),
        (exiting_reward, "SystemExit: enough"),
        (late_failing_reward, "KeyError: 'x'"),
    ):
        assert failure(reward, answer=[1, 2, 3]) == f"llm.reward failed {first.format(why)}"
    with pytest.raises(RewardError) as caught:
        score(failing_reward, "llm.reward", PROMPTS, RESPONSES, {"answer": [1, 2, 3]})
    assert isinstance(caught.value.__cause__, ValueError)


def test_reward_cannot_modify_its_callers_lists() -> None:
    def emptying_reward(prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        scores = [float(len(response)) for response in responses]
        for values in (prompts, responses, *columns.values()):
            values.clear()
        return scores

    columns = {"answer": [1, 2, 3]}
    assert score(emptying_reward, "r", PROMPTS, ["a", "bb", ""], columns) == [1, 2, 0]
    assert (len(PROMPTS), columns) == (3, {"answer": [1, 2, 3]})


def test_no_responses_give_no_scores() -> None:
    assert score(failing_reward, "r", [], [], {}) == []


# ---------------------------------------------------------------- reward models

ENCODER = {
    "bert": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    }
}
TEXTS = [("one?", " yes"), ("a longer prompt, and ", "a response of some length"), ("x", ""), ("谢谢", "好")]


def save_reward_model(folder: Path, family: str = "llama", tokens: Any = None, **changes: Any) -> Path:
    """Save a reward model whose head has large weights."""
    options = {"num_labels": 1, "vocab_size": VOCABULARY, "initializer_range": 0.2, "pad_token_id": 258} | changes
    config = CONFIG_MAPPING[family](**(FAMILIES | ENCODER)[family] | options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    (tokens or make_tokenizer()).save_pretrained(folder)
    return folder


def make_eos_tokenizer() -> PreTrainedTokenizerFast:
    """Create a tokenizer that appends EOS to every text and uses EOS as its pad token."""
    own = make_tokenizer(pad=False)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 256), ("<eos>", 257)]
    )
    own.pad_token = "<eos>"
    return own


CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "llama": ("llama", None, {}),
    "llama without pad": ("llama", lambda: make_tokenizer(pad=False), {"pad_token_id": None}),
    "llama ending in pad": ("llama", make_eos_tokenizer, {"pad_token_id": 257, "eos_token_id": 257}),
    "gpt2": ("gpt2", None, {}),
    "qwen2": ("qwen2", None, {"vocab_size": VOCABULARY + 1}),  # its tokenizer adds <|endoftext|>
    "gemma2": ("gemma2", None, {}),
    "bert": ("bert", None, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_reward_model_score_is_independent_of_batching(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores in large and small batches equal the model's output for each text without padding."""
    family, tokens, changes = CASES[case]
    folder = save_reward_model(tmp_path, family, tokens and tokens(), **changes)
    reward = load_reward(str(folder))
    prompts, responses = [prompt for prompt, _ in TEXTS], [response for _, response in TEXTS]
    together = numbers(reward, "r", prompts, responses, {"unused": [0] * len(TEXTS)})

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.pad_token_id = None  # transformers then uses the last token
    own = tokens() if tokens else make_tokenizer()
    alone = [model(input_ids=own(p + r, return_tensors="pt")["input_ids"]).logits.item() for p, r in TEXTS]
    assert together == pytest.approx(alone, abs=1e-5)
    assert statistics.pstdev(together) > 0.01
    monkeypatch.setattr(reward_model, "BATCH_COLUMNS", 30)
    assert score(reward, "r", prompts[::-1], responses[::-1], {}) == pytest.approx(together[::-1], abs=1e-5)


def test_bfloat16_scores_match_float32_within_tolerance(tmp_path: Path) -> None:
    folder = str(save_reward_model(tmp_path))
    exact, rough = RewardModel(folder), RewardModel(folder, dtype="bfloat16")
    prompts, responses = [p for p, _ in TEXTS], [r for _, r in TEXTS]
    scores = rough(prompts, responses)
    assert next(rough.model.base_model.parameters()).dtype == torch.bfloat16
    assert scores == pytest.approx(exact(prompts, responses), abs=0.2)
    assert any(value != float(torch.tensor(value).bfloat16()) for value in scores)
    assert not any(p.requires_grad for p in rough.model.parameters())


def test_begin_token_is_not_duplicated(tmp_path: Path) -> None:
    """If a chat template has added a start token, the tokenizer's own start token is removed."""
    reward = RewardModel(str(save_reward_model(tmp_path, tokens=make_eos_tokenizer())))
    assert reward(["<bos>hi"], [" you"]) == reward(["hi"], [" you"])
    assert reward(["<bos><bos>hi"], [" you"]) != reward(["hi"], [" you"])


def test_overlong_text_is_rejected_not_truncated(tmp_path: Path) -> None:
    reward = RewardModel(str(save_reward_model(tmp_path)))
    assert len(score(reward, "r", ["p" * 100], ["r" * 28], {})) == 1
    with pytest.raises(RewardError) as caught:
        score(reward, "r", ["a", "p" * 100], ["b", "r" * 29], {})
    texts = f"prompt '{'p' * 57}...' and response '{'r' * 29}'"
    assert str(caught.value) == f"llm.reward: {texts} have 129 tokens, but {tmp_path} reads at most 128"


def test_tokenizer_length_limit_is_respected(tmp_path: Path) -> None:
    own = make_tokenizer()
    own.model_max_length = 10
    reward = RewardModel(str(save_reward_model(tmp_path, tokens=own)))
    with pytest.raises(RewardError, match=r"have 11 tokens, .* reads at most 10"):
        reward(["12345"], ["678901"])


def test_text_without_tokens_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="prompt '' and response '' have no tokens"):
        RewardModel(str(save_reward_model(tmp_path)))([""], [""])


def check_and_load(folder: Path) -> str:
    """Return the error, which must be the same from the check before a run and from loading."""
    error = error_message(load_reward, str(folder), option="llm.other")
    assert error_message(check_reward, str(folder), "llm.other") == error
    start = f"llm.other = {str(folder)!r}"
    assert error.startswith(start)
    return error.removeprefix(start)


def test_unsuitable_reward_models_are_rejected(tmp_path: Path) -> None:
    assert check_and_load(save_model(tmp_path / "lm")).startswith(
        ": expected a reward model, got LlamaForCausalLM; train"
    )
    two = save_reward_model(tmp_path / "two", num_labels=2)
    assert check_and_load(two) == ": expected a reward model with 1 label, got a model with 2 labels"
    small = save_reward_model(tmp_path / "small", tokens=make_tokenizer(size=VOCABULARY + 1))
    assert check_and_load(small) == (
        ": the tokenizer has ids up to 260, but the model has only 260 embeddings; use the model's original tokenizer"
    )
    assert "configuration" in check_and_load(tmp_path)


def test_missing_head_is_not_initialized_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing head is a one-line error without transformers' report, even if the configuration expects a head."""
    folder = save_reward_model(tmp_path / "rm")
    config = (folder / "config.json").read_text()
    save_model(folder)
    (folder / "config.json").write_text(config)
    logging.add_handler(caplog.handler)
    error = error_message(load_reward, str(folder))
    logging.remove_handler(caplog.handler)
    assert error == f"llm.reward = {str(folder)!r}: expected a complete reward model, got one without score.weight"
    assert not caplog.records


def test_damaged_model_folder_is_a_one_line_error(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot load a reward model from this folder (" in error_message(load_reward, str(folder))
    weights.unlink()
    assert "cannot load a reward model from this folder (" in error_message(load_reward, str(folder))


def test_hub_id_without_network_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert error_message(check_reward, "nobody/nothing").startswith("llm.reward = 'nobody/nothing': ")


# ---------------------------------------------------------------- score transforms


def batches(seed: int = 0) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.gauss(1000.0, 0.1) for _ in range(rng.randint(1, 9))] for _ in range(6)]


def test_running_normalization_includes_the_current_batch() -> None:
    scores, seen = ScoreTransforms(LLM(score_normalize="running")), []
    for batch in batches():
        seen += batch
        mean, std = statistics.fmean(seen), statistics.pstdev(seen) or 1.0
        assert scores(batch, [True] * len(batch)) == pytest.approx([(x - mean) / std for x in batch], rel=1e-6)


def test_reference_normalization_uses_calibration_statistics() -> None:
    scores = ScoreTransforms(LLM(score_normalize="reference"))
    assert not scores.is_calibrated
    with pytest.raises(RuntimeError, match="calibrate"):
        scores([1.0], [True])
    reference = batches()[0] + batches()[1]
    scores.calibrate(reference)
    normal = scores(reference, [True] * len(reference))
    assert statistics.fmean(normal) == pytest.approx(0, abs=1e-6)
    assert statistics.pstdev(normal) == pytest.approx(1)
    assert scores([5.0], [True]) == scores([5.0], [True])
    scores.calibrate([2.0, 4.0])
    assert scores([5.0], [True]) == [2.0]


@pytest.mark.parametrize("constant", [0.1, 1e6 + 0.1, 0.0])
def test_equal_scores_are_centred_without_scaling(constant: float) -> None:
    scores = ScoreTransforms(LLM(score_normalize="running"))
    for _ in range(3):
        assert scores([constant] * 7, [True] * 7) == [0.0] * 7


def test_scores_are_normalized_then_clipped_then_penalized() -> None:
    options = LLM(score_normalize="reference", score_clip=1.5, missing_eos_penalty=1.0)
    scores = ScoreTransforms(options)
    scores.calibrate([0.0, 20.0])  # mean 10, std 10
    ended = [True, False, True, False]
    assert scores([40.0, 40.0, -40.0, 15.0], ended) == [1.5, 0.5, -1.5, -0.5]


def test_default_score_options_change_nothing() -> None:
    assert ScoreTransforms(LLM())([1.0, -7.0], [True, False]) == [1.0, -7.0]
    assert ScoreTransforms(LLM(score_clip=5.0))([1.0, -7.0], [True, False]) == [1.0, -5.0]


def test_restored_score_statistics_continue_identically() -> None:
    options = LLM(score_normalize="running")
    uninterrupted, before = ScoreTransforms(options), ScoreTransforms(options)
    first, rest = batches()[:3], batches()[3:]
    for batch in first:
        assert uninterrupted(batch, [True] * len(batch)) == before(batch, [True] * len(batch))
    after = ScoreTransforms(options)
    after.load_state_dict(before.state_dict())
    for batch in rest:
        assert after(batch, [True] * len(batch)) == uninterrupted(batch, [True] * len(batch))
    assert {type(value) for value in after.state_dict().values()} <= {int, float}
