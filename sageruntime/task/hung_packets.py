"""HungPackets: packets that the operator hung on, to be left out when they come again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import cloudpickle

from sageruntime.communication.router import Packet

Name = int | bytes
"""What a packet is known by when it comes again."""


class HungPackets:
    """What is dealt with once must not be tried again, and must not be left out twice.

    An attempt begins where the latest complete checkpoint is; there, as many packets of a name are
    left out as were hung on behind it.

    Args:
        anew: whether packets come again from their source, made anew. They are known by key and
            payload then, and by their ids otherwise.
    """

    def __init__(self, anew: bool) -> None:
        self.anew = anew
        self._known: Counter[Name] = Counter()
        self._due: Counter[Name] = Counter()
        self._left_out: Counter[Name] = Counter()

    @property
    def due(self) -> bool:
        """Whether any is still to come in this attempt."""
        return bool(self._due)

    def name_of(self, packet: Packet) -> Name:
        """The name of a packet."""
        if not self.anew:
            return packet.id
        data = cloudpickle.dumps((packet.key, packet.payload))
        return hashlib.blake2b(data, digest_size=16).digest()

    def add(self, names: Iterable[Name]) -> None:
        """The operator hung on these."""
        self._known.update(names)

    def learn(self, other: HungPackets) -> None:
        """Know what another knows."""
        self.anew = other.anew
        self._known = other._known.copy()
        self.begin()

    def begin(self) -> None:
        """An attempt begins."""
        self._due = self._known.copy()
        self._left_out = Counter()

    def rest_of(self, packets: list[Packet]) -> list[Packet]:
        """These packets without those that are due."""
        return [packet for packet in packets if not self._is_due(packet)]

    def left_out(self) -> Counter[Name]:
        """What this attempt has left out by now: part of a snapshot taken now."""
        return self._left_out.copy()

    def settle(self, left_out: Counter[Name]) -> None:
        """A snapshot is kept for good, and with it that these were left out."""
        self._known -= left_out
        self._left_out -= left_out

    def _is_due(self, packet: Packet) -> bool:
        if not self._due:
            return False
        name = self.name_of(packet)
        if name not in self._due:
            return False
        one = Counter((name,))
        self._due -= one
        self._left_out += one
        return True
