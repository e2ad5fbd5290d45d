"""Random numbers keyed by (seed, step, sample), so that sample i is the same whatever the batch, worker or device count."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor


def generator(*key: int) -> np.random.Generator:
    """A counter-based generator (Philox 4x64, Salmon et al. 2011) for a key of non-negative integers.

    The key's length enters too: numpy pads short keys with zeros, so that (1, 2) and (1, 2, 0) would be one stream.
    """
    state = np.random.SeedSequence((len(key), *key)).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=state))


class Rng:
    """One stream per sample of a batch. Draws are made on the CPU and moved, so every device sees the same numbers.

    Args:
        seed: the run's seed.
        step: the training step, or 0 in inference.
        samples: one identity per sample of the batch (its index in the data or in the request); (B,).
    """

    def __init__(self, seed: int, step: int = 0, samples: Sequence[int] = (0,), device: torch.device | str = "cpu"):
        self.seed, self.step, self.device = int(seed), int(step), torch.device(device)
        self.samples = tuple(int(s) for s in samples)
        self._draws, self._path = 0, ()

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device | str) -> Rng:
        """The same streams from their start, delivering on `device`."""
        same = copy(self)
        same.device, same._draws = torch.device(device), 0
        return same

    def fork(self) -> Rng:
        """Streams of their own: how much is drawn from them changes nothing that is drawn here."""
        child = copy(self)
        child._path, child._draws = (*self._path, self._draws), 0
        self._draws += 1
        return child

    def of(self, rows: Sequence[int]) -> Rng:
        """The streams of these rows of the batch, from where they are now."""
        some = copy(self)
        some.samples = tuple(self.samples[row] for row in rows)
        return some

    def within(self, grid: Sequence[int], window: Sequence[slice]) -> Rng:
        """The same streams from their start for a window of a grid: fields of its size are cut out of the grid's fields."""
        return _Windowed(self, tuple(grid), tuple(window))

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 values of `shape` (B, ...)."""
        return self._draw(shape, lambda g, size: g.standard_normal(size, dtype=np.float32))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform float32 values in [0, 1) of `shape` (B, ...)."""
        return self._draw(shape, lambda g, size: g.random(size, dtype=np.float32))

    def categorical(self, probabilities: Tensor) -> Tensor:
        """One class index per row of `probabilities` (B, ..., classes); shape (B, ...), int64."""
        u = self.uniform(probabilities.shape[:-1]).to(probabilities.device)
        cumulative = probabilities.double().cumsum(-1)
        return (u[..., None].double() * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1)

    def _draw(self, shape: Sequence[int], draw) -> Tensor:
        if shape[0] != len(self.samples):
            raise ValueError(f"asked for {shape[0]} samples of a generator that is keyed for {len(self.samples)}")
        keys = ((self.seed, self.step, sample, *self._path, self._draws) for sample in self.samples)
        self._draws += 1
        rows = [draw(generator(*key), tuple(shape[1:])) for key in keys]
        return torch.from_numpy(np.stack([np.asarray(row) for row in rows])).to(self.device)


class _Windowed(Rng):
    def __init__(self, whole: Rng, grid: tuple[int, ...], window: tuple[slice, ...]):
        super().__init__(whole.seed, whole.step, whole.samples, whole.device)
        self.grid, self.window = grid, window
        self.size = tuple(part.stop - part.start for part in window)
        self._path = whole._path

    def _draw(self, shape: Sequence[int], draw) -> Tensor:
        if tuple(shape[2:]) != self.size:
            return super()._draw(shape, draw)
        return super()._draw((*shape[:2], *self.grid), draw)[(..., *self.window)].contiguous()
