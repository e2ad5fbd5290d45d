"""One modality from another, on paired images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medgen.core.condition import Condition
from medgen.core.model import Example
from medgen.core.random import Rng
from medgen.core.task import Metric, Task
from medgen.tasks.encoding import cached, dense, stacked, vector


class Translation(Task):
    """Args:
    source: channels that are given.
    target: channels to make on the same grid.
    metric: what validation monitors.
    attributes: name -> classes (0: a real number) of further information, such as the field strength.
    """

    def __init__(self, source: Sequence[str], target: Sequence[str], metric: Metric, attributes: Mapping[str, int] | None = None):
        self.source, self.target, self.metric = tuple(source), tuple(target), metric
        self.attributes, self.labels = dict(attributes or {}), {}

    def condition(self, inputs: Mapping[str, Any]) -> Condition:
        return Condition(vector=vector(inputs, self.attributes), dense=dense(inputs, self.source, {}))

    def example(self, batch: Mapping[str, Any], rng: Rng) -> Example:
        return Example(stacked(batch, self.target), self.condition(batch), moments=cached(batch))
