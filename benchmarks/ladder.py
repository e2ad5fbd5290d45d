"""Whether feature spaces see blur, noise, removed anatomy, changed contrast and a dropped mode, on phantoms and on real sets.

Usage: python benchmarks/ladder.py [--data FOLDER] [--only brain ...] [--features NETWORK.pt ...] [--seed 0] [-o docs/results/ladder.md]
FOLDER holds any of hippocampus/images/*.nii.gz, nuclei_he/images/*.png and pneumoniamnist/*.npz; without it the phantoms alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from medgen.checkpoint import build
from medgen.core.errors import MedgenError
from medgen.core.intensity import MRPercentile
from medgen.data.phantom.chest.source import ChestData
from medgen.data.phantom.histology.source import HistologyData
from medgen.data.phantom.source import PhantomData
from medgen.data.readers import read
from medgen.evaluation import encoder
from medgen.evaluation.imagesets import sized
from medgen.evaluation.ladder import OFTEN, SPLITS, Ladder, Rung, climbed, ladders
from medgen.evaluation.spaces import spaces
from medgen.metrics.space import Space
from medgen.metrics.spaces import brought

SUBJECTS = {"train": 64}
COLOURS = ("image_red", "image_green", "image_blue")
TILE = 128
UNTRAINED = "untrained"
HEAD = """# The ladder: which feature spaces see what

Written by `python benchmarks/ladder.py{arguments}`. {machine}

A feature space earns its place in `medgen evaluate` by ranking known corruptions. Protocol (`medgen/evaluation/ladder.py`, seed {seed}):
half of the subjects of a set are the reference. Half of the images of the other subjects are corrupted, at four strengths. That is done for
{splits} splits of the subjects. *Ranked*: the mean distance rises with every step, from that of the same images uncorrupted on (rank
correlation 1). *Seen from*: the first strength from which on {often:.0%} of the splits lie farther than {often:.0%} of the clean sets do. A
dropped mode takes the brighter half of the images away; at step 0 both halves are there alike. A ladder is passed if it is ranked and its
last step at least is seen. How early a step is seen depends on n as well: more images see more.

*Untrained* is the same network with random weights. Its readout is fitted to the very set, an advantage that the trained one does not have.

| corruption | strength | steps |
| --- | --- | --- |
{steps}

## Ladders passed

Of {count} ladders a set. Frechet: only where n is at least 2 x dimensions.

{overview}

## By corruption

KID. Each cell: from which strength on it is seen, then the share of the splits that see each step. **Bold**: passed. The rank correlation
stands there where it is not 1.

{details}

## What it says

{said}
"""


@dataclass(frozen=True)
class Set:
    """Images (N, C, *S) in network units, their subjects, and what they are."""

    images: Tensor
    subjects: Sequence[str]
    about: str


def drawn(source: object, channels: Sequence[str], about: str) -> Set:
    cases = source.split("train")
    rows = [cases.case(i, np.random.default_rng(0)) for i in range(len(cases))]
    return Set(torch.from_numpy(np.stack([np.concatenate([r[c] for c in channels]) for r in rows])), [r["subject"] for r in rows], about)


def brain(folder: Path | None) -> Set:
    return drawn(PhantomData(["t1"], (64, 64), SUBJECTS, slices=4), ["t1"], "drawn heads, T1 slices")


def brain_volumes(folder: Path | None) -> Set:
    return drawn(PhantomData(["t1"], (32, 32, 32), {"train": 128}), ["t1"], "drawn heads, T1 volumes")


def chest(folder: Path | None) -> Set:
    return drawn(ChestData(["ct"], (64, 64), SUBJECTS, slices=4), ["ct"], "drawn chests, CT slices")


def histology(folder: Path | None) -> Set:
    return drawn(HistologyData(COLOURS, (64, 64), SUBJECTS, tiles=4), COLOURS, "drawn H&E tiles")


def hippocampus(folder: Path | None) -> Set:
    """The windows around the middle that the model of the zoo is trained on."""
    images, names, rule = [], [], MRPercentile()
    for path in files(folder, "hippocampus/images", "*.nii.gz"):
        array = read(path).array
        images.append(sized(torch.from_numpy(rule.forward(array, **rule.fit(array)).astype(np.float32)), (31, 47, 33)))
        names.append(path.name)
    return Set(torch.stack(images), names, "hippocampus, T1 volumes")


def nuclei_he(folder: Path | None) -> Set:
    """Four crops of each tile."""
    images, names = [], []
    for path in files(folder, "nuclei_he/images", "*.png"):
        array = torch.from_numpy(read(path).array.astype(np.float32))[:3] / 127.5 - 1
        bottom, right = array.shape[1] - TILE, array.shape[2] - TILE
        images += [array[:, y : y + TILE, x : x + TILE] for y in (0, bottom) for x in (0, right)]
        names += [path.name] * 4
    return Set(torch.stack(images), names, "H&E, crops of 128 x 128")


def pneumoniamnist(folder: Path | None) -> Set:
    with np.load(files(folder, "pneumoniamnist", "*.npz")[0]) as data:
        array = data["val_images"]
    return Set(torch.from_numpy(array.astype(np.float32))[:, None] / 127.5 - 1, [], "chest X-rays, 28 x 28")


def files(folder: Path | None, place: str, pattern: str) -> list[Path]:
    found = sorted((folder / place).glob(pattern)) if folder else []
    if not found:
        raise FileNotFoundError(place)
    return found


SETS: dict[str, Callable[[Path | None], Set]] = {
    f.__name__: f for f in (brain, chest, histology, brain_volumes, hippocampus, nuclei_he, pneumoniamnist)
}


def climb(one: Set, extra: Sequence[Space], seed: int) -> tuple[dict[str, list[Rung]], list[str]]:
    """The rungs of each space, and what each took or why it was left out."""
    dims, found, notes = one.images.ndim - 2, {}, []
    built = encoder.built_in(dims)
    for space in [*spaces(dims), *([untrained(dims, one.images)] if built else []), *(space for space in extra if space.dims == dims)]:
        start = time.process_time()
        try:
            found[space.name] = climbed(space, one.images, seed=seed, subjects=one.subjects)
        except MedgenError as error:
            notes.append(f"{space.name}: left out, {error}")
            continue
        notes.append(f"{space.name} {time.process_time() - start:.0f} s")
    return found, notes


def untrained(dims: int, images: Tensor) -> Space:
    """The built-in encoder's network with random weights, its readout fitted to the set."""
    torch.manual_seed(0)
    document = json.loads((encoder.folder_of(dims) / encoder.DOCUMENT).read_text())
    network = build(document["encoder"]).eval()
    with torch.no_grad():
        network.fit_readout([torch.cat([network.description(image[None])[0] for image in images])])
    return Space(UNTRAINED, dims, network.features, standard=True)


def overview(found: dict[str, dict[str, list[Rung]]]) -> str:
    measures = ("KID", "MMD", "CMMD", "Frechet")
    lines = [f"| set | space | {' | '.join(measures)} |", f"| --- | --- |{' --- |' * len(measures)}"]
    for name, by_space in found.items():
        for space, rungs in by_space.items():
            cells = []
            for measure in measures:
                own = [rung for rung in rungs if rung.measure == measure]
                cells.append(f"{sum(rung.passed for rung in own)} ({sum(map(ranked, own))} ranked)" if own else "n too small")
            lines.append(f"| {name} | {space} | {' | '.join(cells)} |")
    return "\n".join(lines)


def details(sets: dict[str, Set], found: dict[str, dict[str, list[Rung]]], notes: dict[str, list[str]]) -> str:
    blocks = []
    for name, by_space in found.items():
        size = next(iter(by_space.values()))[0].size
        shape = " x ".join(map(str, sets[name].images.shape[1:]))
        lines = [f"### {name}", "", f"{sets[name].about}: {len(sets[name].images)} images of {shape}; {size} in a corrupted set."]
        lines += [f"Processor time, one thread: {'; '.join(notes[name])}.", ""]
        lines += [f"| corruption | {' | '.join(by_space)} |", f"| --- |{' --- |' * len(by_space)}"]
        for ladder in ladders():
            cells = [told(kid(rungs, ladder.name), ladder) for rungs in by_space.values()]
            lines.append(f"| {ladder.name} | {' | '.join(cells)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def told(rung: Rung, ladder: Ladder) -> str:
    text = f"from {ladder.steps[rung.seen - 1]:g}" if rung.seen else "not seen"
    text = f"**{text}**" if rung.passed else text
    return f"{text}: {', '.join(f'{share:.2f}' for share in rung.power)}" + ("" if ranked(rung) else f"; rank {rung.rank_correlation:.2f}")


def kid(rungs: Sequence[Rung], ladder: str) -> Rung:
    return next(rung for rung in rungs if rung.measure == "KID" and rung.ladder == ladder)


def ranked(rung: Rung) -> bool:
    return rung.rank_correlation > 1 - 1e-9


def said(found: dict[str, dict[str, list[Rung]]]) -> str:
    """How many ladders each space passes by KID, which it does not, and the trained network against the untrained one, over all sets."""
    lines = []
    for space in dict.fromkeys(name for by_space in found.values() for name in by_space):
        rungs = [(name, r) for name, by_space in found.items() for r in by_space.get(space, []) if r.measure == "KID"]
        flat = [f"{r.ladder} ({name}, {r.rank_correlation:.2f})" for name, r in rungs if not ranked(r)]
        unseen = [f"{r.ladder} ({name})" for name, r in rungs if not r.seen]
        passed, first = sum(r.passed for _, r in rungs), sum(r.seen == 1 for _, r in rungs)
        lines.append(f"- {space}: {passed} of {len(rungs)} passed by KID, {first} of them seen at the mildest step.")
        lines[-1] += f" Not ranked: {', '.join(flat) or 'none'}. Not seen at the last step: {', '.join(unseen) or 'none'}."
    pairs = [
        (kid(rungs, ladder.name), kid(by_space[UNTRAINED], ladder.name))
        for by_space in found.values()
        for space, rungs in by_space.items()
        for ladder in ladders()
        if space.startswith("encoder") and UNTRAINED in by_space
    ]
    more = sum(float(a.power.mean()) > float(b.power.mean()) + 0.025 for a, b in pairs)
    fewer = sum(float(a.power.mean()) < float(b.power.mean()) - 0.025 for a, b in pairs)
    lines.append(
        f"- Trained against untrained, over {len(pairs)} ladders: training sees more in {more}, less in {fewer}, the same within 0.025"
        " of the mean share in the others."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the real sets")
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--features", nargs="+", default=[], help="TorchScript networks for [-1, 1] images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/ladder.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    extra = [brought(path, mean=0.5, std=0.5) for path in given.features]
    sets, found, notes = {}, {}, {}
    for name in given.only:
        try:
            sets[name] = SETS[name](given.data)
        except FileNotFoundError:
            print(f"{name}: left out, there are no files; name their folder with --data")
            continue
        found[name], notes[name] = climb(sets[name], extra, given.seed)
        print(f"{name}: {'; '.join(notes[name])}", flush=True)
    text = HEAD.format(
        arguments=" --data FOLDER" if given.data else "",
        machine=f"Here: torch {version('torch')}; Python {platform.python_version()}; {platform.machine()}.",
        seed=given.seed,
        splits=SPLITS,
        often=OFTEN,
        steps="\n".join(f"| {one.name} | {one.unit} | {', '.join(map(str, one.steps))} |" for one in ladders()),
        count=len(ladders()),
        overview=overview(found),
        details=details(sets, found, notes),
        said=said(found),
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(text)
    print(overview(found))


if __name__ == "__main__":
    main()
