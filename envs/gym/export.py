"""Exports a Gymnasium policy with `torch.export`. The exported program requires only torch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from envs.gym.eval import MAX_STEPS, Player
from envs.gym.masks import MASK_METHOD
from envs.gym.observations import unpack
from envs.gym.options import Gym, fill_rank, resolve
from envs.gym.policy import GymPolicy
from envs.gym.recurrent import RecurrentPolicy
from envs.gym.spaces import MASK_KEY, ActionLayout, ObservationLayout, encode
from envs.gym.targets import import_source, split_reference
from envs.gym.vector import GymAdapter
from envs.gym.wrappers import format_arguments, load_wrappers

PROGRAM, README, EXAMPLE = "policy.pt2", "README.md", "play.py"
BATCHES = (1, 17)  # batch sizes for comparing the exported program with the policy
STEPS = 4  # number of steps in these comparisons if the policy is recurrent
CPU = torch.device("cpu")
TOLERANCE = 1e-5  # absolute and relative tolerance of continuous actions


class GreedyPolicy(nn.Module):
    """Maps observations [batch, size] to the most likely actions [batch, *shape] in the environment's units.

    Observations with images are a dict with the keys of `envs.gym.observations.unpack`.

    This module normalizes observations, and rescales and clips actions, but does not include the critic.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    offset: Tensor
    start: Tensor

    def __init__(self, policy: GymPolicy, actions: ActionLayout) -> None:
        super().__init__()
        self.scaler: nn.Module = policy.scaler or nn.Identity()
        self.encoder: nn.Module = policy.actor_encoder or nn.Identity()
        self.torso, self.head = policy.actor_torso, policy.head
        self.actions, self.dtype = actions, getattr(torch, actions.dtype)
        if actions.continuous:
            self.register_buffer("low", torch.tensor(actions.low, dtype=self.dtype))
            self.register_buffer("high", torch.tensor(actions.high, dtype=self.dtype))
            self.register_buffer("scale", torch.tensor(actions.scale, dtype=torch.float64))
            self.register_buffer("offset", torch.tensor(actions.offset, dtype=torch.float64))
        else:
            self.register_buffer("start", torch.tensor(actions.start))

    def forward(self, obs: Tensor | dict[str, Tensor], action_mask: Tensor | None = None) -> Tensor:
        """Return actions for obs [batch, size] and action_mask [batch, sum of sizes] bool (True = allowed)."""
        return self.convert(self.head.act(self.features(obs), action_mask, None))

    def features(self, obs: Tensor | dict[str, Tensor]) -> Tensor:
        """Return the outputs of the hidden layers for obs [batch, size], or for a dict of numbers and images."""
        if isinstance(obs, dict):
            scaled: Any = {key: self.scaler(x) if key == "obs" else x for key, x in obs.items()}
        else:
            scaled = self.scaler(obs)
        return self.torso(self.encoder(scaled))  # type: ignore[no-any-return] # torch

    def convert(self, chosen: Tensor) -> Tensor:
        """Convert actions [batch, components] of the policy to the environment's units."""
        if self.actions.continuous:
            if self.actions.scale:
                chosen = chosen * self.scale + self.offset
            # Convert before clipping: a bound rounded to float32 could be outside a float64 space.
            chosen = torch.maximum(torch.minimum(chosen.to(self.dtype), self.high), self.low)
        else:
            chosen = (chosen + self.start).to(self.dtype)
        return chosen.reshape(-1, *self.actions.shape)


class RecurrentGreedyPolicy(GreedyPolicy):
    """Maps observations and recurrent states [batch, S] to the most likely actions and the next states."""

    def __init__(self, policy: RecurrentPolicy, actions: ActionLayout) -> None:
        super().__init__(policy, actions)
        self.memory = policy.actor_memory

    def forward(self, obs: Tensor, state: Tensor, action_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override] # has a state
        state = self.memory.step(self.features(obs), state)
        return self.convert(self.head.act(state[:, : self.memory.size], action_mask, None)), state


def export(adapter: GymAdapter, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write policy.pt2, play.py and README.md to `folder`, and return the adapter's entries for policy.json.

    Raises RuntimeError if the saved program does not return the same actions as the policy.
    """
    policy = copy.deepcopy(adapter.policy).cpu().eval()
    masked, new_state = adapter.masks is not None, policy.initial_states(1, acting=True)
    state_size = 0 if new_state is None else new_state.shape[1]
    arguments = ["obs", *(["state"] if state_size else []), *(["action_mask"] if masked else [])]
    write_program(policy, adapter.observations, adapter.actions, masked, folder / PROGRAM)
    check_program(policy, adapter.observations, adapter.actions, masked, folder / PROGRAM)
    options = adapter.config.gym
    options = options.model_copy(update={"env_kwargs": fill_rank(options.env_kwargs, 0)})
    facts = {
        "env_id": options.env_id,
        "env_kwargs": options.env_kwargs,
        "wrappers": options.wrappers,
        "obs": _describe_obs(adapter.observations, options.normalize_obs),
        "action": _describe_action(adapter.actions),
        "action_mask": {"dtype": "bool", "shape": ["batch", sum(adapter.actions.sizes)]} if masked else None,
        "state": {"dtype": "float32", "shape": ["batch", state_size], "first": 0} if state_size else None,
        "usage": USAGE.format(results="actions, state" if state_size else "actions", arguments=", ".join(arguments)),
    }
    script = example(options, adapter.observations, adapter.actions, masked, state_size)
    (folder / EXAMPLE).write_text(script, encoding="utf-8")
    score = "not evaluated" if about["score"] is None else f"{about['score']:.6g}"
    (folder / README).write_text(
        PAGE.format(
            **about | {"score": score},
            env_id=options.env_id,
            obs=_name_inputs(adapter.observations),
            state=STATE_INPUT.format(state_size) if state_size else "",
            mask=f", `action_mask` bool [batch, {sum(adapter.actions.sizes)}]" if masked else "",
            next_state=STATE_OUTPUT if state_size else "",
            dtype=adapter.actions.dtype,
            shape="".join(f", {n}" for n in adapter.actions.shape),
        ),
        encoding="utf-8",
    )
    return facts


def write_program(
    policy: GymPolicy, observations: ObservationLayout, actions: ActionLayout, masked: bool, path: Path
) -> None:
    """Export the greedy policy for any batch size and save it to `path`."""
    batch = {0: torch.export.Dim("batch")}
    obs = _to_input(torch.zeros(3, observations.size, dtype=getattr(torch, observations.dtype)), observations)
    arguments: dict[str, Any] = {"obs": obs}
    shapes: dict[str, Any] = {"obs": dict.fromkeys(obs, batch) if isinstance(obs, dict) else batch}
    copied = copy.deepcopy(policy)
    greedy = GreedyPolicy(copied, actions)
    if isinstance(copied, RecurrentPolicy):
        greedy, arguments["state"] = RecurrentGreedyPolicy(copied, actions), copied.initial_states(3, acting=True)
        shapes["state"] = batch
    if masked:
        arguments["action_mask"], shapes["action_mask"] = torch.ones(3, sum(actions.sizes), dtype=torch.bool), batch
    with torch.no_grad():
        program = torch.export.export(
            greedy.eval().requires_grad_(False),  # so that users can call .numpy() without .detach()
            tuple(arguments.values()),
            dynamic_shapes=shapes,
        )
    torch.export.save(program, path)


def check_program(
    policy: GymPolicy, observations: ObservationLayout, actions: ActionLayout, masked: bool, path: Path
) -> None:
    """Compare the program in `path` with the policy on random observations, for a recurrent policy in episodes of
    several steps.

    Raises RuntimeError if the program and the policy return different actions.
    """
    program = torch.export.load(path).module()
    rng = np.random.default_rng(0)
    for count in BATCHES:
        player, state = Player(policy, observations, actions, CPU, None), policy.initial_states(count, acting=True)
        for _ in range(1 if state is None else STEPS):
            raw = _sample(observations, count, rng)
            arguments = [_to_input(torch.from_numpy(encode(raw, observations)), observations)]
            arguments, info = [*arguments, *([] if state is None else [state])], {}
            if masked:
                masks = rng.random((count, sum(actions.sizes))) < 0.5
                masks[:, np.cumsum((0, *actions.sizes[:-1]))] = True  # allow at least one action per component
                arguments, info = [*arguments, torch.from_numpy(masks)], {MASK_KEY: masks}
            expected, found = player(raw, info), program(*arguments)
            found, state = (found, None) if state is None else found
            written = found.numpy()
            same = expected.shape == written.shape and expected.dtype == written.dtype
            if not same or not np.allclose(expected, written, rtol=TOLERANCE, atol=TOLERANCE):
                raise RuntimeError(f"{path.name}: the exported program returns different actions from the policy")


def _to_input(encoded: Tensor, layout: ObservationLayout) -> Any:
    """Return the program's input for encoded observations: a tensor, or a dict if there are images."""
    return {key: x.clone() for key, x in unpack(encoded, layout).items()} if layout.images else encoded


def _sample(layout: ObservationLayout, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return random observations in the environment's format, packed if there are images."""
    numbers: np.ndarray = 3 * rng.standard_normal((count, layout.numbers))
    if layout.one_hot:
        return rng.integers(layout.size, size=count) + layout.start
    if not layout.images:
        return numbers
    packed = rng.integers(256, size=(count, layout.size), dtype=np.uint8)
    values = np.ascontiguousarray(numbers.astype(layout.numbers_dtype)).view(np.uint8)
    packed[:, : values.shape[1]] = values
    return packed


def _describe_obs(layout: ObservationLayout, normalized: bool) -> dict[str, Any]:
    if layout.images:
        inputs: dict[str, Any] = {
            part.entry: {"dtype": "uint8", "shape": ["batch", *(part.space.shape or ())], "normalization": "none"}
            for part in layout.images
        }
        if layout.numbers:
            inputs["obs"] = {
                "dtype": layout.numbers_dtype,
                "shape": ["batch", layout.numbers],
                "encoding": "gymnasium.spaces.flatten of the parts that are not images",
                "normalization": "inside the program" if normalized else "none",
            }
        return inputs
    encoding = "as returned by the environment, flattened"
    if layout.one_hot:
        encoding = f"one-hot: number i sets element i - {layout.start}" if layout.start else "one-hot"
    elif layout.flatten:
        encoding = "gymnasium.spaces.flatten" + (f" without {MASK_KEY!r}" if layout.has_mask else "")
    return {
        "dtype": layout.dtype,
        "shape": ["batch", layout.size],
        "encoding": encoding,
        "normalization": "inside the program" if normalized else "none",
    }


def _name_inputs(layout: ObservationLayout) -> str:
    if not layout.images:
        return f" {layout.dtype} [batch, {layout.size}]"
    inputs = _describe_obs(layout, False).items()
    return ", a dict of " + " and ".join(
        f"`{key}` {x['dtype']} [{', '.join(map(str, x['shape']))}]" for key, x in inputs
    )


def _describe_action(layout: ActionLayout) -> dict[str, Any]:
    """Describe the action format for policy.json. Infinite bounds become null."""
    facts: dict[str, Any] = {"dtype": layout.dtype, "shape": ["batch", *layout.shape]}
    if layout.continuous:
        bounds = {"low": layout.low, "high": layout.high}
        return facts | {key: [x if math.isfinite(x) else None for x in bound] for key, bound in bounds.items()}
    return facts | {"options": layout.sizes, "first": layout.start}


def example(options: Gym, observations: ObservationLayout, actions: ActionLayout, masked: bool, state_size: int) -> str:
    """Return a script that runs the exported program in Gymnasium. The script requires only Gymnasium and torch."""
    discrete = not actions.shape and not actions.continuous
    arguments = ["encode(obs)", *(["state"] if state_size else []), *(["allowed(obs, info)"] if masked else [])]
    call = f"policy({', '.join(arguments)})"
    kwargs = "".join(f", {key}={value!r}" for key, value in options.env_kwargs.items())
    sources, lines = [split_reference(options.env_id)[0]], _import_environment(options.env_id, kwargs)
    for wrapper in load_wrappers(options.wrappers):
        source, name = split_reference(wrapper.call.name)
        sources.append(source)
        lines += _import_lines(source)
        lines += [f"env = {'module' if source else 'gym.wrappers'}.{name}(env{format_arguments(wrapper)})"]
    return SCRIPT.format(
        load_file=LOAD_FILE if any(source.endswith(".py") for source in sources) else "",
        environment="\n".join(lines),
        encode=_encode_lines(observations) + (_mask_lines(observations, actions) if masked else ""),
        start=f"state = torch.zeros(1, {state_size})\n    " if state_size else "",
        act=f"actions, state = {call}" if state_size else f"actions = {call}",
        action=f"actions[0]{'.item()' if discrete else '.numpy()'}",
        max_steps=MAX_STEPS,
    )


def _import_lines(source: str) -> list[str]:
    """Return lines that import a module or a Python file as `module`.

    A file gets the module name that it has in this process, which differs from the names of other modules.
    """
    if source.endswith(".py"):
        name = import_source(source, "", "export").module.__name__
        return [f"module = load_file({source!r}, {name!r})"]
    return [f"module = importlib.import_module({source!r})"] if source else []


def _import_environment(env_id: str, kwargs: str) -> list[str]:
    """Return lines that create the environment `env` without this project."""
    source, _ = split_reference(env_id)
    spec = resolve(env_id)
    lines = _import_lines(source)
    registered = gym.registry[spec.id].entry_point if spec.id in gym.registry else None
    if source and spec.id not in gym.registry:
        made = f"gym.envs.registration.EnvSpec({spec.id!r}, module.{spec.id})"
    elif callable(spec.entry_point) and isinstance(registered, str):
        # `resolve` has found the object in the file, because the registered text can mean another module.
        lines += [f"spec = gym.spec({spec.id!r})", f"spec.entry_point = module.{registered.partition(':')[2]}"]
        made = "spec"
    else:
        made = repr(spec.id)
    return [*lines, f"env = gym.make({made}{kwargs})"]


def _encode_lines(layout: ObservationLayout) -> str:
    if layout.images:
        return _encode_images_lines(layout)
    if layout.one_hot:
        offset = f" - {layout.start}" if layout.start else ""
        return f"def encode(obs):\n    return torch.eye({layout.size})[[int(obs){offset}]]\n"
    if not layout.flatten:
        return (
            f"def encode(obs):\n    return torch.from_numpy(np.asarray(obs, dtype=np.{layout.dtype}).reshape(1, -1))\n"
        )
    space = "space = env.observation_space\n"
    if layout.has_mask:
        space = f"space = gym.spaces.Dict({{k: s for k, s in env.observation_space.items() if k != {MASK_KEY!r}}})\n"
    given = f"{{k: x for k, x in obs.items() if k != {MASK_KEY!r}}}" if layout.has_mask else "obs"
    return (
        f"{space}\n\ndef encode(obs):\n"
        f"    flat = gym.spaces.flatten(space, {given})\n"
        f"    return torch.from_numpy(np.asarray(flat, dtype=np.{layout.dtype}).reshape(1, -1))\n"
    )


def _encode_images_lines(layout: ObservationLayout) -> str:
    lines = ["space = env.observation_space", "", "", "def encode(obs):"]
    numbers = [part for part in layout.parts if not part.is_image]
    if numbers:
        lines += [
            "    numbers = [",
            *(f"        spaces.flatten(space{x.place}, obs{x.place})," for x in numbers),
            "    ]",
        ]
    lines += ["    return {"]
    if numbers:
        dtype = f"np.{layout.numbers_dtype}"
        lines += [f'        "obs": torch.from_numpy(np.hstack([np.ravel(x) for x in numbers]).astype({dtype})[None]),']
    lines += [
        f"        {part.entry!r}: torch.from_numpy(np.asarray(obs{part.place}, np.uint8)[None]),"
        for part in layout.images
    ]
    return "\n".join(lines).replace("spaces.flatten", "gym.spaces.flatten") + "\n    }\n"


def _mask_lines(observations: ObservationLayout, actions: ActionLayout) -> str:
    everything = f"np.ones({sum(actions.sizes)}, dtype=bool)"
    lines = f"    mask = obs.get({MASK_KEY!r}, {everything})\n"
    if not observations.has_mask:
        lines = (
            f"    mask = info.get({MASK_KEY!r}, {everything})\n"
            f"    if {MASK_KEY!r} not in info and env.has_wrapper_attr({MASK_METHOD!r}):\n"
            f"        mask = env.get_wrapper_attr({MASK_METHOD!r})()\n"
        )
    return (
        f"\n\ndef allowed(obs, info):\n{lines}"
        "    return torch.from_numpy(np.hstack(mask).astype(bool).reshape(1, -1))\n"
    )


USAGE = "policy = torch.export.load('policy.pt2').module(); {results} = policy({arguments})"
STATE_INPUT = ", `state` float32 [batch, {}]"
STATE_OUTPUT = """
The second result is the `state` for the next step. In the first step of an episode, the `state` is zero."""

LOAD_FILE = '''

def load_file(path, name):
    """Execute a Python file as the module `name`, unless it has been executed."""
    if name not in sys.modules:
        sys.path.insert(0, str(Path(path).parent))
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


'''

SCRIPT = """\
import importlib.util
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

sys.path.append("")  # also import environments from the current folder
{load_file}policy = torch.export.load(Path(__file__).with_name("policy.pt2")).module()
{environment}


{encode}

# Without a time limit, an episode might never end.
max_steps = getattr(env.spec, "max_episode_steps", None) or {max_steps}
returns = []
for episode in range(10):
    obs, info = env.reset(seed=episode)
    {start}total = 0.0
    for _ in range(max_steps):
        {act}
        obs, reward, terminated, truncated, info = env.step({action})
        total += float(reward)
        if terminated or truncated:
            break
    returns.append(total)
print(f"mean return {{np.mean(returns):.6g}} over {{len(returns)}} episodes")
"""

PAGE = """\
# A policy for {env_id}

Trained with PPO in the run `{run}`; checkpoint of step {step}; greedy score {score}.

`policy.pt2` is the greedy policy, exported with `torch.export`. Its input is `obs`{obs}{state}{mask}.
It returns actions {dtype} [batch{shape}] in the environment's units.{next_state} The exported policy
itself normalizes observations, and rescales and clips actions. `policy.json` contains this information for other
programs. Loading the policy requires only torch. Loading uses pickle, which can execute code, so load only files from
people you trust:

```python
import torch

policy = torch.export.load("policy.pt2").module()
```

`play.py` contains an example: it converts the environment's observations to `obs` and runs the policy for 10 episodes.
If the environment or a wrapper is defined in your own module or Python file, start the example from the folder in which
you started the training, for example with `python policy/play.py`.
"""
