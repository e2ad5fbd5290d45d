"""An nD autoencoder with a Gaussian latent image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.model import Moments
from medgen.nn.blocks import NormConv, ResBlock, Upsample, embedding_width
from medgen.nn.conditioning import Conditioning, role_sizes
from medgen.nn.grid import ceil_div, check_levels, convolution, crop, pad_to_multiple
from medgen.nn.norm import in_layout_of


class AutoencoderKL(nn.Module):
    """Image to the moments of a latent image and back (Kingma and Welling 2014; as a codec Rombach et al. 2022).

    Any size is taken: the image is padded inside to a multiple of `factor`, and what is decoded is cropped to the size asked for.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        latent: channels of the latent image.
        channels: one number per level, finest first; each further level halves the grid.
        blocks: residual blocks per level.
        condition: sizes {"vector": E, "dense": K}; the vector modulates every block, dense joins the image and each level of the decoder.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        latent: int = 4,
        channels: Sequence[int] = (32, 64, 128),
        blocks: int = 1,
        condition: Mapping[str, int] | None = None,
    ):
        super().__init__()
        channels = check_levels("AutoencoderKL", spatial_dims, channels)
        sizes = role_sizes(condition, ("vector", "dense"), "AutoencoderKL")
        self.spatial_dims, self.in_channels, self.latent = spatial_dims, in_channels, latent
        self.factor = 2 ** (len(channels) - 1)
        width = embedding_width(channels[0]) if sizes["vector"] else 0
        self.conditioning = Conditioning(sizes, width, "AutoencoderKL")

        def block(inputs: int, outputs: int) -> ResBlock:
            return ResBlock(spatial_dims, inputs, outputs, width)

        self.encoder, current = nn.ModuleList([convolution(spatial_dims, in_channels + sizes["dense"], channels[0])]), channels[0]
        for level, out in enumerate(channels):
            if level:
                self.encoder.append(convolution(spatial_dims, current, current, stride=2))
            self.encoder.extend(block(current if i == 0 else out, out) for i in range(blocks))
            current = out
        self.moments = NormConv(convolution(spatial_dims, current, 2 * latent), current)
        self.expand, self.decoder = convolution(spatial_dims, latent, current), nn.ModuleList()
        for level in reversed(range(len(channels))):
            out = channels[level]
            self.decoder.extend(block(out + sizes["dense"] if i == 0 else out, out) for i in range(blocks + 1))
            if level:
                self.decoder.append(Upsample(spatial_dims, out, channels[level - 1]))
        self.output = NormConv(convolution(spatial_dims, channels[0], in_channels), channels[0])

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the latent image for images of `shape` (B, C, *S)."""
        return (shape[0], self.latent, *ceil_div(shape[2:], self.factor))

    def encode(self, x: Tensor, condition: Condition | None = None) -> Moments:
        """x (B, C, *S) -> mean and log-variance (B, latent, *ceil(S / factor)).

        Raises:
            MedgenError: a wrong number of channels or axes, a role that is not taken.
        """
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise MedgenError(
                f"AutoencoderKL expects (B, {self.in_channels}, *S) with {self.spatial_dims} spatial axes, found shape {tuple(x.shape)}"
            )
        self.conditioning.check(condition, len(x))
        embedding, dense = self._given(condition, len(x), x.shape[2:])
        h = pad_to_multiple(x if dense is None else torch.cat([x, dense.to(x.dtype)], 1), self.factor)
        first, *parts = self.encoder
        h = in_layout_of(first(h), self.moments.conv.weight)
        for part in parts:
            h = part(h, embedding) if isinstance(part, ResBlock) else part(h)
        mean, log_variance = self.moments(h).float().chunk(2, 1)
        return Moments(mean, log_variance.clamp(-30.0, 20.0))

    def decode(self, z: Tensor, size: Sequence[int], condition: Condition | None = None) -> Tensor:
        """z (B, latent, *ceil(size / factor)) -> (B, C, *size).

        Raises:
            MedgenError: a latent image that does not belong to `size`.
        """
        if tuple(z.shape[1:]) != self.latent_shape((1, 1, *size))[1:]:
            expected = self.latent_shape((len(z), 1, *size))
            raise MedgenError(f"AutoencoderKL: a latent image of shape {tuple(z.shape)} does not decode to {list(size)}, {expected} does")
        self.conditioning.check(condition, len(z))
        embedding, dense = self._given(condition, len(z), size)
        dense = None if dense is None else pad_to_multiple(dense, self.factor)
        h, fresh = in_layout_of(self.expand(z.to(self.expand.weight.dtype)), self.output.conv.weight), True
        for part in self.decoder:
            h = part(_joined(h, dense) if fresh else h, embedding) if isinstance(part, ResBlock) else part(h)
            fresh = not isinstance(part, ResBlock)
        return crop(self.output(h), size).to(z.dtype)

    def _given(self, condition: Condition | None, batch: int, size: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        """The activated embedding and the dense condition on the image's grid."""
        vector = self.conditioning.vector(condition, batch)
        return None if vector is None else F.silu(vector), self.conditioning.dense(condition, batch, size)


def _joined(h: Tensor, dense: Tensor | None) -> Tensor:
    """`dense` averaged to the grid of h and put beside it."""
    if dense is None:
        return h
    return torch.cat([h, F.interpolate(dense.to(h.dtype), size=h.shape[2:], mode="area")], 1)
