"""The lines of a store's index, and the arrays that they name."""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medgen.data.cases import Prepared
from medgen.data.sources import Source, seen

_COMMIT = 10.0  # seconds of preparation that a killed process may lose
_PARSED = 256  # rows that a process keeps in parsed form


@dataclass(frozen=True)
class Record:
    """A line of the index.

    Attributes:
        sources: column -> the file as it was when it was read.
        pieces: of the row, as `_plain` describes a `Prepared`: arrays by name -> (file, offset, shape, type), and its other fields.
    """

    sources: Mapping[str, Mapping[str, Any]]
    pieces: Sequence[Mapping[str, Any]]

    @property
    def content(self) -> tuple[tuple[str, str], ...]:
        """What the arrays follow from, beside the recipe."""
        return tuple(sorted((column, source["digest"]) for column, source in self.sources.items()))

    @property
    def ends(self) -> Iterator[tuple[str, int]]:
        """(file, where its array ends in it)."""
        for piece in self.pieces:
            for shard, offset, shape, kind in piece["arrays"].values():
                yield shard, offset + math.prod(shape) * np.dtype(kind).itemsize

    @property
    def shards(self) -> set[str]:
        """The files that hold its arrays."""
        return {place[0] for piece in self.pieces for place in piece["arrays"].values()}


class Index:
    """The lines of a store's index: which files are prepared, and where the line of each is. A torn last line is passed over."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "index.jsonl"
        self.places: list[tuple[int, int]] = []  # offset and length of each line
        self.cases: list[tuple[int, ...]] = []  # of each piece of it
        self._by_cells: dict[tuple[tuple[str, str], ...], tuple[int, tuple[Source, ...]]] = {}
        self._by_content: dict[tuple[tuple[str, str], ...], int] = {}
        self._sizes: set[tuple[tuple[str, int], ...]] = set()
        self.added: list[int] = []  # the lines that `add` has brought, in its order
        self._pending: list[tuple[Record, bool]] = []  # and whether it came by `add`
        self._committed = time.monotonic()
        self._shards: dict[str, int] = {path.name: path.stat().st_size for path in folder.glob("*.bin")}
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            self._take(line)

    def known(self, files: Mapping[str, str]) -> int | None:
        """The number of the line for these files, if they look as they did."""
        found = self._by_cells.get(_cells(files))
        if found is None or any(not source.same(seen(source.cell)) for source in found[1]):
            return None
        return found[0]

    def found(self, files: Mapping[str, str]) -> tuple[int, Mapping[str, Source]] | None:
        """The number of the line whose files had this content, and the files as they are now."""
        now = {column: seen(cell) for column, cell in files.items()}
        if tuple(sorted((column, source.size) for column, source in now.items())) not in self._sizes:
            return None
        now = {column: source.digested() for column, source in now.items()}
        number = self._by_content.get(tuple(sorted((column, source.digest) for column, source in now.items())))
        return None if number is None else (number, now)

    def record(self, files: Mapping[str, str]) -> int | None:
        """The number of the line for these files as they are now; what was only touched or moved is recognised by its content."""
        number = self.known(files)
        if number is not None or (found := self.found(files)) is None:
            return number
        number, now = found
        self._pending.append((Record({column: asdict(source) for column, source in now.items()}, self.read(number).pieces), False))
        return number  # its arrays are those of the new line, which waits for the next commit

    def read(self, number: int) -> Record:
        offset, length = self.places[number]
        with self.path.open("rb") as file:
            file.seek(offset)
            return Record(**json.loads(file.read(length)))

    def add(self, record: Record) -> None:
        """A new line; once it is written, its number follows in `added`."""
        self._pending.append((record, True))
        if time.monotonic() - self._committed > _COMMIT:
            self.commit()

    def commit(self) -> None:
        """Arrays reach the disk before the lines that vouch for them."""
        for shard in {shard for record, _ in self._pending for shard in record.shards}:
            _synced(self.folder / shard)
            self._shards[shard] = (self.folder / shard).stat().st_size
        with self.path.open("ab") as file:
            if (end := file.tell()) and not self._ends_a_line(end):
                file.write(b"\n")
            for record, new in self._pending:
                line = json.dumps(asdict(record)).encode() + b"\n"
                file.write(line)
                self._take(line, file.tell() - len(line))
                self.added += [len(self.places) - 1] * new
            file.flush()
            os.fsync(file.fileno())
        self._pending, self._committed = [], time.monotonic()

    def replace(self, records: Sequence[Record]) -> None:
        """These lines and no others."""
        for shard in {shard for record in records for shard in record.shards}:
            _synced(self.folder / shard)
        partial_path = self.path.with_suffix(".partial")
        partial_path.write_bytes(b"".join(json.dumps(asdict(record)).encode() + b"\n" for record in records))
        _synced(partial_path)
        os.replace(partial_path, self.path)

    def _ends_a_line(self, end: int) -> bool:
        with self.path.open("rb") as file:
            file.seek(end - 1)
            return file.read(1) == b"\n"

    def _take(self, line: bytes, offset: int | None = None) -> None:
        offset = (sum(self.places[-1]) if self.places else 0) if offset is None else offset
        try:
            record = Record(**json.loads(line))
            cases = tuple(piece["cases"] for piece in record.pieces)
            if any(end > self._shards.get(shard, -1) for shard, end in record.ends):
                raise ValueError("its arrays are gone")
        except (ValueError, TypeError, KeyError):  # torn by a power cut, or bereft of its arrays: keeps its place and counts for nothing
            self.places.append((offset, len(line)))
            self.cases.append(())
            return
        number = len(self.places)
        self.places.append((offset, len(line)))
        self.cases.append(cases)
        sources = {column: Source(**source) for column, source in record.sources.items()}
        files = {column: source.cell for column, source in sources.items()}
        self._by_cells[_cells(files)] = number, tuple(sources[column] for column in sorted(sources))
        self._by_content[record.content] = number
        self._sizes.add(tuple(sorted((column, source.size) for column, source in sources.items())))


class Rows(Sequence[Prepared]):
    """Pieces of prepared rows by number. Memory does not grow with them: a record is parsed when it is asked for, arrays are mapped.

    Attributes:
        row: of each piece, the place of its row.
        counts: of each piece, its cases.
        extra: of each row, what its cases carry besides: subject and attributes.
    """

    def __init__(self, folder: Path, places: Sequence[tuple[int, int]], cases: Sequence[Sequence[int]]):
        self.folder = folder
        self._places = np.asarray(places, np.int64).reshape(-1, 2)
        self.row = np.repeat(np.arange(len(cases)), [len(pieces) for pieces in cases])
        self.counts = np.array([count for pieces in cases for count in pieces], np.int64)
        self._first = np.cumsum([0, *(len(pieces) for pieces in cases)])
        self.extra: Sequence[Mapping[str, Any]] = [{}] * len(cases)
        self._reset()

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, number: int) -> Prepared:
        if not 0 <= number < len(self):
            raise IndexError(f"piece {number} of {len(self)}")
        row = int(self.row[number])
        if row not in self._parsed:
            if len(self._parsed) >= _PARSED:
                self._parsed.pop(next(iter(self._parsed)))
            self._parsed[row] = [self._prepared(piece, self.extra[row]) for piece in self._record(row).pieces]
        return self._parsed[row][number - int(self._first[row])]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_maps", "_parsed", "_index")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}
        self._parsed: dict[int, list[Prepared]] = {}
        self._index: io.FileIO | None = None

    def _record(self, row: int) -> Record:
        if self._index is None:
            self._index = (self.folder / "index.jsonl").open("rb", buffering=0)
        offset, length = self._places[row].tolist()
        return Record(**json.loads(os.pread(self._index.fileno(), length, offset)))

    def _prepared(self, piece: Mapping[str, Any], extra: Mapping[str, Any]) -> Prepared:
        arrays: dict[str, dict[str, np.ndarray]] = {"images": {}, "labels": {}, "spots": {}, "": {}}
        for name, place in piece["arrays"].items():
            group, _, own = name.rpartition("/")
            arrays[group][own] = self.array(*place)
        return Prepared(
            images=arrays["images"],
            labels=arrays["labels"],
            affines=arrays[""].get("affines"),
            ranges=piece["ranges"],
            spacing=None if piece["spacing"] is None else tuple(piece["spacing"]),
            volumetric=piece["volumetric"],
            kept=arrays[""].get("kept"),
            spots=arrays["spots"],
            extra=extra,
        )

    def array(self, shard: str, offset: int, shape: Sequence[int], kind: str) -> np.ndarray:
        if shard not in self._maps:
            with (self.folder / shard).open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = int(np.prod(shape))
        return np.frombuffer(self._maps[shard], np.dtype(kind), count, offset).reshape(shape)


def _cells(files: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(files.items()))


def _synced(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
