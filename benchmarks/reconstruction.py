"""4x accelerated T1 slices of one coil: the numbers and the picture of docs/results/second-half.md, part 2.

    python benchmarks/spine.py manifest DATA spine.csv
    python train.py experiment=t1_prior data.source.manifest=$PWD/spine.csv run=runs/second/prior
    python train.py experiment=t1_reconstruction_regression data.source.manifest=$PWD/spine.csv run=runs/second/rec_l1
    D="training.steps=1500 data.source.manifest=$PWD/spine.csv"
    python train.py experiment=t1_reconstruction_diffusion $D run=runs/second/rec_diff
    python benchmarks/reconstruction.py tune spine.csv runs/second      # settings on two training slices, printed
    python benchmarks/reconstruction.py run spine.csv runs/second

Eight fixed slices of patient19 are measured in network units (full contrast 2), with noise 0.02 on each real component; every method
sees the same measurements. Sampling methods draw eight times; their image is the mean of the draws.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage.restoration import denoise_tv_chambolle
from spine import write_block
from torch import Tensor

from medgen.core.condition import Condition, Measurement
from medgen.core.picture import gray, upright
from medgen.core.random import Rng
from medgen.data.files import FileData
from medgen.evaluation.masks import body_mask
from medgen.evaluation.pictures import lettered
from medgen.inference import Pretrained, load
from medgen.inference.reconstruction import named_solver
from medgen.metrics.pixel import psnr, ssim
from medgen.operators.mri import MaskedFourier
from medgen.operators.sampling import Lines
from medgen.solvers.consistency import consistent

NOISE, DRAWS, SLICES = 0.02, 8, 8
TV_WEIGHT = 0.005
DPS = {"steps": 100, "strength": 3.0}
MMPS = {"steps": 32, "guidance.iterations": 3}
CONDITIONAL_STEPS = 12  # of Heun's method
SHOWN = ("zero-filled", "total variation", "L1 U-Net", "conditional diffusion", "prior + DPS", "prior + moment matching")


@dataclass(frozen=True)
class Answer:
    """What a method made of all slices: draws (K, N, 1, H, W), K = 1 without randomness."""

    draws: Tensor
    seconds: float

    @property
    def mean(self) -> Tensor:
        return self.draws.mean(0)


def slices(manifest: Path, split: str, subject: str, count: int) -> Tensor:
    """(count, 1, 128, 128) in network units, evenly spaced over the middle half of the subject's slices."""
    data = FileData(str(manifest), {"t1": {"name": "mr_percentile"}}, (128, 128), spacing=(1.4, 1.4, 1.0))
    cases = data.split(split)
    rows = [cases.case(i, np.random.default_rng(0)) for i in range(len(cases))]
    rows = [row["t1"] for row in rows if row["subject"] == subject]
    places = np.linspace(0.25 * len(rows), 0.75 * len(rows), count).round().astype(int)
    return torch.from_numpy(np.stack([rows[p] for p in places]))


def measured(x: Tensor, pattern: str) -> Measurement:
    rng = Rng(0, 0, range(len(x)))
    state = Lines(pattern, 4).draw(tuple(x.shape), rng)
    return MaskedFourier().measure(x, state, torch.full((len(x),), NOISE), rng)


def zero_filled(m: Measurement) -> Tensor:
    return m.operator.view(m.y, m.state)


def total_variation(m: Measurement, weight: float, iterations: int = 80) -> Tensor:
    """Proximal gradient with momentum (FISTA, Beck and Teboulle 2009); the proximal map of total variation is scikit-image's."""
    x = zero_filled(m)
    ahead, t = x, 1.0
    for _ in range(iterations):
        step = ahead + m.operator.adjoint(m.y - m.operator(ahead, m.state), m.state)
        new = torch.from_numpy(np.stack([denoise_tv_chambolle(s.numpy(), weight, max_num_iter=30) for s in step[:, 0]]))[:, None].float()
        after = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead, x, t = new + (t - 1) / after * (new - x), new, after
    return x


def conditional(model: Pretrained, m: Measurement, draws: int) -> list[Tensor]:
    condition = model.task.condition({"measurement": m})
    shape = tuple(zero_filled(m).shape)
    with torch.no_grad():
        return [model.model.sample(condition, shape, Rng(0, 0, [draw] * shape[0])).float() for draw in range(draws)]


def posterior(prior: Pretrained, solver: str, options: dict[str, Any], m: Measurement, draws: int) -> list[Tensor]:
    chosen = named_solver(solver, prior, options)
    shape = tuple(zero_filled(m).shape)
    half = solver == "dps"  # the same scores in half the time; the conjugate gradients of moment matching need float32
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return [chosen(prior.model, Condition(measurement=m), shape, Rng(0, 0, [draw] * shape[0])).float() for draw in range(draws)]


def methods(runs: Path) -> dict[str, Callable[[], Callable[[Measurement], list[Tensor]]]]:
    """Name -> what loads the method's model, where it has one, and makes the method."""

    def model(name: str) -> Pretrained:
        found = load(runs / name / "checkpoints" / "last")
        return found.with_sampler(steps=CONDITIONAL_STEPS) if name == "rec_diff" else found

    def asked(name: str, draws: int, tied: bool) -> Callable[[], Callable[[Measurement], list[Tensor]]]:
        def make() -> Callable[[Measurement], list[Tensor]]:
            trained = model(name)
            return lambda m: [consistent(x, m) if tied else x for x in conditional(trained, m, draws)]

        return make

    def sampled(solver: str, options: dict[str, Any]) -> Callable[[], Callable[[Measurement], list[Tensor]]]:
        def make() -> Callable[[Measurement], list[Tensor]]:
            prior = model("prior")
            return lambda m: posterior(prior, solver, options, m, DRAWS)

        return make

    return {
        "zero-filled": lambda: lambda m: [zero_filled(m)],
        "total variation": lambda: lambda m: [total_variation(m, TV_WEIGHT)],
        "L1 U-Net": asked("rec_l1", 1, False),
        "L1 U-Net, made consistent": asked("rec_l1", 1, True),
        "conditional diffusion": asked("rec_diff", DRAWS, False),
        "conditional diffusion, made consistent": asked("rec_diff", DRAWS, True),
        "prior + DPS": sampled("dps", DPS),
        "prior + moment matching": sampled("mmps", MMPS),
    }


def scores(answer: Answer, x: Tensor, m: Measurement) -> dict[str, Any]:
    """Per slice PSNR and SSIM of the mean in the body; residual of single draws; spread against error."""
    masks = torch.stack([body_mask(s) for s in x])
    mean, k = answer.mean, len(answer.draws)
    found: dict[str, Any] = {
        "psnr": [float(psnr(mean[i : i + 1], x[i : i + 1], 2.0, masks[i : i + 1])) for i in range(len(x))],
        "ssim": [float(ssim(mean[i : i + 1], x[i : i + 1], 2.0, masks[i : i + 1])) for i in range(len(x))],
        "residual_over_noise": float(torch.stack([m.operator.residual(d, m) / NOISE for d in answer.draws]).mean()),
        "draws": k,
        "seconds": answer.seconds,
    }
    if k > 1:
        spread, error = answer.draws.std(0)[masks], (mean - x)[masks].abs()
        found["psnr_draw"] = [float(psnr(d, x, 2.0, masks).mean()) for d in answer.draws]
        found["spread_over_error"] = float(((1 + 1 / k) ** 0.5 * spread.square().mean().sqrt()) / error.square().mean().sqrt())
        found["spread_error_correlation"] = float(torch.corrcoef(torch.stack([spread, error]))[0, 1])
        inside = error <= 1.96 * (1 + 1 / k) ** 0.5 * spread
        found["inside_95"] = float(inside.float().mean())
    return found


def answered(method: Callable[[Measurement], list[Tensor]], m: Measurement, kept: Path) -> Answer:
    """The answer in `kept`, or a new one that is kept there: the whole takes an hour on one core, and may be interrupted."""
    if not kept.exists():
        start = time.process_time()
        draws = torch.stack(method(m))
        kept.parent.mkdir(exist_ok=True)
        torch.save({"draws": draws, "seconds": time.process_time() - start}, kept)
    return Answer(**torch.load(kept, weights_only=True))


def run(manifest: Path, runs: Path, out: Path, only: list[str]) -> None:
    """second-half-reconstruction.json and .png, and the table, as soon as every method has answered."""
    x = slices(manifest, "test", "patient19", SLICES)
    document: dict[str, Any] = {}
    for pattern in ("equispaced", "random"):
        m, answers = measured(x, pattern), {}
        for name, make in methods(runs).items():
            if only and name not in only:
                continue
            kept = runs / "reconstruction" / f"{pattern} {name}.pt"
            answers[name] = answered(lambda m, make=make: make()(m), m, kept)
            document.setdefault(pattern, {})[name] = scores(answers[name], x, m)
            print(pattern, name, json.dumps(document[pattern][name]), flush=True)
        if pattern == "equispaced" and not only:
            Image.fromarray(picture(x, answers)).save(out / "second-half-reconstruction.png")
    if not only:
        (out / "second-half-reconstruction.json").write_text(json.dumps(document, indent=2) + "\n")
        table(out)


def table(out: Path) -> None:
    """The block of the page, from the stored numbers."""
    document = json.loads((out / "second-half-reconstruction.json").read_text())
    lines = [
        "| lines | method | PSNR (lowest to highest) | SSIM | residual / noise | spread / error | correlation | in 1.96 spread | CPU s |"
    ]
    lines.append("|---" * 9 + "|")
    for pattern, rows in document.items():
        for name, s in rows.items():
            sure = [f"{s[k]:.2f}" if k in s else "" for k in ("spread_over_error", "spread_error_correlation")]
            sure.append(f"{s['inside_95']:.0%}" if "inside_95" in s else "")
            p = s["psnr"]
            cells = [pattern, name, f"{np.mean(p):.2f} ({min(p):.2f} to {max(p):.2f})", f"{np.mean(s['ssim']):.3f}"]
            cells += [f"{s['residual_over_noise']:.2f}", *sure, f"{s['seconds']:.0f}"]
            lines.append("| " + " | ".join(cells) + " |")
    write_block(out / "second-half.md", "reconstruction", lines)


def picture(x: Tensor, answers: dict[str, Answer]) -> np.ndarray:
    """For two slices: truth and results; below, the absolute error; below, the spread of the draws, both on one scale."""
    rows, marks = [], []
    for i in (2, 5):
        flat = np.zeros_like(upright(x[i, 0].numpy()))
        means = [upright(answers[name].mean[i, 0].numpy()) for name in SHOWN]
        truth = upright(x[i, 0].numpy())
        rows.append([gray(truth, -1.0, 1.0), *(gray(a, -1.0, 1.0) for a in means)])
        rows.append([gray(flat, 0.0, 1.0), *(gray(np.abs(a - truth), 0.0, 0.8) for a in means)])
        spreads = [answers[n].draws.std(0)[i, 0].numpy() if len(answers[n].draws) > 1 else None for n in SHOWN]
        rows.append([gray(flat, 0.0, 1.0), *(gray(flat if s is None else upright(s), 0.0, 0.8) for s in spreads)])
        marks += [f"slice {i + 1}", "error", "spread"]
    return lettered(rows, ["truth", "zero-filled", "TV", "L1 U-Net", "cond. diff.", "DPS", "moments"], marks)


def tune(manifest: Path, runs: Path) -> None:
    """PSNR of settings on two training slices, printed."""
    x = slices(manifest, "train", "patient07", 2)
    m = measured(x, "random")
    for weight in (0.0025, 0.005, 0.01, 0.02, 0.04):
        print("TV", weight, [round(float(v), 2) for v in psnr(total_variation(m, weight), x, 2.0)], flush=True)
    prior = load(runs / "prior" / "checkpoints" / "last")
    tries = [("mmps", {"steps": 32, "sampler": "dpmpp", "start": None})]  # the walk that had failing draws
    tries += [("dps", {"steps": 100, "strength": s}) for s in (0.3, 1.0, 3.0)]
    tries += [("mmps", {"steps": s, "guidance.iterations": i}) for s, i in ((16, 3), (32, 1), (32, 3), (32, 6))]
    for solver, options in tries:
        start = time.process_time()
        (made,) = posterior(prior, solver, options, m, 1)
        values = [round(float(v), 2) for v in psnr(made, x, 2.0)]
        residual = float((m.operator.residual(made, m) / NOISE).mean())
        print(solver, options, values, f"residual {residual:.2f}, {time.process_time() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("tune", "run", "table"))
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path, help="folder with prior/, rec_l1/ and rec_diff/")
    parser.add_argument("--only", nargs="*", default=[], help="answer by these methods now, write the page later")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    if options.action == "tune":
        tune(options.manifest, options.runs)
    elif options.action == "run":
        run(options.manifest, options.runs, options.out, options.only)
    else:
        table(options.out)


if __name__ == "__main__":
    main()
