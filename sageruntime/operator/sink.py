"""Sinks: where packets end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.operator.base_operator import BaseOperator
from sageruntime.operator.is_async import check_plain
from sageruntime.operator.results import Results


class SinkOperator(BaseOperator):
    """Base of sinks: ``process`` returns nothing, :meth:`result` the job's result."""

    def result(self) -> Any:
        """The sink's part of the job's result; called once, after ``finish``."""
        return None


class FunctionSink(SinkOperator):
    """Calls ``function(payload)`` for each packet."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        check_plain(self, function)
        self.function = function

    def process(self, packet: Packet) -> Results:
        self.function(packet.payload)
        return None


class CollectSink(SinkOperator):
    """Keeps every payload; its result is the list of them."""

    def __init__(self) -> None:
        self.payloads: list[Any] = []

    def process(self, packet: Packet) -> Results:
        self.payloads.append(packet.payload)
        return None

    def result(self) -> list[Any]:
        """The payloads in the order they came."""
        return self.payloads

    def snapshot(self) -> list[Any]:
        """The payloads so far."""
        return self.payloads

    def restore(self, state: list[Any]) -> None:
        """Go on from them."""
        self.payloads = state

    def rescale(self, states: list[list[Any]]) -> list[Any]:
        """The first instance goes on from those of all."""
        return [payload for state in states for payload in state] if self.ctx.index == 0 else []
