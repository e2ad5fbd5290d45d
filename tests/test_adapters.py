"""Networks of MONAI and diffusers behind medgen's protocol: the originals are the oracles."""

from __future__ import annotations

import functools
import math
import re
from itertools import pairwise

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersKL
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from monai.networks.nets import AutoencoderKL as MonaiKL
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler as MonaiDDPM
from torch import nn

from medgen.checkpoint import build
from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.levels import Karras
from medgen.core.random import Rng
from medgen.core.schedule import DiscreteSchedule, Evenly
from medgen.models.diffusion import Diffusion
from medgen.models.latent import KLCodec
from medgen.models.preconditioning import X0, Epsilon, V, noise_coordinate
from medgen.nn.adapters.diffusers import DiffusersAutoencoder, DiffusersUNet
from medgen.nn.adapters.monai import MonaiAutoencoder, MonaiUNet
from medgen.samplers.ddim import DDIM
from medgen.samplers.heun import Heun

GRIDS = {2: (8, 12), 3: (8, 4, 12)}
ODD = {2: (7, 5), 3: (5, 3, 6)}
SCHEDULE = DiscreteSchedule("linear", 1e-4, 2e-2, 1000)
STEPS = torch.tensor([0, 17, 999])
MONAI = {"channels": (4, 8), "num_res_blocks": 1, "attention_levels": (False, True), "norm_num_groups": 4, "num_head_channels": 4}
DIFFUSERS = {
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2", "sigmoid": "sigmoid"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def awake(network: nn.Module) -> nn.Module:
    """Every parameter moved, so that what starts at zero counts."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def monai_unet(dims: int = 2, **config) -> DiffusionModelUNet:
    return awake(DiffusionModelUNet(**{"spatial_dims": dims, "in_channels": 1, "out_channels": 1, **MONAI, **config}))


def diffusers_unet(**config) -> UNet2DModel:
    return awake(UNet2DModel(**{"in_channels": 1, "out_channels": 1, **DIFFUSERS, **config}))


def adapted(original: nn.Module, config: dict | None = None, dense: int = 0, timesteps: object = SCHEDULE) -> nn.Module:
    """The adapter of an original's configuration, with its weights."""
    if isinstance(original, UNet2DModel):
        adapter = DiffusersUNet(**DiffusersUNet.arguments(original.config, dense), timesteps=timesteps)
    else:
        adapter = MonaiUNet(**MonaiUNet.arguments(config, dense), timesteps=timesteps)
    adapter.load_original(original.state_dict())
    return adapter.eval()


def monai_pair(dims: int = 2, dense: int = 0, **config) -> tuple[nn.Module, nn.Module]:
    config = {"spatial_dims": dims, "in_channels": 1, "out_channels": 1, **MONAI, **config}
    original = monai_unet(**{k: v for k, v in config.items() if k != "spatial_dims"}, dims=dims)
    return original, adapted(original, config, dense)


def coordinates() -> torch.Tensor:
    """medgen's noise coordinates of `STEPS`, computed from the library's own table."""
    kept = DDPMScheduler(beta_schedule="linear").alphas_cumprod[STEPS]
    return noise_coordinate(kept.sqrt(), (1 - kept).sqrt())


# --- timesteps


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("kind", BETAS)
def test_every_level_of_a_scheduler_is_its_timestep_exactly(kind, zero_terminal):
    library = DDPMScheduler(beta_schedule=BETAS[kind], rescale_betas_zero_snr=zero_terminal, beta_start=3e-4, beta_end=1e-2)
    schedule = DiscreteSchedule(kind, 3e-4, 1e-2, 1000, zero_terminal)
    alpha, sigma = library.alphas_cumprod.sqrt(), (1 - library.alphas_cumprod).sqrt()
    assert torch.equal(schedule.timestep(noise_coordinate(alpha, sigma)), torch.arange(1000.0))
    numbers = [noise_coordinate(float(a), float(s)) for a, s in zip(alpha, sigma, strict=True)]
    assert torch.equal(schedule.timestep(torch.tensor(numbers)), torch.arange(1000.0))
    exploding = noise_coordinate(torch.ones(999), (sigma / alpha)[:999])  # the same noise, another scale
    assert torch.equal(schedule.timestep(exploding), torch.arange(999.0))


@pytest.mark.parametrize("kind", BETAS)
def test_monai_schedules_are_the_same_ones(kind):
    library = MonaiDDPM(schedule=kind if kind == "cosine" else f"{kind}_beta")
    alpha, sigma = DiscreteSchedule(kind).at(torch.arange(1000) / 1000 + 1e-4)
    near = 2e-3 if kind == "cosine" else 1e-6  # earlier releases kept cosine betas above 1e-4
    torch.testing.assert_close(alpha**2, library.alphas_cumprod, rtol=1e-4, atol=near)
    torch.testing.assert_close(sigma**2, 1 - library.alphas_cumprod, rtol=1e-2, atol=near)


def test_between_levels_time_grows_and_beyond_them_it_stays():
    t = torch.linspace(-1.2, 1.4, 4001)
    steps = SCHEDULE.timestep(t)
    assert bool((steps.diff() >= 0).all()) and float(steps[0]) == 0 and float(steps[-1]) == 999
    between = noise_coordinate(*(v.mean() for v in SCHEDULE.at(torch.tensor([0.5001, 0.5011]))))
    assert float(SCHEDULE.timestep(between[None])) == pytest.approx(500.5, abs=0.01)
    torch.testing.assert_close(Evenly().timestep(torch.tensor([-3.0, 0.0, 3.0])), torch.tensor([0.0, 499.5, 999.0]))


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_a_grid_visits_the_timesteps_of_the_library(steps):
    library = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing")
    library.set_timesteps(steps)
    levels = SCHEDULE.levels(steps)
    expected = library.alphas_cumprod[library.timesteps].sqrt().double()
    torch.testing.assert_close(torch.tensor([level.alpha for level in levels[:-1]], dtype=torch.float64), expected, rtol=1e-5, atol=0)
    assert levels[-1] == (1.0, 0.0) and all(now.sigma > after.sigma for now, after in pairwise(levels))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"kind": "scaled"}, "did you mean 'scaled_linear'"), ({"beta_start": 0.0}, "0 < beta_start"), ({"steps": 1}, "at least 2 steps")],
)
def test_a_wrong_schedule_is_refused(settings, said):
    with pytest.raises(MedgenError, match=said):
        DiscreteSchedule(**settings)
    with pytest.raises(MedgenError, match="1 to 1000 steps"):
        SCHEDULE.levels(1001)


# --- U-Nets: equal to the original


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("roles", [(), ("vector",), ("dense",), ("tokens",), ("vector", "dense", "tokens")], ids="+".join)
def test_monai_unet_is_the_original(dims, roles):
    config = {"in_channels": 3 if "dense" in roles else 1}
    config |= {"with_conditioning": True, "cross_attention_dim": 5} if "tokens" in roles else {}
    config |= {"num_class_embeds": 4} if "vector" in roles else {}
    original, adapter = monai_pair(dims, 2 if "dense" in roles else 0, **config)
    x, classes = torch.randn(3, 1, *GRIDS[dims]), torch.tensor([2, 0, 3])
    dense, tokens = torch.randn(3, 2, *GRIDS[dims]), torch.randn(3, 2, 5)
    everything = {"vector": nn.functional.one_hot(classes, 4).float(), "dense": dense, "tokens": tokens}
    given = Condition(**{role: everything[role] for role in roles})
    with torch.no_grad():
        image = torch.cat([x, dense], 1) if "dense" in roles else x
        keys = {"class_labels": classes if "vector" in roles else None, "context": tokens if "tokens" in roles else None}
        expected = original(image, STEPS, **keys)
        assert torch.equal(adapter(x, coordinates(), given), expected)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize(
    ("config", "roles"),
    [
        ({}, ()),
        ({"in_channels": 3}, ("dense",)),
        ({"num_class_embeds": 4}, ("vector",)),
        (
            {"num_class_embeds": 4, "resnet_time_scale_shift": "scale_shift", "in_channels": 3, "center_input_sample": True},
            ("vector", "dense"),
        ),
        ({"time_embedding_type": "learned", "num_train_timesteps": 1000, "mid_block_scale_factor": 2.0}, ()),
        ({"class_embed_type": "timestep"}, ("number",)),
        ({"class_embed_type": "identity"}, ("embedding",)),
    ],
    ids=["plain", "dense", "class", "many", "learned", "timestep", "identity"],
)
def test_diffusers_unet_is_the_original(config, roles):
    original = diffusers_unet(**config)
    adapter = adapted(original, dense=2 if "dense" in roles else 0)
    x, dense, classes = torch.randn(3, 1, *GRIDS[2]), torch.randn(3, 2, *GRIDS[2]), torch.tensor([2, 0, 3])
    number, embedding = torch.tensor([1.5, 0.0, 7.0]), torch.randn(3, 16)
    labels = {"vector": classes, "number": number, "embedding": embedding}
    vectors = {"vector": nn.functional.one_hot(classes, 4).float(), "number": number[:, None], "embedding": embedding}
    asked = [role for role in roles if role in labels]
    given = Condition(vectors[asked[0]] if asked else None, dense if "dense" in roles else None)
    with torch.no_grad():
        image = torch.cat([x, dense], 1) if "dense" in roles else x
        expected = original(image, STEPS, class_labels=labels[asked[0]] if asked else None).sample
        assert torch.equal(adapter(x, coordinates(), given), expected)
    assert float(expected.std()) > 0.1


def test_several_attributes_mix_rows_of_the_class_embedding():
    original, adapter = monai_pair(num_class_embeds=4)
    x, vector = torch.randn(3, 1, 8, 8), torch.tensor([[1.0, 0, 0, 0.5]]).expand(3, -1)
    mixed = original.class_embedding.weight[0] + 0.5 * original.class_embedding.weight[3]
    original.class_embedding = nn.Embedding(1, len(mixed), _weight=mixed[None].detach())
    with torch.no_grad():
        expected = original(x, STEPS, class_labels=torch.zeros(3, dtype=torch.long))
        torch.testing.assert_close(adapter(x, coordinates(), Condition(vector=vector)), expected)


PREDICTIONS = pytest.mark.parametrize(("kind", "preconditioning"), [("epsilon", Epsilon()), ("v_prediction", V()), ("sample", X0())])


@PREDICTIONS
@pytest.mark.parametrize("library", ["diffusers", "monai"])
def test_the_denoised_image_is_the_one_of_the_librarys_scheduler(kind, preconditioning, library):
    original, adapter = (diffusers_unet(), None) if library == "diffusers" else monai_pair()
    adapter = adapter or adapted(original)
    model = Diffusion(adapter, preconditioning, SCHEDULE, DDIM(SCHEDULE, 5))
    scheduler = DDPMScheduler(beta_schedule="linear", prediction_type=kind, clip_sample=False)
    x_t = torch.randn(1, 1, 8, 8)
    for t in (3, 250, 998):
        with torch.no_grad():
            output = original(x_t, torch.tensor([t]))
            output = output.sample if library == "diffusers" else output
            expected = scheduler.step(output, t, x_t).pred_original_sample
            kept = float(scheduler.alphas_cumprod[t])
            made = model.denoise(x_t, math.sqrt(kept), math.sqrt(1 - kept), Condition())
            levels = model.denoise(x_t, torch.tensor([kept]).sqrt(), torch.tensor([1 - kept]).sqrt(), Condition())
        scale = float(expected.abs().max())
        assert float((made - expected).abs().max()) < 1e-5 * scale and float((levels - expected).abs().max()) < 1e-5 * scale


@PREDICTIONS
def test_sampling_ends_where_the_librarys_own_loop_ends(kind, preconditioning):
    original = diffusers_unet()
    scheduler = DDIMScheduler(beta_schedule="linear", prediction_type=kind, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(5)  # strides of 200: the library rounds others to a whole stride
    model = Diffusion(adapted(original), preconditioning, SCHEDULE, DDIM(SCHEDULE, 5))
    shape, rng = (2, 1, 8, 8), Rng(0, samples=range(2))
    with torch.no_grad():
        made = model.sample(Condition(), shape, rng)
        x = Rng(0, samples=range(2)).normal(shape) * SCHEDULE.levels(5)[0].sigma
        for t in scheduler.timesteps:
            x = scheduler.step(original(x, t).sample, t, x).prev_sample
    assert float((made - x).abs().max()) < 1e-4 * float(x.abs().max())


# --- autoencoders: equal to the original

AUTOENCODER = {"channels": (4, 8), "num_res_blocks": 1, "attention_levels": (False, True), "norm_num_groups": 4, "latent_channels": 2}


def autoencoders(library: str, dims: int = 2) -> tuple[nn.Module, nn.Module]:
    if library == "monai":
        original = awake(MonaiKL(spatial_dims=dims, **AUTOENCODER))
        adapter = MonaiAutoencoder(**MonaiAutoencoder.arguments({"spatial_dims": dims, **AUTOENCODER}))
    else:
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        sizes = {"in_channels": 1, "out_channels": 1, "latent_channels": 2, "layers_per_block": 1, "norm_num_groups": 4}
        original = awake(DiffusersKL(block_out_channels=(4, 8), **kinds, **sizes))
        adapter = DiffusersAutoencoder(**DiffusersAutoencoder.arguments(original.config))
    adapter.load_original(original.state_dict())
    return original, adapter.eval()


AUTOENCODERS = pytest.mark.parametrize(("library", "dims"), [("monai", 2), ("monai", 3), ("diffusers", 2)])


@AUTOENCODERS
def test_autoencoder_is_the_original(library, dims):
    original, adapter = autoencoders(library, dims)
    x = torch.randn(2, 1, *GRIDS[dims])
    with torch.no_grad():
        moments = adapter.encode(x)
        if library == "monai":
            mean, std = original.encode(x)
            image = original.decode(mean)
        else:
            posterior = original.encode(x).latent_dist
            mean, std = posterior.mean, posterior.std
            image = original.decode(mean).sample
        assert torch.equal(moments.mean, mean)
        torch.testing.assert_close((moments.log_variance / 2).exp(), std)
        assert torch.equal(adapter.decode(mean, x.shape[2:]), image)
    assert moments.mean.shape == adapter.latent_shape(tuple(x.shape))


@AUTOENCODERS
def test_odd_images_are_padded_inside_and_come_back(library, dims):
    _, adapter = autoencoders(library, dims)
    x = torch.randn(2, 1, *ODD[dims])
    with torch.no_grad():
        moments = adapter.encode(x)
        assert moments.mean.shape[2:] == tuple(-(-s // 2) for s in ODD[dims])
        image = adapter.decode(moments.mean, x.shape[2:])
        assert image.shape == x.shape
        codec = KLCodec(adapter)
        assert codec.measure([x]) == 2
        torch.testing.assert_close(codec.decode(codec.encode(x), ODD[dims]), image, rtol=1e-4, atol=1e-4)
    with pytest.raises(MedgenError, match="does not decode"):
        adapter.decode(moments.mean, [s + 2 for s in ODD[dims]])
    with pytest.raises(MedgenError, match="spatial axes, found shape"):
        adapter.encode(torch.cat([x, x], 1))
    with pytest.raises(MedgenError, match="takes no condition"):
        adapter.encode(x, Condition(dense=x))


# --- sizes, precision, gradients

SIZES = {"vector": 3, "dense": 2, "tokens": 5}
UNETS = pytest.mark.parametrize(("kind", "dims"), [(MonaiUNet, 2), (MonaiUNet, 3), (DiffusersUNet, 2)])


def scratch(kind: type, dims: int, **settings) -> nn.Module:
    sizes = {k: v for k, v in SIZES.items() if kind is MonaiUNet or k != "tokens"}
    return awake(kind(dims, 1, 2, **{"channels": (8, 16), "blocks": 1, "condition": sizes, **settings}))


def inputs(kind: type, size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    tokens = torch.randn(3, 4, 5) if kind is MonaiUNet else None
    return torch.randn(3, 1, *size), torch.linspace(-1.5, 1.1, 3), Condition(torch.randn(3, 3), torch.randn(3, 2, *size), tokens)


@UNETS
def test_odd_sizes_come_back_and_a_sample_is_independent_of_its_batch(kind, dims):
    adapter, (x, t, given) = scratch(kind, dims), inputs(kind, ODD[dims])
    with torch.no_grad():
        y = adapter(x, t, given)
        assert y.shape == (3, 2, *ODD[dims])
        torch.testing.assert_close(adapter(x[1:2], t[1:2], given[1:2]), y[1:2], rtol=1e-4, atol=1e-5)
        for changed in (adapter(x, t + 0.1, given), adapter(x + 0.1, t, given)):
            assert float((changed - y).abs().max()) > 1e-3


@UNETS
def test_an_absent_role_is_its_learned_null(kind, dims):
    adapter, (x, t, given) = scratch(kind, dims), inputs(kind, GRIDS[dims])
    with torch.no_grad():
        none, absent, full = adapter(x, t), adapter(x, t, given.absent()), adapter(x, t, given)
        half = adapter(x, t, given.keep(torch.tensor([True, False, True])))
    torch.testing.assert_close(none, absent, rtol=1e-4, atol=1e-5)  # one null token attends as four equal ones do
    torch.testing.assert_close(half[1], none[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half[0], full[0], rtol=1e-4, atol=1e-5)
    assert float((full - none).abs().amax((1, 2, *range(3, dims + 2))).min()) > 1e-3


@UNETS
def test_bfloat16_is_close_and_every_parameter_is_reached(kind, dims):
    adapter, (x, t, given) = scratch(kind, dims).train(), inputs(kind, ODD[dims])
    exact = adapter(x, t, given.keep(torch.tensor([True, False, True])))
    exact.square().mean().backward()
    unreached = [n for n, p in adapter.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not unreached
    with torch.autocast("cpu", torch.bfloat16):
        coarse = adapter(x, t, given.keep(torch.tensor([True, False, True])))
    coarse.square().mean().backward()
    coarse, exact = coarse.detach(), exact.detach()
    assert coarse.dtype == torch.float32
    assert float((coarse - exact).abs().max() / exact.abs().max()) < 0.05


@AUTOENCODERS
def test_an_autoencoder_runs_in_bfloat16_and_gradients_reach_everything(library, dims):
    _, adapter = autoencoders(library, dims)
    x = torch.randn(2, 1, *ODD[dims])
    moments = adapter.encode(x)
    image = adapter.decode(moments.draw(torch.randn_like(moments.mean)), ODD[dims])
    (image.square().mean() + moments.divergence().mean()).backward()
    assert not [n for n, p in adapter.named_parameters() if p.grad is None or not bool(p.grad.any())]
    with torch.autocast("cpu", torch.bfloat16):
        coarse = adapter.encode(x)
        again = adapter.decode(coarse.mean, ODD[dims])
    assert coarse.mean.dtype == torch.float32 and torch.isfinite(again).all()
    gap = (coarse.mean - moments.mean).detach().abs().max()
    assert float(gap / moments.mean.detach().abs().max()) < 0.05


@UNETS
def test_a_network_for_regression_sees_the_dense_condition_only(kind, dims):
    adapter = awake(kind(dims, 0, 1, channels=(8, 16), blocks=1, condition={"dense": 2}))
    dense = torch.randn(2, 2, *ODD[dims])
    with torch.no_grad():
        y = adapter(None, None, Condition(dense=dense))
        padded = nn.functional.pad(dense, [w for s in reversed(ODD[dims]) for w in (0, s % 2)], mode="replicate")
        expected = adapter.network(padded, torch.zeros(2))
    expected = expected if kind is MonaiUNet else expected.sample
    assert torch.equal(y, expected[(..., *(slice(0, s) for s in ODD[dims]))])
    with pytest.raises(MedgenError, match="sees the dense condition"):
        adapter(dense, None, None)


# --- refusals, recipes


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DiffusersUNet(2, 1, 1, condition={"tokens": 4}), "takes no 'tokens' condition"),
        (lambda: DiffusersUNet(3, 1, 1), "has 2 spatial dimensions, 3"),
        (lambda: DiffusersAutoencoder(3, 1), "has 2 spatial dimensions, 3"),
        (lambda: MonaiAutoencoder(2, 1, condition={"dense": 1}), "takes no 'dense' condition"),
        (lambda: MonaiUNet(2, 1, 1, settings={"channels": [4]}), "settings.channels is set by the adapter"),
        (lambda: MonaiUNet(2, 1, 1, settings={"norm_num_group": 4}), "did you mean 'norm_num_groups'"),
        (lambda: MonaiUNet(2, 1, 1, settings={"norm_eps": {"file": "x"}}), "expected a number, a word"),
        (lambda: MonaiUNet(2, 1, 1, settings={"attention_levels": [True]}), "cannot be built from these settings"),
        (lambda: DiffusersUNet(2, 1, 1, settings={"down_block_types": ["os.system"] * 3}), "cannot be built from these settings"),
        (lambda: DiffusersUNet(2, 1, 1, settings={"time_embedding_type": "fourier"}), "expected positional or learned"),
        (lambda: DiffusersUNet(2, 1, 1, condition={"vector": 3}, settings={"class_embed_type": "timestep"}), "takes a vector of 1"),
    ],
)
def test_what_an_original_cannot_do_is_refused_in_a_sentence(make, said):
    with pytest.raises(MedgenError, match=said):
        make()


def test_wrong_inputs_are_refused():
    adapter = scratch(MonaiUNet, 2, condition={})
    x = torch.randn(2, 1, 8, 8)
    for given, said in ((None, "found none"), (torch.randn(2, 3, 8, 8), r"expects \(B, 1"), (torch.randn(2, 1, 8), "2 spatial axes")):
        with pytest.raises(MedgenError, match=said):
            adapter(given, torch.zeros(2))
    with pytest.raises(MedgenError, match=r"takes no condition; set condition\.vector=3"):
        adapter(x, torch.zeros(2), Condition(vector=torch.randn(2, 3)))


def test_weights_that_do_not_fit_are_named():
    original, adapter = monai_pair()
    state = original.state_dict()
    with pytest.raises(MedgenError, match=r"'conv_in.conv.weight' is missing \(1 such\)"):
        adapter.load_original({k: v for k, v in state.items() if k != "conv_in.conv.weight"})
    with pytest.raises(MedgenError, match=r"'extra\.bias' is not expected"):
        adapter.load_original({**state, "extra.bias": torch.zeros(1)})
    with pytest.raises(MedgenError, match=r"'conv_in.conv.bias' has shape \[7\], expected \[4\]"):
        adapter.load_original({**state, "conv_in.conv.bias": torch.zeros(7)})
    assert all(torch.equal(v, state[k]) for k, v in adapter.network.state_dict().items())


def old_names(state: dict) -> dict:
    """The names that MONAI Generative gave to the same tensors."""
    rules = ((r"\.attn\.to_", ".to_"), (r"\.attn\.out_proj", ".proj_attn"), (r"(attn[12])\.out_proj", r"\1.to_out.0"), ("postconv", "conv"))
    return {functools.reduce(lambda key, rule: re.sub(*rule, key), rules, key): value for key, value in state.items()}


@pytest.mark.parametrize("tokens", [False, True])
def test_weights_of_monai_generative_are_taken(tokens):
    config = {"with_conditioning": True, "cross_attention_dim": 5} if tokens else {}
    original, _ = monai_pair(**config)
    old = {**{k: v for k, v in MONAI.items() if k != "channels"}, **config, "num_channels": MONAI["channels"]}
    adapter = MonaiUNet(**MonaiUNet.arguments({"spatial_dims": 2, "in_channels": 1, "out_channels": 1, **old}))
    state = old_names(original.state_dict())
    assert state.keys() != original.state_dict().keys()
    adapter.load_original(state)
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in adapter.network.state_dict().items())
    theirs = DiffusionModelUNet(**{"spatial_dims": 2, "in_channels": 1, "out_channels": 1, **MONAI, **config})
    theirs.load_old_state_dict(dict(state))  # MONAI's own way
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in adapter.network.state_dict().items())
    with pytest.raises(MedgenError, match="do not fit"):
        adapter.load_original({k: v for k, v in state.items() if k != min(state)})
    autoencoder, other = autoencoders("monai")
    for parameter in other.network.parameters():
        nn.init.zeros_(parameter)
    other.load_original(old_names(autoencoder.state_dict()))
    assert all(torch.equal(v, autoencoder.state_dict()[k]) for k, v in other.network.state_dict().items())


def test_an_argument_that_monai_does_not_know_is_refused():
    with pytest.raises(MedgenError, match="has no argument 'chanels'"):
        MonaiUNet.arguments({"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "chanels": [4]})


@pytest.mark.parametrize("name", ["monai.MonaiUNet", "diffusers.DiffusersUNet", "monai.MonaiAutoencoder", "diffusers.DiffusersAutoencoder"])
def test_a_checkpoints_recipe_may_name_an_adapter_and_nothing_through_it(name):
    values = {"latent": 2} if "Auto" in name else {"out_channels": 1}
    recipe = {"_target_": f"medgen.nn.adapters.{name}", "spatial_dims": 2, "in_channels": 1, "channels": [4, 8], **values}
    assert type(build(recipe)).__name__ == name.partition(".")[2]
    for target in ("medgen.nn.adapters.monai.torch.load", "medgen.nn.adapters.adapter.built", "monai.networks.nets.AutoencoderKL"):
        with pytest.raises(MedgenError):
            build({**recipe, "_target_": target})
    with pytest.raises(MedgenError):
        build({**recipe, "settings": {"norm_num_groups": {"_target_": "builtins.int"}}})


def test_other_samplers_walk_an_adapted_network():
    """Karras levels are not the schedule's: the network is asked at the timesteps in between."""
    asked = []
    adapter = adapted(diffusers_unet())
    adapter.network.register_forward_pre_hook(lambda _, args: asked.append(float(args[1][0])))
    with torch.no_grad():
        Diffusion(adapter, Epsilon(), SCHEDULE, Heun(Karras(), 6)).sample(Condition(), (1, 1, 8, 8), Rng(0, samples=[0]))
    assert len(asked) == 11 and asked[0] > 900 and asked[-1] < 3 and any(t != round(t) for t in asked)
