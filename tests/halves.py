"""A model that multiplies its source, and subjects on disk whose targets are about half of their sources."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from medgen.core.contract import Contract
from medgen.core.volume import Volume
from medgen.inference import Pretrained
from medgen.metrics.monitor import PSNR
from medgen.tasks.translation import Translation

RULE = {"name": "unit_range", "low": 0.0, "high": 100.0, "typical": {"low": 0.0, "high": 100.0}}
SHAPE = (16, 14, 12)


class Scaled(torch.nn.Module):
    """The source times a number, by one call of its network a slice."""

    caveat = ""

    def __init__(self, factor: float):
        super().__init__()
        self.network = torch.nn.Linear(1, 1, bias=False)
        self.network.weight.data.fill_(factor)

    def sample(self, condition, shape, rng):
        return self.network(condition.dense[..., None])[..., 0]


def translator(factor: float = 0.5, folder: str = "runs/halved/checkpoints/last") -> Pretrained:
    contract = Contract(
        2,
        (16, 14),
        ("t2",),
        ("t1",),
        intensity={"t1": RULE, "t2": RULE},
        spacing=(1.0, 1.0, 1.0),
        orientation="RAS",
        slice_axis=2,
        data={"name": "a drawn set", "licence": "CC0", "subjects": 4},
    )
    return Pretrained(Scaled(factor), Translation(("t1",), ("t2",), PSNR(2.0)), contract, {}, Path(folder))


def halves(folder: Path, splits: Sequence[str], noise: Mapping[int, float] | None = None, subject: str = "s{}") -> Path:
    """A manifest with a subject for each split, in sites A and B in turn; the target's noise is 0.05, or that of the subject's number."""
    rows = ["subject,split,t1,t2,site"]
    for i, split in enumerate(splits):
        rng = np.random.default_rng(i)
        source = np.zeros(SHAPE)
        source[2:-2, 2:-2, 1:-1] = rng.uniform(-0.8, 0.8, (12, 10, 10)) * 50 + 50
        target = np.where(source > 0, ((source / 50 - 1) / 2 + rng.normal(0, (noise or {}).get(i, 0.05), SHAPE) + 1) * 50, 0)
        for name, array in (("t1", source), ("t2", target)):
            Volume(array[None].astype(np.float32), np.eye(4)).save(folder / f"{i}_{name}.nii.gz")
        rows.append(f"{subject.format(i)},{split},{i}_t1.nii.gz,{i}_t2.nii.gz,{'AB'[i % 2]}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder / "list.csv"
