"""Channels that are planes of one file: the colours of a picture, the frames of a series, the channels of a stack."""

from __future__ import annotations

from collections.abc import Collection

from medgen.core.colours import colour_of


def plane_of(channel: str, columns: Collection[str]) -> tuple[str, int | None]:
    """The manifest's column of a channel, and the plane of its files (None: the only one).

    `<column>_red`, `_green` and `_blue` are the planes of a colour picture; `<column>_<number>` is any plane, from 0. A column of
    exactly that name goes first.
    """
    if channel in columns:
        return channel, None
    column, _, number = channel.rpartition("_")
    if column in columns:
        colour = colour_of(channel)
        if colour is not None:
            return column, colour
        if number.isascii() and number.isdigit():
            return column, int(number)
    return channel, None
