"""Prompts, rewards and training texts of the two built-in language-model tasks.

The tasks are small enough to understand completely. In the task `arithmetic`, each prompt has one right answer. In the
task `sentiment`, the true score follows a known rule, which a learned reward model only approximates. This module does
not import torch.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

from envs.llm.data import Pair, PromptData
from envs.llm.openings import all_openings
from ppo_unified.errors import UsageError, did_you_mean

HELD_OUT = 0.2
_SPLIT_SEED = 0  # fixed, so that every run holds out the same prompts

T = TypeVar("T")


def task_prompts(name: str) -> tuple[PromptData, PromptData]:
    """Return a built-in task's training prompts and held-out prompts. Raises UsageError if the task is unknown."""
    known = {"arithmetic": _arithmetic_prompts, "sentiment": _sentiment_prompts, "openings": _opening_prompts}
    if name not in known:
        raise UsageError(
            f"llm.prompts: unknown built-in task {name!r}, expected {' or '.join(known)}{did_you_mean(name, known)}"
        )
    return known[name]()


def _split(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """Shuffle items with a fixed seed and split them into (training, held-out)."""
    shuffled = random.Random(_SPLIT_SEED).sample(items, len(items))
    count = round(len(items) * (1.0 - HELD_OUT))
    return shuffled[:count], shuffled[count:]


def _prompt_data(task: str, prompts: Sequence[str], columns: dict[str, list[Any]]) -> PromptData:
    return PromptData(
        list(prompts), columns, f"the built-in task {task!r}", list(range(1, len(prompts) + 1)), unit="prompt"
    )


# arithmetic: "12+34=" -> "46"

HARD_CARRY = 14  # if the last digits add up to this or more, most supervised answers lack the carry
_NEIGHBOURS = (-20, -10, -2, -1, 1, 2, 10, 20)


def arithmetic_pairs() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return all pairs (a, b) with a and b from 0 to 99, split into 8,000 training pairs and 2,000 held-out pairs."""
    return _split([(a, b) for a in range(100) for b in range(100)])


def question(a: int, b: int) -> str:
    """Return the prompt for a sum, such as '12+34='."""
    return f"{a}+{b}="


def supervised_answers(a: int, b: int) -> dict[int, float]:
    """Return the answers to a + b that the tiny model is trained on, with their probabilities.

    The answers are noisy on purpose, so that PPO can improve the model. Half of the answers are correct, and the others
    are close to the sum. If the last digits add up to `HARD_CARRY` or more (15% of all pairs), the answer without the
    carry is more likely than the correct sum. A model that matches these probabilities exactly answers 85% of the pairs
    correctly with greedy decoding, and 50% with sampling. After half a minute of training, the tiny model answers 87%
    correctly with greedy decoding, and 43% with sampling.
    """
    total = a + b
    hard = a % 10 + b % 10 >= HARD_CARRY
    shown = {total: 0.30, total - 10: 0.60} if hard else {total: 0.54}
    neighbours = [total + step for step in _NEIGHBOURS if total + step >= 0]
    left = 1.0 - sum(shown.values())
    for answer in neighbours:
        shown[answer] = shown.get(answer, 0.0) + left / len(neighbours)
    return shown


def arithmetic(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """Score each response 1 if it is exactly the sum of the numbers in its prompt, and 0 otherwise."""
    sums = [str(sum(int(number) for number in re.findall("[0-9]+", prompt))) for prompt in prompts]
    return [float(response == answer) for response, answer in zip(responses, sums, strict=True)]


def _arithmetic_prompts() -> tuple[PromptData, PromptData]:
    training, held_out = (
        _prompt_data("arithmetic", [question(a, b) for a, b in pairs], {"answer": [str(a + b) for a, b in pairs]})
        for pairs in arithmetic_pairs()
    )
    return training, held_out


# sentiment: "The soup was" -> " rather cold and dull. We hated it."


def _words(words: str) -> list[str]:
    return words.split()


_OPENERS = (
    "The {} was",
    "This {} is",
    "That {} was",
    "My {} was",
    "Our {} is",
    "I found the {}",
    "We thought the {} was",
    "To me the {} was",
    "Today the {} was",
    "People say the {} is",
)
_NOUNS = _words(
    "film story plot actor music song book show soup bread coffee pizza dinner cake salad tea "
    "hotel room beach museum garden park town street cafe tour view staff boat train"
)
_GOOD = _words("good great lovely warm fresh funny tasty clean bright superb charming pleasant perfect kind")
_BAD = _words("bad awful boring cold stale dull dirty noisy ugly bland weak gloomy horrid rude")
_PLAIN = _words("new small large usual plain round old long short local green wooden simple busy")
_GRADES = ("very", "quite", "rather", "really", "so", "a bit")
_TAILS = (
    *(f"{who} {verb} it" for who in ("I", "We") for verb in ("loved", "liked", "hated", "disliked")),
    *("I paid for it", "We saw it", "We took a photo", "I was there"),
)

POSITIVE = frozenset([*_GOOD, "loved", "liked"])
NEGATIVE = frozenset([*_BAD, "hated", "disliked"])
_OPINIONS = POSITIVE | NEGATIVE | frozenset(_PLAIN)
_WORDS = _OPINIONS | frozenset(
    re.findall("[a-z]+", " ".join([*_OPENERS, *_NOUNS, *_GRADES, *_TAILS, "and but"]).lower())
)
LONGEST = 75  # maximum characters of prompt and response without a penalty; the grammar's texts are rarely longer

# Frequencies of good, plain and bad adjectives
_HABITS = (1, 4, 4)  # in the tiny model's training texts: rarely positive, so that PPO can raise the score
_EXAMPLES = (3, 2, 3)  # in the preference pairs: more positive, so that the reward model learns to judge praise


def draw_remark(rng: random.Random, moods: Sequence[int] = _HABITS) -> str:
    """Return a random remark that continues a prompt, such as " rather cold and dull.".

    The argument `moods` contains the relative frequencies of good, plain and bad adjectives.
    """
    count = rng.choices((1, 2, 3), (4, 4, 2))[0]
    # A dict removes duplicates such as "cold and cold" and keeps the order
    adjectives = dict.fromkeys(rng.choice(rng.choices((_GOOD, _PLAIN, _BAD), moods)[0]) for _ in range(count))
    *listed, last = [f"{rng.choice(_GRADES)} {word}" if rng.random() < 0.3 else word for word in adjectives]
    link = rng.choice((" and ", " and ", " but "))
    text = f" {', '.join(listed)}{link}{last}." if listed else f" {last}."
    return f"{text} {rng.choice(_TAILS)}." if rng.random() < 0.3 else text


def sentiment_gold(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """Score how positive each response is, using a fixed rule.

    Responses that follow the grammar score from about -2.5 to 2.5. Nonsense can score as low as -7. Each distinct
    opinion word counts once, with diminishing returns: the total for one, two and three words is 1, 1.7 and 2.19. A
    response is penalized for repeated opinion words, adjacent opinion words, unknown words, an unfinished last
    sentence, the lack of an opinion, and more than `LONGEST` characters. The reward model cannot learn these penalties,
    because its training pairs do not contain such responses.
    """
    return [_gold(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _gold(prompt: str, response: str) -> float:
    words = [word.strip(".,!").lower() for word in response.split()]
    opinions = [word for word in words if word in _OPINIONS]
    repeated = len(opinions) - len(set(opinions))
    broken = sum(word not in _WORDS for word in words) + (not response.startswith(" "))  # " was" + "good" = "wasgood"
    unfinished = not response.endswith(".") or not opinions
    adjacent = sum(a in _OPINIONS and b.strip(".,!") in _OPINIONS for a, b in pairwise(response.lower().split()))
    overlong = max(0, len(prompt + response) - LONGEST)
    penalty = repeated + 0.75 * adjacent + broken + unfinished + 0.05 * overlong
    return _weight(POSITIVE.intersection(opinions)) - _weight(NEGATIVE.intersection(opinions)) - min(penalty, 4.0)


def _weight(opinions: frozenset[str]) -> float:
    return (1.0 - 0.7 ** len(opinions)) / 0.3


def sentiment_pairs(count: int = 4000, seed: int = 0) -> list[Pair]:
    """Return random preference pairs. Each pair consists of two remarks on the same training prompt.

    Which remark is preferred depends on the gold score and on chance. Following the Bradley-Terry model, the first
    remark is preferred with probability sigmoid(2 * difference of the gold scores). An ideal reward model therefore
    learns twice the gold score.
    """
    rng, pairs = random.Random(seed), []
    prompts = sentiment_openings()[0]
    for _ in range(count):
        prompt, first, second = rng.choice(prompts), draw_remark(rng, _EXAMPLES), draw_remark(rng, _EXAMPLES)
        better = _gold(prompt, first) - _gold(prompt, second)
        if rng.random() < 1.0 / (1.0 + math.exp(-2.0 * better)):
            pairs.append(Pair(prompt, first, second))
        else:
            pairs.append(Pair(prompt, second, first))
    return pairs


def sentiment_openings() -> tuple[list[str], list[str]]:
    """Return all prompts of the sentiment task, split into 240 training prompts and 60 held-out prompts."""
    return _split([opener.format(noun) for opener in _OPENERS for noun in _NOUNS])


def _sentiment_prompts() -> tuple[PromptData, PromptData]:
    training, held_out = (_prompt_data("sentiment", prompts, {}) for prompts in sentiment_openings())
    return training, held_out


# openings: "The film we saw last night was" -> " about a crime in a space station."


def _opening_prompts() -> tuple[PromptData, PromptData]:
    """Return 376 training prompts and 200 held-out prompts for a pretrained model."""
    openings = all_openings()
    shuffled = random.Random(_SPLIT_SEED).sample(openings, len(openings))
    training, held_out = (_prompt_data("openings", part, {}) for part in (shuffled[200:], shuffled[:200]))
    return training, held_out


def task_texts(count: int = 2000, seed: int = 0) -> list[str]:
    """Return random texts like those that the tiny model was trained on.

    Sums with noisy answers alternate with remarks.
    """
    rng, pairs, openings = random.Random(seed), arithmetic_pairs()[0], sentiment_openings()[0]
    texts = []
    for number in range(count):
        if number % 2:
            texts.append(rng.choice(openings) + draw_remark(rng))
        else:
            a, b = rng.choice(pairs)
            answers = supervised_answers(a, b)
            texts.append(question(a, b) + str(rng.choices(list(answers), list(answers.values()))[0]))
    return texts
