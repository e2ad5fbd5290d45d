"""Small slides, k-space and videos, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>{0}</x><y>{1}</y><z>1</z></matrixSize><fieldOfView_mm><x>{2}</x><y>{3}</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{4}</x><y>{5}</y><z>1</z></matrixSize><fieldOfView_mm><x>{6}</x><y>{7}</y><z>4.5</z></fieldOfView_mm></reconSpace>
</encoding></ismrmrdHeader>"""


def tissue_picture(height: int = 512, width: int = 768) -> np.ndarray:
    """(H, W, 3) uint8: a pink ellipse with darker nuclei on nearly white glass."""
    y, x = np.mgrid[:height, :width]
    inside = ((y / height - 0.5) / 0.3) ** 2 + ((x / width - 0.35) / 0.2) ** 2 < 1
    picture = np.full((height, width, 3), (243, 242, 244), np.uint8)
    picture[inside] = (214, 150, 190)
    picture[inside & ((y // 8 + x // 8) % 5 == 0)] = (120, 80, 150)
    return picture


def write_slide(path: Path, picture: np.ndarray | None = None, levels: int = 3, mpp: float | None = 0.25, tile: int = 128) -> np.ndarray:
    """A tiled pyramidal TIFF with halved levels, lossless; with `mpp` described as Aperio does. Returns level 0."""
    import tifffile

    picture = tissue_picture() if picture is None else picture
    description = None if mpp is None else f"Aperio Image Library v1\n{picture.shape[1]}x{picture.shape[0]}|AppMag = 40|MPP = {mpp}"
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            small = picture[:: 2**level, :: 2**level]
            file.write(
                small,
                tile=(tile, tile),
                photometric="rgb",
                compression="deflate",
                subfiletype=1 if level and mpp is None else 0,
                description=description,
                metadata=None,
            )
    return picture


def head(height: int = 32, width: int = 24) -> np.ndarray:
    """(H, W) float32: an ellipse with structure, not symmetrical."""
    y, x = np.mgrid[:height, :width]
    body = ((y / height - 0.5) / 0.3) ** 2 + ((x / width - 0.5) / 0.35) ** 2 < 1
    return (body * (1 + 0.5 * np.sin(x / 3) + 0.02 * y)).astype(np.float32)


def transformed(image: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes), norm="ortho"), axes).astype(np.complex64)


def write_h5(path: Path, slices: int = 3, coils: int | None = 2, size=(32, 24), recon=(16, 20), mask=None, stored=True) -> np.ndarray:
    """fastMRI's layout; returns k-space (slices, [coils,] H, W). `stored`: with the reconstruction, cropped to `recon`."""
    import h5py

    images = np.stack([head(*size) * (1 + i) for i in range(slices)])
    if coils:
        images = images[:, None] * np.sqrt(np.arange(1, coils + 1, dtype=np.float32) / sum(range(1, coils + 1)))[:, None, None]
    kspace = transformed(images)
    if mask is not None:
        kspace = (kspace * mask).astype(np.complex64)
    top, left = (size[0] - recon[0]) // 2, (size[1] - recon[1]) // 2
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if mask is not None:
            file["mask"] = mask
        if stored:
            whole = np.sqrt((images**2).sum(1)) if coils else images
            file["reconstruction_rss" if coils else "reconstruction_esc"] = whole[:, top : top + recon[0], left : left + recon[1]]
        numbers = (size[0], size[1], 2 * size[0], 2.0 * size[1], recon[0], recon[1], 2.0 * recon[0], 2.0 * recon[1])
        file["ismrmrd_header"] = HEADER.format(*numbers)
        file.attrs.update(acquisition="AXT1", max=float(images.max()), norm=1.0, patient_id="0a1b")
    return kspace


def write_kspace(path: Path, coils: int = 2, size=(32, 24)) -> np.ndarray:
    """A complex .npy (coils, H, W), every second line missing outside of the centre."""
    image = head(*size) * np.linspace(0.5, 1, coils, dtype=np.float32)[:, None, None]
    lines = (np.arange(size[1]) % 2 == 0) | (abs(np.arange(size[1]) - size[1] // 2) < 4)
    kspace = (transformed(image) * lines).astype(np.complex64)
    np.save(path, kspace)
    return kspace


def frame_pictures(count: int = 24, size=(48, 64), colour: bool = True) -> np.ndarray:
    """(T, H, W, 3) uint8: frame n has n + 1 in binary as a row of light and dark squares; a corner is bright, in `colour` red."""
    made = np.full((count, *size, 3), 40, np.uint8)
    for n in range(count):
        for bit in range(8):
            made[n, 24:32, 8 * bit : 8 * bit + 8] = 220 if (n + 1) >> bit & 1 else 20
    made[:, :8, :16] = (230, 30, 30) if colour else (230, 230, 230)
    return made


def number_of(picture: np.ndarray) -> int:
    """The number that a frame (C, H, W) of `frame_pictures` shows."""
    return sum((int(picture[0, 28, 8 * bit + 4]) > 120) << bit for bit in range(8)) - 1


def write_video(path: Path, count: int = 24, colour: bool = True, codec: str = "mpeg4", pix_fmt: str = "yuv420p", times=None) -> np.ndarray:
    """Ten frames a second (or `times` in hundredths of a second), a key frame every eighth; returns what was encoded."""
    import av

    pictures = frame_pictures(count, colour=colour)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], pix_fmt
        stream.gop_size, stream.bit_rate = 8, 2_000_000
        base = Fraction(1, 10 if times is None else 100)
        stream.codec_context.time_base = base
        for n, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n if times is None else times[n], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return pictures


def _sample(write: Callable[[Path], object], name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return make


SAMPLES = {  # see tests/samples.py
    ".svs": _sample(write_slide, "sample.svs"),
    ".h5": _sample(write_h5, "sample.h5"),
    "kspace.npy": _sample(write_kspace, "kspace.npy"),
    ".mp4": _sample(lambda path: write_video(path, count=8), "sample.mp4"),
    ".mkv": _sample(lambda path: write_video(path, count=8), "sample.mkv"),
}
