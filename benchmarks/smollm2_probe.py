"""Measure the pass rate of SmolLM2 on tasks of reasoning-gym, to choose the task of the preset smollm2-sums.

python benchmarks/smollm2_probe.py [--count 64] [--out benchmarks/smollm2_probe.md]

A task is written as in llm.prompts: NAME,KEY=VALUE,... Questions are drawn with seed 0, and one response per question
is sampled from the full distribution. Finished rows in the file are kept.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import reasoning_gym
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from envs.llm.named_models import resolve
from envs.llm.quiet import silence_transformers

SUMS = "chain_sum,min_terms={0},max_terms={0},min_digits={1},max_digits={2}"
PLAIN = (
    *(SUMS.format(*sizes) for sizes in ((2, 1, 1), (2, 1, 2), (2, 2, 2), (2, 3, 3), (3, 1, 1))),
    *("products,min_digits=1,max_digits=1", "gcd,max_value=20", "lcm,max_value=10", "number_sequence"),
)
CHAT = (  # with the default settings
    *("chain_sum", "calendar_arithmetic", "gcd", "letter_counting", "family_relationships", "number_sequence"),
    *("coin_flip", "count_bits", "syllogism", "ransom_note", "isomorphic_strings", "leg_counting", "course_schedule"),
)


class Case(NamedTuple):
    """A task with the form of its prompts and the maximum number of tokens."""

    task: str
    form: str
    max_tokens: int


CASES = (*(Case(task, "plain", 4) for task in PLAIN), *(Case(task, "chat", 16) for task in CHAT))

HEADER = """\
# Base pass rates of SmolLM2 on reasoning-gym

The table shows how often SmolLM2-135M-Instruct solves a task before any training. *Chat* prompts contain the question
as a user message in the model's chat template, with its default system message; responses have at most 16
tokens. *Plain* prompts are the question alone, which the model continues with at most 4 tokens. Responses are sampled
at temperature 1, without top-k or top-p. *Pass rate* is the share of responses to which reasoning-gym gives the full
score of 1, *mean score* includes partial credit, and *most frequent* is the pass rate if every response is the most
frequent answer to these questions. *Tokens* is the mean length of the prompts. The preset smollm2-sums uses the task
with min_terms=2, max_terms=2, min_digits=1 and max_digits=2: the model solves some of its problems, and the answers are
so different that no single answer scores well.

Command: `{command}`; {where}

| task | prompt | pass rate | mean score | most frequent | tokens | example: question, response, answer |
|---|---|---|---|---|---|---|
"""


def probe(case: Case, count: int, model: Any, tokenizer: Any) -> str:
    """Return a task's row of the table."""
    name, *settings = case.task.split(",")
    pairs = (setting.split("=") for setting in settings)
    data = reasoning_gym.create_dataset(name, size=count, seed=0, **{key: int(value) for key, value in pairs})
    entries = [data[i] for i in range(count)]
    texts = [entry["question"] for entry in entries]
    if case.form == "chat":
        chats = [[{"role": "user", "content": text}] for text in texts]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    torch.manual_seed(0)
    with torch.no_grad():
        output = model.generate(
            **batch, max_new_tokens=case.max_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
        )
    responses = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    scores = [float(data.score_answer(text.strip(), e)) for text, e in zip(responses, entries, strict=True)]
    answers = [str(entry["answer"]) for entry in entries]
    common = max(set(answers), key=answers.count)
    guessed = sum(data.score_answer(common, entry) >= 1 for entry in entries) / count
    numbers = f"{sum(score >= 1 for score in scores) / count:.2f} | {sum(scores) / count:.2f} | {guessed:.2f}"
    length = float(batch["attention_mask"].sum(1).float().mean())
    example = " => ".join(quote(text) for text in (entries[0]["question"], responses[0], answers[0]))
    return f"| {case.task} | {case.form} | {numbers} | {length:.0f} | {example} |"


def quote(text: str) -> str:
    """Return the end of a text on one line, in a form that does not end a cell of a table."""
    return " ".join(text.split())[-80:].replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=64, help="number of questions per task (default: 64)")
    parser.add_argument("--dtype", default="float32", help="precision of the weights (default: float32)")
    parser.add_argument("--only", default="", help="measure only tasks whose name contains this text")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    options = parser.parse_args()
    folder = resolve("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with silence_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype)).eval()
    packages = ", ".join(f"{name} {version(name)}" for name in ("reasoning-gym", "torch", "transformers"))
    where = f"{date.today()}; {platform.system()} {platform.machine()}, {packages}"
    header = HEADER.format(command=shlex.join(["python", "benchmarks/smollm2_probe.py", *sys.argv[1:]]), where=where)
    old = options.out.read_text(encoding="utf-8").splitlines() if options.out and options.out.exists() else []
    rows = {tuple(line.split(" | ")[:2]): line for line in old if line.startswith("| ") and " => " in line}
    for case in CASES:
        key = (f"| {case.task}", case.form)
        if key not in rows and options.only in f"{case.task} {case.form}":
            rows[key] = probe(case, options.count, model, tokenizer)
            print(rows[key], flush=True)
            if options.out:
                options.out.write_text(header + "\n".join(rows.values()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
