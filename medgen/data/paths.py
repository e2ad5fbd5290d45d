"""Files that other files name."""

from __future__ import annotations

import os
from pathlib import Path


def leaves(folder: Path, name: str) -> bool:
    """Whether `name`, as a file in `folder` would say it, is somewhere else: an absolute path to another folder, or too many `..`.

    Links are not followed: those in the folder were put there by its owner, and data are often linked into place.
    """
    top = os.path.abspath(folder)
    return not Path(os.path.abspath(os.path.join(top, name))).is_relative_to(top)
