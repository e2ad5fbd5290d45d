"""What the options of `medgen reconstruct` say of a measurement: operator, mask, coil maps, lines; and those that would say nothing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError, nearest
from medgen.core.operator import Operator, Sampling
from medgen.core.random import Rng
from medgen.data.checks import opened
from medgen.inference import Acquisition, Pretrained
from medgen.inference.reconstruction import rows_of, slice_axis
from medgen.operators.downsample import Downsample
from medgen.operators.identity import Identity
from medgen.operators.inpaint import Inpaint
from medgen.operators.mri import MaskedFourier
from medgen.operators.sampling import Lines, usual

OPERATORS = {"fourier": MaskedFourier, "inpaint": Inpaint, "downsample": Downsample, "identity": Identity}
LINES = ("pattern", "acceleration", "centre")


def operator_name(model: Pretrained, options: argparse.Namespace) -> str:
    """The operator that is asked for, or the model's own, or for a prior "fourier"."""
    if options.operator is not None:
        if options.operator not in OPERATORS:
            raise MedgenError(f"no operator '{options.operator}'; {nearest(options.operator, OPERATORS)}")
        return options.operator
    return next((name for name, kind in OPERATORS.items() if type(model.task.operator) is kind), "fourier")


def check_options(model: Pretrained, options: argparse.Namespace) -> None:
    """Refuse what has no effect on this measurement."""
    name = operator_name(model, options)
    for option, operators in {"factors": ("downsample",), "maps": ("fourier",), "mask": ("fourier", "inpaint")}.items():
        if getattr(options, option) is not None and name not in operators:
            raise MedgenError(f"--{option} says nothing of the operator '{name}', it is of {' and '.join(operators)}; leave it out")
    for option in (o for o in LINES if getattr(options, o) is not None):
        if name != "fourier":
            raise MedgenError(f"--{option} says nothing of the operator '{name}', it is of fourier; leave it out")
        if not options.simulate:
            raise MedgenError(f"--{option} chooses the lines that --simulate measures, and INPUT is measured already; leave it out")
        if options.mask is not None:
            raise MedgenError(f"--{option} and --mask both choose the lines that --simulate measures; leave one of them out")


def simulated(model: Pretrained, options: argparse.Namespace) -> tuple[Acquisition, dict[str, Any]]:
    """A measurement of the image in INPUT by the model's operator or by the one that the options name, and how its lines were drawn."""
    name, own = operator_name(model, options), model.task.operator
    taken = own is not None and options.operator is None and not options.factors
    operator = own if taken else operator_of(name, options)
    asked = not taken or any(getattr(options, option) is not None for option in LINES)
    sampling = _sampling(operator, options) if asked else model.task.sampling
    how = {option: getattr(sampling, option) for option in LINES if options.mask is None and hasattr(sampling, option)}
    if options.mask is not None or options.maps is not None:
        sampling = FromFiles(model, options.mask, options.maps, sampling, isinstance(operator, Inpaint))
    return model.simulate(options.input, operator, sampling, options.noise, options.seed), how


@dataclass(frozen=True)
class FromFiles(Sampling):
    """Mask and coil maps of one's own, as a measurement of the image would have had them.

    Args:
        mask, maps: files, or None for what `otherwise` draws.
        known: the mask is an image that is 1 where the image is known, else it is of k-space.
    """

    model: Pretrained
    mask: str | None
    maps: str | None
    otherwise: Sampling
    known: bool = False

    def draw(self, shape: tuple[int, ...], rng: Rng) -> dict[str, Tensor]:
        state = dict(self.otherwise.draw(shape, rng)) if self.mask is None else {}
        if self.mask is not None:
            state["mask"] = self._hole(shape) if self.known else sampled(self.mask, shape[2:], shape[0]).float()
        if self.maps is not None:
            state["maps"] = fitting(self.maps, maps_in(self.maps), shape[2:], shape[0])
        slices = {name: value.expand(shape[0], *value.shape[1:]) for name, value in state.items()}
        return {name: value.to(rng.device) for name, value in slices.items()}

    def _hole(self, shape: tuple[int, ...]) -> Tensor:
        mask = self.model.regridded(opened(self.mask, "--mask"), labels=True)
        rows = torch.from_numpy(rows_of(mask.array[:1] != 0, slice_axis(self.model, mask)))
        if tuple(rows.shape) != (shape[0], 1, *shape[2:]):
            raise MedgenError(f"--mask has the grid {mask.shape}, not that of INPUT ({shape[0]} slices of {shape[2:]}): they must share it")
        return rows


def operator_of(name: str, options: argparse.Namespace) -> Operator:
    """The operator of a name."""
    if name != "downsample":
        return OPERATORS[name]()
    if not options.factors:
        raise MedgenError("--operator downsample needs --factors, one per axis, such as --factors 2 2")
    return Downsample(options.factors)


def _sampling(operator: Operator, options: argparse.Namespace) -> Sampling:
    if isinstance(operator, MaskedFourier):
        centre = 0.08 if options.centre is None else options.centre
        return Lines(options.pattern or "equispaced", options.acceleration or 4, centre)
    return usual(operator)


def sampled(path: str, grid: tuple[int, ...], slices: int) -> Tensor:
    """(1 or slices, 1, *grid) bool from the lines, the grid, or one grid per slice."""
    mask = torch.from_numpy(array(path) != 0)
    shape = tuple(mask.shape)
    if shape not in (grid[-1:], grid, (1, *grid), (slices, *grid)):
        raise MedgenError(f"{path}: shape {shape}; expected the lines {grid[-1:]}, the grid {grid}, or one grid per slice")
    rows = shape[0] if len(shape) > len(grid) else 1
    return mask.expand(rows, *grid).reshape(rows, 1, *grid)


def maps_in(path: str) -> Tensor:
    """Coil sensitivities as they are stored, complex64."""
    return torch.from_numpy(array(path).astype(np.complex64))


def fitting(path: str, maps: Tensor, grid: tuple[int, ...], slices: int, coils: int | None = None) -> Tensor:
    """(1 or slices, coils, *grid) maps for images of `grid`; any number of coils, or that of a measurement."""
    dims = len(grid)
    if maps.ndim not in (dims + 1, dims + 2):
        raise MedgenError(f"{path}: maps of shape {tuple(maps.shape)}; expected coils and the grid, with or without a slice axis")
    if tuple(maps.shape[-dims:]) != tuple(grid) or coils not in (None, maps.shape[-dims - 1]):
        what = f"images of {tuple(grid)}" if coils is None else f"k-space of shape {(coils, *grid)}"
        raise MedgenError(f"{path}: maps of shape {tuple(maps.shape)} do not fit {what}")
    rows = maps.reshape(-1, *maps.shape[-dims - 1 :])
    if len(rows) not in (1, slices):
        raise MedgenError(f"{path}: the measurement has {slices} slices, its maps {len(rows)}: give one for all, or one each")
    return rows


def array(path: str) -> np.ndarray:
    """A plain .npy without NaN."""
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise MedgenError(f"{path}: no such file") from error
    except (OSError, EOFError, ValueError) as error:
        raise MedgenError(
            f"{path}: not a plain .npy array ({(str(error).splitlines() or ['damaged'])[0]}); save it with numpy.save"
        ) from error
    if not np.isfinite(found).all():
        raise MedgenError(f"{path} holds NaN or infinite values; repair or mask them first")
    return found
