"""A causal language model as policy and critic: rows are sequences padded on the right, column t chooses token t+1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from envs.llm.model import CRITIC, POLICY, Network
from ppo_unified.rollout import ActorCritic, Evaluation, Observations

CHUNK = {"cpu": 1 << 23, "cuda": 1 << 27}  # logits held at once, in numbers


class Critic(nn.Module):
    """V at every step, from a linear head that starts at zero: the first advantages are the rewards themselves."""

    def __init__(self, width: int, trunk: Network | None = None) -> None:
        """`trunk`: the critic's own model; without one it reads the policy's hidden states."""
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, chosen: Tensor, hidden: Tensor) -> Tensor:
        """V [n] before each of the n steps where `chosen` [R, L]; `hidden` [n, H] are the policy's states there."""
        if self.trunk is not None:
            hidden = self.trunk.trunk(tokens)[chosen]
        values: Tensor = self.head(hidden.float()).squeeze(-1)
        return values


class AdapterCritic(Critic):
    """A critic that is a second low-rank adapter on the policy's own frozen base."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.width)
        self.network = [network]  # in a list: its parameters are the policy's to register

    def forward(self, tokens: Tensor, chosen: Tensor, hidden: Tensor) -> Tensor:
        return super().forward(tokens, chosen, self.network[0].trunk(tokens, CRITIC)[chosen])


class Reference(NamedTuple):
    """The frozen model that KL is measured to: a copy, or the policy's network with its adapter switched off."""

    network: Network
    adapter: str | None = None


class Comparison(NamedTuple):
    """Policy, critic and reference on the same steps, each [R, L]; 0 where the policy did not choose."""

    logprobs: Tensor
    values: Tensor
    ref_logprobs: Tensor
    kl: Tensor  # KL(pi || pi_ref) over the whole vocabulary


class TokenPolicy(ActorCritic):
    """Observations are a mapping: `tokens` [R, L] int64, `chosen` [R, L] bool (True where the policy chose the action,
    so that logits are computed for responses alone) and, without a critic, `baseline` [R, L]."""

    def __init__(self, network: Network, critic: Critic | None, temperature: float, entropy_gradient: bool) -> None:
        """Without `entropy_gradient` the entropy is only reported, which halves what the logits cost backward."""
        super().__init__()
        self.network, self.critic = network, critic
        self.temperature, self.entropy_gradient = temperature, entropy_gradient

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        assert isinstance(obs, Mapping)
        tokens, chosen = obs["tokens"], obs["chosen"]
        hidden = self.network.trunk(tokens)[chosen]
        parts = [self._score(h, a) for h, a in self._chunks(hidden, actions[chosen])]
        logprobs, entropy = (torch.cat(x) for x in zip(*parts, strict=True)) if parts else (hidden.sum(-1).float(),) * 2
        values = self.critic(tokens, chosen, hidden) if self.critic is not None else obs["baseline"][chosen]
        return Evaluation(*(spread(x, chosen) for x in (logprobs, entropy, values)))

    @torch.no_grad()
    def compare(self, tokens: Tensor, chosen: Tensor, actions: Tensor, reference: Reference) -> Comparison:
        """Log-probs by the same operations as in `evaluate`, beside those of the reference; all [R, L]."""
        hidden = self.network.trunk(tokens)[chosen]
        other = reference.network.trunk(tokens, reference.adapter)[chosen.to(reference.network.device)]
        parts, start = [], 0
        for h, a in self._chunks(hidden, actions[chosen]):
            logits = self._logits(self.network, h, POLICY)
            theirs = self._logits(reference.network, other[start : start + len(h)], reference.adapter).to(logits.device)
            parts.append(compared(logits, theirs, a))
            start += len(h)
        logprobs, ref_logprobs, kl = (torch.cat(x) for x in zip(*parts, strict=True))
        values = torch.zeros_like(kl) if self.critic is None else self.critic(tokens, chosen, hidden)
        return Comparison(*(spread(x, chosen) for x in (logprobs, values, ref_logprobs, kl)))

    def log_likelihood(self, tokens: Tensor, chosen: Tensor, actions: Tensor) -> Tensor:
        """log pi(action) of the steps where `chosen`, [n], at temperature 1: how likely a given text is."""
        hidden = self.network.trunk(tokens)[chosen]
        parts = [self._score(h, a, 1.0)[0] for h, a in self._chunks(hidden, actions[chosen])]
        return torch.cat(parts)

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        if self.critic is None:
            return []
        own = [*self.critic.parameters(), *self.network.adapter_parameters(CRITIC)]
        return [p for p in own if p.requires_grad]

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override] # overloads
        """What training changes: a frozen base under adapters is not in it."""
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        return {name: x for name, x in super().state_dict(*arguments, **options).items() if name not in frozen}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Raises RuntimeError where `state` holds other names or shapes than `state_dict` gives."""
        missing, unknown = set(self.state_dict()) - set(state), set(state) - set(self.state_dict())
        if strict and (missing or unknown):
            raise RuntimeError(f"missing {sorted(missing)[:3]}, unexpected {sorted(unknown)[:3]}")
        return super().load_state_dict(state, strict=False, assign=assign)

    def _logits(self, network: Network, hidden: Tensor, adapter: str | None, temperature: float = 0.0) -> Tensor:
        return network.logits(hidden, adapter) / (temperature or self.temperature)

    def _chunks(self, hidden: Tensor, actions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """So many steps at a time that their logits stay within CHUNK numbers."""
        vocabulary = self.network.model.config.get_text_config().vocab_size
        size = max(1, CHUNK.get(hidden.device.type, 1 << 23) // vocabulary)
        return zip(hidden.split(size), actions.split(size), strict=True)

    def _score(self, hidden: Tensor, actions: Tensor, temperature: float = 0.0) -> tuple[Tensor, Tensor]:
        """Log-probs of `actions` [n] and entropies [n]; the logits [n, V] are made again backward, not kept, where they
        are many."""
        vocabulary = self.network.model.config.get_text_config().vocab_size
        if torch.is_grad_enabled() and len(hidden) * vocabulary > CHUNK.get(hidden.device.type, 1 << 23) // 4:
            scored: tuple[Tensor, Tensor] = checkpoint(
                self._score_now, hidden, actions, temperature, use_reentrant=False, preserve_rng_state=False
            )
            return scored
        return self._score_now(hidden, actions, temperature)

    def _score_now(self, hidden: Tensor, actions: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logits = self._logits(self.network, hidden, POLICY, temperature)
        total = logits.logsumexp(-1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.entropy_gradient):
            entropy = total - torch.einsum("nv,nv->n", logits.softmax(-1), logits)
        return logits.gather(-1, actions[:, None]).squeeze(-1) - total, entropy


def compared(logits: Tensor, ref_logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log pi(a), log pi_ref(a) and KL(pi || pi_ref), each [n], from logits [n, V]."""
    total, ref_total = logits.logsumexp(-1), ref_logits.logsumexp(-1)
    taken, ref_taken = (x.gather(-1, actions[:, None]).squeeze(-1) for x in (logits, ref_logits))
    gap = torch.einsum("nv,nv->n", logits.softmax(-1), logits - ref_logits)
    return taken - total, ref_taken - ref_total, (gap - total + ref_total).clamp(min=0)


def spread(x: Tensor, chosen: Tensor) -> Tensor:
    """Numbers [n] of the n chosen steps as float32 [R, L], 0 elsewhere."""
    return torch.zeros(chosen.shape, device=chosen.device).masked_scatter(chosen, x.float())
