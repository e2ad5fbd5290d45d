"""Drawn H&E tiles: tissue that is the same from every window, nuclei that never overlap, stains that obey Beer and Lambert."""

import csv

import numpy as np
import pytest
from scipy.ndimage import label

from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.data.files import FileData
from medgen.data.manifest import EmptySplit
from medgen.data.module import DataModule
from medgen.data.phantom.drawn import FIRST
from medgen.data.phantom.histology import cells, stain, tissue
from medgen.data.phantom.histology.export import write_tiles
from medgen.data.phantom.histology.fields import Noise, Window, scatter
from medgen.data.phantom.histology.paint import paint
from medgen.data.phantom.histology.source import IMAGES, HistologyData, place
from medgen.data.phantom.histology.tissue import CLASSES, TISSUES, Anatomy

RNG = np.random.default_rng(0)
RGB = ("image_red", "image_green", "image_blue")
MAPS = ("tissue", "nuclei", "instances")
WINDOW = Window((2000.0, 1100.0), (192, 208), 0.5)


@pytest.fixture(scope="module")
def planes():
    """One window of every class: its anatomy and its tile."""
    anatomies = {name: Anatomy(0, 3, name) for name in CLASSES}
    return {name: (anatomy, paint(anatomy, WINDOW)) for name, anatomy in anatomies.items()}


# Fields


def test_noise_is_standard_continuous_and_the_same_on_a_grid_and_at_points():
    noise = Noise(1, 2)
    x, y = np.arange(0, 600, 0.9)[None], np.arange(0, 600, 0.9)[:, None]
    field = noise.at(3, x, y, 4.0)
    assert abs(field.mean()) < 0.03 and abs(field.std() - 1) < 0.05
    np.testing.assert_allclose(noise.at(3, *np.broadcast_arrays(x, y), 4.0), field, atol=1e-4)
    assert np.abs(np.corrcoef(field.ravel(), noise.at(4, x, y, 4.0).ravel())[0, 1]) < 0.05
    edge = noise.at(3, np.array([8.0 - 1e-4, 8.0 + 1e-4]), np.array([5.0, 5.0]), 4.0)
    assert abs(np.diff(edge)[0]) < 1e-3
    assert abs(noise.grain(5, x, y, 2.0).std() - 1) < 0.07


def test_scattered_points_do_not_depend_on_the_box():
    x, y, (mark,) = scatter((5, 1), (0.0, 0.0, 100.0, 100.0), 7.0, 1)
    far_x, far_y, (far_mark,) = scatter((5, 1), (-500.0, -300.0, 120.0, 150.0), 7.0, 1)
    inside = set(zip(*(v.tolist() for v in (x, y, mark)), strict=True))
    assert inside < set(zip(*(v.tolist() for v in (far_x, far_y, far_mark)), strict=True))
    cell = np.floor(np.stack([far_x, far_y]) / 7.0)
    assert len(np.unique(cell, axis=1).T) == len(far_x)  # one point in every cell


# Tissue and nuclei


@pytest.mark.parametrize("name", CLASSES)
def test_overlapping_windows_show_the_same_slide(planes, name):
    anatomy, tile = planes[name]
    part = Window((WINDOW.origin[0] + 40 * 0.5, WINDOW.origin[1] + 64 * 0.5), (96, 80), 0.5)
    again, place = paint(anatomy, part), (slice(64, 160), slice(40, 120))
    assert np.array_equal(tile.tissue[place], again.tissue)
    assert np.array_equal(tile.instances[place] > 0, again.instances > 0)
    np.testing.assert_allclose(tile.stains[:, *place], again.stains, atol=1e-3)


def test_no_two_nuclei_overlap():
    """Points on the outline of every ellipse lie outside all the others."""
    for name in ("inflammation", "tumour", "glands"):
        found = cells.nuclei(Anatomy(1, 4, name), WINDOW)
        assert len(found) > 25
        t = np.linspace(0, 2 * np.pi, 60)[:, None]
        along, across, c, s = found.a * np.cos(t), found.b * np.sin(t), np.cos(found.angle), np.sin(found.angle)
        x, y = (found.x + c * along - s * across).ravel(), (found.y + s * along + c * across).ravel()
        for k in range(len(found)):
            dx, dy = x - found.x[k], y - found.y[k]
            u, v = c[k] * dx + s[k] * dy, c[k] * dy - s[k] * dx
            inside = (u / found.a[k]) ** 2 + (v / found.b[k]) ** 2 < 1 - 1e-6
            assert not inside.reshape(60, -1)[:, np.arange(len(found)) != k].any()


def test_of_two_that_overlap_the_lower_rank_stays():
    values = np.array([[0, 0], [5, 0], [30, 0], [34, 9]], float)  # the first two overlap, the others are apart
    n = len(values)
    pair = cells.Nuclei(
        values[:, 0], values[:, 1], np.full(n, 4.0), np.full(n, 2.0), np.zeros(n), np.zeros(n), np.array([2.0, 1, 4, 3]), np.zeros(n)
    )
    assert cells.apart(pair).tolist() == [False, True, True, True]


@pytest.mark.parametrize("name", CLASSES)
def test_instances_are_numbered_connected_and_of_their_size(planes, name):
    anatomy, tile = planes[name]
    numbers = np.unique(tile.instances)
    assert np.array_equal(numbers, np.arange(len(tile.kinds) + 1))
    for k in numbers[1:]:
        assert label(tile.instances == k, np.ones((3, 3)))[1] == 1
    found = cells.nuclei(anatomy, WINDOW)
    x, y, (right, bottom) = found.x - WINDOW.origin[0], found.y - WINDOW.origin[1], (208 * 0.5, 192 * 0.5)
    whole = found.kept((x > 12) & (x < right - 12) & (y > 12) & (y < bottom - 12))
    seen = [
        tile.instances[int((b - WINDOW.origin[1]) / 0.5), int((a - WINDOW.origin[0]) / 0.5)] for a, b in zip(whole.x, whole.y, strict=True)
    ]
    areas = np.bincount(tile.instances.ravel())[np.array(seen, int)] * 0.25
    assert np.sum(areas) == pytest.approx(np.sum(np.pi * whole.a * whole.b), rel=0.08)


def test_gland_nuclei_stand_upright_on_the_base():
    anatomy = Anatomy(0, 3, "glands")
    found = cells.nuclei(anatomy, Window((2000.0, 1100.0), (400, 400), 0.5))
    found = found.kept(found.kind == cells.GLAND_CELL)
    box = (1990.0, 1090.0, 2210.0, 2210.0)
    depth, right, down = (anatomy.regions(found.x + dx, found.y + dy, box).gland for dx, dy in ((0, 0), (0.5, 0), (0, 0.5)))
    height = anatomy.layout.height * anatomy.traits.height
    assert len(found) > 60
    assert np.mean((depth > 2) & (depth < 0.5 * height)) > 0.75
    normal = np.arctan2(down - depth, right - depth)
    assert np.mean(np.abs(np.cos(normal - found.angle))) > 0.93


def test_fibroblasts_lie_along_the_fibres():
    anatomy = Anatomy(0, 5, "stroma")
    found = cells.nuclei(anatomy, WINDOW)
    found = found.kept(found.kind == cells.SPINDLE)
    box = (1950.0, 1050.0, 2160.0, 1260.0)

    def change(turn):
        """Of the coordinate across the fibres, two micrometres away from every nucleus."""
        moved = found.x + 2 * np.cos(found.angle + turn), found.y + 2 * np.sin(found.angle + turn)
        return np.abs(anatomy.regions(*moved, box).across - anatomy.regions(found.x, found.y, box).across)

    assert np.median(change(0.0)) < 0.35 * np.median(change(np.pi / 2))
    assert np.median(found.a / found.b) > 2


def test_nuclei_of_every_kind_have_their_shape():
    def kind(name, which, subject=2):
        found = cells.nuclei(Anatomy(0, subject, name), Window((0.0, 0.0), (700, 700), 0.5))
        return found.kept(found.kind == which)

    lymphocytes, tumour, glands = (
        kind("inflammation", cells.LYMPHOCYTE),
        kind("tumour", cells.TUMOUR_CELL),
        kind("glands", cells.GLAND_CELL),
    )
    area = {name: np.pi * found.a * found.b for name, found in (("l", lymphocytes), ("t", tumour), ("g", glands))}
    assert 6 < 2 * np.median(lymphocytes.a) < 8  # micrometres
    assert np.median(area["t"]) > 1.5 * np.median(area["l"])
    spread = {name: np.std(np.log(values)) for name, values in area.items()}
    assert spread["t"] > 1.3 * spread["g"]


def test_every_class_is_made_of_its_tissue():
    data = HistologyData(("tissue", "instances"), (160, 160), {"train": 12}, tiles=4)
    shares: dict[str, list] = {name: [] for name in CLASSES}
    for case in (data.draw(index, number) for index in range(12) for number in range(4)):
        shares[CLASSES[case["label"]]].append(np.bincount(case["tissue"].ravel(), minlength=len(TISSUES)) / 160**2)
    assert all(len(rows) >= 2 for rows in shares.values())
    mean = {name: dict(zip(TISSUES, np.mean(rows, 0), strict=True)) for name, rows in shares.items()}
    assert mean["glands"]["epithelium"] > 0.25 and mean["glands"]["lumen"] > 0.02
    assert mean["tumour"]["tumour"] > 0.45
    assert mean["adipose"]["adipose"] > 0.6
    assert mean["inflammation"]["lymphoid"] > 0.4 > mean["stroma"]["lymphoid"]
    for name in CLASSES:
        assert name == "glands" or mean[name]["epithelium"] == 0
        assert name == "tumour" or mean[name]["tumour"] == 0
        assert name == "adipose" or mean[name]["adipose"] == 0


def test_magnification_changes_pixels_and_not_tissue():
    anatomy = Anatomy(0, 6, "tumour")
    tiles = {mpp: paint(anatomy, Window((500.0 + mpp / 2, 500.0 + mpp / 2), (int(96 / mpp),) * 2, mpp)) for mpp in (0.25, 0.5, 1.0)}
    counts = [len(t.kinds) for t in tiles.values()]
    areas = [(t.instances > 0).mean() for t in tiles.values()]
    hematoxylin = [t.stains[0].mean() for t in tiles.values()]
    assert max(counts) - min(counts) <= 2
    assert max(areas) / min(areas) < 1.05 and max(hematoxylin) / min(hematoxylin) < 1.05


# Light


def test_beer_lambert_by_hand():
    matrix = np.array([[0.6, 0.7, 0.3], [0.1, 0.9, 0.2], [0.0, 0.5, 0.4]])
    one = np.zeros((3, 1, 2), np.float32)
    one[0, 0, 0], one[1, 0, 0] = 1.0, 0.5
    readings = stain.transmit(one, matrix, (200.0, 100.0, 50.0))
    np.testing.assert_allclose(readings[:, 0, 0], [200 * 10**-0.65, 100 * 10**-1.15, 50 * 10**-0.4], rtol=1e-5)
    np.testing.assert_allclose(readings[:, 0, 1], [200, 100, 50], rtol=1e-6)


@pytest.mark.parametrize("name", stain.DOMAINS)
def test_concentrations_come_back_from_light(planes, name):
    anatomy, tile = planes["glands"]
    lab = stain.domain(name)
    matrix = lab.stained(anatomy.traits.shade, anatomy.traits.tint)
    readings = stain.transmit(tile.stains, matrix, lab.white)
    assert readings.min() > 0 and np.all(readings.max((1, 2)) <= np.float32(lab.white))
    np.testing.assert_allclose(stain.unmix(readings, matrix, lab.white), tile.stains, atol=2e-3)


def test_hematoxylin_is_in_nuclei_eosin_around_them_and_nothing_on_glass(planes):
    for name in ("stroma", "inflammation", "tumour"):
        _, tile = planes[name]
        inside = tile.instances > 0
        assert tile.stains[0][inside].mean() > 4 * tile.stains[0][~inside].mean()
        assert tile.stains[1][~inside].mean() > tile.stains[1][inside].mean()
    anatomy, coarse = Anatomy(0, 3, "stroma"), Window((0.0, 0.0), (300, 300), 9.0)
    glass = anatomy.regions(*coarse.axes, coarse.box).edge
    y, x = np.unravel_index(glass.argmin(), glass.shape)
    bare = paint(anatomy, Window((x * 9.0 - 2, y * 9.0 - 2), (8, 8), 0.5))
    assert glass.min() < -10 and (bare.tissue == tissue.BACKGROUND).all() and bare.stains.max() == 0


def test_detector_noise_follows_the_light():
    light = np.stack([np.full((300, 300), level, np.float32) for level in (200.0, 50.0, 0.0)])
    seen = stain.scanned(light, (0.0, 0.0, 0.0), 4.0, np.random.default_rng(1))
    assert seen[0].std() == pytest.approx(4 * np.sqrt(200 / 255), rel=0.02)
    assert seen[1].std() == pytest.approx(4 * np.sqrt(50 / 255), rel=0.02)
    assert seen[2].max() == 0
    dot = np.zeros((3, 41, 41), np.float32)
    dot[:, 20, 20] = 100.0
    spread = stain.scanned(dot, (0.0, 1.0, 2.0), 0.0, np.random.default_rng(1))
    offsets = np.arange(41) - 20.0
    widths = [np.sqrt((plane.sum(0) * offsets**2).sum() / plane.sum()) for plane in spread]
    np.testing.assert_allclose(widths, [0, 1, 2], atol=0.06)


def test_the_same_tissue_in_two_domains_differs_in_stain_only():
    channels = (*(f"{lab}_{c}" for lab in ("pink", "violet") for c in stain.COLOURS), *MAPS)
    data = HistologyData(channels, (64, 64), {"train": 2}, tiles=2, noise=0.0)
    case = data.draw(1, 1)
    tile, _ = data.tile(1, 1)
    traits = tissue.draw_traits(0, 1)
    for lab in ("pink", "violet"):
        lamp = stain.domain(lab)
        sharp = tile.inner(stain.transmit(tile.stains, lamp.stained(traits.shade, traits.tint), lamp.white))
        shown = (np.concatenate([case[f"{lab}_{c}"] for c in stain.COLOURS]) + 1) * 127.5
        assert np.abs(shown - sharp).mean() < 3.0  # the optics' blur is all that lies between
        assert np.corrcoef(shown.ravel(), sharp.ravel())[0, 1] > 0.98
    assert np.abs(case["pink_red"] - case["violet_red"]).mean() > 0.1
    alone = HistologyData(("violet_red", "tissue"), (64, 64), {"train": 2}, tiles=2, noise=0.0).draw(1, 1)
    assert np.array_equal(alone["violet_red"], case["violet_red"]) and np.array_equal(alone["tissue"], case["tissue"])


# The data set


def test_cases_depend_on_nothing_but_their_index():
    data = HistologyData((*RGB, *MAPS), (48, 40), {"train": 2}, tiles=3, seed=2)
    first = [data.split("train").case(i, np.random.default_rng(i)) for i in range(6)]
    again = HistologyData((*RGB, *MAPS), (48, 40), {"train": 20}, tiles=3, seed=2).split("train")
    for i in reversed(range(6)):
        case = again.case(i, RNG)
        assert case.keys() == first[i].keys() and all(np.array_equal(case[k], first[i][k]) for k in case)
    assert not np.array_equal(first[0]["image_red"], first[1]["image_red"])
    other = HistologyData(RGB, (48, 40), {"train": 2}, tiles=3, seed=3).draw(0, 0)
    assert not np.array_equal(other["image_red"], first[0]["image_red"])


def test_case_keys_types_and_facts():
    data = HistologyData((*RGB, *MAPS), (48, 40), {"train": 3, "test": 1}, tiles=2, domains=("pale",), mpp=1.0)
    case, facts = data.split("train").case(3, RNG), data.facts()
    assert case["image_red"].shape == (1, 48, 40) and case["image_red"].dtype == np.float32
    assert all(case[name].dtype == np.int64 and case[name].shape == (1, 48, 40) for name in MAPS)
    assert np.array_equal(case["nuclei"], case["instances"] > 0)
    assert case["subject"] == "histology-0-0000001" and "affine" not in case
    assert case["domain"] == list(stain.DOMAINS).index("pale") and case["label"] < facts["attributes"]["label"]
    assert case["density"] == pytest.approx(case["instances"].max() / (48 * 40) * 1000)
    assert facts["labels"] == {"tissue": len(TISSUES), "nuclei": 2} and facts["spacing"] is None
    contract = Contract.from_dict({**facts, "target": RGB, "labels": {}, "attributes": {}})
    stored = contract.map_of("image_red").inverse(case["image_red"], **contract.typical("image_red"))
    assert stored.min() >= 0 and 150 < stored.max() <= 255


def test_captions_say_what_the_tile_is():
    data = HistologyData(RGB, (64, 64), {"train": 6}, tiles=1, mpp=0.25)
    words = {"glands": "normal glands", "tumour": "a tumour", "adipose": "adipose tissue"}
    for index in range(6):
        case = data.draw(index, 0)
        name = CLASSES[case["label"]]
        said = case["caption"]
        assert words.get(name, name) in said and f"{list(stain.DOMAINS)[case['domain']]} stain" in said
        assert f"{case['density']:.1f} per 1000 square micrometres" in said and "0.25 micrometres per pixel" in said


def test_a_batch_carries_captions_as_text():
    batch = next(iter(DataModule(HistologyData(RGB, (16, 16), {"test": 2}, tiles=2), batch_size=4).in_order("test")))
    assert batch["image_red"].shape == (4, 1, 16, 16) and batch["label"].shape == (4,)
    assert len(batch["caption"]) == 4 and all(text.startswith("H&E tile of ") for text in batch["caption"])


def test_subjects_differ_in_class_mix_and_stain():
    traits = [tissue.draw_traits(0, i) for i in range(60)]
    mixes = np.array([t.mix for t in traits])
    np.testing.assert_allclose(mixes.sum(1), 1)
    assert mixes.max(1).mean() > 0.4 and np.all(np.abs(mixes.mean(0) - 0.2) < 0.08)
    assert np.std([t.shade for t in traits], 0).min() > 0.05
    labs = [HistologyData().domain_of(i) for i in range(200)]
    assert all(30 < labs.count(name) < 70 for name in stain.DOMAINS)


def test_splits_never_share_a_subject_and_tiles_never_overlap():
    data = HistologyData(RGB, (8, 8), {name: 400 for name in FIRST}, tiles=1)
    seen = [{data.split(name).case(i, RNG)["subject"] for i in (0, 1, 399)} for name in FIRST]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    boxes = [place(0, 0, number, (256, 256), 1.0)[1].box for number in range(40)]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ("image_rd",)}, "did you mean 'image_red'"),
        ({"domains": ("violett",)}, "did you mean 'violet'"),
        ({"domains": ()}, "at least one"),
        ({"subjects": {"trian": 3}}, "did you mean 'train'"),
        ({"size": (64, 64, 64)}, "rows and columns"),
        ({"mpp": 5.0}, "0.1 to 2"),
        ({"size": (1024, 1024), "mpp": 1.0}, "up to 900"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(MedgenError, match=message):
        HistologyData(**arguments)


def test_an_absent_split_is_empty():
    with pytest.raises(EmptySplit, match="validation"):
        HistologyData(subjects={"train": 2}).split("validation")


# Files


def test_written_tiles_are_the_tiles(tmp_path):
    from PIL import Image

    manifest = write_tiles(tmp_path / "slides", tiles=2, size=(48, 40), seed=4)
    rows = list(csv.DictReader(manifest.open()))
    assert [row["split"] for row in rows] == ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    data = HistologyData((*RGB, *MAPS), (48, 40), {"train": 2}, tiles=2, seed=4)
    case = data.split("train").case(3, RNG)
    row = rows[3]
    mask = Image.open(manifest.parent / row["instances"])
    assert mask.mode == "I;16" and np.array_equal(np.asarray(mask), case["instances"][0])
    assert row["class"] == CLASSES[case["label"]] and row["caption"] == case["caption"]
    channels = {name: {"name": "unit_range"} for name in RGB}
    loaded = FileData(str(manifest), channels, (48, 40), {"tissue": len(TISSUES), "nuclei": 2}, {"label": 5, "domain": 4, "density": 0})
    again = loaded.split("train").case(3, RNG)
    for name in RGB:
        np.testing.assert_allclose(again[name], case[name], atol=0.51 / 127.5)
    assert np.array_equal(again["tissue"], case["tissue"]) and again["label"] == case["label"]
    with pytest.raises(MedgenError, match="exists"):
        write_tiles(tmp_path / "slides")


def test_the_configuration_offers_every_channel():
    assert {"image_red", "pink_green", "crimson_blue"} <= set(IMAGES) and len(IMAGES) == 3 * (1 + len(stain.DOMAINS))
