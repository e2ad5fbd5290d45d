"""Reconstruction with a pretrained model: from what was measured to an image, its uncertainty and its residual."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medgen.checkpoint import build
from medgen.cli.configs import config_dir
from medgen.core.condition import Condition, Measurement
from medgen.core.errors import MedgenError, nearest
from medgen.core.levels import Below, LevelGrid
from medgen.core.operator import Operator, Sampling
from medgen.core.random import Rng
from medgen.core.volume import Volume
from medgen.inference.agreement import check_kspace
from medgen.operators.mri import MaskedFourier
from medgen.operators.sampling import usual
from medgen.samplers.choice import renewed
from medgen.samplers.euler import Euler
from medgen.solvers.consistency import consistent
from medgen.solvers.posterior import check_denoises, measured_noise

if TYPE_CHECKING:
    from medgen.inference.pretrained import Pretrained

BATCH = 8


@dataclass(frozen=True)
class Acquisition:
    """What a machine measured of one image, in the image's own units: y = A x + noise.

    Attributes:
        y: (N, ...) as the operator gives it, with N = 1 for a plain picture or a 3D model, else one entry per slice.
        operator: A.
        state: masks and coil maps of the operator, (N, ...) or (1, ...) where all slices share them.
        noise: standard deviation of each real component of y, in the units of y.
        size: grid of the image, *S of the model.
        grid: a volume on the model's grid whose geometry the result takes, or None for a result without geometry.
        axis: the axis of `grid` that the slices are cut across, or None.
        truth: (N, C, *S) what was measured, where it is known, in stored units.
        ends: parameters of the intensity map for the whole image; None fits them to what is shown of y. Slices keep those of the whole.
    """

    y: Tensor
    operator: Operator
    state: Mapping[str, Tensor]
    noise: float
    size: tuple[int, ...]
    grid: Volume | None = None
    axis: int | None = None
    truth: np.ndarray | None = None
    ends: Mapping[str, float] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        share = f", {float(self.state['mask'].float().mean()):.0%} measured" if "mask" in self.state else ""
        what = f"{type(self.operator).__name__} of {len(self)} x {' x '.join(map(str, self.size))}"
        return f"Acquisition({what}, y {tuple(self.y.shape)} {self.y.dtype}{share}, noise {self.noise:.4g})"

    def __getitem__(self, rows: slice | int) -> Acquisition:
        """One slice or some neighbouring ones, at their place in the world and in the scale of the whole image."""
        rows = slice(rows, rows + 1) if isinstance(rows, int) else rows
        if not range(len(self))[rows] or rows.step not in (None, 1):
            raise MedgenError(f"no slices {rows.start}:{rows.stop}:{rows.step or 1} of {len(self)}; take neighbours, the first is 0")
        state = {k: v if len(v) == 1 else v[rows] for k, v in self.state.items()}
        truth = None if self.truth is None else self.truth[rows]
        return replace(self, y=self.y[rows], state=state, grid=self._slab(rows), truth=truth)

    def _slab(self, rows: slice) -> Volume | None:
        if self.grid is None or self.axis is None:
            return self.grid
        affine = None if self.grid.affine is None else np.array(self.grid.affine)
        if affine is not None:
            affine[:3, 3] += range(len(self))[rows].start * affine[:3, self.axis]
        return self.grid.with_array(self.grid.array[(slice(None),) * (self.axis + 1) + (rows,)], affine=affine)


@dataclass(frozen=True)
class Reconstructed:
    """What a measurement says about an image.

    Attributes:
        image: the mean of the draws.
        std: their standard deviation, voxel by voxel; None for a single draw or a model that always answers the same.
        residual: root mean square of y - A x over the noise, mean over slices and draws; near 1 where a draw explains the measurement.
        view: what the measurement alone shows, such as the zero-filled image.
        samples: (draws, N, C, *S) in stored units.
    """

    image: Volume
    std: Volume | None
    residual: float
    view: Volume
    samples: np.ndarray

    def __repr__(self) -> str:
        drawn = f"{len(self.samples)} draw{'s' * (len(self.samples) > 1)}"
        return f"Reconstructed({self.image!r}, {drawn}, residual {self.residual:.3g} x the noise)"


def simulated(
    model: Pretrained,
    volume: Volume,
    operator: Operator | None = None,
    sampling: Sampling | None = None,
    noise: float | None = None,
    seed: int = 0,
) -> Acquisition:
    """A measurement of an image on the model's grid. What is None is the task's, or for a prior one coil, 4 x, noise 0.02.

    Args:
        noise: in network units (full contrast is 2).
    """
    task = model.task
    _check_model(model)
    if task.operator is None:
        check_denoises(model.model)
    given, operator = operator, operator or task.operator or MaskedFourier()
    if sampling is None:
        sampling = task.sampling if given is None and task.operator is not None else usual(operator)
    low, high = (noise, noise) if noise is not None else (task.noise if task.operator is not None else (0.02, 0.02))
    channel = model.task.target[0]
    on_grid = model.regridded(volume)
    axis = slice_axis(model, on_grid)
    x = torch.from_numpy(rows_of(on_grid.array, axis))
    mapping = model.contract.map_of(channel)
    contrast, _ = _affine(mapping, mapping.fit(volume.array))  # as in training: of the file's own voxels
    std = (low * high) ** 0.5 / contrast
    rng = Rng(seed, 1, range(len(x)))  # not step 0, where the draws of the reconstruction are
    state = sampling.draw(tuple(x.shape), rng)
    measured = operator.measure(x, state, torch.full((len(x),), std), rng)
    return scaled(model, Acquisition(measured.y, operator, state, std, tuple(x.shape[2:]), on_grid, axis, x.numpy()))


def scaled(model: Pretrained, acquired: Acquisition) -> Acquisition:
    """The same measurement with the intensity parameters of all that was measured, which some slices alone would not give."""
    mapping = model.contract.map_of(model.task.target[0])
    view = acquired.operator.view(acquired.y, _whole_state(acquired))[:, :1]
    return replace(acquired, ends=mapping.fit(view.float().numpy()))


def _whole_state(acquired: Acquisition) -> dict[str, Tensor]:
    """One mask and one set of maps per slice; refused where they or y do not fit, or where a slice was not measured at all."""
    slices = len(acquired)
    for name, value in acquired.state.items():
        if len(value) not in (1, slices):
            raise MedgenError(f"the measurement has {slices} slices, its {name} {len(value)}: give one for all, or one each")
    state = {k: v.expand(slices, *v.shape[1:]) for k, v in acquired.state.items()}
    expected, found = acquired.operator.shape((slices, 1, *acquired.size), state), tuple(acquired.y.shape)
    if found != tuple(expected):
        raise MedgenError(f"the measurement has shape {found}; for images of {acquired.size} this operator gives {expected}")
    empty = (acquired.operator.components(acquired.y, state) == 0).nonzero()
    if len(empty):
        raise MedgenError(f"slice {int(empty[0])} of the measurement holds nothing that was measured; leave it out, or give its mask")
    return state


def reconstruct(
    model: Pretrained,
    acquired: Acquisition,
    solver: str | Callable[..., Tensor] | None = None,
    options: Mapping[str, Any] | None = None,
    draws: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Reconstructed:
    """Draw images that fit `acquired`, and say how sure they are.

    A model of the reconstruction task is asked directly, and its answer is made consistent with the measurement; any other model is
    a prior, which `solver` turns into posterior samples without training.

    Args:
        solver: "mmps" (None), "dps" or an object such as `medgen.solvers.posterior.Posterior`; for priors only.
        options: settings of a named solver, such as {"steps": 60, "guidance.iterations": 5}; for a model of the reconstruction task
            {"consistency": False} leaves its answer as it is.
        draws: samples; image and standard deviation are over these.
        progress: called with (slices drawn, slices to draw).

    Raises:
        MedgenError: a model that cannot denoise, one that was trained for another operator, measurements of another shape.
    """
    problem = _problem(model, acquired)
    if model.task.operator is None:
        ask = _zero_shot(model, "mmps" if solver is None else solver, options or {})
    else:
        ask = _direct(model, solver, options or {})
    one_answer = not _is_random(model)
    draws = 1 if one_answer else draws
    pairs = [(draw, row) for draw in range(draws) for row in range(len(acquired))]
    made, residuals = [], []
    for first in range(0, len(pairs), BATCH):
        part = pairs[first : first + BATCH]
        rows = torch.tensor([row for _, row in part], device=model.device)
        measured = problem.measured.map(lambda t, rows=rows: t[rows])
        x = ask(measured, (len(part), len(model.task.target), *acquired.size), Rng(seed, 0, [draw for draw, _ in part], model.device))
        made.append(x.float().cpu())
        residuals.append((measured.operator.residual(x, measured) / measured.noise).cpu())
        if progress:
            progress(first + len(part), len(pairs))
    samples = problem.stored(torch.cat(made).unflatten(0, (draws, -1)).numpy())
    std = None if draws == 1 else _volume(model, acquired, samples.std(0, ddof=1), f"{model._units} (standard deviation)")
    return Reconstructed(
        _volume(model, acquired, samples.mean(0)), std, float(torch.cat(residuals).mean()), _volume(model, acquired, problem.view), samples
    )


@dataclass(frozen=True)
class _Problem:
    """A measurement in network units, what it shows in stored ones, and the affine intensity map x = scale v + offset between them."""

    measured: Measurement
    view: np.ndarray
    scale: float
    offset: float

    def stored(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.offset) / self.scale).astype(np.float32)


def _problem(model: Pretrained, acquired: Acquisition) -> _Problem:
    """Checks, and y in network units: A is linear and the intensity map affine, so A (scale v + offset) = scale y + A offset."""
    _check_task(model, acquired)
    y, device = acquired.y, model.device
    state = {k: v.to(device) for k, v in _whole_state(acquired).items()}
    shape = (len(y), 1, *acquired.size)
    y = y.to(device)
    mapping = model.contract.map_of(model.task.target[0])
    if isinstance(acquired.operator, MaskedFourier):
        check_kspace(y, state["mask"])
    view = acquired.operator.view(y, state)[:, :1].float().cpu().numpy()
    scale, offset = _affine(mapping, acquired.ends if acquired.ends is not None else mapping.fit(view))
    zero = acquired.operator.measured(acquired.operator(torch.full(shape, offset, device=device), state), state)
    noise = torch.full((len(y),), acquired.noise * scale, device=device)
    measured = Measurement(acquired.operator.measured(y, state) * scale + zero, acquired.operator, state, noise)
    measured_noise(Condition(measurement=measured))
    return _Problem(measured, view, scale, offset)


def _check_task(model: Pretrained, acquired: Acquisition) -> None:
    own, given = model.task.operator, acquired.operator
    _check_model(model)
    if own is not None and (type(own) is not type(given) or vars(own) != vars(given)):
        mine, theirs = (f"{type(o).__name__}({', '.join(f'{k}={v}' for k, v in vars(o).items())})" for o in (own, given))
        raise MedgenError(
            f"this model was trained for {mine} and the measurement is of {theirs};"
            " take a model of that operator, or a diffusion prior, which serves any"
        )
    if len(acquired.size) != model.contract.spatial_dims:
        raise MedgenError(f"the measurement is of images with {len(acquired.size)} axes, the model makes {model.contract.spatial_dims}")


def _check_model(model: Pretrained) -> None:
    task = model.task
    needed = [*task.source, *task.labels, *task.attributes]
    if needed:
        raise MedgenError(
            f"this model makes {', '.join(task.target)} from {', '.join(needed)}; reconstruction takes a prior without condition"
        )
    if len(model.task.target) > 1:
        raise MedgenError(f"reconstruction takes models of one channel, this one makes {', '.join(model.task.target)}")


def _is_random(model: Pretrained) -> bool:
    """Whether two draws differ: a regression network gives one answer, and so does a generator without latent."""
    return hasattr(model.model, "sampler") or hasattr(model.model, "draw_latent") or getattr(model.model, "latent", 0) > 0


def _direct(model: Pretrained, solver: str | Callable[..., Tensor] | None, options: Mapping[str, Any]) -> Callable[..., Tensor]:
    """A model of the reconstruction task, made consistent with the measurement."""
    if solver is not None:
        raise MedgenError(f"a model of the reconstruction task answers by itself and takes no solver, got {solver!r}; leave it out")
    unknown = set(options) - {"consistency"}
    if unknown:
        raise MedgenError(f"a model of the reconstruction task takes the option 'consistency' only, got {', '.join(sorted(unknown))}")

    @torch.no_grad()
    def ask(measured: Measurement, shape: tuple[int, ...], rng: Rng) -> Tensor:
        x = model.model.sample(model.task.condition({"measurement": measured}), shape, rng).float()
        return consistent(x, measured) if options.get("consistency", True) else x

    return ask


def _zero_shot(model: Pretrained, solver: str | Callable[..., Tensor], options: Mapping[str, Any]) -> Callable[..., Tensor]:
    """A prior with a solver."""
    chosen = named_solver(solver, model, options) if isinstance(solver, str) else solver

    def ask(measured: Measurement, shape: tuple[int, ...], rng: Rng) -> Tensor:
        return chosen(model.model, Condition(measurement=measured), shape, rng)

    return ask


def named_solver(name: str, model: Pretrained, options: Mapping[str, Any] | None = None) -> Callable[..., Tensor]:
    """The solver of `configs/solver/<name>.yaml` on the model's own noise levels.

    Args:
        options: values to change, dotted names such as "guidance.iterations".
    """
    from omegaconf import OmegaConf

    paths = {path.stem: path for path in (config_dir() / "solver").glob("*.yaml")}
    if name not in paths:
        raise MedgenError(f"no solver '{name}'; {nearest(name, paths)}")
    config = OmegaConf.load(paths[name])
    for key, value in (options or {}).items():
        if key not in _leaves(OmegaConf.to_container(config)):
            raise MedgenError(f"solver '{name}' has no option '{key}'; {nearest(key, _leaves(OmegaConf.to_container(config)))}")
        OmegaConf.update(config, key, value)
    recipe = OmegaConf.to_container(config)
    steps, sampler, start = (recipe.pop(key) for key in ("steps", "sampler", "start"))
    walk = _walk(model, sampler, steps)
    if walk is not None and start is not None:
        walk.grid = Below(walk.grid, float(start))
    return build({**recipe, "sampler": walk}, trusted=True)


def _walk(model: Pretrained, sampler: str, steps: int) -> Any:
    """The sampler on the noise levels that the model was made for; None for a model that cannot denoise, which the solver refuses."""
    own, levels = getattr(model.model, "sampler", None), getattr(model.model, "levels", None)
    if not callable(getattr(model.model, "denoise", None)):
        return None
    if hasattr(own, "grid"):
        return renewed(own, sampler, steps)
    if isinstance(levels, LevelGrid):  # an imported model, walked by a scheduler of diffusers
        return renewed(Euler(levels, steps), sampler, steps)
    raise MedgenError("the noise levels of this model's sampler are not known; give a solver object with a sampler of your own")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif not key.startswith("_"):
            yield f"{prefix}{key}"


def _affine(mapping: Any, parameters: Mapping[str, float]) -> tuple[float, float]:
    """scale and offset of x = scale v + offset."""
    offset = float(mapping.forward(0.0, **parameters))
    return float(mapping.forward(1.0, **parameters)) - offset, offset


def slice_axis(model: Pretrained, volume: Volume) -> int | None:
    """The axis that a 2D model cuts a volume across; None for pictures and 3D models."""
    return model.contract.slice_axis if len(volume.shape) > model.contract.spatial_dims else None


def rows_of(array: np.ndarray, axis: int | None) -> np.ndarray:
    """(C, *grid) -> (N, C, *S) float32, slices first; N = 1 where nothing is cut."""
    rows = array[None] if axis is None else np.moveaxis(array, axis + 1, 0)
    return np.ascontiguousarray(rows, np.float32)


def _volume(model: Pretrained, acquired: Acquisition, rows: np.ndarray, units: str | None = None) -> Volume:
    """(N, C, *S) in stored units as a volume, with the geometry of the grid where there is one."""
    axis = acquired.axis if acquired.axis is not None else 0 if len(rows) > 1 else None
    whole = np.ascontiguousarray(rows[0] if axis is None else np.moveaxis(rows, 0, axis + 1))
    units, meta = units or model._units, {"model": str(model.folder or "")}
    if acquired.grid is None:
        return Volume(whole, None, units, meta)
    return acquired.grid.with_array(whole, units=units, meta={**acquired.grid.meta, **meta})
