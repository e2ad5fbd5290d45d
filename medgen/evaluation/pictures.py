"""Pictures of cases for the eye: source, target, result and difference, with titles and names in the picture itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nan_to_num, nonzero

from medgen.core.colours import coloured
from medgen.core.picture import gray, montage, upright

READABLE, WIDE = 128, 552  # pixels of a column that hold a title, and of a row that need not be enlarged, which blurs letters
FONT, LINE = 13, 18  # pixels of letters, and of a line of them
LARGEST = 256  # pixels of a column's longer side
BAR = 8  # pixels across of a colour bar
HELD = 99.5  # per cent of the pixels that differ are within the scale of their row
RANGE = 2.0  # of network units: differences beyond it are of images that are wrong as a whole, and one scale for them would hide the others
SCALED = (
    "Difference: red is too bright, blue too dark, {unit}; the bar beside a row is its scale, which holds {held:g} % of what differs or "
    "ends at the full range."
)
PARTS = (0.35, 0.5, 0.65)  # of the body's extent, where a volume is cut


@dataclass(frozen=True)
class Cut:
    """One case in one plane.

    Attributes:
        name: written beside the row.
        images: title -> (1, C, *S); the last but one is the target, the last the result.
        height: index along the spatial axis that is cut; of a picture it does not matter.
    """

    name: str
    images: Mapping[str, Tensor]
    height: int


@dataclass(frozen=True)
class Scale:
    """Where the colours of differences end.

    Attributes:
        edge: in network units: red from +edge, blue from -edge.
        unit, size: the name of the unit that is printed, and what one network unit is in it.
    """

    edge: float
    unit: str = ""
    size: float = 1.0

    @property
    def text(self) -> str:
        """The end of the bar."""
        return f"{self.edge * self.size:.3g} {self.unit}".rstrip()


def scale(differences: Sequence[np.ndarray], unit: str = "", size: float = 1.0) -> Scale:
    """One scale for differences that are to be compared: `HELD` per cent of the pixels that differ are within; two digits, rounded up.

    It ends at the full range, so that a method that went astray does not hide what the others differ by.
    """
    sizes = np.concatenate([np.abs(difference).ravel() for difference in differences])
    differing = sizes[sizes > 0]
    edge = min(float(np.percentile(differing, HELD)), RANGE) if len(differing) else 1.0
    digit = 10.0 ** (math.floor(math.log10(edge)) - 1)
    return Scale(math.ceil(round(edge / digit, 3)) * digit, unit, size)


def cases_picture(cuts: Sequence[Cut], axis: int, data_range: float = 2.0, unit: str = "", size: float = 1.0) -> np.ndarray:
    """(H, W, 3) uint8: a row for each cut, a column for each image, and the signed difference of result and target with its scale.

    Args:
        unit, size: of the scales, as `Scale` has them.
    """
    rows, scales = [], []
    for cut in cuts:
        planes = [plane(image, axis, cut.height) for image in cut.images.values()]
        difference = flat(planes[-1] - planes[-2])
        scales.append(scale([difference], unit, size))
        rows.append([*(small(gray(p, -data_range / 2, data_range / 2)) for p in planes), small(signed(difference, scales[-1].edge))])
    return lettered(rows, [*cuts[0].images, "difference"], [cut.name for cut in cuts], scales)


def flat(difference: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) of colours, whose mean is shown, as (H, W)."""
    return difference.mean(-1) if difference.ndim == 3 else difference


def worst_height(error: Tensor, mask: Tensor, axis: int) -> int:
    """The plane with the largest sum of squares of `error` (1, C, *S) inside `mask` (1, 1, *S)."""
    if mask.ndim == 4:
        return 0
    squares = (error.square().sum(1, keepdim=True) * mask)[0, 0]
    return int(squares.sum([a for a in range(3) if a != axis]).argmax())


def heights(mask: Tensor, axis: int, parts: Sequence[float] = PARTS) -> list[int]:
    """Slices through the body; of a picture the picture."""
    if mask.ndim == 2:
        return [0]
    others = tuple(a for a in range(3) if a != axis)
    inside = nonzero(mask.any(others[1]).any(others[0])).flatten().tolist()
    return list(dict.fromkeys(inside[round(part * (len(inside) - 1))] for part in parts))


def seen(image: Tensor, names: Sequence[str]) -> Tensor:
    """(1, C, *S) -> what the eye gets: three colours by their names, else the first channel; where that is missing, black."""
    return nan_to_num(image if coloured(names) else image[:, :1], nan=-1.0)


def plane(image: Tensor, axis: int, height: int) -> np.ndarray:
    """(1, C, *S) as (H, W), or (H, W, 3) of three colours: a picture as it is; a slice of a volume upright."""
    array = image[0].float().cpu().numpy()
    array = array if len(array) == 3 else array[:1]
    planes = [channel if channel.ndim == 2 else upright(np.take(channel, height, axis)) for channel in array]
    return planes[0] if len(planes) == 1 else np.stack(planes, -1)


def middle_plane(image: Tensor, turn: bool) -> np.ndarray:
    """(C, *S) as (H, W), or (H, W, 3) of three channels: a plane as it is or upright (`turn`); of a volume its middle axial slice."""
    channels = image if len(image) == 3 else image[:1]
    planes = [(c if c.ndim == 2 else c.select(2, c.shape[2] // 2)).float().cpu().numpy() for c in channels]
    planes = [upright(plane) if turn else plane for plane in planes]
    return planes[0] if len(planes) == 1 else np.stack(planes, -1)


def small(picture: np.ndarray) -> np.ndarray:
    """At most `LARGEST` pixels on the longer side."""
    from PIL import Image

    scale = LARGEST / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def signed(values: np.ndarray, edge: float) -> np.ndarray:
    """(H, W) to (H, W, 3) uint8: black at zero, red up to +edge, blue down to -edge."""
    part = np.clip(values / edge, -1, 1)
    warm, cold = np.maximum(part, 0), np.maximum(-part, 0)
    green = np.maximum(warm, cold) ** 2 * 0.5
    return (np.stack([warm, green, cold], -1) * 255 + 0.5).astype(np.uint8)


def lettered(rows: list[list[np.ndarray]], titles: list[str], subjects: list[str], scales: Sequence[Scale | None] = ()) -> np.ndarray:
    """A montage under a line with the columns' titles, each row beside its subject, and before the bar of its scale where it has one.

    Small grids are enlarged here, so that their titles fit and the page need not enlarge the letters with them.
    """
    from PIL import Image

    gap = 2
    across = max(sum(plane.shape[1] for plane in row) for row in rows)
    times = max(1, -(-READABLE // max(row[0].shape[1] for row in rows)), -(-WIDE // across))
    rows = [[plane.repeat(times, 0).repeat(times, 1) for plane in row] for row in rows]
    picture = montage(rows, gap)
    length = letters(Image.new("L", (1, 1))).textlength
    margin = 8 + int(max(map(length, subjects)))
    beside = max((4 + BAR + 8 + int(length(f"+{own.text}")) for own in scales if own), default=0)
    canvas = Image.new("RGB", (margin + picture.shape[1] + beside, picture.shape[0] + LINE))
    canvas.paste(Image.fromarray(picture), (margin, LINE))
    draw = letters(canvas)
    width = max(row[0].shape[1] for row in rows) + gap
    for i, title in enumerate(titles):
        draw.text((margin + i * width + 4, 1), title, fill="white")
    y = LINE
    for row, subject, own in zip(rows, subjects, scales or [None] * len(rows), strict=True):
        draw.text((4, y + 2), subject, fill="white")
        height = max(plane.shape[0] for plane in row)
        if own:
            _draw_bar(canvas, (margin + picture.shape[1] + 4, y), height, own)
        y += height + gap
    return np.asarray(canvas)


def letters(canvas: Any) -> Any:
    """What draws on a PIL image, with letters that are read without enlarging."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(canvas)
    draw.font = ImageFont.load_default(FONT)
    return draw


def _draw_bar(canvas: Any, corner: tuple[int, int], height: int, own: Scale) -> None:
    """The colours of a scale from top to bottom, with its ends and its middle."""
    from PIL import Image

    (x, y), draw = corner, letters(canvas)
    colours = signed(np.linspace(1, -1, height)[:, None].repeat(BAR, 1), 1)
    canvas.paste(Image.fromarray(colours), corner)
    for text, top in ((f"+{own.text}", y), ("0", y + (height - LINE) // 2), (f"-{own.text}", y + height - LINE)):
        draw.text((x + BAR + 4, top), text, fill="white")
