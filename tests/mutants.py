"""Introduce one bug at a time into the engine and check that a test fails: a test that never fails proves nothing.

    python tests/mutants.py [NAME ...] [--jobs N]

Each mutant replaces one piece of text in a temporary copy of the packages and runs the fast tests there until the first
failure. The exit code is 1 if a mutant survives or if its text does not occur exactly once in the source.
"""
# ruff: noqa: E501 - the table is easier to read with one line per mutant

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("ppo_unified", "envs", "tests", "pyproject.toml")
FAST = [
    *(f"tests/engine/test_{name}.py" for name in ("loss", "gae", "batch", "golden", "train")),
    *(f"tests/envs/gym/test_{name}.py" for name in ("policy", "vector", "spaces", "images", "recurrent")),
    "tests/test_contract.py",
    "tests/envs/llm/test_sampler_check.py",
    *(f"tests/inspection/test_{name}.py" for name in ("formulas", "own_numbers", "what_if")),
]
LEARNING = ["tests/test_learning.py"]
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no")


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str


PPO, BATCH, OPTIMIZERS = "ppo_unified/engine/ppo.py", "ppo_unified/engine/batch.py", "ppo_unified/engine/optimizers.py"
FUSED, TOWERS, CATEGORICAL = "ppo_unified/engine/fused.py", "envs/gym/towers.py", "envs/categorical.py"
SCHEMA = "ppo_unified/config/schema.py"
VECTOR, POLICY, SPACES = "envs/gym/vector.py", "envs/gym/policy.py", "envs/gym/spaces.py"
SCALING, ENCODERS, PACKING = "envs/gym/scaling.py", "envs/gym/encoders.py", "envs/gym/observations.py"
ATARI, PONG, BREAKOUT = "envs/gym/atari.py", "envs/presets/pong.toml", "envs/presets/breakout.toml"
MAKE, RECURRENT, EVAL = "envs/gym/make.py", "envs/gym/recurrent.py", "envs/gym/eval.py"
FORMULAS, WHAT_IF = "ppo_unified/inspection/formulas.py", "ppo_unified/inspection/what_if.py"
GENERATE = "envs/llm/generate.py"
NEAREST = {
    GENERATE: "test_sampler_check.py",
    VECTOR: "test_vector.py",
    SPACES: "test_vector.py",
    POLICY: "test_policy.py",
    SCALING: "test_vector.py",
    **dict.fromkeys([ENCODERS, PACKING, ATARI, PONG, BREAKOUT, MAKE], "test_images.py"),
    RECURRENT: "test_recurrent.py",
    EVAL: "test_recurrent.py",
    FORMULAS: "test_formulas.py",
    WHAT_IF: "test_what_if.py",
}  # test file to run first

LEARNED = [  # the short CartPole run must catch these, without the other tests
    Mutant("fused: advantage sign", FUSED, "return -slope", "return slope"),
    Mutant("fused: value sign", FUSED, "    return error\n", "    return -error\n"),
]  # fmt: skip
MUTANTS = [
    *LEARNED,
    Mutant("advantage sign", PPO, "    return -gain\n", "    return gain\n"),
    Mutant("ratio inverted", PPO, "    log_ratio = logprobs - batch.logprobs\n", "    log_ratio = batch.logprobs - logprobs\n"),
    Mutant("ratio is always 1", PPO, "    ratio = log_ratio.exp()\n    gain", "    ratio = log_ratio * 0 + 1\n    gain"),
    Mutant("fused: gradient only outside the range", FUSED, "gain * (gain <= ratio", "gain * (gain > ratio"),
    Mutant("fused: actor is not trained", PPO, "by_logprob = share * policy", "by_logprob = 0 * share * policy"),
    Mutant("fused: ratio inverted", FUSED, "(logprobs - batch.logprobs)", "(batch.logprobs - logprobs)"),
    Mutant("fused: penalty sign", FUSED, "penalty_coef * (ratio - 1) - gain", "penalty_coef * (1 - ratio) - gain"),
    Mutant("fused: dual clip ignored", FUSED, "advantages >= 0) | ", "advantages < torch.inf) | "),
    Mutant("fused: value clip ignored", FUSED, "error.square(), moving, error", "error.square(), error, error"),
    Mutant("fused: weights ignored", PPO, "micro.weights.to(new.values.dtype) / weight", "1 / weight"),
    Mutant("fused: entropy sign", PPO, "share * -entropy_coef", "share * entropy_coef"),
    Mutant("fused: warm-up trains the trunk", FUSED, "for _, g in used], inputs=inputs)", "for _, g in used])"),
    Mutant("fused: last epoch not measured", PPO, "not norms or epoch == ppo.epochs or", "not norms or"),
    Mutant("flat: moments not restored", FUSED, "old, state[p] = state[p], {", "old, state[p] = {}, {"),
    Mutant("flat: different step counts", OPTIMIZERS, 'int(self.state[p].get("step", 0))', "0"),
    Mutant("towers: wrong size of the actor's gradient", TOWERS, "torch.mm(own, layers[k], out", "torch.mm(own * k / -2, layers[k], out"),
    Mutant("towers: only the last micro-batch has gradients", TOWERS, ".add_(torch.bmm(", ".copy_(torch.bmm("),
    Mutant("towers: no activation gradient", TOWERS, "derive(grad, inputs[k + 1])", "pass"),
    Mutant("categorical: entropy has no gradient", CATEGORICAL, "    if entropy_grad is not None:\n        grad.sub_", "    if False:\n        grad.sub_"),
    Mutant("gae: no recursion", PPO, "torch.addcmul(delta, carry, running)", "delta"),
    Mutant("gae: continues past episode ends", PPO, "gamma * lam * rollout.continues.to(deltas.dtype)", "gamma * lam * torch.ones_like(deltas)"),
    Mutant("gae: trace not discounted", PPO, "gamma * lam * rollout.continues", "lam * rollout.continues"),
    Mutant("gae: bootstrap not discounted", PPO, "gamma * rollout.next_values", "rollout.next_values"),
    Mutant("gae: no bootstrap", PPO, "rollout.rewards + gamma * rollout.next_values", "rollout.rewards"),
    Mutant("gae: a masked column breaks the trace", PPO, "torch.where(rollout.mask, carried, 1.0)", "torch.where(rollout.mask, carried, 0.0)"),
    Mutant("gae: masked columns are steps", PPO, "torch.where(rollout.mask, deltas, 0.0), torch.where(rollout.mask, carried, 1.0)", "deltas, carried"),
    Mutant("gae: masked columns have advantages", PPO, "return torch.where(rollout.mask, torch.stack(advantages[::-1], 1), 0.0)", "return torch.stack(advantages[::-1], 1)"),
    Mutant("reward-to-go: not from lambda 1", PPO, "gae(rollout, gamma, 1.0)", "gae(rollout, gamma, 0.95)"),
    Mutant("return: every step starts an episode", PPO, "starts & valid", "valid"),
    Mutant("td: lambda ignored", PPO, "gae(rollout, ppo.gamma, 0.0)", "estimate"),
    Mutant("value target: only the advantage", PPO, "estimate + rollout.values", "estimate"),
    Mutant("value target: monte carlo ignored", PPO, "if monte_carlo else", "if False else"),
    Mutant("policy gradient sign", PPO, "return -logprobs * advantages", "return logprobs * advantages"),
    Mutant("clip: maximum instead of minimum", PPO, "torch.min(gain, clipped * advantages)", "torch.max(gain, clipped * advantages)"),
    Mutant("clip: off", PPO, "torch.min(gain, clipped * advantages)", "gain"),
    Mutant("clip: gradient stops on both sides", PPO, "torch.min(gain, clipped * advantages)", "clipped * advantages"),
    Mutant("learning rate: no warm-up", SCHEMA, "warm * (self.anneal_factor(remaining) if self.anneal else 1.0)", "(self.anneal_factor(remaining) if self.anneal else 1.0)"),
    Mutant("entropy: bonus not annealed", PPO, " * learner.scale(ppo.anneal_entropy)", ""),
    Mutant("clip: range not annealed", PPO, "learner.scale(ppo.anneal_clip)", "1.0"),
    Mutant("clip: upper range ignored", PPO, "clip_scale * (ppo.clip_high or ppo.clip)", "clip_scale * ppo.clip"),
    Mutant("dual clip: for good actions", PPO, "advantages < 0, torch.max(gain", "advantages > 0, torch.max(gain"),
    Mutant("penalty: rewards moving away", PPO, "penalty_coef * (ratio - 1 - log_ratio) - gain", "-penalty_coef * (ratio - 1 - log_ratio) - gain"),
    Mutant("penalty: adapts the wrong way", PPO, "2.0 if relative_kl > 1.5 else 0.5", "0.5 if relative_kl > 1.5 else 2.0"),
    Mutant("entropy sign", PPO, "- entropy_coef * self.entropy", "+ entropy_coef * self.entropy"),
    Mutant("value loss: sign", PPO, "+ value_coef * self.value", "- value_coef * self.value"),
    Mutant("value clip: the smaller error", PPO, "torch.max(loss, (clipped", "torch.min(loss, (clipped"),
    Mutant("value_coef: in separate optimizers", PPO, "ppo.value_coef if learner.optim.joint and not critic_only else 1.0", "ppo.value_coef"),
    Mutant("mask: not in the loss", PPO, "(torch.where(batch.mask, x, 0.0) * batch.weights).sum()", "(x * batch.weights).sum()"),
    Mutant("mask: values get gradients", PPO, "torch.where(batch.mask, new.values, batch.returns)", "new.values"),
    Mutant("mask: log-probs get gradients", PPO, "torch.where(batch.mask, new.logprobs, batch.logprobs)", "new.logprobs"),
    Mutant("weights: ignored", PPO, "torch.where(batch.mask, x, 0.0) * batch.weights", "torch.where(batch.mask, x, 0.0)"),
    Mutant("micro-batches: mean of means", PPO, "(total / weight).backward", "(total / micro.weights.sum()).backward"),
    Mutant("gradients: not reset", PPO, "optimizer.zero_grad(set_to_none=explicit is None)", "pass"),
    Mutant("kl: first order only", PPO, '"kl": ((ratio - 1 - log_ratio)', '"kl": (-log_ratio'),
    Mutant("target_kl: continues after it", PPO, "stopped = True\n                break", "stopped = True"),
    Mutant("warm-up: trains the trunk", PPO, "backward(inputs=critic)", "backward()"),
    Mutant("warm-up: one iteration too long", PPO, "self.progress.iteration < self.ppo.critic_warmup", "self.progress.iteration <= self.ppo.critic_warmup"),
    Mutant("warm-up: with the extra loss", PPO, "if not critic_only and (extra", "if (extra"),
    Mutant("extra loss: no gradient", PPO, "extra[0].backward()", "extra[0].detach()"),
    Mutant("learning rate: not annealed", SCHEMA, "warm * (self.anneal_factor(remaining) if self.anneal else 1.0)", "warm"),
    Mutant("steps: masked columns counted", PPO, "int(batch.mask.sum())", "rollout.mask.numel()"),
    Mutant("normalization: without Bessel", BATCH, "torch.var_mean(valid)", "torch.var_mean(valid, correction=0)"),
    Mutant("normalization: over masked steps", BATCH, "else advantages[mask]", "else advantages.flatten()"),
    Mutant("normalization: minibatch ignored", PPO, 'per_minibatch = ppo.normalize_advantages == "minibatch"', "per_minibatch = False"),
    Mutant("minibatches: not shuffled", BATCH, "torch.randperm(len(batch), generator=generator)", "torch.arange(len(batch))"),
    Mutant("minibatches: more than rows", BATCH, "[batch], min(count, len(batch))", "[batch], count"),
    Mutant("minibatches: by rows, not steps", BATCH, "split_evenly(batch.mask.sum(1), ", "split_evenly(batch.mask.any(1).long(), "),
    Mutant("micro-batches: last column cut", BATCH, "batch[rows][:, :longest]", "batch[rows][:, : max(1, longest - 1)]"),
    Mutant("micro-batches: too wide", BATCH, "columns // width", "2 * columns // width"),
    Mutant("optimizers: critic in both", OPTIMIZERS, "if id(p) not in own", "if id(p)"),
    Mutant("optimizers: norms not clipped", OPTIMIZERS, "max_grad_norm or torch.inf", "torch.inf"),
    Mutant("optimizers: step despite NaN", OPTIMIZERS, "if not math.isfinite(", "if math.isinf("),
    Mutant("bootstrap: ignores termination", VECTOR, "values[:, 1:] * ~died", "values[:, 1:]"),
    Mutant("bootstrap: truncation ends the value", VECTOR, "values[:, 1:] * ~died", "values[:, 1:] * ~end"),
    Mutant("continues: past truncation", VECTOR, "continues=~end", "continues=~died"),
    Mutant("autoreset: column not masked", VECTOR, "valid.append(~self.ended)", "valid.append(self.ended | True)"),
    Mutant("observations: statistics change in collect", VECTOR, "                self._store_obs(raw, info)\n                self.counter", "                self._store_obs(raw, info)\n                if self.policy.scaler is not None:\n                    self.policy.scaler.update(torch.from_numpy(self.raw))\n                self.counter"),
    Mutant("observations: resets in the statistics", VECTOR, "[:, :-1][mask]", "[:, :-1].reshape(-1, self.observations.numbers)"),
    Mutant("observations: variance without the change of the mean", SCALING, " + delta.square() * share * (1 - share)", ""),
    Mutant("rewards: variance without the change of the mean", SCALING, " + delta**2 * self.count * seen.size / total", ""),
    Mutant("rewards: return not reset at episode ends", SCALING, "            self.running[ended[:, t]] = 0\n", ""),
    Mutant("rewards: resets in the scale", SCALING, "seen = discounted[mask]", "seen = discounted"),
    Mutant("NaN observation passes", VECTOR, "if not np.isfinite(x).all():", 'if what == "reward" and not np.isfinite(x).all():'),
    Mutant("NaN reward passes", VECTOR, "if not np.isfinite(x).all():", 'if what == "observation" and not np.isfinite(x).all():'),
    Mutant("old log-probs: shifted by one action", VECTOR, "logprobs=logprobs[:, :steps]", "logprobs=logprobs[:, 1:]"),
    Mutant("action mask: ignored", POLICY, "logits = torch.where(mask, logits, -1e9)", "pass"),
    Mutant("action mask: applied at resets", SPACES, "reported if ended is None else reported & ~ended", "reported"),
    Mutant("actions: not clipped for the environment", SPACES, "np.clip(actions, layout.low, layout.high)", "actions"),
    Mutant("actions: not rescaled", SPACES, "actions * np.asarray(layout.scale) + np.asarray(layout.offset) if layout.scale else actions", "actions"),
    Mutant("actions: start ignored", SPACES, "actions + np.asarray(layout.start)", "actions"),
    Mutant("gaussian: entropy sign", POLICY, "(self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()", "-(self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()"),
    Mutant("recurrent: weights not orthogonal", RECURRENT, "nn.init.orthogonal_(weight", "nn.init.normal_(weight"),
    Mutant("recurrent: biases not zero", RECURRENT, "nn.init.zeros_(bias)", "nn.init.ones_(bias)"),
    Mutant("recurrent: forget gates half open", RECURRENT, "nn.init.ones_(self.cell", "nn.init.zeros_(self.cell"),
    Mutant("recurrent: initial states not zero", RECURRENT, "weight.new_zeros(count, size)", "weight.new_ones(count, size)"),
    Mutant("recurrent: states never reset in rollouts", VECTOR, "self.states[self.ended] = 0", "pass"),
    Mutant("recurrent: states never reset in updates", RECURRENT, "states = states * continues[:, column]", "pass"),
    Mutant("recurrent: reset before the final observation", RECURRENT, "torch.cat((first, resets), 1)", "torch.cat((resets, first), 1)"),
    Mutant("recurrent: minibatches of single steps", VECTOR, "row_len=self.policy.row_len", "row_len=1"),
    Mutant("recurrent: rows start from zero", RECURRENT, "obs[STATE][:, 0, : self", "0 * obs[STATE][:, 0, : self"),
    Mutant("recurrent: critic's rows start from zero", RECURRENT, "obs[STATE][:, 0, self", "0 * obs[STATE][:, 0, self"),
    Mutant("recurrent: evaluations keep states of earlier episodes", EVAL, "player.start_episode(i)", "pass"),
    Mutant("inspector: kl k2 not halved", FORMULAS, "0.5 * np.square(log_ratio)", "np.square(log_ratio)"),
    Mutant("inspector: kl k3 inverted", FORMULAS, "np.expm1(-log_ratio) + log_ratio", "np.expm1(log_ratio) - log_ratio"),
    Mutant("inspector: kl inverted", FORMULAS, "(logprobs - ref_logprobs)", "(ref_logprobs - logprobs)"),
    Mutant("inspector: kl rewarded", FORMULAS, "np.where(mask, -coef * kl, 0)", "np.where(mask, coef * kl, 0)"),
    Mutant("inspector: score at the first token", FORMULAS, "np.arange(len(mask)), last_steps(mask)]", "np.arange(len(mask)), mask.argmax(1)]"),
    Mutant("inspector: score clipped from above only", FORMULAS, "np.clip(scores, -limit, limit)", "np.minimum(scores, limit)"),
    Mutant("inspector: whitening removes the mean", FORMULAS, "(rewards - mean) / std + mean", "(rewards - mean) / std"),
    Mutant("inspector: variance without Bessel", FORMULAS, "valid.var(ddof=1, dtype", "valid.var(dtype"),
    Mutant("inspector: rloo includes the response", FORMULAS, "(sums - groups) / np.maximum(counts - 1, 1)", "(sums - 0 * groups) / np.maximum(counts, 1)"),
    Mutant("inspector: grpo std without Bessel", FORMULAS, "squares / np.maximum(counts - 1, 1)", "squares / np.maximum(counts, 1)"),
    Mutant("inspector: grpo baseline not scaled", FORMULAS, "np.where(counted, means / deviations, 0)", "np.where(counted, means, 0)"),
    Mutant("inspector: bootstrap not discounted", FORMULAS, "gamma * steps.next_values", "steps.next_values"),
    Mutant("inspector: no baseline in delta", FORMULAS, "steps.next_values - steps.values, 0)", "steps.next_values, 0)"),
    Mutant("inspector: gae not discounted", FORMULAS, "np.asarray(gamma * lam, advantages", "np.asarray(lam, advantages"),
    Mutant("inspector: gae past episode ends", FORMULAS, "(steps.continues * np", "(steps.mask * np"),
    Mutant("inspector: gae stops at masked columns", FORMULAS, "carried, np.ones((), advantages.dtype))", "carried, np.zeros((), advantages.dtype))"),
    Mutant("inspector: gae one step short", FORMULAS, "range(len(advantages) - 2, -1, -1)", "range(len(advantages) - 2, 0, -1)"),
    Mutant("inspector: masked steps have advantages", FORMULAS, "np.where(steps.mask, advantages.T, 0)", "advantages.T"),
    Mutant("inspector: reward-to-go with lambda", FORMULAS, "gae(steps, gamma, 1.0)", "gae(steps, gamma, 0.95)"),
    Mutant("inspector: every step starts an episode", FORMULAS, "np.where(mask & ~goes_on, columns, 0)", "np.where(mask, columns, 0)"),
    Mutant("inspector: one episode per row", FORMULAS, "goes_on = (previous >= 0) & np.take_along_axis(continues, np.maximum(previous, 0), axis=1)", "goes_on = previous >= 0"),
    Mutant("inspector: value target without V", FORMULAS, "gae(steps, gamma, lam) + steps.values, 0)", "gae(steps, gamma, lam), 0)"),
    Mutant("inspector: normalized over masked steps", FORMULAS, "moments_of(advantages[mask])", "moments_of(advantages.ravel())"),
    Mutant("inspector: groups without Bessel", FORMULAS, "np.square(centered)) / np.maximum(counts - 1, 1)", "np.square(centered)) / np.maximum(counts, 1)"),
    Mutant("inspector: groups not centered", FORMULAS, "np.where(counts[number] < 2, x, centered", "np.where(counts[number] < 2, x, x"),
    Mutant("inspector: penalty of first order", FORMULAS, "np.asarray(ratio - 1 - log_ratio)", "np.asarray(-log_ratio)"),
    Mutant("inspector: sides exchanged", FORMULAS, "np.asarray(above - (ratio", "np.asarray(-above + (ratio"),
    Mutant("inspector: upper end of the range ignored", FORMULAS, "(ratio > 1 + objective.above)", "(ratio > 1 + objective.below)"),
    Mutant("inspector: policy gradient sign", FORMULAS, "np.asarray(-logprobs * advantages)", "np.asarray(logprobs * advantages)"),
    Mutant("inspector: clip takes the maximum", FORMULAS, "gain = np.minimum(gain, np.clip", "gain = np.maximum(gain, np.clip"),
    Mutant("inspector: dual clip for good actions", FORMULAS, "gain = np.where(advantages < 0, np.maximum", "gain = np.where(advantages > 0, np.maximum"),
    Mutant("inspector: both sides cut", FORMULAS, "stopped = _fraction_below(clipped, gain)", "stopped = _fraction_below(clipped, gain) * 0 + 1"),
    Mutant("inspector: steps inside the range cut", FORMULAS, "    stopped *= outside(ratio, objective) != 0\n", ""),
    Mutant("inspector: dual clip cuts nothing", FORMULAS, "passed *= 1 - below * (advantages < 0)", "passed *= 1"),
    Mutant("inspector: dual clip before the clip", FORMULAS, "_fraction_below(np.minimum(gain, clipped), objective", "_fraction_below(clipped, objective"),
    Mutant("inspector: ties pass no gradient", FORMULAS, "np.add(x < y, x <= y, dtype=x.dtype)", "np.add(x <= y, x <= y, dtype=x.dtype)"),
    Mutant("inspector: derivative sign", FORMULAS, "derivative = -ratio * advantages", "derivative = ratio * advantages"),
    Mutant("inspector: derivative without ratio", FORMULAS, "derivative = -ratio * advantages", "derivative = -advantages"),
    Mutant("inspector: penalty without gradient", FORMULAS, "objective.penalty_coef * (ratio - 1) + derivative", "derivative"),
    Mutant("inspector: value clip takes the smaller error", FORMULAS, "loss = np.maximum(loss, np.square(clipped", "loss = np.minimum(loss, np.square(clipped"),
    Mutant("inspector: value loss not halved", FORMULAS, "np.asarray(0.5 * loss)", "np.asarray(loss)"),
    Mutant("what-if: penalties of the score lost", WHAT_IF, "settings.score_clip) - penalties", "settings.score_clip)"),
    Mutant("what-if: score of a group at every token", WHAT_IF, "np.where(last, returns", "np.where(mask, returns"),
    Mutant("what-if: penalty for every response", WHAT_IF, '_last(mask) & (stored.columns["ended"] == 0)', "_last(mask)"),
    Mutant("what-if: scores stay normalized", WHAT_IF, 'suffix = "" if settings.score_normalize == "none" else "_normalized"', 'suffix = "_normalized"'),
    Mutant("what-if: baseline of a group after the end", WHAT_IF, "np.where(mask & ~last, baselines", "np.where(mask, baselines"),
    Mutant("what-if: log-prob of the last epoch", WHAT_IF, 'stored.epochs["logprob"][moment - 1]', 'stored.epochs["logprob"][-1]'),
    Mutant("what-if: value of the last epoch", WHAT_IF, 'stored.epochs["value"][moment - 1]', 'stored.epochs["value"][-1]'),
    Mutant("what-if: after the update, the first epoch counts", WHAT_IF, "range(count_epochs(stored), 0, -1)", "range(1, count_epochs(stored) + 1)"),
    Mutant("what-if: share of a minibatch ignores weights", WHAT_IF, "max(float(weights[chosen].sum()), 1e-9)", "max(float(chosen.sum()), 1e-9)"),
    Mutant("what-if: means include steps after a stop", WHAT_IF, 'np.where(columns["share"] > 0, weights, 0)', "weights"),
    Mutant("what-if: means ignore weights", WHAT_IF, "float((x[chosen] * positive).sum(dtype=np.float64) / total)", "float(x[chosen].mean())"),
    Mutant("what-if: value loss of a group over an epoch", WHAT_IF, 'seen if recomputed.settings.baseline == "critic" else weights', "seen"),
    Mutant("what-if: unexplained variance", WHAT_IF, "1 - unexplained / variance", "unexplained / variance"),
    Mutant("what-if: KL penalty without coefficient", WHAT_IF, "settings.kl_coef * float(", "float("),
    Mutant("components: log-probs averaged", POLICY, "logprobs.view(actions.shape).sum(-1)", "logprobs.view(actions.shape).mean(-1)"),
    Mutant("images: no no-op actions", PONG, "noop_max=30", "noop_max=0"),
    Mutant("images: no frame skip", PONG, "frame_skip=4", "frame_skip=1"),
    Mutant("images: life loss does not end the episode", ATARI, "terminated or lost, truncated", "terminated, truncated"),
    Mutant("images: no fire after a life", ATARI, "< self.lives and not terminated", "< 0 and not terminated"),
    Mutant("images: no fire at the start", ATARI, "= self.env.step(FIRE)\n        info", "= self.env.step(0)\n        info"),
    Mutant("images: in color", BREAKOUT, "grayscale_obs=True", "grayscale_obs=False"),
    Mutant("images: rewards not clipped", BREAKOUT, "max_reward=1.0", "max_reward=10.0"),
    Mutant("images: no stack", BREAKOUT, "stack_size=4", "stack_size=1"),
    Mutant("images: encoder not shared", POLICY, "range(1 if config.shared else 2)", "range(2)"),
    Mutant("images: encoder always shared", POLICY, "range(1 if config.shared else 2)", "range(1)"),
    Mutant("images: not scaled", ENCODERS, ".float() / 255", ".float()"),
    Mutant("images: channels not moved", ENCODERS, "x = x.movedim(-1, -3)", "x = x.flatten(-3).unflatten(-1, (x.shape[-1], *x.shape[-3:-1]))"),
    Mutant("images: numbers of another part", ENCODERS, "0 if part.is_image else start, size", "0, size"),
    Mutant("images: packed before the numbers", PACKING, "[*(x.view(np.uint8) for x in numbers), *images]", "[*images, *(x.view(np.uint8) for x in numbers)]"),
    Mutant("images: critic's encoder counts as the policy's", POLICY, "[self.critic_torso, *filter(None, [self.critic_encoder])]", "[self.critic_torso]"),
    Mutant("training wrappers: not applied", MAKE, "make_env(config.for_training, rank)", "make_env(config, rank)"),
    Mutant("sampler: positions do not advance", GENERATE, "self.positions = self.positions + 1", "self.positions = self.positions"),
    Mutant("sampler: padding is attended", GENERATE, "{\"attention_mask\": self.attention.long()} if self.padded else {}", "{}"),
    Mutant("sampler: another temperature", GENERATE, "decoder.logits / temperature", "decoder.logits"),
    Mutant("sampler: finished rows stay in the mask", GENERATE, "self.attention, self.positions = self.attention[rows], self.positions[rows]", "self.attention, self.positions = self.attention[: len(rows)], self.positions[: len(rows)]"),
]  # fmt: skip


class Outcome(NamedTuple):
    caught: bool
    by: str  # the first test that failed, or another reason
    seconds: float


def copy_project(folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy; its packages take precedence over installed ones."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def check_copy(folder: Path) -> None:
    """Exit unless the tests import the copy and the unchanged copy passes them."""
    shown = run_python(folder, "-c", "import envs, ppo_unified; print(envs.__file__, ppo_unified.__file__, sep='\\n')")
    found = [Path(line).resolve().parents[1] for line in shown.stdout.splitlines()]
    if found != [folder.resolve()] * 2:
        sys.exit(f"the tests would import {shown.stdout or shown.stderr}, not the copy in {folder}")
    tests = run_python(folder, *PYTEST, *FAST, *LEARNING)
    if tests.returncode:
        sys.exit(f"the unchanged copy fails the tests:\n{tests.stdout[-2000:]}{tests.stderr[-2000:]}")


def try_mutant(mutant: Mutant, tests: Sequence[str]) -> Outcome:
    """Run `tests` on a copy that contains the mutant."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        copy_project(folder)
        path = folder / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return Outcome(False, f"its text occurs {text.count(mutant.old)} times in {mutant.file}, not once", 0.0)
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        nearest_first = sorted(tests, key=lambda test: not test.endswith(NEAREST.get(mutant.file, "")))
        try:
            process = run_python(folder, *PYTEST, *nearest_first)
        except subprocess.TimeoutExpired:
            return Outcome(False, "the tests timed out", time.monotonic() - started)
    failed = re.search(r"^FAILED (\S+)", process.stdout, re.MULTILINE)
    if process.returncode == 1 and failed:
        return Outcome(True, failed[1].removeprefix("tests/"), time.monotonic() - started)
    by = "SURVIVED" if process.returncode == 0 else f"pytest exited with {process.returncode}: {process.stdout[-200:]}"
    return Outcome(False, by, time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description="Introduce one bug at a time and check that a test fails.")
    parser.add_argument("names", nargs="*", help="run only mutants whose name contains one of these (default: all)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="parallel jobs (default: 2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutant-none-") as name:
        copy_project(Path(name))
        check_copy(Path(name))
    work = [(mutant, FAST) for mutant in MUTANTS] + [(mutant, LEARNING) for mutant in LEARNED]
    work = [(m, tests) for m, tests in work if not options.names or any(part in m.name for part in options.names)]
    survivors = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = pool.map(lambda pair: try_mutant(*pair), work)
        print(f"{'mutant':50}{'tests':10}{'':9}{'seconds':>7}  first failure")
        for (mutant, tests), outcome in zip(work, outcomes, strict=True):
            kind, verdict = "CartPole" if tests is LEARNING else "fast", "caught" if outcome.caught else "ALIVE"
            print(f"{mutant.name:50}{kind:10}{verdict:9}{outcome.seconds:7.1f}  {outcome.by}", flush=True)
            survivors += not outcome.caught
    print(f"{len(work) - survivors} of {len(work)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
