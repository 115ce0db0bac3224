"""Any sequence of calls does to our queues what it does to the model: a deque with a limit.

The standard ``queue.Queue`` is a deque with a limit too, but knows no batches and no claims. Beside
it stand the messages that are claimed, and those given back, which come first, oldest first.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sagequeue import Empty, Full, LocalQueue, ObjectQueue, SageQueue, ShutDown

MODES = ["spsc", "mpsc", "spmc", "mpmc"]

items = st.one_of(
    st.integers(),
    st.text(max_size=5),
    st.integers(0, 400).map(bytes),  # around the size of a slot
    st.sampled_from([70_000, 200_000]).map(bytes),  # larger than the pool
    st.lists(st.integers(), max_size=3),
)


LEASES_MOST = 48  # of a queue of 64 slots, so that a claim always finds room for one more


class Message(NamedTuple):
    """An item, and how often it was given back."""

    position: int
    item: Any
    deliveries: int = 0


class AgainstTheModel(RuleBasedStateMachine):
    """Checks every result against the model."""

    kind = "sage"
    mode: Any = "mpmc"

    @initialize(maxsize=st.sampled_from([0, 1, 2, 3, 7]))
    def make(self, maxsize: int) -> None:
        self.limit = maxsize
        self.model: deque[Message] = deque()
        self.returned: list[Message] = []
        self.leases: list[tuple[Any, Message]] = []
        self.position = 0
        self.unfinished = 0
        self.is_shutdown = False
        self.is_dropped = False
        if self.kind == "sage":
            self.queue: Any = SageQueue(maxsize, mode=self.mode, capacity=64, pool_bytes=64 << 10)
            self.limit = maxsize or 64
        else:
            self.queue = {"object": ObjectQueue, "local": LocalQueue}[self.kind](maxsize)

    def room(self) -> int:
        return self.limit - len(self.model) if self.limit else 1 << 30

    def accepted(self, *items: Any) -> None:
        for item in items:
            self.model.append(Message(self.position, item))
            self.position += 1
        self.unfinished += len(items)

    def next(self) -> Message:
        """What is to be delivered now."""
        if not self.returned:
            return self.model.popleft()
        first = min(self.returned)
        self.returned.remove(first)
        return first

    def ready(self) -> int:
        return len(self.returned) + len(self.model)

    def size(self) -> int:
        return min(self.ready(), self.limit) if self.limit else self.ready()

    @rule(item=items, nowait=st.booleans())
    def put(self, item: Any, nowait: bool) -> None:
        expected: type[Exception] | None = None
        if self.is_shutdown:
            expected = ShutDown
        elif self.room() <= 0:
            expected = Full
        if expected is not None:
            with pytest.raises(expected):
                self.queue.put(item, not nowait, 0)
            return
        self.queue.put(item, not nowait, 0)
        self.accepted(item)

    @rule(many=st.lists(items, max_size=10), as_iterator=st.booleans())
    def put_many(self, many: list[Any], as_iterator: bool) -> None:
        argument: Any = iter(many) if as_iterator else many
        accepted = 0 if self.is_shutdown else min(len(many), max(0, self.room()))
        if accepted == len(many) and not self.is_shutdown:
            assert self.queue.put_many(argument, False) == len(many)
        elif many:
            with pytest.raises(ShutDown if self.is_shutdown else Full) as caught:
                self.queue.put_many(argument, False)
            assert caught.value.accepted == accepted
        self.accepted(*many[:accepted])

    @rule(block=st.booleans())
    def get(self, block: bool) -> None:
        if self.ready():
            assert self.queue.get(block, 0) == self.next().item
        else:
            with pytest.raises(ShutDown if self.is_shutdown else Empty):
                self.queue.get(block, 0)

    @rule(most=st.one_of(st.none(), st.integers(1, 8)))
    def get_many(self, most: int | None) -> None:
        if not self.ready():
            with pytest.raises(ShutDown if self.is_shutdown else Empty):
                self.queue.get_many(most, False)
            return
        expected = min(self.size(), most or self.size())
        results = self.queue.get_many(most, False)
        assert results == [self.next().item for _ in range(expected)]

    @precondition(lambda self: self.kind == "sage" and len(self.leases) < LEASES_MOST)
    @rule(most=st.one_of(st.none(), st.integers(1, 8)))
    def claim(self, most: int | None) -> None:
        """One, or at most so many."""
        room = LEASES_MOST - len(self.leases)
        if not self.ready():
            with pytest.raises(ShutDown if self.is_shutdown else Empty):
                self.queue.claim(block=False)
        elif most is None:
            self.claimed([self.queue.claim(block=False)], 1)
        else:
            most = min(most, room)
            self.claimed(self.queue.claim_many(most, block=False), min(most, self.ready()))

    def claimed(self, leases: list[Any], expected: int) -> None:
        assert len(leases) == expected
        for lease in leases:
            message = self.next()
            assert (lease.item, lease.deliveries) == (message.item, message.deliveries)
            assert lease.redelivered == (message.deliveries > 0)
            self.leases.append((lease, message))

    @precondition(lambda self: self.kind == "sage" and self.leases)
    @rule(chance=st.integers(0, 1000), way=st.sampled_from(["release", "drop", "reject", "forget"]))
    def end_a_lease(self, chance: int, way: str) -> None:
        lease, message = self.leases.pop(chance % len(self.leases))
        if way == "release":
            lease.release()
        elif way == "drop":
            lease.reject(requeue=False)
        elif way == "reject":
            lease.reject()
        del lease
        if way in ("reject", "forget") and not self.is_dropped:
            self.returned.append(message._replace(deliveries=message.deliveries + 1))

    @rule()
    def sizes(self) -> None:
        assert self.queue.qsize() == self.size()
        assert self.queue.empty() == (not self.size())
        assert self.queue.full() == (bool(self.limit) and self.size() >= self.limit)

    @rule()
    def task_done(self) -> None:
        if self.unfinished:
            self.queue.task_done()
            self.unfinished -= 1
        else:
            with pytest.raises(ValueError, match="too many"):
                self.queue.task_done()
            self.queue.join()

    @precondition(lambda self: not self.is_shutdown)
    @rule(immediate=st.sampled_from([False, False, True]))
    def shutdown(self, immediate: bool) -> None:
        self.queue.shutdown(immediate)
        self.is_shutdown = True
        if immediate:
            self.unfinished = max(0, self.unfinished - len(self.model))
            self.model.clear()
            self.returned.clear()
            self.is_dropped = True

    @precondition(lambda self: self.kind == "sage" and not self.is_shutdown and not self.leases)
    @rule()
    def through_another_handle(self) -> None:
        """The queue goes on under a handle attached by name; the first one leaves."""
        other = SageQueue.attach(self.queue.name)
        self.queue.close()
        self.queue = other

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.leases.clear()
            self.queue.close()


@pytest.mark.parametrize(
    ("kind", "mode"), [*(("sage", mode) for mode in MODES), ("object", ""), ("local", "")]
)
def test_against_the_model(kind: str, mode: str) -> None:
    machine = type("Machine", (AgainstTheModel,), {"kind": kind, "mode": mode})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
