"""What happens around training steps: numbers out, pictures out, a bar on the screen, a clean stop."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from medgen.core.picture import gray, montage, upright
from medgen.training import ranks
from medgen.training.fit import Stopped


class Log(L.Callback):
    """Sends loss terms and the share of time that training waited for data every `every` steps and at the last one, and every
    validation's values, to the trainer's loggers."""

    def __init__(self, every: int = 50):
        self.every = every
        self._latest: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._latest |= pl_module.terms  # a phase that runs now and then is logged with its last value
        if pl_module.step % self.every == 0 or pl_module.step == pl_module.steps:
            values = {f"train/{k}": float(v) for k, v in self._latest.items()}
            clock = getattr(trainer.datamodule, "clock", None)
            waiting = {} if clock is None else {"waiting": clock.share}
            self._send(trainer, values | {"skipped": pl_module.skipped} | waiting, pl_module.step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if pl_module.validation.values:
            self._send(trainer, pl_module.validation.values, pl_module.step)

    def _send(self, trainer: L.Trainer, values: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(values, step)


class SampleGrid(L.Callback):
    """After each validation: what was given, what was made and what is real, one case a column, as PNG.

    Args:
        folder: where `step_<n>.png` goes.
        pictures: images are ordinary pictures: upright as they are, three channels are colours. Planes of volumes are turned.
        cases: columns of the picture.
    """

    def __init__(self, folder: str | Path, pictures: bool = False, cases: int = 8):
        self.folder, self.pictures, self.cases = Path(folder), pictures, cases

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        seen = pl_module.validation
        if not seen.batches or not trainer.is_global_zero:
            return
        from PIL import Image

        columns = [[getattr(batch, kind) for batch in seen.batches] for kind in ("given", "made", "real")]
        rows = [_planes(images, self.pictures, self.cases) for images in columns if images[0] is not None]
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(montage(rows)).save(self.folder / f"step_{pl_module.step:06d}.png")


def _planes(images: list[Tensor], pictures: bool, cases: int) -> list[np.ndarray]:
    """Colours or the first channel of up to `cases` images, network units from -1 (black) to 1 (white); of a volume the middle plane."""
    planes = []
    for image in itertools.islice((case for batch in images for case in batch), cases):
        if pictures:
            shown = image[:3].movedim(0, -1) if len(image) == 3 else image[0]
            planes.append(gray(shown.numpy(), -1.0, 1.0))
            continue
        first = image[0] if image.shape[0] != 3 else image.mean(0)
        if first.ndim == 3:
            first = first[..., first.shape[-1] // 2]
        planes.append(upright(gray(first.numpy(), -1.0, 1.0)))
    return planes


class GracefulStop(L.Callback):
    """Ctrl-C and SIGTERM stop the run between two optimizer steps, where it can be resumed exactly. A second one is immediate.

    Ranks hear of a signal at different moments, so they agree on it where all pass: after steps and before batches of a validation. A
    process that trains alone also leaves a batch of a validation wherever a network is asked: a sampler may take minutes for one.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}
        self._watch: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Not earlier: Lightning installs a SIGTERM handler of its own before, which would lose the steps since the last save."""

        def request(number: int, frame: Any) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True

        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.step % pl_module.accumulate == 0 and ranks.anywhere(self.requested):
            trainer.should_stop = True

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if ranks.anywhere(self.requested):
            trainer.should_stop = True
        if ranks.world() == 1:
            self._watch = register_module_forward_pre_hook(lambda module, given: self._leave(trainer))

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: Any, *batch: Any, **more: Any) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def _leave(self, trainer: L.Trainer) -> None:
        if self.requested:
            trainer.should_stop = True
            raise Stopped

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.on_validation_batch_end(trainer, pl_module)
        self.on_fit_end(trainer, pl_module)


class ProgressBar(L.pytorch.callbacks.ProgressBar):
    """One line: step, losses, images per second, time left. Falls back to a plain line now and then where there is no terminal."""

    def __init__(self, every: float = 20.0):
        super().__init__()
        self.every = every
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._first, self._since, self._said = pl_module.step, time.monotonic(), time.monotonic()
        self._live = console.is_terminal
        self._console = console
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console, disable=not self._live)
        self._task = self._bar.add_task("", total=pl_module.steps, completed=pl_module.step)
        self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if not self._live and now - self._said < self.every and pl_module.step != pl_module.steps:
            return
        if self._live and now - self._said < 0.2 and pl_module.step != pl_module.steps:
            return
        self._said = now
        rate = (pl_module.step - self._first) / max(now - self._since, 1e-9)
        losses = "  ".join(f"{k} {float(v):.4g}" for k, v in pl_module.terms.items() if not k.endswith("_norm"))
        values = "  ".join(f"{k} {v:.4g}" for k, v in pl_module.validation.values.items() if k.endswith(pl_module.task.metric.name))
        text = f"{losses}  {values}  {rate * len(batch['index']) * ranks.world():.1f} images/s"
        if self._live:
            self._bar.update(self._task, completed=pl_module.step, description=text)
        else:
            left = (pl_module.steps - pl_module.step) / max(rate, 1e-9)
            self._console.print(f"step {pl_module.step}/{pl_module.steps}  {text}  {left:.0f} s left", highlight=False, soft_wrap=True)

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Samplers ask a network many times: a validation may take minutes, and says that it is one."""
        total = trainer.num_val_batches[0]
        text = f"validation at step {pl_module.step}: batch {batch_idx + 1} of {total}"
        if self._live:
            self._bar.update(self._task, description=text)
        elif batch_idx == 0 or time.monotonic() - self._said >= self.every:
            self._said = time.monotonic()
            self._console.print(text, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
