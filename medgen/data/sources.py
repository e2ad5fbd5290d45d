"""A file, a folder or a part of one as it was when it was read, to tell whether it is still the same."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from medgen.data.readers import parted

_BLOCK = 1 << 20
_PAIR = (".hdr", ".img")
_HEADERS = (".mhd", ".nhdr")  # whose voxels may lie in other files of the folder


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
    """What is hashed of a name: all of it inside a folder, the ending of the cell's own file, which may be moved."""
    return str(file.relative_to(path)) if path.is_dir() else file.suffix


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
        return
    yield path
    ending = path.suffix.lower()
    if ending in _PAIR:
        yield from (
            other for other in sorted(path.parent.glob(f"{_plain(path.stem)}.*")) if other.suffix.lower() in _PAIR and other != path
        )
    if ending in _HEADERS:
        yield from _named(path)


def _named(header: Path) -> list[Path]:
    """The files of a header's folder that it names, also by a pattern such as slice%03d.raw."""
    with header.open("rb") as file:
        words = set(re.split(r"[\s=:,\"]+", file.read(1 << 16).decode("latin-1")))
    found = {header.parent / word for word in words if word and "/" not in word and (header.parent / word).is_file()}
    for pattern in (word for word in words if "%" in word and "/" not in word):
        found |= set(header.parent.glob(f"{_plain(pattern.partition('%')[0])}*"))
    return sorted(found - {header})


def _plain(text: str) -> str:
    """The text as a glob that stands for itself."""
    return re.sub(r"([*?[])", r"[\1]", text)
