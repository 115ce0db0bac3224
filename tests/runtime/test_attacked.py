"""What the runtime keeps when a user's code, or a part of itself, does the unexpected.

Each test is of a job or task that once waited for ever, or was wrong, for want of one thread.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from waiting import in_other_thread, until

from sageruntime import (
    BaseOperator,
    CheckpointError,
    CheckpointOptions,
    CollectSink,
    Connection,
    JobFailed,
    LocalTask,
    MapOperator,
    OperatorFactory,
    Packet,
    PacketError,
    Pipeline,
    RestartPolicy,
    SourceOperator,
    TaskContext,
    TaskOptions,
    TaskState,
    TaskStateError,
)
from sageruntime.recovery.sqlite_store import SqliteCheckpointStore
from sageruntime.task.process_task import ProcessTask

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def slowly(count: int, pause: float) -> Iterator[int]:
    for number in range(count):
        yield number
        time.sleep(pause)


def hangs_on(numbers: set[int], seconds: float, number: int) -> int:
    if number in numbers:
        time.sleep(seconds)
    return number


# ---- a time limit ----


def test_a_packet_that_hangs_is_given_up_though_checkpoints_are_completed(tmp_path: Path) -> None:
    options = TaskOptions(error_policy="skip", processing_timeout=0.3, restart=RestartPolicy(3))
    pipeline = Pipeline("limit", options=options).source(partial(slowly, 200, 0.005))
    pipeline.map(partial(hangs_on, {50, 120}, 60), on="process").sink()
    checkpoint = CheckpointOptions(tmp_path / "c.db", interval=0.05, timeout=2)
    with pipeline.start(checkpoint=checkpoint) as job:
        assert job.wait(40)
        result = job.result().sink_result
    assert result == [number for number in range(200) if number not in (50, 120)]


def test_a_time_limit_holds_beside_a_light_steady_flow() -> None:
    """Each wait for the next packet is short."""
    options = TaskOptions(error_policy="skip", processing_timeout=0.2, batch_size=1)
    pipeline = Pipeline("steady", options=options).source(partial(slowly, 400, 0.005))
    pipeline.map(partial(hangs_on, {10}, 1.5), worker_threads=2).sink()
    with pipeline.start() as job:
        given_up = job.tasks[1][0]
        assert until(lambda: given_up.measure().timeouts == 1 or job.wait(0))
        read = job.progress()[0].packets
        result = job.result().sink_result
    assert read < 250, "it took effect only when the packet was done"
    assert result == [number for number in range(400) if number != 10]


# ---- errors that end a thread or a loop ----


class Odd(BaseException):
    """Neither an Exception nor known to asyncio."""


class AsyncExits(BaseOperator):
    def __init__(self, where: str, error: type[BaseException]) -> None:
        self.where = where
        self.error = error

    async def open(self) -> None:  # type: ignore[override]
        self._exit_in("open")

    async def process(self, packet: Packet) -> Packet:
        await asyncio.sleep(0)
        self._exit_in("process")
        return packet

    async def finish(self) -> None:  # type: ignore[override]
        self._exit_in("finish")

    async def close(self) -> None:  # type: ignore[override]
        self._exit_in("close")

    def _exit_in(self, where: str) -> None:
        if where == self.where:
            raise self.error("as told")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, Odd])
@pytest.mark.parametrize("where", ["open", "process", "finish", "close"])
@pytest.mark.parametrize("on", ["thread", "process"])
def test_an_async_operator_that_exits_fails_its_job(
    on: Any, where: str, error: type[BaseException]
) -> None:
    operator = OperatorFactory(AsyncExits, where, error)
    with Pipeline("exits").source(range(3)).map(operator, on=on).sink().start() as job:
        assert job.wait(20)
        with pytest.raises(JobFailed, match=error.__name__):
            job.result()


def test_an_async_operator_that_exits_on_a_packet_may_skip_it() -> None:
    pipeline = Pipeline("exits").source(range(3))
    pipeline.map(OperatorFactory(AsyncExits, "process", SystemExit), error_policy="skip")
    assert pipeline.sink().run().errors == 3


class ExitingStore(SqliteCheckpointStore):
    exits_in = ""

    def save(self, job: str, checkpoint: Any) -> None:
        if self.exits_in == "save":
            raise SystemExit("as told")
        super().save(job, checkpoint)

    def latest(self, job: str) -> Any:
        if self.exits_in == "latest" and threading.current_thread() is not threading.main_thread():
            raise SystemExit("as told")
        return super().latest(job)


@pytest.mark.parametrize("where", ["save", "latest"])
def test_a_store_that_exits_fails_its_job(where: str, tmp_path: Path) -> None:
    store = ExitingStore(tmp_path / "c.db")
    store.exits_in = where
    options = TaskOptions(restart=RestartPolicy(1))

    def fail_at_last(number: int) -> int:
        if number == 99:
            raise ValueError("so that it goes back")
        return number

    pipeline = Pipeline("exits", options=options).source(partial(slowly, 100, 0.001))
    pipeline.map(fail_at_last if where == "latest" else str).sink()
    with pipeline.start(checkpoint=CheckpointOptions(store, interval=0.02)) as job:
        assert job.wait(20)
        with pytest.raises(JobFailed, match="SystemExit: as told"):
            job.result()


# ---- the beginning ----


class OpensTheSecondTime(CollectSink):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def open(self) -> None:
        if not (self.folder / "opened").exists():
            (self.folder / "opened").touch()
            raise ValueError("not yet")


@pytest.mark.parametrize("on", ["thread", "process"])
def test_a_task_that_fails_before_others_are_started(on: Any, tmp_path: Path) -> None:
    for n in range(5 if on == "thread" else 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        options = TaskOptions(restart=RestartPolicy(1, backoff=0.01))
        pipeline = Pipeline("early", options=options).source(range(100), on=on).map(str, on=on)
        pipeline.sink(OperatorFactory(OpensTheSecondTime, folder))
        with pipeline.start(checkpoint=CheckpointOptions(folder / "c.db")) as job:
            assert job.wait(20)
            assert len(job.result().sink_result) == 100


# ---- process_packet() beside packets of the queue ----


class SlowOrBad(BaseOperator):
    def process(self, packet: Packet) -> None:
        time.sleep(0.01)
        if packet.payload == "bad":
            raise ValueError("bad")


def feed(task: LocalTask, errors: list[BaseException]) -> None:
    while True:
        try:
            task.process_packet(Packet(1))
        except Exception as error:
            errors.append(error)
            return


@pytest.fixture(params=[1, 2], ids=["one thread", "two lanes"])
def fed(request: pytest.FixtureRequest, tidy: Any) -> LocalTask:
    """A running task."""
    task: LocalTask = tidy(
        LocalTask(TaskContext("fed"), OperatorFactory(SlowOrBad), worker_threads=request.param)
    )
    task.start_running()
    return task


def test_who_waits_for_a_packet_gets_no_error_of_the_task(fed: LocalTask) -> None:
    errors: list[BaseException] = []
    feeding = threading.Thread(target=feed, args=(fed, errors), daemon=True)
    feeding.start()
    fed.put_packet(Packet("bad"))
    assert until(lambda: fed.state is TaskState.FAILED)
    assert isinstance(fed.get_report().error, PacketError)
    feeding.join(20)
    assert [type(error) for error in errors] == [TaskStateError]


def test_who_waits_for_a_packet_does_not_hold_up_a_stop(fed: LocalTask) -> None:
    errors: list[BaseException] = []
    feeding = threading.Thread(target=feed, args=(fed, errors), daemon=True)
    feeding.start()
    time.sleep(0.05)
    assert in_other_thread(lambda: fed.stop(drain=False, timeout=20))
    feeding.join(20)
    assert [type(error) for error in errors] == [TaskStateError]


def test_who_waits_for_a_packet_gets_its_error(fed: LocalTask) -> None:
    with pytest.raises(PacketError, match="ValueError: bad"):
        in_other_thread(lambda: fed.process_packet(Packet("bad")))
    in_other_thread(lambda: fed.process_packet(Packet("good")))
    assert fed.state is TaskState.RUNNING


def test_a_packet_that_is_not_of_the_queue_has_no_lease_to_release(tidy: Any) -> None:
    task = tidy(
        LocalTask(
            TaskContext("leased"), OperatorFactory(CollectSink), queue_scope="machine",
            restart=RestartPolicy(1),
        )
    )  # fmt: skip
    task.start_running()
    in_other_thread(lambda: task.process_packet(Packet(1)))
    task.put_packet(Packet(2))
    assert in_other_thread(lambda: task.stop(timeout=20))
    assert task.get_report().result == [1, 2]


# ---- one task that is stopped by itself ----


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("drain", [True, False])
def test_the_others_do_not_wait_for_a_task_that_is_stopped(
    host: Any, stage: int, drain: bool
) -> None:
    parallelism = [1, 2, 1]
    pipeline = Pipeline("stopped").source(partial(slowly, 200, 0.002), on=host)
    pipeline.map(str, on=host, parallelism=parallelism[1]).sink()
    with pipeline.start() as job:
        assert until(lambda: job.progress()[2].packets > 10)
        job.tasks[stage][0].stop(drain=drain, timeout=0)
        assert job.wait(30)
        result = job.result().sink_result
    assert set(result) <= set(map(str, range(200)))


@pytest.mark.parametrize(("stage", "drain"), [(0, False), (1, False), (1, True)])
def test_with_checkpoints_the_job_fails_and_says_so(
    stage: int, drain: bool, tmp_path: Path
) -> None:
    pipeline = Pipeline("stopped").source(partial(slowly, 2000, 0.002))
    pipeline.map(str, parallelism=2).sink()
    checkpoint = CheckpointOptions(tmp_path / "c.db", interval=0.05)
    with pipeline.start(checkpoint=checkpoint) as job:
        assert until(lambda: job.progress()[2].packets > 10)
        job.tasks[stage][0].stop(drain=drain, timeout=0)
        assert job.wait(30)
        with pytest.raises(JobFailed, match="was stopped, and a job with checkpoints") as failure:
            job.result()
    assert isinstance(failure.value.__cause__, CheckpointError)


class StopsItself(BaseOperator):
    def process(self, packet: Packet) -> None:
        if packet.payload == 3:
            self.task.stop()


def test_an_operator_may_stop_its_task(task_class: Any, tidy: Any) -> None:
    task = tidy(task_class(TaskContext("itself"), OperatorFactory(StopsItself)))
    in_other_thread(task.start_running)
    for number in range(6):
        task.put_packet(Packet(number))
    assert in_other_thread(lambda: task.join(20))
    assert task.state is TaskState.STOPPED


# ---- processes ----


@pytest.mark.parametrize("on", ["thread", "process"])
def test_a_forked_child_may_leave_the_job(on: Any) -> None:
    pipeline = Pipeline("forked").source(partial(slowly, 50, 0.002)).map(str, on=on).sink()
    pid = 0
    try:
        with pipeline.start() as job:
            pid = os.fork()
            if pid == 0:
                try:
                    job.tasks[1][0].pause()
                except TaskStateError:
                    sys.exit(7)
            assert job.wait(30)
            assert len(job.result().sink_result) == 50
    except SystemExit as leaving:
        os._exit(leaving.code if pid == 0 and isinstance(leaving.code, int) else 1)
    status: list[int] = []
    assert until(lambda: status.extend(os.waitpid(pid, os.WNOHANG)) or status[-2] == pid)
    assert os.waitstatus_to_exitcode(status[-1]) == 7


class OneNumber(SourceOperator):
    def read(self) -> Iterator[int]:
        yield self.ctx.index


def test_more_senders_than_slots_of_the_queue() -> None:
    """The ends that they announce stay claimed."""
    options = TaskOptions(queue_maxsize=1, batch_size=1, restart=RestartPolicy(1))
    pipeline = Pipeline("senders", options=options).source(OneNumber, parallelism=150)
    with pipeline.sink(on="process").start() as job:
        assert job.wait(60)
        assert sorted(job.result().sink_result) == list(range(150))


def test_descriptors_of_hosts_are_given_back(tidy: Any) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    counts = []
    for _ in range(4):
        task = tidy(ProcessTask(TaskContext("descriptors"), OperatorFactory(CollectSink)))
        in_other_thread(task.start_running)
        assert in_other_thread(lambda task=task: task.stop(timeout=20))
        in_other_thread(task.cleanup)
        counts.append(open_files())
    assert counts[1] == counts[2] == counts[3]


def test_a_listener_that_comes_late_is_told_of_the_end(tidy: Any) -> None:
    task = tidy(LocalTask(TaskContext("late"), OperatorFactory(CollectSink)))
    task.start_running()
    assert in_other_thread(lambda: task.stop(timeout=20))
    told: list[TaskState] = []
    task.add_listener(lambda task: told.append(task.state))
    assert until(lambda: told == [TaskState.STOPPED])


def test_a_removed_connection_is_told_though_the_host_dies(tidy: Any) -> None:
    """The next host tells it; and what was not delivered was not acknowledged."""
    sender = tidy(
        ProcessTask(
            TaskContext("sender"), OperatorFactory(MapOperator, int), restart=RestartPolicy(3),
            batch_size=1,
        )
    )  # fmt: skip
    leaving, staying = (
        tidy(
            LocalTask(
                TaskContext(name, upstreams=1), OperatorFactory(CollectSink),
                queue_scope="machine", queue_maxsize=4, batch_size=1,
            )
        )
        for name in ("leaving", "staying")
    )  # fmt: skip
    leaving.pause()
    for task in (leaving, staying):
        task.start_running()
        sender.router.add_connection(
            Connection(task.name, task.input_buffer, group=task.name, batch_size=1)
        )
    in_other_thread(sender.start_running)
    for number in range(20):
        sender.put_packet(Packet(number))
    assert until(lambda: leaving.input_buffer.qsize() >= 4)
    in_other_thread(lambda: sender.router.remove_connection("leaving", stop=True))
    sender.kill_host()
    assert until(lambda: sender.get_status().restarts == 1)
    leaving.resume()
    assert in_other_thread(lambda: leaving.join(20))
    assert leaving.get_report().result[:4] == [0, 1, 2, 3]
    assert in_other_thread(lambda: sender.stop(timeout=20))
    assert in_other_thread(lambda: staying.join(20))
    assert set(staying.get_report().result) == set(range(20))
