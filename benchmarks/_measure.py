"""Interleaved timing on one thread: every candidate runs once per round, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One line of the report: what was measured, the numbers in words, what the target asks for and whether it is met."""

    name: str
    numbers: str
    target: str
    met: bool

    def __str__(self) -> str:
        return f"| {self.name} | {self.numbers} | {self.target} | {'met' if self.met else 'MISSED'} |"


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Median CPU seconds of each candidate."""
    for _ in range(warmup):
        for run in candidates.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def saved_bytes(run: Callable[[], object], module: nn.Module) -> int:
    """Bytes that autograd keeps between the forward of `run` and its backward: each storage once, parameters and their casts left out."""
    shapes = {tuple(p.shape) for p in module.parameters()}
    addresses = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in addresses and not _is_weight(tensor, shapes):
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(size for size, _ in kept.values())
    del result
    return total


def _is_weight(tensor: Tensor, shapes: set[tuple[int, ...]]) -> bool:
    """A copy of a parameter in another precision, perhaps transposed or repeated without a copy over the batch."""
    shape = tuple(tensor.shape)
    return shape in shapes or shape[::-1] in shapes or (tensor.ndim == 3 and tensor.stride(0) == 0 and shape[1:] in shapes)
