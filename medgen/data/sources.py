"""A file, a folder or a part of one as it was when it was read, to tell whether it is still the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from medgen.data.readers import format_of, parted

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """What is known of a cell's file, with the files that belong to it: the slices of a folder, the voxels of a header.

    Attributes:
        cell: absolute path, and part.
        size: bytes.
        state: of names, sizes and times of change (of content and of inode, which no copy keeps); it changes when the files are written.
        digest: of the content and the part; empty until it is asked for.
    """

    cell: str
    size: int
    state: str
    digest: str = ""

    def same(self, other: Source) -> bool:
        """Whether the files look untouched."""
        return (self.size, self.state) == (other.size, other.state)

    def digested(self) -> Source:
        """With the digest of its content."""
        if self.digest:
            return self
        path, part = parted(self.cell)
        content = hashlib.blake2b((part or "").encode(), digest_size=16)
        content.update(_content(path, self.state).encode())
        return replace(self, digest=content.hexdigest())


def seen(cell: str) -> Source:
    """The cell's file as it is now."""
    path, _ = parted(cell)
    state, size = hashlib.blake2b(digest_size=16), 0
    for file in _files(path):
        fact = os.stat(file)
        size += fact.st_size
        state.update(f"{_name(file, path)}\0{fact.st_size}\0{fact.st_mtime_ns}\0{fact.st_ctime_ns}\0".encode())
    return Source(cell, size, state.hexdigest())


@lru_cache(maxsize=64)
def _content(path: Path, state: str) -> str:
    """The digest of whole files: thousands of rows may be parts of one."""
    digest = hashlib.blake2b(digest_size=16)
    for file in _files(path):
        digest.update(f"\0{_name(file, path)}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _name(file: Path, path: Path) -> str:
    """What is hashed of a name: all of it inside a folder, the ending of the cell's own file, which may be renamed."""
    if path.is_dir():
        return str(file.relative_to(path))
    return file.suffix if file == path else file.name


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
        return
    try:
        yield from format_of(path).files(path)
    except Exception:  # a damaged header, which reading will tell
        yield path
