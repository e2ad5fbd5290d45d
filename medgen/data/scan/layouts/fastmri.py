"""fastMRI: folders such as multicoil_train of .h5 files, one scan each."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from medgen.core.errors import MedgenError
from medgen.data.columns import Column
from medgen.data.scan.layout import SPLITS, Layout, Match, Table, Tree, shortened

_FOLDER = re.compile(r"(single|multi)coil_(train|val|test)\w*")


def fits(tree: Tree) -> Match | None:
    files = _files(tree)
    if not files:
        return None
    named = sorted({part for file in files for part in PurePosixPath(file).parts[:-1] if _FOLDER.fullmatch(part)})
    if named:
        return Match(2, f"{len(files)} .h5 files in folders such as {named[0]}")
    return Match(1, f"{len(files)} .h5 files, taken as one fastMRI scan each")


def read(tree: Tree) -> Table:
    from medgen.data.formats.format import MissingLibrary
    from medgen.data.formats.kspace import NoKSpace, read_kspace

    table = Table(
        [], {"image": Column("image", "MR", about="the stored reconstruction, else the root sum of squares of the k-space in the file")}
    )
    unread = []
    for file in _files(tree):
        row = {"subject": PurePosixPath(file).stem, "image": file}
        for part in PurePosixPath(file).parts[:-1]:
            match = _FOLDER.fullmatch(part)
            if split := SPLITS.get(match[2] if match else part.lower()):
                row["split"] = split
        try:
            told = read_kspace(tree.root / file).header
        except MissingLibrary:
            raise
        except NoKSpace as error:
            table.left_out[file] = str(error).partition(": ")[2]
            continue
        except MedgenError as error:
            unread.append(file)
            table.notes[:] = table.notes or [f"a header could not be read, so its patient and acquisition are not known: {error}"]
            told = {}
        row["subject"] = str(told.get("patient_id") or row["subject"])
        row["scan"] = PurePosixPath(file).stem
        if told.get("acquisition"):
            row["acquisition"] = str(told["acquisition"])
        table.rows.append(row)
    if not table.rows:
        raise MedgenError(
            f"{tree.root}: none of its {len(table.left_out)} .h5 files holds fastMRI's 'kspace'; give the folder of the images"
        )
    if unread:
        table.notes.append(f"{len(unread)} headers could not be read ({shortened(unread)})")
    _finish(table)
    return table


def _files(tree: Tree) -> list[str]:
    return [file for file in tree.files if file.lower().endswith((".h5", ".hdf5"))]


def _finish(table: Table) -> None:
    table.columns["scan"] = Column("text")
    if any("acquisition" in row for row in table.rows):
        table.code(["acquisition"])
    splits = {row.get("split") for row in table.rows}
    if splits != {None}:
        for row in table.rows:
            row.setdefault("split", "train")
    several = len(table.rows) - len({row["subject"] for row in table.rows})
    if several:
        table.notes.append(f"{several} files are further scans of a patient who has one already: they share a subject")


LAYOUT = Layout("fastmri", "fastMRI: folders of .h5 k-space, a row per file", fits, read)
