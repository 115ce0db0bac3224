"""Packets that kill the process which works on them: each meets the error policy, no other does."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from waiting import until

from sageruntime import (
    BaseOperator,
    BatchOperator,
    CheckpointOptions,
    CollectSink,
    JobResult,
    OperatorFactory,
    Packet,
    Pipeline,
    RestartPolicy,
    RetryPolicy,
    TaskContext,
    TaskOptions,
)
from sageruntime.errors import JobFailed, PacketError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it

DIED = "died|killed|exited"


class Kills(BaseOperator):
    """Some numbers kill its process each time, or so many times."""

    def __init__(self, folder: Path, fatal: list[int], how: str = "exit", times: int = 1000):
        self.folder = folder
        self.fatal = fatal
        self.how = how
        self.times = times

    def process(self, packet: Packet) -> Any:
        number = packet.payload
        if number in self.fatal and len(deaths(self.folder, number)) < self.times:
            (self.folder / f"{number}-{os.getpid()}").touch()
            if self.how == "exit":
                os._exit(3)
            elif self.how == "SIGSEGV":
                ctypes.string_at(0)
            os.kill(os.getpid(), signal.SIGKILL)
        return packet


class KillsInBatches(Kills, BatchOperator):
    """Likewise, in batches."""

    def process_batch(self, packets: list[Packet]) -> list[Packet]:
        return [Kills.process(self, packet) for packet in packets]

    def process(self, packet: Packet) -> Any:
        return Kills.process(self, packet)


class KillsAsync(Kills):
    """Likewise, on an event loop."""

    async def process(self, packet: Packet) -> Any:
        await asyncio.sleep(0)
        return super().process(packet)


def deaths(folder: Path, number: int) -> list[Path]:
    """How often a number has killed a process."""
    return list(folder.glob(f"{number}-*"))


def pipeline(on: Any, operator: Any, policy: str = "skip", **options: Any) -> Pipeline:
    options = {"restart": RestartPolicy(3), **options}
    task_options = TaskOptions(error_policy=policy, **options)  # type: ignore[arg-type]
    return Pipeline("crashing", options=task_options).source(range(500)).map(operator, on=on).sink()


def result_of(pipeline: Pipeline, checkpoints: Path | None = None) -> JobResult:
    options = None
    if checkpoints is not None:
        options = CheckpointOptions(checkpoints / "c.db", interval=0.05)
    with pipeline.start(checkpoint=options) as job:
        assert job.wait(60), [task.get_status() for tasks in job.tasks for task in tasks]
        return job.result()


def check_that_the_others_arrive(result: JobResult, fatal: list[int], once: bool) -> None:
    counts = Counter(result.sink_result)
    assert counts.keys() == set(range(500)) - set(fatal)
    if once:
        assert max(counts.values()) == 1


@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpoints"])
@pytest.mark.parametrize("policy", ["skip", "dead_letter", "retry"])
def test_it_meets_the_error_policy(
    far_host: Any, policy: str, checkpoints: bool, tmp_path: Path
) -> None:
    operator = OperatorFactory(Kills, tmp_path, [250])
    retry = RetryPolicy(attempts=2, backoff=0.001, then="dead_letter")
    result = result_of(
        pipeline(far_host, operator, policy, retry=retry), tmp_path if checkpoints else None
    )
    check_that_the_others_arrive(result, [250], checkpoints)
    assert len(deaths(tmp_path, 250)) == 3
    assert result.stages[1].errors == 1
    assert len(result.dead_letters) == (policy != "skip")
    for letter in result.dead_letters:
        assert letter.packet is not None
        assert letter.packet.payload == 250
        assert any(word in letter.error for word in DIED.split("|")), letter.error


@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpoints"])
def test_it_fails_the_job(far_host: Any, checkpoints: bool, tmp_path: Path) -> None:
    operator = OperatorFactory(Kills, tmp_path, [250])
    with pytest.raises(JobFailed, match=rf"failed on packet \d+.*({DIED})") as failure:
        result_of(
            pipeline(far_host, operator, "fail", restart=RestartPolicy(10)),
            tmp_path if checkpoints else None,
        )
    error = failure.value.__cause__
    assert isinstance(error, PacketError)
    assert error.packet_id is not None
    assert f"packet {error.packet_id}" in str(failure.value)


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV"])
def test_however_the_process_dies(how: str, tmp_path: Path) -> None:
    operator = OperatorFactory(Kills, tmp_path, [250], how)
    result = result_of(pipeline("process", operator, "dead_letter"))
    check_that_the_others_arrive(result, [250], False)
    (letter,) = result.dead_letters
    assert letter.packet is not None
    assert letter.packet.payload == 250


@pytest.mark.parametrize("most", [2, 4])
def test_it_is_given_to_the_operator_so_many_times(most: int, tmp_path: Path) -> None:
    operator = OperatorFactory(Kills, tmp_path, [250])
    result = result_of(
        pipeline("process", operator, max_deliveries=most, restart=RestartPolicy(10))
    )
    check_that_the_others_arrive(result, [250], False)
    assert len(deaths(tmp_path, 250)) == most


@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpoints"])
def test_one_that_goes_well_at_last_is_no_error(checkpoints: bool, tmp_path: Path) -> None:
    operator = OperatorFactory(Kills, tmp_path, [250], "exit", 2)
    result = result_of(pipeline("process", operator), tmp_path if checkpoints else None)
    check_that_the_others_arrive(result, [], checkpoints)
    assert result.errors == 0


@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpoints"])
@pytest.mark.parametrize(
    "fatal", [[0], [499], [250, 251], [100, 105, 400]], ids=["first", "last", "two", "three"]
)
def test_wherever_they_are(fatal: list[int], checkpoints: bool, tmp_path: Path) -> None:
    operator = OperatorFactory(Kills, tmp_path, fatal)
    result = result_of(
        pipeline("process", operator, restart=RestartPolicy(20)), tmp_path if checkpoints else None
    )
    check_that_the_others_arrive(result, fatal, checkpoints)
    assert result.errors == len(fatal)


@pytest.mark.parametrize(
    ("operator", "options"),
    [(Kills, {"worker_threads": 3}), (KillsInBatches, {}), (KillsAsync, {})],
    ids=["threads", "batches", "async"],
)
def test_however_the_operator_is_called(operator: Any, options: Any, tmp_path: Path) -> None:
    """Which of the packets it works on at a time is at fault has to be found out."""
    result = result_of(
        pipeline(
            "process", OperatorFactory(operator, tmp_path, [250]), "dead_letter",
            restart=RestartPolicy(20), **options,
        )
    )  # fmt: skip
    check_that_the_others_arrive(result, [250], False)
    (letter,) = result.dead_letters
    assert letter.packet is not None
    assert letter.packet.payload == 250


def test_one_of_several_instances(tmp_path: Path) -> None:
    options = TaskOptions(error_policy="skip", restart=RestartPolicy(3))  # type: ignore[arg-type]
    stages = Pipeline("crashing", options=options).source(range(500)).key_by(lambda n: n % 10)
    operator = OperatorFactory(Kills, tmp_path, [250])
    result = result_of(stages.map(operator, on="process", parallelism=2).sink())
    check_that_the_others_arrive(result, [250], False)
    assert result.errors == 1


class KillsAtTheEnd(CollectSink):
    """A sink that some numbers kill."""

    def __init__(self, folder: Path, fatal: list[int]) -> None:
        super().__init__()
        self.kills = Kills(folder, fatal)

    def process(self, packet: Packet) -> None:
        self.kills.process(packet)
        super().process(packet)


def test_a_sink_that_it_kills(far_host: Any, tmp_path: Path) -> None:
    options = TaskOptions(error_policy="dead_letter", restart=RestartPolicy(3))  # type: ignore[arg-type]
    sink = OperatorFactory(KillsAtTheEnd, tmp_path, [250])
    stages = Pipeline("crashing", options=options).source(range(500)).sink(sink, on=far_host)
    result = result_of(stages, tmp_path)  # without checkpoints what a sink collected dies with it
    assert result.sink_result == [number for number in range(500) if number != 250]
    (letter,) = result.dead_letters
    assert letter.packet is not None
    assert letter.packet.payload == 250


@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpoints"])
def test_by_itself(far_task_class: Any, checkpoints: bool, tmp_path: Path, tidy: Any) -> None:
    task = tidy(
        far_task_class(
            TaskContext("crashing"), OperatorFactory(KillsAtTheEnd, tmp_path, [2]),
            error_policy="skip", restart=RestartPolicy(3),
            checkpoint=CheckpointOptions(tmp_path / "c.db") if checkpoints else None,
        )
    )  # fmt: skip
    task.start_running()
    for number in range(3):
        task.put_packet(Packet(number))
    assert until(lambda: task.get_status().errors == 1, 40)
    for number in range(3, 6):
        task.put_packet(Packet(number))
    assert task.stop(timeout=40)
    assert len(deaths(tmp_path, 2)) == 3
    result = task.get_report().result
    if checkpoints:
        assert result == [0, 1, 3, 4, 5]
    assert set(result) >= {3, 4, 5}
    assert 2 not in result
