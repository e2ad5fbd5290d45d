"""Checkpoints load alone, and refuse what is corrupted, foreign or hostile."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from medgen.checkpoint import LIBRARY, build, load, resolve, save
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.inference import Pretrained, check_golden, find, golden

RECIPE = {
    "model": {
        "_target_": "medgen.models.regression.Regression",
        "network": {
            "_target_": "medgen.nn.unet.UNet",
            "spatial_dims": 2,
            "in_channels": 0,
            "out_channels": 1,
            "channels": [4, 8],
            "blocks": 1,
            "condition": {"dense": 1},
        },
    },
    "task": {
        "_target_": "medgen.tasks.translation.Translation",
        "source": ["t1"],
        "target": ["t2"],
        "metric": {"_target_": "medgen.metrics.monitor.PSNR", "data_range": 2.0},
    },
}
INTENSITY = {"name": "mr_percentile", "percentile": 99.0, "typical": {"low": 0.0, "high": 500.0}}
CONTRACT = Contract(
    2, (16, 16), ("t2",), ("t1",), intensity={"t1": INTENSITY, "t2": INTENSITY}, orientation="RAS", spacing=(1.0, 1.0, 1.0), slice_axis=2
)
STORED = Path(__file__).parent / "checkpoints"


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    save(tmp_path / "model", build(RECIPE["model"]).state_dict(), RECIPE, CONTRACT)
    return tmp_path / "model"


def edited(folder: Path, change) -> Path:
    path = folder / "contract.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return folder


def test_round_trip(folder):
    checkpoint = load(folder)
    torch.manual_seed(0)
    expected = build(RECIPE["model"]).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in checkpoint.model.state_dict().items())
    assert checkpoint.contract == CONTRACT
    assert checkpoint.task.source == ("t1",) and not checkpoint.model.training


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "medgen.checkpoint.os.system",
        "medgen.core.volume.Path",
        "medgen.core.volume.np.load",
        "medgen.models.diffusion.nn.Linear",
        "medgen.models.diffusion.broadcast",
        "medgen.core.random.generator",
        "medgen.cli.run.train",
        "medgen.training.state.Checkpoints",
        "medgen.data.files.FileData",
        "medgen.nn.unet.UNet.__init__",
        "medgen",
        "torch.load",
        "",
        7,
        None,
    ],
)
def test_hostile_recipes_are_refused(folder, target, monkeypatch):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("the recipe ran a command"))
    edited(folder, lambda d: d["recipe"]["model"].update(network={"_target_": target}))
    with pytest.raises(MedgenError):
        load(folder)


def test_a_class_reached_through_another_module_is_refused():
    with pytest.raises(MedgenError, match="not a class defined in"):
        resolve("medgen.models.gan.R1")  # imported there, defined in adversarial
    assert resolve("medgen.models.adversarial.R1").__name__ == "R1"
    assert all("." in name for name in LIBRARY)


@pytest.mark.parametrize("size", [0, 7, 1000])
def test_truncated_weights_are_refused(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(MedgenError, match="corrupted"):
        load(folder)


def test_weights_of_another_model_are_refused(folder):
    edited(folder, lambda d: d["recipe"]["model"]["network"].update(channels=[4, 12]))
    with pytest.raises(MedgenError, match="does not fit its recipe"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"format": 1}', '{"format": 1, "recipe": 3, "contract": {}}'])
def test_a_corrupted_contract_is_refused(folder, text):
    (folder / "contract.json").write_text(text)
    with pytest.raises(MedgenError, match="corrupted"):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"contract": 7},
        {"contract": None},
        {"format": "1"},
        {"recipe": {"model": [], "task": 5}},
        {"recipe": {"model": {}, "task": {}}},
        {"recipe": {**RECIPE, "task": 5}},
        {"recipe": {**RECIPE, "model": {"_target_": "medgen.core.levels.Karras"}}},
        {"recipe": {**RECIPE, "model": {"_target_": "medgen.core.model.GenerativeModel"}}},
        {"contract": {"spatial_dims": 2, "size": 5, "target": ["t2"]}},
    ],
    ids=str,
)
def test_any_other_plain_data_is_refused_in_a_sentence(folder, change):
    with pytest.raises(MedgenError):
        load(edited(folder, lambda d: d.update(change)))


def test_a_newer_format_asks_for_an_upgrade(folder):
    with pytest.raises(MedgenError, match="upgrade medgen"):
        load(edited(folder, lambda d: d.update(format=99)))


def test_missing_files_are_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(MedgenError, match="is missing"):
        load(folder)
    with pytest.raises(MedgenError, match="holds no checkpoint"):
        find(tmp_path)
    with pytest.raises(MedgenError, match="no model 'brian'"):
        find("brian")


def test_an_unknown_argument_names_the_nearest(folder):
    with pytest.raises(MedgenError, match="did you mean 'blocks'"):
        load(edited(folder, lambda d: d["recipe"]["model"]["network"].update(block=3)))


def test_a_zoo_folder_is_found_by_name(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "zoo" / "my_model")
    monkeypatch.setenv("MEDGEN_ZOO", str(tmp_path / "zoo"))
    assert find("my_model") == tmp_path / "zoo" / "my_model"


def test_golden_output_is_checked(folder):
    checkpoint = load(folder)
    model = Pretrained(checkpoint.model, checkpoint.task, checkpoint.contract, checkpoint.document, folder)
    with pytest.raises(MedgenError, match="no golden output"):
        check_golden(model)
    model.document["golden"] = golden(model)
    assert check_golden(model) < 1e-6
    model.document["golden"]["values"][3] += 0.1
    with pytest.raises(MedgenError, match="differs"):
        check_golden(model)


@pytest.mark.parametrize("stored", sorted(STORED.glob("format_*")), ids=lambda p: p.name)
def test_checkpoints_of_every_released_format_load_for_ever(stored):
    checkpoint = load(stored)
    model = Pretrained(checkpoint.model, checkpoint.task, checkpoint.contract, checkpoint.document, stored)
    assert check_golden(model) <= checkpoint.document["golden"]["tolerance"]


def test_there_is_a_stored_checkpoint_of_the_current_format():
    assert (STORED / "format_1" / "contract.json").is_file()
