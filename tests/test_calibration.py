"""Posterior draws of known spread: exact coverage where they are right, for few draws too, and a sign where they are not."""

import numpy as np
import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.metrics.calibration import calibration, crps, rank_histogram, spearman, student_cdf

N = 200_000


def setting(draws, factor=1.0, seed=0):
    """Truth and draws from N(mean, s^2) with s varying over voxels; the draws' spread is `factor` times the truth's."""
    rng = np.random.default_rng(seed)
    s = np.exp(rng.normal(0, 0.7, N))
    truth = rng.standard_normal(N) * s
    samples = rng.standard_normal((draws, N)) * s * factor
    return torch.from_numpy(samples)[:, None], torch.from_numpy(truth)[None]


@pytest.mark.parametrize("draws", [2, 3, 4, 8, 25])
def test_a_right_posterior_is_covered_exactly_for_any_number_of_draws(draws):
    found = calibration(*setting(draws))
    for level, share in found.coverage.items():
        assert abs(share - level) < 4 * (level * (1 - level) / N) ** 0.5
    assert found.expected_error < 0.003 and abs(found.ratio - 1) < 0.03
    np.testing.assert_allclose(found.ranks, 1 / (draws + 1), atol=0.004)


@pytest.mark.parametrize(("factor", "sign"), [(0.5, -1), (2.0, 1)])
def test_too_narrow_and_too_wide_posteriors_show(factor, sign):
    found = calibration(*setting(10, factor))
    assert sign * (found.coverage[0.9] - 0.9) > 0.08 and found.expected_error > 0.06
    ends = found.ranks[0] + found.ranks[-1]
    assert sign * (ends - 2 / 11) < -0.05
    expected = factor * ((1 + 1 / 10) / (1 + factor**2 / 10)) ** 0.5  # both terms in the error of the mean
    assert abs(found.ratio / expected - 1) < 0.03


def test_a_biased_posterior_shows_in_the_quantiles():
    draws, truth = setting(10)
    found = calibration(draws + 1.0, truth)
    assert found.below[9] > 0.7 and found.ranks[0] > 0.2


def test_the_spread_follows_the_error():
    draws, truth = setting(10)
    mixed = torch.from_numpy(np.random.default_rng(1).permutation(N))
    elsewhere = (draws - draws.mean(0))[..., mixed]  # about a mean of 0, so that the error does not depend on them
    right = calibration(draws, truth)
    assert right.correlation > 0.3 and right.attainable == pytest.approx(right.correlation, abs=0.03)
    lost = calibration(elsewhere, truth)
    assert abs(lost.correlation) < 0.02 and lost.attainable > 0.3


def test_the_score_is_that_of_the_distribution_however_few_draws_there_are():
    """Expected CRPS of N(0, s^2) for a truth of N(0, s^2) is s / sqrt(pi) (Gneiting and Raftery 2007)."""
    for draws in (2, 5, 20):
        rng = np.random.default_rng(draws)
        x, y = (torch.from_numpy(rng.standard_normal(s)) for s in ((draws, N), (N,)))
        values = crps(x, y)
        assert abs(float(values.mean()) - np.pi**-0.5) < 5 * float(values.std()) / N**0.5
    pair = float(crps(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([2.0])))
    assert abs(pair - ((1 + 1 + 5) / 3 - (2 + 6 + 4) / 6)) < 1e-6


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 8, 30, 31])
def test_students_distribution_agrees_with_scipy(freedom):
    stats = pytest.importorskip("scipy.stats")
    t = np.linspace(-8, 8, 101)
    np.testing.assert_allclose(student_cdf(torch.from_numpy(t), freedom), stats.t.cdf(t, freedom), atol=1e-12)


def test_rank_correlation_agrees_with_scipy_with_ties():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 500), rng.integers(0, 5, 500)
    a = a + b
    assert abs(spearman(torch.from_numpy(a), torch.from_numpy(b)) - stats.spearmanr(a, b)[0]) < 1e-12


def test_ties_are_shared_between_the_ranks_they_could_have():
    found = rank_histogram(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), torch.tensor([0.0, 1.5]))
    torch.testing.assert_close(found, torch.tensor([1 / 6, 1 / 6 + 1 / 2, 1 / 6], dtype=torch.float64))


def test_the_mask_chooses_the_voxels_and_bad_input_is_refused():
    draws, truth = torch.randn(3, 1, 8, 8), torch.randn(1, 8, 8)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4] = True
    assert calibration(draws, truth, mask) == calibration(draws[:, :, :4], truth[:, :4])
    assert np.isnan(calibration(draws[:2], truth).attainable)
    with pytest.raises(MedgenError, match="at least 2"):
        calibration(draws[:1], truth)
    with pytest.raises(MedgenError, match="one grid"):
        calibration(draws, truth[:, :4])
    with pytest.raises(MedgenError, match="empty"):
        calibration(draws, truth, mask & ~mask)
