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
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medgen.core.errors import MedgenError
from medgen.data.cases import Prepared
from medgen.data.index import Index, Record, Rows
from medgen.data.lock import alone
from medgen.data.readers import parted
from medgen.data.recipe import Recipe
from medgen.data.shards import Shard, close_shard, shard_of
from medgen.data.sources import Source, seen
from medgen.data.workers import Failure, Limits, each

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


class Store:
    """The prepared rows of one recipe.

    Args:
        folder: that may hold the stores of other recipes too.
    """

    def __init__(self, folder: Path, recipe: Recipe):
        self.recipe = recipe
        facts = json.dumps(recipe.facts(), sort_keys=True)
        self.folder = folder / hashlib.sha256(facts.encode()).hexdigest()[:16]

    def rows(
        self, wanted: Sequence[Wanted], workers: int = 0, progress: Progress | None = None, limits: Limits | None = None
    ) -> tuple[Rows, dict[int, str]]:
        """The rows that could be prepared, in order, and why others (by place) could not. What is missing, or whose files have changed,
        is prepared now; other processes that want the same store wait for it.

        Args:
            workers: processes that prepare; 0 is this one, which a decoder's crash would end.
            progress: is told (done, of).
            limits: of a worker for one row.

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
                numbers, failures = self._complete(index, wanted, workers, progress, limits)
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
        self, index: Index, wanted: Sequence[Wanted], workers: int, progress: Progress | None, limits: Limits | None
    ) -> tuple[list[int | None], dict[int, str]]:
        """The line of each row, None where it could not be prepared, and why."""
        numbers, failures = [index.record(row.files) for row in wanted], {}
        missing = [place for place, number in enumerate(numbers) if number is None]
        work, rows = partial(_written, self.folder, self.recipe), [wanted[place] for place in missing]
        added: list[int] = []
        try:
            for done, (number, result) in enumerate(each(work, rows, workers, limits) if workers else _here(work, rows), 1):
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
        for line, place in zip(index.added, added, strict=True):
            numbers[place] = line
        return numbers, failures


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


def _shard_or(folder: Path) -> Shard | _NoRoom:
    try:
        return shard_of(folder)
    except OSError as error:
        return _NoRoom(str(error))


def _recorded(shard: Shard | _NoRoom, sources: Mapping[str, Source], pieces: Iterator[Prepared]) -> Record | _NoRoom:
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


def _plain(piece: Prepared, shard: Shard) -> dict[str, Any]:
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
        arrays = {name: shard_of(folder).put(rows.array(*place)) for name, place in piece["arrays"].items()}
        pieces.append({**piece, "arrays": arrays})
    shard_of(folder).file.flush()
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
