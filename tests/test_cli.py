"""The `medgen` command: what it writes, what it refuses (one sentence, status 2), what it never replaces."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.checkpoint import build, read_document, save, write_document
from medgen.cli.main import main
from medgen.cli.train import main as train
from medgen.core.contract import Contract
from medgen.core.volume import Volume
from medgen.data.readers import read
from medgen.inference import Pretrained, check_golden, load
from medgen.metrics.monitor import PSNR
from medgen.models.regression import Regression
from medgen.tasks.translation import Translation

METRIC = {"_target_": "medgen.metrics.monitor.PSNR", "data_range": 2.0}
MR = {"name": "mr_percentile", "percentile": 99.0, "typical": {"low": 0.0, "high": 500.0}}
CT = {"name": "ct_hu", "low": -1024.0, "high": 2000.0, "typical": {"low": -1024.0, "high": 2000.0}}
AS_STORED = {"name": "identity", "typical": {"low": -1.0, "high": 1.0}}
UNET = {"_target_": "medgen.nn.unet.UNet", "spatial_dims": 2, "out_channels": 1, "channels": [4, 8], "blocks": 1}
PLACE = {"orientation": "RAS", "spacing": (1.0, 2.0, 3.0), "slice_axis": 2, "data": {"name": "drawn brains", "licence": "Apache-2.0"}}


@pytest.fixture
def generator(tmp_path) -> Path:
    """A class-conditional diffusion model of random weights."""
    diffusion = {
        "_target_": "medgen.models.diffusion.Diffusion",
        "network": {**UNET, "in_channels": 1, "condition": {"vector": 2}},
        "preconditioning": {"_target_": "medgen.models.preconditioning.EDM"},
        "levels": {"_target_": "medgen.core.levels.LogNormal"},
        "sampler": {"_target_": "medgen.samplers.heun.Heun", "grid": {"_target_": "medgen.core.levels.Karras"}, "steps": 2},
        "drop": 0.1,
    }
    task = {"_target_": "medgen.tasks.synthesis.Synthesis", "target": ["t1"], "metric": METRIC, "attributes": {"label": 2}}
    contract = Contract(2, (16, 12), ("t1",), attributes={"label": 2}, intensity={"t1": MR}, **PLACE)
    return stored(tmp_path / "generator", diffusion, task, contract)


@pytest.fixture
def translator(tmp_path) -> Path:
    regression = {"_target_": "medgen.models.regression.Regression", "network": {**UNET, "in_channels": 0, "condition": {"dense": 1}}}
    task = {"_target_": "medgen.tasks.translation.Translation", "source": ["t1"], "target": ["t2"], "metric": METRIC}
    contract = Contract(2, (16, 16), ("t2",), ("t1",), intensity={"t1": MR, "t2": MR}, **PLACE)
    return stored(tmp_path / "translator", regression, task, contract)


def stored(folder: Path, model: dict, task: dict, contract: Contract) -> Path:
    torch.manual_seed(0)
    made = build(model)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save(folder, made.state_dict(), {"model": model, "task": task}, contract)
    return folder


def refused(capsys, *arguments) -> str:
    """The one sentence that a command ends with, without a traceback, under status 2."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    assert end.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(("error: ", "usage: "))
    assert "Traceback" not in said and (said.startswith("usage: ") or "\n" not in said)
    return said


def scan(path: Path, seed: int = 0, shape: tuple[int, ...] = (18, 14, 12)) -> Path:
    """A skull-stripped head of random signal: zero around a box."""
    array = np.zeros((1, *shape), np.float32)
    inside = (slice(None), *(slice(2, -2),) * 3)
    array[inside] = np.random.default_rng(seed).uniform(10, 400, array[inside].shape)
    return Volume(array, np.diag([-1.0, -2.0, 3.0, 1.0])).save(path)


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["evaluate", "--help"]])
def test_help_is_quick_and_imports_nothing_heavy(arguments):
    code = f"""
import sys
from medgen.cli.main import main
try:
    main({arguments!r})
except SystemExit as end:
    print(end.code, [m for m in ("numpy", "torch", "monai", "diffusers", "lightning", "nibabel", "hydra", "rich") if m in sys.modules])
"""
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - start)
    assert done.stdout.rstrip().endswith("0 []")
    assert best < 0.5


# ---------------------------------------------------------------- generate


@pytest.mark.parametrize(("form", "ending"), [("nii", ".nii.gz"), ("png", ".png"), ("npy", ".npy"), ("tif", ".tif")])
def test_generate_writes_n_images_in_each_format(generator, tmp_path, form, ending):
    out = tmp_path / "out"
    main(["generate", str(generator), "-n", "3", "--seed", "0", "-o", str(out), "--format", form, "--set", "label=1", "--device", "cpu"])
    assert sorted(p.name for p in out.iterdir()) == [f"sample_00{i}{ending}" for i in range(3)]
    expected = load(generator).generate(3, 0, {"label": 1})[2]
    if form == "png":
        with Image.open(out / "sample_002.png") as picture:
            assert (picture.mode, picture.size) == ("L", (16, 12))  # the first axis runs to the right, the second upwards
            assert np.ptp(np.asarray(picture)) > 200
        return
    made = read(out / f"sample_002{ending}")
    assert np.allclose(made.array, expected.array, rtol=1e-5, atol=1e-3)
    if form in ("nii", "tif"):
        assert (made.orientation, made.spacing, made.shape) == ("RAS", (1.0, 2.0, 3.0), (16, 12, 1))


def test_sampler_steps_and_guidance_reach_the_model(generator, tmp_path):
    common = ["-n", "1", "--format", "npy", "--set", "label=1", "--device", "cpu"]
    main(["generate", str(generator), "-o", str(tmp_path / "a"), "--sampler", "euler", "--steps", "3", "--guidance", "2.0", *common])
    expected = load(generator).with_sampler("euler", 3, 2.0).generate(1, 0, {"label": 1})[0]
    assert np.array_equal(np.load(tmp_path / "a" / "sample_000.npy"), expected.array)
    plain = load(generator).generate(1, 0, {"label": 1})[0]
    assert np.abs(expected.array - plain.array).max() > 1e-2 * np.abs(plain.array).max()


def test_generate_replaces_nothing_unasked(generator, tmp_path, capsys):
    (tmp_path / "sample_001.npy").write_text("precious")
    command = ["generate", str(generator), "-n", "2", "-o", str(tmp_path), "--format", "npy", "--set", "label=0"]
    assert "--overwrite" in refused(capsys, *command)
    assert (tmp_path / "sample_001.npy").read_text() == "precious" and not (tmp_path / "sample_000.npy").exists()
    main([*command, "--overwrite"])
    assert np.load(tmp_path / "sample_001.npy").shape == (1, 16, 12, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "label=7"], "label=7 is out of range: the model knows 2 classes, 0 to 1"),
        (["--set", "label=0.5"], "'label' must be a class from 0 to 1, got 0.5"),
        (["--set", "label=nan"], "'label' must be a class from 0 to 1"),
        (["--set", "label=tumour"], "'label' must be a class from 0 to 1, got 'tumour'"),
        (["--set", "lable=1"], "did you mean 'label'?"),
        (["--set", "label"], "--set takes NAME=VALUE, got 'label'"),
        ([], "needs a value for 'label'"),
        (["--set", "label=1", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--set", "label=1", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["--set", "label=1", "--sampler", "hein"], "did you mean 'heun'?"),
        (["--set", "label=1", "--guidance", "inf"], "guidance must be a finite number"),
        (["--set", "label=1", "--size", "16"], "size must be 2 positive numbers"),
        (["--seed", "-1"], "expected a whole number of at least 0, got '-1'"),
        (["-n", "0"], "expected a whole number of at least 1, got '0'"),
        (["-n", "many"], "expected a whole number of at least 1, got 'many'"),
        (["--format", "dcm"], "invalid choice"),
    ],
)
def test_generate_refuses(generator, tmp_path, capsys, arguments, words):
    assert words in refused(capsys, "generate", generator, "-o", tmp_path / "out", *arguments)
    assert not list((tmp_path / "out").glob("*"))


def test_generate_says_where_it_cannot_write_and_what_it_cannot_find(generator, translator, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot make the folder" in refused(capsys, "generate", generator, "-o", tmp_path / "file", "--set", "label=1")
    assert "cannot make the folder" in refused(capsys, "generate", generator, "-o", tmp_path / "file" / "x", "--set", "label=1")
    assert "no model 'brian'" in refused(capsys, "generate", "brian", "-o", tmp_path / "out")
    assert "use translate" in refused(capsys, "generate", translator, "-o", tmp_path / "out")


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 3.64 TiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_one_sentence(generator, tmp_path, capsys, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("medgen.inference.Pretrained.sample", fail)
    assert "smaller --size or --batch" in refused(capsys, "generate", generator, "-o", tmp_path / "out", "--set", "label=1")
    monkeypatch.setattr("medgen.inference.Pretrained.sample", lambda *_: (_ for _ in ()).throw(RuntimeError("a mistake in medgen")))
    with pytest.raises(RuntimeError, match="mistake"):
        main(["generate", str(generator), "-o", str(tmp_path / "out"), "--set", "label=1"])


def test_pictures_have_no_nifti(tmp_path, capsys):
    model = {"_target_": "medgen.models.diffusion.Diffusion", "network": {**UNET, "in_channels": 1}}
    model |= {"preconditioning": {"_target_": "medgen.models.preconditioning.EDM"}, "levels": {"_target_": "medgen.core.levels.LogNormal"}}
    model["sampler"] = {"_target_": "medgen.samplers.euler.Euler", "grid": {"_target_": "medgen.core.levels.Karras"}, "steps": 1}
    task = {"_target_": "medgen.tasks.synthesis.Synthesis", "target": ["xray"], "metric": METRIC}
    grey = {"name": "unit_range", "low": 0.0, "high": 255.0, "typical": {"low": 0.0, "high": 255.0}}
    folder = stored(tmp_path / "xray", model, task, Contract(2, (16, 12), ("xray",), intensity={"xray": grey}))
    assert "pass --format png, npy, tif or dicom" in refused(capsys, "generate", folder, "-o", tmp_path / "out")
    main(["generate", str(folder), "-n", "1", "-o", str(tmp_path / "out"), "--format", "png"])
    with Image.open(tmp_path / "out" / "sample_000.png") as picture:
        assert picture.size == (12, 16)


# ---------------------------------------------------------------- translate


def test_translate_writes_on_the_inputs_grid(translator, tmp_path, capsys):
    source = scan(tmp_path / "t1.nii.gz")
    main(["translate", str(translator), str(source), "-o", str(tmp_path / "new" / "t2.nii.gz")])
    made, given = read(tmp_path / "new" / "t2.nii.gz"), read(source)
    assert made.shape == given.shape and np.array_equal(made.affine, given.affine)
    assert np.allclose(made.array, load(translator).translate(str(source)).array, rtol=1e-5, atol=1e-3)
    assert "scale typical of the training set" in capsys.readouterr().out
    main(["translate", str(translator), f"t1={source}", "-o", str(tmp_path / "again.nii.gz")])
    assert np.array_equal(read(tmp_path / "again.nii.gz").array, made.array)


def test_translate_refuses(translator, generator, tmp_path, capsys):
    source, out = scan(tmp_path / "t1.nii.gz"), tmp_path / "t2.nii.gz"
    whole = source.read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii").write_text("not an image")
    broken = read(source)
    broken.array[0, 5, 5, 5] = np.nan
    broken.save(tmp_path / "nan.nii.gz")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "picture.png")
    (tmp_path / "file").write_text("")
    for words, arguments in {
        "no such file": [translator, tmp_path / "none.nii.gz", "-o", out],
        "damaged or truncated": [translator, tmp_path / "cut.nii.gz", "-o", out],
        "text.nii: a damaged": [translator, tmp_path / "text.nii", "-o", out],
        "NaN or infinite": [translator, tmp_path / "nan.nii.gz", "-o", out],
        "no geometry": [translator, tmp_path / "picture.png", "-o", out],
        "cannot read files ending in": [translator, tmp_path / "file", "-o", out],
        "must end in one of": [translator, source, "-o", tmp_path / "t2.xyz"],
        "is a folder": [translator, source, "-o", tmp_path / "folder.nii"],
        "cannot make the folder": [translator, source, "-o", tmp_path / "file" / "t2.nii"],
        "takes the channels t1, got flair": [translator, f"flair={source}", "-o", out],
        "given as channel=file": [translator, source, source, "-o", out],
        "given twice": [translator, f"t1={source}", f"t1={source}", "-o", out],
        "use generate": [generator, source, "-o", out],
        "one pass": [translator, source, "-o", out, "--guidance", "2"],
        "takes no condition 'age'": [translator, source, "-o", out, "--set", "age=3"],
    }.items():
        (tmp_path / "folder.nii").mkdir(exist_ok=True)
        assert words in refused(capsys, "translate", *arguments), words
    assert not out.exists()


def test_translate_replaces_nothing_unasked_not_even_its_input(translator, tmp_path, capsys):
    source = scan(tmp_path / "t1.nii.gz")
    before = source.read_bytes()
    assert "--overwrite" in refused(capsys, "translate", translator, source, "-o", source)
    assert source.read_bytes() == before
    main(["translate", str(translator), str(source), "-o", str(source), "--overwrite"])
    assert read(source).shape == (18, 14, 12) and source.read_bytes() != before


# ---------------------------------------------------------------- evaluate


class Offset(torch.nn.Module):
    def __init__(self, offset: float):
        super().__init__()
        self.offset = offset

    def forward(self, x, t, condition):
        return condition.dense + self.offset


@pytest.fixture
def offset(monkeypatch):
    """Every model that the command loads adds 0.1 to its source, in network units."""

    def use(rule=AS_STORED, by: float = 0.1) -> None:
        contract = Contract(2, (16, 16), ("t2",), ("t1",), intensity={"t1": rule, "t2": rule}, **PLACE)
        model = Pretrained(Regression(Offset(by)), Translation(("t1",), ("t2",), PSNR(2.0)), contract, {}, Path("offset"))
        monkeypatch.setattr("medgen.cli.loading.load", lambda name, device: model)

    return use


def manifest(folder: Path, subjects: dict[str, np.ndarray], split: str = "test", columns: str = "t1,t2") -> Path:
    """Every subject's two channels are one file."""
    lines = [f"subject,split,{columns}"]
    for name, array in subjects.items():
        Volume(array[None].astype(np.float32), np.diag([-1.0, -2.0, 3.0, 1.0])).save(folder / f"{name}.nii.gz")
        lines.append(",".join([name, split, *([f"{name}.nii.gz"] * (columns.count(",") + 1))]))
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def stripped(seed: int, shape: tuple[int, ...] = (18, 14, 12), low: float = -0.8, high: float = 0.8, air: float = -1.0) -> np.ndarray:
    array = np.full(shape, air)
    array[2:-2, 2:-2, 2:-2] = np.random.default_rng(seed).uniform(low, high, array[2:-2, 2:-2, 2:-2].shape)
    return array


def evaluated(tmp_path: Path, table: Path, *arguments: str) -> dict:
    """What the part "pixel" has in the JSON."""
    main(["evaluate", "any", "--data", str(table), "-o", str(tmp_path / "report"), "--parts", "pixel", *arguments])
    section = json.loads((tmp_path / "report" / "evaluation.json").read_text())["sections"]["pixel"]
    return {**section["numbers"], "protocol": section["protocol"]}


def test_a_constant_offset_scores_in_closed_form_per_volume(offset, tmp_path, capsys):
    offset()
    heads = {f"s{i}": stripped(i) for i in range(3)}
    report = evaluated(tmp_path, manifest(tmp_path, heads))
    assert (report["n_volumes"], report["n_subjects"], report["data_range"]) == (3, 3, 2.0)
    for region in ("body", "whole"):
        scores = report["regions"][region]
        assert scores["psnr"]["mean"] == pytest.approx(20 * math.log10(2 / 0.1), abs=1e-4)
        assert scores["mae"]["mean"] == pytest.approx(0.1, rel=1e-5)
        assert scores["psnr"]["interval"] == pytest.approx([20 * math.log10(20)] * 2, abs=1e-3)
        assert [v["subject"] for v in scores["psnr"]["volumes"]] == ["s0", "s1", "s2"]
        for entry, head in zip(scores["nmse"]["volumes"], heads.values(), strict=True):
            signal = np.square(head[2:-2, 2:-2, 2:-2] + 1) if region == "body" else np.square(head + 1)
            assert entry["value"] == pytest.approx(0.01 / signal.mean(), rel=1e-4)
    low, high = report["regions"]["body"]["nmse"]["interval"]
    assert low < report["regions"]["body"]["nmse"]["mean"] < high
    assert "images: 3, subjects: 3" in capsys.readouterr().out
    with Image.open(tmp_path / "report" / "figures" / "pixel_1.png") as picture:
        pixels = np.asarray(picture)
    red = (pixels[..., 0] > 40) & (pixels[..., 2] == 0)  # the difference map, a quarter of the picture, and half of the scale beside it
    assert 0.1 < red.mean() < 0.25


def test_one_subject_has_no_interval_and_says_why(offset, tmp_path):
    offset()
    psnr = evaluated(tmp_path, manifest(tmp_path, {"only": stripped(0)}))["regions"]["body"]["psnr"]
    assert psnr["interval"] is None and "one subject" in psnr["reason"]
    assert psnr["mean"] == pytest.approx(26.0206, abs=1e-3)


def test_a_perfect_model_has_no_mean_psnr_and_says_why(offset, tmp_path, capsys):
    offset(by=0.0)
    scores = evaluated(tmp_path, manifest(tmp_path, {"a": stripped(0), "b": stripped(1)}))["regions"]["whole"]
    assert scores["psnr"]["mean"] is None and "infinite" in scores["psnr"]["reason"]
    assert scores["mae"]["mean"] == 0 and scores["ssim"]["mean"] == pytest.approx(1)
    assert "the PSNR is infinite" in capsys.readouterr().out


def test_the_body_in_ct_is_above_minus_500_hounsfield(offset, tmp_path):
    """Air of -1000 in a scanner's circle, padding of -1024 outside: neither is body, and the body has no holes."""
    offset(CT)
    head = stripped(0, low=-100, high=300, air=-1000.0)
    head[:, :, 0] = -1024.0
    head[8:10, 6:8, 5:7] = -900.0  # a sinus
    report = evaluated(tmp_path, manifest(tmp_path, {"a": head}))
    signal = ((head + 1024) / 3024 * 2)[2:-2, 2:-2, 2:-2]
    assert report["regions"]["body"]["nmse"]["mean"] == pytest.approx(0.01 / np.square(signal).mean(), rel=1e-4)
    assert "-500 HU" in report["protocol"]["body"]


def test_attributes_come_from_the_manifest(tmp_path, monkeypatch):
    class ByField(torch.nn.Module):
        def forward(self, x, t, condition):
            return condition.dense + 0.1 * condition.vector.reshape(-1, 1, 1, 1)

    contract = Contract(2, (16, 16), ("t2",), ("t1",), attributes={"field": 0}, intensity={"t1": AS_STORED, "t2": AS_STORED}, **PLACE)
    model = Pretrained(Regression(ByField()), Translation(("t1",), ("t2",), PSNR(2.0), {"field": 0}), contract)
    monkeypatch.setattr("medgen.cli.loading.load", lambda name, device: model)
    table = manifest(tmp_path, {"a": stripped(0), "b": stripped(1)})
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0] + ",field", lines[1] + ",1.5", lines[2] + ",3"]))
    found = evaluated(tmp_path, table)["regions"]["body"]["mae"]["volumes"]
    assert [v["value"] for v in found] == pytest.approx([0.15, 0.3], rel=1e-4)
    found = evaluated(tmp_path, table, "--set", "field=2", "--overwrite")["regions"]["body"]["mae"]["volumes"]
    assert [v["value"] for v in found] == pytest.approx([0.2, 0.2], rel=1e-4)


def test_evaluate_refuses(offset, tmp_path, capsys):
    offset()
    table = manifest(tmp_path, {"a": stripped(0)})
    Volume(np.zeros((1, 5, 5, 5), np.float32), np.eye(4)).save(tmp_path / "small.nii.gz")
    (tmp_path / "unpaired.csv").write_text("subject,split,t1,t2\na,test,a.nii.gz,small.nii.gz\n")
    (tmp_path / "empty.csv").write_text("subject,split,t1,t2\nvoid,test,small.nii.gz,small.nii.gz\n")
    (tmp_path / "gone.csv").write_text("subject,split,t1,t2\na,test,a.nii.gz,gone.nii.gz\n")
    (tmp_path / "column.csv").write_text("subject,split,t1,t2w\na,test,a.nii.gz,a.nii.gz\n")
    (tmp_path / "twice.csv").write_text("subject,split,t1,t2\na,test,a.nii.gz,a.nii.gz\na,train,a.nii.gz,a.nii.gz\n")
    (tmp_path / "file").write_text("")
    for words, data, extra in (
        ("no row has split 'validation'; the splits there are: test (1 rows)", table, ["--split", "validation"]),
        ("no such manifest", tmp_path / "none.csv", []),
        ("must share its grid", tmp_path / "unpaired.csv", []),
        ("no file", tmp_path / "gone.csv", []),
        ("no column 't2'; did you mean 't2w'", tmp_path / "column.csv", []),
        ("in two splits", tmp_path / "twice.csv", []),
        ("empty.csv: subject void: no body found", tmp_path / "empty.csv", []),
        ("takes no condition 'label'", table, ["--set", "label=1"]),
    ):
        assert words in refused(capsys, "evaluate", "any", "--data", data, "-o", tmp_path / "report", *extra)
    assert "cannot make the folder" in refused(capsys, "evaluate", "any", "--data", table, "-o", tmp_path / "file" / "report")
    evaluated(tmp_path, table)
    before = (tmp_path / "report" / "evaluation.json").read_bytes()
    assert "--overwrite" in refused(capsys, "evaluate", "any", "--data", table, "-o", tmp_path / "report")
    assert (tmp_path / "report" / "evaluation.json").read_bytes() == before


def test_samples_are_compared_with_the_split_and_with_training(generator, tmp_path, capsys):
    rows = ["subject,split,t1,label"]
    for i, split in enumerate(("train", "train", "test")):
        scan(tmp_path / f"s{i}.nii.gz", i)
        rows.append(f"s{i},{split},s{i}.nii.gz,{i % 2}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    command = ["evaluate", str(generator), "--data", str(tmp_path / "m.csv"), "-o", str(tmp_path / "r"), "--parts", "samples", "-n", "4"]
    main(command)
    report = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    n = report["sections"]["samples"]["numbers"]["n"]
    assert report["n"]["samples"] == n["samples"] == 4 and n["training"] == 2 * n["held_out"]
    assert (tmp_path / "r" / "figures" / "samples_1.png").is_file()
    assert "images of the manifest's train split are" in capsys.readouterr().out
    assert "no row has split 'external'" in refused(capsys, *command, "--overwrite", "--split", "external")
    assert "no part could be measured" in refused(capsys, *command[:-1], "1", "--overwrite")
    assert "at least 2" in json.loads((tmp_path / "r" / "evaluation.json").read_text())["sections"]["samples"]["skipped"]


# ---------------------------------------------------------------- zoo


@pytest.fixture
def zoo(generator, translator, tmp_path, monkeypatch) -> Path:
    """An empty zoo, and two models that `medgen export` has let out."""
    for folder in (generator, translator):
        write_document(folder, read_document(folder) | {"privacy": {"level": "good", "verdict": "Passed."}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDGEN_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setattr("medgen.zoo.zoo_folders", lambda: [tmp_path / "zoo"])
    return tmp_path / "zoo"


def test_zoo_round_trip(generator, zoo, tmp_path, capsys):
    (tmp_path / "card.md").write_text("# Drawn brains\nµ = 3", "utf-8")
    main(["zoo", "list", "--json"])
    assert json.loads(capsys.readouterr().out) == []
    main(["zoo", "add", str(generator), "brains", "--zoo", str(zoo), "--card", str(tmp_path / "card.md")])
    capsys.readouterr()
    main(["zoo", "list", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row.pop("bytes") == (zoo / "brains" / "model.safetensors").stat().st_size
    assert row == {
        "name": "brains", "model": "Diffusion", "task": "synthesis", "source": [], "target": ["t1"], "size": [16, 12],
        "spacing": [1.0, 2.0, 3.0], "data": "drawn brains", "licence": "Apache-2.0", "metrics": {},
    }  # fmt: skip
    main(["zoo", "list"])
    assert "brains" in capsys.readouterr().out
    main(["zoo", "show", "brains"])
    assert capsys.readouterr().out == "# Drawn brains\nµ = 3\n"
    model = load("brains")
    assert check_golden(model) < 1e-5
    expected = load(generator).generate(1, 0, {"label": 0})[0].array
    assert np.array_equal(model.generate(1, 0, {"label": 0})[0].array, expected)


def test_zoo_add_half_keeps_the_model_in_half_the_bytes(generator, zoo, tmp_path, capsys):
    main(["zoo", "add", str(generator), "whole", "--zoo", str(zoo)])
    main(["zoo", "add", str(generator), "half", "--zoo", str(zoo), "--half"])
    sizes = [(zoo / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    model, whole = load("half"), load("whole")
    assert next(model.model.parameters()).dtype == torch.float32
    assert check_golden(model) < 1e-5
    a, b = (m.generate(1, 0, {"label": 0})[0].array for m in (model, whole))
    assert 0 < np.abs(a - b).max() < 0.01 * np.ptp(b)


def test_zoo_add_refuses(generator, zoo, tmp_path, capsys, monkeypatch):
    main(["zoo", "add", str(generator), "brains", "--zoo", str(zoo)])
    capsys.readouterr()
    assert "--overwrite" in refused(capsys, "zoo", "add", generator, "brains", "--zoo", zoo)
    assert "no card" in refused(capsys, "zoo", "add", generator, "other", "--zoo", zoo, "--card", tmp_path / "none.md")
    for name in ("../outside", "a/b", "", ".hidden"):
        assert "no name for a model" in refused(capsys, "zoo", "add", generator, name, "--zoo", zoo)
    monkeypatch.setattr("medgen.cli.zoo.LARGEST", 1000)
    assert "pass --half" in refused(capsys, "zoo", "add", generator, "large", "--zoo", zoo)
    assert "use the hub" in refused(capsys, "zoo", "add", generator, "large", "--zoo", zoo, "--half")
    monkeypatch.undo()
    (generator / "model.safetensors").write_bytes(b"nothing")
    assert "corrupted" in refused(capsys, "zoo", "add", generator, "broken", "--zoo", zoo)
    assert [p.name for p in zoo.iterdir()] == ["brains"]


def test_a_model_that_was_not_exported_does_not_enter_the_zoo(generator, zoo, capsys):
    write_document(generator, {key: value for key, value in read_document(generator).items() if key != "privacy"})
    assert "`medgen export MODEL -o DIR` tests whether it gives training images away" in refused(
        capsys, "zoo", "add", generator, "brains", "--zoo", zoo
    )
    assert not zoo.exists()


def test_a_replaced_model_does_not_keep_the_old_card(generator, translator, zoo, tmp_path, capsys):
    (tmp_path / "card.md").write_text("the old model")
    main(["zoo", "add", str(generator), "m", "--zoo", str(zoo), "--card", str(tmp_path / "card.md")])
    main(["zoo", "add", str(translator), "m", "--zoo", str(zoo), "--overwrite"])
    capsys.readouterr()
    main(["zoo", "show", "m"])
    assert json.loads(capsys.readouterr().out)["task"] == "translation"
    main(["zoo", "add", "m", "m", "--zoo", str(zoo), "--overwrite"])  # onto itself: a new golden output
    assert "golden" in read_document(zoo / "m") and check_golden(load("m")) < 1e-5


def test_a_broken_model_is_named_and_the_others_are_listed(generator, zoo, capsys):
    main(["zoo", "add", str(generator), "good", "--zoo", str(zoo)])
    for name, text in {"bad": "{", "empty": '{"format": 1, "recipe": {"model": {}, "task": {}}, "contract": {}}'}.items():
        (zoo / name).mkdir()
        (zoo / name / "contract.json").write_text(text)
    (zoo / "half").mkdir()
    (zoo / "half" / "contract.json").write_text((zoo / "good" / "contract.json").read_text())
    capsys.readouterr()
    main(["zoo", "list", "--json"])
    said = capsys.readouterr()
    assert [row["name"] for row in json.loads(said.out)] == ["good"]
    assert said.err.count("left out:") == 3 and all(name in said.err for name in ("bad", "empty", "half"))
    assert "did you mean 'good'?" in refused(capsys, "zoo", "show", "god")


def test_a_folder_here_does_not_stand_for_the_zoos_model(generator, translator, zoo, tmp_path, capsys):
    main(["zoo", "add", str(generator), "m", "--zoo", str(zoo)])
    translator.rename(tmp_path / "m")
    capsys.readouterr()
    main(["zoo", "list", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["task"] == "synthesis"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=abc", "training.steps=abc must be a whole number"),
        ("training.steps=-5", "must be a positive multiple"),
        ("model.chanels=3", "'network.channels'"),
    ],
)
def test_a_wrong_value_is_answered_before_there_is_a_folder(override, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        train([override])
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
