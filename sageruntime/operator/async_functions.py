"""Operators that await an ``async`` function for each payload: map, filter, flat_map and sink.

Up to ``max_concurrency`` payloads are worked on at a time, those of equal key one after the other.
Results keep the order of the payloads.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.operator.base_operator import BaseOperator
from sageruntime.operator.sink import SinkOperator


class AsyncMapOperator(BaseOperator):
    """Replaces each payload by what ``await function(payload)`` gives; the key stays."""

    def __init__(self, function: Callable[[Any], Awaitable[Any]]) -> None:
        self.function = function

    async def process(self, packet: Packet) -> Packet:
        packet.payload = await self.function(packet.payload)
        return packet


class AsyncFilterOperator(BaseOperator):
    """Passes on the packets for whose payload ``await function(payload)`` is true."""

    def __init__(self, function: Callable[[Any], Awaitable[Any]]) -> None:
        self.function = function

    async def process(self, packet: Packet) -> Packet | None:
        return packet if await self.function(packet.payload) else None


class AsyncFlatMapOperator(BaseOperator):
    """Makes a packet of every item; the key stays.

    Args:
        function: an ``async`` function that returns an iterable, or one that yields the items.
    """

    def __init__(
        self, function: Callable[[Any], Awaitable[Iterable[Any]] | AsyncIterable[Any]]
    ) -> None:
        self.function = function

    async def process(self, packet: Packet) -> list[Packet]:
        key, timestamp, items = packet.key, packet.timestamp, self.function(packet.payload)
        if inspect.isawaitable(items):
            return [Packet(item, 0, key, timestamp) for item in await items]
        return [Packet(item, 0, key, timestamp) async for item in items]


class AsyncFunctionSink(SinkOperator):
    """Awaits ``function(payload)`` for each packet."""

    def __init__(self, function: Callable[[Any], Awaitable[Any]]) -> None:
        self.function = function

    async def process(self, packet: Packet) -> None:
        await self.function(packet.payload)
