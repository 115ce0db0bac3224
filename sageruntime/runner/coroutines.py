"""Coroutines: an async operator, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.core.futures import as_exception
from sageruntime.errors import OperatorError, processing_timeout
from sageruntime.metrics import ThreadCounts
from sageruntime.operator.results import iterate_results
from sageruntime.runner.invoker import ConcurrentInvoker, OperatorCalls, Outcome, Pending, Work

_UNHASHABLE = object()
"""Stands for all keys that cannot be hashed: their packets come one after the other."""


class CoroutineInvoker(ConcurrentInvoker):
    """Runs coroutines side by side, those of equal key one after the other.

    All methods of the operator are called on the loop, in one thread.

    Args:
        calls: how the operator is called.
        name: of the thread.
        begin: called first in the thread; gives what it counts in.
        done: told of work that is done; any thread may call it.
        concurrency: most packets at a time.
        timeout: seconds that a packet may take; None is no limit.
    """

    def __init__(
        self,
        calls: OperatorCalls,
        name: str,
        begin: Callable[[], ThreadCounts],
        done: Callable[[Work], None],
        concurrency: int,
        timeout: float | None,
    ) -> None:
        self._calls = calls
        self._begin = begin
        self._done = done
        self._concurrency = concurrency
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._running: set[asyncio.Task[None]] = set()
        self._by_key: dict[Any, deque[Work]] = {}
        self._permits: asyncio.Semaphore
        self._counts: ThreadCounts
        self._thread = threading.Thread(target=self._run, name=f"{name}_0", daemon=True)
        self._thread.start()

    def submit(self, pending: Pending) -> None:
        self._loop.call_soon_threadsafe(self._start, pending)

    def call(self, function: Callable[[], Any]) -> Any:
        async def called() -> Any:
            result = function()
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(_contained(called()), self._loop).result()

    def drop_waiting(self) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_asyncgens(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        self._counts = self._begin()
        asyncio.set_event_loop(self._loop)
        self._permits = asyncio.Semaphore(self._concurrency)
        self._loop.run_forever()
        self._counts.end()

    def _start(self, pending: Pending) -> None:
        for index, packet in enumerate(pending.packets):
            work = Work(pending, [index])
            if packet.key is None:
                self._spawn(deque((work,)), None)
                continue
            key = _hashable(packet.key)
            waiting = self._by_key.get(key)
            if waiting is None:
                self._by_key[key] = deque((work,))
                self._spawn(self._by_key[key], key)
            else:
                waiting.append(work)

    def _spawn(self, works: deque[Work], key: Any) -> None:
        task = self._loop.create_task(self._follow(works, key))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _follow(self, works: deque[Work], key: Any) -> None:
        """Process packets of one key, one after the other."""
        while works:
            async with self._permits:
                work = works[0]
                work.outcomes = [await self._outcome(work.packets[0])]
            self._counts.processed += not isinstance(work.outcomes[0], Exception)
            works.popleft()
            self._done(work)
        if key is not None:
            del self._by_key[key]

    async def _outcome(self, packet: Packet) -> Outcome:
        policy = self._calls.retries.policy
        failures = 0
        while True:
            try:
                return await self._results(packet)
            except asyncio.CancelledError:
                raise
            except BaseException as raised:
                error = as_exception(raised)
                failures += 1
                if policy is None or failures >= policy.attempts:
                    return error
                delay = policy.delay(failures)
            await asyncio.sleep(delay)
            self._calls.retries.count += 1

    async def _results(self, packet: Packet) -> list[Packet]:
        call = asyncio.ensure_future(_contained(self._calls.process(packet)))
        try:
            done, _ = await asyncio.wait((call,), timeout=self._timeout)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if not done:
            call.cancel()
            await asyncio.wait((call,))
            raise processing_timeout(packet.id, self._timeout or 0.0)
        if call.cancelled():
            raise OperatorError(
                f"the coroutine of packet {packet.id} ended with asyncio.CancelledError: it, or "
                "something that it awaited, was cancelled"
            )
        return list(iterate_results(call.result(), self._calls.operator))

    async def _cancel_all(self) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _contained(call: Awaitable[Any]) -> Any:
    """What a call gives; an error that would end the event loop becomes another."""
    try:
        return await call
    except (SystemExit, KeyboardInterrupt) as error:
        raise as_exception(error) from error


def _hashable(key: Any) -> Any:
    try:
        hash(key)
    except TypeError:
        return _UNHASHABLE
    return key
