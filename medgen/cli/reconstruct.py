"""`medgen reconstruct`: image, standard deviation map and residual from a measurement."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.cli.loading import pretrained
from medgen.cli.measuring import LINES, OPERATORS, array, check_options, fitting, maps_in, operator_name, operator_of, sampled, simulated
from medgen.cli.saving import series_of, write
from medgen.core.errors import MedgenError
from medgen.core.geometry import reoriented
from medgen.core.volume import WRITERS, Volume, writable
from medgen.data.checks import opened
from medgen.data.formats.kspace import FORMAT as KSPACE
from medgen.data.formats.kspace import read_kspace, without_oversampling
from medgen.inference import Acquisition, Pretrained, Reconstructed
from medgen.inference.reconstruction import rows_of, scaled, slice_axis
from medgen.metrics.pixel import psnr
from medgen.operators.downsample import Downsample
from medgen.operators.mri import MaskedFourier, calibrated_maps

MUCH, LITTLE = 2.0, 0.5  # residuals over the noise that are told: what does not explain the measurement, and what explains its noise too


def run(options: argparse.Namespace) -> None:
    """Write the image, `<name>_std`, `<name>_view` and `<name>.json`; nothing existing is replaced without `--overwrite`."""
    paths = outputs(Path(options.output), options.overwrite)
    model = pretrained(options)
    if model.task.operator is not None and options.solver_steps is not None:  # a model of the task is not solved but sampled
        model, options.solver_steps = model.with_sampler(steps=options.solver_steps), None
    check_options(model, options)
    acquired, how = simulated(model, options) if options.simulate else (scaled(model, measured(model, options)), {})
    acquired = chosen_slices(acquired, options.slices)
    if acquired.size != tuple(model.contract.size):
        print(f"note: images of {acquired.size}, the model was trained on {tuple(model.contract.size)}", file=sys.stderr)
    if acquired.grid is None and paths["image"].name.endswith((".nii", ".nii.gz")):
        raise MedgenError(f"{paths['image'].name}: a NIfTI needs an affine, and this result has no geometry; write .npy or .png")
    reference = series_of(acquired.grid, paths["image"], options.keep_patient)
    made = model.reconstruct(acquired, options.solver, settings(options), options.draws, options.seed, told)
    results = {"image": made.image, "view": made.view, "std": made.std}
    for name in (name for name, volume in results.items() if volume is not None):
        write(results[name], paths[name], options.overwrite, reference, options.keep_patient)
    report = summary(acquired, made, model)
    report |= {"solver": options.solver or ("mmps" if model.task.operator is None else None), "options": settings(options)}
    report |= {"seed": options.seed, "draws": len(made.samples), "model": str(model.folder), "input": options.input}
    report |= {"simulated": options.simulate, "operator": type(acquired.operator).__name__, "factors": options.factors}
    report |= {"mask": options.mask, "maps": options.maps, **dict.fromkeys(LINES), **how, "slice_range": options.slices}
    paths["json"].write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join(sentence(paths, report, made)))
    if doubt := doubtful(made.residual):
        print(f"warning: {doubt}", file=sys.stderr)


def doubtful(residual: float) -> str | None:
    """What a residual far from the noise may come from."""
    if residual > MUCH:
        remedy = "raise --solver-steps, and check noise, mask and the convention of the transform"
        return f"the result does not explain the measurement ({residual:.1f} x the noise): {remedy}"
    if residual < LITTLE:
        remedy = "check --noise (the transform must be orthonormal, or it is in other units), and that the mask is of this k-space"
        return f"the result explains more of the measurement than its noise allows ({residual:.2f} x the noise): {remedy}"
    return None


def outputs(path: Path, overwrite: bool) -> dict[str, Path]:
    """The files that will be written, refused early where one exists."""
    ending = next((e for e in WRITERS if path.name.lower().endswith(e)), None)
    stem = path.name[: -len(ending)] if ending else path.name
    paths = {"image": path} | {k: path.with_name(f"{stem}_{k}{ending}") for k in ("std", "view")}
    for each in paths.values():
        writable(each, overwrite)
    paths["json"] = path.with_name(f"{stem}.json")
    if paths["json"].exists() and not overwrite:
        raise MedgenError(f"{paths['json']} exists; choose another name or pass --overwrite")
    return paths


def measured(model: Pretrained, options: argparse.Namespace) -> Acquisition:
    """What INPUT holds, as it is."""
    if options.noise is None:
        raise MedgenError("a measurement needs --noise, the standard deviation of its real components; or measure an image with --simulate")
    name = operator_name(model, options)
    if name == "fourier":
        return kspace(model, options)
    taken = isinstance(model.task.operator, OPERATORS[name]) and not options.factors
    operator, volume = model.task.operator if taken else operator_of(name, options), opened(options.input, "INPUT")
    if isinstance(operator, Downsample):
        return _larger_voxels(model, options, operator, volume)
    volume = model.regridded(volume)
    axis = slice_axis(model, volume)
    y = torch.from_numpy(rows_of(volume.array, axis))
    state = {"mask": _known(model, options, volume, axis)} if name == "inpaint" else {}
    return Acquisition(y, operator, state, options.noise, tuple(y.shape[2:]), volume, axis)


def _larger_voxels(model: Pretrained, options: argparse.Namespace, operator: Downsample, volume: Volume) -> Acquisition:
    """INPUT on its own grid, which must be the model's with cells of `factors` voxels."""
    spacing = model.contract.spacing
    if spacing is not None and volume.affine is not None:
        volume = reoriented(volume, model.contract.orientation or "RAS")
    axis = slice_axis(model, volume)
    if len(operator.factors) != model.contract.spatial_dims:
        raise MedgenError(f"--factors has {len(operator.factors)} numbers for a model of {model.contract.spatial_dims} axes")
    finer = refined(volume, operator.factors, axis)
    if spacing is not None and finer.affine is not None:
        wrong = [a for a in range(3) if a != axis and abs(finer.spacing[a] / spacing[a] - 1) > 0.05]
        if wrong:
            found, expected = (" x ".join(f"{s:.3g}" for s in sizes) for sizes in (finer.spacing, spacing))
            raise MedgenError(
                f"{options.input}: divided by --factors its voxels measure {found} mm, the model's {expected}; resample it first"
            )
    y = torch.from_numpy(rows_of(volume.array, axis))
    size = tuple(n * f for n, f in zip(y.shape[2:], operator.factors, strict=True))
    return Acquisition(y, operator, {}, options.noise, size, finer, axis)


def refined(volume: Volume, factors: Sequence[int], axis: int | None) -> Volume:
    """The grid of the image whose cells are the voxels of `volume`."""
    factors = list(factors) if axis is None else [*factors[:axis], 1, *factors[axis:]]
    array = volume.array
    for place, factor in enumerate(factors, 1):
        array = array.repeat(factor, place)
    affine = None
    if volume.affine is not None:
        inward = np.diag([*(1 / f for f in factors), 1.0])
        inward[:3, 3] = [(1 / f - 1) / 2 for f in factors]
        affine = volume.affine @ inward
    return volume.with_array(array, affine=affine)


def kspace(model: Pretrained, options: argparse.Namespace) -> Acquisition:
    """fastMRI's .h5, or complex .npy: (*S) or (slices, *S), with --maps (coils, *S) or (slices, coils, *S); its origin in the centre."""
    if options.input.lower().endswith(KSPACE.endings):
        return fastmri(model, options)
    if not options.input.endswith(".npy"):
        remedy = "to measure an image pass --simulate; for a measured image --operator inpaint, downsample or identity"
        raise MedgenError(f"{options.input}: k-space is a complex .npy, or fastMRI's .h5; {remedy}")
    y, dims = array(options.input), model.contract.spatial_dims
    if not np.iscomplexobj(y):
        raise MedgenError(f"{options.input}: k-space is complex and this array is {y.dtype}; to measure an image pass --simulate")
    maps = None if options.maps is None else maps_in(options.maps)
    expected = dims + (maps is not None)
    if y.ndim not in (expected, expected + 1):
        form = "coils and the grid" if maps is not None else "the grid (for several coils pass --maps)"
        raise MedgenError(
            f"{options.input}: shape {y.shape}; expected {form}, with or without a slice axis in front: {expected} or one more axes"
        )
    if y.ndim > expected:
        print(f"{options.input}: {len(y)} slices" + (" (for coils pass --maps)" if maps is None else ""), file=sys.stderr)
    y = torch.from_numpy(y.astype(np.complex64)).reshape(-1 if y.ndim > expected else 1, *y.shape[-expected:])
    y = y if maps is not None else y[:, None]
    state: dict[str, Tensor] = {} if maps is None else {"maps": fitting(options.maps, maps, tuple(y.shape[2:]), len(y), y.shape[1])}
    mask = (y != 0).any(1, keepdim=True) if options.mask is None else sampled(options.mask, tuple(y.shape[-dims:]), len(y))
    state["mask"] = mask.float()
    return Acquisition(y, MaskedFourier(), state, options.noise, tuple(y.shape[2:]))


def fastmri(model: Pretrained, options: argparse.Namespace) -> Acquisition:
    """All slices of a fastMRI file, without the oversampling of the readout, its mask (or where it is not zero), maps of its coils."""
    measured = read_kspace(options.input)
    slices, coils, height, _ = measured.shape
    if model.contract.spatial_dims != 2:
        raise MedgenError(f"{options.input}: holds 2D k-space of {slices} slices and the model makes volumes; take a model of slices")
    y, lines = measured.array, measured.mask if options.mask is None else None
    rows = min(measured.header.get("recon_size", (height,))[0], height)
    if rows < height and (lines is None or lines.ndim == 1):
        y = np.stack([without_oversampling(one, rows) for one in y])
        print(f"{options.input}: the middle {rows} of {height} rows, without the oversampling of the readout", file=sys.stderr)
    y = torch.from_numpy(y)
    grid = tuple(y.shape[2:])
    mask = sampled(options.mask, grid, slices) if lines is None else torch.from_numpy(lines).expand(*lines.shape[:-2], *grid)
    mask = mask.reshape(-1, 1, *grid).float()
    if options.mask is None:  # a file's lines may reach into what the scanner filled with zeros
        mask = mask * (y != 0).any(1, keepdim=True)
    if options.maps is None:
        maps = calibrated_maps(y * mask, mask)
        print(f"{options.input}: {slices} slices, {coils} coils; maps estimated from the centre of k-space", file=sys.stderr)
    else:
        maps = fitting(options.maps, maps_in(options.maps), grid, slices, coils)
    return Acquisition(y, MaskedFourier(), {"maps": maps, "mask": mask}, options.noise, grid)


def chosen_slices(acquired: Acquisition, text: str | None) -> Acquisition:
    """Slices first:last of a volume."""
    if text is None:
        return acquired
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last) <= len(acquired)):
        raise MedgenError(f"--slices takes FIRST:LAST within 0:{len(acquired)}, got '{text}'")
    return acquired[int(first) : int(last)]


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """`--option name=value`, numbers and true / false read as such, with `--steps`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    wrong = [item for item in options.option if "=" not in item]
    if wrong:
        raise MedgenError(f"--option takes NAME=VALUE, got '{wrong[0]}'")
    try:
        values = {k: OmegaConf.create(f"v: {v}").v for k, _, v in (item.partition("=") for item in options.option)}
    except (YAMLError, OmegaConfBaseException) as error:
        raise MedgenError(
            f"--option {' '.join(options.option)} cannot be read; write NAME=NUMBER, such as guidance.iterations=5"
        ) from error
    return values if options.solver_steps is None else {**values, "steps": options.solver_steps}


def summary(acquired: Acquisition, made: Reconstructed, model: Pretrained) -> dict[str, Any]:
    """Residual, noise, sampling and, where the truth is known, PSNR over the model's contrast."""
    report: dict[str, Any] = {"residual_over_noise": round(made.residual, 4), "noise": acquired.noise, "slices": len(acquired)}
    if "mask" in acquired.state:
        report["measured_share"] = round(float(acquired.state["mask"].mean()), 4)
    if acquired.truth is None:
        return report
    mapping = model.contract.map_of(model.task.target[0])
    ends = mapping.fit(acquired.truth)
    contrast = float(mapping.inverse(1.0, **ends) - mapping.inverse(-1.0, **ends))
    truth = torch.from_numpy(acquired.truth)
    for name, rows in (("image", made.samples.mean(0)), ("view", rows_of(made.view.array, acquired.axis))):
        report[f"psnr_{name}"] = round(float(psnr(torch.from_numpy(rows)[None], truth[None], contrast)), 3)
    return report


def sentence(paths: dict[str, Path], report: dict[str, Any], made: Reconstructed) -> list[str]:
    """What is told at the end."""
    lines = [f"{paths['image']}: {len(made.samples)} draw{'s' if len(made.samples) > 1 else ''}, residual {made.residual:.2f} x the noise"]
    if "psnr_image" in report:
        lines.append(f"PSNR {report['psnr_image']:.2f} dB; what the measurement alone shows: {report['psnr_view']:.2f} dB")
    lines.append(f"what the measurement alone shows: {paths['view']}; settings and numbers: {paths['json']}")
    lines.append(f"standard deviation: {paths['std']}" if made.std is not None else "no standard deviation: the answer is a single one")
    return lines


def told(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    if sys.stderr.isatty() or end:
        print(f"\r{done}/{total} slices drawn", end=end, file=sys.stderr, flush=True)


def _known(model: Pretrained, options: argparse.Namespace, volume: Volume, axis: int | None) -> Tensor:
    if options.mask is None:
        raise MedgenError("--operator inpaint needs --mask: an image that is 1 where INPUT is known and 0 in the hole")
    mask = model.regridded(opened(options.mask, "--mask"), labels=True)
    if mask.shape != volume.shape:
        raise MedgenError(f"--mask has the grid {mask.shape}, INPUT {volume.shape}: they must share it")
    return torch.from_numpy(rows_of(mask.array[:1] != 0, axis))
