"""Any sequence of calls does to our queues what it does to the model: a deque with a limit."""

from __future__ import annotations

from collections import deque
from typing import Any

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


class AgainstTheModel(RuleBasedStateMachine):
    """Checks every result against the model."""

    kind = "sage"
    mode: Any = "mpmc"

    @initialize(maxsize=st.sampled_from([0, 1, 2, 3, 7]))
    def make(self, maxsize: int) -> None:
        self.limit = maxsize
        self.model: deque[Any] = deque()
        self.unfinished = 0
        self.is_shutdown = False
        if self.kind == "sage":
            self.queue: Any = SageQueue(maxsize, mode=self.mode, capacity=64, pool_bytes=64 << 10)
            self.limit = maxsize or 64
        else:
            self.queue = {"object": ObjectQueue, "local": LocalQueue}[self.kind](maxsize)

    def room(self) -> int:
        return self.limit - len(self.model) if self.limit else 1 << 30

    def taken(self, result: Any) -> None:
        assert result == self.model.popleft()

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
        self.model.append(item)
        self.unfinished += 1

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
        self.model.extend(many[:accepted])
        self.unfinished += accepted

    @rule(block=st.booleans())
    def get(self, block: bool) -> None:
        if self.model:
            self.taken(self.queue.get(block, 0))
        else:
            with pytest.raises(ShutDown if self.is_shutdown else Empty):
                self.queue.get(block, 0)

    @rule(most=st.one_of(st.none(), st.integers(1, 8)))
    def get_many(self, most: int | None) -> None:
        if not self.model:
            with pytest.raises(ShutDown if self.is_shutdown else Empty):
                self.queue.get_many(most, False)
            return
        expected = min(len(self.model), most or len(self.model))
        results = self.queue.get_many(most, False)
        assert len(results) == expected
        for result in results:
            self.taken(result)

    @rule()
    def sizes(self) -> None:
        assert self.queue.qsize() == len(self.model)
        assert self.queue.empty() == (not self.model)
        assert self.queue.full() == (self.room() <= 0)

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

    @precondition(lambda self: self.kind == "sage" and not self.is_shutdown)
    @rule()
    def through_another_handle(self) -> None:
        """The queue goes on under a handle attached by name; the first one leaves."""
        other = SageQueue.attach(self.queue.name)
        self.queue.close()
        self.queue = other

    def teardown(self) -> None:
        if hasattr(self, "queue"):
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
