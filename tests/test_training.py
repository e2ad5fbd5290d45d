"""The training loop: averages, phases, skipped steps, resuming after a kill, stopping, refusing."""

import copy
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from medgen.checkpoint import build
from medgen.cli import run
from medgen.cli.configs import compose
from medgen.cli.run import new_run, resume_run
from medgen.core.errors import MedgenError
from medgen.training.callbacks import SampleGrid
from medgen.training.ema import Average
from medgen.training.optimizers import AdamW
from medgen.training.state import replacing

TINY = (
    "data.source.size=[16,16]",
    "data.source.subjects={train: 3, validation: 1, test: 1}",
    "data.source.slices=4",
    "data.batch_size=2",
    "data.workers=0",
    "network.channels=[4,8]",
    "network.blocks=1",
    "critic.channels=[4,8]",
    "training.steps=6",
    "training.validate_every=4",
    "training.save_every=4",
    "training.validate_batches=1",
    "training.log_every=1",
    "training.optimizer.warmup=2",
    "training.ema.decay=0.9",
    "training.accelerator=cpu",
)


def config(folder: Path, *overrides: str) -> dict:
    model = [o for o in overrides if o.startswith("model=")]
    steps = [] if any("gan" in o or "regression" in o for o in model) else ["sampler.steps=2"]
    return OmegaConf.to_container(compose([*TINY, *steps, *overrides, f"run={folder}"]), resolve=True)


def trained(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """The whole training state after a run."""
    resolved = config(folder, *overrides)
    resolved["task"]["metric"] = {"_target_": "medgen.metrics.monitor.PSNR", "data_range": 4.0}
    assert new_run(resolved, folder) == 0
    return state_of(folder)


def state_of(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last" / "training.pt", weights_only=True)


def flat(state: dict) -> dict[str, torch.Tensor]:
    tensors = {f"model.{k}": v for k, v in state["model"].items()} | {f"ema.{k}": v for k, v in state["ema"]["shadow"].items()}
    for i, optimizer in enumerate(state["optimizers"]):
        tensors |= {f"optimizer{i}.{p}.{k}": v for p, values in optimizer["state"].items() for k, v in values.items()}
    return tensors


def assert_equal(a: dict, b: dict) -> None:
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    assert not [k for k in a if not torch.equal(a[k], b[k])]


RESUMED = {
    "diffusion": (),
    "gan": ("model=gan", "network.latent=4"),
    "gan_ada": ("model=gan_ada", "network.latent=4", "model.ada.start=0.5", "model.ada.steps=20", "+model.ada.every=3"),
}


@pytest.mark.parametrize("model", RESUMED)
def test_resuming_continues_bit_for_bit(tmp_path, model):
    choice = RESUMED[model]
    whole = trained(tmp_path / "whole", *choice)
    if model == "gan_ada":
        assert abs(float(whole["model"]["ada.p"]) - 0.5) > 0.1, "p did not move"
    trained(tmp_path / "parts", *choice, "training.steps=4", "training.optimizer.decay=constant")
    assert resume_run(tmp_path / "parts", ["training.steps=6"]) == 0
    assert_equal(whole, state_of(tmp_path / "parts"))


def test_resuming_inside_an_interval_sees_the_same_batches(tmp_path):
    whole = trained(tmp_path / "whole", "training.save_every=1")
    trained(tmp_path / "parts", "training.steps=3", "training.save_every=1")
    assert resume_run(tmp_path / "parts", ["training.steps=6"]) == 0
    assert_equal(whole, state_of(tmp_path / "parts"))
    rows = (tmp_path / "parts" / "metrics.csv").read_text().splitlines()
    steps = [int(r.split(",")[0]) for r in rows[1:] if r.split(",")[1]]
    assert steps == sorted(set(steps)), "a resumed run must not log a step twice"


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", *TINY, "sampler.steps=2", "task=translation", *overrides, f"run={folder}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], env=env, start_new_session=True, **pipes)


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_kill_9_in_mid_epoch_then_resume_gives_the_weights_of_an_uninterrupted_run(tmp_path):
    """On the CPU in fp32, bitwise, with workers."""
    long = ("training.steps=60", "training.validate_every=1000", "training.save_every=10", "data.workers=2")
    reference = start(tmp_path / "whole", *long)
    assert reference.wait(200) == 0, reference.stdout.read()
    killed = start(tmp_path / "killed", *long)
    wait_for(tmp_path / "killed" / "checkpoints" / "last" / "training.pt", killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 0 < state_of(tmp_path / "killed")["step"] < 60
    assert resume_run(tmp_path / "killed", []) == 0
    assert_equal(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"))


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    process = start(tmp_path / "run", "training.steps=100000", "training.save_every=5")
    wait_for(tmp_path / "run" / "checkpoints" / "last" / "training.pt", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert f"resume={tmp_path / 'run'}" in output
    assert output.startswith(f"run folder: {tmp_path / 'run'}")
    stopped = int(output.split("stopped at step ")[1].split()[0])
    assert state_of(tmp_path / "run")["step"] == stopped


def test_ctrl_c_ends_a_sweep(tmp_path):
    sweep = ("--multirun", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    process = start(tmp_path / "unused", *sweep, "training.steps=100000", "training.save_every=5")
    wait_for(tmp_path / "sweep" / "0" / "checkpoints" / "last" / "training.pt", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert not (tmp_path / "sweep" / "1" / "config.yaml").exists()


def test_accumulation_of_two_half_batches_equals_one_batch(tmp_path):
    """Regression has no noise: the gradient of the mean over four images is the mean of two halves."""
    fixed = ("task=translation", "model=regression", "training.clip=null")
    one = trained(tmp_path / "one", *fixed, "data.batch_size=4", "training.steps=2", "training.validate_every=2", "training.save_every=2")
    two = trained(tmp_path / "two", *fixed, "training.accumulate=2", "training.steps=4", "training.validate_every=4")
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-5)


def test_a_loss_scale_that_grows_every_step_changes_no_weight(tmp_path, monkeypatch):
    """Two phases and accumulation: gradients of one window are all scaled by the same number, which then grows once."""

    class Scaled(Precision):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)

        def pre_backward(self, tensor, module):
            return super().pre_backward(self.scaler.scale(tensor), module)

    choice = ("model=gan", "network.latent=4", "training.accumulate=2", "training.steps=8")
    plain = trained(tmp_path / "plain", *choice)
    make = run._trainer

    def scaled(*arguments):
        trainer = make(*arguments)
        trainer.strategy.precision_plugin = Scaled()
        return trainer

    monkeypatch.setattr(run, "_trainer", scaled)
    found = trained(tmp_path / "scaled", *choice)
    assert Scaled.scaler.get_scale() == 2.0 ** (10 + 4)
    for name, value in plain["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_average_is_right_after_fit_after_resume_and_at_export(tmp_path, every):
    """Two phases and any period: the average of the generator only, from an independent recurrence over saved weights."""
    choice = ("model=gan", "network.latent=4", f"training.ema.every={every}", "training.save_every=1", "training.validate_every=3")
    states = []
    for steps in range(1, 7):
        if steps == 1:
            trained(tmp_path / "run", *choice, "training.steps=1", "training.validate_every=1")
        else:
            assert resume_run(tmp_path / "run", [f"training.steps={steps}"]) == 0
        states.append(state_of(tmp_path / "run"))
    torch.manual_seed(0)
    start = build(config(tmp_path / "x", *choice)["model"], trusted=True).state_dict()
    name = next(n for n in start if n.startswith("generator.") and start[n].is_floating_point())
    shadow, updates = start[name].clone(), 0
    for step, state in enumerate(states, 1):
        if step % every == 0:
            updates += 1
            shadow.lerp_(state["model"][name], 1 - min(0.9**every, (1 + updates) / (10 + updates)))
    torch.testing.assert_close(states[-1]["ema"]["shadow"][name], shadow)
    assert not [k for k in states[-1]["ema"]["shadow"] if not k.startswith("generator.")]
    exported = load_file(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors")
    torch.testing.assert_close(exported[name], shadow)
    critic = next(n for n in exported if n.startswith("critic."))
    assert torch.equal(exported[critic], states[-1]["model"][critic])


def test_swapping_averages_in_and_out_leaves_the_weights_untouched():
    model = torch.nn.ModuleDict({"net": torch.nn.Linear(3, 2)})
    average = Average(model, ["net"], 0.5)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model["net"].weight.add_(1.0)
    now = copy.deepcopy(model.state_dict())
    with average.swapped():
        assert torch.equal(model["net"].weight, before["net.weight"])
    assert all(torch.equal(v, now[k]) for k, v in model.state_dict().items())


def test_a_non_finite_step_is_skipped_and_the_culprit_named(tmp_path, caplog, monkeypatch):
    from medgen.data.phantom.source import PhantomData

    split = PhantomData.split

    def poisoned(self, name):
        cases = split(self, name)
        case = cases.case
        cases.case = lambda i, rng: {**case(i, rng), "t1": case(i, rng)["t1"] * float("nan")} if name == "train" else case(i, rng)
        return cases

    monkeypatch.setattr(PhantomData, "split", poisoned)
    with caplog.at_level("WARNING", logger="medgen"):
        state = trained(tmp_path / "run")
    assert state["skipped"] == 6
    assert "input 't1'" in caplog.text
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_learning_rate_warms_up_and_decays():
    rate = AdamW(lr=1.0, warmup=10, decay="cosine")
    assert rate.factor(0, 110) == pytest.approx(0.1)
    assert rate.factor(9, 110) == 1.0
    assert rate.factor(60, 110) == pytest.approx(0.5)
    assert rate.factor(110, 110) == pytest.approx(0.0)
    with pytest.raises(MedgenError, match="cosine"):
        AdamW(decay="linear")


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    folder = tmp_path / "last"
    with replacing(folder) as partial:
        (partial / "weights").write_text("one")
    with pytest.raises(MedgenError, match="checkpoint before it is untouched"), replacing(folder) as partial:
        (partial / "weights").write_text("half of tw")
        raise OSError(28, "No space left on device")
    assert (folder / "weights").read_text() == "one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


def test_bf16_moves_the_weights_where_fp32_moves_them(tmp_path):
    fixed = ("task=translation", "model=regression", "training.optimizer.lr=1e-3", "training.optimizer.warmup=0")
    full = trained(tmp_path / "a", *fixed)
    half = trained(tmp_path / "b", *fixed, "training.precision=bf16-mixed")
    torch.manual_seed(0)
    start = build(config(tmp_path / "x", *fixed)["model"], trusted=True).state_dict()
    moved = [torch.cat([(s["model"][k] - start[k]).flatten() for k in start]) for s in (full, half)]
    assert half["model"]["network.input.weight"].dtype == torch.float32
    assert float(torch.cosine_similarity(*moved, dim=0)) > 0.8
    assert float(moved[1].norm() / moved[0].norm()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_saves_too(tmp_path, number):
    """What a terminal's Ctrl-C and a cluster's end of time are: the loader processes get it as well."""
    process = start(tmp_path / "run", "training.steps=100000", "training.save_every=5", "data.workers=2")
    wait_for(tmp_path / "run" / "checkpoints" / "last" / "training.pt", process)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert state_of(tmp_path / "run")["step"] == int(output.split("stopped at step ")[1].split()[0])


def test_a_resumed_run_takes_no_change_that_would_bend_it(tmp_path):
    trained(tmp_path / "run", "training.steps=2", "training.validate_every=2", "training.save_every=2")
    with pytest.raises(MedgenError, match="cannot change in a resumed run"):
        resume_run(tmp_path / "run", ["training.optimizer.lr=1e-9"])
    assert resume_run(tmp_path / "run", ["training.steps=4"]) == 0
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").training.steps == 4


def test_a_finished_run_says_how_it_could_go_on(tmp_path, capsys):
    trained(tmp_path / "run", "training.steps=2", "training.validate_every=2", "training.save_every=2")
    before = (tmp_path / "run" / "checkpoints" / "last" / "training.pt").read_bytes()
    assert resume_run(tmp_path / "run", []) == 0
    assert "already at step 2 of 2" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "last" / "training.pt").read_bytes() == before


def test_a_real_full_disk_is_answered_in_a_sentence(tmp_path):
    """torch and safetensors have their own exceptions for it: a limit on the file size raises them."""
    script = f"""
import resource, signal, torch
from pathlib import Path
from types import SimpleNamespace
from safetensors.torch import save_file
from medgen.core.errors import MedgenError
from medgen.training.state import replacing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
big = torch.zeros(100_000)
folder = Path({str(tmp_path)!r}) / "last"
with replacing(folder) as partial:
    (partial / "weights").write_text("one")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for write in (lambda p: torch.save(big, p / "training.pt"), lambda p: save_file({{"x": big}}, p / "model.safetensors")):
    try:
        with replacing(folder) as partial:
            write(partial)
    except MedgenError as error:
        print("refused:", "untouched" in str(error), (folder / "weights").read_text())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["refused: True one"] * 2, done.stdout + done.stderr


def test_sampling_in_validation_uses_the_averages(tmp_path, monkeypatch):
    from medgen.models.regression import Regression

    seen = []
    sample = Regression.sample
    monkeypatch.setattr(Regression, "sample", lambda self, *a: seen.append(self.network.input.weight.clone()) or sample(self, *a))
    state = trained(tmp_path / "run", "task=translation", "model=regression", "training.optimizer.lr=1e-2")
    torch.testing.assert_close(seen[-1], state["ema"]["shadow"]["network.input.weight"])
    assert not torch.equal(seen[-1], state["model"]["network.input.weight"])


def test_a_run_leaves_what_the_readme_promises(tmp_path, capsys):
    trained(tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run folder: {tmp_path / 'run'}" and lines[-1] == f"run: {tmp_path / 'run'}"
    names = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    for kind in ("last", "best"):
        assert {f"checkpoints/{kind}/model.safetensors", f"checkpoints/{kind}/contract.json"} <= names
    assert {"config.yaml", "metrics.csv", "samples/step_000004.png", "samples/step_000006.png"} <= names


def test_an_existing_run_is_not_overwritten(tmp_path):
    trained(tmp_path / "run")
    with pytest.raises(MedgenError, match="holds a run already"):
        new_run(config(tmp_path / "run"), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("training.accumulate=4",), "multiple of training.accumulate"),
        (("training.accumulate=0",), "at least 1"),
        (("data.batch_size=1",), "raise training.validate_batches"),
        (("training.precision=bf16",), "did you mean 'bf16-mixed'"),
        (("training.precision=16-mixed",), "needs a CUDA device"),
        (("task=translation", "task.source=[t3]"), "no channel 't3'; did you mean 't2'"),
        (("task=synthesis_class", "task.attributes.label=3"), "3 classes, the data have 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(tmp_path, overrides, message):
    with pytest.raises(MedgenError, match=message):
        new_run(config(tmp_path / "run", *overrides), tmp_path / "run")


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(MedgenError, match="not a run folder"):
        resume_run(tmp_path, [])


CURVES = {
    "diffusion": [1.53375, 0.93139, 1.35722, 1.51218, 1.17764],
    "gan": [0.375935, 0.38637, 0.360128, 0.363119, 0.351779],
    "regression": [0.644464, 0.678483, 0.614778, 0.629757, 0.621376],
}
TERM = {"diffusion": "train/loss", "gan": "train/l1", "regression": "train/l1"}


@pytest.mark.parametrize("model", CURVES)
def test_the_first_five_losses_are_what_they_were(tmp_path, model):
    """A change of these numbers is a change of training: it needs a reason in the commit that stores new ones."""
    extra = ("model.reconstruction=1.0", "network.latent=0") if model == "gan" else ()
    trained(tmp_path / "run", "task=translation", f"model={model}", *extra, "training.steps=5", "training.validate_every=5")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row[TERM[model]]) for row in csv.DictReader(file) if row[TERM[model]]]
    assert losses == pytest.approx(CURVES[model], rel=2e-3)


@pytest.mark.parametrize("pictures", [False, True])
def test_pictures_are_shown_as_they_are_and_planes_of_volumes_turned(tmp_path, pictures):
    image = torch.full((1, 3, 6, 10), -1.0)
    image[0, 0, 0, 0] = 1.0  # red in the first row and column
    seen = SimpleNamespace(batches=[SimpleNamespace(given=None, made=image, real=image)])
    grid = SampleGrid(tmp_path, pictures=pictures, cases=1)
    grid.on_validation_end(SimpleNamespace(is_global_zero=True), SimpleNamespace(validation=seen, step=1))
    shown = np.asarray(Image.open(tmp_path / "step_000001.png"))
    if pictures:
        assert shown.shape[1] == 10 and tuple(shown[0, 0]) == (255, 0, 0)
    else:
        assert shown.shape[1] == 6 and shown.ndim == 2 and shown[9, 0] > shown[0, 0]
