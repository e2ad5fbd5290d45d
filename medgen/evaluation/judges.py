"""Networks that are trained here to ask what generated images are good for: a segmenter and two classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medgen.core.random import generator

MULTIPLE = 8  # the segmenter's grid is padded to multiples of this
SEGMENTER_RATE, CLASSIFIER_RATE = 1e-2, 2e-3
CPU = torch.device("cpu")
CLASSIFIERS = ("small CNN", "multi-scale transformer")


@dataclass(frozen=True)
class Training:
    """How a judge is trained: the same for every arm that is compared.

    Attributes:
        steps: of AdamW with a cosine to zero.
        batch: pictures at once; of volumes a quarter.
        seed: of weights and batches.
        device: where the judges live; images may be anywhere.
    """

    steps: int = 300
    batch: int = 16
    seed: int = 0
    device: torch.device = CPU


class Segmenter:
    """MONAI's residual U-Net, trained by Dice and cross-entropy on images (N, C, *S) in network units and labels (N, *S)."""

    def __init__(self, images: Tensor, labels: Tensor, classes: int, training: Training):
        from monai.losses import DiceCELoss
        from monai.networks.nets import UNet

        self.dims, self.device = images.ndim - 2, training.device
        criterion = DiceCELoss(to_onehot_y=True, softmax=True)
        with seeded(training.seed):
            self.network = UNet(self.dims, images.shape[1], classes, (16, 32, 64, 128), (2, 2, 2), num_res_units=1)
            _fit(self.network, _padded(images, -1.0), _padded(labels[:, None].float(), 0.0), criterion, SEGMENTER_RATE, training)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, *S) -> label maps (N, *S)."""
        size = images.shape[2:]
        parts = [self.network.eval()(_padded(part, -1.0).to(self.device)).argmax(1).cpu() for part in images.split(16)]
        return torch.cat(parts)[(slice(None), *(slice(0, n) for n in size))]


class Classifier:
    """One of `CLASSIFIERS`, trained by cross-entropy with classes weighted equally."""

    def __init__(self, kind: str, images: Tensor, classes: Tensor, count: int, training: Training):
        from medgen.nn.judge import MultiScaleTransformer, SmallClassifier

        self.device = training.device
        maker = SmallClassifier if kind == CLASSIFIERS[0] else MultiScaleTransformer
        weights = 1.0 / torch.bincount(classes, minlength=count).clamp(min=1).float()
        criterion = nn.CrossEntropyLoss((weights / weights.sum() * count).to(self.device))
        with seeded(training.seed):
            self.network = maker(images.ndim - 2, images.shape[1], count)
            _fit(self.network, images, classes, criterion, CLASSIFIER_RATE, training)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> np.ndarray:
        """(N, C, *S) -> probabilities (N, classes)."""
        return torch.cat([self.network.eval()(part.to(self.device)).softmax(1).cpu() for part in images.split(32)]).numpy()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's own numbers (weights, dropout) follow `seed` inside, and go on as before outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _fit(network: nn.Module, images: Tensor, truth: Tensor, criterion: nn.Module, rate: float, training: Training) -> None:
    network.to(training.device).train()
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    batch = min(len(images), training.batch if images.ndim == 4 else max(1, training.batch // 4))
    for step in range(training.steps):
        rows = torch.from_numpy(generator(training.seed, step).choice(len(images), batch, replace=False))
        optimizer.zero_grad(set_to_none=True)
        criterion(network(images[rows].to(training.device)), truth[rows].to(training.device)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _padded(values: Tensor, fill: float) -> Tensor:
    amounts: Sequence[int] = [amount for n in reversed(values.shape[2:]) for amount in (0, -n % MULTIPLE)]
    return nn.functional.pad(values, amounts, value=fill)
