"""Pretrained models in one line: `load`, then `generate` or `translate`; volumes come back with units and geometry."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.checkpoint import build
from medgen.checkpoint import load as load_checkpoint
from medgen.core.condition import Condition
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError, nearest
from medgen.core.geometry import Placement, reoriented, resampled, resampled_like
from medgen.core.model import GenerativeModel
from medgen.core.random import Rng
from medgen.core.task import Task
from medgen.core.volume import Volume
from medgen.core.windows import blended
from medgen.data.checks import check_pair
from medgen.data.readers import read

BACKGROUND = -1.0
Image = str | Path | Volume


def load(name: str | Path, device: str | torch.device = "cpu") -> Pretrained:
    """A pretrained model by zoo name, by path (checkpoint or run folder), or from the hub (`hf://owner/repo[/folder]`)."""
    folder = find(name)
    checkpoint = load_checkpoint(folder)
    return Pretrained(checkpoint.model.to(device), checkpoint.task, checkpoint.contract, checkpoint.document, folder)


def find(name: str | Path) -> Path:
    """The checkpoint folder that a name, path or hub address stands for."""
    text = str(name)
    if text.startswith("hf://"):
        return _from_hub(text.removeprefix("hf://"))
    path = Path(text)
    for candidate in (path, path / "checkpoints" / "best", path / "checkpoints" / "last", *(zoo / text for zoo in zoo_folders())):
        if (candidate / "contract.json").is_file():
            return candidate
    if path.exists():
        raise MedgenError(
            f"{path} holds no checkpoint: expected contract.json in it, or checkpoints/best or checkpoints/last of a run folder"
        )
    raise MedgenError(f"no model '{text}': not a folder and not in the zoo; {nearest(text, zoo_names())}")


def zoo_folders() -> list[Path]:
    """Where named models are looked for: $MEDGEN_ZOO, `zoo/` here, `zoo/` beside the package."""
    named = [Path(os.environ["MEDGEN_ZOO"])] if os.environ.get("MEDGEN_ZOO") else []
    return [*named, *dict.fromkeys(p.resolve() for p in (Path("zoo"), Path(__file__).resolve().parents[1] / "zoo"))]


def zoo_names() -> list[str]:
    return sorted({p.parent.name for zoo in zoo_folders() for p in zoo.glob("*/contract.json")})


def _from_hub(address: str) -> Path:
    from huggingface_hub import snapshot_download

    owner, _, rest = address.partition("/")
    repository, _, folder = rest.partition("/")
    if not repository:
        raise MedgenError(f"hf://{address} is not an address: expected hf://owner/repository or hf://owner/repository/folder")
    files = ("model.safetensors", "contract.json", "card.md")
    patterns = [f"{folder}/{f}" if folder else f for f in files]
    return Path(snapshot_download(f"{owner}/{repository}", allow_patterns=patterns)) / folder


@dataclass
class Pretrained:
    """A model with the task it was trained for and the contract about its images."""

    model: GenerativeModel
    task: Task
    contract: Contract
    document: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> Pretrained:
        self.model.to(device)
        return self

    def with_sampler(self, name: str | None = None, steps: int | None = None, guidance: float | None = None) -> Pretrained:
        """The same weights under another sampler, number of steps or guidance scale (None keeps the contract's).

        Raises:
            MedgenError: an unknown sampler, or a model that is not sampled step by step.
        """
        if name is None and steps is None and guidance is None:
            return self
        if not hasattr(self.model, "sampler"):
            raise MedgenError(f"a {type(self.model).__name__} makes its image in one pass: it takes no sampler, steps or guidance")
        model = copy(self.model)
        model.sampler = _sampler(name, model.sampler, steps)
        if guidance is not None:
            model.guidance = build({"_target_": "medgen.samplers.guidance.ClassifierFree", "scale": guidance})
        return Pretrained(model, self.task, self.contract, self.document, self.folder)

    def generate(
        self, n: int = 1, seed: int = 0, given: Mapping[str, Any] | None = None, size: Sequence[int] | None = None, batch: int = 8
    ) -> list[Volume]:
        """`n` new images; image i is the same whatever `n` and `batch`.

        Args:
            given: attribute -> value (one for all, or n of them); label map -> file, Volume or array (*S) on the model's grid.
            size: another grid than the one in the contract.
            batch: images made at once.

        Raises:
            MedgenError: a model that needs source images, a condition that it does not take or that is missing.
        """
        if self.task.source:
            raise MedgenError(f"this model makes {self._targets} from {', '.join(self.task.source)}: use translate")
        size = tuple(size or self.contract.size)
        inputs = self._given(given or {}, n, size)
        made = []
        for first in range(0, n, batch):
            rows = slice(first, min(first + batch, n))
            condition = self.task.condition({k: v[rows] for k, v in inputs.items()}).to(self.device)
            made.append(self.sample(condition, size, Rng(seed, 0, range(n)[rows], self.device)))
        return [self._volume(x, seed, i) for i, x in enumerate(torch.cat(made).numpy())] if made else []

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
        first = volumes[self.task.source[0]]
        made, grid = self.predict_on_grid(volumes, seed, given, draws)
        moved = grid.with_array(made)
        array = made if first.affine is None else resampled_like(moved, first.shape, first.affine, fill=BACKGROUND).array
        meta = {**first.meta, "model": str(self.folder or ""), "seed": seed, "scale": "typical of the training set"}
        return first.with_array(self._inverse(array), units=self._units, meta=meta)

    def read_sources(self, image: Image | Mapping[str, Image]) -> dict[str, Volume]:
        """The source channels as volumes that share a grid."""
        names = self.task.source
        if not names:
            raise MedgenError(f"this model makes {self._targets} from nothing: use generate")
        if not isinstance(image, Mapping):
            if len(names) > 1:
                raise MedgenError(f"this model needs {len(names)} channels, {', '.join(names)}: give them by name")
            image = {names[0]: image}
        missing = [n for n in names if n not in image]
        if missing or set(image) - set(names):
            raise MedgenError(f"this model takes the channels {', '.join(names)}, got {', '.join(map(str, image)) or 'none'}")
        volumes = {n: image[n] if isinstance(image[n], Volume) else read(image[n]) for n in names}
        check_pair(volumes, "input")
        return volumes

    def on_grid(self, volume: Volume, channel: str) -> Volume:
        """A channel in network units on the model's grid: its orientation and spacing (of 2D models, in the plane of the slice)."""
        mapping = self.contract.map_of(channel)
        mapped = volume.with_array(np.asarray(mapping.forward(volume.array, **mapping.fit(volume.array)), np.float32), units="normalised")
        if self.contract.spacing is None:
            return mapped
        if volume.affine is None:
            raise MedgenError(
                f"the model works at {self.contract.spacing} mm and the image has no geometry; save it as NIfTI with its affine"
            )
        spacing = [None if axis == self.contract.slice_axis else s for axis, s in enumerate(self.contract.spacing)]
        return resampled(reoriented(mapped, self.contract.orientation), spacing)

    def predict_on_grid(
        self, volumes: Mapping[str, Volume], seed: int = 0, given: Mapping[str, Any] | None = None, draws: int = 1
    ) -> tuple[np.ndarray, Volume]:
        """The target in network units (C, *S), and the first source on the model's grid (K = 1), for evaluation."""
        on_grid = {name: self.on_grid(v, name) for name, v in volumes.items()}
        grid = next(iter(on_grid.values()))
        stack = np.concatenate([v.array for v in on_grid.values()])
        made = sum(self._predict(stack, seed + draw, given or {}) for draw in range(draws)) / draws
        return made, grid

    @torch.no_grad()
    def sample(self, condition: Condition, size: Sequence[int], rng: Rng) -> Tensor:
        """Samples (B, C, *size) in network units, on the CPU."""
        shape = (len(rng), len(self.task.target), *size)
        return self.model.sample(condition, shape, rng).float().cpu()

    def _predict(self, stack: np.ndarray, seed: int, given: Mapping[str, Any]) -> np.ndarray:
        """(K, *S) -> (C, *S), slice by slice or window by window; all share one noise, so that neighbours agree."""
        axis = self.contract.slice_axis
        if axis is None:
            placement = Placement.centred(stack.shape, [max(a, b) for a, b in zip(stack.shape[1:], self.contract.size, strict=True)])
            padded = placement.apply(stack, BACKGROUND)
            made = blended(padded, self.contract.size, lambda part: self._batch(part[None], seed, given)[0], len(self.task.target))
            return _undo(placement, made)
        slices = np.moveaxis(stack, axis + 1, 0)
        size = [max(a, b) for a, b in zip(slices.shape[2:], self.contract.size, strict=True)]
        placement = Placement.centred(slices.shape, size)
        padded = placement.apply(slices, BACKGROUND)
        parts = [self._batch(padded[i : i + 8], seed, given) for i in range(0, len(padded), 8)]
        return np.moveaxis(_undo(placement, np.concatenate(parts)), 0, axis + 1)

    def _batch(self, source: np.ndarray, seed: int, given: Mapping[str, Any]) -> np.ndarray:
        """(B, K, *S) -> (B, C, *S); every image of the batch with the noise of sample 0."""
        size = source.shape[2:]
        inputs = {name: torch.from_numpy(np.ascontiguousarray(source[:, i : i + 1])) for i, name in enumerate(self.task.source)}
        inputs |= self._given(given, len(source), size)
        condition = self.task.condition(inputs).to(self.device)
        return self.sample(condition, size, Rng(seed, 0, [0] * len(source), self.device)).numpy()

    def _given(self, given: Mapping[str, Any], n: int, size: Sequence[int]) -> dict[str, Tensor]:
        known = {**self.task.attributes, **self.task.labels}
        for name in given:
            if name not in known:
                raise MedgenError(f"this model takes no condition '{name}'; {nearest(name, known)}")
        missing = [name for name in known if name not in given]
        if missing:
            raise MedgenError(f"this model needs a value for '{missing[0]}' ({_range(known[missing[0]])}); pass --set {missing[0]}=...")
        values = {name: _attribute(name, given[name], n) for name in self.task.attributes}
        return values | {name: self._label_map(name, given[name], n, size) for name in self.task.labels}

    def _label_map(self, name: str, value: Any, n: int, size: Sequence[int]) -> Tensor:
        if isinstance(value, (str, Path)):
            value = read(value)
        array = value.array[0] if isinstance(value, Volume) else np.asarray(value)
        array = array[..., 0] if array.ndim == len(size) + 1 and array.shape[-1] == 1 else array
        if tuple(array.shape) != tuple(size):
            raise MedgenError(
                f"label map '{name}' has shape {tuple(array.shape)}, the model's grid is {tuple(size)}; resample it or pass size"
            )
        return torch.from_numpy(np.ascontiguousarray(array)).long().expand(n, 1, *size)

    @property
    def _targets(self) -> str:
        return ", ".join(self.task.target)

    @property
    def _units(self) -> str:
        return self.contract.map_of(self.task.target[0]).units

    def _inverse(self, made: np.ndarray) -> np.ndarray:
        """Network units (C, *S) to stored ones, by the training set's typical parameters where the map has its own per volume."""
        channels = [self.contract.map_of(c).inverse(made[i], **self.contract.typical(c)) for i, c in enumerate(self.task.target)]
        return np.stack(channels).astype(np.float32)

    def _volume(self, made: np.ndarray, seed: int, index: int) -> Volume:
        """A generated image with the contract's geometry; a 2D slice of a volume becomes one voxel thick."""
        contract, affine = self.contract, None
        if contract.spacing is not None:
            if contract.slice_axis is not None:
                made = np.expand_dims(made, contract.slice_axis + 1)
            affine = _centred_affine(made.shape[1:], contract.spacing)
        return Volume(self._inverse(made), affine, self._units, {"seed": seed, "index": index, "model": str(self.folder or "")})


def golden(pretrained: Pretrained, size: int = 16) -> dict[str, Any]:
    """A small output under fixed inputs: eight values of one sample on a tiny grid, and how closely they must be met."""
    contract = pretrained.contract
    shape = (size,) * contract.spatial_dims
    ramp = torch.linspace(-1, 1, size**contract.spatial_dims).reshape(1, 1, *shape)
    inputs = {name: ramp for name in contract.source}
    inputs |= {name: torch.zeros(1, 1, *shape) for name in contract.labels}
    inputs |= {name: torch.zeros(1) for name in contract.attributes}
    made = pretrained.sample(pretrained.task.condition(inputs).to(pretrained.device), shape, Rng(0, 0, [0], pretrained.device)).flatten()
    chosen = made[torch.linspace(0, len(made) - 1, 8).long()]
    return {"size": size, "values": [round(float(v), 6) for v in chosen], "tolerance": 2e-3}


def check_golden(pretrained: Pretrained) -> float:
    """Largest difference to the stored golden output.

    Raises:
        MedgenError: there is none, or the difference exceeds its tolerance.
    """
    stored = pretrained.document.get("golden")
    if not stored:
        raise MedgenError("this checkpoint carries no golden output; `medgen zoo add` stores one")
    now = golden(pretrained, stored["size"])["values"]
    difference = max(abs(a - b) for a, b in zip(now, stored["values"], strict=True))
    if difference > stored["tolerance"]:
        raise MedgenError(f"the model's output differs from its golden output by {difference:.3g} (allowed {stored['tolerance']:g})")
    return difference


def _sampler(name: str | None, current: Any, steps: int | None) -> Any:
    """A sampler by name on the noise levels of the current one, which belong to how the model was trained."""
    from importlib import import_module
    from pkgutil import iter_modules

    import medgen.samplers as room
    from medgen.samplers.sampler import Sampler

    steps = steps or current.steps
    if steps < 1:
        raise MedgenError(f"steps must be at least 1, got {steps}")
    found = {}
    for module in iter_modules(room.__path__):
        for value in vars(import_module(f"medgen.samplers.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Sampler) and value is not Sampler:
                found[module.name] = value
    if name is None:
        changed = copy(current)
        changed.steps = steps
        return changed
    if name not in found:
        raise MedgenError(f"no sampler '{name}'; {nearest(name, found)}")
    return found[name](current.grid, steps)


def _attribute(name: str, value: Any, n: int) -> Tensor:
    try:
        values = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
    except (TypeError, ValueError) as error:
        raise MedgenError(f"'{name}' must be a number, got {value!r}") from error
    if len(values) not in (1, n):
        raise MedgenError(f"'{name}' has {len(values)} values for {n} images: give one, or one each")
    return values.expand(n) if len(values) == 1 else values


def _range(classes: int) -> str:
    return f"a class from 0 to {classes - 1}" if classes else "a number"


def _undo(placement: Placement, array: np.ndarray) -> np.ndarray:
    """Undo a placement that only padded, for an array with another number of channels."""
    channel_axis = placement.axes[0] - 1
    shape = tuple(array.shape[a] if a == channel_axis else n for a, n in enumerate(placement.shape))
    return Placement(shape, placement.axes, placement.start, placement.size).undo(array, BACKGROUND)


def _centred_affine(shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """RAS axes with the middle of the grid at the world's origin."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True)]
    return affine
