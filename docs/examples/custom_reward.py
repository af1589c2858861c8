"""Train a language model with your own reward function on your own prompts.

Run the script with `python custom_reward.py`. After it has written prompts.jsonl, you can also train from the command
line. In this folder, run:
ppo-unified train llm --llm.model tiny --llm.prompts prompts.jsonl --llm.reward custom_reward:score
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ppo_unified import load_preset, run

ITERATIONS = 40
TOPICS = {
    "warm fresh tasty": "soup bread coffee tea pizza cake dinner salad",
    "clean bright pleasant": "room hotel beach street park town",
    "funny great superb": "film story book show song plot",
}


def score(prompts: list[str], responses: list[str], words: list[list[str]], **columns: Any) -> list[float]:
    """Return one score per response: 1 if it contains one of the words listed for its prompt, else 0.

    Every other key of the prompt file, such as `words`, is passed as a list with one entry per response.
    """
    return [float(any(word in text for word in good)) for good, text in zip(words, responses, strict=True)]


def main() -> None:
    """Write 20 prompts, train for about a minute, and print the mean score of greedy responses to the prompts."""
    prompts = [
        {"prompt": f"The {noun} was", "words": words.split()}
        for words, nouns in TOPICS.items()
        for noun in nouns.split()
    ]
    Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8")
    config = load_preset(
        "llm",
        total_iterations=ITERATIONS,
        threads=1,
        llm={"model": "tiny", "prompts": "prompts.jsonl", "reward": "custom_reward:score", "max_new_tokens": 24},
        optim={"lr": 1e-3},
    )
    result = run(config)
    print(f"score {result.score:.2f}; talk to the model with: ppo-unified play {result.path}")


if __name__ == "__main__":
    main()
