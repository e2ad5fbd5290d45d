"""Models of other libraries as they lie on disk: an adapter's recipe (plain data) and its weights. Nothing is unpickled or evaluated."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.cli.documents import FAULTS, arguments, check_network, expect, is_number, nodes, read_plain, reason
from medgen.core.errors import MedgenError, nearest
from medgen.nn.adapters.diffusers import DiffusersAutoencoder, DiffusersUNet
from medgen.nn.adapters.monai import MonaiAutoencoder, MonaiUNet

UNETS = {"UNet2DModel": DiffusersUNet, "DiffusionModelUNet": MonaiUNet}
SCHEDULES = {
    "linear": "linear",
    "linear_beta": "linear",
    "scaled_linear": "scaled_linear",
    "scaled_linear_beta": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "cosine": "cosine",
    "sigmoid": "sigmoid",
    "sigmoid_beta": "sigmoid",
}


@dataclass
class Network:
    """A network of another library.

    Attributes:
        recipe: the adapter with its arguments, as plain data.
        weights: the original's state dict.
        config: the original's own arguments.
    """

    recipe: dict[str, Any]
    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]


@dataclass
class Originals:
    """What a user has: a denoising U-Net with its scheduler, an autoencoder, or all of them.

    Attributes:
        scheduler: its arguments, with the class under "_class_name".
        scaling: the factor that brings latent images to unit spread, where something says it; as it was found, `latent_scaling` checks it.
    """

    unet: Network | None = None
    autoencoder: Network | None = None
    scheduler: dict[str, Any] = field(default_factory=dict)
    scaling: Any = None


def read_originals(path: Path, config: Path | None = None, dense: int = 0) -> Originals:
    """A diffusers folder (a pipeline, or one model), or a MONAI state dict with a file that holds the network's arguments.

    Args:
        path: folder with model_index.json or config.json; or a .pt, .pth or .safetensors file.
        config: for MONAI: JSON or YAML with the constructor's arguments, such as a bundle's configs/inference.json.
        dense: how many of a U-Net's input channels are a condition.

    Raises:
        MedgenError: nothing of this kind there, a network that has no adapter, a configuration that would have to be executed.
    """
    if path.is_dir():
        return _diffusers(path, dense)
    if not path.is_file():
        raise MedgenError(f"no {path}: expected a folder of diffusers, or a .pt or .safetensors file of MONAI")
    if config is None:
        raise MedgenError(f"{path} holds weights without the network's arguments: give --config, a JSON file with MONAI's own")
    return _monai(path, config, dense)


def latent_scaling(config: Mapping[str, Any], latent: int, factor: Any = None) -> tuple[Tensor, Tensor]:
    """Mean and spread (latent,) of a codec whose latent images the original brought to (z - shift) * factor before diffusion.

    diffusers has the factor in the autoencoder's configuration ("scaling_factor", "shift_factor", or "latents_mean" and "latents_std" per
    channel); MONAI has it beside the diffusion model.

    Raises:
        MedgenError: no factor, or one that is not finite and positive; numbers that are not one per channel, or a spread of 0.
    """
    factor = config.get("scaling_factor") if factor is None else factor
    if factor is None:
        raise MedgenError("nothing says by which factor the latent images were scaled; give --scale-factor (1 for none)")
    factor = factor.item() if isinstance(factor, Tensor) and factor.numel() == 1 else factor
    expect(is_number(factor) and factor > 0, "the latent images' scaling factor", factor, "one positive number, such as --scale-factor 0.5")
    shift = config.get("shift_factor") or 0.0
    expect(is_number(shift), "shift_factor", shift, "a number or null")
    mean = _per_channel(config, "latents_mean", [shift] * latent)
    std = _per_channel(config, "latents_std", [1.0] * latent) / float(factor)
    if not bool((std.isfinite() & (std > 0)).all()):
        raise MedgenError(f"latents_std / scaling factor is {std.tolist()}; expected finite positive numbers, give --scale-factor")
    return mean, std


def _per_channel(config: Mapping[str, Any], name: str, default: list[float]) -> Tensor:
    given = config.get(name)
    values = default if given is None else given
    fits = isinstance(values, (list, tuple)) and len(values) == len(default) and all(map(is_number, values))
    expect(fits, name, values, f"a list of {len(default)} numbers, one per latent channel, or null")
    expect(name != "latents_std" or min(values) > 0, name, values, "positive numbers, since latent images are divided by them")
    return torch.tensor([float(v) for v in values], dtype=torch.float32)


def find_scheduler(document: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's arguments, from its own file or from within a bundle's configuration; empty where there is none."""
    if "_class_name" in document:
        return dict(document)
    for node in nodes(document):
        name = str(node.get("_target_", "")).rpartition(".")[2]
        if name.endswith("Scheduler") and ("schedule" in node or "num_train_timesteps" in node):
            return {**arguments(node, document), "_class_name": name, "_library": "monai"}
    return {}


def _diffusers(folder: Path, dense: int) -> Originals:
    whole = (folder / "model_index.json").is_file()
    parts = sorted(p.parent for p in folder.glob("*/config.json")) if whole else [folder]
    found = Originals()
    for part in parts:
        if not (part / "config.json").is_file():
            raise MedgenError(f"{part} holds no model of diffusers: expected config.json, or model_index.json of a pipeline")
        config = read_plain(part / "config.json")
        kind = config.get("_class_name")
        if kind in ("UNet2DModel", "AutoencoderKL"):
            check_network(config, part / "config.json")
        if kind == "UNet2DModel":
            found.unet = _pretrained(part, kind, lambda config: DiffusersUNet.arguments(config, dense), DiffusersUNet)
        elif kind == "AutoencoderKL":
            found.autoencoder = _pretrained(part, kind, DiffusersAutoencoder.arguments, DiffusersAutoencoder)
        else:
            raise MedgenError(
                f"{part} holds a {kind or 'model of another library'}; of diffusers, UNet2DModel and AutoencoderKL have adapters"
            )
    for place in (folder / "scheduler", folder):
        if (place / "scheduler_config.json").is_file():
            found.scheduler = read_plain(place / "scheduler_config.json")
            break
    return found


def _pretrained(folder: Path, kind: str, understood: Any, adapter: type) -> Network:
    import diffusers

    try:
        network, report = getattr(diffusers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, *FAULTS) as error:
        raise MedgenError(f"{folder}: diffusers cannot load this {kind} ({reason(error)}); save it anew by save_pretrained") from error
    for problem, keys in (("missing", report["missing_keys"]), ("not expected", report["unexpected_keys"])):
        if keys:
            raise MedgenError(f"{folder}: the weights do not fit their configuration: '{min(keys)}' is {problem} ({len(keys)} such)")
    config = dict(network.config)
    return Network(_recipe(adapter, understood(config)), network.state_dict(), config)


def _monai(path: Path, config: Path, dense: int) -> Originals:
    document = read_plain(config)
    weights, scaling = _state_dict(path)
    if scaling is None and isinstance(document.get("scale_factor"), (int, float)):  # bundles also have an expression here
        scaling = document["scale_factor"]
    found = Originals(scheduler=find_scheduler(document), scaling=scaling)
    if any(key.startswith("quant_conv_mu.") for key in weights):
        values = _definition(document, "AutoencoderKL", config)
        found.autoencoder = Network(_recipe(MonaiAutoencoder, MonaiAutoencoder.arguments(values)), weights, values)
    elif any(key.startswith("time_embed.") for key in weights):
        values = _definition(document, "DiffusionModelUNet", config)
        found.unet = Network(_recipe(MonaiUNet, MonaiUNet.arguments(values, dense)), weights, values)
    else:
        raise MedgenError(f"{path}: these are no weights of MONAI's DiffusionModelUNet or AutoencoderKL; the first is '{min(weights)}'")
    return found


def _state_dict(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a file, also one level down, and the scale factor that MONAI's tutorials store beside them."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        document = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, EOFError, struct.error, *FAULTS) as error:
        raise MedgenError(f"{path} cannot be read as plain tensors ({reason(error)}); save the network's state_dict() alone") from error
    document = document if isinstance(document, Mapping) else {}
    inside = {key: value for key, value in document.items() if isinstance(value, Mapping) and value and all(map(_tensor, value.values()))}
    if document and all(map(_tensor, document.values())):
        weights = dict(document)
    elif len(inside) == 1:
        weights = dict(next(iter(inside.values())))
    else:
        raise MedgenError(f"{path} holds {len(inside)} state dicts ({', '.join(map(str, inside))}); save the network's state_dict() alone")
    unnamed = next((key for key in weights if not isinstance(key, str)), None)
    if unnamed is not None:
        raise MedgenError(f"{path} has a tensor under {unnamed!r}; expected names as text, save the network's state_dict()")
    prefix = "module." if all(key.startswith("module.") for key in weights) else ""
    return {key.removeprefix(prefix): value for key, value in weights.items()}, document.get("scale_factor") if inside else None


def _definition(document: Mapping[str, Any], kind: str, path: Path) -> dict[str, Any]:
    """The arguments of a network in a bundle's configuration, or the whole file where it is those arguments."""
    values = arguments(_node(document, kind, path), document)
    check_network(values, path)
    return values


def _node(document: Mapping[str, Any], kind: str, path: Path) -> Mapping[str, Any]:
    for node in nodes(document):
        if str(node.get("_target_", "")).rpartition(".")[2] == kind:
            return node
    if "spatial_dims" in document and "_target_" not in document:
        return document
    targets = sorted({str(n["_target_"]).rpartition(".")[2] for n in nodes(document) if "_target_" in n})
    raise MedgenError(f"{path} defines no {kind}; {nearest(kind, targets)}")


def _recipe(adapter: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"_target_": f"{adapter.__module__}.{adapter.__name__}", **arguments}


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
