"""Calls: the ways a worker hands packets to an operator."""

from __future__ import annotations

import asyncio
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sageruntime.communication.router import BaseRouter, Packet
from sageruntime.errors import OperatorError, ProcessingTimeout
from sageruntime.logs import work_for
from sageruntime.metrics import ThreadCounts
from sageruntime.operator import BaseOperator, BatchOperator
from sageruntime.operator.results import Results, packets_of
from sageruntime.task.error_policy import ErrorHandler
from sageruntime.task.options import TaskOptions
from sageruntime.task.watchdog import GivenUp, Watchdog

if TYPE_CHECKING:
    from sageruntime.plugins.plugins import Plugins

Process = Callable[[Packet], Any]
"""``operator.process``, or what a task does in its place."""


class Calls(ABC):
    """Hands packets to the operator and its results to the router, in order.

    Args:
        operator: whose results they are.
        process: what is called for each packet.
        router: where the results go.
        errors: what becomes of packets that ``process`` fails on.
        limit: most results gathered before they are routed.
    """

    plugins: Plugins | None = None
    """The task's plugins, which the results of ``finish`` have to be shown, too."""

    def __init__(
        self,
        operator: BaseOperator,
        process: Process,
        router: BaseRouter,
        errors: ErrorHandler,
        limit: int,
    ) -> None:
        self.operator = operator
        self.process = process
        self.router = router
        self.errors = errors
        self.limit = limit

    @abstractmethod
    def work_on(self, packets: list[Packet]) -> int:
        """Process packets, route the results, and return how many packets failed.

        Raises:
            PacketError: a packet failed and the error policy is ``fail``.
        """

    def complete(self, result: Any) -> Any:
        """What a call of another method of the operator returned, awaited if need be."""
        if inspect.isawaitable(result):
            raise OperatorError(
                f"{type(self.operator).__qualname__} has an async method but a plain process(); "
                "make process() async, too"
            )
        return result

    def close(self) -> None:  # noqa: B027
        """Nothing will be called any more."""

    def _route(self, results: list[Packet]) -> None:
        if results:
            self.router.route_batch(results)


class PacketCalls(Calls):
    """One packet after the other."""

    def work_on(self, packets: list[Packet]) -> int:
        """See :class:`Calls`."""
        operator, process, limit = self.operator, self.process, self.limit
        results: list[Packet] = []
        failed = 0
        for packet in packets:
            try:
                result = process(packet)
                if result is None:
                    continue
                if type(result) is Packet:
                    results.append(result)
                    continue
                if type(result) is list and result and type(result[0]) is Packet:
                    results += result
                else:
                    # a list first: a generator that fails half-way leaves nothing behind
                    results += list(packets_of(result, operator))
            except GivenUp:
                failed += 1
                continue
            except Exception as error:
                again = self.errors.deal_with(packet, error, self._again)
                failed += again is None
                results += again or ()
                continue
            if len(results) >= limit:
                self._route(results)
                results = []
        self._route(results)
        return failed

    def _again(self, packet: Packet) -> list[Packet]:
        return list(packets_of(self.process(packet), self.operator))


class BatchCalls(PacketCalls):
    """A whole batch in one call. Of a batch that fails, each packet is tried by itself."""

    operator: BatchOperator

    def __init__(self, *args: Any, process_batch: Callable[[list[Packet]], Results]) -> None:
        super().__init__(*args)
        self.process_batch = process_batch

    def work_on(self, packets: list[Packet]) -> int:
        """See :class:`Calls`."""
        try:
            results = self.process_batch(packets)
            if type(results) is not list or (results and type(results[0]) is not Packet):
                results = list(packets_of(results, self.operator))
        except GivenUp:
            return len(packets)
        except Exception as error:
            if len(packets) == 1:
                again = self.errors.deal_with(packets[0], error, self._again)
                self._route(again or [])
                return int(again is None)
            return sum(self.work_on([packet]) for packet in packets)
        self._route(results)
        return 0


class ThreadCalls(Calls):
    """Several threads side by side, one for each key at a time.

    Args:
        one: how each of them calls the operator.
        threads: how many.
        name: of the threads.
        begin: called in each of them first; gives what the thread counts in.
    """

    def __init__(
        self, one: Calls, threads: int, name: str, begin: Callable[[], ThreadCounts]
    ) -> None:
        super().__init__(one.operator, one.process, one.router, one.errors, one.limit)
        self._one = one
        self._threads = threads
        self._begin = begin
        self._here = threading.local()
        self._counts: list[ThreadCounts] = []
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix=name, initializer=self._begin_lane
        )

    def work_on(self, packets: list[Packet]) -> int:
        """See :class:`Calls`."""
        lanes: list[list[Packet]] = [[] for _ in range(self._threads)]
        for turn, packet in enumerate(packets):
            key = packet.key
            lanes[(turn if key is None else hash(key)) % self._threads].append(packet)
        return sum(self._pool.map(self._work_on_lane, filter(None, lanes)))

    def close(self) -> None:
        """See :class:`Calls`."""
        for counts in self._counts:
            counts.cpu_seconds()  # as long as the thread lives
        self._pool.shutdown()

    def _begin_lane(self) -> None:
        work_for(self.router.ctx.name, self.router.ctx.stage)
        self._here.counts = self._begin()
        self._counts.append(self._here.counts)

    def _work_on_lane(self, packets: list[Packet]) -> int:
        failed = self._one.work_on(packets)
        self._here.counts.processed += len(packets) - failed
        return failed


class AsyncCalls(Calls):
    """Coroutines side by side on an event loop of the worker's thread, one for each key at a time.

    Results are routed in the order of their packets.
    """

    def __init__(self, *args: Any, concurrency: int, timeout: float | None) -> None:
        super().__init__(*args)
        self._timeout = timeout
        self._concurrency = concurrency
        self._loop = asyncio.new_event_loop()

    def complete(self, result: Any) -> Any:
        """See :class:`Calls`."""
        if inspect.isawaitable(result):
            return self._loop.run_until_complete(_awaited(result))
        return result

    def work_on(self, packets: list[Packet]) -> int:
        """See :class:`Calls`."""
        outcomes: list[list[Packet] | Exception | None] = [None] * len(packets)
        self._loop.run_until_complete(self._work_on_all(packets, outcomes))
        failed = 0
        results: list[Packet] = []
        for packet, outcome in zip(packets, outcomes):
            if isinstance(outcome, Exception):
                again = self.errors.deal_with(packet, outcome, self._again)
                failed += again is None
                results += again or ()
            else:
                results += outcome or ()
        self._route(results)
        return failed

    def close(self) -> None:
        """See :class:`Calls`."""
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _work_on_all(
        self, packets: list[Packet], outcomes: list[list[Packet] | Exception | None]
    ) -> None:
        permits = asyncio.Semaphore(self._concurrency)
        lanes: dict[Any, list[int]] = {}
        for index, packet in enumerate(packets):
            lane = ("unkeyed", index) if packet.key is None else ("key", packet.key)
            lanes.setdefault(lane, []).append(index)

        async def follow(lane: list[int]) -> None:
            for index in lane:
                async with permits:
                    try:
                        outcomes[index] = await self._call(packets[index])
                    except Exception as error:
                        outcomes[index] = error

        await asyncio.gather(*(follow(lane) for lane in lanes.values()))

    async def _call(self, packet: Packet) -> list[Packet]:
        try:
            result = await asyncio.wait_for(self.process(packet), self._timeout)
        except asyncio.TimeoutError as error:
            raise overdue(packet, self._timeout or 0.0) from error
        return list(packets_of(result, self.operator))

    def _again(self, packet: Packet) -> list[Packet]:
        return self._loop.run_until_complete(self._call(packet))


def calls_of(
    operator: BaseOperator,
    process: Process,
    router: BaseRouter,
    errors: ErrorHandler,
    options: TaskOptions,
    name: str,
    watchdog: Watchdog | None,
    begin: Callable[[], ThreadCounts],
    plugins: Plugins | None,
) -> Calls:
    """The way to call an operator that fits it and the options; see :class:`ThreadCalls`.

    Raises:
        OperatorError: an async operator cannot have worker threads.
    """
    # A task that does something else with each packet does not do it with batches.
    in_batches = isinstance(operator, BatchOperator) and process == operator.process
    if plugins is not None:
        process = plugins.around(process, operator)
    limit = options.max_buffer_size
    calls: Calls
    if inspect.iscoroutinefunction(operator.process):
        if options.worker_threads > 1:
            raise OperatorError(
                f"{name}: an async operator works in one thread, and worker_threads is "
                f"{options.worker_threads}; use max_concurrency"
            )
        calls = AsyncCalls(
            operator, process, router, errors, limit,
            concurrency=options.max_concurrency, timeout=options.processing_timeout,
        )  # fmt: skip
    elif in_batches and isinstance(operator, BatchOperator):
        batch: Callable[[list[Packet]], Results] = operator.process_batch
        if plugins is not None:
            batch = plugins.around_batch(batch, operator)
        calls = BatchCalls(
            operator, watchdog.over(process, operator) if watchdog else process, router, errors,
            limit, process_batch=watchdog.over_batch(batch, operator) if watchdog else batch,
        )  # fmt: skip
    else:
        watched = watchdog.over(process, operator) if watchdog else process
        calls = PacketCalls(operator, watched, router, errors, limit)
    if options.worker_threads > 1:
        calls = ThreadCalls(calls, options.worker_threads, name, begin)
    calls.plugins = plugins
    return calls


def overdue(packet: Packet, seconds: float) -> ProcessingTimeout:
    """The error of a packet that took too long."""
    return ProcessingTimeout(
        f"packet {packet.id} was not processed within {seconds:g} s; make the operator faster or "
        "raise processing_timeout"
    )


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
