"""`medgen doctor --plan`: the peak memory of a training run from its configuration alone; no image is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.cli.configs import compose, resolved
from medgen.cli.machine import OK, WARN, Finding, Machine
from medgen.core.errors import MedgenError

if TYPE_CHECKING:
    from medgen.core.model import GenerativeModel

MIB = 1 << 20
RUNTIME = 47 * MIB  # a first step brings in kernels' code and what oneDNN compiles (measured beside the imports)
WORKER = 16 * MIB  # what a loader process does not share with its parent, beside the images it keeps
KEPT = 64 * MIB  # medgen.data.phantom.drawn keeps this much of what it drew


@dataclass
class Plan:
    """Bytes of one training run.

    Attributes:
        device: where the model lives.
        peak: of the training process (largest resident set) on a processor, of the allocated GPU memory on CUDA.
        process: what the peak is made of beside tensors: "libraries", "kernels", "fragments of the heap", "data".
        tensors: what is alive at the peak, by part.
        moments: training, validation, saving -> largest live bytes of each.
        activations: kept for the backward pass.
        workers: how many loader processes.
        worker: private bytes of each.
        notes: what the plan does not know, in sentences.
    """

    device: str
    peak: int
    process: dict[str, int]
    tensors: dict[str, int]
    moments: dict[str, int]
    activations: int
    workers: int
    worker: int
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_of(overrides: Sequence[str]) -> Plan:
    """The plan of `python train.py <overrides>`.

    Raises:
        MedgenError: overrides that do not compose or do not fit, a model that cannot be planned, what `check_start` refuses.
    """
    from medgen.cli.finetune import check_start, method_of
    from medgen.cli.init_from import expanded
    from medgen.cli.latents import check_latents
    from medgen.cli.run import check_settings

    config = resolved(compose(expanded(overrides)))
    libraries = _resident()  # now that everything that training needs is imported, and before anything else is
    check_latents(config)
    check_settings(config["training"])
    check_start(config)
    device = _device(config["training"])
    import torch

    from medgen.checkpoint import build
    from medgen.training.plan import Run, plan

    settings, method = config["training"], method_of(config)
    recipes = {"task": config["task"], "optimizer": settings["optimizer"], "ema": settings["ema"]}
    made = {name: partial(build, recipe, trusted=True) for name, recipe in recipes.items()}

    def tuned() -> GenerativeModel:
        model = build(config["model"], trusted=True)
        method.apply(model)
        return model

    run = Run(tuned, **made, size=_size(config), batch=config["data"]["batch_size"], settings=settings, device=device)
    torch.manual_seed(0)
    footprint = plan(run)
    workers = config["data"]["workers"]
    kept, notes = _images(config["data"]["source"])
    here, there = (0, kept) if workers and _drawn(config) else (kept, 0)
    process = {"libraries": libraries, "kernels": RUNTIME, "fragments of the heap": footprint.heap - footprint.peak, "data": here}
    peak = footprint.peak if device == "cuda" else footprint.heap + libraries + RUNTIME + here
    worker = (WORKER + min(there, KEPT) + 2 * footprint.parts["batch"]) if workers else 0
    return Plan(
        device,
        peak,
        {} if device == "cuda" else process,
        footprint.parts,
        footprint.moments,
        footprint.activations,
        workers,
        worker,
        [*notes, *_left_out(config), *footprint.notes],
    )


def lines(plan: Plan, machine: Machine) -> list[Finding]:
    """The plan as findings: the peak against what is free, then its parts."""
    free = _free(plan, machine)
    needed = plan.peak + (plan.workers * plan.worker if plan.device == "cpu" else 0)
    fits = free is None or needed <= free
    text = f"{_mib(plan.peak)} on {plan.device}" + ("" if free is None else f", {_mib(free)} free")
    remedy = "a smaller data.batch_size, network.checkpointing=true (U-Net), network.patch=2 or training.precision=bf16-mixed"
    found = [Finding("plan", "peak of training", OK if fits else WARN, text, "" if fits else remedy)]
    parts = {**plan.tensors, **plan.process}
    found += [Finding("plan", f"  {name}", OK, _mib(size)) for name, size in parts.items() if size >= MIB // 10]
    found.append(Finding("plan", "live tensors", OK, ", ".join(f"{name} {_mib(size)}" for name, size in plan.moments.items())))
    found.append(Finding("plan", "kept for backward", OK, _mib(plan.activations)))
    if plan.workers:
        found.append(Finding("plan", "loader processes", OK, f"{plan.workers} x {_mib(plan.worker)} of their own"))
    return found + [Finding("plan", "unknown", WARN, note) for note in plan.notes]


def _left_out(config: Mapping[str, Any]) -> list[str]:
    """What the run will do and the plan does not know."""
    from medgen.cli.launch import settle

    notes, processes = [], settle(dict(config["training"]))
    if (config.get("latents") or {}).get("cache"):
        notes.append("latents.cache is not modelled: the run encodes its cases once before the first step, the plan every batch")
    if processes > 1:
        notes.append(f"{processes} processes are not modelled: this is one of them, without sharding and without gradients on their way")
    return notes


def _size(config: Mapping[str, Any]) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in config["data"]["source"]["size"])
    except (KeyError, TypeError) as error:
        raise MedgenError(
            "the plan reads the grid from data.source.size, which this data set does not have; add +data.source.size=[...]"
        ) from error


def _device(settings: Mapping[str, Any]) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and settings["accelerator"] != "cpu" else "cpu"


def _free(plan: Plan, machine: Machine) -> int | None:
    if plan.device != "cuda":
        return machine.memory_available
    import torch

    return torch.cuda.mem_get_info()[0]


def _drawn(config: Mapping[str, Any]) -> bool:
    """Whether cases are made when they are asked for, by whoever asks; files are prepared before the loaders start."""
    return "manifest" not in config["data"]["source"]


def _images(source: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Bytes of the images that stay in memory, and what could not be found out."""
    names, size = source.get("channels", ()), source["size"]
    if "manifest" not in source:
        cases = sum(n for split, n in (source.get("subjects") or {}).items() if split != "test")
        each = source.get("slices", 1) if len(size) == 2 else 1
        return min(cases * each * len(names) * math.prod(size) * 4, KEPT), []
    manifest = Path(str(source["manifest"]))
    if not manifest.is_file():
        missing = "set data.source.manifest" if str(manifest) == "???" else f"there is no {manifest}"
        return 0, [f"the images that stay in memory: {missing}"]
    return _files(manifest, source)


def _files(path: Path, source: Mapping[str, Any]) -> tuple[int, list[str]]:
    """From the headers of the files of the training and validation split."""
    from medgen.data.manifest import EmptySplit, Manifest

    manifest, total, unread = Manifest.read(path), 0, 0
    columns = [*source["channels"], *(source.get("labels") or {})]
    for split in ("train", "validation"):
        try:
            rows = manifest.split(split)
        except EmptySplit:
            continue
        for row in rows.rows:
            for column in columns:
                bytes_of = _header(rows.file(row, column), source) if column in rows.columns else None
                unread += bytes_of is None
                total += bytes_of or 0
    return total, [f"the images that stay in memory: {unread} of their headers could not be read"] if unread else []


def _header(path: Path, source: Mapping[str, Any]) -> int | None:
    """Bytes of one prepared volume in float32; None for a file without a NIfTI header."""
    import nibabel

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
    except (OSError, nibabel.filebasedimages.ImageFileError):
        return None
    zooms, spacing, size = image.header.get_zooms()[:3], source.get("spacing"), source["size"]
    shape = [n * z / s if s else n for n, z, s in zip(image.shape[:3], zooms, spacing or (None,) * 3, strict=True)]
    if len(size) == 2:
        return int(image.shape[source.get("slice_axis", 2)] * math.prod(size)) * 4
    return int(math.prod(shape)) * 4


def _resident() -> int:
    """Bytes of this process that are in memory now."""
    path = Path("/proc/self/status")
    if path.is_file():
        return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith("VmRSS"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _mib(count: float) -> str:
    return f"{count / MIB:.1f} MiB" if count < 100 * MIB else f"{count / MIB:.0f} MiB"
