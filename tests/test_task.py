"""Judges that are trained on samples, and a segmenter that looks at answers: a faithful model passes, one that lies is caught."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.columns import Column, describe
from medgen.data.manifest import Manifest
from medgen.evaluation import pictures as drawing
from medgen.evaluation import pixel
from medgen.evaluation.judges import CLASSIFIERS, Classifier, Segmenter, Training
from medgen.evaluation.section import Level
from medgen.evaluation.task import _over_seeds, hounsfield, section
from medgen.evaluation.training_set import read_as_trained
from medgen.evaluation.work import Work
from medgen.inference import Pretrained
from medgen.metrics.monitor import PSNR, FeatureDistance
from medgen.nn.judge import MultiScaleTransformer, SmallClassifier
from medgen.tasks.synthesis import Synthesis
from medgen.tasks.translation import Translation

SIDE = 24
QUICK = Training(steps=40, batch=8)


def bars(label: int, rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE) in [-1, 1]: bars along one axis or the other, at any phase, in noise."""
    wave = np.sin(2 * np.pi * (np.arange(SIDE) / 6 + rng.random()))
    image = np.broadcast_to(0.5 * (wave if label else wave[:, None]), (SIDE, SIDE))
    return (image + rng.normal(0, 0.15, image.shape)).clip(-1, 1)


def disc(rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE) bool."""
    at, radius = rng.uniform(8, SIDE - 8, 2), rng.uniform(4, 6)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (rows - at[0]) ** 2 + (columns - at[1]) ** 2 < radius**2


class Bars(torch.nn.Module):
    """Samples of the class that is asked for, of the other one, or of none."""

    caveat = ""

    def __init__(self, kind: str):
        super().__init__()
        self.weight, self.kind = torch.nn.Parameter(torch.zeros(1)), kind

    def sample(self, condition, shape, rng):
        classes = condition.vector.argmax(1).tolist()
        noise = rng.normal((len(classes), 1)).flatten().tolist()
        images = []
        for label, number in zip(classes, noise, strict=True):
            own = np.random.default_rng(abs(int(number * 1e6)))
            label = {"faithful": label, "swapped": 1 - label, "none": own.integers(2)}[self.kind]
            images.append(bars(label, own))
        return torch.tensor(np.stack(images), dtype=torch.float32)[:, None]


class Discs(torch.nn.Module):
    """Bright where the label map is, or dark all over."""

    caveat = ""

    def __init__(self, contrast: float):
        super().__init__()
        self.weight, self.contrast = torch.nn.Parameter(torch.zeros(1)), contrast

    def sample(self, condition, shape, rng):
        return self.contrast * condition.dense[:, -1:] - 0.5 + 0.1 * rng.normal(tuple(shape))


class Copies(torch.nn.Module):
    """The source, or with what is bright moved to where it is not."""

    caveat = ""

    def __init__(self, moves: bool):
        super().__init__()
        self.weight, self.moves = torch.nn.Parameter(torch.zeros(1)), moves

    def sample(self, condition, shape, rng):
        return condition.dense.roll((SIDE // 2, SIDE // 2), (2, 3)) if self.moves else condition.dense


RULE = {"name": "unit_range", "low": 0.0, "high": 255.0, "typical": {"low": 0.0, "high": 255.0}}


def pictures(folder: Path, subjects: int = 36) -> Manifest:
    """Classes of bars: two thirds of the subjects are for training."""
    rows = ["subject,split,xray,label"]
    for i in range(subjects):
        image = bars(i % 2, np.random.default_rng(i))
        Image.fromarray(((image + 1) * 127.5).round().astype(np.uint8)).save(folder / f"{i}.png")
        rows.append(f"s{i},{'test' if i % 3 == 2 else 'train'},{i}.png,{i % 2}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return Manifest.read(folder / "list.csv")


def maps(folder: Path, subjects: int = 24, inside: int = 1) -> Manifest:
    """Bright discs in noise with their masks, which are `inside` there; `t1` and `t2` are the same."""
    rows = ["subject,split,t1,t2,lesion"]
    for i in range(subjects):
        rng = np.random.default_rng(i)
        mask = disc(rng)
        image = ((mask - 0.5 + rng.normal(0, 0.1, mask.shape)).clip(-1, 1) + 1) * 127.5
        for name, array in (("image", image.astype(np.float32)), ("mask", (inside * mask).astype(np.uint8))):
            Volume(array[None, :, :, None], np.eye(4)).save(folder / f"{i}_{name}.nii.gz")
        rows.append(f"s{i},{'test' if i % 3 == 2 else 'train'},{i}_image.nii.gz,{i}_image.nii.gz,{i}_mask.nii.gz")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return Manifest.read(folder / "list.csv")


def drawn_by_class(folder: Path, kind: str, **changes) -> Work:
    contract = Contract(2, (SIDE, SIDE), ("xray",), attributes={"label": 2}, intensity={"xray": RULE})
    model = Pretrained(Bars(kind), Synthesis(("xray",), FeatureDistance(), {"label": 2}), contract, {}, None)
    return Work(model, pictures(folder), folder / "out", samples=24, **changes)


def by_maps(folder: Path, network: torch.nn.Module, task, inside: int = 1, **changes) -> Work:
    place = {"spacing": (1.0, 1.0, 1.0), "orientation": "RAS", "slice_axis": 2}
    channels = {*task.source, *task.target}
    contract = Contract(2, (SIDE, SIDE), task.target, task.source, labels=task.labels, intensity=dict.fromkeys(channels, RULE), **place)
    return Work(Pretrained(network, task, contract, {}, None), maps(folder, inside=inside), folder / "out", **changes)


def test_samples_of_the_right_class_teach_and_swapped_ones_mislead(tmp_path, monkeypatch):
    monkeypatch.setattr("medgen.evaluation.task.SEEDS", 2)
    for kind in ("faithful", "swapped"):
        folder = tmp_path / kind
        folder.mkdir()
        told = section(drawn_by_class(folder, kind), QUICK)
        found = told.numbers["training"]["small CNN"]
        assert found["real"]["auroc"].value > 0.95 and found["real"]["auroc"].n == 12
        if kind == "faithful":
            assert found["synthetic"]["auroc"].value > 0.95 and found["TRTS"]["auroc"].value > 0.95 and told.level is Level.GOOD
            assert set(told.numbers["training"]) == set(CLASSIFIERS)
        else:
            assert found["synthetic"]["auroc"].value < 0.05 and found["TRTS"]["auroc"].value < 0.05 and told.level is Level.BAD


def test_samples_for_label_maps_teach_a_segmenter_where_they_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("medgen.evaluation.task.SEEDS", 2)
    found = {}
    for name, contrast in (("fits", 1.0), ("flat", 0.0)):
        folder = tmp_path / name
        folder.mkdir()
        work = by_maps(folder, Discs(contrast), Synthesis(("t1",), FeatureDistance(), None, {"lesion": 2}), samples=16)
        told = section(work, QUICK)
        found[name] = (told.numbers["training"]["segmenter"], told.level)
    fits, flat = found["fits"][0], found["flat"][0]
    assert fits["real"]["dice"].value > 0.9 and fits["synthetic"]["dice"].value > 0.85 and fits["synthetic"]["hd95"].value < 3
    assert flat["synthetic"]["dice"].value < 0.5 and flat["real and synthetic"]["dice"].value > flat["synthetic"]["dice"].value
    assert found["fits"][1] is Level.GOOD and found["flat"][1] is not Level.GOOD


def test_masks_of_0_and_255_are_read_as_labels_says(tmp_path, monkeypatch):
    """The judges see what masks of 0 and 1 would show them, and so do the samples; a rule of other classes is refused."""
    monkeypatch.setattr("medgen.evaluation.task.SEEDS", 1)
    told, task = {}, Synthesis(("t1",), FeatureDistance(), None, {"lesion": 2})
    for inside, labels in ((1, {}), (255, {"lesion": {"values": [0, 255]}})):
        folder = tmp_path / str(inside)
        folder.mkdir()
        work = by_maps(folder, Discs(1.0), task, inside, samples=16, labels=labels)
        told[inside] = section(work, QUICK).numbers["training"]["segmenter"]
        assert read_as_trained(work).labels == {"lesion": 2}
    assert told[255] == told[1] and told[1]["synthetic"]["dice"].value > 0.85
    with pytest.raises(MedgenError, match="--labels lesion=0,255"):
        replace(work, labels={}).drawn()
    with pytest.raises(MedgenError, match="makes 3 classes, and the model knows 2"):
        replace(work, labels={"lesion": {"values": [0, 128, 255]}}).drawn()


def test_images_without_the_class_have_no_overlap_and_no_warning():
    values = [np.array([0.5, np.nan, np.nan, np.inf]), np.array([0.7, 0.2, np.nan, 1.0])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = _over_seeds(values)
    assert np.array_equal(found, [0.6, 0.2, np.nan, np.inf], equal_nan=True)


def test_a_fixed_segmenter_finds_lesions_in_a_copy_and_tells_those_that_are_elsewhere(tmp_path):
    for moves in (False, True):
        folder = tmp_path / str(moves)
        folder.mkdir()
        (folder / "list.columns.json").write_text(describe({"lesion": Column("labels", classes=("0: none", "1: a disc"))}))
        told = section(by_maps(folder, Copies(moves), Translation(("t1",), ("t2",), PSNR(2.0)), labels={"lesion": 2}), QUICK)
        lesions, overlap = told.numbers["segmenter"]["lesions"], told.numbers["segmenter"]["lesion=1"]
        assert lesions["real"] == {"found": 8, "there": 8, "false": 0} and overlap["real"].value > 0.85
        if not moves:
            assert lesions["made"] == lesions["real"] and told.level is Level.GOOD
            assert overlap["made"].value == pytest.approx(overlap["real"].value)
        else:
            assert lesions["made"]["found"] <= 2 and lesions["made"]["false"] >= 6 and told.level is Level.BAD
            assert len(told.worst) == 3
        assert any("sensitivity" in table.columns for table in told.tables)
        assert [row[0] for row in told.tables[0].rows] == ["lesion: a disc"], "the class by its name"


def test_errors_in_hounsfield_units_by_tissue(tmp_path, monkeypatch):
    """A CT that is 40 HU too high in bone and right elsewhere."""
    rule = {"name": "ct_hu", "low": -1000.0, "high": 1000.0, "typical": {"low": -1000.0, "high": 1000.0}}
    rows = ["subject,split,mr,ct"]
    for i in range(4):
        ct = np.full((16, 16, 1), -1000.0)
        ct[2:14, 2:14] = 40.0
        ct[5:8, 5:8] = 700.0
        Volume(ct[None].astype(np.float32), np.eye(4)).save(tmp_path / f"{i}_ct.nii.gz")
        Volume((np.where(ct > 600, ct + 40, ct))[None].astype(np.float32), np.eye(4)).save(tmp_path / f"{i}_mr.nii.gz")
        rows.append(f"s{i},test,{i}_mr.nii.gz,{i}_ct.nii.gz")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    contract = Contract(
        2, (16, 16), ("ct",), ("mr",), intensity={"ct": rule, "mr": rule}, spacing=(1.0,) * 3, orientation="RAS", slice_axis=2
    )
    task = Translation(("mr",), ("ct",), PSNR(2.0))
    model = Pretrained(Plain(), task, contract, {}, None)
    work = Work(model, Manifest.read(tmp_path / "list.csv"), tmp_path / "out")
    drawn, plain = [], drawing.scale
    monkeypatch.setattr(drawing, "scale", lambda *given: drawn.append(plain(*given)) or drawn[-1])
    assert "too dark, in HU;" in pixel.section(work).figures[0].note and {scale.text for scale in drawn} == {"40 HU"}
    numbers = hounsfield(work, QUICK).numbers["hounsfield"]
    assert numbers["bone"]["me"].value == pytest.approx(40, abs=0.1) and numbers["bone"]["mae"].unit == "HU"
    assert numbers["soft tissue"]["mae"].value == pytest.approx(0, abs=0.1)
    assert numbers["body"]["mae"].value == pytest.approx(40 * 9 / 144, abs=0.1)


class Plain(torch.nn.Module):
    """The source."""

    caveat = ""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def sample(self, condition, shape, rng):
        return condition.dense


def test_reasons_are_told_where_nothing_can_be_trained(tmp_path):
    told = section(drawn_by_class(tmp_path, "faithful", quick=True), QUICK)
    assert told.skipped == "Networks are not trained with --quick." and not told.tables, "not what other kinds of models would need"
    work = drawn_by_class(tmp_path, "faithful", given={"label": 1})
    assert "carry no truth to train on" in section(work, QUICK).skipped
    table = tmp_path / "list.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:10]) + "\n")
    told = section(Work(work.model, Manifest.read(table), tmp_path / "few", samples=8), QUICK)
    assert "too few" in told.skipped


def test_judges_repeat_by_seed_and_leave_torchs_numbers_alone():
    images = torch.from_numpy(np.stack([bars(i % 2, np.random.default_rng(i)) for i in range(12)])).float()[:, None]
    classes = torch.arange(12) % 2
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    both = [Classifier(CLASSIFIERS[1], images, classes, 2, Training(steps=3, batch=4, seed=1))(images) for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(*both)
    other = Classifier(CLASSIFIERS[1], images, classes, 2, Training(steps=3, batch=4, seed=2))(images)
    assert np.abs(other - both[0]).max() > 1e-3
    np.testing.assert_allclose(both[0].sum(1), 1, atol=1e-6)


def test_a_segmenter_takes_odd_grids_in_two_and_three_dimensions():
    for shape in ((19, 13), (9, 11, 10)):
        images = torch.full((4, 1, *shape), -0.5)
        labels = torch.zeros(4, *shape, dtype=torch.long)
        box = (slice(None), *(slice(2, 7) for _ in shape))
        labels[box] = 1
        images[:, 0][labels == 1] = 0.5
        judge = Segmenter(images, labels, 2, Training(steps=60, batch=8))
        assert judge(images).shape == labels.shape
        assert (judge(images) == labels).float().mean() > 0.97


@pytest.mark.parametrize("dims", [2, 3])
def test_the_classifiers_see_where_things_are_only_if_they_should(dims):
    """The transformer has places; the pooled CNN gives the same for a shift by its stride, away from the rim."""
    x = torch.full((1, 1, *(64,) * dims), -1.0)
    x[(..., *(slice(8, 16),) * dims)] = 1.0
    y = torch.roll(x, [16] * dims, tuple(range(2, 2 + dims)))
    torch.manual_seed(0)
    transformer = MultiScaleTransformer(dims, 1, 2).eval()
    assert (transformer(x) - transformer(y)).abs().max() > 1e-5
    small = SmallClassifier(dims, 1, 3)
    assert small(x).shape == (1, 3)
