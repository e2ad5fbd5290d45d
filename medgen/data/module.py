"""Batches for the trainer."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from medgen.core.errors import MedgenError, MedgenWarning
from medgen.data.latents import Latents
from medgen.data.manifest import EmptySplit
from medgen.data.order import Balanced, Bucketed, Order, Shuffled
from medgen.data.source import Case, Cases, Source
from medgen.data.stream import InOrder, StepBatches, TrainingSamples, Versions


@dataclass
class Clock:
    """How training spends its time: seconds that it waited for a batch, and seconds between batches. The first batch of a process,
    which pays for the start of its workers, does not count; nor does validation."""

    waited: float = 0.0
    used: float = 0.0
    batches: int = 0

    @property
    def share(self) -> float:
        """Of the time that was spent waiting."""
        return self.waited / max(self.waited + self.used, 1e-9)


class TimedLoader(DataLoader):
    """A loader that notes how long its reader waits."""

    def __init__(self, clock: Clock, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.clock = clock

    def __iter__(self) -> Iterator[Any]:
        batches, clock = super().__iter__(), self.clock
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            given = time.perf_counter()
            clock.waited += given - asked if clock.batches else 0.0
            clock.batches += 1
            yield batch
            clock.used += time.perf_counter() - given


class DataModule(lightning.LightningDataModule):
    """A source's splits as loaders of dictionaries of tensors.

    Training batches are a function of (seed, step) alone. The trainer must not put its own sampler in
    (`use_distributed_sampler=False`): ranks are sharded here.

    Args:
        source: where cases come from.
        batch_size: per rank.
        workers: loader processes; 0 loads in the trainer's own.
        seed: of the order of cases and of the choices inside them.
        augment: random changes of training cases, such as `medgen.data.augment.Augment`.
        balance: attribute whose classes training sees equally often.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
        augment: Callable[[Case, np.random.Generator], Case] | None = None,
        balance: str | None = None,
    ):
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise MedgenError(f"expected batch_size >= 1 and workers >= 0, found batch_size={batch_size}, workers={workers}")
        self.source, self.batch_size, self.workers, self.seed = source, int(batch_size), int(workers), int(seed)
        self.augment, self.balance = augment, balance
        self.latents: Latents | None = None  # set: training batches carry these moments of their cases
        self.clock = Clock()
        self._span: dict[str, Any] = {}

    def resume(self, step: int, stop: int | None, interval: int) -> None:
        """Let the next training stream begin at `step`, end before `stop`, and pause at multiples of `interval` steps."""
        self._span = {"start": step, "stop": stop, "interval": interval}

    def facts(self) -> dict[str, Any]:
        """What the data decide of a contract; see `Source.facts`."""
        return self.source.facts()

    def ready(self) -> None:
        """Prepare what validation will read: a file that is missing or damaged is to be refused before the first step."""
        with suppress(EmptySplit):
            self.source.split("validation")

    def said(self) -> str:
        """How many cases training and validation will see."""
        counts = {}
        for split in ("train", "validation"):
            with suppress(EmptySplit):
                counts[split] = len(self.source.split(split))
        return "cases: " + ", ".join(f"{count} {split}" for split, count in counts.items())

    def train_dataloader(self) -> DataLoader:
        cases = self.source.split("train")
        rank, world = self._place()
        once = -(-len(cases) // (self.batch_size * world))
        batches = StepBatches(self._order(cases), self.batch_size, **{"interval": once, **self._span}, rank=rank, world=world)
        samples = TrainingSamples(cases, self.seed, self.augment, self.latents)
        return TimedLoader(self.clock, samples, batch_sampler=batches, **self._loading())

    def val_dataloader(self) -> DataLoader | list:
        """In order; an empty list, and a warning, when the data have no validation split."""
        try:
            return self.in_order("validation")
        except EmptySplit as error:
            # not in the name of the caller: it is lightning, whose warnings a run silences
            warnings.warn(f"training goes on without validation: {error}", MedgenWarning, stacklevel=1)
            return []

    def test_dataloader(self) -> DataLoader:
        return self.in_order("test")

    def in_order(self, split: str) -> DataLoader:
        """Every case of a split once, without augmentation; ranks share them, each with as many batches."""
        cases = InOrder(self.source.split(split), self.seed, *self._place(), mixed=split == "validation")
        return DataLoader(cases.filled(self.batch_size), batch_size=self.batch_size, **self._loading())

    @property
    def varies(self) -> bool:
        """Whether a training case looks different in every epoch."""
        return self.augment is not None or getattr(self.source.split("train"), "varies", True)

    def versions(self, keys: Sequence[tuple[int, int]], augmented: bool = True) -> DataLoader:
        """The training cases of (case index, version) in this order; see `medgen.data.stream.Versions`."""
        cases = Versions(self.source.split("train"), self.seed, self.augment if augmented else None)
        batches = [list(keys[i : i + self.batch_size]) for i in range(0, len(keys), self.batch_size)]
        return DataLoader(cases, batch_sampler=batches, **self._loading())

    def _order(self, cases: Cases) -> Order:
        buckets = getattr(cases, "buckets", None)
        if self.balance is None:
            return Shuffled(len(cases), self.seed) if buckets is None else Bucketed(buckets, self.seed)
        if buckets is not None:
            raise MedgenError(f"balance={self.balance} cannot be had together with data.source.options.cut.buckets; choose one")
        if not hasattr(cases, "classes"):
            raise MedgenError(f"balance={self.balance}: {type(self.source).__name__} does not know its classes beforehand; leave it out")
        return Balanced(cases.classes(self.balance), self.seed)

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loading(self) -> dict[str, Any]:
        return {
            "collate_fn": collate,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "worker_init_fn": leave_signals_to_the_trainer,
            "pin_memory": torch.cuda.is_available(),
        }


def leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and `kill` often reach a whole process group; the trainer still needs its loaders for the step that it finishes.

    SIGTERM ends a loader where it is the trainer's own: that is how Python ends its children when it leaves, and it waits for them.
    Where the system does not tell who sent a signal (macOS), SIGTERM keeps the meaning that PyTorch gave it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before the thread starts, which inherits it
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(trainer: int) -> None:
    """End this process at the trainer's SIGTERM, whatever its main thread is doing; take no notice of others'."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


def collate(cases: list[Case]) -> dict[str, Any]:
    """Cases to a batch: arrays stacked, numbers as (B,) tensors (int64 or float32), text as a list."""
    names = cases[0].keys()
    for case in cases:
        if case.keys() != names:
            different = sorted(names ^ case.keys())
            raise MedgenError(f"subject {case['subject']}: has other entries than subject {cases[0]['subject']} ({', '.join(different)})")
    return {name: _joined([case[name] for case in cases]) for name in names}


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, str):
        return values
    if isinstance(first, np.ndarray):
        return torch.from_numpy(np.stack(values))
    if isinstance(first, torch.Tensor):
        return torch.stack(values)
    return torch.tensor(values, dtype=torch.float32 if isinstance(first, (float, np.floating)) else torch.int64)
