"""The files of a store that hold arrays: each is written by one process."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np

_ALIGN = 64  # bytes
_SHARD = 4 << 30  # bytes after which a writer begins another file


class Shard:
    """A file of arrays that one process writes, by plain writes, which a full disk refuses; a memory map would end the process."""

    def __init__(self, folder: Path):
        self.path = folder / f"{uuid.uuid4().hex[:12]}.bin"
        self.file = self.path.open("xb")

    def put(self, array: np.ndarray) -> tuple[str, int, tuple[int, ...], str]:
        array = np.ascontiguousarray(array)
        offset = -(-self.file.tell() // _ALIGN) * _ALIGN
        self.file.seek(offset)
        self.file.write(array.data if array.size else b"")
        if not array.size:
            self.file.truncate(max(offset, 1))
        return self.path.name, offset, array.shape, array.dtype.str


_SHARDS: dict[Path, Shard] = {}  # of this process


def shard_of(folder: Path) -> Shard:
    if folder in _SHARDS and _SHARDS[folder].file.tell() > _SHARD:
        close_shard(folder)
    if folder not in _SHARDS:
        _SHARDS[folder] = Shard(folder)
    return _SHARDS[folder]


def close_shard(folder: Path) -> None:
    """End this process's own file of a store."""
    if folder in _SHARDS:
        _SHARDS.pop(folder).file.close()
