"""Composed changes: geometry that is exact, physics that has an answer, draws that belong to a sample."""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from medgen.checkpoint import build
from medgen.cli.configs import compose
from medgen.core.errors import MedgenError
from medgen.core.fourier import fft, ifft
from medgen.core.random import Rng
from medgen.data.augment.changes import Changes
from medgen.data.augment.geometry import Affine, Elastic, Flip, Turn, rotation
from medgen.data.augment.intensity import Contrast, Cutout, LowResolution, Noise
from medgen.data.augment.move import Move
from medgen.data.augment.mr import BiasField, Ghosting, LowField, Motion
from medgen.data.augment.stain import EOSIN, HEMATOXYLIN, StainJitter, stain_matrix
from medgen.data.module import DataModule
from medgen.data.phantom.source import PhantomData

GEOMETRY = {
    "flip": Flip(axes=(0, 1), probability=1.0),
    "turn": Turn(probability=1.0),
    "affine": Affine(rotation=30.0, probability=1.0),
    "elastic": Elastic(probability=1.0),
}
INTENSITY = {
    "contrast": Contrast(["t1"], probability=1.0),
    "noise": Noise(["t1"], probability=1.0),
    "rician": Noise(["t1"], rician=True, probability=1.0),
    "resolution": LowResolution(["t1"], probability=1.0),
    "cutout": Cutout(["t1"], probability=1.0),
    "bias": BiasField(["t1"], probability=1.0),
    "motion": Motion(["t1"], probability=1.0),
    "ghosting": Ghosting(["t1"], probability=1.0),
    "lowfield": LowField(["t1"], probability=1.0),
}
STAIN = {"stain": StainJitter(probability=1.0)}
SIZES = ((20, 28), (12, 14, 18))


def image(size, batch=1, channels=1, seed=0):
    """A smooth image (B, C, *S) of -1 to 1."""
    drawn = torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed))
    k = torch.stack(torch.meshgrid(*[torch.arange(n) - n // 2 for n in size], indexing="ij")).float()
    smooth = ifft(fft(drawn.to(torch.complex64), len(size)) * torch.exp(-k.square().sum(0) / 8), len(size)).real
    low, high = smooth.amin(tuple(range(1, smooth.ndim)), keepdim=True), smooth.amax(tuple(range(1, smooth.ndim)), keepdim=True)
    return 2 * (smooth - low) / (high - low) - 1


def positions(size, batch=1):
    """(B, d, *S) voxels from the centre of the grid."""
    axes = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in size], indexing="ij")
    return torch.stack(axes)[None].repeat(batch, *(1,) * (len(size) + 1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*GEOMETRY, *INTENSITY, *STAIN])
def test_nothing_happens_at_probability_zero_and_something_at_one(name, size):
    change = {**GEOMETRY, **INTENSITY, **STAIN}[name]
    x = image(size, batch=3, channels=3 if name == "stain" else 1)
    changes, rng = Changes({name: change}), Rng(0, samples=range(3))
    assert torch.equal(changes.apply_batch(x, rng, p=0.0), x)
    changed = changes.apply_batch(x, rng, p=1.0)
    assert changed.shape == x.shape and torch.isfinite(changed).all()
    assert ((changed - x).abs().flatten(1).amax(1) > 1e-3).all()


@pytest.mark.parametrize("size", SIZES)
def test_an_image_of_a_batch_is_changed_as_it_would_be_alone_and_each_call_draws_anew(size):
    changes = Changes({**GEOMETRY, **INTENSITY, "off": None})
    x = image(size, batch=4)
    rng = Rng(1, 2, samples=(5, 6, 7, 8))
    together, again = changes.apply_batch(x, rng, p=0.5), changes.apply_batch(x, rng, p=0.5)
    alone = torch.cat([changes.apply_batch(x[i : i + 1], Rng(1, 2, samples=(5 + i,)), p=0.5) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together - again).abs().flatten(1).amax(1).min() > 1e-3


def test_mirroring_is_exact_and_twice_is_nothing():
    x, flip = image((6, 7, 8), batch=30), Flip(axes=(0, 1, 2))
    move = flip.draw(Rng(0, samples=range(30)), (6, 7, 8))
    moved = move(x)
    assert torch.equal(move(moved), x) and not torch.equal(moved, x)
    signs = torch.diagonal(move.linear, dim1=1, dim2=2)
    assert len(signs.unique(dim=0)) == 7  # every combination but none
    for i in range(30):
        assert torch.equal(moved[i], x[i].flip([a + 1 for a in range(3) if signs[i, a] < 0]))


def test_quarter_turns_are_those_of_numpy_and_only_halves_where_sides_differ():
    x = image((12, 12), batch=20)
    move = Turn().draw(Rng(0, samples=range(20)), (12, 12))
    turned, found = move(x), set()
    for i in range(20):
        fits = [k for k in (1, 2, 3) if np.allclose(turned[i, 0], np.rot90(x[i, 0], k), atol=1e-5)]
        assert len(fits) == 1
        found.update(fits)
    assert found == {1, 2, 3}
    uneven = image((8, 12), batch=20)
    halves = Turn().draw(Rng(0, samples=range(20)), (8, 12))(uneven)
    assert torch.equal(halves, uneven.flip(2, 3))


@pytest.mark.parametrize(("size", "plane"), [((40, 64), (0, 1)), ((40, 30, 36), (0, 1)), ((40, 30, 36), (0, 2)), ((40, 30, 36), (1, 2))])
def test_a_turn_moves_a_point_where_it_should(size, plane):
    dims, angle = len(size), 25.0
    start = torch.tensor([9.0, -4.0, 6.0][:dims])
    blob = 2 * torch.exp(-(positions(size) - start.reshape(1, -1, *(1,) * dims)).square().sum(1, keepdim=True) / 8) - 1
    pairs = [(a, b) for a in range(dims) for b in range(a + 1, dims)]
    angles = torch.tensor([[math.radians(angle) if pair == plane else 0.0 for pair in pairs]])
    moved = (Move(rotation(angles, dims), torch.zeros(1, dims))(blob) + 1) / 2
    centre = (positions(size) * moved).sum(tuple(range(2, 2 + dims)))[0] / moved.sum()
    first, second = plane
    expected = start.clone()
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    expected[first], expected[second] = cos * start[first] - sin * start[second], sin * start[first] + cos * start[second]
    torch.testing.assert_close(centre, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_an_affine_move_is_that_of_monai(size):
    from monai.transforms import Affine as MonaiAffine

    dims = len(size)
    move = Affine(rotation=40.0, scale=0.3, shift=0.1).draw(Rng(3), size)
    matrix = np.eye(dims + 1)
    matrix[:dims, :dims], matrix[:dims, dims] = move.linear[0].numpy(), move.shift[0].numpy()
    theirs = MonaiAffine(affine=matrix, padding_mode="zeros", image_only=True, align_corners=False)(image(size)[0] + 1).as_tensor() - 1
    torch.testing.assert_close(move(image(size))[0], theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(40, 48), (24, 28, 30)])
def test_moves_one_after_the_other_are_one_move(size):
    x = positions(size, batch=2)  # linear in the position: interpolation is exact away from the edges
    first, second = (
        Move(
            Affine(scale=0.1).draw(Rng(s, samples=(0, 1)), size).linear,
            torch.ones(2, len(size)),
            Elastic().draw(Rng(s, samples=(0, 1)), size).bend,
        )
        for s in (0, 1)
    )
    apart, together = second(first(x)), second.after(first)(x)
    middle = (..., *(slice(n // 3, -(n // 3)) for n in size))
    torch.testing.assert_close(apart[middle], together[middle], atol=0.03, rtol=0)
    assert (together - x)[middle].abs().max() > 1


@pytest.mark.parametrize("size", SIZES)
def test_labels_come_from_the_voxel_next_to_where_the_image_comes_from(size):
    count = math.prod(size)
    case = {f"x{a}": positions(size)[:, a].numpy() for a in range(len(size))}
    case |= {"number": np.arange(1, count + 1).reshape(1, *size), "affine": np.eye(4, dtype=np.float32), "age": 40.0}
    case["known"] = np.ones((1, *size), np.float32)
    for seed in range(5):
        changed = Changes(GEOMETRY if len(set(size[:2])) == 1 else {k: v for k, v in GEOMETRY.items() if k != "turn"})(
            case, np.random.default_rng(seed)
        )
        at = np.stack([changed[f"x{a}"] for a in range(len(size))])
        sides = np.array(size).reshape(-1, *(1,) * (len(size) + 1))
        whole = changed["known"] > 1 - 1e-6  # no air interpolated in
        index = np.stack(np.unravel_index(np.maximum(changed["number"] - 1, 0), size)) - (sides - 1) / 2
        assert whole.mean() > 0.2 and np.abs(index - at)[:, whole].max() <= 0.5 + 1e-2
        assert changed["number"].dtype == np.int64 and changed["age"] == 40.0 and np.array_equal(changed["affine"], np.eye(4))


def test_no_label_is_invented():
    labels = np.random.default_rng(0).choice([0, 3, 7], (1, 12, 12, 12)).astype(np.int64)
    for seed in range(5):
        changed = Changes(GEOMETRY)({"tissue": labels, "t1": labels.astype(np.float32)}, np.random.default_rng(seed))
        assert set(np.unique(changed["tissue"])) == {0, 3, 7}


def test_what_comes_in_at_the_edges():
    x = torch.full((1, 1, 16, 16), 0.5)
    shift = {kind: Move(torch.eye(2)[None], torch.tensor([[4.0, 0.0]]), None, kind) for kind in ("air", "border", "reflection")}
    assert (shift["air"](x)[0, 0, -3:] == -1).all()
    assert torch.allclose(shift["border"](x), x) and torch.allclose(shift["reflection"](x), x)
    assert shift["air"].after(shift["reflection"]).outside == "reflection"
    with pytest.raises(MedgenError, match="outside=mirror; expected one of air, border, reflection"):
        Elastic(outside="mirror")


@pytest.mark.parametrize("size", [(40, 64), (24, 30, 20), (8, 48, 48)])
def test_elastic_deformation_is_one_to_one_and_as_large_as_it_says(size):
    dims, batch = len(size), 6
    rng = Rng(0, samples=range(batch))
    bent = Elastic(amplitude=0.5, bend=0.7).draw(rng, size).bend  # far too much: the bound decides
    slopes = torch.stack([torch.stack(torch.gradient(bent[:, a], dim=list(range(1, dims + 1))), 1) for a in range(dims)], 1)
    norm = slopes.square().sum((1, 2)).sqrt().flatten(1).amax(1)
    assert (norm <= 0.7 * 1.06).all() and norm.max() > 0.65
    jacobian = slopes.movedim((1, 2), (-2, -1)) + torch.eye(dims)
    assert (torch.linalg.det(jacobian) > 0).all()
    gentle = Elastic(amplitude=0.01).draw(rng, size).bend
    rms = gentle.square().sum(1).flatten(1).mean(1).sqrt()
    assert (rms <= 0.01 * min(size)).all() and rms.max() > 0.003 * min(size)
    assert gentle.flatten(2).mean(2).abs().max() < 1e-5


def test_contrast_is_that_of_monai_and_leaves_air():
    from monai.transforms import AdjustContrast

    x = image((32, 32))
    mine = Contrast().apply(x, {"gamma": torch.tensor([1.4]), "gain": torch.tensor([1.0])})
    torch.testing.assert_close(mine[0], AdjustContrast(1.4)(x[0]).as_tensor(), atol=2e-3, rtol=0)
    assert Contrast().apply(torch.full((1, 1, 4, 4), -1.0), {"gamma": torch.tensor([0.7]), "gain": torch.tensor([1.2])}).unique() == -1


def test_rician_noise_has_its_mean_in_air_and_monais_statistics():
    from monai.transforms import RandRicianNoise

    x, sigma = torch.full((1, 1, 400, 400), -1.0), 0.1
    x[..., 200:] = 0.2
    drawn = {**Noise(rician=True).draw(Rng(0), x.shape), "sigma": torch.tensor([sigma])}
    mine = (Noise(rician=True).apply(x, drawn) + 1) / 2
    assert float(mine[..., :200].mean()) == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.01)
    theirs = RandRicianNoise(prob=1.0, std=sigma, sample_std=False).set_random_state(0)((x[0] + 1) / 2)
    for half in (slice(None, 200), slice(200, None)):
        assert float(mine[..., half].mean()) == pytest.approx(float(theirs[..., half].mean()), rel=0.01)
        assert float(mine[..., half].std()) == pytest.approx(float(theirs[..., half].std()), rel=0.01)
    plain = (Noise().apply(x, {**Noise().draw(Rng(0), x.shape), "sigma": torch.tensor([sigma])}) - x) / 2
    assert abs(float(plain.mean())) < 1e-3 and float(plain.std()) == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize("size", [(33, 48), (12, 20, 16)])
def test_a_bias_field_has_no_mean_and_its_strength(size):
    change = BiasField(strength=0.4)
    drawn = change.draw(Rng(0, samples=range(5)), (5, 2, *size))["log"]
    assert drawn.flatten(1).mean(1).abs().max() < 1e-5
    rms = drawn.flatten(1).square().mean(1).sqrt()
    assert (rms <= 0.4).all() and rms.max() > 0.2
    x = image(size, batch=5, channels=2)
    ratio = (change.apply(x, {"log": drawn}) + 1)[x > -0.9] / (x + 1)[x > -0.9]
    assert ((ratio.log() - drawn.expand_as(x)[x > -0.9]).abs() < 1e-3).all()


def motion(times, shifts, angles=None, axis=0):
    shifts = torch.tensor(shifts)[None]
    angles = torch.zeros(1, shifts.shape[1], 1) if angles is None else angles
    return {"axis": torch.tensor([axis]), "times": torch.tensor([times]), "shifts": shifts, "angles": angles}


def test_no_motion_is_no_change():
    x = image((24, 31))
    torch.testing.assert_close(Motion(moves=2).apply(x, motion([0.2, 0.7], [[0.0, 0.0]] * 3)), x, atol=2e-6, rtol=0)
    still = Motion(rotation=0.0, shift=0.0, moves=3)
    volume = image((10, 12, 9))
    torch.testing.assert_close(still.apply(volume, still.draw(Rng(0), volume.shape)), volume, atol=2e-6, rtol=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_motion_takes_the_lines_of_each_pose_from_the_moved_image(axis):
    x = torch.full((1, 1, 32, 32), -1.0)
    x[..., 12:20, 10:22] = image((8, 12))
    moved = Motion(moves=1).apply(x, motion([0.25], [[-3.0, 0.0], [0.0, 0.0]], axis=axis))
    k, other = (np.fft.fftshift(np.fft.fft(np.asarray(s), axis=axis), axis) for s in ((x[0, 0] + 1) / 2, (x[0, 0].roll(3, 0) + 1) / 2))
    early = (slice(0, 8), slice(None)) if axis == 0 else (slice(None), slice(0, 8))
    k[early] = other[early]
    expected = np.abs(np.fft.ifft(np.fft.ifftshift(k, axis), axis=axis))
    np.testing.assert_allclose((moved[0, 0] + 1) / 2, expected, atol=1e-5)
    assert np.abs(expected - np.asarray((x[0, 0] + 1) / 2)).max() > 0.05


def test_the_pose_at_the_centre_of_k_space_is_the_images():
    change = Motion(rotation=10.0, shift=0.1, moves=4)
    drawn = change.draw(Rng(0, samples=range(50)), (50, 1, 32, 32))
    here = (drawn["times"] <= 0.5).sum(1)
    rows = torch.arange(50)
    assert not drawn["shifts"][rows, here].any() and not drawn["angles"][rows, here].any()
    assert drawn["shifts"].abs().sum() > 0 and drawn["shifts"].abs().max() <= 3.2


@pytest.mark.parametrize(("period", "distance"), [(4, 16), (2, 32), (8, 8)])
def test_a_ghost_lies_at_a_period_of_the_field_of_view(period, distance):
    x = torch.full((1, 1, 64, 10), -1.0)
    x[..., 20, 5] = 1.0
    drawn = {"axis": torch.tensor([0]), "strength": torch.tensor([0.4]), "period": torch.tensor([period]), "phase": torch.tensor([0.0])}
    ghosted = (Ghosting().apply(x, drawn)[0, 0, :, 5] + 1) / 2
    expected = torch.zeros(64)
    expected[20] = 1.0
    for side in (-1, 1):
        expected[(20 + side * distance) % 64] += 0.2
    torch.testing.assert_close(ghosted, expected, atol=1e-5, rtol=0)
    none = Ghosting().apply(x, {**drawn, "strength": torch.tensor([0.0])})
    torch.testing.assert_close(none, x, atol=1e-6, rtol=0)


def test_a_lower_field_has_coarser_voxels_less_contrast_and_more_noise():
    change = LowField(field=(0.3, 0.3), noise=0.01, resolution=2.0)
    x = image((64, 64))
    drawn = change.draw(Rng(0), x.shape)
    assert float(drawn["sigma"]) == pytest.approx(0.1 / float(drawn["longer"].prod()), rel=1e-4)
    clean = {"exponent": torch.tensor([1.0]), "longer": torch.tensor([[2.0, 1.0]]), "sigma": torch.tensor([0.0]), "noise": drawn["noise"]}
    sharp = torch.full((1, 1, 64, 64), 0.5) + 0.2 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    lines = fft(((change.apply(sharp, clean) + 1) / 2).to(torch.complex64), 2)[0, 0].abs().amax(1)
    assert lines[:16].max() < 1e-4 and lines[49:].max() < 1e-4 and lines[17:48].min() > 0.01
    flat = torch.full((1, 1, 128, 128), 0.5)
    noisy = change.apply(flat, {**clean, "sigma": torch.tensor([0.05]), "noise": torch.randn(1, 2, 1, 128, 128)}) / 2
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    flatter = change.apply(
        torch.tensor([-1.0, -0.5, 0.5]).reshape(1, 1, 1, 3),
        {**clean, "exponent": torch.tensor([0.7]), "longer": torch.ones(1, 2), "noise": torch.zeros(1, 2, 1, 1, 3)},
    )
    signal = ((flatter + 1) / 2).flatten()
    assert abs(float(signal[0])) < 1e-6 and float(signal[2] / signal[1]) == pytest.approx(3**0.7, rel=1e-4)


def test_thick_slices_are_averages():
    change = LowResolution()
    x = image((24, 16))
    blocks = {"factor": torch.tensor([4.0]), "axis": torch.tensor([0])}
    constant = torch.full((1, 1, 24, 16), 0.3)
    torch.testing.assert_close(change.apply(constant, blocks), constant)
    torch.testing.assert_close(change.apply(x, {**blocks, "factor": torch.tensor([1.0])}), x)
    thick = change.apply(x, blocks)[0, 0]
    means = x[0, 0].reshape(6, 4, 16).mean(1)
    expected = np.stack([np.interp((np.arange(24) + 0.5) / 4 - 0.5, np.arange(6), column) for column in means.T.numpy()], 1)
    np.testing.assert_allclose(thick, expected, atol=1e-5)
    ramp = positions((24, 16))[:, :1] / 12
    odd = change.apply(ramp, {"factor": torch.tensor([2.7]), "axis": torch.tensor([0])})
    torch.testing.assert_close(odd[..., 4:-4, :], ramp[..., 4:-4, :], atol=0.05 / 12, rtol=0)  # a straight line keeps its place


def tile(seed=0):
    """(1, 3, 8, 8) colours that hematoxylin and eosin make, and their amounts."""
    amounts = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(seed))
    density = torch.einsum("khw,kc->chw", amounts, torch.nn.functional.normalize(torch.tensor([HEMATOXYLIN, EOSIN]), dim=1))
    return 2 * 10 ** -density[None] - 1, amounts


def test_stains_stay_at_factor_one_and_one_factor_changes_one_stain():
    from skimage.color import separate_stains

    x, amounts = tile()
    none = {"factor": torch.ones(1, 3), "offset": torch.zeros(1, 3)}
    torch.testing.assert_close(StainJitter().apply(x, none), x, atol=1e-6, rtol=0)
    more = StainJitter().apply(x, {**none, "factor": torch.tensor([[1.3, 1.0, 1.0]])})
    apart = np.linalg.inv(stain_matrix().numpy())
    before, after = (separate_stains(((image[0] + 1) / 2).permute(1, 2, 0).numpy(), apart) for image in (x, more))
    np.testing.assert_allclose(after[..., 0], 1.3 * before[..., 0], rtol=1e-4)
    np.testing.assert_allclose(after[..., 1:], before[..., 1:], atol=1e-5)
    scale = -np.log10(1e-6)  # scikit-image divides optical densities by that of 1e-6
    np.testing.assert_allclose(before[..., 0] * scale, amounts[0], atol=1e-4)
    darker = StainJitter().apply(x, {**none, "offset": torch.tensor([[0.0, 0.1, 0.0]])})
    ratio = ((darker + 1) / (x + 1)).mean((2, 3))[0]
    torch.testing.assert_close(ratio, 10 ** (-0.1 * stain_matrix()[1]), atol=1e-5, rtol=0)


def test_only_named_channels_change_and_they_share_the_draw():
    x = image((20, 28))[0].numpy()
    case = {"t1": x, "flair": x.copy(), "t2": x.copy(), "tissue": (x > 0).astype(np.int64), "subject": "a"}
    bias = Changes({"bias": BiasField(["t1", "flair"], probability=1.0)})(case, np.random.default_rng(0))
    assert np.array_equal(bias["t1"], bias["flair"]) and not np.array_equal(bias["t1"], x)
    assert np.array_equal(bias["t2"], x) and np.array_equal(bias["tissue"], case["tissue"]) and bias["subject"] == "a"
    assert bias["t1"].dtype == np.float32
    unnamed = Changes({"bias": BiasField(probability=1.0)})(case, np.random.default_rng(0))
    assert np.array_equal(unnamed["t1"], x)
    with pytest.raises(MedgenError, match="BiasField has channel 't3', which the case has not; did you mean"):
        Changes({"bias": BiasField(["t3"], probability=1.0)})(case, np.random.default_rng(0))
    with pytest.raises(MedgenError, match="Noise has channels=t1; expected a list"):
        Noise("t1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(probability=1.5), "Noise has probability=1.5; expected 0 to 1"),
        (lambda: Elastic(bend=1.0), "Elastic has bend=1.0; expected 0 to 0.9"),
        (lambda: Changes({"x": 3}), "change 'x' is a int; expected one such as"),
        (lambda: Changes({}).drive(-1.0), "strength=-1.0; expected 0 or more"),
        (lambda: StainJitter(["image"]), "expected red, green and blue"),
        (lambda: Changes({"s": StainJitter(probability=1.0)}).apply_batch(image((8, 8)), Rng(0)), "images of 1 channels"),
        (lambda: Changes({"f": Flip([2], 1.0)}).apply_batch(image((8, 8)), Rng(0)), "Flip has axis 2, the images have the axes 0 to 1"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(MedgenError, match=message):
        make()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*GEOMETRY, *INTENSITY, *STAIN])
def test_gradients_are_those_of_finite_differences(name, size):
    channels = 3 if name == "stain" else 1
    changes = Changes({name: {**GEOMETRY, **INTENSITY, **STAIN}[name]})
    x = (0.6 * image(size, batch=2, channels=channels) + 0.1).requires_grad_()
    way = image(size, batch=2, channels=channels, seed=1)
    weight = image(size, batch=2, channels=channels, seed=2)

    def value(shifted):
        return (changes.apply_batch(shifted, Rng(0, samples=(0, 1))).double() * weight).sum()

    (slope,) = torch.autograd.grad(value(x), x)
    step = 1e-2
    with torch.no_grad():
        measured = (value(x + step * way) - value(x - step * way)) / (2 * step)
    assert float((slope * way).sum()) == pytest.approx(float(measured), rel=0.02, abs=0.05)
    assert torch.isfinite(torch.autograd.grad(value(y := torch.full_like(x, -1.0).requires_grad_()), y)[0]).all()


def test_a_stronger_drive_changes_more_cases_and_none_differently():
    changes = Changes({"noise": Noise(["t1"], sigma=0.2, probability=0.5), "flip": Flip(probability=0.5)})
    case = {"t1": image((12, 12))[0].numpy()}

    def made(strength):
        changes.drive(strength)
        return [changes(case, np.random.default_rng(seed))["t1"] for seed in range(200)]

    none, some, most = made(0.0), made(0.6), made(2.0)
    assert all(np.array_equal(one, case["t1"]) for one in none)
    touched = [not np.array_equal(one, case["t1"]) for one in some]
    assert sum(touched) / 200 == pytest.approx(1 - 0.7**2, abs=0.1)
    assert all(not np.array_equal(one, case["t1"]) for one in most)
    assert all(map(np.array_equal, some, made(0.6)))
    batch, rng = image((12, 12), batch=3), Rng(0, samples=range(3))
    one_each = changes.apply_batch(batch, rng, p=torch.tensor([0.0, 2.0, 0.0]))
    assert torch.equal(one_each[0], batch[0]) and torch.equal(one_each[2], batch[2]) and not torch.equal(one_each[1], batch[1])


CHOSEN = {
    "mr": ("task=translation", "data.source.size=[24,24]"),
    "ct": ("task=translation", "data.source.size=[24,24]", "task.source=[ct]"),
}


def augment_of(name, *overrides):
    return build(OmegaConf.to_container(compose([f"augment={name}", *overrides, "run=x"]), resolve=True)["data"]["augment"], trusted=True)


def stream(augment, workers=0, start=0, batch_size=4, **options):
    data = PhantomData(["t1", "t2", "tissue"], size=(24, 24), subjects={"train": 3}, slices=4)
    module = DataModule(data, batch_size=batch_size, workers=workers, augment=augment, **options)
    module.resume(start, 24 // batch_size, interval=100)
    return module.train_dataloader()


def test_the_presets_draw_from_the_sample_number_alone():
    augment = augment_of("mr", *CHOSEN["mr"])
    whole = list(stream(augment))
    for name in ("t1", "t2", "tissue"):
        joined = torch.cat([batch[name] for batch in whole])
        assert torch.equal(joined, torch.cat([batch[name] for batch in stream(augment, workers=2)]))
        assert torch.equal(joined, torch.cat([batch[name] for batch in stream(augment, batch_size=6)]))
        assert torch.equal(joined[16:], torch.cat([batch[name] for batch in stream(augment, start=4)]))
    assert len({image.numpy().tobytes() for image in torch.cat([batch["t1"] for batch in whole])}) == 24  # twelve cases, twice


def test_driving_reaches_loader_processes():
    augment = Changes({"cut": Cutout(["t1"], size=1.0, probability=1.0)})
    loader, plain = stream(augment, workers=1), torch.cat([batch["t1"] for batch in stream(None)])
    assert not torch.equal(torch.cat([batch["t1"] for batch in loader]), plain)
    loader.batch_sampler.position = 0
    augment.drive(0.0)
    assert torch.equal(torch.cat([batch["t1"] for batch in loader]), plain)  # the same process, which lives on


@pytest.mark.parametrize("name", ["mr", "ct"])
@pytest.mark.parametrize("size", SIZES)
def test_presets_leave_targets_sharp_and_change_sources(name, size):
    augment = augment_of(name, *CHOSEN[name], "data.augment.mirror=null", "data.augment.probability=0", "data.augment.changes.elastic=null")
    augment.drive(10.0)  # everything that remains happens
    source = "t1" if name == "mr" else "ct"
    target = "t2"
    case = {source: image(size)[0].numpy(), target: image(size, seed=1)[0].numpy()}
    changed = augment(case, np.random.default_rng(0))
    np.testing.assert_allclose(changed[target], case[target], atol=1e-6)
    assert np.abs(changed[source] - case[source]).max() > 0.02


def test_the_histology_preset_keeps_black_out_of_the_corners():
    augment = augment_of("histology")
    augment.drive(10.0)
    light, _ = tile()
    case = {name: 0.2 * light[0, i : i + 1].numpy() + 0.5 for i, name in enumerate(("image_red", "image_green", "image_blue"))}
    for seed in range(10):
        changed = augment(case, np.random.default_rng(seed))
        assert min(float(changed[name].min()) for name in case) > -0.2
