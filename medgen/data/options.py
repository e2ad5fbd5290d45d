"""The finer points of a data set of files: what is left out, how cases are cut, where prepared data are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medgen.core.errors import MedgenError, nearest


@dataclass(frozen=True)
class Cut:
    """How cases are cut.

    Attributes:
        patches: kind of place -> how often 3D patches of training are centred there, relative to each other: "uniform" (anywhere),
            "foreground" (voxels above the mean), "<label map>" (any of its classes but 0) or "<label map>=<class>".
        buckets: 3D: a training case is a window of its own size, its volume's rounded up to multiples of this and at most `size`;
            cases of one step share their size. 0: every case has `size`.
        neighbours: 2D: with n, channel `t1` comes with `t1_m1` ... `t1_m<n>` and `t1_p1` ... `t1_p<n>`, the slices before and after it
            (the outermost is repeated). A task names those that it wants.
        unpaired: channels and label maps that a case takes from another case, drawn anew every time. Rows may lack them, or the others.
        mpp, stride, tissue: of slides: microns per pixel of the tiles of `size`, their distance in pixels (null: `size`), and the
            fraction of a tile that tissue must cover.
    """

    patches: Mapping[str, float] = field(default_factory=dict)
    buckets: int = 0
    neighbours: int = 0
    unpaired: Sequence[str] = ()
    mpp: float | None = None
    stride: int | None = None
    tissue: float = 0.5

    def __post_init__(self):
        for kind, weight in self.patches.items():
            if not weight >= 0:
                raise MedgenError(f"cut.patches: '{kind}' has the weight {weight}; expected 0 or more")
        if self.buckets < 0 or self.neighbours < 0:
            found = f"buckets {self.buckets} and neighbours {self.neighbours}"
            raise MedgenError(f"cut: expected whole numbers of at least 0, found {found}")


@dataclass(frozen=True)
class Keep:
    """Where prepared data are kept, and what happens while they are made.

    Attributes:
        folder: None is `.medgen` beside the manifest (where that cannot be written, a folder in the user's cache); "memory" prepares
            anew in every process and keeps nothing on disk.
        workers: processes that prepare; None decides by the files, 0 is this process, which a decoder's crash would end.
        skip_broken: leave rows out that cannot be prepared, with a warning, instead of refusing to train.
        seconds, memory: that a worker may take for a row: wall time, and bytes (None: as much as one image may take).
    """

    folder: str | None = None
    workers: int | None = None
    skip_broken: bool = False
    seconds: float = 900.0
    memory: int | None = None


@dataclass(frozen=True)
class Options:
    """The finer points of `FileData`.

    Attributes:
        min_foreground: a slice with a smaller fraction of its voxels above the mean of the volume is left out.
        resize: scale pictures and frames to `size` instead of cropping and padding them.
        about: "name", "licence", "attribution" of the data, for the contract.
        missing: a row may lack channels: an empty cell. The channel is then background everywhere, and every case says by
            `<channel>_available` (1 or 0) what it has.
        cut: how cases are cut.
        keep: where prepared data are kept.
    """

    min_foreground: float = 0.02
    resize: bool = False
    about: Mapping[str, str] = field(default_factory=dict)
    missing: bool = False
    cut: Cut = field(default_factory=Cut)
    keep: Keep = field(default_factory=Keep)

    def __post_init__(self):
        for key in self.about:
            if key not in (known := ("name", "licence", "attribution")):
                raise MedgenError(f"about: no entry '{key}'; {nearest(key, known)}")
