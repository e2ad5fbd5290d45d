"""Training steps of several networks side by side, each in the faster of its two memory layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from _measure import interleaved, saved_bytes
from torch import Tensor, nn

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
Build = Callable[[], nn.Module]
Loss = Callable[[nn.Module, Tensor], Tensor]


def best_times(builders: Mapping[str, Build], shape: Sequence[int], loss: Loss, bf16: bool, rounds: int) -> dict[str, tuple[float, bool]]:
    """name -> (median CPU seconds of a step, whether the faster layout is channels-last)."""
    arms = {(name, last): _arm(build(), shape, loss, bf16, last) for name, build in builders.items() for last in (False, True)}
    measured = interleaved(arms, rounds)
    return {name: min((t, last) for (n, last), t in measured.items() if n == name) for name in builders}


def told(best: Mapping[str, tuple[float, bool]]) -> str:
    """The times in words, fastest first."""
    order = sorted(best.items(), key=lambda item: item[1])
    return "ms: " + ", ".join(f"{n} {t * 1e3:.0f}{' (channels-last)' if last else ''}" for n, (t, last) in order)


def megabytes(build: Build, shape: Sequence[int], loss: Loss, bf16: bool) -> float:
    """Saved activations in MB."""
    network, x = build(), torch.randn(*shape)
    return saved_bytes(lambda: _under(loss, network, x, bf16), network) / 1e6


def _arm(network: nn.Module, shape: Sequence[int], loss: Loss, bf16: bool, last: bool) -> Callable[[], None]:
    """Forward, loss, backward; the optimizer is measured elsewhere. Layers that start at zero get values first."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.01)
    layout = LAYOUTS[len(shape) - 2] if last else torch.contiguous_format
    network, x = network.to(memory_format=layout), torch.randn(*shape).contiguous(memory_format=layout)

    def run() -> None:
        _under(loss, network, x, bf16).backward()
        network.zero_grad()

    return run


def _under(loss: Loss, network: nn.Module, x: Tensor, bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return loss(network, x)
