"""What an answer costs: calls of the network, time and memory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Of one answer.

    Attributes:
        seconds: wall time.
        evaluations: calls of the network, a batch of one or of many alike.
        memory: the most bytes in use meanwhile: of the device's tensors on CUDA, of the process on a processor; 0 where that is not known.
    """

    seconds: float = 0.0
    evaluations: int = 0
    memory: int = 0


class Measured:
    """Measures what happens within the context; `cost` has it afterwards."""

    cost: Cost

    def __init__(self, model: nn.Module, device: torch.device):
        self._calls, self._device = Calls(model), device

    def __enter__(self) -> Measured:
        self._calls.__enter__()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _forget_peak()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        seconds = time.perf_counter() - self._began
        memory = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else peak()
        self._calls.__exit__(*error)
        self.cost = Cost(seconds, self._calls.count, memory)


class Calls:
    """Counts how often a model's network is evaluated, a batch of one or of many alike, within the context."""

    def __init__(self, model: nn.Module):
        self.network = getattr(model, "network", None) or getattr(getattr(model, "inner", None), "network", None) or model
        self.count = 0

    def __enter__(self) -> Calls:
        self._hook = self.network.register_forward_pre_hook(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _called(self, module: nn.Module, inputs: Any) -> None:
        self.count += 1


def peak() -> int:
    """The most bytes that this process has held since its peak was last forgotten; 0 where the system does not tell."""
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    """Linux keeps a process's peak; writing 5 to this file makes it start again. Without it the peak is that of the whole evaluation."""
    try:
        descriptor = os.open(_RESET, os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(descriptor, b"5")
    except OSError:
        pass
    finally:
        os.close(descriptor)
