"""Where a model's answer agrees with the truth: up to which detail, at which places, and as far as the measurement can tell."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.data.checks import one_plane
from medgen.data.readers import read
from medgen.evaluation.work import Case, Work
from medgen.inference.reconstruction import rows_of
from medgen.metrics.decisions import lesions
from medgen.metrics.lesions import HALF, blob, local_contrast
from medgen.metrics.nullspace import split_error
from medgen.metrics.resolution import SIZE, ResolutionMap, resolution_map

DATA_RANGE = 2.0  # of network units
COARSE = 0.25  # of Nyquist: agreement that ends below it is on shapes only
LEAST_WINDOW = 8


# --- structures -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Structures:
    """Places of a lesion's size where the answer and the truth differ by at least half of a lesion's contrast.

    Attributes:
        false, lost: masks (*S) of those that the answer has and the truth has not, and the other way round; the largest first.
        body: voxels of the body.
    """

    false: list[Tensor]
    lost: list[Tensor]
    body: int

    def share(self, parts: list[Tensor]) -> float:
        """Of the body that is in such parts."""
        return sum(int(part.sum()) for part in parts) / self.body


def structures(image: Tensor, case: Case, radii: tuple[float, ...], contrast: float) -> Structures:
    """Scan the first channel of an answer (1, C, *S) in the body for ellipsoids of `radii` voxels and half of `contrast`."""
    thick = [axis for axis, n in enumerate(case.body.shape[2:]) if n > 1]
    size = tuple(radii[axis] for axis in thick)
    body, result, truth = (x[0, 0].squeeze() for x in (case.body, image, case.target))
    found, expected = (local_contrast(x, body, size) for x in (result, truth))
    differs = (found - expected).abs() >= HALF * contrast
    box = tuple(2 * math.ceil(r) + 3 for r in size)
    lesion = blob(box, tuple((n - 1) / 2 for n in box), size)
    least = max(3, int((lesion > 0.5).sum()) // 8)  # a lesion of just half the contrast passes the half at its core only
    more = found.abs() >= expected.abs()
    kinds = [_parts(differs & which, least, case.body.shape[2:]) for which in (more, ~more)]
    return Structures(*kinds, int(body.sum()))


def _parts(mask: Tensor, least: int, shape: torch.Size) -> list[Tensor]:
    parts = [torch.from_numpy(part).reshape(shape) for part in lesions(mask.numpy(), least)]
    return sorted(parts, key=lambda part: -int(part.sum()))


# --- resolution -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resolved:
    """Local agreement of one case.

    Attributes:
        crossing: (W,) of all windows, as a fraction of Nyquist.
        worst: index of the slice whose windows agree least, along the slice axis; None where windows are not slices.
        window: voxels along a side.
    """

    crossing: Tensor
    worst: int | None
    window: int

    @property
    def median(self) -> float:
        return float(self.crossing.median())

    @property
    def coarse(self) -> float:
        """Share of windows that agree on shapes only."""
        return float((self.crossing < COARSE).double().mean())


def resolved(work: Work, case: Case, image: Tensor) -> Resolved | None:
    """Scanning Fourier ring correlation of the first channel, slice by slice for a model of slices; None where no window fits or holds
    a structure."""
    axis = work.model.contract.slice_axis if case.body.ndim == 5 else None
    size = window(work, case)
    if size < LEAST_WINDOW:
        return None
    found = [(height, one) for height in _heights(case, axis) if (one := local(case, image, axis, height, size)) is not None]
    if not found:
        return None
    worst = min(found, key=lambda pair: float(pair[1].crossing.mean()))[0]
    return Resolved(torch.cat([one.crossing for _, one in found]), worst, size)


def window(work: Work, case: Case) -> int:
    """Even, at most `SIZE`, and not longer than the axes that it lies along."""
    axis = work.model.contract.slice_axis if case.body.ndim == 5 else None
    sides = [n for i, n in enumerate(case.body.shape[2:]) if i != axis]
    return min(SIZE, min(sides) // 2 * 2)


def local(case: Case, image: Tensor, axis: int | None, height: int | None, size: int) -> ResolutionMap | None:
    """The map of one slice, or of the whole where there is no axis; None where no window lies in the body and holds a structure."""
    planes = [x[0, 0] if axis is None else x[0, 0].select(axis, height) for x in (image, case.target, case.body)]
    if not bool(planes[2].any()):
        return None
    try:
        return resolution_map(planes[0], planes[1], DATA_RANGE, planes[2], size)
    except MedgenError:
        return None


def _heights(case: Case, axis: int | None) -> range | list[None]:
    return [None] if axis is None else range(case.body.shape[2 + axis])


# --- the measurement --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """The error of a reconstruction in two, over the whole grid.

    Attributes:
        range, null: share of the squared error that the measurement contradicts, and that it cannot see.
        images: error, range part and null part (1, 1, *S), float32.
        seen: what is left of the null part in the measurement; 0 for an exact split.
    """

    range: float
    null: float
    images: tuple[Tensor, Tensor, Tensor]
    seen: float


def measured_parts(work: Work, case: Case, image: Tensor) -> Parts:
    """Range and null part of the error of an answer (1, 1, *S), by the operator and the masks that it was made with."""
    channel = work.model.task.target[0]
    acquired = work.model.simulate(one_plane(read(work.manifest.file(case.row, channel)), channel), seed=work.seed)
    axis, error = acquired.axis, (image - case.target)[0]
    e = torch.from_numpy(rows_of(error.numpy(), axis))
    count = len(e)
    state = {name: value.expand(count, *value.shape[1:]) for name, value in acquired.state.items()}
    split = split_error(e, acquired.operator, state)

    def whole(rows: Tensor) -> Tensor:
        array = rows.float().numpy()
        return torch.from_numpy(np.ascontiguousarray(array[0] if axis is None else np.moveaxis(array, 0, axis + 1)))[None]

    squares = [float(part.square().sum()) for part in (e.double(), split.range, split.null)]
    total = max(squares[0], 1e-30)
    images = (image - case.target, whole(split.range), whole(split.null))
    return Parts(squares[1] / total, squares[2] / total, images, float(split.seen.max()))
