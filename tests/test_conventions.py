"""Errors of complex images, fastMRI's conventions and the perceptual distance: closed forms, and plain reimplementations."""

import math

import numpy as np
import pytest
import torch
from pairs import corner, pair
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medgen.core.errors import MedgenError
from medgen.metrics import complexes, conventions, pixel
from medgen.metrics.perceptual import perceptual


def complex_pair(turn: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(5)
    target = torch.tensor(draw.standard_normal((1, 2, 24, 20)))
    z = torch.complex(target[:, 0], target[:, 1]) * torch.exp(1j * torch.as_tensor(turn, dtype=torch.float64))
    return torch.stack([z.real, z.imag], 1), target


def test_a_global_turn_of_phase_is_told_from_an_error_of_phase():
    x, target = complex_pair(0.3)
    peak = float(complexes.magnitude(target).max())
    assert float(complexes.phase_offset(x, target, peak)) == pytest.approx(0.3)
    assert float(complexes.phase_error(x, target, peak)) == pytest.approx(0, abs=1e-7)
    assert float(complexes.complex_nmse(x, target, peak)) == pytest.approx(2 - 2 * math.cos(0.3))
    power = target.square().sum(1).mean()
    assert float(complexes.complex_psnr(x, target, peak)) == pytest.approx(10 * math.log10(peak**2 / (power * (2 - 2 * math.cos(0.3)))))
    assert float(pixel.nmse(complexes.magnitude(x), complexes.magnitude(target), peak)) == pytest.approx(0, abs=1e-20)


def test_phase_errors_are_wrapped_weighted_and_of_the_mask():
    left = torch.zeros(1, 1, 24, 20, dtype=torch.bool)
    left[..., :10] = True
    wave = torch.full((24, 20), 0.2)
    wave[::2] *= -1
    x, target = complex_pair(wave)
    assert float(complexes.phase_error(x, target, 6.0)) == pytest.approx(0.2, abs=0.02)
    random = torch.from_numpy(np.random.default_rng(6).uniform(0, 2 * math.pi, (24, 20)))
    random[:, :10] = 0
    x, target = complex_pair(random)
    assert float(complexes.phase_error(x, target, 6.0, left)) == pytest.approx(0, abs=1e-7)
    assert float(complexes.phase_error(x, target, 6.0, ~left)) == pytest.approx(math.pi / 2, abs=0.15)
    with pytest.raises(MedgenError, match="real and imaginary"):
        complexes.complex_nmse(x[:, :1], target[:, :1], 6.0)


@pytest.mark.parametrize("axis", [0, 2])
def test_fastmris_scores_are_a_plain_reimplementation(axis):
    """As `fastmri/evaluate.py` writes them: NumPy norms, and scikit-image with its defaults slice by slice."""
    x, target = (v.abs() * 3e-4 for v in pair(2, 1, 12, 30, 26))
    found = conventions.by_convention(x, target, "fastmri", slice_axis=axis)
    for i in range(2):
        a, b = (np.moveaxis(v[i, 0].numpy(), axis, 0) for v in (x, target))
        assert float(found["nmse"][i]) == pytest.approx(np.linalg.norm(b - a) ** 2 / np.linalg.norm(b) ** 2, rel=1e-10)
        assert float(found["psnr"][i]) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=b.max()), rel=1e-10)
        ssims = [structural_similarity(s, t, data_range=b.max()) for s, t in zip(b, a, strict=True)]
        assert float(found["ssim"][i]) == pytest.approx(np.mean(ssims), rel=1e-10)
    single = conventions.fastmri(x[:, :, 3], target[:, :, 3])
    assert float(single["psnr"][0]) == pytest.approx(
        peak_signal_noise_ratio(target[0, 0, 3].numpy(), x[0, 0, 3].numpy(), data_range=float(target[0, 0, 3].max()))
    )


def test_a_convention_refuses_what_it_is_not_made_for():
    x, target = pair(1, 1, 20, 20)
    for words, call in {
        "known: fastmri": lambda: conventions.by_convention(x, target, "brats"),
        "never negative": lambda: conventions.fastmri(2 * x - 1, 2 * target - 1),
        "at least 7 x 7": lambda: conventions.fastmri(x[..., :5].abs(), target[..., :5].abs()),
    }.items():
        with pytest.raises(MedgenError, match=words):
            call()


def angles(images: torch.Tensor) -> list[torch.Tensor]:
    """A stand-in for an encoder: unit vectors (cos, sin) of the values, and of their means over 2 x 2."""
    small = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="area")
    return [torch.cat([v.cos(), v.sin()], 1) * 7 for v in (images, small)]


def test_the_perceptual_distance_is_of_unit_features():
    x, target = pair(1, 1, 16, 12)
    gap = x - target
    small = angles(x)[1][:, :, :, :], angles(target)[1]
    expected = (2 - 2 * gap.cos()).mean() / 2 + ((small[0] - small[1]) / 7).square().sum(1).mean() / 2
    assert float(perceptual(x, target, angles)) == pytest.approx(float(expected), rel=1e-6)
    assert float(perceptual(x, x, angles)) == 0
    mask = corner(1, 1, 16, 12)
    only = perceptual(x, target, lambda v: angles(v)[:1], mask)
    assert float(only) == pytest.approx(float((2 - 2 * gap.cos())[mask].mean()), rel=1e-6)


def test_planes_of_a_volume_go_through_a_2d_encoder():
    x, target = pair(1, 1, 12, 10, 40)
    planes = [perceptual(x[:, :, i], target[:, :, i], angles) for i in range(12)]
    assert float(perceptual(x, target, angles, axes=(0,))) == pytest.approx(float(torch.cat(planes).mean()), rel=1e-9)
    thin = [perceptual(x[..., i], target[..., i], angles) for i in range(0, 40, 3)]
    assert float(perceptual(x, target, angles, axes=(2,), every=3)) == pytest.approx(float(torch.cat(thin).mean()), rel=1e-9)
    mask = torch.zeros(1, 1, 12, 10, 40, dtype=torch.bool)
    mask[:, :, 4, 2:8, 3:30] = True
    assert float(perceptual(x, target, angles, mask, axes=(0,))) == pytest.approx(
        float(perceptual(x[:, :, 4], target[:, :, 4], angles, mask[:, :, 4])), rel=1e-9
    )
    whole = perceptual(x, target, lambda v: [torch.cat([v, 1 - v], 1)])  # a 3D encoder
    assert 0 < float(whole) < 1
    with pytest.raises(MedgenError, match="wrap a single map"):
        perceptual(x, target, lambda v: v)
    with pytest.raises(MedgenError, match="planes are cut"):
        perceptual(x[:, :, 0], target[:, :, 0], angles, axes=(0,))
