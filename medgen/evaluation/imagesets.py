"""The sets of images that are compared in feature space: what was made, reals for the floor, and reals that both are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Subset

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.evaluation.pictures import heights
from medgen.evaluation.training_set import read_targets
from medgen.evaluation.work import Case, Work

FEWEST = 20  # subjects, and samples
MOST = 1000  # images of each set
NOTHING = -1.0  # network units of no signal, where an image is padded


@dataclass(frozen=True)
class Images:
    """Images (N, C, *S) in network units, or what reads each (C, *S); and the subject (of samples: the sample) that each is of."""

    images: Tensor | Sequence[Tensor]
    units: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def subjects(self) -> int:
        return len(set(self.units))

    def some(self, most: int, seed: int) -> Images:
        """All, or `most` at random, read."""
        rows = range(len(self)) if len(self) <= most else sorted(generator(seed).permutation(len(self))[:most].tolist())
        return Images(torch.stack([self.images[row] for row in rows]), [self.units[row] for row in rows])

    def of(self, subjects: set[str]) -> Images:
        rows = [row for row, unit in enumerate(self.units) if unit in subjects]
        return Images(Subset(self.images, rows), [self.units[row] for row in rows])


@dataclass(frozen=True)
class ImageSets:
    """Attributes:
    made, reference, held: both of the first are compared with `held`.
    told: what they are, in a sentence.
    turn: whether planes are of volumes, and turned to be seen upright.
    """

    made: Images
    reference: Images
    held: Images
    told: str
    turn: bool = False


class TooFew(MedgenError):
    """There are fewer images or subjects than a comparison of sets needs."""


def image_sets(work: Work) -> ImageSets:
    """Samples beside the training and the held-out split; or answers beside the targets of other subjects.

    Raises:
        TooFew: samples or subjects, with how many there are.
    """
    found = _of_samples(work) if work.kind == "synthesis" else _of_answers(work)
    made, reference, held = (part.some(MOST, work.seed) for part in (found.made, found.reference, found.held))
    return ImageSets(made, reference, held, found.told, turn=work.model.contract.spacing is not None)


def _of_samples(work: Work) -> ImageSets:
    held = Images(*read_targets(work, work.split))
    _enough(held.subjects, f"subjects in split '{work.split}'")
    _enough(work.samples, "samples", "; draw more with -n")
    drawn = work.drawn()
    made = Images(drawn, [f"sample {i + 1}" for i in range(len(drawn))])
    if "train" in work.manifest.splits and work.split != "train":
        reference = Images(*read_targets(work, "train"))
        if reference.subjects >= FEWEST:
            told = f"samples, and as many images of the training split, against split '{work.split}'"
            return ImageSets(made, reference, held, told)
    first, second = _halves(held.units)
    told = f"samples, and one half of the subjects of split '{work.split}', against its other half (fewer than {FEWEST} for training)"
    return ImageSets(made, held.of(first), held.of(second), told)


def _of_answers(work: Work) -> ImageSets:
    _enough(len({row["subject"] for row in work.rows.rows}), f"subjects in split '{work.split}'")
    answers, targets, units = [], [], []
    for case in work.cases():
        cuts = _places(work, case)
        answers += _cut(work, work.made(case).image, cuts)
        targets += _cut(work, case.target, cuts)
        units += [case.subject] * len(cuts)
    made, real = (Images(torch.stack(images), units) for images in (answers, targets))
    first, second = _halves(units)
    told = "answers for one half of the subjects, and the truth of the same half, against the truth of the other half"
    if work.model.contract.spatial_dims == 2 and case.target.ndim == 5:
        told += "; of each volume three slices through the body"
    return ImageSets(made.of(first), real.of(first), real.of(second), told)


def _enough(count: int, what: str, remedy: str = "") -> None:
    if count < FEWEST:
        raise TooFew(f"comparing sets of images needs {FEWEST} {what}, found {count}{remedy}.")


def _halves(units: Sequence[str]) -> tuple[set[str], set[str]]:
    """Every other subject, in the order of their names."""
    ordered = sorted(set(units))
    return set(ordered[0::2]), set(ordered[1::2])


def _places(work: Work, case: Case) -> list[int | None]:
    """Heights of the planes that a model of planes is judged by; None: the whole image."""
    if work.model.contract.spatial_dims == 3 or case.target.ndim == 4:
        return [None]
    return list(heights(case.body[0, 0], _axis(work)))


def _cut(work: Work, image: Tensor, places: Sequence[int | None]) -> list[Tensor]:
    """Planes, or the whole, of (1, C, *S), each (C, *size) of the model's own size around the middle."""
    parts = [image[0] if place is None else image[0].select(_axis(work) + 1, place) for place in places]
    return [sized(part.float(), work.model.contract.size) for part in parts]


def _axis(work: Work) -> int:
    axis = work.model.contract.slice_axis
    return 2 if axis is None else axis


def sized(image: Tensor, size: Sequence[int]) -> Tensor:
    """(C, *S) -> (C, *size), cropped or padded with no signal around the middle."""
    for axis, wanted in enumerate(size, 1):
        extra = image.shape[axis] - wanted
        if extra > 0:
            image = image.narrow(axis, extra // 2, wanted)
        elif extra < 0:
            ends = [0, 0] * (image.ndim - 1 - axis) + [-extra // 2, -extra - (-extra // 2)]
            image = functional.pad(image, ends, value=NOTHING)
    return image
