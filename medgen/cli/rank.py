"""One process of several, started by `medgen.cli.launch` or by torchrun."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from medgen.cli.warned import as_sentences
from medgen.core.errors import MedgenError
from medgen.training import ranks

GONE = object()


def main() -> None:
    """Read the job, leave when the launcher does, train."""
    as_sentences()
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_follow, daemon=True).start()
    folder = Path(job["folder"])

    def work() -> int:
        from medgen.cli.run import start
        from medgen.training.state import read_training_state

        state = read_training_state(folder / "checkpoints") if job["resume"] else None
        return start(job["config"], folder, state)

    sys.exit(member(work, quiet=True))


def _follow() -> None:
    """The launcher keeps the other end of stdin; when it has gone, save and stop."""
    while os.read(0, 1024):  # not through sys.stdin, whose lock Python wants back at its end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def member(work: Callable[[], int], quiet: bool = False) -> int:
    """This process's part of a training: rank 0 does `work`, which hands jobs out, the others take them. Returns the exit status."""

    def part() -> int:
        if ranks.rank():
            return _serve()
        status = work()
        ranks.broadcast(None)
        return status

    return guarded(part, quiet)


def shared(command: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """A command of `medgen` that, where torchrun has started several, every process enters, and shares by `ranks.rank()`."""

    @wraps(command)
    def run(options: argparse.Namespace) -> None:
        if not ranks.launched():
            return command(options)
        sys.exit(guarded(lambda: command(options) or 0))

    return run


def guarded(part: Callable[[], int], quiet: bool = False) -> int:
    """Meet the other processes and do this one's part; what ends it is said once. Returns the exit status.

    Args:
        quiet: leave it to the launcher to say that a process was lost.
    """
    from medgen.cli.launch import INTERRUPTED, LOST, TOLD

    own = int(os.environ["RANK"])
    try:
        ranks.connect()
        status = part()
        ranks.wait()  # or one that leaves early takes the connections of the others with it
        return status
    except MedgenError as error:
        if not isinstance(error, ranks.Agreed):
            print(f"error: {'' if own == 0 else f'rank {own}: '}{error}", file=sys.stderr)
        elif own == 0:
            print(f"error: {error}", file=sys.stderr)
        return TOLD
    except KeyboardInterrupt:
        return INTERRUPTED
    except RuntimeError as error:
        if not ranks.lost(error):
            raise
        if not quiet:
            print(f"error: rank {own} lost the other processes of the run: one was killed or has failed", file=sys.stderr)
        return LOST
    finally:
        sys.stdout.flush()
        ranks.disconnect()


def _serve() -> int:
    """Train what rank 0 hands out, until it says that there is nothing more."""
    from medgen.cli.launch import LOST
    from medgen.cli.run import train

    status = 0
    while (job := _next_job()) is not None:
        if job is GONE:
            sys.exit(LOST)
        status = max(status, train(*job))
    return status


def _next_job() -> Any:
    """What rank 0 hands out: a job, None at the end, or GONE where rank 0 went instead, which has said why."""
    try:
        return ranks.broadcast(None)
    except RuntimeError as error:
        if not ranks.lost(error):
            raise
        return GONE
