"""The language-model adapter, which generates responses to prompts, scores them and builds rollouts from them.

The state consists of the tokens so far, the action is the next token, and each row contains a prompt and its response.
A response that is cut off at the length limit is scored like any other response, and V of its final state is 0.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from envs.llm.defaults import choose_threads
from envs.llm.evaluation import answer, choose_prompts, describe_prompts
from envs.llm.families import check_policy, check_trunk
from envs.llm.generate import Responses, generate
from envs.llm.inputs import load_inputs
from envs.llm.kl import KLController, group_baselines, kl_estimates, last_steps, token_rewards, whiten
from envs.llm.lora_model import describe_merge
from envs.llm.memory import release_freed_memory
from envs.llm.model import CRITIC, POLICY, Network, load_causal_lm, load_trunk
from envs.llm.named_models import resolve
from envs.llm.options import LLMConfig
from envs.llm.policy import NOT_CHOSEN, Comparison, Critic, LoRACritic, Reference, TokenPolicy, make_observations
from envs.llm.prompts import Prompts, as_chat, end_tokens
from envs.llm.rewards.errors import RewardError
from envs.llm.rewards.functions import Reward, find_function, load_reward
from envs.llm.rewards.reward_model import SharedRewardModel, shares_base
from envs.llm.rewards.score_transforms import ScoreTransforms
from envs.llm.rewards.scoring import Exchanges, Rewards, Scores
from envs.llm.rollout_metrics import kl_sum, rollout_metrics
from envs.llm.sampler_check import check_sampler
from envs.llm.score_placement import place_scores
from envs.llm.sizes import critic_source
from envs.llm.stop_strings import StopStrings
from envs.llm.structure import trunk_of
from envs.llm.trained_share import describe_untrained
from ppo_unified.config.spec import WorkCounter
from ppo_unified.engine.batch import pack_rows
from ppo_unified.engine.rollout import Rollout
from ppo_unified.errors import UsageError
from ppo_unified.text import print_err

REWARD = "reward"  # start of the names of the reward models' LoRA weights, which are never trained here
ATTEMPTS = 5  # number of batches of responses without any score before the run fails
CALIBRATION = 256  # number of responses by the reference that are scored for llm.score_normalize = "reference"

DECODING_NOTES = {
    "grouped": "only prompts of the same length are decoded together, because padding would change the model's logits",
    "uncached": "responses are generated slowly: the model has no cache, or its cache would change the logits",
}


class LLMAdapter:
    """Connects the engine to a causal language model. Implements `ppo_unified.engine.rollout.Adapter`."""

    def __init__(self, config: LLMConfig, device: torch.device, notes: bool = True) -> None:
        """Load the models and the prompts. If `notes` is false, print nothing about the model and the prompts."""
        self.config, self.device, self.notes = config, device, notes
        llm = config.llm
        model_seed, order_seed, token_seed = (int(x) for x in np.random.SeedSequence(config.seed).generate_state(3))
        self.tokenizer, self.prompts, self.held_out, self.ptx, self.sizes = load_inputs(llm)
        network, self.reference = _load_networks(config, device, model_seed)
        check_policy(network, f"llm.model = {llm.model!r}")
        self.reference.network.decoding = network.decoding
        self.end_tokens = end_tokens(self.tokenizer, network.model)
        self.stop = StopStrings(self.tokenizer, llm.stop) if llm.stop else None
        self.policy = TokenPolicy(
            network,
            _make_critic(config, network, device),
            llm.temperature,
            config.ppo.entropy_coef > 0,
            llm.min_new_tokens,
            self.end_tokens,
        )
        self.policy.to(device)
        if llm.gradient_checkpointing:
            network.checkpoint_activations()
            if self.policy.critic is not None and self.policy.critic.trunk is not None:
                self.policy.critic.trunk.checkpoint_activations()
        self.rewards = Rewards(llm.rewards, self._load_reward)
        self.printed_notes: set[str] = set()
        self.untrained_note: str | None = None  # None until the first update
        self.scores = ScoreTransforms(llm)
        self.kl = KLController(llm.kl_coef, llm.kl_target, llm.kl_horizon)
        self.order = torch.Generator().manual_seed(order_seed)
        self.generator = torch.Generator(device).manual_seed(token_seed)
        self.counter = WorkCounter()
        self.queue: list[int] = []  # indices of the prompts that the current pass has not used yet

    def _load_reward(self, source: str, index: int) -> Reward:
        """Load a reward function or a reward model.

        If the policy and the reward model are LoRA weights for the same base model, the reward model's LoRA weights are
        added to the policy's network under a name that contains `index`.
        """
        network = self.policy.network
        if network.has_lora and find_function(source) is None and shares_base(source, self.config.llm.model):
            return SharedRewardModel(source, network, f"{REWARD}{index}", "llm.reward")
        return load_reward(source, self.device)

    def respond(
        self, prompts: Sequence[list[int]], generator: torch.Generator | None, reference: Reference | None = None
    ) -> Responses:
        """Generate one response to each tokenized prompt, with `reference` if it is given, otherwise with the policy.

        Responses are sampled if `generator` is given; otherwise, decoding is greedy.
        """
        release_freed_memory()  # that the last update has left
        llm = self.config.llm
        network, lora = reference or (self.policy.network, POLICY)
        sampling = llm.temperature, generator
        limits = llm.min_new_tokens, self.stop
        return generate(network, prompts, llm.max_new_tokens, self.end_tokens, *sampling, lora, self.counter, *limits)

    def texts(self, responses: Responses) -> list[str]:
        """Return the decoded text of each response before the first stop string, without special tokens."""
        ids = [responses.response(row) for row in range(len(responses.lengths))]
        texts: list[str] = self.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [self.stop.cut(text) for text in texts] if self.stop else texts

    def judge(self, prompts: Prompts, numbers: Sequence[int], responses: Responses) -> Scores:
        """Score responses to the prompts at the indices `numbers`."""
        chat_template = self.config.llm.chat_template
        raw = [prompts.data.prompts[i] for i in numbers]
        exchanges = Exchanges(
            prompts=[prompts.texts[i] for i in numbers],
            responses=self.texts(responses),
            columns=prompts.columns_at(numbers),
            raw_prompts=raw,
            chats=[as_chat(prompt, chat_template) for prompt in raw],
            token_ids=[responses.response(row) for row in range(len(numbers))],
            decode=partial(self.tokenizer.decode, clean_up_tokenization_spaces=False),
        )
        return self.rewards(exchanges, self.counter)

    def collect(self) -> Rollout:
        """Sample responses to the next prompts, score them, and return the rollout of one iteration."""
        for note in _describe_run(self):
            self._print_once(note)
        llm = self.config.llm
        if llm.score_normalize == "reference" and not self.scores.is_calibrated:
            self._calibrate()
        why, remedy = "llm.reward returned None", "return a number for at least one response of an iteration"
        if llm.drop_truncated:
            why, remedy = "llm.reward returned None, or llm.max_new_tokens was reached,", "raise llm.max_new_tokens"
        times = {"time/generate_s": 0.0, "time/score_s": 0.0}
        for _ in range(ATTEMPTS):
            responses, scores = self._sample(times)
            if scores.numbers:
                break
            print_err(f"{why} for all {len(scores.totals)} responses; sampling new ones")
        else:
            raise RewardError(
                f"{why} for all responses of {ATTEMPTS} attempts in a row, so there is nothing to learn from; {remedy}"
            )
        compared = self.compare(responses)
        sampler = check_sampler(responses, compared.logprobs, self.config, self.policy.network.uses_top_k)
        rollout = self._rollout(responses, compared, scores)
        release_freed_memory()  # for the update
        return replace(rollout, metrics=dict(rollout.metrics) | times | sampler)

    def _sample(self, times: dict[str, float]) -> tuple[Responses, Scores]:
        """Sample responses to the next prompts, score them, and add the seconds that both take to `times`."""
        llm, started = self.config.llm, time.perf_counter()
        chosen = [number for number in self._next_prompts() for _ in range(llm.group_size)]
        self.counter.begin("generating", "token", llm.max_new_tokens)
        responses = self.respond([self.prompts.tokens[i] for i in chosen], self.generator)
        generated = time.perf_counter()
        scores = self.judge(self.prompts, chosen, responses)
        if llm.drop_truncated:
            scores = scores.leave_out(responses.ended.tolist())
        times["time/generate_s"] += generated - started
        times["time/score_s"] += time.perf_counter() - generated
        return responses, scores

    def compare(self, responses: Responses) -> Comparison:
        """Compute the responses' log-probs, values, reference log-probs and exact KL, each [N, T], in micro-batches."""
        mask = responses.mask()
        self.counter.begin("comparing with the reference,", "row", len(mask))
        comparison = Comparison(*(torch.zeros(mask.shape, device=mask.device) for _ in Comparison._fields))
        for rows, longest in pack_rows(responses.lengths - 1, self.config.ppo.microbatch_columns):
            tokens, chosen = responses.tokens[rows], mask[rows, :longest]
            part = self.policy.compare(tokens[:, :longest], chosen, tokens[:, 1 : longest + 1], self.reference)
            for target, x in zip(comparison, part, strict=True):
                target[rows, :longest] = x
            self.counter.done += len(rows)
        return comparison

    def _rollout(self, responses: Responses, compared: Comparison, scores: Scores) -> Rollout:
        """Build the rollout. The mask of a response without a score is False in the whole row."""
        llm, kept = self.config.llm, torch.tensor(scores.kept, device=self.device)
        mask = responses.mask() & kept[:, None]
        last = torch.zeros_like(mask).scatter(1, last_steps(mask)[:, None], True) & mask
        estimates = kl_estimates(compared.logprobs, compared.ref_logprobs, compared.kl)
        columns, step_scores = place_scores(scores, self.scores, responses, last)
        coef = self.kl.coef
        rewards = token_rewards(step_scores, estimates[llm.kl], coef, mask)
        metrics = rollout_metrics(responses, kept, estimates, scores, rewards)
        metrics |= {"ref/kl_coef": coef, "reward/kl_penalty": coef * kl_sum(estimates[llm.kl], kept, responses)}
        values = compared.values
        if llm.baseline == "critic":
            rewards = whiten(rewards, mask) if llm.whiten_rewards else rewards
        else:
            returns, baselines = group_baselines(rewards.sum(1), llm.group_size, llm.baseline, kept)
            values = torch.where(mask, baselines[:, None], 0.0)
            # With the full return at the last step, the advantage is the same at every token of a response
            rewards = token_rewards(returns, torch.zeros_like(rewards), 0.0, mask)
            errors = (returns - baselines).square()  # computed here because the policy returns values of 0
            weights = mask.sum(1) if self.config.ppo.loss_mean == "token" else kept.to(errors)
            metrics["loss/value"] = 0.5 * float((errors * weights).sum() / weights.sum())
        self.kl.update(metrics["ref/kl"], len(scores.numbers))
        return Rollout(
            obs=make_observations(responses.tokens[:, :-1], responses.mask(), llm.min_new_tokens),
            actions=torch.where(mask, responses.tokens[:, 1:], NOT_CHOSEN),
            logprobs=compared.logprobs,
            values=values,
            rewards=rewards,
            next_values=torch.where(last, 0.0, values.roll(-1, 1)),
            continues=mask & ~last,
            mask=mask,
            row_len=mask.shape[1],
            metrics=metrics,
            extras={
                "logprob_ref": compared.ref_logprobs,
                "kl": estimates[llm.kl],
                "kl_full": compared.kl,
                **columns,
                "ended": last & responses.ended[:, None],
            },
        )

    def _next_prompts(self) -> Iterator[int]:
        """Yield the indices of one iteration's prompts.

        Each pass over the prompts uses every prompt once, in a new random order.
        """
        for _ in range(self.config.llm.rollout_batch // self.config.llm.group_size):
            if not self.queue:
                self.queue = torch.randperm(len(self.prompts.texts), generator=self.order).tolist()
            yield self.queue.pop()

    def _calibrate(self) -> None:
        """Compute the mean and standard deviation of the reference model's scores, which normalize all later scores.

        Section 2.1 of arXiv:1909.08593 describes this normalization.
        """
        generator = torch.Generator(self.reference.network.device).manual_seed(self.config.seed)
        order = torch.Generator().manual_seed(self.config.seed)
        numbers = torch.randint(len(self.prompts.texts), (CALIBRATION,), generator=order).tolist()
        self.scores.calibrate(answer(self, self.prompts, numbers, generator, self.reference).numbers)

    def extra_loss(self, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]] | None:
        """Return InstructGPT's pretraining loss and its metric, or None if the loss is disabled.

        The loss is llm.ptx_coef times the mean negative log-likelihood of the pretraining tokens, as in equation 2 of
        arXiv:2203.02155.
        """
        if self.ptx is None:
            return None
        tokens, chosen = self.ptx.draw(generator, self.device)
        parts = list(pack_rows(chosen.sum(1), self.config.ppo.microbatch_columns))
        likelihood = self.policy.log_likelihood
        if len(parts) > 1:  # recompute each part in the backward pass, so that only one is in memory at a time
            likelihood = partial(checkpoint, likelihood, use_reentrant=False)
        total = torch.zeros((), device=self.device)
        for rows, longest in parts:
            part = likelihood(tokens[rows, :longest], chosen[rows, :longest], tokens[rows, 1 : longest + 1])
            total = total - part.sum()
        loss = total / chosen.sum()
        return self.config.llm.ptx_coef * loss, {"loss/ptx": float(loss.detach())}

    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        """Return the scores of responses to `episodes` held-out prompts.

        If there are fewer prompts, sampling uses prompts repeatedly. Greedy decoding uses each prompt once, because the
        same prompt always gets the same response.
        """
        self._print_once(self.held_out.note)
        self._print_once(self.prompts_note)
        count = len(self.held_out.texts)
        if episodes > count and not greedy:
            self._print_once(f"sampling {episodes} responses to {count} different prompts")
        numbers = choose_prompts(count, min(episodes, count) if greedy else episodes, seed)
        generator = None if greedy else torch.Generator(self.device).manual_seed(seed)
        return answer(self, self.held_out, numbers, generator).numbers

    def _print_once(self, note: str | None) -> None:
        if self.notes and note and note not in self.printed_notes:
            self.printed_notes.add(note)
            print_err(note)

    @cached_property
    def prompts_note(self) -> str | None:
        return describe_prompts(self.prompts, self.held_out)

    @cached_property
    def fingerprint(self) -> float:
        """The fingerprint of the reference model, which is computed only once because its weights never change."""
        return self.reference.network.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        return {
            "order": self.order.get_state(),
            "generator": self.generator.get_state(),
            "queue": list(self.queue),
            "kl_coef": self.kl.coef,
            "scores": self.scores.state_dict(),
            "reference": self.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state.

        Raises UsageError if the model's weights or the kind of device have changed since the state was saved.
        """
        if not math.isclose(state["reference"], self.fingerprint, rel_tol=1e-6):
            raise UsageError(
                f"llm.model = {self.config.llm.model!r}: its weights have changed since the run started, and KL needs "
                "the original reference; restore the original model or start a new run"
            )
        if len(state["generator"]) != len(self.generator.get_state()):
            raise UsageError(
                f"this run cannot resume on {self.device}, because its random state comes from another kind of device; "
                "resume it on that kind of device, or start a new run from an export"
            )
        if not self.config.threads and state.get("threads"):  # an older version stored the number only here
            torch.set_num_threads(state["threads"])
        self.order.set_state(state["order"])
        self.generator.set_state(state["generator"])
        self.queue = list(state["queue"])
        self.kl.coef = float(state["kl_coef"])
        self.scores.load_state_dict(state["scores"])

    def close(self) -> None:
        """Do nothing, because this adapter has no resources to release."""


def _describe_run(adapter: LLMAdapter) -> Iterator[str | None]:
    """Yield the notes about a run that its first iterations print. None stands for a note that does not apply."""
    llm = adapter.config.llm
    yield describe_merge(resolve(llm.model), f"llm.model = {llm.model!r}")
    yield adapter.prompts.note
    yield adapter.prompts_note
    yield DECODING_NOTES.get(adapter.policy.network.decoding)
    if adapter.untrained_note is None and not llm.lora_rank:
        adapter.untrained_note = describe_untrained(adapter.policy.network.model)
    yield adapter.untrained_note


def build(config: LLMConfig, device: torch.device) -> LLMAdapter:
    if not config.threads:  # a run of an older version; a different number would change the rounding of sums
        torch.set_num_threads(choose_threads(load_inputs(config.llm).sizes.largest))
    return LLMAdapter(config, device)


def _load_networks(config: LLMConfig, device: torch.device, seed: int) -> tuple[Network, Reference]:
    """Load the policy's network and the frozen reference model, both with the weights of `llm.model`."""
    llm = config.llm
    bf16 = llm.dtype == "bfloat16"
    frozen = torch.bfloat16 if bf16 else torch.float32
    if llm.quantize == "4bit" and device.type != "cuda":
        raise UsageError(f"llm.quantize = '4bit' needs a GPU, got device {str(device)!r}; use 'none'")
    model = load_causal_lm(llm.model, llm, device, frozen if llm.lora_rank else torch.float32)
    network = Network(model, bf16)
    copied: Reference | None = None
    if config.reference == "copy":
        dtype = frozen if llm.reference_dtype == "same" else getattr(torch, llm.reference_dtype)
        where = device if llm.reference_device == "same" else torch.device("cpu")
        # If the copy stays on the CPU, it is also made there, so that the GPU never stores both models
        frozen_copy = copy.deepcopy(model.to(where)).to(dtype).requires_grad_(False)
        copied = Reference(Network(frozen_copy, bf16))
        model.to(device)
    if llm.lora_rank:
        own = llm.baseline == "critic" and llm.critic == "independent" and llm.critic_init == "policy"
        network.add_lora(llm, [POLICY, CRITIC] if own else [POLICY], seed)
    return network, copied or Reference(network, None)


def _make_critic(config: LLMConfig, network: Network, device: torch.device) -> Critic | None:
    """Create the critic that the options specify, or return None if `llm.baseline` does not use a critic."""
    llm = config.llm
    if llm.baseline != "critic":
        return None
    if llm.critic == "shared":
        return Critic(network.width)
    if llm.critic_init == "policy":
        if llm.lora_rank:
            return LoRACritic(network)
        trunk, head = copy.deepcopy(trunk_of(network.model)), None
    else:
        name = critic_source(llm)
        dtype = torch.bfloat16 if llm.lora_rank and network.bf16 else torch.float32
        trunk, head = load_trunk(name, "llm.critic_init", device, dtype)
    own = Network(trunk, network.bf16)
    if llm.critic_init != "policy":
        check_trunk(own, f"llm.critic_init = {llm.critic_init!r}")
    if llm.lora_rank:
        own.add_lora(llm, [POLICY], config.seed)
    critic = Critic(own.width, own)
    if head is not None:
        critic.head.weight.data.copy_(head.weight.data)
    return critic
