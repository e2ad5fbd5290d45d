"""New images: unconditional, by class or attribute, or from a label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medgen.core.condition import Condition
from medgen.core.model import Example
from medgen.core.random import Rng
from medgen.core.task import Metric, Task
from medgen.tasks.encoding import cached, dense, stacked, vector


class Synthesis(Task):
    """Args:
    target: channels to make.
    metric: what validation monitors.
    attributes: name -> classes (0: a real number); empty for unconditional synthesis.
    labels: label map -> classes; images are made to fit the map.
    """

    def __init__(
        self, target: Sequence[str], metric: Metric, attributes: Mapping[str, int] | None = None, labels: Mapping[str, int] | None = None
    ):
        self.target, self.metric = tuple(target), metric
        self.attributes, self.labels = dict(attributes or {}), dict(labels or {})

    def condition(self, inputs: Mapping[str, Any]) -> Condition:
        return Condition(vector=vector(inputs, self.attributes), dense=dense(inputs, (), self.labels))

    def example(self, batch: Mapping[str, Any], rng: Rng) -> Example:
        return Example(stacked(batch, self.target), self.condition(batch), moments=cached(batch))
