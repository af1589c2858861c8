"""Artificial stored iterations of a language model, whose quantities satisfy the formulas of PPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ppo_unified.config.presets import load_preset
from ppo_unified.inspection import formulas
from ppo_unified.inspection.what_if import Settings, recompute
from ppo_unified.runs.stored_iteration import Alternatives, StoredIteration

CLIP, GAMMA, LAM, COEF = 0.2, 1.0, 0.95, 0.05
EPOCHS, MINIBATCHES, K = 3, 2, 5


class Response(NamedTuple):
    """A prompt, the tokens of a response, and its score."""

    prompt: str
    tokens: Sequence[str]
    score: float


ENGLISH = (
    Response("the film was ", ("a", " quiet", " delight", ",", " from", " start", " to", " end", "</s>"), 0.97),
    Response("i went in expecting ", ("little", " and", " came", " out", " sm", "iling", "</s>"), 0.91),
    Response("the second half ", ("d", "rags", ",\n", "yet", " the", " cast", " is", " dull", "</s>"), -0.42),
    Response("two hours of ", ("noise", " [b]", "and", " \x1b[31m", "fury", "</s>"), -0.88),
    Response("the director ", ("never", " lets", " go", "</s>"), 0.55),
)
CHINESE = (  # with Chinese punctuation
    Response("这部电影", ("从", "头", "到", "尾", "都", "很", "好看", "。", "</s>"), 0.93),
    Response("演员的表演", ("非常", "自然", "，", "值得", "一", "看", "。", "</s>"), 0.88),  # noqa: RUF001
    Response("故事", ("太", "长", "了", "，", "我", "睡", "着", "了", "。", "</s>"), -0.75),  # noqa: RUF001
    Response("音乐", ("好", "听", "。", "</s>"), 0.64),
)


def make_token_iteration(
    responses: Sequence[Response], iteration: int = 4, step: int = 4096, seed: int = 0
) -> StoredIteration:
    """Return an iteration with one row per response. Its first response contains a step whose gradient is cut."""
    rng = np.random.default_rng(seed)
    text, mask = _texts(responses)
    shape, ends = mask.shape, (np.arange(len(mask)), formulas.last_steps(mask))
    vocabulary = dict(enumerate(dict.fromkeys(text.ravel().tolist())))
    token = np.vectorize({token: number for number, token in vocabulary.items()}.__getitem__)(text).astype(np.int32)
    old = -np.abs(rng.normal(0.9, 0.7, shape)).astype(np.float32) - np.float32(0.05)
    ref = (old + rng.normal(0, 0.3, shape)).astype(np.float32).clip(max=-0.01)
    moved = rng.normal(0, 0.12, shape).astype(np.float32)
    score = np.zeros(shape, np.float32)
    score[ends] = [response.score for response in responses]
    columns: dict[str, Any] = {"mask": mask, "continues": mask & (np.arange(shape[1]) != ends[1][:, None])}
    columns |= {"logprob_old": old, "logprob_ref": ref, "kl": old - ref, "kl_full": np.abs(old - ref)}
    columns |= {"score": score, "score_normalized": score, "score_used": score}
    columns["ended"] = mask & ~columns["continues"]
    columns["reward"] = formulas.token_rewards(score[ends], columns["kl"], COEF, mask).astype(np.float32)
    columns["value"] = rng.normal(0.3, 0.25, shape).astype(np.float32)
    columns["next_value"] = np.where(columns["continues"], np.roll(columns["value"], -1, 1), 0)
    steps = formulas.Steps(*(columns[x] for x in ("reward", "value", "next_value", "continues", "mask")))
    columns |= {"delta": formulas.td_errors(steps, GAMMA), "advantage": formulas.gae(steps, GAMMA, LAM)}
    columns |= {"return": columns["advantage"] + columns["value"], "weight": mask.astype(np.float32)}
    columns["advantage_used"] = used = formulas.standardize(columns["advantage"], mask)
    first = int(np.flatnonzero(mask[0])[2])
    moved[0, first] = np.sign(used[0, first]) * 0.5
    new = np.minimum(old + moved, -0.005)
    columns |= {"logprob_new": new, "ratio": np.exp(new - old), "token": token, "text": text}
    columns["clipped"] = np.abs(columns["ratio"] - 1) > CLIP
    alternatives = {name: _alternatives(x, token, mask) for name, x in (("old", old), ("new", new), ("ref", ref))}
    state = {"clip_scale": 1.0, "penalty_coef": 1.0, "critic_only": False, "kl_coef": COEF}
    stored = StoredIteration(
        iteration, step, int(mask.sum()), GAMMA, LAM, CLIP, CLIP, "gae", "lambda", {}, columns, _options(), state,
        _epochs(old, new, columns, rng), alternatives, vocabulary=vocabulary,
    )  # fmt: skip
    own, after = Settings.of(stored), dict[str, float | None]()
    after |= recompute(stored, own, EPOCHS).means | recompute(stored, own, "after").means
    after["reward/score"] = float(np.mean([response.score for response in responses]))
    stored.metrics.update(after)
    return stored


def _texts(responses: Sequence[Response]) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts [N, T] and the mask [N, T]; the prompt is the token before each response."""
    width = 1 + max(len(response.tokens) for response in responses)
    text, mask = np.full((len(responses), width), "", dtype=object), np.zeros((len(responses), width), bool)
    for row, response in enumerate(responses):
        text[row, 0] = response.prompt
        text[row, 1 : 1 + len(response.tokens)] = list(response.tokens)
        mask[row, 1 : 1 + len(response.tokens)] = True
    return text, mask


def _options() -> dict[str, Any]:
    config = load_preset("sentiment").model_dump(mode="json")
    config["ppo"] |= {"gamma": GAMMA, "lam": LAM, "clip": CLIP, "normalize_advantages": "batch", "objective": "clip"}
    config["ppo"] |= {"advantage": "gae", "value_target": "lambda", "loss_mean": "token", "dual_clip": 0.0}
    config["llm"] |= {"kl": "k1", "kl_coef": COEF, "score_clip": 0.0, "baseline": "critic", "whiten_rewards": False}
    return config


def _epochs(old: np.ndarray, new: np.ndarray, columns: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return the log-probs on the way from old to new, the values, entropies and numbers of minibatches."""
    shape = (EPOCHS, *old.shape)
    share = np.arange(EPOCHS, dtype=np.float32)[:, None, None] / EPOCHS
    minibatch = np.broadcast_to(np.arange(old.shape[0])[:, None] % MINIBATCHES, shape).astype(np.int32)
    value = np.broadcast_to(columns["value"], shape).astype(np.float32)
    return {
        "logprob": old + share * (new - old),
        "value": value + share * (columns["return"] - value) / 2,
        "entropy": np.abs(rng.normal(1.2, 0.4, shape)).astype(np.float32),
        "minibatch": np.where(columns["mask"], minibatch, -1),
    }


def _alternatives(logprob: np.ndarray, token: np.ndarray, mask: np.ndarray) -> Alternatives:
    """Return the sampled token and others that share the rest of the probability, the likeliest first."""
    known = np.unique(token[mask])
    place = np.searchsorted(known, np.where(mask, token, known[0]))
    rest = np.log(np.maximum(1 - np.exp(logprob), 1e-6))
    logprobs = np.stack([logprob, *(rest + np.log(0.45 * 0.5**k) for k in range(K - 1))], -1)
    actions = np.stack([known[(place + 4 * k) % len(known)] for k in range(K)], -1)
    order = np.argsort(-logprobs, -1, kind="stable")
    actions, logprobs = (np.take_along_axis(x, order, -1) for x in (actions, logprobs))
    return Alternatives(actions.astype(np.int32), logprobs.astype(np.float32))
