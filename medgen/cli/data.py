"""`medgen data`: from a folder of images to a manifest that is fit for training."""

from __future__ import annotations

import argparse
from importlib import import_module

ACTIONS = ("scan", "check", "split", "prepare", "get")


def run(options: argparse.Namespace) -> None:
    """Hand over to the action's module."""
    import_module(f"medgen.cli.data_{options.action}").run(options)
