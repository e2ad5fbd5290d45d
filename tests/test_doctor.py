"""`medgen doctor`: what it finds, what it must not let pass, and the memory plan against counts by hand and a real run."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import medgen
from medgen.checkpoint import build, save
from medgen.cli import precision
from medgen.cli.configs import compose, resolved
from medgen.cli.machine import GB, MB, Machine, compared, space
from medgen.cli.main import main
from medgen.cli.plan import plan_of
from medgen.cli.run import contract_of
from medgen.core.model import GenerativeModel, Loss, Phase
from medgen.core.schedule import DiscreteSchedule
from medgen.metrics.monitor import PSNR
from medgen.tasks.synthesis import Synthesis
from medgen.training.ema import EMA
from medgen.training.optimizers import AdamW
from medgen.training.plan import Run, plan

ROOMY = Machine(100 * GB, 16 * GB, 16 * GB, 64 * GB, 32 * GB, 8, "8", frozenset())
TINY = (
    "data.source.size=[16,16]",
    "data.batch_size=2",
    "network.channels=[4,8]",
    "network.blocks=1",
    "sampler.steps=2",
    "training.accelerator=cpu",
)
SMALL = precision.Shapes(1, 8, (16, 16), (8, 8, 8))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(precision, "SHAPES", {"cpu": SMALL, "cuda": SMALL})


def document(capsys, *arguments) -> dict:
    main(["doctor", "--json", *arguments])
    return json.loads(capsys.readouterr().out)


# ---------------------------------------------------------------- the machine


def test_the_table_tells_versions_devices_space_and_checks_of_this_machine(quick, capsys):
    told = document(capsys)
    found = {(f["group"], f["name"]): f for f in told["findings"]}
    assert told["status"] == "OK" and told["plan"] is None
    assert all(set(f) == {"group", "name", "status", "value", "remedy"} for f in told["findings"])
    assert found["versions", "torch"]["value"].startswith(torch.__version__)
    assert {g for g, _ in found} == {"versions", "processor", "devices", "space", "places", "checks"}
    assert {n.split()[0] for g, n in found if g == "checks"} == {"conv2d", "conv3d", "fused", "attention"}


def test_piped_output_is_one_plain_line_per_finding(quick, capsys):
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split("\t")[0] in ("OK", "WARN") for line in lines)
    assert any(line.startswith("OK\tversions\tlightning\t") for line in lines)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"shared_free": 64 * MB, "shared_total": 64 * MB}, "shared memory", ("64 MiB free", "data.workers=0", "--shm-size")),
        ({"disk_free": 1 * GB}, "disk for runs", ("1.0 GiB free", "run=")),
        ({"memory_available": 1 * GB}, "memory", ("1.0 GiB free of 64.0 GiB", "data.batch_size")),
    ],
)
def test_too_little_space_warns_with_a_remedy(change, name, words):
    assert all(f.status == "OK" for f in space(ROOMY))
    (warned,) = [f for f in space(replace(ROOMY, **change)) if f.status != "OK"]
    assert (warned.status, warned.name) == ("WARN", name)
    assert all(word in f"{warned.value} {warned.remedy}" for word in words)


def test_a_version_outside_its_range_and_a_missing_package_fail():
    assert compared("torch", ">=1.0").status == "OK"
    assert compared("torch", ">=99").status == "FAIL" and "pip install 'torch>=99'" in compared("torch", ">=99").remedy
    assert compared("no-such-package-here", ">=1").value == "missing, >=1 needed"


# ---------------------------------------------------------------- numeric checks


def failed(capsys) -> list[str]:
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--json"])
    assert end.value.code == 1
    return [f["name"] for f in json.loads(capsys.readouterr().out)["findings"] if f["status"] == "FAIL"]


def test_a_convolution_that_is_wrong_in_bf16_fails(quick, monkeypatch, capsys):
    right = torch.nn.functional.conv3d

    def wrong(x, weight, padding):
        return right(x, weight, padding=padding) * (1.05 if torch.is_autocast_enabled("cpu") else 1.0)

    monkeypatch.setattr(precision.F, "conv3d", wrong)
    assert failed(capsys) == ["conv3d 8x8x8 x 8, bf16"]


def test_a_norm_whose_gradient_alone_is_wrong_fails(quick, monkeypatch, capsys):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.05

    right = precision.norm_silu
    monkeypatch.setattr(precision, "norm_silu", lambda *given: Wrong.apply(right(*given)))
    assert failed(capsys) == ["fused norm 8x8x8 x 8, fp32", "fused norm 8x8x8 x 8, bf16"]


def test_slow_warns_wrong_and_not_a_number_fail():
    assert precision.judged("x", 1e-3, torch.bfloat16, "v", "r", ratio=2.0).status == "WARN"
    assert precision.judged("x", 1e-3, torch.bfloat16, "v", "r", ratio=0.5).status == "OK"
    assert precision.judged("x", 1e-3, torch.float32, "v", "r").status == "FAIL"
    nan = precision.distance([torch.tensor([float("nan")])], [torch.ones(1)])
    assert precision.judged("x", nan, torch.float32, "v", "r").status == "FAIL"


# ---------------------------------------------------------------- the plan


class Stack(GenerativeModel):
    """Linear layers on flat images, and the mean square of the last one."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))

    @property
    def phases(self):
        return (Phase("stack", self.layers, self.loss),)

    def loss(self, example, shared):
        return Loss(self.layers(example.x.flatten(1)).square().mean())

    def sample(self, condition, shape, rng):
        return self.layers(torch.zeros(shape).flatten(1)).view(shape)


def stacked(batch: int, side: int, layers: int, metric: object = None, validate: int = 1) -> Run:
    settings = {"steps": 4, "accumulate": 1, "clip": 1.0, "precision": "32", "validate_batches": validate}
    return Run(lambda: Stack(side * side, layers), lambda: Synthesis(["t1"], metric or PSNR()), AdamW, EMA, (side, side), batch, settings)


def test_the_plan_of_linear_layers_is_the_count_by_hand():
    batch, side, layers = 32, 16, 5
    width = side * side
    found = plan(stacked(batch, side, layers))
    weights = layers * (width * width + width) * 4
    assert (found.weights, found.averages) == (weights, weights)
    assert found.optimizer == 2 * weights + 2 * layers * 4  # two moments, and a step count for each of the tensors
    kept = (1 + layers) * batch * width * 4  # the example's image, which the first layer keeps, and every layer's result
    assert found.activations == kept + 2 * 4  # and the loss, and its share of the window
    assert found.moments["saving"] == 5 * weights + 2 * layers * 4
    assert found.peak == sum(found.parts.values()) > 5 * weights
    assert not found.notes


class Scored(PSNR):
    """Keeps the shapes that it is asked to score."""

    asked: list = []

    def __call__(self, made, real):
        self.asked.append((tuple(made.shape), tuple(real.shape)))
        return super().__call__(made, real)


class Broken(PSNR):
    def __call__(self, made, real):
        return made.no_such_thing


class Foreign(PSNR):
    def __call__(self, made, real):
        return float(made.numpy().mean())


def test_the_plan_scores_a_validation_of_as_many_batches_as_the_run():
    found = plan(stacked(4, 16, 1, Scored(), validate=6))
    assert Scored.asked == [((24, 1, 16, 16), (24, 1, 16, 16))] and not found.notes
    few, many = (plan(stacked(4, 16, 1, validate=n)).moments["validation"] for n in (6, 26))
    assert many - few >= 20 * 2 * 4 * 16 * 16 * 4  # a sample and a real image of every case wait for the score


def test_the_default_plan_knows_everything():
    assert plan_of(TINY).notes == []
    assert plan_of([*TINY, "task=translation"]).notes == []


def test_a_metric_that_needs_numbers_is_a_note_and_a_fault_is_not():
    (note,) = plan(stacked(4, 16, 1, Foreign())).notes
    assert "validation is not part of this plan: it needs numbers (RuntimeError)" in note
    with pytest.raises(AttributeError, match="no_such_thing"):
        plan(stacked(4, 16, 1, Broken()))


def test_a_noise_schedule_first_used_in_a_plan_has_real_levels_afterwards():
    schedule = DiscreteSchedule(beta_end=0.0123, steps=10)  # nobody else's, so that nothing is cached
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert all(isinstance(v, FakeTensor) for v in (*schedule.at(torch.zeros(2)), schedule.timestep(torch.zeros(2))))
        planned = schedule.levels(2)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.0123, 10, dtype=torch.float64), 0)
    alpha, sigma = schedule.at(torch.tensor([0.0, 0.95]))
    assert not isinstance(alpha, FakeTensor)
    torch.testing.assert_close(alpha, kept[[0, 9]].sqrt().float())
    torch.testing.assert_close(sigma, (1 - kept[[0, 9]]).sqrt().float())
    assert schedule.timestep((sigma / alpha).log() / 4).tolist() == [0.0, 9.0]
    assert planned == schedule.levels(2) and planned[0].alpha == pytest.approx(float(kept[9].sqrt()), rel=1e-12)


def untrained(folder: Path, *overrides: str) -> Path:
    """A checkpoint as a run leaves it."""
    config = resolved(compose(["data.source.size=[16,16]", "data.batch_size=2", *overrides]))
    data, task, model = (build(config[part], trusted=True) for part in ("data", "task", "model"))
    save(folder, model.state_dict(), {"model": config["model"], "task": config["task"]}, contract_of(task, data.facts()))
    return folder


def test_the_plan_of_fine_tuning_is_that_of_the_checkpoints_model(tmp_path):
    checkpoint = untrained(tmp_path / "model", "task=translation", "model=regression", "network.channels=[4,8]", "network.blocks=1")
    start = (f"init_from={checkpoint}", "data.batch_size=2", "training.accelerator=cpu")
    layers = [m for m in medgen.load(checkpoint).model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    everything = sum(p.numel() for p in medgen.load(checkpoint).model.parameters())
    full, low = plan_of(start), plan_of([*start, "finetune=lora", "finetune.rank=1"])
    factors = sum(len(m.weight) + m.weight[0].numel() for m in layers)
    assert full.tensors["weights"] == 4 * everything
    assert low.tensors["weights"] == 4 * (everything + factors)
    assert low.tensors["optimizer"] == 2 * 4 * factors + 2 * len(layers) * 4  # two moments of each factor, and its step count
    assert full.notes == low.notes == []
    assert full.tensors["optimizer"] > 2 * 4 * everything


def test_the_plan_says_what_it_does_not_model(tmp_path):
    codec = untrained(tmp_path / "codec", "model=codec", "network.channels=[4,8,8]", "network.latent=3", "critic.channels=[4,8]")
    latent = (f"codec={codec}", "model=latent_diffusion", "latents.cache=true", "training.devices=2")
    cached, several = plan_of([*TINY, *latent]).notes
    assert cached.startswith("latents.cache is not modelled")
    assert several.startswith("2 processes are not modelled")


def test_recomputing_shows_in_the_plan():
    kept, again = (plan_of([*TINY, f"network.checkpointing={flag}"]).activations for flag in ("false", "true"))
    assert again < 0.75 * kept


def test_a_plan_needs_no_image(capsys):
    told = document(capsys, "--plan", "experiment=t1_to_t2_regression", "data.source.manifest=nowhere.csv", *TINY[:4], "network.patch=1")
    assert told["plan"]["notes"] == ["the images that stay in memory: there is no nowhere.csv"]
    assert {f["group"] for f in told["findings"]} == {"plan"}
    parts = told["plan"]["process"] | told["plan"]["tensors"]
    assert told["plan"]["peak"] == sum(parts.values())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=dema"], "no experiment 'dema'; did you mean 'demo'"),
        (["demo"], "'demo' is not an override: give group=choice or key=value"),
        (["experiment=demo", "training.precision=bf17-mixed"], "no training.precision 'bf17-mixed'"),
        (["finetune=lora"], "finetune needs init_from="),
        (["init_from=nowhere"], "no model 'nowhere'"),
        (["experiment=demo", "latents.cache=true"], "latents.cache is for models on a codec"),
    ],
)
def test_a_mistaken_plan_is_answered_in_a_sentence(overrides, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--plan", *overrides])
    assert end.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_predicted_peak_is_within_15_percent_of_a_real_run(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    memory = importlib.import_module("memory")
    measured = memory.measured(TINY).training
    assert memory.predicted(TINY)["peak"] / 2**20 == pytest.approx(measured, rel=0.15)
