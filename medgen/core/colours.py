"""Names of the three colours of a picture: `image_red`, `image_green`, `image_blue`."""

from __future__ import annotations

from collections.abc import Sequence

ENDINGS = ("_red", "_green", "_blue")


def colour_of(channel: str) -> int | None:
    """0 to 2 for red, green and blue; None for any other channel."""
    return next((number for number, ending in enumerate(ENDINGS) if channel.endswith(ending)), None)


def coloured(channels: Sequence[str]) -> bool:
    """Whether channels are the three colours of a picture, in order."""
    return [colour_of(channel) for channel in channels] == [0, 1, 2]
