"""Autoencoders, VAEs and codecs: exact sizes, KL, streamed statistics."""

import nibabel
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.distributions import Normal, kl_divergence

from medgen.checkpoint import build
from medgen.cli.configs import compose, resolved
from medgen.cli.run import new_run
from medgen.core.condition import Condition, Measurement
from medgen.core.errors import MedgenError
from medgen.core.model import Example, GenerativeModel, Moments
from medgen.core.picture import gray, montage, upright
from medgen.core.random import Rng
from medgen.data.readers import read
from medgen.inference import load
from medgen.models.latent import KLCodec, Latent
from medgen.models.perceptual import Perceptual
from medgen.models.vae import VAE
from medgen.nn.autoencoder import AutoencoderKL
from medgen.nn.grid import ceil_div, pad_to_multiple, space_to_depth

DIMS = pytest.mark.parametrize("dims", [2, 3])


def autoencoder(dims: int, **settings) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(dims, 1, **{"latent": 3, "channels": (4, 8, 8), **settings})


@DIMS
@pytest.mark.parametrize("size", [(8, 12, 4), (7, 5, 9), (1, 3, 2)])
def test_any_size_comes_back(dims, size):
    network, x = autoencoder(dims), torch.randn(2, 1, *size[:dims])
    moments = network.encode(x)
    assert moments.mean.shape == moments.log_variance.shape == network.latent_shape(tuple(x.shape))
    assert moments.mean.shape[2:] == tuple(-(-s // 4) for s in size[:dims])
    assert network.decode(moments.mean, x.shape[2:]).shape == x.shape
    with pytest.raises(MedgenError, match="does not decode"):
        network.decode(moments.mean, [s + 4 for s in size[:dims]])


@DIMS
def test_a_sample_does_not_depend_on_the_batch_and_the_condition_counts(dims):
    network = autoencoder(dims, condition={"vector": 2, "dense": 1})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x, dense, vector = torch.randn(3, 1, *(8,) * dims), torch.randn(3, 1, *(8,) * dims), torch.randn(3, 2)
    given = Condition(vector=vector, dense=dense)
    moments = network.encode(x, given)
    image = network.decode(moments.mean, x.shape[2:], given)
    alone = network.decode(network.encode(x[1:2], given[1:2]).mean, x.shape[2:], given[1:2])
    torch.testing.assert_close(alone, image[1:2], rtol=1e-4, atol=1e-5)
    for other in (Condition(vector=vector + 1, dense=dense), Condition(vector=vector, dense=dense + 1)):
        assert (network.encode(x, other).mean - moments.mean).abs().max() > 1e-4
        assert (network.decode(moments.mean, x.shape[2:], other) - image).abs().max() > 1e-4


def test_divergence_is_torchs():
    mean, log_variance = torch.randn(4, 2, 3, 5), torch.randn(4, 2, 3, 5)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(Moments(mean, log_variance).divergence(), expected)
    noise = torch.randn(4, 2, 3, 5)
    torch.testing.assert_close(
        Moments(mean, log_variance).draw(noise), Normal(mean, (log_variance / 2).exp()).icdf(Normal(0.0, 1.0).cdf(noise))
    )


def test_the_loss_is_l1_plus_weighted_kl_per_element():
    model = VAE(autoencoder(2), kl=0.3)
    example = Example(torch.randn(2, 1, 8, 8), Condition())
    shared = model.begin(example, Rng(0, 0, (0, 1)))
    expected = (shared.image - example.x).abs().mean() + 0.3 * shared.moments.divergence().mean() / 64
    torch.testing.assert_close(model.loss(example, shared).total, expected)


class Doubling(torch.nn.Module):
    """An encoder whose latent moments are known."""

    latent, factor = 2, 1

    def encode(self, x, condition=None):
        mean = torch.cat([2 * x + 1, -x], 1)
        return Moments(mean, torch.full_like(mean, 0.25).log())

    def decode(self, z, size, condition=None):
        return -z[:, 1:]

    def latent_shape(self, shape):
        return (shape[0], 2, *shape[2:])


def test_streamed_statistics_are_those_of_all_draws():
    codec, x = KLCodec(Doubling()), torch.randn(10, 1, 6, 6) * 0.7 + 0.2
    assert codec.measure([x[:3], x[3:4], x[4:]]) == 10
    expected = torch.stack([2 * x + 1, -x]).double()
    torch.testing.assert_close(codec.mean.double(), expected.mean((1, 2, 3, 4)), rtol=1e-5, atol=1e-6)
    variance = expected.var((1, 2, 3, 4), correction=0) + 0.25
    torch.testing.assert_close(codec.std.double(), variance.sqrt(), rtol=1e-5, atol=1e-6)
    z = codec.encode(x, torch.randn(10, 2, 6, 6))
    assert float(z.mean()) == pytest.approx(0, abs=0.1) and float(z.std()) == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(codec.decode(codec.encode(x), (6, 6)), x)
    with pytest.raises(MedgenError, match="at least one"):
        codec.measure([])


def test_a_codec_stands_still():
    codec = KLCodec(autoencoder(2)).train()
    assert not codec.autoencoder.training and not any(p.requires_grad for p in codec.parameters())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_perceptual_distance_is_zero_at_equality_and_grows_with_blur(dims):
    x = torch.randn(2, 1, *(16,) * dims)
    smooth = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(x, 2) if dims == 2 else x[(..., *(slice(None, None, 2),) * dims)], size=x.shape[2:]
    )
    assert float(Perceptual()(x, x)) == 0
    assert float(Perceptual()(smooth, x)) > float(Perceptual()(x + 0.01, x)) > 0
    torch.testing.assert_close(Perceptual(levels=3)(x + 0.5, x), torch.tensor(0.5 / 4))  # a constant is seen by the coarsest level only


@DIMS
def test_the_cells_of_a_dense_condition_hold_every_voxel(dims):
    dense = torch.randn(2, 3, *(7, 5, 8)[:dims])
    measured = Measurement(torch.randn(2, 1, 4), None)
    celled = Condition(vector=torch.randn(2, 1), dense=dense, measurement=measured).celled(4)
    assert torch.equal(celled.dense, space_to_depth(pad_to_multiple(dense, 4), 4))
    assert celled.dense.shape == (2, 3 * 4**dims, *ceil_div(dense.shape[2:], 4))
    assert celled.measurement is measured and celled.vector.shape == (2, 1)
    assert torch.equal(Condition(dense=dense).celled(1).dense, dense) and Condition().celled(4).dense is None


class Seeing(GenerativeModel):
    """An inner model that keeps the condition it was given."""

    @property
    def phases(self):
        return ()

    def begin(self, example, rng):
        self.seen = example.condition.dense
        return None

    def sample(self, condition, shape, rng):
        self.seen = condition.dense
        return torch.zeros(shape)


@DIMS
def test_the_inner_model_sees_structures_of_one_voxel(dims):
    """Interpolated to every fourth voxel, the first and the last voxel of a cell would be lost."""
    latent = Latent(Seeing(), KLCodec(autoencoder(dims)))
    x, rng, seen = torch.zeros(1, 1, *(9,) * dims), Rng(0, 0, (0,)), []
    for voxel in range(9):
        mask = torch.zeros_like(x)
        mask[:, :, voxel] = 1
        latent.begin(Example(x, Condition(dense=mask)), rng)
        seen.append(latent.model.seen)
        assert latent.sample(Condition(dense=mask), tuple(x.shape), rng).shape == x.shape
        assert torch.equal(seen[-1], latent.model.seen), "training and sampling must show the same"
        assert seen[-1][0].flatten(1).any(0).nonzero().numel() == 3 ** (dims - 1), "only the cells that hold the sheet"
    assert len({tuple(s.flatten().tolist()) for s in seen}) == 9


TINY = (
    "data.source.size=[18,14]",
    "data.source.subjects={train: 3, validation: 1, test: 1}",
    "data.source.slices=4",
    "data.batch_size=4",
    "data.workers=0",
    "training.steps=3",
    "training.validate_every=3",
    "training.save_every=3",
    "training.validate_batches=2",
    "training.accelerator=cpu",
)


def trained(folder, *overrides):
    assert new_run(resolved(compose([*TINY, *overrides, f"run={folder}"])), folder) == 0
    return load(folder / "checkpoints" / "last")


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec") / "run"
    trained(folder, "model=codec", "network.channels=[4,8,8]", "network.latent=3", "critic.channels=[4,8]", "model.start=1")
    return folder


@pytest.mark.parametrize("task", ["synthesis", "synthesis_mask"])
def test_a_latent_model_trains_on_a_codec_and_loads_alone(codec, tmp_path, task):
    latent = (f"codec={codec}", "model=latent_diffusion", "network.channels=[8,16]", "network.blocks=1", "sampler.steps=2")
    model = trained(tmp_path / "run", f"task={task}", *latent)
    inside = model.model.codec
    ours, theirs = inside.autoencoder.state_dict(), load(codec / "checkpoints" / "last").model.autoencoder.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs), "the codec must stand still"
    data = build(model.document["recipe"]["task"])
    assert data.target == ("t1",) and int(inside.measured) == 12
    assert float(inside.std.min()) > 0 and not torch.equal(inside.std, torch.ones(3))
    given = {"tissue": torch.zeros(18, 14).long().numpy()} if task == "synthesis_mask" else None
    volumes = model.generate(2, seed=0, given=given)
    assert volumes[0].array.shape[-3:-1] == (18, 14) or volumes[0].array.shape[-2:] == (18, 14)
    if given:  # 10 classes on cells of 4 x 4 pixels, trained with drop: guidance counts
        assert model.model.model.network.conditioning.sizes["dense"] == 160
        assert not (model.with_sampler(guidance=3.0).generate(1, given=given)[0].array == volumes[0].array).all()
    before = [int(model.model.model.sampler.steps), model.with_sampler("euler", steps=5).model.sampler.steps]
    assert before == [2, 5] and model.model.model.sampler.steps == 2, "another sampler must leave this model as it is"


def write_blobs(folder, size=(13, 9, 11)):
    """A manifest of four volumes of noise around a bright ellipsoid, whose two halves are the label map."""
    rows, axes = ["subject,split,t1,label"], np.indices(size)
    for i, split in enumerate(("train", "train", "validation", "validation")):
        inside = sum(((a - n / 2) / (n / 3)) ** 2 for a, n in zip(axes, size, strict=True)) < 1
        label = inside * (1 + (axes[1] > 4 + i % 2))
        image = 100 * inside + np.random.default_rng(i).uniform(5, 50, size)
        for name, array in (("t1", image.astype(np.float32)), ("label", label.astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{name}{i}.nii.gz")
        rows.append(f"s{i},{split},t1{i}.nii.gz,label{i}.nii.gz")
    (folder / "blobs.csv").write_text("\n".join(rows))
    return folder / "blobs.csv"


def test_the_hippocampus_experiments_make_odd_volumes_for_a_mask(tmp_path):
    sizes = (f"data.source.manifest={write_blobs(tmp_path)}", "data.source.size=[13,9,11]", "data.batch_size=2", "data.workers=0")
    short = ("training.steps=2", "training.validate_every=2", "training.save_every=2", "training.precision=32", "sampler.steps=3")
    for name, more in {
        "codec": ("network.channels=[4,6,8]", "critic.channels=[4,8]", "model.start=1"),
        "latent": (f"codec={tmp_path / 'codec'}", "network.channels=[8,8]", "training.optimizer.lr=0.05", "training.optimizer.warmup=0"),
    }.items():
        run = compose([f"experiment=hippocampus_{name}", *sizes, *short, *more, f"run={tmp_path / name}"])
        assert new_run(resolved(run), tmp_path / name) == 0
    model, mask = load(tmp_path / "latent"), read(tmp_path / "label0.nii.gz")
    assert model.contract.labels == {"label": 3} and model.contract.data["licence"] == "CC BY-SA 4.0"
    made = [model.generate(1, seed=0, given={"label": m})[0] for m in (mask, tmp_path / "label0.nii.gz", mask.with_array(mask.array * 0))]
    assert made[0].shape == (13, 9, 11) and np.array_equal(made[0].affine, np.eye(4))
    assert np.array_equal(made[0].array, made[1].array) and not np.array_equal(made[0].array, made[2].array)


def test_a_codec_that_does_not_fit_is_refused(codec, tmp_path):
    small = ("model=latent_diffusion", "network.channels=[8,16]")
    with pytest.raises(MedgenError, match="needs a trained codec"):
        resolved(compose(["model=latent_diffusion"]))
    with pytest.raises(MedgenError, match="was trained with target"):
        trained(tmp_path / "a", f"codec={codec}", *small, "task.target=[t2]")


def test_a_codec_is_no_generator(codec):
    """Generating from it is refused with what would work; its validation shows and scores reconstructions."""
    model = load(codec)
    with pytest.raises(MedgenError, match=r"kl=1e-06, .* model=latent_diffusion codec=.* kl of at least 0\.001"):
        model.generate(1)
    x = next(iter(build(yaml.safe_load((codec / "config.yaml").read_text())["data"], trusted=True).in_order("validation")))["t1"]
    with torch.no_grad():
        expected = model.model.autoencoder.decode(model.model.autoencoder.encode(x).mean, (18, 14))
    assert torch.equal(model.model.preview(Example(x, Condition()), Rng(0, 0, (0,) * len(x))), expected)
    rows = [[upright(gray(image[0].numpy(), -1.0, 1.0)) for image in images] for images in (expected, x)]
    with Image.open(codec / "samples" / "step_000003.png") as picture:
        assert np.abs(np.asarray(picture, int) - montage(rows)).max() <= 1


def test_a_vae_with_a_prior_generates():
    model, example = VAE(autoencoder(2), kl=0.05), Example(torch.randn(2, 1, 8, 8), Condition())
    assert not model.caveat
    assert torch.equal(model.preview(example, Rng(0, 0, (0, 1))), model.sample(Condition(), (2, 1, 8, 8), Rng(0, 0, (0, 1))))


def test_a_network_that_cannot_encode_is_refused():
    with pytest.raises(MedgenError, match="a Identity has no encode and decode; take an autoencoder"):
        VAE(torch.nn.Identity())
