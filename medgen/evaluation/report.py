"""An evaluation as JSON for machines, PNG for eyes and a table for documents."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.picture import gray, montage
from medgen.evaluation.volumes import METRICS, Evaluation, Row, Shown
from medgen.metrics.statistics import summarise

ONE_SUBJECT = "one subject: the value, no interval, because one subject cannot tell how much subjects differ"
NOT_FINITE = "no mean: of a volume the PSNR is infinite (equal images) or the SSIM is not defined (an axis shorter than its window)"


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Plain data: n, the values per volume, mean and interval (or null with the reason) per region and metric, range, protocol."""
    rows = evaluation.rows
    regions = dict.fromkeys(row.region for row in rows)
    return {
        "n_volumes": sum(row.region == rows[0].region for row in rows),
        "n_subjects": len({row.subject for row in rows}),
        "data_range": evaluation.data_range,
        "interval_level": 0.95,
        "protocol": evaluation.protocol,
        "regions": {region: _region([r for r in rows if r.region == region]) for region in regions},
    }


def write_report(evaluation: Evaluation, folder: str | Path, name: str = "evaluation", overwrite: bool = False) -> tuple[Path, Path]:
    """`<name>.json` and `<name>.png` in `folder`.

    Raises:
        MedgenError: one of them exists and `overwrite` is not set.
    """
    from PIL import Image

    paths = free_paths(folder, name, overwrite)
    paths[0].write_text(json.dumps(summary(evaluation), indent=2, allow_nan=False) + "\n")
    Image.fromarray(case_picture(evaluation.shown, evaluation.data_range)).save(paths[1])
    return paths


def free_paths(folder: str | Path, name: str, overwrite: bool) -> tuple[Path, Path]:
    """The report's two files, refused where they exist; the folder is made."""
    paths = Path(folder) / f"{name}.json", Path(folder) / f"{name}.png"
    for path in paths:
        if path.exists() and not overwrite:
            raise MedgenError(f"{path} exists; choose another folder or pass overwrite=True (--overwrite)")
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    return paths


def markdown_table(evaluations: dict[str, Evaluation], region: str = "body") -> str:
    """One line per method, one column per metric: the mean, and the interval where there is one."""
    lines = [f"| method | {' | '.join(m.upper() for m in METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    for method, evaluation in evaluations.items():
        cells = [_cell(summary(evaluation)["regions"][region][metric]) for metric in METRICS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def case_picture(shown: list[Shown], data_range: float) -> np.ndarray:
    """Source, target, result and signed difference of every case, (H, W, 3) uint8; red is too bright, blue too dark, by a quarter range."""
    rows, subjects, edge = [], [], data_range / 4
    for case in shown:
        for source, target, result in zip(*(case.planes[name] for name in ("source", "target", "result")), strict=True):
            planes = [gray(p, -data_range / 2, data_range / 2) for p in (source, target, result)]
            rows.append([*planes, signed(result - target, edge)])
            subjects.append(case.subject)
    return lettered(rows, ["source", "target", "result", f"difference (+-{edge:g})"], subjects)


def signed(values: np.ndarray, edge: float) -> np.ndarray:
    """(H, W) to (H, W, 3) uint8: black at zero, red up to +edge, blue down to -edge."""
    part = np.clip(values / edge, -1, 1)
    warm, cold = np.maximum(part, 0), np.maximum(-part, 0)
    green = np.maximum(warm, cold) ** 2 * 0.5
    return (np.stack([warm, green, cold], -1) * 255 + 0.5).astype(np.uint8)


READABLE = 128  # pixels of a column that hold a title


def lettered(rows: list[list[np.ndarray]], titles: list[str], subjects: list[str], gap: int = 2, head: int = 16) -> np.ndarray:
    """A montage under a line with the columns' titles, each row beside its subject."""
    from PIL import Image, ImageDraw

    times = max(1, -(-READABLE // max(row[0].shape[1] for row in rows)))  # small grids are enlarged, or their titles would not fit
    rows = [[plane.repeat(times, 0).repeat(times, 1) for plane in row] for row in rows]
    picture = montage(rows, gap)
    margin = 8 + int(max(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(subject) for subject in subjects))
    canvas = Image.new("RGB", (margin + picture.shape[1], picture.shape[0] + head))
    canvas.paste(Image.fromarray(picture), (margin, head))
    draw = ImageDraw.Draw(canvas)
    width = max(row[0].shape[1] for row in rows) + gap
    for i, title in enumerate(titles):
        draw.text((margin + i * width + 4, 2), title, fill="white")
    y = head
    for row, subject in zip(rows, subjects, strict=True):
        draw.text((4, y + 2), subject, fill="white")
        y += max(plane.shape[0] for plane in row) + gap
    return np.asarray(canvas)


def _region(rows: list[Row]) -> dict[str, Any]:
    return {metric: _metric([r.values[metric] for r in rows], [r.subject for r in rows]) for metric in rows[0].values}


def _metric(values: list[float], subjects: list[str]) -> dict[str, Any]:
    listed = [{"subject": s, "value": v if math.isfinite(v) else None} for s, v in zip(subjects, values, strict=True)]
    if not all(map(math.isfinite, values)):
        return {"mean": None, "interval": None, "reason": NOT_FINITE, "volumes": listed}
    found = summarise(values, subjects)
    interval = None if found.interval is None else list(found.interval)
    return {"mean": found.mean, "interval": interval, "reason": ONE_SUBJECT if interval is None else None, "volumes": listed}


def _cell(metric: dict[str, Any]) -> str:
    if metric["mean"] is None:
        return "-"
    interval = metric["interval"]
    return f"{metric['mean']:.4g}" + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "")
