"""A source that fails: the task and the job end with its error, whatever else happens then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from waiting import in_other_thread, until

from sagequeue import create_queue
from sageruntime import (
    IDLE,
    CheckpointOptions,
    Connection,
    IterableSource,
    LocalTask,
    OperatorFactory,
    Pipeline,
    TaskContext,
    TaskOptions,
    TaskState,
)
from sageruntime.errors import DownstreamClosed, JobFailed, PacketError, TaskStateError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it

# Longer than a source's results wait for a batch to be full.
FLUSHED = 0.1


class Unsendable:
    """Takes its time, as a large object does, and does not pickle."""

    def __reduce__(self) -> Any:
        time.sleep(2 * FLUSHED)
        raise TypeError("of no use elsewhere")


def chain(error: BaseException | None) -> list[BaseException]:
    """An error and its causes."""
    return [] if error is None else [error, *chain(error.__cause__)]


# The task downstream ends while the source waits for room there.


@pytest.mark.parametrize("then", ["its end", "drain", "drain twice", "pause"])
def test_when_the_task_downstream_ends(then: str, tidy: Any) -> None:
    go_on = threading.Event()
    read = threading.Event()

    def items() -> Iterator[Any]:
        yield 1
        time.sleep(FLUSHED)  # what was read is sent by now, or waits for room
        yield 2  # gathered, and not sent before the first
        read.set()
        while then != "its end" and not go_on.is_set():
            yield IDLE
            time.sleep(0.001)

    queue = create_queue(scope="thread", maxsize=1)
    queue.put("full")
    task = tidy(LocalTask(TaskContext("source"), OperatorFactory(IterableSource, items)))
    task.router.add_connection(Connection("down", queue))
    task.start_running()
    try:
        read.wait(2 * FLUSHED)  # it is not set if the source itself waits for room
        if then.startswith("drain"):
            for _ in range(then.count(" ") + 1):
                in_other_thread(lambda: task.stop(drain=True, timeout=0))
        elif then == "pause":
            in_other_thread(task.pause)
        task.join(FLUSHED)  # it does so, as far as it can
        queue.shutdown(immediate=True)
        if then == "pause":
            with suppress(TaskStateError):  # it has failed already: what it had read was on its way
                in_other_thread(task.resume)
        go_on.set()
        assert in_other_thread(lambda: task.join(20)), task.state
    finally:
        go_on.set()
    assert task.state is TaskState.FAILED
    assert any(isinstance(error, DownstreamClosed) for error in chain(task.get_report().error))
    assert "down has ended" in (task.get_status().error or "")


# Something it has read cannot be sent.


def ends() -> Iterator[Any]:
    """While it is being sent, the source ends."""
    yield Unsendable()
    time.sleep(FLUSHED)
    yield 2


def goes_on() -> Iterator[Any]:
    """While it is being sent, the source reads on for ever, and may be told to end."""
    yield Unsendable()
    while True:
        yield 2
        time.sleep(0.001)


@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpoints"])
def test_when_something_cannot_be_sent(host: Any, checkpoints: bool, tmp_path: Path) -> None:
    sink = "process" if host == "thread" else host  # a thread of this process gets it as it is
    pipeline = Pipeline("unsendable").source(ends, on=host).sink(on=sink)
    options = CheckpointOptions(tmp_path / "c.db", interval=0.02) if checkpoints else None
    check_that_it_fails(pipeline.start(checkpoint=options))


@pytest.mark.parametrize("then", ["stop", "pause", "stop each task"])
@pytest.mark.parametrize("on", ["thread", "process"])
def test_when_something_cannot_be_sent_and_the_job(on: Any, then: str) -> None:
    job = Pipeline("unsendable").source(goes_on, on=on).sink(on="process").start()
    try:
        source = job.tasks[0][0]
        # stopped before it has read anything, a source would have nothing to send
        assert until(lambda: source.get_status().processed > 0 or source.state.ended)
        if then == "stop":
            in_other_thread(job.stop)
        elif then == "pause":
            with suppress(TaskStateError):  # it has failed already
                in_other_thread(source.pause)
                in_other_thread(source.resume)
        else:
            for tasks in job.tasks:
                for task in tasks:
                    in_other_thread(lambda task=task: task.stop(timeout=0))
    finally:
        check_that_it_fails(job)


def check_that_it_fails(job: Any) -> None:
    try:
        assert in_other_thread(lambda: job.wait(20)), [t.state for ts in job.tasks for t in ts]
        with pytest.raises(JobFailed, match="of no use elsewhere") as failure:
            in_other_thread(job.result)
        assert isinstance(failure.value.__cause__, PacketError)
    finally:
        in_other_thread(job.close)


def test_when_something_cannot_be_sent_and_is_skipped(far_host: Any) -> None:
    options = TaskOptions(error_policy="skip")  # type: ignore[arg-type]
    pipeline = Pipeline("unsendable", options=options).source(ends, on=far_host)
    with pipeline.sink(on=far_host).start() as job:
        assert job.wait(20)
        result = job.result()
    assert result.sink_result == [2]
    assert result.stages[0].errors == 1


# It raises.


@pytest.mark.parametrize("then", ["nothing", "drain", "pause", "pause and drain"])
def test_when_it_raises(then: str, tidy: Any) -> None:
    reading = threading.Event()
    go_on = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        reading.set()
        go_on.wait()
        raise OSError("the disk is gone")

    task = tidy(LocalTask(TaskContext("source"), OperatorFactory(IterableSource, items)))
    task.router.add_connection(Connection("down", create_queue(scope="thread")))
    task.start_running()
    try:
        assert reading.wait(20)
        if "pause" in then:
            in_other_thread(task.pause)
        if "drain" in then:
            in_other_thread(lambda: task.stop(drain=True, timeout=0))
    finally:
        go_on.set()
    if then == "pause":
        with suppress(TaskStateError):  # it has failed already
            in_other_thread(task.resume)
    assert in_other_thread(lambda: task.join(20))
    assert task.state is TaskState.FAILED
    assert isinstance(task.get_report().error, OSError)
    assert "the disk is gone" in (task.get_status().error or "")
