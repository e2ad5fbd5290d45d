"""How far a set of images is from another: a fixed feature, the Frechet distance, and nearest neighbours."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.metrics.kernels import check_features

SCALES, CELLS, BINS = 4, 4, 16


@torch.no_grad()
def describe(images: Tensor) -> Tensor:
    """A fixed feature of images (B, C, *S) in [-1, 1] units: (B, F) float64, for any number of spatial dimensions.

    Three groups, weighted so that two real heads differ about alike in each: a soft intensity histogram; at up to 4 scales (axes
    of 32 and more) the log energy and the sparseness of first and second differences along axes and diagonals (texture, edges);
    mean and spread on a coarse grid (anatomy). Nothing is learned or downloaded: numbers compare between machines, but not with
    published Inception distances.

    Raises:
        MedgenError: values that are not finite, or axes too short for the coarsest scale.
    """
    if images.ndim < 3 or min(images.shape[2:]) < 2 * CELLS:
        raise MedgenError(f"the feature needs (B, C, *S) with axes of at least {2 * CELLS}, got {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise MedgenError("an image holds NaN or infinite values; repair it before it is described")
    rows = [torch.cat([_histogram(x), _texture(x), _layout(x)], 1) for x in images.double().split(16)]
    return torch.cat(rows)


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of Gaussians fitted to features a (N, F) and b (M, F): Dowson and Landau 1982.

    tr (S_a S_b)^(1/2) is the nuclear norm of A B^T / sqrt((N - 1)(M - 1)) for centred features, which is cheap while N < F;
    otherwise it comes from the symmetric eigenvalues of R^T S_b R with S_a = R R^T. Exact either way, also for singular covariances.
    """
    a, b = check_features(a, b)
    gap = (a.mean(0) - b.mean(0)).square().sum()
    a, b = (a - a.mean(0)) / (len(a) - 1) ** 0.5, (b - b.mean(0)) / (len(b) - 1) ** 0.5
    cross = _nuclear(a, b) if min(len(a), len(b)) < a.shape[1] else _root_trace(a.T @ a, b.T @ b)
    return float(gap + a.square().sum() + b.square().sum() - 2 * cross)


def frechet_floor(reals: Tensor, held_out: Tensor, size: int, seed: int = 0, draws: int = 8) -> float:
    """Mean Frechet distance of `size` real features to other real ones: what a perfect generator would score at this sample size.

    Args:
        reals: (N, F) to draw subsets from, N >= size.
        held_out: (M, F) features that the samples are compared with too.
    """
    if size > len(reals):
        raise MedgenError(f"the floor for {size} samples needs at least as many real images, got {len(reals)}; draw fewer samples")
    subsets = [torch.from_numpy(generator(seed, i).permutation(len(reals))[:size].copy()) for i in range(draws)]
    return sum(frechet(reals[rows], held_out) for rows in subsets) / draws


class Nearest(NamedTuple):
    """Root-mean-square difference (N,) float64 to the nearest image, and its index (N,)."""

    distances: Tensor
    rows: Tensor


@torch.no_grad()
def nearest_images(a: Tensor, b: Tensor) -> Nearest:
    """For every image of a (N, C, *S) the nearest image of b (M, C, *S), voxel by voxel."""
    if a.shape[1:] != b.shape[1:] or not len(b):
        raise MedgenError(f"images of shape {tuple(a.shape[1:])} cannot be compared with {len(b)} of shape {tuple(b.shape[1:])}")
    flat, distances, rows = b.flatten(1), [], []
    norms = flat.square().sum(1)
    for part in a.flatten(1).split(64):
        rows.append((norms - 2 * part @ flat.T).argmin(1))
        difference = part.double() - flat[rows[-1]].double()  # once more by difference: a copy gives exactly 0
        distances.append(difference.square().mean(1).sqrt())
    return Nearest(torch.cat(distances), torch.cat(rows))


def nearest_distances(a: Tensor, b: Tensor) -> Tensor:
    """The distances of `nearest_images` alone, (N,)."""
    return nearest_images(a, b).distances


def _nuclear(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.svdvals(a @ b.T).sum()


def _root_trace(first: Tensor, second: Tensor) -> Tensor:
    """tr (first second)^(1/2) from the symmetric eigenvalues of R^T second R with first = R R^T."""
    root, failed = torch.linalg.cholesky_ex(first)
    if failed:  # singular, as with a constant feature
        values, vectors = torch.linalg.eigh(first)
        root = vectors * values.clamp(min=0).sqrt()
    return torch.linalg.eigvalsh(root.T @ second @ root).clamp(min=0).sqrt().sum()


def _histogram(x: Tensor) -> Tensor:
    """2.5 times the root of the share of voxels in 16 triangular bins over [-1, 1]; (B, C * 16)."""
    centres = torch.linspace(-1, 1, BINS, dtype=x.dtype, device=x.device)
    flat = x.clamp(-1, 1).flatten(2)
    shares = [(1 - (flat - c).abs() * (BINS - 1) / 2).clamp(min=0).mean(2) for c in centres]
    return 2.5 * torch.stack(shares, 2).sqrt().flatten(1)


def _texture(x: Tensor) -> Tensor:
    """Half the log root-mean-square and 3 times mean over root-mean-square of each difference at each scale; (B, columns)."""
    columns = []
    for scale in range(min(SCALES, int(math.log2(min(x.shape[2:]) / CELLS)) + 1)):
        x = _halved(x) if scale else x
        for d in _differences(x):
            power = d.square().flatten(2).mean(2) + 1e-6
            columns += [power.log() / 4, 3 * d.abs().flatten(2).mean(2) / power.sqrt()]
    return torch.cat(columns, 1)


def _differences(x: Tensor) -> list[Tensor]:
    """First and second differences along each spatial axis and first differences along each pair's two diagonals."""
    axes = range(2, x.ndim)
    plain = [x.diff(n=order, dim=axis) for axis in axes for order in (1, 2)]
    diagonal = []
    for i, j in itertools.combinations(axes, 2):
        n, m = x.shape[i] - 1, x.shape[j] - 1
        here, there = x.narrow(i, 0, n), x.narrow(i, 1, n)
        diagonal += [there.narrow(j, 1, m) - here.narrow(j, 0, m), there.narrow(j, 0, m) - here.narrow(j, 1, m)]
    return plain + diagonal


def _halved(x: Tensor) -> Tensor:
    """Means of neighbouring pairs along each spatial axis; an odd last voxel is left out."""
    for axis in range(2, x.ndim):
        x = x.narrow(axis, 0, x.shape[axis] // 2 * 2).unflatten(axis, (-1, 2)).mean(axis + 1)
    return x


def _layout(x: Tensor) -> Tensor:
    """0.4 times mean and standard deviation on a grid of 4 cells per axis; (B, C * 2 * cells)."""
    means, squares = _cells(x), _cells(x.square())
    return 0.4 * torch.cat([means.flatten(1), (squares - means.square()).clamp(min=0).sqrt().flatten(1)], 1)


def _cells(x: Tensor) -> Tensor:
    for axis in range(2, x.ndim):
        x = torch.stack([part.mean(axis) for part in x.tensor_split(CELLS, axis)], axis)
    return x
