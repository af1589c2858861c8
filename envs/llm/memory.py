"""Measures the memory that tensors need, and returns freed memory to the operating system."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class TensorTracker(TorchDispatchMode):
    """Counts the bytes of all tensors that are created while this mode is active and that still exist.

    Memory that an operation allocates and frees internally is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch
        self.current, self.peak = 0, 0  # bytes
        self._storages: dict[int, weakref.ref[Any]] = {}  # by address

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise, the first call would import the compiler (about 1 s)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_address(x) for x in _tensors((*args, *(kwargs or {}).values()))}
        output = function(*args, **(kwargs or {}))
        for x in _tensors([output]):
            if _address(x) not in inputs:  # not a view, and not changed in place
                self._add(x.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._storages:
            return

        def remove(_: Any) -> None:
            del self._storages[address]
            self.current -= size

        self._storages[address] = weakref.ref(storage, remove)
        self.current += size
        self.peak = max(self.peak, self.current)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors in the arguments or results of an operation. Lists of tensors are not nested."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (x for x in value if isinstance(x, Tensor))


def _address(x: Tensor) -> int:
    address: int = x.untyped_storage()._cdata
    return address


class Usage(NamedTuple):
    """The bytes of the tensors that a function creates."""

    peak: int
    kept: int  # of those that still exist when the function has returned its result


def measure_memory(run: Callable[[], object], device: torch.device) -> Usage:
    """Call `run` and return the memory of the tensors that it creates on `device`."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = run()
        kept, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        del result
        return Usage(peak - before, kept - before)
    with TensorTracker() as tracker:
        result = run()
        usage = Usage(tracker.peak, tracker.current)
        del result
    return usage


def release_freed_memory() -> None:
    """Return freed memory to the operating system, if the C library is glibc. Other libraries do this themselves.

    glibc keeps the gaps between blocks, and tensors of other sizes often do not fit into them. The gaps that an update
    leaves would add to the memory of the next rollout.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def measure_growth(run: Callable[[], object], device: torch.device) -> int:
    """Call `run` and return the bytes by which this process has grown, including freed memory that glibc has kept.

    Return 0 for a GPU, whose allocator keeps little.
    """
    if device.type == "cuda":
        return 0
    release_freed_memory()
    before = _heap_bytes()
    run()
    return max(0, _heap_bytes() - before)


def _heap_bytes() -> int:
    """Return the resident memory of this process without the pages of files, such as program code."""
    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))
