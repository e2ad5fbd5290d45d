"""Feature spaces made of others: the fixed feature, a plane's space on volumes, and a network that the user brings."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medgen.core.errors import MedgenError
from medgen.metrics.feature import describe
from medgen.metrics.space import Space

HEIGHTS = (0.35, 0.5, 0.65)  # of a volume's extent, where it is cut
BATCH = 32


def fixed() -> Space:
    """Histogram, texture and layout by `medgen.metrics.feature.describe`: nothing is learned."""
    return Space("texture and layout", 0, describe)


def sliced(space: Space, heights: Sequence[float] = HEIGHTS) -> Space:
    """A space of planes as one of volumes: of each axis the mean feature of three slices, the axes side by side (three times F).

    Raises:
        MedgenError: a space of volumes; on use, images that are no volumes.
    """
    if space.dims == 3:
        raise MedgenError(f"'{space.name}' takes volumes already; 2.5D needs a space of planes")

    def features(images: Tensor) -> Tensor:
        if images.ndim != 5:
            raise MedgenError(f"2.5D features are of volumes (B, C, D, H, W), got {tuple(images.shape)}")
        axes = []
        for axis in (2, 3, 4):
            cuts = dict.fromkeys(round(part * (images.shape[axis] - 1)) for part in heights)
            axes.append(torch.stack([space.features(images.select(axis, cut)) for cut in cuts]).mean(0))
        return torch.cat(axes, 1)

    return Space(f"2.5D {space.name}", 3, features, space.standard)


def brought(
    network: str | Path | Callable[[Tensor], Tensor],
    name: str = "",
    dims: int = 2,
    size: Sequence[int] | None = None,
    channels: int | None = None,
    mean: Sequence[float] | float = 0.0,
    std: Sequence[float] | float = 1.0,
) -> Space:
    """A space by a network of the user's: InceptionV3, RadImageNet, CLIP, DINO and the like, exported to TorchScript, or a callable.

    Args:
        network: a TorchScript file (`torch.jit.script(model).save(path)`), or (B, C, *S) -> (B, F) or (B, F, *S'), averaged over S'.
        name: as reports print it; of a file its name and a digest of its bytes by default.
        size: to which images are brought by linear interpolation; None keeps them.
        channels: that the network takes: one channel is repeated; None passes what there is.
        mean, std: per channel, of images in [0, 1], to which network units are brought first: ImageNet's are (0.485, 0.456, 0.406) and
            (0.229, 0.224, 0.225). With 0.5 and 0.5 it gets [-1, 1].

    Raises:
        MedgenError: a file that is no TorchScript archive (a pickle could run any code, it is not opened); a callable without a name; on
            use, channels that do not fit, features that are not (B, F).
    """
    if isinstance(network, (str, Path)):
        path = Path(network)
        call = _script(path)
        name = name or f"{path.stem}@{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    else:
        call = network.eval() if isinstance(network, nn.Module) else network
        if not name:
            raise MedgenError("a callable says nothing of its weights; give it a name, best with their version")
    shift, scale = (torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, *[1] * dims) for values in (mean, std))

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        if images.ndim != dims + 2:
            raise MedgenError(f"'{name}' takes images (B, C, *S) of {dims} dimensions, got {tuple(images.shape)}")
        return torch.cat([_called(call, name, (_fitted(x.float(), size, channels, name) - shift) / scale) for x in images.split(BATCH)])

    return Space(name, dims, features)


def _script(path: Path) -> Callable[[Tensor], Tensor]:
    if not path.is_file():
        raise MedgenError(f"{path}: there is no such file; give a TorchScript file of a network that makes features")
    parts = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if not any("/code/" in part for part in parts):
        raise MedgenError(
            f"{path} is no TorchScript file, and a pickle is not opened; export the network by torch.jit.script(model).save(path)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it is the one format of torch that carries code and runs no Python
            return torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise MedgenError(
            f"{path}: torch cannot load it ({str(error).splitlines()[0]}); export the network with this version of torch"
        ) from error


def _fitted(x: Tensor, size: Sequence[int] | None, channels: int | None, name: str) -> Tensor:
    """Images in [0, 1] with the channels and the size that a network takes."""
    if channels is not None and x.shape[1] != channels:
        if x.shape[1] != 1:
            raise MedgenError(f"'{name}' takes {channels} channels, the images have {x.shape[1]}; only one channel can be repeated")
        x = x.repeat(1, channels, *[1] * (x.ndim - 2))
    x = (x.clamp(-1, 1) + 1) / 2
    if size is None or tuple(x.shape[2:]) == tuple(size):
        return x
    mode: dict[str, Any] = {"mode": "bilinear", "antialias": True} if x.ndim == 4 else {"mode": "trilinear"}
    return functional.interpolate(x, tuple(size), align_corners=False, **mode)


def _called(call: Callable[[Tensor], Tensor], name: str, x: Tensor) -> Tensor:
    found = call(x)
    if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(x):
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise MedgenError(
            f"'{name}' must make features (B, F) of {tuple(x.shape)}, it made {given}; wrap it so that it returns its last layer"
        )
    return found.double().flatten(2).mean(2) if found.ndim > 2 else found.double()
