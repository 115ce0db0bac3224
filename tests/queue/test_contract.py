"""The interface all queues share, tried on each of them."""

from __future__ import annotations

import logging
import pickle
import queue as standard
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from threaded import in_thread

from sagequeue import (
    Empty,
    Full,
    InvalidOption,
    LocalQueue,
    ObjectQueue,
    Queue,
    QueueClosed,
    RayQueue,
    SageQueue,
    ShutDown,
)

Make = Callable[..., Queue[Any]]

KINDS: dict[str, Make] = {
    "sage": SageQueue,
    "object": ObjectQueue,
    "local": LocalQueue,
    "ray": RayQueue,
}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    made: list[Queue[Any]] = []

    def build(maxsize: int = 0) -> Queue[Any]:
        made.append(KINDS[request.param](maxsize))
        return made[-1]

    yield build
    for queue in made:
        queue.close()


def test_it_is_a_queue(make: Make) -> None:
    queue = make()
    assert isinstance(queue, Queue)
    assert queue.backend in KINDS
    assert queue.name
    assert queue.maxsize == 0
    assert isinstance(queue.logger, logging.Logger)
    queue.logger = logging.getLogger("mine")
    assert queue.logger.name == "mine"


def test_first_in_first_out(make: Make) -> None:
    queue = make()
    queue.put("a")
    queue.put_nowait("b")
    assert queue.put_many(["c", "d"]) == 2
    assert queue.put_many(iter(["e"])) == 1
    assert queue.qsize() == 5
    assert not queue.empty()
    assert queue.get() == "a"
    assert queue.get_nowait() == "b"
    assert queue.get_many(2) == ["c", "d"]
    assert queue.get_many() == ["e"]
    assert queue.empty()


def test_limits(make: Make) -> None:
    queue = make(3)
    assert queue.maxsize == 3
    with pytest.raises(Full) as caught:
        queue.put_many([1, 2, 3, 4], timeout=0.01)
    assert caught.value.accepted == 3
    assert queue.full()
    with pytest.raises(standard.Full):
        queue.put_nowait(4)
    with pytest.raises(Full):
        queue.put(4, timeout=0.01)
    assert queue.get_many() == [1, 2, 3]
    with pytest.raises(standard.Empty):
        queue.get_nowait()
    with pytest.raises(Empty):
        queue.get(timeout=0.01)
    with pytest.raises(Empty):
        queue.get_many(block=False)


def test_wrong_arguments(make: Make) -> None:
    queue = make(1)
    for call in (queue.get, queue.get_many, lambda timeout: queue.put(1, timeout=timeout)):
        with pytest.raises(ValueError, match="non-negative"):
            call(timeout=-1)
    with pytest.raises(InvalidOption):
        queue.get_many(0)


def test_get_waits_for_put(make: Make) -> None:
    queue = make()
    thread, outcome = in_thread(queue.get)
    time.sleep(0.05)
    queue.put("late")
    thread.join(30)
    assert outcome == ["late"]


def test_put_waits_for_get(make: Make) -> None:
    queue = make(1)
    queue.put(1)
    thread, outcome = in_thread(lambda: queue.put(2))
    time.sleep(0.05)
    assert queue.get() == 1
    thread.join(30)
    assert outcome == [None]
    assert queue.get() == 2


def test_many_threads(make: Make) -> None:
    queue = make(4)
    consumers = [in_thread(lambda: list(queue)) for _ in range(3)]
    producers = [
        in_thread(lambda start=start: queue.put_many(range(start, start + 50)))
        for start in (0, 50, 100)
    ]
    for thread, outcome in producers:
        thread.join(60)
        assert outcome == [50]
    queue.shutdown()
    received: list[int] = []
    for thread, outcome in consumers:
        thread.join(60)

        received += outcome[0]
    assert sorted(received) == list(range(150))


def test_shutdown(make: Make) -> None:
    queue = make()
    queue.put_many([1, 2])
    queue.shutdown()
    with pytest.raises(ShutDown):
        queue.put(3)
    with pytest.raises(ShutDown) as caught:
        queue.put_many([3, 4])
    assert caught.value.accepted == 0
    assert list(queue) == [1, 2]
    with pytest.raises(ShutDown):
        queue.get(timeout=1)


def test_shutdown_immediate(make: Make) -> None:
    queue = make()
    queue.put_many([1, 2])
    queue.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        queue.get()
    queue.join()


def test_shutdown_wakes_who_waits(make: Make) -> None:
    queue = make(1)
    getter = in_thread(queue.get)
    time.sleep(0.05)
    queue.shutdown()
    getter[0].join(30)
    assert getter[1] == [ShutDown]


def test_task_done_and_join(make: Make) -> None:
    queue = make()
    queue.join()
    queue.put_many([1, 2])
    thread, outcome = in_thread(queue.join)
    queue.get_many()
    queue.task_done()
    assert outcome == []
    queue.task_done()
    thread.join(30)
    assert outcome == [None]
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()


def test_close(make: Make) -> None:
    queue = make()
    with queue as entered:
        assert entered is queue
    queue.close()
    for call in (queue.get, queue.qsize, lambda: queue.put(1), queue.shutdown):
        with pytest.raises(QueueClosed):
            call()


def test_queues_of_this_process_refuse_to_travel() -> None:
    for kind in (ObjectQueue, LocalQueue):
        with pytest.raises(TypeError, match='scope="machine"'):
            pickle.dumps(kind())
