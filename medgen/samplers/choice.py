"""A sampler by name."""

from __future__ import annotations

from copy import copy
from importlib import import_module
from numbers import Integral
from pkgutil import iter_modules

import medgen.samplers as room
from medgen.core.errors import MedgenError, nearest
from medgen.samplers.sampler import Sampler
from medgen.samplers.schedulers import DiffusersSampler

Walk = Sampler | DiffusersSampler


def renewed(current: Walk, name: str | None = None, steps: int | None = None) -> Walk:
    """The sampler called `name` with `steps` steps on the noise levels of the current one, which belong to how the model was trained.

    A name that ends in "Scheduler" is one of diffusers', which brings its own noise levels. None keeps the kind or the number. What
    else the current one was set to, such as DDIM's eta, stays where the kind stays.

    Raises:
        MedgenError: no such sampler, fewer steps than one.
    """
    steps = current.steps if steps is None else steps
    if not isinstance(steps, Integral) or steps < 1:
        raise MedgenError(f"steps must be a whole number of at least 1, got {steps!r}")
    known = named()
    if name is not None and name.endswith("Scheduler"):
        return DiffusersSampler(name, steps)
    if name is not None and name not in known:
        raise MedgenError(f"no sampler '{name}'; {nearest(name, known)}, and the schedulers of diffusers by class name")
    if name is not None and isinstance(current, DiffusersSampler):
        raise MedgenError(f"the model was saved with {current.scheduler}, whose noise levels '{name}' cannot take over; give a scheduler")
    if name is None or known[name] is type(current):
        changed = copy(current)
        changed.steps = steps
        return changed
    return known[name](current.grid, steps)


def named() -> dict[str, type[Sampler]]:
    """File name -> the sampler that it defines."""
    found = {}
    for module in iter_modules(room.__path__):
        for value in vars(import_module(f"medgen.samplers.{module.name}")).values():
            own = isinstance(value, type) and value.__module__ == f"medgen.samplers.{module.name}"
            if own and issubclass(value, Sampler) and value is not Sampler:
                found[module.name] = value
    return found
