"""Interleaved timing on one thread: every candidate runs once per round, so that a busy machine slows all of them alike. Peak memory of a
process of its own, and the command line of a script that writes a page of what it measured."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

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


def peak() -> float:
    """Mebibytes that this process has held at most. (`getrusage` would begin with what the parent held.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def alone(script: str, name: str) -> float:
    """What a script's own measure says of `name`, in a fresh process."""
    command = [sys.executable, script, "--only", name]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def run(about: str, output: str, trials: int, measure: Callable[[str], float], page: Callable[[int, int], str]) -> None:
    """The command line of a script: `page(rounds, trials)` is written to a file, or with --only NAME `measure(NAME)` is printed."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=trials)
    parser.add_argument("-o", "--output", type=Path, default=Path(output))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if given.only:
        print(json.dumps(measure(given.only)))
        return
    text = page(given.rounds, given.trials)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(text)
    print(text)


def machine() -> str:
    """Versions and processor, in a sentence."""
    return f"Here: torch {version('torch')}, monai {version('monai')}; Python {platform.python_version()}; {platform.machine()}."


def standard_error(trials: int) -> float:
    """Of a coverage of 95 %, in per cent."""
    return 100 * (0.95 * 0.05 / trials) ** 0.5


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
