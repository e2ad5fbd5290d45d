"""DICOM: a folder with a series (or one file) of CT, MR, PET, radiography, ultrasound; single and multi-frame, plain and compressed.

Volumes are (C, X, Y, Z) with the affine of their positions: X counts columns, Y rows, Z slices along the normal. Radiographs are pictures
(1, H, W), colour pictures (3, H, W), clips (C, T, H, W); none of these has an affine. Several echoes or time points at the same places are
planes of the channel axis, told in `meta["planes"]`. What is odd is told in `meta["findings"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.formats.dicom_even import even_grid, evened
from medgen.data.formats.dicom_files import ENDINGS, Frame, Image, is_dicom
from medgen.data.formats.dicom_pet import uptake
from medgen.data.formats.dicom_pixels import AIR, Rule, rule, stored_planes
from medgen.data.formats.dicom_series import Group, chosen
from medgen.data.formats.dicom_stack import REPEATED
from medgen.data.formats.format import Format, Header, Said, check_size

_UNDECLARED = 1e-3  # share of voxels below air that is told


def header(path: Path, part: str | None) -> Header:
    return _described(path, part)[0]


def read(path: Path, part: str | None) -> Volume:
    head, group, how, even = _described(path, part)
    check_size(path, head)
    stack, meta = group.stack, dict(head.meta)
    findings = list(meta["findings"])
    if stack is not None and stack.problem and not (even and stack.repairable):
        raise MedgenError(f"{path}: {stack.problem}")
    array, padding = _filled(group, how)
    if stack is not None:
        findings += _checked_duplicates(path, group)
    findings += _aired(array, padding, how)
    if stack is None:
        array = array[:, 0] if len(head.shape) == 2 else array
    else:
        array = array.transpose(0, 3, 2, 1)
        if even:
            array = evened(array, stack, AIR if how.units == "HU" else None)
    return Volume(array, head.affine, head.units, {**meta, "findings": findings})


def _described(path: Path, part: str | None) -> tuple[Header, Group, Rule, bool]:
    group, even, findings = chosen(path, part)
    image, stack = group.first.image, group.stack
    findings = [*findings, *group.findings]
    images = list(dict.fromkeys(frame.image for frame in group.frames))
    units, factor = image.units, 1.0
    if image.get("Modality") == "PT":
        how = uptake(images)
        units, factor = how.units, how.factor
        findings += how.findings
    made = rule(group.frames, units, factor, findings)
    if stack is None and image.get("ImagePositionPatient") is not None and image.get("Modality") in ("CT", "MR", "PT"):
        told = "has a position but no usable orientation or pixel spacing: read as a picture without geometry"
        findings.append(Said(told, "train on it as a picture, or export it again with its geometry", "no-geometry"))
    if image.get("RealWorldValueMappingSequence"):
        told = "has a real world value mapping, which is not applied"
        findings.append(Said(told, "apply it when you export, if you need its units", "real-world-values"))
    meta = {**_meta(group, made), "findings": findings}
    if stack is None:
        return Header(group.shape, made.planes, made.dtype, None, made.units, meta), group, made, even
    planes = len(stack.planes)
    if planes > 1 and made.planes > 1:
        raise MedgenError(f"{path}: a colour series with {planes} images at each position; export one of them alone")
    shape, affine, dtype = stack.shape, stack.affine, made.dtype
    if even and (stack.problem is None or stack.repairable):
        shape, affine = even_grid(stack)
        dtype = np.dtype(np.float32)
    if planes > 1:
        meta["planes"] = stack.planes
    return Header(shape, planes * made.planes, dtype, affine, made.units, meta), group, made, even


def _meta(group: Group, how: Rule) -> dict[str, Any]:
    """What is worth keeping of the headers; nothing that names the patient."""
    frame, image = group.first, group.first.image
    meta: dict[str, Any] = {"modality": str(image.get("Modality", "")), "series": str(image.get("SeriesInstanceUID", ""))}
    meta["description"] = str(image.get("SeriesDescription", ""))
    if how.mirror is not None:
        meta["inverted"] = True
    if group.stack is not None:
        meta["dicom"] = {"file": str(image.path), "orientation": [float(v) for v in frame.orientation]}
        return meta
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = image.get(name)
        if spacing is not None and len(spacing) == 2:
            meta["spacing"], meta["spacing_from"] = tuple(float(s) for s in spacing), name
            break
    regions = image.get("SequenceOfUltrasoundRegions")
    if "spacing" not in meta and regions and len(regions) == 1 and regions[0].get("PhysicalUnitsXDirection") == 3:
        meta["spacing"] = (10 * abs(float(regions[0].PhysicalDeltaY)), 10 * abs(float(regions[0].PhysicalDeltaX)))
        meta["spacing_from"] = "SequenceOfUltrasoundRegions"
    if image.frames > 1 and (seconds := _frame_seconds(image)) is not None:
        meta["frame_seconds"] = seconds
    return meta


def _frame_seconds(image: Image) -> float | None:
    time, rate = image.number("FrameTime"), image.number("CineRate") or image.number("RecommendedDisplayFrameRate")
    steps = image.get("FrameTimeVector")
    if time and time > 0:
        return time / 1000
    if steps is not None and len(np.atleast_1d(steps)) > 1:
        return float(np.mean([float(step) for step in steps][1:])) / 1000
    return 1 / rate if rate and rate > 0 else None


def _filled(group: Group, how: Rule) -> tuple[np.ndarray, np.ndarray | None]:
    """(C, Z, rows, columns) of values, and where they are padding; each file is decoded once."""
    rows, columns = group.first.image.size
    stack = group.stack
    depth = group.first.image.frames if stack is None else len(stack.offsets)
    planes = 1 if stack is None else len(stack.planes)
    array = np.empty((planes * how.planes, depth, rows, columns), how.dtype)
    padding = np.zeros(array.shape, bool) if how.padding else None
    for plane, level, frame, stored in _stored(group):
        if how.planes == 3:
            array[:, level] = np.moveaxis(stored, -1, 0)
            continue
        array[plane, level] = how.values(stored, frame)
        if padding is not None:
            padding[plane, level] = how.padded(stored, frame)
    return array, padding


def _stored(group: Group) -> Iterator[tuple[int, int, Frame, np.ndarray]]:
    """(plane, slice, frame, stored numbers), file after file."""
    jobs: dict[Image, list[tuple[int, int, Frame]]] = {}
    if group.stack is None:
        frame = group.first
        indices = range(frame.image.frames)
        yield from ((0, i, frame, stored) for i, stored in zip(indices, stored_planes(frame.image, indices), strict=True))
        return
    for plane, levels in enumerate(group.stack.places):
        for level, frames in enumerate(levels):
            jobs.setdefault(frames[0].image, []).append((plane, level, frames[0]))
    for image, wanted in jobs.items():
        decoded = stored_planes(image, [frame.index for _, _, frame in wanted])
        yield from ((*job, stored) for job, stored in zip(wanted, decoded, strict=True))


def _checked_duplicates(path: Path, group: Group) -> list[str]:
    """Copies of a slice are left out and told; two different ones at one place are refused."""
    copies = 0
    for level in (level for plane in group.stack.places for level in plane if len(level) > 1):
        first, *others = level
        kept = next(iter(stored_planes(first.image, [first.index])))
        for other in others:
            same = (other.slope, other.intercept) == (first.slope, first.intercept)
            if not same or not np.array_equal(kept, next(iter(stored_planes(other.image, [other.index])))):
                names = f"{first.image.path.name} and {other.image.path.name}"
                raise MedgenError(f"{path}: {names} hold different images of the same position; keep one of them")
            copies += 1
    told = f"{copies} identical cop{'ies' if copies > 1 else 'y'} of slices left out"
    return [Said(told, REPEATED, "slices-repeated", note=True)] if copies else []


def _aired(array: np.ndarray, padding: np.ndarray | None, how: Rule) -> list[str]:
    """Set declared padding to air in CT, elsewhere to the lowest measured value; tell that, and what lies below air undeclared."""
    findings = []
    if padding is not None and padding.any() and not padding.all():
        was, share = array[padding], padding.mean()
        fill = AIR if how.units == "HU" else array[~padding].min()
        array[padding] = fill
        told = f"{share:.1%} of the voxels are declared padding (values from {was.min():g}): set to {fill:g} {how.units}"
        findings.append(Said(told, "nothing to do: they are background now", "padding-declared", note=True))
    if how.units == "HU" and array.size:
        below = float((array < AIR).mean())
        if below > _UNDECLARED:
            told = f"{below:.1%} of the voxels lie below {AIR:g} HU (lowest {array.min():g}), which no tissue does"
            remedy = "declare the column as CT, train with ct_hu and set its floor to -1024"
            findings.append(Said(f"{told}: padding that is not declared, kept as stored", remedy, "ct-padding"))
    return findings


FORMAT = Format("DICOM", ENDINGS, header, read, is_dicom, extra="dicom")
