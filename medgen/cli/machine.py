"""What `medgen doctor` finds without computing: versions, processor, devices, memory, disk, where models are looked for."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

OK, WARN, FAIL = "OK", "WARN", "FAIL"
GB, MB = 1 << 30, 1 << 20
DISK, SHARED, MEMORY = 5 * GB, 512 * MB, 2 * GB  # less than this is a warning
RUNS = Path("runs")


@dataclass(frozen=True)
class Finding:
    """One line of the table: `value` says what was found, `remedy` what to do where it is not well."""

    group: str
    name: str
    status: str
    value: str
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """Bytes, and counts; None where this system does not say."""

    disk_free: int
    shared_total: int | None
    shared_free: int | None
    memory_total: int | None
    memory_available: int | None
    cores: int
    threads: str
    flags: frozenset[str]


def this_machine() -> Machine:
    """The numbers of the machine that this runs on; free disk where runs go."""
    place = next(p for p in (RUNS.resolve(), *RUNS.resolve().parents) if p.exists())
    shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    memory = _memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        disk_free=shutil.disk_usage(place).free,
        shared_total=shared.total if shared else None,
        shared_free=shared.free if shared else None,
        memory_total=memory.get("MemTotal"),
        memory_available=memory.get("MemAvailable"),
        cores=cores,
        threads=os.environ.get("OMP_NUM_THREADS", ""),
        flags=_flags(),
    )


def findings(machine: Machine) -> Iterator[Finding]:
    """Everything in this file, in the table's order."""
    yield from versions()
    yield from processor(machine)
    yield from devices()
    yield from space(machine)
    yield from places()


def versions() -> Iterator[Finding]:
    """Installed packages against the ranges that medgen declares, read from metadata: nothing is imported."""
    yield Finding("versions", "python", OK, platform.python_version())
    try:
        declared = requires("medgen") or []
        yield Finding("versions", "medgen", OK, version("medgen"))
    except PackageNotFoundError:
        yield Finding("versions", "medgen", WARN, "not installed, so that no version can be compared", "pip install -e .")
        return
    from packaging.requirements import Requirement

    for requirement in map(Requirement, declared):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield compared(requirement.name, str(requirement.specifier))


def compared(name: str, wanted: str) -> Finding:
    """An installed package against a version range."""
    from packaging.specifiers import SpecifierSet

    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding("versions", name, FAIL, f"missing, {wanted} needed", f"pip install '{name}{wanted}'")
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("versions", name, OK, f"{found} ({wanted})")
    return Finding("versions", name, FAIL, f"{found}, {wanted} needed", f"pip install '{name}{wanted}'")


def processor(machine: Machine) -> Iterator[Finding]:
    """Cores, threads, and what bfloat16 runs on."""
    threads = machine.threads or f"not set: {machine.cores}"
    too_many = machine.threads.isdecimal() and int(machine.threads) > machine.cores
    remedy = f"export OMP_NUM_THREADS={machine.cores}" if too_many else ""
    yield Finding("processor", "cores", WARN if too_many else OK, f"{machine.cores}, OMP_NUM_THREADS {threads}", remedy)
    fast = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in machine.flags]
    yield Finding("processor", "bfloat16", OK, ", ".join(fast) or "no instructions for it; the checks say what it costs")


def devices() -> Iterator[Finding]:
    """Accelerators that PyTorch sees."""
    import torch

    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        cudnn = torch.backends.cudnn.version()
        text = f"{about.name}, {_size(about.total_memory)}, capability {about.major}.{about.minor}, cuDNN {cudnn}"
        yield Finding("devices", f"cuda:{index}", OK, text)
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", OK, "Apple GPU")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        remedy = "check the driver with nvidia-smi" if built else ""
        text = f"none found, PyTorch is built for CUDA {built}" if built else "none, PyTorch is built for processors"
        yield Finding("devices", "cuda", WARN if built else OK, text, remedy)


def space(machine: Machine) -> Iterator[Finding]:
    """Disk where runs go, memory, and the shared memory through which loader processes hand batches over."""
    yield _enough(
        "disk for runs", machine.disk_free, machine.disk_free, DISK, f"free some space, or run=<folder on another disk> ({RUNS}/)"
    )
    yield _enough("memory", machine.memory_available, machine.memory_total, MEMORY, "close other programs, or a smaller data.batch_size")
    remedy = "data.workers=0, or a larger --shm-size for the container"
    yield _enough("shared memory", machine.shared_free, machine.shared_total, SHARED, remedy)


def places() -> Iterator[Finding]:
    """Where wandb logs to, and where pretrained models are looked for."""
    from medgen.zoo import zoo_folders, zoo_names

    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    yield Finding("places", "wandb", OK, f"{mode} (with logger=wandb)")
    found = [str(folder) for folder in zoo_folders() if folder.is_dir()]
    text = f"{len(zoo_names())} models in {', '.join(found)}" if found else "no folder; set MEDGEN_ZOO"
    yield Finding("places", "zoo", OK, text)


def _enough(name: str, free: int | None, total: int | None, least: int, remedy: str) -> Finding:
    if free is None:
        return Finding("space", name, OK, "this system does not say")
    text = f"{_size(free)} free" + (f" of {_size(total)}" if total and total != free else "")
    return Finding("space", name, OK, text) if free >= least else Finding("space", name, WARN, f"{text}, {_size(least)} advised", remedy)


def _size(count: float) -> str:
    return f"{count / GB:.1f} GiB" if count >= GB else f"{count / MB:.0f} MiB"


def _memory() -> dict[str, int]:
    """Bytes by name; the container's limit where that is smaller than the machine."""
    path, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not path.is_file():
        return {}
    pairs = (line.split(":") for line in path.read_text().splitlines())
    memory = {name: int(value.split()[0]) * 1024 for name, value in pairs}
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        memory["MemTotal"] = min(memory["MemTotal"], int(text))
        memory["MemAvailable"] = min(memory["MemAvailable"], max(int(text) - used, 0))
    return memory


def _flags() -> frozenset[str]:
    path = Path("/proc/cpuinfo")
    lines: Any = path.read_text().splitlines() if path.is_file() else []
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), []))
