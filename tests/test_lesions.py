"""Lesions with known contrast, the share of it that an image shows, places for more of them, and rates with intervals."""

import numpy as np
import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.metrics.detection import best_dice, rate
from medgen.metrics.lesions import blob, filled_in, grown, local_contrast, moved, retained, shrunk, site, smoothed

SIZES = [(40, 36), (24, 22, 20)]


def scene(size):
    """A body with noise, a ball in it and the ball's place."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.01, size))
    ball = blob(size, tuple(n / 2 for n in size), (4.0,) * len(size))
    return noise, ball, site(ball > 0.5, torch.ones(size, dtype=torch.bool))


@pytest.mark.parametrize("size", SIZES)
def test_a_copy_retains_all_an_empty_image_nothing_half_a_half(size):
    without, ball, place = scene(size)
    there = without + 0.6 * ball
    for share in (1.0, 0.5, 0.0, -0.5):
        assert retained(without + 0.6 * share * ball, place, there, without) == pytest.approx(share, abs=1e-12)
    assert retained(there, place, there) == 1.0  # the surroundings taken as flat
    with pytest.raises(MedgenError, match="no contrast"):
        retained(there, place, without, without)


@pytest.mark.parametrize("size", SIZES)
def test_a_blob_has_the_volume_of_its_ellipsoid(size):
    radii = (4.0, 6.0, 5.0)[: len(size)]
    expected = np.pi * 24 if len(size) == 2 else 4 / 3 * np.pi * 120
    ball = blob(size, tuple((n - 1) / 2 for n in size), radii)
    assert abs(float(ball.sum()) / expected - 1) < 0.03 and float(ball.max()) == 1.0


def test_growing_and_shrinking_are_scipys():
    ndimage = pytest.importorskip("scipy.ndimage")
    for size in SIZES:
        mask = torch.from_numpy(np.random.default_rng(1).random(size) < 0.9)
        cube = np.ones((3,) * len(size), bool)
        np.testing.assert_array_equal(grown(~mask, 2), ndimage.binary_dilation(~mask, cube, 2))
        np.testing.assert_array_equal(shrunk(mask, 1), ndimage.binary_erosion(mask, cube, 1))


def test_smoothing_is_scipys_with_a_width_for_each_axis():
    ndimage = pytest.importorskip("scipy.ndimage")
    image = torch.from_numpy(np.random.default_rng(2).standard_normal((30, 28)))
    expected = ndimage.gaussian_filter(image.numpy(), (1.0, 2.0), mode="constant", truncate=3)
    np.testing.assert_allclose(smoothed(image, (1.0, 2.0)), expected, atol=1e-12)
    mask = torch.ones(30, 28, dtype=torch.bool)
    mask[:, 20:] = False
    flat = smoothed(torch.where(mask, 3.0, 100.0), 2.0, mask)
    torch.testing.assert_close(flat, torch.where(mask, 3.0, 0.0).double())  # nothing from outside the mask comes in


@pytest.mark.parametrize("size", [(60, 56), (40, 36, 38)])
def test_the_local_contrast_of_a_blob_is_its_own_and_of_a_slope_none(size):
    body, middle = torch.ones(size, dtype=torch.bool), tuple(n // 2 for n in size)
    radii = (4.0, 3.0, 3.5)[: len(size)]
    image = 0.2 - 0.7 * blob(size, tuple(map(float, middle)), radii)
    found = local_contrast(image, body, radii)
    assert float(found[middle]) == pytest.approx(-0.7, rel=0.02) and found.abs().argmax() == found.argmin()
    slope = torch.linspace(-1, 1, size[0], dtype=torch.float64).reshape(-1, *[1] * (len(size) - 1)).expand(size)
    assert float(local_contrast(slope, body, radii)[middle]) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_a_lesion_is_removed_down_to_a_linear_background(size):
    """The membrane through the rim of a linear field is that field."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    background = sum((i + 1) * a for i, a in enumerate(axes)) / 10
    mask = blob(size, tuple(n / 2 for n in size), (3.0,) * len(size)) > 0
    torch.testing.assert_close(filled_in(background + 5.0 * mask, mask), background, atol=1e-3, rtol=0)


def test_other_places_have_the_same_shape_do_not_overlap_and_keep_out():
    mask, allowed = torch.zeros(40, 40, dtype=torch.bool), torch.zeros(40, 40, dtype=torch.bool)
    mask[2:5, 3:7] = True
    mask[2, 3] = False
    allowed[10:30, 8:32] = True
    copies = list(moved(mask, allowed, torch.from_numpy(np.random.default_rng(0).random(12))))
    assert len(copies) > 8 and int(torch.stack(copies).sum(0).max()) == 1
    for copy in copies:
        assert int(copy.sum()) == 11 and not bool((copy & ~allowed).any())
        corner = torch.nonzero(copy).amin(0)
        assert bool(copy[corner[0], corner[1] + 1]) and not bool(copy[tuple(corner)])
    assert list(moved(mask, torch.zeros_like(allowed), torch.rand(3))) == []


def test_surroundings_leave_out_partial_volume_other_lesions_and_air():
    body = torch.ones(20, 20, dtype=torch.bool)
    body[:, 14:] = False
    inside, other = torch.zeros(20, 20, dtype=torch.bool), torch.zeros(20, 20, dtype=torch.bool)
    inside[8:12, 8:12], other[3:6, 8:12] = True, True
    place = site(inside, body, inside | other)
    expected = torch.zeros(20, 20, dtype=torch.bool)
    expected[5:15, 5:15] = True
    expected[7:13, 7:13] = False
    shell = torch.zeros(20, 20, dtype=torch.bool)
    shell[place.box] = place.shell
    assert torch.equal(shell, expected & body & ~grown(inside | other)) and torch.equal(place.mask(), inside) and place.centre == (9, 9)
    image = torch.rand(20, 20)
    assert place.contrast(image) == pytest.approx(float(image[inside].mean() - image[shell].mean()), abs=1e-6)
    assert site(inside, inside) is None


def test_the_best_overlap_is_that_of_the_best_threshold():
    truth = torch.zeros(1000, dtype=torch.bool)
    truth[:50] = True
    score = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert best_dice(score + truth * 2, truth)[0] == pytest.approx(1.0, abs=0.03)
    every = [2 * int((truth & (score >= t)).sum()) / (50 + int((score >= t).sum())) for t in score]
    assert best_dice(score, truth, 5000) == pytest.approx((max(every), float(score[int(np.argmax(every))])))


def test_rates_are_of_subjects_and_no_failure_is_not_no_risk():
    found = rate([True, True, False, False, True, False], list("aabbcc"))
    assert found.mean == pytest.approx(0.5) and found.subjects == 3 and 0 <= found.interval[0] < 0.5 < found.interval[1] <= 1
    never, always = rate([False] * 10, list("abcde") * 2), rate([True] * 10, list("abcde") * 2)
    assert never.interval == (0.0, pytest.approx(0.5218, abs=1e-4))  # Clopper and Pearson: 0 of 5
    assert always.interval == (pytest.approx(1 - 0.5218, abs=1e-4), 1.0)
    assert rate([True, False], ["a", "a"]).interval is None
