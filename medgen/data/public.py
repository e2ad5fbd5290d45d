"""Public sets: where they are, under which licence, and how they are fetched where that is allowed without an account."""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from medgen.core.errors import MedgenError, nearest
from medgen.core.volume import folder_for


@dataclass(frozen=True)
class Archive:
    """A file of a set.

    Attributes:
        url: where it is.
        name: what it is called here.
        md5: its checksum as published, or None.
        folder: what an archive unpacks to, under the target; None for a file that stays as it is.
        based: whether the archive holds that folder itself.
    """

    url: str
    name: str
    md5: str | None
    folder: str | None = None
    based: bool = True


@dataclass(frozen=True)
class PublicSet:
    """A set that `medgen data get` knows.

    Attributes:
        about: a line.
        licence: as its authors say it.
        home: page to read before use.
        archives: its files; none where an account is needed.
        config: the file in configs/data that fits.
        register: what to do to get it, where it cannot be fetched.
    """

    about: str
    licence: str
    home: str
    config: str
    archives: tuple[Archive, ...] = ()
    register: str = ""


_MEDMNIST = "https://zenodo.org/record/6496656/files"
_IXI = "http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI"
_KATHER = "https://zenodo.org/records/1214456/files"

MEDMNIST = {  # checksums that the authors publish for the 28-pixel files
    "pathmnist": "a8b06965200029087d5bd730944a56c1",
    "chestmnist": "02c8a6516a18b556561a56cbdd36c4a8",
    "dermamnist": "0744692d530f8e62ec473284d019b0c7",
    "octmnist": "c68d92d5b585d8d81f7112f81e2d0842",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
    "retinamnist": "bd4c0672f1bba3e3a89f0e4e876791e4",
    "breastmnist": "750601b1f35ba3300ea97c75c52ff8f6",
    "bloodmnist": "7053d0359d879ad8a5505303e11de1dc",
    "tissuemnist": "ebe78ee8b05294063de985d821c1c34b",
    "organamnist": "866b832ed4eeba67bfb9edee1d5544e6",
    "organcmnist": "0afa5834fb105f7705a7d93372119a21",
    "organsmnist": "e5c39f1af030238290b9557d9503af9d",
    "organmnist3d": "21f0a239e7f502e6eca33c3fc453c0b6",
    "nodulemnist3d": "8755a7e9e05a4d9ce80a24c3e7a256f3",
    "adrenalmnist3d": "bbd3c5a5576322bc4cdfea780653b1ce",
    "fracturemnist3d": "6aa7b0143a6b42da40027a9dda61302f",
    "vesselmnist3d": "2ba5b80617d705141f3f85627108fce8",
    "synapsemnist3d": "1235b78a3cd6280881dd7850a78eadb6",
}
IXI = {  # checksums that TorchIO publishes
    "T1": "34901a0593b41dd19c1a1f746eac2d58",
    "T2": "e3140d78730ecdd32ba92da48c0a9aaa",
    "PD": "88ecd9d1fa33cb4a2278183b42ffd749",
    "MRA": "29be7d2fee3998f978a55a9bdaf3407e",
}


def sets() -> dict[str, PublicSet]:
    """Every set by the name that `medgen data get` takes."""
    from monai.apps import DecathlonDataset

    found = {}
    for task, url in DecathlonDataset.resource.items():
        archive = Archive(url, f"{task}.tar", DecathlonDataset.md5[task], task)
        about = f"Medical Segmentation Decathlon, {task.split('_')[1]}"
        found[task] = PublicSet(about, "CC BY-SA 4.0", "http://medicaldecathlon.com", "decathlon", (archive,))
    for name, md5 in MEDMNIST.items():
        licence = "CC BY-NC 4.0" if name == "dermamnist" else "CC BY 4.0"
        archive = Archive(f"{_MEDMNIST}/{name}.npz?download=1", f"{name}.npz", md5)
        found[name] = PublicSet(
            f"MedMNIST, {'28 x 28 x 28 voxels' if name.endswith('3d') else '28 x 28 pixels'}",
            licence,
            "https://medmnist.com",
            "medmnist",
            (archive,),
        )
    for part, md5 in IXI.items():
        archive = Archive(f"{_IXI}/IXI-{part}.tar", f"IXI-{part}.tar", md5, f"IXI-{part}", based=False)
        found[f"ixi_{part.lower()}"] = PublicSet(
            f"IXI, {part} of nearly 600 healthy heads", "CC BY-SA 3.0", "https://brain-development.org/ixi-dataset", "ixi", (archive,)
        )
    for name in ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K"):
        archive = Archive(f"{_KATHER}/{name}.zip?download=1", f"{name}.zip", None, name)
        found[name.lower().replace("-", "_")] = PublicSet(
            "stained tiles of colorectal tissue in nine classes", "CC BY 4.0", "https://zenodo.org/records/1214456", "nct_crc", (archive,)
        )
    found["brats"] = PublicSet(
        "brain tumours in T1, contrast-enhanced T1, T2, FLAIR with segmentations",
        "by the challenge's data use terms",
        "https://www.synapse.org/brats",
        "brats",
        register="make an account at synapse.org, join the challenge's page, accept its terms and download the training data there",
    )
    found["fastmri"] = PublicSet(
        "raw k-space of knees, brains and prostates",
        "by the fastMRI data sharing agreement",
        "https://fastmri.med.nyu.edu",
        "fastmri",
        register="ask for it with the form at fastmri.med.nyu.edu; the links come by mail",
    )
    return found


def fetch(name: str, folder: str | Path) -> tuple[PublicSet, list[Path]]:
    """Download a set into `folder`, check its checksums where there are some, and unpack it. What is there already is kept.

    Returns:
        The set, and the files or folders that it now consists of.

    Raises:
        MedgenError: no such set, one that needs an account, no network, a damaged download.
    """
    known = sets()
    if name not in known:
        raise MedgenError(f"no public set '{name}'; {nearest(name, known)}")
    chosen = known[name]
    if not chosen.archives:
        raise MedgenError(
            f"{name} ({chosen.licence}) cannot be fetched without an account: {chosen.register}; then see configs/data/{chosen.config}.yaml"
        )
    folder = folder_for(Path(folder))
    return chosen, [_fetched(archive, folder) for archive in chosen.archives]


def _fetched(archive: Archive, folder: Path) -> Path:
    from monai.apps import download_url
    from monai.apps.utils import HashCheckError

    path, target = folder / archive.name, folder / (archive.folder or archive.name)
    if archive.folder is not None and target.is_dir():
        return target
    logging.getLogger("monai.apps").setLevel(logging.CRITICAL)  # the same is said below, once
    try:
        download_url(archive.url, path, hash_val=archive.md5, hash_type="md5", progress=sys.stderr.isatty())
    except HashCheckError as error:
        raise MedgenError(
            f"{path}: its checksum is not the published one, so it is damaged or incomplete; delete it and fetch it again"
        ) from error
    except (OSError, RuntimeError) as error:  # OSError: all that urllib raises without a network
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise MedgenError(
            f"cannot fetch {archive.url} ({said}); check the network, or download it elsewhere to {path} and run this again"
        ) from error
    if archive.folder is not None:
        _unpack(archive, path, target)
    return target


def _unpack(archive: Archive, path: Path, target: Path) -> None:
    """The archive's content at `target`, whole or not at all."""
    from monai.apps import extractall

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        extractall(path, partial, has_base=False)
        (partial / target.name if archive.based else partial).rename(target)
    except Exception as error:  # tarfile and zipfile have an exception for everything
        raise MedgenError(f"{path}: cannot be unpacked ({error}); delete it and fetch it again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
