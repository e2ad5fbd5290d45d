"""Training step of the U-Net beside MONAI's and diffusers' at matched channels, blocks and attention: time and saved activations.

Each peer runs in its own fastest mode (flash attention; in bf16 both layouts). Ratios above 1 mean that medgen is faster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from _measure import Row, interleaved, saved_bytes
from torch import Tensor, nn

from medgen.nn.unet import UNet

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


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


def step(network: nn.Module, x: Tensor, bf16: bool) -> Callable[[], None]:
    """Forward, squared error, backward; the optimizer is measured elsewhere."""
    t = torch.zeros(len(x))

    def run() -> None:
        forward(network, x, t, bf16).backward()
        network.zero_grad()

    return run


def forward(network: nn.Module, x: Tensor, t: Tensor, bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return network(x, t).float().square().mean()


def arm(network: nn.Module, case: Case, bf16: bool, last: bool) -> Callable[[], None]:
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.01)
    layout = LAYOUTS[len(case.size)] if last else torch.contiguous_format
    x = torch.randn(case.batch, 1, *case.size).contiguous(memory_format=layout)
    return step(network.to(memory_format=layout), x, bf16)


PEERS = {"MONAI": monai_unet, "diffusers": diffusers_unet}
OURS = {"medgen": medgen_unet, "medgen checkpointing": lambda case: medgen_unet(case, checkpointing=True)}


def times(case: Case, bf16: bool, rounds: int) -> dict[str, float]:
    """Median CPU seconds of a step by network, in the faster of its two layouts, which is named behind it."""
    builders = OURS | {name: build for name, build in PEERS.items() if name == "MONAI" or len(case.size) == 2}
    arms = {(name, last): arm(build(case), case, bf16, last) for name, build in builders.items() for last in (False, True)}
    return interleaved(arms, rounds)


def memory(case: Case, build: Callable[[Case], nn.Module], bf16: bool) -> float:
    """Saved activations in MB."""
    network, x = build(case), torch.randn(case.batch, 1, *case.size)
    return saved_bytes(lambda: forward(network, x, torch.zeros(len(x)), bf16), network) / 1e6


def case_rows(case: Case, bf16: bool, rounds: int) -> list[Row]:
    measured = times(case, bf16, rounds)
    best = {name: min(((t, last) for (n, last), t in measured.items() if n == name)) for name in {n for n, _ in measured}}
    told = ", ".join(f"{n} {t * 1e3:.0f}{' (channels-last)' if last else ''}" for n, (t, last) in sorted(best.items(), key=lambda i: i[1]))
    peer = min(t for name, (t, _) in best.items() if name in PEERS)
    speed = peer / best["medgen"][0]
    asked = case.speed if bf16 else 1 / 1.05
    name = f"U-Net step {case.name}, {'bf16' if bf16 else 'fp32'}"
    ours, check, monai = (memory(case, build, bf16) for build in (*OURS.values(), monai_unet))
    cost = best["medgen checkpointing"][0] / best["medgen"][0]
    return [
        Row(name, f"{speed:.2f} x the best peer's speed; ms: {told}", f"at least {asked:.2f}", speed >= asked),
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
