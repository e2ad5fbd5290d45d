"""What the values and headers of each column tell: damage, types, sizes, scales, and ranges that do not fit the modality."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medgen.data.check import rules_format, rules_series
from medgen.data.check.facts import Image
from medgen.data.check.finding import ERROR, NOTE, WARNING, Data, Finding, counted, spread, tally

_SCALE = 10.0  # times that an image's 99th percentile may differ from the column's median
_SPACING = 1.1  # times that voxel sizes may differ
_UNIT = 300  # times: no two scans differ so much in voxel size, but millimetres and metres do
_OVERFLOW = 32767  # HU beyond which there is no material, and no signed number of 16 bits
_P99 = 198  # place among the quantiles


def rules(data: Data) -> Iterator[Finding]:
    yield from _unread(data)
    for name in data.of("image", "kspace", "labels"):
        yield from _values(data, name)
        yield from _headers(data, name)
        ranges = _range(data, name) if data.columns[name].kind == "image" else ()
        yield from rules_format.absorbed(list(ranges), rules_format.told(data, name))
    for name in data.of("image"):
        yield from _scales(data, name)
        yield from rules_series.rules(data, name)


def modality(data: Data, name: str) -> str | None:
    """Declared, else told by the files, else CT where most images reach below -900 and are volumes or slices."""
    if data.columns[name].modality:
        return data.columns[name].modality
    told = {rules_series.modality_of(image) for _, image in data.images(name)} - {None}
    if len(told) == 1:
        return told.pop()
    valued = data.valued(name)
    if valued and np.mean([-1100 <= image.quantiles[1] <= -900 or image.low <= -1000 for _, image in valued]) > 0.5:
        return "CT"
    return None


def _unread(data: Data) -> Iterator[Finding]:
    for name in data.of("image", "kspace", "labels"):
        rows = [i for i, row in enumerate(data.rows) if name in row.failures]
        absent = [i for i in rows if "no such file" in data.rows[i].failures[name]]
        damaged = [i for i in rows if i not in set(absent)]
        for code, some, what in (("missing-file", absent, "lead to no file"), ("unreadable", damaged, "cannot be read")):
            if some:
                reasons = [data.rows[i].failures[name] for i in some]
                found = f"{name}: {counted(len(some), 'cell')} {what}, the first because: {reasons[0]}"
                remedy = "correct the paths" if code == "missing-file" else "copy or export them again, or leave their rows out"
                yield Finding(ERROR, code, found, remedy, **{**data.told(some, name, reasons), "shown": ()})


def _values(data: Data, name: str) -> Iterator[Finding]:
    images = list(data.images(name))
    nan = [(i, image) for i, image in images if image.nonfinite]
    if nan:
        amount = spread([im.nonfinite for _, im in nan])
        found = f"{name}: {counted(len(nan), 'image holds', 'images hold')} NaN or infinite values ({amount} of them)"
        yield Finding(
            ERROR,
            "not-finite",
            found,
            "training refuses them: replace these voxels (background) or mask the image",
            **data.told(_rows(nan), name),
        )
    flat = [(i, image) for i, image in data.valued(name) if image.constant]
    if flat and data.columns[name].kind == "labels":
        found = f"{name}: {len(flat)} of {len(images)} label maps hold the one value {tally([f'{im.low:g}' for _, im in flat])}"
        yield Finding(
            NOTE, "label-empty", found, "right where there is nothing to mark; else find their labels", **data.told(_rows(flat), name)
        )
    elif flat:
        found = f"{name}: {counted(len(flat), 'image is', 'images are')} constant ({tally([f'{im.low:g}' for _, im in flat])})"
        yield Finding(
            ERROR,
            "constant",
            found,
            "an empty image teaches nothing: leave these rows out or export them again",
            **data.told(_rows(flat), name),
        )
    types = {image.dtype for _, image in images}
    if len(types) > 1:
        yield _types(data, name, images)


def _types(data: Data, name: str, images: list[tuple[int, Image]]) -> Finding:
    tops: dict[str, list[float]] = {}
    for _, image in images:
        if image.quantiles is not None:
            tops.setdefault(image.dtype, []).append(abs(float(image.quantiles[_P99])))
    medians = [float(np.median(values)) for values in tops.values()]
    apart = data.columns[name].kind == "image" and min(medians, default=0) > 0 and max(medians) > 5 * min(medians)
    rarest = min({im.dtype for _, im in images}, key=[im.dtype for _, im in images].count)
    said = "; ".join(f"{dtype} up to about {np.median(values):.4g}" for dtype, values in tops.items())
    found = f"{name}: mixed data types: {tally([im.dtype for _, im in images])}" + (f"; and their scales differ: {said}" if apart else "")
    remedy = (
        "bring them to one scale, or use an intensity map that fits each image (mr_percentile)"
        if apart
        else "nothing to do: all are read as real numbers"
    )
    return Finding(
        WARNING if apart else NOTE, "mixed-types", found, remedy, **data.told([i for i, im in images if im.dtype == rarest], name)
    )


def _headers(data: Data, name: str) -> Iterator[Finding]:
    images = list(data.images(name))
    if not images:
        return
    dims = {len(image.shape) for _, image in images}
    shapes = {image.shape for _, image in images}
    if len(dims) > 1:
        found = f"{name}: images of {' and '.join(map(str, sorted(dims)))} axes"
        yield Finding(ERROR, "mixed-dimensions", found, "keep one kind: slices or volumes", (name,))
    elif len(shapes) > 1:
        low, high = np.min(list(shapes), 0), np.max(list(shapes), 0)
        found = f"{name}: {len(shapes)} different sizes, from {_by(low)} to {_by(high)}"
        yield Finding(
            NOTE,
            "mixed-sizes",
            found,
            "training crops and pads to `size` (pictures: options.resize=true scales): choose it with these in mind",
            (name,),
        )
    with_place = [i for i, image in images if image.affine is not None]
    if 0 < len(with_place) < len(images):
        rest = [i for i, image in images if image.affine is None]
        found = f"{name}: {len(rest)} of {len(images)} images have no geometry and the others have"
        yield Finding(ERROR, "mixed-geometry", found, "convert all of them from the same source", **data.told(rest, name))
    yield from _geometry(data, name, [(i, image) for i, image in images if image.spacing])
    counts = {image.channels for _, image in images}
    if len(counts) > 1:
        odd = [i for i, image in images if image.channels != max(counts)]
        found = f"{name}: files of {' and '.join(map(str, sorted(counts)))} channels"
        yield Finding(WARNING, "mixed-channels", found, "save all in the same way (grey or colour)", **data.told(odd, name))
    grey = [i for i, image in images if image.grey]
    if grey:
        yield Finding(
            NOTE,
            "grey-as-colour",
            f"{name}: {len(grey)} of {len(images)} images are grey and saved as colour",
            "nothing to do: they are read as one channel",
            **data.told(grey, name),
        )


def _geometry(data: Data, name: str, images: list[tuple[int, Image]]) -> Iterator[Finding]:
    if not images:
        return
    spacings = np.array([_along_world(image) for _, image in images])
    middle = np.median(spacings, 0)
    apart = (spacings > _SPACING * middle) | (spacings * _SPACING < middle)
    if apart.any():
        rows = [images[k][0] for k in np.flatnonzero(apart.any(1))]
        ranges = ", ".join(f"{axis} {spread(np.round(spacings[:, k], 3))}" for k, axis in enumerate(("right", "front", "up")))
        near = ", ".join(f"{value:.3g}" for value in middle)
        found = f"{name}: voxel sizes differ (mm along {ranges})"
        remedy = f"resample in training, such as data.source.spacing=[{near}]"
        if (spacings.max(0) > _UNIT * spacings.min(0)).any():
            remedy = f"a header that counts in metres or micrometres and does not say so? repair it; else {remedy}"
        yield Finding(WARNING, "mixed-spacing", found, remedy, **data.told(rows, name))
    orientations = [image.orientation for _, image in images]
    if len(set(orientations)) > 1:
        found = f"{name}: orientations {tally([str(o) for o in orientations])}"
        yield Finding(
            NOTE, "mixed-orientations", found, "nothing to do: volumes are turned to RAS when they are read for training", (name,)
        )


def _scales(data: Data, name: str) -> Iterator[Finding]:
    tops = [(i, abs(float(image.quantiles[_P99]))) for i, image in data.valued(name)]
    middle = float(np.median([top for _, top in tops])) if tops else 0.0
    far = [(i, top) for i, top in tops if middle > 0 and not middle / _SCALE <= top <= middle * _SCALE]
    if far:
        apart = f"99th percentile {spread([top for _, top in far])}, the middle one {middle:.4g}"
        found = f"{name}: {counted(len(far), 'image lies', 'images lie')} on another scale ({apart})"
        remedy = "rescale them, or use an intensity map that fits each image (mr_percentile)"
        yield Finding(WARNING, "other-scale", found, remedy, **data.told([i for i, _ in far], name))


def _range(data: Data, name: str) -> Iterator[Finding]:
    rules_of = {"CT": _ct, "MR": _mr, "PET": _pet}
    declared, groups = data.columns[name].modality, {}
    usual = modality(data, name)
    for i, image in data.valued(name):
        groups.setdefault(declared or rules_series.modality_of(image) or usual, []).append((i, image))
    for kind, images in groups.items():
        if kind in rules_of:
            yield from rules_of[kind](data, name, images)


def _ct(data: Data, name: str, images: list[tuple[int, Image]]) -> Iterator[Finding]:
    eight = [(i, im) for i, im in images if im.whole and im.low >= 0 and im.high <= 255 and not im.constant]
    over = [(i, im) for i, im in images if im.high > _OVERFLOW]
    offset = [(i, im) for i, im in images if im.low >= 0 and not im.constant and im.high <= _OVERFLOW and (i, im) not in eight]
    if offset:
        least = spread([im.low for _, im in offset])
        share = f"{len(offset)} of {len(images)} CT images have no value below 0 (least {least})"
        found = f"{name}: {share}: the offset to Hounsfield units is missing"
        yield Finding(
            ERROR,
            "ct-offset",
            found,
            "apply the rescale intercept (mostly -1024): convert the DICOM again",
            **data.told(_rows(offset), name),
        )
    if eight:
        found = f"{name}: {len(eight)} of {len(images)} CT images have 8-bit values (0 to 255) and no Hounsfield units"
        yield Finding(
            ERROR,
            "ct-8bit",
            found,
            "go back to the DICOM; if the window is known, use unit_range and declare the column as picture",
            **data.told(_rows(eight), name),
        )
    padded = [(i, im) for i, im in images if im.padding > 0]
    if padded:
        shares = spread([float(f"{100 * im.padding:.2g}") for _, im in padded])
        least = tally([f"{im.low:g}" for _, im in padded])
        found = (
            f"{name}: {len(padded)} of {len(images)} CT images have values below -1024 HU, which is air (least {least}; "
            f"{shares} % of their voxels): padding outside the scanner's field of view"
        )
        yield Finding(
            WARNING,
            "ct-padding",
            found,
            f"train with ct_hu and add +data.source.channels.{name}.floor=-1024, or they become values far below the window",
            **data.told(_rows(padded), name),
        )
    if over:
        most = max(im.high for _, im in over)
        found = (
            f"{name}: {counted(len(over), 'CT image reaches', 'CT images reach')} {most:g} HU, which no metal does: "
            "negative numbers that were written as unsigned (sign or overflow)"
        )
        remedy = "convert the DICOM again into signed numbers (int16 or float32), or subtract 65536 from the values above 32767"
        yield Finding(ERROR, "ct-overflow", found, remedy, **data.told(_rows(over), name))
    dense = [(i, im) for i, im in images if 4000 < im.high <= _OVERFLOW]
    if dense:
        most = max(im.high for _, im in dense)
        found = f"{name}: {counted(len(dense), 'image exceeds', 'images exceed')} 4000 HU (up to {most:g}): metal or contrast"
        yield Finding(NOTE, "ct-metal", found, "choose the upper end of ct_hu with this in mind", **data.told(_rows(dense), name))


def _mr(data: Data, name: str, images: list[tuple[int, Image]]) -> Iterator[Finding]:
    negative = [(i, im) for i, im in images if im.low < 0]
    if negative:
        shares = spread([float(f"{100 * im.negative:.2g}") for _, im in negative])
        stripped = [im for _, im in negative if im.zero > 0.2]
        cause = " after skull stripping or resampling (their background is 0)" if len(stripped) == len(negative) else ""
        least = f"down to {min(im.low for _, im in negative):.4g}, {shares} % of the voxels"
        found = f"{name}: {len(negative)} of {len(images)} MR images have negative voxels ({least}){cause}"
        remedy = "a magnitude is never negative: set them to 0, or keep them knowing that mr_percentile sends them below -1"
        yield Finding(WARNING, "mr-negative", found, remedy, **data.told(_rows(negative), name))
    eight = [(i, im) for i, im in images if im.whole and im.low >= 0 and 100 < im.high <= 255]
    if eight:
        found = f"{name}: {len(eight)} of {len(images)} MR images have whole values up to 255: an 8-bit source"
        yield Finding(
            NOTE,
            "mr-8bit",
            found,
            "steps of 8 bits and cut highlights stay in what is trained: prefer the original",
            **data.told(_rows(eight), name),
        )


def _pet(data: Data, name: str, images: list[tuple[int, Image]]) -> Iterator[Finding]:
    negative = [(i, im) for i, im in images if im.low < 0]
    if negative:
        found = (
            f"{name}: {len(negative)} of {len(images)} PET images have negative values (down to {min(im.low for _, im in negative):.4g})"
        )
        yield Finding(
            WARNING,
            "pet-negative",
            found,
            "some reconstructions leave them: set them to 0 if yours does not",
            **data.told(_rows(negative), name),
        )
    raw = [(i, im) for i, im in images if im.high > 1000]
    if raw:
        found = f"{name}: {len(raw)} of {len(images)} PET images reach {spread([im.high for _, im in raw])}: activity, and no SUV"
        yield Finding(
            WARNING, "pet-activity", found, "convert to SUV by weight, dose and time of the DICOM header", **data.told(_rows(raw), name)
        )


def _along_world(image: Image) -> tuple[float, float, float]:
    """Voxel sizes along right, front and up."""
    axes = np.argmax(np.abs(image.affine[:3, :3]), 1)
    return tuple(image.spacing[axis] for axis in axes)


def _rows(found: list[tuple[int, Image]]) -> list[int]:
    return [i for i, _ in found]


def _by(shape: np.ndarray) -> str:
    return " x ".join(map(str, shape))
