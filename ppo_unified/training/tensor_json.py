"""Convert a trainer's nested state to safetensors and JSON, two formats that execute no code when loaded.

Tensors are stored in the safetensors format. The JSON document contains everything else, with each tensor replaced by
its name. A value whose type JSON lacks is encoded as an object with a single key that begins with '$'.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

_TENSOR, _TUPLE, _FLOAT, _ITEMS = "$tensor", "$tuple", "$float", "$items"
_METADATA = "__metadata__"  # reserved by safetensors
_NAMES = {  # type names in a safetensors header
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def split(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split `state` into a JSON document and a dict of its tensors by name.

    Raises TypeError with the location of a value that is not a tensor, number, string, boolean, None, list, tuple or
    dict.
    """
    tensors: dict[str, Tensor] = {}
    return _split(state, "", tensors), tensors


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path
        while name in tensors or name in ("", _METADATA):
            name += "_"
        tensors[name] = value
        return {_TENSOR: name}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    if isinstance(value, list | tuple):
        items = [_split(x, f"{path}/{number}", tensors) for number, x in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if isinstance(value, Mapping):
        pairs = [(_split(key, "", {}), _split(x, f"{path}/{key}", tensors)) for key, x in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(pairs)
        return {_ITEMS: [list(pair) for pair in pairs]}
    raise TypeError(
        f"state{path}: expected a tensor, number, string, list or dict, got a {type(value).__name__}; convert it "
        "in state_dict()"
    )


def join(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Restore the state that `split` received. Raises ValueError for a document that `split` cannot have returned."""
    if isinstance(document, list):
        return [join(x, tensors) for x in document]
    if not isinstance(document, dict):
        return document
    marks = [key for key in document if key.startswith("$")]
    if not marks:
        return {key: join(x, tensors) for key, x in document.items()}
    mark, content = marks[0], document[marks[0]]
    if mark == _TENSOR and isinstance(content, str) and content in tensors:
        return tensors[content]
    if mark == _TUPLE and isinstance(content, list):
        return tuple(join(x, tensors) for x in content)
    if mark == _FLOAT and content in ("nan", "inf", "-inf"):
        return float(content)
    if mark == _ITEMS and isinstance(content, list):
        return dict(_join_item(item, tensors) for item in content)
    raise ValueError(f"invalid value {mark} = {str(content)[:100]!r}")


def _join_item(item: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, Any]:
    if not isinstance(item, list) or len(item) != 2:
        raise ValueError(f"expected a pair of key and value, got {str(item)[:100]}")
    key, value = (join(x, tensors) for x in item)
    if not _is_key(key):
        raise ValueError(f"expected a hashable key, got {str(key)[:100]}")
    return key, value


def _is_key(value: Any) -> bool:
    return all(map(_is_key, value)) if isinstance(value, tuple) else not isinstance(value, list | dict | Tensor)


def encode_tensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file in chunks. At any time, at most one tensor is copied in memory.

    The safetensors library is not used here, because it either builds the complete file in memory or does not report
    incomplete writes. A tensor with several names (tied weights) is stored once, and the header's metadata lists the
    other names, as in `safetensors.torch.save_model`. Overlapping tensors of different shapes are stored separately.
    """
    kept, aliases = _find_aliases(tensors)
    order = sorted(kept, key=lambda name: (-kept[name].element_size(), name))  # aligns tensors to their element size
    header: dict[str, Any] = {_METADATA: aliases}
    end = 0
    for name in order:
        x = kept[name]
        if x.dtype not in _NAMES or x.layout is not torch.strided:
            raise TypeError(f"{name}: cannot save a tensor of type {x.dtype} and layout {x.layout}")
        start, end = end, end + x.numel() * x.element_size()
        header[name] = {"dtype": _NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode("ascii")
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        flat = kept[name].detach().cpu().contiguous().reshape(-1)
        yield _view_bytes(flat.as_strided(flat.shape, (1,)))  # a tensor with one element may have any stride


def _view_bytes(numbers: Tensor) -> memoryview:
    """Return a view of the memory of a contiguous tensor [n]."""
    array: Any = numbers.view(torch.uint8).numpy()
    return memoryview(array)


def _find_aliases(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the distinct tensors, and a dict that maps each additional name of a tensor to its stored name."""
    seen: dict[Any, str] = {}
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, x in tensors.items():
        place = (x.device, x.data_ptr(), x.dtype, x.shape, x.stride()) if x.numel() else name
        first = seen.setdefault(place, name)
        if first == name:
            kept[name] = x
        else:
            aliases[name] = first
    return kept, aliases


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a safetensors file. Raises OSError, ValueError or SafetensorError."""
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping
        aliases = file.metadata() or {}
    return shapes | {name: shapes[first] for name, first in aliases.items() if first in shapes}


def read_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file. Raises OSError, ValueError or SafetensorError."""
    with safe_open(path, framework="pt", device=str(device)) as file:  # clone: the file may be removed later
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        aliases = file.metadata() or {}
    if any(first not in tensors for first in aliases.values()):
        raise ValueError("the header lists a tensor that is not in the file")
    return tensors | {name: tensors[first] for name, first in aliases.items()}
