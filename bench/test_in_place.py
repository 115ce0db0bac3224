"""Arrays in place: a claim reads, and a loan writes, without a copy, whatever the size.

The rates are those of ``python -m bench -k in_place``, of the claim alone and so on; what
pytest-benchmark prints by itself is the time of a round, with the other end's work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sagequeue import SageQueue

SIZES = {"64 KiB": 64 << 10, "1 MiB": 1 << 20, "64 MiB": 64 << 20}
MESSAGES = 300


@pytest.fixture
def queue() -> Iterator[SageQueue[Any]]:
    with SageQueue[Any](maxsize=4) as queue:
        yield queue


def claim(queue: SageQueue[Any], size: int) -> float:
    """Seconds to claim, look at and release an array that another one put.

    Of which only what is looked at is written each time: otherwise the writer would clear the
    caches, of Python too, in proportion to the size, and that would be measured.
    """
    with queue.loan(size) as array:
        array[size // 2] = 1
    del array
    start = time.perf_counter()
    with queue.claim() as lease:
        assert lease.item[size // 2] == 1
    return time.perf_counter() - start


def loan(queue: SageQueue[Any], size: int) -> float:
    """Seconds to borrow, touch and put an array."""
    start = time.perf_counter()
    with queue.loan(size) as array:
        array[size // 2] = 1
    elapsed = time.perf_counter() - start
    with queue.claim():
        return elapsed


def copy(queue: SageQueue[Any], size: int) -> float:
    """Seconds to get an array, which copies it out."""
    with queue.loan(size):
        pass
    start = time.perf_counter()
    queue.get()
    return time.perf_counter() - start


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", [claim, loan, copy], ids=lambda way: way.__name__)
def test_in_place(
    benchmark: Any,
    rounds: int,
    queue: SageQueue[Any],
    way: Callable[[SageQueue[Any], int], float],
    size: str,
) -> None:
    rates: list[float] = []
    messages = MESSAGES if way is not copy else 10

    def repeat() -> None:
        rates.append(messages / sum(way(queue, SIZES[size]) for _ in range(messages)))

    benchmark.group = f"arrays in place: {way.__name__}"
    benchmark.extra_info.update(peer=f"SageQueue, {size}", rates=rates)
    benchmark.pedantic(repeat, rounds=rounds, warmup_rounds=1)
    assert len(rates) > 0


def test_a_large_array_is_read_as_fast_as_a_small_one(queue: SageQueue[Any]) -> None:
    seconds: dict[str, list[float]] = {"64 KiB": [], "64 MiB": []}
    for _ in range(MESSAGES):
        for size, measured in seconds.items():
            measured.append(claim(queue, SIZES[size]))
    small, large = map(statistics.median, seconds.values())
    print(f"64 KiB: {small * 1e6:.2f} us, 64 MiB: {large * 1e6:.2f} us, {large / small:.2f} times")
    assert large <= 2 * small
