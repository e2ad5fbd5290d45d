"""What the wheel holds, and that the packaging files agree with each other and with the code."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import medgen

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    """Names of requirement lines, in the spelling that package indexes compare."""
    return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in requirements if line and not line.startswith("#")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_ships_every_config_and_every_module(wheel):
    held = set(wheel.namelist())
    configs = {f"medgen/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.yaml")}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "medgen").rglob("*.py")}
    assert configs
    assert not (configs | modules) - held
    assert not [n for n in held if n.startswith(("tests/", "configs/", "zoo/"))]
    assert {f"medgen/pretrained/encoder_{d}d/{file}" for d in (2, 3) for file in ("model.safetensors", "encoder.json", "card.md")} <= held


def test_the_wheel_installs_the_command_and_the_licence(wheel):
    text = {n.split("/", 1)[1]: wheel.read(n).decode() for n in wheel.namelist() if ".dist-info/" in n}
    assert "medgen = medgen.cli.main:main" in text["entry_points.txt"]
    assert "Apache License" in text["licenses/LICENSE"]


def test_versions_agree():
    assert PROJECT["version"] == medgen.__version__
    assert f"version: {medgen.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_dependency_has_a_tested_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in lines), "exact public versions only"
    extras = {name: parts for name, parts in PROJECT["optional-dependencies"].items() if name != "peers"}
    wanted = names(PROJECT["dependencies"] + [part for parts in extras.values() for part in parts])
    assert wanted - {"medgen"} <= names(lines)


def test_what_pins_torch_stays_out_of_the_core():
    assert not names(PROJECT["dependencies"]) & {"torchvision", "lpips", "deepinv", "scipy"}


def test_the_installed_wheel_trains_outside_the_checkout(wheel, tmp_path):
    """The wheel's files alone, in a folder that has nothing of the checkout."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    wheel.extractall(site)
    tiny = [
        "data.source.size=[16,16]",
        "data.source.subjects={train: 2, validation: 1, test: 1}",
        "data.workers=0",
        "network.channels=[4,8]",
    ]
    steps = ["task=translation", "model=regression", "training.steps=2", "training.validate_every=2", "training.accelerator=cpu", "run=out"]
    script = f"import medgen; assert medgen.__file__.startswith({str(site)!r}), medgen.__file__; from medgen.cli.main import main; main()"
    command = [sys.executable, "-P", "-c", script, "train", *tiny, *steps]
    done = subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"run: {work / 'out'}"
    assert (work / "out" / "checkpoints" / "last" / "model.safetensors").is_file()
