"""Numeric checks of `medgen doctor`: what is fast here against what is plainly right, forward and backward, on real shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.cli.machine import FAIL, OK, WARN, Finding
from medgen.nn.attention import Attention
from medgen.nn.norm import CHANNELS_LAST, norm_silu

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative; float32 sums of a few thousand products, three roundings to 8 bits
SLOW = 1.25  # bfloat16 takes longer than float32 by more than this
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Shapes:
    """Batch, channels and grids of the checks on one device."""

    batch: int
    channels: int
    flat: tuple[int, int]
    deep: tuple[int, int, int]


SHAPES = {"cpu": Shapes(1, 32, (128, 128), (32, 32, 32)), "cuda": Shapes(1, 32, (512, 512), (128, 128, 128))}


def checks(device: str) -> Iterator[Finding]:
    """All checks on a device, most of them with an error and a time."""
    torch.manual_seed(0)
    shapes = SHAPES["cuda" if device.startswith("cuda") else "cpu"]
    for name, function, size in (("conv2d", F.conv2d, shapes.flat), ("conv3d", F.conv3d, shapes.deep)):
        yield from convolution(name, function, (shapes.batch, shapes.channels, *size), device)
    yield from normalisation((shapes.batch, shapes.channels, *shapes.deep), device)
    yield from attention(device)


def convolution(name: str, function: Function, shape: Sequence[int], device: str) -> Iterator[Finding]:
    """bfloat16 against float32, and channels-last against contiguous tensors, of a 3-wide convolution."""
    x, slope = torch.randn(shape, device=device), torch.randn(shape, device=device)
    weight = torch.randn(shape[1], shape[1], *(3,) * (len(shape) - 2), device=device) * (3 ** (2 - len(shape)) / shape[1]) ** 0.5
    layout = CHANNELS_LAST[len(shape)]
    last = [t.contiguous(memory_format=layout) for t in (x, weight, slope)]

    def same(image: Tensor, kernel: Tensor) -> Tensor:
        return function(image, kernel, padding=1)

    def half(image: Tensor, kernel: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return function(image, kernel, padding=1)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        right, plain = timed(same, (x, weight), slope)
        rows, rows_time = timed(same, last[:2], last[2])
        short, short_time = timed(half, (x, weight), slope)
        short_rows, short_rows_time = timed(half, last[:2], last[2])
    grid = "x".join(map(str, shape[2:]))
    where = f"{name} {grid} x {shape[1]}"
    fast = min(short_time, short_rows_time)
    ratio = fast / min(plain, rows_time)
    wrong = max(distance(short, right), distance(short_rows, right))
    value = f"error {wrong:.1e}, {ratio:.2f} x the time of float32 ({fast * 1e3:.0f} ms)"
    yield judged(f"{where}, bf16", wrong, torch.bfloat16, value, "training.precision=32, or another version of torch and cuDNN", ratio)
    faster = "channels-last" if short_rows_time < short_time else "contiguous"
    error = distance(rows, right)
    times = f"{short_time * 1e3:.0f} ms contiguous, {short_rows_time * 1e3:.0f} ms channels-last"
    value = f"error {error:.1e}; in bf16 {faster} is faster ({times})"
    yield judged(f"{where}, channels-last", error, torch.float32, value, "training.channels_last=false")


def normalisation(shape: Sequence[int], device: str) -> Iterator[Finding]:
    """medgen's fused normalisation and SiLU, in both layouts and precisions, against the formula in float64."""
    groups = shape[1] // 4
    affine = [torch.randn(shape[0], shape[1], device=device) * 0.2 + offset for offset in (1.0, 0.0)]
    base, slope = torch.randn(shape, device=device), torch.randn(shape, device=device)
    for kind in (torch.float32, torch.bfloat16):
        errors = []
        for layout in (torch.contiguous_format, CHANNELS_LAST[len(shape)]):
            x, direction = (t.to(kind).contiguous(memory_format=layout) for t in (base, slope))
            made, _ = timed(lambda *given: norm_silu(*given, groups), (x, *affine), direction, rounds=1)
            right, _ = timed(
                lambda *given: plain_norm_silu(*given, groups), [t.double() for t in (x, *affine)], direction.double(), rounds=1
            )
            errors.append(distance(made, right))
        name = f"fused norm {'x'.join(map(str, shape[2:]))} x {shape[1]}, {'bf16' if kind == torch.bfloat16 else 'fp32'}"
        yield judged(name, max(errors), kind, f"error {max(errors):.1e}", "report it with these versions; results cannot be trusted here")


def plain_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """silu(weight * group_norm(x) + bias) as written."""
    ones = (1,) * (x.ndim - 2)
    rows = x.reshape(len(x), groups, -1)
    normal = (rows - rows.mean(2, keepdim=True)) * (rows.var(2, correction=0, keepdim=True) + 1e-5).rsqrt()
    y = normal.view(x.shape) * weight.view(*weight.shape, *ones) + bias.view(*bias.shape, *ones)
    return y * torch.sigmoid(y)


def attention(device: str) -> Iterator[Finding]:
    """medgen's attention over 256 positions against softmax(q k^T / sqrt(d)) v in float64."""
    channels = 128
    module = Attention(channels).to(device)
    torch.nn.init.eye_(module.out.weight)
    x, slope = torch.randn(2, channels, 16, 16, device=device), torch.randn(2, channels, 16, 16, device=device)
    exact = Attention(channels).to(device).double()
    exact.load_state_dict(module.state_dict())
    right, _ = timed(lambda given: plain_attention(exact, given), [x.double()], slope.double(), rounds=1)

    def update(given: Tensor) -> Tensor:
        return module(given) - given

    for kind in (torch.float32, torch.bfloat16):
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=kind == torch.bfloat16):
            made, _ = timed(update, [x], slope, rounds=1)
        error = distance(made, right)
        name = f"attention 16x16 x {channels}, {'bf16' if kind == torch.bfloat16 else 'fp32'}"
        yield judged(name, error, kind, f"error {error:.1e}", "report it with these versions; leave network.attention off meanwhile")


def plain_attention(module: Attention, x: Tensor) -> Tensor:
    """What the residual layer adds, as written, with its own weights."""
    rows = module.qkv(module.norm(x).flatten(2).mT)
    query, key, value = (z.unflatten(-1, (module.heads, -1)).transpose(1, 2) for z in rows.chunk(3, -1))
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    return module.out((weights @ value).transpose(1, 2).flatten(2)).mT.unflatten(2, x.shape[2:])


def timed(function: Function, tensors: Sequence[Tensor], slope: Tensor, rounds: int = 3) -> tuple[list[Tensor], float]:
    """The result and the gradients at every tensor, and the shortest seconds of a forward and backward pass."""
    best = float("inf")
    for _ in range(rounds):
        given = [t.detach().requires_grad_() for t in tensors]
        _wait(slope)
        start = time.perf_counter()
        result = function(*given)
        gradients = torch.autograd.grad(result, given, slope.to(result.dtype))
        _wait(slope)
        best = min(best, time.perf_counter() - start)
    return [result.detach(), *gradients], best


def distance(made: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest relative distance |a - b| / |b| of any pair; infinite for values that are not finite."""
    worst = 0.0
    for a, b in zip(made, right, strict=True):
        gap = float((a.double() - b.double()).norm() / b.double().norm())
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def judged(name: str, error: float, kind: torch.dtype, value: str, remedy: str, ratio: float = 0.0) -> Finding:
    """Wrong fails, slow warns."""
    if not error <= LIMITS[kind]:
        return Finding("checks", name, FAIL, f"wrong: {value}, at most {LIMITS[kind]:.0e} expected", remedy)
    if ratio > SLOW:
        return Finding("checks", name, WARN, f"slow: {value}", remedy)
    return Finding("checks", name, OK, value)


def _wait(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
