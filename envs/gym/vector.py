"""Collects rollouts from a Gymnasium vector environment.

The autoreset mode is NEXT_STEP: after the end of an episode, the next step ignores the action and resets the
environment. The rollout masks this step, because the policy's action had no effect. In the column of this step (the
reset column), the observation is the final observation of the ended episode. Therefore the value estimate in the reset
column is used to bootstrap a truncated episode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.gym.errors import DescribedError, close_after_error, guard, make_failure
from envs.gym.eval import Player, describe_cut, play_episodes
from envs.gym.infos import FinalInfos
from envs.gym.make import make_vector, read_actions
from envs.gym.options import GymConfig
from envs.gym.policy import Actor, GymPolicy
from envs.gym.restore import RestoreError
from envs.gym.scaling import CLIP, RewardScaler
from envs.gym.spaces import (
    MASK_KEY,
    ActionLayout,
    ObservationLayout,
    encode,
    measure_actions,
    read_masks,
    to_env_actions,
)
from ppo_unified.config.spec import WorkCounter
from ppo_unified.engine.rollout import Observations, Rollout, map_obs
from ppo_unified.errors import ForeignCodeError
from ppo_unified.text import print_err

CHUNK = 1 << 11  # number of observations per forward pass when the old log-probs and values are computed
ALTERNATIVES = 5  # maximum number of stored likeliest actions per step


class GymAdapter:
    """A policy and the vector environment in which it acts. This class implements the engine's `Adapter` protocol."""

    def __init__(self, config: GymConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        env_seed, policy_seed, action_seed = (int(x) for x in np.random.SeedSequence(config.seed).generate_state(3))
        self.envs, self.observations, self.restorer, self.own_vector = make_vector(config.gym, config.gym.num_envs)
        with close_after_error(self.envs):
            self.actions = read_actions(self.envs, config.gym)
        initial = torch.Generator().manual_seed(policy_seed)
        self.policy = make_policy(self.observations, self.actions, config, initial).to(device)
        self.generator = torch.Generator(device).manual_seed(action_seed)
        self.rewards = RewardScaler(config.gym.num_envs, config.ppo.gamma) if config.gym.normalize_reward else None
        self.steps_taken = 0
        self.counter = WorkCounter()
        self.cut_episodes = 0  # number of episodes in the last call of `score` that reached MAX_STEPS
        self.episodes = EpisodeLog(config.gym.num_envs, config.gym.info_keys)
        self.evaluated: dict[str, float] = {}  # metrics of the infos in the last call of `score`
        self.scaling: tuple[Tensor, Tensor] | None = None  # mean and factor that normalized the last rollout
        try:
            self._reset(env_seed)
        except BaseException:
            self.close()
            raise

    def _reset(self, seed: int) -> None:
        with guard(self.config.gym.env_id, "reset()"):
            raw, info = self.envs.reset(seed=seed)
        self.ended = np.zeros(self.config.gym.num_envs, dtype=bool)  # True if the next step resets that environment
        self.reports_masks = MASK_KEY in info and not self.actions.continuous
        self.states = self.policy.initial_states(len(self.ended))  # recurrent states before the next column, or None
        self._store_obs(raw, info)

    def _store_obs(self, raw: Any, info: dict[str, Any]) -> None:
        """Store the current observations and action masks. In a reset column, every action is allowed."""
        self.raw, self.masks = encode(raw, self.observations, self.config.gym.env_id), None
        if info:
            self.masks = read_masks(info, len(self.raw), self.actions, self.ended, self.config.gym.env_id)
        if self.masks is not None and not self.reports_masks:
            raise ForeignCodeError(
                f"{self.config.gym.env_id}: step() returned an action mask, but reset() did not; return it from both"
            )
        if self.masks is None and self.reports_masks:
            self.masks = np.ones((len(self.raw), sum(self.actions.sizes)), dtype=bool)

    def _observe(
        self, raws: np.ndarray, masks: list[np.ndarray | None], states: list[Tensor], valid: np.ndarray
    ) -> Observations:
        """Return the normalized observations [N, columns, size] on the policy's device, any action masks, and the
        entries that a recurrent policy needs.

        `masks` and `states` contain the masks and recurrent states of each column. `valid` [N, T] is False at resets.
        """
        obs = self.policy.read(torch.from_numpy(raws).to(self.device))
        table = dict(obs) if isinstance(obs, Mapping) else {"obs": obs}
        if self.masks is not None:
            obs = table | {"action_mask": torch.from_numpy(np.stack(masks, 1)).to(self.device)}  # type: ignore[arg-type] # none is None
        if states:
            from envs.gym.recurrent import add_states

            obs = add_states(obs, states, valid)
        return obs

    def _act(self, act: Actor, states: list[Tensor]) -> Tensor:
        """Choose actions for the current observations. Add the recurrent states before them to `states`."""
        allowed = None if self.masks is None else torch.from_numpy(self.masks).to(self.device)
        if self.states is not None:
            states.append(self.states.clone())
        chosen = act(torch.from_numpy(self.raw).to(self.device), allowed, self.states)
        if self.states is not None:
            self.states[self.ended] = 0  # the value estimate of a final observation still depends on its episode
        return chosen

    def collect(self) -> Rollout:
        """Take `gym.num_steps` steps in every environment and return the rollout.

        Raises FloatingPointError if an observation or a reward is NaN or infinite. The observation statistics are
        updated after the rollout, so that all observations in a rollout are scaled in the same way.
        """
        raws, masks, actions, rewards, terminated, ended, valid = [], [], [], [], [], [], []
        states: list[Tensor] = []  # of a recurrent policy
        self.counter.begin("collecting", "step", self.config.gym.num_steps)
        with torch.inference_mode():
            act = self.policy.make_actor(self.generator, self.config.gym.num_steps)
            for number in range(1, self.config.gym.num_steps + 1):
                chosen = self._act(act, states)
                raws.append(self.raw)
                masks.append(self.masks)
                actions.append(chosen)
                valid.append(~self.ended)
                raw, reward, died, cut, info = self._step(chosen, number)
                self.ended = died | cut
                rewards.append(np.array(reward))  # copies, because an environment may reuse its arrays
                terminated.append(np.array(died))
                ended.append(self.ended)
                if info and self.ended.any():
                    self.episodes.add_infos(info, self.ended & valid[-1])
                self._store_obs(raw, info)
                self.counter.done += 1
        mask = np.stack(valid, 1)
        reward = np.stack(rewards, 1).astype(np.float32) * mask
        observed = np.stack([*raws, self.raw], 1)
        self._check_finite(observed, reward)
        self.episodes.add(reward, np.stack(ended, 1) & mask, mask)
        if self.episodes.infos and self.episodes.returns:
            self.episodes.infos.warn(self.config.gym.env_id)
        self.steps_taken += int(mask.sum())
        after = [] if self.states is None else [self.states.clone()]
        seen = self._observe(observed, [*masks, self.masks], [*states, *after], mask)
        rollout = self._rollout(
            seen, torch.stack(actions, 1), reward, np.stack(terminated, 1), np.stack(ended, 1), mask
        )
        if self.policy.scaler is not None:
            self.scaling = self.policy.scaler.mean.clone(), self.policy.scaler.factor()
            self.policy.scaler.update(torch.from_numpy(self._numbers(observed)[:, :-1][mask]).to(self.device))
        return rollout

    def _numbers(self, raws: np.ndarray) -> np.ndarray:
        """Return a view of the numbers in observations [.., size]. Indexing it with a mask copies no images."""
        if not self.observations.images:
            return raws
        from envs.gym.observations import unpack

        return unpack(raws, self.observations)["obs"]

    def _rollout(
        self,
        seen: Observations,
        actions: Tensor,
        rewards: np.ndarray,
        terminated: np.ndarray,
        ended: np.ndarray,
        mask: np.ndarray,
    ) -> Rollout:
        """Build the rollout.

        `seen` has one column more than the other arguments: the observations after the last step.
        """
        steps = actions.shape[1]
        logprobs, values = self._evaluate_columns(seen, torch.cat([actions, actions[:, :1]], 1))
        if self.rewards is not None:
            rewards = self.rewards.scale(rewards, ended, mask)
        metrics = self.episodes.metrics()
        if self.actions.continuous:
            metrics |= measure_actions(actions.cpu().numpy()[mask], self.actions)
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
            row_len=self.policy.row_len,
            metrics=metrics,
        )

    def _evaluate_columns(self, obs: Observations, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the policy's log-probs and value estimates before the update, each [N, columns].

        The rows are the same as in the update. The column after the last step is not part of a row.
        """
        steps, row_len, size = actions.shape[1] - 1, self.policy.row_len, find_chunk_size(self)
        if row_len == 1:
            return evaluate_rows(self.policy, obs, actions, 1, size)
        first, last = (
            evaluate_rows(self.policy, map_obs(itemgetter((slice(None), part)), obs), actions[:, part], length, size)
            for part, length in ((slice(steps), row_len), (slice(steps, None), 1))
        )
        return torch.cat((first[0], last[0]), 1), torch.cat((first[1], last[1]), 1)

    def _step(self, chosen: Tensor, number: int) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        try:
            return self.envs.step(to_env_actions(chosen.cpu().numpy(), self.actions))
        except (Exception, SystemExit) as error:  # not `guard`, because entering a block at every step takes time
            raise make_failure(self.config.gym.env_id, f"step() {self._describe_time(number)}", error) from error

    def _describe_time(self, number: int) -> str:
        return f"at step {number} of the rollout (after {self.steps_taken:,} environment steps)"

    def _check_finite(self, raws: np.ndarray, rewards: np.ndarray) -> None:
        """Check that all observations and rewards are finite.

        Raises FloatingPointError naming the environment, the step and the quantity (observation or reward).
        """
        for what, x, first in (("observation", raws, 0), ("reward", rewards, 1)):
            if not np.isfinite(x).all():
                env, step = np.argwhere(~np.isfinite(x))[0][:2]
                when = self._describe_time(step + first)
                where = f"{self.config.gym.env_id}: environment {env}"
                raise FloatingPointError(f"{where} returned a non-finite {what} {when}")

    def extra_loss(self, generator: torch.Generator) -> None:
        """Return None, because this adapter adds no loss."""

    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        """Play fresh episodes in separate environments. Return the total reward of each episode."""
        options, infos = self.config.gym, FinalInfos(self.config.gym.info_keys, None)
        env_seed, action_seed = (int(x) for x in np.random.SeedSequence((seed, 1)).generate_state(2))
        generator = None if greedy else torch.Generator(self.device).manual_seed(action_seed)
        player = Player(self.policy, self.observations, self.actions, self.device, generator, options.env_id)
        returns, self.cut_episodes = play_episodes(
            player, options, episodes, env_seed, own_vector=self.own_vector, counter=self.counter, infos=infos
        )
        self.evaluated = infos.metrics("eval")
        if self.cut_episodes:
            print_err(f"{options.env_id}: {describe_cut(self.cut_episodes, episodes)}")
        return returns

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` needs to continue the same episodes.

        The state does not include the policy's weights.
        """
        with guard(self.config.gym.env_id, "saving the state of the environments"):
            envs = self.restorer.state_dict()
        state: dict[str, Any] = {
            "spaces": {"observations": self.observations.structure, "actions": self.actions.structure},
            "generator": self.generator.get_state(),
            "steps_taken": self.steps_taken,
            "episodes": self.episodes.state_dict(),
            "envs": envs,
            "raw": torch.from_numpy(self.raw.copy()),
            "ended": torch.from_numpy(self.ended.copy()),
        }
        state |= {"masks": torch.from_numpy(self.masks.copy())} if self.masks is not None else {}
        state |= {"recurrent_states": self.states.clone()} if self.states is not None else {}
        return state | ({"rewards": self.rewards.state_dict()} if self.rewards is not None else {})

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Restore a saved state. Return None if the unfinished episodes were restored.

        Otherwise, start new episodes with a seed that depends on the number of steps taken, and return a message with
        the reason.
        """
        self.generator.set_state(state["generator"].cpu())
        self.steps_taken = state["steps_taken"]
        self.episodes.load_state_dict(state["episodes"])
        if self.rewards is not None:
            self.rewards.load_state_dict(state["rewards"])
        try:
            self._restore(state)
        except (RestoreError, DescribedError) as reason:
            self._reset(int(np.random.SeedSequence((self.config.seed, self.steps_taken)).generate_state(1)[0]))
            self.episodes.reset_unfinished(self.config.gym.num_envs)
            if self.rewards is not None:
                self.rewards.reset_unfinished(self.config.gym.num_envs)
            return f"episodes restarted: {self.config.gym.env_id}: {reason}"
        return None

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore the environments.

        Raises RestoreError if they cannot be restored, or if their observations or action masks differ from the saved
        ones.
        """
        before, now = len(state["ended"]), self.config.gym.num_envs
        if before != now:
            raise RestoreError(f"gym.num_envs changed from {before} to {now}")
        raw, info = self.restorer.load_state_dict(state["envs"])
        self.ended = state["ended"].cpu().numpy().copy()
        self._store_obs(raw, info)
        if (self.masks is not None) != ("masks" in state):
            raise RestoreError("the environments now return action masks, or no longer do")
        saved = state["raw"].cpu().numpy()
        if not np.array_equal(self.raw.astype(saved.dtype), saved):  # older checkpoints contain float32
            raise RestoreError("the restored environments returned different observations")
        if self.masks is not None and not np.array_equal(self.masks, state["masks"].cpu().numpy()):
            raise RestoreError("the restored environments returned different action masks")
        if self.states is not None:
            self.states.copy_(state["recurrent_states"])

    def close(self) -> None:
        """Close the environments. An error is printed, because it has no effect on results."""
        try:
            with guard(self.config.gym.env_id, "close()"):
                self.envs.close()
        except ForeignCodeError as error:
            print_err(str(error))


def find_chunk_size(adapter: GymAdapter) -> int:
    """Return the number of observations per forward pass when no gradient is needed."""
    return min(CHUNK, adapter.config.ppo.microbatch_columns) if adapter.observations.images else CHUNK


def make_policy(
    observations: ObservationLayout, actions: ActionLayout, config: GymConfig, generator: torch.Generator
) -> GymPolicy:
    if not config.policy.is_recurrent:
        return GymPolicy(observations, actions, config.policy, config.gym.normalize_obs, generator)
    from envs.gym.recurrent import RecurrentPolicy

    return RecurrentPolicy(observations, actions, config.policy, config.gym.normalize_obs, generator)


@torch.no_grad()
def evaluate_rows(
    policy: GymPolicy, obs: Observations, actions: Tensor, row_len: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Return the log-probs and value estimates of `actions` [N, T, components] at `obs` [N, T, ...], each [N, T].

    One forward pass evaluates about `columns` steps. Both are computed by `policy.evaluate`, which the update also
    calls. Therefore all probability ratios start at 1, up to rounding.
    """
    rows = map_obs(lambda x: x.reshape(-1, row_len, *x.shape[2:]), obs)
    row_actions, size = actions.reshape(-1, row_len, actions.shape[2]), max(1, columns // row_len)
    chunks = [slice(start, start + size) for start in range(0, len(row_actions), size)]
    parts = [policy.evaluate(map_obs(itemgetter(chunk), rows), row_actions[chunk]) for chunk in chunks]
    shape = actions.shape[:2]
    return torch.cat([e.logprobs for e in parts]).view(shape), torch.cat([e.values for e in parts]).view(shape)


def build(config: GymConfig, device: torch.device) -> GymAdapter:
    """Create the adapter. The registered adapter specification refers to this function."""
    return GymAdapter(config, device)


@torch.no_grad()
def alternatives(adapter: GymAdapter, rollout: Rollout, reference: bool) -> tuple[Tensor, Tensor, None] | None:
    """Return the likeliest actions at each step under the current policy, [N, T, K], and their log-probs.

    The actions are numbered as in the environment. The log-probs of the chosen actions are not returned, because
    evaluating the policy again takes little time. Return None for the reference model, which does not exist, and if the
    actions are continuous or have several components.
    """
    rows, size = map_obs(rollout.rows, rollout.obs), max(1, find_chunk_size(adapter) // rollout.row_len)
    starts = [] if reference else range(0, rollout.mask.numel() // rollout.row_len, size)
    chunks = (map_obs(itemgetter(slice(start, start + size)), rows) for start in starts)
    parts = [found for chunk in chunks if (found := adapter.policy.likeliest(chunk, ALTERNATIVES)) is not None]
    if not parts:
        return None
    actions, logprobs = (
        torch.cat(part).flatten(0, 1).unflatten(0, rollout.mask.shape) for part in zip(*parts, strict=True)
    )
    return actions + adapter.actions.start[0], logprobs, None


def record(adapter: GymAdapter, rollout: Rollout) -> dict[str, Any]:
    """Return what `envs.gym.replay` needs to draw the episodes of the adapter's last rollout again.

    See `Restorer.describe_starts`. The entry "scaling" is present if the rollout contains normalized observations.
    """
    with guard(adapter.config.gym.env_id, "recording the starts of the episodes"):
        starts = adapter.restorer.describe_starts()
    if adapter.scaling is None:
        return starts
    mean, factor = (x.tolist() for x in adapter.scaling)
    return starts | {"scaling": {"mean": mean, "factor": factor, "clip": CLIP}}


class EpisodeLog:
    """Stores the returns, the lengths and the last infos of the last 100 finished training episodes."""

    def __init__(self, num_envs: int, info_keys: Sequence[str] = ()) -> None:
        self.reset_unfinished(num_envs)
        self.returns: deque[float] = deque(maxlen=100)
        self.lengths: deque[int] = deque(maxlen=100)
        self.info_keys = info_keys
        self.infos = FinalInfos(info_keys, 100) if info_keys else None  # otherwise created for the first info

    def add(self, rewards: np.ndarray, ended: np.ndarray, mask: np.ndarray) -> None:
        """Add the rewards, episode ends and valid steps of a rollout, each [N, T]. The rewards of masked steps must be
        0."""
        for reward, valid, done, has_ended in zip(rewards.T, mask.T, ended.T, np.any(ended, axis=0), strict=True):
            self.running += reward
            self.length += valid
            if has_ended:
                self.returns.extend(self.running[done].tolist())
                self.lengths.extend(self.length[done].tolist())
                self.running[done], self.length[done] = 0, 0

    def add_infos(self, info: Mapping[str, Any], ended: np.ndarray) -> None:
        """Add the infos of the environments whose episode has ended at this step. `ended` [N] marks them."""
        self.infos = self.infos or FinalInfos(self.info_keys, 100)
        for env in np.flatnonzero(ended):
            self.infos.add(info, int(env))

    def metrics(self) -> dict[str, float]:
        if not self.returns:
            return {}
        means = {"episode/return": float(np.mean(self.returns)), "episode/length": float(np.mean(self.lengths))}
        return means | (self.infos.metrics("episode") if self.infos else {})

    def state_dict(self) -> dict[str, Any]:
        under_way = {"running": self.running.tolist(), "length": self.length.tolist()}
        infos = self.infos.state_dict() if self.infos else {}
        return {"returns": list(self.returns), "lengths": list(self.lengths), "infos": infos} | under_way

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.running, self.length = np.array(state["running"]), np.array(state["length"])
        self.returns, self.lengths = deque(state["returns"], maxlen=100), deque(state["lengths"], maxlen=100)
        if infos := state.get("infos"):  # older checkpoints have none
            self.infos = self.infos or FinalInfos(self.info_keys, 100)
            self.infos.load_state_dict(infos)

    def reset_unfinished(self, num_envs: int) -> None:
        """Discard the unfinished episodes, and start new ones in `num_envs` environments."""
        self.running, self.length = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
