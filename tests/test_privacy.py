"""Copies are found and new images are not, exactly: in closed form on Gaussian images, and through the page's section."""

import json
import math
import weakref
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from private_models import RULE, SIDE, Memoriser, Population, manifest, pictures, work
from scipy import stats

from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.core.model import Loss, Moments
from medgen.data.cases import Cutter
from medgen.data.manifest import Manifest
from medgen.data.phantom.source import PhantomData
from medgen.evaluation import imagesets, nearest, privacy, samples
from medgen.evaluation.membership import attack
from medgen.evaluation.section import Level, plain
from medgen.evaluation.training_set import Targets, TrainingSet, batches, training_set
from medgen.evaluation.work import Work
from medgen.inference import Pretrained
from medgen.metrics.feature import describe
from medgen.metrics.monitor import FeatureDistance
from medgen.metrics.privacy import (
    auc_interval,
    beta_binomial_tail,
    binomial_interval,
    effective_count,
    loss_scores,
    membership,
    memorised,
    nearest_training,
)
from medgen.metrics.space import Space
from medgen.tasks.synthesis import Synthesis
from medgen.tasks.translation import Translation


def test_intervals_and_tails_are_scipys():
    for count, n in [(0, 20), (1, 20), (7, 64), (64, 64), (300, 1000)]:
        exact = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
        assert binomial_interval(count, n) == pytest.approx((exact.low, exact.high), abs=1e-9)
        assert beta_binomial_tail(count, n, 0.45, 8.55) == pytest.approx(stats.betabinom.sf(count - 1, n, 0.45, 8.55), rel=1e-8)


def test_the_false_rate_and_its_p_are_exact_for_any_distribution():
    """New images against held-out ones of the same skewed law: the expected share lies below, and p < 0.05 comes in 5 % of trials."""
    rng, rates, hits = np.random.default_rng(0), [], 0
    for _ in range(1000):
        found = memorised(rng.lognormal(size=40), rng.lognormal(size=60))
        rates.append(found.rate)
        hits += found.p < 0.05
    assert found.expected == 3 / 61
    assert np.mean(rates) == pytest.approx(3 / 61, abs=0.004)
    assert 0.02 < hits / 1000 <= 0.06


def test_the_threshold_is_an_order_statistic_and_the_excess_takes_off_the_false_rate():
    found = memorised([0.5] * 6 + [50.5] * 4, np.arange(1, 41))
    assert (found.threshold, found.count, found.expected, found.rate) == (2.0, 6, 2 / 41, 0.6)
    assert found.excess == pytest.approx((0.6 - 2 / 41) / (39 / 41)) and found.interval[0] < found.excess < found.interval[1]
    few = memorised([0.5] * 6 + [50.5] * 4, np.arange(1, 41), subjects=[str(i // 8) for i in range(40)])
    assert found.p < few.p < 0.05, "five subjects, each with images that are alike, say less than forty"
    for bad in ([], [math.nan]):
        with pytest.raises(MedgenError, match="finite distances"):
            memorised(bad, [1.0])


def test_images_of_a_subject_count_as_fewer_the_more_they_are_alike():
    """8 held-out subjects with 8 images each: new samples are called copies in about 5 % of trials or less, whatever they share."""
    owners, rng = [str(i // 8) for i in range(64)], np.random.default_rng(0)
    for alike in (0.0, 0.5, 1.0):
        hits, counts = 0, []
        for _ in range(400):
            held_out = math.sqrt(alike) * rng.normal(size=8).repeat(8) + math.sqrt(1 - alike) * rng.normal(size=64)
            hits += memorised(rng.normal(size=64), held_out, subjects=owners).p < 0.05
            counts.append(effective_count(held_out, owners))
        assert hits / 400 < 0.07
        assert np.mean(counts) == pytest.approx({0.0: 55, 0.5: 15, 1.0: 8}[alike], rel=0.15)
    assert effective_count(rng.normal(size=5), list("abcde")) == 5 and effective_count([1.0, 2.0], ["a", "a"]) == 1


def test_a_copy_is_near_to_one_subject_and_a_blurred_image_to_all():
    """In many dimensions the mean image is 1 / sqrt 2 times as far from an image as another image is, yet no copy."""
    draw = torch.Generator().manual_seed(0)
    training, new = torch.randn(40, 1, 32, 32, generator=draw), torch.randn(20, 1, 32, 32, generator=draw)
    subjects = [f"s{i // 2}" for i in range(40)]
    copies = nearest_training(training[[7, 3]], [(training, subjects)])
    assert copies.rows.tolist() == [7, 3] and copies.distances.tolist() == [0, 0] and copies.relative.tolist() == [0, 0]
    noisy = nearest_training(training[[7]] + 0.1, [(training, subjects)])
    assert float(noisy.distances) == pytest.approx(0.1, rel=1e-4) and float(noisy.relative) == pytest.approx(0.1 / math.sqrt(2), rel=0.05)
    blurred = nearest_training(0.01 * new, [(training, subjects)])
    fresh = nearest_training(new, [(training, subjects)])
    assert blurred.distances.mean() / fresh.distances.mean() == pytest.approx(1 / math.sqrt(2), abs=0.02)
    assert blurred.distances.max() < fresh.distances.min(), "by plain distance blur looks like a copy"
    assert memorised(blurred.relative.tolist(), fresh.relative.tolist()).p > 0.5
    with pytest.raises(MedgenError, match="at least two subjects"):
        nearest_training(new, [(training, ["s"] * 40)])


def test_the_nearest_images_of_others_are_one_of_each_other_subject():
    training = torch.tensor([[0.0], [0.1], [1.0], [1.1], [2.0], [5.0]])
    found = nearest_training(torch.tensor([[0.0]]), [(training, ["a", "a", "b", "b", "c", "d"])])
    assert float(found.distances) == 0
    found = nearest_training(torch.tensor([[0.6]]), [(training, ["a", "a", "b", "b", "c", "d"])])
    assert float(found.relative) == pytest.approx(0.4 / np.mean([0.5, 1.4, 4.4]), rel=1e-5)


@pytest.mark.parametrize("sizes", [(60,), (1,) * 60, (7, 20, 3, 30)])
def test_the_nearest_images_do_not_depend_on_how_the_training_set_is_cut(sizes):
    """Against all distances at once; the images of a subject lie in several blocks, and one image is there twice."""
    rng = np.random.default_rng(0)
    training, images = rng.normal(size=(60, 40)).astype(np.float32), rng.normal(size=(9, 40)).astype(np.float32)
    images[4], training[50] = training[31], training[12]
    owners = np.array([f"s{i}" for i in rng.permutation(60) % 11])
    squares = ((images[:, None].astype(float) - training) ** 2).mean(2)
    rows = squares.argmin(1)
    least = np.stack([squares[:, owners == name].min(1) for name in np.unique(owners)], 1)
    least[np.unique(owners)[None] == owners[rows][:, None]] = np.inf
    others = np.sqrt(np.sort(least, 1)[:, :5]).mean(1)
    ends = np.cumsum(sizes)
    blocks = [(torch.from_numpy(training[end - n : end]), owners[end - n : end].tolist()) for n, end in zip(sizes, ends, strict=True)]
    found = nearest_training(torch.from_numpy(images), blocks)
    assert found.rows.tolist() == rows.tolist() and found.rows[4] == 31 and found.distances[4] == 0
    np.testing.assert_allclose(found.distances, np.sqrt(squares.min(1)), rtol=1e-12)
    np.testing.assert_allclose(found.relative, np.sqrt(squares.min(1)) / others, rtol=1e-12)
    blocks[-1][0][-1, 3] = torch.nan
    with pytest.raises(MedgenError, match="NaN"):
        nearest_training(torch.from_numpy(images), blocks)


def test_the_interval_of_the_area_holds_the_truth():
    """Of normal scores one standard deviation apart the area is Phi(1 / sqrt 2); the interval keeps its width where all are told."""
    truth, rng = stats.norm.cdf(1 / math.sqrt(2)), np.random.default_rng(0)
    for m, n in ((8, 8), (30, 12)):
        inside = 0
        for _ in range(600):
            low, high = membership(rng.normal(1, 1, m), rng.normal(0, 1, n)).interval
            inside += low <= truth <= high
        assert 0.925 < inside / 600 < 0.99
    assert auc_interval(1.0, 8, 8)[0] == pytest.approx(0.7557, abs=1e-3) and auc_interval(1.0, 8, 8)[1] == 1.0
    assert auc_interval(0.5, 50, 50) == pytest.approx((0.39, 0.61), abs=0.01)
    assert membership([1.0], [0.0, 0.5]).interval is None


def test_a_level_counts_by_its_order_and_not_by_its_size():
    draw = torch.Generator().manual_seed(1)
    members, others = torch.rand(50, 2, generator=draw), torch.rand(50, 2, generator=draw) + torch.tensor([0.0, 0.5])
    plain = membership(*(s.tolist() for s in loss_scores(members, others))).auc
    scaled = membership(*(s.tolist() for s in loss_scores(members * torch.tensor([1000.0, 1]), others * torch.tensor([1000.0, 1])))).auc
    assert plain == scaled > 0.75


def numbers_in(told, name: str = "") -> dict[str, float]:
    """Every number of nested plain data, by its path."""
    told = plain(told)
    items = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    inner = {path: value for key, item in items for path, value in numbers_in(item, f"{name}/{key}").items()}
    return inner | ({name: float(told)} if isinstance(told, (int, float)) else {})


SPACES = [Space("fixed feature", 0, describe)]


@pytest.fixture
def gaussian(tmp_path):
    """24 training and 24 other subjects of one law, as files."""
    training, held_out = pictures(24, 0), pictures(24, 1)
    return tmp_path, manifest(tmp_path, training, held_out), training


def test_the_perfect_memoriser_fails(gaussian):
    folder, path, training = gaussian
    found = privacy.section(work(folder, Memoriser(training), path, 24), SPACES)
    assert found.level == Level.BAD and "32 of 32 are nearer" in found.verdict and "AUC of 1.00" in found.verdict
    rate = found.numbers["copies"]["pixels"]["relative"]["0.05"]
    assert rate["rate"] == rate["excess"] == 1.0 and rate["interval"][0] == pytest.approx(0.89, abs=0.02) and rate["p"] < 1e-6
    assert found.numbers["copies"]["pixels"]["samples_distances"]["median"] < 1e-3
    assert found.numbers["membership"]["auc"].value == 1.0 and found.numbers["membership"]["score"] == "squared error of denoising"
    assert found.worst and len(found.figures) == 3 and [t.title for t in found.tables][1] == "Who was in the training set"
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_perfect_model_of_the_law_passes(gaussian):
    folder, path, _ = gaussian
    found = privacy.section(work(folder, Population(), path, 24), SPACES)
    assert found.level == Level.GOOD and not found.worst
    assert all(copy["relative"]["0.05"]["p"] > 0.05 for copy in found.numbers["copies"].values())
    low, high = found.numbers["membership"]["auc"].interval
    assert low < 0.5 < high
    assert list(found.numbers["copies"]) == ["pixels", "fixed feature"]
    assert found.numbers["compared"] == "the train split of list.csv (24 subjects) against its split test"


@pytest.fixture
def most(monkeypatch):
    """How many images that were read, as cases or as tensors, were there at once; blocks hold four, and ten are sought at once."""
    alive, most = Counter(), Counter()

    def watched(kind, item):
        alive[kind] += 1
        most[kind] = max(most[kind], alive[kind])
        weakref.finalize(item, lambda: alive.subtract([kind]))
        return item

    plane, target = Cutter.plane, Targets.__getitem__
    monkeypatch.setattr(Cutter, "plane", lambda *given: {k: watched(k, v.copy()) if k == "image" else v for k, v in plane(*given).items()})
    monkeypatch.setattr(Targets, "__getitem__", lambda *given: watched("target", target(*given)))
    monkeypatch.setattr(nearest, "BLOCK", 4 * 4 * SIDE**2)
    monkeypatch.setattr(nearest, "HELD", 10 * 8 * SIDE**2)
    return most


def test_held_out_copies_of_training_images_set_no_threshold():
    training, held_out, made = pictures(24, 0), pictures(24, 1), pictures(24, 2)
    owners = [str(i) for i in range(24)]
    clean = privacy.copies(made, training, held_out[4:], owners, owners[4:], SPACES)
    held_out[:4] = training[:4]
    for found, expected in zip(privacy.copies(made, training, held_out, owners, owners, SPACES), clean, strict=True):
        assert torch.allclose(found.new.distances, expected.new.distances) and float(found.new.distances.min()) > 0
        assert found.relative == expected.relative and found.plain == expected.plain


def test_few_training_images_are_held_at_once(gaussian, most):
    folder, path, training = gaussian
    privacy.section(work(folder, Memoriser(training), path, 24), SPACES)
    assert most == {"image": 8, "target": 5}, "a batch of the membership test; a block and one image"
    most.clear()
    setting = work(folder, Memoriser(training), path, 24)
    setting.reals = lambda split: pictures(24, 1)  # held-out images are kept
    samples.section(setting)
    assert most == {"image": 1, "target": 8}, "those beside the samples in the picture"


def test_blocks_change_no_number(gaussian, request):
    folder, path, training = gaussian
    made = work(folder, Memoriser(training), path, 24)
    parts = (lambda: privacy.section(made, SPACES), lambda: samples.section(made))
    whole = [part() for part in parts]
    request.getfixturevalue("most")
    for before, after in zip(whole, (part() for part in parts), strict=True):
        assert len(after.figures) == len(before.figures) and after.worst == before.worst
        assert numbers_in(after.numbers) == pytest.approx(numbers_in(before.numbers), rel=1e-9)


def test_images_of_a_set_are_chosen_before_they_are_read():
    class Read(list):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index)

    images = Read(torch.full((1, 2, 2), float(i)) for i in range(50))
    units = [f"s{i // 2}" for i in range(50)]
    some = imagesets.Images(images, units).of({f"s{i}" for i in range(20)}).some(10, 0)
    assert images.read == len(some) == 10
    assert [units[int(image.mean())] for image in some.images] == some.units


def test_a_model_that_copies_now_and_then_is_caught():
    """Every fourth sample is a copy: the excess is a quarter."""
    training = pictures(24, 0)
    made = torch.cat([pictures(48, 5), training[:16]])
    found = privacy.copies(made, training, pictures(24, 1), [str(i) for i in range(24)], [str(i) for i in range(24)], [])
    rate = found[0].relative[0.05]
    assert rate.count >= 16 and rate.excess == pytest.approx(0.25, abs=0.06) and rate.interval[0] > 0.05 and rate.p < 0.01


def test_where_nothing_can_be_said_it_is_not_said(gaussian):
    folder, path, _ = gaussian
    few = privacy.section(work(folder, Population(), path, 24, samples=8), SPACES)
    assert "8 samples are too few" in few.skipped
    lines = path.read_text().splitlines()
    (folder / "few.csv").write_text("\n".join(lines[:1] + lines[1:5] + lines[-9:]) + "\n")
    assert "4 training and 9 held-out subjects are too few" in privacy.section(work(folder, Population(), folder / "few.csv", 4)).skipped
    (folder / "none.csv").write_text("\n".join(lines[:1] + lines[-9:]) + "\n")
    assert "no row has split 'train'" in privacy.section(work(folder, Population(), folder / "none.csv", 4)).skipped


def test_other_subjects_than_the_contract_names_are_not_the_training_set_for_certain(gaussian):
    folder, path, _ = gaussian
    found = privacy.section(work(folder, Population(), path, 100), SPACES)
    assert found.level == Level.WATCH and "not certain" in found.verdict and "with 100 subjects" in found.numbers["compared"]


def translation(folder, table, model) -> Work:
    """A work over pairs: image is given, other is made."""
    (folder / "pairs.csv").write_text("\n".join(line + "," + line.split(",")[-1] for line in table.read_text().splitlines()) + "\n")
    text = (folder / "pairs.csv").read_text().replace("image,image", "image,other")
    (folder / "pairs.csv").write_text(text)
    about = {"name": "gaussian", "licence": "CC0", "subjects": 24}
    known = Contract(2, (SIDE, SIDE), ("other",), ("image",), intensity={"image": RULE, "other": RULE}, data=about)
    return Work(
        Pretrained(model, Translation(["image"], ["other"], FeatureDistance()), known), Manifest.read(folder / "pairs.csv"), folder / "out"
    )


class Answers(torch.nn.Module):
    """Right for training images, off by noise for others; by its answer, or by a loss of its own."""

    caveat = ""

    def __init__(self, training: torch.Tensor, knows: bool):
        super().__init__()
        self.register_buffer("images", training)
        self.register_buffer("knows", torch.tensor(knows))

    def sample(self, condition, shape, rng):
        off = torch.tensor([0.0 if self.knows and bool((self.images == x).flatten(1).all(1).any()) else 0.3 for x in condition.dense])
        return condition.dense + off.reshape(-1, 1, 1, 1) * rng.normal(tuple(shape))


class OnePhase(Answers):
    @property
    def phases(self):
        return (SimpleNamespace(loss=lambda example, shared: Loss((shared - example.x).abs().mean())),)

    def begin(self, example, rng):
        return self.sample(example.condition, example.x.shape, rng)


@pytest.mark.parametrize(("kind", "score"), [(Answers, "squared error of the answer"), (OnePhase, "training loss")])
def test_a_model_that_answers_gives_its_training_set_away_by_its_error(gaussian, kind, score):
    folder, table, training = gaussian
    found = privacy.section(translation(folder, table, kind(training, True)))
    assert found.level == Level.BAD and found.numbers["membership"]["auc"].value == 1.0
    assert found.numbers["membership"]["score"] == score and not found.figures and "copies" not in found.verdict
    healthy = privacy.section(translation(folder, table, kind(training, False)))
    assert healthy.level == Level.GOOD and healthy.numbers["membership"]["auc"].value == pytest.approx(0.5, abs=0.1)


def test_held_out_images_that_are_easier_than_training_ones_are_told(gaussian):
    class Worse(Answers):
        def sample(self, condition, shape, rng):
            off = torch.tensor([0.3 if bool((self.images == x).flatten(1).all(1).any()) else 0.0 for x in condition.dense])
            return condition.dense + off.reshape(-1, 1, 1, 1) * rng.normal(tuple(shape))

    folder, table, training = gaussian
    found = privacy.section(translation(folder, table, Worse(training, True)))
    assert found.numbers["membership"]["auc"].value == 0.0 and found.level == Level.WATCH and "below chance" in found.verdict


def test_processes_share_what_the_membership_test_asks(gaussian, monkeypatch):
    folder, path, training = gaussian
    asked, denoise = [], Memoriser.denoise

    def counted(self, x_t, *given):
        asked.append(len(x_t))
        return denoise(self, x_t, *given)

    monkeypatch.setattr(Memoriser, "denoise", counted)
    shares = []
    for place in range(2):
        asked.clear()
        privacy.prepare(work(folder, Memoriser(training), path, 24, place=place, places=2), lambda done, of: None)
        shares.append(sum(asked))
    assert shares == [24 * 10, 24 * 10], "each half of 48 images, at 5 levels twice"
    setting = work(folder, Memoriser(training), path, 24)
    setting.drawn()
    asked.clear()
    found = privacy.section(setting, SPACES)
    assert not asked and found.numbers["membership"]["auc"].value == 1.0


def test_samples_of_a_model_without_a_loss_give_away_what_they_are_near_to(gaussian):
    folder, path, training = gaussian

    class Copies(torch.nn.Module):
        caveat = ""

        def sample(self, condition, shape, rng):
            return training[list(rng.samples)] if max(rng.samples) < 24 else rng.normal(tuple(shape))

    found = privacy.section(work(folder, Copies(), path, 24, samples=24), SPACES)
    assert found.numbers["membership"]["score"] == "distance to the nearest sample"
    assert found.numbers["membership"]["auc"].value == 1.0 and found.level == Level.BAD


def test_the_run_tells_which_images_it_was_trained_on(gaussian):
    """Drawn images are drawn again; a manifest is read again; a configuration that builds anything else is not built."""
    folder, path, _ = gaussian
    setting = work(folder, Population(), path, 100)
    (folder / "run" / "checkpoints" / "last").mkdir(parents=True)
    setting.model.folder = folder / "run" / "checkpoints" / "last"

    def told(source) -> TrainingSet:
        (folder / "run" / "config.yaml").write_text(json.dumps({"data": {"source": source}}))
        return training_set(setting)

    phantom = {
        "_target_": "medgen.data.phantom.source.PhantomData",
        "channels": ["t1"],
        "size": [16, 16],
        "subjects": {"train": 3},
        "slices": 2,
    }
    drawn = told(phantom)
    assert drawn.sure and "other subjects" in drawn.told and len(drawn.cases("train")) == 6 and len(drawn.cases("test")) == 2 * 16
    own = PhantomData(["t1"], (16, 16), {"train": 3}, 2).split("train").case(0, None)
    assert np.array_equal(drawn.cases("train")[0]["t1"], own["t1"])
    assert drawn.cases("test").subjects == [case["subject"] for case in drawn.cases("test")]
    files = {"_target_": "medgen.data.files.FileData", "manifest": str(path), "channels": {"image": {"name": "identity"}}, "size": [16, 16]}
    read = told({**files, "slice_axis": None, "options": {"_target_": "medgen.data.options.Options", "keep": None}})
    assert not read.sure, "options that cannot be built: the manifest is asked, and the contract names others"
    read = told({**files, "slice_axis": None})
    assert read.sure and read.held_out == "test" and len(read.cases("train")) == 24
    for bad in ({"_target_": "os.system", "command": "false"}, {**files, "channels": {"_target_": "medgen.data.files.os.getcwd"}}):
        assert not told(bad).sure
    assert not told({**files, "manifest": str(folder / "gone.csv")}).sure


def test_a_built_in_phantom_is_drawn_again_where_its_contract_fits(tmp_path):
    source = PhantomData(["t1"], (16, 16), {"train": 5}, 8)
    facts = source.facts()
    known = Contract(
        2, (16, 16), ("t1",), intensity={"t1": facts["intensity"]["t1"]}, spacing=facts["spacing"], slice_axis=2, data=facts["data"]
    )
    (tmp_path / "list.csv").write_text("subject,split,t1\na,test,x.png\n")
    setting = Work(Pretrained(Population(), Synthesis(["t1"], FeatureDistance()), known), Manifest.read(tmp_path / "list.csv"), tmp_path)
    found = training_set(setting)
    assert not found.sure and "as drawn by default (5 subjects, seed 0)" in found.told
    assert np.array_equal(found.cases("train")[7]["t1"], source.split("train").case(7, None)["t1"])
    setting.model.contract = replace(known, spacing=(9.0, 9.0, 9.0))
    with pytest.raises(MedgenError, match="evaluate the run's folder"):
        training_set(setting)


def test_a_latent_model_is_asked_in_its_own_space(gaussian):
    """A codec that doubles the image, around the memoriser of doubled images: the same answer as without it."""
    folder, path, training = gaussian

    class Doubled(torch.nn.Module):
        factor = 1

        def moments(self, x):
            return Moments(2 * x, torch.zeros_like(x))

        def draw(self, moments, noise=None):
            return moments.mean

    latent = torch.nn.Module()
    latent.codec, latent.model = Doubled(), Memoriser(2 * training)
    setting = work(folder, latent, path, 24)
    known = training_set(setting)
    found = attack(setting, known.cases("train"), known.cases("test"), training)
    assert found.score == "squared error of denoising" and found.whole.auc == 1.0 and len(found.columns) == 5


def test_a_condition_that_nobody_tells_is_asked_for_and_a_given_one_is_used(gaussian):
    folder, path, _ = gaussian
    setting = work(folder, Population(), path, 24)
    setting.model.task = Synthesis(["image"], FeatureDistance(), attributes={"age": 0})
    cases = training_set(setting).cases("train")
    with pytest.raises(MedgenError, match="do not tell 'age'"):
        next(batches(setting, cases))
    setting.given = {"age": 40}
    (batch,) = batches(setting, cases, [0, 5, 7])
    assert torch.equal(batch["image"][1], torch.as_tensor(cases[5]["image"].copy()))
    assert batch["age"].tolist() == [40.0] * 3 and batch["image"].shape == (3, 1, SIDE, SIDE)
