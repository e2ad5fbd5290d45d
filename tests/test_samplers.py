"""Gaussian data has an analytic denoiser, so a sampler must return its mean and spread, and converge at its order."""

import math
from itertools import pairwise

import pytest
import torch

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.levels import CosineGrid, Karras, Level, LogitNormal, StraightGrid, StraightUniform
from medgen.core.random import Rng
from medgen.core.tensors import broadcast
from medgen.models.preconditioning import EDM, X0, Epsilon, V, Velocity
from medgen.samplers.ancestral import Ancestral
from medgen.samplers.choice import renewed
from medgen.samplers.churn import Churn
from medgen.samplers.ddim import DDIM, posterior_std
from medgen.samplers.dpmpp import DPMpp
from medgen.samplers.euler import Euler
from medgen.samplers.guidance import ClassifierFree
from medgen.samplers.heun import Heun
from medgen.samplers.schedulers import DiffusersSampler

MEAN, STD = 0.3, 0.5
GRIDS = {"karras": Karras(), "cosine": CosineGrid(), "straight": StraightGrid(), "shifted": StraightGrid(3.0)}


def gaussian(x: torch.Tensor, level: Level) -> torch.Tensor:
    """E[x | x_t] for x ~ N(MEAN, STD^2)."""
    alpha, sigma = level
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("make", [Euler, Heun, DDIM, DPMpp, Churn, Ancestral], ids=lambda make: make.__name__)
def test_samples_of_a_gaussian_have_its_mean_and_standard_deviation(grid, make):
    x = make(grid, 200)(gaussian, (4, 1, 100, 100), Rng(0, 0, range(4)))
    assert abs(float(x.mean()) - MEAN) < 0.02
    assert abs(float(x.std()) - STD) < 0.02


@pytest.mark.parametrize(
    ("make", "order", "name"),
    [
        *((make, order, name) for make, order in ((Euler, 1), (DDIM, 1), (Heun, 2)) for name in ("karras", "cosine", "straight")),
        (DPMpp, 2, "karras"),  # the other grids begin at a log-SNR of minus infinity, where its first step does not shrink
    ],
)
def test_order_of_convergence(make, order, name):
    grid = GRIDS[name]

    def error(steps: int) -> float:
        sampler = make(grid, steps)
        levels = grid.levels(steps)
        x = start = torch.linspace(-2, 2, 9, dtype=torch.float64) * levels[0].sigma
        # up to the last level before the clean one: on the Karras grid the final jump does not shrink with the steps
        last, memory = len(levels) - 2, None
        for now, after in pairwise(levels[: last + 1]):
            x, memory = sampler.step(gaussian, x, now, after, memory, None)
        end = levels[last]
        target = end.alpha * MEAN + math.hypot(end.alpha * STD, end.sigma) * (start - levels[0].alpha * MEAN) / math.hypot(
            levels[0].alpha * STD, levels[0].sigma
        )
        return float((x - target).abs().max())

    measured = math.log2(error(80) / error(160))
    assert abs(measured - order) < 0.25, measured


def test_ddim_without_noise_is_euler():
    a = Euler(CosineGrid(), 10)(gaussian, (2, 1, 8, 8), Rng(3, 0, range(2)))
    b = DDIM(CosineGrid(), 10)(gaussian, (2, 1, 8, 8), Rng(3, 0, range(2)))
    torch.testing.assert_close(a, b)


def test_the_first_step_of_dpmpp_is_eulers_and_the_second_extrapolates_in_log_snr():
    levels = [Level(0.6, 0.8), Level(0.8, 0.6), Level(0.9, 0.436)]
    answers = {level: torch.tensor([float(i)]) for i, level in enumerate(levels)}
    sampler, x = DPMpp(CosineGrid(), 2), torch.tensor([1.0])
    first, memory = sampler.step(lambda x, level: answers[level], x, levels[0], levels[1], None, None)
    torch.testing.assert_close(first, 0.6 / 0.8 * x + 0.0)
    second, _ = sampler.step(lambda x, level: answers[level], first, levels[1], levels[2], memory, None)
    h0, h1 = (math.log(b.alpha / b.sigma) - math.log(a.alpha / a.sigma) for a, b in pairwise(levels))
    ahead = (1 + h1 / (2 * h0)) * 1.0 - h1 / (2 * h0) * 0.0  # Lu et al. 2022, algorithm 2
    expected = 0.436 / 0.6 * first - 0.9 * math.expm1(-h1) * ahead
    torch.testing.assert_close(second, expected)


def test_churn_0_is_heun_and_churned_levels_follow_the_paper():
    a = Heun(Karras(), 10)(gaussian, (2, 1, 8, 8), Rng(3, 0, range(2)))
    torch.testing.assert_close(Churn(Karras(), 10, churn=0.0)(gaussian, (2, 1, 8, 8), Rng(3, 0, range(2))), a)
    sampler = Churn(Karras(), 20, churn=4.0, low=0.1, high=10.0)
    assert sampler.raised(Level(1.0, 2.0)).sigma == pytest.approx(2.4)
    assert sampler.raised(Level(1.0, 0.05)).sigma == 0.05 and sampler.raised(Level(1.0, 11.0)).sigma == 11.0
    assert Churn(Karras(), 20, churn=400.0).raised(Level(1.0, 1.0)).sigma == pytest.approx(2**0.5)


def test_velocity_of_a_gaussian_is_known():
    """E[n - x | x_t] from Gaussian conditioning, at the points of the straight path and, rescaled, off it."""
    for t in (0.1, 0.5, 0.9):
        alpha, sigma = 1 - t, t
        x_t = torch.linspace(-2, 2, 5, dtype=torch.double)
        variance = alpha**2 * STD**2 + sigma**2
        velocity = (sigma - alpha * STD**2) / variance * (x_t - alpha * MEAN) - MEAN
        for scale in (1.0, 3.0):
            c = Velocity()(alpha * scale, sigma * scale)
            torch.testing.assert_close(c.c_skip * x_t * scale + c.c_out * velocity, gaussian(x_t, Level(alpha, sigma)))


def test_velocity_target_is_noise_minus_image():
    x, n = torch.tensor([0.7]), torch.tensor([-0.4])
    c = Velocity()(0.6, 0.8)
    torch.testing.assert_close((x - c.c_skip * (0.6 * x + 0.8 * n)) / c.c_out, n - x)


def test_times_of_a_flow():
    u = (torch.arange(1000) + 0.5) / 1000
    alpha, sigma = LogitNormal(0.4, 1.0).at(u)
    torch.testing.assert_close(alpha + sigma, torch.ones(1000))
    assert float(torch.logit(sigma.double()).mean()) == pytest.approx(0.4, abs=1e-3)
    assert float(torch.logit(sigma.double()).std()) == pytest.approx(1.0, abs=0.01)
    assert float(StraightUniform().at(u)[1].mean()) == pytest.approx(0.5, abs=1e-3)


SCHEDULERS = ["DDPM", "DDIM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"]
SCHEDULERS += ["LMSDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver"]
SCHEDULERS += ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "EDMEuler", "EDMDPMSolverMultistep"]
SECOND = {"PNDM", "LMSDiscrete", "DPMSolverMultistep", "DEISMultistep", "UniPCMultistep", "EDMDPMSolverMultistep", "FlowMatchHeunDiscrete"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers under numpy 2
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_diffusers_scheduler_drives_the_model(name):
    """The Gaussian's mean and spread; schedulers of low order are still wide of the spread at 50 steps."""
    sampler = DiffusersSampler(f"{name}Scheduler", 50)
    x = sampler(gaussian, (4, 1, 64, 64), Rng(0, 0, range(4)))
    assert abs(float(x.mean()) - MEAN) < 0.02
    assert abs(float(x.std()) - STD) < (0.02 if name in SECOND else 0.07)
    alone = sampler(gaussian, (1, 1, 64, 64), Rng(0, 0, [2]))
    torch.testing.assert_close(alone, x[2:3])


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_type_gives_the_same_walk(prediction):
    sampler = DiffusersSampler("DDIMScheduler", 10, {"prediction_type": prediction})
    expected = DiffusersSampler("DDIMScheduler", 10)(gaussian, (2, 1, 8, 8), Rng(0, 0, range(2)))
    torch.testing.assert_close(sampler(gaussian, (2, 1, 8, 8), Rng(0, 0, range(2))), expected, rtol=1e-4, atol=1e-4)


def test_schedulers_that_do_not_fit_are_refused():
    with pytest.raises(MedgenError, match="did you mean 'DDIMScheduler'"):
        DiffusersSampler("DDINScheduler")
    with pytest.raises(MedgenError, match="does not add Gaussian noise"):
        DiffusersSampler("VQDiffusionScheduler")
    with pytest.raises(MedgenError, match="no argument 'beta'"):
        DiffusersSampler("DDIMScheduler", settings={"beta": 1})(gaussian, (1, 1, 8), Rng(0))
    assert renewed(Heun(Karras()), "UniPCMultistepScheduler", 7).steps == 7
    with pytest.raises(MedgenError, match="give a scheduler"):
        renewed(DiffusersSampler("DDIMScheduler"), "heun")


def test_ancestral_noise_is_ddpms_posterior():
    now, after = Level(0.6, 0.8), Level(0.8, 0.6)  # variance preserving: beta-tilde = (1 - a'^2)/(1 - a^2) (1 - a^2/a'^2)
    expected = math.sqrt(0.6**2 / 0.8**2 * (1 - 0.6**2 / 0.8**2))
    assert posterior_std(now, after) == pytest.approx(expected)


def test_heun_uses_two_evaluations_a_step_but_one_at_the_end():
    calls = []
    Heun(Karras(), 18)(lambda x, level: calls.append(level) or gaussian(x, level), (1, 1, 4), Rng(0))
    assert len(calls) == 2 * 18 - 1


@pytest.mark.parametrize("make", [EDM, Epsilon, X0, V, Velocity], ids=lambda c: c.__name__)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_every_preconditioning_with_the_perfect_network_samples_the_gaussian(make, grid):
    """A network that outputs its exact target expectation, through c_skip and c_out, gives the analytic denoiser back."""
    preconditioning = make()

    def denoise(x, level):
        c = preconditioning(*level)
        target = (gaussian(x, level) - c.c_skip * x) / c.c_out
        return c.c_skip * x + c.c_out * target

    x = Heun(grid, 40)(denoise, (4, 1, 64, 64), Rng(1, 0, range(4)))
    assert abs(float(x.mean()) - MEAN) < 0.02 and abs(float(x.std()) - STD) < 0.02


@pytest.mark.parametrize("make", [EDM, Epsilon, X0, V, Velocity], ids=lambda c: c.__name__)
def test_coefficients_agree_between_floats_and_tensors_and_are_finite_at_both_ends(make):
    for alpha, sigma in ((1.0, 0.002), (1.0, 80.0), (0.6, 0.8), (0.0, 1.0), (1.0, 0.0)):
        numbers = make()(alpha, sigma)
        tensors = make()(torch.tensor([alpha]), torch.tensor([sigma]))
        for name, number, tensor in zip(numbers._fields, numbers, tensors, strict=True):
            assert math.isfinite(number), (name, alpha, sigma)
            assert float(tensor[0]) == pytest.approx(number, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("make", [EDM, V, X0], ids=lambda c: c.__name__)
def test_targets_keep_unit_variance_for_unit_data(make):
    """For data and noise of variance data_std^2 and 1 the network's input is of unit variance, EDM's and v's target too."""
    std = 0.5 if make is EDM else 1.0
    g = torch.Generator().manual_seed(0)
    x, n = std * torch.randn(1, 200_000, generator=g), torch.randn(1, 200_000, generator=g)
    for alpha, sigma in ((1.0, 0.1), (1.0, 3.0), (0.6, 0.8)):
        c = make()(alpha, sigma)
        x_t = alpha * x + sigma * n
        assert float((c.c_in * x_t).std()) == pytest.approx(1.0, abs=0.02)
        assert float(((x - c.c_skip * x_t) / c.c_out).std()) == pytest.approx(1.0, abs=0.02)


def test_v_and_epsilon_targets_are_the_papers():
    x, n, alpha, sigma = torch.tensor([0.7]), torch.tensor([-0.4]), 0.6, 0.8
    x_t = alpha * x + sigma * n
    c = Epsilon()(alpha, sigma)
    torch.testing.assert_close((x - c.c_skip * x_t) / c.c_out, n)
    c = V()(alpha, sigma)
    torch.testing.assert_close((x - c.c_skip * x_t) / c.c_out, alpha * n - sigma * x)


class Shifting:
    """A denoiser whose answer tells which condition it saw."""

    def __init__(self):
        self.calls = 0

    def denoise(self, x_t, alpha, sigma, condition):
        self.calls += 1
        kept = condition.present.get("vector", torch.ones(len(x_t), dtype=torch.bool))
        return x_t + broadcast(torch.where(kept, 2.0, 1.0), x_t)


@pytest.mark.parametrize(("scale", "expected", "calls"), [(0.0, 1.0, 1), (1.0, 2.0, 1), (3.0, 4.0, 2)])
def test_guidance_0_is_the_null_and_1_the_condition(scale, expected, calls):
    denoiser = Shifting()
    x = torch.zeros(2, 1, 4, 4)
    out = ClassifierFree(scale)(denoiser).denoise(x, 1.0, 1.0, Condition(vector=torch.ones(2, 3)))
    torch.testing.assert_close(out, torch.full_like(x, expected))
    assert denoiser.calls == calls


def test_guidance_without_a_condition_is_refused():
    with pytest.raises(MedgenError, match="needs a condition"):
        ClassifierFree(2.0)(Shifting()).denoise(torch.zeros(1, 1, 4), 1.0, 1.0, Condition())


def test_a_part_of_a_grid_ends_clean_and_starts_below_its_ratio():
    from medgen.core.levels import Below

    for grid in (Karras(), StraightGrid(), CosineGrid()):
        levels = Below(grid, 2.0).levels(12)
        assert len(levels) == 13 and tuple(levels[-1]) == (1.0, 0.0)
        assert 1.0 < levels[0].sigma / levels[0].alpha <= 2.0
    with pytest.raises(MedgenError, match="no 3 steps"):
        Below(Karras(sigma_min=1.0), 0.5).levels(3)
