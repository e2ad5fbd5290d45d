"""Whole volumes through models: what an identity must give back, what samples carry, what is refused."""

import math
import warnings
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from medgen.checkpoint import build
from medgen.core import windows
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError, MedgenWarning
from medgen.core.random import Rng
from medgen.core.volume import Volume
from medgen.data.readers import read
from medgen.inference import Acquisition, Pretrained, Reconstructed, load
from medgen.metrics.monitor import PSNR
from medgen.models.regression import Regression
from medgen.operators.mri import MaskedFourier
from medgen.tasks.synthesis import Synthesis
from medgen.tasks.translation import Translation
from medgen.zoo import find

AS_STORED = {"name": "identity", "typical": {"low": -1.0, "high": 1.0}}
CT = {"name": "ct_hu", "low": -1024.0, "high": 2000.0, "typical": {"low": -1024.0, "high": 2000.0}}
MR = {"name": "mr_percentile", "percentile": 99.0, "typical": {"low": 0.0, "high": 500.0}}
EIGHT_BIT = {"name": "unit_range", "low": 0.0, "high": 255.0, "typical": {"low": 0.0, "high": 255.0}}
METRIC = PSNR(2.0)


class Copy(torch.nn.Module):
    """Gives its first dense channels back, plus a constant; remembers the sizes it was shown."""

    def __init__(self, channels: int = 1, offset: float = 0.0):
        super().__init__()
        self.channels, self.offset, self.seen = channels, offset, set()

    def forward(self, x, t, condition):
        self.seen.add(tuple(condition.dense.shape[2:]))
        return condition.dense[:, : self.channels] + self.offset


def translator(rule=AS_STORED, size=(16, 16), slice_axis=2, offset=0.0, source=("a",), target=("b",), **geometry) -> Pretrained:
    """An identity that needs no training."""
    place = {"orientation": "RAS", "spacing": (1.0, 1.0, 1.0)} | geometry
    contract = Contract(
        len(size),
        size,
        target,
        source,
        intensity=dict.fromkeys((*source, *target), rule),
        slice_axis=slice_axis if len(size) == 2 else None,
        **place,
    )
    return Pretrained(Regression(Copy(len(target), offset)), Translation(source, target, METRIC), contract)


def diffusion(size=(8, 8), drop=0.0, attributes=None, labels=None, rule=MR, slice_axis=2, **geometry) -> Pretrained:
    """Random weights, two Heun steps."""
    torch.manual_seed(0)
    condition = {"vector": sum(max(1, c) for c in (attributes or {}).values()), "dense": sum((labels or {}).values())}
    parts = {
        "network": {
            "_target_": "medgen.nn.unet.UNet",
            "spatial_dims": len(size),
            "in_channels": 1,
            "out_channels": 1,
            "channels": [4, 8],
            "blocks": 1,
        },
        "preconditioning": {"_target_": "medgen.models.preconditioning.EDM"},
        "levels": {"_target_": "medgen.core.levels.LogNormal"},
        "sampler": {
            "_target_": "medgen.samplers.heun.Heun",
            "grid": {"_target_": "medgen.core.levels.Karras", "sigma_max": 2.0},
            "steps": 2,
        },
    }
    parts["network"]["condition"] = condition
    model = build({"_target_": "medgen.models.diffusion.Diffusion", "drop": drop, **parts}).eval()
    for parameter in model.parameters():  # the last layer starts at zero, which would hide every condition
        torch.nn.init.normal_(parameter, std=0.3)
    place = {"orientation": "RAS", "spacing": (2.0, 3.0, 4.0), "slice_axis": slice_axis if len(size) == 2 else None} | geometry
    contract = Contract(len(size), size, ("t1",), attributes=attributes or {}, labels=labels or {}, intensity={"t1": rule}, **place)
    return Pretrained(model, Synthesis(("t1",), METRIC, attributes, labels), contract)


def image(shape=(13, 19, 11), orientation="RAS", spacing=(1.0, 1.0, 1.0), turn=0.0, seed=0) -> Volume:
    """Random voxels in [-1, 1] on any grid; `turn` degrees about the third axis make it oblique."""
    array = np.random.default_rng(seed).uniform(-1, 1, (1, *shape)).astype(np.float32)
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    affine = np.array([[c, -s, 0, -30.0], [s, c, 0, 12.5], [0, 0, 1, 7.25], [0, 0, 0, 1]])
    ornt = axcodes2ornt(orientation)
    affine = affine @ np.linalg.inv(inv_ornt_aff(ornt, [shape[int(i)] for i in np.argsort(ornt[:, 0])])) if orientation != "RAS" else affine
    affine[:3, :3] = affine[:3, :3] @ np.diag(spacing)
    volume = Volume(array, affine)
    assert volume.orientation == orientation and np.allclose(volume.spacing, spacing)
    return volume


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SPL", "PIR"])
@pytest.mark.parametrize(("size", "axis"), [((16, 16), 0), ((16, 16), 1), ((16, 16), 2), ((8, 32), 2), ((64, 64), 1)])
def test_slices_give_every_voxel_back_bit_by_bit(orientation, size, axis):
    volume = image(orientation=orientation)
    made = translator(size=size, slice_axis=axis).translate(volume)
    assert np.array_equal(made.array, volume.array)
    assert made.array.dtype == np.float32
    assert np.array_equal(made.affine, volume.affine)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SPL"])
@pytest.mark.parametrize("size", [(8, 8, 8), (6, 32, 5), (32, 32, 32), (13, 19, 11)])
def test_overlapping_windows_of_an_identity_leave_no_seam(orientation, size):
    volume = image(orientation=orientation)
    model = translator(size=size)
    made = model.translate(volume)
    assert np.abs(made.array - volume.array).max() < 1e-6
    assert model.model.network.seen == {size}


@pytest.mark.parametrize("turn", [7.0, 30.0, 44.0, 130.0])
@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_oblique_volumes_keep_voxels_and_affine(turn, size):
    volume = replace(image(), affine=_turned(image().affine, turn))
    made = translator(size=size).translate(volume)
    assert np.abs(made.array - volume.array).max() < 1e-6
    assert np.array_equal(made.affine, volume.affine)


def _turned(affine: np.ndarray, degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    first, second = np.eye(4), np.eye(4)
    first[:2, :2] = second[1:3, 1:3] = [[c, -s], [s, c]]
    return first @ second @ affine


@pytest.mark.parametrize(("axis", "spacing"), [(0, (5.0, 1.0, 1.0)), (1, (1.0, 0.3, 1.0)), (2, (1.0, 1.0, 6.5))])
def test_thick_slices_are_not_resampled_across(axis, spacing):
    volume = image(spacing=spacing)
    assert np.array_equal(translator(slice_axis=axis).translate(volume).array, volume.array)


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 1, 3), (5, 5, 1)])
@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_volumes_of_one_voxel_or_one_slice(shape, size):
    volume = image(shape=shape)
    assert np.abs(translator(size=size).translate(volume).array - volume.array).max() < 1e-6


@pytest.mark.parametrize("spacing", [(0.25, 0.25, 0.25), (0.7, 0.9, 1.3), (3.0, 2.5, 5.0), (1 / 3, 1 / 6, 0.15)])
@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_a_constant_stays_constant_up_to_the_rim_on_any_spacing(spacing, size):
    """A coarser grid may end before the image does; the rim must not become background."""
    for shape in [(14, 15, 10), (18, 22, 21)]:
        volume = replace(image(shape=shape, orientation="LPS", spacing=spacing), array=np.full((1, *shape), 0.25, np.float32))
        made = translator(size=size).translate(volume)
        assert np.abs(made.array - 0.25).max() < 1e-5, np.argwhere(np.abs(made.array - 0.25) > 1e-5)[:3]


@pytest.mark.parametrize("orientation", ["RAS", "SPL"])
@pytest.mark.parametrize("size", [(16, 16), (12, 12, 12)])
def test_a_smooth_volume_comes_back_to_resampling_accuracy(orientation, size):
    volume = image((40, 36, 30), orientation, spacing=(0.8, 0.9, 0.7))
    axes = np.meshgrid(*(np.arange(n) for n in (40, 36, 30)), indexing="ij")
    smooth = np.prod([np.sin(2 * np.pi * a / p) for a, p in zip(axes, (26.0, 21.0, 24.0), strict=True)], 0)[None].astype(np.float32)
    made = translator(size=size).translate(volume.with_array(smooth)).array
    inner = (slice(None), *(slice(4, -4),) * 3)
    assert np.sqrt(np.mean((made - smooth)[inner] ** 2)) < 0.01 * smooth.std()


def test_hounsfield_units_come_back_and_air_stays_air():
    volume = image(shape=(12, 14, 9), orientation="LPS")
    hounsfield = np.round(volume.array * 1500)
    hounsfield[:, :3] = -1024.0
    for size in ((16, 16), (8, 8, 8)):
        made = translator(CT, size).translate(volume.with_array(hounsfield))
        assert made.units == "HU"
        assert np.abs(made.array - hounsfield).max() < 1e-3
        assert np.abs(made.array[:, :3] + 1024).max() < 1e-3
        assert made.meta["scale"] == "as declared by the intensity map"


def test_magnitude_mr_leaves_in_the_training_sets_scale_and_zero_stays_zero():
    volume = image()
    signal = np.abs(volume.array) * 90
    signal[:, :, :4] = 0
    made = translator(MR).translate(volume.with_array(signal))
    high = np.percentile(signal[signal > signal.mean()], 99.0)
    assert np.allclose(made.array, signal * (500 / high), rtol=1e-4, atol=1e-3)
    assert np.abs(made.array[:, :, :4]).max() < 1e-4
    assert made.meta["scale"] == "typical of the training set"
    assert made.units == "arbitrary (MR)"


@pytest.mark.parametrize("size", [(16, 16), (12, 12, 12)])
def test_air_far_from_the_head_stays_zero_also_where_the_grid_is_resampled(size):
    """The two cubic kernels, to 1.5 mm and back, reach 2 voxels of 1.5 mm each: 6 mm."""
    volume = image((40, 36, 30), "LPS")
    signal = np.zeros_like(volume.array)
    signal[:, 12:28, 10:26, 9:21] = 50 + 40 * volume.array[:, 12:28, 10:26, 9:21]
    made = translator(MR, size, spacing=(1.5, 1.5, 1.5)).translate(volume.with_array(signal)).array
    far = np.ones(signal.shape, bool)
    far[:, 5:35, 3:33, 2:28] = False
    assert np.abs(made[far]).max() < 1e-3
    assert made.max() > 300


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["ms_brain/patient19/T1.nii.gz", "stroke_brain/stroke01/T1.nii.gz"])
def test_real_heads_come_back(shared_data, name):
    head = read(shared_data / name)
    high = np.percentile(head.array[head.array > head.array.mean()], 99.0)
    for size in ((128, 128), (96, 96, 96)):
        made = translator(MR, size).translate(shared_data / name)
        assert np.array_equal(made.affine, head.affine)
        assert np.abs(made.array * (high / 500) - head.array).max() < 1e-5 * head.array.max()


def test_several_channels_keep_their_order_and_places():
    model = translator(source=("a", "b"), target=("c", "d"), size=(8, 8, 8))
    inputs = {"b": image(seed=2, orientation="LPS"), "a": image(seed=1, orientation="LPS")}
    made = model.translate(inputs)
    assert np.abs(made.array - np.concatenate([inputs["a"].array, inputs["b"].array])).max() < 1e-6


def test_files_in_and_files_out(tmp_path):
    volume = image(orientation="LPS", turn=0.0)
    nibabel.save(nibabel.Nifti1Image(volume.array[0], volume.affine), tmp_path / "in.nii.gz")
    translator().translate(tmp_path / "in.nii.gz").save(tmp_path / "new folder" / "out.nii.gz")
    before, after = (nibabel.load(p) for p in (tmp_path / "in.nii.gz", tmp_path / "new folder" / "out.nii.gz"))
    assert np.array_equal(before.affine, after.affine)
    assert np.array_equal(before.get_fdata(), after.get_fdata())
    assert after.get_data_dtype() == np.float32
    assert after.header.get_xyzt_units()[0] == "mm"


def test_pictures_go_through_models_of_pictures_unchanged(tmp_path):
    from PIL import Image

    grey = np.random.default_rng(0).integers(60, 120, (21, 34), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "in.png")
    model = translator(EIGHT_BIT, (16, 16), None, orientation=None, spacing=None)
    made = model.translate(tmp_path / "in.png")
    assert np.abs(made.array[0] - grey).max() < 1e-3
    made.save(tmp_path / "out.PNG")
    with Image.open(tmp_path / "out.PNG") as picture:
        assert np.array_equal(np.asarray(picture), grey)


def test_colour_pictures_are_split_into_their_channels(tmp_path):
    from PIL import Image

    colour = np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "in.png")
    names = ("he_red", "he_green", "he_blue")
    model = translator(EIGHT_BIT, (16, 16), None, source=names, target=tuple(f"x{n}" for n in names), orientation=None, spacing=None)
    made = model.translate(tmp_path / "in.png")
    made.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert np.array_equal(np.asarray(picture), colour)


class Noise(Regression):
    """Nothing but its noise, the second of two draws."""

    def sample(self, condition, shape, rng):
        rng.uniform((len(rng), 3))
        return rng.normal(shape)


def test_overlapping_windows_see_one_field_of_noise():
    """Each with noise of its own, the blend would lose variance; all with the same, it would repeat itself."""
    model = translator(size=(8, 8, 8))
    model.model = Noise(Copy())
    made = model.translate(image((20, 11, 9)), seed=5).array
    rng = Rng(5, 0, [0])
    rng.uniform((1, 3))
    assert np.abs(made - rng.normal((1, 1, 20, 11, 9)).numpy()[0]).max() < 1e-6


def test_slices_share_their_noise():
    model = translator(size=(8, 8))
    model.model = Noise(Copy())
    made = model.translate(image((8, 8, 19)), seed=5).array
    assert (made == made[..., :1]).all() and made.std() > 0.8


def test_the_mean_of_draws_is_the_mean_of_seeds():
    model = translator(size=(8, 8, 8))
    model.model = Noise(Copy())
    volume = image((8, 8, 8))
    draws = [model.translate(volume, seed=s).array for s in (5, 6, 7)]
    assert not np.array_equal(draws[0], draws[1])
    assert np.allclose(model.translate(volume, seed=5, draws=3).array, np.mean(draws, 0), atol=1e-6)


def test_what_a_translator_refuses():
    model, volume = translator(), image()
    nan = volume.with_array(np.where(np.arange(volume.array.size).reshape(volume.array.shape) == 5, np.nan, volume.array))
    other = replace(image(), affine=image().affine + np.diag([0, 0, 0.5, 0]))
    two, aged = translator(source=("a", "b")), translator()
    aged.task = Translation(("a",), ("b",), METRIC, {"age": 0})
    for words, call in {
        "use translate|use generate": lambda: diffusion().translate(volume),
        "NaN": lambda: model.translate(nan),
        "no geometry": lambda: model.translate(replace(volume, affine=None)),
        "channel axis in front": lambda: model.translate(Volume(volume.array[0], volume.affine)),
        "must be a file or a medgen.Volume": lambda: model.translate(volume.array),
        "takes the channels a, got": lambda: model.translate({"t1": volume}),
        "by name": lambda: two.translate(volume),
        "share its grid": lambda: two.translate({"a": volume, "b": image(shape=(13, 19, 12))}),
        "apart": lambda: two.translate({"a": volume, "b": other}),
        "has 2 channels": lambda: model.translate(volume.with_array(np.concatenate([volume.array, -volume.array]))),
        "no such file": lambda: model.translate("nowhere.nii.gz"),
        "seed": lambda: model.translate(volume, seed=-1),
        "draws": lambda: model.translate(volume, draws=0),
        "2 values for 1 images": lambda: aged.translate(volume, given={"age": [1, 2]}),
        "no condition 'label'": lambda: model.translate(volume, given={"label": 1}),
        "2 axes; this model takes images with 3": lambda: translator(spacing=None, orientation=None).translate(Volume(np.zeros((1, 8, 8)))),
        "3 axes; this model takes images with 2": lambda: translator(slice_axis=None, spacing=None, orientation=None).translate(volume),
    }.items():
        with pytest.raises(MedgenError, match=words):
            call()


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize("length", range(8, 40))
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_windows_cover_everything_and_share_what_was_asked(length, overlap):
    found = windows.starts(length, 8, overlap)
    assert found[0] == 0 and found[-1] == length - 8
    steps = np.diff(found)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() <= 8 * (1 - overlap) + 0.5)


def test_a_blend_of_windows_that_disagree_goes_smoothly_from_one_to_the_other():
    calls = iter([0.0, 1.0])
    made = windows.blended(np.zeros((1, 12), np.float32), (8,), lambda part, window: np.full((1, 8), next(calls), np.float32), 1)
    assert np.array_equal(made[0, :4], np.zeros(4)) and np.array_equal(made[0, 8:], np.ones(4))
    ramp = np.sin(np.pi * (np.arange(4) + 0.5) / 8) ** 2  # cos^2 + sin^2 = 1 at half overlap
    assert np.allclose(made[0, 4:8], ramp, atol=1e-6)


# ---------------------------------------------------------------- generate


def test_sample_i_depends_on_neither_batch_nor_n():
    model = diffusion(attributes={"label": 3})
    labels = [i % 3 for i in range(5)]
    five = _stack(model.generate(5, seed=3, given={"label": labels}))
    for batch in (1, 2, 3, 5):
        again = _stack(model.generate(5, seed=3, given={"label": labels}, batch=batch))
        assert np.abs(again - five).max() < 1e-5 * np.abs(five).max()
    two = _stack(model.generate(2, seed=3, given={"label": labels[:2]}, batch=1))
    assert np.abs(two - five[:2]).max() < 1e-5 * np.abs(five).max()
    assert [v.meta["index"] for v in model.generate(3, given={"label": 0}, batch=2)] == [0, 1, 2]
    other = model.generate(1, seed=3, given={"label": 2})[0]
    assert np.abs(other.array - five[0]).max() > 1e-3 * np.abs(five).max()
    assert np.abs(model.generate(1, seed=4, given={"label": 0})[0].array - five[0]).max() > 1e-2 * np.abs(five).max()


def _stack(volumes: list[Volume]) -> np.ndarray:
    return np.stack([v.array for v in volumes])


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SPL"])
@pytest.mark.parametrize(("size", "axis"), [((8, 6), 0), ((8, 6), 1), ((8, 6), 2), ((8, 6, 4), None)])
def test_samples_carry_the_contracts_geometry(tmp_path, orientation, size, axis):
    (made,) = diffusion(size, slice_axis=axis, orientation=orientation).generate(1)
    assert made.orientation == orientation
    assert made.spacing == (2.0, 3.0, 4.0)
    shape = list(size)
    if axis is not None:
        shape.insert(axis, 1)
    assert made.shape == tuple(shape)
    assert np.allclose(made.affine @ [*((n - 1) / 2 for n in shape), 1], [0, 0, 0, 1])
    stored = nibabel.load(made.save(tmp_path / "s.nii.gz"))
    assert "".join(nibabel.aff2axcodes(stored.affine)) == orientation
    assert np.array_equal(np.asarray(stored.dataobj), made.array[0])


def test_another_size_keeps_spacing():
    (made,) = diffusion().generate(1, size=(12, 7))
    assert made.shape == (12, 7, 1) and made.spacing == (2.0, 3.0, 4.0)


def test_label_maps_lie_on_the_models_grid_in_its_orientation(tmp_path):
    model = diffusion(labels={"mask": 3})
    labels = np.random.default_rng(0).integers(0, 3, (8, 8))
    expected = model.generate(2, given={"mask": labels})[1].array
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    turned = Volume(labels[::-1, ::-1, None][None].astype(np.int64), affine @ np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert turned.orientation == "LPS"
    turned.save(tmp_path / "mask.nii.gz")
    for given in (Volume(labels[None, ..., None].astype(np.float32), affine), turned, tmp_path / "mask.nii.gz"):
        assert np.array_equal(model.generate(2, given={"mask": given})[1].array, expected)
    assert not np.array_equal(model.generate(2, given={"mask": labels[::-1]})[1].array, expected)
    (made,) = model.generate(1, given={"mask": turned})
    assert made.orientation == "RAS"
    assert np.allclose(made.affine @ [7, 7, 0, 1], turned.affine @ [0, 0, 0, 1])  # the image lies on its label map
    assert np.allclose(made.affine @ [0, 0, 0, 1], turned.affine @ [7, 7, 0, 1])


def test_a_label_map_of_a_picture_that_is_read_only_is_taken_without_a_warning():
    labels = np.eye(8, dtype=np.uint8)
    model = diffusion(labels={"mask": 2})
    expected = model.generate(1, given={"mask": labels.copy()})[0].array
    labels.setflags(write=False)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(model.generate(1, given={"mask": labels})[0].array, expected)
    finally:
        torch.set_warn_always(before)


def test_what_a_generator_refuses():
    by_class, by_mask, by_age = diffusion(attributes={"label": 3}), diffusion(labels={"mask": 3}), diffusion(attributes={"age": 0})
    for words, call in {
        "label=7 is out of range": lambda: by_class.generate(1, given={"label": 7}),
        "label=-1 is out of range": lambda: by_class.generate(1, given={"label": -1}),
        "a class from 0 to 2, got 1.5": lambda: by_class.generate(1, given={"label": 1.5}),
        "a class from 0 to 2, got nan": lambda: by_class.generate(1, given={"label": math.nan}),
        "a class from 0 to 2, got 'brain'": lambda: by_class.generate(1, given={"label": "brain"}),
        "a number, got inf": lambda: by_age.generate(1, given={"age": math.inf}),
        "did you mean 'label'": lambda: by_class.generate(1, given={"lable": 1}),
        "needs a value for 'label'": lambda: by_class.generate(1),
        "2 values for 3 images": lambda: by_class.generate(3, given={"label": [0, 1]}),
        "has the value 3": lambda: by_mask.generate(1, given={"mask": np.full((8, 8), 3)}),
        "has the value 0.5": lambda: by_mask.generate(1, given={"mask": np.full((8, 8), 0.5)}),
        "NaN": lambda: by_mask.generate(1, given={"mask": np.full((8, 8), np.nan)}),
        "must be a file, a Volume or an array, got 3": lambda: by_mask.generate(1, given={"mask": 3.0}),
        "needs 'mask', a label map of 8 x 8": lambda: by_mask.generate(1),
        "the grid 8 x 9, the model 8 x 8": lambda: by_mask.generate(1, given={"mask": np.zeros((8, 9))}),
        "takes no condition": lambda: diffusion().generate(1, given={"label": 1}),
        "size must be 2 positive numbers": lambda: diffusion().generate(1, size=(8,)),
        "size must be 2": lambda: diffusion().generate(1, size=(8, 0)),
        "seed must be": lambda: diffusion().generate(1, seed=-3),
        "batch of at least 1": lambda: diffusion().generate(1, batch=0),
        "use translate": lambda: translator().generate(1),
    }.items():
        with pytest.raises(MedgenError, match=words):
            call()
    assert diffusion().generate(0) == []


# ---------------------------------------------------------------- sampler, guidance, device, hub


def test_guidance_one_is_the_plain_model_and_others_differ():
    model = diffusion(drop=0.1, attributes={"label": 3})
    plain, one, three = (m.generate(1, given={"label": 2})[0].array for m in (model, *(model.with_sampler(guidance=g) for g in (1.0, 3.0))))
    assert np.array_equal(plain, one)
    assert np.abs(three - plain).max() > 1e-2
    assert model.model.guidance is None and model.model.sampler.steps == 2


def test_guidance_without_its_training_is_refused():
    for words, model, scale in (
        ("was also trained|also trained without its condition", diffusion(attributes={"label": 3}), 2.0),
        ("this model has none", diffusion(drop=0.1), 2.0),
        ("finite", diffusion(drop=0.1, attributes={"label": 3}), math.nan),
        ("one pass", translator(), 2.0),
    ):
        with pytest.raises(MedgenError, match=words):
            model.with_sampler(guidance=scale)
    assert diffusion().with_sampler(guidance=1.0).generate(1)[0].shape == (8, 8, 1)


def test_samplers_by_name_keep_the_levels_and_what_else_was_set():
    model = diffusion()
    euler = model.with_sampler("euler", 7)
    assert type(euler.model.sampler).__name__ == "Euler"
    assert euler.model.sampler.steps == 7 and euler.model.sampler.grid is model.model.sampler.grid
    ancestral = model.with_sampler("ddim")
    ancestral.model.sampler.eta = 0.7
    assert ancestral.with_sampler("ddim", 9).model.sampler.eta == 0.7
    with pytest.raises(MedgenError, match="did you mean 'heun'"):
        model.with_sampler("huen")
    for steps in (0, "8", 2.5):
        with pytest.raises(MedgenError, match=f"steps must be a whole number of at least 1, got {steps!r}"):
            model.with_sampler(steps=steps)


def test_a_grid_that_the_model_was_not_trained_on_is_told():
    model = diffusion()
    with pytest.warns(MedgenWarning, match="images of 8 x 16, the model was trained on 8 x 8"):
        model.generate(1, size=(8, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.generate(0, size=(8, 8)) == []


def test_what_is_printed_of_objects_is_a_line():
    model = diffusion(drop=0.1, attributes={"label": 3})
    parameters = sum(p.numel() for p in model.model.parameters())
    assert repr(model) == f"Pretrained(Diffusion, label -> {model.task.target[0]}, 8 x 8, {parameters:,} numbers, cpu)"
    volume = Volume(np.zeros((1, 8, 6, 4), np.float32), np.diag([1.0, -1.5, 2.25, 1.0]), "HU")
    assert repr(volume) == "Volume(1 x 8 x 6 x 4 float32, 1 x 1.5 x 2.25 mm RPS, HU)"
    assert repr(Volume(np.zeros((3, 8, 6), np.uint8))) == "Volume(3 x 8 x 6 uint8, no geometry, stored)"
    state = {"mask": torch.tensor([1.0, 0, 0, 0]).expand(1, 1, 1, 4)}
    acquired = Acquisition(torch.zeros(2, 1, 4, 4, dtype=torch.complex64), MaskedFourier(), state, 0.125, (4, 4))
    assert repr(acquired) == "Acquisition(MaskedFourier of 2 x 4 x 4, y (2, 1, 4, 4) torch.complex64, 25% measured, noise 0.125)"
    made = Reconstructed(volume, None, 1.0321, volume, np.zeros((3, 2, 1, 4, 4)))
    assert repr(made) == f"Reconstructed({volume!r}, 3 draws, residual 1.03 x the noise)"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "cpu:x"])
def test_a_device_that_cannot_compute_is_refused(device):
    with pytest.raises(MedgenError, match=f"device '{device}' cannot be used"):
        diffusion().to(device)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), HFValidationError("bad name"), OSError("no space")])
def test_hub_failures_are_one_sentence(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(MedgenError, match="hf://someone/brains cannot be fetched"):
        load("hf://someone/brains")


def test_hub_addresses(monkeypatch, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "contract.json").write_text("{}")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(tmp_path)
    )
    assert find("hf://someone/brains/sub/") == tmp_path / "sub"
    assert asked == [("someone/brains", ["sub/model.safetensors", "sub/contract.json", "sub/card.md"])]
    with pytest.raises(MedgenError, match="there is no contract"):
        find("hf://someone/brains")
    with pytest.raises(MedgenError, match="not an address"):
        find("hf://someone")


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, bool, np.uint8, np.int16, np.int32, np.int64])
def test_every_type_of_voxel_can_be_written(tmp_path, dtype):
    array = (np.arange(24).reshape(1, 2, 3, 4) % 2).astype(dtype)
    stored = nibabel.load(Volume(array, np.eye(4)).save(tmp_path / "v.nii"))
    assert np.array_equal(np.asarray(stored.dataobj), array[0].astype(float))


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    volume, path = image((4, 4, 4)), tmp_path / "v.nii.gz"
    before = volume.save(path).read_bytes()
    monkeypatch.setattr("nibabel.save", lambda image, target: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(MedgenError, match="No space left"):
        volume.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["v.nii.gz"]


def test_where_nothing_can_be_written(tmp_path):
    volume = image((4, 4, 4))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.nii").mkdir()
    for words, name in {"must end in": "v.mha", "cannot make the folder": "file/v.nii", "is a folder": "folder.nii"}.items():
        with pytest.raises(MedgenError, match=words):
            volume.save(tmp_path / name, overwrite=True)
    volume.save(tmp_path / "v.NPY")
    with pytest.raises(MedgenError, match="--overwrite"):
        volume.save(tmp_path / "v.NPY")
    assert np.array_equal(np.load(tmp_path / "v.NPY"), volume.array)
    with pytest.raises(MedgenError, match="needs an affine"):
        replace(volume, affine=None).save(tmp_path / "w.nii")
    assert not (tmp_path / "w.nii").exists()
