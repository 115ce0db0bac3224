"""LeastLoaded: tasks that are behind get fewer packets."""

from __future__ import annotations

from collections.abc import Sequence

from sageruntime.communication.router.packet import Packet
from sageruntime.communication.router.partitioning.partitioner import Reject, Target


class LeastLoaded:
    """To the tasks with the fewest packets waiting, so that all come to have as many.

    It reads the depths of the queues once for each list of packets. The packets of a task that has
    no room for ``patience`` seconds are partitioned again, behind what other tasks have already.
    """

    fails_over = True
    patience = 0.02

    def __init__(self) -> None:
        self._turn = 0

    def split(
        self, packets: list[Packet], targets: Sequence[Target], reject: Reject
    ) -> list[list[Packet]]:
        if len(targets) == 1:
            return [packets]
        self._turn += 1
        depths = [target.depth() for target in targets]
        parts: list[list[Packet]] = []
        start = 0
        for share in _shares(len(packets), depths, self._turn % len(targets)):
            parts.append(packets[start : start + share])
            start += share
        return parts


def _shares(amount: int, depths: list[int], first: int) -> list[int]:
    """How many of ``amount`` packets each task gets, so that the lowest depths rise to one level.

    Of those that are equally deep, ``first`` and those after it come first.
    """
    shares = [0] * len(depths)
    lowest = [*range(first, len(depths)), *range(first)]
    lowest.sort(key=depths.__getitem__)
    total = amount
    for count, way in enumerate(lowest, 1):
        total += depths[way]
        level, rest = divmod(total, count)
        if count == len(lowest) or level < depths[lowest[count]]:
            break
    for turn, way in enumerate(lowest[:count]):
        shares[way] = level - depths[way] + (turn < rest)
    return shares
