"""Listeners: whatever one does, and however long it takes, its task does not notice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import in_other_thread, until

from sageruntime import (
    BaseTask,
    CheckpointOptions,
    CollectSink,
    FunctionSink,
    LocalTask,
    OperatorFactory,
    Packet,
    Pipeline,
    TaskContext,
    TaskOptions,
    TaskState,
)
from sageruntime.errors import PacketError
from sageruntime.recovery import Checkpoint
from sageruntime.recovery.sqlite_store import SqliteCheckpointStore
from sageruntime.task.process_task import ProcessTask

WHOLE_LIFE = [TaskState.STARTING, TaskState.RUNNING, TaskState.DRAINING, TaskState.STOPPED]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What listeners wait for; it opens when the test has ended, if not before."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def task(task_class: Any, tidy: Any, gate: threading.Event) -> Any:
    """One of each type, which collects; the gate is open when it is cleaned up."""
    return tidy(task_class(TaskContext("listened"), OperatorFactory(CollectSink)))


def live(task: Any) -> None:
    """Let the task work on one packet and end; none of the calls hangs."""
    in_other_thread(task.start_running)
    in_other_thread(lambda: task.put_packet(Packet("all")))
    assert until(lambda: task.get_status().processed == 1)
    assert in_other_thread(lambda: task.stop(timeout=20))
    assert in_other_thread(lambda: task.join(0))
    assert task.state is TaskState.STOPPED
    assert task.get_report().result == ["all"]


def test_a_late_listener_is_told_of_each_state(task: Any, gate: threading.Event) -> None:
    told: list[TaskState] = []
    over = threading.Event()

    def late(task: BaseTask) -> None:
        told.append(task.state)
        gate.wait()
        told.append(task.state)  # the same, whatever the task's state is by now
        if task.state.ended:
            over.set()

    task.add_listener(late)
    live(task)
    assert task.state is TaskState.STOPPED
    gate.set()
    assert over.wait(20)
    assert told == [state for state in WHOLE_LIFE for _ in range(2)]


@pytest.mark.parametrize("state", WHOLE_LIFE)
def test_a_listener_that_never_returns(task: Any, state: TaskState, gate: threading.Event) -> None:
    def stays(task: BaseTask) -> None:
        if task.state is state:
            gate.wait()

    task.add_listener(stays)
    live(task)
    in_other_thread(task.cleanup)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_listener_that_raises(
    task: Any, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[TaskState] = []
    over = threading.Event()

    def fragile(task: BaseTask) -> None:
        raise error("of the listener")

    def sound(task: BaseTask) -> None:
        told.append(task.state)
        if task.state.ended:
            over.set()

    task.add_listener(fragile)
    task.add_listener(sound)
    live(task)
    assert over.wait(20)
    assert told == WHOLE_LIFE
    logged = [record for record in caplog.records if "fragile" in record.getMessage()]
    assert logged
    assert "of the listener" in str(logged[0].exc_info and logged[0].exc_info[1])


def test_a_listener_may_call_whatever_a_task_has(task: Any) -> None:
    done: list[Any] = []
    over = threading.Event()

    def busy(task: BaseTask) -> None:
        if task.state is TaskState.RUNNING:
            task.pause()
            task.put_packet(Packet("of the listener"))
            task.resume()
            task.get_status()
            task.measure()
            done.append(task.join(0))
            done.append(task.stop(timeout=20))
        elif task.state is TaskState.STOPPED:
            done.append(task.join(20))
            done.append(task.get_report().result)
            task.cleanup()
            over.set()

    task.add_listener(busy)
    in_other_thread(task.start_running)
    assert over.wait(40)
    assert done == [False, True, True, ["of the listener"]]


def test_a_listener_may_wait_for_the_end(task: Any) -> None:
    ended: list[bool] = []
    over = threading.Event()

    def patient(task: BaseTask) -> None:
        if task.state is TaskState.RUNNING:
            ended.append(task.join(20))
            over.set()

    task.add_listener(patient)
    live(task)
    assert over.wait(20)
    assert ended == [True]


@pytest.mark.parametrize("kind", [LocalTask, ProcessTask])
def test_a_listener_may_end_another_task(kind: type[BaseTask], tidy: Any) -> None:
    first, second = (
        tidy(kind(TaskContext(name), OperatorFactory(CollectSink))) for name in ("first", "second")
    )
    ended: list[bool] = []
    over = threading.Event()

    def end_second(task: BaseTask) -> None:
        if task.state is TaskState.STOPPED:
            ended.append(second.stop(timeout=20))
            over.set()

    first.add_listener(end_second)
    second.start_running()
    live(first)
    assert over.wait(40)
    assert ended == [True]


@pytest.mark.parametrize("on", ["thread", "process"])
def test_a_job_does_not_wait_for_listeners(on: Any, gate: threading.Event) -> None:
    begin = threading.Event()
    stuck = threading.Event()

    def numbers() -> Iterator[int]:
        begin.wait()
        yield from range(10)

    def stays(task: BaseTask) -> None:
        stuck.set()
        gate.wait()

    job = Pipeline("listened").source(numbers).map(str, on=on).sink().start()
    try:
        for tasks in job.tasks:
            for task in tasks:
                task.add_listener(stays)
        begin.set()
        assert in_other_thread(lambda: job.wait(20))
        assert stuck.wait(20)
        result = in_other_thread(job.result)
        assert result.sink_result == [str(number) for number in range(10)]
    finally:
        begin.set()
        gate.set()
        in_other_thread(job.close)


@pytest.mark.parametrize("on", ["thread", "process"])
def test_a_job_does_not_wait_for_listeners_to_metrics(on: Any, gate: threading.Event) -> None:
    stuck = threading.Event()

    def stays(metrics: Any) -> None:
        stuck.set()
        gate.wait()

    def numbers() -> Iterator[int]:
        stuck.wait()
        yield from range(10)

    options = TaskOptions(monitoring_interval=0.01)
    job = Pipeline("measured", options=options).source(numbers).map(str, on=on).sink().start()
    try:
        job.add_metrics_listener(stays)
        job.tasks[1][0].add_metrics_listener(stays)
        result = in_other_thread(job.result)
        assert result.sink_result == [str(number) for number in range(10)]
    finally:
        gate.set()
        stuck.set()
        in_other_thread(job.close)


class SlowStore(SqliteCheckpointStore):
    """Takes its time for the first checkpoint."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.saving = threading.Event()
        self.go_on = threading.Event()

    def save(self, job: str, checkpoint: Checkpoint) -> None:
        self.saving.set()
        self.go_on.wait()
        super().save(job, checkpoint)


def test_a_task_fails_while_its_checkpoint_is_saved(
    tidy: Any, gate: threading.Event, tmp_path: Path
) -> None:
    """The runner, the coordinator and a listener, each of which waits for another."""
    store = SlowStore(tmp_path / "c.db")
    failed = threading.Event()
    task = tidy(
        LocalTask(
            TaskContext("overdue"), OperatorFactory(FunctionSink, lambda _: gate.wait()),
            processing_timeout=0.1, checkpoint=CheckpointOptions(store, interval=0.02),
        )
    )  # fmt: skip
    task.add_listener(lambda task: failed.set() if task.state is TaskState.FAILED else None)
    task.start_running()
    assert store.saving.wait(20)
    task.put_packet(Packet("hang"))
    try:
        assert until(lambda: task.get_status().errors == 1)
        failed.wait(1)
    finally:
        store.go_on.set()
    assert in_other_thread(lambda: task.join(20))
    assert task.state is TaskState.FAILED
    assert isinstance(task.get_report().error, PacketError)
    gate.set()
    in_other_thread(task.cleanup)
