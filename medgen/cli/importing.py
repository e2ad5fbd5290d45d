"""`medgen import`: a model of another library becomes a checkpoint that loads alone."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medgen.checkpoint import build, save
from medgen.cli.documents import FAULTS, expect, is_number, is_whole, read_plain, reason
from medgen.cli.originals import SCHEDULES, Network, Originals, find_scheduler, latent_scaling, read_originals
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError, nearest
from medgen.core.intensity import intensity_map
from medgen.core.volume import folder_for
from medgen.nn.adapters.adapter import Adapter
from medgen.samplers.schedulers import scheduler_class

PREDICTIONS = {"epsilon": "Epsilon", "v_prediction": "V", "sample": "X0"}
MOST_STEPS = 1_000_000  # of a noise schedule, which is held as a table
CHOSEN = ("clip_sample", "timestep_spacing", "skip_prk_steps")


def run(options: argparse.Namespace) -> None:
    folder = Path(options.output)
    if (folder / "contract.json").exists() and not options.overwrite:
        raise MedgenError(f"{folder} holds a checkpoint already; choose another folder or pass --overwrite")
    with _understood(options.original):
        originals = gathered(options)
        recipe = {"model": model_recipe(originals, options.steps), "task": task_recipe(originals, options.target, options.source)}
        contract = contract_of(options, originals, recipe["task"])
        json.dumps(recipe, allow_nan=False)  # as the checkpoint will have it, before anything is written
        model = build(recipe["model"])
        take_weights(model, originals)
    save(folder_for(folder), model.state_dict(), recipe, contract)
    print(f"imported: {folder}")


@contextmanager
def _understood(original: str) -> Iterator[None]:
    """A file can hold anything; where a value gets past the checks and does not fit, that is said in a sentence too."""
    try:
        yield
    except MedgenError:
        raise
    except FAULTS as error:
        raise MedgenError(
            f"{original} cannot be imported ({reason(error)}); expected an unchanged model of diffusers or MONAI, check its configuration"
        ) from error


def gathered(options: argparse.Namespace) -> Originals:
    """Everything that the command line names, checked to belong together."""
    config, dense = options.config and Path(options.config), len(options.source)
    found = read_originals(Path(options.original), config, dense)
    if options.autoencoder:
        found.autoencoder = read_originals(Path(options.autoencoder), config).autoencoder
        if found.autoencoder is None:
            raise MedgenError(f"{options.autoencoder} holds no autoencoder")
    if options.scheduler:
        found.scheduler = find_scheduler(read_plain(Path(options.scheduler)))
    if options.scale_factor is not None:
        found.scaling = options.scale_factor
    _check_channels(found, len(options.target))
    return found


def _check_channels(found: Originals, targets: int) -> None:
    image = found.autoencoder or found.unet
    if image.recipe["in_channels"] != targets:
        raise MedgenError(
            f"the model's images have {image.recipe['in_channels']} channels beside the sources, --target names {targets}; name them all"
        )
    if found.unet is None:
        return
    ours, theirs = found.unet.recipe, found.autoencoder.recipe if found.autoencoder else {}
    expected = theirs.get("latent", targets)
    if (ours["in_channels"], ours["out_channels"]) != (expected, expected):
        pair = f"{ours['in_channels']} channels to {ours['out_channels']}"
        raise MedgenError(f"the U-Net maps {pair}, expected {expected} to {expected}; name condition channels by --source")
    if theirs and theirs["spatial_dims"] != ours["spatial_dims"]:
        raise MedgenError(f"the U-Net has {ours['spatial_dims']} spatial dimensions, the autoencoder {theirs['spatial_dims']}")


def model_recipe(found: Originals, steps: int) -> dict[str, Any]:
    """The recipe of a diffusion model, of one in a codec's space, or of an autoencoder alone."""
    if found.unet is None:
        return {"_target_": "medgen.models.vae.VAE", "autoencoder": found.autoencoder.recipe, "kl": 1e-6}
    schedule = schedule_recipe(found.scheduler)
    prediction = found.scheduler.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise MedgenError(f"no prediction type '{prediction}'; {nearest(str(prediction), PREDICTIONS)}")
    model = {
        "_target_": "medgen.models.diffusion.Diffusion",
        "network": {**found.unet.recipe, "timesteps": schedule},
        "preconditioning": {"_target_": f"medgen.models.preconditioning.{PREDICTIONS[prediction]}"},
        "levels": schedule,
        "sampler": sampler_recipe(found.scheduler, schedule, steps),
    }
    if found.autoencoder is None:
        return model
    codec = {"_target_": "medgen.models.latent.KLCodec", "autoencoder": found.autoencoder.recipe}
    return {"_target_": "medgen.models.latent.Latent", "model": model, "codec": codec}


def schedule_recipe(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The noise schedule that the weights were trained on; it is never guessed.

    Raises:
        MedgenError: there is none, or one that is not made of betas.
    """
    if not scheduler:
        raise MedgenError("nothing says which noise schedule the weights were trained on; give --scheduler <scheduler_config.json>")
    kind = scheduler.get("beta_schedule", scheduler.get("schedule", "linear_beta" if scheduler.get("_library") == "monai" else None))
    name = scheduler.get("_class_name")
    if "flow" in str(name).lower() or kind is None or scheduler.get("trained_betas") is not None:
        raise MedgenError(
            f"{name} has no beta schedule by name; medgen imports models of {', '.join(sorted(set(SCHEDULES.values())))} betas"
        )
    if not isinstance(kind, str) or kind not in SCHEDULES:
        raise MedgenError(f"no beta schedule '{kind}'; {nearest(str(kind), SCHEDULES)}")
    start, end = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 2e-2)
    for name, value in (("beta_start", start), ("beta_end", end)):
        expect(is_number(value), f"the scheduler's {name}", value, "a number between 0 and 1; correct its file")
    steps, terminal = scheduler.get("num_train_timesteps", 1000), scheduler.get("rescale_betas_zero_snr", False)
    whole = is_whole(steps, 2) and steps <= MOST_STEPS
    expect(whole, "the scheduler's num_train_timesteps", steps, f"a whole number from 2 to {MOST_STEPS}; correct its file")
    expect(isinstance(terminal, bool), "the scheduler's rescale_betas_zero_snr", terminal, "true or false; correct its file")
    return {
        "_target_": "medgen.core.schedule.DiscreteSchedule",
        "kind": SCHEDULES[kind],
        "beta_start": start,
        "beta_end": end,
        "steps": steps,
        "zero_terminal": terminal,
    }


def sampler_recipe(scheduler: Mapping[str, Any], schedule: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """diffusers' own scheduler under its own settings; for MONAI's, DDIM on the same levels (eta 1 for DDPM's posterior).

    Settings at their default are left out, except those that `DiffusersSampler` chooses otherwise.
    """
    name = scheduler.get("_class_name")
    if scheduler.get("_library") == "monai":
        return {"_target_": "medgen.samplers.ddim.DDIM", "grid": schedule, "steps": steps, "eta": float(name == "DDPMScheduler")}
    known = inspect.signature(scheduler_class(str(name)).__init__).parameters
    settings = {k: v for k, v in scheduler.items() if k in known and (v != known[k].default or k in CHOSEN)}
    return {"_target_": "medgen.samplers.schedulers.DiffusersSampler", "scheduler": name, "steps": steps, "settings": settings}


def task_recipe(found: Originals, target: Sequence[str], source: Sequence[str]) -> dict[str, Any]:
    """Synthesis, by "label" where the U-Net has a class embedding; translation where there are sources."""
    vector = found.unet.recipe["condition"]["vector"] if found.unet else 0
    kind = found.unet.recipe["settings"].get("class_embed_type") if found.unet else None
    if kind == "identity":
        raise MedgenError("the U-Net takes an embedding made elsewhere (class_embed_type identity), which no task of medgen makes")
    attributes = {"label": 0 if kind == "timestep" else vector} if vector else {}
    common = {"target": list(target), "attributes": attributes}
    if source:
        metric = {"_target_": "medgen.metrics.monitor.PSNR", "data_range": 2.0}
        return {"_target_": "medgen.tasks.translation.Translation", "source": list(source), **common, "metric": metric}
    return {"_target_": "medgen.tasks.synthesis.Synthesis", **common, "metric": {"_target_": "medgen.metrics.monitor.FeatureDistance"}}


def contract_of(options: argparse.Namespace, found: Originals, task: Mapping[str, Any]) -> Contract:
    """What the user says about the images; the size is the original's where it has one."""
    dims = (found.unet or found.autoencoder).recipe["spatial_dims"]
    size = tuple(options.size or _own_size(found))
    if len(size) != dims:
        raise MedgenError(f"the model has {dims} spatial dimensions: give --size with as many numbers")
    volumes = dims == 3 or options.slice_axis is not None
    if (options.spacing is not None) != volumes:
        raise MedgenError("3D models and slices (--slice-axis) need --spacing, pictures have none")
    intensity = dict.fromkeys((*options.target, *options.source), intensity_rule(options.intensity))
    about = dict(entry.partition("=")[::2] for entry in options.about)
    return Contract(
        spatial_dims=dims,
        size=size,
        target=tuple(options.target),
        source=tuple(options.source),
        attributes=task["attributes"],
        intensity=intensity,
        orientation=options.orientation if volumes else None,
        spacing=tuple(options.spacing) if volumes else None,
        slice_axis=options.slice_axis,
        data={"name": "unknown", "licence": "unknown", **about},
    )


def _own_size(found: Originals) -> list[int]:
    """The grid in a diffusers configuration, at the image's resolution; empty where there is none."""
    own = found.unet or found.autoencoder
    size = own.config.get("sample_size")
    if not size:
        return []
    factor = 2 ** (len(found.autoencoder.recipe["channels"]) - 1) if found.unet and found.autoencoder else 1
    return [n * factor for n in ([size, size] if isinstance(size, int) else size)]


def intensity_rule(text: str) -> dict[str, Any]:
    """`NAME` or `NAME=LOW,HIGH`: an intensity map, and the stored values that -1 and +1 of the network stand for."""
    name, _, limits = text.partition("=")
    try:
        numbers = [float(n) for n in limits.split(",")] if limits else []
    except ValueError:
        numbers = [0.0]
    if len(numbers) not in (0, 2):
        raise MedgenError(f"--intensity {text}: expected NAME or NAME=LOW,HIGH such as ct_hu=-1000,1000")
    declared = name in ("ct_hu", "unit_range")
    rule = intensity_map(name, **({"low": numbers[0], "high": numbers[1]} if numbers and declared else {}))
    typical = {"low": numbers[0], "high": numbers[1]} if numbers else rule.fit(torch.zeros(1).numpy())
    return {**rule.describe(), "typical": typical}


def take_weights(model: nn.Module, found: Originals) -> None:
    """The originals' weights in place, the latent images' scaling in the codec, and zero for the nulls that the originals do not have."""
    diffusion = getattr(model, "model", model)
    if found.unet is not None:
        _load(diffusion.network, found.unet)
    if found.autoencoder is None:
        return
    codec = getattr(model, "codec", model)
    _load(codec.autoencoder, found.autoencoder)
    if codec is not model:
        mean, std = latent_scaling(found.autoencoder.config, codec.autoencoder.latent, found.scaling)
        codec.mean.copy_(mean)
        codec.std.copy_(std)
        codec.measured.fill_(1)  # known: fine-tuning must not measure it anew


def _load(adapter: Adapter, original: Network) -> None:
    adapter.load_original(original.weights)
    for null in adapter.conditioning.parameters():
        nn.init.zeros_(null)
