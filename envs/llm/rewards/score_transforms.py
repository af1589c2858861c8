"""From a reward's scores to what PPO is paid: normalised, clipped, less the penalty for not ending. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from envs.llm.options import LLM

SMALLEST_STD = 1e-8  # of scores that differ by rounding alone, relative to their size


class ScoreTransforms:
    """The score transforms of a run, and the statistics they rest on, which a checkpoint keeps.

    In this order: (score - mean) / std, with the moments of the reference's responses (arXiv:1909.08593, section 2.1)
    or of all raw scores so far; clipped to +-llm.score_clip; less llm.missing_eos_penalty where it was cut off.
    """

    def __init__(self, config: LLM) -> None:
        self.config = config
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # squares: sum of squared distances from the mean

    def __call__(self, raw: Sequence[float], ended: Sequence[bool]) -> list[float]:
        """Transformed scores [n]; "running" takes this batch into its moments first. `ended`: with an end token."""
        options = self.config
        if options.score_normalize == "running":
            self._add(raw)
        scores = list(raw)
        if options.score_normalize != "none":
            if not self.count:
                raise RuntimeError("llm.score_normalize = 'reference': calibrate() comes before the first scores")
            scores = [(score - self.mean) / self.std for score in scores]
        if options.score_clip:
            scores = [max(-options.score_clip, min(options.score_clip, score)) for score in scores]
        pairs = zip(scores, ended, strict=True)
        return [score if whole else score - options.missing_eos_penalty for score, whole in pairs]

    @property
    def is_calibrated(self) -> bool:
        """Whether there are moments to normalise with."""
        return self.count > 0

    @property
    def std(self) -> float:
        """Standard deviation of the scores taken in (divided by their number, not one less); 1 where all are equal."""
        std = math.sqrt(self.squares / self.count) if self.count else 0.0
        return std if std > SMALLEST_STD * max(1.0, abs(self.mean)) else 1.0

    def calibrate(self, raw: Sequence[float]) -> None:
        """Set the moments to those of `raw`, the scores of the reference's responses."""
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self._add(raw)

    def _add(self, raw: Sequence[float]) -> None:
        """Welford's update: no cancellation where the mean is large against the deviation."""
        for score in raw:
            self.count += 1
            away = score - self.mean
            self.mean += away / self.count
            self.squares += away * (score - self.mean)

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.count, self.mean, self.squares = int(state["count"]), state["mean"], state["squares"]
