"""Check a manifest: read every file once in worker processes, then judge the summaries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medgen.core.errors import MedgenError
from medgen.data.check import duplicates, rules_images, rules_rows, rules_table
from medgen.data.check.facts import Job, Row, summarise
from medgen.data.check.finding import ERROR, SEVERITIES, Data, Finding
from medgen.data.columns import FILES, columns_of
from medgen.data.manifest import Manifest
from medgen.data.workers import Failure, each

Progress = Callable[[str, int, int], None]  # what, done, of


@dataclass(frozen=True)
class Checked:
    """A checked data set; `findings` are the worst first."""

    data: Data
    findings: tuple[Finding, ...] = field(default=())

    @property
    def fit(self) -> bool:
        """Whether nothing was found that is an error."""
        return not any(finding.severity == ERROR for finding in self.findings)


def check(path: str | Path, said: Mapping[str, str] | None = None, workers: int | None = None, progress: Progress | None = None) -> Checked:
    """Read and judge every row of a manifest. A file that cannot be read is a finding, and the others go on.

    Args:
        said: column -> kind or modality, over what the JSON beside the manifest says and what names suggest.
        workers: processes; by default as many as there are processors, at most 8.
        progress: is told how far each stage is.

    Raises:
        MedgenError: the manifest itself cannot be read, has no rows or no column 'subject'; `said` names no column or no kind.
    """
    manifest = Manifest.parse(path)
    if "subject" not in manifest.columns or not manifest.rows or len(set(manifest.columns)) < len(manifest.columns):
        Manifest.read(path)  # says why
    data = Data(manifest, columns_of(manifest, said or {}))
    workers = workers or max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
    data.rows = _read(data, workers, progress or _silent)
    alike = _alike(data, workers, progress or _silent)
    findings = [*rules_table.leaks(data), *duplicates.exact(data), *duplicates.near(data, alike), *duplicates.unsearched(data)]
    findings += [*rules_rows.rules(data), *rules_images.rules(data), *rules_table.rules(data)]
    return Checked(data, tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))))


def source(data: Data, row: int, column: str) -> str:
    """What the readers take for a cell.

    Raises:
        MedgenError: the manifest refuses the path.
    """
    return str(data.manifest.file(data.manifest.rows[row], column))


def _job(data: Data, row: int, facts: Row) -> Job:
    """The files of a row; cells that the manifest refuses are failures."""
    files = []
    for name in data.of(*FILES):
        if not data.manifest.rows[row][name]:
            continue
        try:
            files.append((name, source(data, row, name), data.columns[name].kind))
        except MedgenError as error:
            facts.failures[name] = str(error)
    return Job(tuple(files))


def _read(data: Data, workers: int, progress: Progress) -> list[Row]:
    """The summary of every row; one whose process died is read again file by file, to know which it was."""
    rows = [Row() for _ in data.manifest.rows]
    jobs = [_job(data, i, row) for i, row in enumerate(rows)]
    again: list[tuple[int, tuple[str, str, str]]] = []
    for place, result in _counted("reading", each(summarise, jobs, workers), len(jobs), progress):
        if not isinstance(result, Failure):
            rows[place] = replace(result, failures={**rows[place].failures, **result.failures})
        elif len(jobs[place].files) == 1:
            rows[place].failures[jobs[place].files[0][0]] = result.reason
        else:
            again += [(place, file) for file in jobs[place].files]
    single = [Job((file,)) for _, file in again]
    for k, result in _counted("reading again", each(summarise, single, workers), len(single), progress):
        place, (column, _, _) = again[k]
        if isinstance(result, Failure):
            rows[place].failures[column] = result.reason
        else:
            rows[place].images.update(result.images)
            rows[place].failures.update(result.failures)
    return rows


def _alike(data: Data, workers: int, progress: Progress) -> list[tuple[duplicates.Candidate, float]]:
    found: list[duplicates.Candidate] = []
    for name in data.of("image"):
        sources = {i: source(data, i, name) for i, _ in data.images(name)}
        found += duplicates.candidates(data, name, sources)
    results = _counted("comparing", each(duplicates.confirm, found, workers), len(found), progress)
    return sorted(((found[k], result) for k, result in results if not isinstance(result, Failure)), key=lambda pair: -pair[1])


def _counted(what: str, results: Iterable[tuple[int, Any]], total: int, progress: Progress) -> Iterator[tuple[int, Any]]:
    for done, result in enumerate(results, 1):
        progress(what, done, total)
        yield result


def _silent(what: str, done: int, total: int) -> None:
    return None
