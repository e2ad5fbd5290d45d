"""What a user waits for before anything happens: imports and the two helps, each in a fresh process, beside the heavy libraries."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path

from _measure import Row

ROOT = Path(__file__).parent.parent
OURS = {
    "import medgen": ["-c", "import medgen"],
    "medgen --help": ["-m", "medgen", "--help"],
    "train.py --help": [str(ROOT / "train.py"), "--help"],
}
LIBRARIES = {f"import {name}": ["-c", f"import {name}"] for name in ("torch", "monai", "diffusers", "lightning")}
TARGETS = {"import medgen": 0.2, "medgen --help": 0.5, "train.py --help": 0.5}


def seconds(arguments: list[str]) -> float:
    """Processor seconds, user and system, of one fresh interpreter with these arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows(rounds: int = 5) -> list[Row]:
    times: dict[str, list[float]] = {name: [] for name in OURS | LIBRARIES}
    for turn in range(rounds):
        for name in OURS if turn else OURS | LIBRARIES:
            times[name].append(seconds((OURS | LIBRARIES)[name]))
    median = {name: statistics.median(values) for name, values in times.items()}
    beside = ", ".join(f"{name.removeprefix('import ')} {median[name]:.1f}" for name in LIBRARIES)
    return [
        Row(
            name,
            f"{median[name]:.2f} s of processor time; importing {beside} s",
            f"at most {TARGETS[name]} s",
            median[name] <= TARGETS[name],
        )
        for name in OURS
    ]


if __name__ == "__main__":
    for row in rows():
        print(row)
