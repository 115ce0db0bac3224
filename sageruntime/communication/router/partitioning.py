"""Partitioners: which packet of a batch goes to which task of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sageruntime.communication.router.packet import Packet
from sageruntime.communication.stable_hash import stable_hash

Reject = Callable[[Packet, Exception], None]
"""Takes a packet that cannot be sent, and why."""

_CACHED_KEYS = 1 << 16


class Partitioner(Protocol):
    """Deals packets out to the tasks of one group."""

    def split(self, packets: list[Packet], ways: int, reject: Reject) -> list[list[Packet]]:
        """Return ``ways`` lists that hold every packet once, each in the order given.

        A packet that has no place is handed to ``reject`` instead.
        """
        ...


class RoundRobin:
    """Each packet to the next task in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def split(self, packets: list[Packet], ways: int, reject: Reject) -> list[list[Packet]]:
        """See :class:`Partitioner`; rejects nothing."""
        turn = self._turn
        self._turn = (turn + len(packets)) % ways
        return [packets[(way - turn) % ways :: ways] for way in range(ways)]


class KeyHash:
    """Packets of equal key to the same task, always and from every process.

    Args:
        function: gives the key of a payload, which becomes the packet's; by default the key the
            packet has.
    """

    def __init__(self, function: Callable[[Any], Any] | None = None) -> None:
        self.function = function
        self._ways = 0
        self._way_of: dict[Any, int] = {}

    def split(self, packets: list[Packet], ways: int, reject: Reject) -> list[list[Packet]]:
        """See :class:`Partitioner`; rejects packets without a key that has a stable hash."""
        packets = self._with_keys(packets, reject)
        if ways != self._ways or len(self._way_of) > _CACHED_KEYS:
            self._ways = ways
            self._way_of = {}
        way_of = self._way_of
        parts: list[list[Packet]] = [[] for _ in range(ways)]
        for packet in packets:
            key = packet.key
            try:
                way = way_of[key]
            except (KeyError, TypeError):
                try:
                    way = stable_hash(key) % ways
                    way_of[key] = way
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
