"""The section on realism of sets, with models whose distance to the data is known."""

import json
import re

import numpy as np
import pytest
import torch

from medgen.core.contract import Contract
from medgen.core.volume import Volume
from medgen.data.manifest import Manifest
from medgen.evaluation import feature, imagesets, spaces
from medgen.evaluation.imagesets import Images, ImageSets
from medgen.evaluation.section import Level
from medgen.evaluation.work import Work
from medgen.inference import Pretrained
from medgen.metrics.monitor import PSNR, FeatureDistance
from medgen.metrics.space import Space
from medgen.metrics.spaces import fixed
from medgen.tasks.synthesis import Synthesis
from medgen.tasks.translation import Translation

RULE = {"name": "unit_range", "low": 0.0, "high": 100.0, "typical": {"low": 0.0, "high": 100.0}}
SHAPE = (18, 16, 5)
COUNT = 22


def field(rng: np.random.Generator) -> np.ndarray:
    """Blurred noise inside an ellipse, in [-1, 1]: the law of all images here."""
    noise = rng.standard_normal((20, 18))
    smooth = sum(noise[i : i + 18, j : j + 16] for i in range(3) for j in range(3)) / 6
    x, y = np.meshgrid(np.linspace(-1, 1, 18), np.linspace(-1, 1, 16), indexing="ij")
    return np.where(x**2 + y**2 < 0.8, np.clip(0.3 + 0.3 * smooth, -0.9, 0.99), -1).astype(np.float32)


class Fields(torch.nn.Module):
    """Samples of the same law, changed by `spoil`; as a translator the source, changed by it."""

    caveat = ""

    def __init__(self, spoil):
        super().__init__()
        self.network, self.spoil = torch.nn.Linear(1, 1), spoil

    def sample(self, condition, shape, rng):
        if condition.dense is not None:
            return self.spoil(condition.dense[:, :1])
        drawn = [field(np.random.default_rng(1000 + sample)) for sample in rng.samples]
        return self.spoil(torch.from_numpy(np.stack(drawn))[:, None])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("fields")
    rows = ["subject,split,t1,t2"]
    for i in range(2 * COUNT):
        rng = np.random.default_rng(i)
        volume = np.stack([field(rng) for _ in range(SHAPE[2])], -1)
        for name in ("t1", "t2"):
            Volume((volume[None] + 1) * 50, np.eye(4)).save(place / f"{i}_{name}.nii.gz")
        rows.append(f"s{i:02d},{'test' if i < COUNT else 'train'},{i}_t1.nii.gz,{i}_t2.nii.gz")
    (place / "list.csv").write_text("\n".join(rows) + "\n")
    return place


def work(folder, task, spoil, **changes) -> Work:
    rules = {channel: RULE for channel in {*task.source, *task.target}}
    contract = Contract(2, (18, 16), task.target, task.source, intensity=rules, spacing=(1.0, 1.0, 1.0), orientation="RAS", slice_axis=2)
    model = Pretrained(Fields(spoil), task, contract, {}, None)
    return Work(model, Manifest.read(folder / "list.csv"), folder / f"out_{spoil.__name__}", **changes)


def same(x):
    return x


def brighter(x):
    return (x + 0.5).clamp(-1, 1)


def blank(x):
    return torch.full_like(x, -1.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(feature.compared, "__defaults__", (0, 8))
    monkeypatch.setattr(spaces, "built_in", lambda dims: None)


def test_samples_of_the_datas_own_law_are_good_and_changed_ones_bad(folder):
    task = Synthesis(["t1"], FeatureDistance())
    good, bad = (feature.section(work(folder, task, spoil, samples=40)) for spoil in (same, brighter))
    assert good.level == Level.GOOD and bad.level == Level.BAD
    n = good.numbers["n"]
    assert n["held_out"] == {"images": 110, "subjects": 22} and n["made"] == {"images": 40, "subjects": 40} and n["in_a_comparison"] == 40
    assert set(good.numbers["spaces"]) == {"radiomics", "texture and layout"} and not good.numbers["left_out"]
    for name, space in good.numbers["spaces"].items():
        assert 0.4 < space["KID"]["score"].value < 2, name
        assert bad.numbers["spaces"][name]["KID"]["score"].value > 5, name
        assert bad.numbers["spaces"][name]["precision"]["made"]["precision"].value < 0.2, name
    assert "n = 40" in good.verdict and "KID" in bad.verdict
    assert re.search(r"That is the nearer one of 2 spaces; in the farthest, '.*', it is [\d.]+ \[[\d.]+, [\d.]+\] times\.", good.verdict)
    assert "no Frechet distance, 200 dimensions need 400 images and there are 40" in good.tables[0].note
    assert len(bad.worst) == 3 and bad.worst[0][0].startswith("sample ")
    assert good.figures[1].picture.shape == (540, 720, 3) and "least real" in good.figures[0].title
    json.dumps(good.to_dict(), allow_nan=False)


def test_what_is_not_surely_below_the_limit_does_not_pass(folder, monkeypatch):
    task = Synthesis(["t1"], FeatureDistance())
    good = feature.section(work(folder, task, same, samples=40))
    middle = min((space["KID"]["score"] for space in good.numbers["spaces"].values()), key=lambda score: score.value)
    monkeypatch.setattr(feature, "GOOD", (middle.value + middle.interval[1]) / 2)
    unsure = feature.section(work(folder, task, same, samples=40))
    assert unsure.level == Level.WATCH and "It is not certain that they are below" in unsure.verdict


def test_blank_samples_are_bad_and_said_to_be_alike(folder):
    told = feature.section(work(folder, Synthesis(["t1"], FeatureDistance()), blank, samples=24))
    assert told.level == Level.BAD and "more alike than real images" in told.verdict
    assert told.numbers["ms_ssim_of_pairs"]["made"].value == pytest.approx(1)
    assert told.numbers["ms_ssim_of_pairs"]["real"].value < 0.9
    json.dumps(told.to_dict(), allow_nan=False)


def test_answers_are_held_against_the_truth_of_other_subjects(folder):
    task = Translation(["t1"], ["t2"], PSNR(2.0))
    perfect, bad = (feature.section(work(folder, task, spoil)) for spoil in (same, brighter))
    for space in perfect.numbers["spaces"].values():
        assert space["KID"]["score"].value == pytest.approx(1, abs=1e-3)
    assert perfect.level == Level.GOOD and bad.level == Level.BAD
    assert perfect.numbers["n"]["made"] == {"images": 33, "subjects": 11}
    assert bad.worst[0][0] in {f"s{i:02d}" for i in range(0, COUNT, 2)}
    assert "three slices" in perfect.protocol["sets"]


def test_few_subjects_or_samples_are_not_compared(folder):
    few = work(folder, Translation(["t1"], ["t2"], PSNR(2.0)), same)
    few.manifest = Manifest(few.manifest.path, few.manifest.columns, few.manifest.rows[:5])
    told = feature.section(few)
    assert told.skipped == "Not measured: comparing sets of images needs 20 subjects in split 'test', found 5."
    told = feature.section(work(folder, Synthesis(["t1"], FeatureDistance()), same, samples=19))
    assert told.skipped.endswith("needs 20 samples, found 19; draw more with -n.")


def test_without_a_training_split_the_floor_is_of_halves(folder):
    lone = work(folder, Synthesis(["t1"], FeatureDistance()), same, samples=24)
    lone.manifest = Manifest(lone.manifest.path, lone.manifest.columns, lone.manifest.rows[:COUNT])
    lone.__dict__.pop("data", None)
    found = imagesets.image_sets(lone)
    assert not set(found.reference.units) & set(found.held.units)
    assert len(set(found.reference.units)) == len(set(found.held.units)) == 11


def constant(count: int, value: float) -> Images:
    return Images(torch.full((count, 1, 12, 12), value), [str(i) for i in range(count)])


def test_constant_sets_have_no_score_and_a_space_that_fails_is_named():
    def refuse(images):
        raise feature.MedgenError("these are not for me")

    told = feature.compared(
        ImageSets(constant(20, 0.0), constant(20, 0.0), constant(20, 0.0), "x"), [Space("picky", 2, refuse), fixed()], 0, 3
    )
    assert told.level == Level.NONE and "no score" in told.verdict
    assert told.numbers["left_out"] == {"picky": "these are not for me"} and "picky: left out" in told.tables[0].note
    json.dumps(told.to_dict(), allow_nan=False)
    with pytest.raises(feature.MedgenError, match="no feature space takes these images: picky"):
        feature.compared(ImageSets(*[constant(20, 0.0)] * 3, "x"), [Space("picky", 2, refuse)])


def test_volumes_of_other_sizes_are_cropped_or_padded_around_the_middle():
    image = torch.arange(5.0)[None, :, None].expand(1, 5, 2)
    assert imagesets.sized(image, (3, 4))[0].tolist() == [[-1, row, row, -1] for row in (1.0, 2.0, 3.0)]
    assert imagesets.sized(image, (6, 2))[0, :, 0].tolist() == [0, 1, 2, 3, 4, -1]


def test_there_are_always_two_spaces_and_the_encoder_comes_first(monkeypatch):
    assert [s.name for s in spaces.spaces(2)] == ["radiomics", "texture and layout"]
    assert [s.name for s in spaces.spaces(3)] == ["radiomics", "texture and layout", "2.5D texture and layout"]
    monkeypatch.setattr(spaces, "built_in", lambda dims: Space(f"encoder_{dims}d", dims, lambda x: x))
    assert [s.name for s in spaces.spaces(3)] == ["encoder_3d", "2.5D encoder_2d", "radiomics", "texture and layout"]
