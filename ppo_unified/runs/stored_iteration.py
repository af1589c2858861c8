"""The quantities of PPO at every step of one stored iteration. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ppo_unified.config.spec import ReplayError, StoredEpisode
from ppo_unified.text import clean, decode_bytes


class Quantity(NamedTuple):
    """One column of a sample."""

    header: str  # short enough for a narrow table
    meaning: str
    adds_up: bool = False  # True if the table shows the quantity's sum over a sample


QUANTITIES: dict[str, Quantity] = {
    "action": Quantity(
        "action",
        "action that the policy chose, in the environment's units; for a continuous action, the value before clipping "
        "to the bounds",
    ),
    "token": Quantity("token", "ID of the token that the policy chose"),
    "text": Quantity(
        "text",
        "the token as text; `inspect` quotes text that starts or ends with a space or has control characters, and "
        "shows bytes that form no complete character as escapes, such as \\xe4",
    ),
    "reward": Quantity("r", "reward of the step, including penalties", True),
    "value": Quantity("V", "value estimate for the state before the step, computed during collection"),
    "next_value": Quantity("V'", "value estimate for the state after the step; 0 if the episode terminated"),
    "delta": Quantity("delta", "temporal-difference error, r + gamma*V' - V"),
    "advantage": Quantity("A", "advantage before normalization"),
    "advantage_used": Quantity(
        "A used", "advantage that the loss uses, normalized if ppo.normalize_advantages = 'batch'"
    ),
    "return": Quantity("return", "training target for the critic"),
    "weight": Quantity("weight", "weight of the step in the loss: 1, or 1 / number of steps in its sequence"),
    "logprob_old": Quantity("log old", "log-prob of the action under the policy that collected the rollout", True),
    "logprob_new": Quantity(
        "log new", "log-prob of the action under the policy after the iteration's last update", True
    ),
    "ratio": Quantity("ratio", "probability ratio, exp(log new - log old)"),
    "clipped": Quantity(
        "clip",
        "* marks a ratio outside the clip range; the policy gradient is 0 if A pushes the ratio further out",
        True,
    ),
    "logprob_ref": Quantity("log ref", "log-prob of the action under the reference model", True),
    "kl": Quantity("kl", "estimated KL to the reference model, as used in the reward", True),
    "kl_full": Quantity("kl full", "exact KL to the reference model, summed over all possible actions", True),
    "score": Quantity("score", "score of the response, shown at its last step", True),
    "score_normalized": Quantity("score norm.", "score after llm.score_normalize, before llm.score_clip", True),
    "score_used": Quantity("score used", "score in the reward, after normalization, clipping and penalties", True),
    "ended": Quantity("ended", "true at the last token of a response that ends with an end token or a stop string"),
    "score_token": Quantity(
        "score token",
        "weighted sum of the token-level rewards at this token; the last token also gets the rest of the score",
    ),
    "score_token_normalized": Quantity(
        "score token norm.", "score_token after division by the standard deviation that llm.score_normalize uses"
    ),
    "continues": Quantity("continues", "true if the episode continues after the step"),
}


EPOCH_QUANTITIES = {  # recorded when the update reached the step, before the optimizer step of its minibatch
    "logprob": "log-prob of the action",
    "value": "value estimate",
    "entropy": "entropy of the action distribution",
    "minibatch": "number of the minibatch in the epoch; -1 if the update stopped before it",
    "advantage_used": "advantage that the loss used; only if ppo.normalize_advantages = 'minibatch'",
}


class Alternatives(NamedTuple):
    """The likeliest actions at every step, most likely first."""

    actions: np.ndarray  # [N, T, K] integers
    logprobs: np.ndarray  # [N, T, K] float32


class Sample(NamedTuple):
    """The part of an episode that is in a rollout, given by its row and its valid columns in ascending order."""

    row: int
    columns: np.ndarray


@dataclass(frozen=True)
class StoredIteration:
    """The samples of one iteration."""

    iteration: int
    step: int  # the run's step after the iteration
    steps: int  # number of valid steps in the iteration; the file may contain fewer
    gamma: float
    lam: float
    clip: float  # ppo.clip after annealing
    clip_high: float
    advantage_kind: str  # ppo.advantage
    value_target: str  # ppo.value_target
    metrics: dict[str, float | None]  # the logged metrics; None if not finite
    columns: dict[str, np.ndarray]  # [N, T] each; entries are undefined if "mask" is False
    options: dict[str, Any] = field(default_factory=dict)  # all options of the run; {} in files of older versions
    state: dict[str, Any] = field(default_factory=dict)  # clip_scale, penalty_coef, critic_only, kl_coef, row_len:
    # as used in this iteration; {} in files of older versions
    epochs: dict[str, np.ndarray] = field(default_factory=dict)  # [E, N, T] each: see EPOCH_QUANTITIES
    alternatives: dict[str, Alternatives] = field(default_factory=dict)  # by policy: "old", "new" or "ref"
    observations: dict[str, np.ndarray] = field(default_factory=dict)  # [N, T, ...] each, as the policy saw them
    actions: np.ndarray | None = None  # [N, T, ...], in the policy's own units
    record: Any = None  # the adapter's own JSON, which it needs to draw the episodes again
    vocabulary: dict[int, str] = field(default_factory=dict)  # text of each action in `alternatives`
    where: str = "samples"  # path of the file from which the iteration was read, for messages

    def head(self, rows: int) -> StoredIteration:
        """Return the same iteration with only its first `rows` rows."""
        return replace(
            self,
            columns={name: x[:rows] for name, x in self.columns.items()},
            epochs={name: x[:, :rows] for name, x in self.epochs.items()},
            alternatives={name: Alternatives(*(x[:rows] for x in found)) for name, found in self.alternatives.items()},
            observations={name: x[:rows] for name, x in self.observations.items()},
            actions=None if self.actions is None else self.actions[:rows],
        )

    def sample_ends(self) -> np.ndarray:
        """Return the end of each sample, int [S], as the number of valid steps up to its last one, row by row.

        A sample ends at the last valid step of its row and at each valid step for which `continues` is False.
        """
        mask = self.columns["mask"]
        ends_of_rows = mask.sum(1).cumsum()
        breaks = np.flatnonzero(~self.columns["continues"][mask]) + 1
        return np.union1d(ends_of_rows[ends_of_rows > 0], breaks)

    def samples(self) -> list[Sample]:
        """Split each row into samples, see `sample_ends`."""
        rows, columns = self.columns["mask"].nonzero()
        ends = self.sample_ends().tolist()
        return [Sample(int(rows[start]), columns[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    def text_before(self, sample: Sample) -> str:
        """Return the text, such as a prompt, between the row's previous sample and the first step of `sample`."""
        if "text" not in self.columns:
            return ""
        row, first = sample.row, int(sample.columns[0])
        own = np.flatnonzero(self.columns["mask"][row, :first])
        texts = self.columns["text"][row, own[-1] + 1 if own.size else 0 : first]
        return decode_bytes("".join(texts.tolist()))

    def text_of(self, sample: Sample) -> str:
        """Return the text of a sample, such as a response; '' in environments."""
        text = self.columns.get("text")
        return "" if text is None else "".join(text[sample.row, sample.columns].tolist())

    def episode(self, sample: Sample) -> StoredEpisode:
        """Return what is needed to replay a sample. Raises ReplayError if the observations are not stored."""
        if self.actions is None or not self.observations:
            raise ReplayError(
                "the samples contain no observations, because an older version stored them or one row is too large"
            )
        steps, following = sample.columns, sample.columns[-1:] + 1
        columns = np.concatenate([steps, following[following < self.actions.shape[1]]])
        observations = {name: x[sample.row, columns] for name, x in self.observations.items()}
        return StoredEpisode(sample.row, int(steps[0]), self.actions[sample.row, steps], observations)

    def sample_steps(self, sample: Sample) -> list[dict[str, Any]]:
        """Return all quantities at each step of a sample: first those in QUANTITIES, then the adapter's own."""
        names = [name for name in QUANTITIES if name in self.columns]
        names += [name for name in self.columns if name not in QUANTITIES and name != "mask"]
        parts = {name: self.columns[name][sample.row, sample.columns].tolist() for name in names}
        strings = {name: [*map(decode_bytes, parts[name])] for name in names if self.columns[name].dtype.kind in "UO"}
        parts |= strings
        return [
            {"column": int(column)} | {name: part[number] for name, part in parts.items()}
            for number, column in enumerate(sample.columns)
        ]

    def document(self, number: int, sample: Sample) -> dict[str, Any]:
        """Return a sample in the form that `inspect --json` prints. `number` is its index among all samples."""
        before = {"before": self.text_before(sample)} if "text" in self.columns else {}
        return {"sample": number, "row": sample.row, **before, "steps": self.sample_steps(sample)}

    def quantities(self) -> dict[str, Quantity]:
        """Return the declaration of each column. For the adapter's own columns, it contains only a name."""
        headers = {known.header for known in QUANTITIES.values()}
        return {
            name: QUANTITIES.get(
                name, Quantity(f"{name}_" if name in headers else name, "quantity defined by the adapter")
            )
            for name in self.columns
        }

    def summary(self, name: str) -> str:
        """Return lines with the run's name, the iteration, and the formulas that connect the quantities."""
        held = int(self.columns["mask"].sum())
        kept = "" if held == self.steps else f"; only the first {held:,} are stored"
        clip = f"{self.clip:.4g}" + (f" (upper {self.clip_high:.4g})" if self.clip_high != self.clip else "")
        advantages = {
            "gae": "A = delta + gamma*lam*A'",
            "td": "A = delta",
            "reward-to-go": "A = r + gamma*A' (V' instead of A' if the rollout ends before the episode)",
            "return": "A = sum of the episode's discounted rewards from its first step in the rollout",
        }
        to_go = "return = r + gamma*return' (V' instead of return' if the rollout ends before the episode)"
        returns = f"return = {'A' if self.advantage_kind == 'gae' else 'GAE'} + V"
        formulas = (
            "delta = r + gamma*V' - V",
            advantages.get(self.advantage_kind, f"A as defined by ppo.advantage = {clean(self.advantage_kind)!r}"),
            returns if self.value_target == "lambda" else to_go,
        )
        return "\n".join(
            (
                f"{clean(name)}, iteration {self.iteration} (up to step {self.step:,}), "
                f"{self.steps:,} sampled steps{kept}",
                f"gamma {self.gamma:.6g}, lam {self.lam:.6g}, clip {clip}",
                "; ".join(formulas),
            )
        )
