"""`medgen demo`: train the small default experiment on drawn brains, sample it, report. Minutes on two cores, nothing downloaded."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from medgen.checkpoint import build
from medgen.cli.configs import compose, resolved
from medgen.cli.run import new_run
from medgen.core.errors import MedgenError
from medgen.evaluation.made import network_units, real_images
from medgen.evaluation.samples import write_samples_report
from medgen.inference import load

LIMIT = 4.0  # times the real-against-real feature distance; `make demo` reached 2.8
SHORT = (
    "training.steps=6",
    "training.validate_every=3",
    "training.save_every=3",
    "data.source.subjects={train: 6, validation: 2, test: 4}",
)


def run(options: argparse.Namespace) -> None:
    """Train into `<output>/run`, write `<output>/samples/*.nii.gz` and `<output>/report.{json,png}`."""
    folder = Path(options.output)
    if folder.exists() and any(folder.iterdir()):
        if not options.overwrite:
            raise MedgenError(f"{folder} holds an earlier demo; choose another folder (-o) or pass --overwrite")
        for part in (folder / "run", folder / "samples"):  # only what a demo writes
            shutil.rmtree(part, ignore_errors=True)
        for part in folder.glob("report.*"):
            part.unlink()
    config = resolved(compose(["experiment=demo", f"run={folder / 'run'}", *(SHORT if options.short else ())]))
    if new_run(config, folder / "run"):
        return
    model = load(folder / "run")
    volumes = model.generate(8 if options.short else 64, seed=1, batch=16)
    for index, volume in enumerate(volumes[:8]):
        volume.save(folder / "samples" / f"sample_{index:03d}.nii.gz")
    made = torch.stack([network_units(model, v) for v in volumes])
    data = build(config["data"]["source"], trusted=True)
    report = write_samples_report(made, *(real_images(data, split, ["t1"]) for split in ("train", "test")), folder, "report")
    _say(report, folder)
    if options.short:
        print("a short demo tries the machinery: after 6 steps there is nothing to see; leave out --short for samples that look like heads")


def _say(report: dict, folder: Path) -> None:
    ratio = report["frechet"]["ratio"]
    novelty = report["nearest_training"]
    verdict = "passes" if ratio <= LIMIT else "does not pass"
    print(f"feature distance to held-out brains: {ratio:.2f} x that of real brains ({verdict} the limit of {LIMIT:g})")
    near, share = (novelty[k] for k in ("samples_median", "share_nearer_than_5th_percentile"))
    print(
        f"median distance to the nearest training image: samples {near:.3f}, held-out {novelty['held_out_median']:.3f}; "
        f"{share:.0%} of samples are nearer than the held-out 5th percentile (copies would be)"
    )
    print(f"report: {folder / 'report.png'} (samples, their nearest training images, held-out images) and {folder / 'report.json'}")
