"""The chest phantom: tissue at its Hounsfield units, nodules whose mask is the truth, noise that follows the photons."""

import csv
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from medgen.core.errors import MedgenError
from medgen.core.intensity import CTWindow
from medgen.data.manifest import EmptySplit
from medgen.data.phantom.chest import scanner as ct
from medgen.data.phantom.chest import tree
from medgen.data.phantom.chest.anatomy import Chest
from medgen.data.phantom.chest.export import write_chests
from medgen.data.phantom.chest.paint import AIR, AIRWAY, ARTERIAL, BONE, GROUND, LUNG, MARROW, SOLID, TISSUES, VENOUS
from medgen.data.phantom.chest.scanner import Scanner, clean, projection_noise
from medgen.data.phantom.chest.source import ChestData
from medgen.data.phantom.grid import Grid

RNG = np.random.default_rng(0)
QUIET = Scanner(noise=0.0)


@pytest.fixture(scope="module")
def population():
    """Six subjects at about 6 mm: chest, grid and fractions."""
    grid = QUIET.grid((64, 64, 54))
    return [(chest, grid, chest.stack(grid)) for chest in (Chest(0, index) for index in range(6))]


def litres(stack, grid, tissue):
    return float(stack[tissue].sum() * np.prod(grid.spacing)) / 1e6


# Anatomy


def test_fractions_sum_to_one(population):
    for _, _, stack in population:
        assert stack.min() >= -1e-6
        assert np.abs(stack.sum(0) - 1).max() < 1e-5


def test_adult_volumes(population):
    """Air-filled lungs of a deep breath hold 3 to 7 litres in an adult, heart and vessels within a field of 320 mm below 2."""
    for _, grid, stack in population:
        assert 2.5 < litres(stack, grid, LUNG) < 7.5
        assert 0.25 < litres(stack, grid, VENOUS) + litres(stack, grid, ARTERIAL) < 1.2
        assert 0.3 < litres(stack, grid, BONE) + litres(stack, grid, MARROW) < 2.0


def test_right_and_left_are_where_they_belong(population):
    """The heart's apex and the descending aorta lie on the left, the liver on the right and the right lung is the larger one."""
    for chest, grid, stack in population:
        x = grid.axis(0)[:, None, None] - chest.traits.move[0]
        assert (stack[TISSUES.index("heart")] * x).sum() < 0
        assert (stack[TISSUES.index("organ")] * (x > 0)).sum() > 1.5 * (stack[TISSUES.index("organ")] * (x < 0)).sum()
        assert (stack[LUNG] * (x > 0)).sum() > 0.95 * (stack[LUNG] * (x < 0)).sum()


def test_every_slice_of_the_lungs_is_enclosed(population):
    """Air of the lungs never touches the air around the body: what is outside cannot be reached from inside."""
    from scipy.ndimage import label

    for _, grid, stack in population:
        gas = stack[[AIR, LUNG, AIRWAY]].sum(0) > 0.55
        for k in np.flatnonzero((grid.axis(2) > -110) & (grid.axis(2) < 75)):
            pieces, _ = label(gas[..., k])
            outside = pieces == pieces[32, -1]
            assert stack[LUNG, ..., k][outside].sum() < 1.0


def test_ribs_cross_an_axial_slice_obliquely():
    """Seen from the side a rib falls from the spine to the front, so one slice cuts several ribs and each of them over a stretch."""
    from scipy.ndimage import label

    chest = Chest(0, 1)
    stack = chest.stack(QUIET.grid((256, 256), -40.0))[..., 0]
    bone = stack[BONE] + stack[MARROW] > 0.5
    middle = Chest(0, 1).traits.move[0]
    x = QUIET.grid((256, 256)).axis(0)
    lateral = bone & (np.abs(x - middle) > 80)[:, None]
    pieces, _ = label(lateral, np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel())[1:] * (380 / 256) ** 2
    assert 6 <= (sizes > 20).sum() <= 20
    assert np.median(sizes[sizes > 20]) > 80  # a rib of 8 x 13 mm cut straight across has about 80 mm^2


def test_vessels_reach_into_the_lung_and_narrow_on_their_way():
    arteries, veins, airways = Chest(0, 2).trees
    for twigs in (arteries, veins):
        widths = [np.median(twigs.tip[twigs.level == level]) for level in range(8)]
        assert np.all(np.diff(widths) < 0)
        assert len(twigs.start) > 2000
    # Murray's law with exponent 2.85: a fork halves r^2.85
    children = arteries.tip[arteries.level == 4].astype(float) ** Chest(0, 2).traits.tone
    parents = arteries.tip[arteries.level == 3].astype(float) ** Chest(0, 2).traits.tone
    assert children.sum() == pytest.approx(parents.sum(), rel=0.02)
    assert len(airways.start) < len(arteries.start) / 4


def test_a_thin_vessel_keeps_its_volume_at_any_voxel_size():
    twigs = tree.Twigs(*(np.float32(v) for v in ([[-30, 0.3, 0.2]], [[30, 5.1, -3.4]], [0.8], [0.8], [0])))
    length = np.linalg.norm(twigs.end - twigs.start)
    for n in (32, 64, 128):
        grid = Grid.centred((n, n, n), 80.0, (0, 0, 0))
        volume = tree.splat(twigs, grid, 80 / n).sum() * (80 / n) ** 3
        assert volume == pytest.approx(np.pi * 0.8**2 * length, rel=0.1)


def test_a_slice_is_the_plane_of_the_volume_noise_included():
    data = Scanner(fov=380.0)
    chest, size = Chest(5, 9, nodule=True), (48, 48, 40)
    whole = data.grid(size)
    volume, stack = data.image(chest, whole, chest.stack(whole), "ct"), chest.stack(whole)
    for k in (8, 15, 20, 27, 33):
        flat = Grid((48, 48, 1), whole.spacing, (*whole.origin[:2], float(whole.axis(2)[k])))
        one = chest.stack(flat)
        np.testing.assert_allclose(one[..., 0], stack[..., k], atol=1e-6)
        np.testing.assert_allclose(data.image(chest, flat, one, "ct")[..., 0], volume[..., k], atol=1e-3)


def test_finer_grids_show_the_same_chest():
    chest = Chest(0, 3)
    coarse, fine = (chest.stack(QUIET.grid((n, n, n))).reshape(len(TISSUES), -1).mean(1) for n in (32, 64))
    for name in ("lung", "fat", "soft", "heart", "organ"):
        assert coarse[TISSUES.index(name)] == pytest.approx(fine[TISSUES.index(name)], rel=0.1)


def test_subjects_differ(population):
    sizes = [litres(stack, grid, LUNG) for _, grid, stack in population]
    assert np.std(sizes) / np.mean(sizes) > 0.05
    drawn = [Chest(0, index).traits for index in range(200)]
    assert np.mean([t.contrast for t in drawn]) == pytest.approx(0.65, abs=0.1)
    assert np.mean([t.female for t in drawn]) == pytest.approx(0.45, abs=0.1)


# Nodules


def test_the_nodule_mask_is_what_differs_from_the_same_subject_without():
    with_, without = Chest(0, 8, nodule=True), Chest(0, 8, nodule=False)
    centre = with_.nodules[0].centre
    grid = QUIET.grid((160, 160), centre[2])
    stack, plain = with_.stack(grid), without.stack(grid)
    mask = with_.nodule(grid)
    changed = np.abs(stack - plain).sum(0) > 0.5
    assert mask.any() and not without.nodule(grid).any()
    assert (mask & changed).sum() > 0.98 * mask.sum()
    assert np.all(stack[[SOLID, GROUND]].sum(0)[changed] > 0.2)
    where = np.argwhere(mask) * grid.spacing + np.array(grid.origin)
    gaps = [np.linalg.norm((where - nodule.centre) / nodule.radii, axis=1) for nodule in with_.nodules]
    assert np.min(gaps, 0).max() < 1.7


def test_nodules_lie_in_the_lung_and_have_their_size():
    for index in range(4):
        chest = Chest(1, index, nodule=True)
        largest = chest.nodules[0]
        shape, spacing = (40, 40, 40), (1.2, 1.2, 1.2)
        grid = Grid(shape, spacing, tuple(largest.centre - 0.5 * 1.2 * 39))
        stack, plain = chest.stack(grid), Chest(1, index, nodule=False).stack(grid)
        taken = stack[[SOLID, GROUND]].sum(0)
        lost = plain - stack
        assert lost[[TISSUES.index(n) for n in ("fat", "bone", "heart", "organ", "marrow")]].max() < 0.02
        volume = taken.sum() * 1.2**3
        assert 0.25 < volume / (4 / 3 * np.pi * np.prod(largest.radii)) < 2.5


def test_kinds_of_nodules_have_their_density():
    kinds = {nodule.core for index in range(40) for nodule in Chest(0, index, nodule=True).nodules}
    assert kinds == {0.0, 0.55, 1.0}
    for index in range(40):
        chest = Chest(0, index, nodule=True)
        largest = chest.nodules[0]
        if largest.core == 0.55 and min(largest.radii) > 8:
            break
    grid = QUIET.grid((256, 256), largest.centre[2])
    stack = chest.stack(grid)
    image = clean(chest, grid, stack)
    assert image[stack[SOLID] > 0.99].mean() == pytest.approx(ct.hounsfield(chest.traits)["solid"], abs=15)
    assert image[stack[GROUND] > 0.99].mean() == pytest.approx(-620, abs=60)


def test_about_half_of_the_subjects_have_nodules():
    assert abs(np.mean([Chest(0, i).has_nodule for i in range(300)]) - 0.5) < 0.09


# Hounsfield units


def test_every_tissue_has_its_hounsfield_units(population):
    """Pure voxels: the tissue's mean within the stated range, and its spread that of the stated texture."""
    seen = set()
    for chest, grid, stack in population:
        image, expected = clean(chest, grid, stack), ct.hounsfield(chest.traits)
        for i, name in enumerate(TISSUES):
            low, high = ct.RANGES[name]
            assert low <= expected[name] <= high
            pure = image[stack[i] > 0.9999]
            if pure.size < 30:
                continue
            seen.add(name)
            grain = ct.GRAIN.get(name, 0.0)
            hangs = 12 if name == "lung" else 0  # more of the lung is behind the middle than before it
            assert pure.mean() == pytest.approx(expected[name], abs=0.01 + 0.5 * grain + hangs)
            assert grain == 0 or 0.6 * grain < pure.std() < 1.6 * grain + 2 * hangs
    assert {"air", "lung", "fat", "soft", "organ", "heart", "venous", "arterial", "marrow"} <= seen


def test_contrast_medium_is_in_the_blood(population):
    for chest, _, _ in population:
        values = ct.hounsfield(chest.traits)
        if chest.traits.contrast:
            assert min(values["arterial"], values["venous"]) > values["heart"] > values["soft"]
        else:
            assert values["arterial"] == values["venous"] == 42.0


def test_the_lung_is_denser_where_it_hangs(population):
    chest, grid, stack = population[0]
    image = clean(chest, grid, stack)
    y = np.broadcast_to(grid.axis(1)[None, :, None], image.shape)
    pure = stack[LUNG] > 0.999
    slope = np.polyfit(y[pure], image[pure], 1)[0]
    assert slope == pytest.approx(-chest.traits.gravity, abs=0.05)


def test_drawn_slices_lie_within_what_was_measured_on_patients():
    """The ranges are those of docs/phantom_chest.md; statistics of noise need full resolution and are left to the benchmark."""
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("phantom_chest", root / "benchmarks" / "phantom_chest.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    number = r"(-?[\d.]+)"
    rows = re.findall(rf"^\| ([^|]+?) \| [^|]* \| {number} \({number} to {number}\) \|", (root / "docs/phantom_chest.md").read_text(), re.M)
    limits = {name: (float(low), float(high)) for name, _, low, high in rows if "noise" not in name and "spectrum" not in name}
    assert len(limits) == 12
    seen = []
    for index, z in enumerate((40.0, 20.0, 0.0, -20.0, -40.0, -60.0, -80.0)):
        grid, chest = Scanner().grid((256, 256), z), Chest(0, index)
        seen.append(benchmark.statistics(Scanner().image(chest, grid, chest.stack(grid))[..., 0], grid.spacing[0]))
    outside = {name: np.median([one[name] for one in seen]) for name in limits}
    assert not {name: value for name, value in outside.items() if not limits[name][0] <= value <= limits[name][1]}


# Noise


def water(n, radius=150.0, fov=400.0):
    x = (np.arange(n) - (n - 1) / 2) * fov / n
    r = np.hypot.outer(x, x)
    return np.where(r < radius, 0.0, -1000.0).astype(np.float32), r, (fov / n, fov / n)


@pytest.mark.parametrize("n", [64, 128])
def test_noise_in_the_middle_of_water_is_what_was_asked_for(n):
    picture, r, spacing = water(n)
    noise = np.stack([projection_noise(picture, spacing, 20.0, np.random.default_rng(i)) for i in range(12)])
    assert noise[:, r < 25].std() == pytest.approx(20.0, rel=0.1)
    assert abs(noise[:, r < 25].mean()) < 4.0
    edge = noise[:, (r > 125) & (r < 145)].std()
    assert edge < 0.8 * noise[:, r < 25].std()  # rays near the edge have crossed less water


def test_noise_variance_falls_as_one_over_dose(population):
    chest, grid, stack = population[1]
    part = Grid((*grid.shape[:2], 1), grid.spacing, (*grid.origin[:2], float(grid.axis(2)[25])))
    truth = clean(chest, part, stack[..., 25:26])
    added = [Scanner(dose=dose).image(chest, part, stack[..., 25:26]) - truth for dose in (0.1, 1.0, 4.0)]
    np.testing.assert_allclose(added[0], added[1] * np.sqrt(10.0), rtol=1e-3, atol=0.02)  # the same photons counted longer
    assert added[0].var() / added[2].var() == pytest.approx(40.0, rel=1e-3)
    low = Scanner(low_dose=0.1).image(chest, part, stack[..., 25:26], "ct_low_dose") - truth
    assert low.var() / added[1].var() == pytest.approx(10.0, rel=0.35)
    assert abs(np.corrcoef(low.ravel(), added[1].ravel())[0, 1]) < 0.1  # two scans, not one that was made noisier


def test_noise_runs_along_the_rays_that_lose_most():
    """Behind two dense bodies the noise streaks along the line that joins them."""
    picture, _, spacing = water(96, 170.0)
    picture[14:26, 42:54] = picture[70:82, 42:54] = 1200.0
    noise = np.stack([projection_noise(picture, spacing, 20.0, np.random.default_rng(i)) for i in range(8)])[:, 32:64, 44:52]
    along, across = (np.diff(noise, axis=axis).var() for axis in (1, 2))
    assert across > 2.0 * along


def test_noise_has_the_spectrum_of_the_ramp_filter():
    """Power rises from nearly nothing at the lowest frequencies to its top and falls to the kernel's cut."""
    picture, _, spacing = water(128)
    noise = np.stack([projection_noise(picture, spacing, 20.0, np.random.default_rng(i)) for i in range(10)])[:, 40:88, 40:88]
    power = np.square(np.abs(np.fft.fft2(noise * np.outer(np.hanning(48), np.hanning(48))))).mean(0)
    f = np.hypot.outer(np.fft.fftfreq(48), np.fft.fftfreq(48))
    bands = [power[(f > low) & (f < high)].mean() for low, high in ((0.02, 0.06), (0.12, 0.2), (0.4, 0.5))]
    assert bands[1] > 1.3 * bands[0] and bands[1] > 20 * bands[2]


def test_padding_fills_what_lies_outside_the_circle(population):
    chest, grid, stack = population[0]
    image = Scanner(noise=0.0, padding=-3024.0).image(chest, grid, stack)
    plain = QUIET.image(chest, grid, stack)
    out = image == -3024.0
    assert out[0, 0].all() and not out[32, 0].any()
    assert out.mean() == pytest.approx(1 - np.pi / 4, abs=0.02)
    assert np.array_equal(image[~out], plain[~out])


# The data set


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_cases_depend_on_nothing_but_their_index():
    channels = ("ct", "ct_low_dose", "tissue", "nodule")
    first = [ChestData(channels, (32, 32), {"train": 2}, slices=3, seed=2).split("train").case(i, RNG) for i in range(6)]
    again = ChestData(channels, (32, 32), {"train": 30}, slices=3, seed=2).split("train")
    assert all(same(again.case(i, RNG), first[i]) for i in reversed(range(6)))
    assert not np.array_equal(first[0]["ct"], first[1]["ct"])
    alone = ChestData(("ct_low_dose",), (32, 32), {"train": 2}, slices=3, seed=2).split("train").case(4, RNG)
    assert np.array_equal(alone["ct_low_dose"], first[4]["ct_low_dose"])
    other = ChestData(channels, (32, 32), {"train": 2}, slices=3, seed=3).split("train").case(0, RNG)
    assert not np.array_equal(other["ct"], first[0]["ct"])


def test_case_keys_types_geometry_and_facts():
    scanner = Scanner(fov=384.0, thickness=4.0, dose=(0.2, 2.0))
    data = ChestData(("ct", "tissue", "nodule"), (32, 48), {"train": 3, "test": 1}, slices=4, scanner=scanner)
    cases, facts = data.split("train"), data.facts()
    assert len(cases) == 12 and len(data.split("test")) == 4
    case = cases.case(7, RNG)
    assert case["ct"].shape == (1, 32, 48) and case["ct"].dtype == np.float32
    assert case["tissue"].dtype == np.int64 and case["tissue"].max() < facts["labels"]["tissue"] == len(TISSUES)
    assert facts["labels"]["nodule"] == 2 and set(np.unique(case["nodule"])) <= {0, 1}
    np.testing.assert_allclose(np.diag(case["affine"]), [12.0, 8.0, 4.0, 1.0])
    assert facts["spacing"] == (12.0, 8.0, 4.0) and facts["slice_axis"] == 2 and facts["orientation"] == "RAS"
    assert facts["attributes"] == {"label": 2, "contrast": 2, "dose": 0}
    assert case["label"] in (0, 1) and case["contrast"] in (0, 1) and case["subject"] == "chest-0-0000001"
    doses = [cases.case(4 * i, RNG)["dose"] for i in range(3)]
    assert len(set(doses)) == 3 and all(0.2 <= dose <= 2.0 for dose in doses)
    assert facts["intensity"]["ct"]["typical"] == {"low": -1024.0, "high": 2000.0} and set(facts["intensity"]) == {"ct"}


def test_a_volume_case_is_the_scan_in_the_window():
    data = ChestData(("ct", "tissue"), (24, 24, 20), {"train": 2}, seed=4)
    case, facts = data.split("train").case(1, RNG), data.facts()
    chest, grid = Chest(4, 1), data.scanner.grid((24, 24, 20))
    stack = chest.stack(grid)
    np.testing.assert_allclose(CTWindow().inverse(case["ct"][0], -1024.0, 2000.0), data.scanner.image(chest, grid, stack), atol=1e-2)
    assert np.array_equal(case["tissue"][0], stack.argmax(0))
    assert facts["slice_axis"] is None and facts["spacing"] == grid.spacing == (380 / 24, 380 / 24, 16.0)


def test_splits_never_share_a_subject():
    data = ChestData(("tissue",), (8, 8), {"train": 400, "validation": 400, "test": 400}, slices=1)
    seen = [{data.split(name).case(i, RNG)["subject"] for i in (0, 399)} for name in data.subjects]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_slices_of_a_subject_with_nodules_mostly_cut_the_largest():
    cases = ChestData(("nodule",), (96, 96), {"train": 10}, slices=4).split("train")
    drawn = [cases.case(i, RNG) for i in range(len(cases))]
    cut = [case["nodule"].any() for case in drawn if case["label"] == 1]
    assert np.mean(cut) > 0.7
    assert not any(case["nodule"].any() for case in drawn if case["label"] == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ("t1",)}, "no channel 't1'"),
        ({"subjects": {"trian": 3}}, "did you mean 'train'"),
        ({"size": (64,)}, "two numbers"),
        ({"slices": 0}, "at least one"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(MedgenError, match=message):
        ChestData(**arguments)


@pytest.mark.parametrize("arguments", [{"dose": 0.0}, {"dose": (2.0, 1.0)}, {"dose": (1.0, 2.0, 3.0)}, {"low_dose": -1.0}, {"fov": 0.0}])
def test_impossible_scans_are_refused(arguments):
    with pytest.raises(MedgenError, match=r"dose|fov"):
        Scanner(**arguments)


def test_an_absent_split_is_empty():
    with pytest.raises(EmptySplit, match="validation"):
        ChestData(subjects={"train": 2}).split("validation")


# Files


def test_written_chests_are_the_chests(tmp_path):
    import nibabel

    scanner = Scanner(padding=-2048.0, dose=(0.5, 2.0))
    manifest = write_chests(tmp_path / "chests", 3, ("ct", "ct_low_dose", "nodule"), (24, 24, 20), seed=4, scanner=scanner)
    rows = list(csv.DictReader(manifest.open()))
    assert [row["split"] for row in rows] == ["train", "validation", "test"]
    chest, grid = Chest(4, 0), scanner.grid((24, 24, 20))
    stack = chest.stack(grid)
    image = nibabel.load(manifest.parent / rows[0]["ct"])
    np.testing.assert_allclose(image.affine, grid.affine, atol=1e-4)
    drawn = np.round(scanner.image(chest, grid, stack))
    assert np.array_equal(image.get_fdata(), np.where(drawn == -2048, -2048, drawn.clip(-1024, 3071)))
    assert np.array_equal(nibabel.load(manifest.parent / rows[0]["nodule"]).get_fdata(), chest.nodule(grid))
    assert int(rows[0]["label"]) == chest.has_nodule and float(rows[0]["dose"]) == scanner.dose_of(chest)
    with pytest.raises(MedgenError, match="exists"):
        write_chests(tmp_path / "chests", 3, ("ct",), (8, 8, 8))
