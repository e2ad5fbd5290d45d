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
from medgen.data.formats.format import Said

LONGEST = 10.0  # half lives from injection to scan: after these a thousandth of the dose is left
SHORT = 3 * 3600.0  # seconds of half life (F-18: 6586) up to which a dose does not outlive the day of its injection


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
            1.0,
            units or "stored",
            (_no_suv(f"PET in units '{units}', which no standard tag turns to SUV: kept (private factors are ignored)"),),
        )
    dose, lacks, notes = _dose(images)
    weight = first.number("PatientWeight")
    if not weight or weight <= 0:
        lacks.append("PatientWeight")
    corrected = first.get("CorrectedImage") or ()
    corrected = [corrected] if isinstance(corrected, str) else list(corrected)
    lacks += [f"{name} in CorrectedImage" for name in ("ATTN", "DECY") if name not in corrected]
    if lacks or not dose:
        return Uptake(1.0, "BQML", (_no_suv(f"no SUV: lacks {', '.join(lacks)}; values are Bq/ml"),))
    return Uptake(1000.0 * weight / dose, "SUV", notes)


def _no_suv(told: str) -> Said:
    remedy = "complete the header and read it again, or train on these values with unit_range or mr_percentile"
    return Said(told, remedy, "pet-activity")


def _dose(images: Sequence[Image]) -> tuple[float | None, list[str], tuple[str, ...]]:
    """Bq at the time that the images are corrected to, what lacks for it, and what is to be told."""
    first = images[0]
    sequence = first.get("RadiopharmaceuticalInformationSequence")
    drug = sequence[0] if sequence else {}
    dose, half = finite(drug.get("RadionuclideTotalDose")), finite(drug.get("RadionuclideHalfLife"))
    how = str(first.get("DecayCorrection", ""))
    lacks = [] if dose and dose > 0 else ["RadionuclideTotalDose"]
    if how == "ADMIN":
        return dose, lacks, ()
    if how != "START":
        return None, [*lacks, f"DecayCorrection START or ADMIN (found '{how}')"], ()
    if not half or half <= 0:
        return None, [*lacks, "RadionuclideHalfLife"], ()
    begin = _scan_start(images)
    delay, notes = _delay(drug, begin, half)
    if begin is None or delay is None:
        lacks.append("the time of the scan" if begin is None else "a believable time of the injection")
    if lacks:
        return None, lacks, ()
    return dose * 2.0 ** (-delay / half), [], notes


def _delay(drug: Any, begin: datetime | None, half: float) -> tuple[float | None, tuple[str, ...]]:
    """Seconds from the injection to the scan, None where the header does not tell them believably.

    Who takes names off a file often shifts its dates, and not those inside sequences: where the date of the injection cannot be right, a
    nuclide that is gone within a day was injected on the day of the scan, or the evening before, at the time that its clock says.
    """
    if begin is None:
        return None, ()
    whole = str(drug.get("RadiopharmaceuticalStartDateTime") or "")
    clock = whole[8:].split("+")[0].split("-")[0] if len(whole) >= 12 else drug.get("RadiopharmaceuticalStartTime")
    told = _moment(whole[:8], clock) if len(whole) >= 12 else None
    if told is not None and 0 <= (begin - told).total_seconds() <= LONGEST * half:
        return (begin - told).total_seconds(), ()
    moment = _moment(begin.strftime("%Y%m%d"), clock)
    if moment is None or (told is not None and half > SHORT):
        return None, ()
    delay = (begin - (moment - timedelta(days=1) if moment > begin else moment)).total_seconds()
    said = "" if told is None else f"the injection is dated {told:%Y-%m-%d} and the scan {begin:%Y-%m-%d}: only its clock time is used"
    remedy = "nothing to do where dates were shifted to hide the patient; else correct the date of the injection"
    notes = (Said(said, remedy, "injection-date", note=True),) if said else ()
    return (delay, notes) if delay <= LONGEST * half else (None, ())


def _scan_start(images: Sequence[Image]) -> datetime | None:
    series = _moment(images[0].get("SeriesDate"), images[0].get("SeriesTime"))
    taken = [_moment(image.get("AcquisitionDate"), image.get("AcquisitionTime")) for image in images]
    return min((moment for moment in (series, *taken) if moment is not None), default=None)


def _moment(date: Any, time: Any) -> datetime | None:
    """A date YYYYMMDD and a time HHMM[SS[.F]] of DICOM."""
    day, clock = str(date or "").replace(".", "").strip(), str(time or "").replace(":", "").strip()
    try:
        seconds = float(clock[4:] or 0)
        return datetime.strptime(day + clock[:4], "%Y%m%d%H%M") + timedelta(seconds=seconds)
    except ValueError:
        return None
