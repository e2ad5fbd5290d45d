"""Networks: layouts, precision, learned nulls, padding, independence of the batch, checkpointing, compilation, refusals."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.nn import norm
from medgen.nn.attention import _Explicit
from medgen.nn.blocks import Pointwise, Upsample
from medgen.nn.critic import PatchCritic
from medgen.nn.generator import Generator
from medgen.nn.grid import crop, depth_to_space, pad_to_multiple, space_to_depth
from medgen.nn.unet import UNet

SIZES = {"vector": 3, "dense": 2, "tokens": 5}
GRIDS = {2: (12, 8), 3: (8, 4, 6)}
ODD = {2: (7, 1), 3: (5, 1, 3)}
DIMS = pytest.mark.parametrize("dims", [2, 3])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def awake(network: nn.Module) -> nn.Module:
    """Zero-initialised parameters get values, so that what is behind them counts."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def unet(dims: int, **settings) -> UNet:
    return awake(UNet(dims, 1, 2, (8, 16), 1, **{"condition": SIZES, **settings}))


def condition(batch: int, size: tuple[int, ...]) -> Condition:
    return Condition(torch.randn(batch, 3), torch.randn(batch, 2, *size), torch.randn(batch, 4, 5))


def inputs(dims: int, batch: int = 3, size: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor, Condition]:
    size = size or GRIDS[dims]
    return torch.randn(batch, 1, *size), torch.linspace(-1.5, 1.1, batch), condition(batch, size)


def gradients(network: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True))


def far(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


# --- parts


@pytest.mark.parametrize("shape", [(3, 8, 5, 4), (2, 12, 3, 2, 2), (1, 8, 6, 4)])
@pytest.mark.parametrize("last", [False, True])
def test_norm_equals_the_formula_and_its_gradient(shape, last):
    x = torch.randn(shape, dtype=torch.double)
    x = (x.contiguous(memory_format=norm.CHANNELS_LAST[x.ndim]) if last else x).requires_grad_()
    assert norm.is_channels_last(x) is last
    weight, bias = (torch.randn(shape[:2], dtype=torch.double, requires_grad=True) for _ in range(2))
    y = norm.norm_silu(x, weight, bias, 4)
    ones = (1,) * (x.ndim - 2)
    expected = F.silu(F.group_norm(x, 4) * weight.view(*shape[:2], *ones) + bias.view(*shape[:2], *ones))
    assert far(y, expected) < 1e-12
    assert y.stride() == x.stride()
    assert torch.autograd.gradcheck(lambda *v: norm.norm_silu(*v, 4), (x, weight, bias))


def test_norm_keeps_its_input_only():
    kept = []
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm.NormSiLU(8)(x)
    assert sum(t.numel() >= x.numel() for t in kept) == 1


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_upsampling_is_nearest_neighbour_then_convolution(dims):
    up = Upsample(dims, 3, 5).double()
    x = torch.randn(2, 3, *(3, 1, 2)[:dims], dtype=torch.double)
    expected = up.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    assert far(up(x), expected) < 1e-12
    for mine, theirs in zip(gradients(up, up(x).square().sum()), gradients(up, expected.square().sum()), strict=True):
        assert far(mine, theirs) < 1e-12


@DIMS
@pytest.mark.parametrize("last", [False, True])
def test_pointwise_is_a_one_wide_convolution(dims, last):
    layer = Pointwise(3, 4)
    x = torch.randn(2, 3, *GRIDS[dims])
    x = x.contiguous(memory_format=norm.CHANNELS_LAST[x.ndim]) if last else x
    expected = (F.conv2d if dims == 2 else F.conv3d)(x, layer.weight[(...,) + (None,) * dims], layer.bias)
    assert far(layer(x), expected) < 1e-5
    assert norm.is_channels_last(layer(x)) is last


def test_attention_by_products_equals_the_fused_kernel():
    query, key, value = (torch.randn(2, 3, n, 4, dtype=torch.double, requires_grad=True) for n in (5, 7, 7))
    assert far(_Explicit.apply(query, key, value), F.scaled_dot_product_attention(query, key, value)) < 1e-12
    assert torch.autograd.gradcheck(_Explicit.apply, (query, key, value))


# --- U-Net


@DIMS
def test_channels_last_equals_contiguous(dims):
    x, t, given = inputs(dims)
    network = unet(dims)
    plain = network(x, t, given)
    expected = gradients(network, plain.square().mean())
    layout = norm.CHANNELS_LAST[dims + 2]
    network.to(memory_format=layout)
    y = network(x.contiguous(memory_format=layout), t, given)
    assert far(y, plain) < 1e-5
    for name, mine, theirs in zip(dict(network.named_parameters()), gradients(network, y.square().mean()), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5), name


@DIMS
@pytest.mark.parametrize("patch", [1, 2])
def test_any_size_is_padded_inside_and_cropped(dims, patch):
    network = unet(dims, patch=patch)
    x, t, given = inputs(dims, size=ODD[dims])
    y = network(x, t, given)
    assert y.shape == (3, 2, *ODD[dims])
    padded = Condition(given.vector, pad_to_multiple(given.dense, 2 * patch), given.tokens)
    assert far(y, crop(network(pad_to_multiple(x, 2 * patch), t, padded), ODD[dims])) < 1e-5


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_space_to_depth_is_pixel_unshuffle_in_any_dimension_and_is_undone(dims):
    x = torch.randn(2, 3, *(4, 6, 2)[:dims])
    cells = space_to_depth(x, 2)
    assert cells.shape == (2, 3 * 2**dims, *(2, 3, 1)[:dims]) and torch.equal(depth_to_space(cells, 2), x)
    corner = (0,) * dims
    assert torch.equal(cells[(slice(None), slice(0, None, 2**dims), *corner)], x[(slice(None), slice(None), *corner)])
    if dims == 2:
        assert torch.equal(cells, F.pixel_unshuffle(x, 2))


@DIMS
def test_patches_run_the_levels_on_a_coarser_grid(dims):
    seen = []
    network = unet(dims, patch=2)
    network.middle[0].register_forward_hook(lambda module, given, result: seen.append(tuple(result.shape[2:])))
    x, t, given = inputs(dims, size=(16, 8, 12)[:dims])
    assert network(x, t, given).shape == (3, 2, *x.shape[2:])
    assert seen == [(4, 2, 3)[:dims]]


def test_padding_repeats_the_border_and_leaves_what_fits():
    x = torch.arange(3.0).view(1, 1, 3, 1)
    assert pad_to_multiple(x, 4)[0, 0].tolist() == [[0.0] * 4, [1.0] * 4, [2.0] * 4, [2.0] * 4]
    assert pad_to_multiple(x, 1) is x


@DIMS
@pytest.mark.parametrize("role", ["vector", "dense", "tokens"])
def test_an_absent_role_is_the_learned_null(dims, role):
    network = unet(dims)
    x, t, given = inputs(dims)
    given.present[role] = torch.tensor([True, False, True])
    y = network(x, t, given)
    without = Condition(**{r: None if r == role else getattr(given, r) for r in SIZES})
    assert far(y[1], network(x, t, without)[1]) < 1e-5
    null = getattr(network.conditioning, {"tokens": "null_token"}.get(role, f"null_{role}"))
    with torch.no_grad():
        null += 3 * torch.randn_like(null)
    changed = network(x, t, given)
    assert torch.equal(changed[[0, 2]], y[[0, 2]])
    assert far(changed[1], y[1]) > 1e-3


@DIMS
@pytest.mark.parametrize("role", ["vector", "dense", "tokens"])
def test_every_role_and_the_time_reach_the_result(dims, role):
    network = unet(dims)
    x, t, given = inputs(dims)
    y = network(x, t, given)
    other = Condition(**{r: getattr(given, r) + (r == role) * torch.randn_like(getattr(given, r)) for r in SIZES})
    assert far(network(x, t, other), y) > 1e-4
    assert far(network(x, t + 0.05, given), y) > 1e-4


@DIMS
def test_a_sample_does_not_depend_on_the_batch(dims):
    network = unet(dims)
    x, t, given = inputs(dims, batch=4)
    together = network(x, t, given)
    for i in range(4):
        assert far(together[i], network(x[i : i + 1], t[i : i + 1], given[i : i + 1])[0]) < 1e-5


@DIMS
@pytest.mark.parametrize("last", [False, True])
def test_checkpointing_changes_memory_and_nothing_else(dims, last):
    plain, checked = unet(dims), unet(dims, checkpointing=True)
    checked.load_state_dict(plain.state_dict())
    x, t, given = inputs(dims)
    if last:
        x = x.contiguous(memory_format=norm.CHANNELS_LAST[x.ndim])
    results, sizes = [], []
    for network in (plain, checked):
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = network(x, t, given)
        sizes.append(sum(kept.values()))
        results.append((y, gradients(network, y.square().mean())))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert sizes[1] < 0.9 * sizes[0]


@DIMS
@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_stays_close(dims, checkpointing):
    network = unet(dims, checkpointing=checkpointing)
    x, t, given = inputs(dims)
    exact = network(x, t, given)
    slope = torch.cat([g.flatten() for g in gradients(network, exact.square().mean())])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x, t, given)
    assert mixed.dtype == torch.float32
    assert (mixed - exact).norm() / exact.norm() < 0.03
    mixed_slope = torch.cat([g.flatten() for g in gradients(network, mixed.square().mean())])
    assert (mixed_slope - slope).norm() / slope.norm() < 0.06
    low = network.bfloat16()(x.bfloat16(), t, given)
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).norm() / exact.norm() < 0.06


@DIMS
def test_compiles_to_one_graph(dims):
    network = unet(dims)
    x, t, given = inputs(dims)
    given.present["vector"] = torch.tensor([True, False, True])
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    y = compiled(x, t, given)
    plain = network(x, t, given)
    assert far(y, plain) < 1e-5
    pairs = zip(gradients(network, y.square().mean()), gradients(network, plain.square().mean()), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)


@DIMS
def test_gradient_reaches_every_parameter(dims):
    network = unet(dims)
    x, t, given = inputs(dims)
    slopes = gradients(network, network(x, t, given.keep(torch.tensor([True, False, True]))).square().mean())
    assert [n for (n, _), g in zip(network.named_parameters(), slopes, strict=True) if not g.any()] == []


@DIMS
def test_a_regression_network_has_no_time_and_no_dead_parameters(dims):
    network = awake(UNet(dims, 0, 1, (8, 16), 1, condition={"dense": 2}))
    given = Condition(dense=torch.randn(2, 2, *ODD[dims]), present={"dense": torch.tensor([True, False])})
    y = network(None, None, given)
    assert y.shape == (2, 1, *ODD[dims])
    slopes = gradients(network, y.square().mean())
    assert [n for (n, _), g in zip(network.named_parameters(), slopes, strict=True) if not g.any()] == []


@DIMS
def test_a_new_unet_returns_zero(dims):
    assert not UNet(dims, 1, 1, (8, 16), 1)(torch.randn(1, 1, *GRIDS[dims]), torch.zeros(1)).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UNet(4, 1, 1), "spatial_dims is 4"),
        (lambda: UNet(2, 1, 1, ()), "at least one positive"),
        (lambda: UNet(2, 1, 1, patch=0), "patch is 0"),
        (lambda: UNet(2, 0, 1), "set in_channels or condition.dense"),
        (lambda: UNet(2, 1, 1, (8, 16), attention=(True,)), "1 flags for 2 levels"),
        (lambda: UNet(2, 1, 1, (8, 16), attention=(False, False), condition={"tokens": 3}), "cross-attention"),
        (lambda: UNet(2, 1, 1, condition={"vectr": 3}), "did you mean 'vector'"),
        (lambda: PatchCritic(2, 1, condition={"tokens": 3}), "takes no 'tokens'"),
        (lambda: Generator(2, 1), "set latent"),
    ],
)
def test_impossible_networks_are_refused(build, message):
    with pytest.raises(MedgenError, match=message):
        build()


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"condition": {}}, {"condition": Condition(vector=torch.ones(1, 3))}, "set condition.vector=3 or leave it out"),
        ({}, {"condition": Condition(vector=torch.ones(1, 4))}, "has 4 channels, expected 3"),
        ({}, {"condition": Condition(tokens=torch.ones(1, 2, 4))}, "has 4 channels, expected 5"),
        ({}, {"condition": Condition(dense=torch.ones(1, 2, 8, 8))}, "use condition.resized"),
        ({}, {"condition": Condition(vector=torch.ones(2, 3))}, "has 2 samples, the batch 1"),
        ({}, {"x": torch.ones(1, 2, 16, 16)}, "1 channels, found 2"),
        ({}, {"x": None}, "found none"),
        ({}, {"x": torch.ones(1, 1, 4, 4, 4)}, "as many spatial axes"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(settings, arguments, message):
    network = unet(2, **settings)
    with pytest.raises(MedgenError, match=message):
        network(**{"x": torch.ones(1, 1, 16, 16), **arguments})


def test_a_regression_network_refuses_an_image_and_a_missing_condition():
    network = UNet(2, 0, 1, (8,), 1, condition={"dense": 2})
    with pytest.raises(MedgenError, match="pass x=None"):
        network(torch.ones(1, 1, 8, 8))
    with pytest.raises(MedgenError, match="needs a dense condition"):
        network(None)


# --- critic


@DIMS
def test_spectral_norm_is_one(dims):
    critic = PatchCritic(dims, 1, (8, 16), {"vector": 3, "dense": 2})
    x, _, given = inputs(dims)
    given = Condition(given.vector, given.dense)
    for _ in range(60):
        critic(x, given)
    critic.eval()
    layers = [*critic.strided, critic.last, critic.logit, critic.conditioning.embed]
    norms = [float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) for layer in layers]
    assert all(abs(n - 1) < 0.02 for n in norms), norms
    assert torch.equal(critic(x, given), critic(x, given))


@DIMS
def test_critic_judges_patches_and_uses_its_condition(dims):
    critic = awake(PatchCritic(dims, 1, (8, 16), {"vector": 3, "dense": 2})).eval()
    size = (16, 15, 1)[:dims]
    x, given = torch.randn(2, 1, *size), Condition(torch.randn(2, 3), torch.randn(2, 2, *size))
    logits = critic(x, given)
    assert logits.shape == (2, 1, *(4, 4, 1)[:dims])
    assert far(critic(x, Condition(given.vector + 1, given.dense)), logits) > 1e-4
    assert far(critic(x, Condition(given.vector, given.dense + torch.randn_like(x))), logits) > 1e-4
    assert far(critic(x[:1], given[:1]), logits[:1]) < 1e-5
    assert far(critic(x, given.absent()), critic(x)) < 1e-6


def test_projection_is_the_inner_product_of_the_vector_and_the_features():
    """Logits are affine in the vector: equal steps of it change them equally (Miyato and Koyama 2018, equation 3)."""
    critic = PatchCritic(2, 1, (8, 16), {"vector": 3}).eval()
    x, step = torch.randn(2, 1, 16, 16), torch.randn(2, 3)
    a, b, c = (critic(x, Condition(k * step)) for k in (0.0, 1.0, 2.0))
    assert torch.allclose(c - b, b - a, atol=1e-6)


@DIMS
def test_critic_can_be_differentiated_twice(dims):
    """R1 penalises the squared gradient with respect to the image, and its own gradient must reach the weights."""
    critic = PatchCritic(dims, 1, (8, 16))
    x = torch.randn(2, 1, *GRIDS[dims], requires_grad=True)
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    weights = [p for n, p in critic.named_parameters() if "weight" in n]
    assert all(p.grad is not None and p.grad.any() for p in weights)


# --- generator


@DIMS
@pytest.mark.parametrize("latent", [0, 4])
def test_translator_takes_any_size_and_every_parameter_learns(dims, latent):
    network = Generator(dims, 1, (8, 16), 1, latent, {"dense": 2, "vector": 3})
    size = ODD[dims]
    given = Condition(torch.randn(3, 3), torch.randn(3, 2, *size)).keep(torch.tensor([True, False, True]))
    z = torch.randn(3, latent) if latent else None
    y = network(z, given)
    assert y.shape == (3, 1, *size)
    slopes = gradients(network, y.square().mean())
    assert [n for (n, _), g in zip(network.named_parameters(), slopes, strict=True) if not g.any()] == []
    assert far(y[:1], network(None if z is None else z[:1], given[:1])) < 1e-5


@DIMS
def test_unconditional_generator_starts_from_its_constant(dims):
    network = Generator(dims, 2, (8, 16), 1, 4)
    z = torch.randn(3, 4)
    y = network(z, None, GRIDS[dims])
    assert y.shape == (3, 2, *GRIDS[dims])
    assert far(y[1:2], network(z[1:2], None, GRIDS[dims])) < 1e-5
    assert far(y[0], y[1]) > 1e-3
    slopes = gradients(network, y.square().mean())
    assert [n for (n, _), g in zip(network.named_parameters(), slopes, strict=True) if not g.any()] == []
    assert network(z, None, ODD[dims]).shape == (3, 2, *ODD[dims])


def test_generator_without_its_dense_condition_uses_the_null():
    network = awake(Generator(2, 1, (8, 16), 1, 0, {"dense": 2}))
    given = Condition(dense=torch.randn(2, 2, 8, 8))
    expected = network(None, given.absent())
    assert far(expected[0], expected[1]) < 1e-6
    assert far(network(None, given), expected) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"z": None}, "latent of width 4, found none"),
        ({"z": torch.ones(1, 3)}, "found width 3"),
        ({"z": torch.ones(1, 4)}, "needs `size` with 2 numbers"),
        ({"z": torch.ones(1, 4), "size": (8, 8, 8)}, "needs `size` with 2 numbers"),
        ({"z": torch.ones(1, 4), "condition": Condition(vector=torch.ones(1, 1))}, "takes no condition"),
    ],
)
def test_generator_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(MedgenError, match=message):
        Generator(2, 1, (8, 16), 1, 4)(**arguments)


# --- configs


@pytest.mark.parametrize(("path", "kind"), [("network/unet", UNet), ("network/generator", Generator), ("critic/patch", PatchCritic)])
def test_config_lists_every_argument_of_the_constructor(path, kind):
    from inspect import signature
    from pathlib import Path

    text = (Path(__file__).parent.parent / "configs" / f"{path}.yaml").read_text()
    keys = list(yaml.safe_load(text))
    assert text.startswith("# ")
    assert keys == ["_target_", *signature(kind).parameters]
    assert yaml.safe_load(text)["_target_"] == f"{kind.__module__}.{kind.__qualname__}"
