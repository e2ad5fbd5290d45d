"""An nD patch critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.nn.conditioning import Conditioning, role_sizes
from medgen.nn.grid import CONVOLUTIONS, check_levels, convolution, pad_to_multiple


class PatchCritic(nn.Module):
    """One logit per patch (Isola et al. 2017), the vector condition by projection (Miyato and Koyama 2018).

    With spectral norm (Miyato et al. 2018) every forward in training mode advances a power iteration whose vectors are buffers: two
    calls with the same input differ slightly, and the buffers belong to the state. In evaluation mode they stand still.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image that is judged.
        channels: one number per halving of the grid.
        condition: sizes {"vector": E, "dense": K}; dense is concatenated to the image. Tokens are not taken.
        spectral: divide every weight by its largest singular value.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int] = (32, 64, 128),
        condition: Mapping[str, int] | None = None,
        spectral: bool = True,
    ):
        super().__init__()
        channels = check_levels("PatchCritic", spatial_dims, channels)
        sizes = role_sizes(condition, ("vector", "dense"), "PatchCritic")
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.conditioning = _Projection(sizes, channels[-1], "PatchCritic")
        widths = (in_channels + sizes["dense"], *channels)
        wrap = spectral_norm if spectral else (lambda module: module)
        strided = [wrap(CONVOLUTIONS[spatial_dims](a, b, 4, 2, 1)) for a, b in pairwise(widths)]
        self.strided, self.last = nn.ModuleList(strided), wrap(convolution(spatial_dims, channels[-1], channels[-1]))
        self.logit = wrap(convolution(spatial_dims, channels[-1], 1))
        if sizes["vector"]:
            self.conditioning.embed = wrap(self.conditioning.embed)
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        """x (B, C, *S) -> logits (B, 1, *s) with s = S / 2^levels rounded up.

        Raises:
            MedgenError: a role that is not taken or a wrong number of channels.
        """
        self.conditioning.check(condition, len(x))
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise MedgenError(
                f"PatchCritic expects (B, {self.in_channels}, *S) with {self.spatial_dims} spatial axes, found shape {tuple(x.shape)}"
            )
        dense = self.conditioning.dense(condition, len(x), x.shape[2:])
        h = pad_to_multiple(x if dense is None else torch.cat([x, dense.to(x.dtype)], 1), 2 ** len(self.strided))
        for layer in self.strided:
            h = self.activation(layer(h))
        h = self.activation(self.last(h))
        logits = self.logit(h)
        vector = self.conditioning.vector(condition, len(x))
        if vector is None:
            return logits
        direction = vector.reshape(*vector.shape, *(1 for _ in x.shape[2:]))
        return logits + (direction * h).sum(1, keepdim=True)


class _Projection(Conditioning):
    """The vector's embedding is one linear map into the critic's last features."""

    def __init__(self, sizes: Mapping[str, int], width: int, network: str):
        super().__init__(sizes, width, network)
        if sizes["vector"]:
            self.embed = nn.Linear(sizes["vector"], width, bias=False)
