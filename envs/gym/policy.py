"""The actor-critic for vector observations. For speed, this module does not use torch.distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from envs import categorical
from envs.gym import towers
from envs.gym.options import Policy
from envs.gym.scaling import ObservationScaler, normalize
from envs.gym.spaces import ActionLayout, ObservationLayout
from envs.gym.towers import ExplicitTowers, Towers
from ppo_unified.engine.rollout import ActorCritic, AddGradients, Evaluation, Observations

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}
NOT_ENCODED = ("action_mask", "starts", "state")  # keys of observations that encoders and hidden layers do not receive
# gradients of log-probs [n] and entropies [n] -> gradient of the outputs of the head's linear layer
OutputGradient: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


class Actor(Protocol):
    def __call__(self, obs: Tensor, mask: Tensor | None, states: Tensor | None = None) -> Tensor:
        """Return actions [N, components] for observations [N, size] before normalization and an action mask.

        Replace the recurrent states [N, S], if the policy has any, with those after these observations."""
        ...


def mlp(inputs: int, config: Policy) -> nn.Sequential:
    sizes = [inputs, *config.hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), ACTIVATIONS[config.activation]()]
    return nn.Sequential(*layers)


def initialize(module: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Initialize every linear layer in `module` with orthogonal weights of the given gain and zero biases."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            nn.init.orthogonal_(linear.weight, gain, generator=generator)
            nn.init.zeros_(linear.bias)


class GymPolicy(ActorCritic):
    """An MLP policy with categorical or Gaussian actions, and its critic.

    All methods except `scale` and `read` expect normalized observations. Observations are a tensor [.., size], or a
    mapping with the keys "obs" and "action_mask" (bool, [.., sum of sizes]) and one key per image. If there are
    encoders, they map observations to the inputs of the hidden layers.
    """

    row_len = 1  # columns that `evaluate` must see together

    def __init__(
        self,
        observations: ObservationLayout,
        actions: ActionLayout,
        config: Policy,
        normalize_obs: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.observations, obs_size = observations, observations.numbers
        dtype = getattr(torch, observations.numbers_dtype)
        self.scaler = ObservationScaler(obs_size, dtype) if normalize_obs and obs_size else None
        self.actor_encoder = self.critic_encoder = None
        if observations.images or config.encoders:
            from envs.gym.encoders import ObservationEncoder

            encoders = [
                ObservationEncoder(observations, config, ACTIVATIONS[config.activation], generator)
                for _ in range(1 if config.shared else 2)
            ]
            self.actor_encoder, self.critic_encoder = encoders[0], encoders[-1]
            obs_size = encoders[0].size
        features = config.count_features(obs_size)
        self.actor_torso = mlp(obs_size, config)
        self.critic_torso = self.actor_torso if config.shared else mlp(obs_size, config)
        self.shared = config.shared
        self.critic = nn.Linear(features, 1)
        self.head: Head = (
            Gaussian(features, len(actions.low), config.log_std_init)
            if actions.continuous
            else Categorical(features, actions.sizes)
        )
        for module, gain in (
            (self.actor_torso, math.sqrt(2)),
            (self.head, 0.01),
            (self.critic_torso, math.sqrt(2)),
            (self.critic, 1.0),
        ):
            initialize(module, gain, generator)
        self.towers = ExplicitTowers()

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        """Evaluate actions [R, L, components] at obs [R, L, size], and return tensors [R, L]."""
        x, mask = split_mask(obs)
        outputs, values = self._outputs_and_values(x)
        logprobs, entropy = self.head.logprobs_and_entropy(outputs, actions, mask)
        return Evaluation(logprobs, entropy, values.squeeze(-1))

    def _outputs_and_values(self, obs: Observations) -> tuple[Tensor, Tensor]:
        """Return the outputs of the head's linear layer and the value estimates [.., 1] for obs without a mask."""
        if self.critic_encoder is not None:
            features = self.actor_features(obs)
            return self.head.linear(features), self.critic(features if self.shared else self.critic_features(obs))
        assert isinstance(obs, Tensor)
        x = obs
        found = self.towers.find(self.actor_torso, self.head.linear, self.critic_torso, self.critic)
        if found and not x.requires_grad:
            parameters, activation = found
            outputs, values = Towers.apply(x.flatten(0, -2), activation, *parameters)  # type: ignore[no-untyped-call]  # torch
            return outputs.view(*x.shape[:-1], -1), values.view(*x.shape[:-1], 1)
        features = self.actor_torso(x)
        return self.head.linear(features), self.critic(features if self.shared else self.critic_torso(x))

    def actor_features(self, obs: Observations) -> Tensor:
        """Return the features [.., F] from which the actions are computed."""
        x, _ = split_mask(obs)
        return self.actor_torso(x if self.actor_encoder is None else self.actor_encoder(x))  # type: ignore[no-any-return] # torch

    def critic_features(self, obs: Observations) -> Tensor:
        """Return the features [.., F] from which the value estimates are computed, if they are not the actor's."""
        x, _ = split_mask(obs)
        return self.critic_torso(x if self.critic_encoder is None else self.critic_encoder(x))  # type: ignore[no-any-return] # torch

    @torch.no_grad()
    def evaluate_explicitly(self, obs: Observations, actions: Tensor) -> tuple[Evaluation, AddGradients] | None:
        head, (x, mask), shape = self.head, split_mask(obs), actions.shape[:-1]
        if self.actor_encoder is not None or not head.is_explicit:
            return None
        found = self.towers.find(self.actor_torso, head.linear, self.critic_torso, self.critic)
        if not found or not all(p is None or p.requires_grad for p in (*found[0], *head._parameters.values())):
            return None
        parameters, activation = found
        outputs, values, add_network_gradients = self.towers.evaluate(activation, parameters, x.flatten(0, -2))
        choices = None if mask is None else mask.flatten(0, -2)
        logprobs, entropy, output_gradient = head.evaluate_explicitly(outputs, actions.flatten(0, -2), choices)

        def add_gradients(by_logprob: Tensor, by_entropy: Tensor | None, by_value: Tensor) -> None:
            with torch.no_grad():  # a decorator would take longer
                by_output = output_gradient(by_logprob.flatten(), None if by_entropy is None else by_entropy.flatten())
                add_network_gradients(by_output, by_value.view(-1, 1))

        return Evaluation(logprobs.view(shape), entropy.view(shape), values.view(shape)), add_gradients

    def scale(self, obs: Tensor) -> Tensor:
        """Normalize numbers [.., numbers] if `gym.normalize_obs` is true; otherwise return them unchanged."""
        return obs if self.scaler is None else self.scaler(obs)

    def read(self, obs: Tensor) -> Observations:
        """Return what the networks receive for observations [.., size]: images are unpacked, numbers normalized."""
        if not self.observations.images:
            return self.scale(obs)
        from envs.gym.observations import unpack

        return {key: self.scale(x) if key == "obs" else x for key, x in unpack(obs, self.observations).items()}

    def act(self, obs: Observations, generator: torch.Generator | None) -> Tensor:
        """Return actions [N, components] for normalized obs [N, size].

        If `generator` is None, return the most likely actions; otherwise sample actions.
        """
        return self.head.act(self.actor_features(obs), split_mask(obs)[1], generator)

    def make_actor(self, generator: torch.Generator | None, steps: int = 1) -> Actor:
        """Return a function that normalizes observations [N, size] and chooses actions [N, components], like `act`.

        It is faster than `act`, because it calls no modules and draws the random numbers of `steps` steps at once. It
        is valid until the weights or the observation statistics change, and must be created and called in inference
        mode.
        """
        scaler, head = self.scaler, self.head
        statistics = None if scaler is None else (scaler.mean, scaler.factor())
        torso: list[Any] = list(self.actor_torso)
        layers = [
            partial(towers.apply_layer, type(activation), torch.addmm, linear.bias, linear.weight.t())
            for linear, activation in zip(torso[::2], torso[1::2], strict=True)
        ]
        bias, weight = head.linear.bias, head.linear.weight.t()
        noises: list[Tensor] = []  # of the next steps, last one first
        encoder = self.actor_encoder

        def act(obs: Tensor, mask: Tensor | None, states: Tensor | None = None) -> Tensor:
            if generator is not None and not noises:
                noises.extend(reversed(head.draw(generator, steps, len(obs))))
            if encoder is not None:
                x = encoder(self.read(obs))
            else:
                x = obs if statistics is None else normalize(obs, *statistics)
            for layer in layers:
                x = layer(x)
            return head.choose(torch.addmm(bias, x, weight), mask, noises.pop() if noises else None)

        return act

    def likeliest(self, obs: Observations, count: int) -> tuple[Tensor, Tensor] | None:
        """Return the `count` likeliest actions at obs [.., size], fewer if there are fewer, and their log-probs.

        Both results are [.., K], most likely action first. Return None unless an action is one choice.
        """
        if not isinstance(self.head, Categorical) or len(self.head.sizes) > 1:
            return None
        choices = self.head.choices(self.actor_features(obs), split_mask(obs)[1])
        logprobs, actions = choices[..., 0, :].topk(min(count, self.head.sizes[0]))
        return actions, logprobs

    def initial_states(self, count: int, acting: bool = False) -> Tensor | None:
        """Return the recurrent states of `count` new episodes, or None if the policy has no memory.

        If `acting` is True, the states contain only what is needed for choosing actions."""
        return None

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        own = [] if self.shared else [self.critic_torso, *filter(None, [self.critic_encoder])]
        return [p for module in (*own, self.critic) for p in module.parameters()]


def split_mask(obs: Observations) -> tuple[Any, Tensor | None]:
    """Return what the encoders or hidden layers receive, and the action mask or None."""
    if not isinstance(obs, Mapping):
        return obs, None
    rest = {key: x for key, x in obs.items() if key not in NOT_ENCODED}
    return rest["obs"] if list(rest) == ["obs"] else rest, obs.get("action_mask")


class Head(nn.Module):
    """Maps features [.., F] to a distribution over actions [.., components]."""

    linear: nn.Linear  # its outputs are the parameters of the distribution
    is_explicit = True  # whether `evaluate_explicitly` is implemented

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the log-prob and the entropy, each [..], given the outputs of `linear`. Both are sums over the
        action's components, which are independent."""
        raise NotImplementedError

    def evaluate_explicitly(
        self, outputs: Tensor, actions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, OutputGradient]:
        """Return the results of `logprobs_and_entropy` for n steps without autograd, and a function that takes the
        results' gradients, returns that of `outputs`, and adds to those of the head's parameters outside `linear`."""
        raise NotImplementedError

    def act(self, features: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
        noise = None if generator is None else self.draw(generator, 1, len(features))[0]
        return self.choose(self.linear(features), mask, noise)

    def draw(self, generator: torch.Generator, steps: int, count: int) -> Sequence[Tensor]:
        """Return the random numbers with which `choose` samples `count` actions in each of `steps` steps."""
        raise NotImplementedError

    def choose(self, outputs: Tensor, mask: Tensor | None, noise: Tensor | None) -> Tensor:
        """Return actions for the linear layer's outputs [N, ..]: the most likely ones, or random ones given noise."""
        raise NotImplementedError


class Categorical(Head):
    """Independent categorical distributions, one per action component.

    All components are computed together, with logits [.., components, largest size]. Masked actions have a log-prob so
    low that their probability is 0 (arXiv:2006.14171).
    """

    padding: Tensor  # [components, largest size]: True for existing actions, False for padding

    def __init__(self, features: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.linear = nn.Linear(features, sum(sizes))
        self.uniform = len(set(sizes)) == 1
        self.is_explicit = len(sizes) == 1
        self.register_buffer("padding", torch.arange(max(sizes)) < torch.tensor(sizes)[:, None], persistent=False)

    def choices(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return log-probs [.., components, largest size]. Padding and masked actions have log-probs of about -1e9."""
        return torch.log_softmax(self._arrange(self.linear(features), mask), dim=-1)

    def _arrange(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """Return logits [.., components, largest size], with -1e9 for padding and masked actions."""
        if mask is not None:
            logits = torch.where(mask, logits, -1e9)
        shape = (*logits.shape[:-1], len(self.sizes), max(self.sizes))
        if self.uniform:
            logits = logits.reshape(shape)
        else:
            padded = logits.new_full(shape, -1e9)
            padded[..., self.padding] = logits
            logits = padded
        return logits

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = self._arrange(outputs, mask).flatten(0, -2)
        logprobs, entropy = categorical.logprobs_and_entropy(logits, actions.flatten(), entropy_gradient=True)
        if len(self.sizes) == 1:
            return logprobs.view(actions.shape[:-1]), entropy.view(actions.shape[:-1])
        return logprobs.view(actions.shape).sum(-1), entropy.view(actions.shape).sum(-1)

    def evaluate_explicitly(
        self, outputs: Tensor, actions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, OutputGradient]:
        logits, chosen = outputs if mask is None else torch.where(mask, outputs, -1e9), actions.squeeze(-1)
        logprobs, entropy, probs = categorical.evaluate(logits, chosen)
        gradient = partial(categorical.logits_gradient, probs, chosen, entropy)
        if mask is None:
            return logprobs, entropy, gradient
        return logprobs, entropy, lambda *results: gradient(*results).mul_(mask)

    def draw(self, generator: torch.Generator, steps: int, count: int) -> Sequence[Tensor]:
        race = torch.empty(steps, count, *self.padding.shape, device=generator.device)
        return race.exponential_(generator=generator).log_().unbind()

    def choose(self, outputs: Tensor, mask: Tensor | None, noise: Tensor | None) -> Tensor:
        logits = self._arrange(outputs, mask)
        # Among exponential random variables with rates exp(logit_i), variable i is the smallest with probability p_i.
        return (logits if noise is None else logits - noise).argmax(-1)


class Gaussian(Head):
    """A diagonal Gaussian with a learned log standard deviation that does not depend on the observation.

    Samples are unbounded. The environment receives the clipped sample, but the update uses the unclipped one.
    """

    def __init__(self, features: int, size: int, log_std: float) -> None:
        super().__init__()
        self.linear = nn.Linear(features, size)
        self.log_std = nn.Parameter(torch.full((size,), log_std))

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        distance = (actions - outputs) * (-self.log_std).exp()
        logprobs = -0.5 * distance.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
        summed = logprobs.sum(-1)
        return summed, entropy.expand_as(summed)

    def evaluate_explicitly(
        self, outputs: Tensor, actions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, OutputGradient]:
        logprobs, entropy = self.logprobs_and_entropy(outputs, actions, mask)

        def output_gradient(logprob_grad: Tensor, entropy_grad: Tensor | None) -> Tensor:
            inverse, difference, factor = (-self.log_std).exp(), actions - outputs, logprob_grad[:, None]
            by_mean = difference * inverse.square() * factor
            own = (difference * by_mean).sum(0) - factor.sum()  # d log pi / d log std = (a - mean)^2 / std^2 - 1
            if entropy_grad is not None:
                own += entropy_grad.sum()
            assert self.log_std.grad is not None
            self.log_std.grad.add_(own)
            return by_mean

        return logprobs, entropy, output_gradient

    def draw(self, generator: torch.Generator, steps: int, count: int) -> Sequence[Tensor]:
        empty = (self.log_std.new_empty(count, len(self.log_std)) for _ in range(steps))
        return [noise.normal_(generator=generator) for noise in empty]

    def choose(self, outputs: Tensor, mask: Tensor | None, noise: Tensor | None) -> Tensor:
        return outputs if noise is None else outputs + self.log_std.exp() * noise
