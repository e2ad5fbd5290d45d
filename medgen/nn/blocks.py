"""The parts that the convolutional networks share: residual block, resampling, embedding of a noise level."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from medgen.nn.grid import convolution
from medgen.nn.norm import NormSiLU, is_channels_last, norm_silu


def zero(module: nn.Module) -> nn.Module:
    """The same module with its parameters set to zero, so that a residual branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Fourier(nn.Module):
    """Cosines and sines of a small real number (about -5 to 5), at frequencies from 1/4 to 64 rad in even ratios.

    Args:
        width: number of features, even.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-2, 6, width // 2, base=2), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> (B, width), float32 whatever the precision of the network."""
        angles = t.float()[:, None] * self.frequencies.float()
        return torch.cat([angles.cos(), angles.sin()], 1)


class Pointwise(nn.Linear):
    """A 1x1 convolution written as a matrix product, in the layout that x (B, C, *S) has."""

    def forward(self, x: Tensor) -> Tensor:
        if is_channels_last(x):
            return F.linear(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)
        y = torch.bmm(self.weight.expand(len(x), -1, -1), x.flatten(2))
        return y.add_(self.bias.to(y.dtype)[:, None]).unflatten(2, x.shape[2:])


class Upsample(nn.Module):
    """Nearest-neighbour doubling followed by a 3-wide convolution, computed as the one transposed convolution that equals both.

    Each kernel axis (w0, w1, w2) becomes (w2, w1 + w2, w0 + w1, w0) with stride 2: the doubled image is never stored, and 4 instead of 9
    products are left per output pixel in 2D, 8 instead of 27 in 3D.
    """

    def __init__(self, spatial_dims: int, inputs: int, outputs: int):
        super().__init__()
        self.conv = convolution(spatial_dims, inputs, outputs)
        self.transposed = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[spatial_dims]

    def forward(self, x: Tensor) -> Tensor:
        return self.transposed(x, self.kernel(), self.conv.bias, stride=2, padding=1)

    def kernel(self) -> Tensor:
        """(inputs, outputs, 4, ...) from the convolution's (outputs, inputs, 3, ...)."""
        w = self.conv.weight
        spatial = range(2, w.ndim)
        w = w.flip(tuple(spatial))
        for axis in spatial:
            edge = [0, 0] * (w.ndim - 1 - axis)
            w = F.pad(w, [*edge, 0, 1]) + F.pad(w, [*edge, 1, 0])
        return w.transpose(0, 1)


class NormConv(nn.Module):
    """Normalisation, SiLU and convolution.

    Args:
        recompute: keep only the norm's input for the backward pass, and compute what the convolution was given again (selective
            checkpointing without reentry: the convolution runs once, the cheap maps before it twice).
    """

    def __init__(self, conv: nn.Module, channels: int, recompute: bool = False):
        super().__init__()
        self.norm, self.conv, self.recompute = NormSiLU(channels), conv, recompute

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        if not self.recompute or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.conv(self.norm(x, modulation))
        weight, bias = self.norm.affine(x, modulation)
        hidden = norm_silu(x, weight, bias, self.norm.groups)
        x, weight, bias = x.detach(), weight.detach(), bias.detach()
        with recomputed(hidden, lambda: norm_silu(x, weight, bias, self.norm.groups)):
            return self.conv(hidden)


def recomputed(value: Tensor, again: Callable[[], Tensor]) -> saved_tensors_hooks:
    """Inside this context autograd does not keep `value` but calls `again` for it in the backward pass."""
    place = _place(value)

    def pack(saved: Tensor) -> Tensor | None:
        return None if _place(saved) == place else saved

    def unpack(packed: Tensor | None) -> Tensor:
        if packed is not None:
            return packed
        with torch.no_grad():
            return again()

    return saved_tensors_hooks(pack, unpack)


def _place(value: Tensor) -> tuple[int, int, torch.Size]:
    """What makes two tensors the same values, also where there is no memory behind them (a memory plan)."""
    return value.untyped_storage()._cdata, value.storage_offset(), value.shape


class ResBlock(nn.Module):
    """Two normalised convolutions beside a shortcut; the embedding scales and shifts the second norm (Dhariwal and Nichol 2021, ADM).

    Args:
        embedding: width of the embedding, 0 for a block without.
        quiet: start as the shortcut alone (zero second convolution, as in ADM and EDM).
        recompute: see `NormConv`.
    """

    def __init__(self, spatial_dims: int, inputs: int, outputs: int, embedding: int = 0, quiet: bool = True, recompute: bool = False):
        super().__init__()
        second = convolution(spatial_dims, outputs, outputs)
        self.first = NormConv(convolution(spatial_dims, inputs, outputs), inputs, recompute)
        self.second = NormConv(zero(second) if quiet else second, outputs, recompute)
        self.modulation = nn.Linear(embedding, 2 * outputs) if embedding else None
        self.shortcut = Pointwise(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x (B, inputs, *S), embedding (B, E) already activated -> (B, outputs, *S)."""
        modulation = None if embedding is None or self.modulation is None else self.modulation(embedding)
        return self.shortcut(x) + self.second(self.first(x), modulation)


def embedding_width(first: int) -> int:
    """Width of the embedding for a network whose finest level has `first` channels."""
    return 4 * math.ceil(first / 2) * 2
