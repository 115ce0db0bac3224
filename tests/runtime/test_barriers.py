"""Alignment: what is held back for barriers, message by message."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sageruntime import LocalTask, OperatorFactory, Packet, StopSignal, TaskContext, TaskState
from sageruntime.communication.router import Barrier, Message, PacketBatch
from sageruntime.operator import CollectSink
from sageruntime.recovery.checkpoint import FINAL_CHECKPOINT
from sageruntime.runner.alignment import Alignment
from sageruntime.runner.events import Completed, SnapshotTaken
from sageruntime.runner.inbox import Delivery


def batch(sender: str, packets: int = 1) -> Delivery:
    return Delivery(PacketBatch([Packet(n) for n in range(packets)], sender=sender))


def test_a_sender_is_held_back_behind_its_barrier_until_all_have_come() -> None:
    alignment = Alignment(2, 10)
    alignment.note(Barrier(1, "a"))
    assert alignment.holds_back("a")
    assert not alignment.holds_back("b")
    held = batch("a")
    assert alignment.hold(held)
    assert not alignment.is_complete(set())
    alignment.note(Barrier(1, "b"))
    assert alignment.is_complete(set())
    assert alignment.release() == [held]
    assert not alignment.holds_back("a")


def test_a_sender_that_has_ended_needs_no_barrier() -> None:
    alignment = Alignment(2, 10)
    alignment.note(Barrier(1, "a"))
    assert alignment.is_complete({"b"})


def test_no_more_than_the_limit_is_held_back() -> None:
    alignment = Alignment(2, 10)
    alignment.note(Barrier(1, "a"))
    assert alignment.hold(batch("a", 6))
    assert not alignment.hold(batch("a", 5))
    assert alignment.held == 6
    assert len(alignment.release()) == 2, "what has no room is not lost"


def test_barriers_of_a_checkpoint_that_was_given_up_hold_nobody_back() -> None:
    alignment = Alignment(2, 10)
    alignment.note(Barrier(1, "a"))
    held = batch("a")
    alignment.hold(held)
    assert alignment.abort(1) == [held]
    alignment.note(Barrier(1, "b"))
    assert not alignment.holds_back("b")
    assert alignment.abort(2) == []  # before any of its barriers
    alignment.note(Barrier(2, "a"))
    assert not alignment.holds_back("a")
    alignment.note(Barrier(3, "a"))
    assert alignment.holds_back("a")


def test_a_newer_barrier_ends_the_wait_for_an_older_one() -> None:
    alignment = Alignment(2, 10)
    alignment.note(Barrier(1, "a"))
    held = batch("a")
    alignment.hold(held)
    assert not alignment.is_overtaken_by(Barrier(1, "b"))
    assert alignment.is_overtaken_by(Barrier(2, "b"))
    assert alignment.release() == [held]
    alignment.note(Barrier(2, "b"))
    assert alignment.checkpoint == 2
    assert not alignment.holds_back("a")
    alignment.note(Barrier(1, "a"))
    assert alignment.checkpoint == 2, "an older one is ignored"
    assert not alignment.holds_back("a")


Step = tuple[str, Message | None]


@st.composite
def streams(draw: st.DrawFn) -> list[Step]:
    """What two senders send, in one order of many, and when checkpoints are given up.

    Each step is a message of a sender, or the number of a checkpoint that is given up.
    """
    senders = {name: deque(_stream(name, draw(st.lists(st.integers(0, 2), min_size=5, max_size=5))))
               for name in ("a", "b")}  # fmt: skip
    steps: list[Step] = []
    for name in draw(st.permutations("a" * 12 + "b" * 12)):
        if senders[name]:
            steps.append((name, senders[name].popleft()))
    for name, left in senders.items():
        steps.extend((name, message) for message in left)
    for checkpoint in draw(st.lists(st.integers(1, 5), max_size=2, unique=True)):
        steps.insert(draw(st.integers(0, len(steps))), (str(checkpoint), None))
    return steps


def _stream(sender: str, sizes: list[int]) -> Iterator[Message]:
    """Up to two batches before each barrier, then the end."""
    for checkpoint, size in enumerate(sizes, 1):
        for n in range(size):
            yield PacketBatch([Packet(f"{sender} {checkpoint} {n}")], sender=sender)
        yield Barrier(checkpoint, sender)
    yield StopSignal(sender)


class Snapshots:
    """A supervisor that keeps what the states have in them."""

    def __init__(self) -> None:
        self.seen: dict[int, list[str]] = {}
        self.completed = threading.Event()

    def on_event(self, task: Any, event: Any) -> None:
        if isinstance(event, SnapshotTaken):
            self.seen[event.checkpoint] = pickle.loads(event.state)
        elif isinstance(event, Completed):
            self.seen[FINAL_CHECKPOINT] = pickle.loads(event.state)
            self.completed.set()


@given(streams())
def test_a_snapshot_has_what_came_before_its_barriers_and_nothing_else(steps: list[Step]) -> None:
    """Also when a checkpoint is given up, and a task hears of that before or after the next."""
    supervisor = Snapshots()
    task = LocalTask(
        TaskContext("aligned", upstreams=2), OperatorFactory(CollectSink),
        supervisor=supervisor, coordinated=True,
    )  # fmt: skip
    for name, message in steps:
        if message is not None:
            task.input_buffer.put(message)
        else:
            if task.state is TaskState.CREATED:
                task.start_running()
            task.abort_checkpoint(int(name))
    if task.state is TaskState.CREATED:  # nobody is told of anything
        task.start_running()
    assert supervisor.completed.wait(20)
    task.dismiss()
    task.cleanup()
    result = supervisor.seen.pop(FINAL_CHECKPOINT)
    sent = [m.packets[0].payload for _, m in steps if isinstance(m, PacketBatch)]
    assert sorted(result) == sorted(sent)
    for checkpoint, state in supervisor.seen.items():
        assert sorted(state) == sorted(one for one in sent if int(one.split()[1]) <= checkpoint)
