"""What medgen answers to a choice that cannot work, and what a run says and leaves: each with the remedy."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_training import TINY

import medgen
from medgen.checkpoint import build
from medgen.cli.codec import take_codec
from medgen.cli.configs import compose, resolved
from medgen.cli.main import parser
from medgen.cli.run import contract_of
from medgen.cli.train import main
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError, MedgenWarning
from medgen.core.volume import Volume
from medgen.data.manifest import Manifest
from medgen.data.phantom.export import write_phantoms
from medgen.samplers.choice import named
from medgen.zoo import find

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment=t1_to_t2_regression"], "set data.source.manifest=<CSV with a column 'subject'"),
        (["model=regression"], "take task=translation or task=reconstruction"),
        (["model=regression", "task=synthesis_class"], "take task=translation or task=reconstruction"),
        (["finetune.rank=8"], "it belongs to finetune=lora: choose that too"),
        (["finetune.alpha=8"], "it belongs to finetune=lora: choose that too"),
        (["sampler.eta=0.5"], "it belongs to sampler=ddim: choose that too"),
        (["sampler.step=5"], "did you mean 'sampler.steps'?"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else "",
)
def test_a_choice_that_cannot_work_is_answered_before_there_is_a_folder(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(words)
    printed = capsys.readouterr()
    assert end.value.code == 2 and said in printed.err and not printed.out and not list(tmp_path.iterdir())


def test_a_sweep_over_data_without_manifest_is_answered_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["--multirun", "experiment=t1_to_t2_regression", "seed=0,1", "hydra.sweep.dir=sweep"])
    assert "set data.source.manifest=<CSV" in capsys.readouterr().err


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("files") / "heads", subjects=3, shape=(20, 22, 20))


def data_of(heads: Path, *words: str) -> tuple:
    config = resolved(compose(["data=slices", f"data.source.manifest={heads}", "data.source.size=[20,22]", "data.workers=0", *words]))
    return build(config["data"], trusted=True), build(config["task"], trusted=True)


def test_an_attribute_that_the_data_lack_is_added_as_the_answer_says(heads):
    data, task = data_of(heads, "task=synthesis_class")
    with pytest.raises(MedgenError, match="the data offer none; add ") as refused:
        contract_of(task, data.facts())
    word = next(word for word in str(refused.value).split() if word.startswith("+"))
    assert word == "+data.source.attributes.label=2"
    data, task = data_of(heads, "task=synthesis_class", word)
    assert contract_of(task, data.facts()).attributes == {"label": 2}


def test_another_label_map_takes_the_place_of_tissue_as_the_comment_says(heads):
    """configs/task/synthesis_mask.yaml; here by a copy of the column."""
    line = next(x for x in (ROOT / "configs" / "task" / "synthesis_mask.yaml").read_text().splitlines() if "~task.labels" in x)
    words = [word.replace("=3", "=10") for word in line.partition(": ")[2].split()]
    assert len(words) == 3
    renamed = heads.with_name("renamed.csv")
    renamed.write_text(heads.read_text().replace("split,t1,t2,tissue", "split,t1,t2,mask"))
    data, task = data_of(renamed, "task=synthesis_mask", *words)
    assert contract_of(task, data.facts()).labels == {"mask": 10}
    assert task.example(next(iter(data.in_order("test"))), None).condition.dense.shape[1] == 10


def test_a_manifest_with_semicolons_is_told_of_commas(heads):
    for mark in (";", "\t"):
        path = heads.with_name("semicolons.csv")
        path.write_text(heads.read_text().replace(",", mark))
        with pytest.raises(MedgenError, match="the separator must be a comma"):
            Manifest.read(path)


def test_a_codec_of_other_images_is_answered_with_what_would_agree(monkeypatch):
    theirs = Contract(2, (16, 16), ("t1",), intensity={"t1": {"name": "mr_percentile"}}, spacing=(1.4, 1.4, 1.0), orientation="RAS")
    mine = {"spacing": (2.0, 2.0, 1.0), "target": ("t2",), "intensity": {"t1": {"name": "identity"}}}
    remedies = {"spacing": r"set data\.source\.spacing=\[1\.4,1\.4,1\]", "target": r"set task\.target=\[t1\]", "intensity": "--intensity"}
    for field, value in mine.items():
        monkeypatch.setattr("medgen.cli.codec.find", lambda name: Path())
        monkeypatch.setattr("medgen.cli.codec.read_document", lambda folder: {"contract": theirs.to_dict()})
        with pytest.raises(MedgenError, match=remedies[field]):
            take_codec(None, "c", replace(theirs, **{field: value}))
    monkeypatch.setattr("medgen.cli.codec.read_document", lambda folder: {"contract": replace(theirs, spacing=None).to_dict()})
    with pytest.raises(MedgenError, match=r"medgen import \.\.\. --spacing"):
        take_codec(None, "c", theirs)


def test_help_names_every_sampler():
    said = next(a for a in parser()._subparsers._group_actions[0].choices["generate"]._actions if a.dest == "sampler").help
    assert not [name for name in named() if name not in said]


def test_help_into_a_closed_pipe_is_quiet():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} train.py --help | true; echo ${{PIPESTATUS[0]}}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == "" and done.stdout.strip() in ("0", "1")


def test_a_short_run_without_validation_has_its_losses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = [
        "training.steps=3",
        "training.log_every=50",
        "data.source.subjects={train: 2, validation: 0, test: 0}",
        "training.validate_every=3",
        "run=r",
    ]
    main([*[o for o in TINY if not o.startswith(("data.source.subjects", "training.steps", "training.log", "training.validate_e"))], *few])
    (row,) = csv.DictReader((tmp_path / "r" / "metrics.csv").open())
    assert row["step"] == "3" and float(row["train/loss"]) > 0


def test_an_image_of_a_single_value_is_not_taken_in_silence():
    with pytest.warns(MedgenWarning, match="'t1': an image without contrast, every voxel is 0; check the file"):
        medgen.load(find("t1_to_t2_flow")).read_sources(Volume(np.zeros((1, 16, 16, 2), np.float32), np.eye(4)))
    with pytest.warns(MedgenWarning, match="every voxel is 7"):
        medgen.load("brain_phantom").simulate(Volume(np.full((1, 16, 16, 2), 7, np.float32), np.eye(4)))


def test_fine_tuning_tells_what_of_the_data_differs_where_no_contract_holds_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [o for o in TINY if not o.startswith(("network", "critic"))]
    main([*TINY, "sampler.steps=2", "run=parent"])
    capsys.readouterr()
    main([*small, "init_from=parent", "data.source.field=1.5", "data.source.noise=0.02", "sampler.steps=2", "run=child"])
    said = capsys.readouterr().out
    assert "data.source.field: 3.0 in the checkpoint's run, 1.5 here" in said and "data.source.noise" not in said
