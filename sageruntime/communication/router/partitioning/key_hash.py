"""KeyHash: equal keys to the same task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sageruntime.communication.router.packet import Packet
from sageruntime.communication.router.partitioning.partitioner import Reject, Target
from sageruntime.core.stable_hash import instance_for

_CACHED_KEYS = 1 << 16


class KeyHash:
    """Packets of equal key to the same task, always and from every process.

    The task is the :func:`~sageruntime.core.stable_hash.stable_hash` of the key modulo
    the number of tasks: with one task more or less, most keys move. A packet whose key has no
    stable hash is rejected. With one task nothing is hashed, and any key will do.

    Args:
        function: gives the key of a payload, which becomes the packet's; by default the key the
            packet has.
        fails_over: whether keys may move to other tasks when one has ended. Each sending task
            moves them when it notices.
    """

    def __init__(
        self, function: Callable[[Any], Any] | None = None, fails_over: bool = False
    ) -> None:
        self.function = function
        self.fails_over = fails_over
        self._ways = 0
        self._cached_ways: dict[Any, int] = {}

    def split(
        self, packets: list[Packet], targets: Sequence[Target], reject: Reject
    ) -> list[list[Packet]]:
        packets = self._with_keys(packets, reject)
        ways = len(targets)
        if ways == 1:
            return [packets]
        if ways != self._ways or len(self._cached_ways) > _CACHED_KEYS:
            self._ways = ways
            self._cached_ways = {}
        cached_ways = self._cached_ways
        parts: list[list[Packet]] = [[] for _ in targets]
        for packet in packets:
            key = packet.key
            try:
                way = cached_ways[key]
            except (KeyError, TypeError):
                try:
                    way = instance_for(key, ways)
                    cached_ways[key] = way
                except Exception as error:
                    reject(packet, error)
                    continue
            parts[way].append(packet)
        return parts

    def _with_keys(self, packets: list[Packet], reject: Reject) -> list[Packet]:
        function = self.function
        if function is None:
            return packets
        keyed = []
        for packet in packets:
            try:
                packet.key = function(packet.payload)
            except Exception as error:
                reject(packet, error)
            else:
                keyed.append(packet)
        return keyed
