"""How alike two images of a set are on average: MS-SSIM of random pairs, as Odena et al. 2017 use it to find collapsed modes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.metrics.pixel import RADIUS
from medgen.metrics.scales import most_scales, one_pair


@torch.no_grad()
def similarity(images: Tensor, units: Sequence[str], pairs: int = 200, seed: int = 0) -> Tensor:
    """MS-SSIM (P,) of random pairs of images (N, C, *S), with as many scales as fit, over a range of 2 or of what there is.

    Every unit (a subject) is in one pair at most, with one of its images, so that the values are independent and their mean has an honest
    interval.

    Args:
        units: a name for each image.
        pairs: at most.

    Raises:
        MedgenError: images of fewer than 11 voxels along an axis, fewer than two units, or values that are not finite.
    """
    scales = most_scales(tuple(images.shape[2:]))
    if not scales:
        raise MedgenError(f"MS-SSIM needs {2 * RADIUS + 1} voxels along each axis, got {tuple(images.shape[2:])}")
    if len(set(units)) < 2:
        raise MedgenError(f"{len(images)} images of {len(set(units))} subject make no pair; at least two subjects are needed")
    if not bool(torch.isfinite(images).all()):
        raise MedgenError("an image holds NaN or infinite values; repair it before it is compared")
    reach = max(2.0, float(images.max() - images.min()))  # pairs are not checked: two images of one scanner may both fill the range
    chosen = _pairs(units, pairs, generator(seed))
    return torch.stack([one_pair(images[i].double(), images[j].double(), reach, None, scales) for i, j in chosen])


def _pairs(units: Sequence[str], most: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Places of images; no unit twice."""
    names = np.asarray(units, str)
    order = rng.permutation(np.unique(names))[: 2 * most]
    places = [int(rng.choice(np.flatnonzero(names == name))) for name in order]
    return list(zip(places[0::2], places[1::2], strict=False))
