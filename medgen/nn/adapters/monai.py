"""MONAI's U-Net and autoencoder (`monai.networks.nets`), in 2D and 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medgen.core.schedule import Evenly, Timesteps
from medgen.nn.adapters.adapter import AdaptedAutoencoder, AdaptedUNet, Rows, built, changed, complete, divisor, last_only
from medgen.nn.conditioning import role_sizes
from medgen.nn.grid import check_levels

_RENAMED = {"num_channels": "channels", "use_checkpointing": "use_checkpoint"}
_OLD_NAMES = ((".attn.to_", ".to_"), (".attn.out_proj.", ".proj_attn."), (".out_proj.", ".to_out.0."), (".postconv.", ".conv."))


class MonaiUNet(AdaptedUNet):
    """MONAI's `DiffusionModelUNet` (Pinaya et al. 2022; Rombach et al. 2022).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the noisy image, without the dense condition's; 0 for regression.
        out_channels: channels of the result.
        channels: one number per level, finest first.
        blocks: residual blocks per level, one number for all or one each.
        condition: sizes {"vector": E, "dense": K, "tokens": E'}: E rows of the class embedding, K more input channels, cross-attention.
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
        blocks: int | Sequence[int] = 2,
        condition: Mapping[str, int] | None = None,
        timesteps: Timesteps | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        from monai.networks.nets import DiffusionModelUNet

        channels, sizes = check_levels("MonaiUNet", spatial_dims, channels), role_sizes(condition, network="MonaiUNet")
        fixed = {
            "spatial_dims": spatial_dims,
            "in_channels": in_channels + sizes["dense"],
            "out_channels": out_channels,
            "channels": channels,
            "num_res_blocks": blocks,
            "with_conditioning": bool(sizes["tokens"]),
            "cross_attention_dim": sizes["tokens"] or None,
            "num_class_embeds": sizes["vector"] or None,
        }
        ours = {
            "attention_levels": last_only(channels, True, False),
            "norm_num_groups": divisor(32, channels),
            "num_head_channels": divisor(8, channels),
        }
        network = built(DiffusionModelUNet, fixed, {**ours, **(settings or {})})
        if sizes["vector"]:
            network.class_embedding = Rows.of(network.class_embedding)
        super().__init__(network, spatial_dims, 2 ** (len(channels) - 1), in_channels, sizes, timesteps or Evenly())

    @staticmethod
    def arguments(config: Mapping[str, Any], dense: int = 0) -> dict[str, Any]:
        """This adapter's arguments for weights of a `DiffusionModelUNet(**config)`.

        Args:
            config: arguments of the original.
            dense: how many of its input channels, the last ones, are a condition.
        """
        from monai.networks.nets import DiffusionModelUNet

        values = complete(DiffusionModelUNet, _renamed(config), strict=True)
        handled = ("spatial_dims", "in_channels", "out_channels", "channels", "num_res_blocks")
        roles = ("with_conditioning", "cross_attention_dim", "num_class_embeds")
        explicit = ("attention_levels", "norm_num_groups", "num_head_channels")
        return {
            "spatial_dims": values["spatial_dims"],
            "in_channels": values["in_channels"] - dense,
            "out_channels": values["out_channels"],
            "channels": values["channels"],
            "blocks": values["num_res_blocks"],
            "condition": {"vector": values["num_class_embeds"] or 0, "dense": dense, "tokens": values["cross_attention_dim"] or 0},
            "settings": changed(DiffusionModelUNet, values, (*handled, *roles), explicit),
        }

    def load_original(self, weights: Mapping[str, Tensor]) -> None:
        super().load_original(_current_names(self.network, weights))

    def _predict(self, image: Tensor, steps: Tensor, vector: Tensor | None, tokens: Tensor | None) -> Tensor:
        return self.network(image, steps, context=tokens, class_labels=vector)


class MonaiAutoencoder(AdaptedAutoencoder):
    """MONAI's `AutoencoderKL`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        latent: channels of the latent image.
        channels: one number per level, finest first.
        blocks: residual blocks per level, one number for all or one each.
        condition: must be empty or zeros: this autoencoder takes no condition.
        settings: further arguments of the original. Without other word there is attention in the middle only, and what does not divide
            the channels is lowered.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        latent: int = 3,
        channels: Sequence[int] = (32, 64, 128),
        blocks: int | Sequence[int] = 2,
        condition: Mapping[str, int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        from monai.networks.nets import AutoencoderKL

        channels = check_levels("MonaiAutoencoder", spatial_dims, channels)
        fixed = {
            "spatial_dims": spatial_dims,
            "in_channels": in_channels,
            "out_channels": in_channels,
            "latent_channels": latent,
            "channels": channels,
            "num_res_blocks": blocks,
        }
        ours = {"attention_levels": [False] * len(channels), "norm_num_groups": divisor(32, channels)}
        network = built(AutoencoderKL, fixed, {**ours, **(settings or {})})
        super().__init__(network, spatial_dims, 2 ** (len(channels) - 1), in_channels, latent, condition)

    @staticmethod
    def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
        """This adapter's arguments for weights of an `AutoencoderKL(**config)`."""
        from monai.networks.nets import AutoencoderKL

        values = complete(AutoencoderKL, _renamed(config), strict=True)
        handled = ("spatial_dims", "in_channels", "out_channels", "latent_channels", "channels", "num_res_blocks", "use_checkpoint")
        return {
            "spatial_dims": values["spatial_dims"],
            "in_channels": values["in_channels"],
            "latent": values["latent_channels"],
            "channels": values["channels"],
            "blocks": values["num_res_blocks"],
            "settings": changed(AutoencoderKL, values, handled, ("attention_levels", "norm_num_groups")),
        }

    def load_original(self, weights: Mapping[str, Tensor]) -> None:
        super().load_original(_current_names(self.network, weights))

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.network.encode(x)
        return mean, 2 * torch.log(std.float())

    def _image(self, z: Tensor) -> Tensor:
        return self.network.decode(z)


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of MONAI Generative, where these networks came from, under their names in MONAI."""
    return {_RENAMED.get(key, key): value for key, value in config.items()}


def _current_names(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of MONAI Generative under MONAI's names; all others stay as they are."""
    own = network.state_dict()
    current = {_name_in_generative(key): key for key in own}
    return {key if key in own else current.get(key, key): value for key, value in weights.items()}


def _name_in_generative(key: str) -> str:
    for now, before in _OLD_NAMES:
        key = key.replace(now, before)
    return key
