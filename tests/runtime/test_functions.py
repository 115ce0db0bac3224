"""What a stage may be given in place of an operator: functions, async ones, and iterables."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from waiting import until

from sageruntime import (
    CheckpointOptions,
    JobFailed,
    MapOperator,
    OperatorFactory,
    Pipeline,
    PipelineError,
    RestartPolicy,
    TaskOptions,
)
from sageruntime.errors import OperatorError, PacketError

cloudpickle.register_pickle_by_value(sys.modules[__name__])


async def double(number: int) -> int:
    await asyncio.sleep(0.001 * (number % 3))
    return number * 2


async def is_even(number: int) -> bool:
    await asyncio.sleep(0)
    return number % 2 == 0


async def twice(number: int) -> list[int]:
    await asyncio.sleep(0)
    return [number, number]


async def up_to(number: int) -> AsyncIterator[int]:
    for item in range(number):
        await asyncio.sleep(0)
        yield item


class Add:
    def __init__(self, other: int) -> None:
        self.other = other

    async def __call__(self, number: int) -> int:
        await asyncio.sleep(0)
        return number + self.other


async def write(folder: Path, number: int) -> None:
    await asyncio.sleep(0)
    (folder / str(number)).touch()


def test_async_functions_are_awaited_and_order_is_kept(host: Any, tmp_path: Path) -> None:
    pipeline = Pipeline("async").source(range(10)).map(double, on=host).map(Add(1), on=host)
    pipeline.filter(lambda number: number < 12).filter(is_even, on=host)
    assert pipeline.sink().run().sink_result == []
    pipeline = Pipeline("async").source(range(6)).filter(is_even, on=host)
    result = pipeline.flat_map(twice, on=host).flat_map(up_to, on=host).sink().run()
    assert result.sink_result == [0, 1, 0, 1, 0, 1, 2, 3, 0, 1, 2, 3]
    Pipeline("async").source(range(3)).sink(partial(write, tmp_path), on=host).run()
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2"}


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Pipeline("p").source(up_to),
        lambda p: p.key_by(double),
        lambda p: p.key_by(double, parallelism=2),
        lambda p: p.partition_by(twice),
    ],
)
def test_where_nothing_can_be_awaited_an_async_function_is_refused(make: Any) -> None:
    with pytest.raises(PipelineError, match="plain function"):
        make(Pipeline("refused").source([1]))


def test_an_operator_that_does_not_await_refuses_it_too() -> None:
    pipeline = Pipeline("refused").source([1]).map(OperatorFactory(MapOperator, double))
    with pytest.raises(OperatorError, match="does not await"):
        pipeline.sink().run()


def test_an_iterator_is_read_by_one_instance() -> None:
    with pytest.raises(PipelineError, match="can be read only once"):
        Pipeline("once").source(iter([1]), parallelism=2)


def test_an_iterator_is_read_by_one_run() -> None:
    pipeline = Pipeline("once").source(number for number in range(3)).sink()
    assert pipeline.run().sink_result == [0, 1, 2]
    with pytest.raises(JobFailed, match="was read before"):
        pipeline.run()


@pytest.mark.parametrize("has_checkpoints", [False, True])
def test_an_iterator_is_not_read_again_after_a_failure(
    has_checkpoints: bool, tmp_path: Path
) -> None:
    """It would seem to be at its end."""

    def fail_once(number: int) -> int:
        if number == 50 and not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise ValueError("the first time")
        return number

    def numbers() -> Any:
        for number in range(100):
            if number == 50 and not has_checkpoints and not (tmp_path / "failed").exists():
                (tmp_path / "failed").touch()
                raise ValueError("the first time")
            yield number

    options = TaskOptions(restart=RestartPolicy(3))
    checkpoint = CheckpointOptions(tmp_path / "c.db") if has_checkpoints else None
    pipeline = Pipeline("once", options=options).source(numbers())
    with pytest.raises(JobFailed, match="was read before"):
        pipeline.map(fail_once).sink().run(checkpoint=checkpoint)


def raise_(number: int) -> None:
    raise KeyError("db")


def test_a_failed_job_names_task_packet_error_and_place(host: Any) -> None:
    place = rf"KeyError: 'db' \(.*:{raise_.__code__.co_firstlineno + 1} in raise_\)"
    with pytest.raises(
        JobFailed, match=rf"^job told failed: told-\w+-map-1-0 failed on packet \d+: {place}"
    ):
        Pipeline("told").source([1]).map(raise_, on=host).sink().run()


class FailsToOpen(MapOperator):
    def __init__(self) -> None:
        super().__init__(str)

    def open(self) -> None:
        raise KeyError("db")


def test_or_what_else_has_failed(host: Any) -> None:
    with pytest.raises(JobFailed, match=r"^job told failed in told-\w+-map-1-0: KeyError: 'db'$"):
        Pipeline("told").source([1]).map(FailsToOpen, on=host).sink().run()


async def hang(number: int) -> int:
    await asyncio.sleep(60 if number == 1 else 0)
    return number


def test_a_coroutine_that_takes_too_long_is_counted(host: Any) -> None:
    pipeline = Pipeline("late").source(range(3))
    pipeline.map(hang, on=host, processing_timeout=0.2, error_policy="skip")
    result = pipeline.sink().run()
    assert result.sink_result == [0, 2]
    assert result.metrics.stages[1].timeouts == 1


def test_a_job_is_stopped_though_a_stage_is_paused(host: Any) -> None:
    def endless() -> Any:
        number = 0
        while True:
            yield number
            number += 1

    pipeline = Pipeline("paused", options=TaskOptions(queue_maxsize=100)).source(endless)
    with pipeline.map(str, on=host).sink(lambda item: None).start() as job:
        assert until(lambda: job.progress()[2].packets > 0)
        job.tasks[1][0].pause()
        job.stop()
        assert job.wait(30)
        job.result()
    assert isinstance(job.result().stages[2].packets, int)


def test_the_error_of_a_packet_tells_where(host: Any) -> None:
    with pytest.raises(JobFailed) as failure:
        Pipeline("told").source([1]).map(raise_, on=host).sink().run()
    assert isinstance(failure.value.__cause__, PacketError)
