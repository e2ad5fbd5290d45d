"""Stored pixels of DICOM to values: decoded, unused bits cut, palettes and YBR to colour planes, rescaled, padding found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.data.formats.dicom_files import Frame, Image, dataset, quiet
from medgen.data.formats.format import Said

AIR = -1024.0  # HU that padding of a CT becomes: the lowest value of a 12-bit CT, which every window maps to its lower end
_JPEG = "1.2.840.10008.1.2.4."
_NO_SIZE = (*range(0xD0, 0xD8), 0x01)  # markers without a length
_FRAME_START = (*(m for m in range(0xC0, 0xD0) if m not in (0xC4, 0xC8, 0xCC)), 0xF7)


@dataclass(frozen=True)
class Rule:
    """How the stored numbers of a group become values.

    Attributes:
        dtype: of the values; whole numbers where the slope is 1.
        planes: 3 for colour.
        factor: what rescaled values are multiplied by (SUV).
        padding: whether some frame declares stored numbers that are no measurement.
        mirror: stored + mirrored = this, where black and white are exchanged, or None.
    """

    dtype: np.dtype
    planes: int
    units: str
    factor: float = 1.0
    padding: bool = False
    mirror: int | None = None

    def values(self, stored: np.ndarray, frame: Frame) -> np.ndarray:
        """(rows, columns) stored numbers as values of `dtype`."""
        if self.mirror is not None:
            stored = self.mirror - stored.astype(np.int64)
        slope, intercept = frame.slope * self.factor, frame.intercept * self.factor
        if self.dtype.kind in "iu":  # the slope is 1
            if intercept == 0 and np.can_cast(stored.dtype, self.dtype):
                return stored.astype(self.dtype, copy=False)
            ends, wide = np.iinfo(self.dtype), np.int32 if stored.dtype.itemsize <= 2 and abs(intercept) < 2**30 else np.int64
            shifted = stored.astype(wide) + wide(intercept)
            if shifted.min() < ends.min or shifted.max() > ends.max:
                shifted = np.clip(shifted, ends.min, ends.max)
            return shifted.astype(self.dtype)
        return (stored.astype(np.float64) * slope + intercept).astype(self.dtype)

    def padded(self, stored: np.ndarray, frame: Frame) -> np.ndarray | bool:
        """Where a plane of stored numbers is what its own file declares as padding."""
        ends = stored_range(frame.image)
        limits = None if ends is None else _padding(frame.image, ends)
        return False if limits is None else (stored >= limits[0]) & (stored <= limits[1])


def rule(frames: Sequence[Frame], units: str, factor: float, findings: list[str]) -> Rule:
    """The rule of frames that share a grid; what is worth telling is added to `findings`."""
    image = frames[0].image
    kind = str(image.get("PhotometricInterpretation", "MONOCHROME2"))
    if _palette(image) or int(image.get("SamplesPerPixel", 1)) > 1:
        deep = image.get("RedPaletteColorLookupTableDescriptor")[2] if _palette(image) else int(image.get("BitsAllocated"))
        return Rule(np.dtype(np.uint8 if deep <= 8 else np.uint16), 3, "stored")
    ends = stored_range(image)
    if ends is None:
        dtype = np.dtype(np.float64 if image.get("BitsAllocated") == 64 else np.float32)
        return Rule(dtype, 1, units, factor)
    images = list(dict.fromkeys(frame.image for frame in frames))
    ranges = [found for found in map(stored_range, images) if found is not None]
    ends = min(low for low, _ in ranges), max(high for _, high in ranges)
    padding = any(_padding(each, stored_range(each) or ends) is not None for each in images)
    whole = all(f.slope * factor == 1 and float(f.intercept).is_integer() for f in frames)
    low, high = (pick(f.intercept for f in frames) + end for pick, end in ((min, ends[0]), (max, ends[1])))
    if units == "HU":  # beyond +-32768 HU there is nothing but padding
        low, high = -32768, 32767
    dtype = _smallest(low, high) if whole else np.dtype(np.float32)
    made = Rule(dtype, 1, units, factor, padding)
    if kind == "MONOCHROME1" and units == "stored":
        told = "MONOCHROME1 (low values are bright): inverted"
        findings.append(Said(told, "nothing to do: what is shown bright is high now", "monochrome1", note=True))
        return replace(made, mirror=ends[0] + ends[1])
    if kind == "MONOCHROME1":
        told = f"MONOCHROME1 (shown inverted): its values in {units} are kept"
        findings.append(Said(told, "nothing to do: the values are right, whatever a viewer shows", "monochrome1", note=True))
    return made


def stored_range(image: Image) -> tuple[int, int] | None:
    """The lowest and highest number that a pixel can hold; None for real numbers."""
    table = image.get("ModalityLUTSequence")
    if table:
        return 0, (1 << int(table[0].LUTDescriptor[2])) - 1
    allocated, stored = int(image.get("BitsAllocated")), image.get("BitsStored")
    if stored is None and allocated in (32, 64):
        return None
    bits = allocated if stored is None else int(stored)
    if not 1 <= bits <= allocated <= 64:
        raise MedgenError(f"{image.path}: {bits} bits stored in {allocated}; expected 1 to 64: it is damaged, export it again")
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if image.get("PixelRepresentation", 0) == 1 else (0, (1 << bits) - 1)


def stored_planes(image: Image, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames `indices` of a file: (rows, columns), or (rows, columns, 3) of colour.

    Raises:
        MedgenError: a damaged or truncated file, which it names, a compressed image of another size than its header says, no decoder for
            its compression.
    """
    try:
        yield from _decoded(image, indices)
    except (MedgenError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise everything that there is, and the file is one of many in its folder
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MedgenError(f"{image.path}: a damaged or truncated DICOM file ({first}); copy or export it again") from error


def _decoded(image: Image, indices: Sequence[int]) -> Iterator[np.ndarray]:
    from pydicom.pixels import iter_pixels

    whole = dataset(image.path, pixels=True)
    _complete(whole, image)
    syntax = whole.file_meta.TransferSyntaxUID
    options: dict[str, Any] = {}
    high, bits, allocated = (int(image.get(name, 0)) for name in ("HighBit", "BitsStored", "BitsAllocated"))
    shifted = bits and high != bits - 1 and high < allocated and not syntax.is_compressed
    if shifted:  # pydicom takes the bits from the lowest one on
        options["bits_stored"] = allocated
    planes = iter_pixels(whole, indices=list(indices), **options)
    while True:
        try:
            with quiet():  # not around the yield: what is quiet here must not be so for the caller
                plane = next(planes, None)
                if plane is not None:
                    plane = _coloured(_shifted(plane, image, high, bits) if shifted else plane, whole, image)
        except (RuntimeError, NotImplementedError) as error:
            if "missing dependencies" not in str(error):
                raise
            raise MedgenError(f"{image.path}: no decoder for {syntax.name} is installed; run: pip install 'medgen[dicom]'") from error
        if plane is None:
            return
        yield plane


def _complete(whole: Any, image: Image) -> None:
    """A transfer syntax where the file says none, all the pixels, and compressed frames whose own headers agree with the file's."""
    from pydicom.pixels.utils import get_expected_length
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in whole.file_meta:
        implicit, little = whole.original_encoding
        whole.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    if not any(name in whole for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise MedgenError(f"{image.path}: a truncated DICOM file, which ends before its pixels; copy or export it again")
    if not whole.file_meta.TransferSyntaxUID.is_compressed and "PixelData" in whole:
        there, expected = len(whole.PixelData), get_expected_length(whole)
        if there < expected:
            said = f"a truncated DICOM file, with {there} of the {expected} bytes of its pixels"
            raise MedgenError(f"{image.path}: {said}; copy or export it again")
    if str(whole.file_meta.TransferSyntaxUID).startswith(_JPEG) and "PixelData" in whole:
        from pydicom.encaps import generate_frames

        samples = int(image.get("SamplesPerPixel", 1))
        for frame in generate_frames(whole.PixelData, number_of_frames=image.frames):
            found = codestream_size(frame)
            if found is not None and found != (*image.size, samples):
                said = "x".join(map(str, found))
                expected = "x".join(map(str, (*image.size, samples)))
                raise MedgenError(f"{image.path}: its compressed image is {said} and its header says {expected}; export it again")


def codestream_size(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, samples) that a JPEG, JPEG-LS or JPEG 2000 stream claims; None where it does not say."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0:
        x, y, x0, y0 = (int.from_bytes(frame[start + i : start + i + 4], "big") for i in (8, 12, 16, 20))
        return y - y0, x - x0, int.from_bytes(frame[start + 40 : start + 42], "big")
    place = 2
    while frame[:2] == b"\xff\xd8" and place + 10 <= len(frame):
        if frame[place] != 0xFF:
            return None
        marker = frame[place + 1]
        if marker in _FRAME_START:
            rows, columns = (int.from_bytes(frame[place + i : place + i + 2], "big") for i in (5, 7))
            return rows, columns, frame[place + 9]
        filler = marker == 0xFF or marker in _NO_SIZE
        place += (1 if marker == 0xFF else 2) if filler else 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    return None


def _coloured(plane: np.ndarray, whole: Any, image: Image) -> np.ndarray:
    if _palette(image):
        from pydicom.pixels import apply_color_lut

        return apply_color_lut(plane, whole)[..., :3]
    if image.get("ModalityLUTSequence"):
        from pydicom.pixels import apply_modality_lut

        return apply_modality_lut(plane, whole)
    return plane[..., :3] if plane.ndim == 3 else plane


def _palette(image: Image) -> bool:
    return image.get("PhotometricInterpretation") == "PALETTE COLOR" and bool(image.get("RedPaletteColorLookupTableDescriptor"))


def _shifted(plane: np.ndarray, image: Image, high: int, bits: int) -> np.ndarray:
    """The stored bits of words that keep them above others (overlays)."""
    values = (plane.astype(np.int64) >> (high + 1 - bits)) & ((1 << bits) - 1)
    if image.get("PixelRepresentation", 0) == 1:
        values -= (values >> (bits - 1)) << bits
    return values


def _padding(image: Image, ends: tuple[int, int]) -> tuple[int, int] | None:
    """Stored numbers that are padding, also where a signed one was written as unsigned."""
    value = image.number("PixelPaddingValue")
    if value is None:
        return None
    limit = image.number("PixelPaddingRangeLimit", value)
    pair = sorted(_wrapped(int(v), ends, int(image.get("BitsAllocated"))) for v in (value, limit))
    return (pair[0], pair[1]) if ends[0] <= pair[0] and pair[1] <= ends[1] else None


def _wrapped(value: int, ends: tuple[int, int], bits: int) -> int:
    if value > ends[1] and ends[0] < 0:
        return value - (1 << bits)
    return value + (1 << bits) if value < 0 and ends[0] == 0 else value


def _smallest(low: float, high: float) -> np.dtype:
    """The smallest type for whole numbers from `low` to `high`."""
    for kind in (np.uint8, np.int16, np.uint16, np.int32, np.uint32):
        ends = np.iinfo(kind)
        if ends.min <= low and high <= ends.max:
            return np.dtype(kind)
    return np.dtype(np.int64) if high < 2**62 else np.dtype(np.float64)
