"""Tasks, routers and packets by themselves, as the specification names them."""

from __future__ import annotations

from typing import Any

import pytest

from sagequeue import create_queue
from sagequeue.errors import Full
from sageruntime import BaseOperator, Connection, OperatorFactory, TaskContext
from sageruntime.communication.router.packet import Packet, PacketBatch, StopSignal
from sageruntime.errors import InvalidOption, OperatorError, TaskStateError
from sageruntime.operator import CollectSink, MapOperator
from sageruntime.task import TaskState
from sageruntime.task.base_task import BaseTask
from sageruntime.task.local_task import LocalTask
from sageruntime.task.process_task import ProcessTask


def test_life_of_a_task(task_class: type[BaseTask]) -> None:
    task = task_class(TaskContext("life-of-a-task"), OperatorFactory(CollectSink))
    assert task.state is TaskState.CREATED
    assert not task.is_running
    states: list[TaskState] = []
    task.add_listener(lambda changed: states.append(changed.state))
    task.start_running()
    with pytest.raises(TaskStateError, match="start_running"):
        task.start_running()
    for number in range(250):
        task.put_packet(Packet(payload=number, input_index=0))
    assert task.is_running
    assert task.stop(timeout=60)
    assert task.get_status().state is TaskState.STOPPED
    assert task.get_report().result == list(range(250))
    assert task._processed_count == 250
    assert task._error_count == 0
    assert states[0] is TaskState.STARTING
    assert states[-1] is TaskState.STOPPED
    with pytest.raises(TaskStateError):
        task.put_packet(Packet(1))
    task.cleanup()
    task.cleanup()


def test_a_task_that_was_never_started_can_be_stopped(task_class: type[BaseTask]) -> None:
    task = task_class(TaskContext("never-started"), OperatorFactory(CollectSink))
    assert task.stop()
    assert task.state is TaskState.STOPPED
    task.cleanup()


def test_spec_constructor_and_injection() -> None:
    task = LocalTask(
        runtime_context=TaskContext("spec"),
        operator_factory=OperatorFactory(MapOperator, str),
        max_buffer_size=30000,
        queue_maxsize=50000,
    )
    assert task.operator.task is task
    assert task.operator.router is task.router
    assert task.input_buffer.logger is task.ctx.logger
    downstream = create_queue(scope="thread")
    task.router.add_connection(Connection("downstream", downstream))
    task.process_packet(Packet(payload=5))
    (packet,) = downstream.get().packets
    assert packet.payload == "5"
    task.cleanup()


def test_an_operator_of_another_process_is_out_of_reach() -> None:
    task = ProcessTask(TaskContext("out-of-reach"), OperatorFactory(CollectSink))
    with pytest.raises(TaskStateError, match="put_packet"):
        task.process_packet(Packet(1))
    task.cleanup()


def test_a_task_ends_after_a_stop_signal_from_each_upstream() -> None:
    task = LocalTask(TaskContext("two-upstreams", upstreams=2), OperatorFactory(CollectSink))
    task.start_running()
    task.input_buffer.put(PacketBatch([Packet("a")], 0, 0))
    task.input_buffer.put(StopSignal("first"))
    task.input_buffer.put(PacketBatch([Packet("b")], 0, 0))
    task.input_buffer.put(StopSignal("second"))
    assert task.join(30)
    assert task.get_report().result == ["a", "b"]
    task.cleanup()


def test_put_packet_when_the_queue_is_full() -> None:
    task = LocalTask(
        TaskContext("full"), OperatorFactory(CollectSink), queue_maxsize=2, batch_size=1
    )
    task.put_packet(Packet(1))
    task.put_packet(Packet(2))
    with pytest.raises(Full):
        task.put_packet(Packet(3), block=False)
    task.cleanup()


@pytest.mark.parametrize(
    "options",
    [
        {"worker_threads": 0},
        {"queue_maxsize": 0},
        {"batch_size": 10, "queue_maxsize": 5},
        {"max_buffer_size": "many"},
        {"error_policy": "perhaps"},
        {"no_such_option": 1},
        {"monitoring_interval": 0},
        {"error_policy": "dead_letter"},
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        LocalTask(TaskContext("options"), OperatorFactory(CollectSink), **options)


def test_a_factory_that_makes_no_operator() -> None:
    with pytest.raises(OperatorError, match="expected a BaseOperator"):
        OperatorFactory(dict).create_operator(TaskContext("x"))  # type: ignore[arg-type]


class Slow(BaseOperator):
    def process(self, packet: Packet) -> Packet:
        packet.payload = (packet.key, packet.payload)
        return packet


def test_worker_threads_keep_the_order_of_each_key() -> None:
    task = LocalTask(TaskContext("threads"), OperatorFactory(Slow), worker_threads=4, batch_size=20)
    out = create_queue(scope="thread")
    task.router.add_connection(Connection("out", out))
    task.start_running()
    for number in range(2000):
        task.put_packet(Packet(number, key=number % 13))
    assert task.stop(timeout=30)
    received: list[tuple[int, int]] = []
    while not out.empty():
        message = out.get()
        if isinstance(message, PacketBatch):
            received += [packet.payload for packet in message.packets]
    for key in range(13):
        assert [n for k, n in received if k == key] == list(range(key, 2000, 13))
    task.cleanup()


def test_a_packet_keeps_its_key_and_time() -> None:
    packet = Packet("a b", key="k")
    derived = packet.derive("a")
    assert (derived.payload, derived.key, derived.timestamp) == ("a", "k", packet.timestamp)
    assert derived.id != packet.id
    copy = packet.copy()
    assert copy == packet
    assert copy is not packet
