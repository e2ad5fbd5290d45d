"""The import law, read from the syntax trees, and what `import medgen` may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASSEMBLERS = {"checkpoint", "inference", "evaluation", "cli", "__init__", "__main__"}
HEAVY = ("torch", "monai", "diffusers", "lightning", "wandb", "scipy", "nibabel", "hydra")


def rooms_reached(tree: ast.AST, module: str, is_package: bool) -> set[tuple[int, str]]:
    """(line, room) for every import of a medgen room in the source of `module` (dotted)."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    reached = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            head = ".".join(base + [node.module] * bool(node.module))
            names = [f"{head}.{a.name}" for a in node.names]
        else:
            continue
        reached |= {(node.lineno, n.split(".")[1]) for n in names if n.startswith("medgen.")}
    return reached


def breaks_of(tree: ast.AST, module: str, is_package: bool = False) -> list[str]:
    room = module.split(".")[1] if "." in module else "__init__"
    if room in ASSEMBLERS:
        return []
    return [
        f"{module}:{line} imports medgen.{to}" for line, to in sorted(rooms_reached(tree, module, is_package)) if to not in {room, "core"}
    ]


def test_every_room_imports_only_core_and_itself():
    breaks = []
    for path in sorted((ROOT / "medgen").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        breaks += breaks_of(ast.parse(path.read_text()), ".".join(parts[:-1] if is_package else parts), is_package)
    assert not breaks, "\n".join(breaks)


@pytest.mark.parametrize(
    ("source", "module", "is_package", "broken"),
    [
        ("import medgen.nn.unet", "medgen.models.diffusion", False, True),
        ("from medgen import nn", "medgen.models.diffusion", False, True),
        ("from ..nn import unet", "medgen.models.diffusion", False, True),
        ("from .. import nn", "medgen.models.diffusion", False, True),
        ("from ..nn import unet", "medgen.models", True, True),
        ("from . import gan", "medgen.models", True, False),
        ("def f():\n    from medgen.data import phantom", "medgen.nn.unet", False, True),
        ("from medgen.core.errors import MedgenError", "medgen.nn.unet", False, False),
        ("from .blocks import Block\nimport torch", "medgen.nn.unet", False, False),
        ("from medgen.nn import unet", "medgen.cli.train", False, False),
    ],
)
def test_the_law_sees_every_kind_of_import(source, module, is_package, broken):
    assert bool(breaks_of(ast.parse(source), module, is_package)) == broken


def test_import_medgen_is_light():
    code = f"import sys, medgen; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_core_needs_no_library_of_a_room():
    heavy = tuple(m for m in HEAVY if m != "torch")
    modules = [f"medgen.core.{p.stem}" for p in (ROOT / "medgen" / "core").glob("*.py") if p.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
