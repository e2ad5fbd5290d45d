"""Slides: pixels and places are exact at any resolution, tissue is found, and nothing is read that is not needed."""

import multiprocessing
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from special_samples import tissue_picture, write_slide

from medgen.core.errors import MedgenError
from medgen.data.formats.slide import Slide, Tile, otsu
from medgen.data.readers import peek, read_stored

rng = np.random.default_rng(0)


def planes(picture):
    return np.moveaxis(picture, -1, 0)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A slide of random pixels: 300 x 500, 3 levels, 0.25 microns per pixel."""
    path = tmp_path_factory.mktemp("slide") / "noise.svs"
    return path, write_slide(path, rng.integers(0, 256, (300, 500, 3), dtype=np.uint8))


def test_what_a_slide_says(noise, tmp_path):
    slide = Slide(noise[0])
    assert [level.shape for level in slide.levels] == [(300, 500), (150, 250), (75, 125)]
    assert [level.downsample for level in slide.levels] == pytest.approx([1, 2, 4])
    assert slide.mpp == 0.25 and slide.objective == 40
    assert slide.shape(mpp=1.0) == (75, 125) and slide.shape(level=1) == (150, 250)
    write_slide(tmp_path / "plain.tif", mpp=None)
    assert Slide(tmp_path / "plain.tif").mpp is None and len(Slide(tmp_path / "plain.tif").levels) == 3
    with pytest.raises(MedgenError, match=r"does not say its microns per pixel; ask for a level of 0 to 2"):
        Slide(tmp_path / "plain.tif").region(0, 0, 8, mpp=1.0)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_pixels_of_a_level(noise, level):
    path, picture = noise
    small, slide = picture[:: 2**level, :: 2**level], Slide(path)
    found = slide.region(13, 21, (40, 33), level=level)
    np.testing.assert_array_equal(found, planes(small[13:53, 21:54]))
    np.testing.assert_array_equal(slide.region(13, 21, (40, 33), mpp=0.25 * 2**level), found)
    np.testing.assert_array_equal(slide.region(0, 0, slide.shape(level), level=level), planes(small))


def test_beside_the_slide_it_is_white(noise):
    path, picture = noise
    found = Slide(path).region(290, -5, (20, 20))
    np.testing.assert_array_equal(found[:, :10, 5:], planes(picture[290:, :15]))
    assert (found[:, 10:] == 255).all() and (found[..., :5] == 255).all()


@pytest.mark.parametrize("mpp", [0.6, 0.333, 0.1])
def test_a_ramp_stays_a_ramp_at_any_resolution(tmp_path, mpp):
    """Pixel i of the result lies at (i + 1/2) mpp / 0.25 - 1/2 pixels of the slide."""
    y, x = np.mgrid[:400, :480]
    write_slide(tmp_path / "ramp.svs", np.stack([y // 2, x // 2, (x + y) // 4], -1).astype(np.uint8), levels=1)
    found = Slide(tmp_path / "ramp.svs").region(20, 30, (50, 60), mpp=mpp).astype(float)
    at = [(n + np.arange(m) + 0.5) * mpp / 0.25 - 0.5 for n, m in ((20, 50), (30, 60))]
    np.testing.assert_allclose(found[0], (at[0] / 2)[:, None] - 0.25 + 0 * found[0], atol=1.01)
    np.testing.assert_allclose(found[1], (at[1] / 2)[None] - 0.25 + 0 * found[1], atol=1.01)


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    with tifffile.TiffWriter(tmp_path / "s.svs") as file:
        for level, colour in enumerate(colours):
            picture = np.broadcast_to(np.uint8(colour), (256 >> level, 256 >> level, 3))
            file.write(picture, tile=(64, 64), photometric="rgb", compression="deflate", description="Aperio x\n1|MPP = 0.5", metadata=None)
    slide = Slide(tmp_path / "s.svs")
    for mpp, level in ((0.3, 0), (0.5, 0), (0.99, 0), (1.0, 1), (1.9, 1), (2.0, 2), (7.0, 2)):
        found = slide.region(4, 4, 8, mpp=mpp)
        assert (found == np.uint8(colours[level])[:, None, None]).all(), mpp


def test_detail_does_not_alias(tmp_path):
    """Stripes one pixel wide are grey at a sixth of the resolution, whatever their phase."""
    stripes = np.broadcast_to((np.arange(480) % 2 * 255)[None, :, None], (480, 480, 3)).astype(np.uint8)
    write_slide(tmp_path / "s.svs", stripes, levels=1)
    found = Slide(tmp_path / "s.svs").region(10, 10, 50, mpp=0.25 * 6.3)
    assert abs(found.astype(float) - 127.5).max() < 8


def test_neighbouring_regions_join(noise, monkeypatch):
    """Also where blocks are small: the result does not depend on how it is cut."""
    slide = Slide(noise[0])
    whole = slide.region(0, 0, (90, 150), mpp=0.8).astype(int)
    parts = np.concatenate([np.concatenate([slide.region(y, x, 30, mpp=0.8) for x in range(0, 150, 30)], 2) for y in range(0, 90, 30)], 1)
    assert abs(whole - parts).max() <= 1
    monkeypatch.setattr("medgen.data.formats.slide._BLOCK", 64)
    assert abs(whole - slide.region(0, 0, (90, 150), mpp=0.8)).max() <= 1


def test_a_thumbnail_is_the_mean(noise):
    small = Slide(noise[0]).thumbnail(50)
    assert small.shape == (3, 30, 50) and Slide(noise[0]).thumbnail(4000).shape == (3, 300, 500)
    assert abs(small.mean() - noise[1].mean()) < 2 and small.std() < 40 < noise[1].std()


def test_tissue_and_tiles(tmp_path):
    picture = tissue_picture(2048, 3072)
    write_slide(tmp_path / "s.svs", picture)
    slide = Slide(tmp_path / "s.svs")
    y, x = np.mgrid[:2048, :3072]
    truth = ((y / 2048 - 0.5) / 0.3) ** 2 + ((x / 3072 - 0.35) / 0.2) ** 2 < 1
    mask = slide.tissue(mpp=4.0)
    at = truth[8::16, 8::16]
    assert mask.shape == at.shape and (mask & at).sum() / (mask | at).sum() > 0.95
    tiles = slide.tiles(64, mpp=1.0, min_tissue=0.5)
    exact = truth.reshape(8, 256, 12, 256).mean((1, 3))
    assert {(t.y // 64, t.x // 64) for t in tiles if abs(t.fraction - 0.5) > 0.05} <= set(zip(*np.nonzero(exact >= 0.45), strict=True))
    assert {(i, j) for i, j in zip(*np.nonzero(exact >= 0.55), strict=True)} <= {(t.y // 64, t.x // 64) for t in tiles}
    assert all(abs(t.fraction - exact[t.y // 64, t.x // 64]) < 0.05 for t in tiles)
    assert len(slide.tiles(64, mpp=1.0, min_tissue=0)) == 8 * 12
    assert len(slide.tiles(64, mpp=1.0, stride=32, min_tissue=0)) == 15 * 23
    assert slide.tiles(4096) == []
    middle = slide.region(tiles[5].y, tiles[5].x, 64, mpp=1.0)
    assert middle.shape == (3, 64, 64)


def test_the_share_of_a_tile_that_cuts_pixels_of_the_mask(noise):
    """A mask of 3 x 5 pixels on 300 x 500: a tile of 80 from (60, 60) covers 0.4 to 1.4 of pixels along each axis."""
    mask = np.zeros((3, 5), bool)
    mask[0, 0] = mask[1, 1] = True
    tiles = Slide(noise[0]).tiles(80, stride=60, min_tissue=0, mask=mask)
    found = next(t for t in tiles if (t.y, t.x) == (60, 60))
    assert found.fraction == pytest.approx((40 * 40 + 40 * 40) / 80**2)
    assert tiles[0] == Tile(0, 0, 1.0) and tiles == sorted(tiles)


@pytest.mark.parametrize(
    ("background", "spread", "share"), [((255, 255, 255), 0, 0), ((246, 236, 214), 3, 0), ((240, 240, 243), 6, 0), ((205, 140, 180), 25, 1)]
)
def test_empty_and_full_slides(tmp_path, background, spread, share):
    """White, tinted and noisy glass holds no tissue; a slide of nothing but tissue no glass."""
    picture = np.clip(rng.normal(background, spread, (1024, 1024, 3)), 0, 255).astype(np.uint8)
    write_slide(tmp_path / "s.svs", picture)
    assert abs(Slide(tmp_path / "s.svs").tissue().mean() - share) < 0.01


def test_black_borders_are_not_tissue(tmp_path):
    picture = tissue_picture(1024, 1024)
    picture[:, 900:] = 0
    write_slide(tmp_path / "s.svs", picture)
    assert not Slide(tmp_path / "s.svs").tissue(mpp=4.0)[:, 58:].any()


def test_the_threshold_parts_two_groups():
    values = np.concatenate([rng.normal(30, 5, 4000), rng.normal(150, 20, 500)]).clip(0, 255).astype(np.uint8)
    assert 50 < otsu(values) < 100
    assert otsu(np.full(10, 7, np.uint8)) in range(256)


def _checksum(arguments):
    slide, places = arguments
    return [int(slide.region(y, x, 64, level=0).astype(int).sum()) for y, x in places]


def test_it_travels_to_workers(noise):
    """One slide that is open already, read by three forked processes at once."""
    slide, places = Slide(noise[0]), [(y, x) for y in range(0, 230, 10) for x in range(0, 430, 40)]
    expected = _checksum((slide, places))
    assert pickle.loads(pickle.dumps(slide)).levels == slide.levels and len(pickle.dumps(slide)) < 500
    with multiprocessing.get_context("fork").Pool(3, _adopt, (slide,)) as pool:
        assert pool.map(_by_global, [places] * 6) == [expected] * 6


def _adopt(slide):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent does with it: the pool ends its processes so
    globals()["_ADOPTED"] = slide  # inherited by the fork, not pickled


def _by_global(places):
    return _checksum((_ADOPTED, places))  # noqa: F821


def test_cells_of_a_manifest(noise, tmp_path):
    path, picture = noise
    for part, expected in (
        ("", picture),
        ("#level=1", picture[::2, ::2]),
        ("#y=3&x=5&size=20", picture[3:23, 5:25]),
        ("#level=2&y=3&x=5&size=20x30", picture[::4, ::4][3:23, 5:35]),
        ("#mpp=0.5&y=0&x=100&size=50", picture[::2, ::2][:50, 100:150]),
    ):
        volume, said = read_stored(f"{path}{part}"), peek(f"{path}{part}")
        np.testing.assert_array_equal(volume.array, planes(expected))
        assert said.shape == volume.shape and said.channels == 3 and volume.affine is None and volume.meta["planes"] == "colour"
    assert read_stored(f"{path}#level=1").meta["mpp"] == 0.5 and read_stored(f"{path}#mpp=2").shape == (37, 62)
    write_slide(tmp_path / "s.tif", picture)
    np.testing.assert_array_equal(read_stored(f"{tmp_path / 's.tif'}#level=1").array, planes(picture[::2, ::2]))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("level=3", "no level 3; it has the levels 0 to 2"),
        ("level=1&mpp=1", "not both"),
        ("mpp=0", "above 0, found '0'"),
        ("mpp=nan", "above 0, found 'nan'"),
        ("y=1&x=2", "a region takes y, x and size"),
        ("y=290&x=0&size=20", "reaches 310 x 20 pixels and the slide has 300 x 500"),
        ("y=-1&x=0&size=20", "whole number of at least 0, found '-1'"),
        ("levl=1", "no part 'levl' in '#levl=1'; did you mean 'level'"),
        ("level=1&level=2", "gives 'level' twice"),
        ("y=0&x=0&size=0", "claims the shape"),
    ],
)
def test_parts_that_cannot_be(noise, part, said):
    with pytest.raises(MedgenError, match=said) as caught:
        read_stored(f"{noise[0]}#{part}")
    assert str(noise[0]) in str(caught.value)


def test_what_is_refused(noise, tmp_path, monkeypatch):
    with pytest.raises(MedgenError, match="no such file"):
        Slide(tmp_path / "none.svs")
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(MedgenError, match=r"text\.svs: no whole-slide image"):
        read_stored(tmp_path / "text.svs")
    tifffile.imwrite(tmp_path / "strips.tif", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(MedgenError, match=r"strips\.tif: no whole-slide image"):
        Slide(tmp_path / "strips.tif")
    data = bytearray(noise[0].read_bytes())
    data[2000:60000] = bytes(58000)
    (tmp_path / "hole.svs").write_bytes(data)
    damaged = Slide(tmp_path / "hole.svs")
    with pytest.raises(MedgenError, match=r"hole\.svs: a damaged or truncated slide"):
        damaged.region(0, 0, damaged.shape())
    with pytest.raises(MedgenError, match="tiles of 0 pixels"):
        Slide(noise[0]).tiles(0)
    monkeypatch.setenv("MEDGEN_READ_LIMIT", str(300 * 500 * 3 * 4 - 1))
    with pytest.raises(MedgenError, match=r"noise\.svs: its header claims"):
        read_stored(noise[0])
    assert read_stored(f"{noise[0]}#level=1").shape == (150, 250)
    with pytest.raises(MedgenError, match=r"noise\.svs: its header claims"):
        Slide(noise[0]).region(0, 0, 4, mpp=1e4)  # a few pixels, each of them of more pixels than fit


LARGE = """
import resource, sys
from medgen.data.formats.slide import Slide
Slide(sys.argv[2]).region(0, 0, 256, mpp=0.6)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
slide = Slide(sys.argv[1])
tiles = slide.tiles(512, mpp=0.5)
for tile in tiles:
    slide.region(tile.y, tile.x, 512, mpp=0.5)
print(len(tiles), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_slide(noise, tmp_path):
    """20480 x 20480 pixels (1.2 GB), nearly all white, and one level of an eighth: tissue, grid and tiles take less than 150 MB."""
    side, tile = 20480, 512
    white, pink = (np.broadcast_to(np.uint8(c), (tile, tile, 3)) for c in ((255, 255, 255), (200, 120, 170)))
    with tifffile.TiffWriter(tmp_path / "one.tif") as file:
        file.write(np.concatenate([white, pink]), tile=(tile, tile), photometric="rgb", compression="jpeg", metadata=None)
    with tifffile.TiffFile(tmp_path / "one.tif") as file:
        page, data = file.pages[0], (tmp_path / "one.tif").read_bytes()
        encoded = [data[o : o + n] for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    assert page.jpegtables is None
    stained = {(y, x) for y in range(10, 14) for x in range(20, 24)}
    every = [encoded[(i // 40, i % 40) in stained] for i in range(40 * 40)]
    small = np.full((side // 8, side // 8, 3), 255, np.uint8)
    small[10 * 64 : 14 * 64, 20 * 64 : 24 * 64] = (200, 120, 170)
    kinds = {"tile": (tile, tile), "photometric": "rgb", "compression": "jpeg", "description": "Aperio x\n1|MPP = 0.25", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "large.svs") as file:
        file.write(iter(every), shape=(side, side, 3), dtype=np.uint8, **kinds)
        file.write(small, **kinds)
    command = [sys.executable, "-c", LARGE, str(tmp_path / "large.svs"), str(noise[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    count, kilobytes = map(int, done.stdout.split())
    assert count == 4 and kilobytes < 150_000


@pytest.mark.shared_data
def test_the_real_slide(shared_data):
    slide = Slide(shared_data / "slide" / "CMU-1-Small-Region.svs")
    assert slide.levels[0].shape == (2967, 2220) and slide.mpp == pytest.approx(0.499) and slide.objective == 20
    assert 0.3 < slide.tissue().mean() < 0.42
    assert 28 <= len(slide.tiles(128, mpp=1.0)) <= 36
    assert slide.region(0, 0, 64, mpp=1.0).shape == (3, 64, 64)
