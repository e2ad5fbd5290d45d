"""Names of the slices beside a slice, for networks that see a few at once (2.5D): `t1_m1` lies one before `t1`, `t1_p2` two after."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAME = re.compile(r"(?P<base>.+)_(?P<side>[mp])(?P<steps>[1-9][0-9]?)")


def neighbour(name: str) -> tuple[str, int]:
    """The channel that a name belongs to, and how many slices away; 0 for the channel itself."""
    found = _NAME.fullmatch(name)
    if found is None:
        return name, 0
    steps = int(found["steps"])
    return found["base"], steps if found["side"] == "p" else -steps


def neighbours(channels: Iterable[str], reach: int) -> dict[str, tuple[str, int]]:
    """name -> (channel, slices away) of all channels and of their neighbours up to `reach` slices away."""
    sides = [("m", -1), ("p", 1)]
    named = {f"{c}_{side}{n}": (c, sign * n) for c in channels for n in range(1, reach + 1) for side, sign in sides}
    return {**{c: (c, 0) for c in channels}, **named}
