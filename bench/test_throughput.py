"""Messages per second between two processes, one a call and in batches."""

from __future__ import annotations

from typing import Any

import pytest

from bench.messages import workloads
from bench.peers import PEERS
from bench.transfer import messages_per_second

CASES = [
    pytest.param(workload, batched, peer, id=f"{workload}-{'batch' if batched else 'call'}-{peer}")
    for workload in workloads()
    for batched in (False, True)
    for peer, kind in PEERS.items()
    if kind.batches or not batched
]
# Once Ray has started in this process, it is no place to measure others in.
CASES.sort(key=lambda case: "Ray" in str(case.id))


@pytest.mark.parametrize(("workload", "batched", "peer"), CASES)
def test_throughput(benchmark: Any, rounds: int, workload: str, batched: bool, peer: str) -> None:
    rates: list[float] = []
    benchmark.group = f"{workload}, {'batches' if batched else 'one a call'}"
    benchmark.extra_info.update(peer=peer, rates=rates)
    benchmark.pedantic(
        lambda: rates.append(messages_per_second(peer, workload, batched)), rounds=rounds
    )
    assert len(rates) == rounds
