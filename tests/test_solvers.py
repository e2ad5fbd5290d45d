"""Posterior sampling on a linear Gaussian problem, where mean and covariance are known."""

import pytest
import torch
from torch import Tensor, nn

from medgen.core.condition import Condition, Measurement
from medgen.core.errors import MedgenError
from medgen.core.levels import Karras
from medgen.core.random import Rng
from medgen.operators.identity import Identity
from medgen.operators.mri import MaskedFourier
from medgen.samplers.ancestral import Ancestral
from medgen.samplers.heun import Heun
from medgen.solvers.consistency import consistent
from medgen.solvers.dps import DPS
from medgen.solvers.moments import MomentMatching, conjugate_gradients
from medgen.solvers.posterior import Posterior

N, NOISE, SAMPLES = 8, 0.1, 4000
MEAN = torch.linspace(-0.5, 0.5, N, dtype=torch.double)


def covariance() -> Tensor:
    """Smooth, neither diagonal nor stationary."""
    place = torch.arange(N, dtype=torch.double)
    scale = torch.linspace(0.3, 0.6, N, dtype=torch.double)
    return torch.outer(scale, scale) * torch.exp(-((place[:, None] - place) ** 2) / 8) + 0.01 * torch.eye(N, dtype=torch.double)


class Gaussian(nn.Module):
    """The analytic denoiser of N(MEAN, covariance)."""

    def denoise(self, x_t: Tensor, alpha: float, sigma: float, condition: Condition) -> Tensor:
        prior = covariance()
        gain = alpha * prior @ torch.linalg.inv(alpha**2 * prior + sigma**2 * torch.eye(N, dtype=torch.double))
        return (MEAN + (x_t[:, 0].double() - alpha * MEAN) @ gain.T)[:, None].to(x_t.dtype)


def problem() -> tuple[Condition, Tensor, Tensor]:
    """A measurement repeated for every sample, and the posterior's mean and covariance."""
    operator = MaskedFourier()
    mask = torch.zeros(1, 1, N, dtype=torch.double)
    mask[..., [2, 4, 5]] = 1
    basis = torch.view_as_real(operator(torch.eye(N, dtype=torch.double)[:, None], {"mask": mask}))[:, 0].flatten(1).T
    truth = MEAN + torch.linalg.cholesky(covariance()) @ torch.linspace(-1, 1, N, dtype=torch.double)
    g = torch.Generator().manual_seed(0)
    noise = NOISE * torch.randn(1, 1, N, dtype=torch.cdouble, generator=g) * 2**0.5
    y = operator(truth[None, None], {"mask": mask}) + noise * mask
    gain = covariance() @ basis.T @ torch.linalg.inv(basis @ covariance() @ basis.T + NOISE**2 * torch.eye(2 * N, dtype=torch.double))
    mean = MEAN + gain @ (torch.view_as_real(y).flatten() - basis @ MEAN)
    spread = covariance() - gain @ basis @ covariance()
    measured = Measurement(y, operator, {"mask": mask}, torch.full((1,), NOISE, dtype=torch.double))
    return Condition(measurement=measured.map(lambda t: t.expand(SAMPLES, *t.shape[1:]))), mean, spread


def deviations(samples: Tensor, mean: Tensor, spread: Tensor) -> tuple[float, float]:
    """Largest error of the mean, and relative error of the total standard deviation, in units of the posterior's spread."""
    x = samples[:, 0].double()
    wide = spread.trace().sqrt()
    return float((x.mean(0) - mean).norm() / wide), float(torch.cov(x.T).trace().sqrt() / wide - 1)


def test_moment_matching_is_the_posterior_of_a_gaussian():
    condition, mean, spread = problem()
    solver = Posterior(MomentMatching(iterations=6), Heun(Karras(), 200))
    samples = solver(Gaussian(), condition, (SAMPLES, 1, N), Rng(0, 0, range(SAMPLES)))
    off, wide = deviations(samples, mean, spread)
    assert off < 0.03 and abs(wide) < 0.03
    x = samples[:, 0].double()
    assert float((torch.cov(x.T) - spread).norm() / spread.norm()) < 0.06


def test_dps_is_biased_on_the_same_problem():
    """With the paper's constant step: the mean is off by half a posterior spread here, and the spread is three times too wide."""
    condition, mean, spread = problem()
    samples = DPS(Ancestral(Karras(), 200), 1.0)(Gaussian(), condition, (SAMPLES, 1, N), Rng(0, 0, range(SAMPLES)))
    off, wide = deviations(samples, mean, spread)
    assert 0.2 < off < 1.0 and 1.0 < wide < 3.0


def test_conjugate_gradients_solve_each_sample_by_itself():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(3, 5, 5, dtype=torch.double, generator=g)
    matrix = root @ root.mT + 0.1 * torch.eye(5, dtype=torch.double)
    target = torch.randn(3, 5, dtype=torch.double, generator=g)
    target[1] = 0
    u = conjugate_gradients(lambda v: (matrix @ v[..., None])[..., 0], target, 8)
    torch.testing.assert_close((matrix @ u[..., None])[..., 0], target)
    alone = conjugate_gradients(lambda v: (matrix[2:] @ v[..., None])[..., 0], target[2:], 8)
    torch.testing.assert_close(alone[0], u[2])


def test_a_model_that_cannot_denoise_is_refused():
    condition, _, _ = problem()
    with pytest.raises(MedgenError, match="use a diffusion or flow model"):
        Posterior(MomentMatching(), Heun(Karras()))(nn.Identity(), condition, (1, 1, N), Rng(0))
    with pytest.raises(MedgenError, match="needs a measurement"):
        Posterior(MomentMatching(), Heun(Karras()))(Gaussian(), Condition(), (1, 1, N), Rng(0))


def test_consistency_is_the_weighted_mean_of_answer_and_measurement():
    x, y = torch.full((2, 1, 4), 1.0), torch.full((2, 1, 4), 3.0)
    measured = Measurement(y, Identity(), {}, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(consistent(x, measured, torch.tensor([0.5, 1.5])), torch.tensor([2.0, 2.8]).reshape(2, 1, 1).expand(2, 1, 4))
    own = consistent(x, measured)  # the residual of 2 is noise of 0.5 and an error of sqrt(4 - 0.25)
    torch.testing.assert_close(own, torch.full_like(own, (1 + 15 * 3) / 16))


def test_consistency_moves_only_what_was_measured():
    operator, g = MaskedFourier(real=False), torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 8, dtype=torch.cfloat, generator=g)
    mask = (torch.arange(8) < 4).float().expand(2, 1, 8)
    measured = Measurement(mask * torch.randn(2, 1, 8, dtype=torch.cfloat, generator=g), operator, {"mask": mask}, torch.full((2,), 0.1))
    moved = consistent(x, measured, torch.full((2,), 0.2))
    full = {"mask": torch.ones(2, 1, 8)}
    before, after = operator(x, full), operator(moved, full)
    torch.testing.assert_close(after[..., 4:], before[..., 4:])
    torch.testing.assert_close(after[..., :4], 0.2 * before[..., :4] + 0.8 * measured.y[..., :4])
