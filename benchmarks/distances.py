"""Speed of the Frechet distance beside MONAI's and of KID of large sets, and how often the intervals of set measures hold the truth.

Every round runs all contenders one after the other in one process (processor time, one thread, medians); peak memory is of each alone in a
fresh process. Usage: python benchmarks/distances.py [--rounds 3] [--trials 200] [-o docs/results/distances.md]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from _measure import Row, alone, interleaved, machine, peak, run, standard_error
from torch import Tensor

from medgen.core.random import generator
from medgen.metrics import sets
from medgen.metrics.feature import frechet
from medgen.metrics.kernels import kid

CASES = {"N=200, D=2048": (200, 2048, 100.0), "N=2000, D=512": (2000, 512, 2.0)}
LARGE = (10_000, 512)
SECONDS = 10.0
LAWS = ((64, 200, 8, 0.0), (64, 200, 8, 0.3), (40, 100, 8, 0.5), (100, 400, 16, 0.2))
MEASURES = (sets.FRECHET, sets.KID, sets.MMD, sets.OVERLAP)
HEAD = """# Distances between sets: speed and intervals

Written by `python benchmarks/distances.py`. {machine}

## Speed

Rounds are interleaved; processor time, one thread, medians. Features are normal, those of the second set moved by 0.1. Peak memory over
the start in a process of its own.

| what | measured | target | |
| --- | --- | --- | --- |
{rows}

## How often a 95 % interval holds the truth

`medgen.metrics.sets.measured`, per cent of {trials} simulations (standard error {error:.1f}): made and held-out sets of n normal features,
a reference of m, the made set moved by a shift in every dimension. The truth of a measure is its mean over sets of this size, of a score
the geometric mean. Kernel distances of equal sets have intervals that are too wide: their spread falls with 1 / n, not with its root.

| n, m, dimensions, shift | {head} |
| --- |{rule}
{coverage}
"""


def pair(n: int, dimension: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, dimension, generator=draw, dtype=torch.float64), torch.randn(
        n, dimension, generator=draw, dtype=torch.float64
    ) + 0.1


def speed(rounds: int) -> list[Row]:
    from monai.metrics.fid import get_fid_score

    found = []
    for name, (n, dimension, target) in CASES.items():
        a, b = pair(n, dimension)
        values: dict[str, float] = {}

        def timed(which: str, distance: Callable[[Tensor, Tensor], object], a: Tensor = a, b: Tensor = b, values: dict = values) -> None:
            values[which] = float(distance(a, b))

        runs = {"medgen": lambda t=timed: t("medgen", frechet), "MONAI": lambda t=timed: t("MONAI", get_fid_score)}
        seconds = interleaved(runs, rounds, warmup=0)
        ratio = seconds["MONAI"] / seconds["medgen"]
        numbers = f"{ratio:.3g} x MONAI ({1000 * seconds['medgen']:.0f} ms against {seconds['MONAI']:.2f} s); "
        numbers += f"values {values['medgen']:.4f} and {values['MONAI']:.4f}"
        found.append(Row(f"Frechet distance, {name}", numbers, f"{target:g} x", ratio >= target))
    a, b = pair(*LARGE)
    seconds = interleaved({"Frechet": lambda: frechet(a, b), "KID": lambda: kid(a, b)}, rounds, warmup=0)
    numbers = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()) + f"; {alone(__file__, 'large sets'):.0f} MiB"
    whole = "Frechet distance and KID with its error, 10,000 x 512"
    return [*found, Row(whole, numbers, f"at most {SECONDS:g} s", sum(seconds.values()) <= SECONDS)]


def memory(name: str) -> float:
    """Mebibytes over the start that both distances of the large sets take."""
    a, b = pair(*LARGE)
    frechet(a[:600], b[:600])
    kid(a[:600], b[:600])
    before = peak()
    frechet(a, b)
    kid(a, b)
    return peak() - before


def coverage(trials: int) -> list[str]:
    lines = []
    for n, m, dimension, shift in LAWS:
        cells = []
        for measure in MEASURES:
            found = [sets.measured(drawn(i, n, m, dimension, shift), measure, seed=i, draws=60) for i in range(trials)]
            for name in measure.names:
                if "diagonal" not in name:
                    cells.append(share(np.array([one.value[name] for one in found])))
            if measure is not sets.OVERLAP:
                cells.append(share(np.log(np.array([one.score for one in found]))))
        lines.append(f"| {n}, {m}, {dimension}, {shift:g} | {' | '.join(cells)} |")
    return lines


def heads() -> list[str]:
    return [head for m in MEASURES for head in ([m.names[0], "its score"] if m is not sets.OVERLAP else m.names)]


def share(bounds: np.ndarray) -> str:
    """Per cent of intervals (T, 3) that hold the mean of the values."""
    truth = bounds[:, 0].mean()
    return f"{100 * ((bounds[:, 1] <= truth) & (truth <= bounds[:, 2])).mean():.0f}"


def drawn(seed: int, n: int, m: int, dimension: int, shift: float) -> sets.Sets:
    parts = [torch.from_numpy(generator(seed, i).standard_normal((size, dimension))) for i, size in enumerate((n, m, n))]
    return sets.Sets(parts[0] + shift, *parts[1:], tuple([str(i) for i in range(size)] for size in (n, m, n)))


def page(rounds: int, trials: int) -> str:
    return HEAD.format(
        machine=machine(),
        rows="\n".join(map(str, speed(rounds))),
        trials=trials,
        error=standard_error(trials),
        head=" | ".join(heads()),
        rule=" --- |" * len(heads()),
        coverage="\n".join(coverage(trials)),
    )


if __name__ == "__main__":
    run(__doc__, "docs/results/distances.md", 200, memory, page)
