"""One thread per process, and honest skips: a GPU test without a GPU, a real-image test without the images."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("MEDGEN_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("shared_data") and not SHARED.is_dir():
        pytest.skip(f"needs the real images in {SHARED}; set MEDGEN_SHARED_DATA to their folder")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images (ms_brain, stroke_brain, ...)."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real images in {SHARED}; set MEDGEN_SHARED_DATA to their folder")
    return SHARED
