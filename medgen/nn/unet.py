"""An nD U-Net for denoising, regression and anything else that maps an image to an image of the same size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.nn.attention import Attention
from medgen.nn.blocks import Fourier, NormConv, ResBlock, Upsample, embedding_width, zero
from medgen.nn.conditioning import Conditioning, role_sizes
from medgen.nn.grid import check_levels, convolution, crop, depth_to_space, pad_to_multiple, space_to_depth
from medgen.nn.norm import in_layout_of


class UNet(nn.Module):
    """The residual U-Net of Ho et al. 2020 with the adaptive normalisation of Dhariwal and Nichol 2021.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels C of the noisy image; 0 for a network that sees the dense condition only, and then takes no noise level.
        out_channels: channels of the result.
        channels: one number per level, finest first; each level halves the grid.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: one flag per level; empty means at the coarsest level only. The middle follows the coarsest level.
        condition: sizes of the roles that are taken, {"vector": E, "dense": K, "tokens": E'}; missing or 0 means not taken.
        patch: side of the cells that become channels before the first convolution and pixels again after the last (simple diffusion,
            Hoogeboom et al. 2023): at 2 the network runs on a grid of half the side, in 2D for about a quarter of the cost.
        checkpointing: compute normalised activations again in the backward pass instead of keeping them: about half the memory.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256),
        blocks: int = 2,
        attention: Sequence[bool] = (),
        condition: Mapping[str, int] | None = None,
        patch: int = 1,
        checkpointing: bool = False,
    ):
        super().__init__()
        channels = check_levels("UNet", spatial_dims, channels)
        sizes = role_sizes(condition, network="UNet")
        flags = _attention_flags(attention, len(channels))
        _check_inputs(in_channels, sizes, flags, patch)
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.patch, self.multiple = patch, patch * 2 ** (len(channels) - 1)
        width = embedding_width(channels[0]) if in_channels or sizes["vector"] else 0
        self.conditioning = Conditioning(sizes, width, "UNet")
        self.time = _time_embedding(channels[0], width) if in_channels else None
        self.input = convolution(spatial_dims, (in_channels + sizes["dense"]) * patch**spatial_dims, channels[0])

        def block(inputs: int, outputs: int, attend: bool) -> _Stage:
            residual = ResBlock(spatial_dims, inputs, outputs, width, recompute=checkpointing)
            return _Stage(residual, Attention(outputs, sizes["tokens"]) if attend else None)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, current = [channels[0]], channels[0]
        for level, (out, attend) in enumerate(zip(channels, flags, strict=True)):
            for _ in range(blocks):
                self.down.append(block(current, out, attend))
                current = out
                skips.append(current)
            if level < len(channels) - 1:
                self.down.append(convolution(spatial_dims, current, current, stride=2))
                skips.append(current)
        self.middle = nn.ModuleList([block(current, current, flags[-1]), block(current, current, False)])
        for level, (out, attend) in reversed(list(enumerate(zip(channels, flags, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), out, attend))
                current = out
            if level:
                self.up.append(Upsample(spatial_dims, current, current))
        self.output = NormConv(zero(convolution(spatial_dims, current, out_channels * patch**spatial_dims)), current, checkpointing)

    def forward(self, x: Tensor | None, t: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        """x (B, C, *S) or None for a network without image input; t (B,) noise coordinate such as ln(sigma) / 4 -> (B, out, *S).

        A role that is taken and is not given, or is absent for a sample, is replaced by its learned null. The sizes S are free.

        Raises:
            MedgenError: a role that is not taken, a wrong number of channels, an image where none is taken or the reverse.
        """
        given = self._given(x, t, condition)
        batch, size = given.shape[0], given.shape[2:]
        self.conditioning.check(condition, batch)
        embedding = self._embedding(t, condition, batch)
        tokens = self.conditioning.tokens(condition, batch)
        h = self.input(space_to_depth(pad_to_multiple(self._stack(x, condition, batch, size), self.multiple), self.patch))
        h = in_layout_of(h, self.output.conv.weight)
        return crop(depth_to_space(self._walk(h, embedding, tokens), self.patch), size).to(given.dtype)

    def _walk(self, h: Tensor, embedding: Tensor | None, tokens: Tensor | None) -> Tensor:
        skips = [h]
        for part in self.down:
            h = part(h, embedding, tokens) if isinstance(part, _Stage) else part(h)
            skips.append(h)
        for part in self.middle:
            h = part(h, embedding, tokens)
        for part in self.up:
            h = part(torch.cat([h, skips.pop()], 1), embedding, tokens) if isinstance(part, _Stage) else part(h)
        return self.output(h)

    def _given(self, x: Tensor | None, t: Tensor | None, condition: Condition | None) -> Tensor:
        """The tensor that defines batch, grid and dtype."""
        if self.in_channels and (x is None or x.shape[1] != self.in_channels):
            found = "none" if x is None else f"{x.shape[1]} channels"
            raise MedgenError(
                f"UNet expects an image with {self.in_channels} channels, found {found}; set in_channels to what the model passes"
            )
        if not self.in_channels and (x is not None or t is not None):
            raise MedgenError(
                "UNet was built with in_channels=0: it sees the dense condition only; pass x=None and t=None, or set in_channels"
            )
        if x is None and (condition is None or condition.dense is None):
            raise MedgenError("UNet with in_channels=0 needs a dense condition: without one there is no image to map")
        given = condition.dense if x is None else x
        if given.ndim != self.spatial_dims + 2:
            raise MedgenError(
                f"UNet with spatial_dims={self.spatial_dims} expects (B, C, *S) with as many spatial axes, found shape {tuple(given.shape)}"
            )
        return given

    def _stack(self, x: Tensor | None, condition: Condition | None, batch: int, size: Sequence[int]) -> Tensor:
        dense = self.conditioning.dense(condition, batch, size)
        kind = self.input.weight.dtype
        parts = [part.to(kind) for part in (x, dense) if part is not None]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def _embedding(self, t: Tensor | None, condition: Condition | None, batch: int) -> Tensor | None:
        """(B, E) after its activation, or None where nothing modulates."""
        embedding = self.conditioning.vector(condition, batch)
        if t is not None:
            wave = self.time(t.expand(batch).to(self.input.weight.device))
            embedding = wave if embedding is None else embedding + wave
        return None if embedding is None else F.silu(embedding)


class _Stage(nn.Module):
    """A residual block and, at some levels, attention."""

    def __init__(self, block: ResBlock, attention: Attention | None):
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, embedding: Tensor | None, tokens: Tensor | None) -> Tensor:
        x = self.block(x, embedding)
        return x if self.attention is None else self.attention(x, tokens)


class _TimeEmbedding(nn.Module):
    def __init__(self, features: int, width: int):
        super().__init__()
        self.waves, self.first, self.second = Fourier(features), nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        return self.second(F.silu(self.first(self.waves(t).to(self.first.weight.dtype))))


def _time_embedding(first: int, width: int) -> _TimeEmbedding:
    return _TimeEmbedding(max(first // 2 * 2, 32), width)


def _attention_flags(attention: Sequence[bool], levels: int) -> tuple[bool, ...]:
    if not len(attention):
        return (False,) * (levels - 1) + (True,)
    if len(attention) != levels:
        raise MedgenError(f"UNet: attention has {len(attention)} flags for {levels} levels; give one per level or leave it empty")
    return tuple(bool(flag) for flag in attention)


def _check_inputs(in_channels: int, sizes: Mapping[str, int], flags: Sequence[bool], patch: int) -> None:
    if patch < 1:
        raise MedgenError(f"UNet: patch is {patch}; expected 1 (every pixel) or the side of the cells, such as 2")
    if not in_channels and not sizes["dense"]:
        raise MedgenError("UNet with in_channels=0 has no input: set in_channels or condition.dense")
    if sizes["tokens"] and not any(flags):
        raise MedgenError("UNet takes tokens by cross-attention: set at least one flag of `attention`, or condition.tokens to 0")
