"""One process at a time."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medgen.core.errors import MedgenError


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends, however it ends."""
    import fcntl

    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the process that is filling {lock.parent}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            remedy = "put data.source.options.keep.folder (or latents.cache) on a local disk"
            raise MedgenError(
                f"{lock.parent}: this file system has no locks, without which two processes may spoil it; {remedy}"
            ) from error
        yield
