"""A complete adapter for a task with two levers. `python custom_adapter.py` checks and trains it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ppo_unified import ActorCritic, Evaluation, Rollout, check_adapter
from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.ppo import make_learner, train


class Policy(ActorCritic):
    """A linear policy with a linear critic."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = nn.Linear(2, 2), nn.Linear(2, 1)

    def evaluate(self, obs: Any, actions: torch.Tensor) -> Evaluation:
        choice = torch.distributions.Categorical(logits=self.actor(obs))
        return Evaluation(choice.log_prob(actions), choice.entropy(), self.critic(obs).squeeze(-1))

    def critic_parameters(self) -> Any:
        return self.critic.parameters()


class Levers:
    """A light shows 0 or 1. The reward is 1 for pulling the lever with the same number, and 0 for the other lever."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.policy, self.generator = Policy(), torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def collect(self) -> Rollout:
        obs, actions, rewards = self._pull(self.generator, 32 * 4)
        new = self.policy.evaluate(obs, actions)
        steps = {"obs": obs, "actions": actions, "logprobs": new.logprobs, "values": new.values, "rewards": rewards}
        grid = {name: x.view(32, 4, *x.shape[1:]) for name, x in steps.items()}  # [N, T, ...]
        everywhere = torch.ones(32, 4, dtype=torch.bool)
        # Each pull is a complete episode: the next value is 0, and the next pull belongs to another episode.
        return Rollout(**grid, next_values=torch.zeros(32, 4), continues=~everywhere, mask=everywhere, row_len=1)

    def _pull(self, generator: torch.Generator, count: int, greedy: bool = False) -> tuple[torch.Tensor, ...]:
        light = torch.randint(2, (count,), generator=generator)
        obs = nn.functional.one_hot(light, 2).float()
        probs = self.policy.actor(obs).softmax(-1)
        actions = probs.argmax(-1) if greedy else torch.multinomial(probs, 1, generator=generator).squeeze(-1)
        return obs, actions, (actions == light).float()

    @torch.no_grad()
    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        return self._pull(torch.Generator().manual_seed(seed), episodes, greedy)[2].tolist()

    def extra_loss(self, generator: torch.Generator) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])

    def close(self) -> None:
        pass


def main() -> None:
    """Check the adapter against the engine's contract, then train it for 30 iterations."""
    check_adapter(Levers)
    adapter = Levers()
    learner = make_learner(adapter.policy, PPO(), Optim(lr=0.03), total_iterations=30)
    for iteration in train(adapter, learner):
        print(f"mean reward {iteration.rollout.rewards.mean():.3f}")
    print(f"score {sum(adapter.score(100, seed=1, greedy=False)) / 100:.2f}")


if __name__ == "__main__":
    main()
