"""Exponential moving average of the sub-modules that make samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from medgen.core.errors import MedgenError, nearest
from medgen.training import ranks


class Average:
    """Averaged copies of a module's tensors, with its own count of updates.

    Args:
        model: the module that is followed.
        names: its sub-modules to follow (whole subtrees).
        decay: limit of the decay; early on (1 + n) / (10 + n) of the n-th update is used, so that the start is forgotten.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], decay: float = 0.999):
        self.model, self.decay, self.updates = model, decay, 0
        known = [name for name, _ in model.named_modules() if name]
        for name in set(names) - set(known):
            raise MedgenError(f"the average cannot follow '{name}'; {nearest(name, [n for n in known if '.' not in n])}")
        prefixes = tuple(f"{name}." for name in names)
        self.names = [n for n in model.state_dict() if n.startswith(prefixes)]
        self.shadow = {n: t.detach().clone() for n, t in self._live().items()}

    def _live(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {n: state[n] for n in self.names}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the current weights; integer buffers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = self._live()
        floating = [n for n in self.names if live[n].is_floating_point()]
        torch._foreach_lerp_([self.shadow[n] for n in floating], [live[n] for n in floating], 1 - decay)
        for name in set(self.names) - set(floating):
            self.shadow[name].copy_(live[name])

    def averaged_state(self) -> dict[str, Tensor]:
        """The model's state dict with averages in place: what is exported."""
        return {**self.model.state_dict(), **self.shadow}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the context the model carries the averages; afterwards its own weights again, bit for bit."""
        with torch.no_grad():
            live = self._live()
            kept = {n: t.clone() for n, t in live.items()}
            for name, tensor in live.items():
                tensor.copy_(self.shadow[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in live.items():
                    tensor.copy_(kept[name])

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        for name, tensor in state["shadow"].items():
            self.shadow[name].copy_(ranks.placed(tensor, self.shadow[name]))


class EMA(L.Callback):
    """Updates an `Average` after every `every`-th optimizer step.

    Args:
        decay: per optimizer step; an update after `every` steps uses decay ** every.
        every: optimizer steps between updates.
        modules: names of sub-modules of the model; None follows `model.averaged`.
    """

    def __init__(self, decay: float = 0.999, every: int = 1, modules: Sequence[str] | None = None):
        self.decay, self.every, self.modules = decay, every, modules
        self.average: Average | None = None
        self._swap: Any = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if self.average is None:
            model = pl_module.model
            self.average = Average(model, self.modules or model.averaged, self.decay**self.every)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        shadow = self.average.shadow
        live = self.average._live()
        self.average.shadow = {n: ranks.placed(t, live[n]) for n, t in shadow.items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done, remainder = divmod(pl_module.step, pl_module.accumulate)
        if remainder == 0 and done % self.every == 0:
            self.average.update()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._swap = self.average.swapped()
        self._swap.__enter__()

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._swap.__exit__(None, None, None)
        self._swap = None

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._swap is not None:
            self.on_validation_end(trainer, pl_module)
