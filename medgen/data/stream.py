"""The training stream: sample number n of a run is the same case with the same random choices for any number of workers,
ranks and interruptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Dataset

from medgen.core.random import generator
from medgen.core.task import MOMENTS
from medgen.data.latents import Latents
from medgen.data.order import ORDER, Order
from medgen.data.source import Case, Cases

Augmentation = Callable[[Case, np.random.Generator], Case]

# keep these streams apart from a model's, which are keyed by (seed, step, sample)
_CHOICE, _VERSION = 0x63686F69, 0x76657273


class StepBatches:
    """A batch sampler that counts in training steps. Step s takes samples s * batch_size * world and following.

    Each iteration goes on from where the last one ended up to the next multiple of `interval` (or `stop`), so that an epoch of
    the trainer is a validation interval and worker processes live through them. It has no length on purpose: a permutation of the
    cases ends in mid-batch and the next one follows.

    Args:
        order: which cases a step takes.
        batch_size: per rank.
        start, stop: the first step, and the one that is no longer taken (None: never stop).
        rank, world: rank r takes samples r, r + world, ... of each step.
    """

    def __init__(
        self, order: Order, batch_size: int, interval: int, start: int = 0, stop: int | None = None, rank: int = 0, world: int = 1
    ):
        self.order, self.batch_size, self.interval = order, batch_size, interval
        self.position, self.stop, self.rank, self.world = start, stop, rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        end = (self.position // self.interval + 1) * self.interval
        end = end if self.stop is None else min(end, self.stop)
        for step in range(self.position, end):
            self.position = end if step == end - 1 else self.position
            yield self.batch(step)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """(sample number, case index) of the samples of a step."""
        total = self.batch_size * self.world
        return list(enumerate(self.order.cases(step, total), step * total))[self.rank :: self.world]


class TrainingSamples(Dataset):
    """(n, case index) -> the case, changed by `augment(case, rng)` if there is one, with "index": n.

    With `latents` it is the version of the case that the epoch takes, together with that version's moments.
    """

    def __init__(self, cases: Cases, seed: int, augment: Augmentation | None = None, latents: Latents | None = None):
        self.cases, self.seed, self.augment, self.latents = cases, seed, augment, latents

    def __getitem__(self, key: tuple[int, int]) -> Case:
        n, index = key
        if self.latents is not None:
            version = n // len(self.cases) % self.latents.versions
            case = Versions(self.cases, self.seed, self.augment)[index, version]
            return {**case, MOMENTS: self.latents.row(index, version), "index": n}
        rng = generator(self.seed, n, _CHOICE) if self.augment or self.cases.varies else None
        case = self.cases.case(index, rng)
        return {**(self.augment(writable(case), rng) if self.augment else case), "index": n}


def writable(case: Case) -> Case:
    """With arrays of its own where they are views of a store."""
    return {name: np.array(v) if isinstance(v, np.ndarray) and not v.flags.writeable else v for name, v in case.items()}


class Versions(Dataset):
    """(case index, version) -> that version of the case, the same in every epoch and every run of this seed, with "index": the case's."""

    def __init__(self, cases: Cases, seed: int, augment: Augmentation | None = None):
        self.cases, self.seed, self.augment = cases, seed, augment

    def __getitem__(self, key: tuple[int, int]) -> Case:
        index, version = key
        rng = generator(self.seed, index, version, _VERSION)
        case = self.cases.case(index, rng)
        return {**(self.augment(writable(case), rng) if self.augment else case), "index": index}


class InOrder(Dataset):
    """Case after case with "index": its own index; rank r takes cases r, r + world, ...

    `mixed` keeps one fixed order in which the first few cases already come from all subjects and heights: what a short validation sees.
    """

    def __init__(self, cases: Cases, seed: int, rank: int = 0, world: int = 1, mixed: bool = False):
        order = generator(seed, len(cases), ORDER).permutation(len(cases)).tolist() if mixed else range(len(cases))
        self.cases, self.seed, self.indices = cases, seed, order[rank::world]
        self.first, self.most = order[0] if len(cases) else None, len(order[::world])  # rank 0 has the most

    def filled(self, batch_size: int) -> InOrder:
        """The same with as many batches on every rank, because ranks wait for each other: one that runs out repeats a case."""
        if self.most > -(-len(self.indices) // batch_size) * batch_size:
            self.indices = [*self.indices, self.indices[-1] if self.indices else self.first]
        return self

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Case:
        index = self.indices[place]
        return {**self.cases.case(index, generator(self.seed, index, _CHOICE)), "index": index}
