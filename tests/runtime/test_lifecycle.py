"""The life of a task: any calls in any order from any thread, and only legal transitions."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from waiting import in_other_thread

from sagequeue.errors import Full, QueueClosed
from sageruntime import LocalTask, OperatorFactory, Packet, TaskContext, TaskState
from sageruntime.core.state import NEXT_STATES
from sageruntime.errors import TaskStateError
from sageruntime.operator import CollectSink, MapOperator
from sageruntime.task.base_task import BaseTask
from sageruntime.task.process_task import ProcessTask


class LifeOfATask(RuleBasedStateMachine):
    """Calls in any order, each from one of two threads; the model is the table of transitions."""

    task_class: type[BaseTask] = LocalTask

    def __init__(self) -> None:
        super().__init__()
        self.task = self.task_class(TaskContext("any-order"), OperatorFactory(CollectSink))
        self.states = [self.task.state]
        self.task.add_listener(lambda task: self.states.append(task.state))
        self.accepted = 0
        self.dropped = False

    def call(self, elsewhere: bool, call: Any) -> Any:
        return in_other_thread(call) if elsewhere else call()

    @rule(elsewhere=st.booleans())
    def start(self, elsewhere: bool) -> None:
        new = self.task.state is TaskState.CREATED
        try:
            self.call(elsewhere, self.task.start_running)
            assert new
        except TaskStateError:
            assert not new

    @rule(elsewhere=st.booleans())
    def pause(self, elsewhere: bool) -> None:
        with contextlib.suppress(TaskStateError):
            self.call(elsewhere, self.task.pause)
            assert self.task.get_status().paused or self.task.state.ended

    @rule(elsewhere=st.booleans())
    def resume(self, elsewhere: bool) -> None:
        with contextlib.suppress(TaskStateError):
            self.call(elsewhere, self.task.resume)

    @rule(elsewhere=st.booleans(), count=st.integers(1, 20))
    def put(self, elsewhere: bool, count: int) -> None:
        for number in range(count):
            packet = Packet(number)
            try:
                self.call(elsewhere, lambda packet=packet: self.task.put_packet(packet, False))
            except (Full, TaskStateError, QueueClosed):
                return
            self.accepted += 1

    @rule(elsewhere=st.booleans(), drain=st.booleans(), wait=st.booleans())
    def stop(self, elsewhere: bool, drain: bool, wait: bool) -> None:
        self.dropped = self.dropped or not drain
        self.dropped = self.dropped or self.task.state is TaskState.CREATED
        patience = 20 if wait else 0
        ended = self.call(elsewhere, lambda: self.task.stop(drain, timeout=patience))
        assert ended or not wait

    @rule()
    def halt_and_restore(self) -> None:
        self.dropped = True  # nothing is kept by a task without restarts
        try:
            self.task.halt()
            self.task.restore(0)
        except TaskStateError:
            assert self.task.state is TaskState.CREATED

    @rule()
    def report(self) -> None:
        # no precondition: when a task ends is a matter of time, and choices must not depend on that
        if not self.task.state.ended:
            return
        report = self.task.get_report()
        if self.task.state is TaskState.STOPPED and not self.dropped:
            assert len(report.result) == self.accepted

    @invariant()
    def status_is_plain_data(self) -> None:
        status = self.task.get_status()
        json.dumps(asdict(status))
        assert status.state in TaskState
        assert self.task.is_running == (
            self.task.state not in (TaskState.CREATED, TaskState.STOPPED, TaskState.FAILED)
        )

    @invariant()
    def transitions_are_legal(self) -> None:
        states = list(self.states)
        assert TaskState.FAILED not in states
        for before, after in pairwise(states):
            assert after in NEXT_STATES[before], f"{before} to {after}"

    def teardown(self) -> None:
        self.task.cleanup(grace=20)
        self.task.cleanup()
        self.transitions_are_legal()
        assert self.task.state.ended


class LifeOfAProcess(LifeOfATask):
    task_class = ProcessTask


_checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
TestLifeOfATask = LifeOfATask.TestCase
TestLifeOfATask.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=_checks
)
TestLifeOfAProcess = LifeOfAProcess.TestCase
TestLifeOfAProcess.settings = settings(
    max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=_checks
)


@pytest.mark.parametrize("task_class", [LocalTask, ProcessTask])
def test_a_paused_task_takes_nothing_until_it_is_resumed(task_class: type[BaseTask]) -> None:
    task = task_class(TaskContext("paused"), OperatorFactory(CollectSink))
    task.pause()
    task.start_running()
    for number in range(50):
        task.put_packet(Packet(number))
    reached = threading.Event()
    task.add_listener(lambda task: reached.set() if task.state is TaskState.RUNNING else None)
    assert task.state is TaskState.RUNNING or reached.wait(20)
    assert not task.join(0.3)
    assert task.get_status().paused
    assert task.get_status().processed == 0
    task.resume()
    assert task.stop(timeout=20)
    assert task.get_report().result == list(range(50))
    for call in (task.pause, task.resume):
        with pytest.raises(TaskStateError, match="stopped"):
            call()
    task.cleanup()


@pytest.mark.parametrize("task_class", [LocalTask, ProcessTask])
@pytest.mark.parametrize("drain", [True, False])
def test_a_task_that_is_stopped_before_it_came_to_run(
    task_class: type[BaseTask], drain: bool
) -> None:
    task = task_class(TaskContext("early"), OperatorFactory(CollectSink))
    task.put_packet(Packet(1))
    # told while it is starting: whoever is to run it has not begun
    task.add_listener(
        lambda task: task.stop(drain, 0) if task.state is TaskState.STARTING else None
    )
    task.start_running()
    assert task.join(20)
    assert task.state is TaskState.STOPPED
    if drain:
        assert task.get_report().result == [1]
    task.cleanup()


class Gated(CollectSink):
    """Opens when it may."""

    gate = threading.Event()

    def open(self) -> None:
        assert self.gate.wait(20)


def test_a_task_that_is_restored_before_it_came_to_run() -> None:
    Gated.gate.clear()
    states: list[TaskState] = []
    task = LocalTask(TaskContext("early-restore"), OperatorFactory(Gated))
    task.add_listener(lambda task: states.append(task.state))
    task.start_running()
    task.halt()
    task.restore(0)
    Gated.gate.set()
    while TaskState.RESTARTING not in states or states[-1] is not TaskState.RUNNING:
        assert not task.join(0.01)
    task.put_packet(Packet(1))
    assert task.stop(timeout=20)
    assert task.get_report().result == [1]
    assert states[-2:] == [TaskState.DRAINING, TaskState.STOPPED]
    task.cleanup()


def test_draining_a_paused_task_resumes_it() -> None:
    task = LocalTask(TaskContext("paused-drain"), OperatorFactory(CollectSink))
    task.start_running()
    task.pause()
    task.put_packet(Packet(1))
    assert task.stop(timeout=20)
    assert task.get_report().result == [1]
    task.cleanup()


def test_base_task_is_abstract_and_its_subclasses_need_nothing_more() -> None:
    with pytest.raises(TypeError, match="abstract"):
        BaseTask(TaskContext("abstract"), OperatorFactory(CollectSink))

    class CustomTask(BaseTask):
        def __init__(self, runtime_context: TaskContext, operator_factory: Any) -> None:
            super().__init__(runtime_context, operator_factory)

        def custom_process(self, packet: Packet) -> Any:
            packet.payload += 1
            return self.operator.process(packet)

    task = CustomTask(TaskContext("custom"), OperatorFactory(CollectSink))
    task.start_running()
    task.put_packet(Packet(1))
    assert task.stop(timeout=20)
    assert task.get_report().result == [2]
    task.cleanup()


class CustomProcessTask(ProcessTask):
    """A custom task in another process."""

    def custom_process(self, packet: Packet) -> Any:
        packet.payload = f"{self.name}:{packet.payload}"
        return self.operator.process(packet)


def test_a_custom_task_in_another_process() -> None:
    task = CustomProcessTask(TaskContext("custom-process"), OperatorFactory(CollectSink))
    task.start_running()
    task.put_packet(Packet(1))
    assert task.stop(timeout=20)
    assert task.get_report().result == ["custom-process:1"]
    task.cleanup()


def test_a_task_class_as_a_ray_actor(ray_cluster: None) -> None:
    import ray

    @ray.remote
    class RayTask(LocalTask):
        def __init__(self, runtime_context: TaskContext, operator_factory: Any) -> None:
            super().__init__(runtime_context, operator_factory)

    actor: Any = RayTask.remote(  # type: ignore[attr-defined]
        TaskContext("actor"), OperatorFactory(CollectSink)
    )
    ray.get(actor.start_running.remote())
    ray.get([actor.put_packet.remote(Packet(number)) for number in range(3)])
    assert ray.get(actor.stop.remote())
    assert sorted(ray.get(actor.get_report.remote()).result) == [0, 1, 2]
    ray.kill(actor)


def test_process_packet_in_the_calling_thread() -> None:
    task = LocalTask(TaskContext("by-hand"), OperatorFactory(MapOperator, str))
    task.process_packet(Packet(payload=1, input_index=0))
    assert task._processed_count == 1
    assert task._error_count == 0
    task.cleanup()
