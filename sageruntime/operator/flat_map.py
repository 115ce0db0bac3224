"""FlatMapOperator: any number of results for each packet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.operator.base_operator import BaseOperator
from sageruntime.operator.results import Results


class FlatMapOperator(BaseOperator):
    """Makes a packet of every item of ``function(payload)``; the key stays."""

    def __init__(self, function: Callable[[Any], Iterable[Any]]) -> None:
        self.function = function

    def process(self, packet: Packet) -> Results:
        key, timestamp = packet.key, packet.timestamp
        return [Packet(item, 0, key, timestamp) for item in self.function(packet.payload)]
