"""Which tensors are alive at every moment of a computation that need not really happen."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class Event(NamedTuple):
    """A storage `key` of `size` bytes is born (positive) or dies (negative)."""

    key: int
    size: int


class Ledger(TorchDispatchMode):
    """Counts the bytes of every storage from its first operation to its last reference.

    Under a `FakeTensorMode` nothing is computed and nothing is allocated; a value that Python asks for (`float(loss)`, `bool(finite)`)
    is then answered with 1. What a kernel takes for itself is added for convolutions on processors: the columns of PyTorch's own
    kernel, and oneDNN's copies of contiguous tensors in its layout.

    Attributes:
        live: bytes that are alive now.
        events: births and deaths in order.
        born: key -> the `stage` in which the storage appeared.
        stage: a word for what is happening now, set by the caller.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.stage = 0, "building"
        self.events: list[Event] = []
        self.born: dict[int, str] = {}
        self._keys: dict[int, int] = {}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), keywords: dict | None = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return True if arguments[0].dtype == torch.bool else 1.0
        self._see(arguments)
        result = function(*arguments, **(keywords or {}))
        scratch = [self._enter(size) for size in kernel_scratch(function, arguments, result)]
        self._see(result)
        for key in scratch:
            self._leave(key)
        return result

    def keys(self, tensors: Iterable[Tensor]) -> set[int]:
        """The storages of tensors."""
        return {self._track(tensor) for tensor in tensors}

    def bytes_of(self, keys: set[int]) -> int:
        return sum(event.size for event in self.events if event.size > 0 and event.key in keys)

    def _see(self, values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                self._track(value)

    def _track(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if id(storage) not in self._keys:
            self._keys[id(storage)] = self._enter(storage.nbytes())
            weakref.finalize(storage, self._forget, id(storage)).atexit = False
        return self._keys[id(storage)]

    def _forget(self, identity: int) -> None:
        self._leave(self._keys.pop(identity))

    def _enter(self, size: int) -> int:
        key = len(self.born)
        self.born[key] = self.stage
        self.events.append(Event(key, size))
        self._sizes[key] = size
        self.live += size
        return key

    def _leave(self, key: int) -> None:
        size = self._sizes.pop(key)
        self.events.append(Event(key, -size))
        self.live -= size


def kernel_scratch(function: Any, arguments: tuple, result: Any) -> list[int]:
    """Bytes that a convolution on a processor takes beside its inputs and results while it runs."""
    if function not in CONVOLUTIONS:
        return []
    forward = function is CONVOLUTIONS[0]
    image, weight = arguments[:2] if forward else arguments[1:3]
    outcome = result if forward else arguments[0]
    if image.device.type != "cpu":
        return []
    settings = arguments[3:9] if forward else arguments[4:10]
    transposed, groups = settings[3], settings[5]
    bias = [weight.shape[1] * groups if transposed else weight.shape[0]]
    backend = torch._C._select_conv_backend(_hollow(image), _hollow(weight), None, *settings, bias).name
    if backend.startswith("Slow"):
        wide, grid = (outcome, image) if transposed else (image, outcome)
        return [math.prod((*wide.shape[:2], *weight.shape[2:], *grid.shape[2:])) * image.element_size()]
    if backend.startswith("Mkldnn") and image.is_contiguous():
        return [t.numel() * t.element_size() for t in (image, weight, outcome)]
    return []


def _hollow(tensor: Tensor) -> Tensor:
    """A real tensor of that shape and type that holds one number."""
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.empty((), dtype=tensor.dtype).expand(tensor.shape)


def running(events: Iterable[Event], large: int) -> Iterator[tuple[int, int]]:
    """After each event: bytes alive in storages below `large` bytes, and in the others."""
    small = big = 0
    for _, size in events:
        if abs(size) >= large:
            big += size
        else:
            small += size
        yield small, big
