"""The policy, critic and reference model for a causal language model.

Each row is a sequence of tokens, padded on the right. Column t is the state in which token t + 1 is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from envs.categorical import logprobs_and_entropy
from envs.llm.generate import NEVER
from envs.llm.model import CRITIC, Network
from envs.llm.structure import encoder_prefixes
from ppo_unified.engine.rollout import ActorCritic, Evaluation, Observations

NOT_CHOSEN = -1  # the action in columns where the policy does not choose the next token, for example in the prompt
CHUNK = {"cpu": 1 << 24, "cuda": 1 << 27}  # maximum number of logits in memory at a time


class Critic(nn.Module):
    """Estimates V of each state with a linear head. The head is copied from a reward model or starts at zero."""

    def __init__(self, width: int, trunk: Network | None = None) -> None:
        """Create a critic. If `trunk` (the critic's own model) is None, the critic uses the policy's hidden states."""
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, chosen: Tensor, hidden: Tensor) -> Tensor:
        """Return V [n] of the n states for which `chosen` [R, L] is True.

        `hidden` [n, H] contains the policy's hidden states for the same n states.
        """
        if self.trunk is not None:
            hidden = self.trunk.trunk(tokens)[chosen]
        values: Tensor = self.head(hidden.float()).squeeze(-1)
        return values


class LoRACritic(Critic):
    """A critic that uses a second set of LoRA weights on the policy's frozen base."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.width)
        self.network = [network]  # in a list, so that torch does not register it: it belongs to the policy

    def forward(self, tokens: Tensor, chosen: Tensor, hidden: Tensor) -> Tensor:
        return super().forward(tokens, chosen, self.network[0].trunk(tokens, CRITIC)[chosen])


class Reference(NamedTuple):
    """The frozen reference model: a copy of the initial policy, or the policy's network with LoRA disabled."""

    network: Network
    lora: str | None = None


class Comparison(NamedTuple):
    """Outputs of the policy, critic and reference model at the same steps, each [R, L].

    The outputs are 0 in columns where the policy did not choose the next token.
    """

    logprobs: Tensor
    values: Tensor
    ref_logprobs: Tensor
    kl: Tensor  # the exact KL(pi || pi_ref), summed over the vocabulary


def make_observations(tokens: Tensor, chosen: Tensor, min_new_tokens: int) -> Observations:
    """Return `tokens` [N, T] or, if `min_new_tokens` > 0, a mapping with `tokens` and `early` [N, T].

    `early` is True for the first `min_new_tokens` states of `chosen` [N, T] in each row, in which the next token cannot
    be an end token.
    """
    if not min_new_tokens:
        return tokens
    return {"tokens": tokens, "early": _first_steps(chosen, min_new_tokens)}


def tokens_of(obs: Observations) -> Tensor:
    """Return the tokens [N, T] of the policy's observations."""
    return obs if isinstance(obs, Tensor) else obs["tokens"]


def _first_steps(chosen: Tensor, count: int) -> Tensor:
    """Return True [N, T] at the first `count` steps of `chosen` [N, T] in each row."""
    return chosen & (chosen.cumsum(1) <= count)


class TokenPolicy(ActorCritic):
    """A policy that chooses tokens, with an optional critic.

    Observations are the result of `make_observations`. Actions [R, L] are the next tokens, or NOT_CHOSEN if the policy
    did not choose them. Logits are computed only for chosen tokens. Without a critic, all values are 0.
    """

    def __init__(
        self,
        network: Network,
        critic: Critic | None,
        temperature: float,
        entropy_gradient: bool,
        min_new_tokens: int = 0,
        end_tokens: Sequence[int] = (),
    ) -> None:
        """Create a policy. If `entropy_gradient` is False, entropy is only a metric and has no gradient.

        The first `min_new_tokens` chosen tokens of a row cannot be any of `end_tokens`.
        """
        super().__init__()
        self.min_new_tokens, self.end_tokens = min_new_tokens, list(end_tokens)
        self.network, self.critic = network, critic
        self.temperature, self.entropy_gradient = temperature, entropy_gradient

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        tokens, chosen = tokens_of(obs), actions != NOT_CHOSEN
        early = torch.zeros_like(chosen) if isinstance(obs, Tensor) else obs["early"]
        hidden = self.network.trunk(tokens)[chosen]
        logprobs, entropy = self._logprobs_and_entropy(hidden, actions[chosen], early[chosen], self.temperature)
        values = torch.zeros_like(logprobs) if self.critic is None else self.critic(tokens, chosen, hidden)
        return Evaluation(*(scatter(x, chosen) for x in (logprobs, entropy, values)))

    @torch.no_grad()
    def compare(self, tokens: Tensor, chosen: Tensor, actions: Tensor, reference: Reference) -> Comparison:
        """Compute the same log-probs and values as `evaluate`, as well as reference log-probs and KL, each [R, L]."""
        hidden = self.network.trunk(tokens)[chosen]
        other = reference.network.trunk(tokens, reference.lora)[chosen.to(reference.network.device)]
        parts, start = [], 0
        for h, a, early in self._chunks(hidden, actions[chosen], self._early(chosen)):
            logits = self._adjust(self.network.logits(h), early, self.temperature)
            theirs = reference.network.logits(other[start : start + len(h)], reference.lora).to(logits.device)
            theirs = self._adjust(theirs, early, self.temperature)
            parts.append(logprobs_and_kl(logits, theirs, a))
            start += len(h)
        logprobs, ref_logprobs, kl = (torch.cat(x) for x in zip(*parts, strict=True))
        values = torch.zeros_like(kl) if self.critic is None else self.critic(tokens, chosen, hidden)
        return Comparison(*(scatter(x, chosen) for x in (logprobs, values, ref_logprobs, kl)))

    @torch.no_grad()
    def likeliest(
        self, tokens: Tensor, chosen: Tensor, actions: Tensor, count: int, model: Reference
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the likeliest next tokens of `model` and their log-probs, each [n, K], and the log-probs [n] of
        `actions` [R, L]. The most likely token comes first.

        n is the number of steps at which `chosen` [R, L] is True. K is `count`, or the size of the vocabulary if it is
        smaller. The log-probs are those at the policy's temperature.
        """
        (network, lora), parts = model, []
        hidden = network.trunk(tokens, lora)[chosen.to(network.device)]
        size, columns = chunk_size(network), (actions[chosen], self._early(chosen))
        taken, first = (x.to(network.device).split(size) for x in columns)
        for h, a, early in zip(hidden.split(size), taken, first, strict=True):
            logits = self._adjust(network.logits(h, lora), early, self.temperature)
            total = logits.logsumexp(-1, keepdim=True)
            values, found = logits.topk(min(count, logits.shape[-1]))
            parts.append((found, values - total, (logits.gather(-1, a[:, None]) - total).squeeze(-1)))
        likeliest, logprobs, own = (torch.cat(x) for x in zip(*parts, strict=True))
        return likeliest, logprobs, own

    def log_likelihood(self, tokens: Tensor, chosen: Tensor, actions: Tensor) -> Tensor:
        """Return log pi(action) [n], at temperature 1, for the n steps at which `chosen` is True.

        Every token can be an end token.
        """
        hidden = self.network.trunk(tokens)[chosen]
        return self._logprobs_and_entropy(hidden, actions[chosen], torch.zeros_like(chosen[chosen]), 1.0)[0]

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        if self.critic is None:
            return []
        own = [*self.critic.parameters(), *self.network.lora_parameters(CRITIC)]
        return [p for p in own if p.requires_grad]

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override] # overloads
        """Return the weights without encoders for images or audio and without LoRA's frozen base."""
        state: dict[str, Any] = super().state_dict(*arguments, **options)
        named = dict(self.named_parameters(remove_duplicate=False))  # includes tied weights under all their names
        if not all(p.requires_grad for p in named.values()):
            state = {name: x for name, x in state.items() if name in named and named[name].requires_grad}
        encoders = encoder_prefixes(self)
        return {name: x for name, x in state.items() if not name.startswith(encoders)}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load trained weights. Raises RuntimeError if names or shapes differ from those in `state_dict()`.

        States of older versions also contain the weights of encoders for images or audio.
        """
        own, encoders = set(self.state_dict()), encoder_prefixes(self)
        missing, unknown = own - set(state), {x for x in state if x not in own and not x.startswith(encoders)}
        if strict and (missing or unknown):
            raise RuntimeError(f"missing weights {sorted(missing)[:3]}, unexpected weights {sorted(unknown)[:3]}")
        return super().load_state_dict(state, strict=False, assign=assign)

    def _early(self, chosen: Tensor) -> Tensor:
        """Return True [n] for the steps, among the n steps of `chosen` [R, L], whose token cannot be an end token."""
        return _first_steps(chosen, self.min_new_tokens)[chosen]

    def _adjust(self, logits: Tensor, early: Tensor, temperature: float) -> Tensor:
        """Return logits [n, V] at a temperature, without end tokens in the steps for which `early` [n] is True."""
        logits = logits if temperature == 1.0 else logits / temperature  # avoid copying the largest tensor
        if self.min_new_tokens and self.end_tokens:
            logits[early.nonzero(), torch.tensor(self.end_tokens, device=logits.device)] = NEVER
        return logits

    def _chunks(self, hidden: Tensor, actions: Tensor, early: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Split the steps into chunks with at most CHUNK logits each."""
        size = chunk_size(self.network)
        return zip(hidden.split(size), actions.split(size), early.split(size), strict=True)

    def _logprobs_and_entropy(
        self, hidden: Tensor, actions: Tensor, early: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probs of `actions` and the entropies, each [n].

        If there are several chunks of logits, each chunk is recomputed in the backward pass to save memory.
        """

        def compute(hidden: Tensor, actions: Tensor, early: Tensor) -> tuple[Tensor, Tensor]:
            logits = self._adjust(self.network.logits(hidden), early, temperature)
            return logprobs_and_entropy(logits, actions, self.entropy_gradient)

        chunks = list(self._chunks(hidden, actions, early))
        if len(chunks) == 1:
            return compute(hidden, actions, early)
        recompute = partial(checkpoint, compute, use_reentrant=False, preserve_rng_state=False)
        logprobs, entropy = (torch.cat(x) for x in zip(*(recompute(*chunk) for chunk in chunks), strict=True))
        return logprobs, entropy


def chunk_size(network: Network) -> int:
    """Return the number of steps whose logits are in memory at a time."""
    vocabulary: int = network.model.config.get_text_config().vocab_size
    return max(1, CHUNK.get(network.device.type, 1 << 23) // vocabulary)


def logprobs_and_kl(logits: Tensor, ref_logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log pi(a), log pi_ref(a) and KL(pi || pi_ref), each [n], from logits [n, V]."""
    logs, ref_logs = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    taken, ref_taken = (x.gather(-1, actions[:, None]).squeeze(-1) for x in (logs, ref_logs))
    gap = ref_logs.neg_().add_(logs)
    return taken, ref_taken, torch.einsum("nv,nv->n", logs.exp_(), gap).clamp(min=0)


def scatter(x: Tensor, chosen: Tensor) -> Tensor:
    """Return a float32 tensor [R, L] that contains the n elements of `x` at the n chosen steps and 0 elsewhere."""
    return torch.zeros(chosen.shape, device=chosen.device).masked_scatter(chosen, x.float())
