"""medgen: generative models for medical imaging. `medgen.load(name)` returns a pretrained model that is ready to use."""

from importlib import import_module

__version__ = "0.1.0"
_LAZY = {
    "load": "medgen.inference",
    "Pretrained": "medgen.inference",
    "Acquisition": "medgen.inference",
    "Volume": "medgen.core.volume",
    "save": "medgen.checkpoint",
    "build": "medgen.checkpoint",
}
__all__ = ["Acquisition", "Pretrained", "Volume", "build", "load", "save"]


def __getattr__(name: str):
    """Heavy libraries are imported where they are used: `import medgen` itself takes milliseconds (PEP 562)."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'medgen' has no attribute {name!r}")
