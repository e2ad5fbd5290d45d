"""An nD encoder-decoder that makes an image in one pass, from a latent vector, a dense condition or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.nn.blocks import NormConv, ResBlock, Upsample, embedding_width
from medgen.nn.conditioning import Conditioning, role_sizes
from medgen.nn.grid import ceil_div, check_levels, convolution, crop, pad_to_multiple

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Generator(nn.Module):
    """With a dense condition an encoder, skip connections and a decoder; without, a decoder that starts from a learned constant.

    The latent vector and the vector condition scale and shift the normalised activations of every block (Karras et al. 2019). The output
    is linear: normalised MR values exceed 1.

    Args:
        spatial_dims: 2 or 3.
        out_channels: channels of the image.
        channels: one number per level, finest first; each level halves the grid.
        blocks: residual blocks per level.
        latent: width of the latent vector z, 0 for none.
        condition: sizes {"vector": E, "dense": K}. Tokens are not taken.
        base: positions per axis of the learned constant.
    """

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128),
        blocks: int = 1,
        latent: int = 0,
        condition: Mapping[str, int] | None = None,
        base: int = 4,
    ):
        super().__init__()
        channels = check_levels("Generator", spatial_dims, channels)
        sizes = role_sizes(condition, ("vector", "dense"), "Generator")
        if not (latent or sizes["vector"] or sizes["dense"]):
            raise MedgenError("Generator has no input: set latent, condition.vector or condition.dense")
        self.spatial_dims, self.latent, self.levels = spatial_dims, latent, len(channels)
        width = embedding_width(channels[0]) if latent or sizes["vector"] else 0
        self.conditioning = Conditioning(sizes, width, "Generator")
        self.mapping = nn.Sequential(nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, width)) if latent else None

        def block(inputs: int, outputs: int) -> ResBlock:
            return ResBlock(spatial_dims, inputs, outputs, width, quiet=False)

        self.encoder, self.decoder, self.constant = None, nn.ModuleList(), None
        if sizes["dense"]:
            self.encoder = nn.ModuleList([convolution(spatial_dims, sizes["dense"], channels[0])])
            for level, out in enumerate(channels):
                before = channels[max(level - 1, 0)]
                if level:
                    self.encoder.append(convolution(spatial_dims, before, before, stride=2))
                self.encoder.extend(block(before if i == 0 else out, out) for i in range(blocks))
        else:
            self.constant = nn.Parameter(torch.randn(channels[-1], *(base,) * spatial_dims))
        for level in reversed(range(len(channels))):
            out = channels[level]
            joined = 2 * out if sizes["dense"] and level < len(channels) - 1 else out
            self.decoder.extend(block(joined if i == 0 else out, out) for i in range(blocks))
            if level:
                self.decoder.append(Upsample(spatial_dims, out, channels[level - 1]))
        self.output = NormConv(convolution(spatial_dims, channels[0], out_channels), channels[0])

    def forward(self, z: Tensor | None, condition: Condition | None = None, size: tuple[int, ...] | None = None) -> Tensor:
        """z (B, latent), condition and the grid `size` -> (B, out, *S). `size` may be left out where there is a dense condition.

        Raises:
            MedgenError: a missing or unexpected latent, size or role.
        """
        batch = self._batch(z, condition)
        self.conditioning.check(condition, batch)
        size = self._size(condition, size)
        embedding = self._embedding(z, condition, batch)
        h, skips = self._start(condition, embedding, batch, size)
        for part in self.decoder:
            if not isinstance(part, Upsample):
                h = part(h, embedding)
                continue
            h = part(h)
            h = torch.cat([h, skips.pop()], 1) if skips else h
        return crop(self.output(h), size)

    def _start(self, condition: Condition | None, embedding: Tensor | None, batch: int, size: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The coarsest features, and the encoder's features of the finer levels."""
        if self.encoder is None:
            grid = ceil_div(size, 2 ** (self.levels - 1))
            constant = F.interpolate(self.constant[None], grid, mode=LINEAR[self.spatial_dims], align_corners=False)
            return constant.expand(batch, *constant.shape[1:]), []
        h = pad_to_multiple(self.conditioning.dense(condition, batch, size), 2 ** (self.levels - 1))
        skips = []
        for part in self.encoder:
            if not isinstance(part, ResBlock):
                skips.append(h)
                h = part(h)
                continue
            h = part(h, embedding)
        return h, skips[1:]

    def _embedding(self, z: Tensor | None, condition: Condition | None, batch: int) -> Tensor | None:
        embedding = self.conditioning.vector(condition, batch)
        if z is not None:
            mapped = self.mapping(z)
            embedding = mapped if embedding is None else embedding + mapped
        return None if embedding is None else F.silu(embedding)

    def _batch(self, z: Tensor | None, condition: Condition | None) -> int:
        if (z is None) != (not self.latent) or (z is not None and z.shape[1] != self.latent):
            found = "none" if z is None else f"width {z.shape[1]}"
            raise MedgenError(f"Generator expects a latent of width {self.latent}, found {found}; set latent to what the model draws")
        given = len(z) if z is not None else len(condition) if condition is not None else 0
        if not given:
            raise MedgenError("Generator without a latent needs a condition to know the batch: pass one")
        return given

    def _size(self, condition: Condition | None, size: Sequence[int] | None) -> tuple[int, ...]:
        if size is None and condition is not None and condition.dense is not None:
            return tuple(condition.dense.shape[2:])
        if size is None or len(size) != self.spatial_dims:
            raise MedgenError(
                f"Generator needs `size` with {self.spatial_dims} numbers where no dense condition gives the grid, found {size}"
            )
        return tuple(size)
