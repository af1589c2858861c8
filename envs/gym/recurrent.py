"""A policy with a recurrent layer (GRU or LSTM), which remembers earlier observations of the episode.

The update evaluates rows of `policy.row_len` consecutive steps. The gradient does not cross the start of a row: the
recurrent states there were stored when the steps were taken, with the weights of that time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from envs.gym.options import Policy
from envs.gym.policy import Actor, GymPolicy
from envs.gym.spaces import ActionLayout, ObservationLayout
from ppo_unified.engine.rollout import Evaluation, Observations

STARTS, STATE = "starts", "state"  # keys of the observations


class RecurrentLayer(nn.Module):
    """A GRU or LSTM. Its state [.., state_size] is its output, for an LSTM followed by the cell state."""

    def __init__(self, kind: str, inputs: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.size, self.is_lstm = size, kind == "lstm"
        self.state_size = 2 * size if self.is_lstm else size
        self.cell = (nn.LSTMCell if self.is_lstm else nn.GRUCell)(inputs, size)
        for weight in (self.cell.weight_ih, self.cell.weight_hh):
            nn.init.orthogonal_(weight, generator=generator)
        for bias in (self.cell.bias_ih, self.cell.bias_hh):
            nn.init.zeros_(bias)
        if self.is_lstm:  # Jozefowicz et al. 2015 (https://proceedings.mlr.press/v37/jozefowicz15.html) recommend a
            nn.init.ones_(self.cell.bias_ih[size : 2 * size])  # forget gate that starts nearly open

    def step(self, x: Tensor, states: Tensor) -> Tensor:
        """Return the states [R, S] after the inputs x [R, F]."""
        cell = self.cell
        weights = cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh
        if not self.is_lstm:
            return torch.gru_cell(x, states, *weights)
        return torch.cat(torch.lstm_cell(x, states.split(self.size, -1), *weights), -1)

    def forward(self, x: Tensor, starts: Tensor, states: Tensor) -> Tensor:
        """Return the outputs [R, L, size] for the inputs x [R, L, F].

        `states` [R, S] are the states before the first column. The states are reset to zero before each column where
        `starts` [R, L] is True.
        """
        continues, has_start = (~starts).to(x.dtype).unsqueeze(-1), starts.any(0).tolist()
        outputs = []
        for column, inputs in enumerate(x.unbind(1)):
            if has_start[column]:
                states = states * continues[:, column]
            states = self.step(inputs, states)
            outputs.append(states[:, : self.size])
        return torch.stack(outputs, 1)


class RecurrentPolicy(GymPolicy):
    """Adds a recurrent layer between the hidden layers and the outputs of the policy, and also of the critic unless
    `policy.shared` is True.

    Observations are a mapping. Besides the keys of GymPolicy, it has "starts" (bool [R, L], True if the recurrent state
    is reset to zero before the column) and "state" ([R, L, S], of which only column 0 is used: the recurrent state
    before the row). A state [S] contains the actor's state and, if it is separate, the critic's.
    """

    def __init__(
        self,
        observations: ObservationLayout,
        actions: ActionLayout,
        config: Policy,
        normalize_obs: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__(observations, actions, config, normalize_obs, generator)
        encoded = observations.numbers if self.actor_encoder is None else self.actor_encoder.size
        inputs = [encoded, *config.hidden][-1]
        self.row_len = config.row_len
        self.actor_memory = RecurrentLayer(config.torso, inputs, config.memory_size, generator)
        self.critic_memory = self.actor_memory
        if not self.shared:
            self.critic_memory = RecurrentLayer(config.torso, inputs, config.memory_size, generator)

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        assert isinstance(obs, Mapping)
        features = self.actor_features(obs)
        logprobs, entropy = self.head.logprobs_and_entropy(self.head.linear(features), actions, obs.get("action_mask"))
        if not self.shared:
            states = obs[STATE][:, 0, self.actor_memory.state_size :]
            features = self.critic_memory(self.critic_features(obs), obs[STARTS], states)
        return Evaluation(logprobs, entropy, self.critic(features).squeeze(-1))

    def evaluate_explicitly(self, obs: Observations, actions: Tensor) -> None:
        """Return None, because this policy needs autograd."""

    def actor_features(self, obs: Observations) -> Tensor:
        assert isinstance(obs, Mapping)
        states = obs[STATE][:, 0, : self.actor_memory.state_size]
        features: Tensor = self.actor_memory(super().actor_features(obs), obs[STARTS], states)
        return features

    def initial_states(self, count: int, acting: bool = False) -> Tensor:
        size = self.actor_memory.state_size * (1 if acting or self.shared else 2)
        return self.critic.weight.new_zeros(count, size)

    def advance(self, obs: Observations, states: Tensor) -> Tensor:
        """Return the states [N, S] after the normalized observations [N, size]."""
        size = self.actor_memory.state_size
        actor = self.actor_memory.step(super().actor_features(obs), states[:, :size])
        if states.shape[1] == size:
            return actor
        return torch.cat((actor, self.critic_memory.step(self.critic_features(obs), states[:, size:])), 1)

    def make_actor(self, generator: torch.Generator | None, steps: int = 1) -> Actor:
        def act(obs: Tensor, mask: Tensor | None, states: Tensor | None = None) -> Tensor:
            assert states is not None
            states.copy_(self.advance(self.read(obs), states))
            return self.head.act(states[:, : self.actor_memory.size], mask, generator)

        return act

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        own = [] if self.shared else list(self.critic_memory.parameters())
        return [*super().critic_parameters(), *own]


def add_states(obs: Observations, states: list[Tensor], mask: np.ndarray) -> dict[str, Tensor]:
    """Return the observations [N, T + 1, ..] with the keys that a RecurrentPolicy needs.

    `states` are the states [N, S] before each column, and `mask` [N, T] is False at resets.
    """
    table, resets = {"obs": obs} if isinstance(obs, Tensor) else dict(obs), torch.from_numpy(~mask).to(states[0].device)
    first = ~states[0].any(1, keepdim=True)  # resetting a state of zero has no effect
    return table | {STARTS: torch.cat((first, resets), 1), STATE: torch.stack(states, 1)}
