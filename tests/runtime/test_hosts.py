"""The host of a task: what it is told that cannot be done, and what its operator leaves behind."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from waiting import in_other_thread, until

from sagequeue import SageQueue, create_queue, prune_queues
from sagequeue.errors import Full
from sageruntime import (
    Connection,
    MapOperator,
    OperatorFactory,
    Packet,
    Pipeline,
    RestartPolicy,
    TaskContext,
    TaskOptions,
    TaskState,
)
from sageruntime.communication.router import RoundRobin
from sageruntime.errors import JobFailed, TaskLost, TaskStateError
from sageruntime.task.process_task import ProcessTask

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it


def names_of(error: BaseException | None) -> list[str]:
    """The type of an error and those of its causes."""
    return [] if error is None else [type(error).__name__, *names_of(error.__cause__)]


def running(task: Any) -> Any:
    task.start_running()
    assert until(lambda: task.state is TaskState.RUNNING)
    return task


def gone_queue() -> Any:
    """What a task knows of one downstream that has just ended."""
    queue = SageQueue[Any](name=f"gone-{secrets.token_hex(4)}")
    queue.close()
    return queue


def test_a_connection_whose_queue_is_gone(task_class: Any, tidy: Any) -> None:
    task = running(tidy(task_class(TaskContext("gone"), OperatorFactory(MapOperator, str))))
    task.router.add_connection(Connection("down", gone_queue()))

    def put_another() -> bool:
        """What comes before the connection goes nowhere; what comes after has to be missed."""
        with suppress(Full, TaskStateError):
            task.put_packet(Packet(1), block=False)
        return task.state.ended

    assert until(put_another)
    assert task.state is TaskState.FAILED
    error = task.get_report().error
    assert not isinstance(error, TaskLost), error
    assert {"QueueNotFound", "DownstreamClosed"} & set(names_of(error)), error


def test_a_connection_whose_queue_is_gone_at_the_start(task_class: Any, tidy: Any) -> None:
    task = tidy(task_class(TaskContext("gone-before"), OperatorFactory(MapOperator, str)))
    task.router.add_connection(Connection("down", gone_queue()))
    task.put_packet(Packet(1))
    in_other_thread(task.start_running)
    assert in_other_thread(lambda: task.stop(timeout=20))
    assert task.state is TaskState.FAILED
    error = task.get_report().error
    assert not isinstance(error, TaskLost), error
    assert {"QueueNotFound", "DownstreamClosed"} & set(names_of(error)), error


class Unbuildable(RoundRobin):
    """Goes to another process, and cannot be built there."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_command_that_cannot_be_carried_out(far_task_class: Any, tidy: Any) -> None:
    """Whether its task fails or goes on, the host does what it is told next."""
    task = tidy(far_task_class(TaskContext("command"), OperatorFactory(MapOperator, str)))
    queue = create_queue(scope="machine")
    task.router.add_connection(Connection("down", queue, group="down"))
    running(task)
    task.router.set_partitioner("down", Unbuildable())
    with suppress(TaskStateError):  # it may have failed at once
        task.put_packet(Packet(1))
        in_other_thread(task.pause)
        in_other_thread(task.resume)
    assert in_other_thread(lambda: task.stop(timeout=20)), task.state
    if task.state is TaskState.STOPPED:
        assert [packet.payload for packet in queue.get().packets] == ["1"]
    else:
        assert "no number" in (task.get_status().error or "")
    queue.close()


ORPHAN = """
    import sys, threading
    sys.path.insert(0, {folder!r})
    from test_hosts import *

    if __name__ == "__main__":
        task = ProcessTask(TaskContext("orphan"), OperatorFactory(MapOperator, str))
        down = create_queue(name="orphan-down", scope="machine")
        task.router.add_connection(Connection("down", down, group="down"))
        running(task)
        task.router.set_partitioner("down", Unbuildable())
        print(task.pid, flush=True)
        threading.Event().wait()
"""


def test_after_such_a_command_the_host_does_not_outlive_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(textwrap.dedent(ORPHAN).format(folder=str(Path(__file__).parent)))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    try:
        with suppress(psutil.NoSuchProcess):  # it has failed, and gone, at once
            # when it does no more than wait, it has come to the last command, too
            assert until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING)
            parent.kill()
            psutil.Process(pid).wait(20)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
        assert until(lambda: not psutil.pid_exists(pid))
        prune_queues("orphan")


# Children that an operator has forked.


class Forks:
    """Forks a child on 2, which stays, and dies on 3 so many times."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder = folder
        self.deaths = deaths

    def __call__(self, number: int) -> int:
        if number == 2:
            child = os.fork()
            if child == 0:
                time.sleep(1000)
                os._exit(0)
            (self.folder / f"child-{child}").touch()
        if number == 3 and len(list(self.folder.glob("death-*"))) < self.deaths:
            (self.folder / f"death-{time.time_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def children(folder: Path) -> list[int]:
    return [int(file.name.partition("-")[2]) for file in folder.glob("child-*")]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the children are noted, which live until the test has ended."""
    yield tmp_path
    for child in children(tmp_path):
        os.kill(child, signal.SIGKILL)
        assert until(lambda child=child: not psutil.pid_exists(child))
    prune_queues("forking")  # a child of an operator takes part in its queues


def forking(folder: Path, deaths: int, restarts: int) -> Pipeline:
    options = TaskOptions(restart=RestartPolicy(restarts), batch_size=1)
    pipeline = Pipeline("forking", options=options).source(range(5))
    return pipeline.map(Forks(folder, deaths), on="process").sink()


def test_a_host_that_ends_before_a_child_of_its_operator(folder: Path) -> None:
    job = forking(folder, deaths=0, restarts=0).start()
    try:
        assert job.wait(20)
        assert in_other_thread(job.result).sink_result == list(range(5))
    finally:
        in_other_thread(job.close)
    assert len(children(folder)) == 1


def test_a_host_that_dies_before_a_child_of_its_operator(folder: Path) -> None:
    job = forking(folder, deaths=1, restarts=0).start()
    try:
        assert job.wait(20), [task.state for tasks in job.tasks for task in tasks]
        with pytest.raises(JobFailed, match="SIGKILL") as failure:
            in_other_thread(job.result)
    finally:
        in_other_thread(job.close)
    assert isinstance(failure.value.__cause__, TaskLost)


def test_a_host_is_replaced_though_a_child_of_its_operator_lives(folder: Path) -> None:
    job = forking(folder, deaths=2, restarts=5).start()
    try:
        assert job.wait(20), [task.state for tasks in job.tasks for task in tasks]
        assert set(in_other_thread(job.result).sink_result) == set(range(5))
    finally:
        in_other_thread(job.close)
    assert job.tasks[1][0].get_status().restarts == 2


def test_a_host_with_such_a_child_does_not_outlive_its_job(folder: Path) -> None:
    task = ProcessTask(TaskContext("forking"), OperatorFactory(MapOperator, Forks(folder, 0)))
    sink = create_queue(name="forking-sink", scope="machine")
    task.router.add_connection(Connection("down", sink))
    running(task)
    assert task.pid is not None
    host = psutil.Process(task.pid)
    task.put_packet(Packet(2))
    assert sink.get(timeout=20).packets[0].payload == 2
    in_other_thread(task.cleanup)
    assert until(lambda: not host.is_running() or host.status() == psutil.STATUS_ZOMBIE)
    assert task.state is TaskState.STOPPED
    sink.close()
