"""What is known about a sample, in declared roles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

ROLES = ("vector", "dense", "tokens")


@dataclass
class Measurement:
    """What a machine measured: `y = operator(x, state) + noise`. Tensors batch first; the operator has no batch."""

    y: Tensor
    operator: Any
    state: dict[str, Tensor] = field(default_factory=dict)
    noise: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Measurement:
        """The same measurement with `change` applied to every tensor."""
        state = {name: change(value) for name, value in self.state.items()}
        return Measurement(change(self.y), self.operator, state, None if self.noise is None else change(self.noise))


@dataclass
class Condition:
    """What is known about each sample of a batch.

    Attributes:
        vector: (B, E) attributes such as a one-hot class, age or dose; reaches the network by modulation.
        dense: (B, K, *S) source images or masks on the sample's grid; by channel concatenation.
        tokens: (B, L, E') report or retrieved cases; by cross-attention.
        measurement: for data consistency; never seen by a network.
        present: role -> (B,) bool. A role that is absent for a sample is replaced by the network's learned null.
            A role that is not in the dictionary is present for all.
    """

    vector: Tensor | None = None
    dense: Tensor | None = None
    tokens: Tensor | None = None
    measurement: Measurement | None = None
    present: dict[str, Tensor] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        """The network roles that carry a tensor."""
        return tuple(role for role in ROLES if getattr(self, role) is not None)

    def __len__(self) -> int:
        for value in (self.vector, self.dense, self.tokens, self.measurement and self.measurement.y):
            if value is not None:
                return len(value)
        return 0

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same condition with `change` applied to every tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "present"}
        new = {k: v.map(change) if isinstance(v, Measurement) else None if v is None else change(v) for k, v in values.items()}
        return Condition(**new, present={k: change(v) for k, v in self.present.items()})

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return self.map(lambda t: t[rows])

    def to(self, device: torch.device | str) -> Condition:
        return self.map(lambda t: t.to(device))

    def repeat(self, n: int) -> Condition:
        """Every sample `n` times in a row."""
        return self.map(lambda t: t.repeat_interleave(n, 0))

    def keep(self, kept: Tensor) -> Condition:
        """Drop every role of the samples where `kept` (B,) bool is False; what was absent stays absent."""
        present = {r: kept & self.present[r] if r in self.present else kept for r in self.roles}
        return replace(self, present=present)

    def absent(self) -> Condition:
        """The condition with every role dropped: the null condition of classifier-free guidance."""
        if not self.roles:
            return self
        return self.keep(torch.zeros(len(self), dtype=torch.bool, device=getattr(self, self.roles[0]).device))

    def resized(self, size: tuple[int, ...], labels: bool = False) -> Condition:
        """`dense` on another grid: nearest for labels, linear for images. The measurement is never resized."""
        if self.dense is None or tuple(self.dense.shape[2:]) == tuple(size):
            return self
        mode = "nearest" if labels else {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
        extra = {} if labels else {"align_corners": False}
        return replace(self, dense=interpolate(self.dense, size=size, mode=mode, **extra))

    def celled(self, side: int) -> Condition:
        """`dense` (B, K, *S) without loss on a grid of cells: (B, K side^d, *ceil(S / side)), the positions of a cell as channels.

        Where a size is no multiple of `side` the last values repeat, as they do inside the networks, so that cell i of an axis covers
        positions i side to (i + 1) side - 1. The measurement is never changed.
        """
        if self.dense is None or side == 1:
            return self
        missing = [width for size in reversed(self.dense.shape[2:]) for width in (0, -size % side)]
        cells = pad(self.dense, missing, mode="replicate")
        for axis in range(2, cells.ndim):
            cells = cells.unflatten(axis, (-1, side)).movedim(axis + 1, 2).flatten(1, 2)
        return replace(self, dense=cells)

    @staticmethod
    def cat(parts: list[Condition]) -> Condition:
        """The samples of several conditions with the same roles, one after the other."""
        first = parts[0]
        joined = {}
        for role in ROLES:
            values = [getattr(p, role) for p in parts]
            if any((v is None) != (values[0] is None) for v in values):
                raise ValueError(f"cannot join conditions with and without '{role}'")
            joined[role] = None if values[0] is None else torch.cat(values)
        masks = {role for p in parts for role in p.present}
        present = {role: torch.cat([p._mask(role) for p in parts]) for role in masks}
        if first.measurement is not None:
            ms = [p.measurement for p in parts]
            noise = None if ms[0].noise is None else torch.cat([m.noise for m in ms])
            state = {k: torch.cat([m.state[k] for m in ms]) for k in ms[0].state}
            joined["measurement"] = Measurement(torch.cat([m.y for m in ms]), ms[0].operator, state, noise)
        return Condition(**joined, present=present)

    def _mask(self, role: str) -> Tensor:
        value = getattr(self, role)
        return self.present.get(role, torch.ones(len(self), dtype=torch.bool, device=value.device))
