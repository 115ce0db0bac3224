"""Memory stays flat: see :mod:`bench.runtime.memory`. The long form is of 10^8 packets."""

from __future__ import annotations

from typing import Any

import pytest

from bench.runtime.memory import MOST_GROWTH, growths, watch
from sageruntime import BaseOperator, Packet


@pytest.mark.timeout(3600)
def test_no_process_grows_while_packets_flow(long: bool) -> None:
    samples = watch(100_000_000 if long else 1_000_000)
    grown = growths(samples)
    assert grown.keys() == {"driver", "first", "second"}
    assert max(grown.values()) < MOST_GROWTH, grown


class Hoards(BaseOperator):
    """Keeps what it should let go."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def process(self, packet: Packet) -> Packet:
        self.kept.append((packet.payload, packet.timestamp))
        return packet


def test_a_process_that_keeps_packets_is_seen() -> None:
    grown = growths(watch(1_000_000, Hoards))
    assert grown["first"] > MOST_GROWTH
    assert grown["second"] < MOST_GROWTH
