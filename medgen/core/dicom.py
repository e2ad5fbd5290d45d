"""Volumes as derived DICOM: one file of a picture or slice, a folder with one file per slice of a volume.

What is written says that it is synthetic in every place that the standard has for it (image type, SyntheticData, series description,
content qualification, derivation) and burns nothing into pixels. Patient and study are placeholders unless they are asked for.
CT Image Storage for HU, MR Image Storage for MR, Secondary Capture for the rest; the attributes are those of PS3.3 A.3, A.4, A.8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume, placed, writable

_LPS = np.diag([-1.0, -1.0, 1.0])
_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight")
_STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription")
_NOTHING_KEPT = "Nothing of a patient or study was copied; pixels are synthetic"
_FRAME_KEPT = "Nothing copied but the frame of reference; pixels are synthetic"  # DICOM's LO holds 64 characters
_NEEDED = ("Rows", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientPosition", "BodyPartExamined")
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient")
_ALIGNED = 1e-4


@dataclass(frozen=True)
class Coded:
    """Values as whole numbers of 16 bits (8 for colour): value = slope * stored + intercept, at most `error` away."""

    stored: np.ndarray
    slope: str
    intercept: str
    error: float


def save_dicom(
    volume: Volume,
    path: str | Path,
    reference: str | Path | None = None,
    keep_patient: bool = False,
    overwrite: bool = False,
    modality: str | None = None,
) -> Path:
    """Write a new series at `path`, which ends in .dcm.

    Args:
        reference: the series (folder or file) that the volume was made from. Its frame of reference is kept where the volume's axes and
            place are its own, so that viewers lay one over the other.
        keep_patient: copy patient and study of the reference; without it they are placeholders.
        modality: such as "MR"; by default from the units.

    Raises:
        MedgenError: four dimensions, several channels that are no colour, axes of a plane that are not at a right angle, values that are
            not finite; `keep_patient` without a reference; what `Volume.save` raises.
    """
    path = Path(path)
    if not path.name.lower().endswith(".dcm"):
        raise MedgenError(f"cannot write {path.name} as DICOM: the name must end in .dcm")
    if keep_patient and reference is None:
        raise MedgenError("keep_patient needs a reference: the DICOM series whose patient and study are kept")
    ending = writable(path, overwrite)
    original = None if reference is None else _original(Path(reference))
    return placed(path, ending, lambda partial: write(volume, partial, original, keep_patient, modality))


def write(volume: Volume, path: Path, original: Any = None, keep_patient: bool = False, modality: str | None = None) -> None:
    """The file, or the folder of files, at `path`; see `save_dicom`."""
    pydicom = _pydicom()
    volume = _checked(volume)
    known = _orientation_of(original) if original is not None else (volume.meta.get("dicom") or {}).get("orientation")
    if volume.affine is not None:
        volume = _arranged(volume, None if known is None else np.asarray(known, np.float64))
    coded = _coded(volume)
    common = _common(volume, coded, modality, pydicom)
    _identity(common, original, keep_patient, pydicom)
    if volume.affine is not None and original is not None:
        _keep_frame(common, original, volume)
    depth = coded.stored.shape[-1] if volume.affine is not None else 1
    if depth > 1:
        path.mkdir()
    for k in range(depth):
        file = path / f"slice_{k + 1:04d}.dcm" if depth > 1 else path
        _instance(common, volume, coded, k, pydicom).save_as(file, enforce_file_format=True)


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise MedgenError("writing DICOM needs pydicom, which is not installed; run: pip install 'medgen[dicom]'") from error
    return pydicom


def _checked(volume: Volume) -> Volume:
    array = volume.array
    if array.dtype == bool:
        volume = volume.with_array(array := array.astype(np.uint8))
    if not np.isfinite(array).all():
        raise MedgenError("a DICOM holds finite numbers, and this volume has NaN or infinite values; repair or mask them first")
    if volume.affine is None and array.ndim > 3:
        raise MedgenError(f"shape {array.shape} without geometry; a DICOM series needs an affine: set it, or save .npy")
    if array.ndim > 4 or (array.ndim == 4 and len(array) > 1):
        raise MedgenError(f"{len(array)} channels or time points of a volume; save one DICOM series for each: volume.array[i : i + 1]")
    if array.ndim == 3 and len(array) not in (1, 3):
        raise MedgenError(f"a picture of {len(array)} channels; DICOM takes 1 (grey) or 3 (colour): save them one by one")
    if array.ndim == 3 and volume.affine is not None:
        raise MedgenError(f"an affine and {array.ndim - 1} spatial axes; a slice with geometry has three, (1, X, Y, 1)")
    return volume


def _arranged(volume: Volume, known: np.ndarray | None) -> Volume:
    """Axes (columns, rows, slices) as in the series that the volume is from, else as viewers show them: left, posterior, inferior last.

    Slices are those of a single-voxel axis, else of the coarsest spacing, else axial.
    """
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    if known is not None and np.abs(_LPS @ axes[:, :2] - known.reshape(2, 3).T).max() < 1e-3:
        return _right_angled(volume)
    thin = [axis for axis in range(3) if volume.shape[axis] == 1]
    spacing = np.asarray(volume.spacing)
    upright = int(np.abs(axes[2]).argmax())
    coarse = int(spacing.argmax()) if spacing.max() > 1.01 * np.median(spacing) else upright
    across = thin[0] if len(thin) == 1 else coarse
    inside = [axis for axis in range(3) if axis != across]
    # Columns run left (in a sagittal plane posterior), rows posterior or down.
    inside.sort(key=lambda axis: int(np.abs(axes[:, axis]).argmax()))
    order = [*inside, across]
    ahead = [axes[np.abs(axes[:, axis]).argmax(), axis] > 0 for axis in inside]
    change = np.eye(4)[:, [*order, 3]]
    flips = [slice(None, None, -1) if forward else slice(None) for forward in ahead] + [slice(None)]
    for column, (axis, forward) in enumerate(zip(inside, ahead, strict=True)):
        if forward:
            change[axis, column] = -1
            change[axis, 3] = volume.shape[axis] - 1
    array = volume.array.transpose(0, *(axis + 1 for axis in order))[(slice(None), *flips)]
    return _right_angled(volume.with_array(array, affine=volume.affine @ change))


def _right_angled(volume: Volume) -> Volume:
    """A shear along the slices is written exactly (each slice has its position); one within them cannot be."""
    axes = volume.affine[:3, :2] / np.linalg.norm(volume.affine[:3, :2], axis=0)
    if abs(axes[:, 0] @ axes[:, 1]) > _ALIGNED:
        raise MedgenError("the axes of a slice are not at a right angle, which DICOM cannot say; resample to an upright grid first")
    return volume


def _coded(volume: Volume) -> Coded:
    """Whole numbers as they are, others spread over 16 bits."""
    array = volume.array[0] if len(volume.array) == 1 else volume.array
    if len(volume.array) == 3:
        if array.min() < 0 or array.max() > 255:
            raise MedgenError(f"colour from {array.min():g} to {array.max():g}; DICOM's colour has values from 0 to 255: scale it first")
        stored = np.rint(array).astype(np.uint8)
        return Coded(stored, "1", "0", float(np.abs(stored - array.astype(np.float64)).max()))
    low, high = float(array.min()), float(array.max())
    if (array.dtype.kind in "iu" or (array == np.rint(array)).all()) and low >= -(2**15) and high < 2**16 and (low >= 0 or high < 2**15):
        signed = low < 0 or (volume.units == "HU" and high < 2**15)
        return Coded(np.rint(array).astype(np.int16 if signed else np.uint16), "1", "0", 0.0)
    if not np.isfinite(high - low):
        raise MedgenError(f"values from {low:g} to {high:g} span more than a number can say; scale them first")
    (intercept,) = _said([low])
    if float(intercept) > low:  # 16 characters say it too high
        (intercept,) = _said([low - abs(low) * 1e-9])
    (slope,) = _said([(high - float(intercept)) / 65535 or 1.0])
    stored = np.clip(np.rint((array.astype(np.float64) - float(intercept)) / float(slope)), 0, 65535).astype(np.uint16)
    error = float(np.abs(stored * float(slope) + float(intercept) - array).max())
    return Coded(stored, slope, intercept, error)


def _common(volume: Volume, coded: Coded, modality: str | None, pydicom: Any) -> Any:
    """What all files of the series share, but for the patient and study."""
    uid = pydicom.uid
    kind = modality or ("CT" if volume.units == "HU" else "MR" if "MR" in volume.units else "OT")
    solid = volume.affine is not None and kind in ("CT", "MR")
    data = pydicom.Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = {"CT": uid.CTImageStorage, "MR": uid.MRImageStorage}[kind] if solid else uid.SecondaryCaptureImageStorage
    # Value 3 of a CT is AXIAL or LOCALIZER (PS3.3 C.8.2.1.1.1), of an MR a defined term (C.8.3.1.1.1)
    specific = {"CT": ["AXIAL"], "MR": ["OTHER"]}[kind] if solid else []
    data.ImageType = ["DERIVED", "SECONDARY", *specific, "SYNTHETIC"]
    now = datetime.now()
    data.InstanceCreationDate = data.ContentDate = now.strftime("%Y%m%d")
    data.InstanceCreationTime = data.ContentTime = now.strftime("%H%M%S")
    data.Modality, data.SeriesInstanceUID, data.SeriesNumber = kind, uid.generate_uid(None), 1
    data.SeriesDescription = f"SYNTHETIC {_model(volume) or 'medgen'}"[:64]
    data.Manufacturer, data.ManufacturerModelName, data.SoftwareVersions = "medgen", "medgen", _version()
    data.SyntheticData, data.BurnedInAnnotation, data.ContentQualification = "YES", "NO", "RESEARCH"
    data.DerivationDescription = _derivation(volume, coded)[:1024]
    data.LossyImageCompression = "00"
    if solid:
        data.update(_acquisition(kind, pydicom))
    else:
        data.ConversionType = "SYN"
    if volume.affine is not None:
        data.FrameOfReferenceUID, data.PositionReferenceIndicator = uid.generate_uid(None), None
        data.PatientPosition = None
    _pixel_module(data, coded)
    _display(data, volume, coded, solid)
    return data


def _acquisition(kind: str, pydicom: Any) -> Any:
    """The attributes of a CT or MR image that must be there, empty where a made image has none."""
    data = pydicom.Dataset()
    data.AcquisitionNumber = None
    if kind == "CT":
        data.KVP = None
        return data
    data.ScanningSequence, data.SequenceVariant = "RM", "NONE"  # research mode
    data.ScanOptions = data.MRAcquisitionType = data.RepetitionTime = data.EchoTime = data.EchoTrainLength = None
    return data


def _pixel_module(data: Any, coded: Coded) -> None:
    colour = coded.stored.dtype == np.uint8
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * coded.stored.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(coded.stored.dtype.kind == "i")


def _display(data: Any, volume: Volume, coded: Coded, solid: bool) -> None:
    """Rescaling, and a window to begin with: soft tissue of CT, else nearly all values."""
    if coded.stored.dtype == np.uint8:
        return
    data.RescaleIntercept, data.RescaleSlope = coded.intercept, coded.slope
    data.RescaleType = "HU" if volume.units == "HU" else "US"
    low, high = np.percentile(volume.array, (0.5, 99.5)) if volume.units != "HU" else (-160.0, 240.0)
    width = max(float(high - low), float(coded.slope))
    data.WindowCenter, data.WindowWidth = _said([low + width / 2, width])


def _derivation(volume: Volume, coded: Coded) -> str:
    model = _model(volume)
    made = f"Synthetic image made by medgen {_version()}" + (f", model {model}" if model else "")
    seed = f", seed {volume.meta['seed']}" if "seed" in volume.meta else ""
    rounded = f"; largest rounding error {coded.error:.3g}" if coded.error else "; values stored without rounding"
    return f"{made}{seed}. Units: {volume.units}; value = {coded.slope} x stored + {coded.intercept}{rounded}. Not for diagnosis."


def _model(volume: Volume) -> str:
    """The name of the model that made the volume: its folder's, and of a checkpoint in a run the run's."""
    folder = Path(str(volume.meta.get("model") or ""))
    return folder.parts[-3] if folder.parent.name == "checkpoints" and len(folder.parts) > 2 else folder.name


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("medgen")
    except PackageNotFoundError:
        return "unknown"


def _identity(data: Any, original: Any, keep_patient: bool, pydicom: Any) -> None:
    """Patient and study: the original's, or placeholders that say so."""
    if keep_patient:
        for name in (*_PATIENT, *_STUDY):
            if name in original:
                setattr(data, name, original.get(name))
        data.SeriesNumber = None  # others of the study have theirs
        data.DerivationDescription = f"{data.DerivationDescription} From series {original.get('SeriesInstanceUID', 'unknown')}."[:1024]
    else:
        study = pydicom.uid.generate_uid(None)
        data.StudyInstanceUID = study
        data.PatientName, data.PatientID = "SYNTHETIC", f"SYNTHETIC-{study[-12:]}"
        data.PatientIdentityRemoved = "YES"
        data.DeidentificationMethod = _NOTHING_KEPT
    if original is not None and original.get("BodyPartExamined"):
        data.BodyPartExamined = original.BodyPartExamined
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", *_STUDY[1:6]):
        if name not in data:
            setattr(data, name, None)


def _keep_frame(data: Any, original: Any, volume: Volume) -> None:
    """The original's frame of reference, where the volume's axes are parallel to the original's and its plane holds the original's."""
    position, orientation = original.get("ImagePositionPatient"), _orientation_of(original)
    if position is None or orientation is None or not original.get("FrameOfReferenceUID"):
        return
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    inside = np.abs(axes.T @ (_LPS @ orientation.reshape(2, 3).T))
    parallel, plane = np.abs(inside.max(0) - 1).max() < 1e-3, inside.argmax(0)
    index = np.linalg.solve(volume.affine, [*(_LPS @ np.asarray(position, np.float64)), 1.0])[:3]
    if parallel and (index > -1)[plane].all() and (index < volume.shape)[plane].all():
        data.FrameOfReferenceUID = original.FrameOfReferenceUID
        if "DeidentificationMethod" in data:
            data.DeidentificationMethod = _FRAME_KEPT
        data.PatientPosition = original.get("PatientPosition")


def _orientation_of(original: Any) -> np.ndarray | None:
    values = original.get("ImageOrientationPatient")
    return None if values is None or len(values) != 6 else np.asarray(values, np.float64)


def _instance(common: Any, volume: Volume, coded: Coded, k: int, pydicom: Any) -> Any:
    """One file: its own UID, place and pixels."""
    data = pydicom.Dataset()
    data.update(common)
    data.SOPInstanceUID, data.InstanceNumber = pydicom.uid.generate_uid(None), k + 1
    if volume.affine is None:
        plane = np.moveaxis(coded.stored, 0, -1) if coded.stored.dtype == np.uint8 else coded.stored
        data.PatientOrientation = None
        if "spacing" in volume.meta:
            data.PixelSpacing = _said(volume.meta["spacing"][:2])
    else:
        plane = coded.stored[:, :, k].T
        data.update(_place(volume.affine, k, pydicom))
    data.Rows, data.Columns = plane.shape[:2]
    data.PixelData = np.ascontiguousarray(plane).astype(plane.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OB" if plane.dtype == np.uint8 else "OW"
    if len(data.PixelData) % 2:
        data.PixelData += b"\0"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def _place(affine: np.ndarray, k: int, pydicom: Any) -> Any:
    """The image plane module of slice `k`."""
    data, matrix = pydicom.Dataset(), _LPS @ affine[:3]
    lengths = np.linalg.norm(matrix[:, :3], axis=0)
    columns, rows = matrix[:, 0] / lengths[0], matrix[:, 1] / lengths[1]
    data.ImagePositionPatient = _said(matrix @ [0, 0, k, 1])
    data.ImageOrientationPatient = _said([*columns, *rows])
    data.PixelSpacing = _said(lengths[[1, 0]])
    data.SliceThickness = _said([abs(matrix[:, 2] @ np.cross(columns, rows))])[0]
    return data


def _said(values: Iterable[float]) -> list[str]:
    """Numbers in the 16 characters that a decimal string may have."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]


def _original(path: Path) -> Any:
    """The header of one image of the reference.

    Raises:
        MedgenError: no DICOM image is there, or images of several studies.
    """
    pydicom = _pydicom()
    names = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    found: dict[str, Any] = {}
    for name in names:
        try:
            data = pydicom.dcmread(name, stop_before_pixels=True, specific_tags=[*_PATIENT, *_STUDY, *_NEEDED, *_GEOMETRY])
        except (pydicom.errors.InvalidDicomError, OSError):
            continue
        if data.get("Rows"):
            found.setdefault(str(data.get("StudyInstanceUID")), data)
    if len(found) != 1:
        raise MedgenError(f"{path}: the reference must hold images of one study, found {len(found)}; give a file of the series")
    return next(iter(found.values()))
