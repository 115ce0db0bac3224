"""Broker: the actor that keeps a Ray queue's items."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count

BATCH = 1024
"""Items that travel in one call to the actor."""

CALL_BYTES = 16 << 20
"""Bytes from which on a call takes no more items along."""


class Broker:
    """The actor of a Ray queue: it holds the items, as bytes, and lets callers wait.

    A batch handed out is remembered until its receiver asks for the next, so that a call broken
    off on the way (by Ctrl-C, say) can be made again and nothing is lost.
    """

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.items: deque[bytes] = deque()
        self.unfinished = 0
        self.is_shutdown = False
        self.handed_out: dict[str, tuple[int, list[bytes]]] = {}
        self.replaced: set[str] = set()
        self.hurried: set[str] = set()
        self.claims: dict[int, tuple[str, bytes, int]] = {}
        self.claimants: set[str] = set()
        self.returned: deque[tuple[bytes, int]] = deque()
        self.claim_numbers = count(1)
        self.changed = asyncio.Condition()

    async def forget(self, handle: str) -> None:
        """A handle was closed: its receivers have left."""
        for receiver in [name for name in self.handed_out if name.startswith(handle)]:
            del self.handed_out[receiver]
        self.hurried = {name for name in self.hurried if not name.startswith(handle)}

    async def answer_now(self, receiver: str) -> None:
        """This receiver's call is to wait no more; if it has not come yet, then not at all."""
        async with self.changed:
            self.hurried.add(receiver)
            self.changed.notify_all()

    async def _wait_until(
        self, ready: Callable[[], bool], seconds: float, receiver: str | None = None
    ) -> bool:
        if not ready() and seconds > 0:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(
                    self.changed.wait_for(lambda: ready() or receiver in self.hurried), seconds
                )
        if receiver is not None:
            self.hurried.discard(receiver)
        return ready()

    def _room(self) -> int:
        return self.maxsize - len(self.items) if self.maxsize else BATCH

    async def put_many(self, items: list[bytes], seconds: float) -> tuple[int, bool]:
        """How many of the items went in, and whether the queue is shut down."""
        async with self.changed:
            await self._wait_until(lambda: self.is_shutdown or self._room() > 0, seconds)
            if self.is_shutdown:
                return 0, True
            accepted = items[: max(0, self._room())]
            self.items.extend(accepted)
            self.unfinished += len(accepted)
            self.changed.notify_all()
            return len(accepted), False

    async def get_many(
        self, receiver: str, request: int, most: int, seconds: float
    ) -> tuple[list[bytes], bool]:
        """A batch, and whether the queue is shut down and drained."""
        async with self.changed:
            last, batch = self.handed_out.get(receiver, (-1, []))
            if last == request:
                return batch, False
            if not await self._wait_until(
                lambda: self.is_shutdown or bool(self.items), seconds, receiver
            ):
                return [], False
            batch, size = [], 0
            while self.items and len(batch) < most and size < CALL_BYTES:
                batch.append(self.items.popleft())
                size += len(batch[-1])
            if batch:
                self.handed_out[receiver] = (request, batch)
                self.changed.notify_all()
            return batch, not batch and self.is_shutdown

    async def claim_many(
        self, receiver: str, claimant: str, most: int, seconds: float
    ) -> tuple[list[tuple[int, bytes, int]], bool]:
        """Claims, and whether the queue is shut down and drained.

        A claim is its number, its item and how often that was claimed before.
        """
        async with self.changed:
            self.claimants.add(claimant)
            if not await self._wait_until(
                lambda: (
                    self.is_shutdown
                    or bool(self.items or self.returned)
                    or claimant in self.replaced
                ),
                seconds,
                receiver,
            ):
                return [], False
            claims: list[tuple[int, bytes, int]] = []
            size = 0
            while claimant not in self.replaced and len(claims) < most and size < CALL_BYTES:
                if self.returned:
                    item, deliveries = self.returned.popleft()
                elif self.items:
                    item, deliveries = self.items.popleft(), 0
                else:
                    break
                size += len(item)
                claims.append((next(self.claim_numbers), item, deliveries))
                self.claims[claims[-1][0]] = claimant, item, deliveries
            if claims:
                self.changed.notify_all()
            return claims, not claims

    async def release(self, numbers: list[int]) -> None:
        """The claimed items are dealt with."""
        for number in numbers:
            self.claims.pop(number, None)

    async def give_back_claims(self, of: str) -> None:
        async with self.changed:
            # calls that the dead had under way must not take anything any more
            self.replaced |= {name for name in self.claimants if name.startswith(of)}
            for number, (claimant, item, deliveries) in list(self.claims.items()):
                if claimant in self.replaced:
                    del self.claims[number]
                    self.returned.append((item, deliveries + 1))
            self.changed.notify_all()

    async def qsize(self) -> int:
        return len(self.items) + len(self.returned)

    async def shutdown(self, immediate: bool) -> None:
        async with self.changed:
            self.is_shutdown = True
            if immediate:
                self.unfinished -= len(self.items) + len(self.returned)
                self.items.clear()
                self.returned.clear()
            self.changed.notify_all()

    async def task_done(self) -> bool:
        """False when there is no unfinished item."""
        async with self.changed:
            if self.unfinished == 0:
                return False
            self.unfinished -= 1
            self.changed.notify_all()
            return True

    async def join(self, seconds: float) -> bool:
        """Whether everything is done."""
        async with self.changed:
            return await self._wait_until(lambda: self.unfinished == 0, seconds)
