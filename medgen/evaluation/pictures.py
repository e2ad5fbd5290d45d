"""Pictures of cases for the eye: source, target, result and difference, with titles and names in the picture itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nan_to_num, nonzero

from medgen.core.colours import coloured
from medgen.core.picture import gray, montage, upright

READABLE = 128  # pixels of a column that hold a title
LARGEST = 256  # pixels of a column's longer side
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


def cases_picture(cuts: Sequence[Cut], axis: int, data_range: float = 2.0) -> np.ndarray:
    """(H, W, 3) uint8: a row for each cut, a column for each image, and the signed difference of result and target."""
    rows, edge = [], data_range / 4
    for cut in cuts:
        planes = [plane(image, axis, cut.height) for image in cut.images.values()]
        difference = planes[-1] - planes[-2]
        difference = difference.mean(-1) if difference.ndim == 3 else difference
        rows.append([*(small(gray(p, -data_range / 2, data_range / 2)) for p in planes), small(signed(difference, edge))])
    return lettered(rows, [*cuts[0].images, f"difference (+-{edge:g})"], [cut.name for cut in cuts])


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


def lettered(rows: list[list[np.ndarray]], titles: list[str], subjects: list[str], gap: int = 2, head: int = 16) -> np.ndarray:
    """A montage under a line with the columns' titles, each row beside its subject."""
    from PIL import Image, ImageDraw

    times = max(1, -(-READABLE // max(row[0].shape[1] for row in rows)))  # small grids are enlarged, or their titles would not fit
    rows = [[plane.repeat(times, 0).repeat(times, 1) for plane in row] for row in rows]
    picture = montage(rows, gap)
    margin = 8 + int(max(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(subject) for subject in subjects))
    canvas = Image.new("RGB", (margin + picture.shape[1], picture.shape[0] + head))
    canvas.paste(Image.fromarray(picture), (margin, head))
    draw = ImageDraw.Draw(canvas)
    width = max(row[0].shape[1] for row in rows) + gap
    for i, title in enumerate(titles):
        draw.text((margin + i * width + 4, 2), title, fill="white")
    y = head
    for row, subject in zip(rows, subjects, strict=True):
        draw.text((4, y + 2), subject, fill="white")
        y += max(plane.shape[0] for plane in row) + gap
    return np.asarray(canvas)
