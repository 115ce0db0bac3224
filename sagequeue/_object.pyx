# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""ObjectQueue: a queue of object references between the threads of one process.

Nothing is serialised and there is no lock: no method gives up the GIL between looking at the
ring and changing it. Who must wait enlists a lock of its own and sleeps on that, as
``threading.Condition`` does.
"""
from cpython.list cimport PyList_GET_ITEM, PyList_SET_ITEM
from cpython.ref cimport Py_DECREF, Py_INCREF

import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from types import GenericAlias

from sagequeue.errors import Empty, Full, InvalidOption, QueueClosed, ShutDown

cdef object new_lock = threading.Lock
cdef object monotonic = time.monotonic
cdef object numbers = itertools.count(1)
cdef object queues = weakref.WeakSet()
cdef double LONGEST_WAIT = threading.TIMEOUT_MAX

cdef enum:
    FIRST_SIZE = 16


cdef double deadline_of(object timeout) except? -1:
    cdef double seconds
    if timeout is None:
        return -1
    try:
        seconds = timeout
    except TypeError:
        raise InvalidOption(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        ) from None
    if not seconds >= 0:
        raise InvalidOption(f"'timeout' must be a non-negative number, not {timeout!r}")
    return monotonic() + min(seconds, LONGEST_WAIT)


cdef bint sleep(object waiters, double deadline) except -1:
    """Wait to be woken by `wake`; False when the deadline (-1: none) came first."""
    cdef double left = -1
    cdef bint woken = False
    lock = new_lock()
    lock.acquire()
    waiters.append(lock)
    try:
        if deadline >= 0:
            left = max(0, deadline - <double> monotonic())
        woken = lock.acquire(True, left)
    except BaseException:
        # Ctrl-C may come together with a wake-up, which then is another thread's
        if not forget(waiters, lock):
            wake(waiters)
        raise
    if not woken:
        forget(waiters, lock)
    return woken


cdef bint forget(object waiters, object lock):
    """Take a waiter off the list; False when it was woken and is not on it any more."""
    try:
        waiters.remove(lock)
    except ValueError:
        return False
    return True


cdef void wake(object waiters):
    if waiters:
        waiters.popleft().release()


cdef void wake_all(object waiters):
    while waiters:
        waiters.popleft().release()


cdef class ObjectQueue:
    """A FIFO queue of object references, with the interface of :class:`sagequeue.protocol.Queue`.

    Args:
        maxsize: most items waiting, exactly; 0 or less means no limit.
        name: for logs and ``repr``; made up when not given.
    """
    cdef list ring          # a power of two of places; None where there is no item
    cdef Py_ssize_t mask
    cdef Py_ssize_t head
    cdef Py_ssize_t count
    cdef Py_ssize_t limit
    cdef Py_ssize_t unfinished
    cdef bint is_shut
    cdef bint is_closed
    cdef object getters     # locks of threads that wait for an item
    cdef object putters     # ... for room
    cdef object joiners     # ... for all items to be done
    cdef public object logger
    cdef readonly str name
    cdef object __weakref__

    __class_getitem__ = classmethod(GenericAlias)

    def __init__(self, maxsize=0, *, str name=None):
        self.limit = max(0, maxsize)
        self.ring = [None] * FIRST_SIZE
        self.mask = FIRST_SIZE - 1
        self.getters = deque()
        self.putters = deque()
        self.joiners = deque()
        self.name = name if name is not None else f"{os.getpid()}-{next(numbers)}"
        self.logger = logging.getLogger("sagequeue")
        queues.add(self)

    @property
    def backend(self):
        """``"object"``: references to objects of this process."""
        return "object"

    @property
    def maxsize(self):
        """The most items the queue holds; 0 means no limit."""
        return self.limit

    @property
    def is_shutdown(self):
        """Whether the queue was shut down."""
        return self.is_shut

    @property
    def closed(self):
        """Whether the queue was closed."""
        return self.is_closed

    cdef int check_open(self) except -1:
        if self.is_closed:
            raise QueueClosed(f"queue {self.name!r} is closed; create another one")
        return 0

    # ---- the ring ----

    cdef int grow(self) except -1:
        cdef Py_ssize_t size = self.mask + 1
        cdef list ring = self.ring[self.head:] + self.ring[:self.head] + [None] * size
        self.ring = ring
        self.head = 0
        self.mask = 2 * size - 1
        return 0

    cdef int push(self, object item) except -1:
        cdef Py_ssize_t at
        if self.count > self.mask:
            self.grow()
        at = (self.head + self.count) & self.mask
        # SET_ITEM steals a reference and drops none: the list gives one of None, takes one of item
        Py_DECREF(None)
        Py_INCREF(item)
        PyList_SET_ITEM(self.ring, at, item)
        self.count += 1
        self.unfinished += 1
        return 0

    cdef object pop(self):
        cdef object item = <object> PyList_GET_ITEM(self.ring, self.head)
        Py_INCREF(None)
        PyList_SET_ITEM(self.ring, self.head, None)
        Py_DECREF(item)  # the ring's reference; `item` has its own
        self.head = (self.head + 1) & self.mask
        self.count -= 1
        return item

    # ---- put ----

    cdef int await_room(self, bint block, double deadline) except -1:
        while True:
            if self.is_shut:
                raise ShutDown(f"queue {self.name!r} was shut down; nothing more can be put")
            if self.limit <= 0 or self.count < self.limit:
                return 0
            if not block or not sleep(self.putters, deadline):
                self.check_open()
                if self.count < self.limit:
                    continue  # room came at the very last moment
                raise Full(f"queue {self.name!r} is full: {self.limit} items are waiting")
            self.check_open()

    def put(self, object item, bint block=True, object timeout=None):
        """Put an item; see :class:`sagequeue.protocol.Queue`."""
        cdef double deadline = -1
        if self.is_closed:
            self.check_open()
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if self.is_shut or 0 < self.limit <= self.count:
            self.await_room(block, deadline)
        self.push(item)
        if self.getters:
            wake(self.getters)

    def put_nowait(self, object item):
        """``put(item, block=False)``."""
        self.put(item, False)

    def put_many(self, object items, bint block=True, object timeout=None):
        """Put all items in order; see :class:`sagequeue.protocol.Queue`."""
        cdef Py_ssize_t total = 0
        cdef double deadline = -1
        self.check_open()
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if self.is_shut:
            self.await_room(block, deadline)
        try:
            for item in items:
                if self.is_shut or 0 < self.limit <= self.count:
                    self.await_room(block, deadline)
                self.push(item)
                total += 1
                if self.getters:
                    wake(self.getters)
        except (Full, ShutDown) as error:
            error.accepted = total
            raise
        return total

    # ---- get ----

    cdef int await_item(self, bint block, double deadline) except -1:
        while self.count == 0:
            if self.is_shut:
                raise ShutDown(f"queue {self.name!r} was shut down and nothing is left to get")
            if not block or not sleep(self.getters, deadline):
                self.check_open()
                if self.count > 0:
                    return 0
                raise Empty(f"queue {self.name!r} is empty")
            self.check_open()
        return 0

    def get(self, bint block=True, object timeout=None):
        """Take the oldest item; see :class:`sagequeue.protocol.Queue`."""
        cdef double deadline = -1
        if self.is_closed:
            self.check_open()
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if self.count == 0:
            self.await_item(block, deadline)
        item = self.pop()
        if self.putters:
            wake(self.putters)
        return item

    def get_nowait(self):
        """``get(block=False)``."""
        return self.get(False)

    def get_many(self, object max_items=None, bint block=True, object timeout=None):
        """Take what is there, waiting for the first; see :class:`sagequeue.protocol.Queue`."""
        cdef double deadline = -1
        cdef Py_ssize_t most
        cdef list items = []
        self.check_open()
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if max_items is not None and max_items < 1:
            raise InvalidOption(f"max_items must be at least 1 or None, not {max_items!r}")
        if self.count == 0:
            self.await_item(block, deadline)
        most = self.count if max_items is None else min(self.count, <Py_ssize_t> max_items)
        while most > 0:
            items.append(self.pop())
            most -= 1
            if self.putters:
                wake(self.putters)
        return items

    # ---- the queue as a whole ----

    def qsize(self):
        """How many items are waiting; other threads may change it at any time."""
        self.check_open()
        return self.count

    def empty(self):
        """``qsize() == 0``."""
        return self.qsize() == 0

    def full(self):
        """Whether ``maxsize`` items are waiting."""
        self.check_open()
        return 0 < self.limit <= self.count

    def task_done(self):
        """Say that one item got has been dealt with."""
        self.check_open()
        if self.unfinished <= 0:
            raise InvalidOption("task_done() called too many times")
        self.unfinished -= 1
        if self.unfinished == 0:
            wake_all(self.joiners)

    def join(self):
        """Wait until every item put has been answered by ``task_done()``."""
        self.check_open()
        while self.unfinished > 0:
            sleep(self.joiners, -1)
            self.check_open()

    def shutdown(self, bint immediate=False):
        """Refuse further puts; ``immediate`` also drops what is waiting."""
        self.check_open()
        self.is_shut = True
        if immediate:
            self.drop_all()
            wake_all(self.joiners)
        wake_all(self.getters)
        wake_all(self.putters)

    cdef int drop_all(self) except -1:
        cdef list dropped = []  # destroyed when the ring is whole again: that may run any code
        while self.count > 0:
            dropped.append(self.pop())
            if self.unfinished > 0:  # it may have been answered before anybody got it
                self.unfinished -= 1
        return 0

    def close(self):
        """End the queue for all threads: who waits gets :class:`QueueClosed`."""
        if not self.is_closed:
            self.is_closed = True
            self.drop_all()
            wake_all(self.getters)
            wake_all(self.putters)
            wake_all(self.joiners)

    def __iter__(self):
        """Yield items until the queue is shut down and drained."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        self.close()

    def __reduce__(self):
        raise TypeError(
            f"queue {self.name!r} holds references to objects of this process and cannot go to "
            'another one; create it with scope="machine"'
        )

    def __repr__(self):
        state = "closed" if self.is_closed else f"{self.count} waiting"
        return f"<ObjectQueue {self.name!r}, {state}>"

    def _forget_waiters(self):
        """In the child of a fork: the threads that waited are the parent's."""
        self.getters.clear()
        self.putters.clear()
        self.joiners.clear()


def _forget_all_waiters():
    for queue in list(queues):
        queue._forget_waiters()


os.register_at_fork(after_in_child=_forget_all_waiters)
