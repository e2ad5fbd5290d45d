"""A checkpoint as something to use: `generate`, `translate`, `reconstruct`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.checkpoint import build
from medgen.core.colours import colour_of
from medgen.core.condition import Condition
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError, MedgenWarning, nearest
from medgen.core.geometry import Placement, centred_affine, reoriented, resampled, resampled_like, rimmed
from medgen.core.intensity import BACKGROUND
from medgen.core.model import GenerativeModel
from medgen.core.neighbours import neighbour
from medgen.core.operator import Operator, Sampling
from medgen.core.random import Rng
from medgen.core.task import Task, availability
from medgen.core.volume import Volume
from medgen.core.windows import blended
from medgen.data.checks import check_contrast, check_labels, check_pair, one_plane, opened
from medgen.inference.reconstruction import Acquisition, Reconstructed, reconstruct, simulated
from medgen.samplers.choice import renewed

Image = str | Path | Volume


def usable_device(device: str | torch.device) -> torch.device:
    """The device, refused where this machine or this torch cannot compute on it."""
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0].rstrip(".")
        raise MedgenError(f"device '{device}' cannot be used here ({reason}); take cpu, cuda or auto") from error
    return torch.device(device)


@dataclass
class Pretrained:
    """A model with the task it was trained for and the contract about its images."""

    model: GenerativeModel
    task: Task
    contract: Contract
    document: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def __repr__(self) -> str:
        given = ", ".join((*self.task.source, *self.task.labels, *self.task.attributes))
        what = f"{type(self.model).__name__}, {f'{given} -> ' if given else ''}{self._targets}, {_by(self.contract.size)}"
        numbers = sum(p.numel() for p in self.model.parameters())
        return f"Pretrained({what}, {numbers:,} numbers, {self.device}{f', {self.folder}' if self.folder else ''})"

    @property
    def device(self) -> torch.device:
        first = next(self.model.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def to(self, device: str | torch.device) -> Pretrained:
        self.model.to(usable_device(device))
        return self

    def with_sampler(self, name: str | None = None, steps: int | None = None, guidance: float | None = None) -> Pretrained:
        """The same weights under another sampler, number of steps or guidance scale (None keeps the contract's).

        Raises:
            MedgenError: an unknown sampler, a model that is not sampled step by step, guidance of a model that has no condition or
                was never trained without it.
        """
        if name is None and steps is None and guidance is None:
            return self
        if not hasattr(self.model, "sampler"):
            raise MedgenError(f"a {type(self.model).__name__} makes its image in one pass: it takes no sampler, steps or guidance")
        model = copy(self.model)
        model.sampler = renewed(model.sampler, name, steps)
        if guidance is not None:
            self._check_guidance(guidance)
            model.guidance = build({"_target_": "medgen.samplers.guidance.ClassifierFree", "scale": guidance})
        return Pretrained(model, self.task, self.contract, self.document, self.folder)

    def _check_guidance(self, scale: float) -> None:
        if not math.isfinite(scale):
            raise MedgenError(f"guidance must be a finite number, got {scale}; 1 is none, 2 is common")
        if scale == 1.0:
            return
        if not (self.task.source or self.task.attributes or self.task.labels):
            raise MedgenError(f"guidance {scale:g} needs a condition, and this model has none; leave guidance out")
        if not getattr(self.model, "drop", 0.0):
            raise MedgenError(
                f"guidance {scale:g} needs a model that was also trained without its condition, and this one never was (drop 0);"
                " leave guidance out, or train with model.drop=0.1"
            )

    def generate(
        self,
        n: int = 1,
        seed: int = 0,
        given: Mapping[str, Any] | None = None,
        size: Sequence[int] | None = None,
        batch: int = 8,
        only: Sequence[int] | None = None,
    ) -> list[Volume]:
        """`n` new images; image i is the same whatever `n` and `batch`. They lie where a given label map lies, else around the origin.

        Args:
            n: how many; 0 gives an empty list.
            given: attribute -> value (one for all, or n of them); label map -> file, Volume or array (*S) on the model's grid.
            size: another grid than the one in the contract, with a `MedgenWarning`: on a larger one an object may appear several times.
            batch: images made at once.
            only: make these of the n images, such as range(1, n, 2); None makes all.

        Raises:
            MedgenError: a model that needs source images or is a codec, a condition that it does not take or that is missing, a value out
                of range.
        """
        if self.model.caveat:
            raise MedgenError(self.model.caveat)
        if self.task.source:
            raise MedgenError(f"this model makes {self._targets} from {', '.join(self.task.source)}: use translate")
        if self.task.operator is not None:
            raise MedgenError(f"this model makes {self._targets} from measurements: use reconstruct")
        if n < 0 or batch < 1:
            raise MedgenError(f"expected n of at least 0 and batch of at least 1, got n={n} and batch={batch}")
        size = self._size(size)
        check_seed(seed)
        labels = {name: self._label_volume(name, (given or {})[name]) for name in self.task.labels if name in (given or {})}
        inputs = self._given({**(given or {}), **labels}, n, size)
        place = next((v.affine for v in labels.values() if v.affine is not None and self.contract.spacing is not None), None)
        wanted = list(range(n) if only is None else only)
        volumes = []
        for first in range(0, len(wanted), batch):
            rows = wanted[first : first + batch]
            condition = self.task.condition({k: v[rows] for k, v in inputs.items()}).to(self.device)
            made = self.sample(condition, size, Rng(seed, 0, rows, self.device))
            volumes += [self._volume(x, place, seed, i) for i, x in zip(rows, made.numpy(), strict=True)]
        return volumes

    def translate(
        self, image: Image | Mapping[str, Image], seed: int = 0, given: Mapping[str, Any] | None = None, draws: int = 1
    ) -> Volume:
        """The target on the grid of the input: any orientation, spacing and size; with its affine.

        Args:
            image: a file or Volume, or channel -> file or Volume where the model takes several.
            draws: samples that are averaged voxel by voxel; 1 is one plausible image.

        Raises:
            MedgenError: a model that takes no source images, a missing channel, channels on different grids.
        """
        volumes = self.read_sources(image)
        first = next(iter(volumes.values()))
        made, grid = self.predict_on_grid(volumes, seed, given, draws)
        array = made
        if first.affine is not None:  # a coarser grid may end up to a voxel before the image does
            array = resampled_like(rimmed(grid.with_array(made)), first.shape, first.affine, fill=BACKGROUND).array
        meta = {**first.meta, **self._meta(seed), "scale": self._scale}
        return first.with_array(self._inverse(array), units=self._units, meta=meta)

    def simulate(
        self,
        image: Image,
        operator: Operator | None = None,
        sampling: Sampling | None = None,
        noise: float | None = None,
        seed: int = 0,
    ) -> Acquisition:
        """Measure an image (a file or Volume) on the model's grid, for `reconstruct`.

        Args:
            operator, sampling: how; None is the task's, for a prior the masked Fourier transform of one coil at 4 x.
            noise: standard deviation of each real component, in network units (full contrast is 2); None is the task's, or 0.02.
        """
        check_seed(seed)
        volume = _plane(opened(image, self.task.target[0]), self.task.target[0])
        self._check_axes(volume, self.task.target[0])
        check_contrast(volume, self.task.target[0])
        return simulated(self, volume, operator, sampling, noise, seed)

    def reconstruct(
        self,
        acquired: Acquisition,
        solver: str | Callable[..., Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
        draws: int = 8,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstructed:
        """Image, standard deviation and residual from a measurement: see `medgen.inference.reconstruction.reconstruct`."""
        check_seed(seed)
        if draws < 1:
            raise MedgenError(f"draws must be at least 1, got {draws}")
        return reconstruct(self, acquired, solver, options, draws, seed, progress)

    def read_sources(self, image: Image | Mapping[str, Image]) -> dict[str, Volume]:
        """The source channels as volumes that share a grid."""
        names = self.task.source
        if not names:
            remedy = "nothing: use generate" if self.task.operator is None else "measurements: use reconstruct"
            raise MedgenError(f"this model makes {self._targets} from {remedy}")
        own = tuple(dict.fromkeys(neighbour(name)[0] for name in names))  # slices beside a slice come from the same volume
        if not isinstance(image, Mapping):
            if len(own) > 1 and any(colour_of(name) is None for name in own):
                raise MedgenError(f"this model needs {len(own)} channels, {', '.join(own)}: give them by name")
            image = dict.fromkeys(own, image)
        given = {n: image[n] if n in image else image.get(neighbour(n)[0]) for n in names}
        missing = all(v is None for v in given.values()) if self.task.availability else any(v is None for v in given.values())
        if missing or set(image) - {*names, *own}:
            raise MedgenError(f"this model takes the channels {', '.join(own)}, got {', '.join(map(str, image)) or 'none'}")
        volumes = {n: _plane(opened(v, n), n) for n, v in given.items() if v is not None}
        check_pair(volumes, "input")
        for name, volume in volumes.items():
            self._check_axes(volume, name)
            if colour_of(name) is None:  # a picture may have no blue
                check_contrast(volume, name)
        return volumes

    def _check_axes(self, volume: Volume, name: str) -> None:
        """Slices and patches need volumes, pictures need pictures, millimetres need geometry."""
        contract, axes = self.contract, len(volume.shape)
        expected = 3 if contract.spatial_dims == 3 or contract.slice_axis is not None or contract.spacing is not None else 2
        if contract.spacing is not None and volume.affine is None:
            raise MedgenError(
                f"'{name}': the model works at {_by(contract.spacing)} mm and the image has no geometry; save it as NIfTI with its affine"
            )
        if axes != expected:
            raise MedgenError(f"'{name}': an image of shape {volume.shape} with {axes} axes; this model takes images with {expected}")

    def on_grid(self, volume: Volume, channel: str) -> Volume:
        """A channel in network units on the model's grid: its orientation and spacing (of 2D models, in the plane of the slice)."""
        mapping = self.contract.map_of(channel)
        mapped = volume.with_array(np.asarray(mapping.forward(volume.array, **mapping.fit(volume.array)), np.float32), units="normalised")
        if self.contract.spacing is not None:
            self._check_axes(volume, channel)
            mapped = self.regridded(mapped)
        _, away = neighbour(channel)
        if not away:
            return mapped
        axis = self.contract.slice_axis
        places = np.clip(np.arange(mapped.shape[axis]) + away, 0, mapped.shape[axis] - 1)
        return mapped.with_array(np.take(mapped.array, places, axis + 1))

    def regridded(self, volume: Volume, labels: bool = False) -> Volume:
        """The values of a volume on the model's grid: its orientation and spacing (of 2D models, in the plane of the slice)."""
        if self.contract.spacing is None or volume.affine is None:
            return volume
        spacing = [None if axis == self.contract.slice_axis else s for axis, s in enumerate(self.contract.spacing)]
        return resampled(reoriented(volume, self.contract.orientation or "RAS"), spacing, labels)

    def predict_on_grid(
        self, volumes: Mapping[str, Volume], seed: int = 0, given: Mapping[str, Any] | None = None, draws: int = 1
    ) -> tuple[np.ndarray, Volume]:
        """The target in network units (C, *S), and the first source on the model's grid (K = 1), for evaluation."""
        on_grid = {name: self.on_grid(v, name) for name, v in volumes.items()}
        grid = next(iter(on_grid.values()))
        missing = np.full_like(grid.array, np.nan)
        stack = [on_grid[name].array if name in on_grid else missing for name in self.task.source]
        return self.predict(np.concatenate(stack), seed, given, draws), grid

    def predict(self, stack: np.ndarray, seed: int = 0, given: Mapping[str, Any] | None = None, draws: int = 1) -> np.ndarray:
        """(K, *S) -> (C, *S), both in network units on a grid of the model's spacing and orientation and of any size.

        A channel of `stack` that is missing is NaN everywhere.
        """
        check_seed(seed)
        self._given(given or {}, 1, self.contract.size)  # one value for the whole volume
        if draws < 1:
            raise MedgenError(f"draws must be at least 1, got {draws}")
        total = self._predict(stack, seed, given or {})
        for draw in range(1, draws):
            total = total + self._predict(stack, seed + draw, given or {})
        return total if draws == 1 else total / np.float32(draws)

    @torch.no_grad()
    def sample(self, condition: Condition, size: Sequence[int], rng: Rng) -> Tensor:
        """Samples (B, C, *size) in network units, on the CPU."""
        shape = (len(rng), len(self.task.target), *size)
        return self.model.sample(condition, shape, rng).float().cpu()

    def _predict(self, stack: np.ndarray, seed: int, given: Mapping[str, Any]) -> np.ndarray:
        """(K, *S) -> (C, *S), slice by slice or window by window; neighbours share their noise, so that they agree."""
        axis = self.contract.slice_axis
        if axis is None:
            placement = Placement.centred(stack.shape, [max(a, b) for a, b in zip(stack.shape[1:], self.contract.size, strict=True)])
            padded = placement.apply(stack, BACKGROUND)

            def predict(part: np.ndarray, window: tuple[slice, ...]) -> np.ndarray:
                rng = Rng(seed, 0, [0], self.device).within(padded.shape[1:], window)
                return self._batch(part[None], rng, given)[0]

            return _undo(placement, blended(padded, self.contract.size, predict, len(self.task.target)))
        slices = np.moveaxis(stack, axis + 1, 0)
        size = [max(a, b) for a, b in zip(slices.shape[2:], self.contract.size, strict=True)]
        placement = Placement.centred(slices.shape, size)
        padded = placement.apply(slices, BACKGROUND)
        batches = [padded[i : i + 8] for i in range(0, len(padded), 8)]
        parts = [self._batch(batch, Rng(seed, 0, [0] * len(batch), self.device), given) for batch in batches]
        return np.moveaxis(_undo(placement, np.concatenate(parts)), 0, axis + 1)

    def _batch(self, source: np.ndarray, rng: Rng, given: Mapping[str, Any]) -> np.ndarray:
        """(B, K, *S) -> (B, C, *S)."""
        size = source.shape[2:]
        inputs = {}
        for i, name in enumerate(self.task.source):
            image = torch.from_numpy(np.ascontiguousarray(source[:, i : i + 1]))
            missing = image.isnan()
            inputs[name] = image.masked_fill(missing, BACKGROUND)
            inputs[availability(name)] = 1.0 - missing.flatten(1).any(1).float()
        inputs |= self._given(given, len(source), size)
        condition = self.task.condition(inputs).to(self.device)
        return self.sample(condition, size, rng).numpy()

    def _given(self, given: Mapping[str, Any], n: int, size: Sequence[int]) -> dict[str, Tensor]:
        known = {**self.task.attributes, **self.task.labels}
        for name in given:
            if name not in known:
                raise MedgenError(f"this model takes no condition '{name}'; {nearest(name, known)}")
        missing = [name for name in known if name not in given]
        if missing:
            name, classes = missing[0], known[missing[0]]
            if name in self.task.labels:
                said = f"a label map of {_by(size)} with values from 0 to {classes - 1}; pass --set {name}=map.nii.gz"
                raise MedgenError(f"this model needs '{name}', {said}")
            raise MedgenError(f"this model needs a value for '{name}' ({_range(classes)}); pass --set {name}=...")
        values = {name: _attribute(name, given[name], known[name], n) for name in self.task.attributes}
        return values | {name: self._label_map(name, given[name], n, size) for name in self.task.labels}

    def _label_volume(self, name: str, value: Any) -> Volume:
        """A label map, checked, and where it has geometry in the model's orientation and spacing."""
        if not isinstance(value, (str, Path, Volume)):
            if np.ndim(value) < 2:
                raise MedgenError(f"label map '{name}' must be a file, a Volume or an array, got {value!r}")
            value = Volume(np.asarray(value)[None])
        volume = one_plane(opened(value, name), name)
        check_labels(volume, name, self.task.labels[name])
        return volume if self.contract.spacing is None or volume.affine is None else self.regridded(volume, labels=True)

    def _label_map(self, name: str, value: Any, n: int, size: tuple[int, ...]) -> Tensor:
        array = self._label_volume(name, value).array[0]
        if array.ndim == len(size) + 1 and self.contract.slice_axis is not None and array.shape[self.contract.slice_axis] == 1:
            array = array.squeeze(self.contract.slice_axis)
        if array.shape != size:
            raise MedgenError(f"label map '{name}' has the grid {_by(array.shape)}, the model {_by(size)}; crop or pad it, or pass size")
        return torch.from_numpy(np.array(array, order="C")).long().expand(n, 1, *size)

    def _size(self, size: Sequence[int] | None) -> tuple[int, ...]:
        """The grid to generate on."""
        chosen = tuple(self.contract.size if size is None else map(int, size))
        if len(chosen) != self.contract.spatial_dims or min(chosen) < 1:
            raise MedgenError(
                f"size must be {self.contract.spatial_dims} positive numbers, such as {_by(self.contract.size)}; got {_by(chosen)}"
            )
        if chosen != tuple(self.contract.size):
            trained = f"images of {_by(chosen)}, the model was trained on {_by(self.contract.size)}"
            warnings.warn(f"{trained}: on a larger grid one object may become several", MedgenWarning, stacklevel=3)
        return chosen

    @property
    def _targets(self) -> str:
        return ", ".join(self.task.target)

    @property
    def _units(self) -> str:
        return self.contract.map_of(self.task.target[0]).units

    @property
    def _scale(self) -> str:
        """Whether the values mean the same for every image."""
        rules = [self.contract.map_of(c) for c in self.task.target]
        per_volume = any(rule.fit(np.zeros(1)) != rule.fit(np.arange(9.0)) for rule in rules)
        return "typical of the training set" if per_volume else "as declared by the intensity map"

    def _meta(self, seed: int) -> dict[str, Any]:
        """What a volume remembers of how it was made; `range` is what a picture shows as black and white."""
        typical = self.contract.typical(self.task.target[0])
        return {"seed": seed, "model": str(self.folder or ""), "range": (typical["low"], typical["high"])}

    def _inverse(self, made: np.ndarray) -> np.ndarray:
        """Network units (C, *S) to stored ones, by the training set's typical parameters where the map has its own per volume."""
        channels = [self.contract.map_of(c).inverse(made[i], **self.contract.typical(c)) for i, c in enumerate(self.task.target)]
        return np.stack(channels).astype(np.float32)

    def _volume(self, made: np.ndarray, affine: np.ndarray | None, seed: int, index: int) -> Volume:
        """A generated image with the contract's geometry, at `affine` if given; a 2D slice of a volume becomes one voxel thick."""
        contract = self.contract
        if contract.spacing is not None:
            if contract.slice_axis is not None:
                made = np.expand_dims(made, contract.slice_axis + 1)
            if affine is None:
                affine = centred_affine(made.shape[1:], contract.spacing, contract.orientation or "RAS")
        return Volume(self._inverse(made), affine, self._units, {**self._meta(seed), "index": index})


def _attribute(name: str, value: Any, classes: int, n: int) -> Tensor:
    try:
        values = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MedgenError(f"'{name}' must be {_range(classes)}, got {value!r}") from error
    if len(values) not in (1, n):
        raise MedgenError(f"'{name}' has {len(values)} values for {n} images: give one, or one each")
    if not bool(torch.isfinite(values).all()) or (classes and bool((values != values.floor()).any())):
        raise MedgenError(f"'{name}' must be {_range(classes)}, got {value!r}")
    return values.expand(n) if len(values) == 1 else values


def _range(classes: int) -> str:
    return f"a class from 0 to {classes - 1}" if classes else "a number"


def _undo(placement: Placement, array: np.ndarray) -> np.ndarray:
    """Undo a placement that only padded, for an array with another number of channels."""
    channel_axis = placement.axes[0] - 1
    shape = tuple(array.shape[a] if a == channel_axis else n for a, n in enumerate(placement.shape))
    return Placement(shape, placement.axes, placement.start, placement.size).undo(array, BACKGROUND)


def _plane(volume: Volume, name: str) -> Volume:
    """The one channel called `name`, also out of a colour picture."""
    return one_plane(volume, name, colour_of(name) if len(volume.array) == 3 else None)


def check_seed(seed: int) -> None:
    """Refuse what the keyed random numbers do not take."""
    if int(seed) != seed or seed < 0:
        raise MedgenError(f"seed must be a whole number of at least 0, got {seed}")


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
