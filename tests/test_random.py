"""Keyed random numbers: a sample's stream depends on (seed, step, sample) and on nothing else."""

import numpy as np
import pytest
import torch

from medgen.core.random import Rng, generator


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_a_sample_is_the_same_in_any_batch(draw):
    whole = getattr(Rng(3, 7, range(10)), draw)((10, 2, 5))
    turned = getattr(Rng(3, 7, (8, 2, 5)), draw)((3, 2, 5))
    assert torch.equal(turned, whole[[8, 2, 5]])
    for i in range(10):
        assert torch.equal(getattr(Rng(3, 7, (i,)), draw)((1, 2, 5))[0], whole[i])


def test_later_draws_are_keyed_too():
    whole, part = Rng(1, 0, range(4)), Rng(1, 0, (2,))
    for _ in range(3):
        assert torch.equal(whole.normal((4, 6))[2], part.normal((1, 6))[0])
    whole.uniform((4,))
    part.uniform((1,))
    assert torch.equal(whole.normal((4, 6))[2], part.normal((1, 6))[0])


def test_streams_are_distinct():
    keys = [(seed, step, sample) for seed in range(3) for step in range(3) for sample in range(3)]
    draws = torch.stack([Rng(seed, step, (sample,)).normal((1, 400))[0] for seed, step, sample in keys])
    draws = torch.cat([draws, torch.stack([r.normal((1, 400))[0] for r in [Rng(0)] for _ in range(3)])[1:]])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.25  # 5 standard deviations of independent streams


def test_moments():
    normal, uniform = Rng(0, 0, range(8)).normal((8, 50_000)), Rng(0, 1, range(8)).uniform((8, 50_000))
    assert abs(normal.mean()) < 0.005
    assert abs(normal.std() - 1) < 0.005
    assert (normal.mean(1).abs() < 0.02).all()
    assert abs(uniform.mean() - 0.5) < 0.003
    assert abs(uniform.std() - 12**-0.5) < 0.003
    assert uniform.min() >= 0
    assert uniform.max() < 1


def test_categorical_frequencies():
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    drawn = Rng(5, 0, range(2)).categorical(probabilities.expand(2, 40_000, 4))
    assert drawn.shape == (2, 40_000)
    assert drawn.dtype == torch.int64
    frequencies = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    assert frequencies[1] == 0
    assert (frequencies - probabilities).abs().max() < 0.008
    assert torch.equal(Rng(5, 0, (1,)).categorical(probabilities.expand(1, 40_000, 4))[0], drawn[1])


def test_categorical_takes_weights_that_do_not_sum_to_one():
    drawn = Rng(0, 0, (0,)).categorical(torch.tensor([2.0, 6.0]).expand(1, 20_000, 2))
    assert abs(drawn.double().mean() - 0.75) < 0.012


def test_moving_restarts_the_streams():
    rng = Rng(2, 0, (4,))
    first = rng.normal((1, 5))
    assert torch.equal(rng.to("cpu").normal((1, 5)), first)


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(ValueError, match="asked for 3 samples of a generator that is keyed for 2"):
        Rng(0, 0, (0, 1)).normal((3, 4))


def test_generators_are_reproducible_numbers():
    np.testing.assert_array_equal(generator(1, 2, 3).permutation(9), generator(1, 2, 3).permutation(9))
    assert not np.array_equal(generator(1, 2, 3).permutation(99), generator(1, 3, 2).permutation(99))


def test_a_fork_disturbs_nothing_and_rows_are_the_same_streams():
    rng, plain = Rng(1, 2, (3, 4, 5)), Rng(1, 2, (3, 4, 5))
    child, other = rng.fork(), rng.fork()
    drawn = child.normal((3, 2)), child.normal((3, 2)), other.normal((3, 2)), plain.normal((3, 2))
    assert len({float(x[0, 0]) for x in drawn}) == 4  # streams of their own
    plain.normal((3, 2))
    assert torch.equal(rng.normal((3, 2)), plain.normal((3, 2)))  # a fork takes one draw, whatever is drawn from it
    again = Rng(1, 2, (3, 4, 5)).fork()
    assert torch.equal(again.of([2, 0]).normal((2, 2)), drawn[0][[2, 0]])
    assert torch.equal(again.normal((3, 2)), drawn[0]) and torch.equal(child.to("cpu").normal((3, 2)), drawn[0])
