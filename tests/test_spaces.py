"""Spaces made of others, and networks that a user brings."""

import pickle

import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.evaluation.spaces import asked
from medgen.metrics.feature import describe
from medgen.metrics.radiomics import radiomics
from medgen.metrics.space import Space
from medgen.metrics.spaces import brought, fixed, sliced


class Means(torch.nn.Module):
    """The mean of each of three channels, and the number of rows."""

    def forward(self, x):
        return torch.cat([x.mean((2, 3)), torch.full((x.shape[0], 1), float(x.shape[2]))], 1)


def test_a_script_file_is_a_space_named_after_its_bytes(tmp_path):
    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(str(path))
    space = brought(path, size=(12, 10), channels=3, mean=(0.1, 0.2, 0.3), std=0.5)
    name, _, digest = space.name.partition("@")
    assert name == "means" and len(digest) == 8 and space.dims == 2
    found = space.features(torch.full((40, 1, 24, 20), 0.5))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[39], torch.tensor([1.3, 1.1, 0.9, 12.0], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.jit.script(torch.nn.Sequential(Means())).save(str(path))
    assert brought(path).name != space.name


def test_a_pickle_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save(Trap(), tmp_path / "saved.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("saved.pt", "plain.pt"):
        with pytest.raises(MedgenError, match="a pickle is not opened"):
            brought(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(MedgenError, match="no such file"):
        brought(tmp_path / "none.pt")


def test_a_callable_needs_a_name_and_maps_are_averaged():
    with pytest.raises(MedgenError, match="give it a name"):
        brought(lambda x: x)
    maps = brought(lambda x: 2 * x, "double", mean=0.5, std=0.5)
    torch.testing.assert_close(maps.features(torch.full((2, 3, 8, 8), 0.25)), torch.full((2, 3), 0.5, dtype=torch.float64))
    with pytest.raises(MedgenError, match=r"it made \(\)"):
        brought(lambda x: x.mean(), "mean").features(torch.zeros(2, 1, 8, 8))
    with pytest.raises(MedgenError, match="takes 3 channels, the images have 2"):
        brought(lambda x: x, "x", channels=3).features(torch.zeros(1, 2, 8, 8))
    with pytest.raises(MedgenError, match="of 2 dimensions"):
        brought(lambda x: x, "x").features(torch.zeros(1, 1, 8, 8, 8))


def test_a_space_of_planes_sees_volumes_along_three_axes():
    middle = sliced(Space("means", 2, lambda x: x.flatten(1).double().mean(1, keepdim=True)), heights=(0.5,))
    assert (middle.name, middle.dims) == ("2.5D means", 3)
    volume = torch.zeros(2, 1, 5, 7, 9)
    volume[1, :, 2], volume[1, :, :, 3] = 1.0, 1.0
    found = middle.features(volume)
    assert found[0].tolist() == [0, 0, 0]
    assert found[1].tolist() == pytest.approx([1, 1, (7 + 5 - 1) / 35])
    assert sliced(radiomics()).standard and not sliced(fixed()).standard
    images = torch.rand(2, 1, 16, 16, 16)
    torch.testing.assert_close(sliced(fixed(), (0.5,)).features(images)[:, :84], describe(images[:, :, 8]))
    with pytest.raises(MedgenError, match="needs a space of planes"):
        sliced(middle)
    with pytest.raises(MedgenError, match="are of volumes"):
        middle.features(torch.zeros(1, 1, 8, 8))


def test_a_network_is_asked_for_in_one_word(tmp_path):
    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(str(path))
    space = asked(f"{path}:size=12,channels=3,mean=0.1x0.2x0.3,std=0.5", 2)
    torch.testing.assert_close(space.features(torch.full((1, 1, 24, 20), 0.5))[0], torch.tensor([1.3, 1.1, 0.9, 12.0], dtype=torch.float64))
    assert asked(str(path), 3).name == f"2.5D {asked(str(path), 2).name}"
    assert asked(f"{path}:dims=3", 3).name == asked(str(path), 2).name
    for said, words in ((f"{path}:sizes=3", "not 'sizes'"), (f"{path}:size=big", "takes numbers joined by x")):
        with pytest.raises(MedgenError, match=words):
            asked(said, 2)
