"""Train a built-in encoder of `medgen evaluate` and write it, with its card, into a folder of the zoo.

    python benchmarks/encoders.py 2 --data ../shared/data -o zoo/encoder_2d
    python benchmarks/encoders.py 3 --data ../shared/data -o zoo/encoder_3d

Self-supervision on drawn images and on the training subjects of the real sets in DATA: hidden blocks are rebuilt, and two crops of one
image are told from the other images of its set. A batch holds images of one set, so that telling sets apart earns nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from encoder_data import ABOUT, Images, drawn, real
from torch import Tensor

from medgen.core.random import generator
from medgen.evaluation.encoder import DOCUMENT, WEIGHTS, named, save
from medgen.models.pretext import Pretext
from medgen.nn.encoder import Encoder, Rebuilder

CHANNELS = {2: (12, 24, 48, 96), 3: (8, 16, 32, 64)}
CROPS = {2: (32, 40, 48), 3: (24,)}
BATCH = {2: 24, 3: 12}
STEPS = {2: 1200, 3: 600}
LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}
RATE, WARMUP, SEED = 2e-3, 100, 0
BLOCK, HIDDEN = 8, 0.5  # edge of what is hidden together, in voxels, and its share
TRIES = 4  # crops of which the one with the most in it is taken
FITTED = 150  # images of a set that the readout sees
CARD = """\
# Encoder of {what}, {dims}D

A feature space to compare sets of {what} with, and the maps of the perceptual distance: `medgen evaluate` uses it by itself, under the
name `{name}`. In Python: `medgen.evaluation.encoder.built_in({dims})`. Not a generator, and not a model of anatomy or disease.

## Training

- Data, training subjects only: {data}.
- Command: `python benchmarks/encoders.py {dims} --data DATA -o zoo/encoder_{dims}d`, seed 0.
- {steps} steps of {batch} crops, {minutes:.0f} minutes on one processor core that other work shared, in bfloat16.
- Hidden blocks of {block} voxels a side are rebuilt, and two crops of an image, shifted and mirrored, are told from crops of the
  other images of the same set (NT-Xent). No view is blurred, made noisy or changed in contrast: to these the encoder stays sensitive.
- Its vector is made of each map's mean, deviation and flattest place in the body, whitened by what varies within the sets above.
  A comparison divides it by the spread of the real images at hand.
- {size:.1f} MB; licence of the weights: {licence}.

## Measured

{measured}

## Known failures

- Numbers compare only under one name: other weights, other numbers. They are not comparable with published Inception distances.
- Small and trained on what is listed above; for other modalities check first that real against real scores well below what matters to you.
- Intensities count: images must be in medgen's network units (-1 for air or no signal), and two scanners' scales are a difference to it.
- The ladder tells from which strength on a fault is seen: small faults in few images lie within the spread of clean ones.
- A vector has no place in it: what is moved to somewhere else as a whole is seen only by the maps.
"""


class Views:
    """Pairs of views of images of one set, and what is hidden of the first, keyed by (seed, step).

    Args:
        images: set -> images (*S).
        dims: 2 or 3.
        batch: images a step; a set with fewer gives all that it has.
    """

    def __init__(self, images: Images, dims: int, batch: int):
        self.images, self.dims, self.batch = images, dims, batch

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Two views (B, 1, *T) and a mask (B, 1, *T), bool."""
        rng = generator(SEED, step)
        names = sorted(self.images)
        images = self.images[names[int(rng.integers(len(names)))]]
        chosen = [images[i] for i in rng.permutation(len(images))[: self.batch]]
        least = min(min(image.shape) for image in chosen)
        size = min(int(rng.choice(CROPS[self.dims])), least // BLOCK * BLOCK)
        first, second = (torch.stack([self._crop(image, size, rng) for image in chosen]) for _ in range(2))
        cells = torch.from_numpy(rng.random((len(chosen), 1, *(size // BLOCK,) * self.dims)) < HIDDEN)
        for axis in range(2, cells.ndim):
            cells = cells.repeat_interleave(BLOCK, axis)
        return first, second, cells

    def _crop(self, image: Tensor, size: int, rng) -> Tensor:
        """(1, *T) float32, mirrored along each axis or not."""
        found = []
        for _ in range(TRIES):
            starts = [int(rng.integers(n - size + 1)) for n in image.shape]
            part = image[tuple(slice(start, start + size) for start in starts)].float()
            found.append(part.flip([axis for axis in range(self.dims) if rng.random() < 0.5]))
        return max(found, key=lambda part: float(part.std()))[None]


def train(pretext: Pretext, views: Views, steps: int, dims: int) -> Iterator[dict[str, float]]:
    """Descend; yields the terms of the loss of each step."""
    pretext.train().to(memory_format=LAYOUT[dims])
    optimizer = torch.optim.AdamW(pretext.parameters(), RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps + 1, pct_start=min(0.3, WARMUP / steps))
    for step in range(steps):
        first, second, hidden = (part.contiguous(memory_format=LAYOUT[dims]) for part in views(step))
        with torch.autocast("cpu", torch.bfloat16):
            loss = pretext.loss(first, second, hidden)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(pretext.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield {name: float(value) for name, value in loss.terms.items()}


@torch.no_grad()
def fit_readout(encoder: Encoder, images: Images) -> None:
    """On whole images, as they will be compared."""
    encoder.eval()
    sets = []
    for name in sorted(images):
        order = generator(SEED, 1).permutation(len(images[name]))[:FITTED]
        sets.append(torch.cat([encoder.description(images[name][i].float()[None, None])[:, 0] for i in order]))
    encoder.fit_readout(sets)


def card(folder: Path, measured: str) -> str:
    """The card of a trained encoder; `measured` is Markdown."""
    document = json.loads((folder / DOCUMENT).read_text())
    dims, facts = document["encoder"]["spatial_dims"], document["data"]
    alike = any("SA" in fact["licence"] for fact in facts)
    weights = (folder / WEIGHTS).read_bytes()
    return CARD.format(
        dims=dims,
        what={2: "images", 3: "volumes"}[dims],
        name=named(folder, weights),
        data="; ".join(f"{fact['name']} ({fact['licence']}; {fact['attribution']})" for fact in facts),
        steps=document["steps"],
        minutes=document["minutes"],
        batch=BATCH[dims],
        block=BLOCK,
        size=len(weights) / 1e6,
        licence="CC BY-SA 4.0, as that of the data" if alike else "Apache-2.0, with the attribution of the data above",
        measured=measured.strip(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dims", type=int, choices=(2, 3))
    parser.add_argument("--data", type=Path, help="folder of the real sets; without it the encoder learns from drawn images alone")
    parser.add_argument("--steps", type=int, help="default: 1200 in 2D, 600 in 3D")
    parser.add_argument("--measured", type=Path, help="Markdown: do not train, write the card of what lies in the folder, with this in it")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder named encoder_2d or encoder_3d")
    options = parser.parse_args()
    if options.measured:
        (options.output / "card.md").write_text(card(options.output, options.measured.read_text()))
        return
    steps = options.steps or STEPS[options.dims]
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    images = drawn(options.dims) | (real(options.dims, options.data) if options.data else {})
    print({name: len(found) for name, found in images.items()}, flush=True)
    encoder = Encoder(options.dims, CHANNELS[options.dims])
    pretext = Pretext(encoder, Rebuilder(options.dims, encoder.channels))
    start, seen = time.monotonic(), []
    for step, terms in enumerate(train(pretext, Views(images, options.dims, BATCH[options.dims]), steps, options.dims), 1):
        seen = [*seen[-99:], terms]
        if step % 100 == 0:
            means = {name: round(sum(one[name] for one in seen) / len(seen), 4) for name in terms}
            print(step, means, f"{time.monotonic() - start:.0f} s", flush=True)
    fit_readout(encoder, images)
    used = [name for name in ABOUT if any(key.startswith(name) for key in images)]
    minutes = round((time.monotonic() - start) / 60, 1)
    save(options.output, encoder, {"data": [ABOUT[name] for name in used], "steps": steps, "minutes": minutes})
    print("written:", options.output)


if __name__ == "__main__":
    main()
