"""What images are good for: networks trained on generated images and tried on real ones, a fixed segmenter's view of translated images,
and errors in Hounsfield units by tissue.

Train on synthetic, test on real (TSTR), the reverse (TRTS) and real with synthetic added follow Esteban et al. 2017 (arXiv 1706.02633).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.data.files import FileData
from medgen.data.options import Keep, Options
from medgen.evaluation.classes import class_names
from medgen.evaluation.judges import CLASSIFIERS, Classifier, Segmenter, Training
from medgen.evaluation.section import Estimate, Level, Section, Table, skipped
from medgen.evaluation.work import Case, Work
from medgen.metrics.decisions import detected, dice, hd95, macro_auroc, macro_f1
from medgen.metrics.statistics import summarise

NAME, TITLE = "task", "Use for a task"
SEEDS = 3
LEAST_TRAIN, LEAST_TEST = 8, 4  # subjects below which a network's answer says nothing
TISSUES = {"air and lung": (-math.inf, -200.0), "soft tissue": (-200.0, 250.0), "bone": (250.0, math.inf)}  # HU in the truth
ARMS = ("real", "synthetic", "real and synthetic")
LESIONS = ("lesion", "nodule", "tumour", "tumor", "stroke", "metastasis")
PROTOCOL = {
    "arms": "the same network, steps and batches for each: trained on real images of the training split, on samples (TSTR), on both; "
    "tried on the real images of the split. TRTS: trained on real, tried on samples",
    "seeds": f"{SEEDS} seeds; the interval resamples the subjects that are tried, of the mean over seeds",
}


class Elsewhere(MedgenError):
    """A task that is asked of another kind of model."""


@dataclass
class Part:
    """What one kind of task adds to the section."""

    verdict: str
    level: Level
    numbers: dict[str, Any]
    tables: list[Table]
    worst: list[tuple[str, str]] = field(default_factory=list)
    protocol: dict[str, str] = field(default_factory=dict)


def section(work: Work, training: Training | None = None) -> Section:
    """The tasks that the model and the manifest allow; without any, the reasons."""
    training, told = training or Training(device=work.model.device), Section(NAME, TITLE)
    reasons: list[str] = []
    elsewhere: list[str] = []  # why a task is none of this kind of model's: of interest only where no other reason is known
    for kind in (hounsfield, segmented, trained_on_samples):
        try:
            part = kind(work, training)
        except MedgenError as error:
            (elsewhere if isinstance(error, Elsewhere) else reasons).append(str(error))
            continue
        told.verdict = f"{told.verdict} {part.verdict}".strip()
        told.level = _worse(told.level, part.level)
        told.numbers |= part.numbers
        told.tables += part.tables
        told.worst += part.worst
        told.protocol |= part.protocol
    if not told.tables:
        return skipped(NAME, TITLE, " ".join(f"{reason[0].upper()}{reason[1:]}." for reason in reasons or elsewhere))
    told.numbers["left_out"] = reasons + elsewhere
    return told


# --- Hounsfield units -----------------------------------------------------------------------------------------------------------------


def hounsfield(work: Work, training: Training) -> Part:
    """Error of synthetic CT in HU, over the body and by what the truth is there: what a dose calculation lives on.

    Raises:
        Elsewhere: the model makes no CT of given images.
    """
    contract = work.model.contract
    if work.kind == "synthesis" or any(contract.intensity[c]["name"] != "ct_hu" for c in contract.target):
        raise Elsewhere("errors in Hounsfield units are for models that make CT of given images")
    ends = contract.map_of(contract.target[0]).fit(np.zeros(1))
    half = (ends["high"] - ends["low"]) / 2
    rows: dict[str, list[tuple[str, float, float]]] = {}
    for case in work.cases():
        truth = (case.target.double() + 1) * half + ends["low"]
        error = (work.made(case).image.double() - case.target.double()) * half
        for name, (low, high) in {"body": (-math.inf, math.inf), **TISSUES}.items():
            where = case.body.expand_as(truth) & (truth > low) & (truth <= high)
            if where.any():
                rows.setdefault(name, []).append((case.subject, float(error[where].abs().mean()), float(error[where].mean())))
    mean = {name: [_estimate([r[i] for r in found], [r[0] for r in found], "HU") for i in (1, 2)] for name, found in rows.items()}
    table = Table(
        "Error in Hounsfield units",
        ["in", "mean absolute error", "mean error"],
        [[name, *values] for name, values in mean.items()],
        "Parts of the body by the truth: air and lung below -200 HU, bone above 250 HU, soft tissue between.",
    )
    numbers = {name: {"mae": values[0], "me": values[1]} for name, values in mean.items()}
    verdict = f"CT numbers are off by {mean['body'][0]} in the body."
    return Part(verdict, Level.NONE, {"hounsfield": numbers}, [table])


# --- a fixed segmenter on translated images ---------------------------------------------------------------------------------------------


def segmented(work: Work, training: Training) -> Part:
    """Dice of a segmenter that was trained on real images, applied to made and to real images of the same subjects.

    Raises:
        Elsewhere: a synthesis model.
        MedgenError: no label maps, too few subjects, or `quick`.
    """
    if work.kind == "synthesis":
        raise Elsewhere("a fixed segmenter judges images that were made of given ones")
    if work.quick:
        raise MedgenError("networks are not trained with --quick")
    if not work.labels:
        raise MedgenError("a fixed segmenter needs label maps: name a column by --labels NAME=CLASSES")
    name, entry = next(iter(work.labels.items()))
    data = _data(work, {name: entry}, {})
    classes = data.labels[name]
    images, labels, subjects = _labelled(work, data, "train", name)
    _check_subjects(subjects, [row["subject"] for row in work.rows.rows])
    judge = Segmenter(images, labels, classes, training)
    found: dict[str, list[tuple[str, Tensor]]] = {"made": [], "real": []}
    lesion = any(word in name.lower() for word in LESIONS)
    counts = {"made": np.zeros(3, int), "real": np.zeros(3, int)}
    for case in work.cases():
        for kind, image in (("made", work.made(case).image), ("real", case.target)):
            predicted, truth = _segment(judge, image, case, work), case.regions[name][0, 0]
            found[kind].append((case.subject, dice(predicted, truth, classes)))
            if lesion:
                counts[kind] += detected((predicted > 0).numpy(), (truth > 0).numpy())
    rows, numbers, names = [], {}, class_names(work)
    for k in range(classes - 1):
        pair = {kind: _known([(s, float(d[k])) for s, d in values]) for kind, values in found.items()}
        rows.append([names.get(f"{name}={k + 1}", f"{name}={k + 1}"), pair["made"], pair["real"]])
        numbers[f"{name}={k + 1}"] = pair
    note = f"{len(subjects)} images of {len(set(subjects))} training subjects; the real column is what it can do."
    tables = [Table("A segmenter trained on real images", ["Dice of", "on made images", "on real images"], rows, note)]
    made, real = (float(np.nanmean([d.mean() for _, d in found[kind]])) for kind in ("made", "real"))
    if lesion:
        tables.append(_lesion_table(counts))
        numbers["lesions"] = {kind: dict(zip(("found", "there", "false"), values.tolist(), strict=True)) for kind, values in counts.items()}
    level = Level.NONE if not real > 0.3 else Level.GOOD if made > 0.9 * real else Level.WATCH if made > 0.6 * real else Level.BAD
    worst = sorted(((s, float(d.nanmean())) for s, d in found["made"]), key=lambda pair: pair[1])[:3]
    verdict = f"A segmenter of {name} reaches Dice {made:.3f} on made images, {real:.3f} on real ones."
    told = {"segmenter": f"MONAI's U-Net, {training.steps} steps, seed {training.seed}, trained on the training split's real images"}
    return Part(verdict, level, {"segmenter": numbers}, tables, [(s, f"Dice of {name} {v:.2f}") for s, v in worst], told)


def _lesion_table(counts: Mapping[str, np.ndarray]) -> Table:
    rows = [
        [kind, f"{found} of {there}", f"{found / there:.0%}" if there else "-", int(false)]
        for kind, (found, there, false) in counts.items()
    ]
    note = "A lesion is found where a tenth of it is marked; a marked part of three voxels or more that touches none is false."
    return Table("Lesions found", ["on", "found", "sensitivity", "false parts"], rows, note)


def _segment(judge: Segmenter, image: Tensor, case: Case, work: Work) -> Tensor:
    """(*S) labels of a volume or picture (1, C, *S), slice by slice for a judge of slices."""
    axis = work.model.contract.slice_axis
    if image.ndim - 2 == judge.dims or axis is None:
        return judge(image)[0]
    return judge(image[0].movedim(axis + 1, 0)).movedim(0, axis)


# --- networks trained on samples ----------------------------------------------------------------------------------------------------------


def trained_on_samples(work: Work, training: Training) -> Part:
    """TSTR, TRTS and augmentation, by class attribute or by label map.

    Raises:
        Elsewhere: a model that is not one of synthesis.
        MedgenError: samples that carry no truth; too few subjects; `quick`.
    """
    if work.kind != "synthesis":
        raise Elsewhere("training on samples is for models of synthesis")
    if work.quick:
        raise MedgenError("networks are not trained with --quick")
    task = work.model.task
    classes = {n: k for n, k in task.attributes.items() if k >= 2 and n in work.manifest.columns and n not in work.given}
    if work.own_labels:
        return _by_segmentation(work, next(iter(work.own_labels)), training)
    if classes:
        return _by_class(work, *next(iter(classes.items())), training)
    raise MedgenError(
        "samples carry no truth to train on: the model has neither a class nor a label map that the manifest has a column for"
    )


def _by_class(work: Work, name: str, count: int, training: Training) -> Part:
    data = _data(work, {}, {name: count})
    real = {split: _classed(work, data, split, name) for split in ("train", work.split)}
    _check_subjects(real["train"][2], real[work.split][2])
    samples, told = work.drawn(), torch.tensor(work.sample_attributes()[name]).long()
    arms = _arms(real["train"][:2], (samples, told))
    tried = real[work.split]
    rows, numbers = [], {}
    for kind in CLASSIFIERS:
        for arm, (images, classes) in arms.items():
            scores = [Classifier(kind, images, classes, count, replace(training, seed=s))(tried[0]) for s in range(SEEDS)]
            estimates = [_resampled(scores, tried[1].numpy(), tried[2], measure) for measure in (macro_auroc, _f1)]
            rows.append([f"{kind}, {arm}", *estimates])
            numbers.setdefault(kind, {})[arm] = {"auroc": estimates[0], "f1": estimates[1]}
        back = [Classifier(kind, *arms["real"], count, replace(training, seed=s))(samples) for s in range(SEEDS)]
        each = [str(i) for i in range(len(samples))]
        estimates = [_resampled(back, told.numpy(), each, measure) for measure in (macro_auroc, _f1)]
        rows.append([f"{kind}, TRTS", *estimates])
        numbers[kind]["TRTS"] = {"auroc": estimates[0], "f1": estimates[1]}
    note = _counts(samples, real["train"], tried)
    table = Table(f"Classifiers of {name}", ["trained on", "AUROC", "F1 (macro)"], rows, note)
    return _judged(f"{name}", numbers, "auroc", "AUROC", table, 0.5)


def _by_segmentation(work: Work, name: str, training: Training) -> Part:
    data, count = _data(work, {name: work.own_labels[name]}, {}), work.model.task.labels[name]
    train, tried = (_labelled(work, data, split, name) for split in ("train", work.split))
    _check_subjects(train[2], tried[2])
    samples, maps = work.drawn(), work.sample_labels()[name].long()
    rows, numbers = [], {"segmenter": {}}
    for arm, (images, labels) in _arms(train[:2], (samples, maps)).items():
        judges = [Segmenter(images, labels, count, replace(training, seed=s)) for s in range(SEEDS)]
        overlaps, distances = zip(*(_overlap(judge, tried, count) for judge in judges), strict=True)
        values = [_known(list(zip(tried[2], _over_seeds(found), strict=True))) for found in (overlaps, distances)]
        rows.append([arm, *values])
        numbers["segmenter"][arm] = {"dice": values[0], "hd95": values[1]}
    back = [_overlap(Segmenter(*train[:2], count, replace(training, seed=s)), (samples, maps), count) for s in range(SEEDS)]
    values = [_known([(str(i), float(v)) for i, v in enumerate(_over_seeds([b[j] for b in back]))]) for j in (0, 1)]
    rows.append(["TRTS", *values])
    numbers["segmenter"]["TRTS"] = {"dice": values[0], "hd95": values[1]}
    note = f"{_counts(samples, train, tried)} HD95 in voxels."
    table = Table(f"Segmenters of {name}", ["trained on", "Dice", "HD95"], rows, note)
    return _judged(name, numbers, "dice", "Dice", table, 0.0)


def _judged(name: str, numbers: dict[str, Any], measure: str, word: str, table: Table, chance: float) -> Part:
    """What the best judge says: samples are as good as real images, of some use, or of none."""
    real, made, both = (max((found[arm][measure].value for found in numbers.values()), default=math.nan) for arm in ARMS)
    gain, level = (made - chance) / max(real - chance, 1e-9), Level.BAD
    if not real > chance + 0.1:
        level = Level.NONE
    elif gain > 0.9:
        level = Level.GOOD
    elif gain > 0.5:
        level = Level.WATCH
    verdict = f"For {name}, trained on samples: {word} {made:.3f} on real images; trained on real ones: {real:.3f}; on both: {both:.3f}."
    return Part(verdict, level, {"training": numbers}, [table], protocol=PROTOCOL)


def _counts(samples: Tensor, train: Sequence[Any], tried: Sequence[Any]) -> str:
    return f"{len(samples)} samples, {len(train[0])} real training images, {len(tried[0])} real images of {len(set(tried[2]))} subjects."


def _arms(real: tuple[Tensor, Tensor], samples: tuple[Tensor, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    both = tuple(torch.cat(pair) for pair in zip(real, samples, strict=True))
    return dict(zip(ARMS, (real, samples, both), strict=True))


def _overlap(judge: Segmenter, tried: Sequence[Any], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Per image the mean Dice and the mean HD95 over classes, each (N,)."""
    predicted = judge(tried[0])
    pairs = list(zip(predicted, tried[1], strict=True))
    measures = [[measure(a, b, classes).numpy() for a, b in pairs] for measure in (dice, hd95)]
    return tuple(np.array([np.nanmean(v) if np.isfinite(v).any() else np.nan for v in found]) for found in measures)


def _over_seeds(found: Sequence[np.ndarray]) -> np.ndarray:
    """(S, N) -> (N,) means of the seeds that have a value: NaN where none has, as of images without the class."""
    known = ~np.isnan(found)
    return np.where(known.any(0), np.where(known, found, 0.0).sum(0) / known.sum(0).clip(1), np.nan)


def _f1(probabilities: np.ndarray, classes: np.ndarray) -> float:
    return macro_f1(probabilities.argmax(1), classes)


def _resampled(
    scores: Sequence[np.ndarray],
    classes: np.ndarray,
    subjects: Sequence[str],
    measure: Callable[[np.ndarray, np.ndarray], float],
    draws: int = 400,
) -> Estimate:
    """The measure's mean over seeds, and its percentile interval by resampling subjects."""
    names = np.array(subjects)
    groups = [np.flatnonzero(names == name) for name in sorted(set(subjects))]
    rng, found = generator(len(groups), 0x7461736B), []
    for _ in range(draws):
        rows = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        found.append(np.mean([measure(score[rows], classes[rows]) for score in scores]))
    found = np.array(found)[np.isfinite(found)]
    value = float(np.mean([measure(score, classes) for score in scores]))
    if len(found) < draws / 2:
        return Estimate(value, None, len(groups), reason="too few subjects of some class")
    low, high = np.quantile(found, (0.025, 0.975))
    return Estimate(value, (float(low), float(high)), len(groups))


# --- data ---------------------------------------------------------------------------------------------------------------------------------


def _data(work: Work, labels: Mapping[str, int | Mapping[str, Any]], attributes: Mapping[str, int]) -> FileData:
    """The manifest as the model's own training would read it, with labels and attributes."""
    contract = work.model.contract
    rules = {c: {k: v for k, v in contract.intensity[c].items() if k != "typical"} for c in contract.target}
    options = Options(keep=Keep(str(work.folder / "work" / "store")))
    place = {"spacing": contract.spacing, "slice_axis": contract.slice_axis}
    return FileData(str(work.manifest.path), rules, contract.size, labels, attributes, **place, options=options)


def _cases(data: FileData, split: str) -> list[dict[str, Any]]:
    cases, rng = data.split(split), np.random.default_rng(0)
    return [cases.case(i, rng) for i in range(len(cases))]


def _labelled(work: Work, data: FileData, split: str, name: str) -> tuple[Tensor, Tensor, list[str]]:
    """Images (N, C, *S), labels (N, *S) and the subject of each."""
    cases, channels = _cases(data, split), work.model.task.target
    images = torch.from_numpy(np.stack([np.concatenate([case[c] for c in channels]) for case in cases]))
    return images, torch.from_numpy(np.stack([case[name][0] for case in cases])).long(), [case["subject"] for case in cases]


def _classed(work: Work, data: FileData, split: str, name: str) -> tuple[Tensor, Tensor, list[str]]:
    cases, channels = _cases(data, split), work.model.task.target
    images = torch.from_numpy(np.stack([np.concatenate([case[c] for c in channels]) for case in cases]))
    return images, torch.tensor([int(case[name]) for case in cases]), [case["subject"] for case in cases]


def _check_subjects(train: Sequence[str], tried: Sequence[str]) -> None:
    n, m = len(set(train)), len(set(tried))
    if n < LEAST_TRAIN or m < LEAST_TEST:
        raise MedgenError(
            f"{n} training and {m} tried subjects are too few to train a network for a judgement ({LEAST_TRAIN} and {LEAST_TEST})"
        )


def _estimate(values: Sequence[float], subjects: Sequence[str], unit: str = "") -> Estimate:
    found = summarise(values, subjects)
    reason = "" if found.interval else "one subject"
    return Estimate(found.mean, found.interval, found.subjects, unit, reason)


def _known(pairs: Sequence[tuple[str, float]]) -> Estimate:
    """Of the values that exist: a class may be in neither map."""
    there = [(subject, float(value)) for subject, value in pairs if np.isfinite(value)]
    if not there:
        return Estimate(math.nan, None, 0, reason="in no image")
    return _estimate([value for _, value in there], [subject for subject, _ in there])


def _worse(first: Level, second: Level) -> Level:
    order = (Level.NONE, Level.GOOD, Level.WATCH, Level.BAD)
    return max(first, second, key=order.index)
