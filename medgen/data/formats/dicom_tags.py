"""Which tags of DICOM are read before the pixels."""

from __future__ import annotations

_NAMES = (
    "SOPClassUID SOPInstanceUID ImageType Modality SeriesInstanceUID StudyInstanceUID SeriesNumber SeriesDescription StudyDescription "
    "PatientID PatientName FrameOfReferenceUID InstanceNumber AcquisitionNumber SeriesDate SeriesTime AcquisitionDate AcquisitionTime "
    "Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated BitsStored HighBit "
    "PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence "
    "RedPaletteColorLookupTableDescriptor PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing ImagePositionPatient "
    "ImageOrientationPatient SliceThickness SpacingBetweenSlices GridFrameOffsetVector DoseGridScaling EchoTime EchoNumbers "
    "TemporalPositionIdentifier TriggerTime DiffusionBValue InversionTime FrameReferenceTime FrameTime FrameTimeVector CineRate "
    "RecommendedDisplayFrameRate SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence RealWorldValueMappingSequence "
    "SequenceOfUltrasoundRegions Units CorrectedImage DecayCorrection PatientWeight SUVType RadiopharmaceuticalInformationSequence"
)
TAGS = tuple(_NAMES.split())
# What tells images at one place apart, and the functional group that holds it in a multi-frame file; the first that fits is taken.
KEYS = {
    "EchoTime": ("echo time (ms)", None, None),
    "EchoNumbers": ("echo", None, None),
    "EffectiveEchoTime": ("echo time (ms)", "MREchoSequence", "EffectiveEchoTime"),
    "TemporalPositionIdentifier": ("temporal position", None, None),
    "TemporalPositionIndex": ("temporal position", "FrameContentSequence", "TemporalPositionIndex"),
    "TriggerTime": ("trigger time (ms)", None, None),
    "NominalCardiacTriggerDelayTime": ("trigger time (ms)", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "DiffusionBValue": ("b (s/mm2)", "MRDiffusionSequence", "DiffusionBValue"),
    "InversionTime": ("inversion time (ms)", None, None),
    "FrameReferenceTime": ("frame reference time (ms)", None, None),
    "ImageType": ("image type", None, None),
    "FrameType": ("image type", "MRImageFrameTypeSequence", "FrameType"),
    "StackID": ("stack", "FrameContentSequence", "StackID"),
    "AcquisitionNumber": ("acquisition", None, None),
    "AcquisitionTime": ("acquisition time", None, None),
}


def key_title(name: str) -> str:
    """A key's name for people."""
    return KEYS[name][0] if name in KEYS else name


def key_rank(name: str) -> int:
    """Which key is tried first."""
    return list(KEYS).index(name) if name in KEYS else len(KEYS)
