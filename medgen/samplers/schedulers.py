"""Any diffusers scheduler as a sampler of medgen's models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medgen.core.errors import MedgenError, nearest
from medgen.core.levels import Level
from medgen.core.random import Rng
from medgen.samplers.sampler import Denoise


class DiffusersSampler:
    """Walks with a scheduler of the diffusers library; the model is asked for E[x | x_t] and answered in the scheduler's own terms.

    The noise level of each step is read off the scheduler's public methods (`scale_model_input`, `add_noise`, `scale_noise`), so that
    variance-exploding, variance-preserving and flow-matching schedulers all work with every model that can denoise. Fresh noise comes
    from one generator per sample.

    Args:
        scheduler: class name, such as "UniPCMultistepScheduler".
        steps: steps of the scheduler; second-order ones ask the network more often.
        settings: arguments of the scheduler. Without other word it does not clip, spaces its steps to the noisy end and predicts epsilon.
    """

    def __init__(self, scheduler: str, steps: int = 25, settings: Mapping[str, Any] | None = None):
        self.scheduler, self.steps, self.settings = scheduler, steps, dict(settings or {})
        self.kind = scheduler_class(scheduler)

    @torch.no_grad()
    def __call__(self, denoise: Denoise, shape: tuple[int, ...], rng: Rng) -> Tensor:
        """A sample (B, C, *S) of `shape`; `denoise(x, level)` returns E[x | x_t] at that level."""
        scheduler = self.kind(**self._settings())
        scheduler.set_timesteps(self.steps)
        x = rng.normal(shape).mul_(float(getattr(scheduler, "init_noise_sigma", 1.0)))
        extra = {"generator": generators(rng)} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for t in scheduler.timesteps:
            level = level_of(scheduler, t)
            answer = self._answer(scheduler, x, denoise(x, level), level)
            x = scheduler.step(answer, t, x, **extra).prev_sample.to(x.dtype)
        return x

    def _settings(self) -> dict[str, Any]:
        accepted = inspect.signature(self.kind.__init__).parameters
        wrong = [name for name in self.settings if name not in accepted]
        if wrong:
            raise MedgenError(f"{self.scheduler} has no argument '{wrong[0]}'; {nearest(wrong[0], accepted)}")
        ours = {"clip_sample": False, "timestep_spacing": "trailing", "skip_prk_steps": True}
        return {**{k: v for k, v in ours.items() if k in accepted}, **self.settings}

    def _answer(self, scheduler: Any, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """What the scheduler would have been told by a network of its prediction type."""
        if is_flow(scheduler):
            return (x - level.alpha * x0) / level.sigma - x0
        prediction = scheduler.config.get("prediction_type", "epsilon")
        noise = (x - level.alpha * x0) / level.sigma
        if is_edm(scheduler):  # these apply Karras et al.'s c_skip and c_out themselves
            variance = scheduler.config.sigma_data**2
            total = variance + level.sigma**2
            return (x0 - x * variance / total) * (total / variance) ** 0.5 / level.sigma
        if prediction == "sample":
            return x0
        if prediction == "v_prediction":
            scale = (level.alpha**2 + level.sigma**2) ** -0.5
            return scale * (level.alpha * noise - level.sigma * x0)
        if prediction == "flow_prediction":
            return noise - x0
        return noise


def scheduler_class(name: str) -> type:
    """A scheduler of diffusers by its class name."""
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if isinstance(found, type) and issubclass(found, SchedulerMixin) and (hasattr(found, "add_noise") or hasattr(found, "scale_noise")):
        return found
    if found is not None:
        raise MedgenError(f"{name} cannot be used here: it needs a package that is missing, or it does not add Gaussian noise to images")
    known = [n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")]
    raise MedgenError(f"diffusers has no '{name}'; {nearest(name, known)}")


def is_flow(scheduler: Any) -> bool:
    return hasattr(scheduler, "scale_noise")


def is_edm(scheduler: Any) -> bool:
    return hasattr(scheduler, "precondition_outputs")


def level_of(scheduler: Any, t: Tensor) -> Level:
    """(alpha, sigma) of the image that the scheduler holds before its step at time t."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    if is_flow(scheduler):
        return Level(float(scheduler.scale_noise(one, t[None], zero)), float(scheduler.scale_noise(zero, t[None], one)))
    scale = float(scheduler.scale_model_input(one, t))
    if scale != 1.0:  # variance exploding: networks are given x / sqrt(sigma^2 + data variance)
        return Level(1.0, (scale**-2 - (scheduler.config.sigma_data**2 if is_edm(scheduler) else 1.0)) ** 0.5)
    at = t[None].long() if not t.is_floating_point() else t[None]
    return Level(float(scheduler.add_noise(one, zero, at)), float(scheduler.add_noise(zero, one, at)))


def generators(rng: Rng) -> list[torch.Generator]:
    """One torch generator per sample of `rng`, so that sample i does not depend on the batch."""
    seeds = (rng.uniform((len(rng), 2)).double().cpu() * 2**24).long()
    return [torch.Generator().manual_seed(int(high) * 2**24 + int(low)) for high, low in seeds]
