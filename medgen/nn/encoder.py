"""A small encoder of images: its maps for a perceptual distance, its features for distances between sets of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.core.errors import MedgenError
from medgen.nn.grid import CONVOLUTIONS, check_levels

EPS = 1e-6  # under a standard deviation, in squared activations
FLAT = 1e-3  # what counts as no contrast, in squared activations
AIR = -0.95  # network units: a window with nothing above it shows no body
WINDOWS = (4, 8)  # edges in which the flattest place of a map is sought
SHRINKAGE = 5.0  # added to the variances that whitening divides by, in those of one standardised statistic: rare directions stay small
VOXELS = 1 << 20  # of the input that go through the network at once
LINEAR = {2: "bilinear", 3: "trilinear"}


class Encoder(nn.Module):
    """Convolutions at four scales, each map summed up by its mean, its standard deviation and its flattest place, decorrelated to a short
    vector. The mean and the deviation are of the whole image; what is smoothed away in one place hardly moves them, and is the flattest.

    It judges realism, so nothing in it normalises an image: contrast, noise and sharpness reach the features. Scales are parted by a
    box filter of 3 before each halving (Zhang 2019: without one, a shift by a voxel changes the maps), and borders repeat the last
    voxel, so that no frame is seen around an image. Every image is encoded on its own, at any size.

    Several channels are encoded one by one with the same weights: colours, contrasts and phases need no network of their own.

    Args:
        spatial_dims: 2 or 3.
        channels: of the maps, one number per scale.
        features: F, length of the vector of a one-channel image.
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int] = (12, 24, 48, 96), features: int = 64):
        super().__init__()
        channels = check_levels("Encoder", spatial_dims, channels)
        self.width = 2 * sum(channels)
        described = self.width + len(WINDOWS) * sum(channels)
        if spatial_dims not in LINEAR or not 4 <= features <= self.width:
            raise MedgenError(f"Encoder: expected 2 or 3 dimensions and 4 to {self.width} features, got {spatial_dims} and {features}")
        self.spatial_dims, self.channels = spatial_dims, channels
        self.scales = nn.ModuleList(_Scale(spatial_dims, a, b) for a, b in pairwise((1, *channels)))
        self.register_buffer("centre", torch.zeros(described))
        self.register_buffer("readout", torch.eye(described)[:, :features].clone())

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, *S) in network units -> one map (B, C K, *S / 2^i) of each scale i, sizes rounded up.

        Raises:
            MedgenError: another number of dimensions, no channel, or values that are not finite.
        """
        if x.ndim != self.spatial_dims + 2 or not x.numel():
            raise MedgenError(f"the encoder takes (B, C, *S) with {self.spatial_dims} spatial axes, got {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise MedgenError("an image holds NaN or infinite values; repair it before it is encoded")
        h, found = x.flatten(0, 1)[:, None].to(self.centre), []
        for i, scale in enumerate(self.scales):
            h = scale(_halved(h) if i else h)
            found.append(h.unflatten(0, x.shape[:2]).flatten(1, 2))
        return found

    def statistics(self, x: Tensor) -> Tensor:
        """Images (B, C, *S) -> means and standard deviations over space of every map, (B, C, width): what training sees."""
        return torch.cat([torch.cat(_moments(m), 1) for m in self._each(x)], 1).unflatten(0, x.shape[:2])

    def description(self, x: Tensor) -> Tensor:
        """What the readout sees, made comparable, (B, C, width of the readout): means over the root of the mean square, within -1 and 1,
        and log standard deviations, of the whole map and of its flattest window of each size, in which a factor of contrast or noise is
        a step wherever it starts from. `FLAT` keeps empty images from being outliers; windows of air are no place."""
        parts, body = [], (x.flatten(0, 1)[:, None] > AIR).to(self.centre)
        for i, m in enumerate(self._each(x)):
            body = _any(body, 3, 2, 1) if i else body
            mean, deviation = _moments(m)
            variance = deviation.square() + FLAT
            m = m - mean.reshape(*mean.shape, *(1,) * self.spatial_dims)  # for windows' variances, by mean squares, to keep their digits
            parts += [mean / (mean.square() + variance).sqrt(), variance.log() / 2]
            parts += [_flattest(m, body, edge) for edge in WINDOWS]
        return torch.cat(parts, 1).unflatten(0, x.shape[:2])

    def _each(self, x: Tensor) -> Iterator[Tensor]:
        """The maps (B C, K, *S / 2^i), channel by channel."""
        for m in self.maps(x):
            yield m.float().reshape(x.shape[0] * x.shape[1], -1, *m.shape[2:])

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, *S) in network units -> (B, F + (C - 1) F // 4) float64.

        First the mean over channels of their vectors of F; then, for all channels but the last, how the first F // 4 components
        differ from that mean. So swapped colours are seen, and a colour image has no more than 1.5 F features.
        """
        count = max(1, VOXELS // max(1, x[0].numel())) if len(x) else 1
        vectors = torch.cat([self.description(part) for part in x.split(count)]).double()
        vectors = (vectors - self.centre.double()) @ self.readout.double()
        mean = vectors.mean(1)
        apart = vectors[:, :-1, : vectors.shape[2] // 4] - mean[:, None, : vectors.shape[2] // 4]
        return torch.cat([mean, apart.flatten(1)], 1)

    @torch.no_grad()
    def fit_readout(self, sets: Sequence[Tensor]) -> None:
        """Whiten, with a little shrinkage, by the variation within each set of descriptions (N, width); all sets count alike.

        Variation between sets (CT against MR) is left out: it would drown what tells two sets of one kind apart.
        """
        sets = [rows.double() for rows in sets]
        self.centre.copy_(torch.stack([rows.mean(0) for rows in sets]).mean(0))
        within = torch.stack([(rows - rows.mean(0)).T @ (rows - rows.mean(0)) / (len(rows) - 1) for rows in sets]).mean(0)
        scale = within.diagonal().clamp(min=1e-12).rsqrt()
        values, vectors = torch.linalg.eigh(scale[:, None] * within * scale)
        count = self.readout.shape[1]
        values, vectors = values.flip(0)[:count].clamp(min=0) + SHRINKAGE, vectors.flip(1)[:, :count]
        vectors = vectors * vectors.sum(0).sign()  # eigh leaves the sign open
        self.readout.copy_(scale[:, None] * vectors * values.rsqrt())


class Rebuilder(nn.Module):
    """What training hangs on an encoder to rebuild hidden parts, and throws away: every scale enlarged to the image and added up.

    Args:
        spatial_dims, channels: the encoder's.
        width: channels in which scales are added.
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int], width: int = 8):
        super().__init__()
        convolution = CONVOLUTIONS[spatial_dims]
        self.mode = LINEAR[spatial_dims]
        self.inputs = nn.ModuleList(convolution(count, width, 1) for count in channels)
        self.middle, self.output = convolution(width, width, 3, padding=1), convolution(width, 1, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The maps of one-channel images, finest first -> (B, 1, *S)."""
        size = maps[0].shape[2:]
        parts = [layer(m) for layer, m in zip(self.inputs, maps, strict=True)]
        total = sum(F.interpolate(part, size=size, mode=self.mode, align_corners=False) for part in parts)
        return self.output(F.leaky_relu(self.middle(F.leaky_relu(total, 0.2)), 0.2))


class _Scale(nn.Module):
    """Two convolutions, the second beside a shortcut; leaky, so that a map tells noise around its mean from none."""

    def __init__(self, spatial_dims: int, inputs: int, outputs: int):
        super().__init__()
        sizes = ((inputs, outputs), (outputs, outputs))
        self.enter, self.inner = (CONVOLUTIONS[spatial_dims](a, b, 3, padding=1, padding_mode="replicate") for a, b in sizes)
        for layer, size in ((self.enter, 1.0), (self.inner, 0.5)):  # without norms the start decides whether signals reach the end
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.zeros_(layer.bias)
            layer.weight.data *= size

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.enter(x), 0.2)
        return F.leaky_relu(h + self.inner(h), 0.2)


def _moments(m: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over space, (N, K) each, of maps (N, K, *S)."""
    spread = m.flatten(2)
    mean = spread.mean(2, keepdim=True)
    return mean[..., 0], ((spread - mean).square().mean(2) + EPS).sqrt()


def _flattest(m: Tensor, body: Tensor, edge: int) -> Tensor:
    """The least log standard deviation (N, K) in windows of `edge` voxels, half overlapping, that show some of the body (N, 1, *S); of all
    windows where none does."""
    size, step = [min(edge, n) for n in m.shape[2:]], [max(1, min(edge, n) // 2) for n in m.shape[2:]]
    pool = F.avg_pool2d if m.ndim == 4 else F.avg_pool3d
    variance = (pool(m.square(), size, step) - pool(m, size, step).square()).clamp(min=0) + FLAT
    seen = _any(body, size, step, 0).flatten(2) > 0
    seen = seen | ~seen.any(2, keepdim=True)
    return variance.flatten(2).masked_fill(~seen, float("inf")).amin(2).log() / 2


def _any(body: Tensor, size: int | list[int], step: int | list[int], padding: int) -> Tensor:
    """1 where a window holds a 1."""
    return (F.max_pool2d if body.ndim == 4 else F.max_pool3d)(body, size, step, padding)


def _halved(x: Tensor) -> Tensor:
    """Means over windows of 3 at every second voxel, of what lies inside the image. Depth by depth: `avg_pool3d` refuses thin images."""
    if x.ndim == 4:
        return F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    planes = F.avg_pool2d(x.flatten(1, 2), 3, 2, 1, count_include_pad=False).unflatten(1, x.shape[1:3])
    columns = F.avg_pool2d(planes.flatten(3), (3, 1), (2, 1), (1, 0), count_include_pad=False)
    return columns.unflatten(3, planes.shape[3:])
