"""From measurements to images in stored units: closed forms, geometry, the command, what is refused."""

import json
import math
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from special_samples import HEADER, transformed
from torch import nn

from medgen.checkpoint import build, save
from medgen.cli.main import main
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.core.levels import Karras
from medgen.core.operator import State
from medgen.core.volume import Volume
from medgen.data.readers import read
from medgen.inference import Acquisition, Pretrained, golden, load
from medgen.inference.reconstruction import scaled
from medgen.metrics.monitor import PSNR
from medgen.models.gan import GAN
from medgen.models.regression import Regression
from medgen.operators.downsample import Downsample
from medgen.operators.identity import Identity
from medgen.operators.inpaint import Inpaint
from medgen.operators.mri import MaskedFourier, calibrated_maps
from medgen.operators.sampling import Complete, Lines
from medgen.samplers.heun import Heun
from medgen.tasks.reconstruction import Reconstruction
from medgen.tasks.synthesis import Synthesis

EIGHT_BIT = {"name": "unit_range", "low": 0.0, "high": 255.0, "typical": {"low": 0.0, "high": 255.0}}
MEAN, STD = 0.2, 0.3  # of the prior, in network units
UNIT = 255 / 2  # stored units per network unit


class White(nn.Module):
    """A prior of independent voxels N(MEAN, STD^2), by its analytic denoiser."""

    def __init__(self):
        super().__init__()
        self.sampler = Heun(Karras(), 60)

    def denoise(self, x_t, alpha, sigma, condition):
        return MEAN + alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * (x_t - alpha * MEAN)


def prior(size=(8, 8), **place) -> Pretrained:
    contract = Contract(len(size), size, ("t1",), intensity={"t1": EIGHT_BIT}, **place)
    return Pretrained(White(), Synthesis(("t1",), PSNR(2.0)), contract)


def picture(size=(8, 8)) -> Volume:
    return Volume(np.random.default_rng(0).uniform(0, 255, (1, *size)).astype(np.float32))


def test_the_posterior_of_a_white_prior_in_stored_units():
    """Identity with noise s: mean (STD^2 y + s^2 MEAN) / (STD^2 + s^2), spread STD s / sqrt(STD^2 + s^2)."""
    model, s = prior(), 0.15
    acquired = model.simulate(picture(), Identity(), Complete(), noise=s, seed=1)
    made = model.reconstruct(acquired, options={"sampler": "dpmpp"}, draws=300)
    y = acquired.y.numpy()[0] / UNIT - 1
    expected = (STD**2 * y + s**2 * MEAN) / (STD**2 + s**2)
    spread = STD * s / math.hypot(STD, s)
    np.testing.assert_allclose(made.image.array / UNIT - 1, expected, atol=4 * spread / math.sqrt(300))
    assert float(made.std.array.mean() / UNIT) == pytest.approx(spread, rel=0.03)
    assert made.image.units == "stored" and made.samples.shape == (300, 1, 1, 8, 8)


def test_a_hole_is_filled_by_the_prior_and_what_is_known_stays():
    model, image = prior(), picture()
    mask = torch.ones(1, 1, 8, 8)
    mask[..., 2:5, 2:5] = 0
    acquired = Acquisition(torch.from_numpy(image.array)[None] * mask, Inpaint(), {"mask": mask}, 0.01 * UNIT, (8, 8))
    made = model.reconstruct(acquired, options={"sampler": "dpmpp"}, draws=200)
    known, hole = mask[0, 0].bool().numpy(), ~mask[0, 0].bool().numpy()
    assert np.abs(made.image.array[0] - image.array[0])[known].max() < 0.05 * UNIT
    assert float(made.image.array[0][hole].mean() / UNIT - 1) == pytest.approx(MEAN, abs=0.03)
    assert float(made.std.array[0][hole].mean() / UNIT) == pytest.approx(STD, rel=0.05)


def test_the_default_walk_narrows_a_gaussian_by_a_tenth():
    """What configs/solver/mmps.yaml says of itself."""
    model = prior()
    nothing = Acquisition(torch.zeros(1, 1, 8, 8), Identity(), {}, 1e6, (8, 8))
    spread = float(model.reconstruct(nothing, draws=200).std.array.mean() / UNIT)
    assert 0.85 < spread / STD < 0.95


def test_complete_kspace_gives_the_image_back_whatever_its_units():
    model, image = prior(), picture()
    acquired = model.simulate(image, MaskedFourier(), Full(), noise=1e-3)
    made = model.reconstruct(acquired, draws=2)
    np.testing.assert_allclose(made.image.array, image.array, atol=0.01 * UNIT)
    np.testing.assert_allclose(made.view.array, image.array, atol=0.01 * UNIT)
    assert made.residual < 1.1


class Full(Lines):
    """All of k-space."""

    def draw(self, shape: tuple[int, ...], rng) -> State:
        return {"mask": torch.ones(shape[0], 1, *shape[2:])}


def test_draws_do_not_depend_on_how_many_there_are():
    model = prior()
    acquired = model.simulate(picture())
    few, many = (model.reconstruct(acquired, draws=n).samples for n in (2, 5))
    np.testing.assert_allclose(few, many[:2], rtol=1e-5, atol=1e-3)


def test_slices_of_a_volume_stay_at_their_place():
    model = prior((6, 4), orientation="RAS", spacing=(2.0, 2.0, 3.0), slice_axis=2)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = [-5, 7, 11]
    volume = Volume(np.random.default_rng(0).uniform(0, 255, (1, 6, 4, 5)).astype(np.float32), affine)
    acquired = model.simulate(volume, Identity(), Complete(), noise=1e-3)
    made = model.reconstruct(acquired, draws=1)
    np.testing.assert_allclose(made.image.array, volume.array, atol=1.0)
    np.testing.assert_allclose(made.image.affine, affine)
    part = model.reconstruct(acquired[2:4], draws=1).image
    np.testing.assert_allclose(part.array, volume.array[..., 2:4], atol=1.0)
    np.testing.assert_allclose(part.affine[:3, 3], [-5, 7, 11 + 2 * 3])


class Echo(nn.Module):
    """Gives what it is shown back, off by a constant."""

    def __init__(self, offset: float):
        super().__init__()
        self.offset = offset

    def forward(self, x, t, condition):
        return condition.dense[:, :1] + self.offset


def regression(offset=0.1, operator=None, sampling=None) -> Pretrained:
    task = Reconstruction(("t1",), PSNR(2.0), operator or MaskedFourier(), sampling or Lines(), 0.02)
    return Pretrained(Regression(Echo(offset)), task, Contract(2, (16, 16), ("t1",), intensity={"t1": EIGHT_BIT}))


def test_a_trained_model_is_made_consistent_unless_told_otherwise():
    model = regression()
    acquired = model.simulate(picture((16, 16)))
    plain = model.reconstruct(acquired, options={"consistency": False})
    kept = model.reconstruct(acquired)
    np.testing.assert_allclose(plain.image.array, plain.view.array + 0.1 * UNIT, atol=1e-2)
    assert plain.residual > 3 and kept.residual < 1.3
    assert plain.std is None and len(plain.samples) == 1, "one answer has no spread"


def test_the_training_measurement_is_the_operators():
    task = regression().task
    x = torch.rand(3, 1, 16, 16) * 2 - 1
    from medgen.core.random import Rng

    example = task.example({"t1": x}, Rng(0, 5, [1, 2, 3]))
    measured = example.condition.measurement
    assert float(measured.operator.residual(x, measured).mean()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(example.condition.dense, measured.operator.adjoint(measured.y, measured.state))
    alone = task.example({"t1": x[1:2]}, Rng(0, 5, [2])).condition.measurement
    torch.testing.assert_close(alone.y, measured.y[1:2])
    ranged = Reconstruction(("t1",), PSNR(2.0), Identity(), Complete(), [0.01, 0.1]).measure(x.expand(-1, -1, -1, -1), Rng(0, 0, [0, 1, 2]))
    assert bool(((ranged.noise >= 0.01) & (ranged.noise <= 0.1)).all()) and len(set(ranged.noise.tolist())) == 3


def test_what_is_refused():
    image = picture((16, 16))
    acquired = prior().simulate(picture())
    gan = replace(prior(), model=GAN(nn.Identity(), nn.Identity(), None, latent=4))
    with pytest.raises(MedgenError, match="a GAN cannot; use a diffusion or flow model, or train a model for the reconstruction task"):
        gan.reconstruct(acquired)
    with pytest.raises(MedgenError, match=r"trained for MaskedFourier\(real=True\) and the measurement is of Identity\(\)"):
        regression().reconstruct(regression().simulate(image, Identity(), Complete()))
    with pytest.raises(MedgenError, match="from measurements: use reconstruct"):
        regression().generate(1)
    with pytest.raises(MedgenError, match="no solver 'mps'; did you mean 'mmps'"):
        prior().reconstruct(acquired, solver="mps")
    with pytest.raises(MedgenError, match=r"no option 'guidance\.iteration'; did you mean 'guidance\.iterations'"):
        prior().reconstruct(acquired, options={"guidance.iteration": 3})
    with pytest.raises(MedgenError, match="takes the option 'consistency' only, got steps"):
        regression().reconstruct(regression().simulate(image), options={"steps": 3})
    with pytest.raises(MedgenError, match=r"has shape .* gives"):
        prior().reconstruct(replace(acquired, y=acquired.y[..., :4]))
    with pytest.raises(MedgenError, match="positive standard deviation"):
        prior().reconstruct(replace(acquired, noise=0.0))
    with pytest.raises(MedgenError, match="no slices 3:4:1 of 1"):
        acquired[3:4]
    with pytest.raises(MedgenError, match="draws must be at least 1"):
        prior().reconstruct(acquired, draws=0)


UNET = {"_target_": "medgen.nn.unet.UNet", "spatial_dims": 2, "out_channels": 1, "channels": [4, 8], "blocks": 1}
METRIC = {"_target_": "medgen.metrics.monitor.PSNR", "data_range": 2.0}


@pytest.fixture
def checkpoints(tmp_path):
    """An L1 model of the reconstruction task and a diffusion prior, of random weights."""
    task = {
        "_target_": "medgen.tasks.reconstruction.Reconstruction",
        "target": ["t1"],
        "metric": METRIC,
        "operator": {"_target_": "medgen.operators.mri.MaskedFourier"},
        "sampling": {"_target_": "medgen.operators.sampling.Lines"},
    }
    model = {"_target_": "medgen.models.regression.Regression", "network": {**UNET, "in_channels": 0, "condition": {"dense": 1}}}
    diffusion = {
        "_target_": "medgen.models.diffusion.Diffusion",
        "network": {**UNET, "in_channels": 1},
        "preconditioning": {"_target_": "medgen.models.preconditioning.EDM"},
        "levels": {"_target_": "medgen.core.levels.LogNormal"},
        "sampler": {"_target_": "medgen.samplers.heun.Heun", "grid": {"_target_": "medgen.core.levels.Karras"}, "steps": 2},
    }
    synthesis = {"_target_": "medgen.tasks.synthesis.Synthesis", "target": ["t1"], "metric": METRIC}
    contract = Contract(2, (16, 16), ("t1",), intensity={"t1": EIGHT_BIT}, orientation="RAS", spacing=(1.0, 1.0, 2.0), slice_axis=2)
    for name, recipe in {"l1": {"model": model, "task": task}, "prior": {"model": diffusion, "task": synthesis}}.items():
        torch.manual_seed(0)
        built = build(recipe["model"])
        for parameter in built.parameters():  # the last layer starts at zero
            torch.nn.init.normal_(parameter, std=0.1)
        save(tmp_path / name, built.state_dict(), recipe, contract)
    volume = Volume(np.random.default_rng(0).uniform(0, 255, (1, 16, 16, 3)).astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    volume.save(tmp_path / "t1.nii.gz")
    return tmp_path


def test_the_command_measures_and_reconstructs(checkpoints, capsys):
    for model, extra in (("l1", []), ("prior", ["--draws", "2", "--solver-steps", "3"])):
        out = checkpoints / model / "out.nii.gz"
        main(["reconstruct", str(checkpoints / model), str(checkpoints / "t1.nii.gz"), "--simulate", "-o", str(out), *extra])
        report = json.loads((checkpoints / model / "out.json").read_text())
        assert report["slices"] == 3 and 0.2 < report["measured_share"] < 0.4 and {"psnr_image", "psnr_view"} <= set(report)
        made, view = read(out), read(checkpoints / model / "out_view.nii.gz")
        np.testing.assert_allclose(made.affine, np.diag([1.0, 1.0, 2.0, 1.0]))
        truth = read(checkpoints / "t1.nii.gz").array
        mse = float(((view.array - truth) ** 2).mean())
        assert report["psnr_view"] == pytest.approx(10 * math.log10(255**2 / mse), abs=0.01)
        assert (checkpoints / model / "out_std.nii.gz").exists() == (model == "prior")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(
            [
                "reconstruct",
                str(checkpoints / "l1"),
                str(checkpoints / "t1.nii.gz"),
                "--simulate",
                "-o",
                str(checkpoints / "l1" / "out.nii.gz"),
            ]
        )
    assert "exists; choose another name" in capsys.readouterr().err


def test_kspace_from_a_file_is_the_simulated_one(checkpoints):
    model = load(checkpoints / "prior")
    acquired = model.simulate(checkpoints / "t1.nii.gz", seed=0)
    np.save(checkpoints / "k.npy", acquired.y[:, 0].numpy())
    out = checkpoints / "fromfile.npy"
    command = ["reconstruct", str(checkpoints / "prior"), str(checkpoints / "k.npy"), "-o", str(out)]
    main([*command, "--noise", str(acquired.noise), "--draws", "1", "--solver-steps", "3"])
    expected = model.reconstruct(replace(acquired, grid=None, axis=None), options={"steps": 3}, draws=1)
    np.testing.assert_allclose(np.load(out), expected.image.array, atol=1e-3)


def test_a_fastmri_file_is_its_kspace_mask_and_maps(checkpoints, capsys):
    """Two coils, a readout that is sampled twice as densely, lines that are missing, with and without the file's own mask."""
    images = np.zeros((3, 1, 32, 16), np.float32)
    images[:, 0, 8:24] = np.moveaxis(read(checkpoints / "t1.nii.gz").array[0], -1, 0)
    coils, lines = np.array([0.6, 0.8j], np.complex64)[:, None, None], (np.arange(16) % 3 == 0) | (abs(np.arange(16) - 8) < 4)
    with h5py.File(checkpoints / "f.h5", "w") as file:
        file["kspace"] = (transformed(images * coils) * lines).astype(np.complex64)
        file["ismrmrd_header"] = HEADER.format(32, 16, 32.0, 16.0, 16, 16, 16.0, 16.0)
        file["mask"] = lines
    y = torch.from_numpy((transformed(images[..., 8:24, :] * coils) * lines).astype(np.complex64))
    mask = torch.from_numpy(lines).float().expand(1, 1, 16, 16)
    model = load(checkpoints / "prior")
    acquired = Acquisition(y, MaskedFourier(), {"maps": calibrated_maps(y, mask), "mask": mask}, 5.0, (16, 16))
    expected = model.reconstruct(scaled(model, acquired)[1:3], options={"steps": 3}, draws=1)
    command = ["reconstruct", str(checkpoints / "prior"), str(checkpoints / "f.h5"), "--noise", "5", "--draws", "1", "--solver-steps", "3"]
    for out in ("a.npy", "b.npy"):
        main([*command, "--slices", "1:3", "-o", str(checkpoints / out)])
        np.testing.assert_allclose(np.load(checkpoints / out), expected.image.array, atol=0.05)
        with h5py.File(checkpoints / "f.h5", "r+") as file:
            file.pop("mask", None)
    assert "the middle 16 of 32 rows" in capsys.readouterr().err
    np.save(checkpoints / "maps.npy", np.ones((2, 32, 16)))
    maps = ["--maps", str(checkpoints / "maps.npy")]
    for extra, said in ((["--slices", "1:4"], "within 0:3"), (maps, "do not fit k-space of shape (2, 16, 16)")):
        with pytest.raises(SystemExit):
            main([*command, *extra, "-o", str(checkpoints / "c.npy")])
        assert said in capsys.readouterr().err


def test_larger_voxels_come_back_on_the_finer_grid(checkpoints, capsys):
    coarse = Volume(np.full((1, 8, 8, 3), 100, np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    coarse.save(checkpoints / "coarse.nii.gz")
    command = ["reconstruct", str(checkpoints / "prior"), str(checkpoints / "coarse.nii.gz"), "-o", str(checkpoints / "fine.nii.gz")]
    command += ["--operator", "downsample", "--noise", "1", "--draws", "1", "--solver-steps", "2", "--factors"]
    main([*command, "2", "2"])
    made = read(checkpoints / "fine.nii.gz")
    assert made.shape == (16, 16, 3) and made.spacing == (1.0, 1.0, 2.0)
    np.testing.assert_allclose(made.affine[:3, 3], [-0.5, -0.5, 0])
    np.testing.assert_allclose(read(checkpoints / "fine_view.nii.gz").array, 100, atol=1e-3)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "4", "4", "--overwrite"])
    assert "divided by --factors its voxels measure 0.5 x 0.5 x 2 mm, the model's 1 x 1 x 2" in capsys.readouterr().err


def test_the_command_says_what_it_needs(checkpoints, capsys):
    prior_, image = str(checkpoints / "prior"), str(checkpoints / "t1.nii.gz")
    for arguments, said in (
        ([image], "a measurement needs --noise"),
        ([image, "--noise", "1"], "k-space is a complex .npy, or fastMRI's .h5; to measure an image pass --simulate"),
        ([image, "--noise", "1", "--operator", "inpaint"], "needs --mask"),
        ([image, "--noise", "1", "--operator", "downsample"], "needs --factors"),
        ([image, "--noise", "1", "--operator", "radon"], "no operator 'radon'"),
        ([image, "--simulate", "--slices", "2:9"], "--slices takes FIRST:LAST within 0:3"),
        ([image, "--simulate", "--option", "steps"], "--option takes NAME=VALUE"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["reconstruct", prior_, *arguments, "-o", str(checkpoints / "x.nii.gz")])
        assert end.value.code == 2 and said in capsys.readouterr().err


def test_a_reconstruction_model_has_a_golden_output(checkpoints):
    model = load(checkpoints / "l1")
    assert golden(model) == golden(load(checkpoints / "l1"))
    assert len(set(golden(model)["values"])) > 4


def test_cells_and_grid_agree():
    """A volume refined by factors has its coarse voxels as the cells of the finer grid."""
    from medgen.cli.reconstruct import refined

    coarse = Volume(np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2), np.diag([2.0, 4.0, 3.0, 1.0]))
    fine = refined(coarse, (2, 4), 2)
    assert fine.shape == (6, 8, 2) and fine.spacing == (1.0, 1.0, 3.0)
    x = torch.from_numpy(np.moveaxis(fine.array, 3, 0))
    np.testing.assert_array_equal(Downsample((2, 4))(x, {}).numpy(), np.moveaxis(coarse.array, 3, 0))
    first = fine.affine @ [0.5, 1.5, 0, 1]  # the middle of the first cell is the first coarse voxel
    np.testing.assert_allclose(first, coarse.affine @ [0, 0, 0, 1])


def test_evaluate_scores_a_reconstruction_model(checkpoints, capsys):
    (checkpoints / "m.csv").write_text("subject,split,t1\ns,test,t1.nii.gz\n")
    main(["evaluate", str(checkpoints / "l1"), "--data", str(checkpoints / "m.csv"), "-o", str(checkpoints / "report"), "--parts", "pixel"])
    report = json.loads((checkpoints / "report" / "evaluation.json").read_text())["sections"]["pixel"]["numbers"]
    model = load(checkpoints / "l1")
    acquired = model.simulate(checkpoints / "t1.nii.gz")
    mse = float(((model.reconstruct(acquired).image.array - read(checkpoints / "t1.nii.gz").array) ** 2).mean())
    value = report["regions"]["whole"]["psnr"]["volumes"][0]["value"]
    assert value == pytest.approx(10 * math.log10(255**2 / mse), abs=0.01)
    peak = float(read(checkpoints / "t1.nii.gz").array.max())
    assert report["fastmri"]["psnr"]["mean"] == pytest.approx(10 * math.log10(peak**2 / mse), abs=0.1), "its range is the volume's maximum"
    assert set(report["baselines"]) == {"zero-filled"}


def test_a_prior_can_be_trained_on_after_it_was_used():
    model = replace(prior(), model=trained_prior())
    before = [p.requires_grad for p in model.model.parameters()]
    model.reconstruct(model.simulate(picture()), options={"steps": 2}, draws=1)
    model.reconstruct(model.simulate(picture()), solver="dps", options={"steps": 2}, draws=1)
    assert all(before) and [p.requires_grad for p in model.model.parameters()] == before


def trained_prior():
    model = White()
    model.weight = nn.Parameter(torch.zeros(()))
    return model


def test_a_prior_walked_by_a_diffusers_scheduler_keeps_its_noise_levels():
    """An imported model: its schedule is the grid, and its own sampler has none."""
    from medgen.core.schedule import DiscreteSchedule

    model = prior()
    model.model.sampler, model.model.levels = object(), DiscreteSchedule("linear", 1e-4, 2e-2, 1000)
    made = model.reconstruct(model.simulate(picture(), Identity(), Complete(), noise=1e-3), draws=1)
    np.testing.assert_allclose(made.image.array, picture().array, atol=2.0)
    model.model.levels = None
    with pytest.raises(MedgenError, match="noise levels of this model's sampler are not known"):
        model.reconstruct(model.simulate(picture()), draws=1)


@pytest.mark.parametrize(("coils", "real"), [(0, True), (8, True)])
def test_consistency_trusts_an_answer_as_far_as_it_is_wrong(coils, real):
    """White errors of 0.1 under noise of 0.02: the own estimate does as well as the true one."""
    from medgen.core.random import Rng
    from medgen.solvers.consistency import consistent

    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 32, 32, generator=g)
    state = Lines("random", 2, coils=coils).draw((2, 1, 32, 32), Rng(0, 0, [0, 1]))
    measured = MaskedFourier(real).measure(x, state, torch.full((2,), 0.02), Rng(0, 1, [0, 1]))
    answer = x + 0.1 * torch.randn(2, 1, 32, 32, generator=g)
    own, known = (float((consistent(answer, measured, t) - x).std()) for t in (None, torch.full((2,), 0.1)))
    assert own == pytest.approx(known, rel=0.02)


def test_the_scale_of_coil_maps_does_not_reach_the_network():
    from medgen.core.random import Rng

    model, state = prior((16, 16)), Lines("equispaced", 2, coils=4).draw((1, 1, 16, 16), Rng(0))
    x = torch.from_numpy(picture((16, 16)).array)[None]
    views = []
    for factor in (1.0, 3.0):
        scan = {**state, "maps": factor * state["maps"]}
        acquired = Acquisition(MaskedFourier()(x, scan), MaskedFourier(), scan, 0.1, (16, 16))
        views.append(model.reconstruct(acquired, options={"steps": 1}, draws=1).view.array)
    np.testing.assert_allclose(views[0], views[1], rtol=1e-4, atol=1e-2)


def test_slices_keep_the_scale_of_the_whole_image():
    mr = {"name": "mr_percentile", "percentile": 99.0, "typical": {"low": 0.0, "high": 200.0}}
    model = prior((16, 16), orientation="RAS", spacing=(1.0, 1.0, 1.0), slice_axis=2)
    model = replace(model, contract=replace(model.contract, intensity={"t1": mr}))
    array = np.random.default_rng(0).uniform(0, 255, (1, 16, 16, 4)).astype(np.float32)
    array[..., 3] *= 0.01  # nearly empty
    acquired = model.simulate(Volume(array, np.eye(4)), Identity(), Complete(), noise=0.02)
    whole = model.reconstruct(acquired, draws=1, options={"steps": 4}).image.array
    np.testing.assert_allclose(
        model.reconstruct(acquired[3], draws=1, options={"steps": 4}).image.array, whole[..., 3:], rtol=1e-4, atol=1e-2
    )
    with pytest.raises(MedgenError, match="take neighbours"):
        acquired[::2]


def test_the_noise_of_a_measurement_is_not_the_noise_of_a_draw():
    from medgen.core.random import Rng

    acquired = prior().simulate(picture(), Identity(), Complete(), noise=0.5)
    noise = (acquired.y - torch.from_numpy(picture().array)[None]).flatten()
    start = Rng(0, 0, [0]).normal((1, 1, 8, 8)).flatten()
    assert abs(float(torch.corrcoef(torch.stack([noise, start]))[0, 1])) < 0.4


def test_a_hole_is_shown_without_signal():
    model, mask = prior(), torch.ones(1, 1, 8, 8)
    mask[..., :4, :] = 0
    acquired = Acquisition(torch.from_numpy(picture().array)[None] * mask, Inpaint(), {"mask": mask}, 1.0, (8, 8))
    view = model.reconstruct(acquired, options={"steps": 1}, draws=1).view.array
    assert bool((view[0, :4] == 0).all()) and bool((view[0, 4:] == picture().array[0, 4:]).all())


def test_another_setting_of_the_same_operator_is_refused():
    model = regression(operator=Downsample((2, 2)), sampling=Complete())
    coarse = Acquisition(torch.rand(1, 1, 4, 4), Downsample((4, 4)), {}, 0.1, (16, 16))
    with pytest.raises(MedgenError, match=r"trained for Downsample\(factors=\(2, 2\)\) and .* Downsample\(factors=\(4, 4\)\)"):
        model.reconstruct(coarse)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"k": (3, 16, 16), "maps": (2, 4, 16, 16)}, "do not fit k-space of shape (3, 16, 16)"),
        ({"k": (3, 4, 16, 16), "maps": (2, 4, 16, 16)}, "has 3 slices, its maps 2"),
        ({"k": (4, 16, 16), "maps": (16, 16)}, "expected coils and the grid"),
        ({"k": (16, 16), "mask": (3, 16, 16)}, "expected the lines (16,)"),
        ({"k": (16, 16), "mask": (8, 16)}, "expected the lines (16,)"),
        ({"k": (16, 16), "zero": ()}, "holds nothing that was measured"),
    ],
)
def test_files_that_do_not_fit_are_answered_in_a_sentence(checkpoints, capsys, files, said):
    command = ["reconstruct", str(checkpoints / "prior"), str(checkpoints / "k.npy"), "-o", str(checkpoints / "x.npy"), "--noise", "1"]
    for name, shape in files.items():
        if name != "zero":
            np.save(checkpoints / f"{name}.npy", np.full(shape, 0 if "zero" in files else 1, np.complex64))
        if name not in ("k", "zero"):
            command += [f"--{name}", str(checkpoints / f"{name}.npy")]
    with pytest.raises(SystemExit) as end:
        main([*command, "--draws", "1", "--solver-steps", "2"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and said in error and "Traceback" not in error


@pytest.mark.parametrize("option", ["guidance=5", "x=[1"])
def test_options_that_cannot_be_are_refused(checkpoints, capsys, option):
    with pytest.raises(SystemExit) as end:
        main(
            [
                "reconstruct",
                str(checkpoints / "prior"),
                str(checkpoints / "t1.nii.gz"),
                "--simulate",
                "-o",
                str(checkpoints / "x.npy"),
                "--option",
                option,
            ]
        )
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: ")
