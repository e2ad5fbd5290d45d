"""A folder of DICOM: a row per series, whatever folders its files lie in."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from medgen.core.errors import MedgenError
from medgen.data.columns import MODALITY_OF, Column
from medgen.data.scan.layout import Layout, Match, Table, Tree, shortened

_ENDINGS = (".dcm", ".dicom", ".ima")
_SNIFFED = 5  # files without an ending that are opened to see whether they are DICOM
_SCOUT = ("localizer", "localiser", "scout", "topogram", "surview", "survey")


def fits(tree: Tree) -> Match | None:
    named = [file for file in tree.files if file.lower().endswith(_ENDINGS)]
    if named:
        return Match(2, f"{len(named)} files such as {named[0]}", len(named))
    bare = [file for file in tree.files if _is_bare(file)]
    found = [file for file in bare[:_SNIFFED] if _is_dicom(tree.root / file)]
    return Match(2, f"{len(bare)} files without an ending, and {found[0]} is DICOM", len(bare)) if found else None


def read(tree: Tree) -> Table:
    from medgen.data.formats.dicom_series import series_in

    table = Table([], {"image": Column("image")})
    table.left_out = {file: "no DICOM" for file in tree.images if not (file.lower().endswith(_ENDINGS) or _is_bare(file))}
    unnamed, odd, scouts = [], [], []
    for series in series_in(tree.root, recursive=True):
        folder = _relative(Path(series.folder), tree.root)
        if not series.patient:
            unnamed.append(folder)
        subject = series.patient or PurePosixPath(folder).parts[0] if folder != "." else series.patient or "unnamed"
        parts = [series.part] if len(series.shapes) < 2 else [f"{series.part}:{k}" for k in range(len(series.shapes))]
        for part in parts:
            row = {"subject": subject, "image": f"{folder}#{part}", "modality": series.modality, "description": series.description}
            table.rows.append({**row, "study": series.study, "series": series.uid})
        strange = [text for text in series.findings if not getattr(text, "note", False)]
        if strange:
            odd.append(f"{subject}, series {series.number}: {strange[0]}")
        if any(word in series.description.lower() for word in _SCOUT):
            scouts.append(subject)
    if not table.rows:
        raise MedgenError(f"{tree.root}: no DICOM series with images could be read in it")
    kinds = {row["modality"] for row in table.rows}
    known = MODALITY_OF.get(kinds.pop()) if len(kinds) == 1 else None
    table.columns = {"image": Column("image", known)}
    table.code(["modality"])
    table.columns.update({name: Column("text") for name in ("description", "study", "series")})
    _tell(table, unnamed, odd, scouts)
    return table


def _tell(table: Table, unnamed: list[str], odd: list[str], scouts: list[str]) -> None:
    counts: dict[str, int] = {}
    for row in table.rows:
        counts[row["subject"]] = counts.get(row["subject"], 0) + 1
    several = [subject for subject, n in counts.items() if n > 1]
    if several:
        table.of_rows.append(
            f"{len(several)} of {len(counts)} patients have several series ({shortened(several)}): one row each, under one subject"
        )
    if unnamed:
        table.notes.append(f"{len(unnamed)} series have no patient id ({shortened(unnamed)}): their folder is taken as the subject")
    if scouts:
        table.notes.append(f"{len(scouts)} series look like localizers by their description ({shortened(scouts)}): leave these rows out")
    if odd:
        table.notes.append(f"{len(odd)} series have something odd, the first: {odd[0]}; `medgen data check` lists all")
    if len(table.columns["modality"].classes) > 1:
        remedy = "keep the rows of one (column modality) before training, or give each a column by --columns-by modality"
        table.of_rows.append(f"there are several modalities: {remedy}")
    mixed = _mixed(table)
    if mixed:
        told = f"{len(mixed)} studies hold series of different descriptions ({shortened(list(dict.fromkeys(mixed.values())))})"
        table.of_rows.append(f"{told}: where these are contrasts, --columns-by description puts them side by side")


def _mixed(table: Table) -> dict[tuple[str, str], str]:
    """(subject, study) -> the descriptions of its series, where there are several."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in table.rows:
        found.setdefault((row["subject"], row["study"]), []).append(row["description"])
    return {study: " and ".join(sorted(set(words))) for study, words in found.items() if len(set(words) - {""}) > 1}


def _is_bare(file: str) -> bool:
    """Whether a file has no ending, or a number for one."""
    ending = PurePosixPath(file).suffix
    return not ending or ending[1:].isdigit()


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _relative(folder: Path, root: Path) -> str:
    return folder.resolve().relative_to(root.resolve()).as_posix() if folder.resolve().is_relative_to(root.resolve()) else folder.as_posix()


LAYOUT = Layout("dicom", "a folder of DICOM, a row per series", fits, read)
