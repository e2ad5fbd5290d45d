"""Models of other libraries as they lie on disk: an adapter's recipe (plain data) and its weights. Nothing is unpickled or evaluated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
        scaling: the factor that brings latent images to unit spread, where something says it.
    """

    unet: Network | None = None
    autoencoder: Network | None = None
    scheduler: dict[str, Any] = field(default_factory=dict)
    scaling: float | None = None


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


def latent_scaling(config: Mapping[str, Any], latent: int, factor: float | None = None) -> tuple[Tensor, Tensor]:
    """Mean and spread (latent,) of a codec whose latent images the original brought to (z - shift) * factor before diffusion.

    diffusers has the factor in the autoencoder's configuration ("scaling_factor", "shift_factor", or "latents_mean" and "latents_std" per
    channel); MONAI has it beside the diffusion model.
    """
    factor = config.get("scaling_factor") if factor is None else factor
    if not factor:
        raise MedgenError("nothing says by which factor the latent images were scaled; give --scale-factor (1 for none)")
    shift = config.get("latents_mean") or [config.get("shift_factor") or 0.0] * latent
    spread = config.get("latents_std") or [1.0] * latent
    return torch.tensor(shift, dtype=torch.float32), torch.tensor(spread, dtype=torch.float32) / factor


def read_plain(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping of plain data."""
    import yaml

    try:
        values = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MedgenError(f"{path} cannot be read ({str(error).splitlines()[0]}); expected a JSON or YAML file") from error
    if not isinstance(values, dict):
        raise MedgenError(f"{path} holds {type(values).__name__}; expected a mapping of arguments")
    return values


def find_scheduler(document: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's arguments, from its own file or from within a bundle's configuration; empty where there is none."""
    if "_class_name" in document:
        return dict(document)
    for node in _nodes(document):
        name = str(node.get("_target_", "")).rpartition(".")[2]
        if name.endswith("Scheduler") and ("schedule" in node or "num_train_timesteps" in node):
            return {**_arguments(node, document), "_class_name": name, "_library": "monai"}
    return {}


def _diffusers(folder: Path, dense: int) -> Originals:
    whole = (folder / "model_index.json").is_file()
    parts = sorted(p.parent for p in folder.glob("*/config.json")) if whole else [folder]
    found = Originals()
    for part in parts:
        if not (part / "config.json").is_file():
            raise MedgenError(f"{part} holds no model of diffusers: expected config.json, or model_index.json of a pipeline")
        kind = read_plain(part / "config.json").get("_class_name")
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


def _pretrained(folder: Path, kind: str, arguments: Any, adapter: type) -> Network:
    import diffusers

    try:
        network, report = getattr(diffusers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise MedgenError(f"{folder}: diffusers cannot load this {kind} ({str(error).splitlines()[0]})") from error
    for problem, keys in (("missing", report["missing_keys"]), ("not expected", report["unexpected_keys"])):
        if keys:
            raise MedgenError(f"{folder}: the weights do not fit their configuration: '{min(keys)}' is {problem} ({len(keys)} such)")
    config = dict(network.config)
    return Network(_recipe(adapter, arguments(config)), network.state_dict(), config)


def _monai(path: Path, config: Path, dense: int) -> Originals:
    document = read_plain(config)
    weights, scaling = _state_dict(path)
    factor = scaling if scaling is not None else document.get("scale_factor")
    found = Originals(scheduler=find_scheduler(document), scaling=float(factor) if isinstance(factor, (int, float)) else None)
    if any(key.startswith("quant_conv_mu.") for key in weights):
        values = _definition(document, "AutoencoderKL", config)
        found.autoencoder = Network(_recipe(MonaiAutoencoder, MonaiAutoencoder.arguments(values)), weights, values)
    elif any(key.startswith("time_embed.") for key in weights):
        values = _definition(document, "DiffusionModelUNet", config)
        found.unet = Network(_recipe(MonaiUNet, MonaiUNet.arguments(values, dense)), weights, values)
    else:
        raise MedgenError(f"{path}: these are no weights of MONAI's DiffusionModelUNet or AutoencoderKL; the first is '{min(weights)}'")
    return found


def _state_dict(path: Path) -> tuple[dict[str, Tensor], float | None]:
    """The tensors of a file, also one level down, and the scale factor that MONAI's tutorials store beside them."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        document = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise MedgenError(f"{path} cannot be read as plain tensors ({reason}); save the network's state_dict() alone") from error
    document = document if isinstance(document, Mapping) else {}
    inside = {key: value for key, value in document.items() if isinstance(value, Mapping) and value and all(map(_tensor, value.values()))}
    if document and all(map(_tensor, document.values())):
        weights = dict(document)
    elif len(inside) == 1:
        weights = dict(next(iter(inside.values())))
    else:
        raise MedgenError(f"{path} holds {len(inside)} state dicts ({', '.join(map(str, inside))}); save the network's state_dict() alone")
    scaling = document.get("scale_factor") if inside else None
    prefix = "module." if all(key.startswith("module.") for key in weights) else ""
    return {key.removeprefix(prefix): value for key, value in weights.items()}, None if scaling is None else float(scaling)


def _definition(document: Mapping[str, Any], kind: str, path: Path) -> dict[str, Any]:
    """The arguments of a network in a bundle's configuration, or the whole file where it is those arguments."""
    for node in _nodes(document):
        if str(node.get("_target_", "")).rpartition(".")[2] == kind:
            return _arguments(node, document)
    if "spatial_dims" in document and "_target_" not in document:
        return _arguments(document, document)
    targets = sorted({str(n["_target_"]).rpartition(".")[2] for n in _nodes(document) if "_target_" in n})
    raise MedgenError(f"{path} defines no {kind}; {nearest(kind, targets)}")


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner)


def _arguments(node: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _value(k, v, document) for k, v in node.items() if not k.startswith("_")}


def _value(key: str, value: Any, document: Mapping[str, Any], depth: int = 0) -> Any:
    """`value` with references such as "@spatial_dims" looked up; an expression is refused, since it would have to be executed."""
    if isinstance(value, list):
        return [_value(key, inner, document, depth) for inner in value]
    if not isinstance(value, str) or value[:1] not in ("@", "$"):
        return value
    names = value.removeprefix("$").removeprefix("@").replace("#", "::").split("::")
    found: Any = document if value.removeprefix("$")[:1] == "@" and depth < 8 else None
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    if found is None:
        raise MedgenError(f"'{key}' is the expression {value!r}, which medgen does not run; write its value into the configuration")
    return _value(key, found, document, depth + 1)


def _recipe(adapter: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"_target_": f"{adapter.__module__}.{adapter.__name__}", **arguments}


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
