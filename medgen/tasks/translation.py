"""One modality from another, on paired images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from medgen.core.condition import Condition
from medgen.core.model import Example
from medgen.core.random import Rng
from medgen.core.task import Metric, Task, availability
from medgen.tasks.encoding import cached, dense, flags, stacked, vector


class Translation(Task):
    """Args:
    source: channels that are given.
    target: channels to make on the same grid.
    metric: what validation monitors.
    attributes: name -> classes (0: a real number) of further information, such as the field strength.
    availability: a case may lack source channels; the model is told which it has, by a plane of ones or zeros for each. A target
        that a case lacks never counts in a loss.
    """

    def __init__(
        self,
        source: Sequence[str],
        target: Sequence[str],
        metric: Metric,
        attributes: Mapping[str, int] | None = None,
        availability: bool = False,
    ):
        self.source, self.target, self.metric = tuple(source), tuple(target), metric
        self.attributes, self.labels, self.availability = dict(attributes or {}), {}, availability

    def condition(self, inputs: Mapping[str, Any]) -> Condition:
        given = dense(inputs, self.source, {})
        if self.availability:
            said = flags(inputs, self.source)
            given = torch.cat([given, said.reshape(*said.shape, *(1,) * (given.ndim - 2)).expand_as(given)], 1)
        return Condition(vector=vector(inputs, self.attributes), dense=given)

    def example(self, batch: Mapping[str, Any], rng: Rng) -> Example:
        x = stacked(batch, self.target)
        weight = None
        if any(availability(name) in batch for name in self.target):
            said = flags(batch, self.target)
            weight = said.reshape(*said.shape, *(1,) * (x.ndim - 2))
        return Example(x, self.condition(batch), weight, cached(batch))
