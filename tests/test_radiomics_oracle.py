"""Radiomic features against the numbers that pyradiomics has for the same pictures (its version: `pyradiomics_numbers`)."""

import importlib.util
from pathlib import Path

import pytest
import torch
from pyradiomics_numbers import NUMBERS

from medgen.metrics.cooccurrence import NAMES, cooccurrence, cooccurrence_features
from medgen.metrics.radiomics import FIRST_ORDER


@pytest.fixture(scope="module")
def oracle():
    path = Path(__file__).parents[1] / "benchmarks" / "radiomics_oracle.py"
    spec = importlib.util.spec_from_file_location("radiomics_oracle", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ours(oracle):
    return oracle.ours()


@pytest.mark.parametrize("case", NUMBERS)
def test_every_feature_is_pyradiomics(oracle, ours, case):
    names, numbers = oracle.compared(case), [float(number) for number in NUMBERS[case].split()]
    assert len(numbers) == len(names) >= len({*FIRST_ORDER, *NAMES} - set(oracle.NUMBERED))
    assert {name: ours[case][name] for name in names} == pytest.approx(dict(zip(names, numbers, strict=True)), rel=1e-9, abs=1e-15)


def test_all_bands_and_features_are_compared(oracle, ours):
    assert set(NUMBERS) == set(ours) and len(NUMBERS) == (1 + 4) + (1 + 8) + 2
    assert oracle.compared("plane") == (*FIRST_ORDER, *NAMES)


def test_a_direction_whose_pairs_are_all_alike_has_an_mcc_of_one(oracle):
    """pyradiomics 3.0.1 takes 0 for that direction, and 1 only where the whole image is flat: 0.41667 and not 2 / 3."""
    p = cooccurrence(torch.from_numpy(oracle.SMALL).long()[None], 2)
    each = [float(cooccurrence_features(p[:, [i]])[0, NAMES.index("mcc")]) for i in range(4)]
    assert each == pytest.approx([1 / 3, 1, 1 / 3, 1])
    assert sum(each[:3]) / 4 == pytest.approx(0.41667, abs=1e-5)
