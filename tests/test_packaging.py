"""What the wheel holds, and that the packaging files agree with each other and with the code."""

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
    assert not [n for n in held if n.startswith(("tests/", "configs/"))]


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
    wanted = names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"] + PROJECT["optional-dependencies"]["notebooks"])
    assert wanted <= names(lines)


def test_what_pins_torch_stays_out_of_the_core():
    assert not names(PROJECT["dependencies"]) & {"torchvision", "lpips", "deepinv", "scipy"}
