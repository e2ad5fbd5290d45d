"""Runs the U-Net, sampler, optimizer and start-up benchmarks and writes docs/results/performance.md.

Usage: python -m benchmarks [--rounds 5] [-o docs/results/performance.md]
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

PARTS = ("startup", "optimizer", "sampler", "unet")
HEAD = """# Performance

Written by `python -m benchmarks`. One thread; every round runs all candidates one after the other; medians of processor time.
Each peer runs in its own fastest mode (flash attention; the faster of the contiguous and the channels-last layout), medgen in the
faster of its own two. The networks have the same channels, blocks, attention levels and head width. Ratios carry over between
machines, seconds and milliseconds do not.
{machine}

| what | measured | target | |
| --- | --- | --- | --- |
"""


def machine() -> str:
    """Versions and processor, in a sentence."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "diffusers", "lightning"))
    return (
        f"Here: {packages}; Python {platform.python_version()}; {platform.machine()}, {os.cpu_count()} processors shared with other work."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the U-Net cases")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/performance.md"))
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    lines = [HEAD.format(machine=machine()).rstrip("\n")]
    for part in PARTS:
        module = importlib.import_module(part)
        for row in module.rows(given.rounds) if part == "unet" else module.rows():
            print(row, flush=True)
            lines.append(str(row))
            given.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
