"""Tests of the built-in tasks and models: training data, determinism, and the cache."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from envs.llm import tasks, tiny
from envs.llm.cache import CACHE_VARIABLE, cache_folder
from ppo_unified.errors import UsageError

SHORT = tiny.Recipe(width=16, inner=16, heads=2, clean_steps=2, noisy_steps=2, sums=8, remarks=4)
SHORT_REWARD_MODEL = tiny.RewardModelRecipe(pairs=20, steps=3, batch=4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# the tokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


TEXTS = [
    "12+34=",
    " leading",
    "  two  spaces ",
    "a\nb\r\n\tc",
    "",
    "\x00\x7f",
    "\u4f60\u597d\uff0c\u4e16\u754c",
    "na\xefve \u20ac",
    "\U0001f999\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\u0300x",
    "\ufeff",
    "\u0120",
]  # spaces, controls, Chinese, accents, joined emoji, a lone accent, a byte order mark, GPT-2's sign for a space


@pytest.mark.parametrize("text", TEXTS)
def test_byte_tokenizer_round_trips_text(tokenizer_folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_random_unicode_round_trips(tokenizer_folder: Path) -> None:
    tokenizer, rng = AutoTokenizer.from_pretrained(tokenizer_folder), random.Random(0)
    code_points = (*range(0xD800), *range(0xE000, 0x110000))
    for _ in range(300):
        text = "".join(chr(rng.choice(code_points)) for _ in range(5))
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_token_ids_follow_the_bytes(tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 258)
    assert len(tokenizer) == 259
    assert tokenizer.model_max_length == tiny.CONTEXT
    assert tokenizer.decode([*b"46", 257, 258], skip_special_tokens=True) == "46"


# arithmetic


def test_arithmetic_split_is_disjoint_complete_and_fixed() -> None:
    training, held_out = tasks.task_prompts("arithmetic")
    assert (len(training.prompts), len(held_out.prompts)) == (8000, 2000)
    everything = {f"{a}+{b}=" for a in range(100) for b in range(100)}
    assert {*map(str, training.prompts)} | {*map(str, held_out.prompts)} == everything
    assert tasks.task_prompts("arithmetic") == (training, held_out)


def test_answer_column_is_the_sum_the_reward_requires() -> None:
    for part in tasks.task_prompts("arithmetic"):
        prompts = [str(prompt) for prompt in part.prompts]
        sums = [sum(int(number) for number in prompt.rstrip("=").split("+")) for prompt in prompts]
        assert part.columns["answer"] == [str(number) for number in sums]
        assert set(tasks.arithmetic(prompts, part.columns["answer"], **part.columns)) == {1.0}
        for wrong in (" {}", "{} ", "0{}", "{}0", "{}.", "-{}"):
            assert set(tasks.arithmetic(prompts, [wrong.format(n) for n in sums], **part.columns)) == {0.0}


def test_supervised_answers_have_documented_accuracy() -> None:
    greedy = sampled = 0.0
    for a in range(100):
        for b in range(100):
            answers = tasks.supervised_answers(a, b)
            assert sum(answers.values()) == pytest.approx(1.0)
            assert all(answer >= 0 and chance > 0 for answer, chance in answers.items())
            sampled += answers[a + b] / 10_000
            greedy += (max(answers, key=answers.__getitem__) == a + b) / 10_000
    assert (round(greedy, 2), round(sampled, 2)) == (0.85, 0.50)


def test_supervision_uses_training_pairs_with_documented_noise() -> None:
    sums, generator = tiny._ArithmeticBatches(), torch.Generator().manual_seed(0)
    held_out = {f"{a}+{b}=" for a, b in tasks.arithmetic_pairs()[1]}
    right = dict.fromkeys((False, True), 0)
    for noisy in right:
        tokens, targets = sums.batch(4000, noisy, generator)
        for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
            text = bytes(token for token in row if token < 256).decode()
            prompt, shown = text.split("=")[0] + "=", text.split("=")[1]
            assert prompt not in held_out
            answer = [token for token in target if token != tiny._IGNORED]
            assert answer == [*shown.encode(), tiny.EOS]
            first = target.index(answer[0])
            assert bytes(row[: first + 1]).decode() == prompt  # the loss starts at the token after "="
            a, b = map(int, prompt.rstrip("=").split("+"))
            right[noisy] += int(shown) == a + b
    assert right[False] == 4000
    expected = sum(tasks.supervised_answers(a, b)[a + b] for a, b in tasks.arithmetic_pairs()[0]) / 8000
    assert right[True] / 4000 == pytest.approx(expected, abs=4 * (0.25 / 4000) ** 0.5)


# sentiment


def test_sentiment_split_is_disjoint_and_fixed() -> None:
    training, held_out = tasks.task_prompts("sentiment")
    assert (len(training.prompts), len(held_out.prompts)) == (240, 60)
    assert not {*map(str, training.prompts)} & {*map(str, held_out.prompts)}
    assert tasks.task_prompts("sentiment") == (training, held_out)


def test_gold_score_accepts_the_grammars_sentences() -> None:
    """Sentences of the grammar rarely get a penalty, so their score depends only on their opinion words."""
    rng, faults = random.Random(0), 0
    for _ in range(2000):
        prompt, text = rng.choice(tasks.sentiment_openings()[0]), tasks.draw_remark(rng)
        words = {word.strip(".,").lower() for word in text.split()}
        opinion = tasks._weight(tasks.POSITIVE & words) - tasks._weight(tasks.NEGATIVE & words)
        faults += tasks.sentiment_gold([prompt], [text]) != [opinion]
    assert faults < 20


def gold(response: str) -> float:
    return tasks.sentiment_gold(["The soup was"], [response])[0]


def test_gold_score_has_diminishing_returns_and_penalizes_hacks() -> None:
    once, twice, thrice = gold(" good."), gold(" good and warm."), gold(" good, warm and lovely.")
    assert 0 < thrice - twice < twice - once < once
    assert gold(" bad.") == -once
    assert gold(" good and good.") < once  # repetition
    assert gold(" good warm.") < twice  # adjacent opinion words
    assert gold(" goodly.") < gold(" new.")  # unknown word
    assert gold("good.") < once  # "wasgood"
    assert gold(" good") < once  # unfinished
    assert gold(".") < 0  # no opinion
    assert tasks.sentiment_gold(["The soup was" * 8], [" good."])[0] < once  # too long
    assert gold(" good" * 40 + ".") < -2


def test_pairs_usually_prefer_the_higher_gold_score() -> None:
    pairs = tasks.sentiment_pairs(1000, seed=3)
    assert pairs == tasks.sentiment_pairs(1000, seed=3) != tasks.sentiment_pairs(1000, seed=4)
    held_out = set(tasks.sentiment_openings()[1])
    assert not held_out & {pair.prompt for pair in pairs}
    prompts = [pair.prompt for pair in pairs]
    better = [
        good - bad
        for good, bad in zip(
            tasks.sentiment_gold(prompts, [pair.chosen for pair in pairs]),
            tasks.sentiment_gold(prompts, [pair.rejected for pair in pairs]),
            strict=True,
        )
    ]
    clear = [difference > 0 for difference in better if abs(difference) >= 0.9]
    assert 0.85 < sum(clear) / len(clear) < 1.0


def test_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'arithmetics'.*did you mean 'arithmetic'"):
        tasks.task_prompts("arithmetics")


# the models


def test_tiny_model_weights_depend_only_on_recipe_and_seed(cache: Path) -> None:
    first = tiny.tiny_model(SHORT)
    expected = weights(first)
    first.rename(cache / "elsewhere")
    torch.rand(3)  # the state of the global generator must not matter
    assert weights(tiny.tiny_model(SHORT)) == expected
    other = tiny.tiny_model(tiny.Recipe(**(vars(SHORT) | {"seed": 1})))
    assert other != first
    assert weights(other) != expected


def test_building_models_leaves_global_torch_state_unchanged() -> None:
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():  # training must work even if the caller has disabled gradients
            tiny.sentiment_reward_model(SHORT_REWARD_MODEL, SHORT)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)  # as in conftest.py
    assert torch.equal(torch.get_rng_state(), state)


def test_model_is_built_once(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.tiny_model(SHORT)
    assert folder.parent == cache
    printed = capsys.readouterr()
    assert printed.out == ""
    assert 3 <= len(printed.err.splitlines()) <= 8  # plain lines, because stderr is not a terminal here
    assert "\r" not in printed.err
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny.tiny_model(SHORT) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert capsys.readouterr().err == ""
    (cache / f"{folder.name}.lock").unlink()
    assert tiny.tiny_model(SHORT) == folder
    assert [path.name for path in cache.iterdir()] == [folder.name]  # reading needs no lock file


def test_interrupted_build_leaves_no_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tiny, "byte_tokenizer", raise_interrupt)  # called after the model is written
        with pytest.raises(KeyboardInterrupt):
            tiny.tiny_model(SHORT)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in tiny.tiny_model(SHORT).iterdir()}


def test_leftovers_of_killed_build_are_removed(cache: Path) -> None:
    folder = tiny.tiny_model(SHORT)
    folder.rename(cache / f".{folder.name}-left")
    assert tiny.tiny_model(SHORT) == folder
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


TWO_PROCESSES = """
import os
from transformers import LlamaForCausalLM
from envs.llm import tiny
child = os.fork()
path = tiny.tiny_model(tiny.{recipe!r})
os.write(1, os.fsencode(path) + b"\\n")  # one write per line, since two processes share the pipe
assert not child or os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.exhaustive
def test_concurrent_processes_build_one_model(cache: Path) -> None:
    command = [sys.executable, "-c", TWO_PROCESSES.format(recipe=SHORT)]
    both = subprocess.run(command, capture_output=True, text=True, check=True)
    one, other = both.stdout.splitlines()
    assert one == other
    assert both.stderr.count("done in") == 1
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_unwritable_cache_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.raises(UsageError, match=f"below.*{CACHE_VARIABLE}"):
        tiny.tiny_model(SHORT)


def test_cache_defaults_to_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/ppo-unified")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "ppo-unified"


def test_built_models_load_with_transformers() -> None:
    folder, reward_folder = tiny.tiny_model(SHORT), tiny.sentiment_reward_model(SHORT_REWARD_MODEL, SHORT)
    model, reward_model = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(reward_folder),
    )
    assert model.config.model_type == reward_model.config.model_type == "llama"
    assert model.config.max_position_embeddings == tiny.CONTEXT
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (tiny.EOS, tiny.PAD)
    for path in (folder, reward_folder):
        tokenizer = AutoTokenizer.from_pretrained(path)
        assert len(tokenizer) == model.config.vocab_size == reward_model.config.vocab_size
    rows = tokenizer(["The soup was good.", "你好"], padding=True, return_tensors="pt")
    logits = reward_model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    assert logits.shape == (2, 1)
    unpadded = reward_model(tokenizer("你好", return_tensors="pt")["input_ids"]).logits
    torch.testing.assert_close(logits[1:], unpadded, atol=1e-5, rtol=0)


def test_progress_is_one_live_terminal_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    with tiny._progress("making it", 10, screen) as show:
        for step in range(10):
            show(step + 1, 1.0)
    assert screen.getvalue().count("\n") == 2  # the first and the last line
    assert "[###############...............] 5/10" in screen.getvalue()
