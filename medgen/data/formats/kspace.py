"""k-space: fastMRI's .h5 and complex .npy, and the images that they hold or show.

k-space is `fftshift(fft2(ifftshift(image), norm="ortho"))`, as in fastMRI (Zbontar et al. 2018). A cell is `file.h5` (the stored
reconstruction, else the root sum of squares over coils of the inverse transform), `file.h5#reconstruction_esc`, `file.h5#rss`
(computed though one is stored), each also with one slice: `file.h5#slice=12`, `file.h5#rss&slice=12`.

fastMRI files do not say how a patient lies, so that a volume has no affine; voxel sizes are in `meta["spacing_mm"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header, check_size, library
from medgen.data.formats.parts import settings, whole

STORED = ("reconstruction_rss", "reconstruction_esc")
_ATTRIBUTES = ("acquisition", "patient_id", "max", "norm", "acceleration", "num_low_frequency")
_LONGEST = 1 << 20  # characters of a header


class NoKSpace(MedgenError):
    """An .h5 of something else."""


@dataclass(frozen=True)
class KSpace:
    """Measured k-space, of which slices are read when they are asked for.

    Attributes:
        path: the file.
        shape: (slices, coils, H, W).
        header: what the file says: encoded_matrix, encoded_fov_mm, recon_matrix, recon_fov_mm (each x, y, z: readout, phase encoding,
            slices), spacing_mm along (slices, H, W), recon_size (H, W), acquisition, patient_id, max, norm, acceleration.
        first: the first of its slices in the file.
    """

    path: Path
    shape: tuple[int, int, int, int]
    header: dict[str, Any] = field(default_factory=dict)
    first: int = 0

    @property
    def array(self) -> np.ndarray:
        """All of it: (slices, coils, H, W) complex64."""
        return self.rows(0, self.shape[0])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, coils, H, W) complex64 of these slices alone."""
        if not 0 <= start < stop <= self.shape[0]:
            raise MedgenError(f"{self.path}: no slices {start}:{stop}; it has {self.shape[0]}")
        check_size(self.path, Header((stop - start, *self.shape[2:]), self.shape[1], np.dtype(np.complex64)))
        with _source(self.path) as (data, _):
            rows = data[self.first + start : self.first + stop] if data.ndim == 4 or _is_h5(self.path) else data[None]
            return np.asarray(rows, np.complex64).reshape(stop - start, *self.shape[1:])

    @cached_property
    def mask(self) -> np.ndarray:
        """What was measured: bool lines (W,), a grid (H, W), or a grid per slice. The file's mask, else where any coil is not zero."""
        with _source(self.path) as (_, file):
            if file is not None and "mask" in file:
                return _lines_of(_dataset(self.path, file, "mask")[()] != 0, self)
        seen = np.stack([(self.rows(i, i + 1) != 0).any((0, 1)) for i in range(self.shape[0])])
        grid = seen[0] if (seen == seen[0]).all() else seen
        return grid[0] if grid.ndim == 2 and (grid == grid[:1]).all() else grid

    @property
    def target(self) -> Volume | None:
        """The reconstruction that the file holds, (1, slices, H, W), or None."""
        name = _stored(self.path)
        return None if name is None else _reconstruction(self, name)

    def image(self) -> np.ndarray:
        """(slices, H, W) float32 root sum of squares over coils, cropped as fastMRI does where the file says the size."""
        made = np.empty((self.shape[0], *self.image_size), np.float32)
        for i, image in enumerate(made):
            image[:] = self._cropped(image_of(self.rows(i, i + 1)[0])[0])
        return made

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of `image`. fastMRI takes a square of the image's width where that is narrower than the reconstruction."""
        size = self.header.get("recon_size", self.shape[2:])
        size = size if size[1] <= self.shape[3] else (self.shape[3], self.shape[3])
        return min(size[0], self.shape[2]), min(size[1], self.shape[3])

    def _cropped(self, image: np.ndarray) -> np.ndarray:
        starts = [(n - m) // 2 for n, m in zip(image.shape, self.image_size, strict=True)]
        return image[tuple(slice(s, s + m) for s, m in zip(starts, self.image_size, strict=True))]


def read_kspace(path: str | Path, part: str | None = None) -> KSpace:
    """The k-space of fastMRI's .h5, (slices, H, W) or (slices, coils, H, W), or of a complex .npy: (H, W), (coils, H, W) or
    (slices, coils, H, W).

    Args:
        part: `slice=3` for one slice.

    Raises:
        MedgenError: no such file, no k-space in it, a damaged file.
    """
    path = Path(path)
    with _source(path) as (data, file):
        shape, dims = tuple(data.shape), data.ndim
        expected = (3, 4) if file is not None else (2, 3, 4)
        if data.dtype.kind != "c" or dims not in expected or 0 in shape:
            raise MedgenError(
                f"{path}: k-space of shape {shape} and type {data.dtype}; expected complex numbers on {expected[0]} to 4 axes"
            )
        header = {} if file is None else _header_of(path, file)
    full = {2: (1, 1, *shape), 3: (shape[0], 1, *shape[1:]) if _is_h5(path) else (1, *shape), 4: shape}[dims]
    made = KSpace(path, full, header)
    said = settings(path, part, ("slice",))
    return made if "slice" not in said else _one(made, said["slice"])


def image_of(array: np.ndarray) -> np.ndarray:
    """(1, *S) float32 that complex k-space shows, the root sum of squares over coils of its inverse transform: (H, W) and (coils, H, W)
    give (1, H, W), (slices, coils, H, W) gives (1, slices, H, W)."""
    if array.ndim not in (2, 3, 4):
        raise MedgenError(f"k-space of shape {array.shape}; expected (H, W), (coils, H, W) or (slices, coils, H, W)")
    if array.ndim == 4:
        return np.stack([image_of(one)[0] for one in array])[None]
    power = np.zeros(array.shape[-2:], np.float32)
    for coil in array if array.ndim == 3 else array[None]:  # one by one, for the transform needs several times its memory
        image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(coil), norm="ortho"))
        power += image.real**2 + image.imag**2
    return np.sqrt(power)[None]


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The spatial shape of `image_of` an array of this shape."""
    return tuple(shape) if len(shape) == 2 else (shape[0], *shape[2:]) if len(shape) == 4 else tuple(shape[1:])


def without_oversampling(kspace: np.ndarray, height: int) -> np.ndarray:
    """(..., H, W) to (..., height, W): k-space of the middle of the field of view along the readout, which is sampled twice as densely as
    needed. Exact where whole lines were measured; noise keeps its standard deviation."""
    start = (kspace.shape[-2] - height) // 2
    lines = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, -2), axis=-2, norm="ortho"), -2)[..., start : start + height, :]
    return np.fft.fftshift(np.fft.fft(np.fft.ifftshift(lines, -2), axis=-2, norm="ortho"), -2).astype(np.complex64)


def _one(kspace: KSpace, text: str) -> KSpace:
    index = whole(kspace.path, "slice", text)
    if index >= kspace.shape[0]:
        raise MedgenError(f"{kspace.path}: no slice {index}; it has 0 to {kspace.shape[0] - 1}")
    return replace(kspace, shape=(1, *kspace.shape[1:]), first=index)


def _is_h5(path: Path) -> bool:
    return path.name.lower().endswith(FORMAT.endings)


@contextmanager
def _source(path: Path) -> Iterator[tuple[Any, Any]]:
    """The array of k-space, not yet read, and the open .h5 or None. Whatever a damaged file raises becomes a sentence."""
    if not path.is_file():
        raise MedgenError(f"{path}: no such file; check the path")
    try:
        if not _is_h5(path):
            yield np.load(path, mmap_mode="r", allow_pickle=False), None
            return
        with library("h5py", "kspace", "fastMRI's k-space").File(path, "r") as file:
            if "kspace" not in file:
                names = ", ".join(sorted(file)[:8]) or "nothing"
                raise NoKSpace(f"{path}: holds {names}; expected fastMRI's 'kspace'")
            yield _dataset(path, file, "kspace"), file
    except (MedgenError, MemoryError):
        raise
    except Exception as error:  # the decoders of damaged files raise everything that there is
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MedgenError(f"{path}: damaged or truncated k-space ({first}); copy or export it again") from error


def _dataset(path: Path, file: Any, name: str) -> Any:
    """A data set that lies in the file itself: one in another file could be any file of this machine."""
    import h5py

    found = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise MedgenError(f"{path}: its '{name}' is not an array in this file; export it again, as a plain data set")
    return found


def _lines_of(mask: np.ndarray, kspace: KSpace) -> np.ndarray:
    """The file's mask, (W,), (1, W, 1) and the like, or a grid."""
    slim = mask.reshape([n for n in mask.shape if n != 1] or [1])
    if slim.shape not in (kspace.shape[3:], kspace.shape[2:]):
        raise MedgenError(
            f"{kspace.path}: its mask has shape {mask.shape}; expected the lines {kspace.shape[3:]} or a grid {kspace.shape[2:]}"
        )
    return slim


def _header_of(path: Path, file: Any) -> dict[str, Any]:
    header: dict[str, Any] = {}
    for name in _ATTRIBUTES:
        value = file.attrs.get(name)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if isinstance(value, str | int | float | np.number):
            header[name] = value.item() if isinstance(value, np.number) else value
    if "ismrmrd_header" in file:
        text = _dataset(path, file, "ismrmrd_header")[()]
        header |= _xml(path, text.decode(errors="replace") if isinstance(text, bytes) else str(text))
    return header


def _xml(path: Path, text: str) -> dict[str, Any]:
    """Matrix and field of view of an ISMRMRD header. A document type, where entities that expand or load files are declared, is refused."""
    if len(text) > _LONGEST or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise MedgenError(f"{path}: its ISMRMRD header is too long or declares entities; export it again without them")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise MedgenError(f"{path}: its ISMRMRD header is damaged ({error}); copy or export it again") from error
    found: dict[str, Any] = {}
    for space, name in (("encodedSpace", "encoded"), ("reconSpace", "recon")):
        for tag, kind, number in (("matrixSize", "matrix", int), ("fieldOfView_mm", "fov_mm", float)):
            texts = [root.findtext(f"{{*}}encoding/{{*}}{space}/{{*}}{tag}/{{*}}{axis}") for axis in "xyz"]
            try:
                values = tuple(number(t) for t in texts)
            except (TypeError, ValueError):
                continue
            if all(0 < v < 1e6 for v in values):
                found[f"{name}_{kind}"] = values
    if "recon_matrix" in found:
        found["recon_size"] = found["recon_matrix"][:2]
        if "recon_fov_mm" in found:
            x, y, z = (f / n for f, n in zip(found["recon_fov_mm"], found["recon_matrix"], strict=True))
            found["spacing_mm"] = (z, x, y)
    return found


def _stored(path: Path) -> str | None:
    with _source(path) as (_, file):
        return None if file is None else next((name for name in STORED if name in file), None)


def _reconstruction_shape(kspace: KSpace, name: str) -> tuple[int, int, int]:
    with _source(kspace.path) as (data, file):
        if name not in file:
            raise MedgenError(f"{kspace.path}: holds no '{name}'; take '#rss', which is computed from its k-space")
        found = _dataset(kspace.path, file, name)
        if found.ndim != 3 or found.shape[0] != data.shape[0] or found.dtype.kind != "f":
            raise MedgenError(f"{kspace.path}: its {name} has shape {found.shape} for {data.shape[0]} slices; expected real (slices, H, W)")
        return kspace.shape[0], *found.shape[1:]


def _reconstruction(kspace: KSpace, name: str) -> Volume:
    check_size(kspace.path, Header(_reconstruction_shape(kspace, name), 1, np.dtype(np.float32)))
    with _source(kspace.path) as (_, file):
        rows = _dataset(kspace.path, file, name)[kspace.first : kspace.first + kspace.shape[0]]
    return Volume(np.asarray(rows, np.float32)[None], meta=_meta(kspace, name))


def _meta(kspace: KSpace, image: str) -> dict[str, Any]:
    known = {name: kspace.header[name] for name in ("spacing_mm", "acquisition") if name in kspace.header}
    return {"image": image, "modality": "MR", **known}


def _asked(path: Path, part: str | None) -> tuple[KSpace, str, bool]:
    """k-space, the image of it that is asked for, and whether that is one slice."""
    said = settings(path, part, (*STORED, "rss", "slice"))
    names = [name for name in said if name != "slice"]
    if len(names) > 1:
        raise MedgenError(f"{path}: '#{part}' asks for {' and '.join(names)}; take one")
    kspace = read_kspace(path, f"slice={said['slice']}" if "slice" in said else None)
    return kspace, names[0] if names else _stored(path) or "rss", "slice" in said


def header(path: Path, part: str | None) -> Header:
    kspace, name, one = _asked(path, part)
    shape = (kspace.shape[0], *kspace.image_size) if name == "rss" else _reconstruction_shape(kspace, name)
    return Header(shape[1:] if one else shape, 1, np.dtype(np.float32), meta=_meta(kspace, name))


def read(path: Path, part: str | None) -> Volume:
    kspace, name, one = _asked(path, part)
    volume = Volume(kspace.image()[None], meta=_meta(kspace, name)) if name == "rss" else _reconstruction(kspace, name)
    return volume.with_array(volume.array[:, 0]) if one else volume


FORMAT = Format("k-space", (".h5", ".hdf5"), header, read, extra="kspace")
