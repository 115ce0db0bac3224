"""Lanes: threads that call an operator side by side, packets of equal key in one of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple

from sageruntime.core.futures import as_exception, settle
from sageruntime.metrics import ThreadCounts
from sageruntime.runner.invoker import (
    ConcurrentInvoker,
    OperatorCalls,
    Pending,
    Work,
    call_plainly,
    lane_of,
)


class _Call(NamedTuple):
    """A function to be called in a lane."""

    function: Callable[[], Any]
    future: Future[Any]


class _Lane:
    """One thread. It knows since when it has been working on what."""

    def __init__(
        self,
        name: str,
        calls: OperatorCalls,
        begin: Callable[[], ThreadCounts],
        done: Callable[[Work], None],
    ) -> None:
        self.tasks: SimpleQueue[Work | _Call | None] = SimpleQueue()
        self.current: tuple[Work, float] | None = None
        """The work in hand, and when it was begun."""
        self._calls = calls
        self._begin = begin
        self._done = done
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        counts = self._begin()
        while (task := self.tasks.get()) is not None:
            if isinstance(task, _Call):
                settle(task.future, task.function)
                continue
            self.current = task, time.monotonic()
            try:
                task.outcomes = self._calls(task.packets)
            except BaseException as error:  # SystemExit, or an exception of a test's
                task.outcomes = [as_exception(error)] * len(task.packets)
            counts.processed += sum(not isinstance(one, Exception) for one in task.outcomes)
            self.current = None
            self._done(task)
        counts.end()


class LaneInvoker(ConcurrentInvoker):
    """Calls the operator in some threads.

    With a single one, all other methods of the operator are called there, too.

    Args:
        calls: how the operator is called.
        threads: how many lanes.
        name: of the threads, which are numbered.
        begin: called first in each; gives what the thread counts in.
        done: told of work that is done; any thread may call it.
        timeout: seconds that a call may take for each packet; None is no limit.
    """

    def __init__(
        self,
        calls: OperatorCalls,
        threads: int,
        name: str,
        begin: Callable[[], ThreadCounts],
        done: Callable[[Work], None],
        timeout: float | None,
    ) -> None:
        self._operator = calls.operator
        self._in_batches = calls.process_batch is not None
        self._timeout = timeout
        self._lanes = [_Lane(f"{name}_{n}", calls, begin, done) for n in range(threads)]
        self._turn = 0

    def submit(self, pending: Pending) -> None:
        lanes: dict[int, list[int]] = {}
        for index, packet in enumerate(pending.packets):
            lane = lane_of(packet.key, len(self._lanes), self._turn)
            self._turn += packet.key is None
            lanes.setdefault(lane, []).append(index)
        for lane, indices in lanes.items():
            # under a time limit each call is work of its own, for one may be given up
            parts = (
                [indices]
                if self._timeout is None or self._in_batches
                else [[index] for index in indices]
            )
            for part in parts:
                self._lanes[lane].tasks.put(Work(pending, part))

    def call(self, function: Callable[[], Any]) -> Any:
        if len(self._lanes) > 1:
            return call_plainly(self._operator, function)
        future: Future[Any] = Future()
        self._lanes[0].tasks.put(_Call(lambda: call_plainly(self._operator, function), future))
        return future.result()

    def overdue(self) -> list[Work]:
        if self._timeout is None:
            return []
        now = time.monotonic()
        late: list[Work] = []
        for lane in self._lanes:
            current = lane.current
            if current is None or current[0].is_given_up:
                continue
            work, begun = current
            if now - begun > self._timeout * len(work.packets):
                work.is_given_up = True
                late.append(work)
        return late

    def drop_waiting(self) -> None:
        barriers: list[Future[None]] = []
        for lane in self._lanes:
            while not lane.tasks.empty():
                lane.tasks.get()
            barriers.append(Future())
            lane.tasks.put(_Call(lambda: None, barriers[-1]))
        for barrier in barriers:
            barrier.result()

    def close(self) -> None:
        for lane in self._lanes:
            lane.tasks.put(None)
        for lane in self._lanes:
            lane.thread.join()
