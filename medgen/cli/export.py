"""`medgen export`: the one way out of a run folder, for a model that does not give its training data away."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medgen.checkpoint import read_document, write_document
from medgen.cli.loading import given, pretrained
from medgen.cli.progress import bars
from medgen.cli.zoo import CARD, WEIGHTS, read_report
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.data.manifest import Manifest
from medgen.evaluation.card import card_text, headline, spaced
from medgen.evaluation.facts import weights_digest
from medgen.evaluation.public import public_document, public_report, without_paths
from medgen.evaluation.section import Level
from medgen.inference import Pretrained, golden, load
from medgen.zoo import find

UNTESTED = "no privacy test was done"
KEEPS = ("level", "verdict")


def run(options: argparse.Namespace) -> None:
    """Test, refuse or write; nothing is left in DIR unless all of it is there."""
    target = Path(options.output)
    _check(options, target)
    model = pretrained(options)
    folder = model.folder or find(options.model)
    document = public_document(read_document(folder))
    report, privacy = _tested(options, model, target.name)
    refused = refusal(privacy)
    if refused and not options.force:
        raise MedgenError(f"{options.model} was not exported: {refused}; or pass --force 'why it may leave all the same'")
    document["privacy"] = told = {**_measured(privacy), **({"forced": options.force.strip()} if refused else {})}
    with partial(target) as staged:
        copied_weights(folder / WEIGHTS, staged / WEIGHTS)
        write_document(staged, document)
        document["golden"] = golden(load(staged, model.device))  # what was written works
        if report:
            document["metrics"] = headline(report)
        write_document(staged, document)
        (staged / CARD).write_text(card(options, folder, report, Contract.from_dict(document["contract"]), told), "utf-8")
    print(f"privacy: {told['verdict']}")
    if "forced" in told:
        print(f"exported all the same, and the card says so: {told['forced']}")
    data = document["contract"]["data"]
    print(f"training data are named '{data.get('name', 'unknown')}', licence {data.get('licence', 'unknown')}")
    print(f"written: {target}")


def refusal(privacy: Mapping[str, Any] | None) -> str:
    """Why a model may not leave; empty where it may.

    Args:
        privacy: the section of a report, as plain data.
    """
    if privacy is None or privacy.get("skipped") or privacy["level"] == Level.NONE:
        why = f" ({privacy['skipped'].rstrip('.')})" if privacy and privacy.get("skipped") else ""
        return f"{UNTESTED}{why}; pass --report DIR of `medgen evaluate` of these weights, or --data MANIFEST to test now"
    if not privacy["numbers"].get("training_known", True):
        return f"its privacy was tested against {privacy['numbers']['compared']}; pass --data with the manifest that it was trained on"
    if privacy["level"] == Level.BAD:
        return f"it fails the privacy test. {privacy['verdict'].rstrip('.')}. Train on more subjects, for fewer steps or a smaller model"
    return ""


def card(options: argparse.Namespace, folder: Path, report: Mapping[str, Any] | None, contract: Contract, told: Mapping[str, Any]) -> str:
    """The user's own card, else one of the report, else the checkpoint's; with what was measured of privacy at its end."""
    own = Path(options.card) if options.card else folder / CARD
    if report and not options.card:
        text = card_text(report, contract)
    elif own.is_file():
        text = without_paths(own.read_text("utf-8"))
        if not options.card:  # what an earlier export said
            text = re.sub(r"\n## Privacy\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    else:
        text = card_text(None, contract).replace("# model", f"# {Path(options.output).name}", 1)
    lines = ["## Privacy", f"- Result: {told['level']}. {told['verdict']}"]
    lines += [f"- Compared: {told['compared']}."] if "compared" in told else []
    lines += [f"- Exported all the same, because: {told['forced']}"] if "forced" in told else []
    return text.rstrip() + "\n\n" + spaced(lines)


def copied_weights(source: Path, target: Path) -> None:
    """The tensors alone: what a header says beside them stays."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(source, "pt") as file:
        told = file.metadata()
    if told and set(told) != {"format"}:
        save_file(load_file(source), target)
    else:
        shutil.copyfile(source, target)


@contextmanager
def partial(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when all is written, and is gone where something fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.parent / f".{target.name}.{os.getpid()}"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        if target.is_dir():
            target.rmdir()  # empty, or it would fail
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _check(options: argparse.Namespace, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MedgenError(f"{target} exists and is not empty; choose a new folder: an export overwrites nothing")
    if options.report and options.data:
        raise MedgenError("--report and --data both give a privacy result; pass one of them")
    if options.force is not None and not options.force.strip():
        raise MedgenError("--force takes the reason why a model may leave without passing; it is written into the card")
    if options.card and not Path(options.card).is_file():
        raise MedgenError(f"no card {options.card}; write one as a Markdown file or leave --card out")


def _tested(options: argparse.Namespace, model: Pretrained, name: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The report without private names, and its privacy section; or the section that is measured now."""
    if options.report:
        report = read_report(options.report)
        _check_same(options, report, model)
        public = public_report(report, name)
        return public, public["sections"].get("privacy")
    if not options.data:
        return None, None
    from medgen.evaluation import privacy
    from medgen.evaluation.work import Work

    manifest = Manifest.read(options.data)
    with TemporaryDirectory() as scratch, bars() as told:
        work = Work(model, manifest, Path(scratch), options.split, options.seed, samples=options.n, given=given(options))
        section = privacy.section(work, progress=lambda done, of: told("samples", done, of)).to_dict()
    found = {"data": {"manifest": str(manifest.path)}, "model": {}, "sections": {privacy.NAME: section}}
    return None, public_report(found, name)["sections"][privacy.NAME]


def _check_same(options: argparse.Namespace, report: Mapping[str, Any], model: Pretrained) -> None:
    """A report speaks for the weights that it measured, under the sampler that it used."""
    there, here = report["model"].get("weights"), weights_digest(model.model)
    if there != here:
        raise MedgenError(f"{options.report} is a report of other weights ({there}) than those of {options.model} ({here}); evaluate these")
    sampler = type(model.model.sampler).__name__ if hasattr(model.model, "sampler") else None
    if report["model"].get("sampler") != sampler:
        raise MedgenError(
            f"{options.report} was made under the sampler {report['model'].get('sampler')}, and the checkpoint has {sampler}; evaluate it "
            "without --sampler"
        )
    asked, own = report["settings"].get("steps"), getattr(getattr(model.model, "sampler", None), "steps", None)
    if asked not in (None, own):
        raise MedgenError(
            f"{options.report} was made with {asked} sampler steps, and the checkpoint takes {own}; evaluate it without --steps"
        )


def _measured(privacy: Mapping[str, Any] | None) -> dict[str, Any]:
    """For the contract: level and verdict, and the numbers behind them."""
    if privacy is None or privacy.get("skipped"):
        why = f": {privacy['skipped']}" if privacy else "."
        return {"level": str(Level.NONE), "verdict": f"{UNTESTED[0].upper()}{UNTESTED[1:]}{why}"}
    numbers = privacy["numbers"]
    kept = {key: numbers[key] for key in ("compared", "subjects", "membership") if key in numbers}
    if numbers.get("copies"):
        kept["copies"] = {space: found["relative"] for space, found in numbers["copies"].items()}
    return {key: privacy[key] for key in KEEPS} | kept
