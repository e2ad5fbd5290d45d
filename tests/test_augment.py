"""Random changes of a case: one draw for all its channels, exact where exactness is possible."""

import numpy as np
import pytest

from medgen.data.augment.basic import Augment

CASE = {"t1": np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8), "t2": np.linspace(1, -1, 64, dtype=np.float32).reshape(1, 8, 8)}
STILL = {"rotation": 0.0, "scale": 0.0, "shift": 0.0}


def test_the_same_key_gives_the_same_change():
    a, b = (Augment()(CASE, np.random.default_rng(3)) for _ in range(2))
    assert all(np.array_equal(a[k], b[k]) for k in CASE)
    assert not np.array_equal(a["t1"], Augment()(CASE, np.random.default_rng(4))["t1"])


def test_channels_move_together():
    for seed in range(10):
        changed = Augment(mirror=0)({**CASE, "field": np.ones((1, 8, 8), np.float32)}, np.random.default_rng(seed))
        inside = changed["field"] > 0.9999  # further out the border fades to -1
        assert inside.any()
        np.testing.assert_allclose(changed["t1"][inside], -changed["t2"][inside], atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
def test_mirroring_alone_is_exact_and_happens_half_of_the_time(axis):
    seen = []
    for seed in range(60):
        changed = Augment(mirror=axis, **STILL)(CASE, np.random.default_rng(seed))["t1"]
        flipped = np.flip(CASE["t1"], axis + 1)
        seen.append(np.allclose(changed, flipped, atol=1e-6))
        assert seen[-1] or np.allclose(changed, CASE["t1"], atol=1e-6)
    assert 15 < sum(seen) < 45


def test_a_turn_is_rigid_on_a_grid_that_is_not_square():
    rows, columns = np.meshgrid(np.arange(40) - 19.5, np.arange(80) - 39.5, indexing="ij")
    disc = np.where(rows**2 + columns**2 < 12**2, 1.0, -1.0)[None].astype(np.float32)
    for seed in range(5):
        turned = Augment(mirror=None, rotation=90.0, scale=0.0, shift=0.0)({"t1": disc}, np.random.default_rng(seed))["t1"]
        assert np.abs(turned - disc).mean() < 0.02


def test_probability_leaves_that_share_of_cases_untouched():
    untouched = [
        np.allclose(Augment(mirror=None, probability=0.5)(CASE, np.random.default_rng(s))["t1"], CASE["t1"], atol=1e-6) for s in range(60)
    ]
    assert 15 < sum(untouched) < 45


def test_gamma_changes_the_named_channel_only_and_keeps_order_and_black():
    changed = Augment(mirror=None, gamma={"t1": 0.5}, **STILL)(CASE, np.random.default_rng(1))
    np.testing.assert_allclose(changed["t2"], CASE["t2"], atol=1e-6)
    assert changed["t1"].min() == pytest.approx(-1) and changed["t1"].max() == pytest.approx(1, abs=1e-5)
    assert (np.diff(changed["t1"].ravel()) > 0).all() and np.abs(changed["t1"] - CASE["t1"]).max() > 0.02


def test_gain_scales_the_signal_above_black():
    changed = Augment(mirror=None, gain={"t1": 0.5}, **STILL)(CASE, np.random.default_rng(1))
    np.testing.assert_allclose(changed["t2"], CASE["t2"], atol=1e-6)
    ratio = (changed["t1"] + 1)[CASE["t1"] > -0.9] / (CASE["t1"] + 1)[CASE["t1"] > -0.9]
    assert np.ptp(ratio) < 1e-5 and 0.02 < abs(np.log(ratio[0])) <= 0.5


def test_label_maps_keep_their_labels_in_3d():
    labels = np.random.default_rng(0).integers(0, 4, (1, 9, 9, 9)).astype(np.int64)
    case = {"t1": labels.astype(np.float32) / 2 - 1, "tissue": labels, "subject": "a", "affine": np.eye(4, dtype=np.float32)}
    changed = Augment()(case, np.random.default_rng(0))
    assert changed["tissue"].dtype == np.int64 and set(np.unique(changed["tissue"])) <= {0, 1, 2, 3}
    assert changed["subject"] == "a" and np.array_equal(changed["affine"], np.eye(4))


def test_mirroring_is_of_left_and_right_whatever_the_slice():
    """Slices of a volume whose voxels tell their place along R, A and S: a mirrored one runs backwards along R and along nothing else."""
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, 8)] * 3, indexing="ij"))
    plain = Augment(mirror=0, probability=0.0)
    for axis in range(3):
        kept = [i for i in range(3) if i != axis]
        affine = np.eye(4)[:, [*kept, axis, 3]].astype(np.float32)
        case = {name: np.take(place[i], 4, axis)[None].astype(np.float32) for i, name in enumerate("ras")} | {"affine": affine}
        seen = [plain(case, np.random.default_rng(n)) for n in range(40)]
        backwards = {name for made in seen for name in "ras" if not np.array_equal(made[name], case[name])}
        assert backwards == ({"r"} if axis != 0 else set())
