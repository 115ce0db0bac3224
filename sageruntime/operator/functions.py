"""Operators that apply a function to each payload: map, filter, flat_map, key_by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.operator.base_operator import BaseOperator
from sageruntime.operator.is_async import check_plain
from sageruntime.operator.results import Results


class MapOperator(BaseOperator):
    """Replaces each payload by ``function(payload)``; the key stays."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        check_plain(self, function)
        self.function = function

    def process(self, packet: Packet) -> Results:
        packet.payload = self.function(packet.payload)
        return packet


class FilterOperator(BaseOperator):
    """Passes on the packets whose payload makes ``function`` true."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        check_plain(self, function)
        self.function = function

    def process(self, packet: Packet) -> Results:
        return packet if self.function(packet.payload) else None


class FlatMapOperator(BaseOperator):
    """Makes a packet of every item of ``function(payload)``; the key stays."""

    def __init__(self, function: Callable[[Any], Iterable[Any]]) -> None:
        check_plain(self, function)
        self.function = function

    def process(self, packet: Packet) -> Results:
        key, timestamp = packet.key, packet.timestamp
        return [Packet(item, 0, key, timestamp) for item in self.function(packet.payload)]


class KeyByOperator(BaseOperator):
    """Sets each packet's key to ``function(payload)``.

    The next stage's instances share the packets by key: see
    :func:`~sageruntime.core.stable_hash.stable_hash` for what can be a key.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        check_plain(self, function)
        self.function = function

    def process(self, packet: Packet) -> Results:
        packet.key = self.function(packet.payload)
        return packet
