"""FilterOperator: lets through what a predicate accepts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.operator.base_operator import BaseOperator
from sageruntime.operator.results import Results


class FilterOperator(BaseOperator):
    """Passes on the packets whose payload makes ``function`` true."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def process(self, packet: Packet) -> Results:
        return packet if self.function(packet.payload) else None
