"""``wakeup()``: it ends the wait of a take, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from threaded import in_thread

from sagequeue import (
    Empty,
    LocalQueue,
    ObjectQueue,
    Queue,
    QueueClosed,
    RayQueue,
    SageQueue,
    ShutDown,
    ray_queue,
)

KINDS: dict[str, Callable[[], Queue[Any]]] = {
    "sage": SageQueue,
    "object": ObjectQueue,
    "local": LocalQueue,
    "ray": RayQueue,
}
TAKES: dict[str, Callable[..., Any]] = {
    "get": lambda queue, **wait: queue.get(**wait),
    "get_many": lambda queue, **wait: queue.get_many(8, **wait),
    "claim": lambda queue, **wait: queue.claim(*claimant(queue), **wait),
    "claim_many": lambda queue, **wait: queue.claim_many(*claimant(queue), 8, **wait),
}


def claimant(queue: Queue[Any]) -> tuple[str, ...]:
    return ("us:1",) if isinstance(queue, RayQueue) else ()


PAIRS = [
    (kind, take)
    for kind in KINDS
    for take in TAKES
    if kind in ("sage", "ray") or take.startswith("get")
]


@pytest.fixture(params=KINDS)
def queue(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue[Any]]:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
        monkeypatch.setattr(ray_queue, "POLL_SECONDS", 3600.0)
    with KINDS[request.param]() as made:
        yield made


each_take = pytest.mark.parametrize(
    ("queue", "take"),
    [pytest.param(kind, TAKES[take], id=f"{kind}-{take}") for kind, take in PAIRS],
    indirect=["queue"],
)


@pytest.mark.parametrize("seconds_first", [0, 0.05], ids=["before or at it", "asleep"])
@each_take
def test_a_take_that_waits_for_ever_ends(
    queue: Queue[Any], take: Callable[..., Any], seconds_first: float
) -> None:
    thread, outcome = in_thread(lambda: take(queue))
    thread.join(seconds_first)
    queue.wakeup()
    thread.join(60)
    assert outcome == [Empty]


@each_take
def test_it_is_kept_for_the_next_take_that_would_wait(
    queue: Queue[Any], take: Callable[..., Any]
) -> None:
    queue.wakeup()
    queue.wakeup()
    with pytest.raises(Empty):
        take(queue, block=False)  # which does not wait, and leaves it
    with pytest.raises(Empty, match="wakeup"):
        take(queue)
    with pytest.raises(Empty) as caught:
        take(queue, timeout=0.01)
    assert "wakeup" not in str(caught.value)  # two were one


@each_take
def test_a_take_that_finds_an_item_leaves_it(queue: Queue[Any], take: Callable[..., Any]) -> None:
    queue.wakeup()
    queue.put_many(range(8))
    items = take(queue)
    assert queue.qsize() == (0 if isinstance(items, list) else 7)
    while not queue.empty():
        queue.get()
    with pytest.raises(Empty, match="wakeup"):
        take(queue)


@each_take
def test_one_of_two_that_wait_ends(queue: Queue[Any], take: Callable[..., Any]) -> None:
    waiting = [in_thread(lambda: take(queue)) for _ in range(2)]
    queue.wakeup()
    while all(thread.is_alive() for thread, _ in waiting):
        waiting[0][0].join(0.01)
    queue.put("an item")
    for thread, _ in waiting:
        thread.join(60)
    outcomes = [outcome[0] for _, outcome in waiting]
    assert outcomes.count(Empty) == 1


def test_puts_and_join_wait_on() -> None:
    for queue in (SageQueue[int](1), ObjectQueue[int](1), LocalQueue[int](1)):
        with queue:
            queue.put(1)
            putting, put = in_thread(lambda queue=queue: queue.put(2))
            joining, joined = in_thread(queue.join)
            queue.wakeup()
            putting.join(0.05)
            assert put == joined == []
            assert queue.get() == 1
            putting.join(60)
            assert queue.get() == 2
            with pytest.raises(Empty, match="wakeup"):
                queue.get()
            queue.task_done()
            queue.task_done()
            joining.join(60)
            assert put == joined == [None]


@each_take
def test_no_wakeup_is_missed(queue: Queue[Any], take: Callable[..., Any]) -> None:
    rounds = 300

    def be_woken() -> int:
        woken = 0
        for _ in range(rounds):
            try:
                take(queue)
            except Empty:
                woken += 1
            took.release()
        return woken

    took = threading.Semaphore(0)
    thread, outcome = in_thread(be_woken)
    for _ in range(rounds):
        queue.wakeup()
        assert took.acquire(timeout=60)
    thread.join(60)
    assert outcome == [rounds]


def test_a_signal_handler_wakes_the_take_it_interrupts(queue: Queue[Any]) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: queue.wakeup())
    try:
        sender = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        sender.start()
        with pytest.raises(Empty, match="wakeup"):
            queue.get()
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


@each_take
def test_the_end_of_the_queue_comes_before_it(queue: Queue[Any], take: Callable[..., Any]) -> None:
    queue.wakeup()
    queue.shutdown()
    with pytest.raises(ShutDown):
        take(queue)


@each_take
def test_a_closed_queue_ignores_it(queue: Queue[Any], take: Callable[..., Any]) -> None:
    queue.close()
    queue.wakeup()
    with pytest.raises(QueueClosed):
        take(queue)
