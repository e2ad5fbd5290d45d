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
    kernel = _Rows if is_channels_last(x) and x.device.type == "cpu" else _Planes
    with torch.autocast(x.device.type, enabled=False):
        return kernel.apply(x, weight, bias, groups, eps)


def is_channels_last(x: Tensor) -> bool:
    layout = CHANNELS_LAST.get(x.ndim)
    return layout is not None and x.is_contiguous(memory_format=layout) and not x.is_contiguous()


def in_layout_of(x: Tensor, weight: Tensor) -> Tensor:
    """x in channels-last memory if a network's weight is: the layout of an image with one channel says nothing."""
    return x.contiguous(memory_format=CHANNELS_LAST[x.ndim]) if is_channels_last(weight) else x


def _plain(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    shape = weight.shape + (1,) * (x.ndim - 2)
    wide = x.to(weight.dtype)
    return F.silu(F.group_norm(wide, groups, eps=eps) * weight.reshape(shape) + bias.reshape(shape)).to(x.dtype)


class _Planes(Function):
    """Contiguous tensors. A weight per sample is a weight per channel of one sample with B * C channels and B * G groups."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        x = x.contiguous()
        flat = x.view(1, weight.numel(), -1)
        ctx.sizes = (1, weight.numel(), flat.shape[2], len(x) * groups)
        y, mean, rstd = torch.ops.aten.native_group_norm(flat, _kernel_weight(weight, x), _kernel_weight(bias, x), *ctx.sizes, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(y, inplace=True).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        flat = x.view(1, weight.numel(), -1)
        wide_mean, wide_rstd = (_per_channel(s.reshape(len(x), -1).to(weight.dtype), weight) for s in (mean, rstd))
        y = _mapped(flat, weight * wide_rstd, bias - wide_mean * weight * wide_rstd)
        grad = torch.ops.aten.silu_backward(grad.contiguous().view(flat.shape), y)
        needed = [True, True, True]
        dx, dw, db = torch.ops.aten.native_group_norm_backward(grad, flat, mean, rstd, _kernel_weight(weight, x), *ctx.sizes, needed)
        return dx.view(x.shape), dw.view(weight.shape).to(weight.dtype), db.view(bias.shape).to(bias.dtype), None, None


def _kernel_weight(weight: Tensor, x: Tensor) -> Tensor:
    """(B, C) as the (B * C,) of the native kernel, which takes float32 beside bfloat16 on the CPU only."""
    return weight.reshape(-1).to(weight.dtype if x.device.type == "cpu" else x.dtype)


class _Rows(Function):
    """Channels-last tensors, with the batch-normalisation kernels, which are fast there: sample by sample a normalisation per channel."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        mean, rstd = _moments(x, groups, weight, eps)
        ctx.groups = groups
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(_mapped(x, weight * rstd, bias - mean * weight * rstd), inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        y = _mapped(x, weight * rstd, bias - mean * weight * rstd)
        grad = torch.ops.aten.silu_backward(grad.contiguous(memory_format=CHANNELS_LAST[x.ndim]), y)
        dweight, dbias = _sums(grad, x, mean, rstd)
        count = weight.shape[1] // ctx.groups * x[0, 0].numel()
        slope, level = (_per_channel(_per_group(weight * s, ctx.groups).sum(2) / count, weight) for s in (dweight, dbias))
        dx = _mapped(x, -rstd * rstd * slope, rstd * (mean * rstd * slope - level))
        return _add_scaled(dx, grad, weight * rstd), dweight, dbias, None, None


def _per_group(value: Tensor, groups: int) -> Tensor:
    return value.unflatten(1, (groups, -1))


def _per_channel(value: Tensor, like: Tensor) -> Tensor:
    """(B, G) -> (B, C)."""
    return value.repeat_interleave(like.shape[1] // value.shape[1], 1)


def _moments(x: Tensor, groups: int, like: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation (B, C) of each channel's group."""
    pairs = [torch.batch_norm_update_stats(row, None, None, 0.0) for row in x.split(1)]
    mean, variance = (_per_group(torch.stack(part).to(like.dtype), groups) for part in zip(*pairs, strict=True))
    group_mean = mean.mean(2)
    variance = (variance + (mean - group_mean[..., None]).square()).mean(2)
    return _per_channel(group_mean, like), _per_channel(torch.rsqrt(variance + eps), like)


def _mapped(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """factor * x + offset with a number per sample and channel, on processors by the kernel that normalises with given statistics."""
    factor, offset = factor.reshape(x.shape[:2]), offset.reshape(x.shape[:2])
    if x.device.type != "cpu":
        ones = (1,) * (x.ndim - 2)
        return torch.addcmul(offset.reshape(*x.shape[:2], *ones), x, factor.reshape(*x.shape[:2], *ones)).to(x.dtype)
    result = torch.empty_like(x)
    unused, zeros, ones = factor.new_empty(0), torch.zeros_like(factor[0]), torch.ones_like(factor[0])
    for row, target, a, b in zip(x.split(1), result.split(1), factor, offset, strict=True):
        torch.ops.aten.native_batch_norm.out(row, a, b, zeros, ones, False, 0.0, 0.0, out=target, save_mean=unused, save_invstd=unused)
    return result


def _sums(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the grid of grad * (x - mean) * rstd and of grad, (B, C) each."""
    pairs = [
        torch.ops.aten.native_batch_norm_backward(g, row, None, None, None, m, r, True, 0.0, [False, True, True])[1:]
        for g, row, m, r in zip(grad.split(1), x.split(1), mean, rstd, strict=True)
    ]
    return tuple(torch.stack(part).to(mean.dtype) for part in zip(*pairs, strict=True))


def _add_scaled(total: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """total + factor * x, in place; factor (B, C)."""
    rows = factor.unsqueeze(1).to(x.dtype)
    total.flatten(2).mT.addcmul_(x.flatten(2).mT, rows)
    return total
