"""The two built-in tasks of language models: their prompts, the texts the tiny model learns from, and their rewards.

Small enough to be understood whole, so that what PPO does to a model can be: `arithmetic` has one right answer, and
`sentiment` a rule that a learned score only stands for. No torch.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

from envs.llm.data import Pair, PromptData
from ppo_unified.errors import UsageError, did_you_mean

HELD_OUT = 0.2
_SPLIT_SEED = 0  # the same prompts are held out on every machine, whatever a run's seed

T = TypeVar("T")


def task_prompts(name: str) -> tuple[PromptData, PromptData]:
    """The training and the held-out prompts of a built-in task. Raises UsageError for a name that isn't one."""
    known = {"arithmetic": _arithmetic_prompts, "sentiment": _sentiment_prompts}
    if name not in known:
        raise UsageError(
            f"llm.prompts: {name!r} is no built-in task{did_you_mean(name, known)}; there are: {', '.join(known)}"
        )
    return known[name]()


def _split(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """(training, held-out): disjoint, in an order of their own, always the same."""
    shuffled = random.Random(_SPLIT_SEED).sample(items, len(items))
    kept = round(len(items) * (1.0 - HELD_OUT))
    return shuffled[:kept], shuffled[kept:]


def _prompt_data(task: str, prompts: Sequence[str], columns: dict[str, list[Any]]) -> PromptData:
    return PromptData(
        list(prompts), columns, f"the built-in task {task!r}", list(range(1, len(prompts) + 1)), unit="prompt"
    )


# arithmetic: "12+34=" -> "46"

HARD_CARRY = 14  # from here on the sum of the ones misleads more often than not
_NEIGHBOURS = (-20, -10, -2, -1, 1, 2, 10, 20)


def arithmetic_pairs() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(a, b) with a, b in 0..99: 8,000 to learn from and 2,000 that neither supervision nor PPO ever sees."""
    return _split([(a, b) for a in range(100) for b in range(100)])


def question(a: int, b: int) -> str:
    """A prompt of `arithmetic`."""
    return f"{a}+{b}="


def supervised_answers(a: int, b: int) -> dict[int, float]:
    """What the tiny model is shown as a + b, with probabilities: deliberately noisy, so that PPO has work to do.

    The sum itself in half the cases, else a neighbour of it. Where the ones add up to `HARD_CARRY` or more (15 % of all
    pairs) a forgotten carry is likelier than the sum: who learned this perfectly is right in 85 % of the pairs when
    answering greedily, and in 50 % when sampling (`tiny`, in its half minute: 87 % and 43 %).
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
    """1 for exactly the sum that the prompt asks for, else 0."""
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
LONGEST = 75  # characters of prompt and response; the grammar rarely gets there


_HABITS = (1, 4, 4)  # how often what the tiny model reads praises, describes and complains: there is something to gain
_EXAMPLES = (3, 2, 3)  # the same of what is compared: whoever never saw praise in heaps can't tell how good it is


def draw_remark(rng: random.Random, moods: Sequence[int] = _HABITS) -> str:
    """What the grammar says after a prompt, in a mood drawn word by word: " rather cold and dull. We hated it."."""
    count = rng.choices((1, 2, 3), (4, 4, 2))[0]
    # a dict: nobody says "cold and cold"
    adjectives = dict.fromkeys(rng.choice(rng.choices((_GOOD, _PLAIN, _BAD), moods)[0]) for _ in range(count))
    *listed, last = [f"{rng.choice(_GRADES)} {word}" if rng.random() < 0.3 else word for word in adjectives]
    link = rng.choice((" and ", " and ", " but "))
    text = f" {', '.join(listed)}{link}{last}." if listed else f" {last}."
    return f"{text} {rng.choice(_TAILS)}." if rng.random() < 0.3 else text


def sentiment_gold(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """How positive each text is by rule, about -2.5 to 2.5 for what the grammar says; nonsense falls to -7.

    Opinion words count less and less (1, 1.7, 2.19, ...) and once each. Repeating one, heaping them up without
    a comma or a word between them, words that don't exist, an unfinished last sentence, no opinion and more than
    `LONGEST` characters cost: what the scoring model can't know of, as nobody in its pairs writes so.
    """
    return [_gold(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _gold(prompt: str, response: str) -> float:
    words = [word.strip(".,!").lower() for word in response.split()]
    opinions = [word for word in words if word in _OPINIONS]
    repeated = len(opinions) - len(set(opinions))
    broken = sum(word not in _WORDS for word in words) + (not response.startswith(" "))  # " was" + "good" = "wasgood"
    unfinished = not response.endswith(".") or not opinions
    heaped = sum(a in _OPINIONS and b.strip(".,!") in _OPINIONS for a, b in pairwise(response.lower().split()))
    overlong = max(0, len(prompt + response) - LONGEST)
    penalty = repeated + 0.75 * heaped + broken + unfinished + 0.05 * overlong
    return _weight(POSITIVE.intersection(opinions)) - _weight(NEGATIVE.intersection(opinions)) - min(penalty, 4.0)


def _weight(opinions: frozenset[str]) -> float:
    return (1.0 - 0.7 ** len(opinions)) / 0.3


def sentiment_pairs(count: int = 4000, seed: int = 0) -> list[Pair]:
    """Preferences between two remarks on the same training prompt: judged by the gold score, with a judge's noise.

    The better one is chosen with the probability of Bradley and Terry, sigmoid(2 * difference): the best that a reward
    model can learn is twice the gold score.
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
    """Beginnings of remarks, 240 to train on and 60 that are held out."""
    return _split([opener.format(noun) for opener in _OPENERS for noun in _NOUNS])


def _sentiment_prompts() -> tuple[PromptData, PromptData]:
    training, held_out = (_prompt_data("sentiment", prompts, {}) for prompts in sentiment_openings())
    return training, held_out


def task_texts(count: int = 2000, seed: int = 0) -> list[str]:
    """What the tiny model was taught, sums with their noisy answers and remarks by turns: its pretraining data."""
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
