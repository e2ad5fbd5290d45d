"""`medgen benchmark`: the same cases and seeds through several models, as one page and one JSON."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from medgen.cli.evaluate import work_of
from medgen.cli.loading import given
from medgen.cli.progress import bars
from medgen.cli.rank import shared
from medgen.core.errors import MedgenError
from medgen.data.manifest import Manifest
from medgen.evaluation.benchmark import answered, compared, document
from medgen.evaluation.benchmark_page import page, verdicts
from medgen.evaluation.document import FIGURES, free_paths, name_of, write
from medgen.evaluation.work import Work
from medgen.training import ranks

PAGE, PLAIN = "benchmark.html", "benchmark.json"


@shared
def run(options: argparse.Namespace) -> None:
    """Ranks share the answers of each model in turn; rank 0 compares and writes. What was made before an interruption is found again."""
    rivals = None if options.baseline is None else [name for name in options.baseline if name != "none"]
    with ranks.agreed():
        paths = free_paths(options.output, (PAGE, PLAIN, FIGURES), options.overwrite)
        works = _works(options, Manifest.read(options.data))
    with bars() as told, ranks.agreed():
        answers = answered(works, told)
    ranks.wait()
    if ranks.rank():
        return
    with bars() as told:
        found = compared(answers, rivals, told)
    settings = {"seed": options.seed, "draws": options.draws, "samples": options.n, "given": given(options)}
    report = document(found, next(iter(answers.values())).work, settings)
    write(report, page(found, report), {f"cases_{i}": figure.picture for i, figure in enumerate(found.figures, 1)}, paths)
    print("\n".join(verdicts(found)))
    print(f"written: {paths[0]} and {paths[1]}")


def _works(options: argparse.Namespace, manifest: Manifest) -> dict[str, Callable[[], Work]]:
    """Name -> how to load its model."""
    names = [name_of(model) for model in options.models]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        names = [model if name in twice else name for model, name in zip(options.models, names, strict=True)]
    if len(set(names)) < len(names):
        raise MedgenError(f"a model is named twice ({', '.join(options.models)}); name each once")
    return {name: partial(_work, options, manifest, model) for name, model in zip(names, options.models, strict=True)}


def _work(options: argparse.Namespace, manifest: Manifest, model: str) -> Work:
    return work_of(argparse.Namespace(**{**vars(options), "model": model}), manifest)
