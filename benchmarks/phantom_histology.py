"""Compare drawn H&E tiles with real ones, statistic by statistic, and draw the pictures of docs/phantom_histology.md.

    python benchmarks/phantom_histology.py --real NUCLEI_HE --slide SLIDE.svs --write
    python benchmarks/phantom_histology.py --picture

NUCLEI_HE holds images/*.png and masks/*.png (instances) under the same names; the slide is optional and needs openslide.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from medgen.core.picture import montage
from medgen.data.phantom.histology.source import COLOURS, HistologyData
from medgen.data.phantom.histology.stain import DOMAINS
from medgen.data.phantom.histology.tissue import CLASSES, TISSUES

PAGE = Path(__file__).parents[1] / "docs/phantom_histology.md"
PICTURE = Path(__file__).parents[1] / "docs/pictures/phantom_histology.png"
MARKS = ("<!-- measured:begin -->", "<!-- measured:end -->")
SIZE = (256, 320)  # of the real tiles
SCALES = (0.16, 0.25, 0.4)  # micrometres per pixel: the real tiles come from several microscopes
LABS = (*["violet"] * 10, *["pale"] * 4, "pink")  # about the shares of the real tiles
SUBJECTS = 75
ABOUT = {
    "count": "nuclei per 10,000 pixels",
    "area": "median area of a nucleus, pixels",
    "spread": "interquartile range of the areas, pixels",
    "eccentricity": "median eccentricity of nuclei",
    "mean_red": "mean, red",
    "mean_green": "mean, green",
    "mean_blue": "mean, blue",
    "std_red": "standard deviation, red",
    "std_green": "standard deviation, green",
    "std_blue": "standard deviation, blue",
    "od_mean": "mean optical density",
    "od_std": "standard deviation of the optical density",
    "first_red": "first stain vector, red",
    "first_green": "first stain vector, green",
    "first_blue": "first stain vector, blue",
    "second_red": "second stain vector, red",
    "second_green": "second stain vector, green",
    "second_blue": "second stain vector, blue",
    "background": "share of background",
    "slope": "slope of the power spectrum",
}
MUTED = {
    "background": (255, 255, 255),
    "lumen": (225, 240, 250),
    "epithelium": (150, 190, 220),
    "stroma": (240, 200, 200),
    "lymphoid": (205, 205, 160),
    "tumour": (190, 160, 210),
    "adipose": (250, 240, 205),
    "blood": (230, 120, 110),
}
Stats = dict[str, float]


def statistics(image: np.ndarray, instances: np.ndarray | None) -> Stats:
    """All statistics of a tile: image (H, W, 3) of 0 to 255, instances (H, W) or None."""
    return colours(image) | densities(image) | {"slope": slope(image.mean(-1))} | ({} if instances is None else shapes(instances))


def shapes(instances: np.ndarray) -> Stats:
    """Number, areas and eccentricity (of the ellipse with the same second moments) of nuclei of at least 12 pixels."""
    _, flat = np.unique(instances, return_inverse=True)
    flat = flat.reshape(instances.shape)
    y, x = np.indices(instances.shape)
    area, *sums = (np.bincount(flat.ravel(), w)[1:] for w in (None, *(v.ravel().astype(float) for v in (x, y, x * x, y * y, x * y))))
    mx, my, xx, yy, xy = (s / area for s in sums)
    large = area >= 12
    vx, vy, cov = (xx - mx**2 + 1 / 12)[large], (yy - my**2 + 1 / 12)[large], (xy - mx * my)[large]
    half, root = (vx + vy) / 2, np.hypot((vx - vy) / 2, cov)
    stats = {"count": 1e4 * large.sum() / instances.size}
    if large.sum() < 3:
        return stats
    low, middle, high = np.percentile(area[large], (25, 50, 75))
    return stats | {"area": middle, "spread": high - low, "eccentricity": float(np.median(np.sqrt(2 * root / (half + root))))}


def colours(image: np.ndarray) -> Stats:
    pixels = image.reshape(-1, 3)
    means = {f"mean_{c}": v for c, v in zip(COLOURS, pixels.mean(0), strict=True)}
    return means | {f"std_{c}": v for c, v in zip(COLOURS, pixels.std(0), strict=True)}


def densities(image: np.ndarray) -> Stats:
    """Optical density relative to the tile's own brightest percent, and two stain vectors from it (after Macenko et al. 2009)."""
    pixels = image.reshape(-1, 3).astype(float) + 1
    density = -np.log10(pixels / np.percentile(pixels, 99, axis=0))
    stats = {"od_mean": density.mean(), "od_std": density.std(), "background": (density.mean(1) < 0.06).mean()}
    stained = density[density.mean(1) > 0.12]
    if len(stained) < 500:
        return stats
    _, vectors = np.linalg.eigh(np.cov(stained.T))
    plane = vectors[:, [2, 1]] * np.where(vectors[:, [2, 1]].sum(0) < 0, -1, 1)
    angle = np.arctan2(*(stained @ plane).T[::-1])
    ends = [plane @ (np.cos(a), np.sin(a)) for a in np.percentile(angle, (1, 99))]
    first, second = sorted((v / np.linalg.norm(v) for v in ends), key=lambda v: -v[0])  # hematoxylin takes more of the red
    named = (("first", first), ("second", second))
    return stats | {f"{name}_{c}": v for name, vector in named for c, v in zip(COLOURS, vector, strict=True)}


def slope(gray: np.ndarray) -> float:
    """Exponent of the radially averaged power spectrum between 1/64 and 1/4 cycles per pixel."""
    window = np.outer(np.hanning(gray.shape[0]), np.hanning(gray.shape[1]))
    power = np.abs(np.fft.fft2((gray - gray.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(gray.shape[0])[:, None], np.fft.fftfreq(gray.shape[1]))
    edges = np.geomspace(1 / 64, 1 / 4, 13)
    rings = [(low <= radius) & (radius < high) for low, high in pairwise(edges)]
    return float(np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), [np.log(power[ring].mean()) for ring in rings], 1)[0])


def real_tiles(folder: Path) -> Iterator[Stats]:
    for path in sorted((folder / "images").glob("*.png")):
        yield statistics(np.asarray(Image.open(path).convert("RGB")), np.asarray(Image.open(folder / "masks" / path.name)))


def slide_tiles(path: Path) -> Iterator[Stats]:
    """Tiles of the slide of which tissue fills at least a quarter; it has no instance masks."""
    import openslide

    slide = openslide.OpenSlide(path)
    for y in range(0, slide.dimensions[1] - SIZE[0], SIZE[0]):
        for x in range(0, slide.dimensions[0] - SIZE[1], SIZE[1]):
            image = np.asarray(slide.read_region((x, y), 0, SIZE[::-1]).convert("RGB"))
            if (image.min(-1) < 215).mean() > 0.25:
                yield statistics(image, None)


def drawn_tiles(scales: Sequence[float], labs: Sequence[str]) -> Iterator[Stats]:
    """One tile of every subject, at every scale in turn."""
    channels = (*(f"image_{c}" for c in COLOURS), "instances")
    sources = [HistologyData(channels, SIZE, {"train": SUBJECTS}, tiles=1, mpp=mpp, domains=labs) for mpp in scales]
    for index in range(SUBJECTS):
        case = sources[index % len(sources)].draw(index, 0)
        yield statistics(stored(case), case["instances"][0])


def stored(case: dict, lab: str = "image") -> np.ndarray:
    """A case's colours (H, W, 3) as a scanner would store them."""
    planes = np.concatenate([case[f"{lab}_{c}"] for c in COLOURS])
    return np.moveaxis(((planes + 1) * 127.5).round().astype(np.uint8), 0, -1)


def table(pairs: Sequence[tuple[str, list[Stats], list[Stats]]]) -> str:
    """For every pair (name of the real set, drawn, real): medians and 5th to 95th percentiles over tiles, whether the drawn median
    lies in the real range, and the share of the drawn tiles that do."""
    heads = [f"drawn like it | {name} | within" for name, *_ in pairs]
    lines = [f"| statistic of a tile | {' | '.join(heads)} |", "|---" * (3 * len(pairs) + 1) + "|"]
    for key, about in ABOUT.items():
        values = [tuple(np.array([tile[key] for tile in tiles if key in tile]) for tiles in pair) for _, *pair in pairs]
        cells = [cell for drawn, real in values for cell in _compared(drawn, real)]
        lines.append(f"| {about} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _compared(drawn: np.ndarray, real: np.ndarray) -> list[str]:
    if not len(real):
        return [_cell(drawn), "", ""]
    low, high = np.percentile(real, (5, 95))
    share = ((drawn >= low) & (drawn <= high)).mean()
    return [_cell(drawn), _cell(real), f"{'yes' if low <= np.median(drawn) <= high else 'no'}, {share:.0%}"]


def _cell(values: np.ndarray) -> str:
    digits = 0 if np.abs(np.median(values)) >= 20 else 2
    low, middle, high = (f"{v:.{digits}f}" for v in np.percentile(values, (5, 50, 95)))
    return f"{middle} ({low} to {high})"


def draw_picture() -> None:
    """Every class in every domain, with the label maps of each; drawn tiles only."""
    channels = (*(f"{lab}_{c}" for lab in DOMAINS for c in COLOURS), "tissue", "instances")
    data = HistologyData(channels, (176, 176), {"train": 200}, tiles=1, mpp=0.5, noise=0.0)
    cases: dict[int, dict] = {}
    for index in range(200):
        case = data.draw(index, 0)
        cases.setdefault(case["label"], case)
        if len(cases) == len(CLASSES):
            break
    rows = [[stored(cases[k], lab) for k in range(len(CLASSES))] for lab in DOMAINS]
    rows.append([_coloured(cases[k]) for k in range(len(CLASSES))])
    Image.fromarray(montage(rows, gap=3)).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


def _coloured(case: dict) -> np.ndarray:
    """Tissue labels in muted colours, each nucleus over them in one of its own."""
    tissue = np.array([MUTED[name] for name in TISSUES])
    picture, number = tissue[case["tissue"][0]], case["instances"][0]
    shades = np.random.default_rng(0).integers(30, 170, (number.max() + 1, 3))
    return np.where(number[..., None] > 0, shades[number], picture).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    parser.add_argument("--picture", action="store_true", help="draw the picture of the page")
    options = parser.parse_args()
    if options.picture:
        draw_picture()
    if options.real:
        pairs = [("real tiles", list(drawn_tiles(SCALES, LABS)), list(real_tiles(options.real)))]
        if options.slide:
            pairs.append(("real slide", list(drawn_tiles([0.5], ["crimson"])), list(slide_tiles(options.slide))))
        text = table(pairs)
        print(text)
        if options.write:
            before, rest = PAGE.read_text().split(MARKS[0])
            PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    if not (options.picture or options.real):
        parser.print_help()


if __name__ == "__main__":
    main()
