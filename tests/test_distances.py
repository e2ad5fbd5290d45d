"""Distances between sets of features: closed forms, other libraries, exact manifolds, and intervals that hold the truth."""

import itertools
import math

import numpy as np
import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.metrics import kernels, sets
from medgen.metrics.diversity import similarity
from medgen.metrics.feature import frechet
from medgen.metrics.manifold import manifold, radii, realism
from medgen.metrics.scales import ms_ssim


def normal(*key: int, n: int, f: int) -> torch.Tensor:
    return torch.from_numpy(generator(*key).standard_normal((n, f)))


def slow_manifold(made, reals, k=3, dense=5):
    """The definitions, image by image."""

    def ball(x, i, k):
        return sorted(math.dist(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]

    def inside(point, x, k):
        return [math.dist(point, x[i]) <= ball(x, i, k) for i in range(len(x))]

    made, reals = made.tolist(), reals.tolist()
    precision = sum(any(inside(point, reals, k)) for point in made) / len(made)
    recall = sum(any(inside(point, made, k)) for point in reals) / len(reals)
    density = sum(sum(inside(point, reals, dense)) for point in made) / dense / len(made)
    coverage = sum(any(math.dist(p, reals[i]) <= ball(reals, i, dense) for p in made) for i in range(len(reals))) / len(reals)
    return precision, recall, density, coverage


def test_kid_is_unbiased_at_20_images_and_its_error_is_of_the_right_size():
    found = [kernels.kid(normal(1, i, n=20, f=8), normal(2, i, n=20, f=8)) for i in range(300)]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 3 * values.std() / 300**0.5
    assert values.std() < np.median([one.error for one in found]) < 2 * values.std()


def test_the_error_of_kid_is_its_spread_where_the_sets_differ():
    found = [kernels.kid(normal(3, i, n=60, f=8) + 0.7, normal(4, i, n=60, f=8)) for i in range(200)]
    assert np.median([one.error for one in found]) == pytest.approx(np.std([one.value for one in found]), rel=0.15)


def written_out(a, b) -> float:
    """KID from whole matrices: Binkowski et al. 2018, equation 4."""
    within = [((x @ x.T / x.shape[1] + 1) ** 3) for x in (a, b)]
    own = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in within]
    return float(own[0] + own[1] - 2 * ((a @ b.T / a.shape[1] + 1) ** 3).mean())


@pytest.mark.parametrize(("n", "m"), [(2, 3), (33, 50), (70, 40)])
def test_blocks_give_what_the_whole_matrices_give(n, m, monkeypatch):
    a, b = normal(5, n=n, f=7), normal(6, n=m, f=7) + 0.3
    whole = written_out(a, b)
    monkeypatch.setattr(kernels, "ROWS", 8)
    monkeypatch.setattr(kernels, "PARTS", 3)
    assert kernels.kid(a, b).value == pytest.approx(whole, rel=1e-10)
    assert kernels.kid(a, a).value == pytest.approx(written_out(a, a), rel=1e-10)  # the same tensor twice is still two sets


def test_kid_is_torchmetrics_on_given_features():
    """One subset of all images, with their extractor left out: the difference is rounding."""
    image = pytest.importorskip("torchmetrics.image.kid")
    a, b = normal(7, n=50, f=12), normal(8, n=50, f=12) + 0.4
    assert kernels.kid(a, b).value == pytest.approx(float(image.poly_mmd(a, b)), rel=1e-9)


def test_mmd_is_the_sum_over_pairs():
    a, b, sigma = normal(9, n=9, f=3), normal(10, n=7, f=3), 1.3

    def mean(x, y, same):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (same and i == j)]
        return sum(math.exp(-(math.dist(x[i].tolist(), y[j].tolist()) ** 2) / (2 * sigma**2)) for i, j in pairs) / len(pairs)

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kernels.mmd(a, b, sigma).value == pytest.approx(expected, rel=1e-9)
    median = np.median([math.dist(x.tolist(), y.tolist()) for x, y in itertools.combinations(b, 2)])
    assert kernels.median_distance(b) == pytest.approx(median)
    assert kernels.mmd(a, b).value == pytest.approx(kernels.mmd(a, b, median).value)


def test_mmd_of_two_points_in_space_is_known_and_scale_does_not_change_cmmd():
    a, b = torch.zeros(5, 2, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64) + torch.tensor([3.0, 4.0])
    assert kernels.mmd(a, b, 5.0).value == pytest.approx(2 - 2 * math.exp(-0.5))
    x, y = normal(11, n=20, f=6), normal(12, n=20, f=6) + 0.5
    assert kernels.cmmd(10 * x, y).value == pytest.approx(kernels.cmmd(x, y).value, rel=1e-9)
    opposite = kernels.cmmd(torch.ones(3, 4), -torch.ones(3, 4)).value
    assert opposite == pytest.approx(1000 * (2 - 2 * math.exp(-4 / 200)))


def test_the_frechet_distance_is_monais_where_there_are_enough_images():
    fid = pytest.importorskip("monai.metrics.fid")
    a, b = normal(13, n=300, f=8) + 0.3, 1.5 * normal(14, n=250, f=8)
    theirs = float(fid.get_fid_score(a, b))
    assert sets.frechet_distance(a, b) == pytest.approx(theirs, rel=1e-5)
    closed = 8 * (0.3**2 + 0.5**2)
    many = sets.frechet_distance(normal(13, n=20_000, f=8) + 0.3, 1.5 * normal(14, n=20_000, f=8))
    assert many == pytest.approx(closed, rel=0.03)


def test_a_frechet_distance_of_too_few_images_is_refused_with_a_remedy():
    with pytest.raises(MedgenError, match=r"of 8 dimensions needs 16 images in either set, got 15.*use KID"):
        sets.frechet_distance(normal(15, n=15, f=8), normal(16, n=40, f=8))
    assert sets.frechet_distance(normal(15, n=16, f=8), normal(16, n=16, f=8)) > 0


@pytest.mark.parametrize("seed", range(3))
def test_precision_recall_density_coverage_are_the_definitions(seed, monkeypatch):
    monkeypatch.setattr("medgen.metrics.manifold.ROWS", 7)
    made, reals = 0.7 * normal(17, seed, n=25, f=2) + 0.5, normal(18, seed, n=20, f=2)
    assert manifold(made, reals) == pytest.approx(slow_manifold(made, reals))


def test_manifolds_with_known_answers():
    """Reals: two clusters far apart. Made: one of the clusters, moved by less than its balls."""
    cluster = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(4.0), indexing="ij"), -1).reshape(20, 2)
    reals = torch.cat([cluster, cluster + 100])
    found = manifold(cluster + 0.1, reals)
    assert found.precision == 1 and found.recall == 0.5 and found.coverage == 0.5
    assert manifold(cluster + 1000, reals) == (0, 0, 0, 0)
    copies = manifold(reals, reals)
    assert copies[:2] == (1, 1) and copies.coverage == 1


def test_a_line_has_exact_density():
    """Reals 0 to 9, made: the same. Balls (dense = 2): radius 1, at the ends 2. Points 0, 1, 2 lie in 2, 3, 4 balls."""
    reals = torch.arange(10.0)[:, None]
    found = manifold(reals, reals, k=2, dense=2)
    assert radii(reals.double(), (2,)).sqrt().flatten().tolist() == [2, 1, 1, 1, 1, 1, 1, 1, 1, 2]
    assert found.density == pytest.approx((2 * (2 + 3 + 4) + 4 * 3) / 2 / 10)


def test_constant_sets_are_inside_each_other_and_other_constants_are_not():
    x = torch.full((8, 3), 0.1, dtype=torch.float64)
    assert manifold(x, x) == pytest.approx((1, 1, 8 / 5, 1))
    assert manifold(x + 1, x) == (0, 0, 0, 0)
    with pytest.raises(MedgenError, match="5th neighbour needs 6 images"):
        manifold(x[:5], x)


def test_realism_is_one_at_the_edge_of_the_manifold():
    reals = torch.arange(12.0)[:, None] * 2  # inner balls to the 3rd neighbour: 4
    values = realism(torch.tensor([[10.0], [25.0], [30.0], [1000.0]]), reals, k=3)
    small = [value for value in (radii(reals.double(), (3,)).sqrt()).flatten().tolist() if value <= 4]
    assert len(small) == 10 and values[0] > 1e100
    assert values[1:].tolist() == pytest.approx([4 / 5, 4 / 10, 4 / 980])


def test_pairs_of_images_are_scored_as_ms_ssim_and_are_of_different_subjects():
    images = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = similarity(images[:2], ["a", "b"])
    assert first.item() == pytest.approx(ms_ssim(images[:1].double(), images[1:2].double(), 2.0, scales=2).item(), abs=1e-6)
    doubled = torch.cat([images[:2], images[:2]])
    assert similarity(doubled, ["a", "b", "a", "b"], seed=3).item() == pytest.approx(first.item())
    assert similarity(torch.zeros(6, 1, 12, 12, 12), list("abcdef")).tolist() == [1, 1, 1]
    with pytest.raises(MedgenError, match="at least two subjects"):
        similarity(images, list("aaaa"))
    with pytest.raises(MedgenError, match="needs 11 voxels"):
        similarity(images[..., :10], list("abcd"))


def drawn(key: int, sizes=(48, 120, 48), f=6, shift=0.0, scale=1.0) -> sets.Sets:
    parts = [normal(19, key, place, n=n, f=f) for place, n in enumerate(sizes)]
    return sets.Sets(scale * parts[0] + shift, *parts[1:], tuple([str(i) for i in range(n)] for n in sizes))


@pytest.mark.parametrize("measure", [sets.FRECHET, sets.KID, sets.OVERLAP], ids=lambda m: m.names[0])
def test_the_intervals_hold_the_mean_about_as_often_as_they_say(measure):
    found = [sets.measured(drawn(i, shift=0.4), measure, seed=i, draws=40) for i in range(50)]
    for name in measure.names:
        truth = np.mean([one.value[name].value for one in found])
        held = np.mean([one.value[name].low <= truth <= one.value[name].high for one in found])
        assert held >= 0.85, name
    if measure is not sets.OVERLAP:
        truth = np.exp(np.mean([np.log(one.score.value) for one in found]))
        assert np.mean([one.score.low <= truth <= one.score.high for one in found]) >= 0.85


def test_the_score_of_equal_distributions_is_one():
    for measure in (sets.FRECHET, sets.KID, sets.MMD, sets.CMMD):
        scores = [sets.measured(drawn(100 + i), measure, draws=2).score.value for i in range(60)]
        assert np.exp(np.mean(np.log(scores))) == pytest.approx(1, abs=0.08), measure.names[0]


def test_repeated_measures_are_the_plain_functions():
    one = drawn(7, shift=0.3)
    for measure, plain in ((sets.KID, kernels.kid), (sets.CMMD, kernels.cmmd)):
        found = sets.measured(one, measure, draws=2)
        assert found.value[measure.names[0]].value == pytest.approx(plain(one.made, one.held).value, rel=1e-9)
    assert sets.measured(one, sets.FRECHET, draws=2).value["Frechet"].value == pytest.approx(frechet(one.made, one.held))
    overlap = sets.measured(one, sets.OVERLAP, draws=2).value
    assert [bounds.value for bounds in overlap.values()] == pytest.approx(list(manifold(one.made, one.held)))
    reals = torch.cat([one.reference, one.held])
    mmd = sets.measured(one, sets.MMD, draws=2).value["MMD"].value
    assert mmd == pytest.approx(kernels.mmd(one.made, one.held, kernels.median_distance(reals)).value, rel=1e-9)


def test_the_floor_has_as_many_images_as_the_distance():
    """With 5 of 120 training images used, the Frechet floor is far above that of all of them."""
    few, many = (sets.measured(drawn(3, sizes), sets.FRECHET, draws=2) for sizes in ((12, 120, 48), (120, 120, 48)))
    assert few.size == 12 and many.size == 120
    assert few.floor["Frechet"].value > 2 * many.floor["Frechet"].value
    assert few.score.value == pytest.approx(1, abs=0.6)


def test_slices_of_a_subject_are_resampled_together():
    """Twice the same images under the same subjects say no more than once: the interval must not shrink."""
    single = drawn(5, sizes=(40, 80, 40), shift=0.3)
    names = [[str(i) for i in range(n)] for n in (40, 80, 40)]
    parts = [torch.cat([part, part + 1e-3]) for part in (single.made, single.reference, single.held)]
    double = sets.Sets(*parts, tuple(2 * one for one in names))
    apart = sets.Sets(*parts, tuple([str(i) for i in range(2 * len(one))] for one in names))

    def width(one: sets.Sets) -> float:
        found = sets.measured(one, sets.KID, draws=200).value["KID with diagonal"]
        return found.high - found.low

    assert width(double) == pytest.approx(width(single), rel=0.25)
    assert width(apart) < 0.85 * width(double)


def test_unlike_units_do_not_matter_where_features_are_standardised():
    one = drawn(9, shift=0.3)
    factors = torch.tensor([1, 10, 1e3, 1e-3, 5, 1e5], dtype=torch.float64)
    one = sets.Sets(one.made + 3, one.reference + 3, one.held + 3, one.units)
    scaled = sets.Sets(one.made * factors, one.reference * factors, one.held * factors, one.units, standard=True)
    plain = sets.Sets(one.made, one.reference, one.held, one.units, standard=True)
    assert sets.measured(scaled, sets.KID, draws=2).score.value == pytest.approx(
        sets.measured(plain, sets.KID, draws=2).score.value, rel=1e-3
    )


def test_constant_and_broken_features():
    constant = torch.ones(20, 4)
    names = ([str(i) for i in range(20)],) * 3
    for measure in (sets.FRECHET, sets.KID, sets.MMD, sets.CMMD, sets.OVERLAP):
        found = sets.measured(sets.Sets(constant, constant, constant, names, standard=True), measure, draws=3)
        assert math.isnan(found.score.value) == (measure is not sets.OVERLAP)
    with pytest.raises(MedgenError, match="NaN"):
        sets.Sets(constant / 0 * 0, constant, constant, names)
    with pytest.raises(MedgenError, match="2 subjects for 20 images"):
        sets.Sets(constant, constant, constant, (["a"] * 10 + ["b"] * 10, *names[1:]))
