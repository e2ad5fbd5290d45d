"""The images that a model was trained on, and others of the same kind, as far as its run, the manifest or the built-in phantoms tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.checkpoint import build, resolve
from medgen.core.errors import MedgenError
from medgen.core.neighbours import neighbour
from medgen.core.random import generator
from medgen.data.files import FileData
from medgen.data.manifest import EmptySplit
from medgen.data.options import Cut, Keep, Options
from medgen.data.source import Case, Cases, Source
from medgen.evaluation.work import Work

DRAWN = {
    "medgen brain phantom": "medgen.data.phantom.source.PhantomData",
    "medgen chest phantom": "medgen.data.phantom.chest.source.ChestData",
    "medgen histology phantom": "medgen.data.phantom.histology.source.HistologyData",
}
TEST_SUBJECTS = 16  # at least so many are drawn to be held out


@dataclass
class TrainingSet:
    """Attributes:
    source: of cases.
    held_out: the split that training did not see.
    told: a sentence on what is compared with what.
    sure: whether these are known to be the training images.
    """

    source: Source
    held_out: str
    told: str
    sure: bool

    def cases(self, split: str) -> Still:
        """Every case of a split."""
        return Still(self.source.split(split))


class Still(Sequence[Case]):
    """Cases that are read when they are asked for and stay the same: windows of volumes are centred, in all splits alike, or (not
    `centred`) where training has them."""

    def __init__(self, cases: Cases, centred: bool = True):
        if centred and getattr(cases, "anywhere", False):
            cases.anywhere = cases.varies = False
        self.whole = cases

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Case:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.whole.case(index, generator(0, index))

    @cached_property
    def subjects(self) -> list[str]:
        """The subject of each."""
        return list(self.whole.subjects)


def training_set(work: Work) -> TrainingSet:
    """What the run's own configuration says; else what the contract says of a built-in phantom; else the manifest's training split.

    Raises:
        MedgenError: none of them gives training images.
    """
    for find in (_of_run, _redrawn):
        found = find(work)
        if found is not None:
            return found
    subjects = len(work.manifest.split("train").subjects)
    known = work.model.contract.data
    sure = known.get("subjects") == subjects and known.get("name") not in DRAWN
    told = f"the train split of {work.manifest.path.name} ({subjects} subjects) against its split {work.split}"
    if not sure:
        told += f"; the contract names {known.get('name', 'unknown data')} with {known.get('subjects', 'unknown')} subjects, "
        told += "so it is not known whether these are the training images"
    return TrainingSet(read_as_trained(work), work.split, told, sure)


def read_as_trained(work: Work) -> FileData:
    """The manifest as the model's own training would read it: all channels, and the conditions that it has columns for."""
    contract, task = work.model.contract, work.model.task
    away = [neighbour(channel) for channel in work.channels]
    rules = {c: {k: v for k, v in contract.intensity[c].items() if k != "typical"} for c in dict.fromkeys(name for name, _ in away)}
    cut = Cut(neighbours=max(abs(steps) for _, steps in away))
    options = Options(cut=cut, missing=task.availability, keep=Keep(str(work.folder / "work" / "store")))
    attributes = {name: classes for name, classes in task.attributes.items() if name in work.manifest.columns}
    place = {"spacing": contract.spacing, "slice_axis": contract.slice_axis}
    return FileData(str(work.manifest.path), rules, contract.size, work.own_labels, attributes, **place, options=options)


class Targets(Sequence[Tensor]):
    """(C, *S) of what is made, of each case."""

    def __init__(self, work: Work, cases: Sequence[Case]):
        self.channels, self.cases = work.model.task.target, cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Tensor:
        case = self.cases[index]
        return torch.from_numpy(np.concatenate([case[c] for c in self.channels])).float()


def read_targets(work: Work, split: str) -> tuple[Targets, list[str]]:
    """The target's images of a split of the manifest as training sees them, and the subject of each."""
    cases = Still(work.data.split(split), centred=False)
    return Targets(work, cases), cases.subjects


def batches(work: Work, cases: Sequence[Case], numbers: Sequence[int] | None = None, size: int = 8) -> Iterator[dict[str, Any]]:
    """Cases of these numbers (all of them) as the task takes them, few at a time; conditions that no case tells are those that the user
    gave.

    Raises:
        MedgenError: a condition that neither tells.
    """
    task, numbers = work.model.task, range(len(cases)) if numbers is None else numbers
    told = set(cases[numbers[0]])
    for name in (*task.labels, *task.attributes):
        if name not in told and (name in task.labels or name not in work.given):
            raise MedgenError(f"the cases do not tell '{name}', which the model is given: add such a column, or pass --set {name}=...")
    shared = {name: float(work.given[name]) for name in task.attributes if name not in told}
    for start in range(0, len(numbers), size):
        yield _stacked([cases[number] for number in numbers[start : start + size]], shared)


def _stacked(part: Sequence[Case], shared: Mapping[str, float]) -> dict[str, Any]:
    arrays = {k: np.stack([case[k] for case in part]) for k, v in part[0].items() if not isinstance(v, str) and k != "affine"}
    return {k: torch.as_tensor(v) for k, v in (arrays | {k: [v] * len(part) for k, v in shared.items()}).items()}


def _of_run(work: Work) -> TrainingSet | None:
    """The source of the run's configuration, where the checkpoint lies in its run's folder and the data are still there."""
    folder = work.model.folder
    places = [] if folder is None else [folder.resolve(), *folder.resolve().parents[:2]]
    run = next((place for place in places if (place / "config.yaml").is_file()), None)
    if run is None:
        return None
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    recipe = ((config or {}).get("data") or {}).get("source")
    if not isinstance(recipe, Mapping) or not _readers_only(recipe):
        return None
    drawn = "subjects" in recipe
    if drawn:
        wanted = {**(recipe["subjects"] or {}), "test": max(TEST_SUBJECTS, (recipe["subjects"] or {}).get("test", 0))}
        recipe = {**recipe, "subjects": {"train": 64, **wanted}}
    try:
        source = build(recipe, trusted=True)
        if drawn:
            told = f"the drawn images that the run was trained on against {wanted['test']} other subjects"
            return TrainingSet(source, "test", told, True)
        held_out = _held_out(work, source.manifest.path, source.manifest.splits)
        source.split("train"), source.split(held_out)
    except (MedgenError, EmptySplit, OSError, AttributeError):  # moved, changed or of another kind: then the manifest is asked
        return None
    return TrainingSet(source, held_out, f"the train split that the run read against its split {held_out}", True)


def _held_out(work: Work, manifest: Path, splits: tuple[str, ...]) -> str:
    if manifest.resolve() == work.manifest.path.resolve():
        return work.split
    return "test" if "test" in splits else "validation"


def _readers_only(recipe: Any) -> bool:
    """Whether a configuration builds nothing but classes of medgen's data: a run folder may come from somebody else."""
    if isinstance(recipe, Mapping):
        return all(_own_class(v) if k == "_target_" else _readers_only(v) for k, v in recipe.items())
    return all(map(_readers_only, recipe)) if isinstance(recipe, list) else True


def _own_class(name: Any) -> bool:
    if not isinstance(name, str) or not name.startswith("medgen.data."):
        return False
    try:
        found = resolve(name, trusted=True)
    except MedgenError:  # of another release
        return False
    return isinstance(found, type) and found.__module__ == name.rpartition(".")[0]


def _redrawn(work: Work) -> TrainingSet | None:
    """A built-in phantom with its default settings, where that gives the very facts of the contract."""
    contract, task = work.model.contract, work.model.task
    target = DRAWN.get(contract.data.get("name", ""))
    if target is None:
        return None
    subjects = {"train": int(contract.data.get("subjects") or 64), "test": TEST_SUBJECTS}
    channels = [*work.channels, *task.labels]
    source = build({"_target_": target, "channels": channels, "size": list(contract.size), "subjects": subjects}, True)
    facts = source.facts()
    same = all(tuple(facts[k] or ()) == tuple(getattr(contract, k) or ()) for k in ("size", "spacing"))
    if not same or any(facts["intensity"][c] != contract.intensity[c] for c in work.channels):
        raise MedgenError(
            f"the model was trained on the {contract.data['name']} with settings that its contract does not tell; "
            "evaluate the run's folder, whose config.yaml has them"
        )
    told = f"the {contract.data['name']} as drawn by default ({subjects['train']} subjects, seed 0) against {TEST_SUBJECTS} other subjects"
    return TrainingSet(source, "test", told + "; the checkpoint does not hold the settings of its run", False)
