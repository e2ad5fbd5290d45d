"""Two models in closed form: the perfect memoriser of a set of images, and the perfect model of the law that they were drawn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medgen.core.contract import Contract
from medgen.core.levels import Karras, LogNormal
from medgen.data.manifest import Manifest
from medgen.evaluation.work import Work
from medgen.inference import Pretrained
from medgen.metrics.monitor import FeatureDistance
from medgen.samplers.heun import Heun
from medgen.tasks.synthesis import Synthesis

SIDE = 16
RULE = {"name": "identity", "typical": {"low": -1.0, "high": 1.0}}


def root() -> Tensor:
    """R with R R^T the covariance of the law: smooth pictures, one standard deviation about 0.4."""
    place = torch.arange(SIDE, dtype=torch.float64)
    line = torch.exp(-((place[:, None] - place) ** 2) / (2 * 2.0**2))
    values, vectors = torch.linalg.eigh(torch.kron(line, line))
    return 0.4 * vectors * values.clamp(min=0).sqrt()


def pictures(n: int, seed: int) -> Tensor:
    """(n, 1, 16, 16) of the law."""
    draws = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, SIDE * SIDE)))
    return (draws @ root().T).reshape(n, 1, SIDE, SIDE).float()


class Exact(torch.nn.Module):
    """Sampling with a denoiser that is known; its loss is asked for by `denoise`."""

    caveat = ""

    def __init__(self):
        super().__init__()
        self.levels, self.sampler = LogNormal(-1.2, 1.2), Heun(Karras(), 18)

    def sample(self, condition, shape, rng):
        return self.sampler(lambda x, level: self.denoise(x, level.alpha, level.sigma, condition), shape, rng)


class Memoriser(Exact):
    """E[x | x_t] where x is one of the training images: the exact minimiser of the training loss."""

    def __init__(self, training: Tensor):
        super().__init__()
        self.register_buffer("images", training)

    def denoise(self, x_t, alpha, sigma, condition):
        own = self.images.flatten(1).double()
        distances = (x_t.flatten(1).double()[:, None] - alpha * own).square().sum(2)
        return (torch.softmax(-distances / (2 * max(sigma, 1e-6) ** 2), 1) @ own).reshape(x_t.shape).to(x_t.dtype)


class Population(Exact):
    """E[x | x_t] of the law itself, which has seen no image."""

    def __init__(self):
        super().__init__()
        self.register_buffer("root", root())

    def denoise(self, x_t, alpha, sigma, condition):
        covariance = self.root @ self.root.T
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + (sigma**2 + 1e-12) * torch.eye(SIDE * SIDE))
        return (x_t.flatten(1).double() @ gain.T).reshape(x_t.shape).to(x_t.dtype)


def contract(subjects: int) -> Contract:
    return Contract(
        2, (SIDE, SIDE), ("image",), intensity={"image": RULE}, data={"name": "gaussian", "licence": "CC0", "subjects": subjects}
    )


def manifest(folder: Path, training: Tensor, held_out: Tensor) -> Path:
    """One picture a subject, as files."""
    rows = ["subject,split,image"]
    for split, images in (("train", training), ("test", held_out)):
        for i, image in enumerate(images):
            np.save(folder / f"{split}{i}.npy", image.numpy())
            rows.append(f"{split}-{i},{split},{split}{i}.npy")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder / "list.csv"


def work(folder: Path, model: torch.nn.Module, path: Path, subjects: int, **changes) -> Work:
    pretrained = Pretrained(model, Synthesis(["image"], FeatureDistance()), contract(subjects), {}, None)
    return Work(pretrained, Manifest.read(path), folder / "out", **{"samples": 32, **changes})
