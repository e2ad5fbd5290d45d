"""What an evaluation needs of a model: its answers for the cases of a manifest, and its samples. Each is made once and kept beside the
report, so that every part uses the same ones, an interrupted evaluation goes on, and several processes share the work."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.neighbours import neighbour
from medgen.core.volume import Volume
from medgen.data.checks import attribute, check_pair, one_plane
from medgen.data.files import FileData
from medgen.data.labelling import LabelRule
from medgen.data.manifest import Manifest
from medgen.data.options import Keep, Options
from medgen.data.planes import plane_of
from medgen.data.readers import parted, read
from medgen.evaluation.cost import Cost, Measured
from medgen.evaluation.facts import described, weights_digest
from medgen.evaluation.made import Made, as_volume, load, network_units, real_images, save, summed, written
from medgen.evaluation.masks import body_mask
from medgen.inference import Pretrained

_BATCH = 8  # samples drawn at once
_PATIENCE = 7200.0  # seconds that a process waits for another's sample
AIR = -500.0  # HU: between lung and fat
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Case:
    """A row of the manifest with its truth, on the model's grid in network units.

    Attributes:
        number: its place in the split.
        subject, row: of the manifest; `row` has all its cells (site, sex, age, ...).
        source: (1, K, *S), what is given; None for a reconstruction.
        target: (1, C, *S), what is to be made.
        body: (1, 1, *S) bool.
        regions: name of a label map of the manifest -> (1, 1, *S) integers.
        ends: channel -> parameters of its intensity map for this volume, to go back to stored units.
    """

    number: int
    subject: str
    row: Mapping[str, str]
    source: Tensor | None
    target: Tensor
    body: Tensor
    regions: dict[str, Tensor] = field(default_factory=dict)
    ends: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Work:
    """The model under evaluation, its data, and what it has made of them.

    Attributes:
        folder: of the report; `folder/work` keeps what was made.
        split: of the manifest.
        draws: samples per case whose mean is scored.
        samples: number of images to draw for measures of sets.
        given: conditions, name -> value.
        labels: label maps of the manifest -> classes, or how numbers become classes (`medgen.data.labelling`), for regions; they need not
            be the model's.
        domain: column of the manifest (site, scanner, field strength, ...) over whose values results are compared; "" is none.
        quick: leave out what trains networks.
        features: networks of the user's that make feature spaces, as `medgen.evaluation.spaces.asked` reads them.
        place, places: this process among those that share the work.
    """

    model: Pretrained
    manifest: Manifest
    folder: Path
    split: str = "test"
    seed: int = 0
    draws: int = 1
    samples: int = 64
    given: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, int | Mapping[str, Any]] = field(default_factory=dict)
    domain: str = ""
    quick: bool = False
    features: Sequence[str] = ()
    place: int = 0
    places: int = 1

    @cached_property
    def kind(self) -> str:
        """ "translation", "reconstruction" or "synthesis"."""
        if self.model.task.source:
            return "translation"
        return "reconstruction" if self.model.task.operator is not None else "synthesis"

    @cached_property
    def rows(self) -> Manifest:
        """The rows of the split.

        Raises:
            MedgenError: a channel that the manifest has not, or a row without a file for it.
        """
        rows = self.manifest.split(self.split)
        rows.require_files([self.column(c)[0] for c in self.channels], blank=self.model.task.availability)
        rows.require_files(list(self.labels))
        return rows

    @property
    def channels(self) -> tuple[str, ...]:
        """Source and target channels; a name that is both counts once."""
        return tuple(dict.fromkeys((*self.model.task.source, *self.model.task.target)))

    def column(self, channel: str) -> tuple[str, int | None]:
        """The manifest's column of a channel, and the plane of its files."""
        return plane_of(neighbour(channel)[0], self.manifest.columns)

    def __len__(self) -> int:
        return len(self.rows.rows)

    def cases(self) -> Iterator[Case]:
        """Every row of the split, one at a time."""
        for number in range(len(self)):
            yield self.case(number)

    def case(self, number: int) -> Case:
        """Row `number` of the split, read and brought to the model's grid.

        Raises:
            MedgenError: images that do not share a grid, a target that is missing.
        """
        row = self.rows.rows[number]
        where = f"{self.manifest.path}: subject {row['subject']}"
        volumes = self._volumes(row)
        labels = {name: one_plane(read(self.manifest.file(row, name)), name) for name in self.labels}
        check_pair({**volumes, **labels}, where)
        absent = [c for c in self.model.task.target if c not in volumes]
        if absent:
            raise MedgenError(f"{where}: has no file for '{absent[0]}', which is to be compared with; fill the cell or leave the row out")
        labels = {name: LabelRule.said(name, self.labels[name]).apply(volume, name) for name, volume in labels.items()}
        return Case(
            number=number,
            subject=row["subject"],
            row=row,
            source=self._stacked(volumes, self.model.task.source) if self.model.task.source else None,
            target=self._stacked(volumes, self.model.task.target),
            body=self._body(volumes, where),
            regions={name: self._labels_on_grid(volume) for name, volume in labels.items()},
            ends={c: self.model.contract.map_of(c).fit(v.array) for c, v in volumes.items()},
        )

    def made(self, case: Case, draws: bool = False) -> Made:
        """The model's answer for a case: from `folder/work`, or made now and kept there.

        Args:
            draws: whether the single draws are wanted too (translation and reconstruction with `draws` of at least 2).
        """
        path = self._answer_path(case.number)
        if not path.exists():
            save(path, self._make(case))
        return load(path, draws)

    def make_all(self, progress: Progress | None = None) -> None:
        """This process's share of the answers, or of the samples: every `places`-th, so that the parts find them all."""
        if self.kind == "synthesis":
            return self._draw(progress)
        own = self.share(range(len(self)))
        for done, number in enumerate(own, 1):
            if not self._answer_path(number).exists():
                self.made(self.case(number))
            if progress:
                progress(done, len(own))

    def drawn(self, progress: Progress | None = None) -> Tensor:
        """The samples (N, C, *S) in network units of a model of synthesis; this process makes its share and reads what others made."""
        self._draw(progress)
        return torch.stack([self._sample(number) for number in range(self.samples)])

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives: from `folder/work`, where some process has kept it under this name, or made now and kept there."""
        path = self.kept / f"{name}.npy"
        if not path.exists():
            array = make().cpu().numpy()
            written(path, lambda file: np.save(file, array))
        return torch.from_numpy(np.load(path))

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """What this process does of them: every `places`-th."""
        return items[self.place :: self.places]

    def sample_labels(self, numbers: Sequence[int] | None = None) -> dict[str, Tensor]:
        """The label maps that samples are drawn for, by name: (N, *S) integers, from cases that are spread evenly over the split."""
        cases = self.data.split(self.split)
        places = [i * len(cases) // self.samples for i in (range(self.samples) if numbers is None else numbers)]
        drawn = [cases.case(place, np.random.default_rng(0)) for place in places]
        return {name: torch.from_numpy(np.stack([case[name][0] for case in drawn])) for name in self.model.task.labels}

    def conditions(self, row: Mapping[str, str]) -> dict[str, Any]:
        """What the model is told beside the images of a row: its attributes there, and what is given, which wins."""
        return self._row_attributes(row) | dict(self.given)

    def sample_attributes(self) -> dict[str, Any]:
        """The attributes that samples are drawn for: name -> a value for each."""
        return {name: value for name, value in self._conditions().items() if isinstance(value, list)}

    def costs(self) -> list[Cost]:
        """What each answer took; of samples, what each batch took, per sample."""
        if self.kind == "synthesis":
            return [Cost(**json.loads(path.read_text())) for path in sorted(self.kept.glob("cost_*.json"))]
        return [load(self._answer_path(number), images=False).cost for number in range(len(self))]

    def reals(self, split: str) -> Tensor:
        """The target's images of a split as training sees them: (N, C, *S)."""
        return real_images(self.data, split, self.model.task.target)

    @cached_property
    def data(self) -> FileData:
        """The manifest as the model's own training would read its targets."""
        contract = self.model.contract
        rules = {c: {k: v for k, v in contract.intensity[c].items() if k != "typical"} for c in contract.target}
        labels = self.own_labels if self._own_labels else {}
        options = Options(keep=Keep(str(self.folder / "work" / "store")))
        place = {"spacing": contract.spacing, "slice_axis": contract.slice_axis}
        return FileData(str(self.manifest.path), rules, contract.size, labels, **place, options=options)

    @cached_property
    def own_labels(self) -> dict[str, int | Mapping[str, Any]]:
        """The model's label maps that the manifest has -> classes, or how numbers become classes where `labels` says so.

        Raises:
            MedgenError: `labels` makes another number of classes than the model knows.
        """
        own = {name: count for name, count in self.model.task.labels.items() if name in self.manifest.columns}
        for name in own.keys() & self.labels.keys():
            found = LabelRule.said(name, self.labels[name]).classes
            if found != own[name]:
                raise MedgenError(f"--labels {name} makes {found} classes, and the model knows {own[name]}; name those it was trained on")
        return {name: self.labels.get(name, count) for name, count in own.items()}

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the weights."""
        return weights_digest(self.model.model)

    @cached_property
    def kept(self) -> Path:
        """The folder of answers of this very model under these settings."""
        facts = {"model": self.fingerprint, "seed": self.seed}
        facts |= {"samples": self.samples} if self.kind == "synthesis" else {"draws": self.draws}
        facts |= {name: described(getattr(self.model.model, name, None)) for name in ("sampler", "guidance")}
        facts |= {"given": {k: str(v) for k, v in self.given.items()}, "data": str(self.manifest.path.resolve()), "split": self.split}
        facts |= {"rows": hashlib.sha256(json.dumps([dict(r) for r in self.manifest.rows]).encode()).hexdigest(), "files": self._files()}
        facts |= {f"labels.{name}": str(self.labels[name]) for name in self.own_labels if name in self.labels}
        folder = self.folder / "work" / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
        return folder

    def _files(self) -> str:
        """A digest of the images' sizes and times, so that a changed image is another evaluation."""
        columns = {self.column(c)[0] for c in self.channels} & set(self.manifest.columns)
        paths = {parted(self.manifest.file(row, column))[0] for column in columns for row in self.manifest.rows if row[column]}
        stats = [(str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in sorted(paths) if path.is_file()]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()

    def _make(self, case: Case) -> Made:
        with Measured(self.model.model, self.model.device) as measured:
            made = self._reconstruct(case) if self.kind == "reconstruction" else self._translate(case)
        return Made(**made, cost=measured.cost)

    def _draw(self, progress: Progress | None) -> None:
        """This process's share of the samples."""
        own = self.share(range(self.samples))
        missing = [number for number in own if not self._sample_path(number).exists()]
        for first in range(0, len(missing), _BATCH):
            numbers = missing[first : first + _BATCH]
            with Measured(self.model.model, self.model.device) as measured:
                volumes = self._generated(numbers)
            for number, volume in zip(numbers, volumes, strict=True):
                written(self._sample_path(number), lambda file, v=volume: np.save(file, network_units(self.model, v).numpy()))
            cost = replace(measured.cost, seconds=measured.cost.seconds / len(numbers))
            written(self.kept / f"cost_{numbers[0]:05d}.json", lambda file, c=cost: file.write(json.dumps(vars(c)).encode()))
            if progress:
                progress(len(own) - len(missing) + first + len(numbers), len(own))

    def _generated(self, numbers: Sequence[int]) -> list[Volume]:
        """These of the samples; where each is drawn for a label map of its own, one at a time."""
        conditions = self._conditions()
        if not self._own_labels:
            return self.model.generate(self.samples, self.seed, conditions, only=numbers, batch=_BATCH)
        labels = {number: {name: maps[0].numpy() for name, maps in self.sample_labels([number]).items()} for number in numbers}
        return [self.model.generate(self.samples, self.seed, conditions | labels[i], only=[i])[0] for i in numbers]

    @property
    def _own_labels(self) -> bool:
        """Whether samples are drawn for the label maps of the split, each for another."""
        labels = self.model.task.labels
        return bool(labels) and not set(labels) & set(self.given) and set(labels) <= set(self.manifest.columns)

    def _answer_path(self, number: int) -> Path:
        return self.kept / f"{number:05d}.npz"

    def _translate(self, case: Case) -> dict[str, Any]:
        conditions = self.conditions(case.row)
        source = case.source[0].numpy()
        draws = [torch.from_numpy(np.ascontiguousarray(self.model.predict(source, self.seed + i, conditions))) for i in range(self.draws)]
        return summed(torch.stack(draws))

    def _reconstruct(self, case: Case) -> dict[str, Any]:
        channel = self.model.task.target[0]
        volume = one_plane(read(self.manifest.file(case.row, channel)), channel)
        acquired = self.model.simulate(volume, seed=self.seed)
        result = self.model.reconstruct(acquired, draws=self.draws, seed=self.seed)
        rule, ends = self.model.contract.map_of(channel), case.ends[channel]

        def mapped(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.asarray(rule.forward(array, **ends), np.float32))[None]

        scale = 2.0 / (ends["high"] - ends["low"])
        std = None if result.std is None else torch.from_numpy(result.std.array.astype(np.float32))[None] * scale
        made = {"image": mapped(result.image.array), "std": std, "view": mapped(result.view.array), "residual": result.residual}
        if self.draws > 1:
            made["draws"] = torch.cat([mapped(as_volume(sample, acquired, result.image)) for sample in result.samples])
        return made

    def _sample(self, number: int) -> Tensor:
        """A sample that some process has made, or is about to."""
        path, until = self._sample_path(number), time.monotonic() + _PATIENCE
        while not path.exists():
            if self.places == 1 or time.monotonic() > until:
                raise MedgenError(f"{path}: the process that draws this sample has not; start the evaluation again, it goes on")
            time.sleep(0.5)
        return torch.from_numpy(np.load(path))

    def _sample_path(self, number: int) -> Path:
        return self.kept / f"sample_{number:05d}.npy"

    def _conditions(self) -> dict[str, Any]:
        """For the samples the attributes of the split's rows, in turn, so that both have the same mixture; what is given wins."""
        rows = [self._row_attributes(row) for row in self.manifest.split(self.split).rows]
        drawn: dict[str, Any] = {name: [rows[i % len(rows)][name] for i in range(self.samples)] for name in rows[0]}
        return drawn | dict(self.given)

    def _row_attributes(self, row: Mapping[str, str]) -> dict[str, int | float]:
        """The model's attributes that the manifest has a column for."""
        wanted = self.model.task.attributes
        return {n: attribute(row, n, classes, self.manifest.path) for n, classes in wanted.items() if n in self.manifest.columns}

    def _volumes(self, row: Mapping[str, str]) -> dict[str, Volume]:
        places = {c: self.column(c) for c in self.channels}
        files = {name: read(self.manifest.file(row, name)) for name, _ in dict.fromkeys(places.values()) if row[name]}
        return {c: one_plane(files[name], c, plane) for c, (name, plane) in places.items() if name in files}

    def _stacked(self, volumes: Mapping[str, Volume], names: Sequence[str]) -> Tensor:
        """Channels in network units on the model's grid: (1, K, *S); one that the row lacks is NaN everywhere."""
        there = {name: self.model.on_grid(volumes[name], name).array for name in names if name in volumes}
        missing = np.full_like(next(iter(there.values())), np.nan)
        return torch.from_numpy(np.ascontiguousarray(np.concatenate([there.get(name, missing) for name in names])))[None]

    def _body(self, volumes: Mapping[str, Volume], where: str) -> Tensor:
        """By Hounsfield units where there are any, else what is not background in source and target.

        Found on the files' own grid, where background is exact, and brought to the model's by nearest voxel: interpolation spreads a
        thin dark rim around a stripped head, and a mask found there would score that rim.
        """
        hounsfield = [v for c, v in volumes.items() if self.model.contract.intensity[c]["name"] == "ct_hu"]
        stored = torch.from_numpy(np.concatenate([v.array for v in hounsfield or volumes.values()]))
        try:
            mask = body_mask(stored, AIR if hounsfield else None).numpy().astype(np.float32)
        except MedgenError as error:
            raise MedgenError(f"{where}: {error}") from error
        first = next(iter(volumes.values()))
        return torch.from_numpy(self.model.regridded(first.with_array(mask), labels=True).array > 0.5)[None]

    def _labels_on_grid(self, volume: Volume) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.model.regridded(volume, labels=True).array)).long()[None]
