"""Training step of the KL autoencoder beside MONAI's and diffusers' layers: time and saved activations.

The peers are put together from their own blocks in medgen's arrangement, so that all have the same convolutions: their residual blocks and
resampling, one more block per level in the decoder than in the encoder, the change of channels in the upsampling convolution, no middle
blocks, no attention, and the same groups in every norm. Ratios above 1 mean that medgen is faster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from _measure import Row
from _training import best_times, megabytes, told
from torch import Tensor, nn

from medgen.nn.autoencoder import AutoencoderKL
from medgen.nn.norm import group_count

LATENT, EPS = 4, 1e-6


@dataclass(frozen=True)
class Case:
    """A grid, its batch and the channels of the levels."""

    name: str
    size: tuple[int, ...]
    batch: int
    channels: tuple[int, ...] = (32, 64, 128)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, 1, *self.size)


CASES = (Case("2D 128^2 b4", (128, 128), 4), Case("3D 48^3 b1", (48, 48, 48), 1))


class Medgen(nn.Module):
    """Image and noise to the decoded draw and KL (B,)."""

    def __init__(self, case: Case):
        super().__init__()
        self.network = AutoencoderKL(len(case.size), 1, LATENT, case.channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.network.encode(x)
        return self.network.decode(moments.draw(torch.randn_like(moments.mean)), x.shape[2:]), moments.divergence()


class Monai(nn.Module):
    """The same with MONAI's layers."""

    def __init__(self, case: Case):
        super().__init__()
        from monai.networks.nets.autoencoderkl import AutoencoderKL

        flags, groups = (False,) * len(case.channels), group_count(case.channels[0])
        self.network = AutoencoderKL(
            spatial_dims=len(case.size),
            num_res_blocks=1,
            channels=case.channels,
            attention_levels=flags,
            latent_channels=LATENT,
            norm_num_groups=groups,
            norm_eps=EPS,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.network.decoder.blocks = nn.ModuleList(_monai_decoder(len(case.size), case.channels, groups))
        _match_groups(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, sigma = self.network.encode(x)
        image = self.network.decode(self.network.sampling(mean, sigma))
        return image, 0.5 * (mean**2 + sigma**2 - torch.log(sigma**2) - 1).flatten(1).sum(1)


def _monai_decoder(dims: int, channels: tuple[int, ...], groups: int) -> Iterator[nn.Module]:
    from monai.networks.blocks import Convolution, UpSample
    from monai.networks.nets.autoencoderkl import AEKLResBlock

    def conv(inputs: int, outputs: int) -> nn.Module:
        return Convolution(spatial_dims=dims, in_channels=inputs, out_channels=outputs, strides=1, kernel_size=3, padding=1, conv_only=True)

    yield conv(LATENT, channels[-1])
    for level in reversed(range(len(channels))):
        width = channels[level]
        for _ in range(2):
            yield AEKLResBlock(dims, width, groups, EPS, width)
        if level:
            after = conv(width, channels[level - 1])
            yield UpSample(dims, width, width, 2.0, mode="nontrainable", interp_mode="nearest", post_conv=after, align_corners=None)
    yield nn.GroupNorm(groups, channels[0], EPS)
    yield conv(channels[0], 1)


class Diffusers(nn.Module):
    """The same with diffusers' layers, 2D only."""

    def __init__(self, case: Case):
        super().__init__()
        from diffusers import AutoencoderKL

        levels, groups = len(case.channels), group_count(case.channels[0])
        self.network = AutoencoderKL(
            1,
            1,
            ("DownEncoderBlock2D",) * levels,
            ("UpDecoderBlock2D",) * levels,
            case.channels,
            latent_channels=LATENT,
            norm_num_groups=groups,
            mid_block_add_attention=False,
        )
        self.network.encoder.mid_block = Through()
        self.network.decoder.mid_block = Through()
        self.network.decoder.up_blocks = nn.ModuleList(_diffusers_levels(case.channels, groups))
        _match_groups(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.network.encode(x).latent_dist
        return self.network.decode(posterior.sample()).sample, posterior.kl()


class Through(nn.Module):
    """In place of the middle blocks, which medgen does not have."""

    def forward(self, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        return sample


def _diffusers_levels(channels: tuple[int, ...], groups: int) -> Iterator[nn.Module]:
    from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
    from diffusers.models.upsampling import Upsample2D

    for level in reversed(range(len(channels))):
        width = channels[level]
        block = UpDecoderBlock2D(width, width, num_layers=2, resnet_groups=groups, add_upsample=level > 0, temb_channels=None)
        if level:
            block.upsamplers[0] = Upsample2D(width, use_conv=True, out_channels=channels[level - 1])
        yield block


def _match_groups(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = group_count(module.num_channels)


def loss(network: nn.Module, x: Tensor) -> Tensor:
    """Squared error and a light KL."""
    image, divergence = network(x)
    return (image.float() - x).square().mean() + 1e-6 * divergence.float().mean()


PEERS: dict[str, Callable[[Case], nn.Module]] = {"MONAI": Monai, "diffusers": Diffusers}


def case_rows(case: Case, bf16: bool, rounds: int) -> list[Row]:
    peers = {name: partial(build, case) for name, build in PEERS.items() if name == "MONAI" or len(case.size) == 2}
    builders = {"medgen": partial(Medgen, case), **peers}
    best = best_times(builders, case.shape, loss, bf16, rounds)
    speed = min(best[name][0] for name in peers) / best["medgen"][0]
    asked = 1.05 if bf16 else 1.0
    saved = {name: megabytes(build, case.shape, loss, bf16) for name, build in builders.items()}
    least = min(saved[name] for name in peers)
    name, kept = f"KL autoencoder step {case.name}, {'bf16' if bf16 else 'fp32'}", ", ".join(f"{n} {s:.0f}" for n, s in saved.items())
    return [
        Row(name, f"{speed:.2f} x the best peer's speed; {told(best)}", f"at least {asked:.2f}", speed >= asked),
        Row(
            f"{name}, saved activations",
            f"{saved['medgen'] / least:.2f} of the leanest peer's; MB: {kept}",
            "at most 1.00",
            saved["medgen"] <= least,
        ),
    ]


def rows(rounds: int = 5) -> Iterator[Row]:
    """All cases in float32 and under bfloat16 autocast."""
    for case in CASES:
        for bf16 in (False, True):
            yield from case_rows(case, bf16, rounds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows(int(sys.argv[1]) if sys.argv[1:] else 5):
        print(row, flush=True)
