"""Training step of the U-Net beside MONAI's and diffusers' at matched channels, blocks and attention: time and saved activations.

Each peer runs in its own fastest mode (flash attention; in bf16 both layouts). Ratios above 1 mean that medgen is faster.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from _measure import Row
from _training import best_times, megabytes, told
from torch import Tensor, nn

from medgen.nn.unet import UNet


@dataclass(frozen=True)
class Case:
    """A grid, its batch and the channels of the levels."""

    name: str
    size: tuple[int, ...]
    batch: int
    channels: tuple[int, ...]
    speed: float


CASES = (
    Case("2D 64^2 b4", (64, 64), 4, (64, 128, 256), 1.05),
    Case("2D 128^2 b4", (128, 128), 4, (32, 64, 128), 1.0),
    Case("3D 32^3 b1", (32, 32, 32), 1, (32, 64, 128), 1.05),
    Case("3D 48^3 b1", (48, 48, 48), 1, (32, 64, 128), 1.05),
)


class Peer(nn.Module):
    """Another project's network behind medgen's call."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        result = self.network(x, t)
        return getattr(result, "sample", result)


def medgen_unet(case: Case, checkpointing: bool = False) -> nn.Module:
    return UNet(len(case.size), 1, 1, case.channels, checkpointing=checkpointing)


def monai_unet(case: Case) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    flags = [False, False, True]
    head = (0, 0, 64)
    return Peer(DiffusionModelUNet(len(case.size), 1, 1, 2, case.channels, flags, num_head_channels=head, use_flash_attention=True))


def diffusers_unet(case: Case) -> nn.Module:
    from diffusers import UNet2DModel

    down, up = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    return Peer(
        UNet2DModel(case.size[0], 1, 1, down_block_types=down, up_block_types=up, block_out_channels=case.channels, attention_head_dim=64)
    )


def loss(network: nn.Module, x: Tensor) -> Tensor:
    """Squared error."""
    return network(x, torch.zeros(len(x))).float().square().mean()


PEERS = {"MONAI": monai_unet, "diffusers": diffusers_unet}
OURS = {"medgen": medgen_unet, "medgen checkpointing": lambda case: medgen_unet(case, checkpointing=True)}


def case_rows(case: Case, bf16: bool, rounds: int) -> list[Row]:
    builders = OURS | {name: build for name, build in PEERS.items() if name == "MONAI" or len(case.size) == 2}
    shape = (case.batch, 1, *case.size)
    best = best_times({name: partial(build, case) for name, build in builders.items()}, shape, loss, bf16, rounds)
    peer = min(t for name, (t, _) in best.items() if name in PEERS)
    speed = peer / best["medgen"][0]
    asked = case.speed if bf16 else 1 / 1.05
    name = f"U-Net step {case.name}, {'bf16' if bf16 else 'fp32'}"
    ours, check, monai = (megabytes(partial(build, case), shape, loss, bf16) for build in (*OURS.values(), monai_unet))
    cost = best["medgen checkpointing"][0] / best["medgen"][0]
    return [
        Row(name, f"{speed:.2f} x the best peer's speed; {told(best)}", f"at least {asked:.2f}", speed >= asked),
        Row(
            f"{name}, saved activations",
            f"{ours / monai:.2f} of MONAI's ({ours:.0f} against {monai:.0f} MB)",
            "at most 0.75",
            ours <= 0.75 * monai,
        ),
        Row(
            f"{name}, checkpointing",
            f"{check / monai:.2f} of MONAI's at {cost:.2f} x the time",
            "at most 0.5 at 1.15",
            check <= 0.5 * monai and cost <= 1.15,
        ),
    ]


def rows(rounds: int = 5) -> Iterator[Row]:
    """All cases in float32 and under bfloat16 autocast."""
    for case in CASES:
        for bf16 in (False, True):
            yield from case_rows(case, bf16, rounds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows(int(sys.argv[1]) if sys.argv[1:] else 5):
        print(row, flush=True)
