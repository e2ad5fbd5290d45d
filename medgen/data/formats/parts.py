"""The part of a cell: settings after `#`, such as `mpp=1&y=0&x=512&size=256`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from medgen.core.errors import MedgenError, nearest


def settings(path: Path, part: str | None, known: Collection[str]) -> dict[str, str]:
    """Names and values of a part; a name without `=` has the value "".

    Raises:
        MedgenError: a name that is not in `known`, or one that is given twice.
    """
    found: dict[str, str] = {}
    for item in (part or "").split("&") if part else []:
        name, _, value = item.partition("=")
        if name not in known:
            raise MedgenError(f"{path}: no part '{name}' in '#{part}'; {nearest(name, known)}")
        if name in found:
            raise MedgenError(f"{path}: '#{part}' gives '{name}' twice; give it once")
        found[name] = value
    return found


def whole(path: Path, name: str, text: str) -> int:
    """A number of at least 0.

    Raises:
        MedgenError: anything else.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise MedgenError(f"{path}: '{name}' takes a whole number of at least 0, found '{text}'")
    return int(text)
