"""What each format says is what is read: values in their own type, planes, places and units, against the formats' own libraries."""

from __future__ import annotations

import gzip
import struct
import sys
import zipfile
import zlib

import nibabel
import numpy as np
import pytest
from PIL import Image

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.files import FileData
from medgen.data.formats import arrays
from medgen.data.formats.format import _group_limits
from medgen.data.planes import plane_of
from medgen.data.readers import peek, read, read_section, read_stored

SHAPE = (5, 4, 3)
OBLIQUE = np.array([[-0.8, -0.9, 0.3, 10], [0.5, -1.4, 0.2, -20], [0.3, 0.2, 2.4, 30], [0, 0, 0, 1]])


def values(*shape, dtype=np.int16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1000, shape).astype(dtype) if np.dtype(dtype).kind == "f" else rng.integers(0, 120, shape).astype(dtype)


def agree(path):
    """The header tells what reading gives; the volume."""
    told, volume = peek(path), read_stored(path)
    assert (told.channels, *told.shape) == volume.array.shape and told.dtype == volume.array.dtype and told.units == volume.units
    assert volume.array.dtype.isnative and volume.array.flags.c_contiguous and volume.array.flags.writeable
    assert (told.affine is None) == (volume.affine is None) and (told.affine is None or np.array_equal(told.affine, volume.affine))
    return volume


# --- NIfTI ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<u4", "<f4", ">f8", "<i8"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_keeps_the_type_of_its_values(tmp_path, kind, dtype, name):
    image = kind(values(*SHAPE, dtype=dtype), OBLIQUE, dtype=dtype)
    image.header.set_data_dtype(dtype)
    nibabel.save(image, tmp_path / name)
    volume = agree(tmp_path / name)
    assert volume.array.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(volume.array[0], values(*SHAPE, dtype=dtype))
    np.testing.assert_array_equal(volume.affine, nibabel.load(tmp_path / name).affine)


@pytest.mark.parametrize(("dtype", "becomes"), [(np.int16, np.float32), (np.int32, np.float64), (np.float64, np.float64)])
def test_nifti_scaling_is_as_exact_as_its_values(tmp_path, dtype, becomes):
    stored = values(*SHAPE, dtype=dtype) * dtype(1000)
    image = nibabel.Nifti1Image(stored, OBLIQUE)
    image.header.set_slope_inter(0.25, -1024)
    nibabel.save(image, tmp_path / "a.nii")
    volume = agree(tmp_path / "a.nii")
    assert volume.array.dtype == becomes
    raw = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj.get_unscaled()).astype(np.float64)
    np.testing.assert_array_equal(volume.array[0], raw * 0.25 - 1024)


@pytest.mark.parametrize(
    ("unit", "step", "meta"),
    [
        ("sec", 2.5, {"planes": "time", "frame_seconds": 2.5}),
        ("msec", 720, {"planes": "time", "frame_seconds": 0.72}),
        ("usec", 500, {"planes": "time", "frame_seconds": 0.0005}),
        ("unknown", 2.5, {"planes": "channel"}),
        ("sec", 0, {"planes": "channel"}),
        ("hz", 3, {"planes": "channel"}),
    ],
)
def test_the_fourth_axis_of_a_nifti_is_planes(tmp_path, unit, step, meta):
    image = nibabel.Nifti1Image(values(*SHAPE, 6), OBLIQUE)
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = step
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = agree(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, np.moveaxis(values(*SHAPE, 6), -1, 0))
    assert {key: volume.meta[key] for key in volume.meta if key not in ("file", "geometry")} == meta


def test_a_nifti_of_vectors_has_a_plane_for_each(tmp_path):
    field = values(*SHAPE, 1, 3, dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(field, OBLIQUE), tmp_path / "a.nii")
    np.testing.assert_array_equal(agree(tmp_path / "a.nii").array, np.moveaxis(field[..., 0, :], -1, 0))
    both = values(*SHAPE, 2, 3)
    nibabel.save(nibabel.Nifti1Image(both, OBLIQUE), tmp_path / "b.nii")
    volume = agree(tmp_path / "b.nii")
    assert volume.meta["planes_shape"] == (3, 2)
    np.testing.assert_array_equal(volume.array.reshape(3, 2, *SHAPE), both.transpose(4, 3, 0, 1, 2))
    nibabel.save(nibabel.Nifti1Image(values(*SHAPE, 2, 3, 2), OBLIQUE), tmp_path / "c.nii")
    with pytest.raises(MedgenError, match=r"at most five axes"):
        read(tmp_path / "c.nii")


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)])
def test_the_affine_of_a_nifti_is_in_millimetres(tmp_path, unit, factor):
    image = nibabel.Nifti1Image(values(*SHAPE), OBLIQUE)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read(tmp_path / "a.nii").affine[:3], OBLIQUE[:3] * factor, rtol=1e-6)


def test_which_form_places_a_nifti(tmp_path):
    rigid = nibabel.affines.from_matvec(np.diag([-1.0, 2, 3]), [1, 2, 3])

    def placed(s_code, q_code, sform=OBLIQUE):
        image = nibabel.Nifti1Image(values(*SHAPE), None)
        image.header.set_sform(sform, s_code)
        image.header.set_qform(rigid, q_code)
        image.header["sform_code"], image.header["qform_code"] = s_code, q_code
        path = tmp_path / "a.nii"
        path.write_bytes(image.header.binaryblock + bytes(4) + values(*SHAPE).tobytes("F"))
        volume = agree(path)
        return volume.meta["geometry"], volume.affine

    for s_code, q_code, name, expected in [(1, 1, "sform", OBLIQUE), (0, 1, "qform", rigid), (2, 0, "sform", OBLIQUE)]:
        form, affine = placed(s_code, q_code)
        assert form == name
        np.testing.assert_allclose(affine, expected, atol=1e-5)
    form, affine = placed(0, 0)
    assert form == "voxel sizes"
    np.testing.assert_array_equal(affine, nibabel.load(tmp_path / "a.nii").affine)
    form, affine = placed(1, 1, np.diag([1.0, 1, 0, 1]))
    assert form == "qform"
    np.testing.assert_allclose(affine, rigid, atol=1e-5)
    with pytest.raises(MedgenError, match="singular"):
        placed(1, 0, np.diag([1.0, 1, 0, 1]))


def test_a_pair_of_nifti_files(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(values(*SHAPE), OBLIQUE), tmp_path / "a.img")
    for name in ("a.img", "a.hdr"):
        np.testing.assert_array_equal(agree(tmp_path / name).array[0], values(*SHAPE))
        np.testing.assert_allclose(read(tmp_path / name).affine, OBLIQUE, rtol=1e-6)
    nibabel.save(nibabel.Nifti1Pair(values(*SHAPE), OBLIQUE), tmp_path / "z.img.gz")
    np.testing.assert_array_equal(agree(tmp_path / "z.hdr.gz").array[0], values(*SHAPE))
    nibabel.save(nibabel.AnalyzeImage(values(*SHAPE), np.eye(4)), tmp_path / "old.img")
    with pytest.raises(MedgenError, match=r"old\.hdr: .*ANALYZE 7\.5, which does not store left and right"):
        read(tmp_path / "old.hdr")
    (tmp_path / "a.hdr").rename(tmp_path / "b.nii")
    with pytest.raises(MedgenError, match=r"b\.nii: its header is that of a pair"):
        read(tmp_path / "b.nii")
    with pytest.raises(MedgenError, match=r"a\.img: the other half of the pair, a\.hdr, is not beside it"):
        read(tmp_path / "a.img")


def test_colours_in_a_nifti(tmp_path):
    planes = values(3, *SHAPE, dtype=np.uint8)
    data = np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(data, OBLIQUE), tmp_path / "a.nii")
    volume = agree(tmp_path / "a.nii")
    assert volume.meta["planes"] == "colour"
    np.testing.assert_array_equal(volume.array, planes)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_section_is_the_slice_at_its_place(tmp_path, name):
    image = nibabel.Nifti1Image(values(*SHAPE, 6), OBLIQUE)
    nibabel.save(image, tmp_path / name)
    slicer, data = nibabel.load(tmp_path / name).slicer, values(*SHAPE, 6)
    for axis, index in ((0, 4), (1, 2), (2, 1), (3, 5)):
        cut = [slice(None)] * 4
        cut[axis] = slice(index, index + 1)
        volume = read_section(tmp_path / name, axis, index)
        np.testing.assert_array_equal(volume.array, np.moveaxis(data[tuple(cut)], -1, 0))
        np.testing.assert_allclose(volume.affine, slicer[tuple(cut)].affine, atol=1e-6)
    with pytest.raises(MedgenError, match=r"no section 6 of axis 3; its axes and planes are \(5, 4, 3, 6\)"):
        read_section(tmp_path / name, 3, 6)


def test_a_section_needs_no_more_of_the_file(tmp_path):
    nibabel.save(nibabel.Nifti1Image(values(*SHAPE, 6), OBLIQUE), tmp_path / "a.nii")
    whole = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(whole[: 352 + 2 * 60 * 3])
    np.testing.assert_array_equal(read_section(tmp_path / "a.nii", 3, 2).array[0], values(*SHAPE, 6)[..., 2])
    with pytest.raises(MedgenError, match="damaged or truncated"):
        read_stored(tmp_path / "a.nii")
    with pytest.raises(MedgenError, match="damaged or truncated"):
        read_section(tmp_path / "a.nii", 3, 3)


@pytest.mark.parametrize("library", ["isal", "gzip"])
def test_a_gzip_is_read_to_its_checksum_by_either_library(tmp_path, monkeypatch, library):
    if library == "gzip":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal")
    nibabel.save(nibabel.Nifti1Image(values(40, 30, 20), OBLIQUE), tmp_path / "a.nii.gz")
    whole = (tmp_path / "a.nii.gz").read_bytes()
    np.testing.assert_array_equal(read_stored(tmp_path / "a.nii.gz").array[0], values(40, 30, 20))
    for spoilt in (whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:], whole[:-4], whole + b"garbage"):
        (tmp_path / "a.nii.gz").write_bytes(spoilt)
        with pytest.raises(MedgenError, match=r"a\.nii\.gz: a damaged or truncated NIfTI"):
            read_stored(tmp_path / "a.nii.gz")
    middle = len(whole) // 2
    two = gzip.compress(gzip.decompress(whole)[:middle]) + gzip.compress(gzip.decompress(whole)[middle:])
    (tmp_path / "a.nii.gz").write_bytes(two + bytes(512))  # members one after the other, and the padding of a tape
    np.testing.assert_array_equal(read_stored(tmp_path / "a.nii.gz").array[0], values(40, 30, 20))


def test_compression_is_seen_in_the_file_and_not_in_its_name(tmp_path):
    nibabel.save(nibabel.Nifti1Image(values(*SHAPE), OBLIQUE), tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(tmp_path / "b.nii")
    np.testing.assert_array_equal(agree(tmp_path / "b.nii").array[0], values(*SHAPE))


def test_planes_are_channels_of_a_manifest(tmp_path):
    assert plane_of("bold_12", ["subject", "bold"]) == ("bold", 12)
    assert plane_of("he_green", ["subject", "he"]) == ("he", 1)
    assert plane_of("t1_2", ["subject", "t1", "t1_2"]) == ("t1_2", None)
    assert plane_of("t1_two", ["subject", "t1"]) == ("t1_two", None)
    Volume(values(4, 8, 8, 6, dtype=np.float32), np.eye(4)).save(tmp_path / "a.nii")
    (tmp_path / "list.csv").write_text("subject,bold\na,a.nii\n")
    rule = {"name": "unit_range", "low": -1000.0, "high": 1000.0}
    data = FileData(str(tmp_path / "list.csv"), {"bold_0": rule, "bold_3": rule}, size=(8, 8, 6))
    case = data.split("train").case(0, np.random.default_rng(0))
    for plane in (0, 3):
        np.testing.assert_allclose(case[f"bold_{plane}"][0] * 1000, values(4, 8, 8, 6, dtype=np.float32)[plane], rtol=1e-4, atol=1e-2)
    with pytest.raises(MedgenError, match=r"has 4 channels \(0 to 3\), so there is none for 'bold_4'"):
        FileData(str(tmp_path / "list.csv"), {"bold_4": rule}, size=(8, 8, 6)).split("train")
    with pytest.raises(MedgenError, match=r"has 4 channels and 'bold' takes one; use channels bold_0 to bold_3"):
        FileData(str(tmp_path / "list.csv"), {"bold": rule}, size=(8, 8, 6)).split("train")


# --- NRRD, MetaImage -----------------------------------------------------------------------------------------------------------

ITK = (".nrrd", ".nhdr", ".mha", ".mhd")


@pytest.fixture
def itk():
    return pytest.importorskip("SimpleITK")


@pytest.mark.parametrize("handed", [1, -1])
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("ending", ITK)
def test_itk_formats_and_nifti_place_the_same_image_alike(tmp_path, itk, ending, vector, handed):
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    turn[:, 0] *= np.sign(np.linalg.det(turn)) * handed
    data = values(3, 4, 5, *((2,) if vector else ()))  # z, y, x, channels
    image = itk.GetImageFromArray(data, isVector=vector)
    image.SetDirection(turn.ravel())
    image.SetSpacing((0.7, 1.5, 2.25))
    image.SetOrigin((10, -20, 30))
    itk.WriteImage(image, str(tmp_path / f"a{ending}"), True)
    itk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    reference, volume = nibabel.load(tmp_path / "a.nii.gz"), agree(tmp_path / f"a{ending}")
    assert np.sign(np.linalg.det(volume.affine[:3, :3])) == handed
    np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-6)
    expected = data.reshape(3, 4, 5, -1).transpose(3, 2, 1, 0)
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_array_equal(read_stored(tmp_path / "a.nii.gz").array, expected)
    assert volume.array.dtype == np.int16
    corner = np.array([4, 3, 2])
    point = image.TransformIndexToPhysicalPoint([int(n) for n in corner])
    np.testing.assert_allclose((volume.affine @ [*corner, 1])[:3], np.array(point) * [-1, -1, 1], atol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_itk_formats_keep_the_type_of_their_values(tmp_path, itk, ending, dtype):
    itk.WriteImage(itk.GetImageFromArray(values(3, 4, 5, dtype=dtype)), str(tmp_path / f"a{ending}"))
    volume = agree(tmp_path / f"a{ending}")
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array[0], values(3, 4, 5, dtype=dtype).transpose(2, 1, 0))


@pytest.mark.parametrize("ending", ITK)
def test_itk_pictures_and_series(tmp_path, itk, ending):
    picture = itk.GetImageFromArray(values(4, 5))
    picture.SetSpacing((0.5, 0.25))
    itk.WriteImage(picture, str(tmp_path / f"a{ending}"))
    volume = agree(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(volume.array[0], values(4, 5))
    assert volume.affine is None and volume.meta["spacing"] == (0.25, 0.5)
    itk.WriteImage(itk.GetImageFromArray(values(6, 3, 4, 5), isVector=False), str(tmp_path / f"b{ending}"))
    volume = agree(tmp_path / f"b{ending}")
    np.testing.assert_array_equal(volume.array, values(6, 3, 4, 5).transpose(0, 3, 2, 1))
    np.testing.assert_array_equal(volume.affine, np.diag([-1.0, -1, 1, 1]))
    if ending in (".nrrd", ".nhdr"):  # MetaImage has no complex numbers
        itk.WriteImage(itk.GetImageFromArray(values(3, 4, 5).astype(np.complex64)), str(tmp_path / f"c{ending}"))
        with pytest.raises(MedgenError, match=rf"c{ending}: voxels of type complex.*expected one real number"):
            read(tmp_path / f"c{ending}")


def nrrd(fields, data):
    return b"NRRD0004\ntype: short\nencoding: raw\nendian: little\n" + fields.strip().encode() + b"\n\n" + data.tobytes()


def test_a_nrrd_in_other_spaces_units_and_orders(tmp_path, itk):
    sizes, space = "dimension: 3\nsizes: 5 4 3\n", "space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (7,8,9)\n"
    for said, diagonal in (("right-anterior-superior", (1, 2, 3)), ("LPS", (-1, -2, 3)), ("left-anterior-superior", (-1, 2, 3))):
        (tmp_path / "a.nrrd").write_bytes(nrrd(f"{sizes}space: {said}\n{space}", values(3, 4, 5)))
        affine = read(tmp_path / "a.nrrd").affine
        np.testing.assert_array_equal(np.diag(affine)[:3], diagonal)
        np.testing.assert_array_equal(affine[:3, 3], np.sign(diagonal) * [7, 8, 9])
    (tmp_path / "b.nrrd").write_bytes(nrrd(f'{sizes}space: RAS\n{space}space units: "um" "um" "um"', values(3, 4, 5)))
    np.testing.assert_allclose(read(tmp_path / "b.nrrd").affine[:3, :3], np.diag([0.001, 0.002, 0.003]))
    listed = "dimension: 4\nsizes: 5 4 3 2\nkinds: domain domain domain list\nspace: RAS\nspace directions: (1,0,0) (0,2,0) (0,0,3) none"
    (tmp_path / "c.nrrd").write_bytes(nrrd(listed, values(2, 3, 4, 5)))
    np.testing.assert_array_equal(read_stored(tmp_path / "c.nrrd").array, values(2, 3, 4, 5).transpose(0, 3, 2, 1))
    (tmp_path / "d.nrrd").write_bytes(nrrd("dimension: 3\nsizes: 5 4 3\nspacings: 1 1 1", values(3, 4, 5)))
    assert read(tmp_path / "d.nrrd").affine is None
    (tmp_path / "d.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = LOCAL\n" + values(3, 4, 5).tobytes()
    )
    assert read(tmp_path / "d.mha").affine is None


# --- pictures ------------------------------------------------------------------------------------------------------------------


def png(pixels, colour_type):
    """A PNG by the letter of the specification: rows of big-endian numbers, each with filter 0."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{pixels.dtype.itemsize}").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)


@pytest.mark.parametrize(("colour_type", "planes"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_of_every_depth_and_colour(tmp_path, dtype, colour_type, planes):
    if dtype == np.uint16 and colour_type:
        pytest.importorskip("imagecodecs")
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, top, (5, 7, planes), endpoint=True).astype(dtype)
    if colour_type in (4, 6):
        pixels[..., -1] = top
    (tmp_path / "a.png").write_bytes(png(pixels, colour_type))
    volume = agree(tmp_path / "a.png")
    np.testing.assert_array_equal(volume.array, np.moveaxis(pixels[..., : 1 if colour_type in (0, 4) else 3], -1, 0))
    assert volume.array.dtype == dtype
    if colour_type in (4, 6):
        pixels[2, 3, -1] = top // 2
        (tmp_path / "a.png").write_bytes(png(pixels, colour_type))
        with pytest.raises(MedgenError, match=r"a\.png: has transparent pixels"):
            read(tmp_path / "a.png")


def test_a_palette_is_colours_or_numbers(tmp_path):
    labels = values(6, 7, dtype=np.uint8) % 4
    image = Image.fromarray(labels, "L").copy()
    image = Image.frombytes("P", (7, 6), labels.tobytes())
    table = np.array([[0, 0, 0], [255, 0, 0], [0, 200, 0], [9, 8, 7]], np.uint8)
    image.putpalette(table.ravel().tolist())
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(agree(tmp_path / "a.png").array, np.moveaxis(table[labels], -1, 0))
    np.testing.assert_array_equal(agree(f"{tmp_path}/a.png#index").array[0], labels)
    Image.fromarray(labels).save(tmp_path / "b.png")
    with pytest.raises(MedgenError, match=r"b\.png: has no palette"):
        read(f"{tmp_path}/b.png#index")


def test_jpeg_says_that_it_lost_something(tmp_path):
    ramp = np.add.outer(np.arange(32), np.arange(40)).astype(np.uint8) * 3
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(np.dstack([ramp, ramp // 2, ramp // 3])).save(tmp_path / "b.jpeg", quality=95)
    grey, colour = agree(tmp_path / "a.jpg"), agree(tmp_path / "b.jpeg")
    assert grey.meta["lossy"] and colour.meta["lossy"] and colour.meta["planes"] == "colour" and grey.array.dtype == np.uint8
    assert np.abs(grey.array[0].astype(int) - ramp).max() < 8
    assert np.abs(colour.array[1].astype(int) - ramp // 2).mean() < 3
    Image.fromarray(np.dstack([ramp] * 4), "CMYK").save(tmp_path / "c.jpg")
    with pytest.raises(MedgenError, match=r"c\.jpg: a JPEG of kind CMYK; expected grey or RGB"):
        read(tmp_path / "c.jpg")


def test_a_png_keeps_pictures_and_says_when_it_is_a_view(tmp_path):
    eight, sixteen = values(1, 5, 6, dtype=np.uint8), values(1, 5, 6, dtype=np.uint16) * np.uint16(500)
    for number, (array, meta, stored) in enumerate(
        [
            (eight, {}, eight),
            (np.repeat(eight, 3, 0), {}, np.repeat(eight, 3, 0)),
            (sixteen, {}, sixteen),
            (np.repeat(sixteen, 3, 0), {}, np.repeat(sixteen, 3, 0)),
            (eight.astype(np.int64), {}, eight),
            (eight > 50, {}, (eight > 50).astype(np.uint8)),
            (eight + 0.3, {"range": (0.0, 255.0)}, eight),
            (sixteen + 0.3, {"range": (0, 65535)}, sixteen),
        ]
    ):
        volume = agree(Volume(array, meta=meta).save(tmp_path / f"{number}.png"))
        np.testing.assert_array_equal(volume.array, stored)
        assert volume.array.dtype == stored.dtype and "view" not in volume.meta
    for number, volume in enumerate(
        [
            Volume(values(1, 5, 6) - 100, units="HU"),
            Volume(values(1, 5, 6, dtype=np.float32)),
            Volume(eight[..., None], np.eye(4)),
            Volume(values(1, 5, 6, 4), np.eye(4)),
        ]
    ):
        read_back = read(volume.save(tmp_path / f"view{number}.png"))
        assert str(volume.array.dtype) in read_back.meta["view"] and volume.units in read_back.meta["view"]


# --- TIFF ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64])
def test_tiff_keeps_the_type_of_its_values(tmp_path, tifffile, dtype):
    for options in ({}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (16, 16), "compression": "zlib"}, {"compression": "lzw"}):
        tifffile.imwrite(tmp_path / "a.tif", values(20, 30, dtype=dtype), **options)
        volume = agree(tmp_path / "a.tif")
        assert volume.array.dtype == dtype and volume.affine is None
        np.testing.assert_array_equal(volume.array[0], values(20, 30, dtype=dtype))


def test_pages_of_a_tiff_are_a_volume_or_pictures(tmp_path, tifffile):
    stack = values(6, 4, 5, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    np.testing.assert_array_equal(agree(tmp_path / "a.tif").array[0], stack.transpose(2, 1, 0))
    np.testing.assert_array_equal(agree(f"{tmp_path}/a.tif#3").array[0], stack[3])
    with pytest.raises(MedgenError, match=r"a\.tif: no page '6'; it has the pages 0 to 5"):
        read(f"{tmp_path}/a.tif#6")
    colour = values(6, 4, 5, 3, dtype=np.uint8)
    for planar in ("contig", "separate"):
        given = colour if planar == "contig" else np.moveaxis(colour, -1, 1)
        tifffile.imwrite(tmp_path / "b.tif", given, photometric="rgb", planarconfig=planar)
        volume = agree(tmp_path / "b.tif")
        assert volume.meta["planes"] == "colour"
        np.testing.assert_array_equal(volume.array, colour.transpose(3, 2, 1, 0))
        np.testing.assert_array_equal(agree(f"{tmp_path}/b.tif#2").array, np.moveaxis(colour[2], -1, 0))


def test_numbers_are_read_and_not_how_they_are_shown(tmp_path, tifffile):
    grey = values(4, 5, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite")
    assert agree(tmp_path / "a.tif").meta["shown"] == "inverted"
    np.testing.assert_array_equal(agree(tmp_path / "a.tif").array[0], grey)
    tifffile.imwrite(tmp_path / "p.tif", grey, photometric="palette", colormap=values(3, 256, dtype=np.uint16))
    assert agree(tmp_path / "p.tif").meta["shown"] == "by a palette"
    np.testing.assert_array_equal(agree(tmp_path / "p.tif").array[0], grey)
    tifffile.imwrite(tmp_path / "b.tif", grey > 60)
    np.testing.assert_array_equal(agree(tmp_path / "b.tif").array[0], (grey > 60).astype(np.uint8))
    colour = np.dstack([grey, grey + 1, grey + 2, np.full_like(grey, 255)])
    tifffile.imwrite(tmp_path / "c.tif", colour, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(agree(tmp_path / "c.tif").array, np.moveaxis(colour[..., :3], -1, 0))
    colour[1, 1, 3] = 7
    tifffile.imwrite(tmp_path / "c.tif", colour, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(MedgenError, match="transparent"):
        read(tmp_path / "c.tif")


def test_spacing_of_ome_and_imagej(tmp_path, tifffile):
    stack = values(6, 4, 5, dtype=np.uint16)
    ome = {"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, ome=True, metadata=ome)
    np.testing.assert_allclose(np.diag(agree(tmp_path / "a.ome.tif").affine), [0.00025, 0.0005, 2e-6, 1])
    del ome["PhysicalSizeZ"], ome["PhysicalSizeZUnit"]
    tifffile.imwrite(tmp_path / "b.ome.tif", stack, ome=True, metadata=ome)
    volume = agree(tmp_path / "b.ome.tif")
    assert volume.affine is None and volume.meta["spacing"] == pytest.approx((0.00025, 0.0005, None))
    tifffile.imwrite(tmp_path / "c.tif", stack, imagej=True, resolution=(4, 2), metadata={"axes": "ZYX", "spacing": 3, "unit": "um"})
    np.testing.assert_allclose(np.diag(agree(tmp_path / "c.tif").affine), [0.00025, 0.0005, 0.003, 1])
    tifffile.imwrite(tmp_path / "d.tif", stack, resolution=(72, 72), resolutionunit="inch")
    assert agree(tmp_path / "d.tif").affine is None and "spacing" not in read(tmp_path / "d.tif").meta


def test_channels_and_times_of_a_tiff_are_planes(tmp_path, tifffile):
    data = values(2, 3, 4, 5, 6, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, metadata={"axes": "TCZYX"})
    volume = agree(tmp_path / "a.ome.tif")
    assert volume.meta["planes_shape"] == (3, 2)
    np.testing.assert_array_equal(volume.array.reshape(3, 2, 6, 5, 4), data.transpose(1, 0, 4, 3, 2))
    times = {"axes": "TYX", "TimeIncrement": 0.5, "TimeIncrementUnit": "s"}
    tifffile.imwrite(tmp_path / "b.ome.tif", data[0, 0], ome=True, metadata=times)
    volume = agree(tmp_path / "b.ome.tif")
    assert volume.meta["planes"] == "time" and volume.meta["frame_seconds"] == 0.5
    np.testing.assert_array_equal(volume.array, data[0, 0])


def test_a_written_tiff_tells_other_programs_its_spacing(tmp_path, tifffile):
    Volume(values(1, *SHAPE), OBLIQUE, "HU").save(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_ome and file.series[0].axes == "ZYX" and '"units": "HU"' in file.ome_metadata.replace("&quot;", '"')
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        np.testing.assert_array_equal(file.asarray(), values(1, *SHAPE)[0].transpose(2, 1, 0))
    sizes = [pixels[f"PhysicalSize{axis}"] for axis in "XYZ"]
    np.testing.assert_allclose(sizes, np.linalg.norm(OBLIQUE[:3, :3], axis=0), rtol=1e-12)
    assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "XYZ"} == {"mm"}
    Volume(values(1, *SHAPE)).save(tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert "PhysicalSize" not in file.ome_metadata


# --- arrays --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def medmnist(tmp_path):
    """The layout of a MedMNIST file: grey and colour pictures, volumes, and labels."""
    kept = {
        "train_images": values(20, 8, 8, dtype=np.uint8),
        "val_images": values(20, 8, 8, 3, dtype=np.uint8),
        "test_images": values(20, 8, 8, 8, dtype=np.uint8),
        "train_labels": values(20, 1, dtype=np.uint8),
    }
    np.savez_compressed(tmp_path / "set.npz", **kept)
    return tmp_path / "set.npz", kept


def test_entries_of_an_npz(medmnist):
    path, kept = medmnist
    np.testing.assert_array_equal(agree(f"{path}#train_images/12").array[0], kept["train_images"][12])
    np.testing.assert_array_equal(agree(f"{path}#val_images/3").array, np.moveaxis(kept["val_images"][3], -1, 0))
    np.testing.assert_array_equal(agree(f"{path}#test_images/19").array[0], kept["test_images"][19])
    for part, said in {
        "": "name one of them, such as set.npz#train_images",
        "#train_image/1": "no array 'train_image'; did you mean 'train_images'",
        "#train_images/20": r"no entry 20 in an array of shape \(20, 8, 8\)",
        "#train_labels/1": r"shape \(1,\) of uint8; expected",
        "#train_images/first": "no part 'train_images/first'",
    }.items():
        with pytest.raises(MedgenError, match=said):
            read(f"{path}{part}")


def test_an_npz_is_unpacked_once_and_not_kept_for_ever(medmnist, monkeypatch):
    path, kept = medmnist
    opened = []
    whole = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, name, *more, **also: opened.append(name) or whole(self, name, *more, **also))
    arrays._unpacked.clear()
    for row in range(20):
        read(f"{path}#train_images/{row}")
    assert len(opened) == 1
    monkeypatch.setenv("MEDGEN_READ_LIMIT", str(8 * 9000))
    read(f"{path}#test_images/1")
    assert sum(array.nbytes for array in arrays._unpacked.values()) == kept["test_images"].nbytes
    kept["test_images"][1] += 1
    np.savez_compressed(path, **kept)
    np.testing.assert_array_equal(read(f"{path}#test_images/1").array[0], kept["test_images"][1])


@pytest.mark.parametrize(
    ("shape", "part", "moved"),
    [
        ((5, 6, 7, 9), "#axis=-1", (3, 0, 1, 2)),
        ((5, 6, 7, 9), "#axis=1", (1, 0, 2, 3)),
        ((6, 7, 12), "#axis=2", (2, 0, 1)),
        ((12, 6, 7), "#axis=0", (0, 1, 2)),
        ((3, 6, 7), "#axis=none", None),
    ],
)
def test_the_axis_of_channels_can_be_told(tmp_path, shape, part, moved):
    np.save(tmp_path / "cube.npy", values(*shape))
    expected = values(*shape)[None] if moved is None else values(*shape).transpose(moved)
    np.testing.assert_array_equal(agree(f"{tmp_path}/cube.npy{part}").array, expected)


def test_parts_of_a_npy(tmp_path):
    stack = np.asfortranarray(values(30, 6, 7))
    np.save(tmp_path / "stack.npy", stack)
    np.testing.assert_array_equal(agree(f"{tmp_path}/stack.npy#12").array[0], stack[12])
    np.testing.assert_array_equal(read_section(tmp_path / "stack.npy", 0, 12).array[0, 0], stack[12])
    for part, said in {"#axis=3": "no axis 3", "#axis=x": "no part 'axis=x'", "#30": "no entry 30", "#one": "no part 'one'"}.items():
        with pytest.raises(MedgenError, match=rf"stack\.npy: {said}"):
            read(f"{tmp_path}/stack.npy{part}")
    np.save(tmp_path / "set.npy", values(3, 4, 5, 6, 7))
    with pytest.raises(MedgenError, match=r"shape \(3, 4, 5, 6, 7\) of int16.*name one, such as #12"):
        read(tmp_path / "set.npy")
    np.testing.assert_array_equal(agree(f"{tmp_path}/set.npy#2").array, values(3, 4, 5, 6, 7)[2])


# --- limits --------------------------------------------------------------------------------------------------------------------


def test_the_memory_of_a_control_group_is_the_memory_there_is(tmp_path):
    (tmp_path / "sys" / "job" / "step").mkdir(parents=True)
    (tmp_path / "sys" / "job" / "memory.max").write_text("5000\n")
    (tmp_path / "sys" / "job" / "step" / "memory.max").write_text("max\n")
    (tmp_path / "groups").write_text("0::/job/step\n")
    assert _group_limits(tmp_path / "groups", tmp_path / "sys") == [5000]
    (tmp_path / "sys" / "memory" / "job").mkdir(parents=True)
    (tmp_path / "sys" / "memory" / "job" / "memory.limit_in_bytes").write_text("7000\n")
    (tmp_path / "groups").write_text("4:cpu,cpuacct:/x\n3:memory:/job\n")
    assert _group_limits(tmp_path / "groups", tmp_path / "sys") == [7000]
    assert _group_limits(tmp_path / "none", tmp_path / "sys") == []
