"""What medgen says when it cannot go on: one sentence with what was expected, what was found and the remedy."""

import difflib
from collections.abc import Iterable


class MedgenError(ValueError):
    """A problem the user can mend. The command line prints it without a traceback."""


class MedgenWarning(UserWarning):
    """What looks wrong and is done nevertheless. The command line prints it as a line."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?` followed by all choices; for a name that is not among them."""
    known = sorted(map(str, choices))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(known) if known else 'none'}"
