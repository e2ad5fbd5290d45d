"""One training run from a resolved configuration: assemble, fit, leave a checkpoint."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from medgen.checkpoint import build, save
from medgen.cli.choices import check_choices
from medgen.cli.codec import take_codec
from medgen.cli.finetune import begin
from medgen.cli.latents import cache_latents, examples_of
from medgen.cli.launch import INTERRUPTED, check_processes, check_same_batch, images_a_step, settle, supervise
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError, MedgenWarning, nearest
from medgen.core.model import Example
from medgen.core.neighbours import neighbours
from medgen.core.random import Rng
from medgen.core.task import Task
from medgen.data.files import FileData
from medgen.training import ranks
from medgen.training.callbacks import GracefulStop, Log, ProgressBar, SampleGrid
from medgen.training.fit import Fit
from medgen.training.loggers import CSVLog
from medgen.training.state import Checkpoints, Resume, read_training_state
from medgen.training.strategy import check_shardable, placement

Config = Mapping[str, Any]
CHANGEABLE = (
    "training.steps",
    "training.validate_every",
    "training.validate_batches",
    "training.save_every",
    "training.log_every",
    "data.workers",
)
SPREAD = ("training.devices", "training.strategy", "data.batch_size")  # may change where the images of a step stay the same
WAITING = 0.1  # share of the time that training may wait for data before it says so
PRECISIONS = ("32", "bf16-mixed", "16-mixed")


def new_run(config: Config, folder: Path) -> int:
    """Train from the start in `folder`; returns the process's exit status."""
    print(f"run folder: {folder}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.yaml").exists():
        raise MedgenError(f"{folder} holds a run already; choose another run=... or continue it with resume={folder}")
    return start(config, folder, None)


def resume_run(folder: Path, overrides: Sequence[str]) -> int:
    """Continue the run in `folder` exactly where its last checkpoint was written."""
    if not (folder / "config.yaml").is_file():
        raise MedgenError(f"{folder} is not a run folder: it has no config.yaml")
    config = OmegaConf.load(folder / "config.yaml")
    before = images_a_step(config)
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in CHANGEABLE + SPREAD:
            known = ", ".join(CHANGEABLE + SPREAD)
            raise MedgenError(f"{key} cannot change in a resumed run, which must go on exactly; these may: {known}")
        OmegaConf.update(config, key, OmegaConf.create(f"v: {value}").v)
    print(f"run folder: {folder}", flush=True)
    config, state = OmegaConf.to_container(config), read_training_state(folder / "checkpoints")
    settle(config["training"])
    check_same_batch(before, images_a_step(config))
    if state["step"] >= config["training"]["steps"]:
        print(f"already at step {state['step']} of {config['training']['steps']}; to go on: resume={folder} training.steps=<more>")
        print(f"run: {folder}")
        return 0
    return start(config, folder, state)


def start(config: Config, folder: Path, state: Mapping[str, Any] | None) -> int:
    """Train here, with the processes that were started with this one, or in as many new ones as the configuration asks for."""
    check_choices(config)
    check_settings(config["training"])
    count = settle(config["training"])
    if count > 1 and ranks.world() == 1:
        return supervise(config, folder, resume=state is not None)
    if ranks.world() > 1:
        ranks.broadcast((config, folder, state))
    return train(config, folder, state)


def train(config: Config, folder: Path, state: Mapping[str, Any] | None) -> int:
    """Assemble the run of `config`, fit from `state`, and print the run line: on every rank alike."""
    _quiet()
    with ranks.agreed(), ranks.one_voice():
        config, fit, data, checkpoints = _assembled(config, folder, state)
    ranks.same_start(fit.model)
    data.resume(fit.step, config["training"]["steps"], config["training"]["validate_every"])
    trainer = _trainer(config, folder, fit, data, checkpoints, state)
    if ranks.rank() == 0:
        OmegaConf.save(OmegaConf.create(dict(config)), folder / "config.yaml")  # everything fits: now the folder is this run's
    trainer.fit(fit, datamodule=data)
    if ranks.rank() == 0:
        _say_waiting(data.clock)
    return _finish(fit, folder)


def _say_waiting(clock: Any) -> None:
    """How much of the training time went by without data, and what to do about it."""
    if clock.batches < 20:
        return
    print(f"waited for data: {clock.share:.0%} of the training time", file=sys.stderr)
    if clock.share > WAITING:
        said = f"more than {WAITING:.0%} of the time was spent waiting for data; raise data.workers"
        warnings.warn(said, MedgenWarning, stacklevel=2)


class Assembled(NamedTuple):
    """The parts of a run, and its configuration with what it comes from."""

    config: Config
    fit: Fit
    data: Any
    checkpoints: Checkpoints


def _assembled(config: Config, folder: Path, state: Mapping[str, Any] | None) -> Assembled:
    """Loop, data and checkpoints. What is measured of the data is measured on rank 0, and all ranks start from its weights."""
    settings = config["training"]
    torch.manual_seed(config["seed"])
    data = build(config["data"], trusted=True)
    task: Task = build(config["task"], trusted=True)
    model = build(config["model"], trusted=True)
    cases = settings["validate_batches"] * config["data"]["batch_size"] * ranks.world()
    if cases < task.metric.least:
        raise MedgenError(f"{task.metric.name} needs {task.metric.least} validation cases, got {cases}; raise training.validate_batches")
    if settings["strategy"] == "fsdp":
        check_shardable(model)
    if settings["channels_last"]:
        to_channels_last(model)
    optimizer, ema = build(settings["optimizer"], trusted=True), build(settings["ema"], trusted=True)
    fit = Fit(model, task, optimizer, settings["steps"], settings["accumulate"], settings["clip"], config["seed"])
    recipe = {"model": config["model"], "task": config["task"]}
    _check_channels(task, data)
    data.ready()
    if ranks.rank() == 0:
        print(data.said(), flush=True)
    origin = begin(model, config, contract_of(task, data.facts()), fresh=state is None)
    config, contract = origin.config, origin.contract

    def export(target: Path, weights: Mapping[str, Tensor]) -> None:
        save(target, origin.plain(weights), recipe, contract)
        origin.save_small(target, weights)

    checkpoints = Checkpoints(folder / "checkpoints", export, ema, settings["save_every"])
    if state is not None:
        checkpoints.restore(state, fit)
    elif config.get("init_from") is None:  # a checkpoint brings its own codec
        take_codec(model, config.get("codec"), contract)
    latents = cache_latents(config, folder, model, task, data)
    if state is None and ranks.rank() == 0:
        examples = _examples(data, task, config["seed"]) if latents is None else examples_of(latents, config["data"]["batch_size"])
        model.prepare(examples)
    return Assembled(config, fit, data, checkpoints)


def _examples(data: Any, task: Task, seed: int) -> Iterator[Example]:
    """The training cases once, in order, without augmentation."""
    for batch in data.in_order("train"):
        yield task.example(batch, Rng(seed, 0, batch["index"].tolist()))


def _check_channels(task: Task, data: Any) -> None:
    """Before anything is prepared, where the source can tell its channels without."""
    if isinstance(data.source, FileData):
        _check_offered(task, neighbours(data.source.maps, data.source.options.cut.neighbours))


def _check_offered(task: Task, offered: Iterable[str]) -> None:
    missing = [c for c in (*task.target, *task.source) if c not in offered]
    if missing:
        said = f"the task needs channel '{missing[0]}', the data offer {', '.join(offered)}"
        raise MedgenError(f"{said}; set data.source.channels or the task's")


def contract_of(task: Task, facts: Config) -> Contract:
    """The contract of a new model: what the task asks for and what the data are."""
    _check_offered(task, facts["intensity"])
    for kind in ("attributes", "labels"):
        for name, classes in getattr(task, kind).items():
            offered = facts.get(kind, {})
            if name not in offered:
                raise MedgenError(
                    f"the task needs {kind[:-1]} '{name}', the data offer {', '.join(offered) or 'none'};"
                    f" add +data.source.{kind}.{name}={classes} where the manifest has that column"
                )
            if offered[name] != classes:
                raise MedgenError(f"task.{kind}.{name} says {classes} classes, the data have {offered[name]}; make them equal")
    intensity = {c: facts["intensity"][c] for c in (*task.target, *task.source)}
    own = {"target": task.target, "source": task.source, "labels": task.labels, "attributes": task.attributes, "intensity": intensity}
    return Contract.from_dict({**facts, **own})


def to_channels_last(model: nn.Module) -> None:
    """Convolution weights in channels-last memory, which activations then follow."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.to(memory_format=formats[parameter.ndim])


def _trainer(config: Config, folder: Path, fit: Fit, data: Any, checkpoints: Checkpoints, state: Config | None) -> L.Trainer:
    settings, first, ema = config["training"], ranks.rank() == 0, checkpoints.ema
    grid = SampleGrid(folder / "samples", pictures=data.facts()["spacing"] is None)
    callbacks = [ema, GracefulStop(), Log(settings["log_every"]), grid, checkpoints]
    if first:
        callbacks.append(ProgressBar())
    if state is not None:
        callbacks.append(Resume(state, ema))
    interval = settings["validate_every"]
    return L.Trainer(
        max_epochs=max(-(-settings["steps"] // interval) - fit.step // interval, 0) or 1,
        **placement(settings),
        precision=settings["precision"],
        callbacks=[c for c in callbacks if c is not None],
        logger=_loggers(config, folder, fit) if first else False,
        limit_val_batches=settings["validate_batches"],
        num_sanity_val_steps=0,
        inference_mode=False,
        use_distributed_sampler=False,  # ranks are sharded by the stream
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=first,
        log_every_n_steps=settings["log_every"],
        default_root_dir=str(folder),
    )


def _loggers(config: Config, folder: Path, fit: Fit) -> list[Any]:
    csv = CSVLog(folder)
    csv.rewind(fit.step)
    return [csv, build(config["logger"], trusted=True)] if "_target_" in (config["logger"] or {}) else [csv]


def check_settings(settings: Config) -> None:
    """Settings that Lightning would answer with a traceback or a silent change."""
    for key in ("steps", "accumulate", "log_every", "save_every", "validate_every", "validate_batches"):
        if not isinstance(settings[key], int):
            raise MedgenError(f"training.{key}={settings[key]} must be a whole number")
    for key in ("accumulate", "log_every", "validate_batches"):
        if settings[key] < 1:
            raise MedgenError(f"training.{key}={settings[key]} must be at least 1")
    check_processes(settings)
    for key in ("steps", "validate_every", "save_every"):  # intervals close accumulation windows, or a resumed run could not repeat them
        if settings[key] < 1 or settings[key] % settings["accumulate"]:
            raise MedgenError(f"training.{key}={settings[key]} must be a positive multiple of training.accumulate={settings['accumulate']}")
    precision = str(settings["precision"])
    if precision not in PRECISIONS:
        raise MedgenError(f"no training.precision '{precision}'; {nearest(precision, PRECISIONS)}")
    on_gpu = torch.cuda.is_available() and settings["accelerator"] != "cpu"
    if precision == "16-mixed" and not on_gpu:
        raise MedgenError("training.precision=16-mixed needs a CUDA device; use bf16-mixed or 32 on the CPU")
    if settings["accelerator"] in ("gpu", "cuda") and not on_gpu:
        raise MedgenError(f"training.accelerator={settings['accelerator']} and no CUDA device was found; use auto or cpu")


def _finish(fit: Fit, folder: Path) -> int:
    if ranks.rank():
        return INTERRUPTED if fit.step < fit.steps or fit.cut_short else 0
    if fit.step < fit.steps:
        print(f"stopped at step {fit.step} of {fit.steps}; saved. Continue with: python train.py resume={folder}")
        return INTERRUPTED
    if fit.cut_short:
        print("stopped in the validation after the last step: all weights are saved, its scores and samples are missing", flush=True)
    print(f"run: {folder}", flush=True)
    return INTERRUPTED if fit.cut_short else 0


def _quiet() -> None:
    """Lightning's advice is for people who write their own loops."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # outputs are views; nothing changes them in place
    if ranks.rank():
        warnings.simplefilter("ignore")  # rank 0 has said it
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
