"""Residual maps of priors whose answer is a closed form."""

import math

import numpy as np
import pytest
import torch

from medgen.core.condition import Condition
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.core.levels import Karras
from medgen.core.random import Rng
from medgen.core.volume import Volume
from medgen.data.manifest import Manifest
from medgen.evaluation import anomaly
from medgen.evaluation.section import Level
from medgen.evaluation.work import Work
from medgen.inference import Pretrained
from medgen.metrics.monitor import PSNR
from medgen.samplers.heun import Heun
from medgen.tasks.synthesis import Synthesis

RULE = {"name": "unit_range", "low": 0.0, "high": 100.0, "typical": {"low": 0.0, "high": 100.0}}
SIZE = (24, 24)


class Gaussian(torch.nn.Module):
    """Independent voxels N(mean, std^2), by the exact denoiser."""

    caveat = ""

    def __init__(self, mean: torch.Tensor | float, std: float = 0.1):
        super().__init__()
        self.mean, self.std = mean, std
        self.sampler = Heun(Karras(), 18)

    def denoise(self, x_t, alpha, sigma, condition):
        return self.mean + alpha * self.std**2 / ((alpha * self.std) ** 2 + sigma**2) * (x_t - alpha * self.mean)

    def sample(self, condition, shape, rng):
        return self.mean + self.std * rng.normal(tuple(shape))


def test_what_comes_back_of_a_gaussian_is_known():
    """The flow of dx / dsigma takes x_t at noise s to mean + (x_t - mean) std / sqrt(std^2 + s^2)."""
    model, x = Gaussian(0.2), torch.linspace(-1, 1, 9).reshape(1, 1, 3, 3)
    s = anomaly.Below(Karras(), 0.5).levels(60)[0].sigma
    back = anomaly.healed(model, x, Rng(0), 0.5, 60)
    noise = Rng(0).normal((1, 1, 3, 3))
    torch.testing.assert_close(back, 0.2 + (x + s * noise - 0.2) * 0.1 / math.hypot(0.1, s), atol=2e-3, rtol=0)
    assert s <= 0.5


def test_a_map_is_the_mean_difference_over_draws_and_channels():
    model, x = Gaussian(0.0), torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found, mean = anomaly.anomaly_map(model, x, draws=400, steps=20)
    s = anomaly.Below(Karras(), anomaly.RATIO).levels(20)[0].sigma
    kept = 0.1 / math.hypot(0.1, s)
    torch.testing.assert_close(mean, x * kept, atol=4 * s * kept / math.sqrt(400) + 2e-3, rtol=0)
    torch.testing.assert_close(found, (x - mean).abs().mean(1))
    assert torch.equal(found, anomaly.anomaly_map(model, x, draws=400, steps=20)[0])


def test_a_model_that_cannot_denoise_is_refused():
    with pytest.raises(MedgenError, match="take a diffusion model"):
        anomaly.healed(torch.nn.Identity(), torch.zeros(1, 1, 4, 4), Rng(0))
    assert anomaly.healed(Gaussian(0.0), torch.zeros(1, 1, 4, 4), Rng(0), condition=Condition()).shape == (1, 1, 4, 4)


def pattern():
    """What is usual: bright and dark columns, so that intensity alone does not tell a lesion."""
    return torch.where(torch.arange(24) % 8 < 4, 0.6, -0.4).expand(SIZE)


@pytest.fixture
def work(tmp_path):
    """Six subjects with the usual pattern and noise; four are tried, three of them with a lesion of the dark columns' brightness in a
    bright one."""
    rows, usual = ["subject,split,t1,lesion"], pattern().numpy()
    for i in range(6):
        image, mask = usual + np.random.default_rng(i).normal(0, 0.1, SIZE), np.zeros(SIZE, np.uint8)
        if i < 3:
            mask[6 + i : 11 + i, 8:12] = 1
            image[mask > 0] -= 1.0
        image[:2], image[-2:], image[:, :2], image[:, -2:] = -1, -1, -1, -1
        for name, values in (("t1", (image + 1) * 50), ("lesion", mask)):
            Volume(values[None, ..., None].astype(np.float32 if name == "t1" else np.uint8), np.eye(4)).save(
                tmp_path / f"{i}_{name}.nii.gz"
            )
        rows.append(f"s{i},{'test' if i < 4 else 'train'},{i}_t1.nii.gz,{i}_lesion.nii.gz")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")

    def make(model, task=None, **changes):
        contract = Contract(2, SIZE, ("t1",), intensity={"t1": RULE}, spacing=(1.0, 1.0, 1.0), orientation="RAS", slice_axis=2)
        setting = {"labels": {"lesion": 2}, "samples": 2, **changes}
        return Work(
            Pretrained(model, task or Synthesis(["t1"], PSNR(2.0)), contract, {}, None),
            Manifest.read(tmp_path / "list.csv"),
            tmp_path / "o",
            **setting,
        )

    return make


def test_a_prior_that_knows_the_usual_finds_the_unusual(work):
    told = anomaly.section(work(Gaussian(pattern())))
    assert told.numbers["prior"]["auroc"].value > 0.99 and told.numbers["prior"]["best_dice"].value > 0.85
    assert told.numbers["prior"]["auroc"].n == 3  # the healthy subject has nothing to find
    assert told.numbers["intensity"]["auroc"].value < 0.8 and told.numbers["blurred"]["auroc"].value < 0.95
    assert told.numbers["above_yardstick"]["yardstick"] == "mean image"  # which knows the usual as well
    assert "chance" not in told.verdict
    assert told.worst[0][0] in ("s0", "s1", "s2") and told.figures[0].picture.ndim == 3


def test_processes_share_the_maps_and_find_what_is_made(work, monkeypatch):
    whole = anomaly.section(work(Gaussian(pattern()), samples=3))
    monkeypatch.setattr(anomaly, "BATCH", 1)
    asked, denoise = [], Gaussian.denoise
    monkeypatch.setattr(Gaussian, "denoise", lambda self, *given: asked.append(len(given[0])) or denoise(self, *given))
    each = 0
    for place, images in ((0, 2), (1, 1)):
        asked.clear()
        anomaly.prepare(work(Gaussian(pattern()), place=place, places=2), lambda done, of: None)
        each = each or len(asked) // 2
        assert len(asked) == images * each > 0
    asked.clear()
    told = anomaly.section(work(Gaussian(pattern())))
    assert not asked, "all maps were there"
    assert told.numbers["prior"]["auroc"].value == pytest.approx(whole.numbers["prior"]["auroc"].value, abs=0.01)


def test_a_prior_that_expects_the_lesion_everywhere_is_bad(work):
    told = anomaly.section(work(Gaussian(-0.4)))
    assert told.numbers["prior"]["auroc"].value < 0.3 and told.level == Level.BAD
    assert "no better than chance" in told.verdict


def test_what_is_needed_is_said(work):
    assert "--labels" in anomaly.section(work(Gaussian(0.0), labels={})).skipped
    conditional = Synthesis(["t1"], PSNR(2.0), attributes={"age": 0})
    assert "--set" in anomaly.section(work(Gaussian(0.0), conditional)).skipped
    assert "step by step" in anomaly.section(work(torch.nn.Identity())).skipped
