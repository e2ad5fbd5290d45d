"""A mask and maps of one's own with `--simulate`, masks that contradict the k-space, options without effect, and the record of a result."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_reconstruction import checkpoints, prior, regression  # noqa: F401 (a fixture)
from torch import nn

from medgen.cli.main import main
from medgen.core.errors import MedgenError, MedgenWarning
from medgen.core.fourier import fft
from medgen.core.volume import Volume
from medgen.data.readers import read
from medgen.inference import Acquisition
from medgen.models.gan import GAN
from medgen.operators.mri import MaskedFourier, coil_maps


def command(folder, model, *arguments):
    return ["reconstruct", str(folder / model), str(folder / "t1.nii.gz"), "--simulate", *map(str, arguments)]


def seen(volume, lines, maps=None):
    """The zero-filled image of each slice, written out: noise apart, what `_view` must hold."""
    rows = torch.from_numpy(np.moveaxis(volume.array[0], -1, 0))[:, None]
    maps = torch.ones(1, 1, 16, 16) if maps is None else maps
    k = fft(maps * rows, 2) * torch.from_numpy(lines)
    back = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(k, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
    image = (maps.conj() * back).sum(1) / maps.abs().square().sum(1)
    return np.moveaxis(image.real.numpy(), 0, -1)


@pytest.mark.parametrize("model", ["l1", "prior"])
def test_simulate_measures_with_the_mask_and_maps_it_is_given(checkpoints, model):  # noqa: F811
    lines = np.zeros(16)
    lines[[2, 6, 7, 8, 9, 13]] = 1
    maps = coil_maps(3, (16, 16))
    np.save(checkpoints / "mask.npy", lines)
    np.save(checkpoints / "maps.npy", maps.numpy())
    volume = read(checkpoints / "t1.nii.gz")
    few = ["--noise", "0.0001", *(["--draws", "1", "--solver-steps", "2"] if model == "prior" else [])]
    for name, extra, shown in (("a", [], None), ("b", ["--maps", checkpoints / "maps.npy"], maps[None])):
        out = checkpoints / f"{name}.nii.gz"
        main([*command(checkpoints, model, "--mask", checkpoints / "mask.npy", *extra, "-o", out), *few])
        np.testing.assert_allclose(read(checkpoints / f"{name}_view.nii.gz").array[0], seen(volume, lines, shown), atol=0.3)
        report = json.loads((checkpoints / f"{name}.json").read_text())
        assert report["measured_share"] == pytest.approx(6 / 16, abs=1e-4) and report["mask"].endswith("mask.npy")
        assert report["acceleration"] is None and (report["maps"] is None) == (name == "a")


def test_simulate_hides_what_a_mask_of_the_image_hides(checkpoints):  # noqa: F811
    known = np.ones((1, 16, 16, 3), np.float32)
    known[:, 4:9, 5:11] = 0
    volume = read(checkpoints / "t1.nii.gz")
    volume.with_array(known).save(checkpoints / "known.nii.gz")
    few = ["--draws", "1", "--solver-steps", "2", "--noise", "0.0001", "--operator", "inpaint"]
    main([*command(checkpoints, "prior", "--mask", checkpoints / "known.nii.gz", "-o", checkpoints / "x.nii.gz"), *few])
    shown = read(checkpoints / "x_view.nii.gz").array
    np.testing.assert_allclose(shown[known > 0], volume.array[known > 0], atol=0.3)
    assert json.loads((checkpoints / "x.json").read_text())["measured_share"] == pytest.approx(1 - 30 / 256, abs=1e-4)


def test_files_that_do_not_fit_and_options_without_effect_are_refused(checkpoints, capsys):  # noqa: F811
    np.save(checkpoints / "mask.npy", np.ones(15))
    np.save(checkpoints / "maps.npy", np.ones((2, 16, 15), complex))
    np.save(checkpoints / "k.npy", np.ones((16, 16), complex))
    image, k, missing = str(checkpoints / "t1.nii.gz"), str(checkpoints / "k.npy"), str(checkpoints / "none.npy")
    for arguments, said in (
        ([image, "--simulate", "--mask", missing], "none.npy: no such file"),
        ([image, "--simulate", "--maps", missing], "none.npy: no such file"),
        ([image, "--simulate", "--mask", str(checkpoints / "mask.npy")], "mask.npy: shape (15,); expected the lines (16,)"),
        ([image, "--simulate", "--maps", str(checkpoints / "maps.npy")], "do not fit images of (16, 16)"),
        ([image, "--simulate", "--mask", missing, "--acceleration", "8"], "--acceleration and --mask both choose the lines"),
        ([k, "--noise", "1", "--acceleration", "8"], "--acceleration chooses the lines that --simulate measures"),
        ([k, "--noise", "1", "--pattern", "random"], "--pattern chooses the lines that --simulate measures"),
        ([k, "--noise", "1", "--centre", "0.1"], "--centre chooses the lines that --simulate measures"),
        ([k, "--noise", "1", "--factors", "2", "2"], "--factors says nothing of the operator 'fourier', it is of downsample"),
        ([image, "--simulate", "--operator", "identity", "--maps", missing], "--maps says nothing of the operator 'identity'"),
        ([image, "--simulate", "--operator", "identity", "--centre", "0.2"], "--centre says nothing of the operator 'identity'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["reconstruct", str(checkpoints / "prior"), *arguments, "-o", str(checkpoints / "x.npy")])
        assert end.value.code == 2 and said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command(checkpoints, "l1", "--solver", "dps", "-o", checkpoints / "x.nii.gz")])
    assert "takes no solver, got 'dps'" in capsys.readouterr().err


def test_the_record_holds_what_it_takes_to_do_it_again(checkpoints):  # noqa: F811
    lines = ["--pattern", "random", "--acceleration", "2", "--centre", "0.2", "--slices", "1:3"]
    main([*command(checkpoints, "l1", "-o", checkpoints / "a.nii.gz", "--seed", "3"), *lines])
    report = json.loads((checkpoints / "a.json").read_text())
    assert report["simulated"] and report["slice_range"] == "1:3" and report["seed"] == 3
    again = [f"--{name}={report[name]}" for name in ("pattern", "acceleration", "centre")]
    main([*command(checkpoints, "l1", "-o", checkpoints / "b.nii.gz", "--seed", "3", "--slices", report["slice_range"]), *again])
    assert np.array_equal(read(checkpoints / "a.nii.gz").array, read(checkpoints / "b.nii.gz").array)
    main([*command(checkpoints, "l1", "-o", checkpoints / "c.nii.gz")])
    own = json.loads((checkpoints / "c.json").read_text())
    assert (own["pattern"], own["acceleration"], own["centre"]) == ("both", 4, 0.08), "the task's"


def measurement(mask, shifted=False):
    """Noisy lines of a smooth picture, and `mask` beside them."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 200, 16)
    picture = (ramp[:, None] + ramp.flip(0))[None, None] / 2
    true = torch.zeros(16)
    true[[1, 5, 7, 8, 9, 13]] = 1
    noise = torch.complex(*torch.randn(2, 1, 1, 16, 16))
    y = true * (fft(picture, 2) + noise)
    y = torch.fft.ifftshift(y, dim=(-2, -1)) if shifted else y
    return Acquisition(y, MaskedFourier(), {"mask": mask(true).expand(1, 1, 1, 16)}, 1.0, (16, 16))


@pytest.mark.parametrize("wrong", [lambda m: 1 - m, lambda m: m.roll(1), torch.ones_like])
def test_a_mask_that_contradicts_the_kspace_is_refused(wrong):
    acquired = measurement(wrong)
    with pytest.raises(MedgenError, match="of what the mask calls sampled is exactly 0"):
        regression().reconstruct(acquired)


def test_a_mask_that_fits_is_taken_in_silence_and_half_of_it_with_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regression().reconstruct(measurement(lambda m: m))

    def without_one(mask):
        mask = mask.clone()
        mask[13] = 0
        return mask

    with pytest.warns(MedgenWarning, match="17% of the k-space lies outside the mask"):
        regression().reconstruct(measurement(without_one))


def test_energy_at_the_corner_hints_at_the_convention(checkpoints, capsys):  # noqa: F811
    acquired = measurement(lambda m: torch.fft.ifftshift(m), shifted=True)
    with pytest.warns(MedgenWarning, match=r"along axis 0 .* index 0 and not around 8"):
        regression().reconstruct(acquired)
    np.save(checkpoints / "k.npy", acquired.y[0, 0].numpy())
    main(["reconstruct", str(checkpoints / "l1"), str(checkpoints / "k.npy"), "--noise", "1", "-o", str(checkpoints / "x.npy")])
    said = capsys.readouterr().err
    assert "warning: along axis 1 the energy of k-space lies around index" in said and ".py" not in said


def test_a_residual_far_below_the_noise_is_told(checkpoints, capsys):  # noqa: F811
    acquired = measurement(lambda m: m)
    np.save(checkpoints / "k.npy", acquired.y[0, 0].numpy())
    for noise, told in (("20", True), ("1", False)):
        main(
            ["reconstruct", str(checkpoints / "l1"), str(checkpoints / "k.npy"), "--noise", noise, "-o", str(checkpoints / f"{noise}.npy")]
        )
        assert ("explains more of the measurement than its noise allows" in capsys.readouterr().err) == told


def test_what_cannot_reconstruct_is_not_measured_for_it():
    image = Volume(np.ones((1, 8, 8), np.float32), None)
    gan = replace(prior(), model=GAN(nn.Identity(), nn.Identity(), None, latent=4))
    with pytest.raises(MedgenError, match="a GAN cannot"):
        gan.simulate(image)
    conditional = prior()
    conditional.task.attributes["label"] = 2
    with pytest.raises(MedgenError, match="from label; reconstruction takes a prior without condition"):
        conditional.simulate(image)


def test_python_refuses_a_solver_for_a_model_that_answers_by_itself():
    with pytest.raises(MedgenError, match="takes no solver, got 'nonsense'"):
        regression().reconstruct(measurement(lambda m: m), solver="nonsense")


def test_simulated_noise_is_in_the_contrast_of_the_file_as_training_and_evaluation_take_it():
    """On the coarser grid of the model the percentile of these voxels is another one."""
    plain = prior((8, 8), orientation="RAS", spacing=(2.0, 2.0, 2.0), slice_axis=2)
    contract = replace(plain.contract, intensity={"t1": {"name": "mr_percentile", "percentile": 99.0, "typical": {"low": 0, "high": 1}}})
    model = replace(plain, contract=contract)
    image = np.random.default_rng(0).exponential(100, (1, 16, 16, 4)).astype(np.float32)
    volume = Volume(image, np.diag([1.0, 1.0, 2.0, 1.0]))
    high = contract.map_of("t1").fit(image)["high"]
    assert abs(contract.map_of("t1").fit(model.regridded(volume).array)["high"] / high - 1) > 0.2
    assert model.simulate(volume, noise=0.02).noise == pytest.approx(0.01 * high, rel=1e-5)
