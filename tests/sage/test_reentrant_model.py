"""Any sequence of calls with items that act while they are unpickled, against a deque.

An item may put to the queue, take from it, close the handle, fail to decode, or be interrupted. The
model knows three places beside the queue: what a call has taken and not delivered (raw, behind an
item that failed), the items that an interrupted call had decoded, and leases.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
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

from sagequeue import DecodeError, Empty, QueueClosed, SageQueue

KINDS = ["plain", "large", "puts", "takes", "fails", "interrupted"]

machine: ReentrantItems


@dataclass
class Message:
    kind: str
    number: int
    interruptions: int = field(default=1)

    def __reduce__(self) -> Any:
        padding = b"x" * 5000 if self.kind == "large" else b""
        return (unpickled, (self.kind, self.number, padding))


def unpickled(kind: str, number: int, padding: bytes) -> Any:
    return machine.act(kind, number)


class ReentrantItems(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        global machine
        machine = self
        self.other = SageQueue[Any](capacity=1024)
        self.queue = SageQueue[Any].attach(self.other.name)
        self.count = 0
        self.waiting: deque[Message] = deque()
        self.returned: list[Message] = []
        self.taken: list[list[Message]] = []  # batches that wait in the handle, oldest first
        self.decoded: list[Any] = []
        self.leases: list[tuple[Any, Message, bool]] = []
        self.closed = False
        self.interrupted: set[int] = set()

    # ---- what the queue's own code does when it unpickles ----

    def act(self, kind: str, number: int) -> Any:
        if kind == "puts":
            self.queue_or_other().put(("put by", number))
        elif kind == "takes":
            return (number, self.get_from_the_other())
        elif kind == "closes":
            self.queue.close()
        elif kind == "fails":
            raise ValueError(number)
        elif kind == "interrupted" and number not in self.interrupted:
            self.interrupted.add(number)
            raise KeyboardInterrupt
        return (kind, number)

    def get_from_the_other(self) -> Any:
        try:
            return self.other.get_nowait()
        except Empty:
            return None
        except DecodeError:
            return "failed"
        except KeyboardInterrupt:
            return self.other.get_nowait()

    def queue_or_other(self) -> SageQueue[Any]:
        return self.other if self.queue.closed else self.queue

    # ---- the model ----

    def pop(self) -> Any:
        if self.returned:
            first = min(self.returned, key=lambda message: message.number)
            self.returned.remove(first)
            return first
        return self.waiting.popleft()

    def decode(self, message: Any) -> Any:
        """The result the model expects, or the exception."""
        if isinstance(message, tuple):
            return message
        kind, number = message.kind, message.number
        if kind == "puts":
            self.waiting.append(("put by", number))  # type: ignore[arg-type]
        elif kind == "takes":
            if not self.waiting and not self.returned:
                return (number, None)
            message = self.pop()
            inner = self.decode(message)
            if isinstance(inner, KeyboardInterrupt):
                inner = self.decode(message)
            return (number, "failed" if isinstance(inner, DecodeError) else inner)
        elif kind == "closes":
            self.closed = True
        elif kind == "fails":
            return DecodeError(number)
        elif kind == "interrupted" and message.interruptions:
            message.interruptions -= 1
            return KeyboardInterrupt()
        return (kind, number)

    def size(self) -> int:
        return (
            len(self.waiting) + len(self.returned) + sum(map(len, self.taken)) + len(self.decoded)
        )

    # ---- the calls ----

    @rule(kinds=st.lists(st.sampled_from(KINDS), min_size=4, max_size=9), closes=st.integers(0, 30))
    def put_many(self, kinds: list[str], closes: int) -> None:
        kinds[closes : closes + 1] = ["closes"] * (closes < len(kinds))
        messages = [Message(kind, number) for number, kind in enumerate(kinds, self.count)]
        self.count += len(messages)
        self.queue.put_many(messages)
        self.waiting.extend(messages)

    @precondition(size)
    @rule()
    def get(self) -> None:
        self.check_get(None, 1)

    @precondition(size)
    @rule(most=st.integers(1, 8))
    def get_many(self, most: int) -> None:
        self.check_get(most, most)

    def check_get(self, most: int | None, wanted: int) -> None:
        got: Any
        try:
            if most is None:
                got = [self.queue.get(block=False)]
            else:
                got = self.queue.get_many(most, block=False)
        except BaseException as error:
            got = type(error)
        expected = self.expected(wanted, most is None)
        assert got == (type(expected) if isinstance(expected, BaseException) else expected)
        self.after_a_call()

    def expected(self, wanted: int, single: bool) -> Any:
        """What a get is to return or raise; moves the model on."""
        if self.decoded:
            items, self.decoded = self.decoded[:wanted], self.decoded[wanted:]
            return items
        from_handle = bool(self.taken)
        batch = self.taken.pop(0) if from_handle else self.take(wanted)
        items: list[Any] = []
        while True:
            while batch and len(items) < wanted:
                result = self.decode(batch[0])
                if isinstance(result, DecodeError) and items:
                    self.taken.insert(0, batch)
                    return items
                if isinstance(result, BaseException):
                    if isinstance(result, DecodeError):
                        batch.pop(0)
                    if items:
                        self.decoded = items
                    if batch:
                        self.taken.insert(0, batch)
                    return result
                batch.pop(0)
                items.append(result)
            if batch:
                self.taken.insert(0, batch)
            if from_handle or single or len(items) == wanted or self.closed:
                return items
            batch = self.take(wanted - len(items))
            if not batch:
                return items

    def take(self, most: int) -> list[Message]:
        """What one look into the queue takes: of what is delivered again, one."""
        if self.returned:
            return [self.pop()]
        return [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]

    @precondition(lambda self: self.size() > len(self.decoded))
    @rule(most=st.integers(1, 4))
    def claim_many(self, most: int) -> None:
        leases = self.queue.claim_many(most, block=False)
        placed = not self.taken
        if self.taken:
            batch = self.taken.pop(0)
            expected, rest = batch[:most], batch[most:]
            if rest:
                self.taken.insert(0, rest)
        else:
            expected = [
                self.pop() for _ in range(min(most, len(self.returned) + len(self.waiting)))
            ]
        assert len(leases) == len(expected)
        self.leases += [(lease, message, placed) for lease, message in zip(leases, expected)]

    @precondition(lambda self: self.leases)
    @rule(chance=st.integers(0, 1000))
    def release(self, chance: int) -> None:
        lease, message, _ = self.leases.pop(chance % len(self.leases))
        got: Any
        try:
            got = lease.item
        except BaseException as error:
            got = type(error)
        expected = self.decode(message)
        assert got == (type(expected) if isinstance(expected, BaseException) else expected)
        lease.release()
        del lease
        self.after_a_call()

    @precondition(lambda self: self.leases)
    @rule(chance=st.integers(0, 1000))
    def reject(self, chance: int) -> None:
        lease, message, placed = self.leases.pop(chance % len(self.leases))
        if placed and isinstance(message, Message):  # whose number is its place in the queue
            lease.reject()
            self.returned.append(message)
        else:
            lease.release()

    @rule()
    def sizes(self) -> None:
        assert self.queue.qsize() == self.size()

    @precondition(lambda self: self.taken or self.decoded or self.leases)
    @rule()
    def close(self) -> None:
        self.queue.close()
        self.closed = True
        self.after_a_call()

    def after_a_call(self) -> None:
        """Once it is closed all that was not delivered is in the queue, and is dealt with there."""
        if not self.closed:
            return
        with pytest.raises(QueueClosed):
            self.queue.get()
        undelivered = len(self.returned) + len(self.waiting) + len(self.leases)
        undelivered += sum(map(len, self.taken))
        for place in (self.returned, self.taken, self.decoded, self.leases, self.waiting):
            place.clear()  # type: ignore[attr-defined]
        assert self.other.qsize() == undelivered
        for _ in range(undelivered):
            self.other.claim(block=False).release()
        assert self.other.usage().chunks_held == 0
        self.queue = SageQueue[Any].attach(self.other.name)
        self.closed = False

    def teardown(self) -> None:
        if hasattr(self, "other"):
            self.leases.clear()
            self.queue.close()
            self.other.close()


def test_against_the_model() -> None:
    run_state_machine_as_test(
        ReentrantItems,
        settings=settings(
            max_examples=150,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
