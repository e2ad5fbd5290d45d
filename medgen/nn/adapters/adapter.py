"""What every adapter does around another library's network: conditions, timesteps, odd sizes, weights, refusals."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError, nearest
from medgen.core.model import Moments
from medgen.core.schedule import Timesteps
from medgen.nn.conditioning import Conditioning, role_sizes
from medgen.nn.grid import ceil_div, crop, pad_to_multiple


class Adapter(nn.Module, ABC):
    """Holds the original as `network`; everything else that it owns is medgen's.

    Args:
        network: the other library's network.
        spatial_dims: 2 or 3.
        multiple: what its grid must be divisible by.
    """

    def __init__(self, network: nn.Module, spatial_dims: int, multiple: int):
        super().__init__()
        self.network, self.spatial_dims, self.multiple = network, spatial_dims, multiple

    @property
    def name(self) -> str:
        return type(self).__name__

    def load_original(self, weights: Mapping[str, Tensor]) -> None:
        """Take a state dict of the original network, all of it.

        Raises:
            MedgenError: a tensor that is missing, not expected, or of another shape.
        """
        own = self.network.state_dict()
        for problem, keys in (("missing", own.keys() - weights.keys()), ("not expected", weights.keys() - own.keys())):
            if keys:
                raise MedgenError(
                    f"{self.name}: the weights do not fit: '{min(keys)}' is {problem} ({len(keys)} such); build the adapter with the"
                    " settings that the weights were trained with"
                )
        for key, value in own.items():
            if weights[key].shape != value.shape:
                found, expected = list(weights[key].shape), list(value.shape)
                raise MedgenError(
                    f"{self.name}: the weights do not fit: '{key}' has shape {found}, expected {expected}; check the settings"
                )
        self.network.load_state_dict(dict(weights))

    def _check_image(self, x: Tensor, channels: int) -> None:
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != channels:
            raise MedgenError(
                f"{self.name} expects (B, {channels}, *S) with {self.spatial_dims} spatial axes, found shape {tuple(x.shape)}"
            )


class AdaptedUNet(Adapter):
    """A denoising U-Net of another library as `forward(x, t, condition)`.

    Dense conditions are concatenated behind the noisy image, vectors go to the class embedding, tokens to cross-attention where there
    is any. An absent role is replaced by a learned null that starts at zero (for tokens at random).

    Args:
        network, spatial_dims, multiple: see `Adapter`.
        in_channels: channels of the noisy image; 0 for a network that sees the dense condition only (regression).
        sizes: role -> size, as `role_sizes` gives them.
        timesteps: from the noise coordinate to the network's time argument.
    """

    def __init__(
        self, network: nn.Module, spatial_dims: int, multiple: int, in_channels: int, sizes: Mapping[str, int], timesteps: Timesteps
    ):
        super().__init__(network, spatial_dims, multiple)
        self.in_channels, self.timesteps = in_channels, timesteps
        self.conditioning = Conditioning(sizes, 0, self.name)

    def forward(self, x: Tensor | None, t: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        """x (B, C, *S), or None where in_channels is 0; t (B,) noise coordinate ln(sigma / alpha) / 4 -> (B, out, *S); S is free.

        Raises:
            MedgenError: a role that is not taken, a wrong number of channels, an image where none is taken or the reverse.
        """
        given = self._given(x, condition)
        batch, size = len(given), given.shape[2:]
        self.conditioning.check(condition, batch)
        dense = self.conditioning.dense(condition, batch, size)
        parts = [part for part in (x, dense) if part is not None]
        image = pad_to_multiple(torch.cat([part.to(given.dtype) for part in parts], 1), self.multiple)
        steps = given.new_zeros(batch) if t is None else self.timesteps.timestep(t.to(given.device).expand(batch))
        vector, tokens = self.conditioning.vector(condition, batch), self.conditioning.tokens(condition, batch)
        return crop(self._predict(image, steps, vector, tokens), size).to(given.dtype)

    @abstractmethod
    def _predict(self, image: Tensor, steps: Tensor, vector: Tensor | None, tokens: Tensor | None) -> Tensor:
        """The original's forward."""

    def _given(self, x: Tensor | None, condition: Condition | None) -> Tensor:
        if self.in_channels:
            if x is None:
                raise MedgenError(f"{self.name} expects an image with {self.in_channels} channels, found none; set in_channels to 0")
            self._check_image(x, self.in_channels)
            return x
        if x is not None or condition is None or condition.dense is None:
            raise MedgenError(f"{self.name} with in_channels=0 sees the dense condition and nothing else; pass one and x=None")
        self._check_image(condition.dense, self.conditioning.sizes["dense"])
        return condition.dense


class AdaptedAutoencoder(Adapter):
    """A KL autoencoder of another library as `encode -> Moments`, `decode(z, size)`.

    Args:
        network, spatial_dims, multiple: see `Adapter`.
        in_channels: channels of the image.
        latent: channels of the latent image.
        condition: sizes of roles, which must all be 0: these autoencoders take none.
    """

    def __init__(
        self, network: nn.Module, spatial_dims: int, multiple: int, in_channels: int, latent: int, condition: Mapping[str, int] | None
    ):
        super().__init__(network, spatial_dims, multiple)
        self.in_channels, self.latent, self.factor = in_channels, latent, multiple
        self.conditioning = Conditioning(role_sizes(condition, (), self.name), 0, self.name)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the latent image for images of `shape` (B, C, *S)."""
        return (shape[0], self.latent, *ceil_div(shape[2:], self.factor))

    def encode(self, x: Tensor, condition: Condition | None = None) -> Moments:
        """x (B, C, *S) -> mean and log-variance (B, latent, *ceil(S / factor)).

        Raises:
            MedgenError: a wrong number of channels or axes, any condition.
        """
        self._check_image(x, self.in_channels)
        self.conditioning.check(condition, len(x))
        return Moments(*(part.float() for part in self._moments(pad_to_multiple(x, self.factor))))

    def decode(self, z: Tensor, size: Sequence[int], condition: Condition | None = None) -> Tensor:
        """z (B, latent, *ceil(size / factor)) -> (B, C, *size).

        Raises:
            MedgenError: a latent image that does not belong to `size`.
        """
        expected = self.latent_shape((len(z), 1, *size))
        if tuple(z.shape) != expected:
            raise MedgenError(f"{self.name}: a latent image of shape {tuple(z.shape)} does not decode to {list(size)}, {expected} does")
        self.conditioning.check(condition, len(z))
        return crop(self._image(z), size).to(z.dtype)

    @abstractmethod
    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, by the original's encoder."""

    @abstractmethod
    def _image(self, z: Tensor) -> Tensor:
        """The original's decoder."""


class Rows(nn.Embedding):
    """An embedding as the matrix that it is: a one-hot vector (B, E) picks its row, any other vector mixes rows."""

    def forward(self, vector: Tensor) -> Tensor:
        return vector.to(self.weight.dtype) @ self.weight

    @staticmethod
    def of(embedding: nn.Embedding) -> Rows:
        """The same weights, under the same name in a state dict."""
        return Rows(embedding.num_embeddings, embedding.embedding_dim, _weight=embedding.weight.detach())


def built(kind: type[nn.Module], fixed: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module:
    """A network of another library from what the adapter sets and the user's further settings.

    Raises:
        MedgenError: a setting that the adapter sets itself, that is no plain value, that this version does not know or that does not fit.
    """
    known, name = inspect.signature(kind.__init__).parameters, original_name(kind)
    for key, value in settings.items():
        if key in fixed:
            raise MedgenError(f"settings.{key} is set by the adapter's own arguments; leave it out of settings")
        if key not in known:
            raise MedgenError(f"{name} has no argument '{key}' in the installed version; {nearest(key, known)}")
        if not _plain(value):
            raise MedgenError(f"settings.{key} is {value!r}; expected a number, a word, true, false, null or a list of these")
    try:
        return kind(**fixed, **settings)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        raise MedgenError(f"{name} cannot be built from these settings: {error}") from error


def original_name(kind: type[nn.Module]) -> str:
    return f"{kind.__module__.partition('.')[0]}'s {kind.__name__}"


def complete(kind: type[nn.Module], config: Mapping[str, Any], strict: bool = False) -> dict[str, Any]:
    """The arguments of an original: those in `config` and the defaults of the rest; tuples as lists, so that they are plain data.

    Args:
        strict: refuse what the original does not know; False for configurations that carry other things too.
    """
    parameters = inspect.signature(kind.__init__).parameters
    values = {k: p.default for k, p in parameters.items() if k != "self" and p.kind is p.POSITIONAL_OR_KEYWORD}
    unknown = [k for k in config if k not in values]
    if strict and unknown:
        raise MedgenError(f"{original_name(kind)} has no argument '{unknown[0]}' in the installed version; {nearest(unknown[0], values)}")
    values |= {k: v for k, v in config.items() if k in values}
    missing = [k for k, v in values.items() if v is inspect.Parameter.empty]
    if missing:
        raise MedgenError(f"the configuration of {original_name(kind)} lacks '{missing[0]}'")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def changed(kind: type[nn.Module], values: Mapping[str, Any], handled: Sequence[str], explicit: Sequence[str]) -> dict[str, Any]:
    """What of `complete`'s values goes into an adapter's settings: the `explicit` ones, and others that are not the default.

    Defaults are left out, so that other versions of the library, which may not know all of them, read the settings too.
    """
    defaults = complete(kind, {**values, **{k: p.default for k, p in _optional(kind).items()}})
    return {k: v for k, v in values.items() if k in explicit or (k not in handled and v != defaults[k])}


def divisor(most: int, channels: Sequence[int]) -> int:
    """An original's default number `most` where it divides every number of channels, else the largest divisor of it that does."""
    return math.gcd(most, *channels)


def last_only(channels: Sequence[int], at_last: Any, elsewhere: Any) -> list[Any]:
    """One value per level, another one at the coarsest."""
    return [elsewhere] * (len(channels) - 1) + [at_last]


def _optional(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    return {k: p for k, p in inspect.signature(kind.__init__).parameters.items() if p.default is not p.empty}


def _plain(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
