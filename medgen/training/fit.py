"""The one training loop for every family: phases under Lightning's manual optimization."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from medgen.core.model import Example, GenerativeModel, Phase
from medgen.core.random import Rng
from medgen.core.task import Metric, Task
from medgen.training import ranks
from medgen.training.optimizers import AdamW

log = logging.getLogger("medgen")
SHARED = ("gradient", "none")  # findings that every rank makes once gradients are joined


class Stopped(Exception):
    """Leaves a batch of a validation, of which nothing is kept."""


class Fit(L.LightningModule):
    """Runs `model.phases` on `task.example(batch)`, one batch a step.

    Args:
        model: any family.
        task: turns a batch into an example.
        optimizer: how parameters move.
        steps: length of the run in batches; the schedule follows it.
        accumulate: batches per optimizer step.
        clip: largest gradient norm of a phase (None: no limit).
        seed: key of all random draws.
    """

    def __init__(
        self, model: GenerativeModel, task: Task, optimizer: AdamW, steps: int, accumulate: int = 1, clip: float | None = 1.0, seed: int = 0
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.task, self.optimizer = model, task, optimizer
        self.steps, self.accumulate, self.clip, self.seed = steps, accumulate, clip, seed
        self.step = 0
        self.skipped = 0
        self.terms: dict[str, Tensor] = {}
        self._stepped: set[int] = set()
        self.validation = Validation()
        self.cut_short = False  # whether the last validation was interrupted

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.optimizer_names = list(dict.fromkeys(p.optimizer or p.name for p in self.model.phases))
        return [self.optimizer.build(name, self._parameters_of(name)) for name in self.optimizer_names]

    @property
    def steps_now(self) -> bool:
        """Whether the current batch closes an accumulation window."""
        return (self.step + 1) % self.accumulate == 0

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        torch.manual_seed(hash((self.seed, self.step)) + ranks.rank() & 0x7FFFFFFF)  # dropout: the same after a resume
        rng = Rng(self.seed, self.step, batch["index"].tolist(), self.device)
        example = self.task.example(batch, rng)
        shared = self.model.begin(example, rng)
        self.terms = {}
        for phase in self.model.phases:
            if phase.due(self.step // self.accumulate):
                self._descend(phase, example, shared, batch)
        self._update_scale()
        self.terms = ranks.averaged(self.terms)
        self.model.after_step(self.step, self.terms)
        self.step += 1

    def on_validation_epoch_start(self) -> None:
        self.validation = Validation()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Losses and samples on held-out cases, with the same draws at every validation."""
        if not self.trainer.should_stop:  # interrupted: save, do not linger
            with suppress(Stopped):
                self._validate(batch)

    def _validate(self, batch: Mapping[str, Any]) -> None:
        indices = batch["index"].tolist()
        example = self.task.example(batch, Rng(self.seed, 0, indices, self.device))
        shared = self.model.begin(example, Rng(self.seed, 1, indices, self.device))
        terms: dict[str, Tensor] = {}
        for phase in (p for p in self.model.phases if p.validate):
            terms |= phase.loss(example, shared).terms
        made = self.model.preview(example, Rng(self.seed, 2, indices, self.device))
        self.validation.add(indices, terms, made, example)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.should_stop:  # an interrupted validation saw a part of the cases: it must not choose the best checkpoint
            self.validation, self.cut_short = Validation(), True
        else:
            self.validation.score(self.task.metric)

    def _descend(self, phase: Phase, example: Example, shared: Any, batch: Mapping[str, Any]) -> None:
        own = set(phase.module.parameters())
        with only_trainable(self.model, own):
            loss = phase.loss(example, shared)
            self.terms.update(loss.terms)
            self.manual_backward(loss.total / self.accumulate)
        if self.steps_now:
            self._update(phase, batch)

    def _update(self, phase: Phase, batch: Mapping[str, Any]) -> None:
        """One optimizer step, or none if a gradient is not finite: decided on the gradients that all ranks share."""
        index = self.optimizer_names.index(phase.optimizer or phase.name)
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer = optimizer[index] if isinstance(optimizer, list) else optimizer
        ranks.average_gradients(phase.module.parameters())  # before anything judges them
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            if index in self._stepped:  # a second phase of this optimizer: same scale, new count of overflows
                scaler.update(scaler.get_scale())
            self._stepped.add(index)
            scaler.unscale_(optimizer)
        norm = ranks.whole(nn.utils.clip_grad_norm_(phase.module.parameters(), self.clip or float("inf")))
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.optimizer.factor(self.step // self.accumulate, self.steps // self.accumulate)
        self.terms[f"{phase.name}_norm"] = norm.detach()
        if scaler is not None:
            scaler.step(optimizer)
        elif bool(torch.isfinite(norm)):
            optimizer.step()
        if not bool(torch.isfinite(norm)):
            self._report_skip(phase, batch)
        optimizer.zero_grad(set_to_none=True)

    def _update_scale(self) -> None:
        """fp16's loss scale moves once all phases have stepped: their accumulated gradients share it."""
        if self._stepped:
            self.trainer.precision_plugin.scaler.update()
            self._stepped.clear()

    def _report_skip(self, phase: Phase, batch: Mapping[str, Any]) -> None:
        self.skipped += 1
        found = ranks.gathered(first_bad(batch, self.terms, phase.module))
        if not found:
            return
        own = [r for r, name in enumerate(found) if not name.startswith(SHARED)]
        place = f" (rank {own[0]})" if own and len(found) > 1 else ""
        name = found[own[0] if own else 0]
        log.warning("step %d: %s update skipped, first non-finite tensor: %s%s", self.step, phase.name, name, place)

    def _parameters_of(self, optimizer: str) -> list[nn.Parameter]:
        phases = [p for p in self.model.phases if (p.optimizer or p.name) == optimizer]
        return list(dict.fromkeys(q for p in phases for q in p.module.parameters() if q.requires_grad))


@dataclass
class Seen:
    """One validation batch (images on the CPU)."""

    indices: list[int]
    terms: dict[str, float]
    made: Tensor
    real: Tensor
    given: Tensor | None


class Validation:
    """What one validation saw: mean losses, the task's metric, and on rank 0 the images for the sample grid."""

    def __init__(self) -> None:
        self.batches: list[Seen] = []
        self.values: dict[str, float] = {}

    def add(self, indices: list[int], terms: Mapping[str, Tensor], made: Tensor, example: Example) -> None:
        dense = example.condition.dense
        images = (made.float().cpu(), example.x.float().cpu(), None if dense is None else dense.float().cpu())
        self.batches.append(Seen(indices, {name: float(value) for name, value in terms.items()}, *images))

    def score(self, metric: Metric) -> None:
        """Bring the ranks' batches together on rank 0, in the order of one process, and give all ranks the numbers."""
        self.batches = in_order(ranks.gathered(self.batches))
        if self.batches:
            sizes = [len(seen.indices) for seen in self.batches]
            for name in self.batches[0].terms:
                total = sum(n * seen.terms[name] for n, seen in zip(sizes, self.batches, strict=True))
                self.values[f"val/{name}"] = total / sum(sizes)
            made, real = (torch.cat([getattr(seen, kind) for seen in self.batches]) for kind in ("made", "real"))
            self.values[f"val/{metric.name}"] = float(metric(made, real))
        self.values = ranks.broadcast(self.values)


def in_order(parts: list[list[Seen]]) -> list[Seen]:
    """Batches of all ranks as one process would have seen them: rank r had every world-th case; repeated cases only filled up."""
    joined: list[Seen] = []
    known: set[int] = set()
    for batches in zip_longest(*parts):
        fresh = []
        for seen in batches:
            if seen is not None and not known.issuperset(seen.indices):
                fresh.append(seen)
                known.update(seen.indices)
        if fresh:
            joined.append(interleaved(fresh))
    return joined


def interleaved(batches: list[Seen]) -> Seen:
    """First cases first, then second ones, ...; losses are means over cases."""
    if len(batches) == 1:
        return batches[0]
    cases = sorted((place, r) for r, seen in enumerate(batches) for place in range(len(seen.indices)))
    count = len(cases)
    terms = {name: sum(len(s.indices) * s.terms[name] for s in batches) / count for name in batches[0].terms}

    def images(kind: str) -> Tensor:
        return torch.stack([getattr(batches[r], kind)[place] for place, r in cases])

    given = None if batches[0].given is None else images("given")
    return Seen([batches[r].indices[place] for place, r in cases], terms, images("made"), images("real"), given)


class only_trainable:
    """Within the context only the given parameters of `model` gather gradients; the others still pass them on."""

    def __init__(self, model: nn.Module, own: set[nn.Parameter]):
        self.others = [p for p in model.parameters() if p.requires_grad and p not in own]

    def __enter__(self) -> None:
        for parameter in self.others:
            parameter.requires_grad_(False)

    def __exit__(self, *exception: object) -> None:
        for parameter in self.others:
            parameter.requires_grad_(True)


def first_bad(batch: Mapping[str, Any], terms: Mapping[str, Tensor], module: nn.Module) -> str:
    """Name of the first tensor that is not finite: input, loss term, weight or gradient, in this order."""

    def named() -> Iterator[tuple[str, Tensor]]:
        yield from ((f"input '{k}'", v) for k, v in batch.items() if isinstance(v, Tensor))
        yield from ((f"loss term '{k}'", v) for k, v in terms.items() if not k.endswith("_norm"))
        yield from ((f"weight '{k}'", v) for k, v in module.named_parameters())
        yield from ((f"gradient of '{k}'", v.grad) for k, v in module.named_parameters() if v.grad is not None)

    return next((name for name, value in named() if not torch.isfinite(ranks.local(value)).all()), "none (the norm overflowed)")
