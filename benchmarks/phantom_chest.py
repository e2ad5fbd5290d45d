"""The drawn chest beside real ones: the table and the picture of docs/phantom_chest.md.

    python benchmarks/phantom_chest.py measure DATA    # DATA: a folder with one folder of DICOM files per patient
    python benchmarks/phantom_chest.py picture

Real slices count if they lie across and at least 15 % of the body in them is lung. Every patient and every drawn subject gives the
median over its slices; the drawn median must lie between the 5th and the 95th percentile of the patients.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from medgen.core.picture import gray, montage, upright
from medgen.data.phantom.chest.anatomy import Chest
from medgen.data.phantom.chest.paint import TISSUES
from medgen.data.phantom.chest.scanner import Scanner
from medgen.data.phantom.chest.source import slice_height

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs/phantom_chest.md", ROOT / "docs/pictures/phantom_chest.png"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
SUBJECTS, SLICES, SCANNER = 40, 3, Scanner(fov=370.0)
LEAST_LUNG = 0.15
UNITS = {
    "air around the body, peak": "HU",
    "lung, peak": "HU",
    "fat, peak": "HU",
    "soft tissue, peak": "HU",
    "bone (above 350 HU), median": "HU",
    "lung / body": "%",
    "fat / body": "%",
    "soft tissue / body": "%",
    "bone / body": "%",
    "width of the body": "mm",
    "depth of the body": "mm",
    "width of the lungs": "mm",
    "spectrum, slope 0.02 to 0.2 / mm": "",
    "spectrum, slope 0.2 to 0.5 / mm": "",
    "noise in homogeneous soft tissue": "HU",
    "texture and noise between the vessels of the lung": "HU",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("measure").add_argument("data", type=Path)
    commands.add_parser("picture")
    given = parser.parse_args()
    if given.command == "picture":
        Image.fromarray(montage(list(panels()))).save(PICTURE, optimize=True)
        return
    real, drawn = by_subject(real_slices(given.data)), by_subject(drawn_slices())
    text = table(real, drawn)
    print(text)
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def real_slices(folder: Path) -> Iterator[tuple[str, np.ndarray, float]]:
    """(patient, HU with rows along x and columns along y, mm per pixel) of every usable slice."""
    import pydicom

    for path in sorted(folder.glob("*/*.dcm")):
        data = pydicom.dcmread(path)
        values = data.pixel_array.astype(np.float32) * float(data.RescaleSlope) + float(data.RescaleIntercept)
        if str(data.get("PatientPosition", "HFS"))[2:] in ("S", "P"):
            yield path.parent.name, np.rot90(values, -1), float(data.PixelSpacing[0])


def drawn_slices() -> Iterator[tuple[str, np.ndarray, float]]:
    """Slices of 512 x 512 pixels, as the real ones."""
    for index in range(SUBJECTS):
        chest = Chest(0, index)
        for number in range(SLICES):
            grid = SCANNER.grid((512, 512), slice_height(chest, number, SLICES))
            yield str(index), SCANNER.image(chest, grid, chest.stack(grid))[..., 0], grid.spacing[0]


def by_subject(slices: Iterator[tuple[str, np.ndarray, float]]) -> dict[str, list[float]]:
    """Statistic -> one median per subject."""
    seen: dict[str, list[dict[str, float]]] = defaultdict(list)
    for subject, values, pixel in slices:
        found = statistics(values, pixel)
        if found["lung / body"] >= 100 * LEAST_LUNG:
            seen[subject].append(found)
    return {name: [float(np.median([one[name] for one in each])) for each in seen.values()] for name in UNITS}


def statistics(values: np.ndarray, pixel: float) -> dict[str, float]:
    """What UNITS lists, of one slice (X, Y) in HU."""
    body = body_mask(values)
    lung = body & (values < -500)
    area = body.sum()
    outside = ~ndimage.binary_dilation(body, iterations=12) & (values > -1020)
    across, along = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    width = np.flatnonzero(ndimage.binary_opening(lung, iterations=3).any(1))
    bone = values[body & (values > 350)]
    return {
        "air around the body, peak": peak(values[outside], -1020, -900),
        "lung, peak": peak(values[lung], -980, -600),
        "fat, peak": peak(values[body], -160, -50),
        "soft tissue, peak": peak(values[body], 0, 110),
        "bone (above 350 HU), median": float(np.median(bone)) if bone.size else np.nan,
        "lung / body": 100 * lung.sum() / area,
        "fat / body": 100 * (body & (values > -150) & (values < -30)).sum() / area,
        "soft tissue / body": 100 * (body & (values > 0) & (values < 150)).sum() / area,
        "bone / body": 100 * bone.size / area,
        "width of the body": np.ptp(across) * pixel,
        "depth of the body": np.ptp(along) * pixel,
        "width of the lungs": np.ptp(width) * pixel if width.size else np.nan,
        "spectrum, slope 0.02 to 0.2 / mm": slope(values, pixel, 0.02, 0.2),
        "spectrum, slope 0.2 to 0.5 / mm": slope(values, pixel, 0.2, 0.5),
        "noise in homogeneous soft tissue": quiet(values, (values > -20) & (values < 280), pixel),
        "texture and noise between the vessels of the lung": quiet(values, lung & (values > -1000), pixel),
    }


def body_mask(values: np.ndarray) -> np.ndarray:
    """The largest piece above -300 HU, opened so that the table falls off, with what it encloses."""
    solid = ndimage.binary_opening(values > -300, iterations=3)
    pieces, count = ndimage.label(solid)
    if not count:
        return np.ones(values.shape, bool)
    sizes = np.bincount(pieces.ravel())[1:]
    return ndimage.binary_fill_holes(pieces == 1 + sizes.argmax())


def peak(values: np.ndarray, low: float, high: float) -> float:
    """The most frequent value within limits, from a histogram of 2 HU smoothed over 12."""
    count, edges = np.histogram(values, np.arange(low - 20, high + 22, 2.0))
    smooth = ndimage.gaussian_filter1d(count.astype(float), 3.0)
    centre = (edges[1:] + edges[:-1]) / 2
    smooth[(centre < low) | (centre > high)] = 0
    return float(centre[smooth.argmax()])


def slope(values: np.ndarray, pixel: float, low: float, high: float) -> float:
    """Exponent of the power spectrum against frequency (cycles per mm) of the image clipped to -1000 to 400 HU, radially averaged."""
    image = np.clip(values, -1000, 400)
    window = np.outer(*(np.hanning(n) for n in image.shape))
    power = np.square(np.abs(np.fft.fft2((image - image.mean()) * window)))
    f = np.hypot.outer(*(np.fft.fftfreq(n, pixel) for n in image.shape))
    edges = np.geomspace(low, high, 13)
    which = np.digitize(f.ravel(), edges)
    mean = [power.ravel()[which == k].mean() for k in range(1, 13)]
    middle = np.sqrt(edges[1:] * edges[:-1])
    return float(np.polyfit(np.log(middle), np.log(mean), 1)[0])


def quiet(values: np.ndarray, where: np.ndarray, pixel: float) -> float:
    """Standard deviation in windows of 9 mm that lie in `where`: the 20th percentile over windows, where nothing but noise is left."""
    n = max(3, round(9.0 / pixel))
    inside = ndimage.minimum_filter(where.astype(np.uint8), n) > 0
    mean = ndimage.uniform_filter(values.astype(np.float64), n)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(np.square(values.astype(np.float64)), n) - mean * mean, 0))
    return float(np.percentile(spread[inside], 20)) if inside.any() else np.nan


def table(real: dict[str, list[float]], drawn: dict[str, list[float]]) -> str:
    count = len(next(iter(real.values())))
    spans = f"real: median (5th to 95th percentile of {count} patients) | drawn: median (5th to 95th of {SUBJECTS})"
    lines = [f"| statistic | unit | {spans} | within |", "|---|---|---|---|---|"]
    for name, unit in UNITS.items():
        (low, mid, high), (a, b, c) = (np.nanpercentile(group[name], (5, 50, 95)) for group in (real, drawn))
        digits = 2 if name.startswith("spectrum") else 1 if unit == "%" or "noise" in name else 0
        spans = [f"{v[1]:.{digits}f} ({v[0]:.{digits}f} to {v[2]:.{digits}f})" for v in ((low, mid, high), (a, b, c))]
        lines.append(f"| {name} | {unit} | {spans[0]} | {spans[1]} | {'yes' if low <= b <= high else '**no**'} |")
    return "\n".join(lines)


def panels() -> Iterator[list[np.ndarray]]:
    """Soft tissue and lung windows of six heights, other subjects with nodules and labels, and doses."""
    size, scanner = (256, 256), Scanner()

    def shown(index: int, z: float | None = None, lung: bool = False, nodule: bool | None = None, what: str = "ct", dose: float = 1.0):
        chest = Chest(0, index, nodule)
        grid = scanner.grid(size, chest.nodules[0].centre[2] if z is None else z)
        stack = chest.stack(grid)
        if what == "tissue":
            plane = gray(stack.argmax(0)[..., 0], 0, len(TISSUES) - 1)
        else:
            low, high = (-1350, 150) if lung else (-160, 240)
            plane = gray(Scanner(dose=dose).image(chest, grid, stack)[..., 0], low, high)
        return upright(plane)[20:-16, ::-1]

    yield [shown(3, z) for z in (52, 24, -18, -44, -84)]
    yield [shown(3, z, lung=True) for z in (52, 24, -18, -44, -84)]
    yield [shown(i, z) for i, z in ((1, 30), (6, -30), (8, -62), (11, -20), (12, -104))]
    yield [*(shown(i, lung=True, nodule=True) for i in (1, 10, 20)), shown(10, what="tissue", nodule=True), shown(8, -62, dose=0.1)]


if __name__ == "__main__":
    main()
