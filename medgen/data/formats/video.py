"""Video (MP4, AVI, MOV, MKV, MPEG, GIF, ...) by PyAV: (1 or 3, T, H, W) with exact frame numbers and times.

A cell is `clip.mp4` (all frames), `clip.mp4#frames=0:32:2` (FIRST:LAST:STEP as in Python), or `clip.mp4#frame=12`, a picture.
`planes=1` or `planes=3` beside these sets what is otherwise found out (see `Clip.planes`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header, check_size, library
from medgen.data.formats.parts import settings, whole

ENDINGS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpeg", ".mpg", ".wmv", ".gif")
# Containers only: a playlist in a video's clothes would make the library open other files and addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo,mpegts,asf,gif,m4v"
_GREY = 12  # of 255: up to this difference of the planes of a pixel is loss of compression and not colour
_LOOKED_AT = 9  # frames


@dataclass(frozen=True)
class Clip:
    """What is known of a video without decoding it all.

    Attributes:
        times: seconds of each frame from the first on, in the order in which they are shown.
        stamps: the container's time stamps of the frames; empty where it has none that are unique, and frames are counted.
        keys: numbers of the frames at which decoding can start.
        size: (H, W) as shown, turned by `rotation`.
        rotation: degrees counter-clockwise, multiples of 90, that the file asks for.
        planes: 1 where the pixel format is grey, or where in nine frames spread over the clip no pixel's planes differ by more than
            12 of 255, which compression does to grey; 3 otherwise.
        bits: per value in the file.
        claimed: frames that the container says it has where that is not what it has, else None.
    """

    times: tuple[float, ...]
    stamps: tuple[int, ...]
    keys: tuple[int, ...]
    size: tuple[int, int]
    rotation: int
    planes: int
    bits: int
    claimed: int | None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def dtype(self) -> np.dtype:
        """uint8, or uint16 where grey is stored with more than 8 bits. Colour of more bits is brought to 8."""
        return np.dtype(np.uint16 if self.planes == 1 and self.bits > 8 else np.uint8)

    @property
    def variable(self) -> bool:
        """Whether some frames are shown longer than others: by more than 2 % and 2 ms, which rounding of time stamps may be."""
        steps = np.diff(self.times)
        if not len(steps):
            return False
        usual = float(np.median(steps))
        return bool(np.abs(steps - usual).max() > max(0.02 * usual, 0.002))


def opened(path: str | Path) -> Clip:
    """The clip of a path, looked at once per process as long as the file stays the same.

    Raises:
        MedgenError: no such file, no video, no frames, a damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise MedgenError(f"{path}: no such file; check the path")
    state = path.stat()
    return _known(path, state.st_mtime_ns, state.st_size)


def frames(path: str | Path, start: int = 0, count: int | None = None, stride: int = 1, planes: int | None = None) -> np.ndarray:
    """(1 or 3, count, H, W) frames `start`, `start + stride`, ... of a video; decoding begins at the key frame before.

    Args:
        count: of frames in the result; by default to the end.
        planes: 1 or 3; by default `Clip.planes`.

    Raises:
        MedgenError: frames that it does not have, damaged ones, colour in a clip that is read as grey.
    """
    path = Path(path)
    clip = opened(path)
    if start < 0 or stride < 1 or (count is not None and count < 1):
        raise MedgenError(f"{path}: {count} frames from {start} every {stride}; count and stride must be at least 1 and start at least 0")
    count = len(range(start, len(clip), stride)) if count is None else count
    if not count or start + (count - 1) * stride >= len(clip):
        raise MedgenError(f"{path}: {count or 1} frames from {start} every {stride} end after the clip, which has {len(clip)}")
    planes = planes or clip.planes
    check_size(path, Header((count, *clip.size), planes, clip.dtype))
    made = np.empty((planes, count, *clip.size), clip.dtype)
    numbers = range(start, start + count * stride, stride)
    for place, (number, frame) in enumerate(_walk(path, clip, numbers)):
        made[:, place] = _planes(path, clip, number, frame, planes)
    return made


@lru_cache(maxsize=256)
def _known(path: Path, changed: int, size: int) -> Clip:
    with _container(path) as (container, stream):
        packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
        context, claimed, base = stream.codec_context, stream.frames, stream.time_base
        stamps = [p.pts for p in packets]
        if None in stamps or len(set(stamps)) < len(stamps) or base is None:
            stamps, keys, times = [], [], _counted(path)
        else:
            keys = {p.pts for p in packets if p.is_keyframe}
            stamps = sorted(stamps)
            keys = [number for number, stamp in enumerate(stamps) if stamp in keys]
            times = [float((stamp - stamps[0]) * base) for stamp in stamps]
        if not times:
            raise MedgenError(f"{path}: a video without frames; copy or export it again")
        # what the header claims is refused before the first frame is decoded
        check_size(path, Header((1, context.height, context.width), 3, np.dtype(np.uint8)))
    bare = Clip(tuple(times), tuple(stamps), tuple(keys), (0, 0), 0, 3, 8, claimed if claimed not in (0, len(times)) else None)
    return _looked_at(path, bare)


def _counted(path: Path) -> list[float]:
    """Times of all frames by decoding them, for containers whose packets do not tell."""
    with _container(path) as (container, stream):
        seconds = [frame.time for frame in container.decode(stream)]
        rate = float(stream.average_rate or stream.guessed_rate or 25)
    if None in seconds or any(b <= a for a, b in pairwise(seconds)):
        return [number / rate for number in range(len(seconds))]
    return [time - seconds[0] for time in seconds]


def _looked_at(path: Path, bare: Clip) -> Clip:
    """The clip with what only frames tell: size, rotation, colour."""
    facts: dict[str, Any] = {}
    for number, frame in _walk(path, bare, sorted({*np.linspace(0, len(bare) - 1, _LOOKED_AT).astype(int).tolist()})):
        if not facts:
            turn = round(frame.rotation) % 360
            if turn % 90:
                raise MedgenError(f"{path}: asks to be turned by {turn} degrees; expected a multiple of 90: export it upright")
            height, width = (frame.height, frame.width) if turn % 180 == 0 else (frame.width, frame.height)
            bits = max(part.bits for part in frame.format.components)
            grey = frame.format.name.startswith("gray")
            facts = {"size": (height, width), "rotation": turn, "bits": bits, "planes": 1}
            bare = Clip(**{**vars(bare), **facts})
            if grey:
                return bare
        if _colour(_upright(path, bare, number, frame, "rgb24")) > _GREY:
            return Clip(**{**vars(bare), "planes": 3})
    return bare


def _walk(path: Path, clip: Clip, numbers: Sequence[int], seek: bool = True) -> Iterator[tuple[int, Any]]:
    """Frames of these ascending numbers; what lies between is skipped by key frames or decoded and dropped."""
    seek = seek and bool(clip.keys)
    place = {stamp: number for number, stamp in enumerate(clip.stamps)}
    with _container(path) as (container, stream):
        decoded, at = None, -1
        for done, wanted in enumerate(numbers):
            key = max((k for k in clip.keys if k <= wanted), default=0) if seek else 0
            if decoded is None or key > at + 1:
                if key:
                    container.seek(clip.stamps[key], stream=stream)
                decoded, at = container.decode(stream), key - 1
            number = None
            for frame in decoded:
                number = place.get(frame.pts) if clip.stamps else at + 1
                at = at if number is None else number
                if number is not None and number >= wanted:
                    break
            if number != wanted and seek:  # this container's seeking is not exact: decode from the start
                yield from _walk(path, clip, numbers[done:], seek=False)
                return
            if number != wanted:
                raise MedgenError(f"{path}: frame {wanted} of {len(clip)} cannot be decoded; the file is damaged: copy or export it again")
            if frame.is_corrupt:
                raise MedgenError(f"{path}: frame {wanted} is damaged; copy or export it again, or leave it out by '#frames='")
            yield wanted, frame


@contextmanager
def _container(path: Path) -> Iterator[tuple[Any, Any]]:
    """The open file and its first video stream; what the library raises becomes a sentence."""
    av = library("av", "video", "videos")
    try:
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        with av.open(f"file:{os.fspath(path.absolute())}", options=options) as container:
            if not container.streams.video:
                raise MedgenError(f"{path}: holds no video stream; expected a video")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # loader workers are the parallelism
            yield container, stream
    except MedgenError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, IndexError, OverflowError, ArithmeticError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MedgenError(f"{path}: a damaged or truncated video ({first}); copy or export it again") from error


def _upright(path: Path, clip: Clip, number: int, frame: Any, form: str) -> np.ndarray:
    array = np.rot90(frame.to_ndarray(format=form), clip.rotation // 90)
    if array.shape[:2] != clip.size:
        raise MedgenError(
            f"{path}: frame {number} has {array.shape[:2]} pixels, the first {clip.size}; split the video where its size changes"
        )
    return array


def _planes(path: Path, clip: Clip, number: int, frame: Any, planes: int) -> np.ndarray:
    """(planes, H, W) of a frame."""
    if planes == 1 and frame.format.name.startswith("gray"):
        return _upright(path, clip, number, frame, "gray16le" if clip.bits > 8 else "gray")[None]
    array = _upright(path, clip, number, frame, "rgb24")
    if planes == 3:
        return np.moveaxis(array, -1, 0)
    if clip.planes == 1 and _colour(array) > _GREY:
        raise MedgenError(
            f"{path}: frame {number} has colour though the frames that were looked at have none; read the clip with '#planes=3'"
        )
    return array[None, ..., 1] if clip.planes == 1 else _luma(array)[None]


def _colour(array: np.ndarray) -> int:
    """The largest difference of two planes in any pixel of (H, W, 3)."""
    red, green, blue = (array[..., i] for i in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return int((high - low).max())


def _luma(array: np.ndarray) -> np.ndarray:
    """(H, W) uint8 of (H, W, 3) by the weights of ITU-R BT.601."""
    return np.round(array @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)


@dataclass(frozen=True)
class _Asked:
    numbers: range
    planes: int
    picture: bool


def _asked(path: Path, part: str | None, clip: Clip) -> _Asked:
    said = settings(path, part, ("frame", "frames", "planes"))
    if said.get("planes", "1") not in ("1", "3"):
        raise MedgenError(f"{path}: 'planes' takes 1 or 3, found '{said['planes']}'")
    planes = int(said.get("planes", clip.planes))
    if "frame" in said and "frames" in said:
        raise MedgenError(f"{path}: '#{part}' asks for one frame and for several; take one")
    if "frame" in said:
        first = whole(path, "frame", said["frame"])
        numbers = range(first, first + 1)
    else:
        bounds = [whole(path, "frames", text) if text else None for text in said.get("frames", "0:").split(":")]
        if len(bounds) not in (2, 3) or bounds[2:] == [0]:
            raise MedgenError(f"{path}: 'frames' takes FIRST:LAST or FIRST:LAST:STEP, found '{said['frames']}'")
        first, last, step = (*bounds, None)[:3]
        numbers = range(first or 0, len(clip) if last is None else last, step or 1)
    if not numbers or numbers[-1] >= len(clip):
        raise MedgenError(f"{path}: '#{part}' asks for frames that the clip does not have; it has 0 to {len(clip) - 1}")
    return _Asked(numbers, planes, "frame" in said)


def header(path: Path, part: str | None) -> Header:
    clip = opened(path)
    asked = _asked(path, part, clip)
    shape = clip.size if asked.picture else (len(asked.numbers), *clip.size)
    return Header(shape, asked.planes, clip.dtype, meta=_meta(clip, asked))


def read(path: Path, part: str | None) -> Volume:
    clip = opened(path)
    asked = _asked(path, part, clip)
    numbers = asked.numbers
    array = frames(path, numbers.start, len(numbers), numbers.step, asked.planes)
    return Volume(array[:, 0] if asked.picture else array, meta=_meta(clip, asked))


def _meta(clip: Clip, asked: _Asked) -> dict[str, Any]:
    meta: dict[str, Any] = {"frame_seconds": [round(clip.times[n], 6) for n in asked.numbers], "variable_rate": clip.variable}
    meta |= {"planes": "colour"} if asked.planes == 3 else {}
    meta |= {"claimed_frames": clip.claimed} if clip.claimed is not None else {}
    return meta | ({"rotated": clip.rotation} if clip.rotation else {}) | ({"stored_bits": clip.bits} if clip.bits > 8 else {})


FORMAT = Format("video", ENDINGS, header, read, extra="video")
