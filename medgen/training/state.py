"""The `last` and `best` checkpoints of a run, and what it takes to continue one exactly."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from safetensors import SafetensorError
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.training import ranks
from medgen.training.ema import EMA

Export = Callable[[Path, Mapping[str, Tensor]], None]


class Checkpoints(L.Callback):
    """Writes `last` (with everything needed to resume) and `best` (the exported model alone) under `folder`.

    Args:
        folder: the run's checkpoint folder.
        export: writes weights and contract into a folder.
        ema: whose averages are exported; None exports the live weights.
        every: steps between saves of `last`.
    """

    def __init__(self, folder: str | Path, export: Export, ema: EMA | None, every: int = 500):
        self.folder, self.export, self.ema, self.every = Path(folder), export, ema, every
        self.best: float | None = None
        self.saved = -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        window_closed = pl_module.step % pl_module.accumulate == 0
        if window_closed and pl_module.step % self.every == 0:
            self.save_last(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Also after Ctrl-C, which `GracefulStop` lets happen between optimizer steps only."""
        if self.saved != pl_module.step:
            self.save_last(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        metric = pl_module.task.metric
        value = pl_module.validation.values.get(f"val/{metric.name}")
        if value is None or value != value:
            return
        if self.best is None or (value > self.best if metric.best == "max" else value < self.best):
            self.best = value
            exported = self._exported(pl_module)
            if trainer.is_global_zero:
                with replacing(self.folder / "best") as partial:
                    self.export(partial, exported)
            if self.saved == pl_module.step:  # a resumed run must know of this best
                self.save_last(trainer, pl_module)

    def save_last(self, trainer: L.Trainer, pl_module: Any) -> None:
        exported, state = self._exported(pl_module), self._training_state(trainer, pl_module)  # all ranks: it may put shards together
        if trainer.is_global_zero:
            with replacing(self.folder / "last") as partial:
                self.export(partial, exported)
                torch.save(state, partial / "training.pt")
        self.saved = pl_module.step

    def restore(self, trainer_state: Mapping[str, Any], pl_module: Any) -> None:
        """Put model, averages and counters back; the optimizers follow in `Resume`, once Lightning has made them."""
        pl_module.model.load_state_dict(trainer_state["model"])
        pl_module.step, pl_module.skipped = trainer_state["step"], trainer_state["skipped"]
        self.best, self.saved = trainer_state["best"], trainer_state["step"]

    def _exported(self, pl_module: Any) -> Mapping[str, Tensor]:
        average = self.ema.average if self.ema else None
        return ranks.whole(average.averaged_state() if average else pl_module.model.state_dict())

    def _training_state(self, trainer: L.Trainer, pl_module: Any) -> dict[str, Any]:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        return {
            "step": pl_module.step,
            "skipped": pl_module.skipped,
            "best": self.best,
            "model": ranks.whole(pl_module.model.state_dict()),
            "optimizers": [ranks.whole(o.state_dict()) for o in trainer.optimizers],
            "ema": ranks.whole(self.ema.average.state_dict()) if self.ema and self.ema.average else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }


class Resume(L.Callback):
    """Hands a saved training state to the optimizers, the averages and the loss scaler before the first step."""

    def __init__(self, state: Mapping[str, Any], ema: EMA | None):
        self.state, self.ema = state, ema

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for optimizer, state in zip(trainer.optimizers, self.state["optimizers"], strict=True):
            optimizer.load_state_dict(placed_state(optimizer, state))
        if self.ema and self.state["ema"]:
            self.ema.average.load_state_dict(self.state["ema"])
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and self.state["scaler"]:
            scaler.load_state_dict(self.state["scaler"])


def placed_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's saved state with moments spread over the ranks where their parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {k: ranks.placed(v, parameters[i]) if v.shape == parameters[i].shape and v.ndim else v for k, v in values.items()}
        for i, values in state["state"].items()
    }
    return {**state, "state": moments}


def read_training_state(folder: Path) -> dict[str, Any]:
    """The training state of a run's `last` checkpoint; nothing but tensors and plain data is unpickled."""
    path = existing(folder / "last") / "training.pt"
    if not path.is_file():
        raise MedgenError(
            f"nothing to resume: {path} is missing. Give the run folder that `train.py` printed; a run saves every save_every steps"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise MedgenError(
            f"{path} is corrupted ({type(error).__name__}); the run cannot be continued, its model.safetensors may still load"
        ) from error


class replacing:
    """Write a folder so that its predecessor survives a full disk or a kill at any moment: write aside, then rename."""

    def __init__(self, folder: Path):
        self.folder, self.partial, self.previous = folder, _beside(folder, "partial"), _beside(folder, "previous")

    def __enter__(self) -> Path:
        if not self.folder.exists() and self.previous.exists():
            os.replace(self.previous, self.folder)
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            if isinstance(error, (OSError, RuntimeError, SafetensorError)):  # torch and safetensors have their own words for a full disk
                raise MedgenError(
                    f"could not save {self.folder} ({error}); the checkpoint before it is untouched. Free some space and resume"
                ) from error
            return
        shutil.rmtree(self.previous, ignore_errors=True)
        if self.folder.exists():
            os.replace(self.folder, self.previous)
        os.replace(self.partial, self.folder)
        shutil.rmtree(self.previous, ignore_errors=True)


def existing(folder: Path) -> Path:
    """`folder`, or the predecessor that a kill in mid-rename left behind."""
    previous = _beside(folder, "previous")
    return previous if not folder.exists() and previous.exists() else folder


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
