"""States in one or two plain sentences what the update does to the probability of one step's action, and why."""

from __future__ import annotations

from ppo_unified.inspection.settings import option
from ppo_unified.inspection.step_formulas import Step, show


def describe_clip(step: Step) -> str:
    """Return why the update makes the action of a step more or less likely, and whether the clip stops it."""
    name, used = _name(step), step["advantage_used"]
    if step.stored.state.get("critic_only"):
        return "This iteration trained only the critic (ppo.critic_warmup), so the policy did not change."
    if not step.is_trained:
        epoch = " in this epoch" if isinstance(step.recomputed.moment, int) else ""
        return f"The update ended (ppo.target_kl) before it reached this {name}{epoch}."
    if step.is_discarded:
        target = f"ppo.target_kl = {option(step.stored, 'ppo', 'target_kl'):g}"
        return f"The update ended at this minibatch ({target}), so it did not push this {name}."
    if not used:
        return f"{_reason(step)}, so its advantage does not push it.{_pull(step)}"
    push = "more" if used > 0 else "less"
    return f"{_reason(step)}, so the update tries to make it {push} likely. {_effect(step)}"


def _name(step: Step) -> str:
    return "token" if step.has_tokens else "action"


def _reason(step: Step) -> str:
    """Return what the sign of the advantage says about the action, such as "A < 0: it did worse than expected"."""
    raw, used, name, settings = step["advantage"], step["advantage_used"], _name(step), step.settings
    sign, place, amount, quality = {
        1: (">", "above", "more than 0", "better than"),
        -1: ("<", "below", "less than 0", "worse than"),
        0: ("=", "equal to", "0", "exactly as well as"),
    }[_sign(used)]
    if _sign(raw) != _sign(used):
        mean = "minibatch" if settings.normalize_advantages == "minibatch" else "batch"
        return f"A used {sign} 0: A = {show(raw)} is {place} the mean of the {mean}"
    if settings.advantage == "reward-to-go":
        return f"A {sign} 0: the rewards from this {name} on add up to {amount}"
    if settings.advantage == "return":
        return f"A {sign} 0: the rewards of its episode add up to {amount}"
    expected = {
        "critic": "the critic expected",
        "rloo": "the other responses to its prompt",
        "grpo": "the average response to its prompt",
    }[settings.baseline]
    subject = f"this {name}" if settings.baseline == "critic" else "this response"
    return f"A {sign} 0: {subject} did {quality} {expected}"


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def _pull(step: Step) -> str:
    """Return what the KL penalty does to an action that its advantage does not push, or ""."""
    if not step["derivative"] or _is_unchanged(step["ratio"]):
        return ""
    penalty = f"the KL penalty (weight {step.settings.penalty_coef:g}) pulls it back"
    return f" {_movement(step)} (ratio {_show_ratio(step)}), and {penalty}."


def _effect(step: Step) -> str:
    """Return how far the probability has moved, and whether the gradient still pushes it."""
    kind, direction = step.settings.terms.kind, "up" if step["advantage_used"] > 0 else "down"
    state = f"{_movement(step)} (ratio {_show_ratio(step)}"
    if kind == "clip":
        return f"{state}{_clip(step, direction)}"
    if kind == "penalty":
        return f"{state}). {_penalty(step, direction)}"
    return f"{state}). There is no clip (ppo.objective = {kind!r}): the gradient pushes it {direction}."


def _clip(step: Step, direction: str) -> str:
    """Return the rest of the sentence about the ratio: its place in the clip range, and what follows from it."""
    terms, ratio, side = step.settings.terms, step["ratio"], step["outside"]
    low, high = 1 - terms.below, 1 + terms.above
    edge, inside = f"> {high:.4g}" if side > 0 else f"< {low:.4g}", f"inside {low:.4g} to {high:.4g}"
    if side == (1 if direction == "up" else -1):
        return f" {edge}), so the clip stops the gradient: no further push."
    if step["cut"]:
        limit = f"{terms.dual_clip:g}"
        return f" > {limit}), so the dual clip stops the gradient: the loss is limited to {limit}*|A|, no push."
    if side:
        return f" {edge}), the wrong way: the clip does not stop the gradient, which pushes it back {direction}."
    if _is_unchanged(ratio):
        return f", {inside}), so the gradient pushes it {direction}."
    if (ratio > 1) != (direction == "up"):
        return f", {inside}) because of other steps; the gradient of this step pushes it {direction}."
    return f", still {inside}), so the gradient pushes it further {direction}."


def _penalty(step: Step, direction: str) -> str:
    """Return what the penalty on KL(old || new) does to the push of the advantage."""
    coef, ratio, used = step.settings.penalty_coef, step["ratio"], step["advantage_used"]
    wins = step["derivative"] * used > 0  # the total gradient points against the advantage
    if (ratio > 1) != (used > 0) or _is_unchanged(ratio):
        return f"The KL penalty (weight {coef:g}) does not hold it back, so the gradient pushes it {direction}."
    if wins:
        return f"The KL penalty (weight {coef:g}) is stronger than A here, so the gradient pulls it back."
    return f"The KL penalty (weight {coef:g}) pulls it back, but A is stronger, so the gradient pushes it {direction}."


def _show_ratio(step: Step) -> str:
    """Format the ratio, with more digits if it would look like an end of the clip range."""
    ratio, terms = step["ratio"], step.settings.terms
    near = any(abs(ratio - end) < 1e-3 for end in (1 - terms.below, 1 + terms.above))
    return f"{ratio:.6f}" if near else show(ratio)


def _is_unchanged(ratio: float) -> bool:
    return abs(ratio - 1) < 5e-4


def _movement(step: Step) -> str:
    """Return how the probability has changed since the rollout, such as 'Its probability is 69 % lower'."""
    ratio = step["ratio"]
    actions = step.stored.actions
    what = "probability density" if actions is not None and actions.dtype.kind == "f" else "probability"
    if _is_unchanged(ratio):
        return f"Its {what} is unchanged"
    already = " already" if step["cut"] else ""
    if ratio >= 2:
        return f"Its {what} is{already} {show(ratio)} times as high as before"
    percent = abs(ratio - 1) * 100
    return f"Its {what} is{already} {percent:.{0 if percent >= 1 else 1}f} % {'higher' if ratio > 1 else 'lower'}"
