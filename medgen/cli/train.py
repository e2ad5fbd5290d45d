"""`python train.py` and `medgen train`: compose, check, train, say where the result is."""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from medgen.cli.configs import compose, config_dir, groups, register_resolvers, resolved
from medgen.cli.warned import as_sentences
from medgen.core.errors import MedgenError

USAGE = """\
usage: train.py [group=choice ...] [key=value ...] [--multirun]
       train.py resume=<run folder> [training.steps=N]

Trains a model and writes runs/<name>/<date>: configuration, metrics.csv, samples/, checkpoints/last and checkpoints/best.

  train.py                                       the default: a diffusion model of phantom brains
  train.py experiment=phantom_translation        one of the experiments below
  train.py model=gan training.steps=500          other choices and values
  train.py --multirun seed=0,1,2                 a sweep
  train.py init_from=t1_to_t2_diffusion finetune=lora data=slices data.source.manifest=mine.csv
                                                 go on from a checkpoint, on other data
  train.py --cfg job [...]                       print the composed configuration and stop

"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `train.py`; exits with status 2 and one sentence on bad input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_sentences()
    if "RANK" in os.environ:
        from medgen.cli.rank import member
        from medgen.training.ranks import launched

        if launched():
            sys.exit(member(lambda: _dispatch(arguments)))
    try:
        status = _dispatch(arguments)
    except MedgenError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # `train.py --help | head`
        sys.stdout = None
        status = 1
    if status:
        sys.exit(status)


def help_text() -> str:
    """Usage and every group's choices with a line each."""
    lines = [USAGE]
    for group, choices in groups().items():
        width = max(map(len, choices))
        lines += [f"{group}=", *(f"  {name:<{width}}  {text}" for name, text in choices.items()), ""]
    return "\n".join(lines)


def _dispatch(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(help_text(), flush=True)
        return 0
    from medgen.cli.choices import check_choices
    from medgen.cli.finetune import check_start
    from medgen.cli.init_from import expanded
    from medgen.cli.latents import check_latents
    from medgen.cli.run import check_settings, resume_run

    resume = [a for a in arguments if a.startswith("resume=")]
    if resume:
        others = [a for a in arguments if a not in resume]
        return resume_run(Path(resume[0].removeprefix("resume=")), others)
    flags = [a for a in arguments if a.startswith("-")]
    arguments = expanded(arguments)
    folder = None
    if not flags:  # answers mistakes before Hydra does, and before there is a folder
        config = resolved(compose(arguments))
        check_choices(config)
        check_latents(config)
        check_settings(config["training"])
        check_start(config)
        folder = Path(config["run"]).absolute()
    before = {place for place in (folder, *folder.parents) if place.exists()} if folder else None
    return _hydra_main(arguments, before)


def _hydra_main(arguments: list[str], before: Container[Path] | None) -> int:
    """Hydra proper: job folders, `--multirun`, launchers, `--cfg`.

    Args:
        before: the folders around that of the run which were there; None where it is not known, as in a sweep.
    """
    import hydra

    from medgen.cli.run import INTERRUPTED, new_run

    register_resolvers()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    statuses: list[int] = []
    refused: list[MedgenError] = []

    def job(config: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        folder = Path(HydraConfig.get().runtime.output_dir)
        config.run = str(folder)
        try:
            statuses.append(new_run(resolved(config), folder))
        except MedgenError as error:  # Hydra would put all overrides before its one sentence
            refused.append(error)
            raise KeyboardInterrupt from error
        finally:
            _leave_no_empty_folder(folder, before)
        if statuses[-1] == INTERRUPTED:
            raise KeyboardInterrupt  # ends a sweep too

    first = sorted(arguments, key=lambda a: a not in ("-m", "--multirun"))  # argparse refuses it between overrides
    own, sys.argv = sys.argv, [sys.argv[0], *first]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(job)()
    except KeyboardInterrupt:
        if refused:
            raise refused[0] from None
        return INTERRUPTED
    finally:
        sys.argv = own
    return max(statuses, default=0)


def _leave_no_empty_folder(folder: Path, before: Container[Path] | None) -> None:
    """Remove what Hydra made for a run that was refused: its folder, and those above it that were not there before."""
    made = (folder,) if before is None else [place for place in (folder, *folder.parents) if place not in before]
    with suppress(OSError):  # the first that holds something, or is gone
        for place in made:
            place.rmdir()
