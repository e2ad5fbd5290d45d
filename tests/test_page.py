"""The report of an evaluation: what the page says, that it needs nothing else, that it goes on, and that parts survive each other."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from halves import SHAPE, halves, translator
from PIL import Image

from medgen.cli.main import main
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.columns import Column, describe, sidecar
from medgen.evaluation import parts
from medgen.evaluation.card import card_text, checks
from medgen.evaluation.cost import Calls
from medgen.evaluation.encoder import built_in
from medgen.evaluation.page import _how_good, cautions, interval, page, section_html, table_html
from medgen.evaluation.section import Estimate, Figure, Level, Section, Table, skipped
from medgen.inference import Pretrained
from medgen.metrics.monitor import PSNR
from medgen.tasks.translation import Translation


@pytest.fixture
def loaded(monkeypatch):
    """The model that every command loads."""
    model = translator()
    monkeypatch.setattr("medgen.cli.loading.load", lambda name, device: model)
    return model


@pytest.fixture
def table(tmp_path) -> Path:
    """Four test subjects whose targets are half their sources and a little off, subject s2 much, in two sites; two training subjects."""
    return halves(tmp_path, ["test"] * 4 + ["train"] * 2, {2: 0.4}, subject="s{}<b>")


def evaluate(table: Path, *arguments: str) -> tuple[dict, str]:
    out = table.parent / "report"
    main(["evaluate", "halved", "--data", str(table), "-o", str(out), *(arguments or ("--parts", "pixel", "samples"))])
    return json.loads((out / "evaluation.json").read_text()), (out / "evaluation.html").read_text()


def test_the_page_says_how_good_on_what_how_sure_and_what_went_wrong(loaded, table):
    told, html = evaluate(table)
    pixel = told["sections"]["pixel"]
    assert told["model"]["name"] == "halved" and told["n"] == {"volumes": 4, "subjects": 4, "draws": 1}
    assert pixel["worst"][0][0] == "s2<b>" and pixel["numbers"]["above_baseline"]["baseline"] in ("line", "curve")
    first = html[html.index('class="first"') : html.index("<h2")]
    for said in ("How good", "On what", "How sure", "What went wrong", "4 subjects", "split test", "a drawn set, 4 subjects", "are few"):
        assert said in first, said
    assert first.index("<strong>s2&lt;b&gt;</strong>") < first.index("data:image/png;base64,")
    assert pixel["verdict"].replace("'", "&#x27;") in first
    perceptual = pixel["numbers"]["perceptual"]
    assert perceptual["encoder"] == built_in(2).name and perceptual["encoder"] in html
    assert perceptual["model"]["n"] == 4 and perceptual["model"]["value"] == pytest.approx(perceptual["line"]["value"], rel=0.05)
    assert "Not measured here, and why" in html and "Samples at a glance" in html[html.index('id="left"') :]


def test_regions_have_the_names_of_their_classes(loaded, table):
    """Stored 7 is called rim: the second class of --labels part=0,7,9; 9 has no name, and names that come later are seen."""
    part = np.zeros(SHAPE, np.float32)
    part[4:8, 4:8], part[8:12, 4:8] = 7, 9
    Volume(part[None], np.eye(4)).save(table.parent / "part.nii.gz")
    lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{lines[0]},part", *(f"{line},part.nii.gz" for line in lines[1:])]) + "\n")
    options = ("--parts", "pixel", "--labels", "part=0,7,9")
    _, before = evaluate(table, *options)
    assert "<td>part=1</td><td>4</td>" in before and "<td>whole image</td><td>4</td>" in before, "with the subjects that have it"
    assert "MAE in network units, whose full range is 2" in before
    assert "<td>part=1</td>" in before and "<td>part=2</td>" in before
    sidecar(table).write_text(describe({"part": Column("labels", classes=("0: rest", "7: rim & <i>core</i>"))}))
    told, html = evaluate(table, *options, "--overwrite")
    assert told["sections"]["pixel"]["numbers"]["region_names"] == {"part=1": "part: rim & <i>core</i>"}
    assert (
        html.count("<td>part: rim &amp; &lt;i&gt;core&lt;/i&gt;</td>") == 2 and "<td>part=1</td>" not in html and "<td>part=2</td>" in html
    )
    sidecar(table).write_text("{}")
    with pytest.raises(SystemExit):
        evaluate(table, *options, "--overwrite")


def test_the_page_needs_nothing_outside_it(loaded, table):
    _, html = evaluate(table)
    assert not re.findall(r"https?:|//\w|@import|url\(|<script|<link", re.sub(r"base64,[\w+/=]+", "", html))
    assert re.findall(r'(?:src|href)="?([^"\s>]*)', html) and not [
        place for place in re.findall(r'(?:src|href)="?([^"\s>]*)', html) if not place.startswith(("data:image/png", "#"))
    ]
    targets = set(re.findall(r'href="?#([^"\s>]*)', html))
    assert targets <= set(re.findall(r'id="([^"]*)"', html))
    assert "<b>" not in html and "\N{EM DASH}" not in html
    assert "prefers-color-scheme: dark" in html and "max-width: 720px" in html


def test_one_subject_has_no_interval_and_the_page_says_so(loaded, table, capsys):
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], lines[1]]) + "\n")
    told, html = evaluate(table)
    first = html[: html.index("<h2")]
    assert "One subject, 1 image: one subject cannot tell how much subjects differ, so there is no interval over subjects" in first
    assert "beware: One subject, 1 image" in capsys.readouterr().out
    assert told["sections"]["pixel"]["numbers"]["regions"]["body"]["psnr"]["interval"] is None
    assert 'class="interval"' not in html


def test_one_subject_is_said_on_the_first_screen_also_where_images_have_intervals():
    """Whatever intervals a part has, of four samples beside one subject's images none is over subjects."""
    told = {
        "model": {"name": "m", "kind": "synthesis", "family": "Diffusion", "target": ["t1"], "size": [8, 8], "spacing": None, "folder": "m"}
        | {"conditions": [], "numbers": 1, "training_data": {}, "sampler": "Heun", "steps": 2, "guidance": None, "weights": "0"},
        "data": {"manifest": "list.csv", "split": "test", "domain": None, "subjects": 1, "volumes": 30},
        "n": {"subjects": 1, "volumes": 30, "samples": 4},
        "settings": {"samples": 4, "given": {}, "seed": 0},
        "cost": {},
        "versions": {},
    }
    shown = [Table("t", ["a", "b"], [["x", Estimate(1.0, (0.5, 2.0), 4)]])]
    html = page(told, [Section("samples", "Samples", "Far.", tables=shown)])
    first = html[html.index("How sure") : html.index("<h2")]
    assert "One subject, 30 images, 4 samples:" in first and "no interval over subjects" in first
    assert "resample images, not subjects" in first and "4 samples are few: draw more by -n" in first
    more = {**told, "n": {"subjects": 40, "volumes": 40, "samples": 64}}
    assert cautions(more) == [] and cautions({**more, "n": {**more["n"], "subjects": 9}}) == ["9 subjects are few: intervals are rough."]


def test_colour_pictures_without_geometry_have_a_page_too(tmp_path, monkeypatch):
    """A model of plain pictures that doubles nothing: its answer is its source, so MAE is the distance of the two files."""
    rule = {"name": "unit_range", "low": 0.0, "high": 255.0, "typical": {"low": 0.0, "high": 255.0}}
    colours = ("red", "green", "blue")
    source, target = (tuple(f"{name}_{colour}" for colour in colours) for name in ("he", "ihc"))
    contract = Contract(2, (40, 32), target, source, intensity=dict.fromkeys((*source, *target), rule))

    class Copy(torch.nn.Module):
        caveat = ""

        def sample(self, condition, shape, rng):
            return condition.dense

    model = Pretrained(Copy(), Translation(source, target, PSNR(2.0)), contract, {}, Path("copier"))
    monkeypatch.setattr("medgen.cli.loading.load", lambda name, device: model)
    rows = ["subject,split,he,ihc"]
    for i in range(2):
        array = np.random.default_rng(i).integers(20, 200, (40, 32, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{i}_he.png")
        Image.fromarray(array + 10 + i).save(tmp_path / f"{i}_ihc.png")
        rows.append(f"s{i},test,{i}_he.png,{i}_ihc.png")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    told, html = evaluate(tmp_path / "list.csv")
    volumes = told["sections"]["pixel"]["numbers"]["regions"]["whole"]["mae"]["volumes"]
    assert [v["value"] for v in volumes] == pytest.approx([10 / 127.5, 11 / 127.5], rel=1e-4)
    assert told["sections"]["pixel"]["worst"][0][0] == "s1" and "All cases, the worst first" in html


def test_an_interrupted_evaluation_goes_on_without_making_anything_twice(loaded, table, monkeypatch):
    plain = Pretrained.predict
    seen = []

    def interrupted(self, *arguments):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(Pretrained, "predict", interrupted)
    with pytest.raises(SystemExit):
        evaluate(table)
    assert not (table.parent / "report" / "evaluation.json").exists()
    with Calls(loaded.model) as calls:
        told, _ = evaluate(table)
    assert calls.count == 2 * 2, "two volumes were left, of two batches of slices each"
    with Calls(loaded.model) as calls:
        again, _ = evaluate(table, "--overwrite", "--parts", "pixel", "samples")
    assert calls.count == 0 and again == told


def broken(work):
    raise ValueError("out of luck")


def counted(work):
    counted.times += 1
    shown = Table("t", ["a", "b", "c"], [["x", Estimate(1.0, (0.5, 2.0), 3, "dB"), Estimate(9.0, (8.0, 9.5))]], unlike=["c"])
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    return Section("counted", "Counted", "fine.", Level.GOOD, {"n": 1}, [shown], [Figure("p", picture, "n")], [("s", "w")], {"k": "v"})


def test_an_evaluation_of_which_nothing_came_is_no_success(loaded, table, monkeypatch, capsys):
    monkeypatch.setattr(parts, "PARTS", (parts.Part("gone", "medgen_test_gone:section", "Gone"),))
    with pytest.raises(SystemExit) as ended:
        evaluate(table, "--parts", "gone")
    assert ended.value.code and "no part could be measured" in capsys.readouterr().err
    html = (table.parent / "report" / "evaluation.html").read_text()
    assert "Parts measured: 0 of 1." in html and "gives the same numbers" not in html


def test_a_part_that_fails_or_is_missing_does_not_end_the_others(loaded, table, monkeypatch, capsys):
    module = ModuleType("medgen_test_parts")
    module.broken, module.counted, counted.times = broken, counted, 0
    monkeypatch.setitem(sys.modules, "medgen_test_parts", module)
    listed = [("broken", "medgen_test_parts:broken"), ("gone", "medgen_test_gone:section"), ("counted", "medgen_test_parts:counted")]
    monkeypatch.setattr(parts, "PARTS", tuple(parts.Part(name, place, name.title()) for name, place in listed))
    told, html = evaluate(table, "--parts", "broken", "gone", "counted")
    sections = told["sections"]
    assert list(sections) == ["broken", "gone", "counted"] and sections["counted"]["verdict"] == "fine."
    assert "ValueError: out of luck" in sections["broken"]["skipped"] and "no medgen_test_gone" in sections["gone"]["skipped"]
    assert "Could not be done: Broken, Gone" in html
    assert "out of luck" in next((table.parent / "report").rglob("broken.error.txt")).read_text()
    module.broken = counted
    told, html_again = evaluate(table, "--overwrite", "--parts", "broken", "counted")
    assert counted.times == 2, "what was finished is not done again, what failed is"
    assert told["sections"]["counted"] == sections["counted"]
    section = html[html.index('id="counted"') :]
    assert section_html(counted(None)) in html and section[:200] == html_again[html_again.index('id="counted"') :][:200]


def test_intervals_are_drawn_on_the_scale_of_their_column():
    rows = [["a", Estimate(5.0, (0.0, 10.0))], ["b", Estimate(7.5, (5.0, 10.0))]]
    html = table_html(Table("t", ["method", "score"], rows), best=[(1, 1)])
    assert re.findall(r'x1="([\d.]+)" x2="([\d.]+)" y1="5"', html) == [("4.0", "106.0"), ("55.0", "106.0")]
    assert re.findall(r'cx="([\d.]+)"', html) == ["55.0", "80.5"]
    assert "<strong>7.5</strong>" in html and "<strong>5</strong>" not in html
    assert interval(Estimate(5.0), []) == ""
    plain = table_html(Table("t", ["method", "score"], rows, unlike=["score"]))
    assert "0 to 10" in plain and "<svg" not in plain, "what has no common scale is not drawn on one"


def test_the_realism_of_a_set_is_said_before_a_glance_at_its_samples():
    glance, realism = (Section(name, name.title(), f"{name} verdict.") for name in ("samples", "feature"))
    assert re.findall(r"(\w+) verdict", _how_good([glance, realism])) == ["feature", "samples"]
    assert re.findall(r"class=main>.*?(\w+) verdict", _how_good([glance, skipped("feature", "F", "no verdict")])) == ["samples"]


def test_a_long_table_unfolds():
    rows = [[str(i), float(i)] for i in range(30)]
    assert table_html(Table("long", ["a", "b"], rows)).startswith("<details><summary>long (30 rows)")


def test_what_evaluate_does_not_know_is_refused(loaded, table, capsys):
    for words, arguments in {
        "no part 'pixels'; did you mean 'pixel'": ["--parts", "pixels"],
        "--labels takes NAME=CLASSES": ["--labels", "tissue"],
        "no column 'sit'; did you mean 'site'": ["--domain", "sit"],
    }.items():
        with pytest.raises(SystemExit):
            evaluate(table, *arguments)
        assert words in capsys.readouterr().err
    assert not (table.parent / "report" / "evaluation.json").exists()


def test_the_checks_of_a_card_and_the_card(loaded, table, capsys):
    told, _ = evaluate(table, "--parts", "pixel")
    capsys.readouterr()
    with Calls(loaded.model) as calls:
        main(["evaluate", "halved", "--data", "gone.csv", "-o", str(table.parent / "report"), "--checks"])
    out = capsys.readouterr().out
    assert calls.count == 0, "a finished report is not made again"
    assert out.startswith(
        f"{table.parent / 'report' / 'evaluation.json'}: halved on {table}, split test\nhas   training data: a drawn set\n"
    )
    assert "has   licence of the training data: CC0" in out and "LACKS copies of training data: run the part privacy" in out
    found = {check.what: check.there for check in checks({**told, "data": {**told["data"], "subjects": 1}})}
    assert found["a yardstick"] and not found["an interval"]
    text = card_text(told, loaded.contract)
    psnr = told["sections"]["pixel"]["numbers"]["regions"]["body"]["psnr"]
    assert f"| the model | {psnr['mean']:.4g} [{psnr['interval'][0]:.4g}, {psnr['interval'][1]:.4g}] |" in text
    assert "a drawn set; licence CC0" in text and "Worst case s2<b>" in text
    assert "Nothing was measured" in card_text(None, loaded.contract)


def test_the_checks_make_no_report_and_say_how_to_make_one(table, monkeypatch, capsys):
    monkeypatch.setattr("medgen.cli.loading.load", lambda name, device: pytest.fail("no model is needed"))
    out = table.parent / "report"
    with pytest.raises(SystemExit):
        main(["evaluate", "runs/halved", "--data", str(table), "-o", str(out), "--checks"])
    said = capsys.readouterr().err
    assert f"there is no {out / 'evaluation.json'} yet" in said
    assert f"the same line without --checks makes it: medgen evaluate runs/halved --data {table} -o {out} ..." in said
    assert not out.exists()


def test_the_zoo_takes_numbers_and_card_from_the_report(table, tmp_path, monkeypatch, capsys):
    from medgen.checkpoint import read_document
    from medgen.cli.train import main as train

    TINY = [
        "task=translation",
        "model=regression",
        "data.source.size=[16,16]",
        "data.source.slices=2",
        "data.workers=0",
        "data.batch_size=2",
    ]
    TINY += ["data.source.subjects={train: 1, validation: 1, test: 1}", "network.channels=[4,8]", "network.blocks=1", "training.steps=1"]
    train([*TINY, "training.validate_every=1", "training.save_every=1", f"run={tmp_path / 'run'}"])
    common = ["--data", str(table), "-o", str(tmp_path / "r"), "--parts", "pixel", "--device", "cpu"]
    main(["evaluate", str(tmp_path / "run"), *common])
    force = ["--force", "one subject, drawn"]
    main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "mine"), "--report", str(tmp_path / "r"), "--device", "cpu", *force])
    main(["zoo", "add", str(tmp_path / "mine"), "mine", "--zoo", str(tmp_path / "zoo")])
    told = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    psnr = told["sections"]["pixel"]["numbers"]["regions"]["body"]["psnr"]["mean"]
    assert read_document(tmp_path / "zoo" / "mine")["metrics"]["PSNR"].startswith(f"{psnr:.4g} [")
    capsys.readouterr()
    main(["zoo", "card", str(tmp_path / "r")])
    card = (tmp_path / "zoo" / "mine" / "card.md").read_text()
    assert all(f"{psnr:.4g}" in text for text in (capsys.readouterr().out, card)) and "one subject, drawn" in card
    assert "list.csv" not in card  # names of files stay behind
    (tmp_path / "r" / "evaluation.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["zoo", "card", str(tmp_path / "r")])
    assert "not a report" in capsys.readouterr().err


def test_names_of_parts_are_refused_with_the_nearest():
    with pytest.raises(MedgenError, match="did you mean 'samples'"):
        parts.chosen(["sample"])
    assert [part.name for part in parts.chosen(["samples", "pixel"])] == ["pixel", "samples"]


def test_what_a_reader_needs_to_repeat_it_is_on_the_page(loaded, table, tmp_path):
    loaded.model.sampler = SimpleNamespace(steps=4)
    main(["evaluate", "any", "--data", str(table), "-o", str(tmp_path / "r"), "--parts", "pixel", "--quick"])
    told = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    assert told["settings"]["steps"] == 4 and "samples" not in told["settings"]
    html = (tmp_path / "r" / "evaluation.html").read_text()
    assert "SimpleNamespace, 4 steps" in html and "in volumes, slice by slice" in html
    assert "slices along axis 2 as far apart as in the files" in told["sections"]["pixel"]["protocol"]["grid"]
    card = card_text(told, loaded.contract)
    assert re.search(r"voxel by voxel \| (passes|look at it|fails|measured) \|", card)
    assert re.search(r"\|\n\nPart by part:\n\n\| part \|", card)


def test_too_few_subjects_in_domains_are_said_and_a_refused_evaluation_leaves_no_folder(loaded, table, tmp_path, capsys):
    main(["evaluate", "any", "--data", str(table), "-o", str(tmp_path / "r"), "--parts", "shift", "--domain", "site", "--quick"])
    told = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    assert told["sections"]["shift"]["verdict"].startswith("Shown and not judged: fewer than 5 subjects")
    with pytest.raises(SystemExit):
        main(["evaluate", "any", "--data", str(table), "-o", str(tmp_path / "none"), "--split", "external"])
    assert not (tmp_path / "none").exists() and "no row has split 'external'" in capsys.readouterr().err


def test_an_interval_of_few_subjects_stays_within_what_a_metric_can_be():
    from medgen.evaluation.pixel import _metric

    assert _metric("ssim", [0.99, 0.8], ["a", "b"])["interval"][1] == 1.0
    assert _metric("nmse", [0.001, 0.2], ["a", "b"])["interval"][0] == 0.0
    assert _metric("me", [0.001, -0.2], ["a", "b"])["interval"][0] < -0.2


def test_yardsticks_that_are_missing_are_named_with_the_reason_and_the_remedy(loaded, table, capsys):
    """Half of the source is far above a copy of it, which is all that a manifest without training subjects can tell."""
    told, _ = evaluate(table)
    before = told["sections"]["pixel"]
    assert "missing" not in before["verdict"] and before["numbers"]["above_baseline"]["baseline"] in ("line", "curve")
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if ",train," not in line) + "\n")
    told, html = evaluate(table, "--parts", "pixel", "--overwrite")
    pixel = told["sections"]["pixel"]
    assert pixel["numbers"]["above_baseline"]["baseline"] == "copy" and pixel["numbers"]["above_baseline"]["psnr"]["value"] > 5
    said = "are missing, because the manifest has no training subjects to fit them on; add rows with split train."
    assert said in pixel["verdict"] and said in html[: html.index("<h2")]
    yardstick = next(check for check in checks(told) if check.what == "a yardstick")
    assert not yardstick.there and said in yardstick.told
    table.write_text("\n".join(lines) + "\n")
    told, _ = evaluate(table, "--parts", "pixel", "--split", "train", "--overwrite")
    assert "score another split by --split" in told["sections"]["pixel"]["verdict"]


class Rival(NamedTuple):
    """What `_judge` asks of a baseline."""

    name: str
    title: str


def test_two_subjects_earn_no_pass():
    from medgen.evaluation.pixel import Row, _judge

    def rows(base, count):
        return [Row(i, f"s{i}", "body", {"psnr": base + 0.1 * i, "detail_power": 0.0}) for i in range(count)]

    for count, level in ((2, Level.WATCH), (6, Level.GOOD)):
        told = Section("pixel", "Pixel")
        others = {"copy": [Row(r.number, r.subject, r.region, r.values | {"psnr": 20 + 0.07 * r.number}) for r in rows(30, count)]}
        _judge(told, rows(30, count), others, [Rival("copy", "a copy")])
        assert told.level is level and ("too few to rest on" in told.verdict) == (count == 2)
        _judge(told, rows(30, count), others, [Rival("copy", "a copy")], "The curve is missing.")
        assert told.level is Level.WATCH, "a copy alone is too easy to beat"


def test_what_the_card_says_of_faults_stands_beside_the_data(loaded, table, tmp_path):
    loaded.folder = tmp_path / "model"
    loaded.folder.mkdir()
    faults = "- Heads with skull are outside\n  of what it saw.\n- Worst case s1: x."
    (loaded.folder / "card.md").write_text(f"# m\n\n## Known failures\n\n{faults}\n\n## Privacy\n\n- Result: good.\n")
    main(["evaluate", "any", "--data", str(table), "-o", str(tmp_path / "r"), "--parts", "pixel", "--quick"])
    told = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    assert told["model"]["known_failures"] == ["Heads with skull are outside of what it saw."]
    assert "Heads with skull are outside of what it saw." in (tmp_path / "r" / "evaluation.html").read_text()
