"""Writing a text as a Gymnasium environment: state = prefix, action = next token, an episode = one response.

The language-model adapter trains on this very decision process without ever stepping it. Here it is stepped, token by
token, from arithmetic of its own; `ppo-unified prove` holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

Logprobs = Callable[[list[int]], np.ndarray]  # a prefix -> log-probs [V] of the token that follows it
Score = Callable[[list[int], list[int]], float]  # (prompt, whole response) -> what it is worth
NOTHING = -1  # fills an observation behind its prefix


class TokenMDP(gym.Env[np.ndarray, np.int64]):
    """One response to a prompt per episode; every prompt comes once, in random order, before any comes again.

    Observation: int64 [1 + longest prefix], the number of tokens written so far and then prompt and response, filled
    up with NOTHING. Reward: -kl_coef * (log pi - log pi_ref) of the token, plus the score with the last one. An
    episode terminates with an end token or `max_new_tokens`: no state follows, so that nothing is bootstrapped.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - declared so by gym.Env

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        vocabulary: int,
        end_tokens: Sequence[int],
        max_new_tokens: int,
        policy: Logprobs,
        reference: Logprobs,
        score: Score,
        kl_coef: float,
    ) -> None:
        """`policy` is asked at every step: whoever trains it changes what comes back."""
        self.prompts, self.end_tokens, self.max_new_tokens = prompts, frozenset(end_tokens), max_new_tokens
        self.policy, self.reference, self.score, self.kl_coef = policy, reference, score, kl_coef
        size = 1 + max(map(len, prompts)) + max_new_tokens
        self.observation_space = gym.spaces.Box(NOTHING, max(vocabulary - 1, max_new_tokens), (size,), np.int64)
        self.action_space = gym.spaces.Discrete(vocabulary)
        self.queue: list[int] = []  # prompts still to come
        self.prompt: list[int] = []
        self.response: list[int] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        if seed is not None or not self.queue:
            self.queue = self.np_random.permutation(len(self.prompts)).tolist()
        self.prompt, self.response = list(self.prompts[self.queue.pop()]), []
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        prefix, token = [*self.prompt, *self.response], int(action)
        reward = -self.kl_coef * float(self.policy(prefix)[token] - self.reference(prefix)[token])
        self.response.append(token)
        terminated = token in self.end_tokens or len(self.response) == self.max_new_tokens
        if terminated:
            reward += self.score(self.prompt, self.response)
        return self._observe(), reward, terminated, False, {}

    def _observe(self) -> np.ndarray:
        obs = np.full(self.observation_space.shape or (), NOTHING, np.int64)
        obs[0] = len(self.response)
        obs[1 : 1 + len(self.prompt) + len(self.response)] = [*self.prompt, *self.response]
        return obs


def decode_obs(obs: Sequence[float]) -> tuple[list[int], list[int]]:
    """Prompt and response in an observation, whatever type its numbers have by now."""
    written, *prefix = (int(x) for x in obs if x != NOTHING)
    return prefix[: len(prefix) - written], prefix[len(prefix) - written :]


gym.register("TokenMDP-v0", "envs.token_mdp:TokenMDP")  # so that 'envs.token_mdp:TokenMDP-v0' names it
