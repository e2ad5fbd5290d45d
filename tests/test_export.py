"""The one way out of a run folder: a model that copies stays in, one that does not leaves without what is private."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from private_models import SIDE, Memoriser, Population, contract, manifest, pictures, work
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import medgen
from medgen.checkpoint import read_document, save, write_document
from medgen.cli.export import refusal
from medgen.cli.main import main
from medgen.core.condition import Condition
from medgen.core.levels import Karras, LogNormal
from medgen.core.model import Example
from medgen.core.random import Rng
from medgen.evaluation import privacy
from medgen.evaluation.facts import weights_digest
from medgen.evaluation.public import public_document, public_report, without_paths
from medgen.inference import Pretrained
from medgen.metrics.feature import describe
from medgen.metrics.monitor import FeatureDistance
from medgen.metrics.space import Space
from medgen.models.diffusion import Diffusion
from medgen.models.preconditioning import EDM
from medgen.nn.unet import UNet
from medgen.samplers.heun import Heun
from medgen.tasks.synthesis import Synthesis

NETWORK = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [16, 32], "blocks": 1}
LEVELS, GRID = {"mean": -1.2, "std": 1.2}, {"sigma_min": 0.01, "sigma_max": 10.0}
RECIPE = {
    "model": {
        "_target_": "medgen.models.diffusion.Diffusion",
        "network": {"_target_": "medgen.nn.unet.UNet", **NETWORK},
        "preconditioning": {"_target_": "medgen.models.preconditioning.EDM", "data_std": 0.4},
        "levels": {"_target_": "medgen.core.levels.LogNormal", **LEVELS},
        "sampler": {
            "_target_": "medgen.samplers.heun.Heun",
            "grid": {"_target_": "medgen.core.levels.Karras", **GRID},
            "steps": 12,
        },
    },
    "task": {
        "_target_": "medgen.tasks.synthesis.Synthesis",
        "target": ["image"],
        "metric": {"_target_": "medgen.metrics.monitor.FeatureDistance"},
    },
}


def network() -> Diffusion:
    torch.manual_seed(0)
    return Diffusion(UNet(**NETWORK), EDM(0.4), LogNormal(**LEVELS), Heun(Karras(**GRID), 12))


def checkpoint(folder: Path, model: Diffusion, subjects: int = 24) -> Path:
    save(folder, model.state_dict(), RECIPE, contract(subjects))
    return folder


@pytest.fixture
def gaussian(tmp_path):
    """A run, and its data: 24 training and 24 other subjects of one law."""
    training = pictures(24, 0)
    (tmp_path / "data").mkdir()
    return (
        checkpoint(tmp_path / "run" / "checkpoints" / "last", network()),
        manifest(tmp_path / "data", training, pictures(24, 1)),
        training,
    )


def report(folder: Path, section, digest: str, sampler: str = "Heun") -> Path:
    """A report of `medgen evaluate` that holds one section."""
    told = {
        "model": {
            "name": "last",
            "folder": "/home/someone/runs/a",
            "family": "Diffusion",
            "kind": "synthesis",
            "weights": digest,
            "sampler": sampler,
            "training_data": {"name": "gaussian"},
        },
        "data": {"manifest": str(folder / "data" / "list.csv"), "split": "test", "subjects": 24},
        "settings": {"seed": 0},
        "sections": {"privacy": section.to_dict()},
    }
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "evaluation.json").write_text(json.dumps(told))
    return folder / "report"


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, arguments)])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_memoriser_stays_and_the_healthy_model_leaves(gaussian, tmp_path, capsys, monkeypatch):
    """The weights are those of a small network; what is tested is the law that a model samples from, in closed form."""
    folder, path, training = gaussian
    law = {}
    monkeypatch.setattr(
        "medgen.cli.loading.load",
        lambda name, device: Pretrained(law["model"], Synthesis(["image"], FeatureDistance()), contract(24), {}, folder),
    )
    monkeypatch.setattr(privacy, "feature_spaces", lambda work, spaces: [Space("fixed feature", 0, describe)])
    law["model"], out = Memoriser(training), tmp_path / "out"
    said = refused(capsys, folder, "-o", out, "--data", path, "-n", 24)
    assert (
        "was not exported: it fails the privacy test. Copies among the samples: " in said
        and "24 of 24 are nearer to a single training subject" in said
    )
    assert "AUC of 1.00" in said and not out.exists() and not list(tmp_path.glob(".out*"))
    law["model"] = Population()
    main(["export", str(folder), "-o", str(out), "--data", str(path), "-n", "24"])
    assert "written" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["card.md", "contract.json", "model.safetensors"]
    exported = medgen.load(out)
    assert torch.equal(exported.model.network.state_dict()["input.weight"], network().network.state_dict()["input.weight"])
    told = read_document(out)
    assert told["privacy"]["level"] == "good" and "forced" not in told["privacy"] and told["golden"]["size"] == 16
    assert told["privacy"]["copies"]["pixels"]["0.05"]["n"] == 24
    card = (out / "card.md").read_text()
    assert "## Privacy\n\n- Result: good." in card and "train split of the manifest (24 subjects)" in card and "list.csv" not in card
    said = refused(capsys, folder, "-o", out, "--data", path)
    assert "exists and is not empty" in said and read_document(out) == told


def test_a_test_against_other_images_than_those_of_training_lets_nothing_out():
    told = {"level": "good", "verdict": "", "numbers": {"training_known": False, "compared": "the train split of a.csv (9 subjects)"}}
    assert "tested against the train split of a.csv" in refusal(told) and "--data with the manifest" in refusal(told)
    assert refusal({**told, "numbers": {"training_known": True}}) == ""


def test_without_a_result_nothing_leaves_but_by_force_and_then_the_reason_is_told(gaussian, tmp_path, capsys):
    folder, path, _ = gaussian
    out = tmp_path / "out"
    out.mkdir()
    assert "no privacy test was done; pass --report DIR" in refused(capsys, folder, "-o", out)
    lines = path.read_text().splitlines()
    (path.parent / "few.csv").write_text("\n".join(lines[:3] + lines[-3:]) + "\n")
    said = refused(capsys, folder, "-o", out, "--data", path.parent / "few.csv")
    assert "no privacy test was done (2 training and 3 held-out subjects are too few" in said and not list(out.iterdir())
    assert "takes the reason" in refused(capsys, folder, "-o", out, "--force", " ")
    main(["export", str(folder), "-o", str(out), "--force", "trained on drawings"])
    assert "exported all the same, and the card says so: trained on drawings" in capsys.readouterr().out
    assert read_document(out)["privacy"] == {"level": "none", "verdict": "No privacy test was done.", "forced": "trained on drawings"}
    assert "- Exported all the same, because: trained on drawings" in (out / "card.md").read_text()
    main(["export", str(out), "-o", str(tmp_path / "again"), "--force", "drawn anew"])
    told = (tmp_path / "again" / "card.md").read_text()
    assert told.count("## Privacy") == 1 and "drawn anew" in told and "trained on drawings" not in told
    assert medgen.inference.check_golden(medgen.load(out)) == 0


def test_a_report_opens_the_gate_for_the_weights_that_it_measured(gaussian, tmp_path, capsys):
    folder, path, training = gaussian
    digest = weights_digest(medgen.load(folder).model)
    spaces = [Space("fixed feature", 0, describe)]
    good, bad = (privacy.section(work(tmp_path, m, path, 24, samples=24), spaces) for m in (Population(), Memoriser(training)))
    good.worst = [("train-3", "looks like train-4")]
    assert "is a report of other weights (ffff)" in refused(
        capsys, folder, "-o", tmp_path / "a", "--report", report(tmp_path, good, "ffff")
    )
    assert "under the sampler Euler" in refused(capsys, folder, "-o", tmp_path / "a", "--report", report(tmp_path, good, digest, "Euler"))
    few = report(tmp_path, good, digest)
    told = json.loads((few / "evaluation.json").read_text())
    (few / "evaluation.json").write_text(json.dumps(told | {"settings": {"seed": 0, "steps": 3}}))
    assert "was made with 3 sampler steps" in refused(capsys, folder, "-o", tmp_path / "a", "--report", few)
    assert "fails the privacy test" in refused(capsys, folder, "-o", tmp_path / "a", "--report", report(tmp_path, bad, digest))
    main(["export", str(folder), "-o", str(tmp_path / "forced"), "--report", str(tmp_path / "report"), "--force", "a test of ours"])
    assert read_document(tmp_path / "forced")["privacy"]["level"] == "bad"
    card = (tmp_path / "forced" / "card.md").read_text()
    assert "Result: bad. Copies among the samples" in card and "a test of ours" in card
    main(["export", str(folder), "-o", str(tmp_path / "a"), "--report", str(report(tmp_path, good, digest))])
    card = (tmp_path / "a" / "card.md").read_text()
    assert card.startswith("# a\n") and "On held-out data, split test, 24 subjects" in card
    assert "Worst case 1: looks like a subject." in card and "train-" not in card and "list.csv" not in card and "someone" not in card


def test_what_is_private_does_not_leave(gaussian, tmp_path, capsys):
    """Paths, the manifest, the run that it was fine-tuned from, and what stood in the header of the weights."""
    folder, _, _ = gaussian
    document = read_document(folder)
    parent = {"name": "/home/anna/runs/mueller/checkpoints/last", "weights": "sha256:1", "method": "lora", "data": {"path": "/secret/x"}}
    data = {"name": "ours", "licence": "none", "attribution": "from /mnt/ward 7/x/list.csv", "subjects": 24, "manifest": "/mnt/l.csv"}
    document["contract"]["data"] = {**data, "parent": parent}
    write_document(folder, {**document, "notes": "Anna Mueller"})
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"patient": "Mueller"})
    (folder / "card.md").write_text("# Ours\n\nTrained from /mnt/ward/list.csv on host.\n")
    main(["export", str(folder), "-o", str(tmp_path / "out"), "--force", "x"])
    told = read_document(tmp_path / "out")
    assert told["contract"]["data"]["parent"] == {"name": "mueller", "weights": "sha256:1", "method": "lora", "data": {}}
    assert set(told) == {"format", "medgen", "recipe", "contract", "golden", "privacy"}
    assert set(told["contract"]["data"]) == {"name", "licence", "attribution", "subjects", "parent"}
    everything = (tmp_path / "out" / "contract.json").read_text() + (tmp_path / "out" / "card.md").read_text()
    assert not [word for word in ("/home", "/mnt", "/secret", "anna", "Anna", str(tmp_path)) if word in everything]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() is None
    assert "Trained from list.csv on host." in everything


def test_paths_are_found_in_prose_and_addresses_are_left():
    assert without_paths("see /data/x/list.csv and ~/a/b.nii, C:\\scans\\p1.dcm") == "see list.csv and b.nii, p1.dcm"
    for text in ("CC BY 4.0 and/or MIT", "https://doi.org/10.1/x", "dB/mm", "3 / 4", "hf://owner/model/x"):
        assert without_paths(text) == text
    with pytest.raises(medgen.core.errors.MedgenError, match=r"names a file of this machine, /models/x\.pt"):
        public_document({"recipe": {"model": {"weights": "/models/x.pt"}}, "contract": {}})


def test_subjects_are_not_named_in_a_report_that_leaves(tmp_path):
    told = {
        "data": {"manifest": str(tmp_path / "ward7.csv")},
        "model": {},
        "sections": {
            "pixel": {"worst": [["Mueller", "12 dB"], ["7", "x"]], "verdict": "Mueller is worst, 7 dB, ward7.csv", "numbers": {}},
            "shift": {"worst": [], "verdict": "", "numbers": {"volumes": [{"subject": "Anna B", "value": 1}], "note": "Anna B and 7"}},
        },
    }
    public = public_report(told, "m")["sections"]
    assert public["pixel"]["worst"] == [["1", "12 dB"], ["2", "x"]]
    assert public["pixel"]["verdict"] == "a subject is worst, 7 dB, the manifest"
    assert public["shift"]["numbers"]["note"] == "a subject and 7"


@pytest.mark.slow
def test_a_trained_pair(tmp_path, capsys):
    """The same small network, 400 steps on 8 images and 400 steps on 512: the first one is caught, the second one leaves."""
    for name, count in (("few", 8), ("many", 512)):
        (tmp_path / name).mkdir()
        training = pictures(count, 0)
        path = manifest(tmp_path / name, training, pictures(24, 1))
        model, picked = network(), np.random.default_rng(0)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for step in range(400):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1.0, 2 * (400 - step) / 400)
            example = Example(training[picked.integers(count, size=16)], Condition())
            loss = model.phases[0].loss(example, model.begin(example, Rng(0, step, range(16)))).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        folder = checkpoint(tmp_path / name / "run", model, count)
        arguments = [folder, "-o", tmp_path / f"{name}_out", "--data", path, "-n", 32]
        if name == "few":
            assert "fails the privacy test" in refused(capsys, *arguments)
        else:
            main(["export", *map(str, arguments)])
    assert not (tmp_path / "few_out").exists() and (tmp_path / "many_out" / "model.safetensors").is_file()
    assert medgen.load(tmp_path / "many_out").generate(1)[0].array.shape == (1, SIDE, SIDE)
