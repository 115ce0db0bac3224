"""The runtime beside its peers, as far as it is a matter of rates; all of it: ``bench.runtime``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.runtime import hop, process, wordcount
from bench.runtime.stages import Idle

CASES: dict[str, dict[str, Callable[[], float]]] = {
    "job on threads, one hop": {
        "sageruntime": lambda: hop.PACKETS / hop.job_seconds(Idle),
        "queue.Queue": lambda: hop.LOOP_ITEMS / hop.loop_seconds(1),
    },
    "job through a process": {
        "sageruntime": process.job_rate,
        "mp.Queue": process.loop_of_numbers_rate,
        "mp.Queue, lists": process.loop_of_lists_rate,
    },
    "word count": {name: lambda name=name: wordcount.rate(name) for name in wordcount.COUNTERS},
}


@pytest.mark.parametrize(
    ("group", "peer"), [(group, peer) for group in CASES for peer in CASES[group]]
)
def test_job(benchmark: Any, rounds: int, group: str, peer: str) -> None:
    rates: list[float] = []
    benchmark.group = group
    benchmark.extra_info.update(peer=peer, rates=rates)
    benchmark.pedantic(lambda: rates.append(CASES[group][peer]()), rounds=rounds)
    assert len(rates) == rounds
