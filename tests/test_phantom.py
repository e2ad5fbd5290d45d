"""The brain phantom: anatomy of the right size, signals by their equations, and the same subject wherever it is drawn."""

import csv

import numpy as np
import pytest

from medgen.core.errors import MedgenError
from medgen.core.intensity import MRPercentile
from medgen.core.random import generator
from medgen.data.columns import read_columns
from medgen.data.manifest import EmptySplit, Manifest
from medgen.data.phantom import contrast, shapes
from medgen.data.phantom.anatomy import Brain
from medgen.data.phantom.drawn import FIRST
from medgen.data.phantom.export import write_phantoms
from medgen.data.phantom.grid import Grid
from medgen.data.phantom.paint import CSF, DEEP, GM, LESION, TISSUES, WM
from medgen.data.phantom.source import PhantomData
from medgen.data.readers import read

GRID = Grid.centred((64, 64, 64))
ML = float(np.prod(GRID.spacing)) / 1000
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def population():
    """Six subjects at 3.5 mm: brain and its fractions."""
    brains = [Brain(0, index) for index in range(6)]
    return [(brain, brain.stack(GRID)) for brain in brains]


def volumes(stack):
    return {name: float(total) * ML for name, total in zip(TISSUES, stack.reshape(len(TISSUES), -1).sum(1), strict=True)}


# Shapes


def test_depths_are_distances_in_millimetres():
    p = tuple(np.float32(v) for v in ([0, 0, 13], [0, 8, 0], [0, 0, 0]))
    np.testing.assert_allclose(shapes.ellipsoid(p, (0, 0, 0), (10, 10, 10))[1:], [2, -3], rtol=1e-3)
    line = shapes.Tube(((-5, 0, 0, 4), (20, 0, 0, 4)))
    np.testing.assert_allclose(line.depth(p), [4, -4, 4], atol=1e-4)
    np.testing.assert_allclose(line.depth(p, grow=1.5), [5.5, -2.5, 5.5], atol=1e-4)


def test_a_thin_sheet_keeps_its_volume_at_any_voxel_size():
    for voxel in (0.5, 1.0, 4.0):
        centres = np.arange(-40, 40) * voxel + 0.3 * voxel
        thickness = shapes.cover_sheet(np.abs(centres), 0.6, voxel).sum() * voxel
        assert abs(thickness - 1.2) < 1e-6


def test_the_gradient_of_a_random_field_is_its_slope():
    waves = shapes.draw_waves(generator(1), 12, (20.0, 40.0), 1.0)
    p = tuple(v.astype(np.float32) for v in RNG.uniform(-60, 60, (3, 50)))
    value, slope = waves.with_gradient(p)
    moved = waves((p[0] + 0.05, p[1], p[2]))
    np.testing.assert_allclose(value, waves(p), atol=1e-5)
    np.testing.assert_allclose((moved - value) / 0.05, slope[:, 0], atol=5e-3)
    wide = waves(tuple(v.astype(np.float32) for v in RNG.uniform(-500, 500, (3, 20000))))
    assert abs(wide.std() - 1) < 0.03


# Anatomy


def test_fractions_sum_to_one(population):
    for _, stack in population:
        assert stack.min() >= 0
        assert np.abs(stack.sum(0) - 1).max() < 1e-5


def test_adult_volumes(population):
    for brain, stack in population:
        ml = volumes(stack)
        whole = ml["gm"] + ml["wm"] + ml["deep"] + ml["lesion"]
        assert 900 < whole < 1650
        assert 0.95 < ml["gm"] / ml["wm"] < 1.6
        assert 15 < ml["deep"] < 60
        assert 8 < brain.ventricles(GRID).sum() * ML < 70
        assert 200 < ml["csf"] < 750


def test_the_population_mean_is_an_average_adult(population):
    totals = [volumes(stack) for _, stack in population]
    assert 1200 < np.mean([t["gm"] + t["wm"] + t["deep"] for t in totals]) < 1500
    assert 1.05 < np.mean([t["gm"] / t["wm"] for t in totals]) < 1.4


def test_ventricles_are_csf_inside_the_brain(population):
    brain, stack = population[2]
    filled = brain.ventricles(GRID)
    assert np.all(stack[CSF] >= filled - 1e-5)
    z = np.arange(64) * GRID.spacing[2] + GRID.origin[2]
    heights = (filled.sum((0, 1)) * z).sum() / filled.sum()
    assert -5 < heights < 25


def test_the_cortex_is_folded(population):
    """The surface between grey and white matter of a folded cortex is far larger than that of a smooth brain of the same volume."""
    _, stack = population[0]
    white = stack[WM]
    area = sum(np.abs(np.diff(white, axis=i)).sum() for i in range(3)) * GRID.spacing[0] ** 2 / 1.5
    volume = white.sum() * ML * 1000
    ball = (36 * np.pi) ** (1 / 3) * volume ** (2 / 3)
    assert area / ball > 3


def test_a_slice_is_the_plane_of_the_volume():
    brain = Brain(5, 9, lesion=True)
    volume = brain.stack(Grid.centred((48, 48, 48)))
    for k in (2, 18, 24, 30, 45):
        full = Grid.centred((48, 48, 48))
        flat = Grid((48, 48, 1), full.spacing, (*full.origin[:2], full.origin[2] + k * full.spacing[2]))
        np.testing.assert_allclose(brain.stack(flat)[..., 0], volume[..., k], atol=2e-3)


def test_finer_grids_show_the_same_head():
    coarse, fine = (volumes_of(Brain(0, 1), n) for n in (48, 96))
    for name in ("gm", "wm", "csf", "bone"):
        assert abs(coarse[name] / fine[name] - 1) < 0.1


def volumes_of(brain, n):
    grid = Grid.centred((n, n, n))
    return dict(zip(TISSUES, brain.stack(grid).reshape(len(TISSUES), -1).sum(1) * np.prod(grid.spacing), strict=True))


def test_subjects_differ(population):
    brains = [volumes(stack) for _, stack in population]
    for name, spread in (("gm", 0.05), ("csf", 0.05), ("bone", 0.02)):
        values = [b[name] for b in brains]
        assert np.std(values) / np.mean(values) > spread
    sizes = [brain.ventricles(GRID).sum() for brain, _ in population]
    assert max(sizes) / min(sizes) > 1.7
    grey = [stack[GM] > 0.5 for _, stack in population]
    overlap = [2 * (a & b).sum() / (a.sum() + b.sum()) for i, a in enumerate(grey) for b in grey[:i]]
    assert max(overlap) < 0.75  # no two share their folds


def test_lesion(population):
    brain = Brain(0, 5, lesion=True)
    stack = brain.stack(GRID)
    mask = brain.lesion(GRID)
    assert np.array_equal(mask, stack[LESION] > 0.5)
    assert 0.2 < mask.sum() * ML < 60
    healthy = Brain(0, 5, lesion=False)
    assert not healthy.lesion(GRID).any()
    without = healthy.stack(GRID)
    tissue = [GM, WM, DEEP]
    np.testing.assert_allclose(stack[LESION], without[tissue].sum(0) - stack[tissue].sum(0), atol=1e-5)
    assert np.array_equal(stack[CSF], without[CSF])
    where = np.argwhere(mask) * GRID.spacing + np.array(GRID.origin)
    assert np.linalg.norm(where - brain.lesion_centre, axis=1).min() < 6


def test_about_half_of_the_subjects_have_a_lesion():
    share = np.mean([generator(0, i, 7).random() < 0.5 for i in range(400)])
    assert abs(share - 0.5) < 0.08
    assert [Brain(0, i).has_lesion for i in range(6)] == [bool(generator(0, i, 7).random() < 0.5) for i in range(6)]


# Contrast


def test_spin_echo_and_inversion_recovery_closed_forms():
    assert contrast.spin_echo(0.8, 1000.0, 100.0, 1000.0, 100.0) == pytest.approx(0.8 * (1 - np.exp(-1)) * np.exp(-1))
    assert contrast.inversion_recovery(1.0, 1000.0, 1e9, 1e9, 0.0, 1000.0 * np.log(2)) == pytest.approx(0, abs=1e-12)
    wm = contrast.TABLE["wm"]
    expected = wm.pd * (1 - np.exp(-5000 / 1084)) * np.exp(-100 / 69)
    assert contrast.signals("t2", 3.0)["wm"] == pytest.approx(expected)


@pytest.mark.parametrize("field", contrast.FIELDS)
def test_order_of_tissues(field):
    t1, t2, flair = (contrast.signals(name, field) for name in ("t1", "t2", "flair"))
    assert t1["wm"] > t1["deep"] > t1["gm"] > t1["csf"]
    assert t2["csf"] > t2["lesion"] > t2["gm"] > t2["wm"]
    assert abs(flair["csf"]) < 1e-6
    assert flair["lesion"] > flair["gm"] > flair["wm"] > 0
    assert t1["lesion"] < t1["wm"] and t2["lesion"] > t2["wm"]


def test_null_time_nulls():
    assert contrast.inversion_recovery(1.0, 4300.0, 2000.0, 9000.0, 0.0, contrast.null_time(4300.0, 9000.0)) == pytest.approx(0, abs=1e-12)


def test_partial_volume_is_summed_before_the_magnitude():
    stack = np.zeros((len(TISSUES), 1, 1, 1), np.float32)
    stack[CSF] = stack[GM] = 0.5
    signal = contrast.signals("t2")
    assert contrast.clean(stack, "t2")[0, 0, 0] == pytest.approx((signal["csf"] + signal["gm"]) / 2, rel=1e-6)


def test_hounsfield_units(population):
    _, stack = population[0]
    image = contrast.clean(stack, "ct")
    assert image[stack[TISSUES.index("bone")] > 0.95].min() > 300
    brain = image[(stack[GM] + stack[WM]) > 0.99]
    assert brain.min() > 20 and brain.max() < 45
    assert image[0, 0, -1] == -1000


def test_rician_background_and_signal():
    noise = contrast.rician(np.zeros((200, 200), np.float32), 0.1, np.random.default_rng(0))
    assert noise.mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.01)
    bright = contrast.rician(np.full((200, 200), 5.0, np.float32), 0.1, np.random.default_rng(0))
    assert bright.std() == pytest.approx(0.1, rel=0.02)


def test_bias_field_is_positive_smooth_and_of_its_strength():
    grid = Grid.centred((24, 24, 24))
    logs = np.log([contrast.bias_field(0, i, "t1", grid, 0.08) for i in range(40)])
    assert logs.std() == pytest.approx(0.08, rel=0.35)
    assert np.abs(np.diff(logs, axis=1)).max() < 0.06


def test_typical_levels_are_what_the_percentile_rule_finds(population):
    for name in contrast.SEQUENCES:
        seen = [contrast.clean(stack, name) * contrast.bias_field(0, i, name, GRID, 0.08) for i, (_, stack) in enumerate(population)]
        highs = [MRPercentile().fit(image)["high"] for image in seen]
        assert contrast.typical_high(name) == pytest.approx(np.median(highs), rel=0.15)


# The data set


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_cases_depend_on_nothing_but_their_index():
    data = PhantomData(("t1", "flair", "ct", "tissue", "lesion"), (40, 40), {"train": 3}, slices=3, seed=2)
    first = [data.split("train").case(i, np.random.default_rng(i)) for i in range(9)]
    again = PhantomData(data.channels, (40, 40), {"train": 30}, slices=3, seed=2).split("train")
    assert all(same(again.case(i, RNG), first[i]) for i in reversed(range(9)))
    assert not np.array_equal(first[0]["t1"], first[1]["t1"])
    other = PhantomData(data.channels, (40, 40), {"train": 3}, slices=3, seed=3).split("train").case(0, RNG)
    assert not np.array_equal(other["t1"], first[0]["t1"])


def test_a_case_can_be_changed_without_changing_the_data():
    cases = PhantomData(("t1",), (16, 16), {"train": 1}).split("train")
    first = cases.case(3, RNG)
    before = first["t1"].copy()
    first["t1"] += 5
    assert np.array_equal(cases.case(3, RNG)["t1"], before)


def test_channels_are_drawn_independently_of_each_other():
    both = PhantomData(("t1", "t2"), (32, 32)).split("test").case(5, RNG)
    alone = PhantomData(("t2",), (32, 32)).split("test").case(5, RNG)
    assert np.array_equal(both["t2"], alone["t2"])


def test_case_keys_types_and_geometry():
    data = PhantomData(("t1", "tissue", "lesion"), (32, 40), {"train": 2, "test": 1}, slices=4)
    case = data.split("train").case(7, RNG)
    assert case["t1"].shape == (1, 32, 40) and case["t1"].dtype == np.float32
    assert case["tissue"].dtype == np.int64 and case["tissue"].max() < data.facts()["labels"]["tissue"]
    assert set(np.unique(case["lesion"])) <= {0, 1}
    np.testing.assert_allclose(np.diag(case["affine"]), [7.0, 5.6, 7.0, 1.0])
    assert case["label"] in (0, 1) and case["subject"] == "phantom-0-0000001"
    assert len(data.split("train")) == 8 and len(data.split("test")) == 4


def test_volume_case_and_its_contract():
    data = PhantomData(("t1", "ct", "tissue"), (24, 28, 24), {"train": 2}, noise=0.0, bias=0.0)
    case, facts = data.split("train").case(1, RNG), data.facts()
    assert len(data.split("train")) == 2 and case["t1"].shape == (1, 24, 28, 24)
    grid = Grid.centred((24, 28, 24))
    stack = Brain(0, 1).stack(grid)
    raw = contrast.clean(stack, "t1")
    expected = MRPercentile().forward(raw, **MRPercentile().fit(raw))
    np.testing.assert_allclose(case["t1"][0], expected, atol=1e-6)
    np.testing.assert_allclose((case["ct"][0] + 1) * 1512 - 1024, contrast.clean(stack, "ct"), atol=1e-2)
    assert np.array_equal(case["tissue"][0], stack.argmax(0))
    assert facts["slice_axis"] is None and facts["spatial_dims"] == 3 and facts["spacing"] == grid.spacing
    assert facts["intensity"]["ct"]["typical"] == {"low": -1024.0, "high": 2000.0}


def test_splits_never_share_a_subject():
    counts = {"train": 500, "validation": 500, "test": 500}
    data = PhantomData(("t1",), (8, 8), counts, slices=1)
    seen = [{data.split(name).case(i, RNG)["subject"] for i in (0, 1, 499)} for name in counts]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    spans = sorted(FIRST.values())
    assert min(np.diff(spans)) >= 1_000_000


def test_slices_of_a_lesion_subject_mostly_cut_the_lesion():
    cases = PhantomData(("lesion",), (64, 64), {"train": 20}, slices=4).split("train")
    drawn = [cases.case(i, RNG) for i in range(len(cases))]
    cut = [case["lesion"].any() for case in drawn if case["label"] == 1]
    assert np.mean(cut) > 0.6
    assert not any(case["lesion"].any() for case in drawn if case["label"] == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ("t11",)}, "did you mean 't1'"),
        ({"subjects": {"trian": 3}}, "did you mean 'train'"),
        ({"subjects": {"train": 1_000_001}}, "stay apart"),
        ({"size": (64,)}, "two numbers"),
        ({"field": 7.0}, "1.5 and 3.0"),
        ({"slices": 0}, "at least one"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(MedgenError, match=message):
        PhantomData(**arguments)


def test_an_absent_split_is_empty():
    with pytest.raises(EmptySplit, match="validation"):
        PhantomData(subjects={"train": 2}).split("validation")
    with pytest.raises(MedgenError, match="did you mean 'test'"):
        PhantomData().split("tets")


# Files


def test_written_phantoms_are_the_phantoms(tmp_path):
    import nibabel

    manifest = write_phantoms(tmp_path / "heads", subjects=3, channels=("t1", "ct", "lesion"), shape=(20, 24, 20), seed=4)
    rows = list(csv.DictReader(manifest.open()))
    assert [row["split"] for row in rows] == ["train", "validation", "test"]
    assert len({row["subject"] for row in rows}) == 3
    image = nibabel.load(manifest.parent / rows[0]["t1"])
    grid = Grid.centred((20, 24, 20))
    np.testing.assert_allclose(image.affine, grid.affine, atol=1e-5)
    data = PhantomData(("t1",), (20, 24, 20), {"train": 1}, seed=4)
    values = image.get_fdata()
    loaded = MRPercentile().forward(values, **MRPercentile().fit(values))
    np.testing.assert_allclose(loaded, data.split("train").case(0, RNG)["t1"][0], atol=1e-4)
    mask = nibabel.load(manifest.parent / rows[0]["lesion"]).get_fdata()
    assert np.array_equal(mask, Brain(4, 0).lesion(grid))
    places = [0, FIRST["validation"], FIRST["test"]]
    assert [row["label"] for row in rows] == [str(int(Brain(4, index).has_lesion)) for index in places]


def test_label_maps_on_disk_come_with_the_names_of_their_classes(tmp_path):
    """The class that is called lesion is where the lesion's own map is, the one called white matter where that fills most of a voxel."""
    manifest = Manifest.read(write_phantoms(tmp_path, subjects=3, channels=("tissue", "lesion"), shape=(48, 54, 48)))
    columns = read_columns(manifest.path)
    names = {name: {word: value for value, word in columns[name].names().items()} for name in ("tissue", "lesion")}
    assert len(names["tissue"]) == len(TISSUES) and names["lesion"] == {"no lesion": 0, "lesion": 1}
    brains = [Brain(0, FIRST[row["split"]]) for row in manifest.rows]
    assert any(brain.has_lesion for brain in brains)
    for row, brain in zip(manifest.rows, brains, strict=True):
        tissue, lesion = (read(manifest.file(row, name)).array[0] for name in ("tissue", "lesion"))
        inside = lesion[tissue == names["tissue"]["lesion"]]
        assert inside.mean() > 0.9 if brain.has_lesion else not len(inside)
        assert np.array_equal(tissue == names["tissue"]["white matter"], brain.labels(Grid.centred(tissue.shape)) == WM)


def test_writing_refuses_to_overwrite_and_to_lose_subjects(tmp_path):
    write_phantoms(tmp_path, subjects=3, channels=("t1",), shape=(8, 8, 8))
    with pytest.raises(MedgenError, match="exists"):
        write_phantoms(tmp_path, subjects=3, channels=("t1",), shape=(8, 8, 8))
    with pytest.raises(MedgenError, match="expected 5"):
        write_phantoms(tmp_path / "b", subjects=5, splits={"train": 3})
