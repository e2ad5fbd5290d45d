"""Warnings on the command line."""

from __future__ import annotations

import sys
import warnings

from medgen.core.errors import MedgenWarning


def as_sentences() -> None:
    """From now on medgen's own warnings are a line each; others are printed as Python does."""
    warnings.showwarning = _shown


def _shown(message: Warning | str, category: type[Warning], *place: object) -> None:
    own = issubclass(category, MedgenWarning)
    text = f"warning: {message}\n" if own else warnings.formatwarning(message, category, *place[:2])
    print(text, end="", file=sys.stderr)
