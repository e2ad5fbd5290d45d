"""Masks with known shapes, curves with known answers, scores per volume, and sums that say what they leave out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.core.errors import MedgenError
from medgen.core.intensity import MRPercentile
from medgen.evaluation import baselines, masks, pictures, pixel, samples
from medgen.evaluation.work import Case


def ball(size: tuple[int, ...], radius: float) -> torch.Tensor:
    axes = [torch.arange(n) - (n - 1) / 2 for n in size]
    return sum(a**2 for a in torch.meshgrid(*axes, indexing="ij")) < radius**2


def case(subject: str = "a", size: tuple[int, ...] = (24, 22, 20), seed: int = 0) -> Case:
    """A skull-stripped head: source and target vary inside a ball, -1 outside."""
    draw = torch.Generator().manual_seed(seed)
    inside = ball(size, 8)
    source = torch.where(inside, torch.rand(size, generator=draw) * 1.6 - 0.8, -1.0)[None, None]
    target = torch.where(inside, -source, -1.0)
    return Case(seed, subject, {}, source, target, masks.body_mask(torch.cat([source, target], 1)[0])[None])


def scores(made, pair: Case) -> dict[str, dict[str, float]]:
    """Region -> metric -> score."""
    return {row.region: row.values for row in pixel.score_case(made, pair)}


@pytest.mark.parametrize("size", [(40, 36), (24, 22, 20)])
def test_the_body_is_the_largest_part_with_its_holes_filled(size):
    body = ball(size, 8)
    image = torch.where(body & ~ball(size, 3), 0.5, -1.0)
    image[(slice(0, 2),) * len(size)] = 0.7
    assert torch.equal(masks.body_mask(image[None])[0], body)


def test_the_body_of_a_noisy_scan_comes_from_otsu():
    size = (40, 36)
    noise = torch.from_numpy(np.random.default_rng(0).rayleigh(0.02, size)).float()
    image = torch.where(ball(size, 12), 0.6, 0.0) + noise
    assert torch.equal(masks.body_mask(image[None])[0], ball(size, 12))
    assert 0.15 < masks.otsu(image) < 0.6


def test_the_body_by_a_given_threshold_takes_any_channel():
    channels = torch.stack([ball((30, 30), 5).float(), ball((30, 30), 9).float()])
    assert torch.equal(masks.body_mask(channels, threshold=0.5)[0], ball((30, 30), 9))
    with pytest.raises(MedgenError, match="no body found"):
        masks.body_mask(channels, threshold=2.0)


def test_a_body_cut_by_the_image_border_keeps_what_is_open_to_it():
    """A ring that leaves the image is open: its inside is air. One that closes inside the image is filled."""
    image = torch.full((30, 30), -1.0)
    image[2:28, 2:4] = image[2:28, 20:22] = image[2:4, 2:22] = image[26:28, 2:22] = 0.5
    closed = masks.body_mask(image[None], threshold=0.0)[0]
    assert bool(closed[15, 10])
    opened = masks.body_mask(image[None, 5:26], threshold=0.0)[0]
    assert not bool(opened[10, 10])
    assert torch.equal(opened[:, 2:4], image[5:26, 2:4] > 0)


def test_parts_and_holes_are_scipys_on_a_random_maze():
    from scipy import ndimage

    for seed, size in enumerate([(60, 50), (18, 20, 22)]):
        maze = np.random.default_rng(seed).random(size) < (0.6 if len(size) == 2 else 0.35)
        labels, _ = ndimage.label(maze)
        sizes = np.bincount(labels.flat)[1:]
        assert masks.largest(maze).sum() == sizes.max()
        assert len(np.unique(labels[masks.largest(maze)])) == 1
        assert np.array_equal(masks.filled(maze), ndimage.binary_fill_holes(maze))


@pytest.mark.parametrize("curve", [lambda x: x**3, lambda x: -np.exp(x), lambda x: 0.3 - 0.5 * x])
def test_a_monotone_curve_is_found_exactly(curve):
    source = torch.linspace(-1, 1, 200, dtype=torch.float64).reshape(1, 10, 20)
    target = torch.from_numpy(curve(source.numpy()))
    everywhere = torch.ones(1, 10, 20, dtype=torch.bool)
    fitted = baselines.fit_curve([(source, target, everywhere)])
    assert np.allclose(np.interp(source.numpy(), fitted.knots, fitted.values), target.numpy(), atol=1e-12)
    assert fitted.falling == bool(target.flatten()[0] > target.flatten()[-1])


def test_isotonic_regression_is_the_constrained_least_squares_answer():
    assert baselines.isotonic(np.array([1.0, 3.0, 2.0, 4.0]), np.ones(4)).tolist() == [1.0, 2.5, 2.5, 4.0]
    assert baselines.isotonic(np.array([3.0, 0.0, 3.0]), np.array([1.0, 2.0, 1.0])).tolist() == [1.0, 1.0, 3.0]
    assert baselines.isotonic(np.array([4.0, 3.0, 2.0]), np.array([1.0, 1.0, 2.0])) == pytest.approx([2.75] * 3)


def test_the_line_is_the_least_squares_one():
    source = torch.linspace(-1, 1, 200, dtype=torch.float64).reshape(1, 10, 20)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 10, 20)))
    target = 0.3 - 0.5 * source + noise
    line = baselines.fit_line([(source, target, torch.ones(1, 10, 20, dtype=torch.bool))])
    assert np.allclose([line.slope, line.offset], np.polyfit(source.flatten().numpy(), target.flatten().numpy(), 1))


def test_the_curve_is_fitted_on_training_subjects_and_inverts_the_test_subject():
    train, test = case("train", seed=1), case("test", seed=2)
    curve = baselines.fit_curve([(train.source[0], train.target[0], train.body[0])])
    assert scores(curve(test.source), test)["body"]["psnr"] > 50
    assert torch.equal(curve(test.source)[test.source == -1], test.target[test.source == -1])
    with pytest.raises(MedgenError, match="no voxel"):
        baselines.fit_curve([(train.source[0], train.target[0], torch.zeros_like(train.source[0], dtype=torch.bool))])


def test_the_score_is_over_the_volume_and_not_a_mean_over_slices():
    """One slice is wrong by 0.4: the volume's error is that of all its voxels; the mean of slice scores would be higher."""
    pair = case()
    made = pair.target.clone()
    made[..., 10] += 0.4
    made[..., :10] += 0.004
    whole = scores(made, pair)["whole"]["psnr"]
    assert whole == pytest.approx(10 * np.log10(4 / ((0.16 + 10 * 0.004**2) / 20)), abs=1e-3)
    errors = (made - pair.target).square().mean((0, 1, 2, 3))[:11]
    assert float((10 * torch.log10(4 / errors)).mean()) > whole + 10


def test_air_does_not_count_in_the_body_and_classes_are_regions():
    pair = case()
    assert scores(pair.target + 0.2, pair)["body"]["mae"] == pytest.approx(0.2, rel=1e-5)
    half = torch.where(pair.body, pair.target + 0.2, pair.target)
    found = scores(half, pair)
    assert found["body"]["mae"] == pytest.approx(0.2, rel=1e-5)
    assert found["whole"]["mae"] == pytest.approx(0.2 * float(ball((24, 22, 20), 8).float().mean()), rel=1e-5)
    inner = ball((24, 22, 20), 3)[None, None]
    labelled = replace(pair, regions={"part": inner.long() * 2})
    found = scores(torch.where(inner, pair.target + 0.3, pair.target), labelled)
    assert set(found) == {"body", "whole", "part=2"} and found["part=2"]["mae"] == pytest.approx(0.3, rel=1e-5)


def test_what_cannot_be_evaluated_is_refused():
    pair = case("p7")
    for words, call in {
        "p7: the prediction has shape": lambda: pixel.score_case(pair.source[..., 1:], pair),
        "p7: the prediction holds NaN": lambda: pixel.score_case(pair.source / 0, pair),
    }.items():
        with pytest.raises(MedgenError, match=words):
            call()


def test_one_subject_has_no_interval_and_says_why():
    pair = case("only")
    found = pixel.summary(pixel.score_case(pair.source, pair))
    psnr = found["regions"]["body"]["psnr"]
    assert (found["n_volumes"], found["n_subjects"], found["data_range"]) == (1, 1, 2.0)
    assert psnr["interval"] is None
    assert "one subject" in psnr["reason"]
    assert psnr["volumes"] == [{"subject": "only", "value": psnr["mean"]}]


def test_several_subjects_have_intervals_and_paired_differences():
    pairs = [case(s, seed=i) for i, s in enumerate("abc")]
    rows = [row for pair in pairs for row in pixel.score_case(pair.source, pair)]
    found = pixel.summary(rows)["regions"]["whole"]["ssim"]
    assert found["interval"][0] < found["mean"] < found["interval"][1]
    assert found["mean"] == pytest.approx(np.mean([v["value"] for v in found["volumes"]]))
    nearer = [row for pair in pairs for row in pixel.score_case((pair.source + pair.target) / 2, pair)]
    gap = pixel.difference(nearer, rows, "psnr")
    assert gap.value == pytest.approx(20 * np.log10(2)) and gap.interval == pytest.approx((gap.value, gap.value))


def test_equal_images_make_plain_data_that_json_can_hold():
    pair = case()
    found = pixel.summary(pixel.score_case(pair.target, pair))
    assert found["regions"]["body"]["psnr"]["mean"] is None
    assert "infinite" in found["regions"]["body"]["psnr"]["reason"]
    json.dumps(found, allow_nan=False)


def test_a_thin_volume_is_scored_without_ssim():
    pair = case(size=(24, 22, 5))
    found = pixel.summary(pixel.score_case(pair.source, pair))["regions"]["whole"]
    assert found["psnr"]["mean"] > 0
    assert found["ssim"]["mean"] is None
    assert "shorter than its window" in found["ssim"]["reason"]


def test_the_difference_map_shows_the_sign():
    colours = pictures.signed(np.array([[0.0, 0.5, -0.5, 9.0]]), 0.5)[0]
    assert colours[:, 0].tolist() == [0, 255, 0, 255]
    assert colours[:, 2].tolist() == [0, 0, 255, 0]


def test_the_scale_of_differences_follows_the_data_and_is_printed_in_their_unit():
    """Of 1000 values from 0.001 to 1 half a per cent lies above 0.995, and air that is exact does not count."""
    spread = np.concatenate([np.linspace(0.001, 1, 1000), np.zeros(9000)]).reshape(100, 100)
    assert pictures.scale([spread * 0.31]).text == "0.31"
    assert pictures.scale([spread * 0.31, -spread]).edge == pytest.approx(0.99), "one scale for all"
    assert pictures.scale([spread * 0.031], "HU", 1000.0).text == "31 HU"
    assert pictures.scale([np.zeros((4, 4))]).edge == 1.0
    assert pictures.scale([spread * 0.3, spread * 160]).text == "2", "what diverged does not hide the others"
    assert "in HU;" in pixel.scaled(pixel.Unit("HU", 1500.0)) and "99.5 %" in pixel.scaled(pixel.Unit())


@pytest.mark.parametrize("size", [0.01, 1.5])
def test_a_case_is_cut_where_it_is_worst_and_its_name_and_scale_stand_beside_it(size):
    """Half of the error is half as red, whether errors are small or large."""
    pair = case("only")
    made = pair.target.clone()
    made[:, :, 10:12, 10:14, 9] += size
    made[:, :, 8:10, 10:14, 9] += size / 2
    assert pictures.worst_height(made - pair.target, pair.body, 2) == 9
    picture = pictures.cases_picture([pictures.Cut("only", {"truth": pair.target, "result": made}, 9)], 2)
    times, line = 8, pictures.LINE  # three columns of 24 pixels are enlarged until the row is wide enough
    assert picture.shape[0] == line + times * 22
    left, bar = 8 + _length("only") + 2 * (times * 24 + 2), 4 + pictures.BAR + 8 + _length(f"+{size:g}")
    assert picture.shape[1] == left + times * 24 + bar
    difference = picture[line:, left : left + times * 24]
    assert set(difference[..., 0].ravel().tolist()) - {127, 128} == {0, 255}, "too bright is red"
    assert difference[..., 2].max() == 0
    colours = picture[line:, left + times * 24 + 4 : left + times * 24 + 4 + pictures.BAR]
    assert colours[0, 0].tolist() == [255, 128, 0] and colours[-1, 0].tolist() == [0, 128, 255]


def _length(text: str) -> int:
    return int(pictures.letters(Image.new("L", (1, 1))).textlength(text))


def smooth(n: int, seed: int) -> torch.Tensor:
    """Smooth random pictures, so that they have a texture and a neighbourhood."""
    x = torch.randn(n, 1, 40, 40, generator=torch.Generator().manual_seed(seed))
    for _ in range(6):
        x = (x + x.roll(1, 2)) / 2
        x = (x + x.roll(1, 3)) / 2
    return (x * 1.5).clamp(-1, 1)


def test_new_images_of_the_same_law_stand_at_the_floor_and_copies_are_found(tmp_path):
    training, held_out = smooth(80, 0), smooth(60, 1)
    new = samples.evaluate_samples(smooth(60, 2), training, held_out)
    assert 0.8 < new["frechet"]["ratio"] < 1.25
    assert new["nearest_training"]["share_nearer_than_5th_percentile"] < 0.2
    copies = samples.write_samples_report(training[:40] + 0.01, training, held_out, tmp_path)
    assert copies["nearest_training"]["share_nearer_than_5th_percentile"] == 1.0
    assert copies["nearest_training"]["samples_minimum"] == pytest.approx(0.01, rel=1e-4)
    noise = samples.evaluate_samples(torch.rand(60, 1, 40, 40) * 2 - 1, training, held_out)
    assert noise["frechet"]["ratio"] > 5
    assert json.loads((tmp_path / "samples.json").read_text()) == copies
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (8 * 40 + 7 * 2, 3 * 40 + 2 * 2)


@pytest.mark.shared_data
def test_the_curve_on_a_real_head(shared_data):
    """patient07 fits, patient19 is scored: falling, and 16.4 dB in the brain with the 99th percentile scaling (16.8 with the 99.5th)."""
    import nibabel

    def head(patient: str) -> Case:
        folder = shared_data / "ms_brain" / patient
        arrays = [nibabel.load(folder / f"{c}.nii.gz").get_fdata(dtype=np.float32)[::2, ::2, ::2] for c in ("T1", "T2")]
        rule = MRPercentile()
        source, target = (torch.from_numpy(rule.forward(a, **rule.fit(a)))[None, None] for a in arrays)
        return Case(0, patient, {}, source, target, masks.body_mask(torch.cat([source, target], 1)[0])[None])

    train, test = head("patient07"), head("patient19")
    curve = baselines.fit_curve([(train.source[0], train.target[0], masks.body_mask(train.source[0]))])
    assert curve.falling
    assert scores(curve(test.source), test)["body"]["psnr"] == pytest.approx(16.4, abs=0.3)
