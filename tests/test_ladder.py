"""Corruptions do what their names say, and a space that is blind to them is found out."""

import numpy as np
import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.data.phantom.source import PhantomData
from medgen.evaluation import ladder
from medgen.metrics.space import Space
from medgen.metrics.spaces import fixed


@pytest.fixture(scope="module")
def heads() -> tuple[torch.Tensor, list[str]]:
    cases = PhantomData(["t1"], (32, 32), {"train": 32}, slices=2).split("train")
    drawn = [cases.case(i, np.random.default_rng(0)) for i in range(len(cases))]
    return torch.from_numpy(np.stack([case["t1"] for case in drawn])), [case["subject"] for case in drawn]


def test_the_fixed_feature_climbs_blur_and_contrast(heads):
    wanted = [one for one in ladder.ladders() if one.name in ("blur", "contrast")]
    rungs = [rung for rung in ladder.climbed(fixed(), heads[0], wanted, subjects=heads[1]) if rung.measure == "KID"]
    assert [(rung.ladder, rung.rank_correlation, rung.size) for rung in rungs] == [("blur", 1, 16), ("contrast", 1, 16)]
    assert all(rung.passed and rung.distances.shape == (ladder.SPLITS, 5) for rung in rungs)


def test_a_blind_space_does_not_pass(heads):
    def numbers(images):
        return torch.from_numpy(np.random.default_rng(len(images)).standard_normal((len(images), 4)))

    rungs = ladder.climbed(Space("dice", 0, numbers), heads[0])
    assert len({rung.ladder for rung in rungs}) == 5 and not any(rung.passed for rung in rungs)


def test_a_space_of_brightness_sees_the_dropped_mode_and_neither_blur_nor_noise():
    draw = torch.Generator().manual_seed(0)
    images = 0.2 * torch.randn(480, 1, 1, 1, generator=draw) + 0.2 * torch.randn(480, 1, 12, 12, generator=draw)

    def brightness(images):
        return images.flatten(1).double().mean(1, keepdim=True)

    rungs = ladder.climbed(Space("brightness", 0, brightness), images)
    passed = {rung.ladder for rung in rungs if rung.measure == "Frechet" and rung.passed}
    assert "mode dropped" in passed and not {"blur", "noise"} & passed


def test_a_step_is_seen_where_nearly_all_splits_are_beyond_the_clean_sets():
    rng = np.random.default_rng(0)
    clean = rng.uniform(0, 1, (20, 1))
    late = ladder.Rung("space", "KID", "blur", 8, np.hstack([clean, clean + 0.01, clean + 0.5, clean + 2, clean + 3]))
    assert late.seen == 3 and late.passed and late.power.tolist()[2:] == [1.0, 1.0]
    assert 0.0 < late.power[0] < late.power[1] < 1
    falling = ladder.Rung("space", "KID", "blur", 8, np.hstack([clean, clean + 3, clean + 2, clean + 4, clean + 5]))
    assert falling.seen == 1 and falling.rank_correlation == pytest.approx(0.9) and not falling.passed
    blind = ladder.Rung("space", "KID", "blur", 8, np.hstack([clean, clean + 2, clean + 2.1, clean + 2.2, clean]))
    assert blind.seen is None and not blind.passed


def test_corruptions_are_what_they_say(heads):
    images = heads[0][:6]
    assert float((ladder.noisy(images, 0.1) - images).std()) == pytest.approx(0.1, rel=0.02)
    spike = torch.zeros(1, 1, 65, 65)
    spike[..., 32, 32] = 1.0
    place = torch.arange(65.0) - 32
    assert float((ladder.blurred(spike, 2.0).sum((0, 1, 2)) * place.square()).sum()) == pytest.approx(4, rel=0.02)
    values = torch.tensor([-1.0, 0.0, 1.0, 1.3]).reshape(1, 1, 2, 2)
    assert ladder.gamma(values, 2.0).flatten().tolist() == pytest.approx([-1, -0.5, 1, 1.3])


@pytest.mark.parametrize("shape", [(40, 40), (24, 24, 24)])
def test_removed_anatomy_is_a_ball_in_the_body_and_larger_at_each_step(shape):
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, *shape, generator=draw) * 0.5
    images[..., : shape[-1] // 2] -= 1.0
    before = 0.0
    for radius in (0.12, 0.2, 0.3):
        changed = (ladder.removed(images, radius) - images).abs() > 1e-6
        share = float(changed.double().mean())
        assert 0 < share < (2.3 * radius) ** len(shape) and share > before
        assert not changed[..., : shape[-1] // 2 - round(1.2 * radius * shape[-1]) - 1].any()
        before = share


def test_a_dropped_mode_is_the_brighter_half():
    images = torch.arange(40.0)[torch.randperm(40, generator=torch.Generator().manual_seed(0))][:, None, None, None]
    for share, bright in ((0.0, 10), (0.4, 6), (1.0, 0)):
        rows = ladder.without_mode(images, share, 20)
        assert len(set(rows.tolist())) == 20 and int((images[rows] >= 20).sum()) == bright


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    x, y = [1, 2, 2, 3, 9, 4], [0.1, 0.5, 0.2, 0.2, 3, 1]
    assert ladder.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert ladder.spearman([0, 1, 2], [5, 5, 5]) == 0


def test_too_few_images_are_refused():
    with pytest.raises(MedgenError, match="needs 32 images, got 12"):
        ladder.climbed(fixed(), torch.zeros(12, 1, 16, 16))
