"""DICOM files of known content, written by pydicom and independently of medgen's writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from medgen.core.volume import Volume

LPS = np.diag([-1.0, -1.0, 1.0])
CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
AXIAL = np.array([[-0.7, 0, 0, 3], [0, -0.8, 0, 4], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])
SAGITTAL = np.array([[0, 0, 2.5, 3], [-0.7, 0, 0, 4], [0, -0.8, 0, 5], [0, 0, 0, 1.0]])
CORONAL = np.array([[-0.7, 0, 0, 3], [0, 0, -2.5, 4], [0, -0.8, 0, 5], [0, 0, 0, 1.0]])
Change = Callable[[Dataset, int], None]


def image(pixels: np.ndarray, modality: str = "CT", sop_class: str | None = None, **tags: Any) -> Dataset:
    """A data set of (rows, columns), (rows, columns, 3) or with frames in front (`NumberOfFrames` given), without geometry."""
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3 and "NumberOfFrames" not in tags
    data = Dataset()
    data.SOPClassUID = sop_class or CLASSES.get(modality, SecondaryCaptureImageStorage)
    data.SOPInstanceUID = generate_uid(None)
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    data.PatientName, data.PatientID, data.StudyDate = "Real^Name", "P17", "20200102"
    data.Modality, data.SeriesNumber, data.InstanceNumber = modality, 1, 1
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        data.PlanarConfiguration = 0
    data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    body = np.ascontiguousarray(pixels).tobytes()
    data.PixelData = body + b"\0" * (len(body) % 2)
    data["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    if modality == "CT":
        data.RescaleSlope, data.RescaleIntercept = 1, 0
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def saved(data: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write with the file's meta information."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True, implicit_vr=None)
    return path


def place(data: Dataset, affine: np.ndarray, k: float) -> None:
    """The position of slice `k` of a grid with a RAS affine whose first axis counts columns."""
    matrix = LPS @ affine[:3]
    lengths = np.linalg.norm(matrix[:, :2], axis=0)
    data.ImagePositionPatient = [f"{v:.9g}" for v in matrix @ [0, 0, k, 1]]
    data.ImageOrientationPatient = [f"{v:.9g}" for v in (matrix[:, :2] / lengths).T.ravel()]
    data.PixelSpacing = [f"{v:.9g}" for v in lengths[::-1]]


def series(
    folder: Path, array: np.ndarray, affine: np.ndarray, modality: str = "CT", change: Change | None = None, first: int = 0, **tags: Any
) -> Path:
    """One file per slice of (X, Y, Z); file names and instance numbers are in no order, and SliceThickness is wrong on purpose."""
    order = np.random.default_rng(3).permutation(array.shape[2])
    for k in range(array.shape[2]):
        data = image(array[:, :, k].T.copy(), modality, **tags)
        place(data, affine, k)
        data.InstanceNumber, data.SliceThickness = int(order[k]) + 1, 99
        if change is not None:
            change(data, k)
        saved(data, folder / f"im{first + order[k]:03d}")
    return folder


def grid() -> np.ndarray:
    """A grid of whole numbers below 30000 on (5, 4, 6), each its own."""
    return np.random.default_rng(0).permutation(120).reshape(5, 4, 6).astype(np.int16) * 7 - 300


def enhanced(array: np.ndarray, affine: np.ndarray, modality: str = "MR", echoes: Sequence[float] = (0,), slope: float = 1.0) -> Dataset:
    """One multi-frame file of (E, X, Y, Z): frames in no order, rescale and echo time in their functional groups."""
    frames = [(e, k) for e in range(len(array)) for k in range(array.shape[3])]
    frames = [frames[i] for i in np.random.default_rng(5).permutation(len(frames))]
    pixels = np.stack([array[e, :, :, k].T for e, k in frames])
    uid = EnhancedMRImageStorage if modality == "MR" else EnhancedCTImageStorage
    data = image(pixels, modality, uid, NumberOfFrames=len(frames))
    for name in ("RescaleSlope", "RescaleIntercept"):
        if name in data:
            delattr(data, name)
    matrix = LPS @ affine[:3]
    lengths = np.linalg.norm(matrix[:, :2], axis=0)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [f"{v:.9g}" for v in (matrix[:, :2] / lengths).T.ravel()]
    measures.PixelSpacing = [f"{v:.9g}" for v in lengths[::-1]]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Items([orientation]), Items([measures])
    data.SharedFunctionalGroupsSequence = Items([shared])
    data.PerFrameFunctionalGroupsSequence = Items([_groups(matrix, e, k, echoes[e], slope * (1 + k)) for e, k in frames])
    return data


def _groups(matrix: np.ndarray, e: int, k: int, echo: float, slope: float) -> Dataset:
    own, position, values, content, timing = (Dataset() for _ in range(5))
    position.ImagePositionPatient = [f"{v:.9g}" for v in matrix @ [0, 0, k, 1]]
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = f"{slope:g}", "-5", "US"
    content.DimensionIndexValues = [e + 1, k + 1]
    timing.EffectiveEchoTime = float(echo)
    own.PlanePositionSequence, own.PixelValueTransformationSequence = Items([position]), Items([values])
    own.FrameContentSequence, own.MREchoSequence = Items([content]), Items([timing])
    return own


def pet(folder: Path, array: np.ndarray, affine: np.ndarray, slopes: Sequence[float], change: Change | None = None) -> Path:
    """A PET series of 370 MBq of a half life of 6000 s, injected 12000 s before the scan, in a patient of 70 kg: 2 half lives."""
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife, drug.RadiopharmaceuticalStartTime = "370000000", "6000", "101000"

    def told(data: Dataset, k: int) -> None:
        data.RescaleSlope, data.RescaleIntercept, data.Units = f"{slopes[k]:g}", 0, "BQML"
        data.DecayCorrection, data.CorrectedImage, data.PatientWeight = "START", ["ATTN", "DECY", "SCAT"], "70"
        data.SeriesDate = data.AcquisitionDate = "20200102"
        data.SeriesTime, data.AcquisitionTime = "133000", f"1331{k:02d}"
        data.RadiopharmaceuticalInformationSequence = Items([drug])
        if change is not None:
            change(data, k)

    return series(folder, array, affine, "PT", told)


def write_sample(path: Path) -> Path:
    """A small CT slice, for tests that damage it."""
    data = image(np.arange(12 * 10, dtype=np.int16).reshape(10, 12) - 1000)
    place(data, np.array([[-0.7, 0, 0, 3], [0, -0.8, 0, 4], [0, 0, 2.5, 5], [0, 0, 0, 1.0]]), 0)
    return saved(data, Path(path))


def turned(affine: np.ndarray) -> np.ndarray:
    """The affine turned by 20 degrees about one axis and 35 about another."""
    a, b = np.radians([20, 35])
    first = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    out = affine.copy()
    out[:3, :3] = first @ second @ affine[:3, :3]
    return out


def by_itk(folder: Path) -> Volume:
    """The series as SimpleITK reads it, (1, X, Y, Z) with its affine in RAS."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)) if folder.is_dir() else [str(folder)])
    found = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = LPS @ (np.reshape(found.GetDirection(), (3, 3)) * found.GetSpacing())
    affine[:3, 3] = LPS @ found.GetOrigin()
    return Volume(sitk.GetArrayFromImage(found).transpose(2, 1, 0)[None], affine)


def _sample(folder: Path) -> Path:
    write_sample(folder / "sample.dcm")
    return folder / "sample.dcm"


SAMPLES = {".dcm": _sample}  # see tests/samples.py
