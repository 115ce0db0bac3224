"""No operation and no error leaves anything behind: no memory, no object, no reference.

A row of ``OPERATIONS`` makes a queue and says what is done with it again and again. Each time it
must leave the queue as it found it.
"""

from __future__ import annotations

import gc
import pickle
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from sagequeue import LocalQueue, ObjectQueue, SageQueue, register_codec
from sagequeue.errors import (
    DecodeError,
    Empty,
    EncodeError,
    Full,
    InvalidOption,
    QueueClosed,
    ShutDown,
)

REPETITIONS = 50
ROUNDS_MOST = 12  # a leak shows in all of them, a cache that fills up only in some


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """What is there already need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Operation(NamedTuple):
    make: Callable[[], Any]
    work: Callable[[Any], object]


def raises(error: type[BaseException], call: Callable[..., object], *arguments: Any) -> None:
    """Like ``pytest.raises``, but keeps nothing of the error."""
    try:
        call(*arguments)
    except error:
        return
    raise AssertionError(f"{error.__name__} did not come")


class Unpicklable:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("no")


class Unloadable:
    def __reduce__(self) -> Any:
        return (int, ("no number",))


class Plain:
    """An object of a class, which goes through the table of reducers."""

    def __init__(self) -> None:
        self.number = 1


def broken(_: object) -> Any:
    raise ValueError("broken")


register_codec("growth-broken", broken, bytes.decode)
register_codec("growth-no-bytes", lambda item: item, bytes.decode)
register_codec("growth-unreadable", bytes, broken)
register_codec("growth-text", str.encode, bytes.decode)


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


ITEMS: dict[str, Any] = {
    "bytes": b"x" * 20,
    "large bytes": b"x" * 300_000,
    "bytearray": bytearray(b"abc"),
    "strided memoryview": memoryview(b"abcdef")[::2],
    "text": "text",
    "umlauts": "größer",
    "many umlauts": "größer" * 1000,
    "surrogate": "\ud800",
    "number": 5,
    "large number": 10**50,
    "float": 2.5,
    "none": None,
    "object": Plain(),
    "dict": {"id": 1, "tags": ["a", "b"]},
    "large list": [str(i) for i in range(2_000)],
    "array": np.arange(5),
    "large array": np.arange(50_000),
    "strided array": np.arange(50_000)[::3],
    "dates": np.array(["2020-01-01"] * 10_000, "M8[D]"),
    "objects": np.array([{"a": 1}, None], dtype=object),
    "dtype with metadata": np.zeros(3, np.dtype("f4", metadata={"unit": "m"})),
    "arrays inside": {"a": np.arange(5), "b": np.arange(50_000)},
    "read-only arrays inside": [read_only(np.arange(5)), read_only(np.arange(50_000))],
    "buffers": [pickle.PickleBuffer(b"abc"), pickle.PickleBuffer(bytearray(50_000))],
}


def single(item: Any) -> Callable[[Any], object]:
    def work(queue: Any) -> None:
        queue.put(item)
        queue.get()

    return work


def batch(item: Any) -> Callable[[Any], object]:
    def work(queue: Any) -> None:
        queue.put_many([item, item])
        queue.get_many()

    return work


def released_view(queue: Any) -> None:
    view = memoryview(bytearray(10))
    view.release()
    raises(EncodeError, queue.put, view)


class Releases:
    """Pickling it releases a buffer that has been pickled."""

    def __init__(self, buffer: pickle.PickleBuffer) -> None:
        self.buffer = buffer

    def __reduce__(self) -> Any:
        self.buffer.release()
        return int, ()


def released_buffer(queue: Any) -> None:
    buffer = pickle.PickleBuffer(bytearray(10))
    raises(EncodeError, queue.put, [buffer, Releases(buffer)])


def undecodable(queue: Any) -> None:
    queue.put(Unloadable())
    raises(DecodeError, queue.get)
    queue.put_many([1, Unloadable(), 3])
    assert queue.get_many() == [1]
    raises(DecodeError, queue.get)
    assert queue.get() == 3


def unreadable(queue: Any) -> None:
    queue.put(b"abc")
    raises(DecodeError, queue.get)


def full(queue: Any) -> None:
    queue.put_many([1, 2])
    raises(Full, queue.put, 3, False)
    raises(Full, queue.put, 3, True, 0)
    raises(Full, queue.put_many, [3, 4], False)
    queue.get_many()


def empty(queue: Any) -> None:
    raises(Empty, queue.get, False)
    raises(Empty, queue.get, True, 0)
    raises(Empty, queue.get_many, None, False)


def waits(queue: Any) -> None:
    raises(Empty, queue.get, True, 1e-6)
    queue.put_many([1, 2])
    raises(Full, queue.put, 3, True, 1e-6)
    queue.get_many()


def wrong_arguments(queue: Any) -> None:
    raises(InvalidOption, queue.get, True, -1)
    raises(InvalidOption, queue.get, True, "1")
    raises(InvalidOption, queue.put, 1, True, float("nan"))
    raises(InvalidOption, queue.get_many, 0)


def fractional_count(queue: Any) -> None:
    raises(InvalidOption, queue.get_many, 2.5)


def failing_source(queue: Any) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError

    raises(LookupError, queue.put_many, items())
    assert queue.get() == 1


def tasks(queue: Any) -> None:
    queue.put(1)
    queue.get()
    while True:
        try:
            queue.task_done()
        except InvalidOption:
            break
    queue.join()


def looks(queue: Any) -> None:
    queue.put(1)
    for look in (queue.qsize, queue.empty, queue.full, queue.__repr__):
        look()
    queue.get()


def life(make: Callable[[], Any]) -> Callable[[Any], object]:
    """A queue from its making to its end, with items in it."""

    def work(_: Any) -> None:
        with make() as queue:
            queue.put_many([Plain(), "text"])
            queue.shutdown()
            raises(ShutDown, queue.put, 1)
            raises(ShutDown, queue.put_many, [1])
            assert len(list(queue)) == 2
            raises(ShutDown, queue.get)
        raises(QueueClosed, queue.get)
        raises(QueueClosed, queue.put, 1)
        raises(QueueClosed, queue.put_many, [1])
        with make() as queue:
            queue.put_many([Plain(), "text"])
            queue.shutdown(immediate=True)

    return work


def grows(queue: Any) -> None:
    """A ring that is made larger while its first item is in the middle."""
    queue.put_many(range(10))
    queue.get_many(10)
    queue.put_many(range(500))
    queue.get_many(500)


def bounded() -> Any:
    return SageQueue(2, capacity=64, pool_bytes=1 << 20)


def refuses(error: type[BaseException], item: Any) -> Callable[[Any], object]:
    return lambda queue: raises(error, queue.put, item)


def with_codec(codec: str) -> Callable[[], Any]:
    return lambda: SageQueue[Any](codec=codec)


OPERATIONS: dict[str, Operation] = {}
for codec in ("pickle", "cloudpickle"):
    make = with_codec(codec)
    for name, item in ITEMS.items():
        OPERATIONS[f"{codec}, {name}"] = Operation(make, single(item))
        OPERATIONS[f"{codec}, {name}, batch"] = Operation(make, batch(item))
    REFUSED = {
        "error in the item": refuses(EncodeError, [Plain(), Unpicklable(RuntimeError)]),
        "Ctrl-C in the item": refuses(KeyboardInterrupt, [Plain(), Unpicklable(KeyboardInterrupt)]),
        "buffer with holes": refuses(EncodeError, pickle.PickleBuffer(memoryview(b"abc")[::2])),
        "released view": released_view,
        "released buffer": released_buffer,
        "undecodable": undecodable,
    }
    for name, work in REFUSED.items():
        OPERATIONS[f"{codec}, {name}"] = Operation(make, work)
OPERATIONS["cloudpickle, function"] = Operation(
    with_codec("cloudpickle"), lambda queue: single(lambda: 1)(queue)
)
OPERATIONS["raw"] = Operation(with_codec("raw"), single(b"abc"))
OPERATIONS["raw, text"] = Operation(with_codec("raw"), refuses(EncodeError, "text"))
OPERATIONS["msgpack"] = Operation(with_codec("msgpack"), single({"a": [1, 2.5]}))
OPERATIONS["own codec"] = Operation(with_codec("growth-text"), single("abc"))
for name in ("growth-broken", "growth-no-bytes"):
    OPERATIONS[name] = Operation(with_codec(name), refuses(EncodeError, 5))
OPERATIONS["unreadable"] = Operation(with_codec("growth-unreadable"), unreadable)
OPERATIONS["sage, unknown codec"] = Operation(
    with_codec("pickle"), lambda _: raises(InvalidOption, with_codec("nonesuch"))
)
KINDS: dict[str, Callable[[], Any]] = {
    "sage": bounded,
    "object": lambda: ObjectQueue(2),
    "local": lambda: LocalQueue(2),
}
for name, make in KINDS.items():
    for work in (full, empty, waits, wrong_arguments, failing_source, tasks, looks):
        OPERATIONS[f"{name}, {work.__name__}"] = Operation(make, work)
    OPERATIONS[f"{name}, life"] = Operation(make, life(make))
UNBOUNDED: dict[str, Callable[[], Any]] = {"object": ObjectQueue, "local": LocalQueue}
for name, make in UNBOUNDED.items():
    for work in (fractional_count, grows):
        OPERATIONS[f"{name}, {work.__name__}"] = Operation(make, work)
    OPERATIONS[f"{name}, single"] = Operation(make, single(Plain()))
    OPERATIONS[f"{name}, batch"] = Operation(make, batch(Plain()))


class Held(NamedTuple):
    memory: int
    objects: int
    references: int


def held(witnesses: list[Any]) -> Held:
    gc.collect()
    references = sum(map(sys.getrefcount, witnesses))
    return Held(tracemalloc.get_traced_memory()[0], len(gc.get_objects()), references)


def growth(queue: Any, work: Callable[[Any], object]) -> Held:
    """What one round adds to what is held."""
    # immortal, and of no use here, from Python 3.12 on: None, True and the like
    witnesses = [None, True, (), queue, type(queue), np.ndarray, Plain, EncodeError, DecodeError]
    witnesses += ITEMS.values()
    before = held(witnesses)
    for _ in range(REPETITIONS):
        work(queue)
    return Held(*(new - old for new, old in zip(held(witnesses), before)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_left_behind(name: str) -> None:
    make, work = OPERATIONS[name]
    one_of_each_time = Held(memory=REPETITIONS * 16, objects=REPETITIONS, references=REPETITIONS)
    rounds: list[Held] = []
    queue = make()
    tracemalloc.start()
    try:
        while len(rounds) < ROUNDS_MOST:
            rounds.append(growth(queue, work))
            if all(new < least for new, least in zip(rounds[-1], one_of_each_time)):
                break
        else:
            pytest.fail(f"it grows: {rounds}")
    finally:
        tracemalloc.stop()
        queue.close()
