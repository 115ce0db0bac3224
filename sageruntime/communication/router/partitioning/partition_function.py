"""PartitionFunction: a function of the user chooses the task for each packet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sageruntime.communication.router.packet import Packet
from sageruntime.communication.router.partitioning.partitioner import Reject, Target
from sageruntime.errors import PartitionError


class PartitionFunction:
    """Each packet to the task whose index a function returns.

    Args:
        function: takes a packet and how many tasks there are, and returns 0 for the first of them,
            1 for the second, and so on. A packet for which it raises or returns anything else
            is rejected, the latter with a :class:`~sageruntime.errors.PartitionError`.
        fails_over: whether the packets may go to other tasks when one has ended.
    """

    def __init__(self, function: Callable[[Packet, int], int], fails_over: bool = False) -> None:
        self.function = function
        self.fails_over = fails_over

    def split(
        self, packets: list[Packet], targets: Sequence[Target], reject: Reject
    ) -> list[list[Packet]]:
        function, ways = self.function, len(targets)
        parts: list[list[Packet]] = [[] for _ in targets]
        for packet in packets:
            try:
                way = function(packet, ways)
                if not 0 <= way < ways:
                    raise PartitionError(
                        f"{function!r} chose task {way!r} of {ways}; expected an int from 0 to "
                        f"{ways - 1}. Take the remainder by its second argument"
                    )
                part = parts[way]
            except Exception as error:
                reject(packet, error)
            else:
                part.append(packet)
        return parts
