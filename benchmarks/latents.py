"""Images per second of latent diffusion training on cached moments beside encoding every batch anew."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from _measure import Row, interleaved

from medgen.core.condition import Condition
from medgen.core.levels import Karras, LogNormal
from medgen.core.model import Example
from medgen.core.random import Rng
from medgen.models.diffusion import Diffusion
from medgen.models.latent import KLCodec, Latent
from medgen.models.preconditioning import EDM
from medgen.nn.autoencoder import AutoencoderKL
from medgen.nn.unet import UNet
from medgen.samplers.heun import Heun

BATCH = 8
CASES = {"2D 128^2, U-Net 64-128-192": ((128, 128), (64, 128, 192)), "3D 48^3, U-Net 64-128": ((48, 48, 48), (64, 128))}


def model_of(size: tuple[int, ...], channels: tuple[int, ...]) -> Latent:
    codec = KLCodec(AutoencoderKL(len(size), 1, 4, (32, 64, 128)))
    network = UNet(len(size), 4, 4, channels)
    return Latent(Diffusion(network, EDM(1.0), LogNormal(-0.4, 1.2), Heun(Karras())), codec)


def step(model: Latent, example: Example, bf16: bool) -> Callable[[], None]:
    """Forward and backward of a training step; the optimizer is measured elsewhere."""

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            shared = model.begin(example, Rng(0, 0, range(BATCH)))
            loss = model.phases[0].loss(example, shared).total
        loss.backward()
        model.zero_grad()

    return run


def rows(rounds: int = 5) -> Iterator[Row]:
    """All cases in float32 and under bfloat16 autocast."""
    for name, (size, channels) in CASES.items():
        model, x = model_of(size, channels), torch.randn(BATCH, 1, *size)
        examples = {"cached": Example(None, Condition(), moments=model.codec.moments(x)), "encoded anew": Example(x, Condition())}
        for bf16 in (False, True):
            seconds = interleaved({arm: step(model, example, bf16) for arm, example in examples.items()}, rounds)
            told = ", ".join(f"{arm} {BATCH / t:.1f}" for arm, t in seconds.items())
            gain = seconds["encoded anew"] / seconds["cached"]
            what = f"latent training {name}, {'bf16' if bf16 else 'fp32'}"
            yield Row(what, f"{gain:.2f} x the images/s with cached latents; images/s: {told}", "faster", gain > 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows(int(sys.argv[1]) if sys.argv[1:] else 5):
        print(row, flush=True)
