"""diffusers' U-Net and autoencoder, in 2D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.schedule import Evenly, Timesteps
from medgen.nn.adapters.adapter import AdaptedAutoencoder, AdaptedUNet, Rows, built, changed, complete, divisor, last_only
from medgen.nn.conditioning import role_sizes
from medgen.nn.grid import check_levels


class DiffusersUNet(AdaptedUNet):
    """diffusers' `UNet2DModel` (Ho et al. 2020; Dhariwal and Nichol 2021).

    Args:
        spatial_dims: 2.
        in_channels: channels of the noisy image, without the dense condition's; 0 for regression.
        out_channels: channels of the result.
        channels: one number per level, finest first.
        blocks: residual blocks per level.
        condition: sizes {"vector": E, "dense": K}: E rows of the class embedding, K more input channels. It has no cross-attention.
            With settings.class_embed_type "timestep" the vector is one number, with "identity" an embedding.
        timesteps: which timestep a noise level is; the schedule of pretrained weights, or None for networks trained here.
        settings: further arguments of the original. Without other word there is attention at the coarsest level only, and what does not
            divide the channels is lowered.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128),
        blocks: int = 2,
        condition: Mapping[str, int] | None = None,
        timesteps: Timesteps | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        from diffusers import UNet2DModel

        settings, channels = dict(settings or {}), _planar_levels("DiffusersUNet", spatial_dims, channels)
        sizes = role_sizes(condition, ("vector", "dense"), "DiffusersUNet")
        self_made = settings.get("class_embed_type")
        _check_embeddings(settings, sizes["vector"], 4 * channels[0])
        fixed = {
            "in_channels": in_channels + sizes["dense"],
            "out_channels": out_channels,
            "block_out_channels": channels,
            "layers_per_block": blocks,
            "num_class_embeds": None if self_made else sizes["vector"] or None,
        }
        ours = {
            "down_block_types": last_only(channels, "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": last_only(channels, "AttnUpBlock2D", "UpBlock2D")[::-1],
            "norm_num_groups": divisor(32, channels),
            "attention_head_dim": divisor(8, channels),
        }
        network = built(UNet2DModel, fixed, {**ours, **settings})
        if fixed["num_class_embeds"]:
            network.class_embedding = Rows.of(network.class_embedding)
        super().__init__(network, spatial_dims, 2 ** (len(channels) - 1), in_channels, sizes, timesteps or Evenly())

    @staticmethod
    def arguments(config: Mapping[str, Any], dense: int = 0) -> dict[str, Any]:
        """This adapter's arguments for weights of a `UNet2DModel` with this `config`.

        Args:
            config: the original's own `config` (config.json).
            dense: how many of its input channels, the last ones, are a condition.
        """
        from diffusers import UNet2DModel

        values = complete(UNet2DModel, config)
        own = {"timestep": 1, "identity": values.get("time_embedding_dim") or 4 * values["block_out_channels"][0]}
        vector = own.get(values["class_embed_type"], values["num_class_embeds"] or 0)
        handled = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "num_class_embeds", "sample_size")
        explicit = ("down_block_types", "up_block_types", "norm_num_groups", "attention_head_dim")
        return {
            "spatial_dims": 2,
            "in_channels": values["in_channels"] - dense,
            "out_channels": values["out_channels"],
            "channels": values["block_out_channels"],
            "blocks": values["layers_per_block"],
            "condition": {"vector": vector, "dense": dense},
            "settings": changed(UNet2DModel, values, handled, explicit),
        }

    def _predict(self, image: Tensor, steps: Tensor, vector: Tensor | None, tokens: Tensor | None) -> Tensor:
        config = self.network.config
        if config.time_embedding_type == "learned":
            steps = steps.round().long()
        labels = vector[:, 0] if vector is not None and config.class_embed_type == "timestep" else vector
        return self.network(image, steps, class_labels=labels, return_dict=False)[0]


class DiffusersAutoencoder(AdaptedAutoencoder):
    """diffusers' `AutoencoderKL` (Rombach et al. 2022).

    Args:
        spatial_dims: 2.
        in_channels: channels of the image.
        latent: channels of the latent image.
        channels: one number per level, finest first.
        blocks: residual blocks per level.
        condition: must be empty or zeros: this autoencoder takes no condition.
        settings: further arguments of the original; norm_num_groups is lowered where it does not divide the channels.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        latent: int = 4,
        channels: Sequence[int] = (32, 64, 128),
        blocks: int = 1,
        condition: Mapping[str, int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        from diffusers import AutoencoderKL

        channels = _planar_levels("DiffusersAutoencoder", spatial_dims, channels)
        fixed = {
            "in_channels": in_channels,
            "out_channels": in_channels,
            "latent_channels": latent,
            "block_out_channels": channels,
            "layers_per_block": blocks,
            "down_block_types": ["DownEncoderBlock2D"] * len(channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        }
        network = built(AutoencoderKL, fixed, {"norm_num_groups": divisor(32, channels), **(settings or {})})
        super().__init__(network, spatial_dims, 2 ** (len(channels) - 1), in_channels, latent, condition)

    @staticmethod
    def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
        """This adapter's arguments for weights of an `AutoencoderKL` with this `config`; its scaling belongs to the codec, not here."""
        from diffusers import AutoencoderKL

        values = complete(AutoencoderKL, config)
        handled = ("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block", "sample_size")
        kinds = ("down_block_types", "up_block_types")  # the library has one of each
        scaling = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast")
        return {
            "spatial_dims": 2,
            "in_channels": values["in_channels"],
            "latent": values["latent_channels"],
            "channels": values["block_out_channels"],
            "blocks": values["layers_per_block"],
            "settings": changed(AutoencoderKL, values, (*handled, *kinds, *scaling), ("norm_num_groups",)),
        }

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.network.encode(x, return_dict=False)[0]
        return posterior.mean, posterior.logvar

    def _image(self, z: Tensor) -> Tensor:
        return self.network.decode(z, return_dict=False)[0]


def _planar_levels(name: str, spatial_dims: int, channels: Sequence[int]) -> tuple[int, ...]:
    if spatial_dims != 2:
        raise MedgenError(f"{name} has 2 spatial dimensions, {spatial_dims} were asked for; use the UNet, or MONAI's networks")
    return check_levels(name, spatial_dims, channels)


def _check_embeddings(settings: Mapping[str, Any], vector: int, width: int) -> None:
    """Refuse a time argument that is no timestep, and vectors that the class embedding does not take."""
    if settings.get("time_embedding_type", "positional") not in ("positional", "learned"):
        found = settings["time_embedding_type"]
        raise MedgenError(f"DiffusersUNet: settings.time_embedding_type is '{found}'; expected positional or learned")
    kind = settings.get("class_embed_type")
    expected = {"timestep": 1, "identity": settings.get("time_embedding_dim") or width}.get(kind, vector)
    if vector != expected:
        raise MedgenError(f"DiffusersUNet: class_embed_type '{kind}' takes a vector of {expected}, condition.vector is {vector}")
