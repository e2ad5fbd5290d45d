"""What a step is made of: orders of cases, neighbours, missing and unpaired channels, windows of several sizes, time spent waiting."""

import time
from collections import Counter
from itertools import chain
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.core.random import Rng
from medgen.data.files import FileData
from medgen.data.module import Clock, DataModule, TimedLoader
from medgen.data.options import Cut, Options
from medgen.data.order import Balanced, Bucketed, Shuffled
from medgen.data.stream import StepBatches
from medgen.metrics.monitor import PSNR
from medgen.tasks.translation import Translation

PLAIN = {"name": "unit_range", "low": 0, "high": 100}


def write(path: Path, array: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), path)


def manifest(folder: Path, header: str, *rows: str) -> str:
    (folder / "list.csv").write_text("\n".join([header, *rows]) + "\n")
    return str(folder / "list.csv")


@pytest.fixture
def stacks(tmp_path) -> Path:
    """Six subjects whose voxels tell their own place: 10 * subject + slice; t2 is 50 more. s4 has no t2, s5 no t1."""
    rows = []
    for i in range(6):
        values = 10 * i + np.broadcast_to(np.arange(6), (8, 8, 6))
        write(tmp_path / f"{i}_t1.nii.gz", values)
        write(tmp_path / f"{i}_t2.nii.gz", values + 0.5)
        rows.append(f"s{i},train,{i % 3 // 2},{'' if i == 5 else f'{i}_t1.nii.gz'},{'' if i == 4 else f'{i}_t2.nii.gz'}")
    manifest(tmp_path, "subject,split,label,t1,t2", *rows)
    return tmp_path


def data(folder: Path, size=(8, 8), **changes) -> FileData:
    settings = {"channels": {"t1": PLAIN, "t2": PLAIN}, "options": Options(min_foreground=0, missing=True)}
    return FileData(str(folder / "list.csv"), size=size, **{**settings, **changes})


def stored(case: dict, name: str) -> float:
    """What the file holds where the case was cut."""
    assert np.ptp(case[name]) < 1e-5
    return float((case[name].mean() + 1) * 50)


# --- orders -----------------------------------------------------------------------------------------------------------------------


def all_cases(order, steps: int, total: int) -> list[list[int]]:
    return [order.cases(step, total) for step in range(steps)]


@pytest.mark.parametrize(
    "order",
    [
        lambda: Shuffled(11, 4),
        lambda: Balanced(np.array([0, 0, 0, 0, 1, 1, 2]), 4),
        lambda: Bucketed(np.array([0, 0, 0, 1, 1, 1, 1, 2]), 4),
    ],
)
def test_a_step_is_the_same_however_it_is_reached(order):
    whole = all_cases(order(), 20, 3)
    backwards = order()
    assert [backwards.cases(step, 3) for step in reversed(range(20))][::-1] == whole
    ranks = [list(StepBatches(order(), 1, 20, rank=r, world=3)) for r in range(3)]
    assert [[rank[step][0][1] for rank in ranks] for step in range(20)] == whole


def test_balanced_classes_come_equally_often_and_so_do_the_cases_of_a_class():
    classes = np.array([0] * 10 + [1] * 2 + [5] * 3)
    drawn = list(chain(*all_cases(Balanced(classes, 0), 60, 3)))
    assert Counter(classes[drawn].tolist()) == {0: 60, 1: 60, 5: 60}
    assert set(Counter(drawn).values()) == {6, 30, 20}  # 60 over 10, 2 and 3 cases


def test_a_step_holds_one_bucket_and_an_epoch_every_case():
    buckets = np.array([3, 3, 3, 8, 8, 8, 8, 8, 9])
    epoch = all_cases(Bucketed(buckets, 0), 2 + 3 + 1, 2)
    assert all(len(set(buckets[step])) == 1 for step in epoch)
    assert set(chain(*epoch)) == set(range(9))
    assert all_cases(Bucketed(buckets, 1), 6, 2) != epoch


def test_balance_asks_for_a_class_that_cases_have(stacks):
    module = DataModule(data(stacks, attributes={"label": 2}), batch_size=4, balance="label")
    module.resume(0, 6, interval=100)
    labels = torch.cat([batch["label"] for batch in module.train_dataloader()])
    assert labels.float().mean() == 0.5  # a third of the subjects have it
    with pytest.raises(MedgenError, match="balance=lable: no such attribute; did you mean 'label'"):
        DataModule(data(stacks, attributes={"label": 2}), balance="lable").train_dataloader()


# --- neighbours -------------------------------------------------------------------------------------------------------------------


def test_neighbours_are_the_slices_beside_and_the_last_one_is_repeated(stacks):
    cases = data(stacks, options=Options(min_foreground=0, missing=True, cut=Cut(neighbours=2))).split("train")
    seen = [stored(cases.case(index, None), name) for index in range(6, 12) for name in ("t1_m2", "t1_m1", "t1", "t1_p1", "t1_p2")]
    places = [[max(k - 2, 0), max(k - 1, 0), k, min(k + 1, 5), min(k + 2, 5)] for k in range(6)]
    np.testing.assert_allclose(seen, 10 + np.ravel(places), atol=1e-4)


def test_a_model_of_neighbours_takes_a_volume_as_any_other(stacks):
    """A network that returns the slice before tells which one it was given, in training's batches and in translation."""
    from medgen.core.contract import Contract
    from medgen.inference import Pretrained

    source = data(stacks, options=Options(min_foreground=0, missing=True, cut=Cut(neighbours=1)))
    facts = source.facts()
    names = ("t1_m1", "t1", "t1_p1")
    task = Translation(names, ["t2"], PSNR(2.0))
    own = {"target": task.target, "source": task.source, "labels": {}, "attributes": {}}
    contract = Contract.from_dict({**facts, **own, "intensity": {c: facts["intensity"][c] for c in (*names, "t2")}})

    class Before(torch.nn.Module):
        def sample(self, condition, shape, rng):
            return condition.dense[:, :1]

    model = Pretrained(Before(), task, contract, {}, None)
    made = model.translate(str(stacks / "2_t1.nii.gz"))
    np.testing.assert_allclose(made.array[0, 4, 4], [20, 20, 21, 22, 23, 24], atol=1e-3)


# --- missing and unpaired channels ------------------------------------------------------------------------------------------------


def test_a_missing_channel_is_background_and_every_case_says_so(stacks):
    cases = data(stacks).split("train")
    batch = next(iter(DataModule(data(stacks), batch_size=36).train_dataloader()))
    assert len(cases) == 36
    of = {subject: place for place, subject in enumerate(batch["subject"])}
    assert (batch["t2"][of["s4"]] == -1).all() and (batch["t1"][of["s5"]] == -1).all()
    said = {s: (float(batch["t1_available"][n]), float(batch["t2_available"][n])) for s, n in of.items()}
    assert said == {**{f"s{i}": (1, 1) for i in range(4)}, "s4": (1, 0), "s5": (0, 1)}


def test_a_task_tells_a_model_what_is_there_and_counts_no_missing_target(stacks):
    batch = next(iter(DataModule(data(stacks), batch_size=36).train_dataloader()))
    task = Translation(["t1"], ["t2"], PSNR(2.0), availability=True)
    example = task.example(batch, Rng(0, 0, range(36)))
    assert torch.equal(example.condition.dense[:, 1], batch["t1_available"][:, None, None].expand(36, 8, 8))
    assert torch.equal(example.weight.flatten(), batch["t2_available"])
    silent = {name: value for name, value in batch.items() if not name.endswith("_available")}
    assert task.example(silent, Rng(0, 0, range(36))).weight is None
    assert (task.condition(silent).dense[:, 1] == 1).all()


def test_a_row_without_any_file_and_a_blank_that_was_not_expected_are_refused(stacks):
    with pytest.raises(MedgenError, match=r"subject s5 has no file for 't1'; fill the cell, leave the row out, or set .*missing=true"):
        data(stacks, options=Options()).split("train")
    text = (stacks / "list.csv").read_text()
    (stacks / "list.csv").write_text(text.replace("4_t1.nii.gz", ""))
    with pytest.raises(MedgenError, match="subject s4 has no file at all"):
        data(stacks).split("train")


def test_unpaired_channels_come_from_another_case_anew_every_time(stacks):
    cases = data(stacks, options=Options(min_foreground=0, cut=Cut(unpaired=["t2"]))).split("train")
    assert len(cases) == 5 * 6 and cases.varies  # s5 has no t1
    assert cases.subjects == [cases.case(i, np.random.default_rng(0))["subject"] for i in range(len(cases))]
    drawn = [cases.case(7, np.random.default_rng(n)) for n in range(300)]
    assert {round(stored(case, "t1"), 3) for case in drawn} == {11.0}
    subjects = Counter(int(stored(case, "t2") // 10) for case in drawn)
    assert set(subjects) == {0, 1, 2, 3, 5}  # s4 has no t2
    assert max(subjects.values()) < 90
    with pytest.raises(MedgenError, match="names every channel"):
        data(stacks, options=Options(cut=Cut(unpaired=["t1", "t2"])))


# --- axes and windows -------------------------------------------------------------------------------------------------------------


def test_slices_across_several_axes(stacks):
    cases = data(stacks, slice_axis=[2, 0], channels={"t1": PLAIN}, options=Options(min_foreground=0, missing=True))
    (stacks / "list.csv").write_text("subject,t1\ns0,0_t1.nii.gz\n")
    cases = FileData(str(stacks / "list.csv"), {"t1": PLAIN}, (8, 8), slice_axis=[2, 0], options=Options(min_foreground=0))
    split = cases.split("train")
    assert len(split) == 6 + 8 and cases.facts()["slice_axis"] == 2
    assert stored(split.case(3, None), "t1") == pytest.approx(3)
    np.testing.assert_allclose((split.case(9, None)["t1"][0, 4] + 1) * 50, [0, 0, 1, 2, 3, 4, 5, 0], atol=1e-4)  # padded to 8


def test_a_step_of_windows_as_large_as_their_volumes(tmp_path):
    shapes = [(5, 6, 7), (8, 8, 8), (6, 5, 6), (20, 8, 8)]
    for i, shape in enumerate(shapes):
        write(tmp_path / f"{i}.nii.gz", np.full(shape, 10.0 * (i + 1)))
    path = manifest(tmp_path, "subject,split,t1", *(f"s{i},train,{i}.nii.gz" for i in range(4)), "v,validation,0.nii.gz")
    source = FileData(path, {"t1": PLAIN}, (16, 8, 8), options=Options(cut=Cut(buckets=4)))
    module = DataModule(source, batch_size=2)
    module.resume(0, 30, interval=100)
    sizes = Counter(tuple(batch["t1"].shape[2:]) for batch in module.train_dataloader())
    assert set(sizes) == {(8, 8, 8), (16, 8, 8)}  # 5, 6, 7 and 8 are rounded up; 20 is cut to size
    assert next(iter(module.val_dataloader()))["t1"].shape == (1, 1, 16, 8, 8)
    with pytest.raises(MedgenError, match=r"cut\.buckets is for volumes"):
        FileData(path, {"t1": PLAIN}, (8, 8), options=Options(cut=Cut(buckets=4)))


# --- waiting ----------------------------------------------------------------------------------------------------------------------


def test_the_clock_tells_waiting_from_working():
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            time.sleep(0.03)
            return index

    clock = Clock()
    for _ in TimedLoader(clock, Slow()):
        time.sleep(0.01)
    assert clock.batches == 6
    assert 0.14 < clock.waited < 0.4  # five batches; the first one does not count
    assert 0.06 <= clock.used < 0.2
    assert 0.5 < clock.share < 0.85


def test_the_slices_beside_an_unpaired_slice_come_with_it(stacks):
    cut = Cut(unpaired=["t2"], neighbours=1)
    cases = data(stacks, options=Options(min_foreground=0, cut=cut)).split("train")
    for n in range(50):
        case = cases.case(8, np.random.default_rng(n))
        middle, before = stored(case, "t2"), stored(case, "t2_m1")
        assert middle - before == pytest.approx(0 if round(middle - 0.5) % 10 == 0 else 1, abs=1e-3)


def test_rows_of_a_label_map_alone_serve_as_unpaired(tmp_path):
    write(tmp_path / "a.nii.gz", np.arange(8 * 8 * 6).reshape(8, 8, 6))
    write(tmp_path / "l.nii.gz", np.arange(8 * 8 * 6).reshape(8, 8, 6) // 48 % 2)
    path = manifest(tmp_path, "subject,split,t1,tissue", "s,train,a.nii.gz,", "u,train,,l.nii.gz")
    options = Options(min_foreground=0, cut=Cut(unpaired=["tissue"]))
    case = FileData(path, {"t1": PLAIN}, (8, 8), labels={"tissue": 2}, options=options).split("train").case(0, np.random.default_rng(0))
    assert case["subject"] == "s" and set(np.unique(case["tissue"])) == {0, 1} and case["tissue"].dtype == np.int64


def test_a_slice_beside_a_missing_slice_is_missing_too(stacks):
    cut = Cut(neighbours=1)
    batch = next(iter(DataModule(data(stacks, options=Options(min_foreground=0, missing=True, cut=cut)), batch_size=36).train_dataloader()))
    dense = Translation(["t1", "t1_m1"], ["t2"], PSNR(2.0), availability=True).condition(batch).dense
    assert torch.equal(dense[:, 2], dense[:, 3]) and torch.equal(dense[:, 2, 0, 0], batch["t1_available"])


def test_a_column_named_like_a_slice_beside_another_is_refused(stacks):
    text = (stacks / "list.csv").read_text()
    (stacks / "list.csv").write_text(text.replace("t1,t2", "t1_p1,t2"))
    with pytest.raises(MedgenError, match=r"channel 't1_p1' is named like the slice 1 after 't1'; rename the column"):
        data(stacks, channels={"t1_p1": PLAIN})
