"""Where pretrained models are: run folders, checkpoint folders, named zoo folders, the hub."""

from __future__ import annotations

import os
from pathlib import Path

from medgen.core.errors import MedgenError, nearest

FILES = ("model.safetensors", "contract.json", "card.md")


def find(name: str | Path) -> Path:
    """The checkpoint folder that a name, path or hub address stands for."""
    text = str(name)
    if text.startswith("hf://"):
        return _from_hub(text.removeprefix("hf://"))
    path = Path(text)
    for candidate in (path, path / "checkpoints" / "best", path / "checkpoints" / "last", *(zoo / text for zoo in zoo_folders())):
        if (candidate / "contract.json").is_file():
            return candidate
    if path.exists():
        raise MedgenError(
            f"{path} holds no checkpoint: expected contract.json in it, or checkpoints/best or checkpoints/last of a run folder"
        )
    raise MedgenError(f"no model '{text}': neither a trained run's folder nor in the zoo; {nearest(text, zoo_names())}")


def zoo_folders() -> list[Path]:
    """Where named models are looked for: $MEDGEN_ZOO, `zoo/` here, `zoo/` beside the package, what an installed package carries."""
    named = [Path(os.environ["MEDGEN_ZOO"])] if os.environ.get("MEDGEN_ZOO") else []
    package = Path(__file__).resolve().parent
    return [*named, *dict.fromkeys(p.resolve() for p in (Path("zoo"), package.parent / "zoo", package / "pretrained"))]


def zoo_models() -> dict[str, Path]:
    """name -> folder of every model in the zoo folders; the first folder that has a name wins."""
    found: dict[str, Path] = {}
    for zoo in zoo_folders():
        for path in zoo.glob("*/contract.json"):
            found.setdefault(path.parent.name, path.parent)
    return dict(sorted(found.items()))


def zoo_names() -> list[str]:
    return list(zoo_models())


def _from_hub(address: str) -> Path:
    from huggingface_hub import snapshot_download

    owner, _, rest = address.partition("/")
    repository, _, folder = rest.strip("/").partition("/")
    if not repository:
        raise MedgenError(f"hf://{address} is not an address: expected hf://owner/repository or hf://owner/repository/folder")
    patterns = [f"{folder}/{f}" if folder else f for f in FILES]
    try:
        found = Path(snapshot_download(f"{owner}/{repository}", allow_patterns=patterns)) / folder
    except (OSError, ValueError) as error:  # offline, no such repository, not a valid name: the hub's errors derive from these
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MedgenError(f"hf://{address} cannot be fetched ({reason}); check the address, the network and your access") from error
    if not (found / "contract.json").is_file():
        raise MedgenError(f"hf://{address} holds no medgen checkpoint: there is no contract.json in it")
    return found
