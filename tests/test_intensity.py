"""Intensity maps: the inverse is exact, and parameters are global or a volume's own as the rule says."""

import numpy as np
import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.core.intensity import MAPS, intensity_map


def values(seed=0, scale=300.0):
    return np.random.default_rng(seed).gamma(2.0, scale, (9, 10, 11)) - 40.0


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_inverse_is_exact(name, dtype, tolerance):
    rule, stored = intensity_map(name), values().astype(dtype)
    fit = rule.fit(stored)
    back = rule.inverse(rule.forward(stored, **fit), **fit)
    assert back.dtype == dtype
    assert np.abs(back - stored).max() <= tolerance * np.abs(stored).max()
    tensor = torch.from_numpy(stored)
    np.testing.assert_array_equal(rule.forward(tensor, **fit).numpy(), rule.forward(stored, **fit))


@pytest.mark.parametrize("name", MAPS)
def test_low_goes_to_minus_one_and_high_to_one(name):
    rule = intensity_map(name)
    fit = rule.fit(values())
    np.testing.assert_allclose([rule.forward(fit["low"], **fit), rule.forward(fit["high"], **fit)], [-1, 1], atol=1e-15)


def test_ct_and_known_ranges_are_global():
    assert intensity_map("ct_hu").fit(values(1)) == intensity_map("ct_hu").fit(values(2)) == {"low": -1024.0, "high": 2000.0}
    assert intensity_map("unit_range", high=65535).fit(values(1)) == {"low": 0.0, "high": 65535}


def test_mr_is_fitted_per_volume():
    rule = intensity_map("mr_percentile", percentile=50)
    image = np.zeros((4, 4, 4))
    image[0, 0] = (10, 20, 30, 40)
    assert rule.fit(image) == {"low": 0.0, "high": 25.0}
    assert rule.fit(3 * image) == {"low": 0.0, "high": 75.0}
    assert rule.fit(np.zeros((4, 4, 4))) == {"low": 0.0, "high": 1.0}


def test_scaling_a_scanner_changes_nothing_in_network_units():
    rule, image = intensity_map("mr_percentile"), np.abs(values())
    np.testing.assert_allclose(rule.forward(image, **rule.fit(image)), rule.forward(7 * image, **rule.fit(7 * image)), rtol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_a_rule_is_plain_data(name):
    assert intensity_map(**intensity_map(name).describe()) == intensity_map(name)


def test_mistyped_rules_are_named():
    with pytest.raises(MedgenError, match="did you mean 'mr_percentile'"):
        intensity_map("mr_percentil")
    with pytest.raises(MedgenError, match="takes low, high, floor; got hihg"):
        intensity_map("ct_hu", hihg=3)


def test_a_floor_takes_padding_as_air():
    stored = np.array([-3024, -2048, -1024, 0, 1000], np.int16)
    plain, floored = intensity_map("ct_hu"), intensity_map("ct_hu", floor=-1024)
    mapped = floored.forward(stored.astype(np.float32), **floored.fit(stored))
    np.testing.assert_array_equal(mapped[:3], -1)
    np.testing.assert_array_equal(mapped[2:], plain.forward(stored.astype(np.float32), **plain.fit(stored))[2:])
    assert torch.equal(floored.forward(torch.from_numpy(stored).float(), -1024, 2000), torch.from_numpy(mapped))
    assert intensity_map(**floored.describe()) == floored
    with pytest.raises(MedgenError, match="floor -500 lies above low -1024"):
        intensity_map("ct_hu", floor=-500)
