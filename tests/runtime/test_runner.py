"""The runner by itself: an answer may come before it looks whether there is one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from waiting import until

from sagequeue import create_queue
from sagequeue.protocol import Queue
from sageruntime import (
    BaseOperator,
    BaseRouter,
    IterableSource,
    OperatorFactory,
    Packet,
    TaskContext,
    TaskOptions,
    TaskStateError,
)
from sageruntime.communication.router import Message, PacketBatch
from sageruntime.operator import CollectSink
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.task_runner import TaskRunner, TaskSpec


class Answering:
    """A runner whose every event is answered before it goes on.

    Args:
        operator: makes the operator.
        arguments: of the operator.
    """

    def __init__(self, operator: type[BaseOperator], *arguments: Any) -> None:
        ctx = TaskContext("answered")
        self.queue: Queue[Message] = create_queue(scope="thread")
        self.events: list[told.Event] = []
        self.checkpoints = 0
        self.restores = True
        spec = TaskSpec(
            ctx, OperatorFactory(operator, *arguments), None, TaskOptions(), self.queue, None,
            coordinated=True,
        )  # fmt: skip
        self.runner = TaskRunner(
            spec, host="thread", keeps=True, task=None, tell=self.answer, router=BaseRouter(ctx),
            plugins=None,
        )  # fmt: skip

    def answer(self, event: told.Event) -> None:
        self.events.append(event)
        if isinstance(event, told.Exhausted | told.CheckpointWanted):
            self.checkpoints += 1
            self.runner.post(do.TakeCheckpoint(self.checkpoints))
        elif isinstance(event, told.SnapshotTaken):
            time.sleep(0.02)  # other mails have come, too, and it takes all at once
            self.runner.post(do.CheckpointCompleted(event.checkpoint))
            self.runner.post(do.Release())
        elif isinstance(event, told.Completed):
            self.runner.post(do.Dismiss())
        elif isinstance(event, told.Failed | told.Halted) and self.restores:
            self.runner.post(do.Restore(event.attempt + 1))

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self.runner.run, daemon=True)
        thread.start()
        return thread

    def run(self) -> told.Ended:
        """Run it to its end; what it tells last."""
        self.start().join(20)
        last = self.events[-1]
        assert isinstance(last, told.Ended), f"it waits after {last}"
        return last


def test_a_source_that_is_released_at_once_ends() -> None:
    answering = Answering(IterableSource, [1, 2, 3])
    answering.run()
    assert [type(event) for event in answering.events] == [
        told.Running, told.Exhausted, told.SnapshotTaken, told.Draining, told.Finished,
        told.Completed, told.Ended,
    ]  # fmt: skip


def test_a_task_that_wants_a_checkpoint_goes_on_when_it_is_complete_at_once() -> None:
    answering = Answering(CollectSink)
    for n in range(5_000):  # more than it keeps unacknowledged
        answering.queue.put(PacketBatch([Packet(n)]))
    answering.runner.post(do.Stop(drain=True))
    assert answering.run().report.result == list(range(5_000))
    assert answering.checkpoints


class FailsOnce(CollectSink):
    """The first one ever made fails on its first packet."""

    made = 0

    def open(self) -> None:
        FailsOnce.made += 1

    def process(self, packet: Packet) -> None:
        if FailsOnce.made == 1:
            raise ValueError("as told")
        super().process(packet)


@pytest.mark.parametrize("halted", [False, True])
def test_a_task_that_is_restored_at_once_goes_on(
    halted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailsOnce, "made", int(halted))
    answering = Answering(FailsOnce)
    answering.queue.put(PacketBatch([Packet(1)]))
    answering.runner.post(do.Halt() if halted else do.Stop(drain=True))
    if halted:
        answering.runner.post(do.Stop(drain=True))
    assert answering.run().report.result == [1]
    left_off = told.Halted if halted else told.Failed
    assert [type(event) for event in answering.events].count(left_off) == 1


@pytest.mark.parametrize("restored", [True, False])
def test_a_packet_given_between_two_attempts_is_processed_by_the_next_or_refused(
    restored: bool,
) -> None:
    answering = Answering(CollectSink)
    answering.restores = False
    running = answering.start()
    answering.runner.post(do.Halt())
    assert until(lambda: any(isinstance(event, told.Halted) for event in answering.events))
    with ThreadPoolExecutor(1) as pool:
        processed = pool.submit(answering.runner.process_packet, Packet(1))
        time.sleep(0.05)  # it is taken out of the mailbox
        if restored:
            answering.runner.post(do.Restore(1))
            processed.result(20)
            answering.runner.post(do.Stop(drain=True))
        else:
            answering.runner.post(do.Stop(drain=False))
            with pytest.raises(TaskStateError, match="is stopped and processes no packets"):
                processed.result(20)
    running.join(20)
    last = answering.events[-1]
    assert isinstance(last, told.Ended)
    assert last.report.result == ([1] if restored else None)
