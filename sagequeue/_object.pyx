# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""ObjectQueue: a queue of object references between the threads of one process.

Nothing is serialised and there is no lock: between looking at the ring and changing it no method
gives up the GIL or runs Python code, which could use the queue itself. Python code may run wherever
a list or a lock is made (up to Python 3.11 a garbage collection may start there, and call any
``__del__``), an argument is converted, or an item is destroyed. So whatever needs memory takes it
first and then looks at the ring, and items are destroyed last.

Who must wait enlists a lock of its own and sleeps on that, as ``threading.Condition`` does.
"""
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from types import GenericAlias

from sagequeue.counts import count_of, most_of
from sagequeue.errors import Empty, Full, InvalidOption, QueueClosed, QueueError, ShutDown

cdef extern from "Python.h":
    PyObject *PyList_GET_ITEM(PyObject *ring, Py_ssize_t i)
    void PyList_SET_ITEM(PyObject *ring, Py_ssize_t i, PyObject *item)
    Py_ssize_t PY_SSIZE_T_MAX

cdef object new_lock = threading.Lock
cdef object monotonic = time.monotonic
cdef object numbers = itertools.count(1)
cdef object queues = weakref.WeakValueDictionary()  # by id: a subclass may be unhashable
cdef double LONGEST_WAIT = threading.TIMEOUT_MAX

cdef enum:
    FIRST_SIZE = 16


cdef double deadline_of(object timeout) except? -1:
    cdef double seconds
    if timeout is None:
        return -1
    try:
        seconds = timeout
    except OverflowError:  # a whole number that no float holds
        seconds = LONGEST_WAIT if timeout > 0 else -1
    except (TypeError, ValueError):
        raise InvalidOption(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        ) from None
    if not seconds >= 0:
        raise InvalidOption(f"'timeout' must be a non-negative number, not {timeout!r}")
    return monotonic() + min(seconds, LONGEST_WAIT)


cdef bint forget(object waiters, object lock):
    """Take a waiter off the list; False when it was woken and is not on it any more."""
    try:
        waiters.remove(lock)
    except ValueError:
        return False
    return True


cdef int wake(object waiters) except -1:
    if waiters:
        waiters.popleft().release()
    return 0


cdef int wake_all(object waiters) except -1:
    while waiters:
        waiters.popleft().release()
    return 0


cdef inline void exchange(list some, Py_ssize_t i, list others, Py_ssize_t j) noexcept:
    """Swap two lists' items, without counting references."""
    cdef PyObject *item = PyList_GET_ITEM(<PyObject *> some, i)
    PyList_SET_ITEM(<PyObject *> some, i, PyList_GET_ITEM(<PyObject *> others, j))
    PyList_SET_ITEM(<PyObject *> others, j, item)


cdef class ObjectQueue

# What a thread waits for, or the end of the queue, which it must not sleep through.
ctypedef bint (*Condition)(ObjectQueue queue) noexcept


cdef bint has_item(ObjectQueue queue) noexcept:
    return queue.count > 0 or queue.is_shut or queue.is_closed or queue.wakeup_wanted


cdef bint has_room(ObjectQueue queue) noexcept:
    return not queue.is_full() or queue.is_shut or queue.is_closed


cdef bint all_done(ObjectQueue queue) noexcept:
    return queue.unfinished <= 0 or queue.is_closed


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
    cdef bint wakeup_wanted
    cdef object getters     # locks of threads that wait for an item
    cdef object putters     # ... for room
    cdef object joiners     # ... for all items to be done
    cdef public object logger
    cdef readonly str name
    cdef object __weakref__

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self):
        # not in __init__: a subclass may use the queue before it calls that, or never call it
        self.ring = [None] * FIRST_SIZE
        self.mask = FIRST_SIZE - 1
        self.getters = deque()
        self.putters = deque()
        self.joiners = deque()
        self.name = f"{os.getpid()}-{next(numbers)}"
        self.logger = logging.getLogger("sagequeue")
        queues[id(self)] = self

    def __init__(self, maxsize=0, *, str name=None):
        self.limit = max(0, count_of("maxsize", maxsize))
        if name is not None:
            self.name = name

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

    cdef inline bint is_full(self) noexcept:
        return 0 < self.limit <= self.count

    cdef bint await_condition(self, Condition is_met, object waiters, double deadline) except -1:
        """Wait until it is met; False when the deadline (-1: none) came first."""
        cdef double left = -1
        cdef bint woken
        while not is_met(self):
            if deadline >= 0:
                left = deadline - <double> monotonic()
                if left <= 0:
                    return False
            lock = new_lock()
            lock.acquire()
            waiters.append(lock)
            woken = False
            try:
                # it may have been met while the lock was made; from here on we would be woken
                if not is_met(self):
                    woken = lock.acquire(True, left)
            except BaseException:
                # Ctrl-C may come together with a wake-up, which then is another thread's
                if not forget(waiters, lock):
                    wake(waiters)
                raise
            if not woken:
                forget(waiters, lock)
        return True

    # ---- the ring ----

    cdef int grow(self) except -1:
        cdef Py_ssize_t size = self.mask + 1
        cdef Py_ssize_t i
        cdef list larger = [None] * (2 * size)
        cdef list ring = self.ring  # destroyed at the end
        if self.mask != size - 1 or self.count < size:
            return 0  # code that ran while the list was made has used the queue
        for i in range(size):
            exchange(larger, i, ring, (self.head + i) & self.mask)
        self.ring = larger
        self.head = 0
        self.mask = 2 * size - 1
        return 0

    cdef inline bint has_place(self) noexcept:
        """Whether an item can be pushed at once."""
        return not (self.is_shut or self.is_closed or self.is_full() or self.count > self.mask)

    cdef void push(self, object item) noexcept:
        cdef Py_ssize_t at = (self.head + self.count) & self.mask
        # SET_ITEM steals a reference and drops none: the list gives one of None, takes one of item
        Py_DECREF(None)
        Py_INCREF(item)
        PyList_SET_ITEM(<PyObject *> self.ring, at, <PyObject *> item)
        self.count += 1
        self.unfinished += 1

    cdef object pop(self):
        cdef object item = <object> PyList_GET_ITEM(<PyObject *> self.ring, self.head)
        Py_INCREF(None)
        PyList_SET_ITEM(<PyObject *> self.ring, self.head, <PyObject *> None)
        Py_DECREF(item)  # the ring's reference; `item` has its own
        self.head = (self.head + 1) & self.mask
        self.count -= 1
        return item

    cdef list take_all(self):
        """Empty the queue; what was in it is destroyed with the list, which may run any code."""
        cdef list empty = [None] * FIRST_SIZE
        cdef list ring = self.ring
        self.ring = empty
        self.mask = FIRST_SIZE - 1
        self.head = 0
        # an item may have been answered before anybody got it
        self.unfinished = max(0, self.unfinished - self.count)
        self.count = 0
        return ring

    # ---- put ----

    cdef int await_place(self, bint block, double deadline) except -1:
        cdef bint in_time = block
        while not self.has_place():
            self.check_open()
            if self.is_shut:
                raise ShutDown(f"queue {self.name!r} was shut down; nothing more can be put")
            if not self.is_full():
                self.grow()
            elif in_time:
                in_time = self.await_condition(has_room, self.putters, deadline)
            else:
                raise Full(f"queue {self.name!r} is full: {self.limit} items are waiting")
        return 0

    def put(self, object item, bint block=True, object timeout=None):
        """Put an item; see :class:`sagequeue.protocol.Queue`."""
        cdef double deadline = -1
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if not self.has_place():
            self.await_place(block, deadline)
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
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if self.is_shut or self.is_closed:
            self.await_place(block, deadline)
        try:
            for item in items:
                if not self.has_place():
                    self.await_place(block, deadline)
                self.push(item)
                total += 1
                if self.getters:
                    wake(self.getters)
        except QueueError as error:
            error.accepted = total
            raise
        return total

    # ---- get ----

    cdef int await_item(self, bint block, double deadline) except -1:
        cdef bint in_time = block
        while self.count == 0:
            self.check_open()
            if self.is_shut:
                raise ShutDown(f"queue {self.name!r} was shut down and nothing is left to get")
            if block and self.wakeup_wanted:
                self.wakeup_wanted = False
                raise Empty(f"queue {self.name!r}: wakeup() was called before an item came")
            if not in_time:
                raise Empty(f"queue {self.name!r} is empty")
            in_time = self.await_condition(has_item, self.getters, deadline)
        return 0

    def get(self, bint block=True, object timeout=None):
        """Take the oldest item; see :class:`sagequeue.protocol.Queue`."""
        cdef double deadline = -1
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
        cdef Py_ssize_t most = PY_SSIZE_T_MAX
        cdef Py_ssize_t taken = 0
        cdef list items = []
        if max_items is not None:
            most = most_of(max_items)
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        while self.count == 0 or len(items) < min(self.count, most):
            if self.count == 0:
                self.await_item(block, deadline)
            items = [None] * min(self.count, most)
        while taken < len(items) and self.count > 0:
            exchange(items, taken, self.ring, self.head)
            self.head = (self.head + 1) & self.mask
            self.count -= 1
            taken += 1
        for _ in range(taken):
            if not self.putters:
                break
            wake(self.putters)
        del items[taken:]
        return items

    def wakeup(self):
        """End the wait of a take with :class:`Empty`; see :class:`sagequeue.protocol.Queue`."""
        self.wakeup_wanted = True
        wake_all(self.getters)

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
        return self.is_full()

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
            self.await_condition(all_done, self.joiners, -1)
            self.check_open()

    def shutdown(self, bint immediate=False):
        """Refuse further puts; ``immediate`` also drops what is waiting."""
        cdef list dropped
        self.check_open()
        if immediate:
            dropped = self.take_all()  # destroyed at the end
        self.is_shut = True
        if immediate:
            wake_all(self.joiners)
        wake_all(self.getters)
        wake_all(self.putters)

    def close(self):
        """End the queue for all threads: who waits gets :class:`QueueClosed`."""
        cdef list dropped
        if not self.is_closed:
            dropped = self.take_all()  # destroyed at the end
            self.is_closed = True
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
        self.wakeup_wanted = False
        self.getters.clear()
        self.putters.clear()
        self.joiners.clear()


def _forget_all_waiters():
    for queue in list(queues.values()):
        queue._forget_waiters()


os.register_at_fork(after_in_child=_forget_all_waiters)
