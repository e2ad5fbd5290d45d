"""Self-attention over the positions of an image and cross-attention to tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from medgen.nn.blocks import zero
from medgen.nn.norm import group_count


class Attention(nn.Module):
    """Residual self-attention over all positions and, where the network takes tokens, cross-attention to them (Vaswani et al. 2017).

    Args:
        channels: C.
        tokens: width of the tokens, 0 for none.
        head: channels per head aimed at.
    """

    def __init__(self, channels: int, tokens: int = 0, head: int = 64):
        super().__init__()
        self.heads = max(h for h in range(1, max(channels // head, 1) + 1) if channels % h == 0)
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), zero(nn.Linear(channels, channels))
        if tokens:
            self.cross_norm = nn.LayerNorm(channels)
            self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(tokens, 2 * channels)
            self.cross_out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """x (B, C, *S), tokens (B, L, E') -> (B, C, *S)."""
        rows = x.flatten(2).mT
        update = self.out(self._attend(*self.qkv(self.norm(x).flatten(2).mT).chunk(3, -1)))
        if tokens is not None:
            query = self.query(self.cross_norm(rows + update))
            update = update + self.cross_out(self._attend(query, *self.key_value(tokens).chunk(2, -1)))
        return x + update.mT.unflatten(2, x.shape[2:])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, N, C), (B, L, C), (B, L, C) -> (B, N, C)."""
        query, key, value = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (query, key, value))
        attend = _Explicit.apply if _explicit_is_faster(query, key) else F.scaled_dot_product_attention
        return attend(query, key, value).transpose(1, 2).flatten(2)


def _explicit_is_faster(query: Tensor, key: Tensor) -> bool:
    """On processors the fused kernel takes two to three times as long as the plain matrix products in bfloat16, which need memory."""
    if torch.compiler.is_compiling():
        return False
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= 2048 and key.shape[2] <= 2048


class _Explicit(Function):
    """Attention by matrix products. Keeps query, key and value only: the weights are computed again in the backward pass."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        flat = [z.flatten(0, 1) for z in (query, key, value)]
        ctx.save_for_backward(query, key, value)
        return torch.bmm(_weights(*flat[:2]), flat[2]).view(*query.shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        shapes = [z.shape for z in ctx.saved_tensors]
        query, key, value = (z.flatten(0, 1) for z in ctx.saved_tensors)
        grad = grad.flatten(0, 1)
        weights = _weights(query, key)
        slope = torch.ops.aten._softmax_backward_data(torch.bmm(grad, value.mT), weights, -1, weights.dtype)
        slope *= query.shape[-1] ** -0.5
        grads = torch.bmm(slope, key), torch.bmm(slope.mT, query), torch.bmm(weights.mT, grad)
        return tuple(g.view(shape) for g, shape in zip(grads, shapes, strict=True))


def _weights(query: Tensor, key: Tensor) -> Tensor:
    scores = torch.baddbmm(query.new_zeros(1, 1, 1), query, key.mT, beta=0, alpha=query.shape[-1] ** -0.5)
    return scores.softmax(-1)
