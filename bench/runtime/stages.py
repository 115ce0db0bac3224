"""Sources, stages and sinks that cost next to nothing, and a sink with a watch."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sageruntime import BaseOperator, Packet, SinkOperator, SourceOperator
from sageruntime.operator import BatchOperator
from sageruntime.operator.results import Results


class Numbers(SourceOperator):
    """Yields the numbers below ``count``."""

    def __init__(self, count: int) -> None:
        self.count = count

    def read(self) -> Iterator[int]:
        """See :class:`SourceOperator`."""
        return iter(range(self.count))


class Idle(BaseOperator):
    """Does nothing with each packet."""

    def process(self, packet: Packet) -> Results:
        """See :class:`BaseOperator`."""
        return packet


class IdleBatch(BatchOperator):
    """Does nothing with each batch."""

    def process_batch(self, packets: list[Packet]) -> Results:
        """See :class:`BatchOperator`."""
        return packets


class Stopwatch(SinkOperator, BatchOperator):
    """Notes when how many packets came; its result is a list of (seconds, packets)."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, int]] = []

    def process_batch(self, packets: list[Packet]) -> Results:
        """See :class:`BatchOperator`."""
        self.arrivals.append((time.perf_counter(), len(packets)))
        return None

    def result(self) -> list[tuple[float, int]]:
        """See :class:`SinkOperator`."""
        return self.arrivals


def rate(arrivals: list[tuple[float, int]], expected: int) -> float:
    """Packets a second from the first arrival to the last; all of them have to be there."""
    arrived = sum(count for _, count in arrivals)
    if arrived != expected:
        raise AssertionError(f"{arrived} packets came of {expected}")
    (first, head), *_, (last, _) = arrivals
    return (arrived - head) / (last - first)
