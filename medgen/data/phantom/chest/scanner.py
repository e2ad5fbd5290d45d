"""From tissue fractions to what a CT scanner shows: Hounsfield units, texture, and the noise of counted photons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.data.phantom.chest.anatomy import Chest
from medgen.data.phantom.chest.paint import AIR, LUNG, TISSUES
from medgen.data.phantom.chest.traits import CENTRE, Traits
from medgen.data.phantom.grid import Grid
from medgen.data.phantom.shapes import Array

IMAGES = ("ct", "ct_low_dose")
DEEP = (320.0, -40.0)  # extent and middle of a volume along z
WATER = 0.0193  # attenuation per mm at 70 keV, about the mean energy of a 120 kV tube (NIST XCOM)
_CUT = 0.75  # cycles per mm at which the smooth reconstruction kernel has fallen to nothing
_BLOCK, _ANGLES = 64, 48

# Standard deviation (HU) of the texture within a tissue, where it is not that of its table value alone.
GRAIN = {
    "lung": 28.0,
    "fat": 7.0,
    "soft": 9.0,
    "organ": 4.0,
    "heart": 4.0,
    "marrow": 50.0,
    "cartilage": 20.0,
    "solid": 8.0,
    "ground_glass": 40.0,
}
# The range that a tissue's mean takes over subjects. Soft tissue, blood and organs are lower without contrast medium. Lung and bone after
# the usual textbook values; cortical bone, trabecular bone and cartilage as typical values rather than one study's.
RANGES = {
    "air": (-1000, -1000), "lung": (-930, -790), "fat": (-105, -105), "soft": (47, 56), "fluid": (15, 15), "organ": (55, 105),
    "heart": (45, 110), "venous": (42, 340), "arterial": (42, 320), "cartilage": (105, 105), "marrow": (110, 270), "bone": (900, 900),
    "airway": (-1000, -1000), "solid": (35, 60), "ground_glass": (-620, -620), "table": (60, 60),
}  # fmt: skip


def hounsfield(t: Traits) -> dict[str, float]:
    """Tissue -> mean Hounsfield units in this subject."""
    fixed = {name: float(low) for name, (low, high) in RANGES.items() if low == high}
    enhanced = {name: float(RANGES[name][int(t.contrast)]) for name in ("soft", "organ", "heart", "solid")}
    own = {"lung": t.lung, "venous": t.venous, "arterial": t.arterial, "marrow": t.marrow}
    values = fixed | enhanced | own
    return {name: values[name] for name in TISSUES}


def clean(chest: Chest, grid: Grid, stack: Array) -> Array:
    """Hounsfield units (*S) of fractions (tissues, *S) without noise: means of the tissues, texture, lung denser where it hangs."""
    t = chest.traits
    image = np.tensordot(np.float32(list(hounsfield(t).values())), stack, 1)
    inside = np.flatnonzero(stack[AIR].ravel() < 0.999)
    points = tuple(v[inside] for v in grid.points())
    spread = np.tensordot(np.float32([GRAIN.get(name, 0.0) for name in TISSUES]), stack, 1).ravel()[inside]
    added = spread * t.grain(points) - t.gravity * (points[1] - np.float32(CENTRE[1])) * stack[LUNG].ravel()[inside]
    image.reshape(-1)[inside] += added
    return image


@dataclass(frozen=True)
class Scanner:
    """How a chest is scanned and reconstructed.

    Attributes:
        fov: mm along x and y. A volume covers 320 mm along z whatever this is.
        thickness: of an axial slice, mm; a volume's follows from its size.
        dose: tube output relative to one that gives `noise`; a number, or [low, high] from which every subject draws (log-uniform).
        low_dose: factor of the dose in the channel `ct_low_dose`.
        noise: standard deviation (HU) in the middle of 300 mm of water at dose 1, on whatever grid is reconstructed (as exposure
            control does). 0 turns noise off.
        padding: value outside the circle that the scanner reconstructs, such as -1024, -2048 or -3024; None: air goes on.
    """

    fov: float = 380.0
    thickness: float = 5.0
    dose: float | Sequence[float] = 1.0
    low_dose: float = 0.1
    noise: float = 24.0
    padding: float | None = None

    def __post_init__(self):
        low, high = self._doses
        if not 0 < low <= high or self.low_dose <= 0:
            raise MedgenError(
                f"dose {self.dose} and low_dose {self.low_dose}: expected numbers above 0, or a pair with the lower one first"
            )
        if self.fov <= 0 or self.thickness <= 0 or self.noise < 0:
            raise MedgenError(f"fov {self.fov}, thickness {self.thickness} and noise {self.noise} must be lengths above 0 and noise from 0")

    @property
    def _doses(self) -> tuple[float, float]:
        pair = (self.dose, self.dose) if isinstance(self.dose, int | float) else tuple(self.dose)
        if len(pair) != 2:
            raise MedgenError(f"dose is {self.dose}; expected a number or a pair")
        return float(pair[0]), float(pair[1])

    def grid(self, size: Sequence[int], z: float = 0.0) -> Grid:
        """An axial slice at world height `z` for two numbers, the volume for three."""
        if len(size) == 3:
            return Grid.centred(size, (self.fov, self.fov, DEEP[0]), (*CENTRE[:2], DEEP[1]))
        flat = Grid.centred((*size, 1), (self.fov, self.fov, self.thickness), (*CENTRE[:2], z))
        return Grid(flat.shape, flat.spacing, (*flat.origin[:2], float(z)))

    def dose_of(self, chest: Chest) -> float:
        """The dose of a subject's scan."""
        low, high = self._doses
        return float(low * (high / low) ** generator(chest.seed, chest.index, 8).random()) if high > low else low

    def image(self, chest: Chest, grid: Grid, stack: Array, channel: str = "ct") -> Array:
        """A scan (*S) in HU. Its noise belongs to the subject, the channel and the height of a slice, whatever else is drawn."""
        picture = clean(chest, grid, stack)
        if self.noise > 0:
            dose = self.dose_of(chest) * (self.low_dose if channel == "ct_low_dose" else 1.0)
            for k, z in enumerate(grid.axis(2)):
                rng = generator(chest.seed, chest.index, 4, IMAGES.index(channel), round(float(z) * 50) + 1_000_000)
                picture[..., k] += projection_noise(picture[..., k], grid.spacing[:2], self.noise / np.sqrt(dose), rng)
        if self.padding is not None:
            picture[_outside(grid)] = self.padding
        return picture


def projection_noise(picture: Array, spacing: Sequence[float], noise: float, rng: np.random.Generator) -> Array:
    """The noise (X, Y) in HU of one slice by filtered back-projection of the noise of its projections.

    Reconstruction is linear: an image from noisy projections is the image plus the reconstruction of their noise. Every ray's line
    integral p has a variance in proportion to exp(p), the Poisson statistics of the photons that arrive, after the logarithm to
    first order (Barrett and Swindell 1981). Hence noise is largest in the middle, runs in streaks along the rays that lose
    most, has the spectrum of the ramp filter, and a variance in proportion to 1 / dose. p is measured in parallel rays on a
    grid of at most 64 blocks a side; a scatter fraction and electronic noise are left out.

    Args:
        picture: HU. spacing: mm of its two axes.
        noise: standard deviation (HU) in the middle of 300 mm of water.
    """
    step = min(spacing)
    bins = 2 * int(np.ceil(np.hypot(*(n * s for n, s in zip(picture.shape, spacing, strict=True))) / step / 2)) + 4
    views = max(96, max(picture.shape))
    frequency = np.fft.rfftfreq(bins, step)
    top = min(0.5 / step, _CUT)
    ramp = frequency * np.cos(np.clip(frequency / top, 0, 1) * (np.pi / 2)) ** 2
    gain = 2 * np.square(ramp).sum() / bins  # variance of a filtered projection of unit white noise
    photons = np.pi**2 / views * np.exp(300.0 * WATER) * gain * (1000.0 / WATER / noise) ** 2
    paths = _paths(picture, spacing, views, step, bins)
    sinogram = np.exp(0.5 * paths) * rng.standard_normal(paths.shape, dtype=np.float32) * np.float32(photons**-0.5)
    spectrum = np.fft.rfft(sinogram, axis=1) * ramp
    fine = 4 * np.fft.irfft(spectrum, 4 * bins, axis=1)
    return _back(fine.astype(np.float32), picture.shape, spacing, step / 4) * np.float32(np.pi / views * 1000.0 / WATER)


def _paths(picture: Array, spacing: Sequence[float], views: int, step: float, bins: int) -> Array:
    """Line integrals of attenuation (views, bins) along parallel rays."""
    blocks = [-(-n // _BLOCK) for n in picture.shape]
    mu = WATER * np.maximum(1 + picture / 1000, 0)
    for i, n in enumerate(blocks):
        mu = np.add.reduceat(mu, np.arange(0, mu.shape[i], n), axis=i)
    x, y = (
        (np.arange(m) * n + (n - 1) / 2 - (whole - 1) / 2) * s
        for m, n, whole, s in zip(mu.shape, blocks, picture.shape, spacing, strict=True)
    )
    wide = max(n * s for n, s in zip(blocks, spacing, strict=True))
    weight = mu.ravel() * (spacing[0] * spacing[1] / wide)
    half = int(np.ceil(bins * step / wide / 2)) + 2
    coarse = np.empty((_ANGLES + 1, bins))
    at = (np.arange(bins) - (bins - 1) / 2) * step
    for k in range(_ANGLES):
        angle = np.pi * k / _ANGLES
        t = np.add.outer(x * np.cos(angle), y * np.sin(angle)).ravel() / wide + half
        i = t.astype(np.int64)
        low = np.bincount(i, weight * (1 - (t - i)), 2 * half + 2)
        ray = low + np.bincount(i + 1, weight * (t - i), 2 * half + 2)
        coarse[k] = np.interp(at, (np.arange(len(ray)) - half) * wide, ray)
    coarse[-1] = coarse[0, ::-1]
    where = np.arange(views) * (_ANGLES / views)
    k = where.astype(np.int64)
    part = (where - k)[:, None]
    return ((1 - part) * coarse[k] + part * coarse[k + 1]).astype(np.float32)


def _back(fine: Array, shape: Sequence[int], spacing: Sequence[float], step: float) -> Array:
    """Sum over views of the filtered projections (views, bins) at every pixel's place on them."""
    x, y = ((np.arange(n) - (n - 1) / 2) * (s / step) for n, s in zip(shape, spacing, strict=True))
    out = np.zeros(shape, np.float32)
    for k, row in enumerate(fine):
        angle = np.pi * k / len(fine)
        place = np.add.outer((x * np.cos(angle) + (len(row) - 4) / 2 + 0.5).astype(np.float32), (y * np.sin(angle)).astype(np.float32))
        out += row[place.astype(np.int32)]
    return out


def _outside(grid: Grid) -> Array:
    x, y = (grid.axis(i) - (grid.origin[i] + (grid.shape[i] - 1) * grid.spacing[i] / 2) for i in range(2))
    radius = min(grid.shape[i] * grid.spacing[i] for i in range(2)) / 2
    return np.hypot.outer(x, y) > radius
