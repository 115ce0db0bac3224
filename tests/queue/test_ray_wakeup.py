"""``wakeup()`` of a Ray queue: the call that waits in the actor loses nothing and keeps nothing."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sagequeue import Empty, RayQueue, ray_queue

TAKES: dict[str, Callable[[RayQueue[Any]], Any]] = {
    "get": lambda queue: queue.get(),
    "get_many": lambda queue: queue.get_many()[0],
    "claim": lambda queue: queue.claim("us:1").item,
    "claim_many": lambda queue: queue.claim_many("us:1")[0].item,
}
each_take = pytest.mark.parametrize("take", TAKES.values(), ids=TAKES.keys())


@pytest.fixture
def queue(ray_cluster: None) -> Iterator[RayQueue[Any]]:
    with RayQueue[Any]() as made:
        yield made


def be_woken(queue: RayQueue[Any], take: Callable[[RayQueue[Any]], Any]) -> None:
    with pytest.raises(Empty, match="wakeup"):
        take(queue)


@each_take
def test_a_call_that_was_ended_takes_nothing(
    queue: RayQueue[Any],
    take: Callable[[RayQueue[Any]], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_queue, "PATIENCE", 3600.0)  # calls end by wakeup() or not at all
    for number in range(20):
        thread = threading.Thread(target=be_woken, args=(queue, take))
        thread.start()
        while not queue._waiting and thread.is_alive():
            thread.join(0.001)
        queue.wakeup()
        thread.join(60)
        queue.put(number)
        with pickle.loads(pickle.dumps(queue)) as other:
            assert take(other) == number


@each_take
def test_a_broker_that_does_not_answer_holds_nobody_up_and_keeps_nothing(
    queue: RayQueue[Any], take: Callable[[RayQueue[Any]], Any]
) -> None:
    import ray

    pid = ray.get(queue._actor.__ray_call__.remote(lambda broker: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        queue.wakeup()
        be_woken(queue, take)
    finally:
        os.kill(pid, signal.SIGCONT)
    queue.put("an item")  # which the call that is still there may take
    assert take(queue) == "an item"
    assert queue.qsize() == 0


@each_take
def test_a_take_that_ctrl_c_breaks_off_keeps_what_its_call_is_given(
    queue: RayQueue[Any], take: Callable[[RayQueue[Any]], Any]
) -> None:
    def put_and_interrupt(*_: object) -> None:
        queue.put("first")  # given to the call that is broken off
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, put_and_interrupt)
    try:
        sender = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            take(queue)
        sender.join()
        queue.put("second")
        assert [take(queue), take(queue)] == ["first", "second"]
    finally:
        signal.signal(signal.SIGUSR1, before)
