"""Bars on a terminal's standard error for what takes long, and a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 20.0  # seconds between lines


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage: the function within takes what is done, how much of it is, and how much there is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, int] = {}
        said = time.monotonic()

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)
            nonlocal said
            if bars.disable and time.monotonic() - said > EVERY:
                said = time.monotonic()
                print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

        yield told
