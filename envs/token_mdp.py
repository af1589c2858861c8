"""Text generation as a Gymnasium environment: state = prefix, action = next token, episode = one response.

The LLM adapter trains on the same decision process, but computes all steps of a response at once. This environment
computes them token by token with independent code. `ppo-unified prove` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

Logprobs = Callable[[list[int]], np.ndarray]  # prefix -> log-probs [V] of the next token
Score = Callable[[list[int], list[int]], float]  # (prompt, complete response) -> score
NOTHING = -1  # padding at the end of an observation


class TokenMDP(gym.Env[np.ndarray, np.int64]):
    """An environment in which an episode is one response to a prompt.

    Prompts are drawn in random order, and every prompt is used once before any is repeated. An observation is an int64
    vector [1 + longest prefix] with the number of response tokens, the prompt, the response so far, and NOTHING as
    padding. The reward for each token is -kl_coef * (log pi - log pi_ref); the score is added at the last token. An
    episode terminates after an end token or after `max_new_tokens` tokens. Episodes are never truncated, so
    bootstrapping is not needed.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gym.Env declares it this way

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
        """Create the environment. `policy` is called at every step, so training it changes later rewards."""
        self.prompts, self.end_tokens, self.max_new_tokens = prompts, frozenset(end_tokens), max_new_tokens
        self.policy, self.reference, self.score, self.kl_coef = policy, reference, score, kl_coef
        size = 1 + max(map(len, prompts)) + max_new_tokens
        self.observation_space = gym.spaces.Box(NOTHING, max(vocabulary - 1, max_new_tokens), (size,), np.int64)
        self.action_space = gym.spaces.Discrete(vocabulary)
        self.queue: list[int] = []  # indices of the prompts that have not been used yet
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
    """Return the prompt and the response so far from an observation, which may contain integers or floats."""
    written, *prefix = (int(x) for x in obs if x != NOTHING)
    return prefix[: len(prefix) - written], prefix[len(prefix) - written :]


gym.register("TokenMDP-v0", "envs.token_mdp:TokenMDP")  # enables the id 'envs.token_mdp:TokenMDP-v0'
