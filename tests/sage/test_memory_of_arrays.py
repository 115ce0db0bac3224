"""Memory of large arrays that were got is used again once they are gone, and never before."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from sagequeue import SageQueue


@pytest.mark.parametrize("inside", [False, True], ids=["array", "in a dict"])
def test_arrays_that_live_share_nothing(inside: bool) -> None:
    chance = random.Random(5)
    alive: list[tuple[int, Any]] = []
    with SageQueue[Any]() as queue:
        for number in range(600):
            array = np.full(chance.choice([100, 5000, 9000, 70_000, 140_000]), number)
            queue.put({"array": array} if inside else array)
            item = queue.get()
            got = item["array"] if inside else item
            assert got.flags.writeable
            assert not any(np.shares_memory(got, other) for _, other in alive)
            alive.append((number, got))
            while len(alive) > chance.randrange(1, 30):
                kept, other = alive.pop(chance.randrange(len(alive)))
                assert (other == kept).all()
    assert all((other == kept).all() for kept, other in alive)


def test_a_view_keeps_the_memory_of_its_array() -> None:
    with SageQueue[Any]() as queue:
        queue.put(np.full(50_000, 1))
        view = queue.get()[100:200]
        for _ in range(20):
            queue.put(np.full(50_000, 2))
            assert queue.get()[0] == 2
        assert (view == 1).all()


def test_an_array_takes_the_memory_of_one_that_is_gone() -> None:
    with SageQueue[Any]() as queue:
        addresses = set()
        for number in range(20):
            queue.put(np.full(50_000 + number, number))  # near enough in size
            addresses.add(queue.get().ctypes.data)
    assert len(addresses) == 1
    assert addresses.pop() % 64 == 0


MANY = """
import numpy, psutil
from sagequeue import SageQueue
rss = lambda: psutil.Process().memory_info().rss >> 20
with SageQueue() as queue:
    array = numpy.ones(1 << 20, numpy.uint8)
    queue.put(array)
    queue.get()
    before = rss()
    arrays = []
    for _ in range(300):
        queue.put(array)
        arrays.append(queue.get())
    full = rss()
    arrays.clear()
    print(full - before, rss() - before)
"""


def test_no_more_is_kept_than_a_batch_needs() -> None:
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, check=True)
    full, kept = map(int, done.stdout.split())
    assert full >= 290
    assert kept <= 64 + 16
