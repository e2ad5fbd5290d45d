"""Low-rank adapters of linear and convolution layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PARAMETRIZED = ".parametrizations.weight."
_ORIGINAL, _UP, _DOWN = "original", "0.up", "0.down"


class LowRank(nn.Module):
    """weight -> weight + scale * up @ down (Hu et al. 2022, equation 3), as a parametrization of a layer's weight.

    A convolution's kernel (O, I, *k) is treated as the matrix (O, I k^d). This equals a convolution with the r kernels of `down`
    followed by the 1x1 convolution `up` (LoCon in Yeh et al. 2024), in any number of dimensions, also where a layer's weight is used in
    another way than by its own forward (`Upsample`, `Pointwise`). `up` starts at zero and `down` as a Gaussian: nothing changes at first.

    Args:
        weight: the layer's weight.
        rank: r; less where the matrix has a smaller side.
        scale: alpha / r.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float):
        super().__init__()
        outputs, inputs = len(weight), weight[0].numel()
        rank = min(rank, outputs, inputs)
        place = {"device": weight.device, "dtype": weight.dtype}
        self.up = nn.Parameter(torch.zeros(outputs, rank, **place))
        self.down = nn.Parameter(torch.randn(rank, inputs, **place) * inputs**-0.5)
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # what is exported must be what was trained
            return updated(weight, self.up, self.down, self.scale)


def updated(weight: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """weight + scale * up @ down, in the weight's shape and memory layout."""
    return torch.add(weight, (up @ down).view(weight.shape), alpha=scale)


def adaptable(layer: nn.Module) -> bool:
    """Whether `adapt` takes this layer: a linear or convolution layer whose weight is a plain parameter."""
    return isinstance(layer, LAYERS) and not parametrize.is_parametrized(layer, "weight")


def adapt(layer: nn.Module, rank: int, scale: float) -> None:
    """Freeze the layer's weight and add a trainable low-rank update to it. State-dict names change as `merged` undoes."""
    layer.weight.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, scale))


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state of an adapted model with every update folded into its weight: the names of the model as it was before `adapt`."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, found, part = name.partition(_PARAMETRIZED)
        if not found or f"{layer}{found}{_UP}" not in state:  # a critic's spectral norm is a parametrization too
            plain[name] = tensor
        elif part == _ORIGINAL:
            plain[f"{layer}.weight"] = updated(tensor, *(state[f"{layer}{found}{side}"] for side in (_UP, _DOWN)), scale)
    return plain


def factors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The low-rank factors alone, as <layer>.lora_up and <layer>.lora_down."""
    found = {}
    for name, tensor in state.items():
        for side, ending in ((_UP, "lora_up"), (_DOWN, "lora_down")):
            if name.endswith(f"{_PARAMETRIZED}{side}"):
                found[f"{name.partition(_PARAMETRIZED)[0]}.{ending}"] = tensor
    return found
