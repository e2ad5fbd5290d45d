"""Which cases a training step takes: a function of the step alone, so that workers, ranks and interruptions change nothing."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from medgen.core.random import generator

ORDER = 0x6F726465  # keeps these streams apart from a model's, which are keyed by (seed, step, sample)


class Order(Protocol):
    """The cases of each step."""

    def cases(self, step: int, total: int) -> list[int]:
        """The `total` cases of step `step`, of all ranks together."""
        ...


class Shuffled:
    """Every epoch visits every case once, in an order of its own; epochs follow each other in mid-batch."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def cases(self, step: int, total: int) -> list[int]:
        return [self.case(n) for n in range(step * total, (step + 1) * total)]

    def case(self, n: int) -> int:
        """The case of sample `n`."""
        epoch, place = divmod(n, self.length)
        if self._epoch[0] != epoch:
            self._epoch = epoch, generator(self.seed, epoch, ORDER).permutation(self.length)
        return int(self._epoch[1][place])


class Balanced:
    """Every class equally often: rounds that visit each class once, and of each class its cases in shuffled epochs.

    Args:
        classes: of each case.
    """

    def __init__(self, classes: np.ndarray, seed: int):
        self.seed = seed
        self.members = [np.flatnonzero(classes == value) for value in np.unique(classes)]
        self.orders = [Shuffled(len(members), seed + 1 + number) for number, members in enumerate(self.members)]

    def cases(self, step: int, total: int) -> list[int]:
        return [self._case(n) for n in range(step * total, (step + 1) * total)]

    def _case(self, n: int) -> int:
        turn, place = divmod(n, len(self.members))
        which = int(generator(self.seed, turn, ORDER, 1).permutation(len(self.members))[place])
        return int(self.members[which][self.orders[which].case(turn)])


class Bucketed:
    """Cases of one step share a bucket. An epoch fills whole steps from every bucket, a bucket's last one with some of its cases again.

    Args:
        buckets: of each case.
    """

    def __init__(self, buckets: np.ndarray, seed: int):
        self.seed = seed
        self.members = [np.flatnonzero(buckets == value) for value in np.unique(buckets)]
        self._epoch: tuple[int, int, np.ndarray] = (-1, 0, np.empty(0, int))

    def cases(self, step: int, total: int) -> list[int]:
        steps = sum(-(-len(members) // total) for members in self.members)
        epoch, place = divmod(step, steps)
        if self._epoch[:2] != (epoch, total):
            self._epoch = epoch, total, self._steps(epoch, total)
        return self._epoch[2][place].tolist()

    def _steps(self, epoch: int, total: int) -> np.ndarray:
        """(steps, total) of an epoch."""
        rng = generator(self.seed, epoch, ORDER, 2)
        rows = [np.resize(rng.permutation(members), (-(-len(members) // total), total)) for members in self.members]
        return rng.permutation(np.concatenate(rows))
