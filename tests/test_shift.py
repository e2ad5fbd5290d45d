"""A drop that was put in is found, groups of people are right, and strange inputs stand out."""

import json
import math

import numpy as np
import pytest
import torch

from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.data.manifest import Manifest
from medgen.evaluation import pixel, shift
from medgen.evaluation.section import Level
from medgen.evaluation.work import Work
from medgen.inference import Pretrained
from medgen.metrics.groups import novelty, unpaired, unpaired_all
from medgen.metrics.monitor import PSNR
from medgen.tasks.translation import Translation

SIDE = 32
RULE = {"name": "identity", "typical": {"low": -1.0, "high": 1.0}}


class Copy(torch.nn.Module):
    """Answers with what it is given."""

    caveat = ""

    def sample(self, condition, shape, rng):
        return condition.dense


def picture(rng) -> np.ndarray:
    """A disc with smooth random insides on background."""
    x = rng.standard_normal((SIDE, SIDE))
    for axis in (0, 1) * 4:
        x = (x + np.roll(x, 1, axis)) / 2
    place = np.arange(SIDE) - SIDE / 2 + 0.5
    return np.where(place[:, None] ** 2 + place**2 < 150, np.clip(x, -0.6, 0.6), -1.0).astype(np.float32)


@pytest.fixture
def work(tmp_path):
    """24 training subjects of site A; 8 of A, 8 of B and 3 of C are tested. In B the copy is off by twice as much as in A."""

    def make(columns=("site", "sex", "age"), strange=(), **changes):
        rows, number = [",".join(["subject", "split", "t1", "t2", *columns])], 0
        for split, site, count in (("train", "A", 24), ("test", "A", 8), ("test", "B", 8), ("test", "C", 3)):
            for i in range(count):
                rng = np.random.default_rng(number)
                source = picture(rng)
                size = {"A": 0.1, "B": 0.2, "C": 0.1}[site] * math.exp(0.02 * (i % 4 - 1.5))
                target = np.where(source > -1, source + size, -1.0).astype(np.float32)
                if number in strange:
                    source = np.where(source > -1, rng.uniform(-1, 1, source.shape), -1.0).astype(np.float32)
                np.save(tmp_path / f"{number}_t1.npy", source[None])
                np.save(tmp_path / f"{number}_t2.npy", target[None])
                told = {"site": site, "sex": "FM"[i % 2], "age": str(15 + 8 * (i % 8))}
                rows.append(",".join([f"p{number}", split, f"{number}_t1.npy", f"{number}_t2.npy", *(told[c] for c in columns)]))
                number += 1
        (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
        about = {"name": "discs", "licence": "CC0", "subjects": 24}
        contract = Contract(2, (SIDE, SIDE), ("t2",), ("t1",), intensity={"t1": RULE, "t2": RULE}, data=about)
        model = Pretrained(Copy(), Translation(["t1"], ["t2"], PSNR(2.0)), contract, {}, None)
        return Work(model, Manifest.read(tmp_path / "list.csv"), tmp_path / f"out{len(strange)}", **changes)

    return make


def test_a_known_drop_is_found_with_its_interval(work):
    """Twice the error is 20 log10 2 dB less; that is above the 3 dB at which the part fails."""
    found = shift.section(work(domain="site"))
    assert found.level == Level.BAD
    told = found.numbers["domains"]
    assert found.numbers["reference"] == "A", "the training subjects are of A"
    assert told["A"]["psnr"].value == pytest.approx(20 * math.log10(2 / 0.1), abs=0.01)
    drop = told["B"]["drop"]
    assert drop.value == pytest.approx(20 * math.log10(2), abs=1e-3) and drop.interval[0] < 20 * math.log10(2) < drop.interval[1]
    assert drop.interval[1] - drop.interval[0] < 0.6 and told["B"]["p"] < 0.001
    assert told["C"]["psnr"].n == 3 and told["C"]["psnr"].interval is None and told["C"]["drop"].interval is None
    assert "PSNR falls from A to B by 6.02" in found.verdict
    (table,) = [t for t in found.tables if t.title == "By site"]
    assert [row[:2] for row in table.rows] == [["A", 8], ["B", 8], ["C", 3]]
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_scores_are_those_of_the_first_part(work):
    setting = work()
    own = {row.number: row.value for row in shift.scored(setting)}
    for case in list(setting.cases())[:3]:
        (body, *_) = pixel.score_case(setting.made(case).image, case)
        assert own[case.number] == pytest.approx(body.values["psnr"], abs=1e-4)


def test_groups_of_people_are_compared_with_all_others(work):
    found = shift.section(work())
    groups = found.numbers["groups"]
    assert list(groups) == [
        "site A",
        "site B",
        "site C",
        "sex F",
        "sex M",
        "age 0 to below 18",
        "age 18 to below 40",
        "age 40 to below 60",
        "age 60 to below 80",
    ]
    assert [groups[f"sex {s}"]["psnr"].n for s in "FM"] == [10, 9]
    assert groups["age 0 to below 18"]["psnr"].n == 3 and groups["age 0 to below 18"]["psnr"].interval is None
    values = shift.scored(work())
    women = [row.value for row in values if row.row["sex"] == "F"]
    assert groups["sex F"]["psnr"].value == pytest.approx(np.mean(women))
    rest = np.mean([row.value for row in values if row.row["sex"] == "M"])
    assert groups["sex F"]["below_others"].value == pytest.approx(rest - np.mean(women)) and groups["sex F"]["p"] > 0.05
    assert groups["site B"]["p"] < 0.01 and "PSNR falls for site B" in found.verdict


def test_domains_that_do_not_differ_pass(work):
    found = shift.section(work(columns=("sex",), domain="sex"))
    assert found.level == Level.GOOD and found.verdict.startswith("Of 1 comparisons none is surely worse")
    assert list(found.numbers["domains"]) == ["F", "M"] and not found.numbers["groups"] and not found.worst


def test_strange_inputs_stand_out(work):
    """Subjects p26 and p33 are given noise instead of an image."""
    found = shift.section(work(strange=(26, 33), domain="site"))
    order = [row[0] for row in found.tables[-1].rows]
    assert set(order[:2]) == {"p26", "p33"} and {who for who, _ in found.worst[:2]} == {"p26", "p33"}
    scores = {told["subject"]: told for told in found.numbers["novelty"]}
    usual = sorted(told["score"] for who, told in scores.items() if who not in ("p26", "p33"))
    assert min(scores["p26"]["score"], scores["p33"]["score"]) > 2 * usual[-1] and scores["p26"]["place"] == 1.0
    assert usual[len(usual) // 2] == pytest.approx(1.0, abs=0.25), "other inputs are as far as training subjects from each other"


def test_where_columns_or_training_images_are_missing_it_says_so(work, tmp_path):
    setting = work(columns=())
    found = shift.section(setting)
    assert found.level == Level.NONE and found.numbers["groups"] == {} and len(found.tables) == 1
    kept = [line for line in (tmp_path / "list.csv").read_text().splitlines() if ",train," not in line]
    (tmp_path / "list.csv").write_text("\n".join(kept) + "\n")
    setting.manifest = Manifest.read(tmp_path / "list.csv")
    found = shift.section(setting)
    assert "No column to compare over" in found.skipped and "no row has split 'train'" in found.skipped


def test_bands():
    assert shift.bands("age", ["3", "18", "59.5", "", "80"]) == [
        "0 to below 18",
        "18 to below 40",
        "40 to below 60",
        "not given",
        "80 and more",
    ]
    assert shift.bands("field", ["1.5", "3.0", ""]) == ["1.5", "3.0", "not given"]
    dose = [str(i) for i in range(1, 13)]
    assert sorted(set(shift.bands("dose", dose)), key=shift._sorting) == [
        "below 3.75",
        "3.75 to below 6.5",
        "6.5 to below 9.25",
        "9.25 and more",
    ]


def test_unpaired_differences_are_welchs_and_hold_their_level():
    from scipy import stats

    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, 30), rng.normal(1, 4, 12)
    names = [str(i) for i in range(30)]
    found = unpaired((a, names), (b, names[:12]))
    exact = stats.ttest_ind(a, b, equal_var=False)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.interval == pytest.approx(exact.confidence_interval(), abs=0.05 * (a.mean() - b.mean()))
    assert found.p == pytest.approx(exact.pvalue, abs=0.03)
    hits = inside = 0
    for _ in range(400):
        one = unpaired((rng.normal(0, 1, 6), names[:6]), (rng.normal(0, 3, 18), names[:18]), draws=300)
        hits += one.p < 0.05
        inside += one.interval[0] < 0 < one.interval[1]
    assert hits / 400 < 0.085 and 0.92 < inside / 400 < 0.98
    twice = unpaired(([1.0, 3.0, 5.0, 7.0], ["x", "x", "y", "y"]), ([0.0, 2.0], ["z", "w"]))
    assert twice.difference == 3.0 and twice.subjects == (2, 2), "a subject counts once"
    same = unpaired_all([((a, names), (b, names[:12]))] * 3)
    assert same[0].adjusted == pytest.approx(min(1.0, 3 * same[0].p))
    assert unpaired(([1.0, 1.0], ["a", "b"]), ([1.0, 1.0], ["c", "d"])).interval is None


def test_novelty_is_on_the_scale_of_the_training_set():
    draw = torch.Generator().manual_seed(0)
    training = torch.randn(200, 4, generator=draw)
    found = novelty(torch.cat([torch.randn(200, 4, generator=draw), torch.full((1, 4), 9.0)]), training)
    assert np.mean(found.places[:200] >= 0.95) == pytest.approx(0.05, abs=0.04)
    assert found.places[200] == 1.0 and found.scores[200] > 5 and np.median(found.training) == pytest.approx(1.0)
    with pytest.raises(MedgenError, match=r"4 subjects of a training split are too few .*5 are needed"):
        novelty(training, training[:4])
