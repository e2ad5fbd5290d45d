"""Checkpoints that load alone: weights (safetensors), recipe (plain data) and contract, in one folder.

    model.safetensors   the weights
    contract.json       {"format", "medgen", "recipe": {"model", "task"}, "contract", "golden"}
    card.md             for people; in `zoo/` only

Nothing is unpickled. A recipe can only build classes that are defined in medgen's own model code, or that stand in `LIBRARY`.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import medgen
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from medgen.core.model import GenerativeModel
    from medgen.core.task import Task

FORMAT = 1
ROOMS = ("core", "nn", "models", "samplers", "operators", "solvers", "tasks", "metrics")  # what a checkpoint's recipe may build from
AUGMENT = "medgen.data.augment."  # what a GAN's critic sees is changed by these; they read nothing
LIBRARY: frozenset[str] = frozenset()  # full names of networks of other libraries that a recipe may build
RENAMES: dict[str, str] = {}  # old full class name -> new one, for checkpoints of earlier releases


class Checkpoint(NamedTuple):
    """A loaded checkpoint: model in evaluation mode, task, contract, and the file's plain data."""

    model: GenerativeModel
    task: Task
    contract: Contract
    document: dict[str, Any]


def save(folder: str | Path, state: Mapping[str, Tensor], recipe: Mapping[str, Any], contract: Contract) -> None:
    """Write `model.safetensors` and `contract.json` into `folder`."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"format": FORMAT, "medgen": medgen.__version__, "recipe": dict(recipe), "contract": contract.to_dict()}
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, folder / "model.safetensors")
    write_document(folder, document)


def write_document(folder: Path, document: Mapping[str, Any]) -> None:
    """`contract.json`, written aside and renamed."""
    partial = folder / "contract.json.partial"
    partial.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    os.replace(partial, folder / "contract.json")


def load(folder: str | Path) -> Checkpoint:
    """Rebuild model and task from a checkpoint folder.

    Raises:
        MedgenError: missing or corrupted files, a newer format, a recipe that names something it may not, weights that do not fit.
    """
    folder = Path(folder)
    document = read_document(folder)
    contract = Contract.from_dict(document["contract"])
    model, task = _built(document["recipe"], folder)
    _load_weights(model, folder / "model.safetensors")
    return Checkpoint(model.eval(), task, contract, document)


def read_document(folder: Path) -> dict[str, Any]:
    """`contract.json`, checked for its parts and its format."""
    path = folder / "contract.json"
    try:
        document = json.loads(path.read_text())
        parts = {"format", "recipe", "contract"} - set(document)
    except FileNotFoundError as error:
        raise MedgenError(f"{folder} is not a checkpoint: it has no contract.json") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise MedgenError(f"{path} is corrupted ({error}); copy the checkpoint again") from error
    plain = not parts and all(isinstance(document[part], dict) for part in ("recipe", "contract")) and isinstance(document["format"], int)
    if not plain or {"model", "task"} - set(document["recipe"]):
        raise MedgenError(f"{path} is corrupted: a checkpoint has format, recipe (model and task) and contract; copy it again")
    if document["format"] > FORMAT:
        raise MedgenError(f"{path} has format {document['format']}, this medgen {medgen.__version__} reads up to {FORMAT}; upgrade medgen")
    return document


def _built(recipe: Mapping[str, Any], folder: Path) -> tuple[GenerativeModel, Task]:
    """Model and task of a recipe; anything else that plain data can describe is refused."""
    from medgen.core.model import GenerativeModel
    from medgen.core.task import Task

    try:
        model, task = build(recipe["model"]), build(recipe["task"])
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        if isinstance(error, MedgenError):
            raise
        raise MedgenError(f"{folder}: the recipe cannot be built ({error}); copy the checkpoint again") from error
    if not isinstance(model, GenerativeModel) or not isinstance(task, Task):
        found = f"{type(model).__name__} and {type(task).__name__}"
        raise MedgenError(f"{folder}: the recipe makes {found}, where a model and a task are expected; copy the checkpoint again")
    return model, task


def _load_weights(model: GenerativeModel, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise MedgenError(f"{path} is missing; copy the checkpoint again") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise MedgenError(f"{path} is corrupted ({error}); copy the checkpoint again") from error
    own = model.state_dict()
    wrong = sorted((set(own) ^ set(state)) | {k for k in set(own) & set(state) if own[k].shape != state[k].shape})
    if wrong:
        raise MedgenError(
            f"{path} does not fit its recipe: {len(wrong)} tensors differ, first '{wrong[0]}'; the folder mixes two checkpoints"
        )
    model.load_state_dict(state)


def build(recipe: Any, trusted: bool = False) -> Any:
    """Make the object that plain data describes: mappings with `_target_` become instances, inside out.

    Args:
        recipe: nested mappings, lists and values.
        trusted: True for the user's own configuration, which may name any importable class or function; False for
            checkpoints, which may only name classes defined in medgen's model code or listed in `LIBRARY`.

    Raises:
        MedgenError: an unknown or forbidden target, an argument that its constructor does not take.
    """
    if isinstance(recipe, Mapping):
        values = {k: build(v, trusted) for k, v in recipe.items() if k != "_target_"}
        if "_target_" not in recipe:
            return values
        target = resolve(recipe["_target_"], trusted)
        check_arguments(recipe["_target_"], target, values)
        return target(**values)
    return [build(v, trusted) for v in recipe] if isinstance(recipe, (list, tuple)) else recipe


def resolve(name: str, trusted: bool = False) -> Any:
    """The class that a full dotted name stands for."""
    name = RENAMES.get(name, name) if isinstance(name, str) else str(name)
    parts = name.split(".")
    own = parts[0] == "medgen" and len(parts) >= 3 and (parts[1] in ROOMS or name.startswith(AUGMENT))
    if not trusted and name not in LIBRARY and not own:
        raise MedgenError(
            f"the recipe names '{name}', which a checkpoint may not build: only medgen's own model classes; do not trust this file"
        )
    module_name, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise MedgenError(f"no class '{name}': {_module_hint(module_name, attribute)}") from error
    if trusted:
        return found
    defined_here = isinstance(found, type) and (name in LIBRARY or found.__module__ == module_name)
    if not defined_here:
        raise MedgenError(f"the recipe names '{name}', which is not a class defined in {module_name}; do not trust this file")
    return found


def _module_hint(module_name: str, attribute: str) -> str:
    module = sys.modules.get(module_name)
    return nearest(attribute, [n for n in dir(module) if n[:1].isupper()]) if module else f"there is no module '{module_name}'"


def check_arguments(name: str, target: Any, values: Mapping[str, Any]) -> None:
    """The constructor's signature is the schema: unknown and missing arguments are named."""
    parameters = inspect.signature(target).parameters
    unknown = [k for k in values if k not in parameters]
    if unknown:
        raise MedgenError(f"{name} has no argument '{unknown[0]}'; {nearest(unknown[0], parameters)}")
    missing = [k for k, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and k not in values]
    if missing:
        raise MedgenError(f"{name} needs a value for '{missing[0]}'")
