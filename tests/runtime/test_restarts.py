"""Restarts without checkpoints: what was unfinished comes back, whatever has died."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from sagequeue.protocol import Queue
from sageruntime import (
    BaseOperator,
    CollectSink,
    LocalTask,
    OperatorFactory,
    Packet,
    Pipeline,
    RestartPolicy,
    SourceOperator,
    TaskContext,
    TaskOptions,
    TaskState,
)
from sageruntime.errors import InvalidOption, JobFailed, PacketError, TaskLost
from sageruntime.recovery.restart_budget import RestartBudget
from sageruntime.task.base_task import BaseTask
from sageruntime.task.process_task import ProcessTask
from sageruntime.task.ray_task import RayTask


class DiesOnce(BaseOperator):
    """Dies on one payload the first time any process sees it."""

    def __init__(self, folder: Path, payload: Any, how: str) -> None:
        self.folder = folder
        self.payload = payload
        self.how = how

    def process(self, packet: Packet) -> Packet:
        if packet.payload == self.payload and self._is_first():
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the first time")
        return packet

    def _is_first(self) -> bool:
        try:
            (self.folder / "died").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def restarting(most: int = 3, **more: Any) -> TaskOptions:
    return TaskOptions(restart=RestartPolicy(max_restarts=most, **more), batch_size=10)


@pytest.mark.parametrize(
    ("on", "how"), [("thread", "raise"), ("process", "raise"), ("process", "kill")]
)
def test_what_was_unfinished_comes_back(on: Any, how: str, tmp_path: Path) -> None:
    operator = OperatorFactory(DiesOnce, tmp_path, 555, how)
    pipeline = Pipeline("comes-back", options=restarting()).source(range(1000))
    with pipeline.map(operator, on=on).sink().start() as job:
        result = job.result()
    counts = Counter(result.sink_result)
    assert counts.keys() == set(range(1000))
    # only what was taken and not yet sent and done is processed again
    assert max(counts.values()) <= 2
    assert job.tasks[1][0].get_status().restarts == 1


def test_what_was_unfinished_in_an_actor_comes_back(ray_cluster: None, tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it
    operator = OperatorFactory(DiesOnce, tmp_path, 55, "kill")
    pipeline = Pipeline("ray-comes-back", options=restarting()).source(range(200))
    with pipeline.map(operator, on="ray").sink().start() as job:
        result = job.result()
    assert set(result.sink_result) == set(range(200))
    assert job.tasks[1][0].get_status().restarts == 1


def test_sources_and_sinks_in_processes_that_die(tmp_path: Path) -> None:
    """A sink's state is gone with it, without checkpoints; its packets are not."""
    operator = OperatorFactory(DiesOnce, tmp_path, 500, "kill")
    pipeline = Pipeline("killed-often", options=restarting(50)).source(range(20_000))
    pipeline.map(operator, on="process", parallelism=2)
    with pipeline.map(str, on="process").sink().start() as job:
        for task in (*job.tasks[1], *job.tasks[2]) * 3:
            packets = job.progress()[3].packets
            while job.progress()[3].packets == packets and not job.wait(0.01):
                pass
            task.kill_host()  # type: ignore[attr-defined]
        result = job.result()
    assert set(result.sink_result) == {str(number) for number in range(20_000)}


class FailsAtTheEnd(CollectSink):
    """Fails once in one of the methods that are called last.

    Args:
        folder: remembers that it did.
        where: the method's name.
        how: ``kill`` or ``raise``.
    """

    def __init__(self, folder: Path, where: str, how: str) -> None:
        super().__init__()
        self.folder = folder
        self.where = where
        self.how = how

    def finish(self) -> None:
        self._fail_in("finish")

    def result(self) -> list[Any]:
        self._fail_in("result")
        return super().result()

    def close(self) -> None:
        self._fail_in("close")

    def _fail_in(self, where: str) -> None:
        if where == self.where and not (self.folder / "failed").exists():
            (self.folder / "failed").touch()
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the first time")


class SourceFailsAtTheEnd(SourceOperator):
    """Likewise, a source."""

    def __init__(self, *arguments: Any) -> None:
        self.at_the_end = FailsAtTheEnd(*arguments)

    def read(self) -> Iterator[int]:
        yield from range(100)

    def close(self) -> None:
        self.at_the_end.close()


class MapFailsAtTheEnd(BaseOperator):
    """Likewise, a map."""

    def __init__(self, *arguments: Any) -> None:
        self.at_the_end = FailsAtTheEnd(*arguments)

    def process(self, packet: Packet) -> Packet:
        return packet

    def finish(self) -> None:
        self.at_the_end.finish()

    def close(self) -> None:
        self.at_the_end.close()


@pytest.mark.parametrize(
    ("on", "how"), [("thread", "raise"), ("process", "raise"), ("process", "kill"), ("ray", "kill")]
)
@pytest.mark.parametrize("where", ["finish", "result", "close"])
def test_a_task_that_fails_at_its_end_ends(
    where: str, on: Any, how: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if on == "ray":
        request.getfixturevalue("ray_cluster")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    folders = [tmp_path / name for name in ("source", "map", "sink")]
    for folder in folders:
        folder.mkdir()
    source, between, sink = (
        OperatorFactory(operator, folder, where, how)
        for operator, folder in zip((SourceFailsAtTheEnd, MapFailsAtTheEnd, FailsAtTheEnd), folders)
    )
    pipeline = Pipeline("last-moment", options=restarting(1)).source(source, on=on)
    with pipeline.map(between, on=on).sink(sink, on=on).start() as job:
        assert job.wait(30)
        result = job.result()
    if where != "finish":  # what was counted has been told then
        assert [stage.packets for stage in result.stages] == [100, 100, 100]
    # the state of a sink is gone with it, and what it has processed does not come again
    assert result.sink_result == []
    assert (folders[2] / "failed").exists()


def test_the_number_of_restarts_is_bounded(tmp_path: Path) -> None:
    class Always(BaseOperator):
        def process(self, packet: Packet) -> Packet:
            raise ValueError("always")

    pipeline = Pipeline("bounded", options=restarting(2)).source([1]).map(Always).sink()
    with pytest.raises(JobFailed) as failure, pipeline.start() as job:
        job.result()
    assert isinstance(failure.value.__cause__, PacketError)
    assert job.tasks[1][0].get_status().restarts == 2


def test_without_a_policy_a_killed_process_fails_the_job(tmp_path: Path) -> None:
    operator = OperatorFactory(DiesOnce, tmp_path, 5, "kill")
    pipeline = Pipeline("no-policy").source(range(10)).map(operator, on="process").sink()
    with pytest.raises(JobFailed) as failure:
        pipeline.run()
    assert isinstance(failure.value.__cause__, TaskLost)


def test_a_restart_is_seen_from_outside(tmp_path: Path) -> None:
    task = LocalTask(
        TaskContext("seen"), OperatorFactory(DiesOnce, tmp_path, 1, "raise"),
        restart=RestartPolicy(1),
    )  # fmt: skip
    states: list[TaskState] = []
    task.add_listener(lambda task: states.append(task.state))
    task.start_running()
    task.put_packet(Packet(1))
    assert task.stop(timeout=20)
    assert TaskState.RESTARTING in states
    assert states[-1] is TaskState.STOPPED
    assert task.get_status().error is None
    task.cleanup()


def test_stopping_during_the_pause_before_a_restart(tmp_path: Path) -> None:
    task = LocalTask(
        TaskContext("long-pause"), OperatorFactory(DiesOnce, tmp_path, 1, "raise"),
        restart=RestartPolicy(1, backoff=500, max_backoff=500),
    )  # fmt: skip
    task.start_running()
    task.put_packet(Packet(1))
    while task.state is not TaskState.RESTARTING:
        task.join(0.01)
    assert task.stop(drain=False, timeout=20)
    assert task.state is TaskState.STOPPED
    task.cleanup()


@pytest.mark.parametrize("task_class", [ProcessTask, RayTask])
def test_a_lone_task_whose_host_is_killed(
    task_class: type[BaseTask], request: pytest.FixtureRequest
) -> None:
    if task_class is RayTask:
        request.getfixturevalue("ray_cluster")
    task: Any = task_class(
        TaskContext("lone"), OperatorFactory(CollectSink), restart=RestartPolicy(5)
    )
    task.start_running()
    task.put_packet(Packet("before"))
    while task.get_status().processed < 1:
        task.join(0.01)
    task.kill_host()
    while not task.get_status().restarts:
        task.join(0.01)
    task.put_packet(Packet("after"))
    assert task.stop(timeout=60)
    assert "after" in task.get_report().result
    task.cleanup()


def test_a_budget_forgets_restarts_that_are_long_ago() -> None:
    budget = RestartBudget(RestartPolicy(3, window=1e-9, backoff=0.1))
    assert [budget.next_delay() for _ in range(9)] == [0.1] * 9
    budget = RestartBudget(RestartPolicy(4, window=100, backoff=0.1, max_backoff=0.3))
    assert [budget.next_delay() for _ in range(5)] == [0.1, 0.2, 0.3, 0.3, None]


@pytest.mark.parametrize(
    "values",
    [{"max_restarts": -1}, {"window": 0}, {"backoff": -1}, {"backoff": 2, "max_backoff": 1}],
)
def test_policies_out_of_range(values: Any) -> None:
    with pytest.raises(InvalidOption, match="restart"):
        RestartPolicy(**values)


def test_a_queue_of_another_kind_cannot_give_back() -> None:
    class Other:
        backend = "other"
        name = "other"
        maxsize = 0

    from sageruntime.runner.inbox import open_inbox

    queue: Queue[Any] = Other()  # type: ignore[assignment]
    with pytest.raises(InvalidOption, match="give back"):
        open_inbox(queue, "task", keep=True)
