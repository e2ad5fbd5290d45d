"""What the commands that use a model share: the model, its device, its conditions."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from medgen.core.errors import MedgenError
from medgen.inference import Pretrained, load


def pretrained(options: argparse.Namespace) -> Pretrained:
    """The model that the options name, on their device, under their sampler."""
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load(options.model, device).with_sampler(options.sampler, options.steps, options.guidance)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """`--set name=value` as a dictionary; numbers become numbers, the rest are file names."""
    values = {}
    for item in options.set:
        name, separator, value = item.partition("=")
        if not separator:
            raise MedgenError(f"--set takes NAME=VALUE, got '{item}'")
        values[name] = _number(value)
    return values


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
