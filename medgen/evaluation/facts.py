"""What makes two evaluations the same: weights and settings as plain data that every process writes alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def described(value: Any) -> Any:
    """A sampler or a guidance as plain data, the same in every process: its class and what it was made of."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, (Tensor, np.ndarray)):
        return np.asarray(value).tolist()
    if hasattr(value, "__dict__"):
        return {"class": described(type(value)), **described(vars(value))}
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def weights_digest(model: nn.Module) -> str:
    """Of all parameters and buffers: 16 hexadecimal digits."""
    state = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        state.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]
