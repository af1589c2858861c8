"""Normalizes, clips and penalizes raw scores before PPO uses them. This module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from envs.llm.options import LLM

SMALLEST_STD = 1e-8  # relative to the mean; a smaller std is treated as rounding error


class ScoreTransforms:
    """Normalizes and clips scores and subtracts the missing-EOS penalty, in this order.

    Normalization computes (score - mean) / std. The mean and std are those of the scores of the reference model's
    responses (arXiv:1909.08593, section 2.1), or of all raw scores so far. The statistics are saved in checkpoints.
    """

    def __init__(self, config: LLM) -> None:
        self.config = config
        self.count, self.mean = 0, 0.0
        self.squares = 0.0  # sum of squared deviations from the mean

    def __call__(self, raw: Sequence[float], ended: Sequence[bool]) -> list[float]:
        """Return the transformed scores [n], as `limit` of `normalize`."""
        return self.limit(self.normalize(raw), ended)

    def normalize(self, raw: Sequence[float]) -> list[float]:
        """Return the normalized scores [n]. Running statistics include the scores of this batch."""
        options = self.config
        if options.score_normalize == "none":
            return list(raw)
        if options.score_normalize == "running":
            self._add(raw)
        if not self.count:
            raise RuntimeError("llm.score_normalize = 'reference': call calibrate() before the first scores")
        return [(score - self.mean) / self.std for score in raw]

    def limit(self, scores: Sequence[float], ended: Sequence[bool]) -> list[float]:
        """Return the normalized `scores` [n], clipped and penalized.

        `ended` is True for each response that ends with an end token or a stop string.
        """
        options = self.config
        if options.score_clip:
            scores = [max(-options.score_clip, min(options.score_clip, score)) for score in scores]
        pairs = zip(scores, ended, strict=True)
        return [score if has_end else score - options.missing_eos_penalty for score, has_end in pairs]

    @property
    def scale(self) -> float:
        """The number by which normalization divides."""
        return 1.0 if self.config.score_normalize == "none" else self.std

    @property
    def is_calibrated(self) -> bool:
        """True if the statistics for normalization are available."""
        return self.count > 0

    @property
    def std(self) -> float:
        """The population standard deviation of the scores so far, or 1 if all scores are equal."""
        std = math.sqrt(self.squares / self.count) if self.count else 0.0
        return std if std > SMALLEST_STD * max(1.0, abs(self.mean)) else 1.0

    def calibrate(self, raw: Sequence[float]) -> None:
        """Set the statistics to those of `raw`, the scores of the reference model's responses."""
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self._add(raw)

    def _add(self, raw: Sequence[float]) -> None:
        """Update the statistics with Welford's algorithm, which stays accurate if the mean is large."""
        for score in raw:
            self.count += 1
            deviation = score - self.mean
            self.mean += deviation / self.count
            self.squares += deviation * (score - self.mean)

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.count, self.mean, self.squares = int(state["count"]), state["mean"], state["squares"]
