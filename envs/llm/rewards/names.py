"""Names the rewards of a run for its metrics. This module does not import torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

TAKEN = frozenset(  # names of other metrics in the areas reward/ and eval/
    ["score", "score_std", "total", "kl_penalty", "left_out", "sampled_score", "kl", "length", "eos_rate", "repetition"]
    + ["success", "return", "info"]
)


def reward_names(sources: Sequence[str]) -> list[str]:
    """Return a name for each reward in `llm.reward`: the name of its function, or of its model's folder or repository.

    Characters that metrics cannot have become hyphens. A name that another metric has gets the suffix `-reward`, and
    equal names are numbered from the second one on.
    """
    names: list[str] = []
    for source in sources:
        name = _short_name(source)
        name = f"{name}-reward" if name in TAKEN else name
        number = 2
        unique = name
        while unique in names:
            unique, number = f"{name}-{number}", number + 1
        names.append(unique)
    return names


def _short_name(source: str) -> str:
    kind, _, argument = source.partition(":")
    word = kind if kind in ("regex", "length") or not argument else argument
    parts = re.split(r"[/\\]", word.rstrip("/\\"))
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", parts[-1]).strip("-.") or "reward"
