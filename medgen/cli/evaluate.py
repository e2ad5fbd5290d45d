"""`medgen evaluate`: numbers and pictures of a model on the images of a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.cli.loading import given, pretrained
from medgen.cli.rank import shared
from medgen.core.errors import MedgenError
from medgen.core.neighbours import neighbour
from medgen.core.volume import Volume, folder_for
from medgen.data.checks import attribute, check_pair, one_plane
from medgen.data.files import FileData
from medgen.data.manifest import Manifest
from medgen.data.options import Options
from medgen.data.planes import plane_of
from medgen.data.readers import read
from medgen.evaluation.masks import body_mask
from medgen.evaluation.report import free_paths, summary, write_report
from medgen.evaluation.samples import write_samples_report
from medgen.evaluation.volumes import Evaluation, PairedCase, evaluate_translation
from medgen.inference import Pretrained
from medgen.training import ranks

SHOWN = 4  # volumes in the picture
AIR = -500.0  # HU: between lung and fat


@shared
def run(options: argparse.Namespace) -> None:
    """Translation and reconstruction: PSNR, SSIM, NMSE and MAE per volume. Synthesis: feature distance and nearest neighbours.

    Ranks share the volumes, or the samples; rank 0 has all results and writes them.
    """
    name = "evaluation"
    with ranks.agreed():
        free_paths(folder_for(Path(options.output)), name, options.overwrite)
        model = pretrained(options)
        manifest = Manifest.read(options.data)
        part = _part(model)(model, manifest, options)
    parts = ranks.gathered(part)
    if not parts:
        return
    if _part(model) is not samples:
        evaluation = joined(parts)
        paths = write_report(evaluation, options.output, name, options.overwrite)
        print(table(evaluation))
        print(f"written: {', '.join(map(str, paths))}")
        return
    report = synthesis(model, options, name, torch.stack(in_turn(parts)))
    ratio, share = report["frechet"]["ratio"], report["nearest_training"]["share_nearer_than_5th_percentile"]
    print(f"feature distance: {ratio:.2f} times the real-against-real floor; nearer to training than held-out images' 5 %: {share:.0%}")
    print(f"written: {Path(options.output) / name}.json and .png")


def translation(model: Pretrained, manifest: Manifest, options: argparse.Namespace) -> Evaluation:
    """This rank's volumes of the split on the model's grid, in network units."""
    rows = manifest.split(options.split)
    rows.require_files([column(rows, c)[0] for c in channels(model)], blank=model.task.availability)
    own = rows.rows[ranks.rank() :: ranks.world()]
    if not own:
        return Evaluation()
    said = given(options)
    conditions: dict[str, Any] = {}  # of the case at hand

    def cases() -> Iterator[PairedCase]:
        for row in own:
            conditions.clear()
            conditions.update(row_attributes(model, rows, row) | said)
            yield paired(model, rows, row)

    def predict(source: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(model.predict(source[0].numpy(), options.seed, conditions, options.draws)))[None]

    axis = 2 if model.contract.slice_axis is None else model.contract.slice_axis
    evaluation = evaluate_translation(predict, cases(), show=SHOWN, slice_axis=axis)
    evaluation.protocol |= {
        "model": str(model.folder),
        "data": f"{manifest.path}, split {options.split}",
        "seed": str(options.seed),
        "draws": str(options.draws),
        "grid": f"{model.contract.orientation}, spacing {model.contract.spacing} mm, slices along axis {model.contract.slice_axis}",
    }
    if any(rule_name(model, c) == "ct_hu" for c in channels(model)):
        evaluation.protocol["body"] = f"above {AIR:g} HU in any CT channel: the largest connected part, holes filled"
    return evaluation


def _part(model: Pretrained) -> Callable[..., Any]:
    """What one rank does of an evaluation of this model."""
    if model.task.source:
        return translation
    return reconstruction if model.task.operator is not None else samples


def reconstruction(model: Pretrained, manifest: Manifest, options: argparse.Namespace) -> Evaluation:
    """This rank's volumes, measured as in training and reconstructed; the source of a case is what the measurement shows."""
    rows = manifest.split(options.split)
    rows.require_files(model.task.target)
    own = rows.rows[ranks.rank() :: ranks.world()]
    if not own:
        return Evaluation()
    made: dict[str, Tensor] = {}  # of the case at hand
    channel = model.task.target[0]

    def cases() -> Iterator[PairedCase]:
        for row in own:
            volume = one_plane(read(manifest.file(row, channel)), channel)
            acquired = model.simulate(volume, seed=options.seed)
            result = model.reconstruct(acquired, draws=options.draws, seed=options.seed)
            mapping = model.contract.map_of(channel)
            ends = mapping.fit(volume.array)
            view, image, truth = (
                torch.from_numpy(np.asarray(mapping.forward(v, **ends), np.float32))[None]
                for v in (result.view.array, result.image.array, acquired.grid.array)
            )
            made["image"] = image
            yield PairedCase(row["subject"], view, truth, mask=body(model, {channel: volume}))

    axis = 2 if model.contract.slice_axis is None else model.contract.slice_axis
    evaluation = evaluate_translation(lambda source: made["image"], cases(), show=SHOWN, slice_axis=axis)
    evaluation.protocol |= {
        "model": str(model.folder),
        "data": f"{manifest.path}, split {options.split}, measured by {type(model.task.operator).__name__} as in training",
        "seed": str(options.seed),
        "draws": str(options.draws),
    }
    return evaluation


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """The ranks' evaluations as one, with the volumes in the manifest's order."""
    first = parts[0]
    regions = len({row.region for row in first.rows})
    volumes = [[part.rows[i : i + regions] for i in range(0, len(part.rows), regions)] for part in parts]
    rows = [row for volume in in_turn(volumes) for row in volume]
    shown = in_turn([part.shown for part in parts])[:SHOWN]
    return Evaluation(rows, shown, first.data_range, first.protocol)


def in_turn(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """What ranks took in turn, in its first order."""
    nothing = object()
    return [item for turn in zip_longest(*parts, fillvalue=nothing) for item in turn if item is not nothing]


def channels(model: Pretrained) -> tuple[str, ...]:
    """Source and target channels; a name that is both counts once."""
    return tuple(dict.fromkeys((*model.task.source, *model.task.target)))


def rule_name(model: Pretrained, channel: str) -> str:
    return model.contract.intensity[channel]["name"]


def paired(model: Pretrained, manifest: Manifest, row: dict[str, str]) -> PairedCase:
    """One row as source, target and body, on the model's grid in network units."""
    where = f"{manifest.path}: subject {row['subject']}"
    places = {c: column(manifest, c) for c in channels(model)}
    files = {name: read(manifest.file(row, name)) for name, _ in dict.fromkeys(places.values()) if row[name]}
    volumes = {c: one_plane(files[name], c, plane) for c, (name, plane) in places.items() if name in files}
    check_pair(volumes, where)
    absent = [c for c in model.task.target if c not in volumes]
    if absent:
        raise MedgenError(f"{where}: has no file for '{absent[0]}', which is to be compared with; fill the cell or leave the row out")
    images = [stacked(model, volumes, names) for names in (model.task.source, model.task.target)]
    try:
        return PairedCase(row["subject"], *images, mask=body(model, volumes))
    except MedgenError as error:
        raise MedgenError(f"{where}: {error}") from error


def body(model: Pretrained, volumes: dict[str, Volume]) -> Tensor:
    """(1, 1, *S) bool: by Hounsfield units where there are any, else what is not background in source and target.

    Found on the files' own grid, where background is exact, and brought to the model's by nearest voxel: interpolation spreads a
    thin dark rim around a stripped head, and a mask found there would score that rim.
    """
    hounsfield = [v for c, v in volumes.items() if rule_name(model, c) == "ct_hu"]
    stored = torch.from_numpy(np.concatenate([v.array for v in hounsfield or volumes.values()]))
    mask = body_mask(stored, AIR if hounsfield else None).numpy().astype(np.float32)
    first = next(iter(volumes.values()))
    return torch.from_numpy(model.regridded(first.with_array(mask), labels=True).array > 0.5)[None]


def row_attributes(model: Pretrained, manifest: Manifest, row: dict[str, str]) -> dict[str, int | float]:
    """The model's attributes that the manifest has a column for."""
    return {n: attribute(row, n, classes, manifest.path) for n, classes in model.task.attributes.items() if n in manifest.columns}


def column(manifest: Manifest, channel: str) -> tuple[str, int | None]:
    """The manifest's column of a channel, and the plane of its files."""
    return plane_of(neighbour(channel)[0], manifest.columns)


def stacked(model: Pretrained, volumes: dict[str, Volume], names: Sequence[str]) -> Tensor:
    """Channels in network units on the model's grid: (1, K, *S); one that the row lacks is NaN everywhere."""
    there = {name: model.on_grid(volumes[name], name).array for name in names if name in volumes}
    missing = np.full_like(next(iter(there.values())), np.nan)
    arrays = [there.get(name, missing) for name in names]
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(arrays)))[None]


def samples(model: Pretrained, manifest: Manifest, options: argparse.Namespace) -> list[Tensor]:
    """This rank's samples (C, *S) in network units."""
    own = range(ranks.rank(), options.n, ranks.world())
    conditions = drawn_attributes(model, manifest.split(options.split), options.n) | given(options)
    return [network_units(model, v) for v in model.generate(options.n, options.seed, conditions, only=own)]


def synthesis(model: Pretrained, options: argparse.Namespace, name: str, made: Tensor) -> dict[str, Any]:
    """Samples (N, C, *S) against the split's images, with the training split as what might have been copied."""
    contract = model.contract
    rules = {c: {k: v for k, v in contract.intensity[c].items() if k != "typical"} for c in contract.target}
    data = FileData(options.data, rules, contract.size, spacing=contract.spacing, slice_axis=contract.slice_axis, options=Options())
    real = {split: images(data, split, contract.target) for split in ("train", options.split)}
    if made.shape[1:] != real["train"].shape[1:]:
        raise MedgenError(f"samples have shape {tuple(made.shape[1:])}, the data's images {tuple(real['train'].shape[1:])}")
    return write_samples_report(
        made, real["train"], real[options.split], options.output, name, options.overwrite, contract.spacing is not None
    )


def drawn_attributes(model: Pretrained, manifest: Manifest, n: int) -> dict[str, list[int | float]]:
    """For `n` samples the attributes of the split's rows, in turn, so that both have the same mixture."""
    rows = [row_attributes(model, manifest, row) for row in manifest.rows]
    return {name: [rows[i % len(rows)][name] for i in range(n)] for name in rows[0]}


def network_units(model: Pretrained, volume: Volume) -> Tensor:
    """A generated volume back in network units, without the thin axis of a slice: (C, *S)."""
    contract = model.contract
    channels = [contract.map_of(c).forward(volume.array[i], **contract.typical(c)) for i, c in enumerate(contract.target)]
    array = np.stack(channels)
    if contract.slice_axis is not None and volume.affine is not None:
        array = array.squeeze(contract.slice_axis + 1)
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def images(data: FileData, split: str, channels: tuple[str, ...]) -> Tensor:
    """All cases of a split: (N, C, *S)."""
    cases = data.split(split)
    rng = np.random.default_rng(0)
    rows = (cases.case(i, rng) for i in range(len(cases)))
    return torch.from_numpy(np.stack([np.concatenate([row[c] for c in channels]) for row in rows]))


def table(evaluation: Evaluation) -> str:
    """The means and intervals for the terminal."""
    data = summary(evaluation)
    lines = [f"{data['n_volumes']} volumes of {data['n_subjects']} subjects, data range {data['data_range']:g}"]
    for region, metrics in data["regions"].items():
        cells = []
        for metric, entry in metrics.items():
            interval = entry.get("interval")
            text = f"{metric} {entry['mean']:.4g}" if entry.get("mean") is not None else f"{metric} -"
            cells.append(text + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""))
        lines.append(f"  {region:<6} {'  '.join(cells)}")
    return "\n".join(lines)
