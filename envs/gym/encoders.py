"""Networks that encode the parts of an observation, such as images, into features.

A user's own encoder is a subclass of torch.nn.Module. Its constructor receives the Gymnasium space of one part, and its
`forward` maps a batch of this part to features [n, F].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, TypeAlias

import torch
from gymnasium import spaces
from torch import Tensor, nn

from envs.gym.errors import describe_error
from envs.gym.images import SMALLEST_IMAGE, image_shape
from envs.gym.observations import EncoderChoice, parse_encoder
from envs.gym.options import Policy
from envs.gym.spaces import ObservationLayout, Part
from envs.gym.targets import import_source, split_reference
from ppo_unified.engine.rollout import Observations
from ppo_unified.errors import UsageError, did_you_mean

Initialize: TypeAlias = Callable[[nn.Module, float], None]  # initializes the layers of a module with a gain


class Pixels(nn.Module):
    """Maps images [n, *shape] of uint8 to [n, channels, height, width] with values from 0 to 1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.stacked, inner = len(shape) == 4, shape[-3:]
        self.is_grey = len(shape) == 2
        self.channels_last = not self.is_grey and not inner[0] < inner[2]

    def forward(self, x: Tensor) -> Tensor:
        if self.is_grey:
            x = x.unsqueeze(1)
        elif self.channels_last:
            x = x.movedim(-1, -3)
        return (x.flatten(1, 2) if self.stacked else x).float() / 255


def nature_cnn(shape: tuple[int, ...], initialize: Initialize) -> nn.Module:
    """Return the network of Mnih et al. 2015 (https://doi.org/10.1038/nature14236), with 512 features."""
    channels, height, width = image_shape(shape)
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    network = nn.Sequential(
        Pixels(shape),
        nn.Conv2d(channels, 32, 8, 4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * height * width, 512),
        nn.ReLU(),
    )
    initialize(network, math.sqrt(2))
    return network


class Residual(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.layers(x)
        return added


def residual_network(shape: tuple[int, ...], initialize: Initialize) -> nn.Module:
    """Return the residual network of Espeholt et al. 2018 (arXiv:1802.01561, figure 3), with 256 features."""
    channels, height, width = image_shape(shape)
    layers: list[nn.Module] = [Pixels(shape)]
    for depth in (16, 32, 32):
        layers += [nn.Conv2d(channels, depth, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)]
        layers += [Residual(depth), Residual(depth)]
        channels, height, width = depth, -(-height // 2), -(-width // 2)
    layers += [nn.ReLU(), nn.Flatten()]
    body, last = nn.Sequential(*layers), nn.Sequential(nn.Linear(channels * height * width, 256), nn.ReLU())
    initialize(body, 1.0)
    initialize(last, math.sqrt(2))
    return nn.Sequential(body, last)


class Slot(NamedTuple):
    """Where an encoder's input is in an observation."""

    part: Part
    start: int  # in the numbers of the observation; 0 for an image
    size: int

    def read(self, obs: Observations) -> Tensor:
        """Return the part from observations [.., ...], flattened to [n, *shape], or to [n, size] if it is one-hot."""
        shape = self.part.space.shape or ()
        if self.part.is_image:
            assert isinstance(obs, Mapping)
            return obs[self.part.entry].reshape(-1, *shape)
        x = (obs["obs"] if isinstance(obs, Mapping) else obs)[..., self.start : self.start + self.size]
        return x.reshape(-1, *(shape if isinstance(self.part.space, spaces.Box) else (self.size,)))


class ObservationEncoder(nn.Module):
    """Maps observations to features [.., size]: the numbers without an encoder, followed by the encoders' outputs."""

    def __init__(
        self, observations: ObservationLayout, config: Policy, activation: type[nn.Module], generator: torch.Generator
    ) -> None:
        """Create the encoders. Raises UsageError if an option does not fit the observations."""
        super().__init__()
        self.activation, self.generator = activation, generator
        _check_names(observations, config)
        self.slots, self.networks, start = list[Slot](), nn.ModuleList(), 0
        self.plain = list[slice]()  # the numbers without an encoder
        self.size = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # for a user's own encoders
            for part in observations.parts:
                size = 0 if part.is_image else int(spaces.flatdim(part.space))
                choice = parse_encoder(part.name, config.find_encoder(part.name, part.is_image))
                if choice.kind == "flat":
                    self.plain.append(slice(start, start + size))
                    self.size += size
                else:
                    self.slots.append(Slot(part, 0 if part.is_image else start, size))
                    self.networks.append(self._make_network(self.slots[-1], choice))
                    self.size += self._measure(self.slots[-1], self.networks[-1])
                start += size
        del self.generator

    def _make_network(self, slot: Slot, choice: EncoderChoice) -> nn.Module:
        part, kind = slot.part, choice.kind
        if ":" in kind:
            return self._make_own(part, kind)
        if kind in ("nature", "resnet"):
            if not part.is_image:
                raise _unsuitable_encoder(part, kind, "an image (a Box of uint8 with two to four dimensions)")
            shape = part.space.shape or ()
            if kind == "nature" and min(image_shape(shape)[1:]) < SMALLEST_IMAGE:
                raise _unsuitable_encoder(
                    part, kind, f"an image with sides of at least {SMALLEST_IMAGE} pixels", "resnet"
                )
            return (nature_cnn if kind == "nature" else residual_network)(shape, self._initialize)
        if kind == "embedding":
            if not isinstance(part.space, spaces.Discrete | spaces.MultiDiscrete):
                raise _unsuitable_encoder(
                    part, f"embedding({choice.sizes[0]})", "a Discrete or MultiDiscrete space", "mlp(64)"
                )
            network = nn.Sequential(nn.Linear(slot.size, choice.sizes[0]))
            self._initialize(network, 1.0)
            return network
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip((slot.size, *choice.sizes), choice.sizes, strict=False):
            layers += [nn.Linear(before, after), self.activation()]
        network = nn.Sequential(*layers)
        self._initialize(network, math.sqrt(2))
        return network

    def _initialize(self, module: nn.Module, gain: float) -> None:
        """Initialize linear layers and convolutions with orthogonal weights of the given gain and zero biases."""
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.orthogonal_(layer.weight, gain, generator=self.generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def _make_own(self, part: Part, reference: str) -> nn.Module:
        source, name = split_reference(reference)
        where = f"policy.encoders: {part.name} = {reference!r}"
        create = getattr(import_source(source, name, where).module, name, None)
        if not callable(create):
            raise UsageError(f"{where}: {source} contains no class {name!r}; write a subclass of torch.nn.Module there")
        try:
            network = create(part.space)
        except Exception as error:
            raise UsageError(f"{where}: {name}({part.space}) failed ({describe_error(error)})") from error
        if not isinstance(network, nn.Module):
            raise UsageError(f"{where}: expected a torch.nn.Module, got {type(network).__name__}")
        return network.eval()  # before `_measure`, which must not change its statistics

    def train(self, mode: bool = True) -> Self:
        """Leave the encoders in evaluation mode: dropout or batch statistics would change the probability ratios."""
        return super().train(False)

    @torch.no_grad()
    def _measure(self, slot: Slot, network: nn.Module) -> int:
        """Return the number of features F of a network, measured with a batch of two observations."""
        part = slot.part
        shape = part.space.shape if part.is_image or isinstance(part.space, spaces.Box) else (slot.size,)
        batch = torch.zeros(2, *(shape or ()), dtype=torch.uint8 if part.is_image else torch.float32)
        where = f"policy.encoders: {part.name}: {type(network).__name__}"
        try:
            found: Any = network(batch)
        except Exception as error:
            given = f"a batch of {list(batch.shape)} {batch.dtype}"
            raise UsageError(f"{where}: forward failed for {given} ({describe_error(error)})") from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2 or not found.is_floating_point():
            got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"{where}: expected features [2, F] of float32 for a batch of 2, got {got}")
        return found.shape[1]

    def forward(self, obs: Observations) -> Tensor:
        numbers = obs.get("obs") if isinstance(obs, Mapping) else obs
        features = [] if numbers is None else [numbers[..., plain] for plain in self.plain]
        for slot, network in zip(self.slots, self.networks, strict=True):
            lead = _leading_shape(obs, slot)
            features.append(network(slot.read(obs)).view(*lead, -1))
        return torch.cat(features, -1)


def check_encoders(observations: ObservationLayout, config: Policy) -> None:
    """Raise UsageError if an encoder does not fit the observations."""
    ObservationEncoder(observations, config, nn.Tanh, torch.Generator().manual_seed(0))


def _leading_shape(obs: Observations, slot: Slot) -> torch.Size:
    if not slot.part.is_image:
        return (obs["obs"] if isinstance(obs, Mapping) else obs).shape[:-1]
    assert isinstance(obs, Mapping)
    image = obs[slot.part.entry]
    return image.shape[: image.ndim - len(slot.part.space.shape or ())]


def _unsuitable_encoder(part: Part, encoder: str, wanted: str, other: str = "flat") -> UsageError:
    return UsageError(
        f"policy.encoders: {part.name} = {encoder!r}: expected {wanted}, got {part.space}; use {other!r} instead"
    )


def _check_names(observations: ObservationLayout, config: Policy) -> None:
    names = [part.name for part in observations.parts]
    for name in config.encoders:
        if name not in names:
            raise UsageError(
                f"policy.encoders: the observation has no part {name!r}{did_you_mean(name, names)} "
                f"(its parts: {', '.join(names)})"
            )
