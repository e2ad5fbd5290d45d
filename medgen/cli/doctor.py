"""`medgen doctor`: is this machine fit for training, and does an experiment fit into it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from medgen.cli.machine import FAIL, Finding, findings, this_machine
from medgen.core.errors import MedgenError

STYLES = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}


def run(options: argparse.Namespace) -> None:
    """Print the table; status 1 if anything fails."""
    overrides = [*(options.plan or ()), *options.overrides]
    _check(overrides)
    machine, plan, found = this_machine(), None, []
    if overrides or options.plan is not None:
        from medgen.cli.plan import lines, plan_of

        plan = plan_of(overrides)  # first, so that nothing else is in memory when the libraries are weighed
        found = lines(plan, machine)
    if options.plan is None:
        found = [*findings(machine), *_checks(), *found]
    if options.json:
        status = FAIL if any(f.status == FAIL for f in found) else "OK"
        document = {"status": status, "findings": [asdict(f) for f in found], "plan": plan.to_dict() if plan else None}
        print(json.dumps(document, indent=2))
    else:
        show(found)
    if any(f.status == FAIL for f in found):
        sys.exit(1)


def _check(overrides: Sequence[str]) -> None:
    for override in overrides:
        if "=" not in override:
            raise MedgenError(f"'{override}' is not an override: give group=choice or key=value, such as experiment=demo")


def _checks() -> list[Finding]:
    import torch

    from medgen.cli.precision import checks

    return list(checks("cuda" if torch.cuda.is_available() else "cpu"))


def show(found: Sequence[Finding]) -> None:
    """A table on a terminal; elsewhere one tab-separated line per finding, for grep and cut."""
    if not sys.stdout.isatty():
        for f in found:
            print("\t".join((f.status, f.group, f.name.strip(), f.value, *([f.remedy] if f.remedy else []))))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", "", "", ""):
        table.add_column(title, overflow="fold")
    group = ""
    for f in found:
        text = f"{f.value}\n-> {f.remedy}" if f.remedy else f.value
        table.add_row(f.group if f.group != group else "", f.name, f"[{STYLES[f.status]}]{f.status}[/]", text)
        group = f.group
    Console().print(table)
