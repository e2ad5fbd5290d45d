"""What one row's files hold, as a summary small enough to keep for every row. Runs in worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.geometry import reoriented
from medgen.core.volume import Volume
from medgen.data.check.coarse import AIR, Coarse, coarse, fingerprint
from medgen.data.check.pairs import Pair, compared, share_in_air
from medgen.data.formats.format import Header
from medgen.data.readers import peek, read_stored

QUANTILES = np.linspace(0, 1, 201)
_SAMPLED = 1 << 18  # voxels that quantiles are taken of
_MOST_VALUES = 64  # of a label map, beyond which it is no map of classes
_READ = 1 << 32  # bytes of an image that is read whole; of a larger one the header has to do


@dataclass(frozen=True)
class Job:
    """A row to summarise: (column, source, kind) of each of its files."""

    files: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Image:
    """One file.

    Attributes:
        shape, channels, dtype, affine, spacing, orientation: as stored.
        meta: what the format says: modality, units, and "findings", sentences about the file.
        low, high: least and greatest finite value. None of values where the file was not read whole.
        quantiles: of the finite values (of magnitudes, where they are complex), at `QUANTILES`.
        nonfinite: voxels that are NaN or infinite.
        negative, padding, zero: share of voxels below 0, below -1024, and at 0.
        whole: whether all values are whole numbers.
        grey: whether several channels hold the same.
        values: label maps: value -> voxels, None with more than 64 values.
        in_air: label maps: share of labelled voxels where the row's first image shows nothing.
        digest: of the voxels, the same for a copy in another type or axis order.
        fingerprint: (N,) float16, compared by correlation; None for label maps.
    """

    shape: tuple[int, ...]
    channels: int
    dtype: str
    affine: np.ndarray | None
    spacing: tuple[float, ...] | None
    orientation: str | None
    meta: dict[str, Any]
    low: float = np.nan
    high: float = np.nan
    quantiles: np.ndarray | None = None
    nonfinite: int = 0
    negative: float = 0.0
    padding: float = 0.0
    zero: float = 0.0
    whole: bool = False
    grey: bool = False
    values: dict[float, int] | None = None
    in_air: float | None = None
    digest: str = ""
    fingerprint: np.ndarray | None = None

    @property
    def constant(self) -> bool:
        return self.low == self.high


@dataclass
class Row:
    """What a row's files hold: column -> image, column -> why there is none, and how images lie to the first of them."""

    images: dict[str, Image] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)


def summarise(job: Job) -> Row:
    """Read the files of a row one after the other; one that cannot be read costs only itself."""
    row, small = Row(), {}
    first: Volume | None = None
    for column, source, kind in sorted(job.files, key=lambda f: f[2] == "labels"):  # images before their label maps
        try:
            header = peek(source)
            if header.nbytes > _READ:
                row.images[column] = _unread(header, source)
                continue
            volume = read_stored(source)
        except MedgenError as error:
            row.failures[column] = str(error)
            continue
        small[column] = coarse(volume)
        image = _image(header, volume, kind, small[column])
        if kind == "labels" and first is not None:
            image = Image(**{**vars(image), "in_air": share_in_air(volume, first)})
        elif first is None and kind == "image":
            first = volume
        row.images[column] = image
    row.pairs = _pairs(small, [f[0] for f in job.files if f[2] == "image" and f[0] in small])
    return row


def _pairs(small: dict[str, Coarse], images: Sequence[str]) -> list[Pair]:
    return [pair for other in images[1:] if (pair := compared(images[0], small[images[0]], other, small[other])) is not None]


def _unread(header: Header, source: str) -> Image:
    said = f"{source}: too large to be read whole ({header.nbytes / 1e9:.3g} GB); only its header was checked"
    empty = Volume(np.empty((0, *(0 for _ in header.shape))), header.affine)
    meta = {**header.meta, "findings": [*header.meta.get("findings", ()), said]}
    return Image(header.shape, header.channels, str(header.dtype), header.affine, empty.spacing, empty.orientation, meta)


def _image(header: Header, volume: Volume, kind: str, small: Coarse) -> Image:
    array = volume.array
    finite = np.isfinite(array)
    nonfinite = int(array.size - finite.sum())
    values = np.abs(array) if array.dtype.kind == "c" else array
    values = values[finite] if nonfinite else values.reshape(-1)
    sample = values[:: max(1, values.size // _SAMPLED)]
    some = values.size > 0
    return Image(
        shape=volume.shape,
        channels=len(array),
        dtype=str(header.dtype),
        affine=volume.affine,
        spacing=volume.spacing,
        orientation=volume.orientation,
        meta={**header.meta, **volume.meta, "units": volume.units},
        low=float(values.min()) if some else np.nan,
        high=float(values.max()) if some else np.nan,
        quantiles=np.quantile(sample.astype(np.float64), QUANTILES) if some else None,
        nonfinite=nonfinite,
        negative=float(np.mean(values < 0)) if some else 0.0,
        padding=float(np.mean(values < AIR)) if some else 0.0,
        zero=float(np.mean(values == 0)) if some else 0.0,
        whole=bool(some and (values.dtype.kind in "iub" or (sample == np.floor(sample)).all())),
        grey=len(array) > 1 and bool((array == array[:1]).all()),
        values=_counts(values) if kind == "labels" else None,
        digest=_digest(volume),
        fingerprint=None if kind == "labels" else fingerprint(small),
    )


def _counts(values: np.ndarray) -> dict[float, int] | None:
    found, counts = np.unique(values, return_counts=True)
    return {float(v): int(n) for v, n in zip(found, counts, strict=True)} if len(found) <= _MOST_VALUES else None


def _digest(volume: Volume) -> str:
    """Of shape and values. A copy that was converted or turned has the same."""
    if volume.affine is not None and len(volume.shape) == 3:
        volume = reoriented(volume, "RAS")
    array = volume.array if volume.array.dtype.kind == "c" else volume.array.astype(np.float32)
    return hashlib.blake2b(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
