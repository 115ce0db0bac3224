"""``wakeup()`` of a queue that other processes, or their forked children, take from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from forked import in_child
from threaded import in_thread

from sagequeue import Empty, LocalQueue, ObjectQueue, Queue, SageQueue


@pytest.mark.parametrize("make", [SageQueue, ObjectQueue, LocalQueue])
def test_a_forked_child_begins_without_it(make: Callable[[], Queue[Any]]) -> None:
    queue = make()

    def take() -> None:
        with pytest.raises(Empty) as caught:
            queue.get(timeout=0.01)
        assert "wakeup" not in str(caught.value)
        queue.wakeup()
        with pytest.raises(Empty, match="wakeup"):
            queue.get()

    queue.wakeup()
    in_child(take)
    with pytest.raises(Empty, match="wakeup"):
        queue.get()
    queue.close()


def test_other_participants_are_not_woken() -> None:
    with SageQueue[str]() as ours, SageQueue[str].attach(ours.name) as theirs:
        waiting, outcome = in_thread(theirs.get)
        waiting.join(0.05)
        ours.wakeup()
        with pytest.raises(Empty, match="wakeup"):
            ours.get()
        ours.put("an item")
        waiting.join(60)
        assert outcome == ["an item"]


def test_who_waits_for_a_lease_is_woken() -> None:
    with SageQueue[int](capacity=2) as queue:
        leases = []
        for number in range(2):
            queue.put(number)
            leases.append(queue.claim())
        queue.put(2)
        waiting, outcome = in_thread(queue.claim)
        waiting.join(0.05)
        queue.wakeup()
        waiting.join(60)
        assert outcome == [Empty]
        leases.pop().release()
        assert queue.claim().item == 2
