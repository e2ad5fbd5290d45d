"""The built-in encoders: what they react to, what their names say, and the training behind them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from medgen.core.errors import MedgenError
from medgen.data.phantom.histology.source import HistologyData
from medgen.data.phantom.source import PhantomData
from medgen.evaluation import encoder as installed
from medgen.evaluation.encoder import built_in, built_in_maps, save
from medgen.metrics.feature import frechet
from medgen.metrics.perceptual import perceptual
from medgen.models.pretext import Pretext
from medgen.nn.encoder import FLAT, SHRINKAGE, Encoder, Rebuilder, _flattest, _halved
from medgen.zoo import zoo_models

ZOO = Path(__file__).parents[1] / "zoo"
RGB = ("image_red", "image_green", "image_blue")


def images_of(source, channels, split="test"):
    """(N, C, *S) of a drawn set."""
    cases = source.split(split)
    rows = [cases.case(i, None) for i in range(len(cases))]
    return torch.stack([torch.cat([torch.from_numpy(row[name]).float() for name in channels]) for row in rows])


@pytest.fixture(scope="module")
def slices():
    return images_of(PhantomData(("t1",), (64, 64), {"test": 32}), ("t1",))


@pytest.fixture(scope="module")
def volumes():
    return images_of(PhantomData(("t1",), (32, 32, 32), {"test": 24}), ("t1",))


@pytest.fixture(scope="module")
def tiles():
    return images_of(HistologyData(RGB, (64, 64), {"test": 24}, tiles=4), RGB)


def blurred(x, sigma):
    """Gaussian of `sigma` voxels along every axis."""
    taps = torch.arange(-6.0, 7.0)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None]
    for axis in range(2, x.ndim):
        rows = x.movedim(axis, -1)
        x = F.conv1d(F.pad(rows.reshape(-1, 1, rows.shape[-1]), (6, 6), mode="replicate"), kernel).reshape(rows.shape).movedim(-1, axis)
    return x


def noisy(x, sigma):
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))


def flatter(x, share):
    """Contrast less by `share`, air where it is."""
    return (x + 1) * (1 - share) - 1


def without_middle(x, share):
    """A box in the middle, `share` of each axis, is smeared out."""
    box = tuple(slice(round(n * (1 - share) / 2), round(n * (1 + share) / 2)) for n in x.shape[2:])
    x, smeared = x.clone(), blurred(x, 4.0)
    x[(..., *box)] = smeared[(..., *box)]
    return x


def distances(space, real, others, changed):
    """Of `real` to every set in `changed`, over its distance to `others`: real against real is 1."""
    features = space.features(real)
    floor = frechet(features, space.features(others))
    return [frechet(features, space.features(x)) / floor for x in changed]


LADDER = {
    "blur": (blurred, (0.6, 1.0, 1.6)),
    "noise": (noisy, (0.06, 0.12, 0.25)),
    "contrast": (flatter, (0.1, 0.2, 0.4)),
    "anatomy": (without_middle, (0.3, 0.45, 0.7)),
}


RUNGS = [(kind, change) for kind in ("slices", "volumes") for change in LADDER]


@pytest.mark.parametrize(("kind", "change"), [*RUNGS, ("tiles", "blur"), ("tiles", "noise")])
def test_corruptions_are_ranked_by_strength_and_the_mildest_is_above_the_floor(request, kind, change):
    images = request.getfixturevalue(kind)
    space = built_in(images.ndim - 2)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    real, others = images[order[::2]], images[order[1::2]]
    damage, strengths = LADDER[change]
    found = distances(space, real, others, [damage(others, s) for s in strengths])
    assert found == sorted(found), found
    assert found[0] > 1.1, found


def test_a_dropped_mode_is_seen(slices):
    order = slices.flatten(1).mean(1).argsort()
    real, others = slices[order[::2]], slices[order[1::2]]  # both hold all brightnesses
    found = distances(built_in(2), real, others, [others[: int(len(others) * kept)] for kept in (0.9, 0.6, 0.3)])
    assert found == sorted(found)
    assert found[0] > 1.1


@pytest.mark.parametrize("change", ["blur", "noise", "anatomy"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_perceptual_distance_rises_with_damage(request, dims, change):
    images = request.getfixturevalue({2: "slices", 3: "volumes"}[dims])[:6]
    damage, strengths = LADDER[change]
    found = [float(perceptual(damage(images, s), images, built_in_maps(dims)).mean()) for s in strengths]
    assert 0 < found[0] < found[1] < found[2]
    assert float(perceptual(images, images, built_in_maps(dims)).max()) == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_each_image_is_described_on_its_own(request, dims):
    images = request.getfixturevalue({2: "slices", 3: "volumes"}[dims])[:5]
    space = built_in(dims)
    together = space.features(images)
    assert together.shape == (5, 64) and together.dtype == torch.float64
    assert torch.equal(together, space.features(images))
    alone = torch.cat([space.features(image[None]) for image in images])
    assert torch.allclose(alone, together, atol=1e-4 * float(together.std()))
    assert (together[0] - together[1]).norm() > 0.1  # and they are not all the same


@pytest.mark.parametrize("size", [(33, 47), (8, 8), (5, 70), (17, 9, 31), (8, 8, 8)])
def test_any_size_is_taken(size):
    dims = len(size)
    x = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert bool(torch.isfinite(built_in(dims).features(x)).all())
    maps = built_in_maps(dims)(x)
    assert [m.shape[2:] for m in maps] == [tuple(-(-n // 2**i) for n in size) for i in range(4)]


def test_halving_is_the_mean_of_what_lies_inside():
    x = torch.rand(2, 3, 5, 6, 7)
    expected = F.avg_pool3d(x, 3, 2, 1, count_include_pad=False)
    assert torch.allclose(_halved(x), expected, atol=1e-6)
    assert torch.allclose(_halved(x[:, :, :2, :1, :2])[..., 0, 0, 0], x[:, :, :2, :1, :2].mean((2, 3, 4)))


def test_no_frame_is_seen_around_an_image():
    """A constant image has constant maps, up to its borders."""
    for dims in (2, 3):
        x = torch.full((1, 1, *(17,) * dims), -0.3)
        for m in built_in_maps(dims)(x):
            assert float(m.flatten(2).std(2).max()) < 1e-5 * max(1.0, float(m.abs().max()))


def test_colours_count(tiles):
    """A channel changes the vector whichever it is; swapped colours are another image; equal channels are the grey image."""
    space, image = built_in(2), tiles[:4]
    found = space.features(image)
    assert found.shape == (4, 96)
    assert (space.features(image[:, [2, 1, 0]]) - found).norm() > 1e-2 * found.norm()
    assert torch.allclose(space.features(image[:, [2, 1, 0]])[:, :64], found[:, :64], atol=1e-6)
    grey = image[:, :1]
    repeated = space.features(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(repeated[:, :64], space.features(grey), atol=1e-6)
    assert float(repeated[:, 64:].abs().max()) < 1e-6
    assert built_in_maps(2)(image)[0].shape[1] == 3 * built_in_maps(2)(grey)[0].shape[1]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_name_holds_the_digest_of_the_weights_and_follows_them(tmp_path, monkeypatch, dims):
    weights = ZOO / f"encoder_{dims}d" / "model.safetensors"
    assert built_in(dims).name == f"encoder_{dims}d@{hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}"
    assert weights.stat().st_size < 4_000_000
    assert built_in(dims).name in (weights.parent / "card.md").read_text()
    monkeypatch.setattr(installed, "zoo_folders", lambda: [tmp_path])
    names = set()
    for seed in range(2):  # in the same place: what was kept must not be given out for it
        torch.manual_seed(seed)
        save(tmp_path / f"encoder_{dims}d", Encoder(dims, (4, 8), 8), {})
        names.add(built_in(dims).name)
    assert len(names) == 2


def test_missing_weights_are_no_error_and_damaged_ones_are(tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "zoo_folders", lambda: [tmp_path])
    assert built_in(2) is None and built_in_maps(3) is None
    shutil.copytree(ZOO / "encoder_2d", tmp_path / "encoder_2d")
    assert built_in(2) is not None and built_in(3) is None
    path = tmp_path / "encoder_2d" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(MedgenError, match="damaged"):
        built_in(2)
    document = json.loads((ZOO / "encoder_2d" / "encoder.json").read_text())
    document["encoder"]["_target_"] = "os.system"
    shutil.copy(ZOO / "encoder_2d" / "model.safetensors", path)
    (tmp_path / "encoder_2d" / "encoder.json").write_text(json.dumps(document))
    with pytest.raises(MedgenError, match="may not build"):
        built_in(2)


def test_an_encoder_is_no_model_of_the_zoo(tmp_path):
    assert not any(name.startswith("encoder_") for name in zoo_models())
    (tmp_path / "contract.json").write_text("{}")
    with pytest.raises(MedgenError, match="generative model"):
        save(tmp_path, Encoder(2, (4, 8), 8), {})


def test_what_it_cannot_take_is_refused():
    encoder = Encoder(2, (4, 8), 8)
    with pytest.raises(MedgenError, match="2 spatial axes"):
        encoder.maps(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(MedgenError, match="NaN"):
        encoder.maps(torch.full((1, 1, 8, 8), torch.nan))
    with pytest.raises(MedgenError, match="4 to 24 features"):
        Encoder(2, (4, 8), 64)


def test_the_readout_whitens_what_varies_within_sets():
    """Two sets far apart: within each the vectors are uncorrelated on average, a rare direction is small, and what
    lies between the sets decides nothing: moving one of them changes no direction."""
    torch.manual_seed(0)
    encoder, moved = Encoder(2, (4, 8), 8), Encoder(2, (4, 8), 8)
    mixing = torch.randn(48, 48, dtype=torch.float64)
    draws = [torch.randn(4000, 48, dtype=torch.float64) @ mixing for _ in range(2)]
    encoder.fit_readout([draws[0], draws[1] + 50])
    moved.fit_readout([draws[0], draws[1] - 20])
    assert torch.allclose(encoder.readout, moved.readout, atol=1e-4)
    within = sum(torch.cov((rows @ encoder.readout.double()).T) for rows in draws) / 2
    variances = within.diagonal()
    assert float((within - variances.diag()).abs().max()) < 1e-3
    pooled = sum(torch.cov(rows.T) for rows in draws) / 2
    spread = pooled.diagonal().sqrt()
    strongest = torch.linalg.eigvalsh(pooled / spread / spread[:, None]).flip(0)[:8]
    assert torch.allclose(variances, strongest / (strongest + SHRINKAGE), atol=1e-3)


@pytest.mark.parametrize("size", [(24, 20), (12, 9, 16)])
def test_the_flattest_place_of_the_body_is_found_and_air_is_none(size):
    m = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 2, size[-1])
    body = torch.zeros(1, 1, *size)
    body[..., 6:, 6:] = 1
    windows, inside = m, body
    for axis in range(2, m.ndim):
        windows, inside = windows.unfold(axis, 4, 2), inside.unfold(axis, 4, 2)
    deviations = (windows.flatten(-len(size)).var(-1, correction=0) + FLAT).log() / 2
    inside = inside.flatten(-len(size)).any(-1).expand_as(deviations)
    expected = torch.stack([own[there].min() for own, there in zip(deviations[0], inside[0], strict=True)])
    assert torch.allclose(_flattest(m, body, 4)[0], expected, atol=1e-4)
    assert torch.equal(_flattest(m, torch.zeros_like(body), 4), _flattest(m, torch.ones_like(body), 4))
    assert bool((_flattest(m, torch.ones_like(body), 4)[0] < expected).all())


def test_contrast_is_the_cross_entropy_among_all_views():
    """Against a plain loop over equation 1 of Chen et al. 2020."""
    torch.manual_seed(0)
    encoder = Encoder(2, (4, 8), 8)
    pretext = Pretext(encoder, Rebuilder(2, encoder.channels), temperature=0.5).train()
    first, second = torch.rand(2, 5, 1, 16, 16)
    vectors = F.normalize(pretext.projector(encoder.statistics(torch.cat([first, second]))[:, 0]))
    similar = (vectors @ vectors.T / 0.5).exp()
    terms = [-torch.log(similar[i, (i + 5) % 10] / (similar[i].sum() - similar[i, i])) for i in range(10)]
    assert pretext.contrast(first, second).item() == pytest.approx((sum(terms) / 10).item(), rel=1e-5)


def test_what_is_hidden_is_not_given_away():
    """The loss looks at hidden voxels alone, and what they hold reaches the network nowhere."""
    torch.manual_seed(0)
    encoder = Encoder(2, (4, 8), 8)
    given = []
    rebuilder = Rebuilder(2, encoder.channels)
    encoder.scales[0].register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach().clone()))
    pretext = Pretext(encoder, rebuilder)
    image, hidden = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16) < 0.5
    pretext.rebuilding(image, hidden)
    pretext.rebuilding(torch.where(hidden, image + 7, image), hidden)
    assert torch.allclose(given[0], given[1])


@pytest.mark.parametrize("dims", [2, 3])
def test_training_lowers_both_losses(dims):
    torch.manual_seed(0)
    size = {2: 32, 3: 16}[dims]
    images = images_of(PhantomData(("t1",), (size + 8,) * dims, {"train": {2: 4, 3: 8}[dims]}, slices=4), ("t1",), "train")
    encoder = Encoder(dims, (6, 12), 8)
    pretext = Pretext(encoder, Rebuilder(dims, encoder.channels)).train()
    optimizer = torch.optim.AdamW(pretext.parameters(), 3e-3)
    losses = []
    for step in range(80):
        rng = torch.Generator().manual_seed(step)
        views = []
        for _ in range(2):
            start = torch.randint(0, 9, (dims,), generator=rng).tolist()
            views.append(images[(..., *(slice(s, s + size) for s in start))])
        cells = torch.rand(len(images), 1, *(size // 4,) * dims, generator=rng) < 0.5
        loss = pretext.loss(*views, F.interpolate(cells.float(), scale_factor=4) > 0.5)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(torch.stack([loss.terms["contrast"], loss.terms["rebuilding"]]))
    early, late = torch.stack(losses[:10]).mean(0), torch.stack(losses[-10:]).mean(0)
    assert bool((late < 0.9 * early).all()), (early, late)
