"""The critic microscope and the KL laboratory: a report on one stored iteration, as text or as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ppo_unified.inspection.critic import CriticReport, examine_critic, trajectory
from ppo_unified.inspection.critic_text import critic_sections, trajectory_section
from ppo_unified.inspection.kl_lab import KLReport, examine_kl, token_estimates
from ppo_unified.inspection.kl_text import kl_sections, tokens_section
from ppo_unified.inspection.reward_curves import RewardCurves, read_reward_curves, reward_section
from ppo_unified.inspection.sections import Canvas, Section
from ppo_unified.runs.folder import Run
from ppo_unified.runs.stored_iteration import Sample, StoredIteration


class Laboratory:
    """A report on one stored iteration. Subclasses compute it in `of`, which can take a second."""

    stored: StoredIteration
    samples: list[Sample]

    @classmethod
    def of(cls, run: Run, stored: StoredIteration) -> Laboratory:
        """Compute the report. Raises UsageError if the iteration does not have the necessary quantities."""
        raise NotImplementedError

    def sections(self, canvas: Canvas) -> list[Section]:
        """Return the report on the iteration."""
        raise NotImplementedError

    def sample_section(self, number: int, canvas: Canvas, cursor: int = -1, most: int = 0) -> Section:
        """Return the steps of a sample. If `most` > 0, only so many steps around the step `cursor` are shown."""
        raise NotImplementedError

    def document(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return all numbers, with those of some samples."""
        raise NotImplementedError


@dataclass(frozen=True)
class CriticMicroscope(Laboratory):
    """How well V_old predicted the rewards that followed."""

    stored: StoredIteration
    samples: list[Sample]
    report: CriticReport

    @classmethod
    def of(cls, run: Run, stored: StoredIteration) -> CriticMicroscope:
        return cls(stored, stored.samples(), examine_critic(stored))

    def sections(self, canvas: Canvas) -> list[Section]:
        return critic_sections(self.stored, self.report, canvas)

    def sample_section(self, number: int, canvas: Canvas, cursor: int = -1, most: int = 0) -> Section:
        return trajectory_section(self.stored, number, self.samples[number], canvas, cursor, most)

    def document(self, numbers: Sequence[int]) -> dict[str, Any]:
        each = [{"sample": number} | trajectory(self.stored, self.samples[number]) for number in numbers]
        return {"critic": asdict(self.report), "each": each}


@dataclass(frozen=True)
class KLLaboratory(Laboratory):
    """The estimates of the KL to the reference model and, if the run has several rewards, the rewards by KL."""

    stored: StoredIteration
    samples: list[Sample]
    report: KLReport
    rewards: RewardCurves | None

    @classmethod
    def of(cls, run: Run, stored: StoredIteration) -> KLLaboratory:
        return cls(stored, stored.samples(), examine_kl(stored), read_reward_curves(run, stored))

    def sections(self, canvas: Canvas) -> list[Section]:
        rewards = [reward_section(self.rewards, canvas)] if self.rewards is not None else []
        return [*kl_sections(self.report, canvas), *rewards]

    def sample_section(self, number: int, canvas: Canvas, cursor: int = -1, most: int = 0) -> Section:
        return tokens_section(self.stored, number, self.samples[number], canvas, cursor, most)

    def document(self, numbers: Sequence[int]) -> dict[str, Any]:
        rewards = {"rewards": asdict(self.rewards)} if self.rewards is not None else {}
        each = [{"sample": number} | token_estimates(self.stored, self.samples[number]) for number in numbers]
        return {"kl": asdict(self.report), **rewards, "each": each}


LABORATORIES: tuple[type[Laboratory], ...] = (CriticMicroscope, KLLaboratory)
