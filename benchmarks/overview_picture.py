"""Draw docs/pictures/overview.png: contrasts of the phantom above, samples of a model below.

    python benchmarks/overview_picture.py MODEL

MODEL is a zoo name or run folder of a model of T1 slices of the phantom, such as `demo/run` after `make demo`.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import medgen
from medgen.core.picture import gray, montage, upright
from medgen.data.phantom.anatomy import Brain
from medgen.data.phantom.grid import Grid
from medgen.data.phantom.source import PhantomData

PICTURE = Path(__file__).parents[1] / "docs/pictures/overview.png"
WINDOWS = {"t1": (0, 0.32), "t2": (0, 0.6), "pd": (0, 0.64), "flair": (0, 0.16), "ct": (-40, 100), "tissue": (0, 9)}
SIDE = 192  # pixels of a panel


def contrasts() -> list[np.ndarray]:
    """One subject with a lesion in six contrasts."""
    data = PhantomData(tuple(WINDOWS), size=(SIDE, SIDE), noise=0.012)
    brain, grid = Brain(0, 4, True), Grid.axial((SIDE, SIDE), 18)
    stack = brain.stack(grid)
    planes = {c: stack.argmax(0) if c == "tissue" else data.image(brain, grid, stack, c) for c in WINDOWS}
    return [panel(plane[..., 0], *WINDOWS[name]) for name, plane in planes.items()]


def samples(name: str) -> list[np.ndarray]:
    """Six new images of a model, scaled up without smoothing."""
    volumes = medgen.load(name).generate(len(WINDOWS), seed=1)
    return [panel(v.array[0, ..., 0], 0, float(np.percentile(v.array, 99.5))) for v in volumes]


def panel(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    picture = Image.fromarray(gray(upright(plane), low, high))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST))[8:-8, 26:-26]


def main() -> None:
    if len(sys.argv) != 2:
        print(__doc__)
        return
    Image.fromarray(montage([contrasts(), samples(sys.argv[1])], gap=4)).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
