"""A job that is being ended, or whose hosts are replaced: it does not wait, and raises no alarm."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from waiting import in_other_thread, until

from sageruntime import (
    CheckpointOptions,
    MapOperator,
    OperatorFactory,
    Packet,
    Pipeline,
    RestartPolicy,
    TaskContext,
    TaskOptions,
    TaskState,
)
from sageruntime.errors import JobFailed
from sageruntime.task.process_task import ProcessTask

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it

FOREVER = RestartPolicy(max_restarts=3, backoff=600, max_backoff=600)


def fail(item: Any) -> Any:
    raise ValueError("again and again")


def die(item: Any) -> Any:
    os._exit(1)


def same(item: Any) -> Any:
    return item


# Closing does not wait out the pause before a restart.


CHECKPOINTS = pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpoints"])


@pytest.mark.parametrize("how", ["close", "stop"])
@CHECKPOINTS
def test_a_job_that_pauses_before_a_restart_is_ended(
    host: Any, checkpoints: bool, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_that_it_ends(host, fail, checkpoints, how, tmp_path, caplog)


@pytest.mark.parametrize("how", ["close", "stop"])
@CHECKPOINTS
def test_a_job_that_pauses_before_it_replaces_a_host_is_ended(
    far_host: Any, checkpoints: bool, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_that_it_ends(far_host, die, checkpoints, how, tmp_path, caplog)


def check_that_it_ends(
    on: Any, operator: Any, checkpoints: bool, how: str, folder: Path, caplog: Any
) -> None:
    pipeline = Pipeline("paused", options=TaskOptions(restart=FOREVER)).source(range(10))
    pipeline = pipeline.map(operator, on=on).sink()
    options = CheckpointOptions(folder / "c.db") if checkpoints else None
    job = pipeline.start(checkpoint=options)
    try:
        # it waits when it says so, or does at once
        assert until(lambda: "in 600.0 s" in caplog.text)
        assert until(lambda: job.tasks[1][0].state is TaskState.RESTARTING)
        if how == "stop":
            in_other_thread(job.stop)
            for task in job.tasks[1]:
                assert in_other_thread(lambda task=task: task.stop(drain=False, timeout=15))
    finally:
        in_other_thread(job.close)
    assert all(task.state.ended for tasks in job.tasks for task in tasks)


@pytest.mark.parametrize("how", ["cleanup", "stop"])
@CHECKPOINTS
def test_a_task_that_pauses_before_a_restart_is_ended(
    task_class: Any, checkpoints: bool, how: str, tmp_path: Path, tidy: Any, caplog: Any
) -> None:
    check_that_the_task_ends(tidy, task_class, fail, checkpoints, how, tmp_path, caplog)


@pytest.mark.parametrize("how", ["cleanup", "stop"])
@CHECKPOINTS
def test_a_task_that_pauses_before_it_replaces_its_host_is_ended(
    far_task_class: Any, checkpoints: bool, how: str, tmp_path: Path, tidy: Any, caplog: Any
) -> None:
    check_that_the_task_ends(tidy, far_task_class, die, checkpoints, how, tmp_path, caplog)


def check_that_the_task_ends(
    tidy: Any, kind: Any, operator: Any, checkpoints: bool, how: str, folder: Path, caplog: Any
) -> None:
    task = kind(
        TaskContext("paused"), OperatorFactory(MapOperator, operator), restart=FOREVER,
        checkpoint=CheckpointOptions(folder / "c.db") if checkpoints else None,
    )  # fmt: skip
    tidy(task).start_running()
    task.put_packet(Packet(1))
    assert until(lambda: "in 600.0 s" in caplog.text)
    assert until(lambda: task.state is TaskState.RESTARTING)
    if how == "stop":
        assert in_other_thread(lambda: task.stop(drain=False, timeout=15))
    else:
        in_other_thread(task.cleanup)
    assert task.state is TaskState.STOPPED


def test_a_job_whose_close_comes_at_any_moment_of_a_restart(tmp_path: Path) -> None:
    """Whatever the coordinator is at: each time a little later."""
    for turn in range(20):
        options = TaskOptions(restart=FOREVER)
        pipeline = Pipeline("at-any-time", options=options).source(range(10)).map(fail).sink()
        job = pipeline.start(checkpoint=CheckpointOptions(tmp_path / f"{turn}.db"))
        job.wait(turn * 0.002)
        in_other_thread(job.close)
        assert all(task.state.ended for tasks in job.tasks for task in tasks)


# A job that is closed has no errors for that.


def endless() -> Iterator[int]:
    for number in count():
        yield number
        if number % 100 == 0:
            time.sleep(0.001)


def stays(item: Any) -> Any:
    time.sleep(1000)


def ignore(item: Any) -> None:
    pass


def slowly(item: Any) -> Any:
    time.sleep(0.01)
    return item


@CHECKPOINTS
@pytest.mark.parametrize("policy", ["fail", "skip", "dead_letter"])
@pytest.mark.parametrize("operator", [same, slowly])
def test_a_job_that_is_closed_complains_of_nothing(
    host: Any, checkpoints: bool, policy: Any, operator: Any, tmp_path: Path, caplog: Any
) -> None:
    options = TaskOptions(queue_maxsize=100, batch_size=10, error_policy=policy)
    pipeline = Pipeline("closed", options=options).source(endless, on=host, parallelism=2)
    pipeline.map(operator, on=host, parallelism=2).sink(ignore, on=host)
    check_that_closing_is_quiet(pipeline, checkpoints, tmp_path, caplog)


@CHECKPOINTS
def test_a_job_that_is_closed_while_an_operator_hangs_logs_no_error(
    far_host: Any, checkpoints: bool, tmp_path: Path, caplog: Any
) -> None:
    options = TaskOptions(queue_maxsize=100, batch_size=10)
    pipeline = Pipeline("closed", options=options).source(endless)
    pipeline.map(stays, on=far_host).sink()
    check_that_closing_is_quiet(pipeline, checkpoints, tmp_path, caplog)


@CHECKPOINTS
def test_a_job_that_is_closed_at_once_complains_of_nothing(
    host: Any, checkpoints: bool, tmp_path: Path, caplog: Any
) -> None:
    pipeline = Pipeline("closed").source(endless, on=host).map(same, on=host).sink()
    check_that_closing_is_quiet(pipeline, checkpoints, tmp_path, caplog, read=0)


def check_that_closing_is_quiet(
    pipeline: Pipeline, checkpoints: bool, folder: Path, caplog: Any, read: int = 100
) -> None:
    options = CheckpointOptions(folder / "c.db", interval=0.01) if checkpoints else None
    with caplog.at_level(logging.INFO):
        job = pipeline.start(checkpoint=options)
        try:
            assert until(lambda: job.progress()[0].packets >= read)
        finally:
            in_other_thread(job.close)
    complaints = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.ERROR
        or (record.levelno >= logging.WARNING and "DownstreamClosed" in record.getMessage())
    ]
    assert complaints == []
    assert all(task.state is TaskState.STOPPED for tasks in job.tasks for task in tasks)


# Packets that an operator hangs on, when they pickle differently each time.


class Unordered:
    """A set of such objects has an order of its own in each process."""

    def __init__(self, name: str) -> None:
        self.name = name


def unordered(hang: str) -> Any:
    return {Unordered(f"{hang} {number}") for number in range(20)}


def words(hang: str) -> Any:
    return {f"{hang} {number}" for number in range(20)}


def hangs(item: Any) -> Any:
    """On what is no number."""
    if not isinstance(item, int):
        time.sleep(1000)
    return item


@CHECKPOINTS
@pytest.mark.parametrize("make", [unordered, words])
def test_a_packet_it_hung_on_is_known_again(
    far_host: Any, make: Any, checkpoints: bool, tmp_path: Path
) -> None:
    def source() -> Iterator[Any]:
        for number in range(30):
            yield number
            if number in (10, 20):
                yield make(f"hang {number}")

    task_options = TaskOptions(processing_timeout=0.3, error_policy="dead_letter", batch_size=1)  # type: ignore[arg-type]
    pipeline = Pipeline("hung", options=task_options).source(source)
    options = CheckpointOptions(tmp_path / "c.db", interval=0.05) if checkpoints else None
    with pipeline.map(hangs, on=far_host).sink().start(checkpoint=options) as job:
        assert job.wait(40)
        result = job.result()
    if checkpoints:
        assert result.sink_result == list(range(30))
    assert set(result.sink_result) == set(range(30))
    assert len(result.dead_letters) == 2
    assert all("ProcessingTimeout" in letter.error for letter in result.dead_letters)


@CHECKPOINTS
def test_an_operator_that_hangs_on_everything_is_not_replaced_for_ever(
    checkpoints: bool, tmp_path: Path
) -> None:
    options = TaskOptions(
        processing_timeout=0.05, error_policy="skip", batch_size=1,  # type: ignore[arg-type]
        restart=RestartPolicy(max_restarts=2),
    )  # fmt: skip
    pipeline = Pipeline("hopeless", options=options).source(endless)
    pipeline = pipeline.map(stays, on="process").sink()
    checkpoint = CheckpointOptions(tmp_path / "c.db", interval=0.05) if checkpoints else None
    job = pipeline.start(checkpoint=checkpoint)
    try:
        assert job.wait(60), job.tasks[1][0].get_status()
        with pytest.raises(JobFailed):
            in_other_thread(job.result)
    finally:
        in_other_thread(job.close)


def test_a_lone_task_that_hangs_on_everything_is_not_replaced_for_ever(tidy: Any) -> None:
    task = tidy(
        ProcessTask(
            TaskContext("hopeless"), OperatorFactory(MapOperator, stays), processing_timeout=0.05,
            error_policy="skip", restart=RestartPolicy(max_restarts=2),
        )
    )  # fmt: skip
    for number in range(200):
        task.put_packet(Packet(number))
    task.start_running()
    assert in_other_thread(lambda: task.join(60), 70), task.get_status()
    assert task.state is TaskState.FAILED
