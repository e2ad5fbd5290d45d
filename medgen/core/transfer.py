"""What changes for weights that move to other data: said where they can learn it, refused where they mean something else."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from medgen.core.contract import Contract
from medgen.core.errors import MedgenError, nearest

SCALE = 1.25  # a larger ratio of voxel sizes shows anatomy at a scale that training did not vary over
EXCEPTIONS = {
    "intensity": "another kind of intensity map",
    "preconditioning": "another meaning of the network's output",
}


def check_exceptions(allow: Collection[str]) -> None:
    """Refuse an exception that does not exist."""
    for name in allow:
        if name not in EXCEPTIONS:
            raise MedgenError(f"allow has no '{name}'; {nearest(name, EXCEPTIONS)}")


def check_transfer(there: Contract, here: Contract, allow: Collection[str] = ()) -> None:
    """Refuse data that make the weights meaningless.

    Args:
        there: the contract of the weights.
        here: the contract of the data that they move to.
        allow: exceptions; "intensity" lets another kind of intensity map pass.
    """
    if there.spatial_dims != here.spatial_dims:
        raise MedgenError(
            f"the weights are those of a {there.spatial_dims}D model, the data are {here.spatial_dims}D;"
            f" set data.source.size to {there.spatial_dims} numbers, or take another checkpoint"
        )
    for role in ("target", "source"):
        before, after = getattr(there, role), getattr(here, role)
        if len(before) != len(after):
            raise MedgenError(
                f"the weights take {len(before)} {role} channels ({_names(before)}), this run has {len(after)} ({_names(after)});"
                f" set task.{role} to {len(before)} names"
            )
    for role in ("labels", "attributes"):
        before, after = getattr(there, role), getattr(here, role)
        if list(before.values()) != list(after.values()):
            raise MedgenError(f"the weights take {role} {_classes(before)}, this run has {_classes(after)}; their classes must agree")
    for old, new in _channels(there, here):
        kinds = there.map_of(old).name, here.map_of(new).name
        if kinds[0] != kinds[1] and "intensity" not in allow:
            raise MedgenError(
                f"the weights know {old} by {kinds[0]}, the data bring {new} by {kinds[1]}: the same number means another thing;"
                f" set data.source.channels.{new}.name={kinds[0]}, or say allow=[intensity] to train on"
            )


def differences(there: Contract, here: Contract) -> list[str]:
    """One line for each fact that differs."""
    lines = []
    for role in ("target", "source", "labels", "attributes"):
        before, after = (list(getattr(c, role)) for c in (there, here))
        if before != after:
            lines.append(_differs(f"{role} names", _names(before), _names(after)))
    for old, new in _channels(there, here):
        if not _same_rule(there, here, old, new):
            lines.append(_differs(f"intensity of {new}", _rule(there.intensity[old]), _rule(here.intensity[new])))
    lines += [_differs("spacing", _spacing(there), _spacing(here)) + _scale(there, here)] if _moved(there, here) else []
    for fact, name in (("orientation", "orientation"), ("size", "size"), ("slice_axis", "slice axis")):
        before, after = getattr(there, fact), getattr(here, fact)
        if before != after:
            lines.append(_differs(name, _plain(before), _plain(after)))
    if there.data != here.data:
        lines.append(_differs("data", _about(there), _about(here)))
    return lines


def agreements(there: Contract, here: Contract) -> str:
    """What the data have in common with the checkpoint's, in one line."""
    rules = [f"{new} by {_rule(here.intensity[new])}" for old, new in _channels(there, here) if _same_rule(there, here, old, new)]
    facts = [f"spacing {_spacing(here)}"] if not _moved(there, here) and here.spacing else []
    facts += [f"size {_plain(here.size)}"] if there.size == here.size else []
    facts += [f"slice axis {here.slice_axis}"] if here.slice_axis is not None and there.slice_axis == here.slice_axis else []
    return "as in the checkpoint: " + (", ".join([*rules, *facts]) or "nothing")


def _same_rule(there: Contract, here: Contract, old: str, new: str) -> bool:
    return _rule(there.intensity[old]) == _rule(here.intensity[new])


def _channels(there: Contract, here: Contract) -> Iterator[tuple[str, str]]:
    """Channels that take the same place in the network."""
    yield from zip((*there.target, *there.source), (*here.target, *here.source), strict=True)


def _differs(what: str, there: str, here: str) -> str:
    return f"{what}: {there} in the checkpoint, {here} here"


def _rule(intensity: dict[str, Any]) -> str:
    parameters = ", ".join(f"{k} {v:g}" for k, v in intensity.items() if k not in ("name", "typical"))
    return f"{intensity['name']} ({parameters})" if parameters else intensity["name"]


def _moved(there: Contract, here: Contract) -> bool:
    if there.spacing is None or here.spacing is None:
        return there.spacing != here.spacing
    return any(abs(a - b) > 0.01 * a for a, b in zip(there.spacing, here.spacing, strict=True))


def _scale(there: Contract, here: Contract) -> str:
    """A warning where anatomy appears at another scale in the plane or volume that the network sees."""
    if there.spacing is None or here.spacing is None:
        return ""
    seen = [i for i in range(3) if i != here.slice_axis]
    ratio = max((there.spacing[i] / here.spacing[i] for i in seen), key=lambda r: max(r, 1 / r))
    if max(ratio, 1 / ratio) <= SCALE:
        return ""
    side = "larger" if ratio > 1 else "smaller"
    return (
        f"; anatomy appears {max(ratio, 1 / ratio):.3g} times {side} than the weights know it (the limit of this warning is {SCALE}),"
        " unless the data are brought to the checkpoint's spacing"
    )


def _spacing(contract: Contract) -> str:
    return "no geometry" if contract.spacing is None else " x ".join(f"{s:.4g}" for s in contract.spacing) + " mm"


def _about(contract: Contract) -> str:
    count = contract.data.get("subjects", "unknown")
    return f"{contract.data.get('name', 'unknown')} ({count} subject{'s' if count != 1 else ''})"


def _names(values: Sequence[str]) -> str:
    return ", ".join(values) or "none"


def _classes(values: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count} classes)" if count else name for name, count in values.items()) or "none"


def _plain(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)
