"""The scanning Fourier ring correlation finds the frequency where agreement ends, and the place where a structure is wrong."""

import numpy as np
import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.metrics.resolution import crossing, resolution_map, ring_correlation


def noise(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("shape", [(6, 16, 16), (3, 16, 16, 16)])
def test_equal_images_correlate_fully_and_opposite_ones_not(shape):
    x = noise(shape)
    torch.testing.assert_close(ring_correlation(x, 3 * x + 5), torch.ones(shape[0], 8, dtype=torch.float64))
    torch.testing.assert_close(ring_correlation(x, -x), -torch.ones(shape[0], 8, dtype=torch.float64))


def test_one_window_against_the_definition_written_out():
    x, y = noise((16, 16)), noise((16, 16), 1)
    taper = np.hanning(17)[:16]
    a, b = (np.fft.fft2((v - v.mean()).numpy() * taper[:, None] * taper) for v in (x, y))
    k = np.fft.fftfreq(16) * 16
    radius = np.rint(np.hypot(*np.meshgrid(k, k)))
    expected = [
        np.real(a * b.conj())[radius == r].sum() / np.sqrt((abs(a) ** 2)[radius == r].sum() * (abs(b) ** 2)[radius == r].sum())
        for r in range(1, 9)
    ]
    np.testing.assert_allclose(ring_correlation(x[None], y[None])[0], expected, atol=1e-12)


def test_where_a_curve_crosses_the_threshold():
    curves = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 0, 0, 0], [1.0, 1, 1, 1], [0.9, 0.7, 0.6, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(crossing(curves), torch.tensor([2.5 / 4, 0.5 / 4, 1.0, 3.5 / 4], dtype=torch.float64))


@pytest.mark.parametrize(("cut", "shape"), [(0.25, (128, 128)), (0.5, (128, 128)), (0.5, (48, 48, 48))])
def test_a_low_pass_ends_agreement_where_it_cuts(cut, shape):
    """What lies above the cut is replaced by other noise, so the correlation falls from 1 to 0 there, within the width of a Hann window."""
    x, other = noise(shape), noise(shape, 1)
    grid = np.meshgrid(*(np.fft.fftfreq(n) * 2 for n in shape), indexing="ij")
    low = torch.from_numpy(np.sqrt(sum(g**2 for g in grid)) < cut)
    made = torch.where(low, torch.fft.fftn(x), torch.fft.fftn(other))
    found = resolution_map(torch.fft.ifftn(made).real, x, 8.0, size=16)
    assert abs(float(found.crossing.median()) - cut) < 1.0 / 8
    assert found.share_below(cut - 0.15) < 0.1 and found.share_below(cut + 0.25) > 0.95


@pytest.mark.parametrize("shape", [(96, 96), (48, 48, 48)])
def test_a_wrong_patch_is_found_where_it_lies(shape):
    x = noise(shape)
    made = x + 0.05 * noise(shape, 1)
    patch = tuple(slice(16, 32) for _ in shape)
    made[patch] = noise([16] * len(shape), 2)
    found = resolution_map(made, x, 8.0, size=16)
    touching = ((found.start - 16).abs() < 16).all(1)  # the window that holds the patch, and those that it reaches into
    assert float(found.crossing[(found.start == 16).all(1)]) < 0.4 and float(found.crossing[~touching].min()) == 1.0
    image = found.image()
    assert image[tuple(20 for _ in shape)] < 0.7 and float(image[tuple(-1 for _ in shape)]) == 1.0


def test_windows_without_structure_or_body_are_left_out():
    x = noise((64, 64))
    x[:32] = 0.5
    body = torch.zeros(64, 64, dtype=torch.bool)
    body[:, :32] = True
    found = resolution_map(x, x, 8.0, body, size=16)
    assert (found.start[:, 0] >= 24).all() and (found.start[:, 1] <= 24).all()
    with pytest.raises(MedgenError, match="no window"):
        resolution_map(x, torch.zeros_like(x), 8.0, size=16)
    with pytest.raises(MedgenError, match="do not fit"):
        resolution_map(x, x, 8.0, size=65)
