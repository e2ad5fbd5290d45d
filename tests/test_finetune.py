"""Runs that start from a checkpoint: what they take, what they train, what they say, what they refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file

import medgen
from medgen.checkpoint import build, save
from medgen.cli.configs import compose, resolved
from medgen.cli.finetune import check_start
from medgen.cli.init_from import expanded
from medgen.cli.run import contract_of, resume_run
from medgen.cli.train import main
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.core.transfer import check_transfer, differences
from medgen.data.phantom.export import write_phantoms
from medgen.training.loggers import CSVLog

DATA = ("data.source.size=[16,16]", "data.source.subjects={train: 3, validation: 1, test: 1}", "data.source.slices=4")
LOADING = ("data.batch_size=4", "data.workers=0")
TRAINING = ("training.accelerator=cpu", "training.validate_batches=1", "training.log_every=1", "training.ema.decay=0.9")
RUN = (*LOADING, *TRAINING, "training.optimizer.warmup=0", "training.optimizer.lr=5e-3")
SMALL = ("network.channels=[4,8]", "network.blocks=1", "critic.channels=[4,8]")
OTHER = (*DATA, *RUN, "data.source.field=1.5", "data.source.noise=0.1", "data.source.seed=7")  # another scanner, other people


def steps(number: int) -> list[str]:
    return [f"training.{key}={number}" for key in ("steps", "validate_every", "save_every")]


def untrained(folder: Path, *overrides: str) -> Path:
    """A checkpoint as a run leaves it, with weights of which none is zero."""
    torch.manual_seed(0)
    config = resolved(compose([*DATA, *LOADING, *SMALL, *overrides]))
    data, task, model = (build(config[part], trusted=True) for part in ("data", "task", "model"))
    state = {k: v + 0.02 * torch.randn_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save(folder, state, {"model": config["model"], "task": config["task"]}, contract_of(task, data.facts()))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A trained translator of drawn slices at 3 T."""
    folder = tmp_path_factory.mktemp("base") / "run"
    main(["task=translation", "model=regression", *DATA, *RUN, *SMALL, *steps(60), f"run={folder}"])
    return folder


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory) -> Path:
    return untrained(tmp_path_factory.mktemp("denoiser") / "model", "task=translation", "model=diffusion", "sampler.steps=3")


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("files") / "heads", subjects=3, channels=("t1", "t2", "flair"), shape=(24, 26, 24))


def exported(run: Path, kind: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / kind / "model.safetensors")


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert end.value.code == 2
    return capsys.readouterr().err


def composed(*arguments: object) -> dict:
    return resolved(compose(expanded(list(map(str, arguments)))))


# ---------------------------------------------------------------- three ways to train


def test_a_run_without_steps_in_weight_space_is_the_checkpoint(base, tmp_path):
    """No learning rate: full fine-tuning hands the parent's exported weights on, bit for bit, and says whose they are."""
    main([f"init_from={base}", *OTHER, *steps(2), "training.optimizer.lr=0", f"run={tmp_path / 'run'}"])
    before, after = exported(base, "best"), exported(tmp_path / "run")
    assert before.keys() == after.keys() and not [k for k in before if not torch.equal(before[k], after[k])]
    ours, theirs = (json.loads((f / "contract.json").read_text()) for f in (tmp_path / "run/checkpoints/last", base / "checkpoints/best"))
    assert ours["recipe"] == theirs["recipe"] and "parent" not in theirs["contract"]["data"]
    parent = ours["contract"]["data"]["parent"]
    assert parent["name"] == str(base) and parent["method"] == "full" and parent["data"] == theirs["contract"]["data"]
    assert parent["weights"].startswith("sha256:") and len(parent["weights"]) == 71


def test_frozen_parts_stay_bit_for_bit_and_the_others_move(base, tmp_path):
    main([f"init_from={base}", "finetune=frozen", "finetune.train=[up,output]", *OTHER, *steps(4), f"run={tmp_path / 'run'}"])
    before, after = exported(base, "best"), exported(tmp_path / "run")
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and all(k.startswith(("network.up.", "network.output.")) for k in moved)
    assert {k.split(".")[1] for k in moved} == {"up", "output"}


def test_lora_learns_the_other_data_and_exports_plain_weights(base, tmp_path, capsys):
    before = (base / "checkpoints/best/model.safetensors").read_bytes()
    lora = ("finetune=lora", "finetune.rank=2", "finetune.train=[norm]", "task.target=[pd]")
    main([f"init_from={base}", *lora, *OTHER, *steps(60), "training.validate_every=10", f"run={tmp_path / 'run'}"])
    said = capsys.readouterr().out
    assert (base / "checkpoints/best/model.safetensors").read_bytes() == before
    rows = [float(row["val/l1"]) for row in CSVLog(tmp_path / "run").rows() if row.get("val/l1")]
    assert rows[-1] < 0.9 * rows[0], "sixty steps should bring the model nearer to the other contrast"
    plain, ours = exported(base, "best"), exported(tmp_path / "run")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in plain.items()}
    assert medgen.load(tmp_path / "run").translate is not None
    path = tmp_path / "run/checkpoints/last/lora.safetensors"
    with safe_open(path, "pt") as file:
        about = file.metadata()
    small, rebuilt = load_file(path), dict(plain)
    for name, value in small.items():
        layer, adapter, side = name.rpartition(".lora_")
        if not adapter:
            rebuilt[name] = value
        elif side == "up":
            weight = plain[f"{layer}.weight"]
            rebuilt[f"{layer}.weight"] = weight + float(about["scale"]) * (value @ small[f"{layer}.lora_down"]).reshape(weight.shape)
    assert not [k for k in ours if not torch.allclose(rebuilt[k], ours[k], atol=1e-6)]
    assert (
        about["parent"]
        == json.loads((tmp_path / "run/checkpoints/last/contract.json").read_text())["contract"]["data"]["parent"]["weights"]
    )
    assert path.stat().st_size < 0.8 * (base / "checkpoints/best/model.safetensors").stat().st_size
    assert f"{sum(v.numel() for v in small.values()):,} numbers are trained" in said


@pytest.mark.parametrize(
    "method", [["finetune=lora", "finetune.rank=2"], ["finetune=frozen", "finetune.train=[middle]"]], ids=lambda m: m[0]
)
def test_a_resumed_run_equals_the_uninterrupted_one_and_needs_no_parent(base, tmp_path, method):
    parent = tmp_path / "parent"
    shutil.copytree(base / "checkpoints/best", parent)
    start = [f"init_from={parent}", *method, *OTHER, "training.save_every=1"]
    main([*start, "training.steps=6", "training.validate_every=4", f"run={tmp_path / 'whole'}"])
    main([*start, "training.steps=3", "training.validate_every=4", f"run={tmp_path / 'parts'}"])
    shutil.rmtree(parent)
    assert resume_run(tmp_path / "parts", ["training.steps=6"]) == 0
    states = [torch.load(tmp_path / r / "checkpoints/last/training.pt", weights_only=True) for r in ("whole", "parts")]
    whole, parts = ({**s["model"], **{f"ema.{k}": v for k, v in s["ema"]["shadow"].items()}} for s in states)
    assert whole.keys() == parts.keys() and not [k for k in whole if not torch.equal(whole[k], parts[k])]
    ours, theirs = exported(tmp_path / "whole"), exported(tmp_path / "parts")
    assert not [k for k in ours if not torch.equal(ours[k], theirs[k])]
    contracts = [json.loads((tmp_path / r / "checkpoints/last/contract.json").read_text())["contract"] for r in ("whole", "parts")]
    assert contracts[0] == contracts[1] and contracts[0]["data"]["parent"]["name"] == str(parent)


def test_a_gan_keeps_its_critic_and_trains_it_in_full(tmp_path):
    gan = untrained(tmp_path / "gan", "task=translation", "model=gan", "network.latent=0", "model.reconstruction=1.0")
    main([f"init_from={gan}", "finetune=lora", "finetune.rank=1", *OTHER, *steps(2), f"run={tmp_path / 'run'}"])
    before, after = load_file(gan / "model.safetensors"), exported(tmp_path / "run")
    assert before.keys() == after.keys()
    state = torch.load(tmp_path / "run/checkpoints/last/training.pt", weights_only=True)
    critic, generator = state["optimizers"]
    assert len(critic["param_groups"][0]["params"]) == sum(k.startswith("critic.") and not k.endswith(("_u", "_v")) for k in before)
    factors = sum(k.startswith("generator.") and ".parametrizations." in k and "original" not in k for k in state["model"])
    assert len(generator["param_groups"][0]["params"]) == factors > 10
    weight = "critic.last.parametrizations.weight.original"
    assert not torch.equal(before[weight], after[weight]) and torch.allclose(before[weight], after[weight], atol=0.05)


def test_a_latent_model_keeps_codec_and_statistics_unless_asked(tmp_path, capsys):
    codec = untrained(tmp_path / "codec", "model=codec")
    latent = untrained(tmp_path / "latent", "model=latent_diffusion", f"codec={codec}", "sampler.steps=2")
    weights = load_file(latent / "model.safetensors")
    weights["model.codec.measured" if "model.codec.measured" in weights else "codec.measured"].fill_(5)
    document = json.loads((latent / "contract.json").read_text())
    save(latent, weights, document["recipe"], Contract.from_dict(document["contract"]))
    capsys.readouterr()
    psnr = ("task.metric._target_=medgen.metrics.monitor.PSNR", "+task.metric.data_range=2.0")
    main([f"init_from={latent}", "finetune=lora", *psnr, *OTHER, *steps(1), f"run={tmp_path / 'kept'}"])
    assert "latent statistics: still those of the checkpoint's 5 images" in capsys.readouterr().out
    kept = exported(tmp_path / "kept")
    assert not [k for k in weights if k.startswith("codec.") and not torch.equal(weights[k], kept[k])]
    main([f"init_from={latent}", "remeasure=true", *psnr, *OTHER, *steps(1), f"run={tmp_path / 'new'}"])
    new = exported(tmp_path / "new")
    assert int(new["codec.measured"]) == 12 and not torch.equal(new["codec.std"], kept["codec.std"])


def test_the_composed_configuration_is_printed_wherever_the_flag_stands(base, capsys):
    for words in ([f"init_from={base}", "seed=3", "--cfg", "job"], ["--cfg", "job", "seed=3", f"init_from={base}"]):
        main(words)
        config = OmegaConf.create(capsys.readouterr().out)
        assert config.seed == 3 and config.model._target_.endswith("Regression") and config.network.channels == [4, 8]


def test_a_sweep_starts_every_run_from_the_checkpoint(base, tmp_path):
    sweep = ("--multirun", "finetune.rank=1,2", f"hydra.sweep.dir={tmp_path}")
    main([f"init_from={base}", "finetune=lora", *sweep, *OTHER, *steps(1)])
    methods = [json.loads((tmp_path / f"{i}/checkpoints/last/contract.json").read_text())["contract"]["data"]["parent"] for i in range(2)]
    assert [m["method"] for m in methods] == ["LoRA of rank 1", "LoRA of rank 2"]


# ---------------------------------------------------------------- what is composed


def test_files_are_read_as_the_checkpoint_was_trained_unless_said(base, heads):
    contract = json.loads((base / "checkpoints/best/contract.json").read_text())["contract"]
    files = (f"init_from={base}", "data=slices", f"data.source.manifest={heads}")
    source = composed(*files)["data"]["source"]
    assert source["channels"] == {c: {"name": "mr_percentile", "percentile": 99.0} for c in ("t1", "t2")}
    assert source["spacing"] == contract["spacing"] and source["size"] == [16, 16] and source["slice_axis"] == 2
    source = composed(*files, "data.source.spacing=null", "data.source.size=[24,20]", "+data.source.channels.t2.name=ct_hu")["data"][
        "source"
    ]
    assert source["spacing"] is None and source["size"] == [24, 20]
    assert source["channels"] == {"t1": {"name": "mr_percentile"}, "t2": {"name": "ct_hu"}}
    source = composed(*files, "task.source=[t2]", "task.target=[flair]")["data"]["source"]
    assert source["channels"] == {c: {"name": "mr_percentile", "percentile": 99.0} for c in ("t2", "flair")}
    source = composed(f"init_from={base}", "data=volumes", f"data.source.manifest={heads}")["data"]["source"]
    assert source["size"] == [64, 64, 64], "three dimensions are not made two: the run refuses them"


def test_classes_of_the_task_are_asked_of_the_files(tmp_path, heads):
    model = untrained(tmp_path / "model", "task=synthesis_class", "model=diffusion")
    assert composed(f"init_from={model}", "data=slices", f"data.source.manifest={heads}")["data"]["source"]["attributes"] == {"label": 2}


def test_the_model_is_the_checkpoints_with_what_is_changed(denoiser):
    stored = json.loads((denoiser / "contract.json").read_text())["recipe"]
    assert {k: composed(f"init_from={denoiser}")[k] for k in stored} == stored
    changed = ("model.drop=0.3", "sampler=dpmpp", "sampler.steps=7", "model.levels.mean=-0.5", "network.checkpointing=true")
    config = composed(f"init_from={denoiser}", *changed)
    check_start(config)
    model = json.loads(json.dumps(stored["model"]))
    model |= {"drop": 0.3, "sampler": {**config["sampler"], "steps": 7}}
    model["levels"]["mean"], model["network"]["checkpointing"] = -0.5, True
    assert config["model"] == model and config["sampler"]["_target_"].endswith("DPMpp")


def test_an_experiment_gives_data_and_training(base, heads):
    config = composed(f"init_from={base}", "experiment=t1_to_t2_regression", f"data.source.manifest={heads}", "network.channels=[4,8]")
    assert config["training"]["precision"] == "bf16-mixed" and config["data"]["augment"]["rotation"] == 10.0
    assert config["data"]["source"]["spacing"] == [1.4, 1.4, 1.0] and config["model"]["network"]["channels"] == [4, 8]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network.channels=[4,16]"], "does not fit network.channels=[4, 16] (in the checkpoint [4, 8])"),
        (["network.in_channels=2"], "does not fit network.in_channels=2 (in the checkpoint 1)"),
        (["model=flow"], "model=... does not go with init_from"),
        (["network=unet"], "network=... does not go with init_from"),
        (["codec=x"], "codec=... does not go with init_from"),
        (["model.dorp=0.1"], "no key 'model.dorp'; did you mean 'model.drop'"),
        (["sampler=hein"], "no sampler 'hein'; did you mean 'heun'"),
        (["finetune=lore"], "no finetune 'lore'; did you mean 'lora'"),
        (["finetune=lora", "finetune.rnk=3"], "no key 'finetune.rnk'; did you mean 'finetune.rank'"),
        (["finetune=frozen", "finetune.train=[uq]"], "finetune.train: nothing is called 'uq'; did you mean 'up'"),
        (["model.preconditioning.data_std=0.2"], "model.preconditioning.data_std=0.2"),
        (["model.preconditioning._target_=medgen.models.preconditioning.V"], "or say allow=[preconditioning]"),
        (["allow=[intensty]"], "allow has no 'intensty'; did you mean 'intensity'"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_folder(denoiser, tmp_path, capsys, overrides, message):
    assert message in refused(capsys, f"init_from={denoiser}", *overrides, *DATA, *LOADING, f"run={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_the_keys_of_the_checkpoints_family_are_the_known_ones(tmp_path, capsys):
    gan = untrained(tmp_path / "gan", "task=translation", "model=gan", "network.latent=0")
    assert "did you mean 'model.reconstruction'" in refused(capsys, f"init_from={gan}", "model.reconstrution=1")


def test_a_changed_preconditioning_passes_when_it_is_allowed(denoiser):
    check_start(composed(f"init_from={denoiser}", "model.preconditioning.data_std=0.2", "allow=[preconditioning]"))


def test_fine_tuning_nothing_is_refused(tmp_path, capsys):
    assert "finetune needs init_from=" in refused(capsys, "finetune=lora", f"run={tmp_path / 'run'}")
    assert "no model 'brian_phantom'" in refused(capsys, "init_from=brian_phantom", f"run={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["os.system", "${oc.env:HOME}"])
def test_a_hostile_checkpoint_builds_and_reads_nothing(denoiser, tmp_path, monkeypatch, value):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("the recipe ran a command"))
    folder = tmp_path / "hostile"
    shutil.copytree(denoiser, folder)
    document = json.loads((folder / "contract.json").read_text())
    place = document["recipe"]["model"]["network"] if value == "os.system" else document["recipe"]["task"]["metric"]
    place.update({"_target_": value} if value == "os.system" else {"_target_": "medgen.metrics.monitor.PSNR", "data_range": value})
    (folder / "contract.json").write_text(json.dumps(document))
    with pytest.raises(MedgenError, match="do not trust this file"):
        expanded([f"init_from={folder}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intensity": {"_target_": "os.system", "command": "true"}}, "not a medgen contract: the intensity of t1"),
        ({"intensity": {"name": "mr_percentile", "percentile": "99}"}}, "has '99}' where a number belongs"),
        ({"spacing": ["1", "1", "]"]}, "has '1' where a number belongs"),
    ],
    ids=str,
)
def test_a_hostile_contract_writes_nothing_into_the_configuration(denoiser, heads, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("the contract ran a command"))
    folder = tmp_path / "hostile"
    shutil.copytree(denoiser, folder)
    document = json.loads((folder / "contract.json").read_text())
    document["contract"] |= {k: {"t1": v, "t2": v} if k == "intensity" else v for k, v in change.items()}
    (folder / "contract.json").write_text(json.dumps(document))
    with pytest.raises(MedgenError, match=message):
        expanded([f"init_from={folder}", "data=slices", f"data.source.manifest={heads}"])


MR = {"name": "mr_percentile", "percentile": 99.0, "typical": {"low": 0.0, "high": 500.0}}
CT = {"name": "ct_hu", "low": -1024.0, "high": 2000.0, "typical": {"low": -1024.0, "high": 2000.0}}


def contract(**changes) -> Contract:
    own = {"spatial_dims": 2, "size": (128, 128), "target": ("t2",), "source": ("t1",), "intensity": {"t1": MR, "t2": MR}}
    own |= {"orientation": "RAS", "spacing": (1.0, 1.0, 3.0), "slice_axis": 2, "data": {"name": "ours", "subjects": 9}}
    return Contract(**{**own, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_dims": 3, "size": (64, 64, 64), "slice_axis": None}, "those of a 2D model, the data are 3D; set data.source.size to 2"),
        ({"source": ("t1", "pd"), "intensity": {"t1": MR, "t2": MR, "pd": MR}}, r"1 source channels \(t1\), this run has 2 \(t1, pd\)"),
        ({"target": ()}, "set task.target to 1 names"),
        ({"labels": {"tissue": 10}}, r"take labels none, this run has tissue \(10 classes\)"),
        ({"intensity": {"t1": CT, "t2": MR}}, "know t1 by mr_percentile, the data bring t1 by ct_hu.*allow=.intensity."),
    ],
)
def test_data_that_make_the_weights_meaningless_are_refused(changes, message):
    with pytest.raises(MedgenError, match=message):
        check_transfer(contract(), contract(**changes))


def test_what_differs_is_said_fact_by_fact():
    assert differences(contract(), contract()) == []
    other = {**MR, "percentile": 99.5}
    here = contract(
        target=("flair",),
        intensity={"t1": other, "flair": MR},
        size=(96, 96),
        spacing=(0.5, 0.5, 3.0),
        orientation="LPS",
        slice_axis=1,
        data={"name": "theirs", "subjects": 2},
    )
    check_transfer(contract(), here)
    check_transfer(contract(), contract(intensity={"t1": CT, "t2": MR}), allow=["intensity"])
    assert differences(contract(), here) == [
        "target names: t2 in the checkpoint, flair here",
        "intensity of t1: mr_percentile (percentile 99) in the checkpoint, mr_percentile (percentile 99.5) here",
        "spacing: 1 x 1 x 3 mm in the checkpoint, 0.5 x 0.5 x 3 mm here; anatomy appears 2 times larger than the weights know it"
        " (the limit of this warning is 1.25), unless the data are brought to the checkpoint's spacing",
        "orientation: RAS in the checkpoint, LPS here",
        "size: 128 x 128 in the checkpoint, 96 x 96 here",
        "slice axis: 2 in the checkpoint, 1 here",
        "data: ours (9 subjects) in the checkpoint, theirs (2 subjects) here",
    ]
    thicker = differences(contract(), contract(spacing=(1.0, 1.1, 6.0)))
    assert thicker == ["spacing: 1 x 1 x 3 mm in the checkpoint, 1 x 1.1 x 6 mm here"], "the distance of slices is not what a 2D model sees"
    assert (
        differences(contract(), contract(spacing=None, orientation=None))[0] == "spacing: 1 x 1 x 3 mm in the checkpoint, no geometry here"
    )


def test_a_run_on_files_says_what_it_takes_and_what_differs(base, heads, tmp_path, capsys):
    files = ("data=slices", f"data.source.manifest={heads}", "data.source.spacing=[8,8,8]", "task.target=[flair]")
    main([f"init_from={base}", *files, *RUN, *steps(1), "network.checkpointing=true", f"run={tmp_path / 'run'}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run folder: {tmp_path / 'run'}" and lines[-1] == f"run: {tmp_path / 'run'}"
    assert "  network.checkpointing: False in the checkpoint, True here" in lines
    assert "  target names: t2 in the checkpoint, flair here" in lines
    assert [
        line for line in lines if line.startswith("  spacing: 14 x 14 x 14 mm in the checkpoint, 8 x 8 x 8 mm here; anatomy appears 1.75")
    ]
    agreed = "t1 by mr_percentile (percentile 99), size 16 x 16, slice axis 2"
    assert f"  as in the checkpoint: flair by mr_percentile (percentile 99), {agreed}" in lines
    made = json.loads((tmp_path / "run/checkpoints/last/contract.json").read_text())["contract"]
    assert made["target"] == ["flair"] and made["spacing"] == [8.0, 8.0, 8.0]
    assert OmegaConf.load(tmp_path / "run/config.yaml").parent.weights == made["data"]["parent"]["weights"]


def test_data_that_do_not_fit_leave_no_run(base, heads, tmp_path, capsys):
    files = (f"init_from={base}", f"data.source.manifest={heads}", *RUN, *steps(1), f"run={tmp_path / 'run'}")
    volumes = refused(capsys, *files, "data=volumes", "data.source.size=[16,16,16]")
    assert "those of a 2D model, the data are 3D" in volumes
    assert "know t1 by mr_percentile, the data bring t1 by ct_hu" in refused(
        capsys, *files, "data=slices", "data.source.channels.t1.name=ct_hu"
    )
    assert not (tmp_path / "run" / "config.yaml").exists()
