"""Charts as pictures: curves over [0, 1], bars, points in a plane and where numbers lie, light on dark like the pictures of cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medgen.evaluation.pictures import LINE, letters

SIZE, MARGIN = 500, 44  # pixels of the axes' box, and of the border that holds their names
PLANE, EDGE, RADIUS, CROWD = (720, 540), 24, 4, 500  # of points: picture, border, size; how many are drawn smaller
WIDTH, PANEL = 720, 110  # of a histogram, and the height of each set's bars
COLOURS = ((255, 190, 60), (90, 170, 255), (120, 220, 120), (240, 110, 110))
FAINT, GRID, INK = (105, 105, 105), (45, 45, 45), (225, 225, 225)
_FINER = 2  # drawn larger and made smaller, so that slanted lines are smooth


def curves(x: Sequence[float], lines: Mapping[str, Sequence[float]], faint: Sequence[Sequence[float]], axes: tuple[str, str]) -> np.ndarray:
    """(H, W, 3) uint8: lines over x, both from 0 to 1, with the diagonal where they should lie; `faint` ones behind them."""
    canvas, draw = _box()

    def line(values: Sequence[float], colour: tuple[int, int, int], width: int) -> None:
        draw.line([_at(a, b) for a, b in zip(x, values, strict=True)], fill=colour, width=width * _FINER, joint="curve")

    draw.line([_at(0, 0), _at(1, 1)], fill=INK, width=_FINER)
    for values in faint:
        line(values, FAINT, 1)
    for values, colour in zip(lines.values(), COLOURS, strict=False):
        line(values, colour, 3)
    picture = _named(canvas, axes, ("0", "1"), ("0", "1"))
    for i, (name, colour) in enumerate(zip(lines, COLOURS, strict=False)):
        letters(picture).text((MARGIN + 8, 12 + LINE * i), name, fill=colour)
    return np.asarray(picture)


def bars(heights: Sequence[float], expected: float, axes: tuple[str, str]) -> np.ndarray:
    """(H, W, 3) uint8: a bar for each height, and a line where all of them should end."""
    canvas, draw = _box()
    top = 1.1 * max(*heights, expected)
    for i, height in enumerate(heights):
        left, right = _at((i + 0.1) / len(heights), 0), _at((i + 0.9) / len(heights), height / top)
        draw.rectangle([left[0], right[1], right[0], left[1]], fill=COLOURS[1])
    draw.line([_at(0, expected / top), _at(1, expected / top)], fill=INK, width=_FINER)
    return np.asarray(_named(canvas, axes, ("0", str(len(heights) - 1)), ("0", f"{top:.2g}")))


def scatter(points: Mapping[str, np.ndarray]) -> np.ndarray:
    """(H, W, 3) uint8: the points (N, 2) of each name in a colour of its own, the last name above the others, with a legend on top.

    Both axes have one scale, so that distances in the picture can be compared.
    """
    from PIL import Image

    every = np.concatenate(list(points.values()))
    middle = (every.min(0) + every.max(0)) / 2
    span = np.maximum(np.ptp(every, axis=0), 1e-9)
    scale = float(min((PLANE[0] - 2 * EDGE) / span[0], (PLANE[1] - 3 * EDGE) / span[1]))
    canvas = Image.new("RGB", PLANE)
    draw = letters(canvas)
    radius = RADIUS if len(every) < CROWD else RADIUS / 2
    x = EDGE
    for (name, places), colour in zip(points.items(), reversed(COLOURS[: len(points)]), strict=True):
        for across, up in (places - middle) * scale * (1, -1):
            left, top = PLANE[0] / 2 + across, (PLANE[1] + EDGE) / 2 + up
            draw.ellipse((left - radius, top - radius, left + radius, top + radius), fill=colour)
        said = f"{name} ({len(places)})"
        draw.ellipse((x, EDGE / 2, x + 2 * RADIUS, EDGE / 2 + 2 * RADIUS), fill=colour)
        draw.text((x + 2 * RADIUS + 6, EDGE / 2 - 4), said, fill=INK)
        x += 2 * RADIUS + 24 + int(draw.textlength(said))
    return np.asarray(canvas)


def histogram(sets: Mapping[str, np.ndarray], line: float | None = None, bins: int = 30) -> np.ndarray:
    """(H, W, 3) uint8: each set's shares over common bins, one panel above the other, the number at both ends, and a line."""
    from PIL import Image

    values = np.concatenate([*sets.values(), [line] if line is not None else []])
    low, high = float(values.min()), float(values.max())
    low = 0.0 if 0 <= low < high / 2 else low
    span, step = (high - low) or 1.0, (WIDTH - 8) / bins
    canvas = Image.new("RGB", (WIDTH, (LINE + PANEL) * len(sets) + LINE))
    draw = letters(canvas)
    for place, (name, own) in enumerate(sets.items()):
        top, base = (LINE + PANEL) * place + LINE, (LINE + PANEL) * (place + 1)
        counts, _ = np.histogram(own, bins, (low, low + span))
        for i, height in enumerate(counts / max(counts.max(), 1) * PANEL):
            if height:
                draw.rectangle((4 + i * step, base - max(height, 1), 4 + (i + 1) * step - 2, base), fill=COLOURS[place % len(COLOURS)])
        draw.line((4, base, WIDTH - 4, base), fill=FAINT)
        draw.text((6, top - LINE + 1), f"{name} (n = {len(own)})", fill=INK)
        if line is not None:
            x = 4 + (line - low) / span * (WIDTH - 8)
            draw.line((x, top, x, base), fill=INK, width=2)
    end = f"{low + span:.3g}"
    for x, number in ((6, f"{low:.3g}"), (WIDTH - 6 - draw.textlength(end), end)):
        draw.text((x, canvas.height - LINE + 1), number, fill=INK)
    return np.asarray(canvas)


def _box() -> tuple[Any, Any]:
    """The empty axes, and what draws on them."""
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


def _named(canvas: Any, axes: tuple[str, str], x_ends: tuple[str, str], y_ends: tuple[str, str]) -> Any:
    """The finished box, smaller, with the names and the ends of its axes."""
    from PIL import Image

    picture = canvas.resize((canvas.width // _FINER, canvas.height // _FINER), Image.Resampling.LANCZOS)
    draw, base = letters(picture), 8 + SIZE + 4
    draw.text((MARGIN + SIZE / 2 - draw.textlength(axes[0]) / 2, base + 12), axes[0], fill=INK)
    draw.text((MARGIN, base), x_ends[0], fill=INK)
    draw.text((MARGIN + SIZE - draw.textlength(x_ends[1]), base), x_ends[1], fill=INK)
    draw.text((MARGIN - 6 - draw.textlength(y_ends[0]), base - LINE), y_ends[0], fill=INK)
    draw.text((MARGIN - 6 - draw.textlength(y_ends[1]), 8), y_ends[1], fill=INK)
    name = Image.new("RGB", (int(draw.textlength(axes[1])) + 2, LINE))
    letters(name).text((0, 0), axes[1], fill=INK)
    turned = name.rotate(90, expand=True)
    picture.paste(turned, (4, 8 + SIZE // 2 - turned.height // 2))
    return picture
