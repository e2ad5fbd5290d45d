"""The contract that every model and task keeps, and losses against the papers' formulas on stored numbers."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from medgen.checkpoint import build
from medgen.cli.configs import compose, groups
from medgen.core.condition import Condition
from medgen.core.levels import CosineUniform, LogNormal
from medgen.core.model import Example
from medgen.core.random import Rng
from medgen.models.adversarial import R1, Hinge, LeastSquares, NonSaturating
from medgen.models.diffusion import Diffusion, Draws
from medgen.models.preconditioning import EDM, Epsilon
from medgen.training.fit import only_trainable

TASKS = ("synthesis", "synthesis_class", "synthesis_mask", "translation", "reconstruction", "inpainting")
SIZES = {2: "[16,16]", 3: "[16,16,16]"}
SMALL = (
    "network.channels=[8,16]",
    "network.blocks=1",
    "critic.channels=[4,8]",
    "data.source.subjects={train: 2, validation: 1, test: 1}",
    "data.workers=0",
)


def combinations():
    """Every model file with every task in 2D; in 3D one file a family, since `test_samplers` compares the preconditionings."""
    for model in groups()["model"]:
        if model.startswith("latent_"):
            continue  # needs a trained codec: test_latent
        for task in TASKS:
            if model == "regression" and task in ("synthesis", "synthesis_class"):
                continue  # regression learns from a dense condition
            for dims in (2,) if model.startswith("diffusion_") else (2, 3):
                yield pytest.param(model, task, dims, None, id=f"{model}-{task}-{dims}d")


def adapters():
    """Every network of another library, by the end of its file's name, in a family that asks it for all it can do."""
    for name in groups()["network"]:
        dims = (2,) if name.startswith("diffusers_") else (2, 3)
        if name.endswith("_unet"):
            yield from (pytest.param("diffusion", "synthesis_mask", d, name, id=f"{name}-mask-{d}d") for d in dims)
            yield pytest.param("diffusion_v", "synthesis_class", 2, name, id=f"{name}-class")
            yield pytest.param("regression", "translation", 2, name, id=f"{name}-regression")
        elif name.endswith("_autoencoder"):
            yield from (pytest.param("vae", "synthesis", d, name, id=f"{name}-{d}d") for d in dims)


def assembled(model: str, task: str, dims: int, network: str | None = None):
    """Model, task and a batch of two, as the command line would make them."""
    overrides = [f"model={model}", f"task={task}", f"data.source.size={SIZES[dims]}", *SMALL]
    overrides += [f"network={network}"] if network else []
    overrides += ["sampler.steps=2"] if "diffusion" in model or model == "flow" else []
    overrides += ["network.latent=4"] if model == "gan" else []
    overrides += ["model.start=0"] if model == "codec" else []
    config = OmegaConf.to_container(compose([*overrides, "run=x"]), resolve=True)
    generator = torch.Generator().manual_seed(0)
    built_task = build(config["task"], trusted=True)
    size = (16,) * dims
    batch = {c: torch.randn(2, 1, *size, generator=generator) for c in (*built_task.target, *built_task.source)}
    batch |= {name: torch.randint(0, n, (2, 1, *size), generator=generator) for name, n in built_task.labels.items()}
    batch |= {name: torch.tensor([0, 1]) for name in built_task.attributes}
    torch.manual_seed(0)
    return build(config["model"], trusted=True), built_task, batch, config


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """Zero-initialised layers moved off zero, so that gradients can pass them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize(("model", "task", "dims", "chosen"), [*combinations(), *adapters()])
def test_contract(model, task, dims, chosen):
    network, built_task, batch, config = assembled(model, task, dims, chosen)
    perturbed(network)
    example = built_task.example(batch, Rng(0, 0, (5, 6)))
    reached: dict[str, set] = {}
    for step in (0, 1):  # step 0 runs every phase; step 1 shows what a null condition leaves out in one step
        shared = network.begin(example, Rng(0, step, (5, 6)))
        for phase in network.phases:
            own = set(phase.module.parameters())
            with only_trainable(network, own):
                loss = phase.loss(example, shared)
                assert math.isfinite(float(loss.total.detach())) and all(torch.isfinite(v).all() for v in loss.terms.values())
                loss.total.backward()
            touched = {p for p in network.parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
            assert touched <= own, "a phase moved parameters of another"
            reached.setdefault(phase.name, set()).update(touched)
            network.zero_grad()
    for phase in (p for p in network.phases if p.validate):
        names = {n for n, p in phase.module.named_parameters() if p not in reached[phase.name]}
        nulls = {n for n in names if "null" in n}  # used only when a condition is dropped
        assert names == nulls, f"no gradient reaches {sorted(names - nulls)}"

    network.eval()
    shape = (2, len(built_task.target), *(16,) * dims)
    with torch.no_grad():
        both = network.sample(example.condition, shape, Rng(0, 0, (5, 6)))
        again = network.sample(example.condition, shape, Rng(0, 0, (5, 6)))
        second = network.sample(example.condition[1:], (1, *shape[1:]), Rng(0, 0, (6,)))
    assert both.shape == shape and torch.isfinite(both).all()
    assert torch.equal(both, again), "the same seed must give the same sample"
    assert float((both[1] - second[0]).abs().max()) <= 1e-5 * max(float(both.abs().max()), 1.0), "sample 1 depends on its batch"

    other = build(config["model"], trusted=True).eval()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(other.sample(example.condition, shape, Rng(0, 0, (5, 6))), both)


class Constant(torch.nn.Module):
    """A network that answers with one number."""

    def __init__(self, value: float):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, x, t, condition):
        return self.value.expand_as(x)


def drawn(alpha: float, sigma: float, noise: float) -> Draws:
    one = torch.ones(1)
    return Draws(alpha * one, sigma * one, torch.full((1, 1, 1), noise), torch.ones(1, dtype=torch.bool))


def test_edm_loss_is_equation_8():
    x, sigma, noise, std, output = 0.8, 1.5, -0.3, 0.5, 0.2
    model = Diffusion(Constant(output), EDM(std), LogNormal(), None)
    total = model.loss_at(torch.full((1, 1, 1), x), Condition(), drawn(1.0, sigma, noise))
    c_skip, c_out = std**2 / (sigma**2 + std**2), sigma * std / math.hypot(sigma, std)
    weight = (sigma**2 + std**2) / (sigma * std) ** 2
    denoised = c_skip * (x + sigma * noise) + c_out * output
    assert float(total.detach()) == pytest.approx(weight * (denoised - x) ** 2, rel=1e-5)


def test_epsilon_loss_is_ho_equation_14():
    model = Diffusion(Constant(0.2), Epsilon(), CosineUniform(), None)
    total = model.loss_at(torch.full((1, 1, 1), 0.8), Condition(), drawn(0.6, 0.8, -0.3))
    assert float(total.detach()) == pytest.approx((0.2 - -0.3) ** 2, rel=1e-5)


def test_log_normal_levels_have_edm_quantiles():
    alpha, sigma = LogNormal(-1.2, 1.2).at(torch.tensor([0.5, 0.841345]))
    assert torch.equal(alpha, torch.ones(2))
    torch.testing.assert_close(sigma.log(), torch.tensor([-1.2, 0.0]), atol=1e-4, rtol=0)


REAL, FAKE = torch.tensor([0.5, -1.0]), torch.tensor([0.25, 2.0])


@pytest.mark.parametrize(
    ("objective", "critic", "generator"),
    [
        (
            NonSaturating(),
            (math.log1p(math.exp(-0.5)) + math.log1p(math.e) + math.log1p(math.exp(0.25)) + math.log1p(math.exp(2))) / 2,
            None,
        ),
        (Hinge(), (0.5 + 2.0 + 1.25 + 3.0) / 2, -1.125),
        (LeastSquares(), ((0.25 + 4.0) / 2 + (0.0625 + 4.0) / 2) / 2, (0.5625 + 1.0) / 4),
    ],
    ids=["non_saturating", "hinge", "least_squares"],
)
def test_adversarial_losses_on_stored_numbers(objective, critic, generator):
    assert float(objective.critic(REAL, FAKE)) == pytest.approx(critic, rel=1e-6)
    expected = generator if generator is not None else (math.log1p(math.exp(-0.25)) + math.log1p(math.exp(-2))) / 2
    assert float(objective.generator(FAKE)) == pytest.approx(expected, rel=1e-6)


def test_r1_of_a_linear_critic_is_its_squared_weight():
    weight = torch.tensor([1.0, -2.0, 0.5])
    penalty = R1(weight=10.0, every=4)(lambda real: real @ weight, torch.randn(7, 3))
    assert float(penalty) == pytest.approx(10 / 2 * 4 * float(weight.square().sum()), rel=1e-5)


def test_the_generator_runs_once_a_step():
    network, task, batch, _ = assembled("gan", "synthesis", 2)
    calls = []
    network.generator.register_forward_hook(lambda *_: calls.append(1))
    example = task.example(batch, Rng(0, 0, (0, 1)))
    shared = network.begin(example, Rng(0, 0, (0, 1)))
    for phase in network.phases:
        phase.loss(example, shared)
    assert len(calls) == 1


def test_a_dropped_condition_is_the_null_condition():
    network, _, _, _ = assembled("diffusion", "synthesis_class", 2)
    perturbed(network)
    x, ones = torch.randn(2, 1, 16, 16), torch.ones(2)
    vector = torch.eye(2)
    condition = Condition(vector=vector)
    with torch.no_grad():
        absent = network.denoise(x, 1.0, 0.5, condition.absent())
        none = network.denoise(x, 1.0, 0.5, Condition())
        half = network.denoise(x, ones, 0.5 * ones, condition.keep(torch.tensor([True, False])))
        given = network.denoise(x, 1.0, 0.5, condition)
    torch.testing.assert_close(absent, none)
    torch.testing.assert_close(half[0], given[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half[1], none[1], rtol=1e-4, atol=1e-5)
    assert float((given - none).abs().max()) > 1e-3


def test_drop_removes_the_stated_share_of_conditions():
    network, *_ = assembled("diffusion", "synthesis_class", 2)
    network.drop = 0.25
    example = Example(torch.zeros(4000, 1, 1, 1), Condition(vector=torch.ones(4000, 2)))
    kept = network.begin(example, Rng(0, 0, range(4000))).kept
    assert abs(float(kept.float().mean()) - 0.75) < 0.03


@pytest.mark.parametrize("model", ["diffusion", "gan", "regression"])
def test_overfits_one_image(model):
    """A family that cannot learn one image cannot learn anything."""
    network, *_ = assembled(model, "translation", 2)
    ramp = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
    copies = 4  # diffusion sees four noise levels a step
    example = Example(torch.sin(3 * ramp).repeat(copies, 1, 1, 1), Condition(dense=ramp.repeat(copies, 1, 1, 1)))
    optimizers = {p.name: torch.optim.Adam(p.module.parameters(), 5e-3, betas=(0.8, 0.99)) for p in network.phases}
    if model == "gan":
        network.reconstruction = 30.0
    for step in range(300 if model == "diffusion" else 150):
        shared = network.begin(example, Rng(0, step, range(copies)))
        for phase in network.phases:
            if not phase.due(step):
                continue
            with only_trainable(network, set(phase.module.parameters())):
                phase.loss(example, shared).total.backward()
            optimizers[phase.name].step()
            optimizers[phase.name].zero_grad()
    if hasattr(network, "sampler"):
        network.sampler.steps = 12
    with torch.no_grad():
        made = network.eval().sample(example.condition[:1], (1, 1, 16, 16), Rng(0, 0, (0,)))
    assert float((made - example.x[:1]).abs().mean()) < 0.12
