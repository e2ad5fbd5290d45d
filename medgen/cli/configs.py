"""Where the configuration files are, what they offer, and how a mistyped name is answered. Imports nothing heavy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medgen.core.errors import MedgenError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
_NOT_TRAINED = ("solver",)  # groups that `medgen reconstruct` reads, not `train.py`
CHECKPOINT = "init_from"  # the key that names a checkpoint, and in some groups the choice of what it holds


def config_dir() -> Path:
    """`configs/` inside the installed wheel, or beside the package in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def groups() -> dict[str, dict[str, str]]:
    """group -> choice -> its one-line description."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(p for p in config_dir().glob("*/*.yaml") if p.parent.name not in _NOT_TRAINED):
        found.setdefault(path.parent.name, {})[path.stem] = describe(path)
    return found


def describe(path: Path) -> str:
    """The first comment of a configuration file that is not a directive."""
    comments = (line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((c for c in comments if not c.startswith("@package")), "")


def key_of(override: str) -> str:
    """What an override changes."""
    return override.lstrip("+~").split("=")[0]


_OWN_NAMES = re.compile(r"(data\.source\.(?:channels|labels|attributes)|task\.(?:attributes|labels))\.([^.]+)")  # users fill these


def compose(overrides: Sequence[str], hydra: bool = False) -> Any:
    """The configuration for a list of Hydra overrides; with `hydra` also Hydra's own, which knows what was chosen.

    Raises:
        MedgenError: an unknown group, choice or key, with the nearest valid name.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    register_resolvers()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return hydra_compose("train", overrides=list(overrides), return_hydra_config=hydra)
    except HydraException as error:
        raise MedgenError(explain(error, overrides)) from error


def resolved(config: Any) -> dict[str, Any]:
    """Plain data, with everything that refers to something else filled in.

    Raises:
        MedgenError: what a resolver has to say.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:  # it drops the original and keeps its text
        said = re.match(r"MedgenError raised while resolving interpolation: (.*)", str(error))
        raise MedgenError(said[1] if said else str(error).splitlines()[0]) from error


def register_resolvers() -> None:
    """Sizes that follow from a task: how many channels, how wide a one-hot vector."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("count", lambda names: len(names), replace=True)
    OmegaConf.register_new_resolver("given", lambda names, flags: len(names) * (2 if flags else 1), replace=True)
    OmegaConf.register_new_resolver("width", lambda classes: sum(max(1, c) for c in classes.values()), replace=True)
    OmegaConf.register_new_resolver("codec_recipe", _codec_recipe, replace=True)
    OmegaConf.register_new_resolver("codec_latent", lambda name: _codec_recipe(name)["latent"], replace=True)
    OmegaConf.register_new_resolver("codec_cells", _codec_cells, replace=True)
    OmegaConf.register_new_resolver("product", lambda first, second: first * second, replace=True)
    OmegaConf.register_new_resolver("join", lambda *lists: list(dict.fromkeys(n for names in lists for n in names)), replace=True)


def _codec_recipe(name: str | None) -> dict[str, Any]:
    from medgen.cli.codec import codec_recipe

    return codec_recipe(name)


def _codec_cells(name: str | None, spatial_dims: int) -> int:
    from medgen.cli.codec import codec_cells

    return codec_cells(name, spatial_dims)


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's error as one sentence with the nearest valid name."""
    text = f"{error} {error.__cause__ or ''}"
    choice = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
    if choice:
        group, name = choice.groups()
        return f"no {group} '{name}'; {nearest(name, groups().get(group, {}))}"
    base = [o for o in overrides if key_of(o) in groups()]
    for key in map(key_of, overrides):
        if f"Could not override '{key}'" in text or f"Key '{key.split('.')[-1]}'" in text:
            own = _OWN_NAMES.match(key)
            if own:
                return f"{own[1]} has no '{own[2]}' yet; a plus adds a name of your own: +{next(o for o in overrides if key_of(o) == key)}"
            known = valid_keys(key, base)
            if key in known:  # a mapping of the user's own names, such as channels: Hydra wants new entries marked
                return f"'{key}' does not have all these entries yet; add one at a time with a plus: +{key}.NAME=VALUE"
            return f"no key '{key}'; {_other_choice(key) or _elsewhere(key, known, base) or nearest(key, known)}"
    return str(error).splitlines()[0]


def _other_choice(key: str) -> str:
    """Which choices of the key's own group have it; empty if none."""
    from omegaconf import OmegaConf

    group, _, rest = key.partition(".")
    files = {name: OmegaConf.load(config_dir() / group / f"{name}.yaml") for name in groups().get(group, {})}
    own, _, last = rest.rpartition(".")
    places = {name: file.get(group) or file for name, file in files.items()}
    places = {name: OmegaConf.select(place, own, throw_on_resolution_failure=False) if own else place for name, place in places.items()}
    found = [name for name, place in places.items() if rest and hasattr(place, "keys") and last in place]
    return f"it belongs to {' or '.join(f'{group}={name}' for name in found)}: choose that too" if found else ""


def _elsewhere(key: str, siblings: Sequence[str], base: Sequence[str]) -> str:
    """Where in the whole configuration a key that no sibling resembles might have been meant; empty if nowhere."""
    everything = [n for n in leaves(compose(base)) if not n.startswith("sizes.")]

    def close(names: Sequence[str]) -> list[str]:
        return difflib.get_close_matches(_last(key), sorted(set(map(_last, names))), 1, 0.8)

    found = [] if close(siblings) else [n for n in everything if _last(n) in (close(everything) or _last(key).split("_"))]
    return f"did you mean {' or '.join(map(repr, found))}?" if found else ""


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def valid_keys(key: str, base: Sequence[str] = ()) -> list[str]:
    """The names that may stand where `key` stands in the configuration of the choices `base`: siblings, or top-level keys and groups."""
    config = compose(base)
    node, _, _ = key.rpartition(".")
    from omegaconf import DictConfig, OmegaConf

    parent = OmegaConf.select(config, node) if node else config
    if not isinstance(parent, DictConfig):
        return [k for k in leaves(config) if k.count(".") == key.count(".")]
    names = [f"{node}.{k}" if node else str(k) for k in parent]
    return names if node else sorted({*names, *groups()})


def leaves(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything in a configuration."""
    for key in config:
        name = f"{prefix}{key}"
        yield name
        value = config._get_node(key)
        if hasattr(value, "keys") and not value._is_none() and not value._is_interpolation():
            yield from leaves(value, f"{name}.")
