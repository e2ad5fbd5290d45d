"""Where numbers lie, drawn as bars."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

COLOURS = ((206, 92, 60), (70, 120, 180), (120, 150, 90), (150, 110, 170))
WIDTH, HEIGHT, MARGIN = 520, 150, 18


def histogram(sets: Mapping[str, np.ndarray], line: float | None = None, bins: int = 30) -> np.ndarray:
    """(H, W, 3) uint8: each set's shares over common bins, one panel above the other, the number at both ends, and a line."""
    from PIL import Image, ImageDraw

    values = np.concatenate([*sets.values(), [line] if line is not None else []])
    low, high = float(values.min()), float(values.max())
    low = 0.0 if 0 <= low < high / 2 else low
    span = (high - low) or 1.0
    canvas = Image.new("RGB", (WIDTH, (HEIGHT // 2 + MARGIN) * len(sets) + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (name, own) in enumerate(sets.items()):
        top, base = (HEIGHT // 2 + MARGIN) * place + MARGIN, (HEIGHT // 2 + MARGIN) * (place + 1)
        counts, _ = np.histogram(own, bins, (low, low + span))
        step = (WIDTH - 8) / bins
        for i, height in enumerate(counts / max(counts.max(), 1) * (base - top)):
            if height:
                draw.rectangle((4 + i * step, base - max(height, 1), 4 + (i + 1) * step - 2, base), fill=COLOURS[place % len(COLOURS)])
        draw.line((4, base, WIDTH - 4, base), fill="gray")
        draw.text((6, top - MARGIN + 3), f"{name} (n = {len(own)})", fill="black")
        if line is not None:
            x = 4 + (line - low) / span * (WIDTH - 8)
            draw.line((x, top, x, base), fill="black", width=2)
    for x, number in ((6, low), (WIDTH - 60, low + span)):
        draw.text((x, canvas.height - MARGIN + 3), f"{number:.3g}", fill="black")
    return np.asarray(canvas)
