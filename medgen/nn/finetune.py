"""What of a pretrained model goes on being trained: everything, named parts, or low-rank updates.

The choice concerns the parts that make samples (`GenerativeModel.averaged`). Critics are always trained in full; what stands still on its
own, such as the codec of a latent model, keeps standing still.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from medgen.core.errors import MedgenError, nearest
from medgen.core.model import GenerativeModel
from medgen.nn import lora


class Finetune(ABC):
    """`apply` once to a model that has its weights or will get its state back, before optimizers and averages are made."""

    @abstractmethod
    def apply(self, model: GenerativeModel) -> None:
        """Decide which parameters of `model` are trained."""

    @abstractmethod
    def describe(self) -> str:
        """The method in a few words, for the log and the contract."""

    def plain(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of the model under the names that it had before `apply`: what is exported."""
        return dict(state)

    def small(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What alone has to be kept beside the pretrained weights; empty where that saves nothing."""
        return {}


class Full(Finetune):
    """Every parameter is trained."""

    def apply(self, model: GenerativeModel) -> None:
        """Leaves the model as it is."""

    def describe(self) -> str:
        return "full"


class Frozen(Finetune):
    """Named parts are trained, the rest stands still.

    Args:
        train: names of sub-modules or parameters, or of a run of them such as "up.3" or "middle.0.attention"; * and ? stand for anything.
    """

    def __init__(self, train: Sequence[str] = ()):
        self.train = list(train)

    def apply(self, model: GenerativeModel) -> None:
        """Freeze what `train` does not name.

        Raises:
            MedgenError: nothing to train, or a name that fits nothing.
        """
        own = _trainable(model)
        if not self.train:
            raise MedgenError(
                f"finetune=frozen needs finetune.train, a list of parts such as [output]; there are {', '.join(_parts(model))}"
            )
        kept = matching(self.train, own, "finetune.train")
        for name, parameter in own.items():
            parameter.requires_grad_(name in kept)

    def describe(self) -> str:
        return f"frozen but for {', '.join(self.train)}"


class LoRA(Finetune):
    """Low-rank updates of linear and convolution layers (Hu et al. 2022) are trained, the rest stands still.

    Checkpoints hold merged weights. The moving average is that of the factors, whose product is merged; the average of the products would
    have full rank.

    Args:
        rank: of the update of each layer.
        alpha: weight = W + alpha / rank * up @ down; None is `rank`.
        targets: names of layers as in `Frozen`; empty is every linear and convolution layer.
        train: names of further parameters that are trained in full, such as ["norm", "bias", "null_*"].
    """

    def __init__(self, rank: int = 8, alpha: float | None = None, targets: Sequence[str] = (), train: Sequence[str] = ()):
        if not isinstance(rank, int) or rank < 1:
            raise MedgenError(f"finetune.rank={rank} must be a whole number of at least 1")
        if alpha is not None and alpha <= 0:
            raise MedgenError(f"finetune.alpha={alpha} must be above 0, or null for the rank")
        self.rank, self.scale = rank, (rank if alpha is None else alpha) / rank
        self.targets, self.train = list(targets), list(train)
        self._others: set[str] = set()

    def apply(self, model: GenerativeModel) -> None:
        """Freeze the parts that make samples and adapt their layers.

        Raises:
            MedgenError: a name that fits no layer, or a weight that is to be both adapted and trained in full.
        """
        own = _trainable(model)
        layers = {n: m for n, m in _inside(model, model.named_modules()) if lora.adaptable(m) and m.weight.requires_grad}
        chosen = matching(self.targets, layers, "finetune.targets") if self.targets else set(layers)
        others = matching(self.train, own, "finetune.train") if self.train else set()
        both = sorted(others & {f"{name}.weight" for name in chosen})
        if both:
            raise MedgenError(f"finetune.train names '{both[0]}', which is adapted already; leave its layer out of finetune.targets")
        for name, parameter in own.items():
            parameter.requires_grad_(name in others)
        for name in layers:
            if name in chosen:
                lora.adapt(layers[name], self.rank, self.scale)
        self._others = others

    def describe(self) -> str:
        return f"LoRA of rank {self.rank}" + (f" on {', '.join(self.targets)}" if self.targets else "")

    def plain(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return lora.merged(state, self.scale)

    def small(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**lora.factors(state), **{name: state[name] for name in sorted(self._others)}}


def matching(patterns: Iterable[str], names: Iterable[str], option: str) -> set[str]:
    """The dotted names that contain one of the patterns as whole components.

    Raises:
        MedgenError: a pattern that fits nothing, with the nearest component that does.
    """
    names, found = list(names), set()
    for pattern in patterns:
        fits = {name for name in names if fnmatchcase(f".{name}.", f"*.{pattern}.*")}
        if not fits:
            raise MedgenError(f"{option}: nothing is called '{pattern}'; {nearest(pattern, _components(names))}")
        found |= fits
    return found


def _trainable(model: GenerativeModel) -> dict[str, nn.Parameter]:
    return {n: p for n, p in _inside(model, model.named_parameters()) if p.requires_grad}


def _inside(model: GenerativeModel, named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """What lies in the parts that make samples."""
    prefixes = tuple(f"{name}." for name in model.averaged)
    return ((name, value) for name, value in named if name.startswith(prefixes))


def _components(names: Iterable[str]) -> set[str]:
    return {part for name in names for part in name.split(".") if not part.isdecimal()}


def _parts(model: GenerativeModel) -> list[str]:
    """The children of the parts that make samples, in their order."""
    return [child for name in model.averaged for child, _ in model.get_submodule(name).named_children()]
