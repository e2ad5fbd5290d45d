"""Drawn H&E tiles as a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.intensity import UnitRange
from medgen.core.random import generator
from medgen.data.phantom.drawn import DrawnCases, check_drawn, drawn_split
from medgen.data.phantom.histology.fields import Window
from medgen.data.phantom.histology.paint import Tile, labels, paint
from medgen.data.phantom.histology.stain import COLOURS, DOMAINS, domain, scanned, transmit
from medgen.data.phantom.histology.tissue import BACKGROUND, CLASSES, EPITHELIUM, TISSUES, TUMOUR, Anatomy, draw_traits
from medgen.data.source import Case

LABELS = {"tissue": len(TISSUES), "nuclei": 2, "instances": 0}
IMAGES = tuple(f"{name}_{colour}" for name in ("image", *DOMAINS) for colour in COLOURS)
PITCH = 900.0  # micrometres between the places of a subject's tiles: they never overlap up to this field of view
_LEAST = {"glands": (EPITHELIUM, 0.25), "tumour": (TUMOUR, 0.55)}
_TRIES = 12


class HistologyData:
    """A source of drawn H&E tiles (`medgen.data.source.Source`).

    Args:
        channels: `image_red`, `image_green`, `image_blue` in the subject's own stain domain; `pink_red`, `violet_green` and so on for
            the same tissue in a domain of `stain.DOMAINS`; label maps `tissue`, `nuclei` (0, 1) and `instances` (0, 1, 2, ...).
        size: rows and columns.
        subjects: split -> number of subjects; splits draw from disjoint ranges.
        tiles: per subject.
        seed: of the population.
        mpp: micrometres per pixel; the field of view follows.
        domains: the laboratories that subjects come from.
        noise: standard deviation of the detector at full light, on its scale of 0 to 255.

    A case also has the attributes "label" (the class of tissue, index into `tissue.CLASSES`), "domain" (index into `stain.DOMAINS`) and
    "density" (nuclei per 1000 square micrometres), and the text "caption".

    Raises:
        MedgenError: an unknown channel, split or domain, three sizes, a resolution outside 0.1 to 2 or a field of view above 900.
    """

    def __init__(
        self,
        channels: Sequence[str] = ("image_red", "image_green", "image_blue"),
        size: Sequence[int] = (128, 128),
        subjects: Mapping[str, int] | None = None,
        tiles: int = 16,
        seed: int = 0,
        mpp: float = 0.5,
        domains: Sequence[str] = tuple(DOMAINS),
        noise: float = 2.0,
    ):
        self.channels, self.size = tuple(channels), tuple(int(n) for n in size)
        self.subjects = dict(subjects) if subjects is not None else {"train": 64, "validation": 8, "test": 8}
        self.tiles, self.seed, self.mpp, self.noise = int(tiles), int(seed), float(mpp), float(noise)
        self.domains = tuple(domains)
        check_drawn(self.channels, (*IMAGES, *LABELS), self.subjects, self.size, self.tiles)
        self._check()

    def split(self, name: str) -> DrawnCases:
        """The cases of "train", "validation" or "test"."""
        return drawn_split(self.draw, name, self.subjects, self.tiles)

    def facts(self) -> dict[str, Any]:
        rule = UnitRange()
        images = [name for name in self.channels if name in IMAGES]
        return {
            "spatial_dims": 2,
            "size": self.size,
            "labels": {name: LABELS[name] for name in self.channels if LABELS.get(name)},
            "attributes": {"label": len(CLASSES), "domain": len(DOMAINS), "density": 0},
            "intensity": {name: {**rule.describe(), "typical": rule.fit(np.zeros(1))} for name in images},
            "orientation": None,
            "spacing": None,
            "slice_axis": None,
            "data": {"name": "medgen histology phantom", "licence": "Apache-2.0", "subjects": sum(self.subjects.values())},
        }

    def draw(self, index: int, number: int) -> Case:
        """Tile `number` of subject `index` of the population."""
        tile, name = self.tile(index, number)
        images = {lab: self.image(tile, index, number, lab) for lab in self._shown(index)}
        own, rule = self.domain_of(index), UnitRange()
        case: Case = {}
        for channel in self.channels:
            if channel in LABELS:
                case[channel] = _map(tile, channel)[None]
                continue
            lab, colour = channel.rsplit("_", 1)
            stored = images[own if lab == "image" else lab][COLOURS.index(colour)]
            case[channel] = rule.forward(stored, **rule.fit(stored)).astype(np.float32)[None]
        return case | {"label": CLASSES.index(name), "subject": f"histology-{self.seed}-{index:07d}", **self.said(tile, name, index)}

    def said(self, tile: Tile, name: str, index: int) -> dict[str, Any]:
        """Domain, density and caption of a tile of class `name`."""
        lab = self.domain_of(index)
        density = len(tile.kinds) / (np.prod(self.size) * self.mpp**2) * 1000.0
        return {"domain": list(DOMAINS).index(lab), "density": float(density), "caption": caption(name, density, lab, self.mpp)}

    def tile(self, index: int, number: int) -> tuple[Tile, str]:
        """What a tile shows before any light, and its class."""
        anatomy, window = place(self.seed, index, number, self.size, self.mpp)
        border = int(np.ceil(3 * max(max(scanner.blur) for scanner in DOMAINS.values()) / self.mpp))
        return paint(anatomy, window, border), CLASSES[anatomy.key[2]]

    def image(self, tile: Tile, index: int, number: int, lab: str) -> np.ndarray:
        """Detector readings (3, H, W) of a tile in a domain, 0 to 255; noise depends on subject, tile and domain only."""
        traits, scanner = draw_traits(self.seed, index), domain(lab)
        light = transmit(tile.stains, scanner.stained(traits.shade, traits.tint), scanner.white)
        rng = generator(self.seed, index, 31, number, list(DOMAINS).index(lab))
        return tile.inner(scanned(light, [width / self.mpp for width in scanner.blur], self.noise, rng))

    def domain_of(self, index: int) -> str:
        """The laboratory of a subject."""
        return self.domains[int(generator(self.seed, index, 30).random() * len(self.domains))]

    def _shown(self, index: int) -> list[str]:
        labs = [channel.rsplit("_", 1)[0] for channel in self.channels if channel in IMAGES]
        return list(dict.fromkeys(self.domain_of(index) if lab == "image" else lab for lab in labs))

    def _check(self) -> None:
        if len(self.size) != 2:
            raise MedgenError(f"size {self.size}: a tile has two numbers, rows and columns")
        if not 0.1 <= self.mpp <= 2.0:
            raise MedgenError(f"mpp is {self.mpp}; the phantom draws 0.1 to 2 micrometres per pixel")
        if max(self.size) * self.mpp > PITCH:
            raise MedgenError(f"{max(self.size)} pixels of {self.mpp} micrometres; a tile may be up to {PITCH:.0f} micrometres wide")
        if not self.domains:
            raise MedgenError("domains is empty; expected at least one, such as [pink]")
        for name in self.domains:
            domain(name)


def place(seed: int, index: int, number: int, size: Sequence[int], mpp: float) -> tuple[Anatomy, Window]:
    """The tissue and the window of a tile: a class of the subject's mix, and a place where there is enough of it."""
    traits, rng = draw_traits(seed, index), generator(seed, index, 32, number)
    name = CLASSES[int(np.searchsorted(np.cumsum(traits.mix)[:-1], rng.random()))]
    anatomy = _anatomy(seed, index, name)
    row, column = divmod(number, 24)
    room = PITCH - np.array(size[::-1]) * mpp
    best, found = -1.0, None
    for _ in range(_TRIES):
        origin = np.array([column, row]) * PITCH + rng.random(2) * room
        window = Window(tuple(float(v) for v in origin), tuple(size), mpp)
        worth = _worth(anatomy, window, name)
        if worth > best:
            best, found = worth, window
        if worth >= 1:
            break
    return anatomy, found


def caption(name: str, density: float, lab: str, mpp: float) -> str:
    """One sentence about a tile."""
    amount = "few" if density < 2.0 else "a moderate number of" if density < 5.0 else "many"
    what = {"glands": "normal glands", "tumour": "a tumour", "adipose": "adipose tissue"}.get(name, name)
    return (
        f"H&E tile of {what} with {amount} nuclei ({density:.1f} per 1000 square micrometres), {lab} stain, {mpp:g} micrometres per pixel."
    )


def _map(tile: Tile, name: str) -> np.ndarray:
    if name == "nuclei":
        return (tile.instances > 0).astype(np.int64)
    return (tile.tissue if name == "tissue" else tile.instances).copy()


def _worth(anatomy: Anatomy, window: Window, name: str) -> float:
    """How much of a coarse sample of the window is what the class says, over what is asked for; less where there is much bare glass."""
    x, y = window.axes
    sample = slice(None, None, max(1, min(window.shape) // 12))
    found = labels(anatomy.regions(x[:, sample], y[sample], window.box))
    tissue, least = _LEAST.get(name, (BACKGROUND, 0.0))
    enough = (found == tissue).mean() / least if least else 1.0
    return float(min(enough, (found != BACKGROUND).mean() / 0.55))


@lru_cache(maxsize=64)
def _anatomy(seed: int, index: int, name: str) -> Anatomy:
    return Anatomy(seed, index, name)
