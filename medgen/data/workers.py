"""A function over many files in processes of their own: a decoder's crash, hang or hunger costs one file, not the run."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from medgen.core.errors import MedgenError

GIB = 1 << 30
_START = 300.0  # seconds that Python may take to start on a busy machine
_NOTHING = object()


@dataclass(frozen=True)
class Failure:
    """Why there is no result for an item, in one sentence."""

    reason: str


@dataclass(frozen=True)
class Limits:
    """What one call may take.

    Attributes:
        seconds: of wall time.
        memory: bytes beyond what the worker needs itself (where the system can limit it: Linux).
    """

    seconds: float = 300.0
    memory: int | None = 4 * GIB


def each(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int = 1, limits: Limits | None = None
) -> Iterator[tuple[int, Any | Failure]]:
    """(place, result) of every item in the order in which they are done; a `Failure` where the function refused its item (`MedgenError`),
    took too long or too much, or its process died.

    Args:
        function: importable by name; it and its items and results are pickled.

    Raises:
        RuntimeError: the function raised anything else, which is a fault of the function and not of its item.
    """
    limits, queue = limits or Limits(), enumerate(items)
    pool: list[_Worker] = []
    try:
        while True:
            free = [worker for worker in pool if worker.place is None]
            while free or len([worker for worker in pool if worker.alive]) < workers:
                following = next(queue, None)
                if following is None:
                    break
                worker = free.pop() if free else None
                if worker is None or not worker.send(*following):
                    worker = _Worker(function, limits)
                    pool.append(worker)
                    worker.send(*following)
            busy = [worker for worker in pool if worker.place is not None]
            if not busy:
                return
            patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            ready = wait([worker.connection for worker in busy], patience)
            for worker in busy:
                place, heard = worker.place, worker.connection in ready
                result = worker.receive(heard) if heard or time.monotonic() > worker.deadline else _NOTHING
                if result is not _NOTHING:
                    yield place, result
            pool = [worker for worker in pool if worker.alive]
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """One process, which is told one item at a time."""

    def __init__(self, function: Callable[[Any], Any], limits: Limits):
        self.limits, self.place, self.deadline = limits, None, 0.0
        self.started, self.alive = False, True
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs_in), str(theirs_out)],
            pass_fds=(theirs_in, theirs_out),
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.connection, self.out = Connection(ours_in, writable=False), Connection(ours_out, readable=False)
        self.out.send_bytes(pickle.dumps((function, limits)))

    def send(self, place: int, item: Any) -> bool:
        """Whether the item is on its way: an idle process may have died of what it read last."""
        self.place, self.deadline = place, time.monotonic() + (self.limits.seconds if self.started else _START)
        try:
            self.out.send_bytes(pickle.dumps(item))
        except BrokenPipeError:
            self.place = None
            self.end()
        return self.alive

    def receive(self, heard: bool) -> Any:
        """The item's result; `_NOTHING` yet where the process only says that it has started."""
        if not heard:
            self.end()
            remedy = "the file is damaged, or give it more time (options.keep.seconds)"
            return Failure(f"took longer than {self.limits.seconds:g} s and was stopped; {remedy}")
        try:
            kind, value = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionError):
            self.process.wait()
            self.end()
            if not self.started:
                raise RuntimeError(f"a worker process could not start ({_ending(self.process.returncode)})") from None
            return Failure(f"its decoder ended the process ({_ending(self.process.returncode)}); the file is damaged")
        if kind == "started":
            self.started, self.deadline = True, time.monotonic() + self.limits.seconds
            return _NOTHING
        self.place = None
        if kind == "fault":
            raise RuntimeError(value)
        return Failure(value) if kind == "refused" else value

    def end(self) -> None:
        self.alive = False
        self.connection.close()
        self.out.close()
        self.process.kill()
        self.process.wait()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"


def _serve(received: Connection, sent: Connection) -> None:
    """The worker's side: function and limits first, then item after item until the pipe closes."""
    function, limits = pickle.loads(received.recv_bytes())
    if limits.memory is not None:
        _hold(limits.memory)
    sent.send_bytes(pickle.dumps(("started", None)))
    while True:
        try:
            item = pickle.loads(received.recv_bytes())
        except EOFError:
            return
        sent.send_bytes(pickle.dumps(_answer(function, item, limits)))


def _answer(function: Callable[[Any], Any], item: Any, limits: Limits) -> tuple[str, Any]:
    try:
        return "done", function(item)
    except MedgenError as error:
        return "refused", str(error)
    except MemoryError:
        return "refused", f"needs more than {(limits.memory or 0) / GIB:.3g} GiB of memory (options.keep.memory)"
    except Exception:
        return "fault", traceback.format_exc()


def _hold(memory: int) -> None:
    """Let this process take `memory` bytes more of its own; files that it maps to read do not count."""
    try:
        import resource

        with open("/proc/self/status") as file:
            now = next(int(line.split()[1]) for line in file if line.startswith("VmData")) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (now + memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    except (ImportError, OSError, ValueError, StopIteration):
        return  # no such limit on this system


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False))
