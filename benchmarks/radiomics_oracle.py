"""medgen's radiomic features beside those of pyradiomics, on pictures that are made of integers.

pyradiomics is built from source and lives in an environment of its own; this script starts itself there:
    python3 -m venv peer
    peer/bin/pip install numpy SimpleITK PyWavelets six pykwalify "setuptools<70" versioneer cython wheel
    peer/bin/pip install --no-build-isolation pyradiomics==3.0.1
    python benchmarks/radiomics_oracle.py --peer peer/bin/python [-o docs/results/radiomics.md] [--numbers tests/pyradiomics_numbers.py]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

WIDTHS = (1 / 8, 1 / 32)  # of a bin: of images and low bands, and of bands with detail
PLANE, VOLUME, ODD = (24, 12), (8, 10, 6), (15, 13)
SMALL = np.array([[1.0, 2.0], [1.0, 1.0]])  # in one of its directions all pairs are alike
NUMBERED = ("autocorrelation", "joint_average", "idmn", "idn")  # what these are depends on which bin is called 1, and how many there are
SPELLED = {"percentile_10": "10Percentile", "percentile_90": "90Percentile", "root_mean_square": "RootMeanSquared", "mcc": "MCC"}
LIMIT, LEAST = 1e-9, 1e-6  # of a relative difference, and of what it is relative to: the mean of a band with detail is 0
HEAD = """# Radiomic features beside pyradiomics

Written by `python benchmarks/radiomics_oracle.py`. {machine}

All {features} features of `medgen.metrics.radiomics` on pictures of integers, a plane of 24 x 12 and a volume of 8 x 10 x 6. Settings of
the peer: `binWidth` 1/8 (1/32 for bands with detail), `distances=[1]`, symmetric matrices, no weighting, `coif1`; for planes `force2D`.
Region and line are parts of the volume, by a mask. Differences are over the peer's value, or over 1e-6 where that is smaller. Arrays are
handed over so that the first axis is x, and then bands have the same names.

| case | features | largest relative difference | of | MCC alone | |
| --- | --- | --- | --- | --- | --- |
{rows}

`tests/test_radiomics_oracle.py` holds the peer's numbers, so that they are checked without it.

## Where they differ by definition

| what | medgen | pyradiomics | why |
| --- | --- | --- | --- |
{differences}
"""


def picture(shape: tuple[int, ...]) -> np.ndarray:
    """Waves as long as the axes, and something finer; multiples of 1 / 128 whose bins reach from the first to the last of 16 over [-1, 1]
    and whose details stay within a quarter."""
    place = np.indices(shape)
    waves = sum(100 // (len(shape) * (n // 2)) * np.minimum(i, n - i) for n, i in zip(shape, place, strict=True))
    fine = (7 * place[0] + 11 * place[-1] + 5 * place[0] * place[1] + 3 * place[1] * place[-1]) % 23
    return (2 * (waves + fine) - 119) / 128


def regions() -> dict[str, np.ndarray]:
    """Of the volume: most of it, with holes; and a line, which has neighbours in one direction only."""
    i, j, k = np.indices(VOLUME)
    return {"region": (i + 2 * j + 3 * k) % 7 != 3, "line": (i == 3) & (k == 2)}


def bands(dims: int) -> list[str]:
    return ["".join(letters) for letters in itertools.product("lh", repeat=dims)]


def compared(case: str) -> tuple[str, ...]:
    """The features of a case that both define alike."""
    from medgen.metrics import cooccurrence, radiomics

    names = (*radiomics.FIRST_ORDER, *cooccurrence.NAMES)
    return tuple(name for name in names if name not in NUMBERED) if "band" in case or case == "line" else names


def ours() -> dict[str, dict[str, float]]:
    """Case -> feature -> value."""
    import torch

    from medgen.metrics import radiomics
    from medgen.metrics.cooccurrence import NAMES, cooccurrence, cooccurrence_features

    found: dict[str, dict[str, float]] = {}
    for case, shape in (("plane", PLANE), ("volume", VOLUME)):
        values = radiomics.radiomic_features(torch.from_numpy(picture(shape))[None, None])[0].tolist()
        for name, value in zip(radiomics.names(len(shape)), values, strict=True):
            part, _, feature = name.partition(".")
            found.setdefault(case if part == "original" else f"{case}, band {part[-len(shape) :]}", {})[feature] = value
    x = torch.from_numpy(picture(VOLUME))[None]
    levels = radiomics.grey_levels(x, 1.0)
    for case, mask in regions().items():
        mask = torch.from_numpy(mask)[None]
        first = radiomics.first_order(x[mask][None], levels[mask][None])[0].tolist()
        second = cooccurrence_features(cooccurrence(levels, radiomics.LEVELS, mask))[0].tolist()
        found[case] = dict(zip((*radiomics.FIRST_ORDER, *NAMES), first + second, strict=True))
    return found


def theirs() -> dict[str, Any]:
    """The same by pyradiomics, and its versions; runs in its own environment."""
    import logging

    import radiomics

    radiomics.logger.setLevel(logging.ERROR)
    told = {case: extracted(picture(VOLUME), WIDTHS[0], mask) for case, mask in regions().items()}
    told["small"] = extracted(SMALL, 1.0)
    for case, shape in (("plane", PLANE), ("volume", VOLUME)):
        told[case] = extracted(picture(shape), WIDTHS[0])
        for name, band in decomposed(picture(shape)).items():
            told[f"{case}, band {name}"] = extracted(band, WIDTHS["h" in name])
    names = ("pyradiomics", "numpy", "PyWavelets", "SimpleITK")
    odd = {name: band.tolist() for name, band in decomposed(picture(ODD)).items()}
    return {"versions": {name: version(name) for name in names}, "features": told, "odd": odd}


def extracted(x: np.ndarray, width: float, mask: np.ndarray | None = None) -> dict[str, float]:
    from radiomics.firstorder import RadiomicsFirstOrder
    from radiomics.glcm import RadiomicsGLCM

    settings = {"binWidth": width, "force2D": x.ndim == 2, "distances": [1], "symmetricalGLCM": True, "weightingNorm": None, "label": 1}
    mask = np.ones(x.shape) if mask is None else mask
    found = {}
    for kind in (RadiomicsFirstOrder, RadiomicsGLCM):
        extractor = kind(itk(x), itk(mask.astype(np.uint8)), **settings)
        extractor.enableAllFeatures()
        found |= {name: float(value) for name, value in extractor.execute().items()}
    return found


def decomposed(x: np.ndarray) -> dict[str, np.ndarray]:
    """Band -> values, each filter divided by sqrt(2) as medgen's are."""
    import SimpleITK as sitk
    from radiomics.imageoperations import getWaveletImage

    made = getWaveletImage(itk(x), None, wavelet="coif1", force2D=x.ndim == 2)
    arrays = {name.partition("-")[2].lower(): sitk.GetArrayFromImage(image).T / 2 ** (x.ndim / 2) for image, name, _ in made}
    return {name: np.ascontiguousarray(array[..., 0] if x.ndim == 2 else array) for name, array in arrays.items()}


def itk(x: np.ndarray) -> Any:
    """First axis x. A plane is a volume of one slice."""
    import SimpleITK as sitk

    return sitk.GetImageFromArray((x[..., None] if x.ndim == 2 else x).T)


def asked(peer: str) -> dict[str, Any]:
    """What this script says there."""
    return json.loads(subprocess.run([peer, __file__, "--only"], capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def spelled(name: str) -> str:
    """A feature's name there."""
    return SPELLED.get(name, "".join(part.capitalize() for part in name.split("_")))


def relative(a: float, b: float) -> float:
    return abs(a - b) / max(abs(b), LEAST)


def rows(own: dict[str, dict[str, float]], peer: dict[str, dict[str, float]]) -> list[str]:
    """One for each case; those of a picture's bands in the order of the bands."""
    lines = []
    for case, values in own.items():
        gaps = {name: relative(values[name], peer[case][spelled(name)]) for name in compared(case)}
        worst = max(gaps, key=lambda name: gaps[name])
        verdict = "same" if gaps[worst] < LIMIT else "DIFFERENT"
        lines.append(f"| {case} | {len(gaps)} | {gaps[worst]:.1e} | {worst} | {gaps['mcc']:.1e} | {verdict} |")
    return lines


def differences(own: dict[str, dict[str, float]], told: dict[str, Any]) -> list[str]:
    """What is not meant to be the same, with what it comes to."""
    import torch

    from medgen.metrics.cooccurrence import NAMES, cooccurrence, cooccurrence_features
    from medgen.metrics.radiomics import wavelet_bands

    peer, band = told["features"], "plane, band hh"
    averages = own[band]["joint_average"], peer[band]["JointAverage"]
    small = cooccurrence_features(cooccurrence(torch.from_numpy(SMALL).long()[None], 2))[0, NAMES.index("mcc")]
    made = dict(zip(bands(2), wavelet_bands(torch.from_numpy(picture(ODD))[None]), strict=True))
    gaps = np.max([np.abs(made[name][1][0].numpy() - np.array(values)) for name, values in told["odd"].items()], 0)
    where = f"{(gaps > LIMIT).mean():.0%} of the pixels, near the borders, by at most {gaps.max():.2g}"
    return [
        f"| which bin is 1 | the one at -1 (in bands with detail at -0.25); joint average of {band.partition(', ')[2]} {averages[0]:.5g} | "
        f"the image's lowest; {averages[1]:.5g} | images of a set must share their levels, or brightness is lost. It moves "
        f"{', '.join(NUMBERED)}, which are therefore compared where an image fills the bins |",
        "| values outside the bins | count as the outer bins | get bins of their own | the matrix has one size |",
        "| scale of a band | each filter has sum 1: divided by sqrt(2) for each axis | orthonormal | a low band keeps the image's units; "
        "the peer's bands were divided likewise |",
        f"| bands of odd axes | periodic in their own length | padded to even length by wrapping, then cut | energies add up. A plane of "
        f"{ODD[0]} x {ODD[1]}: {where} |",
        f"| MCC of a direction whose pairs are all alike, beside others | 1, as its correlation is; of 1 2 over 1 1: {small:.5g} | 0, and "
        f"1 only where the whole region is flat; {peer['small']['MCC']:.5g} | a direction's value is its own matrix's |",
        "| left out | TotalEnergy, StandardDeviation, SumAverage | there | they repeat energy, variance and joint average |",
    ]


def numbers(peer: dict[str, dict[str, float]], cases: list[str], versions: str) -> str:
    """The peer's values as a module of the tests."""
    head = f'"""Features by {versions}.\n\nOf the pictures of `benchmarks/radiomics_oracle.py`, which wrote this file (--numbers). '
    head += "Each case has the features\nthat its `compared(case)` names, in that order.\n"
    text = [f'{head}"""\n\nNUMBERS = {{']
    for case in cases:
        values = " ".join(f"{peer[case][spelled(name)]:.12g}" for name in compared(case))
        text += [f'    "{case}": """', *(f"        {line}" for line in textwrap.wrap(values, 128)), '    """,']
    return "\n".join([*text, "}"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="the Python of an environment that has pyradiomics")
    parser.add_argument("--only", action="store_true", help="print the peer's numbers; for the script itself")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/radiomics.md"))
    parser.add_argument("--numbers", type=Path, help="write the peer's numbers as a module for the tests")
    given = parser.parse_args()
    if given.only:
        return print(json.dumps(theirs()))
    if not given.peer:
        parser.error("--peer is needed: the Python of an environment that has pyradiomics; see the head of this file")
    own, told = ours(), asked(given.peer)
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    machine = f"Peer: {versions}. Here: torch {version('torch')}, Python {platform.python_version()}, {platform.machine()}."
    tables = {"rows": "\n".join(rows(own, told["features"])), "differences": "\n".join(differences(own, told))}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(HEAD.format(machine=machine, features=len(compared("plane")), **tables))
    print(given.output.read_text())
    if given.numbers:
        given.numbers.write_text(numbers(told["features"], list(own), versions))
    sys.exit("a feature differs" if "DIFFERENT" in tables["rows"] else 0)


if __name__ == "__main__":
    main()
