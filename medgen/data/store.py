"""Prepared rows of a manifest in memory-mapped files: made once, shared by all workers, ranks and runs of one recipe.

<folder>/<key>/recipe.json    what is made of a row; the key is its hash
               index.jsonl    a line for each prepared row (`Record`); of several for the same files the last one counts
               *.bin          the arrays, one file for each writing process
               lock           held by the process that fills the store

A line is written after its arrays have reached the disk, and nothing is changed in place: an interrupted preparation goes on where it
was, and a reader is never disturbed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.data.cases import Prepared
from medgen.data.lock import alone
from medgen.data.readers import parted
from medgen.data.recipe import Recipe
from medgen.data.sources import Source, seen
from medgen.data.workers import Failure, each

_ALIGN = 64  # bytes
_SHARD = 4 << 30  # bytes after which a writer begins another file
_COMMIT = 10.0  # seconds of preparation that a killed process may lose
_PARSED = 256  # rows that a process keeps in parsed form

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """A row to prepare.

    Attributes:
        files: column -> cell with an absolute path.
        where: the row, for messages.
    """

    files: Mapping[str, str]
    where: str


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


class Store:
    """The prepared rows of one recipe.

    Args:
        folder: that may hold the stores of other recipes too.
    """

    def __init__(self, folder: Path, recipe: Recipe):
        self.recipe = recipe
        facts = json.dumps(recipe.facts(), sort_keys=True)
        self.folder = folder / hashlib.sha256(facts.encode()).hexdigest()[:16]

    def rows(self, wanted: Sequence[Wanted], workers: int = 0, progress: Progress | None = None) -> tuple[Rows, dict[int, str]]:
        """The rows that could be prepared, in order, and why others (by place) could not. What is missing, or whose files have changed,
        is prepared now; other processes that want the same store wait for it.

        Args:
            workers: processes that prepare; 0 is this one, which a decoder's crash would end.
            progress: is told (done, of).

        Raises:
            MedgenError: no room, or no permission.
        """
        try:
            if not os.access(self.folder, os.W_OK) and (complete := self.complete(wanted)) is not None:
                return complete, {}
            self.folder.mkdir(parents=True, exist_ok=True)
            with alone(self.folder / "lock"):
                (self.folder / "recipe.json").write_text(json.dumps(self.recipe.facts(), indent=2, sort_keys=True) + "\n")
                index = Index(self.folder)
                numbers, failures = self._complete(index, wanted, workers, progress)
        except OSError as error:
            remedy = "free some space, or set data.source.options.keep.folder to another place"
            raise MedgenError(f"could not keep prepared data in {self.folder} ({error}); {remedy}") from error
        return self._rows(index, [number for number in numbers if number is not None]), failures

    def complete(self, wanted: Sequence[Wanted]) -> Rows | None:
        """All rows, where none is missing; nothing is written, so that a store on a read-only disk serves as well."""
        if not (self.folder / "index.jsonl").is_file():
            return None
        index = Index(self.folder)
        numbers = []
        for row in wanted:
            number = index.known(row.files)
            if number is None and (found := index.found(row.files)) is not None:
                number = found[0]
            if number is None:
                return None
            numbers.append(number)
        return self._rows(index, numbers)

    def _rows(self, index: Index, numbers: Sequence[int]) -> Rows:
        return Rows(self.folder, [index.places[number] for number in numbers], [index.cases[number] for number in numbers])

    def prune(self, wanted: Iterable[Wanted]) -> int:
        """Drop the arrays of all other rows and of files as they were before; the number of bytes that were freed. Not while a training
        reads them."""
        with alone(self.folder / "lock"):
            index = Index(self.folder)
            numbers = {number for row in wanted if (number := index.record(row.files)) is not None}
            records = [index.read(number) for number in sorted(numbers)]
            before, used = _size(self.folder), {shard for record in records for shard in record.shards}
            if len(records) < len(index.places) or used != {path.name for path in self.folder.glob("*.bin")}:
                kept = [_moved(self.folder, record) for record in records]
                close_shard(self.folder)
                index.replace(kept)
                used = {shard for record in kept for shard in record.shards}
                for path in self.folder.glob("*.bin"):
                    if path.name not in used:
                        path.unlink()
            return before - _size(self.folder)

    def _complete(
        self, index: Index, wanted: Sequence[Wanted], workers: int, progress: Progress | None
    ) -> tuple[list[int | None], dict[int, str]]:
        """The line of each row, None where it could not be prepared, and why."""
        numbers, failures = [index.record(row.files) for row in wanted], {}
        missing = [place for place, number in enumerate(numbers) if number is None]
        work, rows = partial(_written, self.folder, self.recipe), [wanted[place] for place in missing]
        added: list[int] = []
        try:
            for done, (number, result) in enumerate(each(work, rows, workers) if workers else _here(work, rows), 1):
                if isinstance(result, _NoRoom):
                    raise OSError(result.reason)
                if isinstance(result, Failure):
                    failures[missing[number]] = _named(result.reason, wanted[missing[number]])
                else:
                    index.add(result)
                    added.append(missing[number])
                if progress:
                    progress(done, len(missing))
        finally:
            close_shard(self.folder)
            index.commit()
        first = len(index.places) - len(added)  # lines are written in the order in which rows were added
        for line, place in enumerate(added, first):
            numbers[place] = line
        return numbers, failures


class Index:
    """The lines of a store's index: which files are prepared, and where the line of each is. A torn last line is passed over."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "index.jsonl"
        self.places: list[tuple[int, int]] = []  # offset and length of each line
        self.cases: list[tuple[int, ...]] = []  # of each piece of it
        self._by_cells: dict[tuple[tuple[str, str], ...], tuple[int, tuple[Source, ...]]] = {}
        self._by_content: dict[tuple[tuple[str, str], ...], int] = {}
        self._sizes: set[tuple[tuple[str, int], ...]] = set()
        self._pending: list[Record] = []
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
        self._pending.append(Record({column: asdict(source) for column, source in now.items()}, self.read(number).pieces))
        return number  # its arrays are those of the new line, which waits for the next commit

    def read(self, number: int) -> Record:
        offset, length = self.places[number]
        with self.path.open("rb") as file:
            file.seek(offset)
            return Record(**json.loads(file.read(length)))

    def add(self, record: Record) -> None:
        self._pending.append(record)
        if time.monotonic() - self._committed > _COMMIT:
            self.commit()

    def commit(self) -> None:
        """Arrays reach the disk before the lines that vouch for them."""
        for shard in {shard for record in self._pending for shard in record.shards}:
            _synced(self.folder / shard)
            self._shards[shard] = (self.folder / shard).stat().st_size
        with self.path.open("ab") as file:
            if (end := file.tell()) and not self._ends_a_line(end):
                file.write(b"\n")
            for record in self._pending:
                line = json.dumps(asdict(record)).encode() + b"\n"
                file.write(line)
                self._take(line, file.tell() - len(line))
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
            arrays[group][own] = self._array(*place)
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

    def _array(self, shard: str, offset: int, shape: Sequence[int], kind: str) -> np.ndarray:
        if shard not in self._maps:
            with (self.folder / shard).open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = int(np.prod(shape))
        return np.frombuffer(self._maps[shard], np.dtype(kind), count, offset).reshape(shape)


class _Shard:
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


_SHARDS: dict[Path, _Shard] = {}  # of this process


def _shard(folder: Path) -> _Shard:
    if folder in _SHARDS and _SHARDS[folder].file.tell() > _SHARD:
        close_shard(folder)
    if folder not in _SHARDS:
        _SHARDS[folder] = _Shard(folder)
    return _SHARDS[folder]


def close_shard(folder: Path) -> None:
    """End this process's own file of a store."""
    if folder in _SHARDS:
        _SHARDS.pop(folder).file.close()


@dataclass(frozen=True)
class _NoRoom:
    """Why arrays could not be written, which ends the preparation and not a row."""

    reason: str


def _written(folder: Path, recipe: Recipe, row: Wanted) -> Record | _NoRoom:
    """Prepare a row and write its arrays."""
    try:
        before = {column: seen(cell) for column, cell in row.files.items()}
        pieces = recipe.pieces(row.files, row.where)
        record = _recorded(_shard_or(folder), before, pieces)
        if isinstance(record, Record) and any(not source.same(seen(source.cell)) for source in before.values()):
            raise MedgenError(f"{row.where}: its files changed while they were read; prepare again when they are complete")
        return record
    except OSError as error:  # of the files: what the store itself has to say was taken before
        raise MedgenError(f"{error.filename or row.where}: {error.strerror or error}; copy or export it again") from error


def _shard_or(folder: Path) -> _Shard | _NoRoom:
    try:
        return _shard(folder)
    except OSError as error:
        return _NoRoom(str(error))


def _recorded(shard: _Shard | _NoRoom, sources: Mapping[str, Source], pieces: Iterator[Prepared]) -> Record | _NoRoom:
    if isinstance(shard, _NoRoom):
        return shard
    described = []
    for piece in pieces:
        try:
            described.append(_plain(piece, shard))
            shard.file.flush()
        except OSError as error:
            return _NoRoom(str(error))
    return Record({column: asdict(source.digested()) for column, source in sources.items()}, described)


def _plain(piece: Prepared, shard: _Shard) -> dict[str, Any]:
    arrays = {f"images/{name}": values for name, values in piece.images.items()}
    arrays |= {f"labels/{name}": values for name, values in piece.labels.items()}
    arrays |= {f"spots/{name}": values for name, values in piece.spots.items()}
    arrays |= {name: values for name, values in (("affines", piece.affines), ("kept", piece.kept)) if values is not None}
    return {
        "arrays": {name: shard.put(values) for name, values in arrays.items()},
        "ranges": piece.ranges,
        "spacing": piece.spacing,
        "volumetric": piece.volumetric,
        "cases": piece.cases,
    }


def _moved(folder: Path, record: Record) -> Record:
    """The record with its arrays copied into a new file."""
    rows = Rows(folder, [], [])
    pieces = []
    for piece in record.pieces:
        arrays = {name: _shard(folder).put(rows._array(*place)) for name, place in piece["arrays"].items()}
        pieces.append({**piece, "arrays": arrays})
    _shard(folder).file.flush()
    return Record(record.sources, pieces)


def _named(reason: str, row: Wanted) -> str:
    """With the files of the row, where the reason names none: a decoder that dies tells nothing."""
    if any(parted(cell)[0].name in reason for cell in row.files.values()):
        return reason
    return f"{row.where} ({', '.join(row.files.values())}): {reason}"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.bin"))


def _here(work: Callable[[Wanted], Record], rows: Sequence[Wanted]) -> Iterator[tuple[int, Record | Failure]]:
    for number, row in enumerate(rows):
        try:
            yield number, work(row)
        except MedgenError as error:
            yield number, Failure(str(error))


def _cells(files: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(files.items()))


def _synced(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
