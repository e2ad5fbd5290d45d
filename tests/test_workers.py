"""Work in processes of their own: what goes wrong with one item stays with that item."""

import ctypes
import os
import time

import numpy as np
import pytest

from medgen.core.errors import MedgenError
from medgen.data.workers import GIB, Failure, Limits, each


def double(item):
    return 2 * item


def odd_one_out(item):
    """Refuses, crashes, hangs, eats or errs on request."""
    if item == "refuse":
        raise MedgenError("not this one")
    if item == "crash":
        ctypes.string_at(0)
    if item == "leave":
        os._exit(3)
    if item == "hang":
        time.sleep(60)
    if item == "eat":
        return len(bytearray(8 * GIB))
    if item == "fault":
        raise KeyError("a fault of ours")
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_has_its_result(workers):
    assert dict(each(double, range(20), workers)) == {i: 2 * i for i in range(20)}


def test_a_bad_item_costs_itself_alone():
    items = ["fine", "refuse", "crash", "fine", "leave", "hang", "eat", "fine"]
    results = dict(each(odd_one_out, items, 2, Limits(seconds=3, memory=GIB)))
    reasons = {items[place]: result.reason for place, result in results.items() if isinstance(result, Failure)}
    assert reasons.keys() == {"refuse", "crash", "leave", "hang", "eat"}
    assert reasons["refuse"] == "not this one"
    assert "signal 11" in reasons["crash"] and "status 3" in reasons["leave"]
    assert "longer than 3 s" in reasons["hang"] and "more than 1 GiB" in reasons["eat"]
    assert all(isinstance(results[place], int) for place in (0, 3, 7))


def test_a_fault_of_the_function_is_not_hidden():
    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(each(odd_one_out, ["fault"]))


def test_nothing_is_left_behind_when_the_caller_stops_early():
    results = each(odd_one_out, ["fine"] * 5, 2)
    _, process = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def mapped(path):
    return int(np.load(path, mmap_mode="r")[-1, -1])


def test_a_file_that_is_mapped_counts_not_as_memory(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.uint8, (3 << 15, 1 << 15))  # 3 GiB, of which the disk holds a page
    array[-1, -1] = 7
    del array
    assert dict(each(mapped, [str(tmp_path / "big.npy")], 1, Limits(memory=GIB))) == {0: 7}
