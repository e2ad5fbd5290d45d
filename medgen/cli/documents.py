"""Plain data from files that anyone may have written: read within bounds, references looked up, values checked before they are used."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.core.errors import MedgenError

FAULTS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError, ImportError, RuntimeError)  # of odd values
MOST_VALUES = 100_000  # in a document or looked up by references; real configurations have some hundred
DEEPEST = 100
_LARGEST = torch.finfo(torch.float32).max


def reason(error: BaseException) -> str:
    """The first line of what a library says, or else the kind of its error."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_plain(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping of plain data.

    Raises:
        MedgenError: no such file, another format, or a document without end (by YAML's aliases) or nearly so.
    """
    import yaml

    try:
        values = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, *FAULTS) as error:
        raise MedgenError(f"{path} cannot be read ({reason(error)}); expected a JSON or YAML file") from error
    if not isinstance(values, dict):
        raise MedgenError(f"{path} holds {type(values).__name__}; expected a mapping of arguments")
    _check_bounds(values, path)
    return values


def nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a document, outer ones first."""
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def arguments(node: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a bundle's definition, with references such as "@spatial_dims" looked up in the document.

    Raises:
        MedgenError: an expression, which would have to be executed; references that unfold to more than `MOST_VALUES` values.
    """
    made = count(1)
    return {str(k): _value(str(k), v, document, made) for k, v in node.items() if not str(k).startswith("_")}


def is_number(value: Any) -> bool:
    """A real number that float32 can hold: neither nan nor infinite, true nor false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def is_whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def are_whole(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(is_whole, value))


def expect(fits: bool, name: str, value: Any, expected: str) -> None:
    """Refuse `value` where it does not fit.

    Raises:
        MedgenError: what `name` is, what was expected.
    """
    if not fits:
        found = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else reprlib.repr(value)
        raise MedgenError(f"{name} is {found}; expected {expected}")


_WHOLE = ("a positive whole number, such as 1", is_whole)
_BLOCKS = ("1 to 100 blocks, or a list of such numbers", lambda v: all(is_whole(n) and n <= 100 for n in (v if are_whole(v) else [v])))
_LEVELS = ("a list of positive whole numbers, such as [32, 64]", are_whole)
_OPTIONAL = ("a whole number or null", lambda v: v is None or is_whole(v, 0))
_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("spatial_dims", "in_channels", "out_channels", "latent_channels"), _WHOLE),
    **dict.fromkeys(("channels", "num_channels", "block_out_channels"), _LEVELS),
    **dict.fromkeys(("num_class_embeds", "cross_attention_dim"), _OPTIONAL),
    **dict.fromkeys(("num_res_blocks", "layers_per_block"), _BLOCKS),
    "sample_size": ("a positive whole number, a list of them or null", lambda v: v is None or is_whole(v) or are_whole(v)),
}


def check_network(config: Mapping[str, Any], path: Path) -> None:
    """The arguments of a network that medgen counts with, before it does.

    Raises:
        MedgenError: text where there should be a number, a number where there should be a list, and the like.
    """
    for name, (expected, fits) in _EXPECTED.items():
        if name in config:
            expect(fits(config[name]), f"{path}: {name}", config[name], expected)


def _check_bounds(document: Mapping[str, Any], path: Path) -> None:
    waiting, seen = [(document, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        seen += len(inner)
        if depth > DEEPEST or seen > MOST_VALUES:
            raise MedgenError(
                f"{path} nests more than {DEEPEST} deep or unfolds to more than {MOST_VALUES} values; give a file with the arguments alone"
            )
        waiting += [(v, depth + 1) for v in inner if isinstance(v, (Mapping, list))]


def _value(key: str, value: Any, document: Mapping[str, Any], made: Iterator[int], depth: int = 0) -> Any:
    if next(made) > MOST_VALUES:
        raise MedgenError(f"the references in '{key}' unfold to more than {MOST_VALUES} values; write its value into the configuration")
    if isinstance(value, list):
        return [_value(key, inner, document, made, depth) for inner in value]
    if not isinstance(value, str) or value[:1] not in ("@", "$"):
        return value
    names = value.removeprefix("$").removeprefix("@").replace("#", "::").split("::")
    found: Any = document if value.removeprefix("$")[:1] == "@" and depth < 8 else None
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    if found is None:
        raise MedgenError(
            f"'{key}' is the expression {reprlib.repr(value)}, which medgen does not run; write its value into the configuration"
        )
    return _value(key, found, document, made, depth + 1)
