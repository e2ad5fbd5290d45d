"""The `medgen` command. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from medgen.cli.warned import as_sentences
from medgen.core.errors import MedgenError


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `medgen`; one sentence and status 2 on bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        from medgen.cli.train import main as train

        return train(arguments[1:])
    options = parser().parse_args(arguments)
    as_sentences()
    try:
        options.run(options)
    except MedgenError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `medgen zoo list | head`
        sys.stdout = None
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:  # torch's own out-of-memory errors are RuntimeErrors
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        said = (str(error).splitlines() or ["no more is known"])[0]
        print(f"error: out of memory ({said}); take a smaller --size or --batch, or a smaller model", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="medgen", description="Generative models for medical imaging: train, generate, translate, reconstruct, evaluate."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train a model (the same as `python train.py`; see `medgen train --help`)", add_help=False)
    _generate(commands.add_parser("generate", help="draw new images from a model"))
    _translate(commands.add_parser("translate", help="make the target modality of an image"))
    _reconstruct(commands.add_parser("reconstruct", help="make the image that a measurement is of, and say how sure it is"))
    _evaluate(commands.add_parser("evaluate", help="score a model on the images of a manifest"))
    _benchmark(commands.add_parser("benchmark", help="the same cases through several models, side by side"))
    _data(commands.add_parser("data", help="list, check, split and fetch images before training"))
    _import(commands.add_parser("import", help="bring a model of diffusers or MONAI into a checkpoint"))
    _export(commands.add_parser("export", help="copy a model out of its run folder, if it does not give its training data away"))
    _zoo(commands.add_parser("zoo", help="list, show or add pretrained models"))
    _demo(commands.add_parser("demo", help="train a small diffusion model on drawn brains and report"))
    _doctor(commands.add_parser("doctor", help="check this machine, and predict the memory of an experiment"))
    return top


def _generate(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    _output(parser)
    parser.add_argument("-n", type=_positive, default=8, help="how many images (default 8)")
    parser.add_argument("--format", choices=("nii", "png", "npy", "tif", "dicom"), default="nii", help="file format (default nii, gzipped)")
    parser.add_argument(
        "--size", type=_positive, nargs="+", help="another grid than the model was trained on; much larger ones show several objects"
    )
    parser.add_argument("--batch", type=_positive, default=8, help="images made at once (default 8)")
    parser.set_defaults(run=_lazy("generate"))


def _translate(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("input", nargs="+", metavar="INPUT", help="a file, or channel=file for each source channel of the model")
    parser.add_argument(
        "-o", "--output", required=True, help="file to write: .nii.gz, .nii, .tif, .npy, .png, or .dcm (of a volume a folder)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    _patient(parser)
    parser.add_argument("--draws", type=_positive, default=1, help="samples to average (default 1)")
    parser.set_defaults(run=_lazy("translate"))


def _reconstruct(parser: argparse.ArgumentParser) -> None:
    _basic(parser)
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="k-space (complex .npy, zero frequency at N // 2, orthonormal; fastMRI .h5), a measured image, or with --simulate an image",
    )
    parser.add_argument(
        "-o", "--output", required=True, help="file to write: .nii.gz, .nii, .tif, .npy, .png, .dcm; beside it _std, _view, .json"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    _patient(parser)
    parser.add_argument("--simulate", action="store_true", help="INPUT is an image: measure it first (a retrospective study)")
    parser.add_argument("--operator", help="fourier, inpaint, downsample or identity (default: the model's own, or fourier)")
    parser.add_argument(
        "--noise",
        type=float,
        help="standard deviation of each real part of what was measured, in its units; with --simulate full contrast is 2",
    )
    parser.add_argument(
        "--mask", help="file: the lines or grid of sampled k-space (.npy; default: where it is not zero), or what is known of the image"
    )
    parser.add_argument("--maps", help="file: coil sensitivities, complex .npy (default for .h5: estimated)")
    parser.add_argument("--factors", type=_positive, nargs="+", help="downsample: voxels per cell along each axis")
    parser.add_argument("--pattern", choices=("equispaced", "random"), help="lines that --simulate measures (default equispaced)")
    parser.add_argument("--acceleration", type=_positive, help="one line in so many (default 4)")
    parser.add_argument("--centre", type=float, help="share of the lines that is always measured (default 0.08)")
    parser.add_argument("--solver", help="of a prior: mmps (default) or dps")
    parser.add_argument("--solver-steps", type=_positive, metavar="N", help="steps of the solver (default 40 for mmps, 200 for dps)")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the solver, such as guidance.iterations=5")
    parser.add_argument(
        "--draws", type=_positive, default=8, help="posterior samples, whose mean and standard deviation are written (default 8)"
    )
    parser.add_argument("--slices", metavar="FIRST:LAST", help="of a volume only these slices")
    parser.set_defaults(run=_lazy("reconstruct"), sampler=None, steps=None, guidance=None)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    _output(parser)
    _judged(parser)
    parser.add_argument(
        "--labels",
        action="append",
        default=[],
        metavar="NAME=CLASSES",
        help="a label map of the manifest and its classes, background counted; of a mask NAME=0,255 or NAME=binary; may be repeated",
    )
    parser.add_argument(
        "--features",
        nargs="+",
        default=[],
        metavar="FILE[:OPTIONS]",
        help="more feature spaces: a TorchScript file and what it takes, such as"
        " inception.pt:size=299,channels=3,mean=0.5,std=0.5 (of images in [0, 1])",
    )
    parser.add_argument("--domain", metavar="COLUMN", help="compare over the values of a column: site, scanner, field, sex, ...")
    parser.add_argument(
        "--parts",
        nargs="+",
        metavar="PART",
        help="only these: pixel, samples, feature, task, hallucination, calibration, anomaly, privacy, shift",
    )
    parser.add_argument("--quick", action="store_true", help="leave out what trains networks or runs the model on changed cases")
    parser.add_argument(
        "--checks", action="store_true", help="make nothing: say what a model card needs and whether the report in OUTPUT has it"
    )
    parser.set_defaults(run=_lazy("evaluate"))


def _benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="zoo names, run or checkpoint folders, hf://owner/repo")
    _drawn(parser)
    _sampling(parser)
    _output(parser)
    _judged(parser)
    parser.add_argument(
        "--baseline", nargs="+", metavar="NAME", help="beside: copy, line, curve, zero-filled, none (default: all that apply)"
    )
    parser.set_defaults(run=_lazy("benchmark"))


def _judged(parser: argparse.ArgumentParser) -> None:
    """What evaluation and benchmark share."""
    parser.add_argument("--data", required=True, help="manifest (CSV) with columns subject, split and the model's channels")
    parser.add_argument("--split", default="test", help="split to score (default test)")
    parser.add_argument("--draws", type=_positive, default=1, help="translation and reconstruction: samples to average (default 1)")
    parser.add_argument("-n", type=_positive, default=64, help="synthesis: samples to draw (default 64)")


def _data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _scan(actions.add_parser("scan", help="make a manifest of a folder whose layout is known or told"))
    _check(actions.add_parser("check", help="report what is in a manifest's images and what is wrong with it"))
    _split(actions.add_parser("split", help="share the subjects of a manifest out to train, validation and test, or to folds"))
    _prepare(actions.add_parser("prepare", help="read, resample and scale the images of an experiment once, for all runs"))
    _get(actions.add_parser("get", help="fetch a public set"))


def _scan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder to look through")
    parser.add_argument(
        "-o", "--output", required=True, metavar="CSV", help="manifest to write; beside it a JSON that describes its columns"
    )
    parser.add_argument(
        "--layout",
        metavar="NAME",
        help="take the folder as this layout, whatever it looks like (docs/data.md has their names; a wrong one lists them)",
    )
    parser.add_argument(
        "--pattern", help="of the files' paths, such as '{subject}/{channel}.nii.gz'; further names become attributes, {_} is ignored"
    )
    parser.add_argument(
        "--columns-by",
        metavar="COLUMN",
        help="of rows with one image, such as DICOM series: put those of a study side by side, in a column for each text of COLUMN "
        "(description, modality)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing manifest")
    parser.set_defaults(run=_lazy("data"))


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="CSV", help="manifest to check")
    parser.add_argument("-o", "--output", default="report", metavar="DIR", help="folder for report.html and report.json (default ./report)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report")
    parser.add_argument("--json", action="store_true", help="print the report as JSON and write nothing")
    parser.add_argument("--workers", type=_positive, help="processes that read (default: the processors, at most 8)")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=KIND",
        help="what a column holds, if its name does not tell: CT, MR, PET, XR, US, picture, image, kspace, labels, attribute, text, ignore",
    )
    parser.set_defaults(run=_lazy("data"))


def _split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="CSV", help="manifest to split")
    parser.add_argument("-o", "--output", required=True, metavar="CSV", help="manifest to write, with a column 'split' (or 'fold' too)")
    parser.add_argument(
        "--by", default="subject", metavar="COLUMN", help="rows of one value stay together (default subject, which always does)"
    )
    parser.add_argument("--group", metavar="COLUMN", help="whole groups, such as sites, go to one split")
    parser.add_argument("--stratify", metavar="COLUMN", help="keep the shares of this column's values (numbers in quarters) in each split")
    parser.add_argument(
        "--fractions", type=float, nargs=3, metavar=("TRAIN", "VALIDATION", "TEST"), help="default 0.8 0.1 0.1, with --folds 1 0 0"
    )
    parser.add_argument(
        "--folds", type=_positive, metavar="K", help="cross-validation: a manifest per fold; TEST is held out of all of them"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of the order of subjects (default 0)")
    parser.add_argument("--resplit", action="store_true", help="give up the split that the manifest has")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.set_defaults(run=_lazy("data"))


def _prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="+", metavar="KEY=VALUE", help="the experiment's, as `train` takes them: data=slices data.source.manifest=..."
    )
    parser.add_argument("--prune", action="store_true", help="drop what other rows, and files as they were before, have left in the store")
    parser.set_defaults(run=_lazy("data"))


def _get(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="set to fetch; without it the sets are listed")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder to fetch it into")
    parser.set_defaults(run=_lazy("data"))


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "original", metavar="ORIGINAL", help="folder of diffusers (pipeline or model), or MONAI weights (.pt, .safetensors)"
    )
    _output(parser)
    parser.add_argument("--target", nargs="+", required=True, metavar="NAME", help="the image's channels, such as t1")
    parser.add_argument("--source", nargs="+", default=[], metavar="NAME", help="channels that are concatenated as the condition")
    parser.add_argument("--autoencoder", metavar="ORIGINAL", help="of a latent model whose U-Net lies alone")
    parser.add_argument("--config", metavar="FILE", help="MONAI: the networks' arguments, such as a bundle's configs/inference.json")
    parser.add_argument("--scheduler", metavar="FILE", help="scheduler_config.json, where ORIGINAL has none")
    parser.add_argument("--scale-factor", type=float, metavar="X", help="latent images were multiplied by this, where no file says it")
    parser.add_argument("--size", type=_positive, nargs="+", help="the grid, where no file says it")
    parser.add_argument(
        "--intensity", default="identity", metavar="MAP", help="identity (default), ct_hu=LOW,HIGH, unit_range=LOW,HIGH, ..."
    )
    parser.add_argument("--spacing", type=float, nargs=3, metavar="MM", help="of volumes and slices, along R, A, S")
    parser.add_argument("--orientation", default="RAS", help="of volumes and slices (default RAS)")
    parser.add_argument("--slice-axis", type=int, choices=(0, 1, 2), help="the images are slices: 0 sagittal, 1 coronal, 2 axial")
    parser.add_argument("--steps", type=_positive, default=50, help="sampler steps (default 50)")
    parser.add_argument("--about", nargs="+", default=[], metavar="KEY=VALUE", help="training data: name=... licence=...")
    parser.set_defaults(run=_lazy("importing"))


def _export(parser: argparse.ArgumentParser) -> None:
    _basic(parser)
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="new or empty folder to write: weights, contract, card")
    parser.add_argument("--report", metavar="REPORT", help="folder or JSON of `medgen evaluate` of the same weights: its privacy result")
    parser.add_argument("--data", metavar="CSV", help="test privacy now, on the model's training manifest")
    parser.add_argument("--split", default="test", help="with --data: images that training did not see (default test)")
    parser.add_argument("-n", type=_positive, default=64, help="with --data: samples to draw (default 64)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="with --data: a condition, such as label=1")
    parser.add_argument("--card", metavar="FILE", help="Markdown file with the model's card (default: filled from the report)")
    parser.add_argument(
        "--force", metavar="REASON", help="export what failed or was not tested; the reason is written into card and contract"
    )
    parser.set_defaults(run=_lazy("export"), sampler=None, steps=None, guidance=None)


def _zoo(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = actions.add_parser("list", help="names, tasks and headline numbers")
    shown.add_argument("--json", action="store_true", help="as JSON")
    actions.add_parser("show", help="the card of a model").add_argument("model")
    add = actions.add_parser("add", help="copy a trained model into a zoo folder")
    add.add_argument("model", help="folder that `medgen export` wrote")
    add.add_argument("name", help="name in the zoo")
    add.add_argument("--zoo", default="zoo", help="zoo folder (default ./zoo)")
    add.add_argument("--card", help="Markdown file with the model's card")
    add.add_argument(
        "--report",
        metavar="REPORT",
        help="folder or JSON of `medgen evaluate` of the model: its headline numbers, and a card where there is none",
    )
    add.add_argument("--half", action="store_true", help="keep float16 numbers: half the bytes")
    add.add_argument("--overwrite", action="store_true", help="replace a model of that name")
    card = actions.add_parser("card", help="a model card from a report of `medgen evaluate`")
    card.add_argument("report", metavar="REPORT", help="evaluation.json, or the folder that holds it")
    card.add_argument("-o", "--output", metavar="FILE", help="Markdown file to write (default: print it)")
    card.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=_lazy("zoo"))


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="demo", help="folder for the report and samples (default ./demo)")
    parser.add_argument("--short", action="store_true", help="a few steps: checks that everything runs, learns nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in that folder")
    parser.set_defaults(run=_lazy("demo"))


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="an experiment to plan too, as `train` takes it")
    parser.add_argument("--plan", nargs="*", metavar="KEY=VALUE", help="plan its memory, and check nothing else")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_lazy("doctor"))


def _basic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="zoo name, run folder, checkpoint folder or hf://owner/repo")
    _drawn(parser)


def _drawn(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=_seed, default=0, help="of all random draws (default 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")


def _model(parser: argparse.ArgumentParser) -> None:
    _basic(parser)
    _sampling(parser)


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sampler", help=f"walk the reverse process another way: {_samplers()}")
    parser.add_argument("--steps", type=_positive, help="sampler steps")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance scale; 1 is none")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a condition, such as label=1 (repeatable)")


def _samplers() -> str:
    """All samplers by name, from the configurations that are named as their class's file; nothing is imported."""
    from medgen.cli.configs import config_dir

    paths = sorted((config_dir() / "sampler").glob("*.yaml"))
    names = [path.stem for path in paths if f"medgen.samplers.{path.stem}." in path.read_text()]
    return f"{', '.join(names)}, or a scheduler of diffusers by class name"


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", required=True, help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def _patient(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep-patient", action="store_true", help=".dcm: keep patient and study of the DICOM series that is the input")


def _positive(text: str) -> int:
    return _whole(text, 1)


def _seed(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got '{text}'")
    return int(text)


def _lazy(command: str):
    """The command's function, imported when it is called."""

    def run(options: argparse.Namespace) -> None:
        from importlib import import_module

        import_module(f"medgen.cli.{command}").run(options)

    return run


if __name__ == "__main__":
    main()
