"""Radiomic features against the reference values of IBSI, scikit-image, numpy and scipy."""

import numpy as np
import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.metrics import radiomics
from medgen.metrics.cooccurrence import NAMES, cooccurrence, cooccurrence_features, directions

# The digital phantom of IBSI (reference manual, chapter 5.1; CC BY 4.0): four slices, 0 is outside the region.
PHANTOM = (
    ("14411", "14611", "41641", "44641"),
    ("14411", "11611", "01311", "44611"),
    ("14400", "11111", "11011", "11611"),
    ("14400", "11111", "11111", "11611"),
)
# Its co-occurrence features (chapter 3.6): "2D, averaged" and "3D, averaged", very strong consensus.
REFERENCE = {
    "maximum_probability": (0.519, 0.503),
    "joint_average": (2.14, 2.14),
    "sum_squares": (2.69, 3.1),
    "joint_entropy": (2.05, 2.4),
    "difference_average": (1.42, 1.43),
    "difference_variance": (2.9, 3.06),
    "difference_entropy": (1.4, 1.56),
    "sum_entropy": (1.6, 1.92),
    "joint_energy": (0.368, 0.303),
    "contrast": (5.28, 5.32),
    "id": (0.678, 0.677),
    "idn": (0.851, 0.851),
    "idm": (0.619, 0.618),
    "idmn": (0.899, 0.898),
    "inverse_variance": (0.0567, 0.0604),
    "correlation": (-0.0121, 0.157),
    "autocorrelation": (5.09, 5.06),
    "cluster_tendency": (5.47, 7.07),
    "cluster_shade": (7.0, 16.6),
    "cluster_prominence": (79.1, 145),
    "imc1": (-0.155, -0.157),
    "imc2": (0.487, 0.52),
}
# First order (chapter 3.3): the kurtosis there is the excess, pyradiomics' is not.
FIRST = {
    "mean": 2.15,
    "variance": 3.05,
    "skewness": 1.08,
    "kurtosis": 3 - 0.355,
    "median": 1,
    "minimum": 1,
    "percentile_10": 1,
    "percentile_90": 4,
    "maximum": 6,
    "interquartile_range": 3,
    "range": 5,
    "mean_absolute_deviation": 1.55,
    "robust_mean_absolute_deviation": 1.11,
    "energy": 567,
    "root_mean_square": 2.77,
    "entropy": 1.27,
    "uniformity": 0.512,
}


@pytest.fixture(scope="module")
def phantom() -> torch.Tensor:
    return torch.tensor([[[int(level) for level in row] for row in plane] for plane in PHANTOM])


def features(levels: torch.Tensor, count: int, mask: torch.Tensor | None = None) -> dict[str, float]:
    """Averaged over the images."""
    found = cooccurrence_features(cooccurrence(levels, count, mask)).mean(0)
    return dict(zip(NAMES, found.tolist(), strict=True))


def within_rounding(value: float, published: float) -> bool:
    return value == pytest.approx(published, abs=0.5 * 10 ** (np.floor(np.log10(abs(published))) - 2) * 1.01)


def test_cooccurrence_features_are_ibsis(phantom):
    flat = features(phantom.clamp(min=1), 6, phantom > 0)
    solid = features(phantom[None].clamp(min=1), 6, phantom[None] > 0)
    for name, (plane, volume) in REFERENCE.items():
        assert within_rounding(flat[name], plane) and within_rounding(solid[name], volume), name
    assert set(REFERENCE) | {"mcc"} == set(NAMES)


def test_first_order_features_are_ibsis(phantom):
    inside = phantom[phantom > 0][None]
    found = dict(zip(radiomics.FIRST_ORDER, radiomics.first_order(inside.double(), inside)[0].tolist(), strict=True))
    assert inside.numel() == 74 and set(FIRST) == set(found)
    for name, published in FIRST.items():
        assert within_rounding(found[name], published), name


def test_a_matrix_counted_by_hand():
    """1 2 over 1 1. Across: (1, 2), (1, 1); down: (1, 1), (2, 1); diagonals: (1, 1) and (2, 1); each counts in both orders."""
    p = cooccurrence(torch.tensor([[[1, 2], [1, 1]]]), 2)[0]
    steps = directions(2)
    assert steps == [(0, 1), (1, -1), (1, 0), (1, 1)]
    quarter = [[0.5, 0.25], [0.25, 0.0]]
    assert p.tolist() == [quarter, [[0.0, 0.5], [0.5, 0.0]], quarter, [[1.0, 0.0], [0.0, 0.0]]]
    across = features(torch.tensor([[[1, 2], [1, 1]]]), 2)
    assert across["contrast"] == pytest.approx((0.5 + 1 + 0.5 + 0) / 4)
    assert across["joint_energy"] == pytest.approx((0.375 + 0.5 + 0.375 + 1) / 4)
    assert across["mcc"] == pytest.approx((1 / 3 + 1 + 1 / 3 + 1) / 4)


def test_matrices_and_properties_are_scikit_images():
    from skimage.feature import graycomatrix, graycoprops

    image = np.random.default_rng(0).integers(0, 8, (31, 23), dtype=np.uint8)
    theirs = graycomatrix(image, [1], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], levels=8, symmetric=True, normed=True)
    own = cooccurrence(torch.from_numpy(image.astype(np.int64))[None] + 1, 8)[0]
    both = [sorted(matrix.flatten().tolist() for matrix in matrices) for matrices in (own.numpy(), theirs[:, :, 0].transpose(2, 0, 1))]
    np.testing.assert_allclose(*both, atol=1e-12)
    found = features(torch.from_numpy(image.astype(np.int64))[None] + 1, 8)
    named = {"contrast": "contrast", "dissimilarity": "difference_average", "homogeneity": "idm", "ASM": "joint_energy"}
    for their_name, name in (named | {"correlation": "correlation"}).items():
        assert found[name] == pytest.approx(graycoprops(theirs, their_name).mean(), rel=1e-9), name


def test_the_wavelet_is_an_orthogonal_one_with_two_vanishing_moments_and_keeps_energy():
    low, high = radiomics.coiflet()
    published = torch.tensor([-0.0727326195, 0.3378976625, 0.8525720202, 0.3848648469, -0.0727326195, -0.0156557281]) / 2**0.5
    torch.testing.assert_close(low.float(), published, atol=1e-7, rtol=0)
    assert float(low.sum()) == pytest.approx(1) and float((low[2:] * low[:-2]).sum()) == pytest.approx(0, abs=1e-12)
    place = torch.arange(6.0, dtype=torch.float64)
    assert [float((high * place**k).sum()) for k in range(2)] == pytest.approx([0, 0], abs=1e-9)
    x = torch.randn(2, 9, 12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bands = radiomics.wavelet_bands(x)
    assert [detail for detail, _ in bands] == [False, *[True] * 7]
    assert float(sum(band.square().sum() for _, band in bands)) == pytest.approx(float(x.square().sum()))


def test_bands_are_what_their_names_say():
    """Stripes along the second axis have their detail in "lh", along the first in "hl"."""
    stripes = torch.where(torch.arange(32) % 2 == 0, 0.1, -0.1).double().expand(1, 32, 32)
    for image, name in ((stripes, "lh"), (stripes.mT, "hl")):
        energy = {
            band: float(x.square().sum()) for band, (_, x) in zip(("ll", "lh", "hl", "hh"), radiomics.wavelet_bands(image), strict=True)
        }
        assert max(energy, key=energy.get) == name and energy[name] > 0.99 * sum(energy.values())


def test_features_have_names_and_are_each_images_own():
    x = torch.rand(5, 3, 24, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = radiomics.radiomic_features(x)
    names = radiomics.names(2, 3)
    assert whole.shape == (5, len(names)) and len(set(names)) == len(names)
    torch.testing.assert_close(whole[3:4], radiomics.radiomic_features(x[3:4]), rtol=1e-12, atol=1e-12)
    found = dict(zip(names, whole[0].tolist(), strict=True))
    assert found["channel_1.mean"] == pytest.approx(float(x[0, 1].double().mean()))
    assert found["original.mean"] == pytest.approx(float(x[0].double().mean()))
    assert found["channel_2.percentile_90"] == pytest.approx(np.percentile(x[0, 2].double().numpy(), 90))
    volume = radiomics.radiomic_features(torch.rand(2, 1, 9, 8, 7))
    assert volume.shape == (2, len(radiomics.names(3)))


def test_what_varies_moves_its_own_feature():
    draw = torch.Generator().manual_seed(2)
    x = torch.rand(4, 1, 32, 32, generator=draw) * 0.5
    names = radiomics.names(2)
    brighter, base = radiomics.radiomic_features(x + 0.25), radiomics.radiomic_features(x)
    assert float((brighter - base)[:, names.index("original.mean")].mean()) == pytest.approx(0.25)
    torch.testing.assert_close(brighter[:, names.index("original.contrast")], base[:, names.index("original.contrast")])
    smooth = radiomics.radiomic_features(torch.nn.functional.avg_pool2d(x, 3, 1, 1))
    assert (smooth[:, names.index("wavelet_hh.variance")] < 0.1 * base[:, names.index("wavelet_hh.variance")]).all()


def test_a_blank_image_has_finite_features_and_broken_ones_are_refused():
    blank = radiomics.radiomic_features(torch.full((2, 1, 12, 12), -1.0))
    found = dict(zip(radiomics.names(2), blank[0].tolist(), strict=True))
    assert torch.isfinite(blank).all()
    assert (found["original.correlation"], found["original.joint_energy"], found["original.variance"]) == pytest.approx((1, 1, 0))
    with pytest.raises(MedgenError, match="NaN"):
        radiomics.radiomic_features(torch.full((1, 1, 12, 12), torch.nan))
    with pytest.raises(MedgenError, match="at least 6"):
        radiomics.radiomic_features(torch.zeros(1, 1, 5, 30))
