"""Stained sections: hematoxylin and eosin in optical density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from medgen.core.errors import MedgenError
from medgen.core.random import Rng
from medgen.core.tensors import broadcast
from medgen.data.augment.change import Drawn, Intensity, between, check, signal, units

HEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)  # absorption of red, green, blue: Ruifrok and Johnston 2001
RGB = ("image_red", "image_green", "image_blue")


@dataclass(frozen=True)
class StainJitter(Intensity):
    """Each stain's concentration c becomes (1 + a) c + b (Tellez et al. 2019), with stains unmixed in optical density (Beer-Lambert).

    The axes are hematoxylin, eosin, and the residual, perpendicular to both. Values are taken as transmitted light: -1 none, +1 all.

    Args:
        channels: red, green and blue, in this order.
        factor: largest a.
        offset: largest b, in units of optical density (base 10).
    """

    channels: Sequence[str] = RGB
    factor: float = 0.2
    offset: float = 0.02
    probability: float = 0.8

    def __post_init__(self) -> None:
        check(self, factor=(0, 1), offset=(0, 1))
        if len(self.channels) not in (0, 3):
            raise MedgenError(f"StainJitter has channels={list(self.channels)}; expected red, green and blue")

    def draw(self, rng: Rng, shape: Sequence[int]) -> Drawn:
        return {"factor": 1 + between(rng, -self.factor, self.factor, (3,)), "offset": between(rng, -self.offset, self.offset, (3,))}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        if images.shape[1] != 3:
            raise MedgenError(f"StainJitter got images of {images.shape[1]} channels; expected red, green and blue")
        stains = stain_matrix().to(images)
        light = signal(images)
        density = -light.clamp(min=1 / 510).log10()  # darker than half a step of 8 bit nothing is known
        amounts = torch.einsum("bi...,ij->bj...", density, torch.linalg.inv(stains))
        more = amounts * broadcast(drawn["factor"] - 1, images) + broadcast(drawn["offset"], images)
        return units((light * 10 ** -torch.einsum("bi...,ij->bj...", more, stains)).clamp(max=1))


def stain_matrix() -> Tensor:
    """(3, 3) unit vectors of hematoxylin, eosin and the residual in optical density of red, green and blue."""
    both = normalize(torch.tensor([HEMATOXYLIN, EOSIN]), dim=1)
    return torch.cat([both, normalize(torch.linalg.cross(both[0], both[1])[None], dim=1)])
