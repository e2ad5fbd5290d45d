"""Video: exact frame numbers in every container, times, colour, and what a container claims wrongly."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from special_samples import frame_pictures, number_of, write_video

from medgen.core.errors import MedgenError
from medgen.data.formats import video
from medgen.data.formats.video import frames, opened
from medgen.data.readers import peek, read_stored

CONTAINERS = [
    ("mp4", "mpeg4"),
    ("mov", "mpeg4"),
    ("avi", "mpeg4"),
    ("mkv", "ffv1"),
    ("webm", "libvpx-vp9"),
    ("mpeg", "mpeg2video"),
    ("gif", "gif"),
]


@pytest.mark.parametrize(("ending", "codec"), CONTAINERS)
def test_every_frame_has_its_number(tmp_path, ending, codec):
    path = tmp_path / f"v.{ending}"
    write_video(path, codec=codec, pix_fmt="rgb8" if codec == "gif" else "yuv420p")
    volume, said = read_stored(path), peek(path)
    assert volume.array.shape == (3, 24, 48, 64) and volume.array.dtype == np.uint8 and volume.meta["planes"] == "colour"
    assert said.shape == volume.shape and said.channels == 3
    assert [number_of(volume.array[:, n]) for n in range(24)] == list(range(24))
    np.testing.assert_allclose(volume.meta["frame_seconds"], np.arange(24) / 10, atol=2e-3)
    assert volume.meta["variable_rate"] is False and "claimed_frames" not in volume.meta
    for start, count, stride in ((0, 1, 1), (7, 2, 1), (8, 3, 1), (23, 1, 1), (3, 4, 6), (17, None, 5)):
        np.testing.assert_array_equal(
            frames(path, start, count, stride),
            volume.array[:, start : None if count is None else start + count * stride : stride][:, :count],
        )
    np.testing.assert_array_equal(read_stored(f"{path}#frame=12").array, volume.array[:, 12])
    np.testing.assert_array_equal(read_stored(f"{path}#frames=2:20:3").array, volume.array[:, 2:20:3])
    assert read_stored(f"{path}#frames=2:20:3").meta["frame_seconds"][1] == pytest.approx(0.5, abs=2e-3)


def test_colours_are_those_that_were_written(tmp_path):
    written = write_video(tmp_path / "v.mkv", codec="ffv1", pix_fmt="yuv444p")
    found = read_stored(tmp_path / "v.mkv").array
    assert abs(np.moveaxis(found, 0, -1).astype(int) - written).max() <= 3


def test_frames_that_are_stored_out_of_order(tmp_path):
    """B-frames: the container's order is not the order of showing."""
    with av.open(str(tmp_path / "b.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate, stream.gop_size = 64, 48, "yuv420p", 2_000_000, 9
        stream.codec_context.max_b_frames, stream.codec_context.time_base = 2, Fraction(1, 10)
        for n, picture in enumerate(frame_pictures(30)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "b.mp4")) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert stamps != sorted(stamps), "the test needs B-frames"
    assert [number_of(frames(tmp_path / "b.mp4", n, 1)[:, 0]) for n in range(30)] == list(range(30))


def test_only_what_lies_between_key_frame_and_frame_is_decoded(tmp_path, monkeypatch):
    write_video(tmp_path / "v.mp4", count=64)
    opened(tmp_path / "v.mp4")
    decoded = []
    inner = av.container.InputContainer.decode

    class Counted:
        def __init__(self, container):
            self.container = container

        def seek(self, *arguments, **names):
            self.container.seek(*arguments, **names)

        def decode(self, stream):
            for frame in inner(self.container, stream):
                decoded.append(frame)
                yield frame

    original = video._container

    @video.contextmanager
    def counted(path):
        with original(path) as (container, stream):
            yield Counted(container), stream

    monkeypatch.setattr(video, "_container", counted)
    found = frames(tmp_path / "v.mp4", 3, 4, stride=16)
    assert [number_of(found[:, i]) for i in range(4)] == [3, 19, 35, 51]
    assert len(decoded) == 4 * 4, "frames 0-3, 16-19, 32-35, 48-51"


def test_grey(tmp_path):
    write_video(tmp_path / "v.mp4", colour=False)
    volume = read_stored(tmp_path / "v.mp4")
    assert volume.array.shape == (1, 24, 48, 64) and "planes" not in volume.meta
    assert [number_of(volume.array[:, n]) for n in range(24)] == list(range(24))
    assert read_stored(f"{tmp_path / 'v.mp4'}#frame=3&planes=3").array.shape == (3, 48, 64)
    write_video(tmp_path / "g.mkv", colour=False, codec="ffv1", pix_fmt="gray")
    assert abs(read_stored(tmp_path / "g.mkv").array[0].astype(int) - frame_pictures(colour=False)[..., 0]).max() <= 1


def test_sixteen_bits_stay(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (4, 48, 64), dtype=np.uint16)
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray16le"
        for value in values:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(value, format="gray16le")))
        container.mux(stream.encode())
    volume = read_stored(tmp_path / "v.mkv")
    assert volume.array.dtype == np.uint16 == peek(tmp_path / "v.mkv").dtype
    np.testing.assert_array_equal(volume.array[0], values)


def test_colour_that_comes_late_is_not_lost(tmp_path, monkeypatch):
    """A clip that seems grey where it is looked at, with colour in one frame that is not."""
    pictures = frame_pictures(30, colour=False)
    pictures[5] = frame_pictures(30)[5]
    monkeypatch.setattr("special_samples.frame_pictures", lambda *a, **k: pictures)
    write_video(tmp_path / "v.mkv", count=30, codec="ffv1")
    assert opened(tmp_path / "v.mkv").planes == 1
    with pytest.raises(MedgenError, match=r"v\.mkv: frame 5 has colour .* '#planes=3'"):
        read_stored(tmp_path / "v.mkv")
    assert read_stored(f"{tmp_path / 'v.mkv'}#planes=3").array.shape == (3, 30, 48, 64)
    assert read_stored(f"{tmp_path / 'v.mkv'}#frames=6:30").array.shape == (1, 24, 48, 64)


def test_frames_of_different_duration(tmp_path):
    times = [0, 10, 20, 60, 70, *range(80, 270, 10)]
    write_video(tmp_path / "v.mp4", times=times)
    volume = read_stored(tmp_path / "v.mp4")
    assert volume.meta["variable_rate"] is True
    np.testing.assert_allclose(volume.meta["frame_seconds"], np.array(times) / 100, atol=1e-3)
    assert number_of(frames(tmp_path / "v.mp4", 4, 1)[:, 0]) == 4


def test_a_video_that_asks_to_be_turned(tmp_path):
    """The matrix of a phone held upright: a quarter turn clockwise."""
    write_video(tmp_path / "v.mp4")
    plain = read_stored(tmp_path / "v.mp4").array
    data = bytearray((tmp_path / "v.mp4").read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[start : start + 36])[0] == 65536
    data[start : start + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / "t.mp4").write_bytes(data)
    turned = read_stored(tmp_path / "t.mp4")
    assert peek(tmp_path / "t.mp4").shape == turned.shape == (24, 64, 48)
    np.testing.assert_array_equal(turned.array, np.rot90(plain, -1, (2, 3)))
    assert (turned.array[0, :, :16, -8:] > 180).all(), "what was red in the upper left is now in the upper right"


def test_a_wrong_count_is_told(tmp_path):
    write_video(tmp_path / "v.avi")
    data = bytearray((tmp_path / "v.avi").read_bytes())
    start = data.index(b"strh") + 8 + 32
    assert struct.unpack("<I", data[start : start + 4]) == (24,)
    data[start : start + 4] = struct.pack("<I", 1000)
    (tmp_path / "w.avi").write_bytes(data)
    volume = read_stored(tmp_path / "w.avi")
    assert volume.meta["claimed_frames"] == 1000 and volume.shape[0] == 24


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("frame=24", "it has 0 to 23"),
        ("frames=20:30", "it has 0 to 23"),
        ("frames=5:5", "it has 0 to 23"),
        ("frames=5", "takes FIRST:LAST or FIRST:LAST:STEP"),
        ("frames=0:9:0", "takes FIRST:LAST or FIRST:LAST:STEP"),
        ("frame=1&frames=0:2", "take one"),
        ("planes=2", "takes 1 or 3"),
        ("level=1", "no part 'level'"),
    ],
)
def test_parts_that_cannot_be(tmp_path, part, said):
    write_video(tmp_path / "v.mp4")
    with pytest.raises(MedgenError, match=said):
        peek(f"{tmp_path / 'v.mp4'}#{part}")


def test_what_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    write_video(path)
    data = path.read_bytes()
    for content, said in (
        (data[: len(data) // 3], r"v\.mp4: (a damaged or truncated video|.* cannot be decoded|a video without frames)"),
        (b"", r"v\.mp4: a damaged or truncated video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", r"v\.mp4: a damaged or truncated video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", r"v\.mp4: a damaged or truncated video"),
    ):
        path.write_bytes(content)
        with pytest.raises(MedgenError, match=said):
            read_stored(path)
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(MedgenError, match="holds no video stream"):
        peek(tmp_path / "sound.mkv")
    path.write_bytes(data)
    monkeypatch.setenv("MEDGEN_READ_LIMIT", str(24 * 48 * 64 * 3 * 4 - 1))
    with pytest.raises(MedgenError, match=r"v\.mp4: its header claims \(24, 48, 64\)"):
        read_stored(path)
    assert frames(path, 0, 20).shape == (3, 20, 48, 64)
    with pytest.raises(MedgenError, match="end after the clip, which has 24"):
        frames(path, 20, 5)


@pytest.mark.shared_data
def test_the_real_clips(shared_data):
    """All 26 ultrasound clips: sizes differ, the frames of a walk are those found by seeking."""
    paths = sorted(p for p in (shared_data / "ultrasound_lung").iterdir() if p.suffix != ".csv")
    clips = [opened(path) for path in paths]
    assert len(paths) == 26 and len({clip.size for clip in clips}) == 8 and {clip.planes for clip in clips} == {1, 3}
    for path, clip in zip(paths[::5], clips[::5], strict=True):
        whole = frames(path, 0, stride=7)
        for place in (1, len(clip) // 14, whole.shape[1] - 1):
            np.testing.assert_array_equal(frames(path, 7 * place, 1)[:, 0], whole[:, place])
