"""How much memory a training run will take, found out by going through its steps without computing anything.

The real `Fit` runs two training steps of every kind, a validation and a save on fake tensors, which have shapes and no numbers, while
a `Ledger` counts what is alive. So a new model or sampler is planned without a word about it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from medgen.core.errors import MedgenError
from medgen.core.model import GenerativeModel
from medgen.core.task import Task
from medgen.training.ema import EMA
from medgen.training.fit import Fit, Seen
from medgen.training.ledger import Ledger, running
from medgen.training.optimizers import AdamW

OWN_MAPPING = 32 << 20  # glibc's largest mapping threshold: tensors from here on are given back to the system when they die
FRAGMENTS = 1.4  # heap over its live bytes, chosen on measured runs (docs/results/memory.md); to it comes twice its largest block
STEPS = 2  # of a sampler in the rehearsal: every step needs the same memory
KINDS = {"32": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
NUMBERLESS = (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError)  # at tensors without numbers; others are faults


@dataclass(frozen=True)
class Run:
    """What is to be planned: builders rather than objects, because these must be born on fake tensors.

    Attributes:
        model, task, optimizer, ema: called once each; `ema` may return None.
        size: the grid (*S).
        batch: cases in a batch.
        settings: the `training` part of a configuration.
        device: "cpu" or "cuda".
    """

    model: Callable[[], GenerativeModel]
    task: Callable[[], Task]
    optimizer: Callable[[], AdamW]
    ema: Callable[[], EMA | None]
    size: tuple[int, ...]
    batch: int
    settings: Mapping[str, Any]
    device: str = "cpu"


@dataclass
class Footprint:
    """Bytes.

    Attributes:
        weights, optimizer, averages: what stays through the run.
        moments: moment ("training", "validation", "saving") -> largest number of live bytes.
        parts: what is alive at the peak: the three above, "batch", "saved activations", "gradients", "workspace".
        activations: kept for the backward pass when the forward pass of the hungriest phase ends.
        heap: resident bytes of all of it in a process whose small tensors come from the C library's heap.
        notes: what could not be rehearsed, in sentences.
    """

    weights: int = 0
    optimizer: int = 0
    averages: int = 0
    activations: int = 0
    heap: int = 0
    moments: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        return max(self.moments.values())


def plan(run: Run) -> Footprint:
    """The memory of `run`.

    Raises:
        MedgenError: a model whose path depends on values, which fake tensors do not have.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger, torch.device(run.device):
        try:
            return _Rehearsal(run, ledger).footprint()
        except MedgenError:
            raise
        except NUMBERLESS as error:
            reason = (str(error).splitlines() or [""])[0]
            raise MedgenError(
                f"the model cannot be planned ({type(error).__name__}: {reason}); measure a short run instead: training.steps=4"
            ) from error


class _Fit(Fit):
    """The training step as it is, without a trainer around it."""

    ledger: Ledger

    def manual_backward(self, loss: Tensor, *arguments: Any, **keywords: Any) -> None:
        self.kept.append(self.ledger.live)
        self.ledger.stage = "backward"
        loss.backward()
        self.gradients |= self.ledger.keys(p.grad for p in self.model.parameters() if p.grad is not None)
        self.ledger.stage = "forward"

    def optimizers(self, use_pl_optimizer: bool = True) -> list[torch.optim.Optimizer]:
        return self.built

    @property
    def trainer(self) -> Any:
        return SimpleNamespace(precision_plugin=SimpleNamespace(scaler=None), should_stop=False)


class _Rehearsal:
    def __init__(self, run: Run, ledger: Ledger):
        self.run, self.ledger, settings = run, ledger, run.settings
        self.task, model, optimizer, self.ema = run.task(), run.model(), run.optimizer(), run.ema()
        _shorten(model)
        self.fit = _Fit(model, self.task, optimizer, settings["steps"], settings["accumulate"], settings["clip"])
        self.fit._device = torch.device(run.device)
        self.fit.ledger, self.fit.kept, self.fit.gradients = ledger, [], set()
        self.weights = ledger.keys(_tensors(model))
        self.fit.built = self.fit.configure_optimizers()
        if self.ema is not None:
            self.ema.setup(None, self.fit, "fit")
        self.averages = ledger.keys(self.ema.average.shadow.values()) if self.ema else set()
        self.result = Footprint(ledger.bytes_of(self.weights), 0, ledger.bytes_of(self.averages))

    def footprint(self) -> Footprint:
        self._train()
        self.optimizer = self.ledger.keys(t for o in self.fit.built for state in o.state.values() for t in state.values())
        self.result.optimizer = self.ledger.bytes_of(self.optimizer)
        stays = self.result.weights + self.result.optimizer + self.result.averages
        self._validate()
        self.result.moments["saving"] = stays + self.result.weights  # one copy of everything that is exported
        self.result.activations = max(self.fit.kept) - stays - self.given
        self.result.heap = self._heap()
        return self.result

    def _train(self) -> None:
        """Every kind of step twice: optimizers have no state before the first."""
        for last in self._kinds_of_step() * 2:
            start = len(self.ledger.events)
            for step in sorted({last - self.fit.accumulate + 1, last}):  # one that gathers gradients, one that uses them
                self.fit.step = step
                before = self.ledger.live
                batch = self._batch()
                self.given = self.ledger.live - before
                self.ledger.stage = "forward"
                with self._precision():
                    self.fit.training_step(batch, 0)
                del batch
            if self.ema is not None:
                self.ema.average.update()
            self._note("training", start)

    def _kinds_of_step(self) -> list[int]:
        """The last step of a window for every set of phases that can be due together, the run's first window among them."""
        phases, every = self.fit.model.phases, self.fit.accumulate
        marks = {0, 1, *(p.start for p in phases), *(p.start + 1 for p in phases), *(-(-p.start // p.every) * p.every for p in phases)}
        kinds: dict[tuple[bool, ...], int] = {}
        for mark in sorted(marks):
            step = mark * every + every - 1
            if step < self.fit.steps or not mark:
                kinds.setdefault(tuple(p.due(mark) for p in phases), step)
        return list(kinds.values())

    def _validate(self) -> None:
        start = len(self.ledger.events)
        last = self.run.settings["validate_batches"] - 1
        self.ledger.stage = "validation"
        self.fit.eval()
        with self.ema.average.swapped() if self.ema else nullcontext(), torch.no_grad():
            try:
                self.fit.on_validation_epoch_start()
                self._validate_batch(0)
                seen = self.fit.validation.batches
                seen += [self._another(seen[0], number) for number in range(1, last)]
                if last:  # the hungriest one: beside the images of all before it
                    self._validate_batch(last)
                self.fit.on_validation_epoch_end()
            except NUMBERLESS as error:  # a sampler or a metric of another library may need numbers
                self.result.notes.append(f"validation is not part of this plan: it needs numbers ({type(error).__name__})")
        self.fit.train()
        self._note("validation", start)

    def _validate_batch(self, number: int) -> None:
        batch = self._batch(number)
        self.ledger.stage = "validation"
        with self._precision():
            self.fit.validation_step(batch, number)

    def _another(self, seen: Seen, number: int) -> Seen:
        """What the batch `number` leaves behind."""
        given = None if seen.given is None else seen.given.clone()
        return replace(seen, indices=self._indices(number), made=seen.made.clone(), real=seen.real.clone(), given=given)

    def _indices(self, number: int) -> list[int]:
        return list(range(number * self.run.batch, (number + 1) * self.run.batch))

    def _note(self, moment: str, start: int) -> None:
        """The peak since event `start`, and what it is made of if it is the largest so far."""
        events, live, high, place = self.ledger.events, 0, 0, 0
        for index, event in enumerate(events):
            live += event.size
            if index >= start and live > high:
                high, place = live, index
        if high > max(self.result.moments.values(), default=0):
            self.result.parts = self._parts(place)
        self.result.moments[moment] = max(high, self.result.moments.get(moment, 0))

    def _parts(self, place: int) -> dict[str, int]:
        alive: dict[int, int] = {}
        for key, size in self.ledger.events[: place + 1]:
            if size >= 0:
                alive[key] = size
            else:
                del alive[key]
        optimizer = self.ledger.keys(t for o in self.fit.built for state in o.state.values() for t in state.values())
        parts = dict.fromkeys(("weights", "optimizer", "averages", "batch", "saved activations", "gradients", "workspace"), 0)
        for key, size in alive.items():
            parts[self._part(key, optimizer)] += size
        return parts

    def _part(self, key: int, optimizer: set[int]) -> str:
        for name, keys in (
            ("weights", self.weights),
            ("averages", self.averages),
            ("optimizer", optimizer),
            ("gradients", self.fit.gradients),
        ):
            if key in keys:
                return name
        return {"batch": "batch", "forward": "saved activations"}.get(self.ledger.born[key], "workspace")

    def _heap(self) -> int:
        """Resident bytes: the heap's largest extent, which is rarely given back, and the mappings beside it."""
        heap = peak = 0
        for small, big in running(self.ledger.events, OWN_MAPPING):
            heap = max(heap, FRAGMENTS * small)
            peak = max(peak, heap + big)
        largest = max((e.size for e in self.ledger.events if e.size < OWN_MAPPING), default=0)
        return int(max(peak, self.result.moments["saving"])) + 2 * largest

    def _batch(self, number: int = 0) -> dict[str, Any]:
        self.ledger.stage = "batch"
        shape, cases = (self.run.batch, 1, *self.run.size), self.run.batch
        images = {name: torch.zeros(shape) for name in (*self.task.target, *self.task.source)}
        labels = {name: torch.zeros(shape, dtype=torch.int64) for name in self.task.labels}
        kinds = {name: torch.int64 if classes else torch.float32 for name, classes in self.task.attributes.items()}
        attributes = {name: torch.zeros(cases, dtype=kind) for name, kind in kinds.items()}
        return {**images, **labels, **attributes, "index": SimpleNamespace(tolist=lambda: self._indices(number))}

    @contextmanager
    def _precision(self) -> Iterator[None]:
        kind = KINDS[str(self.run.settings["precision"])]
        with torch.autocast(self.run.device, kind, cache_enabled=False) if kind else nullcontext():  # as Lightning's plugin does
            yield


def _tensors(model: nn.Module) -> Sequence[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _shorten(model: nn.Module) -> None:
    sampler = getattr(model, "sampler", None)
    if isinstance(getattr(sampler, "steps", None), int):
        sampler.steps = min(sampler.steps, STEPS)
