"""Networks that are trained here to ask what generated images are good for: a segmenter and two classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medgen.core.random import generator

MULTIPLE = 8  # the segmenter's grid is padded to multiples of this
CLASSIFIERS = ("small CNN", "multi-scale transformer")


@dataclass(frozen=True)
class Training:
    """How a judge is trained: the same for every arm that is compared.

    Attributes:
        steps, batch, rate: of AdamW with a cosine to zero.
        seed: of weights and batches.
    """

    steps: int = 300
    batch: int = 16
    rate: float = 2e-3
    seed: int = 0


class Segmenter:
    """MONAI's residual U-Net, trained by Dice and cross-entropy on images (N, C, *S) in network units and labels (N, *S)."""

    def __init__(self, images: Tensor, labels: Tensor, classes: int, training: Training):
        from monai.losses import DiceCELoss
        from monai.networks.nets import UNet

        torch.manual_seed(training.seed)
        self.dims, self.classes = images.ndim - 2, classes
        self.network = UNet(self.dims, images.shape[1], classes, (16, 32, 64, 128), (2, 2, 2), num_res_units=1)
        criterion = DiceCELoss(to_onehot_y=True, softmax=True)
        images, labels = _padded(images, -1.0), _padded(labels[:, None].float(), 0.0)
        _fit(self.network, len(images), training, lambda rows: criterion(self.network(images[rows]), labels[rows]))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, *S) -> label maps (N, *S)."""
        size = images.shape[2:]
        parts = [self.network.eval()(_padded(part, -1.0)).argmax(1) for part in images.split(16)]
        return torch.cat(parts)[(slice(None), *(slice(0, n) for n in size))]


class Classifier:
    """One of `CLASSIFIERS`, trained by cross-entropy with classes weighted equally."""

    def __init__(self, kind: str, images: Tensor, classes: Tensor, count: int, training: Training):
        from medgen.nn.judge import MultiScaleTransformer, SmallClassifier

        torch.manual_seed(training.seed)
        maker = SmallClassifier if kind == CLASSIFIERS[0] else MultiScaleTransformer
        self.network = maker(images.ndim - 2, images.shape[1], count)
        weights = 1.0 / torch.bincount(classes, minlength=count).clamp(min=1).float()
        criterion = nn.CrossEntropyLoss(weights / weights.sum() * count)
        _fit(self.network, len(images), training, lambda rows: criterion(self.network(images[rows]), classes[rows]))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> np.ndarray:
        """(N, C, *S) -> probabilities (N, classes)."""
        return torch.cat([self.network.eval()(part).softmax(1) for part in images.split(32)]).numpy()


def _fit(network: nn.Module, count: int, training: Training, loss: Callable[[Tensor], Tensor]) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), training.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    network.train()
    for step in range(training.steps):
        rows = generator(training.seed, step).choice(count, min(training.batch, count), replace=False)
        optimizer.zero_grad(set_to_none=True)
        loss(torch.from_numpy(rows)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _padded(values: Tensor, fill: float) -> Tensor:
    amounts: Sequence[int] = [amount for n in reversed(values.shape[2:]) for amount in (0, -n % MULTIPLE)]
    return nn.functional.pad(values, amounts, value=fill)
