"""Peak memory of short real training runs beside what `medgen doctor --plan` predicts; writes docs/results/memory.md.

    python benchmarks/memory.py                     # all cases
    python benchmarks/memory.py --only 3d           # the cases whose name holds a word, printed and not written

The measured number is VmHWM of the training process (its largest resident set, kept by the kernel), with the allocator's defaults.
Runs are short: memory is the same after the second step, but for what the heap still loses to fragments.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "results" / "memory.md"
SHORT = ("training.steps=8", "training.validate_every=4", "training.save_every=4", "training.validate_batches=2")
FEW = "data.source.subjects={train: 8, validation: 4, test: 1}"
PHANTOM_3D = ("data=phantom_3d", "data.source.size=[32,32,32]")


@dataclass(frozen=True)
class Case:
    """An experiment by its overrides; `checks` says that it was left out when the plan's constants were chosen."""

    name: str
    overrides: tuple[str, ...]
    checks: bool = True


CASES = (
    Case("demo", ("experiment=demo",)),
    Case("T1 to T2 of phantoms", ("experiment=phantom_translation",)),
    Case("3D diffusion, 32^3", PHANTOM_3D),
    Case("3D GAN, 32^3", (*PHANTOM_3D, "model=gan")),
    Case("default, 64^2", ("sampler.steps=3",), False),
    Case("VAE, 64^2", ("model=vae",), False),
    Case("conditional GAN, 64^2", ("task=translation", "model=gan", "model.reconstruction=30"), False),
    Case("3D diffusion, 24^3", ("data=phantom_3d", "data.source.size=[24,24,24]", "sampler.steps=3"), False),
    Case(
        "T1 to T2, 128^2, cells of 2 x 2, bf16",
        ("task=translation", "data.source.size=[128,128]", "network.patch=2", "training.precision=bf16-mixed", "sampler.steps=3"),
        False,
    ),
    Case(
        "3D diffusion, 64^3, 16 channels, bf16",
        (
            "data=phantom_3d",
            "network.channels=[16,32,64]",
            "network.blocks=1",
            "training.precision=bf16-mixed",
            "sampler.steps=2",
            "data.workers=0",
        ),
        False,
    ),
    Case(
        "3D L1 U-Net, 64^3, 32 channels",
        ("data=phantom_3d", "task=translation", "model=regression", "network.channels=[32,64]", "network.blocks=1"),
        False,
    ),
)


@dataclass(frozen=True)
class Peaks:
    """MiB: the training process, and its largest loader process without what it shares."""

    training: float
    worker: float


def measured(overrides: tuple[str, ...]) -> Peaks:
    """Train in a fresh process and read what the kernel kept of it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "medgen.cli.main", "train", *overrides, *SHORT, FEW, f"run={folder}/run"]
        with open(f"{folder}/said", "w+") as said:
            process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
            training = worker = 0.0
            while process.poll() is None:
                training = max(training, status(process.pid, "VmHWM"))
                worker = max([worker, *map(private, children(process.pid))])
                time.sleep(0.05)
            if process.returncode:
                said.seek(0)
                raise SystemExit(f"{' '.join(overrides)}: {said.read()[-2000:]}")
    return Peaks(training, worker)


def predicted(overrides: tuple[str, ...]) -> dict:
    """The plan as JSON, from a fresh process."""
    command = [sys.executable, "-m", "medgen.cli.main", "doctor", "--json", "--plan", *overrides, *SHORT, FEW]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)["plan"]


def status(pid: int, field: str) -> float:
    return _entry(Path(f"/proc/{pid}/status"), f"{field}:")


def private(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    return _entry(rollup, "Private_Clean:") + _entry(rollup, "Private_Dirty:")


def children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _entry(path: Path, name: str) -> float:
    """MiB of a line `name  N kB`; 0 once the process is gone."""
    try:
        return next((int(line.split()[1]) / 1024 for line in path.read_text().splitlines() if line.startswith(name)), 0.0)
    except OSError:
        return 0.0


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        for case in CASES[int(sys.argv[2]) :]:
            print(json.dumps({"name": case.name, **measured(case.overrides).__dict__}), flush=True)
