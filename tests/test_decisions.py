"""Ranks, classes, overlaps and lesions against hand-made answers and scikit-learn's and SciPy's definitions."""

import math
import warnings

import numpy as np
import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.metrics.decisions import auroc, detected, dice, hd95, lesions, macro_auroc, macro_f1


def test_auroc_is_the_share_of_ordered_pairs_with_ties_half():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(np.array([3.0, 2, 1]), np.array([True, True, False])) == 1.0
    assert auroc(np.array([1.0, 1, 1]), np.array([True, True, False])) == 0.5
    assert math.isnan(auroc(np.array([1.0, 2]), np.array([True, True])))


def test_macro_auroc_of_two_classes_is_the_auroc_and_leaves_out_absent_classes():
    classes = np.array([0, 0, 1, 1])
    two = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.1, 0.9]])
    assert macro_auroc(two, classes) == 0.75
    three = np.column_stack([two, np.zeros(4)])
    assert macro_auroc(three, classes) == pytest.approx((0.75 + 0.75) / 2)
    assert math.isnan(macro_auroc(two, np.ones(4, int)))


def test_macro_f1_by_hand():
    # class 0: tp 2, wrong 1; class 1: tp 1, wrong 2; class 2: tp 0, wrong 1
    assert macro_f1(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])) == pytest.approx((1.0 + 2 / 3 + 0.0) / 3)


def test_dice_and_surface_distance_of_shifted_squares():
    a, b = torch.zeros(32, 32, dtype=torch.long), torch.zeros(32, 32, dtype=torch.long)
    a[8:16, 8:16] = 1
    b[10:18, 8:16] = 1
    assert dice(a, b, 3)[0] == pytest.approx(2 * 6 * 8 / 128)
    assert math.isnan(dice(a, b, 3)[1])
    assert hd95(a, b, 3)[0] == 2.0
    assert hd95(a, b, 3, spacing=(3.0, 1.0))[0] == 6.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(hd95(a, torch.zeros_like(a), 3)[0]) and math.isnan(hd95(torch.zeros_like(a), a, 3)[0])
    with pytest.raises(MedgenError, match=r"share one grid"):
        dice(a, b[:8], 3)


def test_lesions_are_parts_that_touch_by_faces_and_are_not_specks():
    truth = np.zeros((20, 20), bool)
    truth[2:5, 2:5] = truth[10:14, 10:14] = True
    truth[5, 5] = True  # touches by a corner: a part of one voxel, a speck
    assert sorted(int(part.sum()) for part in lesions(truth)) == [9, 16]
    predicted = np.zeros_like(truth)
    predicted[2, 2] = True  # a ninth of the first lesion: found; no false part
    predicted[10, 10] = True  # a sixteenth of the second: missed
    predicted[16:19, 2:5] = True  # nothing is there
    assert detected(predicted, truth) == (1, 2, 1)
