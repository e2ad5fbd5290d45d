"""Small plots as pictures: curves over [0, 1] and bars, light on dark like the pictures of cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SIZE, MARGIN = 300, 44  # pixels of the axes' box, and of the border that holds their names
COLOURS = ((255, 190, 60), (90, 170, 255), (120, 220, 120), (240, 110, 110))
FAINT, GRID, INK = (105, 105, 105), (45, 45, 45), (225, 225, 225)
_FINER = 2  # drawn larger and made smaller, so that slanted lines are smooth


def curves(x: Sequence[float], lines: Mapping[str, Sequence[float]], faint: Sequence[Sequence[float]], axes: tuple[str, str]) -> np.ndarray:
    """(H, W, 3) uint8: lines over x, both from 0 to 1, with the diagonal where they should lie; `faint` ones behind them."""
    from PIL import Image, ImageDraw

    canvas, draw = _box(axes)

    def line(values: Sequence[float], colour: tuple[int, int, int], width: int) -> None:
        draw.line([_at(a, b) for a, b in zip(x, values, strict=True)], fill=colour, width=width * _FINER, joint="curve")

    draw.line([_at(0, 0), _at(1, 1)], fill=INK, width=_FINER)
    for values in faint:
        line(values, FAINT, 1)
    for values, colour in zip(lines.values(), COLOURS, strict=False):
        line(values, colour, 3)
    picture = canvas.resize((canvas.width // _FINER, canvas.height // _FINER), Image.Resampling.LANCZOS)
    letters = ImageDraw.Draw(picture)
    _name_axes(picture, axes, ("0", "1"), ("0", "1"))
    for i, (name, colour) in enumerate(zip(lines, COLOURS, strict=False)):
        letters.text((MARGIN + 8, 12 + 14 * i), name, fill=colour)
    return np.asarray(picture)


def bars(heights: Sequence[float], expected: float, axes: tuple[str, str]) -> np.ndarray:
    """(H, W, 3) uint8: a bar for each height, and a line where all of them should end."""
    from PIL import Image

    canvas, draw = _box(axes)
    top = 1.1 * max(*heights, expected)
    for i, height in enumerate(heights):
        left, right = _at((i + 0.1) / len(heights), 0), _at((i + 0.9) / len(heights), height / top)
        draw.rectangle([left[0], right[1], right[0], left[1]], fill=COLOURS[1])
    draw.line([_at(0, expected / top), _at(1, expected / top)], fill=INK, width=_FINER)
    picture = canvas.resize((canvas.width // _FINER, canvas.height // _FINER), Image.Resampling.LANCZOS)
    _name_axes(picture, axes, ("0", str(len(heights) - 1)), ("0", f"{top:.2g}"))
    return np.asarray(picture)


def _box(axes: tuple[str, str]):
    from PIL import Image, ImageDraw

    side = (SIZE + MARGIN + 12) * _FINER
    canvas = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(canvas)
    for part in (0.25, 0.5, 0.75):
        draw.line([_at(part, 0), _at(part, 1)], fill=GRID, width=_FINER)
        draw.line([_at(0, part), _at(1, part)], fill=GRID, width=_FINER)
    draw.rectangle([_at(0, 1), _at(1, 0)], outline=FAINT, width=_FINER)
    return canvas, draw


def _at(x: float, y: float) -> tuple[float, float]:
    """Pixels of a point of the unit square."""
    return (MARGIN + x * SIZE) * _FINER, (8 + (1 - y) * SIZE) * _FINER


def _name_axes(picture, axes: tuple[str, str], x_ends: tuple[str, str], y_ends: tuple[str, str]) -> None:
    from PIL import Image, ImageDraw

    draw = ImageDraw.Draw(picture)
    base = 8 + SIZE + 4
    draw.text((MARGIN + SIZE / 2 - draw.textlength(axes[0]) / 2, base + 14), axes[0], fill=INK)
    draw.text((MARGIN, base), x_ends[0], fill=INK)
    draw.text((MARGIN + SIZE - draw.textlength(x_ends[1]), base), x_ends[1], fill=INK)
    draw.text((MARGIN - 6 - draw.textlength(y_ends[0]), base - 14), y_ends[0], fill=INK)
    draw.text((MARGIN - 6 - draw.textlength(y_ends[1]), 8), y_ends[1], fill=INK)
    name = Image.new("RGB", (int(draw.textlength(axes[1])) + 2, 14))
    ImageDraw.Draw(name).text((0, 0), axes[1], fill=INK)
    turned = name.rotate(90, expand=True)
    picture.paste(turned, (4, 8 + SIZE // 2 - turned.height // 2))
