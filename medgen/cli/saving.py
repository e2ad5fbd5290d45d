"""Results as files: as DICOM beside the series that they were made from."""

from __future__ import annotations

from pathlib import Path

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume


def series_of(volume: Volume | None, output: Path, keep_patient: bool) -> str | None:
    """A file of the DICOM series that `volume` was read from, for an output in .dcm.

    Raises:
        MedgenError: `keep_patient`, and either the output or the input is not DICOM.
    """
    dicom = output.name.lower().endswith(".dcm")
    reference = None if volume is None else (volume.meta.get("dicom") or {}).get("file")
    if keep_patient and not (dicom and reference):
        raise MedgenError("--keep-patient takes a DICOM series as input and an output that ends in .dcm")
    return reference if dicom else None


def write(volume: Volume, output: Path, overwrite: bool, reference: str | None, keep_patient: bool) -> None:
    """Save a result; what has a reference is DICOM."""
    if reference is None:
        volume.save(output, overwrite)
    else:
        volume.save_dicom(output, reference, keep_patient, overwrite)
