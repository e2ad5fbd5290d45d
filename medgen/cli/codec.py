"""What a latent model takes from a trained codec: its recipe when the configuration is composed, its weights when a run begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medgen.checkpoint import build, read_document
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.zoo import find

if TYPE_CHECKING:
    from torch import nn

PART = "autoencoder"


def codec_recipe(name: str | None) -> dict[str, Any]:
    """The autoencoder's recipe in a trained codec."""
    if name is None:
        raise MedgenError("a latent model needs a trained codec: codec=<run folder, checkpoint or zoo name>; train one with model=codec")
    recipe = read_document(find(name))["recipe"]["model"]
    if PART not in recipe:
        kind = str(recipe.get("_target_")).rpartition(".")[2]
        raise MedgenError(f"codec={name} holds a {kind}, which has no autoencoder; train one with model=codec")
    return recipe[PART]


def codec_cells(name: str | None, spatial_dims: int) -> int:
    """How many pixels or voxels a latent position of a trained codec stands for: a dense condition has that many times its channels."""
    return build(codec_recipe(name)).factor ** spatial_dims


def take_codec(model: nn.Module, name: str | None, contract: Contract) -> None:
    """Give a latent model the weights of the codec that its configuration names.

    Raises:
        MedgenError: a codec of other channels, spacing, orientation or intensity maps than this run's.
    """
    if name is None:
        return
    from safetensors.torch import load_file

    folder = find(name)
    theirs = Contract.from_dict(read_document(folder)["contract"])
    facts = {field: (getattr(theirs, field), getattr(contract, field)) for field in ("target", "spacing", "orientation")}
    if theirs.target == contract.target:
        facts |= {f"the intensity of {c}": (theirs.map_of(c), contract.map_of(c)) for c in contract.target}
    for fact, (its, ours) in facts.items():
        if its != ours:
            raise MedgenError(f"codec={name} was trained with {fact} {its}, this run has {ours}; they must agree: {_remedy(fact, its)}")
    weights = {k.removeprefix(f"{PART}."): v for k, v in load_file(folder / "model.safetensors").items() if k.startswith(f"{PART}.")}
    model.codec.autoencoder.load_state_dict(weights)


def _remedy(fact: str, its: Any) -> str:
    """How this run, or an imported codec that was not told what its images are, comes to agree."""
    if its is None:
        return f"say it when the codec is imported, medgen import ... --{fact}"
    if fact == "target":
        return f"set task.target=[{','.join(its)}]"
    if fact == "spacing":
        written = ",".join(f"{s:g}" for s in its)
        return f"set data.source.spacing=[{written}] (of drawn heads the data.source.size that gives it)"
    if fact == "orientation":
        return "import the codec with --orientation RAS, or train one on these data"
    return "set the same rule in data.source.channels, or import the codec with --intensity"
