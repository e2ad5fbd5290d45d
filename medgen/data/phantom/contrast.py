"""From tissue fractions to what a scanner shows: MR by the signal equations, CT in Hounsfield units, bias field, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.core.random import generator
from medgen.data.phantom.grid import Grid
from medgen.data.phantom.paint import TISSUES
from medgen.data.phantom.shapes import Array, draw_waves


@dataclass(frozen=True)
class Tissue:
    """T1 and T2 in ms at 1.5 T and 3 T, proton density relative to water, and Hounsfield units."""

    t1: tuple[float, float]
    t2: tuple[float, float]
    pd: float
    hu: float


# Relaxation: grey matter, white matter and muscle from Stanisz et al. 2005 (Magn Reson Med 54:507); subcutaneous fat and marrow
# from de Bazelaire et al. 2004 (Radiology 230:652). CSF is close to free water and nearly independent of the field. Deep nuclei
# and lesion are set between and around these, as typical values rather than one study's. Water content after Whittall et al.
# 1997 (Magn Reson Med 37:34). Cortical bone decays in well under a millisecond and gives no signal at these echo times.
TABLE: dict[str, Tissue] = {
    "air": Tissue((1.0, 1.0), (1.0, 1.0), 0.0, -1000.0),
    "soft": Tissue((1008.0, 1412.0), (44.0, 50.0), 0.75, 50.0),
    "fat": Tissue((343.0, 382.0), (58.0, 68.0), 0.90, -90.0),
    "bone": Tissue((250.0, 250.0), (0.5, 0.5), 0.15, 1250.0),
    "marrow": Tissue((549.0, 586.0), (49.0, 49.0), 0.50, 420.0),
    "csf": Tissue((4200.0, 4300.0), (2000.0, 2000.0), 1.00, 8.0),
    "gm": Tissue((1124.0, 1820.0), (95.0, 99.0), 0.82, 39.0),
    "wm": Tissue((884.0, 1084.0), (72.0, 69.0), 0.70, 30.0),
    "deep": Tissue((1040.0, 1420.0), (82.0, 80.0), 0.77, 37.0),
    "lesion": Tissue((1250.0, 1650.0), (125.0, 120.0), 0.88, 20.0),
}
FIELDS = (1.5, 3.0)


@dataclass(frozen=True)
class Sequence:
    """Times in ms; `ti` per field strength for an inversion recovery, None for a spin echo. `fat` is what fat suppression leaves."""

    tr: float
    te: float
    ti: tuple[float, float] | None = None
    fat: float = 0.4


def spin_echo(pd: float, t1: float, t2: float, tr: float, te: float) -> float:
    """PD (1 - exp(-TR/T1)) exp(-TE/T2), for TE << TR (Hahn 1950; Haacke et al., Magnetic Resonance Imaging, 1999)."""
    return pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def inversion_recovery(pd: float, t1: float, t2: float, tr: float, te: float, ti: float) -> float:
    """PD (1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2), signed: the magnitude is taken after the voxel's tissues are summed."""
    return pd * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def null_time(t1: float, tr: float) -> float:
    """The inversion time (ms) at which a tissue of this T1 gives no signal."""
    return t1 * (np.log(2.0) - np.log1p(np.exp(-tr / t1)))


SEQUENCES: dict[str, Sequence] = {
    "t1": Sequence(tr=2300.0, te=3.0, ti=(900.0, 1100.0)),
    "t2": Sequence(tr=5000.0, te=100.0),
    "pd": Sequence(tr=3000.0, te=15.0),
    "flair": Sequence(tr=9000.0, te=120.0, ti=tuple(null_time(t, 9000.0) for t in TABLE["csf"].t1)),
}
IMAGES = (*SEQUENCES, "ct")
# Median over six subjects at 2.3 mm, bias field included, at 1.5 T and 3 T; a test measures it again.
TYPICAL = {"t1": (0.30, 0.31), "t2": (0.69, 0.68), "pd": (0.70, 0.62), "flair": (0.20, 0.135)}


def check_field(field: float) -> int:
    """Position of a field strength in the table's pairs."""
    if field not in FIELDS:
        raise MedgenError(f"the phantom knows tissue at 1.5 and 3.0 T; got {field} T")
    return FIELDS.index(field)


def signals(contrast: str, field: float = 3.0) -> dict[str, float]:
    """Tissue -> signed signal of the pure tissue (water at full relaxation is 1), or Hounsfield units for "ct"."""
    if contrast == "ct":
        return {name: TABLE[name].hu for name in TISSUES}
    if contrast not in SEQUENCES:
        raise MedgenError(f"no contrast '{contrast}'; {nearest(contrast, IMAGES)}")
    sequence, i = SEQUENCES[contrast], check_field(field)
    return {name: _signal(TABLE[name], sequence, i) * (sequence.fat if name == "fat" else 1.0) for name in TISSUES}


def _signal(tissue: Tissue, s: Sequence, i: int) -> float:
    if s.ti is None:
        return float(spin_echo(tissue.pd, tissue.t1[i], tissue.t2[i], s.tr, s.te))
    return float(inversion_recovery(tissue.pd, tissue.t1[i], tissue.t2[i], s.tr, s.te, s.ti[i]))


def clean(stack: Array, contrast: str, field: float = 3.0) -> Array:
    """Image (*S) of fractions (tissues, *S) without bias and noise: magnitude of the voxel's summed signal, or HU."""
    values = np.array(list(signals(contrast, field).values()), np.float32)
    image = np.tensordot(values, stack, 1)
    return image if contrast == "ct" else np.abs(image)


def bias_field(seed: int, index: int, contrast: str, grid: Grid, strength: float) -> Array:
    """Smooth positive receive sensitivity on the grid, exp of a random field with standard deviation `strength`."""
    waves = draw_waves(generator(seed, index, 3, IMAGES.index(contrast)), 8, (160.0, 400.0), strength)
    return np.exp(waves(grid.points())).reshape(grid.shape)


def rician(image: Array, sigma: float, rng: np.random.Generator) -> Array:
    """|image + sigma (n1 + i n2)|: magnitude of a complex signal with Gaussian noise (Gudbjartsson and Patz 1995)."""
    real = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, sigma * rng.standard_normal(image.shape, dtype=np.float32))


def noisy(image: Array, contrast: str, noise: float, field: float, rng: np.random.Generator) -> Array:
    """MR: Rician with sigma = `noise` x the contrast's typical white level. CT: Gaussian with 250 HU x `noise`."""
    if noise <= 0:
        return image
    if contrast == "ct":
        return image + 250.0 * noise * rng.standard_normal(image.shape, dtype=np.float32)
    return rician(image, noise * typical_high(contrast, field), rng)


def typical_high(contrast: str, field: float = 3.0) -> float:
    """The signal that `mr_percentile` maps to +1 on a typical phantom volume."""
    return TYPICAL[contrast][check_field(field)]
