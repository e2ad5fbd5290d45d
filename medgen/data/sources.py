"""A file, a folder or a part of one as it was when it was read, to tell whether it is still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medgen.data.readers import parted

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """What is known of a cell's file.

    Attributes:
        cell: absolute path, and part.
        size: bytes.
        changed: when, in nanoseconds (of a folder: the latest of its files).
        digest: of the content and the part; empty until it is asked for.
    """

    cell: str
    size: int
    changed: int
    digest: str = ""

    def same(self, other: Source) -> bool:
        """Whether the file looks untouched: size and time of change."""
        return (self.size, self.changed) == (other.size, other.changed)

    def digested(self) -> Source:
        """With the digest of its content."""
        if self.digest:
            return self
        path, part = parted(self.cell)
        state = hashlib.blake2b((part or "").encode(), digest_size=16)
        for file in _files(path):
            state.update(f"\0{file.relative_to(path) if file != path else ''}\0{path.suffix}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    state.update(block)
        return replace(self, digest=state.hexdigest())


def seen(cell: str) -> Source:
    """The cell's file as it is now."""
    facts = [file.stat() for file in _files(parted(cell)[0])]
    return Source(cell, sum(fact.st_size for fact in facts), max((fact.st_mtime_ns for fact in facts), default=0))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
    else:
        yield path
