"""What only a CUDA device can show. Run with `pytest -m gpu`."""

import subprocess
import sys

import pytest
import torch

from medgen.checkpoint import build
from medgen.cli.run import to_channels_last
from medgen.core.condition import Condition
from medgen.core.model import Example
from medgen.core.random import Rng

pytestmark = pytest.mark.gpu

NETWORK = {"_target_": "medgen.nn.unet.UNet", "in_channels": 1, "out_channels": 1, "channels": [32, 64], "blocks": 1}


def diffusion(dims: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(
        {
            "_target_": "medgen.models.diffusion.Diffusion",
            "network": {**NETWORK, "spatial_dims": dims},
            "preconditioning": {"_target_": "medgen.models.preconditioning.EDM"},
            "levels": {"_target_": "medgen.core.levels.LogNormal"},
            "sampler": {"_target_": "medgen.samplers.heun.Heun", "grid": {"_target_": "medgen.core.levels.Karras"}, "steps": 4},
        }
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model.cuda()


def gradients(model: torch.nn.Module, dims: int, dtype: torch.dtype | None) -> torch.Tensor:
    rng = Rng(0, 0, range(2), "cuda")
    example = Example(rng.normal((2, 1, *(24,) * dims)), Condition())
    model.zero_grad()
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        total = model.loss(example, model.begin(example, rng)).total
    (total * (1024 if dtype == torch.float16 else 1)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]) / (1024 if dtype == torch.float16 else 1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_gradients_point_where_fp32_points(dims, dtype):
    model = diffusion(dims)
    full, half = gradients(model, dims, None), gradients(model, dims, dtype)
    assert float(torch.cosine_similarity(full, half, dim=0)) > 0.99
    assert float(half.norm() / full.norm()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_gives_the_same_gradients(dims):
    model = diffusion(dims)
    plain = gradients(model, dims, None)
    to_channels_last(model)
    assert float(torch.cosine_similarity(plain, gradients(model, dims, None), dim=0)) > 0.9999


def test_the_network_compiles_to_one_graph():
    model = diffusion(2)
    x, t = torch.randn(2, 1, 24, 24, device="cuda"), torch.zeros(2, device="cuda")
    expected = model.network(x, t, Condition())
    torch.testing.assert_close(torch.compile(model.network, fullgraph=True)(x, t, Condition()), expected, rtol=1e-3, atol=1e-3)


def test_samples_agree_between_devices():
    model = diffusion(2).eval()
    on_gpu = model.sample(Condition(), (2, 1, 24, 24), Rng(0, 0, range(2), "cuda")).cpu()
    on_cpu = model.cpu().sample(Condition(), (2, 1, 24, 24), Rng(0, 0, range(2)))
    assert float((on_gpu - on_cpu).abs().max()) < 2e-2 * float(on_cpu.abs().max())


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_a_checkpoint_made_on_the_gpu_loads_on_the_cpu(tmp_path, precision):
    tiny = [
        "data.source.size=[32,32]",
        "data.source.subjects={train: 3, validation: 1, test: 1}",
        "network.channels=[8,16]",
        "sampler.steps=2",
    ]
    run = [
        f"training.precision={precision}",
        "training.steps=4",
        "training.validate_every=4",
        "training.accelerator=gpu",
        f"run={tmp_path}/run",
    ]
    subprocess.run([sys.executable, "-m", "medgen", "train", *tiny, "task=translation", *run], check=True)
    import medgen

    model = medgen.load(tmp_path / "run")
    assert model.device.type == "cpu"
    assert all(p.isfinite().all() for p in model.model.parameters())
