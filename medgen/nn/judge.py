"""Small networks that are trained only to judge images: what a classifier can learn from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medgen.nn.grid import CONVOLUTIONS, convolution


class SmallClassifier(nn.Module):
    """Convolutions that halve the grid, pooled and read out. Any size of at least 2^levels.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        classes: logits.
        channels: one number per halving.
    """

    def __init__(self, spatial_dims: int, in_channels: int, classes: int, channels: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((in_channels, *channels[:-1]), channels, strict=True):
            layers += [convolution(spatial_dims, before, after, 3, stride=2), nn.GroupNorm(min(8, after), after), nn.SiLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, classes)."""
        return self.head(self.body(x).flatten(2).mean(2))


class MultiScaleTransformer(nn.Module):
    """Tokens of cells of several sizes, all attended to together: coarse ones see anatomy, fine ones texture.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        classes: logits.
        cells: sides of the cells; images are padded to multiples of the largest.
        width, depth, heads: of the transformer.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        classes: int,
        cells: tuple[int, ...] = (8, 16, 32),
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
    ):
        super().__init__()
        self.cells = cells
        kind = CONVOLUTIONS[spatial_dims]
        self.stems = nn.ModuleList(kind(in_channels, width, cell, stride=cell) for cell in cells)
        self.scales = nn.Parameter(torch.zeros(len(cells), width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, classes)."""
        largest = max(self.cells)
        padding = [amount for n in reversed(x.shape[2:]) for amount in (0, -n % largest)]
        x = nn.functional.pad(x, padding, value=-1.0)
        tokens = []
        for stem, scale in zip(self.stems, self.scales, strict=True):
            grid = stem(x)
            tokens.append(grid.flatten(2).movedim(1, 2) + scale + _places(grid))
        return self.head(self.body(torch.cat(tokens, 1)).mean(1))


def _places(grid: Tensor) -> Tensor:
    """(1, L, width) sines and cosines of the cells' centres along each axis."""
    width, axes = grid.shape[1], grid.shape[2:]
    each = width // (2 * len(axes))
    frequencies = 2.0 ** torch.arange(each, device=grid.device) * torch.pi / 2
    centres = torch.meshgrid(*[(torch.arange(n, device=grid.device) + 0.5) / n for n in axes], indexing="ij")
    waves = [f(c.flatten()[:, None] * frequencies % (2 * torch.pi)) for c in centres for f in (torch.sin, torch.cos)]
    found = torch.cat(waves, 1)
    return nn.functional.pad(found, (0, width - found.shape[1]))[None].to(grid.dtype)
