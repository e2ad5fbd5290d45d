"""Pretrained models in one line: `load`, then `generate`, `translate` or `reconstruct`; volumes come back with units and geometry."""

from medgen.inference.pretrained import Pretrained, check_golden, check_seed, golden, load, usable_device
from medgen.inference.reconstruction import Acquisition, Reconstructed
from medgen.zoo import find

__all__ = ["Acquisition", "Pretrained", "Reconstructed", "check_golden", "check_seed", "find", "golden", "load", "usable_device"]
