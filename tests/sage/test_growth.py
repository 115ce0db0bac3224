"""A call leaves nothing behind: no reference, no memory, no descriptor, no mapping, no segment.

Each row of the table is something a user does with a queue, done again and again: every operation
with every kind of item, and every way in which one fails.

References are counted object by object. `sys.gettotalrefcount()` of an interpreter with assertions
does not count those that numpy and msgspec take, which are built without.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
import pytest

from sagequeue import (
    CorruptSegment,
    DecodeError,
    Empty,
    EncodeError,
    ForeignSegment,
    Full,
    IncompatibleSegment,
    InvalidOption,
    LeaseEnded,
    QueueClosed,
    QueueError,
    QueueExists,
    QueueNotFound,
    RoleConflict,
    SageQueue,
    ShutDown,
    TooManyParticipants,
    inspect_queue,
    list_queues,
    prune_queues,
    register_codec,
    remove_queue,
)

Queue = SageQueue[Any]
Operation = Callable[[Queue], object]
E = TypeVar("E", bound=BaseException)

CALLS = 40  # in a round
ROUNDS = 50


# ---- what could grow ----


def ones(count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """An array; np.ones() loses a reference to its dtype on some versions of Python."""
    return np.full(count, 1.0)


class MallInfo2(ctypes.Structure):
    """What the C library's mallinfo2() returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd",
        "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


C = ctypes.CDLL(None)
C.mallinfo2.restype = MallInfo2
UNDER_SANITIZER = hasattr(C, "__sanitizer_get_current_allocated_bytes")
if UNDER_SANITIZER:
    C.__sanitizer_get_current_allocated_bytes.restype = ctypes.c_size_t


def c_memory() -> int:
    """Memory that malloc() has given out, in units of its smallest block."""
    if UNDER_SANITIZER:
        return int(C.__sanitizer_get_current_allocated_bytes()) // 32
    info = C.mallinfo2()
    return int(info.uordblks + info.hblkhd) // 32


def mappings() -> int:
    with open("/proc/self/maps", "rb") as file:
        return sum(1 for _ in file)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@cache
def lasting_objects() -> list[object]:
    """All that is there before the first row: types, functions, constants, None..."""
    tracked = gc.get_objects()
    every = {id(thing): thing for thing in (*gc.get_referents(*tracked), *tracked)}
    every.pop(id(pickle.PickleBuffer), None)  # numpy's ndarray.__reduce_ex__ loses one each time
    return list(every.values())


def references_to(things: Sequence[object]) -> int:
    return sum(map(sys.getrefcount, things))


COUNTERS: dict[str, Callable[[], int]] = {
    "C memory": c_memory,
    "descriptors": descriptors,
    "mappings": mappings,
    "references": lambda: references_to(lasting_objects()),
}
if sys.getallocatedblocks() > 0:  # 0: every object is a block of malloc()
    COUNTERS["blocks"] = sys.getallocatedblocks


def growth(call: Callable[[], object], counters: dict[str, Callable[[], int]]) -> dict[str, float]:
    """What grows with the calls of every round, and by how much a call.

    Caches and free lists grow as well, but only in some rounds.
    """
    growing: dict[str, float] = dict.fromkeys(counters, 0.0)
    gc.collect()
    lasting_objects()  # the collector does not list what is frozen
    gc.freeze()  # what is there now need not be looked at again
    gc.disable()  # or the counts would depend on when a collection comes
    try:
        for _ in range(ROUNDS):
            before = {name: counters[name]() for name in growing}
            for _ in range(CALLS):
                call()
            gc.collect()
            each = {name: (counters[name]() - before[name]) / CALLS for name in growing}
            growing = {name: grown for name, grown in each.items() if grown >= 0.5}
            if not growing:
                break
    finally:
        gc.enable()
        gc.unfreeze()
    return growing


# ---- the table ----


@dataclass(frozen=True)
class Row:
    operation: Operation
    options: dict[str, Any]


TABLE: dict[str, Row] = {}


def row(**options: Any) -> Callable[[Operation], Operation]:
    """Put a function into the table, which is called with a queue of these options."""

    def add(operation: Operation) -> Operation:
        TABLE[operation.__name__.replace("_", " ").strip()] = Row(operation, options)
        return operation

    return add


def raises(error: type[E], call: Callable[..., object], *args: Any, **kw: Any) -> E:
    """The error that a call must raise; pytest.raises keeps references for a while."""
    try:
        call(*args, **kw)
    except error as raised:
        return raised
    raise AssertionError(f"{call} did not raise {error.__name__}")


def drain(queue: Queue, *ignored: type[BaseException]) -> None:
    """Take all there is, item by item or in batches."""
    while True:
        try:
            queue.get_many(block=False)
        except Empty:
            return
        except ignored:
            continue


@contextlib.contextmanager
def shut_down(*items: Any) -> Iterator[Queue]:
    """A queue that was shut down with these items in it."""
    with Queue() as queue:
        queue.put_many(items)
        queue.shutdown()
        yield queue


def call_stored() -> str:
    stored()
    return "loaded"


def nothing() -> None:
    pass


stored: Callable[[], object] = nothing


class WhenPickled:
    """An item whose pickling calls something."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        self.call()
        return (str, ("pickled",))


class WhenLoaded:
    """An item whose unpickling calls something."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        global stored
        stored = self.call
        return (call_stored, ())


def interrupt() -> None:
    """As Ctrl-C does, once: what could not be loaded for it comes again."""
    global stored
    stored = nothing
    raise KeyboardInterrupt


class Unloadable:
    def __reduce__(self) -> Any:
        return (int, ("no number",))


class Plain:
    def __init__(self) -> None:
        self.name = "plain"


LOCK = threading.Lock()
CHUNK = bytes(5000)
OWN = bytes(300_000)  # larger than the pool: a segment of its own

ITEMS: dict[str, Any] = {
    "none": None,
    "true": True,
    "integer": 70_000,
    "large integer": 1 << 70,
    "real": 1.5,
    "text": "größer",
    "text in a chunk": "größer" * 1000,
    "bytes": b"inline",
    "bytes in a chunk": CHUNK,
    "bytes with a segment": OWN,
    "bytearray": bytearray(300),
    "memoryview": memoryview(CHUNK),
    "array": np.arange(3),
    "array in a chunk": np.arange(5000),
    "array with a segment": np.arange(40_000),
    "array of dates": np.zeros(400, "M8[s]"),
    "array of records": np.zeros(400, [("a", "i4"), ("b", "f8")]),
    "array of objects": np.array(["a", None, 2.5], object),
    "array that is not contiguous": np.zeros((60, 60))[::2, ::3],
    "scalar": np.float32(2),
    "dict": {"a": [1, 2.5, None, "x", b"y"]},
    "large list": list(range(5000)),
    "object": Plain(),
    "array inside": {"a": np.arange(3)},
    "arrays inside": {"a": np.arange(5000), "b": [ones(9000)]},
    "read-only array inside": ("k", np.frombuffer(CHUNK, "u1")),
    "buffer inside": [pickle.PickleBuffer(CHUNK)],
}


def put_and_get(queue: Queue, item: Any) -> None:
    queue.put(item)
    queue.get()


def put_many_and_get_many(queue: Queue, item: Any) -> None:
    queue.put_many([item, item, item])
    assert len(queue.get_many(2)) == 2
    assert len(queue.get_many()) == 1


def put_many_of_an_iterator(queue: Queue, item: Any) -> None:
    queue.put_many(item for _ in range(2))
    assert len(queue.get_many()) == 2


def claim_and_release(queue: Queue, item: Any) -> None:
    queue.put(item)
    with queue.claim() as lease:
        assert lease.item is lease.item


def claim_and_reject(queue: Queue, item: Any) -> None:
    queue.put(item)
    lease = queue.claim()
    lease.item  # noqa: B018
    lease.reject()
    lease = queue.claim()
    assert lease.redelivered
    lease.item  # noqa: B018
    lease.reject(requeue=False)


def claim_and_drop(queue: Queue, item: Any) -> None:
    queue.put(item)
    queue.claim()
    queue.get()


def claim_many(queue: Queue, item: Any) -> None:
    queue.put_many([item, item, item])
    with queue.claim_many() as leases:
        leases[1].reject()
        assert [lease.ended for lease in leases] == [False, True, False]
        leases[2].item  # noqa: B018
    with queue.claim_many() as leases:
        assert len(leases) == 1


def keep_what_was_claimed(queue: Queue, item: Any) -> None:
    queue.put(item)
    with queue.claim() as lease:
        kept = lease.item
    del lease
    put_and_get(queue, 1)
    del kept


for way in (put_and_get, put_many_and_get_many, put_many_of_an_iterator, claim_and_release,
            claim_and_reject, claim_and_drop, claim_many, keep_what_was_claimed):  # fmt: skip
    for kind, item in ITEMS.items():
        TABLE[f"{way.__name__} {kind}".replace("_", " ")] = Row(partial(way, item=item), {})
for codec, item in {"cloudpickle": lambda: 3, "raw": CHUNK, "msgpack": {"a": [1, "b"]}}.items():
    for way in (put_and_get, put_many_and_get_many, claim_and_release):
        TABLE[f"{way.__name__} {codec}".replace("_", " ")] = Row(
            partial(way, item=item), {"codec": codec}
        )


# ---- waiting in vain ----


@row()
def empty(queue: Queue) -> None:
    raises(Empty, queue.get_nowait)
    raises(Empty, queue.get, timeout=0.0002)
    raises(Empty, queue.get_many, block=False)
    raises(Empty, queue.get_many, timeout=0.0002)
    raises(Empty, queue.claim, block=False)
    raises(Empty, queue.claim_many, timeout=0.0002)


@row(maxsize=2)
def full(queue: Queue) -> None:
    assert raises(Full, queue.put_many, [1, CHUNK, OWN], timeout=0.0002).accepted == 2
    raises(Full, queue.put_nowait, "inline")
    raises(Full, queue.put, CHUNK, timeout=0.0002)
    raises(Full, queue.put_many, [OWN, {"a": ones(900)}], block=False)
    raises(Full, queue.put_many, iter([ones(900)]), block=False)
    queue.get_many()


@row(maxsize=2)
def loan_for_a_full_queue(queue: Queue) -> None:
    def lend() -> None:
        with queue.loan(1000, block=False) as array:
            array[:] = 1

    queue.put_many([1, 2])
    raises(Full, lend)
    queue.get_many()


@row(capacity=4, maxsize=4)
def as_many_leases_as_slots(queue: Queue) -> None:
    queue.put_many(range(4))
    with queue.claim_many():
        queue.put(4)
        raises(Empty, queue.claim, block=False)
        raises(Empty, queue.claim, timeout=0.0002)
    queue.get()


@row(pool_bytes=65536)
def an_exhausted_pool(queue: Queue) -> None:
    for _ in range(20):
        queue.put(bytes(20_000), block=False)
    drain(queue)


# ---- after the end ----


@row()
def shut_down_and_drained(_: Queue) -> None:
    with shut_down(1) as queue:
        assert queue.is_shutdown
        raises(ShutDown, queue.put, 1)
        raises(ShutDown, queue.put, CHUNK)
        raises(ShutDown, queue.put_many, [1, OWN])
        assert list(queue) == [1]
        raises(ShutDown, queue.get)
        raises(ShutDown, queue.get_many)
        raises(ShutDown, queue.claim)
        raises(ShutDown, queue.claim_many)


@row()
def shut_down_while_it_is_lent(_: Queue) -> None:
    with Queue() as queue:

        def lend() -> None:
            with queue.loan(1000):
                queue.shutdown()

        raises(ShutDown, lend)


@row()
def shut_down_at_once(_: Queue) -> None:
    with Queue(pool_bytes=65536) as queue:
        queue.put_many(list(ITEMS.values()))
        queue.shutdown(immediate=True)
        raises(ShutDown, queue.get)


@row()
def closed(queue: Queue) -> None:
    handle = Queue.attach(queue.name)
    handle.close()
    handle.close()
    assert handle.closed
    for call in (handle.get, handle.get_many, handle.claim, handle.claim_many, handle.qsize,
                 handle.empty, handle.full, handle.join, handle.task_done, handle.shutdown,
                 handle.usage, handle.recover, handle.participants,
                 partial(handle.put, 1), partial(handle.put_many, [1, CHUNK]),
                 handle.loan(10).__enter__):  # fmt: skip
        raises(QueueClosed, call)
    repr(handle)


# ---- what cannot be encoded or decoded ----


@row()
def cannot_be_pickled(queue: Queue) -> None:
    raises(EncodeError, queue.put, LOCK)
    raises(EncodeError, queue.put, [ones(900), LOCK])
    raises(EncodeError, queue.put, [Plain(), *map(str, range(1000)), LOCK])
    raises(EncodeError, queue.put_many, [LOCK])
    items = [1, CHUNK, OWN, {"a": ones(900)}, LOCK, 4]
    assert raises(EncodeError, queue.put_many, items).accepted == 4
    raises(EncodeError, queue.put_many, iter(["one", LOCK]))
    drain(queue)


@row()
def pickling_that_is_interrupted(queue: Queue) -> None:
    raises(KeyboardInterrupt, queue.put, WhenPickled(interrupt))
    raises(KeyboardInterrupt, queue.put_many, [1, CHUNK, [ones(900), WhenPickled(interrupt)], 2])
    drain(queue)


@row()
def an_iterator_that_raises(queue: Queue) -> None:
    raises(ZeroDivisionError, queue.put_many, (1 // n for n in (1, 1, 0)))
    raises(TypeError, queue.put_many, 5)
    drain(queue)


@row()
def cannot_be_unpickled(queue: Queue) -> None:
    queue.put(Unloadable())
    raises(DecodeError, queue.get)
    queue.put([ones(9000), Unloadable(), ones(30_000)])
    raises(DecodeError, queue.get)
    queue.put_many([1, CHUNK, Unloadable(), OWN, {"a": ones(900)}, Unloadable(), 3])
    drain(queue, DecodeError)


@row()
def cannot_be_unpickled_in_place(queue: Queue) -> None:
    for item in (Unloadable(), [ones(9000), Unloadable()], [ones(40_000), Unloadable()]):
        queue.put(item)
        lease = queue.claim()
        raises(DecodeError, lambda lease: lease.item, lease)
        lease.reject()
        lease = queue.claim()
        raises(DecodeError, lambda lease: lease.item, lease)
        lease.release()


@row()
def unpickling_that_is_interrupted(queue: Queue) -> None:
    for before in ([], [ones(9000), ones(40_000)]):
        queue.put([before, WhenLoaded(interrupt)])
        raises(KeyboardInterrupt, queue.get)
        drain(queue)
        queue.put_many([1, CHUNK, [before, WhenLoaded(interrupt)], OWN])
        drain(queue, KeyboardInterrupt)


@row(codec="raw")
def not_bytes(queue: Queue) -> None:
    raises(EncodeError, queue.put, "text")
    raises(EncodeError, queue.put_many, [b"x", CHUNK, None])
    drain(queue)


@row(codec="msgpack")
def not_plain(queue: Queue) -> None:
    raises(EncodeError, queue.put, object())
    raises(EncodeError, queue.put_many, [1, CHUNK, object()])
    drain(queue)


register_codec("growth", lambda item: item, lambda body: body[0:0] + 1)  # type: ignore[operator]


@row(codec="growth")
def a_codec_of_ones_own_that_fails(queue: Queue) -> None:
    raises(EncodeError, queue.put, "no bytes")
    queue.put_many([b"one", CHUNK])
    raises(DecodeError, queue.get)
    raises(DecodeError, queue.get_many)


# ---- arguments that are not allowed ----


@row()
def wrong_arguments(queue: Queue) -> None:
    for call in (queue.get, queue.get_many, queue.claim, queue.claim_many, partial(queue.put, 1),
                 partial(queue.put_many, [1]), partial(queue.loan, 4)):  # fmt: skip
        raises(InvalidOption, call, timeout=-1)
        raises(InvalidOption, call, timeout="soon")
    for call in (queue.get_many, queue.claim_many):
        raises(InvalidOption, call, 0)
    raises(InvalidOption, queue.loan(4, "O").__enter__)
    raises(InvalidOption, queue.loan, (4, -1))
    raises(InvalidOption, queue.loan, 4, order="K")
    raises(InvalidOption, queue.loan, 4, "no type")
    raises(InvalidOption, queue.task_done)


@row()
def wrong_options(_: Queue) -> None:
    for options in ({"mode": "mpsp"}, {"slot_size": 65}, {"pool_bytes": 1}, {"capacity": 1},
                    {"max_participants": 0}, {"recovery_interval": 0.0}, {"codec": "nonesuch"},
                    {"codec": ""}, {"name": "a/b"}, {"maxsize": 1 << 30}):  # fmt: skip
        raises(InvalidOption, partial(Queue, **options))
    raises(InvalidOption, Queue.attach, "../passwd")


# ---- loans and leases ----


@row()
def loan(queue: Queue) -> None:
    for shape in (3, (50, 100), 300_000):
        with queue.loan(shape, "u1", order="F") as array:
            array[...] = 1
        assert queue.get().sum() == array.sum()


@row()
def loan_that_is_kept(queue: Queue) -> None:
    for size in (100, 5000, 300_000):
        with queue.loan(size) as array:
            part = array[:10]
            array[...] = 1
        with queue.claim() as lease:
            assert lease.item.sum() == size
        del array, part, lease


@row()
def loan_that_raises(queue: Queue) -> None:
    def lend(size: int) -> None:
        with queue.loan(size) as array:
            array[:] = 1
            raise ZeroDivisionError

    for size in (100, 5000, 300_000):
        raises(ZeroDivisionError, lend, size)


@row()
def loan_that_is_used_twice(queue: Queue) -> None:
    lent = queue.loan(1000)
    with lent:
        raises(QueueError, lent.__enter__)
    queue.get()


@row()
def loan_that_is_not_used(queue: Queue) -> None:
    queue.loan(1000)
    queue.loan(1000).__enter__()


@row(codec="raw")
def loan_without_arrays(queue: Queue) -> None:
    raises(InvalidOption, queue.loan(1000).__enter__)


@row()
def lease_that_has_ended(queue: Queue) -> None:
    queue.put_many([CHUNK, CHUNK])
    for lease, end in zip(queue.claim_many(), ("release", "reject")):
        getattr(lease, end)()
        raises(LeaseEnded, lease.release)
        raises(LeaseEnded, lease.reject)
        raises(LeaseEnded, lambda lease: lease.item, lease)
        repr(lease)
    queue.get()


@row()
def lease_of_the_parent(queue: Queue) -> None:
    queue.put(CHUNK)
    lease = queue.claim()
    in_a_child(lambda: raises(LeaseEnded, lease.release))
    lease.release()


@row()
def leases_and_views_of_a_closed_handle(queue: Queue) -> None:
    handle = Queue.attach(queue.name)
    queue.put_many([ones(9000), ones(40_000), CHUNK, b"inline"])
    leases = handle.claim_many()
    views = [lease.item for lease in leases]
    handle.close()
    for lease in leases[:2]:
        lease.release()
    del leases, lease, views, handle
    drain(queue)


# ---- handles ----


@row()
def create_and_close(_: Queue) -> None:
    Queue(pool_bytes=65536).close()


@row()
def create_and_drop(_: Queue) -> None:
    Queue(4, capacity=8, slot_size=64, pool_bytes=65536, codec="msgpack", mode="spsc")


@row()
def attach_and_close(queue: Queue) -> None:
    with Queue.attach(queue.name) as handle:
        handle.put(1)
        assert queue.get() == 1


@row()
def attach_and_drop(queue: Queue) -> None:
    Queue.attach(queue.name).put_many([CHUNK])
    drain(queue)


@row()
def close_what_is_not_empty(_: Queue) -> None:
    with Queue(pool_bytes=65536) as queue:
        queue.put_many([*ITEMS.values(), Unloadable()])
        queue.get_many(3)


@row()
def close_after_an_item_that_cannot_be_unpickled(_: Queue) -> None:
    with Queue() as queue:
        queue.put_many([1, Unloadable(), CHUNK])
        queue.get_many()


@row()
def names(queue: Queue) -> None:
    raises(QueueExists, Queue, name=queue.name)
    raises(QueueNotFound, Queue.attach, "growth-nobody")
    raises(QueueNotFound, inspect_queue, "growth-nobody")
    raises(QueueExists, remove_queue, queue.name)


@row()
def segments_that_are_not_used(queue: Queue) -> None:
    with open(f"/dev/shm/sagequeue-{queue.name}", "rb") as file:
        start = file.read(65536)
    name = f"growth-stranger-{os.getpid()}"
    path = f"/dev/shm/sagequeue-{name}"
    for content, mode, error in (
        (b"", 0o600, IncompatibleSegment),
        (bytes(100_000), 0o600, IncompatibleSegment),
        (start, 0o600, CorruptSegment),
        (start, 0o666, ForeignSegment),
    ):
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, mode)
        raises(error, Queue.attach, name)
        inspect_queue(name)
        os.unlink(path)


@row(max_participants=1)
def too_many_participants(queue: Queue) -> None:
    raises(TooManyParticipants, Queue.attach, queue.name)


@row(mode="spsc")
def roles(queue: Queue) -> None:
    queue.put_many([1, 2])
    queue.get()
    with Queue.attach(queue.name) as other:
        raises(RoleConflict, other.put, 1)
        raises(RoleConflict, other.put_many, [1])
        raises(RoleConflict, other.loan(10).__enter__)
        raises(RoleConflict, other.get)
        raises(RoleConflict, other.get_many)
        raises(RoleConflict, other.claim)
    queue.get()


@row()
def a_handle_that_travels(queue: Queue) -> None:
    pickle.loads(pickle.dumps(queue)).close()
    pickle.loads(pickle.dumps(queue.get_reference())).get_queue().close()
    queue.put(queue)
    queue.get().close()


@row()
def questions(queue: Queue) -> None:
    queue.put_many([1, 2])
    with queue.claim():
        assert (queue.qsize(), queue.empty(), queue.full()) == (1, False, False)
        queue.usage()
        queue.participants()
        queue.recover()
        repr(queue)
        assert (queue.maxsize, queue.capacity, queue.slot_size, queue.codec_name) == (
            0, 64, 128, "pickle",
        )  # fmt: skip
        inspect_queue(queue.name)
        list_queues()
        prune_queues("growth-nobody")
    queue.get()


@row()
def tasks(queue: Queue) -> None:
    while queue.unfinished_tasks:
        queue.task_done()
    queue.put_many([1, 2])
    queue.get_many()
    queue.task_done()
    queue.task_done()
    queue.join()
    raises(InvalidOption, queue.task_done)


@row()
def removed_by_force(_: Queue) -> None:
    with Queue() as queue:
        queue.put_many([1, OWN])
        remove_queue(queue.name, force=True)


# ---- other processes, threads, signals ----


def in_a_child(call: Callable[[], object]) -> None:
    """Fork, and wait for the child's end, which os._exit() makes."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


@row()
def a_child_that_uses_the_handle(queue: Queue) -> None:
    in_a_child(lambda: queue.put_many([1, CHUNK, OWN]) and queue.close())
    drain(queue)


@row()
def a_child_that_dies_with_a_lease(queue: Queue) -> None:
    queue.put_many([CHUNK, OWN])
    pid = os.fork()
    if pid == 0:
        leases = queue.claim_many()
        leases[1].item  # noqa: B018
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert queue.recover() == 1
    with queue.claim_many() as leases:
        assert [lease.redelivered for lease in leases] == [True, True]


@row()
def closed_while_a_thread_waits(queue: Queue) -> None:
    handle = Queue.attach(queue.name)

    def wait() -> None:
        with contextlib.suppress(QueueClosed):
            handle.get()

    thread = threading.Thread(target=wait)
    thread.start()
    handle.close()
    thread.join()


class Interrupted(Exception):
    pass


@row(maxsize=1)
def waiting_that_is_interrupted(queue: Queue) -> None:
    def ring(*_: object) -> None:
        raise Interrupted

    def interrupted(call: Callable[[], object]) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        call()

    before = signal.signal(signal.SIGALRM, ring)
    for call in (queue.get, queue.get_many, queue.claim, queue.claim_many):
        raises(Interrupted, interrupted, call)
    queue.put(1)
    for call in (partial(queue.put, CHUNK), partial(queue.put_many, [OWN]), queue.join):
        raises(Interrupted, interrupted, call)
    queue.get()
    signal.signal(signal.SIGALRM, before)


# ---- items that use the queue while they are pickled or unpickled ----


@row()
def an_item_that_puts(queue: Queue) -> None:
    item = WhenPickled(lambda: queue.put("inner"))
    queue.put(item)
    queue.put_many([1, item, CHUNK])
    item = WhenLoaded(lambda: queue.put("inner"))
    queue.put_many([item, CHUNK, item])
    drain(queue)
    drain(queue)


@row()
def an_item_that_gets(queue: Queue) -> None:
    queue.put_many(range(4))
    queue.put_many([1, WhenPickled(queue.get_nowait), CHUNK])
    queue.put_many([1, WhenLoaded(queue.get_nowait), CHUNK])
    drain(queue, DecodeError)


@row()
def an_item_that_closes_when_pickled(queue: Queue) -> None:
    for before in ([], [ones(9000)]):
        handle = Queue.attach(queue.name)
        raises(QueueClosed, handle.put, [before, WhenPickled(handle.close)])
        handle = Queue.attach(queue.name)
        raises(QueueClosed, handle.put_many, [1, CHUNK, [before, WhenPickled(handle.close)], 2])
    drain(queue)


@row()
def an_item_that_closes_when_loaded(queue: Queue) -> None:
    for calls in ("get", "get_many"):
        handle = Queue.attach(queue.name)
        handle.put_many([WhenLoaded(handle.close), CHUNK, 2])
        with contextlib.suppress(QueueClosed):
            getattr(handle, calls)()
        drain(queue)


# ---- the tests ----


@pytest.mark.parametrize("name", TABLE)
def test_nothing_grows(name: str) -> None:
    options = {"pool_bytes": 1 << 18, "capacity": 64, **TABLE[name].options}
    with Queue(**options) as queue:

        def files() -> int:
            return sum(
                file.startswith(f"sagequeue-{queue.name}") for file in os.listdir("/dev/shm")
            )

        handle = [queue, *filter(None, gc.get_referents(queue))]
        counters = {
            **COUNTERS,
            "references to the handle": lambda: references_to(handle),
            "segments": files,
            "chunks": lambda: queue.usage().chunks_held,
        }
        assert growth(partial(TABLE[name].operation, queue), counters) == {}
        assert queue.empty()


LEAKS: dict[str, Callable[[list[Any]], object]] = {
    "blocks": lambda kept: kept.append(object()),
    "C memory": lambda kept: kept.append(bytes(3000)),
    "descriptors": lambda kept: kept.append(open("/dev/null")),  # noqa: SIM115
    "mappings": lambda kept: kept.append(Queue(pool_bytes=65536)),
    "references": lambda kept: kept.append(TABLE),  # not None, which is immortal since Python 3.12
}


@pytest.mark.parametrize("name", COUNTERS)
def test_growth_is_seen(name: str) -> None:
    kept: list[Any] = []
    assert name in growth(partial(LEAKS[name], kept), COUNTERS)
    for leaked in kept:
        if hasattr(leaked, "close"):
            leaked.close()
