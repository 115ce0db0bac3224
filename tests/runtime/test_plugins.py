"""Plugins: hooks before, after and beside the operator, in every host."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import cloudpickle
import pytest

from sagequeue import create_queue
from sageruntime import (
    BaseOperator,
    BatchOperator,
    Connection,
    CountByKey,
    LocalTask,
    OperatorFactory,
    Packet,
    TaskContext,
)
from sageruntime.communication.router import PacketBatch
from sageruntime.errors import PacketError, PluginError
from sageruntime.factory.task_factory import create_task
from sageruntime.operator import CollectSink, MapOperator
from sageruntime.plugins import hookimpl
from sageruntime.plugins.plugin_factory import create_plugins
from sageruntime.recovery import RetryPolicy
from sageruntime.task import BaseTask, TaskState

# Ray's workers cannot import this module: what they need of it travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


TASKS = itertools.count()


class Doubler:
    """Doubles what comes in, and adds one to what goes out."""

    @hookimpl
    def before_process(self, packets: list[Packet]) -> None:
        for packet in packets:
            packet.payload *= 2

    @hookimpl
    def after_process(self, results: list[Packet]) -> None:
        for result in results:
            result.payload += 1


class Sieve:
    """Takes out odd payloads on their way in, and multiples of ten on their way out."""

    @hookimpl
    def before_process(self, packets: list[Packet]) -> None:
        packets[:] = [packet for packet in packets if packet.payload % 2 == 0]

    @hookimpl
    def after_process(self, results: list[Packet]) -> None:
        results[:] = [result for result in results if result.payload % 10]


class Recorder:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.states: list[TaskState] = []
        self.snapshots: list[Any] = []
        self.errors: list[tuple[Any, str]] = []
        self.seen: list[tuple[list[Any], list[Any]]] = []

    @hookimpl
    def after_process(self, packets: list[Packet], results: list[Packet]) -> None:
        self.seen.append(([p.payload for p in packets], [r.payload for r in results]))

    @hookimpl
    def on_state_change(self, task: BaseTask) -> None:
        self.states.append(task.state)

    @hookimpl
    def on_metrics(self, snapshot: Any) -> None:
        self.snapshots.append(snapshot)

    @hookimpl
    def on_error(self, ctx: TaskContext, packet: Packet, error: Exception) -> None:
        self.errors.append((packet.payload, f"{ctx.stage}: {error}"))


@pytest.fixture(params=["thread", "process", "ray"])
def on(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)


def work(
    operator: Any,
    payloads: Any,
    plugins: list[Any],
    on: str = "thread",
    keys: bool = False,
    **options: Any,
) -> tuple[list[Any], BaseTask]:
    """What a task of its own makes of some payloads, and the task after its end."""
    name = f"plugged-{os.getpid()}-{next(TASKS)}"
    scope: Any = {"thread": "thread", "process": "machine", "ray": "cluster"}[on]
    task = create_task(on, TaskContext(name, stage="plugged"), operator, plugins=plugins, **options)
    out = create_queue(scope=scope)
    task.router.add_connection(Connection("out", out))
    for payload in payloads:
        task.put_packet(Packet(payload, key=payload if keys else None))
    task.start_running()
    task.stop(timeout=60)
    results = []
    while not out.empty():
        message = out.get()
        if isinstance(message, PacketBatch):
            results += [packet.payload for packet in message.packets]
    task.cleanup()
    out.close()
    return results, task


IDENTITY = OperatorFactory(MapOperator, lambda n: n)


def test_hooks_change_and_drop_packets_and_results(on: str) -> None:
    results, task = work(IDENTITY, range(20), [Sieve(), Doubler()], on)
    # out of each: Sieve lets 0, 2, .. through, Doubler makes 0, 4, .., Sieve has no multiple of
    # ten, Doubler adds one
    assert results == [n * 2 + 1 for n in range(0, 20, 2) if n * 2 % 10]
    assert task.get_status().processed == 20
    assert task.get_status().errors == 0


def test_the_order_is_that_in_which_they_are_given() -> None:
    assert work(IDENTITY, [1, 2, 3], [Doubler(), Sieve()])[0] == [3, 5, 7]
    assert work(IDENTITY, [1, 2, 3], [Sieve(), Doubler()])[0] == [5]


class Adder:
    @hookimpl
    def before_process(self, packets: list[Packet]) -> None:
        packets.append(packets[0].derive(-packets[0].payload))

    @hookimpl
    def after_process(self, results: list[Packet]) -> None:
        results.append(results[0].derive("end"))


def test_hooks_add_packets_and_results() -> None:
    assert work(IDENTITY, [1, 2], [Adder])[0] == [1, -1, "end", 2, -2, "end"]


class Later(BaseOperator):
    async def process(self, packet: Packet) -> Packet:
        packet.payload += 100
        return packet


class Sum(BatchOperator):
    def process_batch(self, packets: list[Packet]) -> Packet:
        if any(packet.payload < 0 for packet in packets):
            raise ValueError("negative")
        return packets[0].derive(sum(packet.payload for packet in packets))


def test_async_operators() -> None:
    assert work(OperatorFactory(Later), [1, 2, 3], [Doubler()])[0] == [103, 105, 107]


def test_batch_operators_and_their_hooks_see_batches() -> None:
    recorder = Recorder()
    task = LocalTask(
        TaskContext("batches"), OperatorFactory(Sum), plugins=[Sieve(), Doubler(), recorder]
    )
    out = create_queue(scope="thread")
    task.router.add_connection(Connection("out", out))
    task.input_buffer.put(PacketBatch([Packet(n) for n in (1, 2, 3, 4)]))
    task.start_running()
    task.stop(timeout=30)
    assert [packet.payload for packet in out.get().packets] == [13]
    assert recorder.seen == [([4, 8], [13])]
    task.cleanup()


def test_results_of_finish_pass_the_hook_too() -> None:
    class Rounder:
        @hookimpl
        def after_process(self, packets: list[Packet], results: list[Packet]) -> None:
            assert not packets or not results
            for result in results:
                result.payload = (*result.payload, "counted")

    results, _ = work(OperatorFactory(CountByKey), [3, 3, 4], [Rounder()], keys=True)
    assert sorted(results) == [(3, 2, "counted"), (4, 1, "counted")]


class Guard:
    """Does not let multiples of three in, nor multiples of four out."""

    @hookimpl
    def before_process(self, packets: list[Packet]) -> None:
        for packet in packets:
            packet.payload += 1000
            if packet.payload % 3 == 0:
                raise PermissionError(f"{packet.payload} may not come in")

    @hookimpl
    def after_process(self, results: list[Packet]) -> None:
        for result in results:
            if result.payload % 4 == 0:
                raise PermissionError(f"{result.payload} may not go out")


def test_a_plugin_that_raises_is_an_error_of_its_packet(on: str) -> None:
    results, task = work(IDENTITY, range(12), [Guard()], on, error_policy="skip")
    assert results == [n + 1000 for n in range(12) if (n + 1000) % 3 and (n + 1000) % 4]
    assert task.get_status().errors == 12 - len(results)
    _, failed = work(IDENTITY, range(12), [Guard()], on)
    assert failed.state is TaskState.FAILED
    error = failed.get_report().error
    assert isinstance(error, PacketError)
    assert "may not" in str(error)


class Flaky(BaseOperator):
    def __init__(self) -> None:
        self.tries = 0

    def process(self, packet: Packet) -> Packet:
        self.tries += 1
        if self.tries < 3:
            raise ConnectionError("not yet")
        return packet


def test_a_packet_that_is_tried_again_is_as_it_came() -> None:
    retry = RetryPolicy(attempts=3, backoff=0.0)
    results, _ = work(OperatorFactory(Flaky), [5], [Doubler()], error_policy="retry", retry=retry)
    assert results == [11]


def test_a_dead_letter_is_as_it_came() -> None:
    with create_queue(scope="thread") as letters:
        work(IDENTITY, [2], [Guard()], error_policy="dead_letter", dead_letters=letters)
        letter = letters.get(block=False)
        assert letter.packet.payload == 2
        assert "may not come in" in letter.error


def test_monitoring(on: str) -> None:
    recorder = Recorder()
    _, task = work(
        OperatorFactory(CollectSink), range(10), [recorder], on, monitoring_interval=0.02
    )
    assert recorder.states[0] is TaskState.STARTING
    assert recorder.states[-1] is TaskState.STOPPED
    assert recorder.snapshots[-1].processed == 10
    assert {snapshot.task for snapshot in recorder.snapshots} == {task.name}


def refuse(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


def test_errors_are_told_once_for_each_packet() -> None:
    recorder = Recorder()
    work(
        OperatorFactory(MapOperator, refuse), range(4), [recorder],
        error_policy="retry", retry=RetryPolicy(attempts=2, backoff=0.0, then="skip"),
    )  # fmt: skip
    assert recorder.errors == [(1, "plugged: 1 is odd"), (3, "plugged: 3 is odd")]


class FileRecorder:
    """Writes errors to a file: they are told in the task's host."""

    def __init__(self, path: str) -> None:
        self.path = path

    @hookimpl
    def on_error(self, packet: Packet, error: Exception) -> None:
        with open(self.path, "a") as file:
            print(packet.payload, error, file=file)


def test_errors_are_told_in_the_host(on: str, tmp_path: Any) -> None:
    path = tmp_path / "errors"
    operator = OperatorFactory(MapOperator, refuse)
    work(operator, range(4), [FileRecorder(str(path))], on, error_policy="skip")
    assert path.read_text().splitlines() == ["1 1 is odd", "3 3 is odd"]


class Broken:
    def __init__(self) -> None:
        self.calls = 0

    @hookimpl
    def on_error(self, error: Exception) -> None:
        self.calls += 1
        raise RuntimeError("the monitor is broken")

    @hookimpl
    def on_state_change(self, task: BaseTask) -> None:
        raise RuntimeError("the monitor is broken")


def test_a_monitor_that_raises_is_logged_and_switched_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder, broken = Recorder(), Broken()
    results, task = work(
        OperatorFactory(MapOperator, refuse), range(6), [broken, recorder], error_policy="skip"
    )
    assert results == [0, 2, 4]
    assert task.state is TaskState.STOPPED
    assert broken.calls == 1
    logged = [record for record in caplog.records if "is not called again" in record.getMessage()]
    assert len(logged) == 2  # one for each of its hooks
    assert len(recorder.errors) == 3
    assert recorder.states[-1] is TaskState.STOPPED


def test_a_task_without_plugins_has_nothing_to_call() -> None:
    task = LocalTask(TaskContext("plain"), IDENTITY)
    assert create_plugins((), task.logger) is None
    # and one whose plugins only watch calls the operator directly
    plugins = create_plugins([Broken()], task.logger)
    assert plugins is not None
    assert plugins.around(task.operator.process, task.operator) == task.operator.process
    task.cleanup()


class Misspelt:
    @hookimpl
    def before_proces(self, packets: list[Packet]) -> None: ...


class Demanding:
    @hookimpl
    def before_process(self, packets: list[Packet], weather: str) -> None: ...


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ([object()], "implements no hook"),
        ([Misspelt()], "before_proces"),
        ([Demanding], "weather"),
        (["no_such_module:plugin"], "leads nowhere: No module named"),
        ([f"{__name__}:nothing"], "leads nowhere: .*nothing"),
    ],
    ids=["no hook", "misspelt", "argument", "module", "attribute"],
)
def test_plugins_that_are_none(plugins: list[Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        LocalTask(TaskContext("plugged"), IDENTITY, plugins=plugins)


def test_plugins_by_import_path() -> None:
    assert work(IDENTITY, [1], [f"{__name__}:Doubler"])[0] == [3]
