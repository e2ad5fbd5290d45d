"""The whole first tier of a 182x218x182 volume beside MONAI's SSIM, and how often the intervals hold the truth.

Every round runs all contenders one after the other in one process (processor time, one thread, medians); peak memory is of each alone in
a fresh process. Usage: python benchmarks/metrics.py [--rounds 3] [--trials 4000] [-o docs/results/metrics.md]
"""

from __future__ import annotations

import math
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
from medgen.metrics.panel import METRICS, all_pixel
from medgen.metrics.statistics import summarise

SHAPE = (1, 1, 182, 218, 182)
TARGET = 0.2  # of one MONAI SSIM
SUBJECTS = (4, 5, 6, 8, 12, 20, 40)
LAWS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "normal": (lambda rng, n: rng.standard_normal(n), 0.0),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "log-normal, sigma 0.5": (lambda rng, n: np.exp(0.5 * rng.standard_normal(n)), math.exp(0.125)),
    "beta(8, 1)": (lambda rng, n: rng.beta(8, 1, n), 8 / 9),
    "log-normal, sigma 1": (lambda rng, n: np.exp(rng.standard_normal(n)), math.exp(0.5)),
    "one in ten fails": (lambda rng, n: 0.9 + 0.02 * rng.standard_normal(n) - 0.6 * (rng.random(n) < 0.1), 0.84),
}
HEAD = """# Pixel metrics: speed, memory, and intervals

Written by `python benchmarks/metrics.py`. {machine}

## The whole first tier at once

`medgen.metrics.panel.all_pixel` computes {count} metrics of a 182x218x182 volume in one walk: {names}.
Rounds are interleaved; processor time, one thread, medians; peak memory over the start, each contender alone in a process. The body is
an ellipsoid in the volume, the labels are three slabs of it.

| what | measured | target | |
| --- | --- | --- | --- |
{rows}

## How often a 95 % interval of a mean holds the truth

`medgen.metrics.statistics.summarise`, per cent of {trials} simulations (standard error {error:.1f}), by the number of subjects.
Below 92: heavy tails (log-normal with sigma 1), and rare failures, which no interval can know of while no subject shows one.

| law | {head} |
| --- |{rule}
{coverage}
"""


def data() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(SHAPE, generator=draw)
    y = (0.8 * x).add_(torch.rand(SHAPE, generator=draw), alpha=0.2)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SHAPE[2:]), indexing="ij")
    body = (sum(a.square() for a in axes) < 0.75)[None, None]
    cuts = zip((-1, -0.3, 0.3), (-0.3, 0.3, 1), strict=True)
    return x, y, {"body": body, **{f"label {i}": body & (axes[0] >= low) & (axes[0] < high) for i, (low, high) in enumerate(cuts)}}


def contenders(x: Tensor, y: Tensor, regions: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
    from monai.metrics.regression import SSIMMetric

    monai = SSIMMetric(spatial_dims=3, data_range=1.0, kernel_type="gaussian", win_size=11, kernel_sigma=1.5)
    return {
        "whole": lambda: all_pixel(x, y, 1.0),
        "whole and body": lambda: all_pixel(x, y, 1.0, {"body": regions["body"]}),
        "whole, body and 3 labels": lambda: all_pixel(x, y, 1.0, regions),
        "monai": lambda: monai(x, y),
    }


def memory(name: str) -> float:
    """Mebibytes over the start that one contender takes."""
    x, y, regions = data()
    contender = contenders(x, y, regions)[name]
    small = [v[..., :48, :48, :48].contiguous() for v in (x, y)]
    contenders(*small, {k: v[..., :48, :48, :48].contiguous() for k, v in regions.items()})[name]()
    before = peak()
    contender()
    return peak() - before


def rows(rounds: int) -> list[Row]:
    runs = contenders(*data())
    seconds = interleaved(runs, rounds)
    mib = {name: alone(__file__, name) for name in runs}
    monai, found = seconds.pop("monai"), []
    for name, value in seconds.items():
        share = value / monai
        numbers = f"{share:.3f} of one MONAI SSIM ({value:.2f} against {monai:.2f} s); {mib[name]:.0f} against {mib['monai']:.0f} MiB"
        required = name != "whole, body and 3 labels"
        target = f"at most {TARGET}" if required else "none"
        found.append(Row(f"all pixel metrics, {name}", numbers, target, share <= TARGET or not required))
    return found


def coverage(trials: int) -> list[str]:
    lines = []
    for law, (draw, truth) in LAWS.items():
        cells = []
        for n in SUBJECTS:
            names = [str(k) for k in range(n)]
            ends = [summarise(draw(generator(0, n, i), n), names, draws=1000).interval for i in range(trials)]
            cells.append(f"{100 * sum(low <= truth <= high for low, high in ends) / trials:.1f}")
        lines.append(f"| {law} | {' | '.join(cells)} |")
    return lines


def page(rounds: int, trials: int) -> str:
    return HEAD.format(
        machine=machine(),
        count=len(METRICS),
        names=", ".join(METRICS),
        rows="\n".join(map(str, rows(rounds))),
        trials=trials,
        error=standard_error(trials),
        head=" | ".join(map(str, SUBJECTS)),
        rule=" --- |" * len(SUBJECTS),
        coverage="\n".join(coverage(trials)),
    )


if __name__ == "__main__":
    run(__doc__, "docs/results/metrics.md", 4000, memory, page)
