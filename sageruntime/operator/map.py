"""MapOperator: one result for each packet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.operator.base_operator import BaseOperator
from sageruntime.operator.results import Results


class MapOperator(BaseOperator):
    """Replaces each payload by ``function(payload)``; the key stays."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def process(self, packet: Packet) -> Results:
        packet.payload = self.function(packet.payload)
        return packet
