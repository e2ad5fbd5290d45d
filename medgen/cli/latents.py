"""The latent cache of a run: what the codec makes of the training set, computed before the first step."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import medgen
from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.model import Example, GenerativeModel, Moments
from medgen.core.random import Rng
from medgen.core.task import Task
from medgen.data.latents import Latents, Plan, built, digest
from medgen.training import ranks

LOADING = ("batch_size", "workers")  # settings of the data that no image depends on
EVERY = 10.0  # seconds between two lines of progress


def cache_latents(config: Mapping[str, Any], run: Path, model: GenerativeModel, task: Task, data: Any) -> Latents | None:
    """Fill the cache that `config["latents"]` asks for and let the training batches of `data` carry its moments.

    Cases that look different in every epoch are kept in `latents.versions` versions, which the epochs take in turn.

    Raises:
        MedgenError: what `check_latents` refuses, no room, moments that float16 cannot hold.
    """
    settings = config.get("latents") or {}
    if not settings.get("cache"):
        return None
    check_latents(config, data.varies)
    codec, versions = model.codec, settings["versions"] if data.varies else 1
    folder = run / "latents" if settings["cache"] is True else Path(settings["cache"])
    device = "cuda" if torch.cuda.is_available() and config["training"]["accelerator"] != "cpu" else "cpu"
    images = Images(data, task, config["seed"])
    digests, shape = images.digests(versions)
    loading = LOADING if data.varies else (*LOADING, "seed")
    facts = {
        "medgen": medgen.__version__,
        "codec": {"recipe": config["model"]["codec"], "weights": _hash(codec.autoencoder.state_dict())},
        "target": list(task.target),
        "data": {k: v for k, v in config["data"].items() if k not in loading},
    }
    plan = Plan(json.loads(json.dumps(facts)), digests, versions, (2, *codec.latent_shape((1, *shape))[1:]), settings["half"])
    codec.to(device)
    found = built(folder, plan, lambda rows: _encoded(codec, images, rows, device))
    codec.to("cpu")
    print(f"latents: {found.cases} training cases, {found.versions} version{'s' * (versions > 1)} each, in {found.folder}", file=sys.stderr)
    data.latents = found
    return found


def check_latents(config: Mapping[str, Any], varies: bool | None = None) -> None:
    """Refuse a cache for a model without a codec, and one version of cases that change in every epoch.

    Args:
        varies: whether they do; None where the data are not there yet, and the configuration alone tells.
    """
    settings = config.get("latents") or {}
    if not settings.get("cache"):
        return
    versions = settings["versions"]
    if "codec" not in config["model"]:
        kind = str(config["model"].get("_target_")).rpartition(".")[2]
        raise MedgenError(f"latents.cache is for models on a codec, this is a {kind}; leave it out")
    if not isinstance(versions, int) or versions < 1:
        raise MedgenError(f"latents.versions={versions} must be a whole number of at least 1")
    if versions == 1 and (config["data"].get("augment") is not None if varies is None else varies):
        raise MedgenError(
            "the training cases change in every epoch (data.augment or random patches), which latents.versions=1 would freeze;"
            " keep several versions of each, such as latents.versions=8, or set data.augment=null or latents.cache=false"
        )


def examples_of(latents: Latents, batch: int) -> Iterator[Example]:
    """The cached cases in order, as a model is prepared with."""
    for moments in latents.batches(batch):
        yield Example(None, Condition(), moments=Moments(*torch.from_numpy(moments).unbind(1)))


class Images:
    """The target images of the training cases.

    Args:
        data: a `DataModule`.
        task: makes an example's `x` of a batch.
        seed: of the run.
    """

    def __init__(self, data: Any, task: Task, seed: int):
        self.data, self.task, self.seed = data, task, seed
        cases = data.source.split("train")
        self.count, self.patches = len(cases), getattr(cases, "varies", True)

    def digests(self, versions: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """A hash of the image behind each row (rows, 16), before augmentation, and the shape (C, *S) of an image."""
        drawn = versions if self.patches else 1
        found, shape = [], ()
        for x in self._of(range(self.count * drawn), augmented=False):
            found.extend(digest(image) for image in x.numpy())
            shape = tuple(x.shape[1:])
        return np.tile(np.stack(found), (versions // drawn, 1)), shape

    def rows(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """x (B, C, *S) of rows of the cache, batch after batch."""
        return self._of(numbers, augmented=True)

    def _of(self, numbers: Sequence[int], augmented: bool) -> Iterator[Tensor]:
        keys = [(number % self.count, number // self.count) for number in numbers]
        for batch in self.data.versions(keys, augmented):
            yield self.task.example(batch, Rng(self.seed, 0, batch["index"].tolist())).x


@torch.no_grad()
def _encoded(codec: Any, images: Images, rows: Sequence[int], device: str) -> Iterator[np.ndarray]:
    """Moments (B, 2, Z, *s) of rows of the cache, with a line of progress now and then."""
    start = said = time.monotonic()
    done = 0
    for x in images.rows(rows):
        yield torch.stack(codec.moments(x.to(device)), 1).float().cpu().numpy()
        done, now = done + len(x), time.monotonic()
        if now - said > EVERY or done == len(rows):
            rate, said = done / max(now - start, 1e-9), now
            left = (len(rows) - done) / rate
            # whichever rank came first builds, and says so: only rank 0 is heard on sys.stderr
            voice = sys.stderr if ranks.rank() == 0 else sys.__stderr__
            print(f"latents: encoded {done}/{len(rows)}  {rate:.1f} images/s  {left:.0f} s left", file=voice, flush=True)


def _hash(state: Mapping[str, Tensor]) -> str:
    """Of names and values."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return total.hexdigest()
