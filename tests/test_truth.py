"""Models whose faults are known: one that copies, one that blurs, some that paint; draws that are right and draws that are too sure."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medgen.core.contract import Contract
from medgen.core.fourier import fft, ifft
from medgen.core.volume import Volume
from medgen.data.manifest import Manifest
from medgen.evaluation import calibration, hallucination, probes
from medgen.evaluation.cost import Calls
from medgen.evaluation.parts import PARTS, chosen, measured, prepare
from medgen.evaluation.section import Level
from medgen.evaluation.work import Work
from medgen.inference import Pretrained
from medgen.metrics.lesions import blob, smoothed
from medgen.metrics.monitor import PSNR
from medgen.operators.mri import MaskedFourier
from medgen.operators.sampling import Lines
from medgen.tasks.reconstruction import Reconstruction
from medgen.tasks.synthesis import Synthesis
from medgen.tasks.translation import Translation

RULE = {"name": "unit_range", "low": 0.0, "high": 100.0, "typical": {"low": 0.0, "high": 100.0}}
SHAPE, SPACING = (64, 60, 3), (1.5, 1.5, 12.0)
PLACE, SIZE = (30.0, 26.0), (5.0, 5.0)
LESION, SPREAD = 0.7, 0.3  # of the lesion in the source; the target is the source with its sign changed


class Model(torch.nn.Module):
    """What is given with its sign changed (but not its background), and then `fault(image, rng)`."""

    caveat = ""

    def __init__(self, fault=lambda image, rng: image, sign=-1.0):
        super().__init__()
        self.network = torch.nn.Linear(1, 1, bias=False)
        self.network.weight.data.fill_(sign)
        self.fault = fault
        self.latent = 1

    def sample(self, condition, shape, rng):
        given = condition.dense[:, :1]
        made = self.fault(self.network(given[..., None])[..., 0], rng)
        return made if self.network.weight > 0 else made.where(given > -0.999, -1.0)


def blurred(image, rng):
    return torch.stack([smoothed(plane[0], 6.0)[None].float() for plane in image])


def painted(place, value, size=SIZE):
    """A model that puts the same blob into every slice."""

    def fault(image, rng):
        w = blob(tuple(image.shape[2:]), place, size).float()
        return image * (1 - w) + value * w

    return fault


def widths():
    """(H, 1) standard deviation of the truth about the source's opposite."""
    return SPREAD * torch.linspace(0.1, 1, SHAPE[0])[:, None]


@pytest.fixture
def work(tmp_path):
    """Discs of smooth tissue whose target is their source with the sign changed; all but s3 have one lesion, at the same place."""
    inside = ((torch.arange(64)[:, None] - 32) ** 2 + (torch.arange(60) - 30) ** 2 < 27**2).numpy()
    rows = ["subject,split,t1,t2,lesion"]
    for i in range(4):
        rng = np.random.default_rng(i)
        texture = smoothed(torch.from_numpy(rng.normal(0, 0.3, SHAPE)), 2.0).numpy()
        w = blob(SHAPE[:2], PLACE, SIZE).numpy()[..., None] * (i != 3)
        source = (-0.1 + texture) * (1 - w) + LESION * w
        noise = rng.normal(size=SHAPE) * widths().numpy()[..., None]
        images = {"t1": source, "t2": -source, "noisy": -source + noise}
        for name, values in images.items():
            stored = np.where(inside[..., None], (values + 1) * 50, 0)
            Volume(stored[None].astype(np.float32), np.diag([*SPACING, 1])).save(tmp_path / f"{i}_{name}.nii.gz")
        mask = (np.broadcast_to(w, SHAPE) > 0.5).astype(np.uint8)
        Volume(mask[None], np.diag([*SPACING, 1])).save(tmp_path / f"{i}_lesion.nii.gz")
        rows.append(f"s{i},test,{i}_t1.nii.gz,{i}_t2.nii.gz,{i}_lesion.nii.gz")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "noisy.csv").write_text("\n".join(rows).replace("_t2", "_noisy") + "\n")

    def make(model, task=None, data="list.csv", labels=True, **changes):
        task = task or Translation(["t1"], ["t2"], PSNR(2.0))
        intensity = {c: RULE for c in {*task.source, *task.target}}
        contract = Contract(2, SHAPE[:2], task.target, task.source, intensity=intensity, spacing=SPACING, orientation="RAS", slice_axis=2)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        settings = {"labels": {"lesion": 2} if labels else {}, **changes}
        return Work(Pretrained(model, task, contract, {}, None), Manifest.read(tmp_path / data), folder, **settings)

    return make


def test_a_model_that_copies_misses_nothing_and_makes_nothing_up(work):
    told = hallucination.section(work(Model()))
    lesions = told.numbers["lesions"]
    assert {kind: one["n"] for kind, one in lesions.items()} == {"there": 3, "added": 16, "removed": 3}
    for kind, shown in (("there", 100), ("added", 100), ("removed", 0)):
        assert lesions[kind]["wrong"].value == 0 and lesions[kind]["shown"].value == pytest.approx(shown, abs=0.5)
    assert lesions["there"]["wrong"].interval == (0.0, pytest.approx(100 * (1 - 0.025 ** (1 / 3))))
    assert told.numbers["structures"]["false"]["per_image"].value == told.numbers["structures"]["lost"]["per_image"].value == 0
    assert told.numbers["resolution"]["median"].value == 1.0
    assert told.level == Level.WATCH and told.worst == []  # four subjects are few: the intervals reach beyond 20 %
    json.dumps(told.to_dict(), allow_nan=False)


def test_a_model_that_blurs_misses_lesions_the_small_ones_first(work):
    told = hallucination.section(work(Model(blurred)))
    added = told.numbers["lesions"]["added"]
    assert added["wrong"].value > 90 and added["small"]["shown"].value < added["large"]["shown"].value < 50
    assert told.numbers["lesions"]["removed"]["wrong"].value == 0
    assert told.level == Level.BAD and "missed" in told.worst[0][1]
    assert told.numbers["resolution"]["median"].value < 0.7
    assert {figure.title for figure in told.figures} >= {"Lesions that went wrong"}


def test_a_model_that_always_paints_the_lesion_shows_it_when_it_is_gone(work):
    told = hallucination.section(work(Model(painted(PLACE, -LESION))))
    assert told.numbers["lesions"]["there"]["wrong"].value == 0
    removed = told.numbers["lesions"]["removed"]
    assert removed["wrong"].value == 100 and removed["shown"].value == pytest.approx(100, abs=3)
    scan = told.numbers["structures"]
    assert scan["false"]["per_image"].value == 0.25 and scan["lost"]["per_image"].value == 0  # in s3, which has none
    assert told.level == Level.BAD and told.worst[0] == ("s0", "1 lesion that was removed still shown")


def test_a_blob_painted_where_nothing_is_counts_once_in_every_image(work):
    told = hallucination.section(work(Model(painted((36.0, 42.0), 0.9))))
    scan = told.numbers["structures"]
    assert scan["false"]["per_image"].value == 1 and scan["false"]["per_image"].interval == (1, 1)
    assert told.numbers["lesions"]["there"]["wrong"].value == 0
    hole = hallucination.section(work(Model(painted((36.0, 42.0), -0.05, (2.0, 2.0)))))  # too small and faint
    assert hole.numbers["structures"]["false"]["per_image"].value == 0


def test_without_a_label_map_only_a_response_counts(work):
    told = hallucination.section(work(Model(), labels=False))
    lesions = told.numbers["lesions"]
    assert list(lesions) == ["unanswered"] and lesions["unanswered"]["wrong"].value == 0
    assert lesions["unanswered"]["shown"].value == pytest.approx(-100, abs=0.5)  # the opposite of what was put in
    assert told.level == Level.WATCH and "not known" in told.protocol["added lesions"]
    deaf = hallucination.section(work(Model(lambda image, rng: torch.zeros_like(image)), labels=False))
    assert deaf.numbers["lesions"]["unanswered"]["wrong"].value == 100 and deaf.level == Level.BAD


CT = {"name": "ct_hu", "low": -1000.0, "high": 1000.0, "typical": {"low": -1000.0, "high": 1000.0}}


def test_between_ct_of_one_window_a_change_of_numbers_is_the_same_change(tmp_path):
    """A 3D model without a label map: what is put into the source is known in the target. Half of it is half shown."""
    shape = (40, 36, 32)
    ball = blob(shape, tuple(n / 2 for n in shape), (17.0, 16.0, 15.0)).numpy()
    rows = ["subject,split,low,full"]
    for i in range(3):
        texture = smoothed(torch.from_numpy(np.random.default_rng(i).normal(0, 400, shape)), 2.0).numpy()
        stored = np.where(ball > 0.5, texture, -1000.0)
        Volume(stored[None].astype(np.float32), np.diag([3.0, 3, 3, 1])).save(tmp_path / f"{i}.nii.gz")
        rows.append(f"s{i},test,{i}.nii.gz,{i}.nii.gz")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    contract = Contract(3, shape, ("full",), ("low",), intensity={"low": CT, "full": CT}, spacing=(3.0,) * 3, orientation="RAS")

    def section(model):
        pretrained = Pretrained(model, Translation(["low"], ["full"], PSNR(2.0)), contract, {}, None)
        return hallucination.section(Work(pretrained, Manifest.read(tmp_path / "list.csv"), tmp_path / "o"))

    told = section(Model(sign=1.0))
    added = told.numbers["lesions"]["added"]
    assert added["n"] > 8 and added["wrong"].value == 0 and added["shown"].value == pytest.approx(100, abs=0.1)
    part = section(Model(sign=0.4)).numbers["lesions"]["added"]
    assert part["wrong"].value == 100 and part["shown"].value == pytest.approx(40, abs=0.1)


def test_pictures_have_no_millimetres_and_lesions_a_part_of_their_size(tmp_path):
    rows = ["subject,split,before,after"]
    for i in range(2):
        plane = smoothed(torch.from_numpy(np.random.default_rng(i).normal(0, 200, (80, 80))), 3.0).numpy() + 120
        plane[:8], plane[-8:], plane[:, :8], plane[:, -8:] = 0, 0, 0, 0
        Volume(plane[None].astype(np.float32)).save(tmp_path / f"{i}.npy")
        rows.append(f"s{i},test,{i}.npy,{i}.npy")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    rule = {"name": "unit_range", "low": 0.0, "high": 255.0, "typical": {"low": 0.0, "high": 255.0}}
    contract = Contract(2, (80, 80), ("after",), ("before",), intensity={"before": rule, "after": rule})
    pretrained = Pretrained(Model(sign=1.0), Translation(["before"], ["after"], PSNR(2.0)), contract, {}, None)
    setting = Work(pretrained, Manifest.read(tmp_path / "list.csv"), tmp_path / "o")
    case = setting.case(0)
    assert probes.radii(case, probes.voxel(setting, case)) == (4.0, 4.0) and probes.radii(case, None, 0) == (2.0, 2.0)
    told = hallucination.section(setting)
    assert (
        told.numbers["lesions"]["unanswered"]["shown"].value == pytest.approx(100, abs=0.1) and "detail" not in told.numbers["resolution"]
    )


def test_changed_cases_are_run_once_and_not_at_all_in_a_hurry(work):
    setting = work(Model())
    with Calls(setting.model.model) as calls:
        hallucination.section(setting)
        assert calls.count == 8  # one answer for each case, and one for each with its lesions changed
        hallucination.section(setting)
        assert calls.count == 8
    quick = hallucination.section(work(Model(), quick=True))
    assert set(quick.numbers["lesions"]) == {"there"} and quick.numbers["changed_cases"] == 0


def test_processes_share_the_runs_with_changed_lesions_and_an_interrupted_one_goes_on(work):
    setting, told = work(Model()), []
    ranks = [replace(setting, place=place, places=2) for place in range(2)]
    with Calls(setting.model.model) as calls:
        for rank in ranks:
            rank.make_all()
        assert calls.count == 4
        for i, rank in enumerate(ranks, 1):
            prepare(rank, chosen(["hallucination", "calibration"]), lambda *said: told.append(said))
            assert calls.count == 4 + 2 * i
        assert told == [("hallucination", 1, 2), ("hallucination", 2, 2)] * 2
        hallucination.section(ranks[0])
        assert calls.count == 8, "rank 0 has nothing left to run"
    fourth = work(Model())
    fourth.make_all()

    def stopped(name, done, of):
        if done == 3:
            raise KeyboardInterrupt

    with Calls(fourth.model.model) as calls:
        with pytest.raises(KeyboardInterrupt):
            prepare(fourth, chosen(["hallucination"]), stopped)
        assert calls.count == 3
        hallucination.section(fourth)
        assert calls.count == 4


def test_what_fails_while_it_is_shared_is_told_by_its_part_and_the_others_go_on(work):
    setting = work(Model(), draws=2)
    setting.make_all()

    def broken(image, rng):
        raise ValueError("on purpose")

    setting.model.model.fault = broken
    prepare(setting, PARTS, lambda *said: None)
    by_name = {section.name: section for section in measured(setting, chosen(["hallucination", "calibration"]))}
    assert "ValueError: on purpose" in by_name["hallucination"].skipped and by_name["calibration"].numbers["deterministic"]


def test_samples_have_no_truth(work):
    setting = work(Model(), Synthesis(["t1"], PSNR(2.0)))
    assert hallucination.section(setting).skipped and calibration.section(setting).skipped


def reconstruction(lines=2):
    return Reconstruction(["t1"], PSNR(2.0), MaskedFourier(), Lines(acceleration=lines), 0.001)


def test_a_zero_filled_reconstruction_shows_of_a_lesion_what_its_lines_carry(work):
    """Without noise to speak of, the answer changes by Re F* M F of what was added."""
    setting = work(Model(sign=1.0), reconstruction())
    case = setting.case(3)
    change = probes.changed(setting, case, "lesion", None)
    found = [one for one in probes.outcome(case, change, probes.first_answer(setting, case), probes.answer(setting, change.case))]
    state = setting.model.simulate(str(setting.manifest.file(case.row, "t1")), seed=0).state
    assert len(found) == len(change.added) == 4
    added = (change.case.target - case.target)[0, 0].movedim(2, 0)[:, None]
    carried = ifft(state["mask"] * fft(added, 2), 2).real[:, 0].movedim(0, 2)
    for one, (place, _) in zip(found, change.added, strict=True):
        expected = place.contrast(carried) / place.contrast(added[:, 0].movedim(0, 2))
        assert one.share == pytest.approx(expected, abs=0.08) and expected < 0.95


def test_the_error_of_a_reconstruction_is_split_by_what_was_measured(work):
    told = hallucination.section(work(Model(sign=1.0), reconstruction()))
    parts = told.numbers["error_parts"]
    assert parts["range"].value + parts["null"].value == pytest.approx(100) and parts["null"].value > 95
    assert parts["seen"] < 1e-6
    assert any(figure.title == "What the measurement says of the error" for figure in told.figures)


def noise(factor):
    return lambda image, rng: image + factor * widths() * rng.normal(tuple(image.shape))


def test_draws_of_the_true_posterior_cover_the_truth(work):
    told = calibration.section(work(Model(noise(1.0)), data="noisy.csv", draws=5))
    for level, share in told.numbers["coverage"].items():
        assert share.value == pytest.approx(100 * float(level), abs=3)
    assert told.level == Level.GOOD and told.numbers["ratio"].value == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(told.numbers["ranks"], 1 / 6, atol=0.02)
    assert told.numbers["correlation"].value == pytest.approx(told.numbers["attainable"].value, abs=0.05)
    assert told.numbers["expected_error"].value < 0.02
    assert told.worst == [] and [figure.title for figure in told.figures][:2] == ["Reliability", "Rank histogram"]
    json.dumps(told.to_dict(), allow_nan=False)


def test_draws_that_are_too_sure_are_flagged_and_the_worst_subject_named(work):
    told = calibration.section(work(Model(noise(0.3)), data="noisy.csv", draws=5))
    assert told.level == Level.BAD and "overconfident" in told.verdict and len(told.worst) == 3
    expected = 0.3 * math.sqrt((1 + 1 / 5) / (1 + 0.3**2 / 5))
    assert told.numbers["ratio"].value == pytest.approx(expected, rel=0.05)
    ends = told.numbers["ranks"][0] + told.numbers["ranks"][-1]
    assert ends > 0.6


def test_draws_that_are_too_wide_are_watched(work):
    told = calibration.section(work(Model(noise(3.0)), data="noisy.csv", draws=5))
    assert told.level == Level.WATCH and "wider than its error" in told.verdict


def test_one_draw_or_always_the_same_says_nothing_of_uncertainty(work):
    assert "--draws 8" in calibration.section(work(Model())).skipped
    told = calibration.section(work(Model(), draws=3))
    assert told.level == Level.WATCH and told.numbers == {"deterministic": True} and "always the same" in told.verdict
