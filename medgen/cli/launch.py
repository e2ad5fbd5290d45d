"""How many processes a run takes, and how this machine starts and ends them where torchrun does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from medgen.core.errors import MedgenError, nearest
from medgen.training import ranks
from medgen.training.strategy import STRATEGIES

TOLD, LOST, INTERRUPTED = 2, 75, 130  # exit statuses: said why; another process had gone; Ctrl-C
# Ctrl-C during the long imports ends the process without a traceback
ENTER = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); from medgen.cli.rank import main; main()"
GRACE = 5.0  # seconds for the others once a process has failed


def settle(settings: dict[str, Any]) -> int:
    """Turn `devices` and `nodes` into the numbers of this start; returns how many processes there are in all."""
    settings.setdefault("nodes", 1)
    settings.setdefault("strategy", "auto")
    if ranks.world() > 1:  # torchrun has decided
        settings["devices"] = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world()))
        settings["nodes"] = ranks.world() // settings["devices"]
    elif settings["devices"] == "auto":
        settings["devices"] = max(torch.cuda.device_count(), 1) if settings["accelerator"] != "cpu" else 1
    return settings["devices"] * settings["nodes"]


def check_processes(settings: Mapping[str, Any]) -> None:
    """Numbers of processes that cannot be had."""
    strategy, devices, nodes = settings.get("strategy", "auto"), settings["devices"], settings.get("nodes", 1)
    if strategy not in STRATEGIES:
        raise MedgenError(f"no training.strategy '{strategy}'; {nearest(str(strategy), STRATEGIES)}")
    if devices != "auto" and (not isinstance(devices, int) or devices < 1):
        raise MedgenError(f"training.devices={devices} must be a positive number of processes per host, or auto")
    if not isinstance(nodes, int) or nodes < 1:
        raise MedgenError(f"training.nodes={nodes} must be a positive number of hosts")
    if strategy == "fsdp" and str(settings["precision"]) == "16-mixed":
        raise MedgenError("training.strategy=fsdp does not go with training.precision=16-mixed; use bf16-mixed or 32")
    if strategy == "fsdp" and settings.get("channels_last"):
        raise MedgenError("training.strategy=fsdp shards contiguous weights; leave training.channels_last out")
    if ranks.launched():
        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        if devices not in (1, "auto", here):
            raise MedgenError(f"training.devices={devices}, and torchrun started {here} processes here; leave training.devices out")
    elif nodes > 1:
        raise MedgenError(
            f"training.nodes={nodes} needs a command on each host: torchrun --nnodes {nodes} --nproc-per-node {devices}"
            " --node-rank <0, 1, ...> --master-addr <first host> --master-port 29500 train.py ..."
        )
    gpus = torch.cuda.device_count()
    if settings["accelerator"] in ("gpu", "cuda") and devices != "auto" and devices > gpus:
        raise MedgenError(f"training.devices={devices} and {gpus} GPUs were found; ask for at most as many")


def images_a_step(config: Mapping[str, Any]) -> tuple[int, int]:
    """Batch size per process, and processes."""
    settings = config["training"]
    devices = settings["devices"] if isinstance(settings["devices"], int) else 1  # auto, of a run from before there were several
    return config["data"]["batch_size"], devices * settings.get("nodes", 1)


def check_same_batch(before: tuple[int, int], now: tuple[int, int]) -> None:
    """A resumed run may spread its batch over another number of processes, but not change it."""
    if before[0] * before[1] != now[0] * now[1]:
        need = f"data.batch_size={before[0] * before[1] // now[1]}" if before[0] * before[1] % now[1] == 0 else f"{before[1]} processes"
        raise MedgenError(
            f"the run takes {before[0] * before[1]} images a step ({before[0]} in each of {before[1]} processes), this start would take"
            f" {now[0] * now[1]} ({now[0]} in each of {now[1]}); resume it with {need}"
        )


def supervise(config: Mapping[str, Any], folder: Path, resume: bool) -> int:
    """Train in `training.devices` processes of this machine; returns their common exit status.

    The processes start from the resolved configuration. If one fails the others are ended; a signal is passed on once.
    """
    import torch.distributed as dist

    count = config["training"]["devices"]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = json.dumps({"config": config, "folder": str(folder), "resume": resume}).encode() + b"\n"
    crew = [_started(r, count, store.port) for r in range(count)]
    try:
        with _forwarding(crew) as signals:
            for process in crew:
                _hand(process, job)
            while all(p.poll() in (None, 0) for p in crew) and any(p.poll() is None for p in crew):
                time.sleep(0.05)
            failed = [r for r, p in enumerate(crew) if p.poll() not in (None, 0, INTERRUPTED)]
            _end(crew, patient=not failed)
    finally:
        for process in crew:
            _kill(process)
    return _verdict([p.returncode for p in crew], failed, bool(signals), folder)


def _started(rank: int, count: int, port: int) -> subprocess.Popen:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "MEDGEN_STORE": port}
    threads = {"OMP_NUM_THREADS": str(max(cores() // count, 1))}
    modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
    env = {**threads, **os.environ, "PYTHONPATH": modules, **{k: str(v) for k, v in place.items()}}
    # a session of its own: a terminal's Ctrl-C must reach it once, through `_forwarding`, and all its loaders can be ended with it
    return subprocess.Popen([sys.executable, "-P", "-c", ENTER], stdin=subprocess.PIPE, env=env, start_new_session=True)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hand(process: subprocess.Popen, job: bytes) -> None:
    """The pipe stays open: where it closes, the process knows that its launcher has gone."""
    with suppress(BrokenPipeError):  # it has ended already, and its status tells why
        process.stdin.write(job)
        process.stdin.flush()


@contextmanager
def _forwarding(crew: list[subprocess.Popen]) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to the processes; yields the list of what came."""
    came: list[int] = []

    def forward(number: int, frame: Any) -> None:
        came.append(number)
        for process in crew:
            if process.poll() is None:
                process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(crew: list[subprocess.Popen], patient: bool) -> None:
    """After the first process has ended the others follow by themselves, at the latest when they notice that it has gone.

    Args:
        patient: nothing failed; rank 0 may still be writing the last checkpoint.
    """
    end = time.monotonic() + (12 * GRACE if patient else GRACE)
    while any(p.poll() is None for p in crew) and time.monotonic() < end:
        time.sleep(0.05)
    for process in crew:
        if process.poll() is None:
            process.kill()
            process.wait()


def _kill(process: subprocess.Popen) -> None:
    """End a process and the loaders that it may have left behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()


def _verdict(statuses: list[int], failed: list[int], interrupted: bool, folder: Path) -> int:
    """One exit status, and one sentence unless the process that failed, first if there were several, has said it."""
    if not any(statuses):
        return 0
    if interrupted or set(statuses) == {INTERRUPTED}:
        return INTERRUPTED
    if TOLD in statuses:
        return TOLD
    first = next((r for r in [*failed, *range(len(statuses))] if statuses[r] not in (0, LOST)), 0)
    status = statuses[first]
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    saved = (folder / "checkpoints" / "last").exists()
    remedy = f"; continue from the last checkpoint with: python train.py resume={folder}" if saved else "; nothing was saved yet"
    print(f"error: rank {first} of {len(statuses)} {how} and the other processes were ended{remedy}", file=sys.stderr)
    return 1
