"""`medgen data check`: a report on a manifest. Status 0 without errors in the data, 1 with."""

from __future__ import annotations

import argparse
import sys

from medgen.cli.progress import bars
from medgen.core.errors import MedgenError
from medgen.data.check.checker import Checked, check
from medgen.data.check.document import document, headline
from medgen.data.check.report import as_json, paths, write

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def run(options: argparse.Namespace) -> None:
    """Write report.html and report.json and print the findings, or print the JSON alone; end with status 1 if any is an error."""
    if not options.json:
        paths(options.output, options.overwrite)  # before an hour of reading
    with bars() as progress:
        checked = check(options.manifest, _said(options.column), options.workers, progress)
        written = None if options.json else write(checked, options.output, options.overwrite, options.workers or 1, progress)
    if written is None:
        print(as_json(document(checked)), end="")
    else:
        _show(checked)
        print(f"{headline(checked)}\nreport: {written[0]}")
    if not checked.fit:
        sys.exit(1)


def _said(declared: list[str]) -> dict[str, str]:
    for text in declared:
        if "=" not in text:
            raise MedgenError(f"--column {text}: expected NAME=KIND, such as ct=CT or note=text")
    return dict(text.split("=", 1) for text in declared)


def _show(checked: Checked) -> None:
    """The worst first; a tab-separated line each where nobody looks."""
    if not sys.stdout.isatty():
        for finding in checked.findings:
            print("\t".join((finding.severity, finding.code, finding.found, finding.remedy)))
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for finding in checked.findings:
        style = STYLES[finding.severity]
        console.print(f"[{style}]{finding.severity}[/] {escape(finding.found)}\n  [dim]-> {escape(finding.remedy)}[/]")
