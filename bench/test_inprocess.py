"""put and get in one thread: our queue of references beside the standard library's."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

import pytest

from sagequeue import LocalQueue, ObjectQueue

QUEUES: dict[str, Callable[[], Any]] = {
    "ObjectQueue": ObjectQueue,
    "LocalQueue": LocalQueue,
    "queue.SimpleQueue": queue.SimpleQueue,
    "queue.Queue": queue.Queue,
}
PAIRS = 100_000


@pytest.mark.parametrize("name", QUEUES)
def test_put_and_get(benchmark: Any, rounds: int, name: str) -> None:
    rates: list[float] = []
    put, get = (made := QUEUES[name]()).put, made.get

    def pairs() -> None:
        start = time.perf_counter()
        for _ in range(PAIRS):
            put(None)
            get()
        rates.append(PAIRS / (time.perf_counter() - start))

    benchmark.group = "in one process"
    benchmark.extra_info.update(peer=name, rates=rates)
    benchmark.pedantic(pairs, rounds=rounds, warmup_rounds=0)
    assert len(rates) == rounds
