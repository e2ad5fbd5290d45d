"""What a DDIM step costs beside its network: tensor operations, and time with a network that returns its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _measure import Row, interleaved
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medgen.core.condition import Condition
from medgen.core.levels import CosineGrid, CosineUniform
from medgen.core.random import Rng
from medgen.models.diffusion import Diffusion
from medgen.models.preconditioning import Epsilon
from medgen.samplers.ddim import DDIM

STEPS = 50
SHAPES = {"64^2": (1, 1, 64, 64), "4 x 128^2": (4, 1, 128, 128), "1 x 4 x 48^3": (1, 4, 48, 48, 48)}


class Count(TorchDispatchMode):
    """Counts the tensor operations that are dispatched, views included."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        return func(*args, **(kwargs or {}))


class Null(nn.Module):
    """A network without operations."""

    def forward(self, x: Tensor, t: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        return x


def medgen_loop(shape: tuple[int, ...], steps: int) -> Callable[[], Tensor]:
    """The whole model's denoiser and sampler; the initial noise is left out, as it is for the peers."""
    sampler, start = DDIM(CosineGrid(), steps), torch.randn(shape)
    model = Diffusion(Null(), Epsilon(), CosineUniform(), sampler)

    class Given(Rng):
        def normal(self, shape):
            return start.clone()

    rng = Given(0, samples=range(shape[0]))
    return torch.no_grad()(lambda: model.sample(Condition(), shape, rng))


def scheduler_loop(scheduler: object, shape: tuple[int, ...], steps: int) -> Callable[[], Tensor]:
    """The loop that both peers document: network, then `scheduler.step`."""
    start, network = torch.randn(shape), Null()
    scheduler.set_timesteps(steps)

    @torch.no_grad()
    def run() -> Tensor:
        x = start.clone()
        for t in scheduler.timesteps:
            result = scheduler.step(network(x, t), t, x)
            x = result[0] if isinstance(result, tuple) else result.prev_sample
        return x

    return run


def loops(shape: tuple[int, ...], steps: int) -> dict[str, Callable[[], Tensor]]:
    from diffusers import DDIMScheduler as Diffusers
    from monai.networks.schedulers import DDIMScheduler as Monai

    return {
        "medgen": medgen_loop(shape, steps),
        "MONAI": scheduler_loop(Monai(num_train_timesteps=1000), shape, steps),
        "diffusers": scheduler_loop(Diffusers(num_train_timesteps=1000), shape, steps),
    }


def operations(name: str) -> float:
    """Tensor operations that one more step adds."""
    counted = []
    for steps in (10, 20):
        run = loops(SHAPES["64^2"], steps)[name]
        with Count() as count:
            run()
        counted.append(count.operations)
    return (counted[1] - counted[0]) / 10


def rows(rounds: int = 15) -> list[Row]:
    counts = {name: operations(name) for name in ("medgen", "MONAI", "diffusers")}
    told = ", ".join(f"{name} {count:.0f}" for name, count in counts.items())
    made = [Row("DDIM step, tensor operations", told, "at most 10", counts["medgen"] <= 10)]
    for name, shape in SHAPES.items():
        taken = {n: t / STEPS * 1e6 for n, t in interleaved(loops(shape, STEPS), rounds).items()}
        ratio = min(taken["MONAI"], taken["diffusers"]) / taken["medgen"]
        numbers = f"{ratio:.1f} x the best peer's speed; us: " + ", ".join(f"{n} {t:.0f}" for n, t in taken.items())
        made.append(Row(f"DDIM step {name} without its network", numbers, "faster", ratio > 1))
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows():
        print(row)
