"""Compare an independent and a shared critic on the same rollouts of a fixed policy, with the engine's own update.

An independent critic starts as a copy of the policy's trunk; a shared one uses the trunk itself. Both heads are zero.
With the value loss alone, both are the same function, trained in the same way, so they predict equally well, but only
the shared one moves the policy. A difference in their predictions comes from the policy loss, which also changes a
shared trunk. Therefore both are trained with the complete loss, and the shared one also with the value loss alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.llm.adapter import LLMAdapter
from envs.llm.model import Network
from envs.llm.options import LLMConfig
from envs.llm.policy import Critic, TokenPolicy
from envs.llm.structure import trunk_of
from ppo_unified.engine.batch import pack_rows
from ppo_unified.engine.optimizers import set_learning_rates
from ppo_unified.engine.ppo import Learner, make_batch, make_learner, reward_to_go, update
from ppo_unified.engine.rollout import Rollout, map_obs
from ppo_unified.errors import UsageError

VARIANTS = ("independent", "shared", "value-loss-alone")  # the last one: a shared critic without the policy loss
HELD_OUT = 2  # rollouts at the end, on which no critic is trained
BYTES = 16  # per trained parameter: the weight, its gradient and Adam's two means, in float32
VALUE_LOSS_ALONE: dict[str, Any] = {  # with advantages of 0, the policy loss has no gradient
    "objective": "clip",
    "entropy_coef": 0.0,
    "normalize_advantages": "none",
    "target_kl": 0.0,
    "critic_warmup": 0,
}


class CriticCurve(NamedTuple):
    """The quality of a critic on the held-out rollouts, before training and after each rollout."""

    kind: str  # of VARIANTS
    explained: list[float]  # explained variance of the rewards that followed
    policy_kl: list[float]  # KL(start || policy) per held-out response, which the updates have caused
    seconds: float  # of the training
    parameters: int  # that are trained, including the policy's
    memory: int  # bytes of weights, gradients and optimizer state of the trained parameters


class Progress(NamedTuple):
    """What is being computed, for messages."""

    doing: str
    done: int
    total: int


def check_options(config: LLMConfig, rollouts: int) -> None:
    """Raise UsageError if the critics cannot be compared with these options."""
    if config.llm.lora_rank:
        raise UsageError(
            f"llm.lora_rank: expected 0, got {config.llm.lora_rank}; with LoRA, both critics share the frozen base"
        )
    if rollouts <= HELD_OUT:
        raise UsageError(
            f"--rollouts: expected an integer > {HELD_OUT}, got {rollouts}; the last {HELD_OUT} are held out"
        )


def compare_critics(
    config: LLMConfig, weights: Mapping[str, Tensor], rollouts: int, device: torch.device
) -> Iterator[Progress | CriticCurve]:
    """Collect rollouts with one policy, train each kind of critic on them, and yield progress and the results.

    `weights` are the weights of a checkpoint's policy, or empty for the policy at the start of training.
    """
    check_options(config, rollouts)
    changes = {"baseline": "critic", "critic": "independent", "critic_init": "policy"}
    own = config.model_copy(update={"llm": config.llm.model_copy(update=changes)})
    adapter = LLMAdapter(own, device, notes=False)
    network = {name: x for name, x in weights.items() if name.startswith("network.")}
    if network:
        adapter.policy.load_state_dict(network, strict=False)
    collected: list[Rollout] = []
    for number in range(rollouts):
        yield Progress("collecting rollout", number + 1, rollouts)
        collected.append(adapter.collect())
    start = adapter.policy.network
    for kind in VARIANTS:
        policy = _make_policy(copy.deepcopy(start), kind, own, adapter.end_tokens).to(device)
        yield from _train(policy, kind, own, collected)
    adapter.close()


def is_alone(kind: str) -> bool:
    """Return True if a variant is trained with the value loss alone."""
    return kind == "value-loss-alone"


def _make_policy(network: Network, kind: str, config: LLMConfig, end_tokens: Sequence[int]) -> TokenPolicy:
    """Return a policy with a new critic, whose head is zero."""
    own = Network(copy.deepcopy(trunk_of(network.model)), network.bf16) if kind == "independent" else None
    llm = config.llm
    options = llm.temperature, config.ppo.entropy_coef > 0, llm.min_new_tokens, end_tokens
    return TokenPolicy(network, Critic(network.width, own), *options)


def _train(
    policy: TokenPolicy, kind: str, config: LLMConfig, collected: Sequence[Rollout]
) -> Iterator[Progress | CriticCurve]:
    train, held_out = collected[:-HELD_OUT], collected[-HELD_OUT:]
    alone = is_alone(kind)
    ppo = config.ppo.model_copy(update=VALUE_LOSS_ALONE if alone else {"critic_warmup": 0})
    learner = make_learner(policy, ppo, config.optim, total_iterations=len(train), seed=config.seed)
    explained, kl, seconds = list[float](), list[float](), 0.0
    for number, rollout in enumerate([None, *train]):
        yield Progress(f"{kind} critic: rollout", number, len(train))
        if rollout is not None:
            began = time.perf_counter()
            _update(learner, rollout, alone)
            seconds += time.perf_counter() - began
        quality = _evaluate(policy, held_out, ppo.gamma, ppo.microbatch_columns)
        explained.append(quality[0])
        kl.append(quality[1])
    parameters = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    yield CriticCurve(kind, explained, kl, seconds, parameters, BYTES * parameters)


def _update(learner: Learner, rollout: Rollout, alone: bool) -> None:
    """Perform one iteration of the engine. V_old is that of the current critic; the old policy is the one at the start,
    which sampled the rollout. If `alone` is true, advantages of 0 leave only the value loss."""
    progress = learner.progress
    set_learning_rates(learner.optimizers, learner.optim.lr_scale(progress.iteration, progress.remaining))
    values, _ = _outputs(learner.policy, rollout, learner.ppo.microbatch_columns)
    following = torch.where(rollout.continues, values.roll(-1, 1), 0.0)
    batch = make_batch(replace(rollout, values=values, next_values=following), learner.ppo)
    if alone:
        batch = replace(batch, advantages=torch.zeros_like(batch.advantages))
    update(learner, batch, lambda _: None)
    progress.iteration += 1


@torch.no_grad()
def _outputs(policy: Any, rollout: Rollout, columns: int) -> tuple[Tensor, Tensor]:
    """Return V and the log-probs of the actions, [N, T] each, 0 at masked steps."""
    values, logprobs = torch.zeros_like(rollout.values), torch.zeros_like(rollout.values)
    lengths = (rollout.mask * torch.arange(1, rollout.mask.shape[1] + 1, device=rollout.mask.device)).amax(1)
    for rows, longest in pack_rows(lengths, columns):
        obs = map_obs(lambda x, rows=rows, longest=longest: x[rows, :longest], rollout.obs)  # type: ignore[misc]
        found = policy.evaluate(obs, rollout.actions[rows, :longest])
        values[rows, :longest], logprobs[rows, :longest] = found.values, found.logprobs
    return torch.where(rollout.mask, values, 0.0), torch.where(rollout.mask, logprobs, 0.0)


def _evaluate(policy: TokenPolicy, rollouts: Sequence[Rollout], gamma: float, columns: int) -> tuple[float, float]:
    """Return the explained variance over all steps of some rollouts, and KL(start || policy) per response.

    The tokens come from the policy at the start, so the KL is estimated by the mean of ratio - 1 - log ratio, which is
    never negative.
    """
    targets, errors, kl = list[Tensor](), list[Tensor](), list[Tensor]()
    for rollout in rollouts:
        values, logprobs = _outputs(policy, rollout, columns)
        mask = rollout.mask
        followed = reward_to_go(rollout, gamma)
        targets.append(followed[mask])
        errors.append((followed - values)[mask])
        log_ratio = torch.where(mask, logprobs - rollout.logprobs, 0.0)
        kl.append((log_ratio.exp() - 1 - log_ratio).sum(1)[mask.any(1)])
    return explained_variance(torch.cat(targets), torch.cat(errors)), float(torch.cat(kl).mean())


def explained_variance(target: Tensor, error: Tensor) -> float:
    """Return 1 - var(error) / var(target). Raises UsageError if all targets are equal, apart from rounding."""
    variance = target.var()
    if not variance > 1e-10 * target.square().mean():
        raise UsageError(
            f"expected rewards that differ between the held-out responses, got {float(target.mean()):.4g} at every "
            "token; choose another policy or reward"
        )
    return float(1 - error.var() / variance)
