"""Latent moments of the training cases in a memory-mapped file, which is built once and checked before every use.

<folder>/<key>/latents.json    what they were made from; the key is its hash
               moments.npy     (cases * versions, 2, Z, *s) float16 or float32: mean and log-variance
               digests.npy     (cases * versions, 16) hash of the image that each row was made from; zero: no row yet
<folder>/<key>.partial/        the same while it is built; an interrupted build goes on from its digests
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.data.lock import alone

DIGEST = 16  # bytes
COMMIT = 10.0  # seconds of encoding that a killed build may lose
Encode = Callable[[Sequence[int]], Iterator[np.ndarray]]


class Latents:
    """A complete cache: row `version * cases + index` holds the moments of a version of a case.

    Args:
        folder: of a complete cache.
        versions: of each case.
    """

    def __init__(self, folder: Path, versions: int):
        self.folder, self.versions = folder, versions
        self.moments = np.load(folder / "moments.npy", mmap_mode="r")
        self.cases = len(self.moments) // versions

    def row(self, index: int, version: int) -> np.ndarray:
        """(2, Z, *s) float32: mean and log-variance."""
        return self.moments[version * self.cases + index].astype(np.float32)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All rows in order, (B, 2, Z, *s) float32."""
        for first in range(0, len(self.moments), size):
            yield self.moments[first : first + size].astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """What a cache has to hold.

    Attributes:
        facts: plain data that the moments follow from: codec, data, settings.
        digests: (rows, 16) uint8, a hash of the image behind each row, before augmentation.
        versions: of each case.
        shape: (2, Z, *s) of a row.
        half: float16 instead of float32.
    """

    facts: Mapping[str, Any]
    digests: np.ndarray
    versions: int
    shape: tuple[int, ...]
    half: bool

    @property
    def key(self) -> str:
        layout = [self.versions, len(self.digests), *self.shape, self.half]
        return hashlib.sha256(json.dumps([self.facts, layout], sort_keys=True).encode()).hexdigest()[:16]

    def missing(self, folder: Path) -> np.ndarray | None:
        """The rows of a cache that are not there or were made from other images; None where there is no readable cache."""
        try:
            moments, found = np.load(folder / "moments.npy", mmap_mode="r"), np.load(folder / "digests.npy")
        except (OSError, ValueError, EOFError):
            return None
        if moments.shape != (len(self.digests), *self.shape) or found.shape != self.digests.shape:
            return None
        return np.flatnonzero((found != self.digests).any(1))


def digest(image: np.ndarray) -> np.ndarray:
    """(16,) uint8."""
    return np.frombuffer(hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=DIGEST).digest(), np.uint8)


def built(folder: Path, plan: Plan, encode: Encode) -> Latents:
    """The cache of `plan` under `folder`: as it is, or with the rows that are missing or stale encoded now.

    One process builds and the others wait for it. A cache is never changed in place, so that a run that reads an outdated one goes on
    undisturbed: what is still valid is copied aside, completed, and put in its place.

    Args:
        encode: row numbers -> their moments (B, 2, Z, *s) float32, batch after batch in this order.

    Raises:
        MedgenError: no room or no permission, or moments that float16 cannot hold.
    """
    place = folder / plan.key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / f"{plan.key}.lock"):
            missing = plan.missing(place)
            if missing is None or len(missing):
                _complete(place, plan, encode)
            return Latents(place, plan.versions)
    except OSError as error:
        raise MedgenError(
            f"could not keep latents in {folder} ({error}); free some space or set latents.cache to another folder"
        ) from error


def _complete(place: Path, plan: Plan, encode: Encode) -> None:
    partial, previous = place.with_name(f"{place.name}.partial"), place.with_name(f"{place.name}.previous")
    missing = plan.missing(partial)
    if missing is None:
        shutil.rmtree(partial, ignore_errors=True)
        _begin(partial, place if plan.missing(place) is not None else None, plan)
        missing = plan.missing(partial)
    writer = _Writer(partial, plan)
    try:
        first = 0
        for moments in encode(missing.tolist()):
            writer.write(missing[first : first + len(moments)], moments)
            first += len(moments)
    finally:
        writer.close()
    shutil.rmtree(previous, ignore_errors=True)
    if place.exists():
        os.replace(place, previous)
    os.replace(partial, place)
    shutil.rmtree(previous, ignore_errors=True)


def _begin(partial: Path, source: Path | None, plan: Plan) -> None:
    """An empty cache or a copy of `source`; the digests come last, because they say what may be trusted."""
    partial.mkdir()
    (partial / "latents.json").write_text(json.dumps(plan.facts, indent=2, sort_keys=True) + "\n")
    if source is not None:
        shutil.copyfile(source / "moments.npy", partial / "moments.npy")
        shutil.copyfile(source / "digests.npy", partial / "digests.npy")
        return
    kind = np.float16 if plan.half else np.float32
    np.lib.format.open_memmap(partial / "moments.npy", mode="w+", dtype=kind, shape=(len(plan.digests), *plan.shape))
    np.save(partial / "digests.npy", np.zeros_like(plan.digests))


class _Writer:
    """Rows into a partial cache by plain writes, which a full disk refuses; a memory map would end the process."""

    def __init__(self, folder: Path, plan: Plan):
        self.plan, self.committed = plan, time.monotonic()
        self.pending: list[int] = []
        paths = [folder / name for name in ("moments.npy", "digests.npy")]
        self.arrays = [np.load(path, mmap_mode="r") for path in paths]
        self.files = [os.open(path, os.O_RDWR) for path in paths]

    def write(self, rows: np.ndarray, moments: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            stored = moments.astype(self.arrays[0].dtype)
        if not np.isfinite(stored).all():
            remedy = "the codec is broken; train it again" if not np.isfinite(moments).all() else "set latents.half=false"
            raise MedgenError(f"latent moments up to {np.abs(moments).max():g} do not fit {stored.dtype}: {remedy}")
        for row, values in zip(rows.tolist(), stored, strict=True):
            self._put(0, row, values)
            self.pending.append(row)
        if time.monotonic() - self.committed > COMMIT:
            self.commit()

    def commit(self) -> None:
        """Moments reach the disk before the digests that vouch for them."""
        os.fsync(self.files[0])
        for row in self.pending:
            self._put(1, row, self.plan.digests[row])
        os.fsync(self.files[1])
        self.pending, self.committed = [], time.monotonic()

    def close(self) -> None:
        try:
            self.commit()
        finally:
            for file in self.files:
                os.close(file)

    def _put(self, which: int, row: int, values: np.ndarray) -> None:
        array, data = self.arrays[which], values.tobytes()
        if os.pwrite(self.files[which], data, array.offset + row * array.strides[0]) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
