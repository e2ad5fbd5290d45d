"""Activity of PET to standardised uptake values by body weight (SUVbw), where the header has what that takes.

SUVbw = activity (Bq/ml) * weight (g) / dose (Bq), the dose decayed to the time that the images are corrected to: by the half life from the
injection to the start of the scan (DecayCorrection START), not at all (ADMIN). The start of the scan is the series' time, or the earliest
acquisition where that is earlier, as the Quantitative Imaging Biomarkers Alliance advises for vendor-neutral SUV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from medgen.data.formats.dicom_files import Image, finite


@dataclass(frozen=True)
class Uptake:
    """What rescaled values are multiplied by, the units that they then have, and what is to be told."""

    factor: float
    units: str
    findings: tuple[str, ...] = ()


def uptake(images: Sequence[Image]) -> Uptake:
    """The way of a PET series to SUV; units stay what they are, with a finding, where something lacks."""
    first = images[0]
    units = str(first.get("Units", ""))
    if units == "GML":
        kind = str(first.get("SUVType", "BW"))
        return Uptake(1.0, "SUV" if kind == "BW" else f"SUV ({kind})")
    if units != "BQML":
        return Uptake(
            1.0, units or "stored", (f"PET in units '{units}', which no standard tag turns to SUV: kept (private factors are ignored)",)
        )
    dose, lacks = _dose(images)
    weight = first.number("PatientWeight")
    if not weight or weight <= 0:
        lacks.append("PatientWeight")
    corrected = first.get("CorrectedImage") or ()
    corrected = [corrected] if isinstance(corrected, str) else list(corrected)
    lacks += [f"{name} in CorrectedImage" for name in ("ATTN", "DECY") if name not in corrected]
    if lacks or not dose:
        return Uptake(1.0, "BQML", (f"no SUV: lacks {', '.join(lacks)}; values are Bq/ml",))
    return Uptake(1000.0 * weight / dose, "SUV")


def _dose(images: Sequence[Image]) -> tuple[float | None, list[str]]:
    """Bq at the time that the images are corrected to, and what lacks for it."""
    first = images[0]
    sequence = first.get("RadiopharmaceuticalInformationSequence")
    drug = sequence[0] if sequence else {}
    dose, half = finite(drug.get("RadionuclideTotalDose")), finite(drug.get("RadionuclideHalfLife"))
    how = str(first.get("DecayCorrection", ""))
    lacks = [] if dose and dose > 0 else ["RadionuclideTotalDose"]
    if how == "ADMIN":
        return dose, lacks
    if how != "START":
        return None, [*lacks, f"DecayCorrection START or ADMIN (found '{how}')"]
    if not half or half <= 0:
        lacks.append("RadionuclideHalfLife")
    begin = _scan_start(images)
    injected = _injection(drug, begin)
    lacks += [name for name, value in (("the time of the scan", begin), ("the time of the injection", injected)) if value is None]
    if lacks:
        return None, lacks
    return dose * 2.0 ** (-(begin - injected).total_seconds() / half), []


def _scan_start(images: Sequence[Image]) -> datetime | None:
    series = _moment(images[0].get("SeriesDate"), images[0].get("SeriesTime"))
    taken = [_moment(image.get("AcquisitionDate"), image.get("AcquisitionTime")) for image in images]
    return min((moment for moment in (series, *taken) if moment is not None), default=None)


def _injection(drug: Any, begin: datetime | None) -> datetime | None:
    """Of the day that the header says, else of the scan's day, or of the day before where that would be after the scan."""
    whole = str(drug.get("RadiopharmaceuticalStartDateTime") or "")
    if len(whole) >= 12:
        return _moment(whole[:8], whole[8:].split("+")[0].split("-")[0])
    if begin is None:
        return None
    moment = _moment(begin.strftime("%Y%m%d"), drug.get("RadiopharmaceuticalStartTime"))
    return moment - timedelta(days=1) if moment is not None and moment > begin else moment


def _moment(date: Any, time: Any) -> datetime | None:
    """A date YYYYMMDD and a time HHMM[SS[.F]] of DICOM."""
    day, clock = str(date or "").replace(".", "").strip(), str(time or "").replace(":", "").strip()
    try:
        seconds = float(clock[4:] or 0)
        return datetime.strptime(day + clock[:4], "%Y%m%d%H%M") + timedelta(seconds=seconds)
    except ValueError:
        return None
