"""A run that fails: it ends at once, in a sentence, before the first step where that can be, and leaves nothing behind."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_training import TINY

from medgen.cli.train import main
from medgen.core.errors import MedgenError
from medgen.data.files import FileData
from medgen.data.module import DataModule
from medgen.data.phantom.export import write_phantoms
from medgen.models.diffusion import Diffusion

ROOT = Path(__file__).parents[1]
LATE = """
import sys, time
from pathlib import Path
from medgen.data.module import DataModule
from medgen.data.phantom.source import PhantomData
data = DataModule(PhantomData(["t1"], size=(16, 16), subjects={"train": 2}, slices=2), batch_size=2, workers=2)
batches = iter(data.train_dataloader())
next(batches)
if len(sys.argv) > 1:
    Path(sys.argv[1]).touch()
    time.sleep(2)
    next(batches)
raise RuntimeError("late")
"""


def python(*arguments: str) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, start_new_session=True, **pipes)


def ended(process: subprocess.Popen, seconds: float = 60) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_an_error_after_the_loaders_have_started_ends_the_process():
    process = python("-c", LATE)
    assert "RuntimeError: late" in ended(process)
    assert process.returncode == 1


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not tell who sent a signal")
def test_loaders_outlive_a_signal_that_is_not_the_trainers(tmp_path):
    """SIGTERM to all children, as a cluster sends it: the next batch still comes, and the error after it ends everything."""
    process = python("-c", LATE, str(tmp_path / "began"))
    end = time.monotonic() + 60
    while not (tmp_path / "began").exists() and time.monotonic() < end:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    output = ended(process)
    assert "RuntimeError: late" in output and "killed by signal" not in output


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    write_phantoms(folder / "files", subjects=3, channels=("t1", "t2"), shape=(16, 18, 16))
    return folder / "files" / "manifest.csv"


def with_missing(manifest: Path, split: str) -> Path:
    rows = list(csv.DictReader(manifest.open()))
    changed = manifest.with_name(f"without_{split}.csv")
    with changed.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "t2": "gone.nii.gz"} if row["split"] == split else row for row in rows)
    return changed


def command(manifest: Path, run: Path, *overrides: str) -> list[str]:
    own = [o for o in TINY if not o.startswith(("data.source.s", "data.workers"))]
    chosen = ["task=translation", "model=regression", "data=slices", f"data.source.manifest={manifest}", "data.source.size=[16,16]"]
    return ["train.py", *own, *chosen, "+data.source.channels.t2.name=mr_percentile", "data.workers=1", *overrides, f"run={run}"]


def test_a_missing_validation_file_is_refused_before_the_first_step(heads, tmp_path):
    process = python(*command(with_missing(heads, "validation"), tmp_path / "run"))
    output = ended(process)
    assert process.returncode == 2, output
    assert "gone.nii.gz" in output and "step" not in output
    assert not (tmp_path / "run").exists()


def test_training_does_not_ask_for_the_files_of_the_test_split(heads):
    data = DataModule(FileData(str(with_missing(heads, "test")), {"t2": {"name": "mr_percentile"}}, (16, 16)), batch_size=2)
    data.ready()
    assert len(next(iter(data.train_dataloader()))["subject"]) == 2
    with pytest.raises(MedgenError, match=r"gone\.nii\.gz"):
        data.test_dataloader()


@pytest.mark.parametrize("run", [(), ("run=there/run",), ("run=there",)])
def test_a_refused_run_leaves_no_folder_that_it_made(tmp_path, monkeypatch, capsys, run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    few = ("training.validate_batches=1", "data.batch_size=1")
    with pytest.raises(SystemExit):
        main([*TINY, *few, *run])
    assert "needs 2 validation cases" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_refused_run_in_a_sweep_leaves_no_folder_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["--multirun", *TINY, "data.source.channels=[t1]", "task.target=[t2]", "seed=0,1", "hydra.sweep.dir=sweep"])
    assert "needs channel 't2'" in capsys.readouterr().err
    assert not (tmp_path / "sweep" / "0").exists()


def test_a_fit_that_fails_gives_the_signals_back():
    import lightning
    import torch

    from medgen.training.callbacks import GracefulStop

    class Failing(lightning.LightningModule):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("on purpose")

        def configure_optimizers(self):
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=1, callbacks=[GracefulStop()], accelerator="cpu", **quiet)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(Failing(), torch.utils.data.DataLoader([0, 1]))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["data=slices", "data.source.channels.t2.name=mr_percentile"],
            "a plus adds a name of your own: +data.source.channels.t2.name=mr_perc",
        ),
        (["data=slices", "data.source.labels.seg=3"], "a plus adds a name of your own: +data.source.labels.seg=3"),
        (["max_steps=3"], "did you mean 'sampler.steps' or 'training.steps'?"),
    ],
)
def test_a_key_that_is_not_there_is_answered_with_what_was_meant(words, said, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert said in capsys.readouterr().err


def test_a_channel_that_the_data_lack_is_told_before_they_are_prepared(heads, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(DataModule, "ready", lambda self: pytest.fail("prepared first"))
    with pytest.raises(SystemExit):
        main(["data=slices", f"data.source.manifest={heads}", "data.source.size=[16,16]", "task.target=[flair]", f"run={tmp_path / 'run'}"])
    assert "the task needs channel 'flair', the data offer t1" in capsys.readouterr().err


def test_a_stop_in_the_last_validation_is_told_and_is_no_success(tmp_path, monkeypatch, capsys):
    from medgen.training.fit import Fit

    step = Fit.validation_step

    def stopped(self, batch, number):
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batch, number)

    monkeypatch.setattr(Fit, "validation_step", stopped)
    with pytest.raises(SystemExit) as end:
        main([*TINY, "training.steps=2", "training.validate_every=2", "training.validate_batches=2", f"run={tmp_path / 'run'}"])
    said = capsys.readouterr()
    assert end.value.code == 130 and "stopped in the validation after the last step: all weights are saved" in said.out
    assert "cases: " in said.out and "validation at step 2: batch 1 of 2" in said.err
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").exists() and not (
        tmp_path / "run" / "checkpoints" / "best"
    ).exists()


@pytest.mark.parametrize("training", [2, 4])
def test_a_stop_is_obeyed_within_a_batch_of_a_validation(tmp_path, monkeypatch, capsys, training):
    """A signal at the network's third call of a sampler that makes hundreds: there is no fourth, and what is saved are the weights and
    averages of a run that nothing stopped."""
    calls, sample = [], Diffusion.sample

    def counted(self, condition, shape, rng):
        def count(module, given, made):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        handle = self.network.register_forward_hook(count)
        try:
            return sample(self, condition, shape, rng)
        finally:
            handle.remove()

    settings = ["model=diffusion", "sampler.steps=200", "training.validate_every=2", "training.validate_batches=2"]
    settings += [f"training.steps={training}", "training.save_every=100"]
    monkeypatch.setattr(Diffusion, "sample", counted)
    with pytest.raises(SystemExit) as end:
        main([*TINY, *settings, f"run={tmp_path / 'run'}"])
    said = capsys.readouterr()
    assert end.value.code == 130 and len(calls) == 3
    assert ("stopped in the validation after the last step" if training == 2 else "stopped at step 2 of 4; saved") in said.out
    assert not (tmp_path / "run" / "checkpoints" / "best").exists() and not list((tmp_path / "run").glob("samples/*"))
    monkeypatch.undo()
    whole, last = tmp_path / "whole", "checkpoints/last/training.pt"
    main([*TINY, *settings, "sampler.steps=2", "training.steps=2", f"run={whole}"])
    two, one = (torch.load(folder / last, weights_only=True) for folder in (tmp_path / "run", whole))
    for kind in ("model", "ema"):
        values = [state[kind]["shadow"] if kind == "ema" else state[kind] for state in (one, two)]
        assert values[0].keys() == values[1].keys() and all(torch.equal(value, values[1][name]) for name, value in values[0].items())
