"""Load, prepare, do nothing, save: the same voxels at the same place, in every format that can be written.

Tolerances: values that pass through an intensity map come back to 2e-6 of its range (float32), all others exactly. Affines come back to
1e-6 of their largest entry in a NIfTI, which stores them as float32, and exactly in a TIFF.
"""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medgen.core.errors import MedgenError
from medgen.core.geometry import fitted, reoriented, resampled, resampled_like
from medgen.core.intensity import intensity_map
from medgen.core.volume import Volume
from medgen.data.readers import peek, read, read_stored

PLACED = (".nii", ".nii.gz", ".tif")  # formats that keep an affine
ORIENTATIONS = ["".join(axes) for order in permutations(("RL", "AP", "SI")) for axes in product(*order)]
WHOLE = (np.uint8, np.int16, np.uint16, np.int32)
LOOSE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def affine_of(orientation, spacing, origin=(0.0, 0.0, 0.0), turn=None):
    affine = np.eye(4)
    for column, (letter, step) in enumerate(zip(orientation, spacing, strict=True)):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[:3, column] = (np.eye(3) if turn is None else turn)[:, row] * step * (1 if letter in "RAS" else -1)
    affine[:3, 3] = origin
    return affine


def turned_by(degrees):
    """Three rotations, about each axis in turn."""
    whole = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), np.radians(degrees), strict=True):
        one = np.eye(3)
        one[[i, j, i, j], [i, j, j, i]] = np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)
        whole = whole @ one
    return whole


def same_place(found, expected, exact):
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if exact else 1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("ending", PLACED)
@pytest.mark.parametrize("planes", [1, 3])
def test_every_orientation_comes_back(tmp_path, ending, planes):
    assert len(set(ORIENTATIONS)) == 48
    for number, orientation in enumerate(ORIENTATIONS):
        values = np.random.default_rng(number).integers(-1000, 3000, (planes, 5, 4, 3)).astype(np.int16)
        given = Volume(values, affine_of(orientation, (0.5, 1.25, 3.0), (-31.5, 12.25, 7.0)), "HU")
        loaded = read(given.save(tmp_path / f"given{ending}", overwrite=True))
        assert loaded.orientation == orientation and loaded.units == "HU"
        ras = reoriented(loaded, "RAS")
        window, placement = fitted(ras.array, (9, 9, 9), 0.0)
        rule = intensity_map("ct_hu")
        mapped = rule.forward(window, **rule.fit(window))
        back = placement.undo(rule.inverse(mapped, **rule.fit(window)), 0.0)
        made = resampled_like(ras.with_array(back), loaded.shape, loaded.affine)
        again = read(made.save(tmp_path / f"made{ending}", overwrite=True))
        np.testing.assert_allclose(again.array, values, rtol=0, atol=2e-6 * 3024)
        np.testing.assert_array_equal(again.affine, loaded.affine)
        same_place(again.affine, given.affine, exact=ending == ".tif")


@st.composite
def volumes(draw):
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.1, 8.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    turn = turned_by(draw(st.tuples(*[st.floats(-180, 180)] * 3)))
    planes, dtype = draw(st.integers(1, 4)), draw(st.sampled_from([*WHOLE, np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.normal(0, 100, (planes, *shape)).astype(dtype)
    affine = affine_of(draw(st.sampled_from(ORIENTATIONS)), spacing, origin, turn)
    meta = draw(st.sampled_from([{}, {"planes": "time", "frame_seconds": 0.75}])) if planes > 1 else {}
    return Volume(values, affine, draw(st.sampled_from(["HU", "arbitrary (MR)", "label", "stored"])), meta)


@LOOSE
@given(volume=volumes(), ending=st.sampled_from(PLACED))
def test_what_is_saved_is_what_is_read(tmp_path, volume, ending):
    path = volume.save(tmp_path / f"a{ending}", overwrite=True)
    found, told = read_stored(path), peek(path)
    assert found.array.dtype == volume.array.dtype == told.dtype and found.array.shape == volume.array.shape
    np.testing.assert_array_equal(found.array, volume.array)
    same_place(found.affine, volume.affine, exact=ending == ".tif")
    assert found.units == volume.units
    assert found.meta.get("frame_seconds") == volume.meta.get("frame_seconds")
    again = read_stored(found.save(tmp_path / f"b{ending}", overwrite=True))
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_array_equal(again.affine, found.affine)


@LOOSE
@given(volume=volumes(), ending=st.sampled_from(PLACED), to=st.sampled_from(ORIENTATIONS))
def test_turning_a_file_and_turning_it_back(tmp_path, volume, ending, to):
    loaded = read_stored(volume.save(tmp_path / f"a{ending}", overwrite=True))
    turned = read_stored(reoriented(loaded, to).save(tmp_path / f"b{ending}", overwrite=True))
    back = resampled_like(turned, loaded.shape, loaded.affine, labels=True)
    np.testing.assert_array_equal(back.array, volume.array)
    same_place(back.affine, volume.affine, exact=ending == ".tif")


@pytest.mark.parametrize("ending", PLACED)
def test_a_smooth_image_survives_another_spacing(tmp_path, ending):
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 36, 20)), indexing="ij"))
    values = (1000 * np.exp(-3 * (grid**2).sum(0)))[None].astype(np.float32)
    volume = Volume(values, affine_of("LIP", (1.0, 1.2, 2.5), (3, 4, 5)))
    loaded = read(volume.save(tmp_path / f"a{ending}"))
    fine = resampled(reoriented(loaded, "RAS"), (0.8, 0.8, 0.8))
    again = read(resampled_like(fine, loaded.shape, loaded.affine).save(tmp_path / f"b{ending}"))
    inner = (slice(None), *(slice(3, -3),) * 3)
    assert np.abs(again.array - values)[inner].max() < 6
    np.testing.assert_array_equal(again.affine, loaded.affine)


@LOOSE
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    case=st.sampled_from(
        [(ending, planes, dtype) for ending in (".tif", ".npy") for planes in (1, 2, 3) for dtype in (*WHOLE, np.float32, np.float64)]
        + [(".png", 1, np.uint8), (".png", 3, np.uint8), (".png", 1, np.uint16), (".png", 3, np.uint16)]
    ),
    seed=st.integers(0, 2**32),
)
def test_pictures_come_back_without_a_place(tmp_path, shape, case, seed):
    ending, planes, dtype = case
    values = (
        np.random.default_rng(seed).integers(0, np.iinfo(dtype).max if np.dtype(dtype).kind != "f" else 9, (planes, *shape)).astype(dtype)
    )
    if ending == ".png" and dtype == np.uint16:
        values[0, 0, 0] = 40_000  # a picture of small numbers takes 8 bits
    found = read_stored(Volume(values).save(tmp_path / f"a{ending}", overwrite=True))
    assert found.affine is None and found.array.dtype == dtype
    np.testing.assert_array_equal(found.array, values)


@pytest.mark.parametrize("ending", PLACED)
def test_one_slice_of_a_volume_stays_one(tmp_path, ending):
    values = np.arange(20, dtype=np.int16).reshape(1, 5, 4, 1)
    volume = Volume(values, affine_of("PSR", (0.7, 0.9, 5.0), (1, 2, 3)))
    found = read_stored(volume.save(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(found.array, values)
    same_place(found.affine, volume.affine, exact=ending == ".tif")


@pytest.mark.parametrize("ending", PLACED)
def test_five_axes_come_back(tmp_path, ending):
    values = np.arange(6 * 24, dtype=np.int32).reshape(6, 2, 3, 4)
    volume = Volume(values, affine_of("LAS", (1, 2, 3)), meta={"planes": "channel", "planes_shape": (3, 2)})
    found = read_stored(volume.save(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(found.array, values)
    assert tuple(found.meta["planes_shape"]) == (3, 2)


@pytest.mark.parametrize("ending", PLACED)
@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [(np.uint8, np.uint8), (np.int16, np.int16), (np.uint16, np.uint16), (np.int32, np.int32), (np.int64, np.int32), (bool, np.uint8)],
)
def test_labels_keep_their_type_where_it_is_readable(tmp_path, ending, dtype, becomes):
    labels = (np.arange(24).reshape(1, 2, 3, 4) % 5).astype(dtype)
    found = read_stored(Volume(labels, np.eye(4), "label").save(tmp_path / f"a{ending}"))
    assert found.array.dtype == becomes and found.units == "label"
    np.testing.assert_array_equal(found.array, labels)


def test_what_has_no_place_is_not_given_one(tmp_path):
    volume = Volume(np.arange(60, dtype=np.float32).reshape(1, 5, 4, 3))
    for ending in (".nii", ".nii.gz"):
        with pytest.raises(MedgenError, match="a NIfTI needs an affine"):
            volume.save(tmp_path / f"a{ending}")
    for ending in (".tif", ".npy"):
        found = read(volume.save(tmp_path / f"a{ending}"))
        assert found.affine is None and "spacing" not in found.meta
        np.testing.assert_array_equal(found.array, volume.array)
    spaced = Volume(np.arange(12, dtype=np.uint8).reshape(1, 3, 4), meta={"spacing": (0.5, 0.25)})
    found = read(spaced.save(tmp_path / "b.tif"))
    assert found.affine is None and found.meta["spacing"] == (0.5, 0.25)
    spaced = Volume(np.arange(60, dtype=np.uint8).reshape(1, 5, 4, 3), meta={"spacing": (0.5, 0.25, 3.0)})
    assert read(spaced.save(tmp_path / "c.tif")).affine is None
