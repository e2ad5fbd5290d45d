"""Points in a plane as a picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

COLOURS = ((150, 170, 200), (255, 140, 40), (90, 200, 120))
SIZE, EDGE, RADIUS = (480, 360), 24, 3
CROWD = 500  # points from which they are drawn smaller


def scatter(points: Mapping[str, np.ndarray]) -> np.ndarray:
    """(H, W, 3) uint8: the points (N, 2) of each name in a colour of its own, the first name below, with a legend on top.

    Both axes have one scale, so that distances in the picture can be compared.
    """
    from PIL import Image, ImageDraw

    every = np.concatenate(list(points.values()))
    middle = (every.min(0) + every.max(0)) / 2
    span = np.maximum(np.ptp(every, axis=0), 1e-9)
    scale = float(min((SIZE[0] - 2 * EDGE) / span[0], (SIZE[1] - 3 * EDGE) / span[1]))
    canvas = Image.new("RGB", SIZE)
    draw = ImageDraw.Draw(canvas)
    radius = RADIUS if len(every) < CROWD else RADIUS / 2
    x = EDGE
    for (name, places), colour in zip(points.items(), COLOURS, strict=False):
        for across, up in (places - middle) * scale * (1, -1):
            left, top = SIZE[0] / 2 + across, (SIZE[1] + EDGE) / 2 + up
            draw.ellipse((left - radius, top - radius, left + radius, top + radius), fill=colour)
        draw.ellipse((x, EDGE / 2, x + 2 * RADIUS, EDGE / 2 + 2 * RADIUS), fill=colour)
        draw.text((x + 12, EDGE / 2 - 3), f"{name} ({len(places)})", fill="white")
        x += 24 + int(draw.textlength(f"{name} ({len(places)})"))
    return np.asarray(canvas)
