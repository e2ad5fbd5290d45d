"""The cache of latent moments: training with it is training without it, and it never serves anything outdated."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medgen.checkpoint import build
from medgen.cli.configs import compose, resolved
from medgen.cli.latents import _encoded, cache_latents, check_latents
from medgen.cli.run import new_run, resume_run
from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.model import Example
from medgen.core.random import Rng
from medgen.core.task import MOMENTS
from medgen.data.cases import Cutter, Patches, Prepared
from medgen.data.latents import Latents, Plan, built, digest
from medgen.models.latent import KLCodec, Latent
from medgen.nn.autoencoder import AutoencoderKL
from medgen.training import ranks
from medgen.training.loggers import CSVLog

TINY = (
    "data.source.size=[18,14]",
    "data.source.subjects={train: 3, validation: 1, test: 1}",
    "data.source.slices=4",
    "data.batch_size=4",
    "data.workers=0",
    "training.steps=6",
    "training.validate_every=6",
    "training.save_every=6",
    "training.validate_batches=2",
    "training.accelerator=cpu",
)
LATENT = ("model=latent_diffusion", "network.channels=[8,16]", "network.blocks=1", "sampler.steps=2")
AUGMENTED = ("data.augment={_target_: medgen.data.augment.Augment}",)


def run(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    assert new_run(resolved(compose([*TINY, *overrides, f"run={folder}"])), folder) == 0
    return load_file(folder / "checkpoints" / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec") / "run"
    run(folder, "model=codec", "network.channels=[4,8,8]", "network.latent=3", "critic.channels=[4,8]", "model.start=1")
    return folder


@pytest.mark.parametrize("task", ["synthesis", "synthesis_class", "synthesis_mask"])
def test_a_float32_cache_changes_nothing_and_float16_little(codec, tmp_path, task):
    common = (f"codec={codec}", *LATENT, f"task={task}")
    plain = run(tmp_path / "plain", *common)
    exact = run(tmp_path / "exact", *common, "latents.cache=true", "latents.half=false")
    half = run(tmp_path / "half", *common, "latents.cache=true")
    assert (tmp_path / "exact" / "latents").is_dir()
    for name, value in plain.items():
        assert torch.equal(exact[name], value), name
        torch.testing.assert_close(half[name], value, rtol=1e-2, atol=2e-3)
    assert any(not torch.equal(half[name], value) for name, value in plain.items())
    rows = [CSVLog(tmp_path / name).rows() for name in ("plain", "exact")]
    metrics = [[{k: v for k, v in row.items() if k != "waiting"} for row in each] for each in rows]  # which is a time
    assert metrics[0] == metrics[1], "losses and validation, too"


def test_each_image_is_encoded_once(codec, tmp_path, monkeypatch):
    seen = []
    encode = AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, x, *rest: (seen.append(len(x)), encode(self, x, *rest))[1])
    common, validated = (f"codec={codec}", *LATENT, f"latents.cache={tmp_path / 'shared'}"), 4
    run(tmp_path / "run", *common)
    assert sum(seen) == 12 + validated
    seen.clear()
    run(tmp_path / "again", *common, "seed=1", "data.batch_size=2")
    assert sum(seen) == validated, "a second run, of another seed and batch size, finds the training set encoded"


def test_a_resumed_run_is_the_uninterrupted_one(codec, tmp_path):
    common = (f"codec={codec}", *LATENT, "latents.cache=true", "latents.versions=2", *AUGMENTED)
    whole = run(tmp_path / "whole", *common)
    run(tmp_path / "parts", *common, "training.steps=3", "training.validate_every=3", "training.save_every=3")
    assert resume_run(tmp_path / "parts", ["training.steps=6"]) == 0
    parts = load_file(tmp_path / "parts" / "checkpoints" / "last" / "model.safetensors")
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("latents.cache=true", *AUGMENTED), "change in every epoch .* latents.versions=8"),
        (("latents.cache=true", "latents.versions=0"), "must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_cached_is_refused(codec, tmp_path, overrides, sentence):
    chosen = (f"codec={codec}", *LATENT, *overrides)
    with pytest.raises(MedgenError, match=sentence):
        run(tmp_path / "run", *chosen)
    with pytest.raises(MedgenError, match=sentence):
        check_latents(resolved(compose(chosen)))


def test_a_model_without_a_codec_takes_no_cache(tmp_path):
    with pytest.raises(MedgenError, match=r"latents\.cache is for models on a codec, this is a Diffusion"):
        run(tmp_path / "run", "latents.cache=true")


def test_every_version_carries_the_moments_of_its_own_image(tmp_path):
    """Augmented images and cached moments of a training batch belong together, and the epochs take the versions in turn."""
    config = resolved(compose([*TINY, *AUGMENTED, "task=synthesis_mask"]))
    data, task = (build(config[part], trusted=True) for part in ("data", "task"))
    model = Latent(Nothing(), KLCodec(autoencoder(2)))
    settings = {"cache": str(tmp_path), "versions": 2, "half": False}
    recipe = {**config, "model": {"codec": {}}, "latents": settings, "training": {"accelerator": "cpu"}}
    assert cache_latents(recipe, tmp_path, model, task, data) is data.latents
    data.resume(0, 12, 12)
    images = {}
    for batch in data.train_dataloader():
        torch.testing.assert_close(batch[MOMENTS], torch.stack(model.codec.moments(batch["t1"]), 1), rtol=1e-5, atol=1e-6)
        example = task.example(batch, Rng(0, 0, batch["index"].tolist()))
        assert torch.equal(example.moments.mean, batch[MOMENTS][:, 0]) and torch.equal(example.moments.log_variance, batch[MOMENTS][:, 1])
        assert torch.equal(example.x, batch["t1"])
        for n, x, tissue in zip(batch["index"].tolist(), batch["t1"], batch["tissue"], strict=True):
            images.setdefault(n // 12, []).append(torch.cat([x, tissue.float()]))
    epochs = [torch.stack(sorted(images[e], key=lambda t: float(t.sum()))) for e in range(4)]
    assert torch.equal(epochs[0], epochs[2]) and torch.equal(epochs[1], epochs[3])
    assert not any(torch.equal(one, other) for one in epochs[0] for other in epochs[1])


def test_random_patches_vary_and_whole_volumes_do_not():
    def cases(shape: tuple[int, ...], anywhere: bool) -> Patches:
        return Patches([Prepared({"t1": np.zeros(shape, np.float32)}, {}, None, {}, None, True)], (4, 4, 4), Cutter({}), anywhere)

    assert cases((4, 5, 4), True).varies
    assert not cases((4, 4, 3), True).varies and not cases((9, 9, 9), False).varies


class Encoder:
    """Moments that tell the row, and a count of the rows that were asked for."""

    def __init__(self, values: np.ndarray, fail_after: int = 10**9, pause: float = 0.0):
        self.values, self.fail_after, self.pause, self.asked = values, fail_after, pause, []

    def __call__(self, rows):
        for first in range(0, len(rows), 2):
            if len(self.asked) >= self.fail_after:
                raise KeyboardInterrupt
            time.sleep(self.pause)
            some = rows[first : first + 2]
            self.asked += some
            yield self.values[some]


def plan(values: np.ndarray, **changes) -> Plan:
    """A cache of two versions in which the values stand for the images, too."""
    settings = {"facts": {"codec": 1}, "digests": np.stack([digest(v) for v in values]), "versions": 2, "half": False}
    return Plan(**{**settings, "shape": values.shape[1:], **changes})


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((10, 2, 3, 4)).astype(np.float32)


def test_a_cache_is_built_once_and_read_exactly(tmp_path, values):
    first, second = Encoder(values), Encoder(values)
    found = built(tmp_path, plan(values), first)
    assert np.array_equal(found.row(3, 1), values[8]) and found.row(3, 1).dtype == np.float32
    assert np.array_equal(np.concatenate(list(found.batches(3))), values)
    assert built(tmp_path, plan(values), second).cases == 5
    assert first.asked == list(range(10)) and second.asked == []
    half = built(tmp_path, plan(values, half=True), Encoder(values))
    np.testing.assert_allclose(half.row(0, 0), values[0], rtol=2**-11, atol=1e-7)
    assert half.folder != found.folder


def test_another_codec_or_other_data_get_a_cache_of_their_own(tmp_path, values):
    built(tmp_path, plan(values), Encoder(values))
    other = Encoder(values + 1)
    found = built(tmp_path, plan(values, facts={"codec": 2}), other)
    assert other.asked == list(range(10)) and np.array_equal(found.row(0, 0), values[0] + 1)


def test_changed_images_are_encoded_anew_beside_a_reader_of_the_old_ones(tmp_path, values):
    reader = built(tmp_path, plan(values), Encoder(values))
    changed = values.copy()
    changed[[2, 7]] += 1
    encoder = Encoder(changed)
    found = built(tmp_path, plan(changed), encoder)
    assert encoder.asked == [2, 7]
    assert np.array_equal(np.concatenate(list(found.batches(4))), changed)
    assert np.array_equal(np.concatenate(list(reader.batches(4))), values), "a run under way keeps what it began with"
    assert sorted(p.name for p in tmp_path.iterdir()) == [found.folder.name, f"{found.folder.name}.lock"]


def test_an_interrupted_build_goes_on(tmp_path, values):
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path, plan(values), Encoder(values, fail_after=4))
    encoder = Encoder(values)
    assert np.array_equal(np.concatenate(list(built(tmp_path, plan(values), encoder).batches(10))), values)
    assert encoder.asked == list(range(4, 10))


@pytest.mark.parametrize("damage", ["digests", "moments", "both"])
def test_a_damaged_cache_is_built_anew(tmp_path, values, damage):
    folder = built(tmp_path, plan(values), Encoder(values)).folder
    for name in ("digests", "moments") if damage == "both" else (damage,):
        (folder / f"{name}.npy").write_bytes((folder / f"{name}.npy").read_bytes()[:150])
    encoder = Encoder(values)
    assert np.array_equal(np.concatenate(list(built(tmp_path, plan(values), encoder).batches(10))), values)
    assert encoder.asked == list(range(10))


def _build(folder, values, asked, pause):
    encoder = Encoder(values, pause=pause)
    built(folder, plan(values), encoder)
    asked.put(encoder.asked)


def test_a_killed_build_goes_on_and_one_of_two_processes_builds(tmp_path, values, monkeypatch):
    monkeypatch.setattr("medgen.data.latents.COMMIT", 0.0)
    context = multiprocessing.get_context("fork")
    asked = context.Queue()
    killed = context.Process(target=_build, args=(tmp_path, values, asked, 1.0))
    killed.start()
    folder = tmp_path / f"{plan(values).key}.partial"
    while killed.is_alive() and ((missing := plan(values).missing(folder)) is None or len(missing) == 10):
        time.sleep(0.001)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    left = plan(values).missing(folder).tolist()
    assert 0 < len(left) < 10
    both = [context.Process(target=_build, args=(tmp_path, values, asked, 0.02)) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(asked.get(timeout=60) for _ in both) == [[], left], "one encodes what is left, the other waits for it"
    for process in both:
        process.join()
    assert np.array_equal(np.concatenate(list(Latents(tmp_path / plan(values).key, 2).batches(10))), values)


def test_what_float16_or_the_disk_cannot_hold_is_told(tmp_path, values, monkeypatch):
    with pytest.raises(MedgenError, match=r"do not fit float16: set latents\.half=false"):
        built(tmp_path / "a", plan(values, half=True), Encoder(values * 1e6))
    with pytest.raises(MedgenError, match="the codec is broken"):
        built(tmp_path / "b", plan(values), Encoder(values * np.float32("nan")))
    monkeypatch.setattr(os, "pwrite", lambda *_: 1)
    with pytest.raises(MedgenError, match=r"No space left .* free some space"):
        built(tmp_path / "c", plan(values), Encoder(values))


def autoencoder(dims: int) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(dims, 1, latent=3, channels=(4, 8, 8))


class Nothing(torch.nn.Module):
    """An inner model that shows what it is given and returns noise."""

    def begin(self, example, rng):
        return None

    def sample(self, condition, shape, rng):
        return rng.normal(shape)


@pytest.mark.parametrize("size", [(7, 13), (1, 5), (9, 6, 11), (3, 1, 2)])
def test_odd_sizes_come_back_through_the_codec_and_the_latent_model(size):
    """Decoded images have the size that was asked for, and are the crop of what the padded size gives."""
    codec = KLCodec(autoencoder(len(size)))
    model, x = Latent(Nothing(), codec), torch.randn(2, 1, *size)
    z = codec.encode(x, torch.randn(codec.latent_shape(tuple(x.shape))))
    full = tuple(4 * n for n in z.shape[2:])
    crop = (..., *(slice(0, n) for n in size))
    assert codec.decode(z, size).shape == x.shape and torch.equal(codec.decode(z, size), codec.decode(z, full)[crop])
    assert model.sample(Condition(), tuple(x.shape), Rng(0, 0, (0, 1))).shape == x.shape
    dense = torch.randn(2, 2, *size)
    inner = model.begin(Example(x, Condition(dense=dense)), Rng(0, 1, (0, 1))).example
    assert inner.x.shape == z.shape and inner.condition.dense.shape[2:] == z.shape[2:]
    moments = codec.moments(x)
    given = model.begin(Example(None, Condition(dense=dense), moments=moments), Rng(0, 1, (0, 1))).example
    assert torch.equal(given.x, inner.x) and torch.equal(given.condition.dense, inner.condition.dense)


def test_the_rank_that_came_first_says_that_it_builds(monkeypatch, capfd):
    """The others wait for it, rank 0 among them, whose silence would look like a standstill."""

    class Codec:
        def moments(self, x):
            return x, x

    class Images:
        def rows(self, numbers):
            yield torch.zeros(len(numbers), 1, 2, 2)

    monkeypatch.setattr(ranks, "rank", lambda: 1)
    with ranks.one_voice():
        (moments,) = _encoded(Codec(), Images(), [0, 1, 2], "cpu")
    assert moments.shape == (3, 2, 1, 2, 2)
    assert "latents: encoded 3/3" in capfd.readouterr().err
