"""The worker loop: the one thread that owns a task's operator, counts and order of events.

It is the same in every host. Control messages travel in the data's order.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

from sagequeue.errors import DecodeError, Empty, ShutDown
from sagequeue.protocol import Queue
from sageruntime.communication.router import BaseRouter, Message, Packet, PacketBatch, StopSignal
from sageruntime.errors import OperatorError, TaskCancelled
from sageruntime.metrics import TaskMetrics
from sageruntime.operator import BaseOperator, SinkOperator, SourceOperator
from sageruntime.operator.base_operator import Results
from sageruntime.task.error_policy import ErrorHandler
from sageruntime.task.options import TaskOptions

# Batches taken from the input queue at once.
_TAKE = 8

# How long a source's packets may wait for a batch to fill.
_SOURCE_FLUSH_SECONDS = 0.02


class Worker(ABC):
    """Runs an operator from open to close.

    Args:
        name: the task's name, which its StopSignal carries.
        operator: what to do with the packets.
        router: where the results go.
        metrics: where to count.
        errors: what to do with packets the operator fails on.
        options: the task's options.
    """

    def __init__(
        self,
        name: str,
        operator: BaseOperator,
        router: BaseRouter,
        metrics: TaskMetrics,
        errors: ErrorHandler,
        options: TaskOptions,
    ) -> None:
        self.name = name
        self.operator = operator
        self.router = router
        self.metrics = metrics
        self.errors = errors
        self.options = options
        self.total: int | None = None
        self._cancelled = False
        router.on_reject = errors.handle

    def run(self, draining: Callable[[], None]) -> Any:
        """Work until the input ends, and return the sink's result.

        ``draining`` is called when the input has ended, before the last results are sent.

        Raises:
            TaskCancelled: :meth:`cancel` was called.
            Exception: the operator's own, or a :class:`RuntimeTaskError`.
        """
        operator = self.operator
        result = None
        try:
            operator.open()
            self._work()
            draining()
            self._send_all(packets_of(operator.finish(), operator))
            self.router.flush()
            self._check_cancelled()
            if isinstance(operator, SinkOperator):
                result = operator.result()
        finally:
            operator.close()
            self.errors.summarise()
        self.router.stop()
        return result

    def cancel(self) -> None:
        """Stop after the packet in hand; what waits is not processed."""
        self._cancelled = True
        self.router.cancel()

    @abstractmethod
    def drain(self) -> None:
        """End the input here: work off what is there, then finish."""

    @abstractmethod
    def _work(self) -> None:
        """Process the input to its end."""

    def process(self, packets: list[Packet]) -> int:
        """Let the operator handle packets, route the results, and return how many it failed on.

        Raises:
            PacketError: the error policy is ``fail``.
        """
        operator = self.operator
        process = operator.process
        limit = self.options.max_buffer_size
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
                # a list first: a generator that fails half-way leaves nothing behind
                results += list(packets_of(result, operator))
            except Exception as error:
                failed += 1
                self.errors.handle(packet, error)
                continue
            if len(results) >= limit:
                self.router.route_batch(results)
                results = []
        if results:
            self.router.route_batch(results)
        return failed

    def _send_all(self, packets: Iterator[Packet]) -> None:
        while part := list(islice(packets, self.options.max_buffer_size)):
            self._check_cancelled()
            self.router.route_batch(part)

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise TaskCancelled(f"{self.name} was stopped without draining")


class MailboxWorker(Worker):
    """Works on what comes into an input queue, until ``upstreams`` StopSignals have come."""

    def __init__(
        self,
        name: str,
        operator: BaseOperator,
        router: BaseRouter,
        metrics: TaskMetrics,
        errors: ErrorHandler,
        options: TaskOptions,
        inbox: Queue[Message],
        upstreams: int,
    ) -> None:
        super().__init__(name, operator, router, metrics, errors, options)
        self._inbox = inbox
        self._upstreams = upstreams
        self._ended: set[str] = set()
        self._lanes: ThreadPoolExecutor | None = None

    def drain(self) -> None:
        """See :class:`Worker`."""
        self._inbox.shutdown()

    def cancel(self) -> None:
        """See :class:`Worker`."""
        super().cancel()
        self._inbox.shutdown(immediate=True)

    def _work(self) -> None:
        threads = self.options.worker_threads
        if threads == 1:
            self._work_off()
            return
        with ThreadPoolExecutor(threads, thread_name_prefix=self.name) as self._lanes:
            self._work_off()

    def _work_off(self) -> None:
        while True:
            try:
                messages = self._take()
            except ShutDown:
                self._check_cancelled()
                return
            except DecodeError as error:
                self.errors.handle(None, error)
                continue
            for message in messages:
                self._check_cancelled()
                if type(message) is PacketBatch:
                    self._handle(message)
                elif isinstance(message, StopSignal) and self._is_last(message):
                    return

    def _take(self) -> list[Message]:
        """Batches from the queue; before waiting for them, everything gathered is sent."""
        try:
            return self._inbox.get_many(_TAKE, block=False)
        except Empty:
            self.router.flush()
            return self._inbox.get_many(_TAKE)

    def _is_last(self, signal: StopSignal) -> bool:
        self._ended.add(signal.sender)
        return len(self._ended) >= self._upstreams

    def _handle(self, batch: PacketBatch) -> None:
        packets = batch.packets
        if self._lanes is None:
            failed = self.process(packets)
        else:
            lanes = _deal_to_lanes(packets, self.options.worker_threads)
            failed = sum(self._lanes.map(self.process, lanes))
        self.metrics.processed += len(packets) - failed
        self.metrics.latency.record(time.time_ns() - batch.sent_at, len(packets))


class SourceWorker(Worker):
    """Reads a source and sends what it yields, in full batches or after a short while.

    Args:
        fail: ends the task with an error that came up while the source was reading.
    """

    def __init__(
        self,
        name: str,
        operator: SourceOperator,
        router: BaseRouter,
        metrics: TaskMetrics,
        errors: ErrorHandler,
        options: TaskOptions,
        fail: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name, operator, router, metrics, errors, options)
        self._source = operator
        self._fail = fail
        self._stopping = False
        self._read_ended = threading.Event()
        # One thread appends, two take away: only taking away and sending needs the lock.
        self._gathered: deque[Packet] = deque()
        self._sending = threading.Lock()

    def drain(self) -> None:
        """See :class:`Worker`."""
        self._stopping = True

    def cancel(self) -> None:
        """See :class:`Worker`."""
        super().cancel()
        self._stopping = True

    def _work(self) -> None:
        self.total = self._source.total()
        flusher = threading.Thread(target=self._flush_often, name=f"{self.name}-flush", daemon=True)
        flusher.start()
        try:
            self._read()
        finally:
            self._read_ended.set()
            flusher.join()

    def _read(self) -> None:
        gathered = self._gathered
        size = self.options.batch_size
        for payload in self._source.read():
            gathered.append(Packet(payload))
            if len(gathered) >= size:
                self._send_gathered()
            if self._stopping:
                break
        self._check_cancelled()
        self._send_gathered()

    def _send_gathered(self) -> None:
        gathered = self._gathered
        with self._sending:
            packets = [gathered.popleft() for _ in range(len(gathered))]
            self.metrics.processed += len(packets)
            self.router.route_batch(packets)

    def _flush_often(self) -> None:
        try:
            while not self._read_ended.wait(_SOURCE_FLUSH_SECONDS):
                self._send_gathered()
                self.router.flush()
        except Exception as error:
            self._fail(error)


def packets_of(results: Results, operator: BaseOperator) -> Iterator[Packet]:
    """What ``process`` or ``finish`` returned, one packet after the other.

    Raises:
        OperatorError: it is neither a packet nor packets.
    """
    if results is None:
        return iter(())
    if isinstance(results, Packet):
        return iter((results,))
    if isinstance(results, Iterable):
        packets = iter(results)
        try:
            first = next(packets)
        except StopIteration:
            return iter(())
        if isinstance(first, Packet):
            return chain((first,), packets)
        results = first
    raise OperatorError(
        f"{type(operator).__qualname__} returned {type(results).__qualname__} where a Packet is "
        "expected; return a Packet, an iterable of Packets, or None"
    )


def _deal_to_lanes(packets: list[Packet], lanes: int) -> list[list[Packet]]:
    """One list for each worker thread; equal keys in the same, in order."""
    dealt: list[list[Packet]] = [[] for _ in range(lanes)]
    for turn, packet in enumerate(packets):
        key = packet.key
        dealt[(turn if key is None else hash(key)) % lanes].append(packet)
    return [lane for lane in dealt if lane]
