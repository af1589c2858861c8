"""Distributes the scores of responses over their tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.llm.generate import Responses
from envs.llm.rewards.score_transforms import ScoreTransforms
from envs.llm.rewards.scoring import Scores


def place_scores(
    scores: Scores, transforms: ScoreTransforms, responses: Responses, last: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Normalize, clip and penalize the scores, and distribute them over the steps.

    Return the columns of scores for `inspect`, and the part of the rewards that comes from the scores, each [N, T].
    `last` [N, T] is True at the last step of each response that has a score. Token-level rewards are divided by the
    same standard deviation as the score. The rest of the used score is added at the last step.
    """
    raw, ended = scores.numbers, [end for end, keep in zip(responses.ended.tolist(), scores.kept, strict=True) if keep]
    normalized = transforms.normalize(raw)
    used = transforms.limit(normalized, ended)
    named = {"score": raw, "score_normalized": normalized, "score_used": used}
    columns = {name: _fill(last, x) for name, x in named.items()}
    if scores.tokens is None:
        return columns, columns["score_used"].float()
    unscaled = _fill(responses.mask(), [x for row in scores.tokens for x in row])
    unscaled = torch.where(last.any(1, keepdim=True), unscaled, 0.0)
    parts = unscaled / transforms.scale
    rest = torch.where(last, columns["score_used"] - parts.sum(1, keepdim=True), 0.0)
    return columns | {"score_token": unscaled, "score_token_normalized": parts}, (parts + rest).float()


def _fill(mask: Tensor, values: list[float]) -> Tensor:
    """Return a float64 tensor with `values` at the steps where `mask` [N, T] is True, row by row, and 0 elsewhere."""
    filled = torch.zeros(mask.shape, device=mask.device, dtype=torch.float64)
    return filled.masked_scatter(mask, torch.tensor(values, device=mask.device, dtype=torch.float64))
