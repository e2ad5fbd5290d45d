"""How a network takes what is known about a sample: checks, embeddings, and the learned null of a role that is absent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medgen.core.condition import ROLES, Condition
from medgen.core.errors import MedgenError, nearest


def role_sizes(condition: Mapping[str, int] | None, taken: Sequence[str] = ROLES, network: str = "network") -> dict[str, int]:
    """Size of each role, 0 where it is not taken.

    Raises:
        MedgenError: an unknown role, or a size for a role that this network cannot take.
    """
    sizes = {str(role): int(size or 0) for role, size in (condition or {}).items()}
    for role in sizes:
        if role not in ROLES:
            raise MedgenError(f"{network}: unknown condition role '{role}'; {nearest(role, ROLES)}")
        if sizes[role] and role not in taken:
            raise MedgenError(
                f"{network} takes no '{role}' condition (it takes {', '.join(taken) or 'none'});"
                f" set condition.{role} to 0 or choose a network that takes it"
            )
    return {role: sizes.get(role, 0) for role in ROLES}


class Conditioning(nn.Module):
    """Checks a condition and replaces each absent role by a learned null.

    Args:
        sizes: role -> size (attributes E, channels K, token width E').
        embedding: width of the vector's embedding; 0 hands the vector on as it is, for a network that embeds it itself.
        network: the network's name in messages.
    """

    def __init__(self, sizes: Mapping[str, int], embedding: int, network: str):
        super().__init__()
        self.sizes, self.network = dict(sizes), network
        self.embed = nn.Identity()
        if sizes["vector"] and embedding:
            self.embed = nn.Sequential(nn.Linear(sizes["vector"], embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if sizes["vector"]:
            self.null_vector = nn.Parameter(torch.zeros(embedding or sizes["vector"]))
        if sizes["dense"]:
            self.null_dense = nn.Parameter(torch.zeros(sizes["dense"]))
        if sizes["tokens"]:
            self.null_token = nn.Parameter(torch.randn(sizes["tokens"]) / math.sqrt(sizes["tokens"]))

    def check(self, condition: Condition | None, batch: int) -> None:
        """Refuse a role that the network does not take, a size that it was not built for, and another number of samples."""
        for role in condition.roles if condition is not None else ():
            size = getattr(condition, role).shape[2 if role == "tokens" else 1]
            if not self.sizes[role]:
                taken = ", ".join(r for r in ROLES if self.sizes[r]) or "no condition"
                raise MedgenError(
                    f"{self.network} was given a '{role}' condition but takes {taken}; set condition.{role}={size} or leave it out"
                )
            if size != self.sizes[role]:
                raise MedgenError(
                    f"{self.network}: the '{role}' condition has {size} channels, expected {self.sizes[role]};"
                    f" build the network with condition.{role}={size} or change the input"
                )
            if len(getattr(condition, role)) != batch:
                raise MedgenError(f"{self.network}: the '{role}' condition has {len(getattr(condition, role))} samples, the batch {batch}")

    def vector(self, condition: Condition | None, batch: int) -> Tensor | None:
        """(B, embedding), or (B, E) where embedding is 0, or None for a network that takes no vector."""
        if not self.sizes["vector"]:
            return None
        if condition is None or condition.vector is None:
            return self.null_vector.expand(batch, -1)
        embedded = self.embed(condition.vector.to(self.null_vector.dtype))
        return _or_null(embedded, self.null_vector.to(embedded.dtype), condition, "vector")

    def dense(self, condition: Condition | None, batch: int, size: Sequence[int]) -> Tensor | None:
        """(B, K, *S) on the grid `size`, or None for a network that takes no dense condition."""
        if not self.sizes["dense"]:
            return None
        null = self.null_dense.reshape(-1, *(1 for _ in size))
        if condition is None or condition.dense is None:
            return null.expand(batch, -1, *size)
        if tuple(condition.dense.shape[2:]) != tuple(size):
            raise MedgenError(
                f"{self.network}: the dense condition lies on the grid {tuple(condition.dense.shape[2:])}, the image on {tuple(size)};"
                " use condition.resized(size)"
            )
        return _or_null(condition.dense.to(null.dtype), null, condition, "dense")

    def tokens(self, condition: Condition | None, batch: int) -> Tensor | None:
        """(B, L, E'), or None for a network that takes no tokens."""
        if not self.sizes["tokens"]:
            return None
        if condition is None or condition.tokens is None:
            return self.null_token.expand(batch, 1, -1)
        return _or_null(condition.tokens.to(self.null_token.dtype), self.null_token, condition, "tokens")


def _or_null(value: Tensor, null: Tensor, condition: Condition, role: str) -> Tensor:
    present = condition.present.get(role)
    if present is None:
        return value
    return torch.where(present.reshape(-1, *(1 for _ in value.shape[1:])), value, null)
