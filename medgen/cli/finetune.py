"""How a run starts from a checkpoint: what must fit is checked, what differs is said, weights are taken, and a part of them is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from medgen.checkpoint import build, read_document
from medgen.cli.init_from import spoken
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.core.model import GenerativeModel
from medgen.core.transfer import agreements, check_exceptions, check_transfer, differences
from medgen.nn.finetune import Finetune, Full
from medgen.zoo import find

Config = Mapping[str, Any]
WEIGHTS = "model.safetensors"
SMALL = "lora.safetensors"
TOLD = ("channels", "size", "spacing", "slice_axis", "labels", "attributes")  # of the data, by the contract


class Start(NamedTuple):
    """The configuration and contract of a run with what it comes from, and what of its model is trained."""

    config: Config
    contract: Contract
    method: Finetune

    def plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights as a checkpoint holds them."""
        return self.method.plain(weights)

    def save_small(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """`lora.safetensors`: weight = the parent's + scale * lora_up @ lora_down, and the other tensors that were trained."""
        small = self.method.small(weights)
        if small:
            about = {"scale": str(self.method.scale), "parent": self.contract.data["parent"]["weights"]}
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in small.items()}, folder / SMALL, about)


def check_start(config: Config) -> None:
    """What can be known before there are data.

    Raises:
        MedgenError: `finetune` without a checkpoint, an unknown exception, a recipe that does not fit the weights.
    """
    method, name = method_of(config), config.get("init_from")
    check_exceptions(config.get("allow") or ())
    if name is None:
        if not isinstance(method, Full):
            raise MedgenError("finetune needs init_from=<run folder, checkpoint or zoo name>: without weights there is nothing to tune")
        return
    folder = find(name)
    there = read_document(folder)["recipe"]["model"]
    changed = dict(_changed(there, config["model"], "model"))
    meaning = [key for key in changed if ".preconditioning." in f"{key}."]
    if meaning and "preconditioning" not in (config.get("allow") or ()):
        raise MedgenError(
            f"{meaning[0]}={changed[meaning[0]][1]} (in {name} {changed[meaning[0]][0]}) makes another thing of what was learned;"
            " leave it out, or say allow=[preconditioning] to train on"
        )
    model = build(config["model"], trusted=True)
    _check_shapes(model, folder, name, changed)
    method.apply(model)  # names that fit nothing are answered here, before there is a folder


def begin(model: GenerativeModel, config: Config, contract: Contract, fresh: bool) -> Start:
    """Take the weights that `init_from` names (not again in a resumed run) and decide what is trained.

    Raises:
        MedgenError: data that make the weights meaningless.
    """
    method, parent = method_of(config), config.get("parent")
    if fresh and config.get("init_from") is not None:
        check_start(config)
        parent = _taken(model, config, contract, method)
    total = _count(model)
    method.apply(model)
    if parent is None:
        return Start(config, contract, method)
    if fresh:
        trained = _count(model, trained=True)
        print(f"  {method.describe()}: {trained:,} numbers are trained, the {_parts(model)} has {total:,}", flush=True)
    return Start({**config, "parent": parent}, replace(contract, data={**contract.data, "parent": parent}), method)


def _taken(model: GenerativeModel, config: Config, contract: Contract, method: Finetune) -> dict[str, Any]:
    """Load the weights, say what differs, and return what the contract tells of the parent."""
    name, folder = config["init_from"], find(config["init_from"])
    document = read_document(folder)
    there = Contract.from_dict(document["contract"])
    check_transfer(there, contract, config.get("allow") or ())
    model.load_state_dict(load_file(folder / WEIGHTS))
    identity = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    print(f"fine-tuning of {name} (weights {identity[:12]})")
    for key, (before, after) in _changed(document["recipe"]["model"], config["model"], "model"):
        print(f"  {key}: {before} in the checkpoint, {after} here")
    for line in (*differences(there, contract), agreements(there, contract)):
        print(f"  {line}")
    for key, (before, after) in _changed_source(folder, config):
        print(f"  {key}: {before} in the checkpoint's run, {after} here")
    codec = getattr(model, "codec", None)
    if codec is not None and config.get("remeasure"):
        codec.measured.zero_()
    elif codec is not None:
        print(f"  latent statistics: still those of the checkpoint's {int(codec.measured)} images; remeasure=true takes this run's")
    return {"name": str(name), "weights": f"sha256:{identity}", "method": method.describe(), "data": there.data}


def _changed_source(folder: Path, config: Config) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Settings of the data that no contract holds (a phantom's field strength), where the checkpoint lies in its run's folder."""
    from omegaconf import OmegaConf

    run = next((place for place in (folder, *folder.parents[:2]) if (place / "config.yaml").is_file()), None)
    there = OmegaConf.to_container(OmegaConf.load(run / "config.yaml")) if run else {}
    before, after = ((c.get("data") or {}).get("source") or {} for c in (there, config))
    if before.get("_target_") == after.get("_target_") and before:
        for key in (k for k in {**before, **after} if k not in TOLD):
            yield from _changed(before.get(key), after.get(key), f"data.source.{key}")


def method_of(config: Config) -> Finetune:
    """What `finetune` asks for; everything is trained where it is not named."""
    return build(config["finetune"], trusted=True) if config.get("finetune") else Full()


def _check_shapes(model: GenerativeModel, folder: Path, name: str, changed: Mapping[str, tuple[Any, Any]]) -> None:
    own = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    with safe_open(folder / WEIGHTS, "pt") as file:
        stored = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (it is not a mapping)
    wrong = [key for key in sorted(own.keys() | stored.keys()) if own.get(key) != stored.get(key)]
    if not wrong:
        return
    said = ", ".join(f"{key}={after} (in the checkpoint {before})" for key, (before, after) in changed.items()) or "the recipe"
    shapes = [values.get(wrong[0], "absent") for values in (stored, own)]
    raise MedgenError(
        f"init_from={name} does not fit {said}: {len(wrong)} of {len(own | stored)} tensors differ in shape, first '{wrong[0]}'"
        f" ({shapes[0]} there, {shapes[1]} here); leave out what changes the network"
    )


def _changed(there: Any, here: Any, key: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(key as on the command line, (before, after)) of every value that differs between two recipes."""
    if isinstance(there, Mapping) and isinstance(here, Mapping) and there.get("_target_") == here.get("_target_"):
        for part in {**there, **here}:
            yield from _changed(there.get(part), here.get(part), f"{key}.{part}")
    elif there != here:
        yield spoken(key), (_short(there), _short(here))


def _short(value: Any) -> Any:
    """A nested recipe by its class's name."""
    return str(value["_target_"]).rpartition(".")[2] if isinstance(value, Mapping) and "_target_" in value else value


def _count(model: GenerativeModel, trained: bool = False) -> int:
    parts = [model.get_submodule(name) for name in model.averaged]
    return sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad or not trained)


def _parts(model: GenerativeModel) -> str:
    return " and ".join(name.rpartition(".")[2] for name in model.averaged)
