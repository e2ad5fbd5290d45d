"""Fused AdamW beside PyTorch's default, and the moving average beside diffusers', on a U-Net of 16 million parameters."""

from __future__ import annotations

import torch
from _measure import Row, interleaved
from torch import nn

from medgen.nn.unet import UNet
from medgen.training.ema import Average
from medgen.training.optimizers import AdamW


def network() -> nn.Module:
    made = UNet(2, 1, 1, (64, 128, 256))
    for parameter in made.parameters():
        parameter.grad = torch.randn_like(parameter)
    return made


def optimizer_row(rounds: int) -> Row:
    fused = AdamW(lr=1e-4).build("model", network().parameters())
    default = torch.optim.AdamW(network().parameters(), lr=1e-4)
    taken = interleaved({"medgen": fused.step, "default": default.step}, rounds)
    ratio = taken["default"] / taken["medgen"]
    numbers = f"{ratio:.1f} x the default's speed ({taken['medgen'] * 1e3:.0f} against {taken['default'] * 1e3:.0f} ms)"
    return Row("AdamW step, 16 M parameters", numbers, "at least 2.5", ratio >= 2.5)


def average_row(rounds: int) -> Row:
    from diffusers.training_utils import EMAModel

    model = nn.ModuleDict({"network": network()})
    average, peer = Average(model, ["network"]), EMAModel(model.parameters(), decay=0.999)
    taken = interleaved({"medgen": average.update, "diffusers": lambda: peer.step(model.parameters())}, rounds)
    ratio = taken["diffusers"] / taken["medgen"]
    numbers = f"{ratio:.1f} x diffusers' speed ({taken['medgen'] * 1e3:.1f} against {taken['diffusers'] * 1e3:.1f} ms)"
    return Row("EMA update, 16 M parameters", numbers, "at least 2.2", ratio >= 2.2)


def rows(rounds: int = 15) -> list[Row]:
    return [optimizer_row(rounds), average_row(rounds)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows():
        print(row)
