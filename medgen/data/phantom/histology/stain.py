"""Light through a stained section (Beer and Lambert), and the laboratories and scanners that make it look different.

Optical density of colour c is the sum over stains of concentration times stain matrix, OD_c = sum_s C_s M_sc, and transmission is
10^-OD. The detector reads white_c 10^-OD_c on a scale of 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.data.phantom.shapes import Array

COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class Domain:
    """A laboratory and its scanner.

    Attributes:
        matrix: optical density in red, green, blue at concentration 1 of hematoxylin, eosin, blood (3, 3).
        white: what the scanner reads where there is no tissue.
        blur: standard deviation of the optics' point spread in red, green, blue, in micrometres: glass focuses one colour best.
    """

    name: str
    matrix: tuple[tuple[float, float, float], ...]
    white: tuple[float, float, float]
    blur: tuple[float, float, float]

    def stained(self, shade: Array, tint: Array) -> Array:
        """The matrix (3, 3) for a subject: `shade` are logarithms of strength, `tint` turns the vectors."""
        matrix = np.array(self.matrix)
        length = np.linalg.norm(matrix, axis=1, keepdims=True)
        turned = np.maximum(matrix / length + tint, 0.01)
        return length * np.exp(shade)[:, None] * turned / np.linalg.norm(turned, axis=1, keepdims=True)


# Directions near Ruifrok and Johnston 2001 (hematoxylin .65 .70 .29, eosin .07 .99 .11); strengths and lamps chosen by eye and by
# `benchmarks/phantom_histology.py`. "violet" has hardly any eosin and an uncorrected lamp, "pale" dark hematoxylin on near white.
DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("pink", ((0.56, 0.64, 0.26), (0.05, 0.36, 0.17), (0.02, 0.52, 0.42)), (243.0, 240.0, 243.0), (0.24, 0.20, 0.24)),
        Domain("violet", ((0.27, 0.56, 0.04), (0.006, 0.045, 0.002), (0.04, 0.10, 0.08)), (184.0, 167.0, 209.0), (0.42, 0.20, 0.30)),
        Domain("pale", ((0.29, 0.58, 0.17), (0.010, 0.040, 0.015), (0.03, 0.12, 0.13)), (219.0, 221.0, 219.0), (0.36, 0.22, 0.30)),
        Domain("crimson", ((0.86, 0.84, 0.40), (0.05, 0.54, 0.25), (0.05, 0.75, 0.60)), (244.0, 243.0, 243.0), (0.16, 0.14, 0.16)),
    )
}


def domain(name: str) -> Domain:
    """The domain called `name`."""
    if name not in DOMAINS:
        raise MedgenError(f"no stain domain '{name}'; {nearest(name, DOMAINS)}")
    return DOMAINS[name]


def transmit(stains: Array, matrix: Array, white: Array | tuple[float, float, float]) -> Array:
    """Detector readings (3, H, W) of concentrations (3, H, W)."""
    density = np.tensordot(np.float32(matrix).T, stains, 1)
    return np.float32(white)[:, None, None] * np.exp(np.float32(-np.log(10)) * density)


def unmix(readings: Array, matrix: Array, white: Array | tuple[float, float, float]) -> Array:
    """Concentrations (3, H, W) from readings: the inverse of `transmit`, exact without noise, blur and clipping."""
    density = -np.log10(readings / np.float32(white)[:, None, None])
    return np.tensordot(np.linalg.inv(matrix).T, density, 1).astype(np.float32)


def scanned(readings: Array, blur: Sequence[float], noise: float, rng: np.random.Generator) -> Array:
    """What the scanner stores: light spread by the optics (`blur` of each colour in pixels), shot noise, and the limits 0 and 255.

    Args:
        noise: standard deviation at full light (255); it falls with the root of the light.
    """
    from scipy.ndimage import gaussian_filter

    readings = np.stack(
        [gaussian_filter(plane, width, truncate=3.0) if width else plane for plane, width in zip(readings, blur, strict=True)]
    )
    if noise > 0:
        readings = readings + noise * np.sqrt(readings / 255.0) * rng.standard_normal(readings.shape, dtype=np.float32)
    return np.clip(readings, 0, 255)
