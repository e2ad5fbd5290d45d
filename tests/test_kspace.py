"""k-space files: exact transforms, fastMRI's layout, masks, and from a file to a reconstruction."""

import h5py
import numpy as np
import pytest
import torch
from special_samples import HEADER, head, transformed, write_h5, write_kspace

from medgen.core.errors import MedgenError
from medgen.core.fourier import fft
from medgen.data.formats.kspace import image_of, image_shape, read_kspace, without_oversampling
from medgen.data.readers import peek, read_stored
from medgen.operators.mri import calibrated_maps, coil_maps

LINES = (np.arange(24) % 3 == 0) | (abs(np.arange(24) - 12) < 4)


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_a_point_is_a_wave_with_the_origin_in_the_middle(size):
    """image[h, w] = exp(2 pi i (k (h - H // 2) / H)) / sqrt(H W) for k-space that is 1 at H // 2 + k."""
    h, w = size
    kspace = np.zeros((1, 2, h, w), np.complex64)
    kspace[0, 0, h // 2, w // 2] = 3
    kspace[0, 1, h // 2 + 1, w // 2] = 4
    np.testing.assert_allclose(image_of(kspace), np.full((1, 1, h, w), 5 / np.sqrt(h * w)), rtol=1e-5)
    both = kspace.sum(1)[0]
    y = np.arange(h)[:, None] - h // 2
    np.testing.assert_allclose(image_of(both)[0], abs(3 + 4 * np.exp(2j * np.pi * y / h)) * np.ones((1, w)) / np.sqrt(h * w), rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 6), (3, 7, 9), (2, 3, 8, 5)])
def test_the_image_of_medgens_own_transform(shape):
    image = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    kspace = fft(torch.from_numpy(image), 2).numpy()
    coils = len(shape) > 2
    expected = np.sqrt((image**2).sum(-3)) if coils else image
    found = image_of(kspace)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32 and found.shape == (1, *image_shape(shape))


@pytest.mark.parametrize("coils", [None, 3])
def test_fastmri(tmp_path, coils):
    """What is computed and cropped is the reconstruction that is stored."""
    path = tmp_path / "f.h5"
    stored = write_h5(path, slices=3, coils=coils)
    kspace = read_kspace(path)
    assert kspace.shape == (3, coils or 1, 32, 24)
    np.testing.assert_array_equal(kspace.array, stored.reshape(kspace.shape))
    np.testing.assert_array_equal(kspace.rows(1, 2)[0], kspace.array[1])
    assert kspace.header["recon_size"] == (16, 20) and kspace.header["spacing_mm"] == (4.5, 2.0, 2.0)
    assert kspace.header["encoded_fov_mm"] == (64.0, 48.0, 5.0) and kspace.header["acquisition"] == "AXT1"
    truth = np.stack([head()[8:24, 2:22] * (1 + i) for i in range(3)])
    np.testing.assert_allclose(kspace.target.array[0], truth, rtol=1e-5)
    np.testing.assert_allclose(kspace.image(), truth, rtol=1e-4, atol=1e-5)
    for part, expected in (("", truth), ("#rss", truth), ("#slice=2", truth[2]), ("#rss&slice=2", truth[2])):
        volume, said = read_stored(f"{path}{part}"), peek(f"{path}{part}")
        np.testing.assert_allclose(volume.array[0], expected, rtol=1e-4, atol=1e-5)
        assert volume.shape == said.shape and volume.affine is None and volume.meta["spacing_mm"] == (4.5, 2.0, 2.0)
    assert read_stored(path).meta["image"] == ("reconstruction_rss" if coils else "reconstruction_esc")


def test_a_narrow_image_is_cropped_to_a_square(tmp_path):
    """fastMRI's rule for images that are narrower than their reconstruction."""
    write_h5(tmp_path / "f.h5", recon=(28, 28), size=(32, 28))
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = HEADER.format(32, 28, 64.0, 56.0, 30, 30, 60.0, 60.0)
    assert read_kspace(tmp_path / "f.h5").image_size == (28, 28)
    np.testing.assert_allclose(read_stored(f"{tmp_path}/f.h5#rss&slice=0").array[0], head(32, 28)[2:30], rtol=1e-4, atol=1e-5)


def test_masks(tmp_path):
    path = tmp_path / "f.h5"
    write_h5(path, mask=LINES.astype(np.float32))
    np.testing.assert_array_equal(read_kspace(path).mask, LINES)
    with h5py.File(path, "r+") as file:
        del file["mask"]
    np.testing.assert_array_equal(read_kspace(path).mask, LINES)
    write_h5(path)
    assert read_kspace(path).mask.shape == (24,) and read_kspace(path).mask.all()
    grid = np.random.default_rng(0).uniform(size=(32, 24)) < 0.5
    np.save(tmp_path / "k.npy", (write_kspace(tmp_path / "k.npy") + 1).astype(np.complex64) * grid)
    np.testing.assert_array_equal(read_kspace(tmp_path / "k.npy").mask, grid)
    each = np.stack([np.roll(LINES, n) for n in range(2)])
    np.save(tmp_path / "k.npy", np.ones((2, 3, 32, 24), np.complex64) * each[:, None, None])
    np.testing.assert_array_equal(read_kspace(tmp_path / "k.npy").mask, np.broadcast_to(each[:, None], (2, 32, 24)))


def test_arrays(tmp_path):
    stored = write_kspace(tmp_path / "k.npy", coils=4)
    kspace = read_kspace(tmp_path / "k.npy")
    assert kspace.shape == (1, 4, 32, 24) and kspace.target is None and kspace.mask.sum() == 16
    np.testing.assert_array_equal(kspace.array[0], stored)
    np.testing.assert_allclose(kspace.image(), image_of(stored))
    np.save(tmp_path / "k.npy", np.stack([stored, 2 * stored]))
    np.testing.assert_array_equal(read_kspace(tmp_path / "k.npy", "slice=1").array[0], 2 * stored)


def test_slices_are_read_alone(tmp_path, monkeypatch):
    path = tmp_path / "f.h5"
    write_h5(path, slices=4)
    monkeypatch.setenv("MEDGEN_READ_LIMIT", str(2 * 32 * 24 * 8))
    kspace = read_kspace(path)
    assert kspace.rows(2, 3).shape == (1, 2, 32, 24) and kspace.image().shape == (4, 16, 20) and kspace.mask.all()
    with pytest.raises(MedgenError, match=r"f\.h5: its header claims"):
        _ = kspace.array


def test_the_readout_without_its_oversampling():
    """The middle rows of the image stay, lines that were not measured stay so, and noise keeps its spread."""
    image = head(32, 24)
    found = without_oversampling(transformed(image) * LINES, 16)
    np.testing.assert_array_equal((found != 0).all(-2), LINES)
    middle = transformed(image[8:24]) * LINES
    np.testing.assert_allclose(found, middle, atol=1e-5)
    rng = np.random.default_rng(0)
    noise = (rng.normal(size=(128, 512)) + 1j * rng.normal(size=(128, 512))).astype(np.complex64)
    assert without_oversampling(noise, 64).real.std() == pytest.approx(1, abs=0.02)


def test_maps_from_the_centre_of_kspace():
    """Smooth sensitivities behind a smooth image come back, with the image's phase."""
    size = (64, 48)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    image = torch.exp(-2 * (x**2 + y**2))
    true = coil_maps(4, size) * torch.polar(torch.ones(size), 0.7 + 0.4 * x)
    mask = torch.zeros(1, 1, *size)
    mask[..., ::4] = 1
    mask[..., 12:36] = 1
    kspace = fft(true[None] * image, 2) * mask
    maps = calibrated_maps(kspace, mask)[0]
    inside = image > 0.3
    assert float((maps - true).abs()[:, inside].max()) < 0.05
    one = calibrated_maps(kspace[:, :1], mask)[0]
    np.testing.assert_allclose(one.abs()[:, inside].numpy(), 1, atol=1e-4)
    with pytest.raises(MedgenError, match="centre of k-space is not fully sampled"):
        calibrated_maps(kspace, torch.roll(mask, 30, -1) * (torch.arange(48) % 4 == 0))


BOMB = '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><l>&b;</l>'


def test_what_is_refused(tmp_path):
    path = tmp_path / "f.h5"
    write_h5(path)

    def changed(name, value):
        write_h5(path)
        with h5py.File(path, "r+") as file:
            del file[name]
            if value is not None:
                file[name] = value
        return path

    for name, value, said in (
        ("ismrmrd_header", BOMB, "declares entities"),
        ("ismrmrd_header", "<a>" * 400_000, "too long"),
        ("ismrmrd_header", "<a><b></a>", "header is damaged"),
        ("kspace", None, "expected fastMRI's 'kspace'"),
        ("kspace", np.ones((3, 2, 32, 24), np.float32), "expected complex numbers"),
        ("kspace", np.ones((0, 2, 32, 24), np.complex64), "expected complex numbers"),
        ("kspace", h5py.ExternalLink("/etc/passwd", "x"), "is not an array in this file"),
        ("kspace", h5py.SoftLink("/reconstruction_rss"), "is not an array in this file"),
        ("reconstruction_rss", np.ones((2, 16, 20), np.float32), "for 3 slices"),
    ):
        with pytest.raises(MedgenError, match=said) as caught:
            read_stored(changed(name, value))
        assert str(path) in str(caught.value)
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (3, 8, 8), np.complex64, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
    with pytest.raises(MedgenError, match="is not an array in this file"):
        read_kspace(path)
    write_h5(path, mask=LINES)
    with h5py.File(path, "r+") as file:
        del file["mask"]
        file["mask"] = np.ones(7)
    with pytest.raises(MedgenError, match=r"mask has shape \(7,\); expected the lines \(24,\)"):
        _ = read_kspace(path).mask
    for part, said in (
        ("slice=3", "no slice 3"),
        ("rss&reconstruction_rss", "take one"),
        ("reconstruction_esc", "holds no"),
        ("sl=1", "no part 'sl'"),
    ):
        with pytest.raises(MedgenError, match=said):
            read_stored(f"{path}#{part}")
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(MedgenError, match=r"o\.npy: damaged or truncated k-space"):
        read_kspace(tmp_path / "o.npy")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(MedgenError, match=r"f\.h5: damaged or truncated"):
        read_stored(path)


def test_a_huge_claim_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """10^12 numbers in a file of a few kilobytes: by the image that they would show, and by one slice alone."""
    monkeypatch.setenv("MEDGEN_READ_LIMIT", str(10**8))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("kspace", (1000, 1000, 1000, 1000), np.complex64, chunks=(1, 1, 10, 10))
    kspace = read_kspace(tmp_path / "f.h5")
    for attempt in (lambda: read_stored(tmp_path / "f.h5"), lambda: kspace.array, lambda: kspace.rows(0, 1), lambda: kspace.mask):
        with pytest.raises(MedgenError, match="its header claims"):
            attempt()


@pytest.mark.shared_data
def test_the_real_brain(shared_data):
    kspace = read_kspace(shared_data / "brain_kspace" / "cartesian_ksp.npy")
    assert kspace.shape == (1, 8, 230, 180) and kspace.mask.shape == (230, 180)
    assert float(kspace.mask.mean()) == pytest.approx(0.124, abs=1e-3)
    image = kspace.image()[0]
    assert image[60:170, 45:135].mean() > 5 * image[:20, :20].mean(), "a head in the middle, air in the corner"


def test_a_complex_array_says_what_is_shown_of_it(tmp_path):
    write_kspace(tmp_path / "k.npy", coils=2)
    assert peek(tmp_path / "k.npy").meta["image"] == read_stored(tmp_path / "k.npy").meta["image"] == "rss"
    assert "taken as k-space" in read_stored(tmp_path / "k.npy").meta["findings"][0]
