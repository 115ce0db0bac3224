"""What cannot be decoded where it arrives: it costs one packet, and nothing beside it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from sageruntime import (
    BaseOperator,
    BatchOperator,
    CheckpointOptions,
    CollectSink,
    JobResult,
    LocalTask,
    OperatorFactory,
    Packet,
    Pipeline,
    RestartPolicy,
    RetryPolicy,
    TaskContext,
    TaskOptions,
)
from sageruntime.communication.router import PacketBatch
from sageruntime.dead_letters.store import DeadLetterStore
from sageruntime.errors import JobFailed

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it


class Undecodable:
    """Pickles anywhere and unpickles nowhere."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class NoMore:
    """Likewise; what it raises would end a loop."""

    def __reduce__(self) -> Any:
        return next, (iter([]),)


BAD = Undecodable()
GOOD = [number for number in range(1000) if number != 500]


def numbers(bad: type = Undecodable) -> Any:
    return lambda: (bad() if number == 500 else number for number in range(1000))


def same(number: int) -> int:
    return number


def result_of(pipeline: Pipeline, **run: Any) -> JobResult:
    with pipeline.start(**run) as job:
        assert job.wait(40), "the job hangs"
        return job.result()


# Between two tasks of a job.


@pytest.mark.parametrize("restarts", [0, 2])
@pytest.mark.parametrize("policy", ["skip", "retry", "dead_letter"])
def test_the_others_of_its_batch_are_processed(far_host: Any, policy: Any, restarts: int) -> None:
    options = TaskOptions(
        retry=RetryPolicy(attempts=2, backoff=0.001, then="skip"), restart=RestartPolicy(restarts)
    )
    pipeline = Pipeline("undecodable", options=options).source(numbers())
    result = result_of(pipeline.map(same, on=far_host, error_policy=policy).sink())
    assert result.sink_result == GOOD
    assert (result.stages[1].packets, result.stages[1].errors) == (999, 1)
    assert len(result.dead_letters) == (policy == "dead_letter")
    for letter in result.dead_letters:
        assert letter.packet is None
        assert b"no number" in letter.raw  # as it travelled
        assert "invalid literal for int() with base 10: 'no number'" in letter.error
        assert letter.stage == result.stages[1].name


@pytest.mark.parametrize("restarts", [0, 2])
def test_under_the_policy_fail_it_fails_the_job(far_host: Any, restarts: int) -> None:
    options = TaskOptions(restart=RestartPolicy(restarts))
    pipeline = Pipeline("undecodable", options=options).source(numbers())
    with pytest.raises(JobFailed, match="no number"):
        with pipeline.map(same, on=far_host).sink().start() as job:
            assert job.wait(40), "the job hangs"
            job.result()
    assert job.tasks[1][0].get_status().restarts == restarts


def test_whatever_decoding_raises_is_an_error_of_the_packet(far_host: Any) -> None:
    pipeline = Pipeline("undecodable").source(numbers(NoMore))
    result = result_of(pipeline.map(same, on=far_host, error_policy="dead_letter").sink())
    assert result.sink_result == GOOD
    (letter,) = result.dead_letters
    assert "StopIteration" in letter.error


class Async(BaseOperator):
    async def process(self, packet: Packet) -> Packet:
        return packet


class Batches(BatchOperator):
    def process_batch(self, packets: list[Packet]) -> list[Packet]:
        return packets


@pytest.mark.parametrize(
    ("operator", "options"),
    [(same, {"worker_threads": 2}), (Async, {}), (Batches, {}), (Batches, {"worker_threads": 2})],
    ids=["threads", "async", "batches", "batches-threads"],
)
def test_however_the_operator_is_called(operator: Any, options: Any) -> None:
    pipeline = Pipeline("undecodable").source(numbers())
    result = result_of(pipeline.map(operator, on="process", error_policy="skip", **options).sink())
    assert sorted(result.sink_result) == GOOD
    assert result.errors == 1


def test_a_sink_gets_the_others(far_host: Any) -> None:
    pipeline = Pipeline("undecodable").source(numbers())
    result = result_of(pipeline.sink(on=far_host, error_policy="skip"))
    assert result.sink_result == GOOD
    assert result.errors == 1


def test_with_checkpoints_each_counts_once(far_host: Any, tmp_path: Path) -> None:
    options = TaskOptions(restart=RestartPolicy(2))
    pipeline = Pipeline("undecodable", options=options).source(numbers())
    result = result_of(
        pipeline.map(same, on=far_host, error_policy="dead_letter").sink(),
        checkpoint=CheckpointOptions(tmp_path / "c.db", interval=0.05),
    )
    assert result.sink_result == GOOD
    assert len(result.dead_letters) == result.errors == 1


def note(path: str, number: int) -> int:
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number


class Noted:
    """A number that is written down each time it is decoded."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number

    def __reduce__(self) -> Any:
        return note, (str(self.path), self.number)


@pytest.mark.parametrize("restarts", [0, 2])
def test_nothing_is_decoded_twice(far_host: Any, restarts: int, tmp_path: Path) -> None:
    options = TaskOptions(restart=RestartPolicy(restarts), error_policy="skip", batch_size=10)  # type: ignore[arg-type]
    path = tmp_path / "decoded"
    payloads = [Noted(path, number) if number % 30 else Undecodable() for number in range(300)]
    pipeline = Pipeline("once", options=options).source(payloads)
    result = result_of(pipeline.map(same, on=far_host).sink())
    good = [number for number in range(300) if number % 30]
    assert result.sink_result == good
    assert result.errors == 10
    times = Counter(map(int, path.read_text().split()))
    assert times.keys() == set(good)
    assert max(times.values()) == 1


# By themselves.

BATCHES: list[list[Any]] = [[BAD], [BAD, 1, 2], [1, 2, BAD], [1, BAD, 2, BAD, 3], [BAD, BAD]]


@pytest.mark.parametrize("restarts", [0, 2])
@pytest.mark.parametrize("payloads", BATCHES, ids=["only", "first", "last", "between", "all"])
def test_wherever_it_is_in_a_batch(
    far_task_class: Any, payloads: Any, restarts: int, tidy: Any
) -> None:
    task = far_task_class(
        TaskContext("wherever"), OperatorFactory(CollectSink),
        error_policy="skip", restart=RestartPolicy(restarts),
    )  # fmt: skip
    check_what_arrives(tidy(task), payloads)


@pytest.mark.parametrize("restarts", [0, 2])
@pytest.mark.parametrize("payloads", BATCHES, ids=["only", "first", "last", "between", "all"])
def test_on_a_thread_that_other_processes_send_to(payloads: Any, restarts: int, tidy: Any) -> None:
    task = LocalTask(
        TaskContext("machine"), OperatorFactory(CollectSink), queue_scope="machine",
        error_policy="skip", restart=RestartPolicy(restarts),
    )  # fmt: skip
    check_what_arrives(tidy(task), payloads)


def check_what_arrives(task: Any, payloads: list[Any]) -> None:
    """Twice: in one batch, and in batches of one."""
    task.input_buffer.put(PacketBatch([Packet(payload) for payload in payloads]))
    for payload in payloads:
        task.put_packet(Packet(payload))
    task.start_running()
    assert task.stop(timeout=40)
    assert task.get_report().result == [p for p in payloads * 2 if p is not BAD]
    assert task.get_status().errors == 2 * payloads.count(BAD)


def test_a_key_that_cannot_be_decoded(far_task_class: Any, tidy: Any) -> None:
    task = tidy(
        far_task_class(TaskContext("key"), OperatorFactory(CollectSink), error_policy="skip")
    )
    keys = [1, BAD, 2]
    task.input_buffer.put(PacketBatch([Packet(n, key=key) for n, key in enumerate(keys)]))
    task.start_running()
    assert task.stop(timeout=40)
    assert task.get_report().result == [0, 2]
    assert task.get_status().errors == 1


# In the driver, which the dead letters come to.


class Spoils(BaseOperator):
    """Fails on everything, and puts what cannot be decoded into some packets before."""

    def __init__(self, every: int, what: str = "payload") -> None:
        self.every = every
        self.what = what

    def process(self, packet: Packet) -> None:
        number = packet.payload
        if number % self.every == 3:
            setattr(packet, self.what, Undecodable())
        raise ValueError(number)


def spoiling(count: int, every: int, on: Any, what: str = "payload") -> Pipeline:
    options = TaskOptions(error_policy="dead_letter", batch_size=10)  # type: ignore[arg-type]
    pipeline = Pipeline("spoiling", options=options).source(range(count))
    return pipeline.map(OperatorFactory(Spoils, every, what), on=on).sink()


def test_a_letter_that_the_driver_cannot_decode_is_kept(far_host: Any) -> None:
    result = result_of(spoiling(30, 10, far_host))
    letters = {letter.error: letter for letter in result.dead_letters}
    assert letters.keys() == {f"ValueError: {number}" for number in range(30)}
    for number in range(30):
        letter = letters[f"ValueError: {number}"]
        if number % 10 == 3:
            assert letter.packet is None
            assert b"no number" in letter.raw
        else:
            assert letter.packet is not None
            assert letter.packet.payload == number
    assert result.errors == len(result.dead_letters) == 30


def test_a_letter_whose_key_the_driver_cannot_decode_is_kept(far_host: Any) -> None:
    result = result_of(spoiling(30, 10, far_host, "key"))
    errors = [letter.error for letter in result.dead_letters]
    assert sorted(errors) == sorted(f"ValueError: {number}" for number in range(30))


def test_more_letters_than_their_queue_holds() -> None:
    result = result_of(spoiling(20_000, 1000, "process"))
    errors = {letter.error for letter in result.dead_letters}
    assert errors == {f"ValueError: {number}" for number in range(20_000)}
    assert len(result.dead_letters) == result.errors == 20_000
    assert sum(letter.packet is None for letter in result.dead_letters) == 20


def test_such_letters_in_a_file(far_host: Any, tmp_path: Path) -> None:
    path = tmp_path / "letters.db"
    assert result_of(spoiling(30, 10, far_host), dead_letters=path).dead_letters == []
    with DeadLetterStore(path) as store:
        letters = store.letters()
        assert len(letters) == 30
        undecoded = {letter.error for letter in letters if not letter.replayable}
        assert undecoded == {"ValueError: 3", "ValueError: 13", "ValueError: 23"}
        for letter in letters:
            if letter.replayable:
                assert f"ValueError: {store.packet(letter).payload}" == letter.error
