"""Gymnasium vector environments as rollouts.

Autoreset is NEXT_STEP: the step after an episode's end is a reset in which the policy had no say, so its column is
masked, and the observation it starts from IS the final observation. The value bootstrapped at a truncation is
therefore simply the next column's value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv
from torch import Tensor

from envs.gym.eval import play_episodes
from envs.gym.make import make_vector
from envs.gym.options import GymConfig
from envs.gym.policy import GymPolicy
from envs.gym.restore import RestoreError
from envs.gym.spaces import MASK_KEY, describe_actions, encode, read_masks, to_env_actions
from ppo_unified.engine.rollout import Observations, Rollout, map_obs

REWARD_CLIP = 10.0  # of scaled rewards
CHUNK = 1 << 16  # observations evaluated in one forward pass after collecting


class GymAdapter:
    """A policy acting in a vector of environments. See `ppo_unified.engine.rollout.Adapter`."""

    def __init__(self, config: GymConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        env_seed, policy_seed, action_seed = (int(x) for x in np.random.SeedSequence(config.seed).generate_state(3))
        self.envs, self.observations, self.restorer = make_vector(config.gym, config.gym.num_envs)
        self.actions = describe_actions(self.envs.single_action_space, config.gym.env_id)
        initial = torch.Generator().manual_seed(policy_seed)
        size, normalize = self.observations.size, config.gym.normalize_obs
        self.policy = GymPolicy(size, self.actions, config.policy, normalize, initial).to(device)
        self.generator = torch.Generator(device).manual_seed(action_seed)
        self.rewards = RewardScaler(config.gym.num_envs, config.ppo.gamma) if config.gym.normalize_reward else None
        self.steps_taken = 0
        self.episodes = EpisodeLog(config.gym.num_envs)
        self.stepping = False  # a step has not returned: worker processes may be in the middle of it
        self._reset(env_seed)

    def _reset(self, seed: int) -> None:
        raw, info = self.envs.reset(seed=seed)
        self.ended = np.zeros(self.config.gym.num_envs, dtype=bool)  # the current column is a reset column
        self.reports_masks = MASK_KEY in info and not self.actions.continuous
        self._store_obs(raw, info)

    def _store_obs(self, raw: Any, info: dict[str, Any]) -> None:
        """Keep what the environments show now; a reset column allows every action."""
        self.raw = encode(raw, self.observations)
        self.masks = read_masks(info, len(self.raw), self.actions, self.ended)
        if self.masks is not None and not self.reports_masks:
            raise ValueError(f"{self.config.gym.env_id} reports an action mask in step but not in reset; both must")
        if self.masks is None and self.reports_masks:
            self.masks = np.ones((len(self.raw), sum(self.actions.sizes)), dtype=bool)

    def _observe(self) -> Observations:
        """What the policy sees now, [N, ...] on its device, normalised."""
        obs = self.policy.scale(torch.from_numpy(self.raw).to(self.device))
        if self.masks is None:
            return obs
        return {"obs": obs, "action_mask": torch.from_numpy(self.masks).to(self.device)}

    def collect(self) -> Rollout:
        seen: list[Observations] = []
        raws, actions, rewards, terminated, ended, valid = [], [], [], [], [], []
        with torch.inference_mode():
            for number in range(self.config.gym.num_steps):
                obs = self._observe()
                chosen = self.policy.act(obs, self.generator)
                seen.append(obs)
                raws.append(self.raw)
                actions.append(chosen)
                valid.append(~self.ended)
                raw, reward, died, cut, info = self._step(chosen, number + 1)
                self.ended = died | cut
                rewards.append(np.array(reward))  # copies: an environment may write into the same arrays again
                terminated.append(np.array(died))
                ended.append(self.ended)
                self._store_obs(raw, info)
            seen.append(self._observe())
        mask = np.stack(valid, 1)
        reward = np.stack(rewards, 1).astype(np.float32) * mask
        self._check_finite(np.stack([*raws, self.raw], 1), reward)
        self.episodes.add(reward, np.stack(ended, 1) & mask, mask)
        self.steps_taken += int(mask.sum())
        rollout = self._rollout(
            _stack(seen), torch.stack(actions, 1), reward, np.stack(terminated, 1), np.stack(ended, 1), mask
        )
        if self.policy.scaler is not None:
            self.policy.scaler.update(torch.from_numpy(np.stack(raws, 1)[mask]).to(self.device))
        return rollout

    def _rollout(
        self,
        seen: Observations,
        actions: Tensor,
        rewards: np.ndarray,
        terminated: np.ndarray,
        ended: np.ndarray,
        mask: np.ndarray,
    ) -> Rollout:
        """`seen` has one column more than the rest: what the last step led to."""
        steps = actions.shape[1]
        logprobs, values = self._evaluate_columns(seen, torch.cat([actions, actions[:, :1]], 1))
        if self.rewards is not None:
            rewards = self.rewards.scale(rewards, ended, mask)
        on_device = (torch.from_numpy(x).to(self.device) for x in (rewards, terminated, ended, mask))
        reward, died, end, valid = on_device
        return Rollout(
            obs=map_obs(lambda x: x[:, :steps], seen),
            actions=actions,
            logprobs=logprobs[:, :steps],
            values=values[:, :steps],
            rewards=reward,
            next_values=values[:, 1:] * ~died,
            continues=~end,
            mask=valid,
            row_len=1,
            metrics=self.episodes.metrics(),
        )

    @torch.no_grad()
    def _evaluate_columns(self, obs: Observations, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log pi_old and V_old, [N, columns], by the very function that the update differentiates."""
        shape = actions.shape[:2]
        flat_obs, flat_actions = map_obs(lambda x: x.flatten(0, 1)[:, None], obs), actions.flatten(0, 1)[:, None]
        chunks = [slice(start, start + CHUNK) for start in range(0, len(flat_actions), CHUNK)]
        parts = [self.policy.evaluate(map_obs(itemgetter(chunk), flat_obs), flat_actions[chunk]) for chunk in chunks]
        return torch.cat([e.logprobs for e in parts]).view(shape), torch.cat([e.values for e in parts]).view(shape)

    def _step(self, chosen: Tensor, number: int) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.stepping = True
        try:
            stepped = self.envs.step(to_env_actions(chosen.cpu().numpy(), self.actions))
        except (Exception, SystemExit) as error:  # an environment must not end the trainer unnoticed
            where = f"{self.config.gym.env_id} raised {type(error).__name__} in step, {self._describe_time(number)}"
            raise RuntimeError(f"{where}: {error}") from error
        self.stepping = False
        return stepped

    def _describe_time(self, number: int) -> str:
        return f"{number} steps into the rollout (after {self.steps_taken} environment steps)"

    def _check_finite(self, raws: np.ndarray, rewards: np.ndarray) -> None:
        """Raises FloatingPointError naming environment, step and quantity; nothing was learned from the rollout yet."""
        for what, x, first in (("observation", raws, 0), ("reward", rewards, 1)):
            if not np.isfinite(x).all():
                env, step = np.argwhere(~np.isfinite(x))[0][:2]
                when = self._describe_time(step + first)
                raise FloatingPointError(f"{self.config.gym.env_id}: environment {env} gave a non-finite {what} {when}")

    def extra_loss(self, generator: torch.Generator) -> None:
        return None

    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        return play_episodes(self.policy, self.config.gym, episodes, seed, greedy, self.device)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "generator": self.generator.get_state(),
            "steps_taken": self.steps_taken,
            "episodes": self.episodes.state_dict(),
            "envs": self.restorer.state_dict(),
            "raw": torch.from_numpy(self.raw.copy()),
            "ended": torch.from_numpy(self.ended.copy()),
        }
        state |= {"masks": torch.from_numpy(self.masks.copy())} if self.masks is not None else {}
        return state | ({"rewards": self.rewards.state_dict()} if self.rewards is not None else {})

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Go on from `state`. Where the environments cannot be restored: with new episodes, seeded by how far the run
        had come; the result says why."""
        self.generator.set_state(state["generator"].cpu())
        self.steps_taken = state["steps_taken"]
        self.episodes.load_state_dict(state["episodes"])
        if self.rewards is not None:
            self.rewards.load_state_dict(state["rewards"])
        try:
            self._restore(state)
        except RestoreError as reason:
            self._reset(int(np.random.SeedSequence((self.config.seed, self.steps_taken)).generate_state(1)[0]))
            self.episodes.reset_unfinished(self.config.gym.num_envs)
            if self.rewards is not None:
                self.rewards.reset_unfinished(self.config.gym.num_envs)
            return f"episodes restarted: {self.config.gym.env_id}: {reason}"
        return None

    def _restore(self, state: dict[str, Any]) -> None:
        """Environments as they were when `state` was saved. Raises RestoreError where they show something else."""
        before, now = len(state["ended"]), self.config.gym.num_envs
        if before != now:
            raise RestoreError(f"there were {before} environments, now gym.num_envs is {now}")
        raw, info = self.restorer.load_state_dict(state["envs"])
        self.ended = state["ended"].cpu().numpy().copy()
        self._store_obs(raw, info)
        if not np.array_equal(self.raw, state["raw"].cpu().numpy()):
            raise RestoreError("the restored environments show other observations")
        if self.masks is not None and not np.array_equal(self.masks, state["masks"].cpu().numpy()):
            raise RestoreError("the restored environments allow other actions")

    def close(self) -> None:
        """Close the environments; worker processes that died or were left in the middle of a step are killed instead:
        waiting for their answers might never end."""
        if isinstance(self.envs, AsyncVectorEnv) and (
            self.stepping or not all(process.is_alive() for process in self.envs.processes)
        ):
            for process, pipe in zip(self.envs.processes, self.envs.parent_pipes, strict=True):
                process.kill()
                process.join()
                if pipe is not None:  # gymnasium lets go of the pipe of a worker that raised
                    pipe.close()
            self.envs.closed = True
        self.envs.close()  # nothing, where it is closed


def build(config: GymConfig, device: torch.device) -> GymAdapter:
    return GymAdapter(config, device)


def _stack(seen: list[Observations]) -> Observations:
    """A list over time of [N, ...] to [N, T, ...], entry by entry of a mapping."""
    if isinstance(seen[0], Mapping):
        return {key: torch.stack([step[key] for step in seen], 1) for key in seen[0]}  # type: ignore[index]
    return torch.stack(seen, 1)  # type: ignore[arg-type]


class EpisodeLog:
    """Returns and lengths of the last 100 finished training episodes."""

    def __init__(self, num_envs: int) -> None:
        self.reset_unfinished(num_envs)
        self.returns: deque[float] = deque(maxlen=100)
        self.lengths: deque[int] = deque(maxlen=100)

    def add(self, rewards: np.ndarray, ended: np.ndarray, mask: np.ndarray) -> None:
        """Rewards, episode ends and valid steps of a rollout, each [N, T]; masked rewards are 0."""
        for t in range(rewards.shape[1]):
            self.running += rewards[:, t]
            self.length += mask[:, t]
            done = ended[:, t]
            if done.any():
                self.returns.extend(self.running[done].tolist())
                self.lengths.extend(self.length[done].tolist())
                self.running[done], self.length[done] = 0, 0

    def metrics(self) -> dict[str, float]:
        if not self.returns:
            return {}
        return {"episode/return": float(np.mean(self.returns)), "episode/length": float(np.mean(self.lengths))}

    def state_dict(self) -> dict[str, Any]:
        under_way = {"running": self.running.tolist(), "length": self.length.tolist()}
        return {"returns": list(self.returns), "lengths": list(self.lengths)} | under_way

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.running, self.length = np.array(state["running"]), np.array(state["length"])
        self.returns, self.lengths = deque(state["returns"], maxlen=100), deque(state["lengths"], maxlen=100)

    def reset_unfinished(self, num_envs: int) -> None:
        """Leave the episodes under way out: those of `num_envs` environments begin."""
        self.running, self.length = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)


class RewardScaler:
    """Divides rewards by the running deviation of the discounted return (Engstrom et al. 2020, arXiv:2005.12729)."""

    def __init__(self, num_envs: int, gamma: float) -> None:
        self.gamma = gamma
        self.running = np.zeros(num_envs)
        self.count, self.mean, self.m2 = 1e-4, 0.0, 1e-4  # of discounted returns so far; m2 / count is their variance

    def scale(self, rewards: np.ndarray, ended: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Rewards [N, T] scaled and clipped, after taking in those of steps; `ended` marks episode ends."""
        discounted = np.empty_like(rewards, dtype=np.float64)
        for t in range(rewards.shape[1]):
            self.running = self.gamma * self.running + rewards[:, t]
            discounted[:, t] = self.running
            self.running[ended[:, t]] = 0
        seen = discounted[mask]
        delta, total = seen.mean() - self.mean, self.count + seen.size
        self.m2 += seen.var() * seen.size + delta**2 * self.count * seen.size / total
        self.mean += delta * seen.size / total
        self.count = total
        scaled = rewards / np.sqrt(self.m2 / self.count + 1e-8)
        clipped: np.ndarray = np.clip(scaled, -REWARD_CLIP, REWARD_CLIP).astype(np.float32)
        return clipped

    def state_dict(self) -> dict[str, Any]:
        sums = {"count": float(self.count), "mean": float(self.mean), "m2": float(self.m2)}
        return sums | {"running": self.running.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.m2 = state["count"], state["mean"], state["m2"]
        self.running = np.array(state["running"])

    def reset_unfinished(self, num_envs: int) -> None:
        """Leave the episodes under way out: those of `num_envs` environments begin."""
        self.running = np.zeros(num_envs)
