"""Anomaly maps from any prior: noise an image half away, denoise it, and see what did not come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.levels import Below, Level
from medgen.core.model import GenerativeModel
from medgen.core.picture import gray, upright
from medgen.core.random import Rng
from medgen.data.files import FileData
from medgen.data.options import Keep, Options
from medgen.evaluation.made import digest
from medgen.evaluation.masks import body_mask
from medgen.evaluation.pictures import lettered, small
from medgen.evaluation.probes import lesion_map, spread
from medgen.evaluation.section import Estimate, Figure, Section, Table, skipped
from medgen.evaluation.section import Level as Judgement
from medgen.evaluation.training_set import read_targets
from medgen.evaluation.work import AIR, Progress, Work
from medgen.metrics.decisions import auroc
from medgen.metrics.detection import best_dice
from medgen.metrics.lesions import grown, smoothed
from medgen.metrics.statistics import summarise
from medgen.samplers.sampler import Sampler

NAME, TITLE = "anomaly", "Anomalies found by the prior"
RATIO, STEPS, DRAWS = 0.5, 8, 4  # noise over signal that is added, steps back, and how often
SMOOTH, BLUR = 1.0, 4.0  # voxels: every map is smoothed by the first; the second is the yardstick's
SUBJECTS, SLICES = 16, 4  # with a lesion, and images of each
BATCH = 8  # images at once
CHANCE = 0.5
RULE = (
    "good: the interval of the prior's AUROC lies above 0.5, and that of its difference to the best yardstick's above 0; bad: one of them "
    "lies below; watch: neither"
)
YARDSTICKS = {
    "intensity": "difference to the middle intensity of the body",
    "mean image": "difference to the mean training image",
    "blurred": f"difference to itself, blurred by {BLUR:g} voxels",
}


def healed(
    model: GenerativeModel, x: Tensor, rng: Rng, ratio: float = RATIO, steps: int = STEPS, condition: Condition | None = None
) -> Tensor:
    """Noise x (B, C, *S) to sigma / alpha of at most `ratio` and walk back with the model's own sampler: what the prior knows stays, what
    it has not seen is replaced (AnoDDPM, Wyatt et al. 2022).

    Raises:
        MedgenError: a model without a denoiser of images, or whose sampler has no grid of noise levels.
    """
    if reason := unfit(model):
        raise MedgenError(reason)
    sampler = model.sampler
    walk = copy(sampler)
    walk.grid, walk.steps = Below(sampler.grid, ratio), steps
    levels = walk.grid.levels(steps)
    start = levels[0].alpha * x + levels[0].sigma * rng.normal(tuple(x.shape))

    def denoise(x_t: Tensor, level: Level) -> Tensor:
        return model.denoise(x_t, level.alpha, level.sigma, condition or Condition())

    return walk.walk(denoise, start, levels, rng)


def unfit(model: GenerativeModel) -> str:
    """Why a model makes no anomaly maps; empty where it does."""
    if callable(getattr(model, "denoise", None)) and isinstance(getattr(model, "sampler", None), Sampler):
        return ""
    return f"an anomaly map needs a prior that denoises images step by step, and a {type(model).__name__} does not; take a diffusion model"


@torch.no_grad()
def anomaly_map(
    model: GenerativeModel,
    x: Tensor,
    seed: int = 0,
    draws: int = DRAWS,
    ratio: float = RATIO,
    steps: int = STEPS,
    condition: Condition | None = None,
) -> tuple[Tensor, Tensor]:
    """(B, *S) absolute difference of x (B, C, *S) to the mean of `draws` healed ones, mean over channels; and that mean.

    Raises:
        MedgenError: as `healed`.
    """
    device = next(iter(model.parameters()), torch.empty(0)).device
    total = torch.zeros_like(x)
    for draw in range(draws):
        rng = Rng(seed, draw, range(len(x)), device)
        total += healed(model, x.to(device), rng, ratio, steps, condition).float().cpu()
    mean = total / draws
    return (x - mean).abs().mean(1), mean


@dataclass(frozen=True)
class Images:
    """Those of a split that have a lesion: x (N, C, *S), marked and body (N, *S) bool, and the subject of each."""

    x: Tensor
    marked: Tensor
    body: Tensor
    subjects: list[str]


def section(work: Work) -> Section:
    """AUROC and best Dice of the prior's residual maps against known lesions, beside yardsticks that need no model."""
    if reason := _unfit_here(work):
        return skipped(NAME, TITLE, reason)
    found = images_with_lesions(work, lesion_map(work))
    if found is None:
        return skipped(NAME, TITLE, f"No image of split {work.split} has a lesion in '{lesion_map(work)}'.")
    maps, healthy = _maps(work, found)
    scores = {method: _scores(values, found) for method, values in maps.items()}
    told = Section(NAME, TITLE, protocol=_protocol(work, found))
    told.numbers = {method: {"auroc": area, "best_dice": overlap} for method, (area, overlap, _) in scores.items()}
    rows = [[YARDSTICKS.get(method, "the prior's residual"), area, overlap] for method, (area, overlap, _) in scores.items()]
    told.tables = [Table("Lesions found by voxel", ["map", "AUROC", "best Dice"], rows, "AUROC 0.5 is chance. Best Dice: an upper bound.")]
    _judge(told, scores)
    own = sorted(scores["prior"][2].items(), key=lambda item: item[1])
    told.worst = [(subject, f"AUROC {area:.2f}") for subject, area in own[:3]]
    told.figures = [_figure(work, found, maps["prior"], healthy, own)]
    return told


def prepare(work: Work, progress: Progress) -> None:
    """This process's share of the prior's maps, which the section then finds."""
    found = None if _unfit_here(work) else images_with_lesions(work, lesion_map(work))
    own = work.share(range(0, len(found.x), BATCH)) if found else ()
    for done, first in enumerate(own, 1):
        _map(work, found, first)
        progress(done, len(own))


def _unfit_here(work: Work) -> str:
    """Why there are no anomaly maps in this evaluation; empty where there are."""
    task = work.model.task
    if work.kind != "synthesis":
        return "Anomaly maps are for priors: models that make images from nothing."
    if reason := unfit(work.model.model):
        return f"{reason[0].upper()}{reason[1:]}."
    if not lesion_map(work):
        return "There are no known lesions to find: name a column with their label map, such as --labels lesion=2."
    if task.labels or set(task.attributes) - set(work.given):
        return f"The prior needs {', '.join({**task.labels, **task.attributes})}: give it by --set."
    return ""


def images_with_lesions(work: Work, name: str) -> Images | None:
    """As training sees them; of each of at most `SUBJECTS` subjects at most `SLICES` images with lesions, evenly spread."""
    contract = work.model.contract
    rules = {c: {k: v for k, v in contract.intensity[c].items() if k != "typical"} for c in contract.target}
    options = Options(keep=Keep(str(work.folder / "work" / "store")))
    place = {"spacing": contract.spacing, "slice_axis": contract.slice_axis}
    cases = FileData(str(work.manifest.path), rules, contract.size, {name: work.labels[name]}, **place, options=options).split(work.split)
    groups: dict[str, list[Mapping]] = {}
    for number in range(len(cases)):
        case = cases.case(number, np.random.default_rng(0))
        if (case[name] > 0).any():
            groups.setdefault(case["subject"], []).append(case)
    subjects = sorted(groups)
    kept = [groups[subjects[s]][i] for s in spread(len(subjects), SUBJECTS) for i in spread(len(groups[subjects[s]]), SLICES)]
    if not kept:
        return None
    x = torch.from_numpy(np.stack([np.concatenate([case[c] for c in contract.target]) for case in kept]))
    marked = torch.from_numpy(np.stack([case[name][0] for case in kept])) > 0
    hounsfield = all(rule["name"] == "ct_hu" for rule in rules.values())
    threshold = float(contract.map_of(contract.target[0]).forward(AIR, **contract.typical(contract.target[0]))) if hounsfield else None
    body = torch.stack([body_mask(image, threshold)[0] for image in x])
    return Images(x, marked, body | marked, [case["subject"] for case in kept])


def _map(work: Work, found: Images, first: int) -> tuple[Tensor, Tensor]:
    """`anomaly_map` of a batch of images, from disk where it was made before."""
    x = found.x[first : first + BATCH]
    inputs = {name: torch.full((len(x),), float(work.given[name])) for name in work.model.task.attributes}
    condition = work.model.task.condition(inputs).to(work.model.device) if inputs else None

    def make() -> Tensor:
        residual, mean = anomaly_map(work.model.model, x, work.seed + first, condition=condition)
        return torch.cat([residual[:, None], mean], 1)

    both = work.once(f"anomaly_{first:05d}_{digest(x, torch.tensor([RATIO, STEPS, DRAWS]))}", make)
    return both[:, 0], both[:, 1:]


def _maps(work: Work, found: Images) -> tuple[dict[str, Tensor], Tensor]:
    """Method -> (N, *S), the higher the less usual; and what the prior makes of the images."""
    parts = [_map(work, found, first) for first in range(0, len(found.x), BATCH)]
    usual = _usual(work) if "train" in work.manifest.splits else None
    middle = torch.stack([x[0][body].median() for x, body in zip(found.x, found.body, strict=True)])
    maps = {"prior": torch.cat([residual for residual, _ in parts])}
    maps["intensity"] = (found.x[:, 0] - middle.reshape(-1, *[1] * (found.x.ndim - 2))).abs()
    if usual is not None and usual.shape == found.x.shape[1:]:
        maps["mean image"] = (found.x - usual).abs().mean(1)
    maps["blurred"] = torch.stack([(x[0] - smoothed(x[0], BLUR, b)).abs() for x, b in zip(found.x, found.body, strict=True)])
    smooth = {name: torch.stack([smoothed(m, SMOOTH, b) for m, b in zip(v, found.body, strict=True)]) for name, v in maps.items()}
    return smooth, torch.cat([mean for _, mean in parts])


def _usual(work: Work) -> Tensor:
    """(C, *S) the mean training image."""
    images, _ = read_targets(work, "train")
    total = images[0].double()
    for number in range(1, len(images)):
        total += images[number]
    return (total / len(images)).float()


def _scores(values: Tensor, found: Images) -> tuple[Estimate, Estimate, dict[str, float]]:
    """AUROC and best Dice over the voxels of the body of each subject's images, means over subjects; and the AUROC of each."""
    areas, overlaps = {}, {}
    for subject in dict.fromkeys(found.subjects):
        own = torch.tensor([name == subject for name in found.subjects])
        inside = found.body[own]
        score, truth = values[own][inside], found.marked[own][inside]
        areas[subject] = auroc(score.numpy(), truth.numpy())
        overlaps[subject] = best_dice(score, truth)[0]
    return _estimate(areas), _estimate(overlaps), areas


def _estimate(values: Mapping[str, float]) -> Estimate:
    found = summarise(list(values.values()), list(values))
    reason = "" if found.interval else "one subject cannot tell how much subjects differ"
    return Estimate(found.mean, found.interval, found.subjects, "", reason)


def _judge(told: Section, scores: Mapping[str, tuple[Estimate, Estimate, dict[str, float]]]) -> None:
    own, rivals = scores["prior"], {name: value for name, value in scores.items() if name != "prior"}
    best = max(rivals, key=lambda name: rivals[name][0].value)
    gap = _estimate({subject: area - rivals[best][2][subject] for subject, area in own[2].items()})
    told.numbers["above_yardstick"] = {"yardstick": best, "auroc": gap}
    told.verdict = f"Its residual finds lesions with an AUROC of {own[0]} by voxel; the best yardstick ({best}) with {rivals[best][0]}."
    told.verdict += " That is no better than chance." if own[0].value <= CHANCE else ""
    known = own[0].interval is not None and gap.interval is not None
    low, high = (min(a - b for a, b in pairs) for pairs in _ends(own[0], gap)) if known else (-1.0, 1.0)
    told.level = Judgement.GOOD if low > 0 else Judgement.BAD if high < 0 else Judgement.WATCH


def _ends(own: Estimate, gap: Estimate) -> list[list[tuple[float, float]]]:
    """Lower and upper ends of the AUROC and of its difference to the yardstick's, each with what it should exceed."""
    return [[(own.interval[i], CHANCE), (gap.interval[i], 0.0)] for i in (0, 1)]


def _protocol(work: Work, found: Images) -> dict[str, str]:
    return {
        "level": RULE,
        "map": f"noise of {RATIO:g} network units to the signal, {STEPS} steps back, mean of {DRAWS} draws; difference to the image",
        "cases": f"{len(found.x)} images with a lesion of {len(set(found.subjects))} subjects, at most {SLICES} each; voxels of the body",
        "yardsticks": "; ".join(f"{name}: {meaning}" for name, meaning in YARDSTICKS.items()),
        "smoothing": f"every map by a Gaussian of {SMOOTH:g} voxels in the body",
        "training": "a prior that was trained on images with lesions knows them, and finds them less",
    }


def _figure(work: Work, found: Images, residual: Tensor, healthy: Tensor, ranked: Sequence[tuple[str, float]]) -> Figure:
    """The worst, the middle and the best subject."""
    flat = found.x.ndim == 4
    rows, names = [], []
    for place in dict.fromkeys([0, len(ranked) // 2, len(ranked) - 1]):
        subject, area = ranked[place]
        own = max((i for i, name in enumerate(found.subjects) if name == subject), key=lambda i: int(found.marked[i].sum()))
        height = 0 if flat else int(found.marked[own].sum((0, 1)).argmax())

        def plane(image: Tensor, height: int = height) -> np.ndarray:
            array = (image if flat else image[..., height]).float().numpy()
            return upright(array) if work.model.contract.spacing is not None else array

        picture = np.repeat(gray(plane(found.x[own, 0]), -1.0, 1.0)[..., None], 3, -1)
        marked = found.marked[own] if flat else found.marked[own][..., height]
        rim = grown(marked) & ~marked
        picture[(upright(rim.numpy()) if work.model.contract.spacing is not None else rim.numpy())] = (255, 60, 60)
        top = float(residual[own].max())
        rows.append([small(picture), small(gray(plane(healthy[own, 0]), -1.0, 1.0)), small(gray(plane(residual[own]), 0.0, top))])
        names.append(f"{subject}: {area:.2f}")
    note = "Red: around the known lesions. Residual: black 0, white its largest value. Beside the subject its AUROC."
    return Figure("Residual maps of the worst, a middle and the best subject", lettered(rows, ["image", "healed", "residual"], names), note)
