"""An image from what a machine measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medgen.core.condition import Condition, Measurement
from medgen.core.errors import MedgenError
from medgen.core.model import Example
from medgen.core.operator import Operator, Sampling
from medgen.core.random import Rng
from medgen.core.task import Metric, Task
from medgen.tasks.encoding import cached, pick, stacked


class Reconstruction(Task):
    """Training images are measured on the fly: y = A x + noise, x in network units. The network is shown `operator.view(y)`.

    Args:
        target: channels to reconstruct; each is measured by itself.
        metric: what validation monitors.
        operator: how a machine measures.
        sampling: what is drawn for each measurement.
        noise: standard deviation of each real component of y, in network units (full contrast is 2); two numbers are the ends
            of a range, drawn evenly in its logarithm.
    """

    def __init__(
        self, target: Sequence[str], metric: Metric, operator: Operator, sampling: Sampling, noise: float | Sequence[float] = 0.02
    ):
        self.target, self.metric = tuple(target), metric
        self.operator, self.sampling = operator, sampling
        self.noise = (float(noise), float(noise)) if isinstance(noise, (int, float)) else tuple(map(float, noise))
        self.attributes, self.labels = {}, {}
        if len(self.noise) != 2 or not 0 < self.noise[0] <= self.noise[1]:
            raise MedgenError(f"Reconstruction: noise is {noise}; expected a positive number, or the two ends of a range")

    def condition(self, inputs: Mapping[str, Any]) -> Condition:
        """From `inputs["measurement"]`, in network units."""
        measured: Measurement = pick(inputs, "measurement")
        return Condition(dense=measured.operator.view(measured.y, measured.state), measurement=measured)

    def example(self, batch: Mapping[str, Any], rng: Rng) -> Example:
        x = stacked(batch, self.target)
        return Example(x, self.condition({"measurement": self.measure(x, rng)}), moments=cached(batch))

    def measure(self, x: Tensor, rng: Rng) -> Measurement:
        """A simulated measurement of x (B, C, *S)."""
        state = self.sampling.draw(tuple(x.shape), rng)
        low, high = self.noise
        noise = low * (high / low) ** rng.uniform((len(x),)).to(torch.float32)
        return self.operator.measure(x, {k: v.to(x.device) for k, v in state.items()}, noise.to(x.device), rng)
