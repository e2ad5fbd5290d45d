"""Series of DICOM in a folder: grouped, listed and chosen by the part of a cell.

A part is `<SeriesInstanceUID>` or `<SeriesNumber>`; `:<k>` behind it takes group k of a series whose images do not fit on one grid
(localizers in three orientations, two radiographs), and `+even` interpolates slices that are missing, uneven or tilted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medgen.core.errors import MedgenError
from medgen.data.formats.dicom_files import Folder, Frame, Image, frames_of, is_dicom, listed, opened
from medgen.data.formats.dicom_stack import Stack, stacked
from medgen.data.formats.format import Said

EVEN = "+even"
_ALIKE = 1e-3  # orientations (unit vectors) and relative pixel spacings that count as equal


@dataclass(frozen=True)
class Series:
    """A series, by its headers.

    Attributes:
        part: what selects it behind `#` in a cell.
        folder: that its files lie in.
        shapes: of each group of images that fit on one grid, (X, Y, Z), (T, H, W) or (H, W); one where all is well.
        findings: sentences on what is odd or wrong, over all groups.
    """

    folder: Path
    uid: str
    part: str
    number: int | None
    description: str
    modality: str
    files: int
    patient: str
    study: str
    shapes: tuple[tuple[int, ...], ...]
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Frames that fit on one grid. `stack` is None for pictures and clips, which have no geometry."""

    frames: tuple[Frame, ...]
    stack: Stack | None

    @property
    def findings(self) -> list[str]:
        problem = self.stack.problem if self.stack else None
        return [*(self.stack.findings if self.stack else []), *([problem] if problem else [])]

    @property
    def first(self) -> Frame:
        return self.frames[0]

    @property
    def shape(self) -> tuple[int, ...]:
        size = self.first.image.size
        if self.stack is not None:
            return self.stack.shape
        return size if self.first.image.frames == 1 else (self.first.image.frames, *size)


def series_in(folder: str | Path, recursive: bool = False) -> list[Series]:
    """The series of a folder (and with `recursive` of the folders inside), by their headers alone.

    A series whose files are spread over several folders is listed once per folder.

    Raises:
        MedgenError: no such folder; pydicom is not installed.
    """
    root = Path(folder)
    if not root.exists():
        raise MedgenError(f"{root}: no such folder; check the path")
    places = [root] if not (recursive and root.is_dir()) else sorted(Path(place) for place, _, _ in os.walk(root))
    return [series for place in places if is_dicom(place) for series in _listed(place)]


def chosen(path: Path, part: str | None) -> tuple[Group, bool, list[str]]:
    """The one group that `path` and `part` name, whether an even grid is asked for, and findings on the folder.

    Raises:
        MedgenError: several series or groups and no part that chooses, or a part that is not there.
    """
    even = (part or "").endswith(EVEN)
    wanted, _, place = (part or "").removesuffix(EVEN).partition(":")
    folder = opened(path)
    by_series = _by_series(folder.images)
    images = _one_series(path, by_series, wanted)
    groups = _groups(images)
    if place and not (place.isdecimal() and 1 <= int(place) <= len(groups)):
        raise MedgenError(f"{path}#{part}: the series has groups 1 to {len(groups)}, not '{place}'")
    if len(groups) > 1 and not place:
        said = wanted or _part(images, by_series)
        listed = "; ".join(f"'#{said}:{i}' {_shown(group)}" for i, group in enumerate(groups[:8], 1))
        more = f"; and {len(groups) - 8} more" if len(groups) > 8 else ""
        unplaced = sum(group.stack is None for group in groups)
        if unplaced == len(groups):
            said = f"none of its {unplaced} images says where it lies (ImagePositionPatient, ImageOrientationPatient, PixelSpacing)"
            raise MedgenError(f"{path}: {said}, so they cannot be put in order; read them one at a time as pictures: {listed}{more}")
        raise MedgenError(f"{path}: the series does not fit on one grid; choose a part of it: {listed}{more}")
    return groups[int(place) - 1 if place else 0], even, _notes(folder)


def _one_series(path: Path, by_series: dict[str, list[Image]], wanted: str) -> list[Image]:
    if not wanted:
        if len(by_series) > 1:
            raise MedgenError(f"{path}: holds {len(by_series)} series; choose one: {_table(by_series)}")
        return next(iter(by_series.values()))
    if wanted in by_series:
        return by_series[wanted]
    numbered = [images for images in by_series.values() if wanted.isdecimal() and images[0].number("SeriesNumber") == int(wanted)]
    if len(numbered) > 1:
        raise MedgenError(f"{path}: {len(numbered)} series have the number {wanted}; choose by the UID: {_table(by_series)}")
    if not numbered:
        raise MedgenError(f"{path}: no series '{wanted}'; there are: {_table(by_series)}")
    return numbered[0]


def _by_series(images: Sequence[Image]) -> dict[str, list[Image]]:
    found: dict[str, list[Image]] = {}
    for image in images:
        found.setdefault(str(image.get("SeriesInstanceUID", "without UID")), []).append(image)
    return found


def _part(images: list[Image], by_series: dict[str, list[Image]]) -> str:
    """The shortest part that selects a series: its number where no other has it."""
    number = images[0].number("SeriesNumber")
    same = [other for other in by_series.values() if other[0].number("SeriesNumber") == number]
    alone = number is not None and number >= 0 and number == int(number) and len(same) == 1
    return str(int(number)) if alone else str(images[0].get("SeriesInstanceUID", "without UID"))


def _table(by_series: dict[str, list[Image]]) -> str:
    rows = []
    for images in list(by_series.values())[:12]:
        first = images[0]
        kind = " ".join(str(first.get(name, "")) for name in ("Modality", "SeriesDescription")).strip()
        rows.append(f"'#{_part(images, by_series)}' {kind}, {sum(image.frames for image in images)} slices")
    more = f"; and {len(by_series) - 12} more" if len(by_series) > 12 else ""
    return "; ".join(rows) + more


def _shown(group: Group) -> str:
    if group.stack is None:
        return f"{group.first.image.path.name} {'x'.join(map(str, group.shape))}"
    normal = np.abs(np.cross(group.first.orientation[:3], group.first.orientation[3:]))
    kind = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    return f"{kind} {'x'.join(map(str, group.shape))}"


def _groups(images: Sequence[Image]) -> list[Group]:
    """Groups of frames that fit on one grid, in the order of their instance numbers."""
    order = sorted(images, key=lambda image: (image.number("InstanceNumber", 0.0), image.path.name))
    placed: list[list[Frame]] = []
    groups: list[Group | list[Frame]] = []
    for image in order:
        frames = frames_of(image)
        if any(f.position is None or f.orientation is None or f.spacing is None for f in frames):
            groups.append(Group((frames[0],), None))
            continue
        for frame in frames:
            home = next((group for group in placed if _fits(group[0], frame)), None)
            if home is None:
                placed.append(home := [])
                groups.append(home)
            home.append(frame)
    return [group if isinstance(group, Group) else Group(tuple(group), stacked(group)) for group in groups]


def _fits(first: Frame, frame: Frame) -> bool:
    """Whether two frames can lie on one grid and be of one kind."""
    a, b = first.image, frame.image
    names = ("SamplesPerPixel", "PhotometricInterpretation", "FrameOfReferenceUID", "Modality")
    if a is not b and (a.size != b.size or any(a.get(name) != b.get(name) for name in names)):
        return False
    same = np.allclose(first.spacing, frame.spacing, rtol=_ALIKE, atol=0)
    return bool(same and np.abs(first.orientation - frame.orientation).max() < _ALIKE)


def _notes(folder: Folder) -> list[str]:
    notes = []
    if folder.damaged:
        told = f"{len(folder.damaged)} damaged DICOM file(s) skipped: {', '.join(folder.damaged[:3])}"
        notes.append(Said(told, "copy these files again: the slices in them are missing", "files-damaged"))
    if folder.others or folder.without_pixels:
        told = f"skipped in the folder: {folder.others} other file(s), {folder.without_pixels} DICOM file(s) without pixels"
        notes.append(Said(told, "nothing to do, if these files are no images", "files-skipped", note=True))
    return notes


def _listed(place: Path) -> Iterator[Series]:
    folder = listed(place)
    by_series = _by_series(folder.images)
    notes = _notes(folder)
    for uid, images in by_series.items():
        findings = list(notes)
        try:
            groups = _groups(images)
        except MedgenError as error:
            groups = []
            findings.append(str(error))
        findings += [finding for group in groups for finding in group.findings]
        if len(groups) > 1:
            findings.append(f"{len(groups)} groups that do not fit on one grid")
        first = images[0]
        number = first.number("SeriesNumber")
        yield Series(
            folder=place,
            uid=uid,
            part=_part(images, by_series),
            number=None if number is None else int(number),
            description=str(first.get("SeriesDescription", "")),
            modality=str(first.get("Modality", "")),
            files=len(images),
            patient=str(first.get("PatientID", "")),
            study=str(first.get("StudyInstanceUID", "")),
            shapes=tuple(group.shape for group in groups),
            findings=tuple(dict.fromkeys(findings)),
        )
