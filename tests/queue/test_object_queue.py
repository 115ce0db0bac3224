"""ObjectQueue under code that runs in the middle of its methods: collections, arguments, items."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sagequeue import Full, LocalQueue, ObjectQueue, QueueClosed, ShutDown

Use = Callable[[Any], object]


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """What is there already need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Meddler:
    """Garbage that uses a queue when it is collected."""

    def __init__(self, use: Callable[[], object]) -> None:
        self.me = self
        self.use = use

    def __del__(self) -> None:
        self.use()


def with_collection(work: Callable[[], object], meddle: Callable[[], object], after: int) -> object:
    """Run `work` so that a collection, and `meddle` in it, comes after so many allocations.

    Up to Python 3.11 that is within an allocation, later between two byte codes.
    """
    gc.collect()
    gc.disable()
    thresholds = gc.get_threshold()
    try:
        Meddler(meddle)
        gc.set_threshold(after)
        gc.enable()
        return work()
    finally:
        gc.enable()
        gc.set_threshold(*thresholds)
        gc.collect()


def outcome(use: Use, queue: Any) -> object:
    try:
        return use(queue)
    except (Full, QueueClosed, ShutDown) as error:
        return type(error)


def remains(queue: ObjectQueue[Any]) -> object:
    """What can be seen of a queue."""
    if queue.closed:
        return "closed"
    items = queue.get_many() if queue.qsize() else []
    unfinished = 0
    while True:
        try:
            queue.task_done()
        except ValueError:
            return items, unfinished, queue.is_shutdown
        unfinished += 1


def about_to_grow(maxsize: int = 0) -> ObjectQueue[Any]:
    """16 items in a ring of 16 places, of which the first is not at its beginning."""
    queue = ObjectQueue[Any](maxsize)
    queue.put_many(range(10))
    queue.get_many()
    queue.put_many(range(16))
    return queue


def take(count: int) -> Use:
    return lambda queue: [queue.get() for _ in range(min(count, queue.qsize()))]


MAKE: dict[str, Callable[[], ObjectQueue[Any]]] = {
    "about to grow": about_to_grow,
    "one place left": lambda: about_to_grow(17),
}
USES: dict[str, Use] = {
    "put": lambda queue: queue.put("new", block=False),
    "get": lambda queue: queue.get(),
    "get_many": lambda queue: queue.get_many(),
    "get_many(9)": lambda queue: queue.get_many(9),
    "shutdown": lambda queue: queue.shutdown(),
    "drop": lambda queue: queue.shutdown(immediate=True),
    "close": lambda queue: queue.close(),
}
MEDDLE: dict[str, Use] = {
    "put": lambda queue: queue.put("meddler's", block=False),
    "put 40": lambda queue: [queue.put(i, block=False) for i in range(40)],
    "get": take(1),
    "get 5, put 5": lambda queue: [take(5)(queue), queue.put_many(range(100, 105), block=False)],
    "shutdown": USES["shutdown"],
    "drop": USES["drop"],
    "close": USES["close"],
}


@pytest.mark.parametrize("meddle", MEDDLE)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("state", MAKE)
def test_a_collection_in_a_call_is_as_one_before_or_after_it(
    state: str, use: str, meddle: str
) -> None:
    def in_turn(first: Use, second: Use) -> tuple[object, object, object]:
        queue = MAKE[state]()
        results = outcome(first, queue), outcome(second, queue)
        return (*results, remains(queue))

    meddled, used, left = in_turn(MEDDLE[meddle], USES[use])
    before = used, meddled, left
    after = in_turn(USES[use], MEDDLE[meddle])
    for allocations in range(1, 9):
        queue = MAKE[state]()
        results: list[object] = []
        result = with_collection(
            lambda queue=queue: outcome(USES[use], queue),  # type: ignore[misc]
            lambda queue=queue, results=results: results.append(  # type: ignore[misc]
                outcome(MEDDLE[meddle], queue)
            ),
            allocations,
        )
        assert (result, results[0], remains(queue)) in (before, after)


def full() -> ObjectQueue[Any]:
    queue = ObjectQueue[Any](1)
    queue.put("old")
    return queue


@pytest.mark.parametrize(
    ("make", "wait", "meddle"),
    [
        (ObjectQueue, lambda queue: queue.get(), lambda queue: queue.put("new")),
        (ObjectQueue, lambda queue: queue.get_many(), lambda queue: queue.put("new")),
        (full, lambda queue: queue.put("new"), lambda queue: queue.get()),
        (full, lambda queue: queue.join(), lambda queue: queue.task_done()),
    ],
    ids=["get", "get_many", "put", "join"],
)
def test_what_a_collection_does_before_the_wait_is_not_slept_through(
    make: Callable[[], ObjectQueue[Any]], wait: Use, meddle: Use
) -> None:
    for allocations in range(1, 6):
        queue = make()
        done = threading.Event()
        meddled: list[bool] = []
        stuck: list[bool] = []

        def use(queue: Any = queue, meddled: list[bool] = meddled) -> None:
            meddled.append(True)
            outcome(meddle, queue)  # closed, if it comes after the rescue

        def rescue(
            queue: Any = queue,
            done: threading.Event = done,
            meddled: list[bool] = meddled,
            stuck: list[bool] = stuck,
        ) -> None:
            if not done.wait(1):
                if meddled and not done.wait(5):  # else it is yet to come, from Python 3.12 on
                    stuck.append(True)
                if not done.is_set():
                    queue.close()

        rescuer = threading.Thread(target=rescue)
        rescuer.start()
        with_collection(lambda queue=queue: outcome(wait, queue), use, allocations)  # type: ignore[misc]
        done.set()
        rescuer.join()
        assert not stuck


class Index:
    """A number that uses a queue when it is looked at."""

    def __init__(self, number: int, use: Callable[[], object]) -> None:
        self.number = number
        self.use = use

    def __index__(self) -> int:
        self.use()
        return self.number

    def __float__(self) -> float:
        self.use()
        return float(self.number)


def test_an_argument_that_takes_the_items() -> None:
    queue = about_to_grow()
    assert queue.get_many(Index(9, lambda: queue.get_many(12))) == [12, 13, 14, 15]
    assert queue.empty()


@pytest.mark.parametrize("call", ["put", "put_many", "get", "get_many"])
def test_an_argument_that_closes_the_queue(call: str) -> None:
    queue = ObjectQueue[Any]()
    queue.put("old")
    timeout: Any = Index(9, queue.close)
    arguments = [] if call.startswith("get") else [("new",)]
    with pytest.raises(QueueClosed):
        getattr(queue, call)(*arguments, timeout=timeout)


def test_a_source_that_closes_the_queue() -> None:
    queue = ObjectQueue[Any]()

    def items() -> Iterator[int]:
        yield 1
        queue.close()
        yield 2

    with pytest.raises(QueueClosed) as caught:
        queue.put_many(items())
    assert caught.value.accepted == 1  # type: ignore[attr-defined]


class Item:
    """Uses the queue when it is destroyed."""

    def __init__(self, use: Callable[[], object]) -> None:
        self.use = use

    def __del__(self) -> None:
        self.use()


@pytest.mark.parametrize("kind", [ObjectQueue, LocalQueue])
@pytest.mark.parametrize("end", ["close", "drop"])
def test_items_are_destroyed_when_the_queue_is_whole_and_all_are_woken(
    kind: Callable[[], Any], end: str
) -> None:
    queue = kind()
    joiner = threading.Thread(target=outcome, args=(lambda queue: queue.join(), queue))
    seen: list[object] = []

    def use() -> None:
        joiner.join(30)
        seen.append(joiner.is_alive())
        seen.append(outcome(lambda queue: queue.put(1), queue))

    queue.put(Item(use))
    joiner.start()
    USES[end](queue)
    assert seen == [False, QueueClosed if end == "close" else ShutDown]


def test_a_subclass_that_does_not_call_init() -> None:
    class Sub(ObjectQueue[Any]):
        def __init__(self) -> None:
            self.put("early")

    queue = Sub()
    queue.put("late")
    assert queue.get_many() == ["early", "late"]
    assert queue.maxsize == 0
    assert queue.name
    assert queue.logger.name == "sagequeue"


def test_a_subclass_that_has_no_hash() -> None:
    class Sub(ObjectQueue[Any]):
        __hash__ = None  # type: ignore[assignment]

    queue = Sub(3)
    queue.put(1)
    assert queue.get() == 1
