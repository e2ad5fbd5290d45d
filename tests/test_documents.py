"""What the documents say is true: notebooks and README run as written, links lead somewhere, named choices exist."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import medgen
from medgen.checkpoint import build, save
from medgen.cli.configs import compose, groups
from medgen.cli.init_from import expanded
from medgen.cli.run import contract_of
from medgen.core.levels import Karras
from medgen.core.random import Rng
from medgen.data.phantom.export import write_phantoms
from medgen.samplers.euler import Euler

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TWICE = ("reconstruct_with_uncertainty", "finetune_with_lora")  # the folders that they write are there at the second time
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHELL = re.findall(r"(?:<!-- (not run): [^>]+ -->\n)?```bash\n(.*?)```", README, re.S)


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


def checkpoint(folder: Path, overrides: list[str]) -> None:
    """An untrained model as a run leaves it."""
    config = OmegaConf.to_container(compose(overrides), resolve=True)
    data, task, model = (build(config[part], trusted=True) for part in ("data", "task", "model"))
    recipe = {"model": config["model"], "task": config["task"]}
    save(folder / "checkpoints" / "best", model.state_dict(), recipe, contract_of(task, data.facts()))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with what README's examples mention: two runs, a manifest, a T1 volume and train.py."""
    folder = tmp_path_factory.mktemp("workplace")
    manifest = write_phantoms(folder / "heads", subjects=3, shape=(24, 26, 24))
    small = ["data.workers=0", "network.channels=[8,8]", "network.blocks=1"]
    checkpoint(folder / "demo" / "run", ["experiment=demo", "data.source.size=[16,16]", "sampler.steps=3", *small])
    files = [f"data.source.manifest={manifest}", "data.source.spacing=[9,9,9]", "data.source.size=[24,24]"]
    checkpoint(folder / "runs" / "t1_to_t2", ["experiment=t1_to_t2_regression", *files, *small])
    shutil.copyfile(folder / "heads" / "sub-02" / "t1.nii.gz", folder / "t1.nii.gz")
    shutil.copyfile(ROOT / "train.py", folder / "train.py")
    return folder


@pytest.fixture(scope="module")
def said_in_python(workplace) -> dict:
    """The names that README's Python leaves behind, executed from top to bottom in one session."""
    before = Path.cwd()
    os.chdir(workplace)
    names: dict = {"__name__": "readme"}
    try:
        for block in python_blocks(README):
            exec(compile(block, "README.md", "exec"), names)
    finally:
        os.chdir(before)
    return names


def test_the_six_lines_give_a_loss_gradients_and_images(said_in_python):
    assert 0.3 < float(said_in_python["loss"].total.detach()) < 3
    assert said_in_python["images"].shape == (4, 1, 32, 32)
    assert torch.isfinite(said_in_python["images"]).all()


def test_the_training_loop_of_readme_runs_its_steps(said_in_python):
    assert said_in_python["fit"].step == 8


def test_the_network_of_another_library_in_readme_is_walked(said_in_python):
    made = said_in_python["odd"]
    assert made.shape == (1, 1, 31, 29) and torch.isfinite(made).all() and float(made.std()) > 0.1
    weights = said_in_python["original"].state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in said_in_python["adapter"].network.state_dict().items())


def test_the_volumes_of_readme_are_on_disk_with_their_geometry(said_in_python, workplace):
    given, made = medgen.data.readers.read(workplace / "t1.nii.gz"), said_in_python["t2"]
    assert (workplace / "out" / "t2.nii.gz").is_file() and (workplace / "out" / "sample.nii.gz").is_file()
    assert made.shape == given.shape and np.allclose(made.affine, given.affine)
    assert len(said_in_python["volumes"]) == 4


def test_the_sampler_that_readme_adds_is_of_second_order_or_better(said_in_python):
    """Data N(0, 1/4) has the denoiser x s^2 / (s^2 + sigma^2), and the flow scales noise to s / sqrt(s^2 + sigma_max^2)."""
    grid, rng = Karras(0.02, 10.0, 7.0), Rng(0, samples=range(4))

    def error(kind: type, steps: int) -> float:
        made = kind(grid, steps)(lambda x, level: x * 0.25 / (0.25 + level.sigma**2), (4, 64), rng.to("cpu"))
        exact = rng.to("cpu").normal((4, 64)) * 10.0 * 0.5 / (0.25 + 10.0**2) ** 0.5
        return float((made - exact).abs().max())

    midpoint = said_in_python["Midpoint"]
    assert error(midpoint, 32) < 1e-3 < error(Euler, 32)
    assert error(midpoint, 16) / error(midpoint, 32) > 3.5


def test_readme_shell_runs_as_written(workplace):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("MEDGEN_ZOO", None)
    blocks = [block for skipped, block in SHELL if not skipped]
    assert len(blocks) >= 2
    for block in blocks:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=workplace, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, block + done.stdout + done.stderr
    made = ["samples/sample_003.png", "t2.nii.gz", "evaluation/evaluation.json", "zoo/my_brains/contract.json"]
    assert not [name for name in made if not (workplace / name).is_file()]


def training_commands() -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for _, block in SHELL for line in block.splitlines()]
    return [words[2:] for words in lines if words[:2] == ["python", "train.py"]]


@pytest.mark.parametrize("words", training_commands(), ids=" ".join)
def test_every_training_command_of_readme_composes(words):
    overrides = [w for w in words if not w.startswith(("-", "resume=")) and w != "job"]
    first_of_sweep = [re.sub(r"^(\w+=[^,\[{]*),.*", r"\1", w) if "--multirun" in words else w for w in overrides]
    compose(expanded(first_of_sweep))


@pytest.mark.parametrize("words", [w for w in training_commands() if any("heads/manifest.csv" in word for word in w)], ids=" ".join)
def test_the_commands_of_readme_fit_the_files_that_it_draws(workplace, monkeypatch, words):
    """`write_phantoms("heads")` has the channels, label maps and attributes that these commands name."""
    monkeypatch.chdir(workplace)
    config = OmegaConf.to_container(compose(expanded([*words, "data.workers=0"])), resolve=True)
    data, task = (build(config[part], trusted=True) for part in ("data", "task"))
    contract = contract_of(task, data.facts())
    assert set(contract.labels) == set(task.labels)
    assert set(next(iter(data.train_dataloader()))) >= {*task.target, *task.source, *task.labels}


def test_the_command_line_is_covered():
    assert len(training_commands()) >= 8
    assert sum("make" in block for _, block in SHELL) >= 1


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda p: p.name)
def test_every_choice_that_is_named_exists(path):
    known = groups()
    named = re.findall(rf"(?<![\w.])({'|'.join(known)})=([a-z]\w*)", path.read_text())
    invented = {("sampler", "midpoint")}  # README's worked example
    missing = [f"{group}={name}" for group, name in named if name not in {*known[group], "null"} and (group, name) not in invented]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_relative_link_leads_to_a_file(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_file_that_readme_names_exists():
    text = re.sub(r"```.*?```", "", README, flags=re.S)
    named = re.findall(r"`((?:medgen|configs|tests|benchmarks|docs|core|zoo)/[\w./-]+)`", text)
    assert len(named) >= 8
    assert not [n for n in named if not (ROOT / n).exists() and not (ROOT / "medgen" / n).exists() and "midpoint" not in n]


@pytest.fixture
def zoo_table(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MEDGEN_ZOO", raising=False)
    spec = importlib.util.spec_from_file_location("zoo_table", ROOT / "benchmarks" / "zoo_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_zoo_table_in_readme_is_the_generated_one(zoo_table):
    assert README.count(zoo_table.BEGIN) == README.count(zoo_table.END) == 1
    assert zoo_table.with_table(README) == README, "run: python benchmarks/zoo_table.py --write"


def test_the_zoo_table_has_a_line_for_every_model(zoo_table, workplace, tmp_path, monkeypatch):
    shutil.copytree(workplace / "demo" / "run" / "checkpoints" / "best", tmp_path / "tiny_brains")
    monkeypatch.setenv("MEDGEN_ZOO", str(tmp_path))
    lines = [line for line in zoo_table.table().splitlines() if "tiny_brains" in line]
    assert len(lines) == 1
    assert "| Diffusion | t1 | 16 × 16 | medgen brain phantom | Apache-2.0 |" in lines[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_from_an_empty_folder_and_again(path, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the notebooks need the extra 'notebooks'")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MEDGEN_ZOO", raising=False)
    for _ in range(2 if path.stem in TWICE else 1):
        notebook = nbformat.read(path, as_version=4)
        nbclient.NotebookClient(notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = sum("image/png" in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", []))
    assert pictures >= 2
    assert [path for ending in ("*.nii.gz", "*.dcm") for path in (tmp_path / "out").rglob(ending)]
    assert {p.name for p in tmp_path.iterdir()} <= {"out", "runs", ".medgen"}, (
        "what a notebook writes lies in folders that README's do not share"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_without_outputs(path):
    nbformat = pytest.importorskip("nbformat")
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert cells and not [c for c in cells if c.outputs or c.execution_count]


def test_the_notebooks_are_there():
    assert {p.stem for p in NOTEBOOKS} >= {"first_steps", "translate_your_nifti", "finetune_with_lora", "dicom_and_slides"}


def test_the_picture_is_small():
    assert (ROOT / "docs" / "pictures" / "overview.png").stat().st_size < 300_000
