"""Group normalisation followed by SiLU, with one affine map per sample, in whichever memory layout the tensor has.

PyTorch's backward of group normalisation is an order of magnitude slower on channels-last tensors than on contiguous ones. There
the tensor is treated as a matrix (pixels, channels) and differentiated by hand; contiguous tensors go to the native kernel. Both
paths save the input only: the normalised values are cheaper to compute again than to keep.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def group_count(channels: int, limit: int = 32, smallest: int = 4) -> int:
    """The largest divisor of `channels` that is at most `limit` and leaves at least `smallest` channels per group (or 1)."""
    return max((g for g in range(1, limit + 1) if channels % g == 0 and channels // g >= smallest), default=1)


class NormSiLU(nn.Module):
    """silu(scale * norm(x) + shift), where norm is group normalisation (Wu and He 2018) with learned weight and bias.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.groups = group_count(channels)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """x (B, C, *S); modulation (B, 2C) holds scale - 1 and shift per sample (adaptive normalisation, Dhariwal and Nichol 2021)."""
        return norm_silu(x, *self.affine(x, modulation), self.groups)

    def affine(self, x: Tensor, modulation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight and bias (B, C) in which the modulation is folded; float32 unless x is float64."""
        kind = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(kind), self.bias.to(kind)
        if modulation is None:
            return weight.expand(len(x), -1), bias.expand(len(x), -1)
        scale, shift = modulation.to(kind).chunk(2, 1)
        return torch.addcmul(weight, weight, scale), torch.addcmul(shift, bias, scale) + bias


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """silu(weight * group_norm(x) + bias) for x (B, C, *S), weight and bias (B, C); dispatches on the layout of x."""
    if torch.compiler.is_compiling():
        return _plain(x, weight, bias, groups, eps)
    kernel = _Rows if is_channels_last(x) else _Planes
    with torch.autocast(x.device.type, enabled=False):
        return kernel.apply(x, weight, bias, groups, eps)


def is_channels_last(x: Tensor) -> bool:
    layout = CHANNELS_LAST.get(x.ndim)
    return layout is not None and x.is_contiguous(memory_format=layout) and not x.is_contiguous()


def _plain(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    shape = weight.shape + (1,) * (x.ndim - 2)
    wide = x.to(weight.dtype)
    return F.silu(F.group_norm(wide, groups, eps=eps) * weight.reshape(shape) + bias.reshape(shape)).to(x.dtype)


class _Planes(Function):
    """Contiguous tensors. A weight per sample is a weight per channel of one sample with B * C channels and B * G groups."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        x = x.contiguous()
        ctx.eps, ctx.sizes = eps, (1, weight.numel(), x[0, 0].numel(), len(x) * groups)
        y, mean, rstd = _native(x, weight, bias, ctx.sizes, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(y, inplace=True).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        y = _native(x, weight, bias, ctx.sizes, ctx.eps)[0]
        grad = torch.ops.aten.silu_backward(grad.contiguous().view(y.shape), y)
        needed = [True, True, True]
        dx, dw, db = torch.ops.aten.native_group_norm_backward(
            grad, x.view(y.shape), mean, rstd, _kernel_weight(weight, x), *ctx.sizes, needed
        )
        return dx.view(x.shape), dw.view(weight.shape).to(weight.dtype), db.view(bias.shape).to(bias.dtype), None, None


def _native(x: Tensor, weight: Tensor, bias: Tensor, sizes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    flat = x.view(1, sizes[1], -1)
    return torch.ops.aten.native_group_norm(flat, _kernel_weight(weight, x), _kernel_weight(bias, x), *sizes, eps)


def _kernel_weight(weight: Tensor, x: Tensor) -> Tensor:
    """(B, C) as the (B * C,) of the native kernel, which takes float32 beside bfloat16 on the CPU only."""
    return weight.reshape(-1).to(weight.dtype if x.device.type == "cpu" else x.dtype)


class _Rows(Function):
    """Channels-last tensors as (B, P, C). With z = a x + b per sample and channel, everything is sums over P and maps along C."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        rows = _rows(x)
        mean, rstd = _moments(rows, groups, weight.dtype, eps)
        ctx.groups = groups
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(_scaled(rows, weight, bias, mean, rstd), inplace=True).mT.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        rows = _rows(x)
        grad = torch.ops.aten.silu_backward(
            _rows(grad.contiguous(memory_format=CHANNELS_LAST[x.ndim])), _scaled(rows, weight, bias, mean, rstd)
        )
        total = grad.sum(1, dtype=weight.dtype)
        product = (grad * rows).sum(1, dtype=weight.dtype)
        dweight = (product - mean * total) * rstd
        count = rows.shape[1] * (rows.shape[2] // ctx.groups)
        slope = rstd * _group_sum(weight * dweight, ctx.groups) / count
        level = _group_sum(weight * total, ctx.groups) / count
        dx = torch.addcmul(_row(rstd * (mean * slope - level), x), rows, _row(-rstd * slope, x))
        dx = dx.addcmul_(grad, _row(weight * rstd, x))
        return dx.mT.view(x.shape), dweight, total, None, None


def _rows(x: Tensor) -> Tensor:
    """(B, C, *S) in channels-last layout -> (B, P, C), contiguous, without a copy."""
    return x.flatten(2).mT


def _row(value: Tensor, x: Tensor) -> Tensor:
    return value.unsqueeze(1).to(x.dtype)


def _group_sum(value: Tensor, groups: int) -> Tensor:
    """(B, C) -> (B, C), each channel with the sum of its group."""
    sums = value.unflatten(1, (groups, -1)).sum(2, keepdim=True)
    return sums.expand(-1, -1, value.shape[1] // groups).flatten(1)


def _moments(rows: Tensor, groups: int, dtype: torch.dtype, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation (B, C) of each channel's group."""
    count = rows.shape[1] * (rows.shape[2] // groups)
    mean = _group_sum(rows.sum(1, dtype=dtype), groups) / count
    variance = _group_sum((rows - _row(mean, rows)).square_().sum(1, dtype=dtype), groups) / count
    return mean, torch.rsqrt(variance + eps)


def _scaled(rows: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    factor = weight * rstd
    return torch.addcmul(_row(bias - mean * factor, rows), rows, _row(factor, rows))
