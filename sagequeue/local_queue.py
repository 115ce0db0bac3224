"""LocalQueue: ``queue.Queue`` with this package's interface, where nothing faster can work."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Generic, SupportsIndex, TypeVar

from sagequeue.closing import Closing
from sagequeue.counts import count_of, most_of
from sagequeue.deadline import deadline_of
from sagequeue.errors import Empty, Full, InvalidOption, QueueClosed, ShutDown

T = TypeVar("T")

_numbers = itertools.count(1)


class LocalQueue(Closing, Generic[T]):
    """A FIFO queue between threads over the standard library's ``queue.Queue``.

    It uses that class for its storage, lock and conditions, and adds batches, close, and the
    shutdown of Python 3.13 on every version.
    """

    backend = "local"

    def __init__(self, maxsize: SupportsIndex = 0, *, name: str | None = None) -> None:
        self.name = name if name is not None else f"{os.getpid()}-local-{next(_numbers)}"
        self.logger = logging.getLogger("sagequeue")
        self.closed = False
        self.is_shutdown = False
        self._wakeup_wanted_in: int | None = None  # the process, not its forked children
        self._queue: queue.Queue[T] = queue.Queue(max(0, count_of("maxsize", maxsize)))

    @property
    def maxsize(self) -> int:
        """The most items the queue holds; 0 means no limit."""
        return self._queue.maxsize

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item; see :class:`sagequeue.protocol.Queue`."""
        self.put_many((item,), block, timeout)

    def put_nowait(self, item: T) -> None:
        """``put(item, block=False)``."""
        self.put(item, block=False)

    def put_many(self, items: Iterable[T], block: bool = True, timeout: float | None = None) -> int:
        """Put all items in order; see :class:`sagequeue.protocol.Queue`."""
        deadline = deadline_of(block, timeout)
        total = 0
        if self.is_shutdown:
            self._check_may_put(total)
        for item in items:
            with self._queue.not_full:
                while self._check_may_put(total) and self._is_full():
                    if not _wait(self._queue.not_full, deadline) and self._is_full():
                        raise Full(
                            f"queue {self.name!r} is full: {self.maxsize} items are waiting", total
                        )
                self._queue._put(item)
                self._queue.unfinished_tasks += 1
                self._queue.not_empty.notify()
            total += 1
        return total

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the oldest item; see :class:`sagequeue.protocol.Queue`."""
        return self.get_many(1, block, timeout)[0]

    def get_nowait(self) -> T:
        """``get(block=False)``."""
        return self.get(block=False)

    def get_many(
        self,
        max_items: SupportsIndex | None = None,
        block: bool = True,
        timeout: float | None = None,
    ) -> list[T]:
        """Take what is there, waiting for the first; see :class:`sagequeue.protocol.Queue`."""
        most = None if max_items is None else most_of(max_items)
        deadline = deadline_of(block, timeout)
        with self._queue.not_empty:
            self._check_open()
            while not self._queue._qsize():
                if self.is_shutdown:
                    raise ShutDown(f"queue {self.name!r} was shut down and nothing is left to get")
                if block and self._wakeup_wanted_in == os.getpid():
                    self._wakeup_wanted_in = None
                    raise Empty(f"queue {self.name!r}: wakeup() was called before an item came")
                if not _wait(self._queue.not_empty, deadline) and not self._queue._qsize():
                    self._check_open()
                    raise Empty(f"queue {self.name!r} is empty")
                self._check_open()
            count = self._queue._qsize()
            items = [self._queue._get() for _ in range(min(count, most or count))]
            self._queue.not_full.notify(len(items))
            return items

    def wakeup(self) -> None:
        """End the wait of a take with ``Empty``; see :class:`sagequeue.protocol.Queue`."""
        with self._queue.mutex:
            self._wakeup_wanted_in = os.getpid()
            self._queue.not_empty.notify_all()

    def qsize(self) -> int:
        """How many items are waiting; other threads may change it at any time."""
        self._check_open()
        return self._queue.qsize()

    def empty(self) -> bool:
        """``qsize() == 0``."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether ``maxsize`` items are waiting."""
        self._check_open()
        return self._is_full()

    def task_done(self) -> None:
        """Say that one item got has been dealt with."""
        self._check_open()
        with self._queue.all_tasks_done:
            if self._queue.unfinished_tasks <= 0:
                raise InvalidOption("task_done() called too many times")
            self._queue.unfinished_tasks -= 1
            if self._queue.unfinished_tasks == 0:
                self._queue.all_tasks_done.notify_all()

    def join(self) -> None:
        """Wait until every item put has been answered by ``task_done()``."""
        self._check_open()
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks:
                self._queue.all_tasks_done.wait()
                self._check_open()

    def shutdown(self, immediate: bool = False) -> None:
        """Refuse further puts; ``immediate`` also drops what is waiting."""
        self._check_open()
        dropped: list[T] = []  # destroyed after the lock is given back, which may run any code
        with self._queue.mutex:
            self.is_shutdown = True
            if immediate:
                dropped = self._take_all()
            self._wake_all()
        del dropped

    def close(self) -> None:
        """End the queue for all threads: who waits gets :class:`QueueClosed`."""
        dropped: list[T] = []
        with self._queue.mutex:
            if not self.closed:
                self.closed = True
                dropped = self._take_all()
                self._wake_all()
        del dropped

    def __iter__(self) -> Iterator[T]:
        """Yield items until the queue is shut down and drained."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item

    def __reduce__(self) -> str:
        raise TypeError(
            f"queue {self.name!r} belongs to this process and cannot go to another one; "
            'create it with scope="machine"'
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._queue.qsize()} waiting"
        return f"<LocalQueue {self.name!r}, {state}>"

    def _is_full(self) -> bool:
        return 0 < self.maxsize <= self._queue._qsize()

    def _check_open(self) -> None:
        if self.closed:
            raise QueueClosed(f"queue {self.name!r} is closed; create another one")

    def _check_may_put(self, accepted: int) -> bool:
        self._check_open()
        if self.is_shutdown:
            raise ShutDown(f"queue {self.name!r} was shut down; nothing more can be put", accepted)
        return True

    def _take_all(self) -> list[T]:
        items = [self._queue._get() for _ in range(self._queue._qsize())]
        # an item may have been answered before anybody got it
        self._queue.unfinished_tasks = max(0, self._queue.unfinished_tasks - len(items))
        return items

    def _wake_all(self) -> None:
        for condition in (self._queue.not_empty, self._queue.not_full, self._queue.all_tasks_done):
            condition.notify_all()


def _wait(condition: threading.Condition, deadline: float | None) -> bool:
    if deadline is None:
        return condition.wait()
    left = deadline - time.monotonic()
    return left > 0 and condition.wait(left)
