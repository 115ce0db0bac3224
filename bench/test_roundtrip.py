"""Ping-pong: 64 bytes to another process and back, both ends blocking."""

from __future__ import annotations

from typing import Any

import pytest

from bench.transfer import round_trip_seconds

ROUNDS = {
    "SageQueue mpmc": 20_000,
    "SageQueue spsc": 20_000,
    "mp.Queue": 2_000,
    "mp.Pipe": 2_000,
    "faster-fifo": 2_000,
}


@pytest.mark.parametrize("peer", ROUNDS)
def test_round_trip(benchmark: Any, rounds: int, peer: str) -> None:
    rates: list[float] = []
    benchmark.group = "round trip"
    benchmark.extra_info.update(peer=peer, rates=rates)
    benchmark.pedantic(
        lambda: rates.append(1 / round_trip_seconds(peer, ROUNDS[peer])), rounds=rounds
    )
    assert len(rates) == rounds
