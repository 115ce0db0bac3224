"""Broadcast: every task gets every packet."""

from __future__ import annotations

from collections.abc import Sequence

from sageruntime.communication.router.packet import Packet
from sageruntime.communication.router.partitioning.partitioner import Reject, Target


class Broadcast:
    """A copy of each packet to every task; the payload is shared where no process lies between."""

    fails_over = False  # the siblings have their copies already

    def split(
        self, packets: list[Packet], targets: Sequence[Target], reject: Reject
    ) -> list[list[Packet]]:
        return [packets, *([packet.copy() for packet in packets] for _ in targets[1:])]
