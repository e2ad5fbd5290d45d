"""Damaged and malicious files: each is one sentence that names it, whatever it claims, and costs no other file anything."""

from __future__ import annotations

import gzip
import itertools
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
from samples import AFFINE, SAMPLES, VALUES, read_mutated

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.readers import peek, read, read_stored
from medgen.data.workers import GIB, Failure, Limits, each

LIMIT = 1 << 28


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[tuple[str, str]]:
    """(folder, name of the file in it) of every sample."""
    made = []
    for number, make in enumerate(SAMPLES.values()):
        folder = tmp_path_factory.mktemp(f"{number:02d}") / "whole"
        folder.mkdir()
        path = make(folder)
        read_stored(path)
        made.append((str(folder), str(path.relative_to(folder))))
    return made


def survey(samples, count: int, workers: int, seconds: float) -> dict[str, int]:
    """What became of `count` spoilt files; a fault of a reader is a RuntimeError."""
    items = [(*sample, seed) for seed, sample in zip(range(count), itertools.cycle(samples), strict=False)]
    found: dict[str, int] = {"read": 0, "refused": 0, "died": 0, "slow": 0, "hungry": 0}
    for place, result in each(read_mutated, items, workers, Limits(seconds=seconds, memory=GIB)):
        reason = result.reason if isinstance(result, Failure) else result
        kinds = {"ended the process": "died", "took longer": "slow", "memory than there is": "hungry", "GiB of memory": "hungry"}
        kind = next((kinds[text] for text in kinds if text in reason), "read" if reason == "read" else "refused")
        found[kind] += 1
        if kind in ("died", "slow", "hungry"):
            print(kind, items[place], reason)
    return found


def test_spoilt_files_are_refused_or_read(samples, monkeypatch):
    monkeypatch.setenv("MEDGEN_READ_LIMIT", str(LIMIT))
    found = survey(samples, 300, workers=2, seconds=20)
    assert sum(found.values()) == 300
    assert found["died"] == found["slow"] == found["hungry"] == 0
    assert found["refused"] > 150


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_spoilt_files(samples, monkeypatch):
    monkeypatch.setenv("MEDGEN_READ_LIMIT", str(LIMIT))
    found = survey(samples, 10_000, workers=2, seconds=10)
    print(found)
    assert sum(found.values()) == 10_000
    assert found["slow"] == 0 and found["died"] + found["hungry"] <= 10
