"""`init_from=<checkpoint>` when a configuration is composed: model and task come from the checkpoint, and what the data left open.

The checkpoint's recipe becomes a choice of the groups model, task, network, critic and sampler, so that everything on the command line goes
on meaning what it means: `sampler=dpmpp` takes another sampler, `model.drop=0.1` changes one value, an unknown key is answered with the
nearest. What the command line and an experiment leave as the data's YAML has it is taken from the checkpoint's contract: intensity maps of
the task's channels, spacing, size, slice axis, classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medgen.cli.configs import CHECKPOINT, compose, config_dir, key_of
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError

PARTS = {"network": ("network", "generator", "autoencoder"), "sampler": ("sampler",), "critic": ("critic",)}
WHOLE = ("model", "task", "network", "critic", "codec")  # what a checkpoint decides as a whole; single values of it may change
WORD = re.compile(r"[\w-]+")
GEOMETRY = ("spacing", "size", "slice_axis")


def expanded(arguments: Sequence[str]) -> list[str]:
    """The arguments of `train.py` with the choices that `init_from` stands for; the same arguments where it is not named.

    Raises:
        MedgenError: no such checkpoint, one that does not load, or a choice that the checkpoint makes.
    """
    overrides = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    keys = [key_of(o) for o in overrides]
    if CHECKPOINT not in keys:
        return list(arguments)
    name = overrides[keys.index(CHECKPOINT)].partition("=")[2].strip("'\"")
    if name in ("", "null"):
        return list(arguments)
    for group in WHOLE:
        if group in keys:
            raise MedgenError(
                f"{group}=... does not go with init_from: {name} has its own; leave it out (single values such as model.drop may change)"
            )
    document = checked_document(name)
    _store(document["recipe"])
    chosen = [f"{group}={CHECKPOINT}" for group in ("task", "network", "critic", "sampler", "model") if group not in keys]
    fixed = [o for o in overrides if not _sweeps(o)]
    adopted = _adopted([*fixed, *chosen], Contract.from_dict(document["contract"]))
    place = arguments.index(overrides[keys.index(CHECKPOINT)])  # beside it: Hydra's parser wants overrides in one row, and later ones win
    return [*arguments[:place], *chosen, *adopted, *arguments[place:]]


def spoken(key: str) -> str:
    """The name on the command line of a value in a model's recipe: `network.channels` for model.network.channels."""
    for group, names in PARTS.items():
        key = re.sub(rf"^model\.(model\.)?({'|'.join(names)})(?=\.|$)", group, key)
    return key


def checked_document(name: str) -> dict[str, Any]:
    """The plain data of a checkpoint that loads, and whose recipe is nothing but medgen's own model classes and plain values.

    A run's configuration may build any class and is resolved by OmegaConf; a checkpoint from elsewhere must gain neither.
    """
    from medgen.checkpoint import load
    from medgen.zoo import find

    folder = find(name)
    document = load(folder).document
    strange = [text for text in _texts([document["recipe"], document["contract"]]) if "${" in text]
    if strange:
        raise MedgenError(f"{folder} holds the interpolation '{strange[0]}', a checkpoint's values are plain; do not trust this file")
    return document


def _texts(plain: Any) -> Iterator[str]:
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, Mapping):
        for key, value in plain.items():
            yield from (*_texts(key), *_texts(value))
    elif isinstance(plain, (list, tuple)):
        for value in plain:
            yield from _texts(value)


def _store(recipe: Mapping[str, Any]) -> None:
    """Make the recipe a choice of its groups."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    model = dict(recipe["model"])
    holder = model
    if isinstance(model.get("model"), Mapping):  # a latent model's network is that of the model inside
        holder = model["model"] = dict(model["model"])
    for group, names in PARTS.items():
        node: Mapping[str, Any] = {}
        for name in names:
            if isinstance(holder.get(name), Mapping):
                node, holder[name] = holder[name], f"${{{group}}}"
        store.store(group=group, name=CHECKPOINT, node=dict(node))
    store.store(group="model", name=CHECKPOINT, node=model)
    store.store(group="task", name=CHECKPOINT, node=dict(recipe["task"]))


def _sweeps(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False  # composing answers it


def _adopted(overrides: Sequence[str], contract: Contract) -> list[str]:
    """Overrides that fill from the contract what nobody has set for the data.

    They become a part of a configuration that may build any class: numbers, names of intensity maps and plain words are all they carry.
    """
    from omegaconf import OmegaConf

    config = compose(overrides, hydra=True)
    path = config_dir() / "data" / f"{config.hydra.runtime.choices.data}.yaml"
    source, default = (OmegaConf.to_container(c).get("source") or {} for c in (config.data, OmegaConf.load(path)))
    named, task = {key_of(o) for o in overrides}, OmegaConf.to_container(config.task)

    def untouched(key: str) -> bool:
        return source.get(key) == default.get(key) and not any(f"{n}.".startswith(f"data.source.{key}.") for n in named)

    found = []
    if len(source.get("size") or ()) == len(contract.size):
        values = {key: _number(getattr(contract, key)) for key in GEOMETRY if key in source and untouched(key)}
        found += [f"data.source.{key}={_written(value)}" for key, value in values.items() if value is not None]
    if isinstance(source.get("channels"), dict):
        rules = _rules(task, contract)
        stale = [c for c in source["channels"] if c not in rules] if untouched("channels") else []
        found += [f"~data.source.channels.{c}" for c in stale]
        kept = {} if untouched("channels") else source["channels"]
        found += [f"++data.source.channels.{c}={_written(rule)}" for c, rule in rules.items() if c not in kept]
        for kind in ("labels", "attributes"):
            missing = {n: classes for n, classes in (task.get(kind) or {}).items() if n not in source.get(kind, task[kind])}
            found += [f"++data.source.{kind}.{n}={_number(classes)}" for n, classes in missing.items() if WORD.fullmatch(n)]
    return found


def _rules(task: Mapping[str, Any], contract: Contract) -> dict[str, dict[str, Any]]:
    """channel of the task -> intensity rule: its own in the contract, or that of the channel whose place it takes."""
    rules = {}
    for role in ("source", "target"):
        before = getattr(contract, role)
        for place, channel in enumerate(task.get(role) or ()):
            old = channel if channel in contract.intensity else before[place] if place < len(before) else None
            if old is not None and WORD.fullmatch(channel):
                rule = contract.map_of(old).describe()
                rules[channel] = {key: value if key == "name" else _number(value) for key, value in rule.items()}
    return rules


def _number(value: Any) -> Any:
    """A number or numbers of a contract; anything else is refused."""
    if isinstance(value, (list, tuple)):
        return [_number(v) for v in value]
    if value is not None and not isinstance(value, (int, float)):
        raise MedgenError(f"the checkpoint's contract has '{value}' where a number belongs; do not trust this file")
    return value


def _written(value: Any) -> str:
    """A value in the grammar of overrides."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_written, value)) + "]"
    return str(value)
