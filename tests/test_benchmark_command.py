"""Several models side by side: the same cases and seeds, bold only where the paired tests say so, baselines, costs, and going on."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from halves import SHAPE, halves, translator
from PIL import Image

from medgen.cli.main import main
from medgen.core.errors import MedgenError
from medgen.core.levels import Karras
from medgen.evaluation.benchmark import Method, _notes, check_alike, ranking
from medgen.evaluation.cost import Calls
from medgen.evaluation.pictures import LINE
from medgen.evaluation.pixel import MAIN, Row
from medgen.evaluation.work import Work
from medgen.inference import Pretrained
from medgen.metrics.monitor import FeatureDistance
from medgen.samplers.guidance import ClassifierFree
from medgen.samplers.heun import Heun
from medgen.samplers.schedulers import DiffusersSampler
from medgen.tasks.synthesis import Synthesis


@pytest.fixture
def table(tmp_path) -> Path:
    """Seven subjects whose target is 0.5 of the source with noise, and two to fit on."""
    return halves(tmp_path, ["test"] * 7 + ["train"] * 2)


@pytest.fixture
def models(monkeypatch) -> dict[str, Pretrained]:
    """What the command loads, by name: the source times a number."""
    known = {name: translator(factor, f"runs/{name}") for name, factor in (("near", 0.45), ("far", 0.1))}
    monkeypatch.setattr("medgen.cli.loading.load", lambda name, device: known[name])
    return known


def benchmark(table: Path, *arguments: str) -> tuple[dict, str]:
    out = table.parent / "bench"
    main(["benchmark", "--models", "near", "far", "--data", str(table), "-o", str(out), *arguments])
    return json.loads((out / "benchmark.json").read_text()), (out / "benchmark.html").read_text()


def test_the_better_model_is_bold_and_the_answers_are_those_of_its_own_formula(models, table, capsys):
    told, html = benchmark(table, "--baseline", "copy")
    assert told["best"]["psnr"] == told["best"]["mae"] == "near"
    assert "near is better than every other in PSNR" in capsys.readouterr().out
    near, far = (told["models"][name]["scores"]["regions"]["body"]["mae"] for name in ("near", "far"))
    pairs = [_body(table, i) for i in range(7)]
    for found, factor in ((near, 0.45), (far, 0.1)):
        expected = [np.abs(factor * s - t).mean() for s, t in pairs]
        assert [v["value"] for v in found["volumes"]] == pytest.approx(expected, rel=1e-4)
    gap = told["differences_from_the_best_mean"]["mae"]["far"]
    assert gap["value"] == pytest.approx(far["mean"] - near["mean"]) and gap["interval"][0] > 0
    assert set(told["baselines"]) == {"copy"}
    rows = re.findall(r"<tr><td>(near|far|copy)</td>(.*?)</tr>", html[html.index("Scores in the body") :])
    assert [name for name, cells in rows[:3] if "<strong>" in cells.split("</td>")[0]] == ["near"]


def _body(table: Path, i: int) -> tuple[np.ndarray, np.ndarray]:
    from medgen.data.readers import read

    source, target = (read(table.parent / f"{i}_{name}.nii.gz").array[0, 2:-2, 2:-2, 1:-1] / 50 - 1 for name in ("t1", "t2"))
    return source, target


def test_the_fitted_line_beats_both_and_then_no_model_is_bold(models, table):
    told, _ = benchmark(table)
    assert set(told["baselines"]) == {"copy", "line", "curve"}
    assert told["best"]["psnr"] not in ("near", "far")
    assert told["differences_from_the_best_mean"]["psnr"]["near"]["value"] < 0


def test_baselines_that_cannot_be_fitted_are_told(models, table):
    rows = [line for line in table.read_text().splitlines() if ",train," not in line]
    table.write_text("\n".join(rows) + "\n")
    told, html = benchmark(table)
    assert set(told["baselines"]) == {"copy"}
    assert any("the manifest has no training subjects" in note for note in told["notes"]) and "add rows with split train" in html
    told, _ = benchmark(table, "--baseline", "copy", "--overwrite")
    assert not any("training subjects" in note for note in told["notes"]), "they were not asked for"


def test_costs_are_counted_and_a_second_run_asks_no_network(models, table):
    told, html = benchmark(table, "--baseline", "none")
    spent = told["models"]["near"]["cost"]
    assert spent["sampler"] is None and "<td>one pass</td>" in html
    assert spent["evaluations"] == 2 and spent["seconds"] > 0 and spent["memory_bytes"] > 0, "12 slices in batches of 8"
    with Calls(models["near"].model) as near, Calls(models["far"].model) as far:
        again, _ = benchmark(table, "--baseline", "none", "--overwrite")
    assert near.count == far.count == 0 and again == told


def test_how_each_model_is_sampled_stands_beside_what_it_costs(models, table):
    models["near"].model.sampler = DiffusersSampler("UniPCMultistepScheduler", 12)
    models["near"].model.guidance = ClassifierFree(2.5)
    models["far"].model.sampler = Heun(Karras(), steps=1)
    told, html = benchmark(table, "--baseline", "none")
    cost = {name: model["cost"] for name, model in told["models"].items()}
    assert {name: cost["near"][name] for name in ("sampler", "steps", "guidance")} == {
        "sampler": "UniPCMultistepScheduler",
        "steps": 12,
        "guidance": 2.5,
    }
    assert cost["far"]["sampler"] == "Heun" and cost["far"]["steps"] == 1 and cost["far"]["guidance"] is None
    costs = html[html.index("<h3>Costs</h3>") :]
    assert "<td>UniPCMultistepScheduler, 12 steps, guidance 2.5</td>" in costs and "<td>Heun, 1 step</td>" in costs


def test_few_subjects_are_never_bold(models, table):
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:6]) + "\n")
    told, html = benchmark(table, "--baseline", "copy")
    assert not any(told["best"].values()) and "With 5 subjects no difference can be significant" in html


def test_ranking_needs_the_interval_and_the_test():
    def method(name: str, shift: float, noise: float) -> Method:
        rng = np.random.default_rng(len(name))
        values = [dict.fromkeys(MAIN, 1.0) | {"psnr": 20 + i + shift + noise * rng.normal()} for i in range(10)]
        return Method(name, [Row(i, f"s{i}", "body", v) for i, v in enumerate(values)])

    plain = method("a", 0.0, 0.0)
    best, differences = ranking([plain, method("bb", 0.5, 0.1)], ["psnr"])
    assert best == {"psnr": "bb"} and differences["psnr"]["a"].value == pytest.approx(-0.5, abs=0.1)
    best, differences = ranking([plain, method("bb", 0.05, 1.0)], ["psnr"])
    assert best == {"psnr": None} and len(differences["psnr"]) == 1


def test_what_cannot_be_compared_is_refused(models, table, capsys, monkeypatch):
    models["far"].contract = replace(models["far"].contract, spacing=(2.0, 2.0, 1.0))
    with monkeypatch.context() as changed, pytest.raises(SystemExit):
        changed.setattr(Work, "make_all", lambda *_: pytest.fail("a model was run before all of them were checked"))
        benchmark(table)
    assert "near and far cannot be compared: their grid differ" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["benchmark", "--models", "near", "near", "--data", str(table), "-o", str(table.parent / "b")])
    assert "named twice" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["benchmark", "--models", "near", "--data", str(table), "-o", str(table.parent / "b"), "--baseline", "cury"])
    assert "did you mean 'curve'" in capsys.readouterr().err
    work = Work(models["near"], None, table.parent)
    with pytest.raises(MedgenError, match="their kind differ"):
        check_alike({"near": work}, "noise", Work(_sampler(models["near"], 0.0), None, table.parent))


class Drawn(torch.nn.Module):
    """White noise of some spread around a constant."""

    caveat = ""

    def __init__(self, spread: float):
        super().__init__()
        self.network = torch.nn.Linear(1, 1)
        self.spread = torch.nn.Parameter(torch.tensor(spread))

    def sample(self, condition, shape, rng):
        return (self.spread * rng.normal(tuple(shape))).clamp(-1, 1)


def _sampler(like: Pretrained, spread: float) -> Pretrained:
    contract = replace(like.contract, source=())
    return Pretrained(Drawn(spread), Synthesis(["t2"], FeatureDistance()), contract, {}, Path(f"runs/noise{spread}"))


def test_models_of_synthesis_are_compared_as_sets(models, table, capsys):
    models["near"], models["far"] = (_sampler(models["near"], spread) for spread in (0.3, 0.02))
    told, html = benchmark(table, "-n", "8")
    ratios = {name: model["samples"]["frechet"]["ratio"] for name, model in told["models"].items()}
    assert ratios["near"] < ratios["far"]
    assert capsys.readouterr().out.index("near ") < html.index("Samples beside real images")
    assert told["kind"] == "synthesis" and "nothing is bold" in html


def test_a_method_far_below_a_copy_of_the_source_is_told(monkeypatch):
    def method(name, value):
        rows = [SimpleNamespace(subject=f"s{i}", values={"psnr": value}) for i in range(8)]
        return SimpleNamespace(name=name, rows=rows)

    notes = _notes([method("good", 20.0), method("noise", -29.0), method("copy", 14.0)])
    assert "Far below a copy of the source (14 dB): noise (-29 dB)." in notes[-1] and "good" not in notes[-1]
    assert not any("Far below" in note for note in _notes([method("good", 20.0), method("copy", 14.0)]))


def test_differences_of_all_methods_of_a_case_have_one_scale(models, table):
    """Air, -1 in the truth, is 0.55 too bright in the near answer and 0.9 in the far one, and so is its red."""
    _, html = benchmark(table, "--baseline", "none")
    with Image.open(table.parent / "bench" / "figures" / "cases_1.png") as file:
        picture = np.asarray(file)
    line = picture[LINE + 9 * SHAPE[1] + 2 + 1, 30:, 0]  # the top of the differences of the first case, each pixel drawn nine times
    reds = [int(red) for red in dict.fromkeys(line.tolist()) if red]
    assert reds[:2] == [round(255 * 0.55 / 0.9), 255]
    assert "one scale for all methods of a case" in html and "network units (full range 2)" in html
