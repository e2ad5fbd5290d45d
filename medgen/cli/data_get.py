"""`medgen data get`: fetch a public set, or say where it is to be had."""

from __future__ import annotations

import argparse

from medgen.core.errors import MedgenError
from medgen.data.public import fetch, sets


def run(options: argparse.Namespace) -> None:
    """List the sets, or fetch one and say what to do next."""
    if options.name is None:
        for name, known in sets().items():
            how = f"not fetched: {known.register}" if known.register else known.about
            print("\t".join((name, known.licence, f"data={known.config}", how)))
        return
    if not options.output:
        raise MedgenError("say where to put it: medgen data get NAME -o DIR")
    chosen, places = fetch(options.name, options.output)
    print(f"{options.name}: {chosen.about}; licence {chosen.licence}, see {chosen.home}")
    print(f"in {', '.join(map(str, places))}; next: the commands at the top of configs/data/{chosen.config}.yaml")
