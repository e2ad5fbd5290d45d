"""`medgen evaluate`: what a model is worth on the images of a manifest, as one page and one JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medgen.cli.loading import given, pretrained
from medgen.cli.progress import bars
from medgen.cli.rank import shared
from medgen.cli.zoo import read_report
from medgen.core.errors import MedgenError
from medgen.data.columns import read_columns
from medgen.data.manifest import Manifest
from medgen.evaluation.card import checks
from medgen.evaluation.document import PLAIN, document, free_paths, write
from medgen.evaluation.page import cautions, page
from medgen.evaluation.parts import chosen, measured, prepare
from medgen.evaluation.spaces import asked
from medgen.evaluation.work import Work
from medgen.training import ranks


@shared
def run(options: argparse.Namespace) -> None:
    """Ranks share the answers, or the samples; rank 0 measures and writes. What was made before an interruption is found again."""
    if options.checks:
        return _say_checks(options)
    with ranks.agreed():
        parts = chosen(options.parts)
        work = _work(options)
        work.rows  # noqa: B018  refuses a manifest that does not fit before anything is made
        paths = free_paths(options.output, overwrite=options.overwrite)
    if not ranks.rank() and any(work.kept.glob("*.np[yz]")):
        print(f"going on with what was made before: {work.kept}", flush=True)
    with bars() as told, ranks.agreed():
        work.make_all(lambda done, of: told("samples" if work.kind == "synthesis" else "answers", done, of))
        prepare(work, parts, told)
    ranks.wait()
    if ranks.rank():
        return
    with bars() as told:
        sections = measured(work, parts, told)
    report = document(work, sections)
    pictures = {f"{section.name}_{i}": figure.picture for section in sections for i, figure in enumerate(section.figures, 1)}
    write(report, page(report, sections), pictures, paths)
    volumes, subjects = report["data"]["volumes"], report["data"]["subjects"]
    print(f"images: {volumes}, subjects: {subjects}, split {work.split}")
    for line in cautions(report):
        print(f"beware: {line}")
    for section in sections:
        print(f"{section.title}: {section.verdict}")
    print(f"written: {paths[0]} and {paths[1]}; what the model made is kept in {work.kept}")
    if all(section.skipped for section in sections):
        raise MedgenError("no part could be measured; the page and the lines above say why")


def _work(options: argparse.Namespace) -> Work:
    manifest = Manifest.read(options.data)
    read_columns(manifest.path)  # refuses a description that cannot be read before anything is made
    if options.domain:
        manifest.require([options.domain])
    for said in options.features:
        asked(said, 2)  # refuses a file that cannot be used before anything is made
    labels, domain = _labels(options.labels), options.domain or ""
    return work_of(options, manifest, labels=labels, domain=domain, quick=options.quick, features=options.features)


def work_of(options: argparse.Namespace, manifest: Manifest, **more: Any) -> Work:
    """What `evaluate` and `benchmark` ask of a model alike."""
    return Work(
        pretrained(options),
        manifest,
        Path(options.output),
        split=options.split,
        seed=options.seed,
        draws=options.draws,
        samples=options.n,
        given=given(options),
        place=ranks.rank(),
        places=ranks.world(),
        **more,
    )


def _labels(said: list[str]) -> dict[str, int | dict[str, Any]]:
    """`--labels name=classes`, `name=0,255` (the stored number of class 0, 1, ...) or `name=binary`."""
    found: dict[str, int | dict[str, Any]] = {}
    for item in said:
        name, _, told = item.partition("=")
        numbers = told.split(",")
        if told == "binary":
            found[name] = {"binary": True}
        elif len(numbers) > 1 and all(number.isdecimal() for number in numbers):
            found[name] = {"values": [int(number) for number in numbers]}
        elif told.isdecimal() and int(told) >= 2:
            found[name] = int(told)
        else:
            expected = "NAME=CLASSES with at least 2 classes (0 is the background), NAME=0,255 or NAME=binary"
            raise MedgenError(f"--labels takes {expected}, got '{item}'")
    return found


def _say_checks(options: argparse.Namespace) -> None:
    """What a model card needs, and whether the report that is there has it; nothing is made.

    Raises:
        MedgenError: there is no report yet.
    """
    path = Path(options.output) / PLAIN
    with ranks.agreed():
        if not path.is_file():
            line = f"medgen evaluate {options.model} --data {options.data} -o {options.output} ..."
            raise MedgenError(f"--checks reads a report, and there is no {path} yet; the same line without --checks makes it: {line}")
        report = read_report(options.output)
    if ranks.rank():
        return
    print(f"{path}: {report['model']['name']} on {report['data']['manifest']}, split {report['data']['split']}")
    for check in checks(report):
        print(f"{'has  ' if check.there else 'LACKS'} {check.what}: {check.told}")
