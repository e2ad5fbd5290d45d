"""Several processes: what two do together is what one does alone. Ranks are forked from a server that has imported everything."""

import contextlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from safetensors.torch import load_file
from test_cli import manifest, stripped
from test_training import flat, start, state_of, wait_for

from medgen.cli import launch, run
from medgen.cli.configs import compose
from medgen.cli.main import main
from medgen.core.errors import MedgenError
from medgen.data.stream import InOrder
from medgen.training import ranks
from medgen.training.fit import Seen, in_order

ROOT = Path(__file__).parents[1]
TINY = (
    "data.source.size=[16,16]",
    "data.source.subjects={train: 3, validation: 1, test: 1}",
    "data.source.slices=5",  # five validation cases: ranks with unequal shares
    "data.workers=0",
    "network.channels=[4,8]",
    "network.blocks=1",
    "critic.channels=[4,8]",
    "training.steps=3",
    "training.validate_every=3",
    "training.save_every=3",
    "training.validate_batches=4",
    "training.log_every=1",
    "training.optimizer.warmup=0",
    "training.ema.decay=0.9",
    "training.accelerator=cpu",
)
SAMPLED = ("sampler.steps=2",)
CHOICES = {
    "diffusion": SAMPLED,
    "gan": ("model=gan", "network.latent=4", "model.penalty.every=2", "training.accumulate=1"),
    "gan_ada": ("model=gan_ada", "network.latent=4", "model.ada.start=0.5", "model.ada.steps=20", "+model.ada.every=2"),
    "codec": ("model=codec", "model.start=1", "network.latent=2"),
    "latent": ("model=latent_diffusion", *SAMPLED),
}


def config(folder: Path, *overrides: str) -> dict:
    made = OmegaConf.to_container(compose([*TINY, *overrides, f"run={folder}"]), resolve=True)
    made["task"]["metric"] = {"_target_": "medgen.metrics.monitor.PSNR", "data_range": 4.0}  # FeatureDistance is chaotic on noise
    return made


# ---------------------------------------------------------------- ranks


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["medgen.cli.run", "medgen.cli.rank", "medgen.cli.evaluate", "medgen.data.phantom.source", "torch.distributed.fsdp"]
    )
    return context


def together(server, work, *arguments, world: int = 2, seconds: float = 120) -> list:
    """`work(*arguments)` in `world` processes that know each other; what each returns, by rank."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    queue = server.Queue()
    crew = [server.Process(target=_ranked, args=(r, world, store.port, queue, work, arguments)) for r in range(world)]
    for process in crew:
        process.start()
    try:
        answers = dict(queue.get(timeout=seconds) for _ in crew)
    finally:
        for process in crew:
            process.join(10)
            process.kill()
    return [answers[r] for r in range(world)]


def _ranked(rank: int, world: int, port: int, queue, work, arguments) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MEDGEN_STORE": port}
    os.environ.update({k: str(v) for k, v in place.items()})
    torch.set_num_threads(1)
    try:
        answer = work(*arguments)
    except BaseException as error:
        answer = error
    queue.put((rank, answer))
    ranks.disconnect()


def training(made: dict, folder: Path, resume: bool = False, poisoned: bool = False) -> dict:
    """A run on this rank: its exit status, its count of skipped steps, what it logged, a digest of its weights."""
    from medgen.cli.rank import member
    from medgen.training.state import read_training_state

    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("medgen").addHandler(handler)
    finish, fits = run._finish, []
    run._finish = lambda fit, where: fits.append(fit) or finish(fit, where)
    folder.mkdir(exist_ok=True)
    if poisoned:
        _poison(int(os.environ["RANK"]))
    state = read_training_state(folder / "checkpoints") if resume else None
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = member(lambda: run.start(made, folder, state))
    if not fits:
        return {"status": status, "said": said.getvalue()}
    total = sum(float(ranks.local(p.detach()).double().sum()) for p in fits[0].model.parameters())
    return {"status": status, "skipped": fits[0].skipped, "told": told, "total": total}


def _poison(rank: int) -> None:
    """Rank 1's second training batch holds a NaN."""
    from medgen.data.stream import TrainingSamples

    whole = TrainingSamples.__getitem__

    def one(self, key):
        case = whole(self, key)
        return {**case, "t1": case["t1"] * float("nan")} if rank == 1 and key[0] in (5, 7) else case

    TrainingSamples.__getitem__ = one


def alone(folder: Path, *overrides: str) -> dict:
    assert run.new_run(config(folder, *overrides), folder) == 0
    return state_of(folder)


def assert_close(a: dict, b: dict, tolerance: float = 1e-5) -> None:
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def columns(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    return [{n: float(v) for n, v in zip(names, line.split(","), strict=True) if v and n != "waiting"} for line in lines[1:]]


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "run"
    alone(folder, *CHOICES["codec"], "data.batch_size=4", "training.steps=1", "training.validate_every=1", "training.save_every=1")
    return folder


@pytest.mark.parametrize("family", CHOICES)
def test_two_processes_are_one_at_twice_the_batch(server, tmp_path, family, request):
    """Weights, averages, moments of the gradients, losses and validation, after three steps."""
    choice = CHOICES[family] + ((f"codec={request.getfixturevalue('codec')}",) if family == "latent" else ())
    expected = alone(tmp_path / "one", *choice, "data.batch_size=4")
    made = config(tmp_path / "two", *choice, "data.batch_size=2", "training.devices=2")
    answers = together(server, training, made, tmp_path / "two")
    assert [a["status"] for a in answers] == [0, 0]
    assert answers[0]["total"] == answers[1]["total"]
    assert_close(expected, state_of(tmp_path / "two"))
    for one, two in zip(columns(tmp_path / "one"), columns(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-4)
    pictures = [sorted((tmp_path / n / "samples").iterdir()) for n in ("one", "two")]
    assert [p.name for p in pictures[0]] == [p.name for p in pictures[1]] == ["step_000003.png"]


def test_a_nan_on_one_rank_skips_the_step_on_both_and_the_rank_is_named(server, tmp_path):
    made = config(tmp_path / "run", *SAMPLED, "data.batch_size=2", "training.devices=2")
    first, second = together(server, training, made, tmp_path / "run", False, True)
    assert (first["status"], first["skipped"]) == (second["status"], second["skipped"]) == (0, 1)
    assert first["total"] == second["total"] and first["total"] == first["total"]
    assert first["told"] == ["step 1: diffusion update skipped, first non-finite tensor: input 't1' (rank 1)"] and not second["told"]
    assert [row.get("skipped") for row in columns(tmp_path / "run") if "skipped" in row] == [0.0, 1.0, 1.0]


VAE = ("model=vae", "network.latent=2")


@pytest.mark.parametrize("choice", [SAMPLED, pytest.param(VAE, marks=pytest.mark.slow)], ids=["diffusion", "vae"])
def test_sharded_parameters_learn_what_whole_ones_learn(server, tmp_path, choice):
    """FSDP: the state and the exported model are whole, and a run may go on without it, here in one process."""
    more = ("training.steps=5", "training.save_every=5", "training.validate_every=5")
    expected = alone(tmp_path / "one", *choice, "data.batch_size=4", *more)
    made = config(tmp_path / "two", *choice, "data.batch_size=2", "training.devices=2", "training.strategy=fsdp")
    answers = together(server, training, made, tmp_path / "two")
    assert [a["status"] for a in answers] == [0, 0]
    assert answers[0]["total"] != answers[1]["total"]  # each holds a part
    exported = load_file(tmp_path / "two" / "checkpoints" / "last" / "model.safetensors")
    assert {n: t.shape for n, t in exported.items()} == {n: t.shape for n, t in expected["model"].items()}
    changes = [*more[:1], "training.devices=1", "training.strategy=auto", "data.batch_size=4"]
    assert run.resume_run(tmp_path / "two", changes) == 0
    assert_close(expected, state_of(tmp_path / "two"))


@pytest.mark.slow
def test_a_run_of_one_goes_on_sharded(server, tmp_path):
    expected = alone(tmp_path / "one", *SAMPLED, "data.batch_size=4", "training.steps=5", "training.save_every=5")
    alone(tmp_path / "two", *SAMPLED, "data.batch_size=4")
    made = config(tmp_path / "two", *SAMPLED, "data.batch_size=2", "training.strategy=fsdp", "training.devices=2", "training.steps=5")
    assert together(server, training, made, tmp_path / "two", True)[0]["status"] == 0
    assert_close(expected, state_of(tmp_path / "two"))


def test_sharding_refuses_a_second_phase_once(server, tmp_path):
    made = config(tmp_path / "run", *CHOICES["gan"], "data.batch_size=2", "training.devices=2", "training.strategy=fsdp")
    answers = together(server, training, made, tmp_path / "run")
    assert [a["status"] for a in answers] == [launch.TOLD] * 2
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert answers[0]["said"].startswith("error: training.strategy=fsdp takes models with one phase, this one has critic, r1, generator;")
    assert not answers[1]["said"]


# ---------------------------------------------------------------- sharing and gathering


def ungraded() -> list:
    """Parameter a learns on both ranks, b on rank 1, c on none."""
    ranks.connect()
    a, b, c = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad = torch.full((2,), 1.0 + ranks.rank())
    b.grad = torch.full((2,), 4.0) if ranks.rank() else None
    ranks.average_gradients([a, b, c])
    everyone = ranks.gathered({"rank": ranks.rank(), "image": torch.full((ranks.rank() + 1,), 7.0)})
    refused = None
    try:
        with ranks.agreed():
            if ranks.rank() == 1:
                raise MedgenError("no images here")
    except ranks.Agreed as error:
        refused = str(error)
    return [a.grad.tolist(), b.grad.tolist(), c.grad, len(everyone), refused, ranks.anywhere(ranks.rank() == 1), ranks.anywhere(False)]


def test_what_ranks_do_together(server):
    first, second = together(server, ungraded)
    assert first[:3] == second[:3] == [[1.5, 1.5], [2.0, 2.0], None]
    assert (first[3], second[3]) == (2, 0)
    assert first[4:] == second[4:] == ["rank 1: no images here", True, False]


@pytest.mark.parametrize(("cases", "batch", "world"), [(5, 2, 2), (4, 2, 2), (9, 2, 4), (1, 3, 4), (7, 3, 3)])
def test_shared_cases_come_back_once_in_order_with_as_many_batches_each(cases, batch, world):
    order = [r.filled(batch).indices for r in (InOrder([None] * cases, 0, r, world, mixed=True) for r in range(world))]
    parts = [[own[i : i + batch] for i in range(0, len(own), batch)] for own in order]
    assert len({len(part) for part in parts}) == 1
    seen = [[Seen(b, {"l": sum(b) / len(b)}, *[torch.tensor(b)] * 2, None) for b in part] for part in parts]
    joined = in_order(seen)
    whole = InOrder([None] * cases, 0, mixed=True).indices
    assert [i for s in joined for i in s.indices] == whole == torch.cat([s.made for s in joined]).tolist()
    assert sum(len(s.indices) * s.terms["l"] for s in joined) == pytest.approx(sum(whole))


# ---------------------------------------------------------------- using a model


def command(arguments: list[str]) -> tuple[object, str]:
    """What a rank of `torchrun -m medgen.cli.main` returns and says."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code, said.getvalue()


def test_generate_shares_the_samples(server, tmp_path):
    alone(tmp_path / "run", *SAMPLED, "data.batch_size=4", "training.steps=1", "training.validate_every=1", "training.save_every=1")
    common = ["generate", str(tmp_path / "run"), "-n", "5", "--format", "npy", "--device", "cpu", "--batch", "2"]
    main([*common, "-o", str(tmp_path / "one")])
    first, second = together(server, command, [*common, "-o", str(tmp_path / "two")])
    assert first == (0, f"5 images in {tmp_path / 'two'} (arbitrary (MR))\n") and second == (0, "")
    names = sorted(p.name for p in (tmp_path / "two").iterdir())
    assert names == [f"sample_00{i}.npy" for i in range(5)]
    for name in names:
        one, two = np.load(tmp_path / "one" / name), np.load(tmp_path / "two" / name)
        assert np.abs(one - two).max() <= 1e-5 * np.abs(one).max()
    (tmp_path / "two" / "sample_000.npy").unlink()
    first, second = together(server, command, [*common, "-o", str(tmp_path / "two")])
    assert first == (2, f"error: {tmp_path / 'two' / 'sample_001.npy'} exists; choose another folder or pass --overwrite\n")
    assert second == (2, "") and not (tmp_path / "two" / "sample_000.npy").exists()


@pytest.mark.parametrize("choice", [("task=translation", "model=regression"), SAMPLED], ids=["translation", "synthesis"])
def test_evaluate_shares_the_work(server, tmp_path, choice):
    once = ("data.batch_size=4", "training.steps=1", "training.validate_every=1", "training.save_every=1")
    alone(tmp_path / "run", *choice, *once)
    heads = {f"s{i}": stripped(i, low=10, high=400, air=0) for i in range(6)}
    table = manifest(tmp_path, heads)
    table.write_text("".join(line.replace(",test,", ",train," if i < 3 else ",test,", 1) for i, line in enumerate(table.open())))
    common = [
        "evaluate",
        str(tmp_path / "run"),
        "--data",
        str(table),
        "-n",
        "5",
        "--device",
        "cpu",
        "--parts",
        "pixel",
        "samples",
        "hallucination",
    ]
    main([*common, "-o", str(tmp_path / "one")])
    first, second = together(server, command, [*common, "-o", str(tmp_path / "two")], world=3)[:2]
    assert first[0] == second[0] == 0 and "written: " in first[1] and not second[1]
    one, two = (json.loads((tmp_path / n / "evaluation.json").read_text())["sections"] for n in ("one", "two"))
    assert_same(one, two)
    part = one["pixel"] if choice[0] == "task=translation" else one["samples"]
    assert "skipped" not in part
    assert len(part["numbers"].get("regions", {}).get("body", {}).get("psnr", {"volumes": [0] * 4})["volumes"]) == 4


def assert_same(one: object, two: object) -> None:
    """Plain data, numbers to five digits."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        one, two = list(one.values()), list(two.values())
    if isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert two == (pytest.approx(one, rel=1e-4, abs=1e-5) if isinstance(one, float) else one)


# ---------------------------------------------------------------- starting, ending, going on


def ranks_of(process: subprocess.Popen) -> list[int]:
    """Process ids of the ranks that a launcher started, in order."""
    return sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


LONG = ("training.devices=2", "training.steps=100000", "training.save_every=5", "training.validate_every=1000")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the ranks")
def test_a_killed_rank_ends_the_other_and_the_run_goes_on_bit_for_bit(server, tmp_path):
    process = start(tmp_path / "killed", *LONG)
    wait_for(tmp_path / "killed" / "checkpoints" / "last" / "training.pt", process)
    crew = ranks_of(process)
    os.kill(crew[1], signal.SIGKILL)
    since = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - since < 30  # launch.GRACE, and what a busy machine needs to leave Python
    assert process.returncode == 1
    assert "error: rank 1 of 2 was killed by SIGKILL and the other processes were ended; continue from the last checkpoint" in output
    assert output.rstrip().endswith(f"python train.py resume={tmp_path / 'killed'}")
    assert "Traceback" not in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in crew)
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["checkpoints", "config.yaml", "metrics.csv"]

    stopped = state_of(tmp_path / "killed")["step"]
    made = OmegaConf.to_container(OmegaConf.load(tmp_path / "killed" / "config.yaml"))
    made["training"]["steps"] = stopped + 5
    shutil.copytree(tmp_path / "killed", tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "checkpoints")
    assert together(server, training, made, tmp_path / "killed", True)[0]["status"] == 0
    assert together(server, training, made, tmp_path / "whole")[0]["status"] == 0
    one, two = flat(state_of(tmp_path / "killed")), flat(state_of(tmp_path / "whole"))
    assert not [name for name in one if not torch.equal(one[name], two[name])]


@pytest.mark.slow
def test_ctrl_c_saves_once_and_says_how_to_go_on(tmp_path):
    process = start(tmp_path / "run", *LONG, "data.workers=1")
    wait_for(tmp_path / "run" / "checkpoints" / "last" / "training.pt", process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    stopped = int(output.split("stopped at step ")[1].split()[0])
    assert output.count("stopped at step") == output.count("run folder:") == 1
    assert f"resume={tmp_path / 'run'}" in output and "Traceback" not in output
    assert state_of(tmp_path / "run")["step"] == stopped


def torchrun(arguments: list[str], folder: Path, *options: str, **environment: str) -> subprocess.Popen:
    where = options or ("--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    command = [sys.executable, "-m", "torch.distributed.run", *where, *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_torchrun_makes_one_folder_and_may_change_how_the_images_are_spread(tmp_path):
    """The folder's name is a date: rank 0 alone decides."""
    process = torchrun([str(ROOT / "train.py"), *TINY, *SAMPLED, "data.batch_size=2"], tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (folder,) = (tmp_path / "runs" / "run").iterdir()
    assert output.count("run folder:") == 1
    settings = OmegaConf.load(folder / "config.yaml").training
    assert (settings.devices, settings.nodes) == (2, 1)
    with pytest.raises(
        MedgenError, match=r"4 images a step \(2 in each of 2 processes\).*2 \(2 in each of 1\); resume it with data.batch_size=4"
    ):
        run.resume_run(folder, ["training.devices=1"])
    assert run.resume_run(folder, ["training.devices=1", "data.batch_size=4", "training.steps=5"]) == 0
    assert_close(alone(tmp_path / "one", *SAMPLED, "data.batch_size=4", "training.steps=5"), state_of(folder), 1e-3)


@pytest.mark.slow
def test_torchrun_says_what_is_wrong_once(tmp_path):
    process = torchrun([str(ROOT / "train.py"), "model=gam"], tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode and output.count("error: ") == output.count("error: no model 'gam'; did you mean 'gan'?") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_ranks_leave_when_their_launcher_is_killed(tmp_path):
    process = start(tmp_path / "run", *LONG)
    wait_for(tmp_path / "run" / "checkpoints" / "last" / "training.pt", process)
    crew = ranks_of(process)
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in crew):
        assert time.monotonic() < end
        time.sleep(0.1)


def two_hosts(tmp_path: Path, prefixes: list[list[str]], address: str, **environment: str) -> list[str]:
    """Two torchruns of one process each that meet at `address`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    crew = []
    for host, prefix in enumerate(prefixes):
        options = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(host), "--master-addr", address, "--master-port", port]
        command = [
            *prefix,
            sys.executable,
            "-m",
            "torch.distributed.run",
            *options,
            str(ROOT / "train.py"),
            *TINY,
            *SAMPLED,
            "data.batch_size=2",
        ]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
        crew.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    try:
        outputs = [process.communicate(timeout=150)[0] for process in crew]
    finally:
        for process in crew:
            process.kill()
    assert [process.returncode for process in crew] == [0, 0], outputs
    return outputs


def check_two_hosts(tmp_path: Path) -> None:
    (folder,) = (tmp_path / "runs" / "run").iterdir()
    settings = OmegaConf.load(folder / "config.yaml").training
    assert (settings.devices, settings.nodes) == (1, 2)
    expected = alone(tmp_path / "one", *SAMPLED, "data.batch_size=4")
    assert_close(expected, state_of(folder), 1e-3)


@pytest.mark.slow
def test_two_hosts_by_two_addresses(tmp_path):
    two_hosts(tmp_path, [[], []], "127.0.0.2")
    check_two_hosts(tmp_path)


@pytest.mark.slow
def test_two_hosts_with_networks_of_their_own(tmp_path):
    """Two network namespaces joined by a cable: nothing but its two addresses is common to them."""
    names, cable = ["medgen-a", "medgen-b"], ["mgcable-a", "mgcable-b"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command `ip`")
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for i, (name, end) in enumerate(zip(names, cable, strict=True)):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "link", "set", end, "name", "eth9")
            ip("-n", name, "addr", "add", f"10.99.0.{i + 1}/24", "dev", "eth9")
            ip("-n", name, "link", "set", "eth9", "up")
            ip("-n", name, "link", "set", "lo", "up")
        prefixes = [["ip", "netns", "exec", name] for name in names]
        two_hosts(tmp_path, prefixes, "10.99.0.1", GLOO_SOCKET_IFNAME="eth9", TP_SOCKET_IFNAME="eth9")
        check_two_hosts(tmp_path)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"devices": 0}, "training.devices=0 must be a positive number"),
        ({"devices": "two"}, "training.devices=two must be a positive number"),
        ({"strategy": "dpp"}, "did you mean 'ddp'"),
        ({"nodes": 2, "devices": 4}, "torchrun --nnodes 2 --nproc-per-node 4"),
        ({"accelerator": "gpu", "devices": 99}, "GPUs were found"),
        ({"strategy": "fsdp", "precision": "16-mixed"}, "use bf16-mixed or 32"),
    ],
)
def test_processes_that_cannot_be_had(settings, words):
    with pytest.raises(MedgenError, match=words):
        launch.check_processes({"devices": 1, "nodes": 1, "strategy": "auto", "accelerator": "cpu", "precision": "32", **settings})
