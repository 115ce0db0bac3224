"""KeyByOperator: names the partition a packet belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.operator.base_operator import BaseOperator
from sageruntime.operator.results import Results


class KeyByOperator(BaseOperator):
    """Sets each packet's key to ``function(payload)``.

    The next stage's instances share the packets by key: see
    :func:`~sageruntime.core.stable_hash.stable_hash` for what can be a key.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def process(self, packet: Packet) -> Results:
        packet.key = self.function(packet.payload)
        return packet
