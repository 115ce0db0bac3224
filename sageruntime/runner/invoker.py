"""Invokers: the ways a runner hands packets to an operator."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from sageruntime.communication.router import Packet
from sageruntime.core.policies import RetryPolicy
from sageruntime.errors import OperatorError
from sageruntime.operator import BaseOperator
from sageruntime.operator.results import Results, list_results

T = TypeVar("T")

Process = Callable[[Packet], Any]
"""``operator.process``, or what a task does in its place."""

ProcessBatch = Callable[[list[Packet]], Results]
"""``operator.process_batch``, or what a task does in its place."""

Outcome = list[Packet] | Exception
"""The results of a packet, or how it failed for good."""

Outcomes = list[Outcome]
"""Those of several packets, in order; a batch that went well has all its results at its first."""


class Retries:
    """Tries a packet again, as a policy says.

    Args:
        policy: how often and when; None for never.
        wait: waits for some seconds, less when the task is to stop; returns whether it is to.
    """

    def __init__(self, policy: RetryPolicy | None, wait: Callable[[float], bool]) -> None:
        self.policy = policy
        self.wait = wait
        self.count = 0
        """How often any packet was tried again."""

    def again(self, call: Callable[[], list[Packet]], error: Exception) -> Outcome:
        """The outcome of a packet that failed with ``error`` the first time."""
        policy = self.policy
        if policy is None:
            return error
        for failures in range(1, policy.attempts):
            if self.wait(policy.delay(failures)):
                return error
            self.count += 1
            try:
                return call()
            except Exception as last:
                error = last
        return error


class OperatorCalls:
    """How one operator is called: packet by packet, or in batches.

    Args:
        operator: the operator.
        process: what is called for each packet.
        process_batch: what is called for each batch; None to call ``process`` instead.
        retries: tries again what failed.
    """

    def __init__(
        self,
        operator: BaseOperator,
        process: Process,
        process_batch: ProcessBatch | None,
        retries: Retries,
    ) -> None:
        self.operator = operator
        self.process = process
        self.process_batch = process_batch
        self.retries = retries

    def __call__(self, packets: list[Packet]) -> Outcomes:
        """Process packets; never raises an ``Exception``."""
        results = self.together(packets)
        if results is not None:
            return [results, *[[]] * (len(packets) - 1)]
        return [self.one(packet) for packet in packets]

    def together(self, packets: list[Packet]) -> list[Packet] | None:
        """The results of packets in one call; None when each is to be processed by itself."""
        if self.process_batch is None or len(packets) == 1:
            return None
        try:
            return list_results(self.process_batch(packets), self.operator)
        except Exception:  # each of them is tried by itself, and its own error told
            return None

    def one(self, packet: Packet) -> Outcome:
        """The outcome of a packet by itself; never raises an ``Exception``."""
        try:
            return self._results(packet)
        except Exception as error:
            return self.again(packet, error)

    def again(self, packet: Packet, error: Exception) -> Outcome:
        """The outcome of a packet that failed with ``error`` the first time."""
        return self.retries.again(lambda: self._results(packet), error)

    def _results(self, packet: Packet) -> list[Packet]:
        if self.process_batch is not None:
            return list_results(self.process_batch([packet]), self.operator)
        return list_results(self.process(packet), self.operator)


class DirectInvoker:
    """Calls the operator in the runner's own thread.

    Args:
        calls: how it is called.
        route: takes results, in order.
        fail: takes a packet that failed for good.
        limit: most results gathered before they are routed.
    """

    def __init__(
        self,
        calls: OperatorCalls,
        route: Callable[[list[Packet]], None],
        fail: Callable[[Packet, Exception], None],
        limit: int,
    ) -> None:
        self.calls = calls
        self._route = route
        self._fail = fail
        self._limit = limit

    def invoke(self, packets: list[Packet]) -> int:
        """Process packets, route the results, and return how many packets failed.

        Raises:
            PacketError: a packet failed and the error policy is ``fail``.
        """
        if self.calls.process_batch is not None:
            return self._invoke_batch(packets)
        operator, process, limit = self.calls.operator, self.calls.process, self._limit
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
                    results += list_results(result, operator)
            except Exception as error:
                outcome = self.calls.again(packet, error)
                if isinstance(outcome, Exception):
                    failed += 1
                    self._fail(packet, outcome)
                else:
                    results += outcome
                continue
            if len(results) >= limit:
                self._route(results)
                results = []
        if results:
            self._route(results)
        return failed

    def _invoke_batch(self, packets: list[Packet]) -> int:
        results = self.calls.together(packets)
        if results is not None:
            self._route(results)
            return 0
        failed = 0
        for packet in packets:
            outcome = self.calls.one(packet)
            if isinstance(outcome, Exception):
                failed += 1
                self._fail(packet, outcome)
            else:
                self._route(outcome)
        return failed


class Work:
    """Packets that a concurrent invoker is processing.

    The runner alone reads and writes it, but for `outcomes`, which the invoker has written before
    it says that the work is done.

    Attributes:
        packets: the packets.
        outcomes: theirs.
        is_given_up: whether nobody waits for it any more.
    """

    __slots__ = ("indices", "is_given_up", "outcomes", "packets", "pending")

    def __init__(self, pending: Pending, indices: list[int]) -> None:
        self.pending = pending
        self.indices = indices
        self.packets = [pending.packets[index] for index in indices]
        self.outcomes: Outcomes = []
        self.is_given_up = False


class Pending:
    """A delivery whose packets are being processed; several pieces of work make it up.

    Attributes:
        delivery: what it came in.
        packets: its packets.
        outcomes: theirs, as far as they are known.
        left: how many are not.
        waiter: somebody who waits for it, and to whom its error is told.
    """

    __slots__ = ("delivery", "entered_at", "left", "outcomes", "packets", "waiter")

    def __init__(
        self, delivery: Any, packets: list[Packet], waiter: Future[None] | None = None
    ) -> None:
        self.waiter = waiter
        self.delivery = delivery
        self.packets = packets
        self.entered_at = packets[0].timestamp
        self.outcomes: list[Outcome | None] = [None] * len(packets)
        self.left = len(packets)

    def settle(self, work: Work) -> None:
        """Take over the outcomes of a piece of work."""
        for index, outcome in zip(work.indices, work.outcomes):
            self.outcomes[index] = outcome
        self.left -= len(work.indices)


class ConcurrentInvoker(ABC):
    """Calls the operator in other threads, several packets at a time."""

    @abstractmethod
    def submit(self, pending: Pending) -> None:
        """Begin to process a delivery's packets; packets of equal key one after the other."""

    @abstractmethod
    def call(self, function: Callable[[], Any]) -> Any:
        """What a function returns that calls another method of the operator, where it belongs."""

    def overdue(self) -> list[Work]:
        """What is worked on for longer than it may take; it is given up."""
        return []

    @abstractmethod
    def drop_waiting(self) -> None:
        """Drop what has not begun, and wait for the calls of ``process`` that have."""

    @abstractmethod
    def close(self) -> None:
        """End the threads."""


def call_plainly(operator: BaseOperator, function: Callable[[], Any]) -> Any:
    """What a call of another method of an operator with a plain ``process`` returns."""
    result = function()
    if inspect.isawaitable(result):
        raise OperatorError(
            f"{type(operator).__qualname__} has an async method but a plain process(); "
            "make process() async, too"
        )
    return result


def lane_of(key: Any, lanes: int, turn: int) -> int:
    """Which of some lanes takes a packet: equal keys the same one, without a key each in turn."""
    if key is None:
        return turn % lanes
    try:
        return hash(key) % lanes
    except TypeError:  # keys that cannot be hashed have one lane together
        return 0
