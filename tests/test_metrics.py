"""Metrics against scikit-image, closed forms and simulations; and the mistakes they must refuse."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.metrics import feature, pixel, statistics
from medgen.metrics.kernels import kid

SKIMAGE = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(0)
    target = draw.random(shape)
    x = target + 0.3 * (draw.random(shape) - 0.5)
    return torch.tensor(x, dtype=dtype), torch.tensor(target, dtype=dtype)


@pytest.mark.parametrize("size", [(11, 40), (70, 129), (64, 50), (17, 20, 33), (11, 11, 11)])
def test_ssim_is_scikit_images(size):
    x, target = pair(2, 1, *size)
    images = [(a[0].numpy(), b[0].numpy()) for a, b in zip(x, target, strict=True)]
    means, maps = zip(*(structural_similarity(a, b, data_range=2.0, full=True, **SKIMAGE) for a, b in images), strict=True)
    assert torch.allclose(pixel.ssim(x, target, data_range=2.0), torch.tensor(means), atol=1e-12)
    assert np.allclose(pixel.ssim_map(x, target, data_range=2.0)[:, 0], maps, atol=1e-12)
    single = pixel.ssim(x.float(), target.float(), data_range=2.0)
    assert torch.allclose(single, torch.tensor(means), atol=1e-4)


def test_ssim_in_a_mask_is_the_mean_of_the_map_there():
    x, target = pair(2, 2, 40, 30)
    mask = torch.zeros(2, 1, 40, 30, dtype=torch.bool)
    mask[0, :, 3:20, 5:9], mask[1, :, 30:] = True, True
    full = pixel.ssim_map(x, target, data_range=1.0)
    expected = torch.stack([full[i][:, mask[i, 0]].mean() for i in range(2)])
    assert torch.allclose(pixel.ssim(x, target, data_range=1.0, mask=mask), expected, atol=1e-12)


def test_equal_images_have_similarity_one_and_infinite_psnr():
    x, _ = pair(1, 1, 16, 16)
    assert float(pixel.ssim(x, x, data_range=1.0)) == pytest.approx(1, abs=1e-12)
    assert float(pixel.psnr(x, x, data_range=1.0)) == math.inf


def test_psnr_mae_nmse_exact():
    target = torch.tensor([-1.0, 0.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
    x = target + torch.tensor([0.1, -0.1, 0.1, 0.3]).reshape(1, 1, 2, 2)
    mask = torch.tensor([True, True, True, False]).reshape(1, 1, 2, 2)
    assert float(pixel.psnr(x, target, data_range=2.0)) == pytest.approx(10 * math.log10(4 / 0.03), rel=1e-6)
    assert float(pixel.psnr(x, target, data_range=2.0, mask=mask)) == pytest.approx(10 * math.log10(4 / 0.01), rel=1e-6)
    assert float(pixel.mae(x, target, data_range=2.0)) == pytest.approx(0.15, rel=1e-6)
    assert float(pixel.nmse(x, target, data_range=2.0)) == pytest.approx(0.12 / 3, rel=1e-6)
    assert float(pixel.nmse(x, target, data_range=2.0, zero=-1.0)) == pytest.approx(0.12 / 9, rel=1e-6)


def test_nmse_counts_signal_from_its_zero():
    """The same image in [0, 1] and in [-1, 1] units scores the same only when the zero of the signal is named."""
    x, target = pair(1, 1, 12, 12)
    here = pixel.nmse(x, target, data_range=1.0)
    there = pixel.nmse(2 * x - 1, 2 * target - 1, data_range=2.0, zero=-1.0)
    assert torch.allclose(here, there)
    assert not torch.allclose(here, pixel.nmse(2 * x - 1, 2 * target - 1, data_range=2.0))


def test_one_score_per_image_whatever_the_batch():
    x, target = pair(3, 1, 20, 20)
    for metric in (pixel.psnr, pixel.ssim, pixel.mae, pixel.nmse):
        whole = metric(x, target, data_range=1.0)
        assert whole.shape == (3,)
        assert torch.allclose(whole[1], metric(x[1:2], target[1:2], data_range=1.0)[0], atol=1e-12)


@pytest.mark.parametrize("metric", [pixel.psnr, pixel.ssim, pixel.mae, pixel.nmse])
@pytest.mark.parametrize(
    ("scale", "shift", "data_range", "words"),
    [
        (1, 0, None, "must be a positive number"),
        (1, 0, 0.0, "must be a positive number"),
        (1, 0, -1.0, "must be a positive number"),
        (1, 0, math.nan, "must be a positive number"),
        (2, -1, 1.0, r"in \[-1, 1\] units the range is 2.0"),
        (1.4, -1, 1.0, r"in \[-1, 1\] units the range is 2.0"),
        (255, 0, 1.0, "state the range of its units"),
        (1, 0, 255.0, "state the range of its units"),
    ],
)
def test_a_wrong_range_is_refused(metric, scale, shift, data_range, words):
    x, target = pair(1, 1, 16, 16)
    with pytest.raises(MedgenError, match=words):
        metric(scale * x + shift, scale * target + shift, data_range=data_range)


def test_a_few_bright_voxels_are_not_a_wrong_range():
    x, target = pair(1, 1, 32, 32)
    target[0, 0, 3, 3] = 5.0
    assert float(pixel.psnr(x, target, data_range=1.0)) > 0


def test_what_cannot_be_compared_is_refused():
    x, target = pair(2, 1, 16, 16)
    inside = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    empty = inside.clone()
    empty[1] = False
    bad = x.clone()
    bad[0, 0, 0, 0] = math.nan
    for words, call in {
        "must share one": lambda: pixel.psnr(x[:1], target, data_range=1.0),
        "NaN": lambda: pixel.mae(bad, target, data_range=1.0),
        "must be boolean": lambda: pixel.psnr(x, target, data_range=1.0, mask=inside.float()),
        "a mask must be": lambda: pixel.psnr(x, target, data_range=1.0, mask=inside[:1]),
        "mask is empty": lambda: pixel.ssim(x, target, data_range=1.0, mask=empty),
        "at least 11 voxels": lambda: pixel.ssim(x[..., :8], target[..., :8], data_range=1.0),
        "not defined": lambda: pixel.nmse(x, torch.zeros_like(x), data_range=1.0),
    }.items():
        with pytest.raises(MedgenError, match=words):
            call()


def test_frechet_distance_of_gaussians_is_the_closed_form():
    """Features built to have exactly the mean and covariance asked for: the distance is then the closed form to rounding."""
    d, n = 6, 40
    draw = np.random.default_rng(1)

    def exact(mean: np.ndarray, root: np.ndarray) -> torch.Tensor:
        z = draw.standard_normal((n, d))
        z -= z.mean(0)
        z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
        return torch.tensor(mean + z @ root.T)

    s, t = np.diag([1, 2, 3, 1, 0.5, 0.1]), np.diag([2, 2, 1, 1, 1, 0.4])
    turn = np.linalg.qr(draw.standard_normal((d, d)))[0]
    a, b = exact(np.zeros(d), turn @ s), exact(np.full(d, 0.5), turn @ t)
    expected = d * 0.25 + ((s - t) ** 2).sum()
    assert feature.frechet(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "m", "d"), [(20, 30, 64), (80, 90, 12), (20, 200, 64), (13, 13, 12)])
def test_both_ways_to_the_frechet_distance_agree_with_the_matrix_root(n, m, d):
    from scipy.linalg import sqrtm

    draw = np.random.default_rng(2)
    mix = draw.standard_normal((d, d))
    a, b = draw.standard_normal((n, d)) @ mix, draw.standard_normal((m, d)) + 0.3
    root = sqrtm(np.cov(a.T) @ np.cov(b.T) + 0j)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)
    assert feature.frechet(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-5)
    assert feature.frechet(torch.tensor(a), torch.tensor(a)) == pytest.approx(0, abs=1e-8 * np.trace(np.cov(a.T)))


def test_kernel_distance_of_equal_distributions_is_zero_on_average():
    """At 20 samples a biased estimator would be off by many standard errors."""
    values = [kid(*torch.from_numpy(generator(3, i).standard_normal((2, 20, 8)))).value for i in range(400)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert np.min(values) < 0


def test_kernel_distance_of_shifted_gaussians_is_the_known_number():
    """One dimension, kernel (x y + 1)^3: MMD^2 = 3 (Ex - Ey)^2 + 3 (Ex^2 - Ey^2)^2 + (Ex^3 - Ey^3)^2; N(0,1), N(1,1): 3 + 3 + 16 = 22."""
    draws = [torch.from_numpy(generator(4, i).standard_normal((2, 400, 1))) for i in range(60)]
    values = [kid(a, b + 1).value for a, b in draws]
    assert abs(np.mean(values) - 22) < 3 * np.std(values) / np.sqrt(len(values))


@pytest.mark.parametrize("size", [(48, 40), (28, 28), (32, 34, 36)])
def test_the_feature_tells_texture_layout_and_contrast_apart(size):
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(12, 1, *size, generator=draw) * 2 - 1
    smooth = images.clone()
    for axis in range(2, images.ndim):
        smooth = (smooth + smooth.roll(1, axis)) / 2
    base = feature.describe(images)
    floor = feature.frechet(base[:6], base[6:])
    layout = images * torch.linspace(0.6, 1, size[0]).reshape(-1, *[1] * (len(size) - 1))
    for other in (smooth, images * 0.7, layout):
        assert feature.frechet(base[:6], feature.describe(other)[6:]) > 2 * floor
    assert torch.equal(feature.describe(images[3:4]), base[3:4])


def test_the_floor_is_the_distance_of_reals_at_the_same_size():
    reals, held_out = torch.from_numpy(generator(5).standard_normal((2, 60, 5)))
    small, large = (feature.frechet_floor(reals, held_out, size) for size in (10, 60))
    assert large == pytest.approx(feature.frechet(reals, held_out))
    assert small > 2 * large
    with pytest.raises(MedgenError, match="draw fewer samples"):
        feature.frechet_floor(reals, held_out, 61)


def test_a_copy_has_nearest_distance_zero():
    training = torch.rand(9, 1, 12, 12)
    samples = torch.cat([training[4:5], training[2:3] + 0.25])
    assert feature.nearest_distances(samples, training).tolist() == [0.0, pytest.approx(0.25, rel=1e-5)]


def test_one_subject_has_a_value_and_no_interval():
    summary = statistics.summarise([1.0, 3.0], ["a", "a"])
    assert (summary.mean, summary.interval, summary.subjects) == (2.0, None, 1)


def test_subjects_count_alike_and_the_interval_is_repeatable():
    values, subjects = [1.0, 1.0, 1.0, 5.0, 4.0], ["a", "a", "a", "b", "c"]
    first, again = (statistics.summarise(values, subjects) for _ in range(2))
    assert first == again
    assert first.mean == pytest.approx(10 / 3)
    assert first.interval[0] < first.mean < first.interval[1]
    assert first.interval == statistics.summarise([1.0, 5.0, 4.0], ["a", "b", "c"]).interval


@pytest.mark.parametrize("n", [3, 6, 20])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(n):
    hits = 0
    for i in range(300):
        low, high = statistics.summarise(generator(6, i).normal(7.0, 2.0, n).tolist(), [str(k) for k in range(n)], draws=500).interval
        hits += low <= 7.0 <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_students_point():
    from scipy.stats import t

    for freedom in (1, 2, 3, 4, 5, 10, 50):
        assert statistics.student_point(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=0.01)
