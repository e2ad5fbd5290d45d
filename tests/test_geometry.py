"""Voxels keep their place in the world, whatever is done to the grid."""

import numpy as np
import pytest

from medgen.core.errors import MedgenError
from medgen.core.geometry import Placement, fitted, reoriented, resampled, resampled_like, resized
from medgen.core.volume import Volume


def affine_of(axes=((1, 0, 0), (0, 1, 0), (0, 0, 1)), spacing=(1, 1, 1), origin=(0, 0, 0)):
    affine = np.eye(4)
    affine[:3, :3] = np.array(axes, float).T * np.array(spacing)
    affine[:3, 3] = origin
    return affine


def rotation(degrees, axis=(1, 2, 3)):
    """Rodrigues' formula."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    t = np.radians(degrees)
    return (np.eye(3) + np.sin(t) * k + (1 - np.cos(t)) * k @ k).T


def world(shape, affine):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def blob(shape, affine, centre, width=4.0):
    """A Gaussian of standard deviation `width` mm around `centre`."""
    return Volume(np.exp(-((world(shape, affine) - centre) ** 2).sum(-1) / (2 * width**2))[None].astype(np.float32), affine)


def centroid(volume):
    weights = volume.array[0].astype(np.float64)
    return (world(volume.shape, volume.affine) * weights[..., None]).sum((0, 1, 2)) / weights.sum()


def centred(shape, axes, spacing):
    """An affine whose grid has the world's origin in its middle."""
    affine = affine_of(axes, spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


GRIDS = {
    "plain": ((41, 46, 37), centred((41, 46, 37), np.eye(3), (1, 1, 1))),
    "flipped": ((40, 45, 38), centred((40, 45, 38), ((-1, 0, 0), (0, 1, 0), (0, 0, -1)), (1, 1.1, 1))),
    "permuted": ((38, 41, 45), centred((38, 41, 45), ((0, 0, 1), (-1, 0, 0), (0, 1, 0)), (1, 1, 0.9))),
    "thick": ((43, 47, 21), centred((43, 47, 21), np.eye(3), (0.9, 0.9, 2.0))),
    "oblique": ((45, 44, 43), centred((45, 44, 43), rotation(25), (1, 1, 1.1))),
    "oblique, flipped": ((45, 44, 43), centred((45, 44, 43), np.diag((-1, 1, -1)) @ rotation(-50), (1, 1, 1.1))),
}
CENTRE = np.array([2.3, -1.7, 0.6])


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_reorienting_moves_no_voxel(grid):
    volume = blob(*grid, CENTRE)
    turned = reoriented(volume, "RAS")
    assert turned.orientation == "RAS"
    assert sorted(turned.shape) == sorted(volume.shape)
    np.testing.assert_allclose(centroid(turned), centroid(volume), atol=1e-9)
    np.testing.assert_array_equal(np.sort(turned.array, axis=None), np.sort(volume.array, axis=None))
    back = resampled_like(turned, volume.shape, volume.affine)
    np.testing.assert_array_equal(back.array, volume.array)


def test_reorienting_has_the_exact_affine():
    volume = Volume(
        np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), affine_of(((-1, 0, 0), (0, 0, 1), (0, 1, 0)), (2, 3, 4), (10, 20, 30))
    )
    turned = reoriented(volume, "RAS")
    np.testing.assert_array_equal(turned.affine, affine_of(spacing=(2, 4, 3), origin=(8, 20, 30)))
    np.testing.assert_array_equal(turned.array[0], volume.array[0][::-1].transpose(0, 2, 1))
    assert reoriented(turned, "RAS") is turned


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.7, 2.2, 1.0), (3, 3, 3), (None, 1.3, 2.6), (0.5, 0.5, 0.5)])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_resampling_keeps_the_blob_where_it_is(grid, spacing):
    volume = blob(*grid, CENTRE)
    new = resampled(volume, spacing)
    wanted = [old if s is None else s for s, old in zip(spacing, volume.spacing, strict=True)]
    np.testing.assert_allclose(new.spacing, wanted)
    assert np.abs(centroid(new) - CENTRE).max() < 0.1 * min(wanted)
    middle = [v.affine[:3, :3] @ ((np.array(v.shape) - 1) / 2) + v.affine[:3, 3] for v in (new, volume)]
    np.testing.assert_allclose(*middle, atol=1e-9)
    lost = abs(new.array.sum() * np.prod(wanted) / (volume.array.sum() * np.prod(volume.spacing)) - 1)
    assert lost < 0.01


def test_same_spacing_changes_nothing():
    volume = blob(*GRIDS["oblique"], CENTRE)
    same = resampled(volume, volume.spacing)
    np.testing.assert_array_equal(same.array, volume.array)
    np.testing.assert_array_equal(same.affine, volume.affine)
    np.testing.assert_array_equal(resampled_like(volume, volume.shape, volume.affine).array, volume.array)


def test_resampling_there_and_back_is_accurate_on_a_smooth_volume():
    volume = blob(*GRIDS["flipped"], CENTRE, width=6)
    back = resampled_like(resampled(volume, (1.5, 1.5, 1.5)), volume.shape, volume.affine)
    assert np.abs(back.array - volume.array).max() < 0.01
    finer = resampled_like(resampled(volume, (0.5, 0.55, 0.5)), volume.shape, volume.affine)
    assert np.abs(finer.array - volume.array).max() < 0.004


def test_resampling_invents_no_value_beyond_the_image():
    box = np.zeros((1, 20, 20, 20), np.float32)
    box[:, 6:13, 6:13, 6:13] = 3
    for step in (0.6, 1.7):
        new = resampled(Volume(box, np.eye(4)), (step, step, step)).array
        assert (new.min(), new.max()) == (0, 3)


def test_downsampling_does_not_alias():
    stripes = np.zeros((1, 60, 4, 4), np.float32)
    stripes[:, ::2] = 1
    coarse = resampled(Volume(stripes, np.eye(4)), (4, 1, 1))
    assert np.abs(coarse.array - 0.5)[:, 2:-2].max() < 1e-6
    tilted = resampled_like(Volume(stripes, np.eye(4)), (8, 2, 2), affine_of(rotation(3, (0, 0, 1)), (4, 1, 1), (12, 0.7, 1)))
    assert np.abs(tilted.array - 0.5).max() < 0.06


def test_a_linear_ramp_is_reproduced_exactly_between_voxels():
    shape, affine = (20, 21, 22), affine_of(spacing=(2, 2, 2), origin=(-5, 3, 1))
    ramp = Volume((world(shape, affine) @ np.array([0.3, -0.2, 0.5]))[None], affine)
    target = affine_of(rotation(20), (1, 1, 1), affine[:3, :3] @ np.array([8, 8, 8]) + affine[:3, 3])
    new = resampled_like(ramp, (6, 5, 7), target)
    np.testing.assert_allclose(new.array[0], world((6, 5, 7), target) @ np.array([0.3, -0.2, 0.5]), atol=1e-9)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("other", GRIDS)
def test_any_grid_to_any_grid(name, other):
    volume = blob(*GRIDS[name], CENTRE)
    new = resampled_like(volume, *GRIDS[other])
    assert np.abs(centroid(new) - CENTRE).max() < 0.1 * min(volume.spacing)
    assert np.abs(new.array - blob(*GRIDS[other], CENTRE).array).max() < 0.08


@pytest.mark.parametrize(("degrees", "tolerance"), [(0, 0), (30, 0.02)])
def test_labels_stay_labels_and_outside_is_fill(degrees, tolerance):
    labels = np.zeros((1, 12, 12, 12), np.int16)
    labels[:, 3:9, 3:9, 3:9] = 7
    far = affine_of(rotation(degrees), (0.5, 0.5, 0.5), (-20.25, -20.25, -20.25))
    new = resampled_like(Volume(labels, np.eye(4)), (84, 84, 84), far, labels=True, fill=5)
    assert new.array.dtype == np.int16
    assert set(np.unique(new.array)) == {0, 5, 7}
    assert abs((new.array == 7).sum() * 0.5**3 / 6**3 - 1) <= tolerance
    assert abs((new.array != 5).sum() * 0.5**3 / 12**3 - 1) <= tolerance
    np.testing.assert_array_equal(resampled(Volume(labels, np.eye(4)), (2, 2, 2), labels=True).array.max(), 7)


def test_a_shift_by_whole_voxels_copies():
    values = np.random.default_rng(0).normal(size=(2, 6, 7, 8)).astype(np.float32)
    new = resampled_like(Volume(values, np.eye(4)), (4, 7, 8), affine_of(origin=(-1, 2, 0)), fill=-9)
    expected = np.full((2, 4, 7, 8), -9, np.float32)
    expected[:, 1:, :5] = values[:, :3, 2:]
    np.testing.assert_array_equal(new.array, expected)


@pytest.mark.parametrize("size", [(5, 5), (8, 3), (4, 9), (7, 6), (20, 1)])
def test_fit_and_undo(size):
    values = np.random.default_rng(1).normal(size=(3, 7, 6))
    cut, placement = fitted(values, size, fill=-1)
    assert cut.shape == (3, *size)
    back = placement.undo(cut, fill=-2)
    kept = back != -2
    np.testing.assert_array_equal(back[kept], values[kept])
    assert kept[0].sum() == min(size[0], 7) * min(size[1], 6)
    assert (cut == -1).sum() == 3 * (size[0] * size[1] - kept[0].sum())
    np.testing.assert_array_equal(placement.apply(back, -1), cut)


def test_fit_is_centred_and_moves_the_affine():
    values = np.zeros((1, 9, 10, 3), np.float32)
    values[0, 4, 5, 1] = 1
    affine = affine_of(spacing=(2, 3, 4), origin=(1, 1, 1))
    cut, placement = fitted(values, (5, 13), 0, axes=(1, 2))
    assert cut.shape == (1, 5, 13, 3)
    before, after = np.argwhere(values[0] == 1)[0], np.argwhere(cut[0] == 1)[0]
    assert tuple(after) == (2, 7, 1)
    moved = placement.moved(affine)
    np.testing.assert_array_equal(moved[:3, :3] @ after + moved[:3, 3], affine[:3, :3] @ before + affine[:3, 3])


def test_a_window_beside_the_grid_is_all_fill():
    window = Placement((4, 4), (0, 1), (10, -7), (3, 3))
    assert (window.apply(np.ones((4, 4)), 0.0) == 0).all()
    assert (window.undo(np.ones((3, 3)), 2.0) == 2).all()


def test_resized_covers_the_same_field_of_view():
    ramp = np.tile(np.arange(20, dtype=np.float32) + 0.5, (1, 10, 1))
    np.testing.assert_allclose(resized(ramp, (5, 10))[0, :, 2:-2], np.tile(np.arange(5, 17, 2.0), (5, 1)), rtol=1e-6)
    np.testing.assert_array_equal(resized(ramp, (10, 20)), ramp)
    assert set(np.unique(resized((ramp > 6).astype(np.int16), (7, 5), labels=True))) == {0, 1}


def test_an_image_without_geometry_has_no_millimetres():
    with pytest.raises(MedgenError, match="without affine"):
        resampled(Volume(np.zeros((1, 4, 4, 4))), (1, 1, 1))
    with pytest.raises(MedgenError, match=r"shape \(4, 4\)"):
        reoriented(Volume(np.zeros((1, 4, 4))), "RAS")


@pytest.mark.parametrize("spacing", [(0.001, 0.001, 0.001), (900.0, 900.0, 900.0)])
def test_a_spacing_in_another_unit_is_refused_before_anything_is_allocated(spacing):
    volume = Volume(np.zeros((1, 40, 40, 40), np.float32), np.eye(4))
    with pytest.raises(MedgenError, match=r"voxels of 1 x 1 x 1 mm would become .* a spacing is in mm"):
        resampled(volume, spacing)
    assert resampled(volume, (20.0, 20.0, 20.0)).shape == (2, 2, 2)
