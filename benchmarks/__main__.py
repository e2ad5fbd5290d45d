"""Runs the network, sampler, optimizer and start-up benchmarks and writes docs/results/performance.md.

Usage: python -m benchmarks [--parts autoencoder unet] [--rounds 5] [-o docs/results/performance.md]
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

PARTS = ("startup", "optimizer", "sampler", "unet", "autoencoder", "latents")
NETWORKS = ("unet", "autoencoder", "latents")  # parts that take a number of rounds
HEAD = """# Performance

Written by `python -m benchmarks`; rows that were renewed alone (`--parts`) come from a run of their own. One thread; every round runs
all candidates one after the other; medians of processor time.
Each peer runs in its own fastest mode (flash attention; the faster of the contiguous and the channels-last layout), medgen in the
faster of its own two. The networks have the same channels, blocks, attention levels and head width; the autoencoders of the peers
are put together from their own layers in medgen's arrangement, so that all have the same convolutions. Ratios carry over between
machines, seconds and milliseconds do not.
{machine}

| what | measured | target | |
| --- | --- | --- | --- |"""


def machine() -> str:
    """Versions and processor, in a sentence."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "diffusers", "lightning"))
    return (
        f"Here: {packages}; Python {platform.python_version()}; {platform.machine()}, {os.cpu_count()} processors shared with other work."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="run these alone and renew their rows in the output; default: all, anew")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the networks' cases")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/performance.md"))
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    head, lines = HEAD.format(machine=machine()), {}
    if given.parts and given.output.exists():
        head, lines = read(given.output.read_text())
    for part in given.parts or PARTS:
        module = importlib.import_module(part)
        for row in module.rows(given.rounds) if part in NETWORKS else module.rows():
            print(row, flush=True)
            lines[row.name] = str(row)
            given.output.write_text("\n".join([head, *lines.values()]) + "\n")


def read(text: str) -> tuple[str, dict[str, str]]:
    """A written page as its head, with the table's, and its rows by name."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| ---")) + 1
    return "\n".join(lines[:first]), {line.split(" | ")[0].removeprefix("| "): line for line in lines[first:]}


if __name__ == "__main__":
    main()
