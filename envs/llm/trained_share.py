"""Finds weights of a model that an update does not train."""

from __future__ import annotations

from torch import nn

SHOWN = 3  # maximum number of parts that are named


def describe_untrained(model: nn.Module) -> str | None:
    """Return a note that names the parts of a model whose weights did not get a gradient in the first update.

    Return "" if all weights got one, and None if none did, as before the first update and while only the critic is
    trained. Tied weights are counted once.
    """
    weights = dict(model.named_parameters())
    trained = {name for name, x in weights.items() if x.grad is not None}
    if not trained:
        return None
    if len(trained) == len(weights):
        return ""
    total = sum(x.numel() for x in weights.values())
    share = sum(weights[name].numel() for name in trained) / total
    parts = list(dict.fromkeys(_largest_part(name, trained) for name in weights if name not in trained))
    shown = ", ".join(parts[:SHOWN]) + (f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else "")
    return f"{100 * share:.4g} % of the policy's weights got a gradient in the first update; no gradient: {shown}"


def _largest_part(name: str, trained: set[str]) -> str:
    """Return the name of the largest module that contains the weight `name` and no trained weight."""
    words = name.split(".")
    parts = (".".join(words[:count]) for count in range(1, len(words)))
    return next((part for part in parts if not any(x.startswith(f"{part}.") for x in trained)), name)
