"""Nested state is unchanged after a round trip through safetensors and JSON."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ppo_unified.runs import durable
from ppo_unified.training.tensor_json import encode_tensors, join, read_tensors, split

CPU = torch.device("cpu")
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
TYPES += [torch.int8, torch.uint8, torch.bool, torch.uint64]
KEYS: list[Any] = ["a", "b/c", "", "$tensor", "__metadata__", "1", 1, 2, True, None, 0.5, ("x", 1), "é\n\u2028"]
LEAVES: list[Any] = [None, True, False, 0, -1, 2**63, -(2**128) + 1, 0.1, -0.0, 5e-324, 1.7976931348623157e308]
LEAVES += [math.nan, math.inf, -math.inf, "", "$float", 'quote " \\ \x00', [], {}, ()]


def tensor(rng: random.Random) -> Tensor:
    """Return a random tensor of any type, which may be 0-d, empty or not contiguous."""
    shape = rng.choice([(), (0,), (3,), (2, 0, 3), (2, 3), (1, 2, 2)])
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    x = torch.randint(0, 2, (*shape, 2), generator=generator).to(rng.choice(TYPES))[..., 0]
    return x.t() if x.ndim == 2 and rng.random() < 0.5 else x


def random_tree(rng: random.Random, depth: int) -> Any:
    kind = rng.choice(["leaf", "tensor", "list", "tuple", "dict"]) if depth else rng.choice(["leaf", "tensor"])
    if kind == "leaf":
        return rng.choice(LEAVES)
    if kind == "tensor":
        return tensor(rng)
    if kind == "dict":
        return {key: random_tree(rng, depth - 1) for key in rng.sample(KEYS, rng.randrange(5))}
    items = [random_tree(rng, depth - 1) for _ in range(rng.randrange(4))]
    return items if kind == "list" else tuple(items)


def are_equal(a: Any, b: Any) -> bool:
    """Return True if both values have the same types and are bit-for-bit equal."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=True) if len(a) == len(b) else ()
        return len(a) == len(b) and all(are_equal(x, y) for pair in pairs for x, y in zip(*pair, strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(are_equal, a, b))
    if isinstance(a, float):
        return math.isnan(a) if math.isnan(b) else (a, math.copysign(1, a)) == (b, math.copysign(1, b))
    return bool(a == b)


def through_files(state: Any, folder: Path) -> Any:
    document, tensors = split(state)
    path = folder / "x.safetensors"
    path.unlink(missing_ok=True)
    durable.write_file(path, encode_tensors(tensors))
    return join(json.loads(json.dumps(document, allow_nan=False)), read_tensors(path, CPU))


@pytest.mark.parametrize("seed", range(5))
def test_state_round_trips(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    for _ in range(40):
        state = random_tree(rng, 4)
        assert are_equal(through_files(state, tmp_path), state), state


def test_optimizer_and_numpy_generator_round_trip(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    state = {"adam": optimizer.state_dict(), "numpy": np.random.default_rng(3).bit_generator.state}
    assert are_equal(through_files(state, tmp_path), state)


def test_tied_tensors_round_trip_and_are_stored_once(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    path = tmp_path / "x.safetensors"
    durable.write_file(path, encode_tensors({"head": x, "embedding": x, "transposed": x.t(), "part": x[1:]}))
    found = read_tensors(path, CPU)
    assert are_equal(dict(sorted(found.items())), {"embedding": x, "head": x, "part": x[1:], "transposed": x.t()})
    assert found["head"] is found["embedding"]
    assert set(load_file(path)) == {"head", "transposed", "part"}  # as read by the safetensors library


def test_unsupported_value_is_rejected_with_its_path() -> None:
    for value in (np.int64(1), np.zeros(2), object(), {1, 2}, b""):
        with pytest.raises(TypeError, match=rf"state/a/1: expected a tensor, .*, got a {type(value).__name__}"):
            split({"a": [0, value]})


@pytest.mark.parametrize(
    "document",
    [
        *({"$tensor": "x"}, {"$tensor": 1}, {"$float": "1"}, {"$exec": "1"}, {"$items": 1}, {"$items": [1]}),
        *({"$items": [[[], 1]]}, {"$items": [[{"$tuple": [[]]}, 1]]}, {"$items": [["a", 1, 2]]}),
    ],
)
def test_foreign_document_is_rejected(document: Any) -> None:
    with pytest.raises(ValueError, match=r"invalid value|expected a hashable key|expected a pair"):
        join({"a": [document]}, {})
