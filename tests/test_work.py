"""What an evaluation makes of a model is made once, shared, and found again."""

import json

import numpy as np
import pytest
import torch

from medgen.cli.evaluate import _labels
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.core.levels import Karras
from medgen.core.volume import Volume
from medgen.data.manifest import Manifest
from medgen.data.readers import read
from medgen.evaluation.cost import Calls
from medgen.evaluation.made import network_units
from medgen.evaluation.section import Estimate, Level, Section, skipped
from medgen.evaluation.training_set import read_targets
from medgen.evaluation.work import Work
from medgen.inference import Pretrained
from medgen.metrics.monitor import PSNR, FeatureDistance
from medgen.samplers.euler import Euler
from medgen.samplers.heun import Heun
from medgen.tasks.synthesis import Synthesis
from medgen.tasks.translation import Translation

RULE = {"name": "unit_range", "low": 0.0, "high": 100.0}
SHAPE = (12, 10, 6)


class Half(torch.nn.Module):
    """Half the source plus a draw of its noise, by one call of its network; samples that tell their number."""

    caveat = ""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 1)
        self.network.weight.data.fill_(0.5)
        self.network.bias.data.zero_()

    def sample(self, condition, shape, rng):
        if condition.dense is None:
            return rng.normal(tuple(shape)).clamp(-1, 1)
        return self.network(condition.dense[:, :1, ..., None])[..., 0] + 0.1 * rng.normal(tuple(shape))


@pytest.fixture
def work(tmp_path):
    rows = ["subject,split,t1,t2,tissue,site"]
    for i in range(5):
        for name in ("t1", "t2"):
            values = np.random.default_rng(i).uniform(0, 100, SHAPE).astype(np.float32)
            Volume(values[None], np.diag([1.0, 1, 2, 1])).save(tmp_path / f"{i}_{name}.nii.gz")
        Volume((values > 50).astype(np.uint8)[None], np.diag([1.0, 1, 2, 1])).save(tmp_path / f"{i}_tissue.nii.gz")
        rows.append(f"s{i},{'test' if i < 3 else 'train'},{i}_t1.nii.gz,{i}_t2.nii.gz,{i}_tissue.nii.gz,{'AB'[i % 2]}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")

    def make(task=None, **changes):
        task = task or Translation(["t1"], ["t2"], PSNR(2.0))
        intensity = {c: {**RULE, "typical": {"low": 0.0, "high": 100.0}} for c in {*task.source, *task.target}}
        contract = Contract(
            2, (12, 10), task.target, task.source, intensity=intensity, spacing=(1.0, 1.0, 2.0), orientation="RAS", slice_axis=2
        )
        model = Pretrained(Half(), task, contract, {}, None)
        return Work(model, Manifest.read(tmp_path / "list.csv"), tmp_path / "out", **changes)

    return make


def test_a_case_is_on_the_models_grid_with_its_row_and_regions(work):
    setting = work(labels={"tissue": 2})
    case = setting.case(1)
    assert (case.subject, case.row["site"], len(setting)) == ("s1", "B", 3)
    expected = np.random.default_rng(1).uniform(0, 100, SHAPE) / 50 - 1
    np.testing.assert_allclose(case.target[0, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(case.regions["tissue"][0, 0], expected > 0)
    assert case.body.dtype == torch.bool and case.body.shape == (1, 1, *SHAPE)


def test_regions_are_read_from_masks_of_0_and_255(work):
    manifest = work().manifest.path
    for name in ("0_tissue", "1_tissue", "2_tissue"):
        path = manifest.with_name(f"{name}.nii.gz")
        stored = read(path)
        Volume((stored.array * 255).astype(np.uint8), stored.affine).save(path, overwrite=True)
    with pytest.raises(MedgenError, match="has the value 255"):
        work(labels={"tissue": 2}).case(1)
    for word in ("tissue=0,255", "tissue=binary"):
        case = work(labels=_labels([word])).case(1)
        assert torch.equal(case.regions["tissue"], (case.target > 0).long())
    with pytest.raises(MedgenError, match=r"--labels takes NAME=CLASSES .* got 'tissue=0;255'"):
        _labels(["tissue=0;255"])


def test_an_answer_is_made_once_and_draws_are_averaged(work):
    setting = work(draws=3)
    case = setting.case(0)
    with Calls(setting.model.model) as calls:
        first = setting.made(case, draws=True)
        assert calls.count == first.cost.evaluations == 3
        again = work(draws=3).made(case, draws=True)
        assert calls.count == 3
    assert first.draws.shape == (3, 1, *SHAPE) and first.cost.seconds > 0 and first.cost.memory > 0
    torch.testing.assert_close(first.image[0], first.draws.mean(0))
    torch.testing.assert_close(first.std[0], first.draws.std(0))
    assert torch.equal(first.image, again.image)


def test_another_seed_model_or_manifest_is_another_answer(work):
    setting = work()
    first = setting.made(setting.case(0)).image
    assert not torch.equal(work(seed=1).made(setting.case(0)).image, first)
    changed = work()
    changed.model.model.network.weight.data.fill_(0.25)
    assert not torch.equal(changed.made(changed.case(0)).image, first)
    assert torch.equal(work().made(setting.case(0)).image, first)


def test_the_same_sampler_in_another_process_is_the_same_evaluation(work):
    def kept(sampler) -> str:
        setting = work()
        setting.model.model.sampler = sampler
        return setting.kept.name

    assert kept(Heun(Karras(), steps=5)) == kept(Heun(Karras(), steps=5))
    assert len({kept(Heun(Karras(), 5)), kept(Heun(Karras(), 6)), kept(Heun(Karras(0.1), 5)), kept(Euler(Karras(), 5))}) == 4


def test_processes_share_the_cases_and_the_samples(work):
    told = []
    for place in range(2):
        work(place=place, places=2).make_all(lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2), (1, 1)]
    setting = work()
    with Calls(setting.model.model) as calls:
        assert all(torch.isfinite(setting.made(case).image).all() for case in setting.cases())
        assert calls.count == 0
    synthesis = Synthesis(["t2"], FeatureDistance())
    whole = work(synthesis, samples=5, seed=3).drawn()
    assert whole.shape == (5, 1, 12, 10) and len(torch.unique(whole[:, 0, 0, 0])) == 5
    parts = [work(synthesis, samples=5, seed=4, place=place, places=2) for place in range(2)]
    for number in (1, 3):
        (volume,) = parts[1].model.generate(5, 4, {}, only=[number])
        np.save(parts[1]._sample_path(number), network_units(parts[1].model, volume).numpy())
    assert torch.equal(parts[0].drawn(), work(synthesis, samples=5, seed=4).drawn())


def test_real_images_are_those_that_training_sees(work):
    setting = work(Synthesis(["t2"], FeatureDistance()))
    reals = setting.reals("train")
    assert reals.shape == (12, 1, 12, 10) and read_targets(setting, "train")[1] == ["s3"] * 6 + ["s4"] * 6
    assert torch.equal(torch.stack(list(read_targets(setting, "train")[0])), reals)
    np.testing.assert_allclose(reals[0, 0], np.random.default_rng(3).uniform(0, 100, SHAPE)[..., 0] / 50 - 1, atol=1e-5)


def test_a_missing_target_is_refused(work, tmp_path):
    setting = work()
    (tmp_path / "list.csv").write_text((tmp_path / "list.csv").read_text().replace("1_t2.nii.gz", ""))
    with pytest.raises(MedgenError, match="subject s1 has no file for 't2'"):
        work().case(1)
    assert setting.kind == "translation"


def test_sections_are_plain_data():
    section = Section("pixel", "Pixel fidelity", "fine", Level.GOOD, {"psnr": Estimate(20.0, (18, 22), 5, "dB"), "worst": float("nan")})
    section.worst.append(("s1", "PSNR 12 dB"))
    told = json.loads(json.dumps(section.to_dict(), allow_nan=False))
    assert told["numbers"] == {"psnr": {"value": 20.0, "interval": [18, 22], "n": 5, "unit": "dB"}, "worst": None}
    assert (told["level"], told["worst"]) == ("good", [["s1", "PSNR 12 dB"]])
    assert skipped("task", "Task", "no labels").to_dict()["skipped"] == "no labels"
    assert str(Estimate(20.0, (18.0, 22.0), 5, "dB")) == "20 [18, 22] dB"
    assert Estimate(1, (0, 2)).apart(Estimate(4, (3, 5))) and not Estimate(1, (0, 3)).apart(Estimate(4, (3, 5)))
