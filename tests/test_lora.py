"""Low-rank adapters: the formula, the start, the merge, what is trained."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.levels import Karras, LogNormal
from medgen.core.model import Example
from medgen.core.random import Rng
from medgen.models.adversarial import NonSaturating
from medgen.models.diffusion import Diffusion
from medgen.models.gan import GAN
from medgen.models.latent import KLCodec, Latent
from medgen.models.preconditioning import EDM
from medgen.nn.autoencoder import AutoencoderKL
from medgen.nn.blocks import NormConv, Pointwise, Upsample
from medgen.nn.critic import PatchCritic
from medgen.nn.finetune import Frozen, LoRA, matching
from medgen.nn.generator import Generator
from medgen.nn.lora import LowRank, adapt, adaptable, factors, merged
from medgen.nn.unet import UNet
from medgen.samplers.heun import Heun
from medgen.training.ema import Average
from medgen.training.fit import only_trainable

SCALE = 0.7


class InConv(nn.Module):
    """A layer alone, so that every layer has a name inside a module."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.conv = layer

    def forward(self, x):
        return self.conv(x)


LAYERS = {
    "linear": (lambda: InConv(nn.Linear(6, 5)), (2, 6)),
    "conv1": (lambda: InConv(nn.Conv1d(6, 5, 3, padding=1)), (2, 6, 7)),
    "conv2_strided": (lambda: InConv(nn.Conv2d(6, 5, 3, 2, 1)), (2, 6, 8, 8)),
    "conv2_grouped": (lambda: InConv(nn.Conv2d(6, 4, 3, groups=2)), (2, 6, 7, 5)),
    "conv3": (lambda: InConv(nn.Conv3d(6, 5, 3, padding=1)), (2, 6, 4, 5, 3)),
    "pointwise": (lambda: InConv(Pointwise(6, 5)), (2, 6, 4, 3)),
    "upsample2": (lambda: Upsample(2, 6, 5), (2, 6, 4, 3)),
    "upsample3": (lambda: Upsample(3, 6, 5), (2, 6, 4, 3, 2)),
    "norm_conv": (lambda: NormConv(nn.Conv2d(6, 5, 3, padding=1), 6, recompute=True), (2, 6, 4, 3)),
}


def filled(module: nn.Module) -> nn.Module:
    """The module with an adapter that is not zero."""
    adapt(module.conv, 3, SCALE)
    nn.init.normal_(module.conv.parametrizations.weight[0].up)
    return module


@pytest.mark.parametrize("kind", LAYERS)
def test_an_adapted_layer_is_the_layer_with_the_updated_weight(kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    plain, x = make(), torch.randn(shape)
    adapted = filled(copy.deepcopy(plain))
    factor = adapted.conv.parametrizations.weight[0]
    with torch.no_grad():
        before = plain(x)
        plain.conv.weight += SCALE * (factor.up @ factor.down).reshape(plain.conv.weight.shape)
    torch.testing.assert_close(adapted(x), plain(x), rtol=1e-5, atol=1e-6)
    assert (adapted(x) - before).abs().max() > 0.05
    assert factor.up.shape[1] == 3 and factor.down.shape[1] == plain.conv.weight[0].numel()


@pytest.mark.parametrize(("dims", "stride"), [(2, 1), (2, 2), (3, 1)])
def test_a_convolutions_update_is_a_convolution_of_rank_r_and_then_a_pointwise_one(dims, stride):
    torch.manual_seed(0)
    convolve = {2: F.conv2d, 3: F.conv3d}[dims]
    layer = {2: nn.Conv2d, 3: nn.Conv3d}[dims](4, 5, 3, stride, 1)
    x, ones = torch.randn(2, 4, *(6,) * dims), (1,) * dims
    base = layer(x)
    adapted = filled(InConv(layer))
    factor = adapted.conv.parametrizations.weight[0]
    inner = convolve(x, factor.down.reshape(3, 4, *(3,) * dims), stride=stride, padding=1)
    torch.testing.assert_close(adapted(x), base + SCALE * convolve(inner, factor.up.reshape(5, 3, *ones)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_at_first_nothing_changes_and_the_merge_changes_nothing(kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    plain, x = make(), torch.randn(shape)
    adapted = copy.deepcopy(plain)
    adapt(adapted.conv, 3, SCALE)
    assert torch.equal(adapted(x), plain(x))
    trained = filled(copy.deepcopy(plain))
    other = make()
    other.load_state_dict(merged(trained.state_dict(), SCALE))  # strict: exactly the names of the plain layer
    torch.testing.assert_close(other(x), trained(x), rtol=1e-6, atol=1e-6)
    same = copy.deepcopy(trained)
    assert torch.equal(same(x), trained(x))


def test_the_rank_is_at_most_that_of_the_matrix_and_the_layout_stays():
    weight = torch.randn(1, 4, 3, 3)
    assert LowRank(weight, 8, 1.0).up.shape == (1, 1)
    layer = nn.Conv2d(4, 6, 3)
    layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
    adapt(layer, 2, 1.0)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last) and not layer.weight.is_contiguous()


def test_mixed_precision_does_not_round_the_update():
    layer = filled(InConv(nn.Linear(6, 5))).conv
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer.weight
    assert torch.equal(inside, layer.weight) and inside.dtype == torch.float32


# ---------------------------------------------------------------- models


def diffusion(dims: int = 2) -> Diffusion:
    torch.manual_seed(0)
    network = UNet(dims, 1, 1, (8, 8), blocks=1, condition={"dense": 1, "vector": 2})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Diffusion(network, EDM(0.5), LogNormal(-1.2, 1.2), Heun(Karras(), 2))


def example(dims: int = 2) -> Example:
    return Example(torch.randn(2, 1, *(8,) * dims), Condition(dense=torch.randn(2, 1, *(8,) * dims), vector=torch.randn(2, 2)))


def loss_of(model: Diffusion, given: Example) -> torch.Tensor:
    return model.loss(given, model.begin(given, Rng(0, 0, range(2)))).total


@pytest.mark.parametrize("dims", [2, 3])
def test_only_factors_get_gradients_and_their_number_is_as_counted(dims):
    model, given = diffusion(dims), example(dims)
    plain, names = copy.deepcopy(model), list(model.state_dict())
    LoRA(rank=2).apply(model)
    assert torch.equal(loss_of(model, given), loss_of(plain, given))
    counts = [2 * (len(m.weight) + m.weight[0].numel()) for m in plain.modules() if adaptable(m) and len(m.weight) > 1]
    single = [1 + m.weight[0].numel() for m in plain.modules() if adaptable(m) and len(m.weight) == 1]
    assert len(single) == 1 and sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(counts) + sum(single)
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):
            nn.init.normal_(parameter, std=0.1)
    loss_of(model, given).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved == {n for n, _ in model.named_parameters() if n.endswith((".0.up", ".0.down"))}
    plain.load_state_dict(LoRA(rank=2).plain(model.state_dict()))
    assert sorted(LoRA(rank=2).plain(model.state_dict())) == sorted(names)
    torch.testing.assert_close(loss_of(plain, given), loss_of(model, given), rtol=1e-6, atol=1e-6)


def test_alpha_targets_and_what_is_trained_beside():
    model = diffusion()
    method = LoRA(rank=4, alpha=2, targets=["attention", "up.*.conv"], train=["null_*", "bias"])
    method.apply(model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    adapted = {n.partition(".parametrizations")[0] for n in trained if "parametrizations" in n}
    assert adapted and all(".attention." in n or n.startswith("network.up.") for n in adapted)
    assert "network.conditioning.null_dense" in trained and "network.input.bias" in trained and "network.input.weight" not in trained
    assert method.scale == 0.5
    small = method.small(model.state_dict())
    assert {n for n in small if "lora" not in n} == {n for n in trained if "parametrizations" not in n}
    assert set(factors(model.state_dict())) == {f"{n}.lora_{side}" for n in adapted for side in ("up", "down")}


def test_critics_and_codecs_are_left_as_they_are():
    gan = GAN(Generator(2, 1, (4, 8), latent=3), PatchCritic(2, 1, (4, 8)), NonSaturating(), latent=3)
    names = set(gan.state_dict())
    method = LoRA(2)
    method.apply(gan)
    assert all(p.requires_grad for p in gan.critic.parameters())
    assert not any(p.requires_grad for n, p in gan.generator.named_parameters() if n.endswith(".bias"))
    assert set(method.plain(gan.state_dict())) == names, "the critic's spectral norm is a parametrization of its own"
    latent = Latent(Diffusion(UNet(2, 3, 3, (4, 8)), EDM(), LogNormal(), Heun(Karras(), 2)), KLCodec(AutoencoderKL(2, 1, 3, (4, 8))))
    for method in (LoRA(2), Frozen(["output"])):
        tuned = copy.deepcopy(latent)
        method.apply(tuned)
        assert not any(p.requires_grad for p in tuned.codec.parameters())
        assert any(p.requires_grad for p in tuned.model.network.parameters())


def test_the_average_is_that_of_the_factors():
    """After one update from (up 0, down A) to (up B, down A'): the merge is W + scale * (d 0 + (1-d) B) (d A + (1-d) A')."""
    model, method = diffusion(), LoRA(2)
    method.apply(model)
    base = {n: t.clone() for n, t in method.plain(model.state_dict()).items()}
    average = Average(model, model.averaged, 0.9)
    head = "network.input.parametrizations.weight.0"
    before = model.state_dict()[f"{head}.down"].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    average.update()
    decay, after = 2 / 11, model.state_dict()
    up, down = (1 - decay) * after[f"{head}.up"], decay * before + (1 - decay) * after[f"{head}.down"]
    exported = method.plain(average.averaged_state())
    weight = base["network.input.weight"]
    torch.testing.assert_close(exported["network.input.weight"], weight + (up @ down).reshape(weight.shape), rtol=1e-5, atol=1e-5)
    assert torch.equal(exported["network.input.bias"], base["network.input.bias"])
    with average.swapped():
        inside = model.network.input.weight.clone()
    torch.testing.assert_close(inside, exported["network.input.weight"])


def test_another_phases_gradients_do_not_wake_what_is_frozen():
    model = diffusion()
    LoRA(2).apply(model)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with only_trainable(model, set()):
        assert not any(p.requires_grad for p in model.parameters())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before


def test_frozen_trains_what_is_named():
    model = diffusion()
    Frozen(["up", "output.conv.weight"]).apply(model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith("network.up.")} | {"network.output.conv.weight"}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: Frozen(), "a list of parts such as .output.; there are conditioning, time, input, down, up, middle, output"),
        (lambda: Frozen(["outptu"]), "finetune.train: nothing is called 'outptu'; did you mean 'output'"),
        (lambda: LoRA(targets=["atention"]), "finetune.targets: nothing is called 'atention'; did you mean 'attention'"),
        (lambda: LoRA(targets=["norm.weight"]), "finetune.targets: nothing is called"),
        (lambda: LoRA(train=["input"]), "finetune.train names 'network.input.weight', which is adapted already"),
        (lambda: LoRA(rank=0), "finetune.rank=0 must be a whole number of at least 1"),
        (lambda: LoRA(alpha=0.0), "finetune.alpha=0.0 must be above 0"),
    ],
)
def test_what_fits_nothing_is_refused(method, message):
    with pytest.raises(MedgenError, match=message):
        method().apply(diffusion())


def test_names_match_by_whole_components():
    names = ["network.up.1.conv", "network.upper.conv", "network.down.11.conv"]
    assert matching(["up"], names, "") == {"network.up.1.conv"}
    assert matching(["up.1"], names, "") == {"network.up.1.conv"}
    assert matching(["1?"], names, "") == {"network.down.11.conv"}
