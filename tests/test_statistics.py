"""Intervals against simulation, tests against SciPy and enumeration, and the correction against hand-made numbers."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.metrics.statistics import Paired, compare, holm, sign_flip, signed_rank, subject_means, summarise

LAWS = {
    "normal": (lambda rng, n: rng.standard_normal(n), 0.0),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "log-normal": (lambda rng, n: np.exp(0.5 * rng.standard_normal(n)), math.exp(0.125)),
    "beta": (lambda rng, n: rng.beta(8, 1, n), 8 / 9),  # like a Dice score: a bound close by and a tail away from it
}


def coverage(law: str, n: int, trials: int = 1000) -> float:
    draw, truth = LAWS[law]
    names = [str(k) for k in range(n)]
    intervals = [summarise(draw(generator(8, n, i), n), names, draws=400).interval for i in range(trials)]
    return sum(low <= truth <= high for low, high in intervals) / trials


@pytest.mark.parametrize("n", [5, 12, 40])
@pytest.mark.parametrize("law", LAWS)
def test_the_means_interval_covers_the_truth(law, n):
    """92 to 97 %, give or take the 0.8 % that 1000 trials leave open; the exponential law at 5 subjects is just below, 91.6 %."""
    assert 0.908 <= coverage(law, n) <= 0.97


def test_the_medians_interval_is_exact_for_every_distribution():
    """Its coverage is binomial: never below 95 %, and the next narrower pair of order statistics would be."""
    for n in (6, 9, 20, 41):
        low, high = summarise(range(n), [f"{k:02}" for k in range(n)]).median_interval
        k = int(low)
        assert high == n - 1 - low
        assert 1 - 2 * stats.binom.cdf(k, n, 0.5) >= 0.95
        assert 1 - 2 * stats.binom.cdf(k + 1, n, 0.5) < 0.95
    assert summarise(range(5), list("abcde")).median_interval is None
    assert summarise([5.0, 1.0, 2.0, 4.0], list("aabc")).median == 3.0


def test_an_interval_is_finite_where_nearly_all_subjects_agree():
    """Resamples that leave the one failure out have next to no spread."""
    values = [0.90, 0.90, 0.90, 0.90, 0.90, 0.10]
    low, high = summarise(values, list("abcdef")).interval
    assert 0 < high - 0.7667 < 1
    assert -1 < low < 0.6
    assert summarise([0.5] * 6, list("abcdef")).interval == (0.5, 0.5)


@pytest.mark.parametrize("n", [1, 4, 9, 30])
def test_signed_rank_is_scipys(n):
    d = generator(9, n).normal(0.4, 1, n)
    assert signed_rank(d) == pytest.approx(stats.wilcoxon(d, method="exact").pvalue, rel=1e-12)


def test_signed_rank_of_ties_and_zeros_is_the_enumeration():
    d = np.array([0.0, 1, 1, -1, 2, 2, 3, -0.5, 0])
    rest = d[d != 0]
    ranks = stats.rankdata(np.abs(rest))
    observed = ranks[rest > 0].sum()
    sums = np.array([sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=len(rest))])
    expected = min(1, 2 * min((sums <= observed).mean(), (sums >= observed).mean()))
    assert signed_rank(d) == pytest.approx(expected, rel=1e-12)
    assert signed_rank([0.0, 0.0]) == 1


def test_signed_rank_of_many_is_scipys_approximation():
    d = np.round(generator(10).normal(0.08, 1, 700), 1)
    assert signed_rank(d) == pytest.approx(stats.wilcoxon(d, method="approx", correction=True).pvalue, rel=1e-9)


def test_sign_flips_are_all_counted_for_few_subjects():
    d = generator(11).normal(0.5, 1, 9)
    flips = np.array(list(itertools.product((-1, 1), repeat=9))) @ d
    assert sign_flip(d) == (np.abs(flips) >= abs(d.sum()) - 1e-12).mean()
    assert sign_flip([1.0, 2.0, 3.0]) == 0.25
    assert sign_flip([0.0, 0.0]) == 1.0


def test_sign_flips_at_random_agree_with_students_test():
    d = generator(12).normal(0.25, 1, 60)
    assert sign_flip(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert sign_flip(np.full(60, 2.0)) == 1 / 10_001


@pytest.mark.parametrize("test", [sign_flip, signed_rank])
def test_equal_models_are_told_apart_in_no_more_than_five_percent(test):
    found = [test(generator(13, i).standard_normal(8)) <= 0.05 for i in range(1000)]
    assert 0.02 <= np.mean(found) <= 0.064


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]


def test_models_are_compared_by_subject_and_corrected_together():
    """Two volumes of each of eight subjects: b is better by 1 in every subject, c differs by noise."""
    rng = generator(14)
    subjects = [f"s{k}" for k in range(8) for _ in range(2)]
    base = rng.normal(30, 3, 16)
    values = {"a": base, "b": base + 1 + rng.normal(0, 0.2, 16), "c": base + rng.normal(0, 1, 16)}
    against = compare(values, subjects, reference="a")
    assert [(p.first, p.second) for p in against] == [("b", "a"), ("c", "a")]
    better, noise = against
    assert better.p == better.smallest == 2 / 2**8
    assert better.adjusted == 2 * better.p
    assert noise.adjusted == noise.p > 0.05
    assert better.interval[0] < 1 < better.interval[1]
    assert better.difference == pytest.approx(np.mean(values["b"] - base))
    assert [(p.first, p.second) for p in compare(values, subjects)] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_few_subjects_cannot_be_significant_and_it_is_said():
    found = compare({"a": [1.0, 2, 3, 4, 5], "b": [0.0, 0, 0, 0, 0]}, list("vwxyz"))[0]
    assert isinstance(found, Paired)
    assert found.p == found.smallest == 2 / 2**5 > 0.05
    alone = compare({"a": [1.0], "b": [0.0]}, ["v"])[0]
    assert (alone.interval, alone.p) == (None, 1.0)


def test_what_cannot_be_compared_is_refused():
    for words, call in {
        "two models": lambda: compare({"a": [1.0]}, ["s"]),
        "reference": lambda: compare({"a": [1.0], "b": [2.0]}, ["s"], reference="c"),
        "1 values for 2 subjects": lambda: compare({"a": [1.0], "b": [2.0]}, ["s", "t"]),
        "not finite": lambda: subject_means([math.inf], ["s"]),
    }.items():
        with pytest.raises(MedgenError, match=words):
            call()
