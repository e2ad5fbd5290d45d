"""The first tier beyond PSNR and SSIM: against the authors' code, MONAI, SciPy and closed forms; and the traps."""

import math

import numpy as np
import pytest
import torch
from pairs import corner, pair
from scipy import ndimage

from medgen.core.errors import MedgenError
from medgen.metrics import detail, panel, pixel
from medgen.metrics.haar import haarpsi
from medgen.metrics.scales import most_scales, ms_ssim

SINGLE = {
    "psnr": pixel.psnr,
    "ssim": pixel.ssim,
    "haarpsi": haarpsi,
    "mae": pixel.mae,
    "me": pixel.me,
    "nmse": pixel.nmse,
    "relative_error": pixel.relative_error,
    "gradient_error": detail.gradient_error,
    "hfen": detail.hfen,
    "spectral_error": detail.spectral_error,
    "detail_power": detail.detail_power,
}


def plain_ms_ssim(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Of images (C, *S) with range 1, written down from the paper with SciPy's Gaussian."""
    score = 1.0
    for scale, weight in enumerate(weights):
        means = []
        for a, b in zip(x, y, strict=True):
            mx, my, xx, yy, xy = (ndimage.gaussian_filter(v, 1.5, radius=5) for v in (a, b, a * a, b * b, a * b))
            value = (2 * (xy - mx * my) + 9e-4) / (xx - mx * mx + yy - my * my + 9e-4)
            value *= (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4) if scale == len(weights) - 1 else 1
            means.append(value[tuple(slice(5, -5) for _ in value.shape)].mean())
        score *= max(np.mean(means), 0) ** weight
        for axis in range(1, x.ndim):
            x, y = (
                np.add.reduceat(np.take(v, range(v.shape[axis] // 2 * 2), axis), range(0, v.shape[axis] // 2 * 2, 2), axis) / 2
                for v in (x, y)
            )
    return score


@pytest.mark.parametrize(("size", "scales"), [((177, 190), 5), ((60, 51), 3), ((45, 50, 47), 3), ((23, 25, 22), 2)])
def test_ms_ssim_is_the_papers_and_monais(size, scales):
    """MONAI computes in single precision: up to 5e-5 where the coarsest scale has a single window, else 1e-5."""
    from monai.metrics.regression import compute_ms_ssim

    x, target = pair(2, 2, *size)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights = weights if scales == 5 else weights / weights.sum()
    found = ms_ssim(x, target, 1.0, scales=scales)
    assert found.tolist() == pytest.approx(
        [plain_ms_ssim(a.numpy(), b.numpy(), weights) for a, b in zip(x, target, strict=True)], abs=1e-10
    )
    peer = compute_ms_ssim(x, target, spatial_dims=len(size), data_range=1.0, weights=weights.tolist())
    assert torch.allclose(found, peer[:, 0].double(), atol=1e-4 if min(size) == 22 else 2e-5)
    assert torch.allclose(ms_ssim(x.float(), target.float(), 1.0, scales=scales), found, atol=1e-5)


def test_ms_ssim_in_a_mask_counts_coarse_voxels_by_their_share():
    """The mirrored map of every scale, weighted by the share of each voxel that is inside."""
    x, target = pair(1, 1, 48, 56)
    mask = torch.zeros(1, 1, 48, 56, dtype=torch.bool)
    mask[..., 9:30, 13:41] = True
    a, b, w = x[0, 0].numpy(), target[0, 0].numpy(), mask[0, 0].numpy().astype(float)
    means = []
    for _ in range(3):
        mx, my, xx, yy, xy = (ndimage.gaussian_filter(v, 1.5, radius=5) for v in (a, b, a * a, b * b, a * b))
        structure = (2 * (xy - mx * my) + 9e-4) / (xx - mx * mx + yy - my * my + 9e-4)
        luminance = (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4)
        means.append((w * (structure * luminance if len(means) == 2 else structure)).sum() / w.sum())
        a, b, w = (v.reshape(v.shape[0] // 2, 2, v.shape[1] // 2, 2).mean((1, 3)) for v in (a, b, w))
    weights = np.array([0.0448, 0.2856, 0.3001])
    expected = np.prod(np.array(means) ** (weights / weights.sum()))
    assert float(ms_ssim(x, target, 1.0, mask, scales=3)) == pytest.approx(expected, abs=1e-10)


def test_haarpsi_in_a_mask_sees_only_what_its_filters_reach():
    x, target = pair(1, 1, 64, 64)
    x = torch.cat([x[..., :20], target[..., 20:]], -1)
    near, far = (torch.zeros(1, 1, 64, 64, dtype=torch.bool) for _ in range(2))
    near[..., :20], far[..., 30:] = True, True
    assert float(haarpsi(x, target, 1.0, far)) == pytest.approx(1, abs=1e-14)
    assert float(haarpsi(x, target, 1.0, near)) < float(haarpsi(x, target, 1.0)) < 1


def test_ms_ssim_of_one_scale_is_ssim_and_small_images_are_refused_with_the_remedy():
    x, target = pair(1, 1, 40, 30)
    mask = corner(1, 1, 40, 30)
    for where in (None, mask):
        assert torch.allclose(ms_ssim(x, target, 1.0, where, scales=1), pixel.ssim(x, target, 1.0, where), atol=1e-12)
    with pytest.raises(MedgenError, match=r"5 scales needs 176 voxels along each axis, got \(40, 30\); pass scales=2"):
        ms_ssim(x, target, 1.0)
    assert [most_scales(s) for s in ((176, 182, 182), (175, 300), (11, 400), (10, 400))] == [5, 4, 1, 0]


# `haar_psi(target, x)[0]` of the authors' haarPsi.py (github.com/rgcda/haarpsi), NumPy branch, for the images made below.
AUTHORS = {(64, 48): 0.7319050627373441, (33, 47): 0.7770696084951898, (40, 41, 3): 0.7983007061782617}


@pytest.mark.parametrize("shape", AUTHORS)
def test_haarpsi_is_the_authors(shape):
    draw = np.random.default_rng(0)
    target = np.round(255 * draw.random(shape))
    x = np.clip(np.round(target + 90 * (draw.random(shape) - 0.5)), 0, 255)
    x, target = (torch.tensor(a if a.ndim == 3 else a[..., None]).movedim(-1, 0)[None] for a in (x, target))
    found = haarpsi(x, target, 255.0, rgb=len(shape) == 3)
    assert float(found) == pytest.approx(AUTHORS[shape], abs=1e-12)
    shifted = haarpsi(x / 127.5 - 1, target / 127.5 - 1, 2.0, zero=-1.0, rgb=len(shape) == 3)
    assert float(shifted) == pytest.approx(AUTHORS[shape], abs=1e-9)
    assert float(haarpsi(x.byte(), target.byte(), 255.0, rgb=len(shape) == 3)) == pytest.approx(AUTHORS[shape], abs=1e-5)
    assert float(haarpsi(target, target, 255.0)) == pytest.approx(1, abs=1e-14)


def test_haarpsi_of_a_volume_of_equal_slices_is_the_slices_own():
    """Cut along the thick axis every plane is the picture, and across the thin ones there is too little to see."""
    x, target = pair(1, 1, 40, 34)
    volumes = [a[:, :, None].expand(1, 1, 9, 40, 34) for a in (x, target)]
    mask = corner(1, 1, 40, 34)
    for m in (None, mask):
        volume_mask = None if m is None else m[:, :, None].expand(1, 1, 9, 40, 34)
        assert torch.allclose(haarpsi(*volumes, 1.0, volume_mask), haarpsi(x, target, 1.0, m), atol=1e-12)


def test_haarpsi_of_a_volume_does_not_know_its_axes():
    x, target = pair(1, 1, 20, 24, 18)
    turned = [a.permute(0, 1, 4, 2, 3) for a in (x, target)]
    assert torch.allclose(haarpsi(x, target, 1.0), haarpsi(*turned, 1.0), atol=1e-12)


@pytest.mark.parametrize("size", [(64, 70), (30, 32, 40), (9, 40)])
def test_hfen_is_scipys(size):
    """Exactly SciPy's Laplacian of its Gaussian; its sampled derivative (`gaussian_laplace`) differs by 1 %."""
    x, target = pair(1, 1, *size)
    inside = corner(1, 1, *size)
    a, b, m = x[0, 0].numpy(), target[0, 0].numpy(), inside[0, 0].numpy()
    first, second = (ndimage.laplace(ndimage.gaussian_filter(v, 1.5, radius=5)) for v in (a - b, b))
    norm = np.linalg.norm
    assert float(detail.hfen(x, target, 1.0)) == pytest.approx(norm(first) / norm(second), rel=1e-10)
    assert float(detail.hfen(x, target, 1.0, inside)) == pytest.approx(norm(first[m]) / norm(second[m]), rel=1e-10)
    sampled = [norm(ndimage.gaussian_laplace(v, 1.5)) for v in (a - b, b)]
    assert float(detail.hfen(x, target, 1.0)) == pytest.approx(sampled[0] / sampled[1], rel=2e-2)


@pytest.mark.parametrize("size", [(33, 20), (18, 7, 11)])
def test_gradient_error_is_of_forward_differences(size):
    x, target = pair(1, 1, *size)
    inside = corner(1, 1, *size)

    def energy(v: np.ndarray) -> np.ndarray:
        return sum(np.diff(v, axis=a, append=np.take(v, [-1], a)) ** 2 for a in range(v.ndim))

    above, below = (energy(v[0, 0].numpy()) for v in (x - target, target))
    assert float(detail.gradient_error(x, target, 1.0)) == pytest.approx(math.sqrt(above.sum() / below.sum()), rel=1e-12)
    m = inside[0, 0].numpy()
    assert float(detail.gradient_error(x, target, 1.0, inside)) == pytest.approx(math.sqrt(above[m].sum() / below[m].sum()), rel=1e-12)
    assert float(detail.gradient_error(torch.zeros_like(x), target, 1.0)) == pytest.approx(1)
    as_bytes = [(255 * v.clamp(0, 1)).byte() for v in (x, target)]
    assert torch.allclose(detail.gradient_error(*as_bytes, 255.0), detail.gradient_error(*(v.double() for v in as_bytes), 255.0), atol=1e-6)


@pytest.mark.parametrize("size", [(96, 80), (40, 41, 48)])
def test_the_spectrum_has_closed_forms(size):
    """Half the contrast is -6.02 dB at every frequency; a Gaussian blur is -20 log10(e) 2 (pi sigma f)^2 dB at frequency f."""
    white = 0.5 + 0.1 * torch.from_numpy(np.random.default_rng(3).standard_normal((1, 1, *size)))
    half = 0.5 + (white - 0.5) / 2
    for metric, sign in ((detail.spectral_error, 1), (detail.detail_power, -1)):
        assert float(metric(half, white, 1.0)) == pytest.approx(sign * 20 * math.log10(2), abs=1e-3)
    sigma = 0.5
    blurred = torch.tensor(np.fft.ifftn(ndimage.fourier_gaussian(np.fft.fftn(white[0, 0].numpy()), sigma)).real)[None, None]
    count = min(size) // 2
    f = np.arange(1, count + 1) * 0.5 / count
    expected = -20 * math.log10(math.e) * 2 * (math.pi * sigma * f[f > 0.25]) ** 2
    assert float(detail.detail_power(blurred, white, 1.0)) == pytest.approx(expected.mean(), abs=0.15)
    noisy = white + 0.1 * torch.from_numpy(np.random.default_rng(4).standard_normal((1, 1, *size)))
    assert float(detail.detail_power(noisy, white, 1.0)) == pytest.approx(10 * math.log10(2), abs=0.2)


def test_the_spectrum_in_a_mask_is_of_its_box():
    x, target = pair(1, 1, 50, 60)
    mask = torch.zeros(1, 1, 50, 60, dtype=torch.bool)
    mask[..., 4:30, 9] = mask[..., 20, 5:33] = True
    box = [v[..., 4:30, 5:33] for v in (x, target)]
    assert torch.equal(detail.spectral_error(x, target, 1.0, mask), detail.spectral_error(*box, 1.0))


def test_bias_and_errors_in_physical_units():
    """[-1, 1] stands for -1000 to 1000 HU: an image 5 HU too bright, and 15 HU too dark in a third of it."""
    target = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(1, 1, 5, 6)
    x = target + 0.005
    x[0, 0].view(-1)[:10] -= 0.02
    assert float(pixel.me(x, target, 2.0, unit=1000.0)) == pytest.approx((20 * 5 - 10 * 15) / 30)
    assert float(pixel.mae(x, target, 2.0, unit=1000.0)) == pytest.approx((20 * 5 + 10 * 15) / 30)
    assert float(pixel.relative_error(x, target, 2.0, zero=-1.0)) == pytest.approx(0.25 / 30, rel=1e-9)
    found = panel.all_pixel(x, target, 2.0, zero=-1.0, unit=1000.0)
    assert float(found.values["whole"]["me"]) == pytest.approx(-5 / 3)
    assert math.isnan(float(found.values["whole"]["ssim"]))
    assert "one unit of the images is 1000" in found.protocol["mae"]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 1, 53, 47), torch.float64),
        ((1, 3, 40, 64), torch.float64),
        ((2, 1, 37, 30, 44), torch.float64),
        ((1, 1, 37, 30, 44), torch.float32),
    ],
)
def test_all_at_once_is_one_by_one(shape, dtype):
    x, target = pair(*shape, dtype=dtype)
    body = corner(len(x), 1, *shape[2:])
    labels = torch.zeros(len(x), 1, *shape[2:], dtype=torch.int64)
    labels[:1, :, 5:25, 4:20] = 3
    labels[:, :, 26:30] = 1
    regions = {"body": body, **panel.label_regions(labels, {1: "bone", 3: "lesion", 7: "absent"})}
    assert list(regions) == ["body", "bone", "lesion"]
    found = panel.all_pixel(x, target, 1.0, regions)
    assert list(found.values) == ["whole", "body", "bone", "lesion"]
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    functions = SINGLE | {"ms_ssim": lambda *a: ms_ssim(*a, scales=found.scales)}
    assert set(functions) == set(panel.METRICS)
    for name, function in functions.items():
        for region in found.values:
            if name in ("spectral_error", "detail_power") and region not in panel.SPECTRAL:
                assert torch.isnan(found.values[region][name]).all()
                continue
            for i in range(len(x)):
                mask = None if region == "whole" else regions[region][i : i + 1]
                value = float(found.values[region][name][i])
                if mask is not None and not bool(mask.any()):
                    assert math.isnan(value)
                    continue
                assert value == pytest.approx(float(function(x[i : i + 1], target[i : i + 1], 1.0, mask)), rel=tolerance, abs=tolerance)


def test_labels_must_be_whole_and_named():
    for words, labels in (("whole numbers", torch.tensor([[[[0.5]]]])), (r"labels \[2\] have no name", torch.tensor([[[[2]]]]))):
        with pytest.raises(MedgenError, match=words):
            panel.label_regions(labels, {1: "bone"})
    x, target = pair(1, 1, 20, 20)
    with pytest.raises(MedgenError, match="region body must be boolean"):
        panel.all_pixel(x, target, 1.0, {"body": torch.ones(1, 1, 20, 20)})


EVERY = list(SINGLE.values())


@pytest.mark.parametrize("metric", EVERY)
def test_every_metric_refuses_a_wrong_range(metric):
    x, target = pair(1, 1, 24, 24)
    for scale, shift, data_range, words in [(1, 0, None, "positive"), (2, -1, 1.0, "range is 2.0"), (255, 0, 1.0, "state the range")]:
        with pytest.raises(MedgenError, match=words):
            metric(scale * x + shift, scale * target + shift, data_range)


def test_images_stretched_one_by_one_are_refused():
    x, target = pair(2, 1, 40, 40)
    wrong = 0.6 * x + 0.1  # an error of scale that stretching hides

    def stretched(v: torch.Tensor, top: float = 1.0) -> torch.Tensor:
        low, high = v.amin((1, 2, 3), keepdim=True), v.amax((1, 2, 3), keepdim=True)
        return (v - low) / (high - low) * 2 * top - top

    for metric in EVERY:
        with pytest.raises(MedgenError, match="hide every error of scale"):
            metric(stretched(wrong), stretched(target), 2.0)
    assert float(pixel.nmse(wrong, target, 1.0)[0]) > 0.05
    clipped = [(3 * v - 1).clamp(0, 1) for v in (x, target)]  # many voxels at both ends: one map, clipped
    assert torch.isfinite(pixel.psnr(*clipped, 1.0)).all()
    coarse = [(stretched(v) * 127).round() for v in (wrong, target)]  # few grey values reach their ends by chance
    assert torch.isfinite(pixel.psnr(*coarse, 254.0)).all()


def test_padding_flatters_the_whole_image_and_not_the_body():
    """Seven parts of air in eight add 9 dB and most of the similarity; the body's scores stay, and the panel tells the share."""
    x, target = pair(1, 1, 32, 32, 32)
    inside = torch.ones(1, 1, 32, 32, 32, dtype=torch.bool)
    padded = [torch.nn.functional.pad(v, [16] * 6) for v in (x, target, inside)]
    body = panel.all_pixel(*padded[:2], 1.0, {"body": padded[2]})
    plain = panel.all_pixel(x, target, 1.0)
    gain = {name: float(body.values["whole"][name] - plain.values["whole"][name]) for name in ("psnr", "ssim", "haarpsi")}
    assert gain["psnr"] == pytest.approx(10 * math.log10(8))
    assert float(body.values["whole"]["ssim"]) > float(plain.values["whole"]["ssim"]) + 0.5 * float(1 - plain.values["whole"]["ssim"])
    assert abs(gain["haarpsi"]) < 0.1 * gain["psnr"]
    for name in ("psnr", "mae", "me", "nmse", "relative_error"):
        assert float(body.values["body"][name]) == pytest.approx(float(plain.values["whole"][name]), rel=1e-9)
    assert float(body.padding) == pytest.approx(7 / 8)
    assert float(plain.padding) == 0


def test_a_volumes_score_is_not_the_mean_of_its_slices():
    """Errors in one slice of two: the slices' mean PSNR is infinite or far above the volume's."""
    _, target = pair(1, 1, 20, 20, 20)
    x = target.clone()
    x[:, :, 10:] += 0.1
    x[:, :, :10] += 0.001
    volume = pixel.psnr(x, target, 1.0)
    slices = pixel.psnr(x[0].movedim(1, 0), target[0].movedim(1, 0), 1.0)
    assert float(volume) == pytest.approx(10 * math.log10(1 / (0.5 * 0.01 + 0.5 * 1e-6)))
    assert float(slices.mean()) == pytest.approx(40)
    assert volume.shape == (1,)
