"""From a name to a model that is ready to use, and the small output that proves it is the same everywhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from medgen.checkpoint import load as load_checkpoint
from medgen.core.errors import MedgenError
from medgen.core.random import Rng
from medgen.inference.pretrained import Pretrained, usable_device
from medgen.zoo import find


def load(name: str | Path, device: str | torch.device = "cpu") -> Pretrained:
    """A pretrained model by zoo name, by path (checkpoint or run folder), or from the hub (`hf://owner/repo[/folder]`)."""
    folder = find(name)
    target = usable_device(device)
    checkpoint = load_checkpoint(folder)
    return Pretrained(checkpoint.model.to(target), checkpoint.task, checkpoint.contract, checkpoint.document, folder)


def golden(pretrained: Pretrained, size: int = 16) -> dict[str, Any]:
    """A small output under fixed inputs: eight values of one sample on a tiny grid, and how closely they must be met."""
    contract = pretrained.contract
    size = math.lcm(size, *getattr(pretrained.task.operator, "factors", ()))
    shape = (size,) * contract.spatial_dims
    ramp = torch.linspace(-1, 1, size**contract.spatial_dims).reshape(1, 1, *shape)
    inputs = {name: ramp for name in contract.source}
    inputs |= {name: torch.zeros(1, 1, *shape) for name in contract.labels}
    inputs |= {name: torch.zeros(1) for name in contract.attributes}
    if pretrained.task.operator is not None:
        inputs["measurement"] = pretrained.task.measure(ramp.expand(1, len(contract.target), *shape), Rng(0, 1, [0]))
    made = pretrained.sample(pretrained.task.condition(inputs).to(pretrained.device), shape, Rng(0, 0, [0], pretrained.device)).flatten()
    chosen = made[torch.linspace(0, len(made) - 1, 8).long()]
    return {"size": size, "values": [round(float(v), 6) for v in chosen], "tolerance": 2e-3}


def check_golden(pretrained: Pretrained) -> float:
    """Largest difference to the stored golden output.

    Raises:
        MedgenError: there is none, or the difference exceeds its tolerance.
    """
    stored = pretrained.document.get("golden")
    if not stored:
        raise MedgenError("this checkpoint carries no golden output; `medgen zoo add` stores one")
    now = golden(pretrained, stored["size"])["values"]
    difference = max(abs(a - b) for a, b in zip(now, stored["values"], strict=True))
    if difference > stored["tolerance"]:
        raise MedgenError(f"the model's output differs from its golden output by {difference:.3g} (allowed {stored['tolerance']:g})")
    return difference
