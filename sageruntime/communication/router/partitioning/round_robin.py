"""RoundRobin: every task gets the same number of packets."""

from __future__ import annotations

from collections.abc import Sequence

from sageruntime.communication.router.packet import Packet
from sageruntime.communication.router.partitioning.partitioner import Reject, Target


class RoundRobin:
    """Each packet to the next task in turn."""

    fails_over = True

    def __init__(self) -> None:
        self._turn = 0

    def split(
        self, packets: list[Packet], targets: Sequence[Target], reject: Reject
    ) -> list[list[Packet]]:
        ways = len(targets)
        if ways == 1:
            return [packets]
        turn = self._turn % ways  # there may be fewer ways than last time
        self._turn = (turn + len(packets)) % ways
        return [packets[(way - turn) % ways :: ways] for way in range(ways)]
