"""How operators are called: not while they are closed, whatever the key, and one slow packet or one
that was cancelled is the affair of that packet alone."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from waiting import in_other_thread, until

from sagequeue import create_queue
from sageruntime import (
    BaseOperator,
    BatchOperator,
    CheckpointOptions,
    Connection,
    LocalTask,
    MapOperator,
    OperatorFactory,
    Packet,
    Pipeline,
    RestartPolicy,
    RetryPolicy,
    TaskContext,
    TaskOptions,
    TaskState,
)
from sageruntime.communication.router import PacketBatch
from sageruntime.errors import JobFailed
from sageruntime.task.process_task import ProcessTask

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it

# How long a call goes on in which close() must not come.
A_WHILE = 0.3


# close() comes after process().


class Witness(BaseOperator):
    """Notes in a folder whether it is closed while it works.

    ``slow`` works a while, ``bad`` fails as soon as another packet is worked on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> None:
        self.working = threading.Event()
        self.closed = threading.Event()

    def process(self, packet: Packet) -> Packet:
        if packet.payload == "bad":
            self.working.wait(20)
            raise ValueError("bad")
        self.working.set()
        (self.folder / "working").touch()
        if self.closed.wait(A_WHILE):
            (self.folder / "closed while it worked").touch()
        return packet

    def close(self) -> None:
        (self.folder / "closed").touch()
        self.closed.set()


class BatchWitness(Witness, BatchOperator):
    """Likewise, in batches."""

    def process_batch(self, packets: list[Packet]) -> list[Packet]:
        return [packet for packet in packets if self.process(packet)]


class AsyncWitness(Witness):
    """Likewise, on an event loop."""

    def open(self) -> None:
        super().open()
        self.inside = 0

    async def process(self, packet: Packet) -> Packet:  # type: ignore[override]
        while packet.payload == "bad":
            await asyncio.sleep(0.001)
            if self.working.is_set():
                raise ValueError("bad")
        self.working.set()
        (self.folder / "working").touch()
        self.inside += 1
        try:
            await asyncio.sleep(A_WHILE)
        finally:
            self.inside -= 1
        return packet

    async def close(self) -> None:
        if self.inside:
            (self.folder / "closed while it worked").touch()
        await asyncio.sleep(0)
        super().close()


WAYS: Any = [
    pytest.param(Witness, {"worker_threads": 2}, ["bad", "slow"], id="threads"),
    pytest.param(Witness, {"worker_threads": 3}, ["slow", "bad", "slow"], id="more-threads"),
    pytest.param(Witness, {"processing_timeout": 0.05}, ["slow"], id="timeout"),
    pytest.param(
        Witness, {"processing_timeout": 0.05, "worker_threads": 2}, ["slow", "slow"],
        id="timeout-threads",
    ),
    pytest.param(BatchWitness, {"processing_timeout": 0.05}, ["slow"], id="timeout-batch"),
    pytest.param(AsyncWitness, {}, ["bad", "slow"], id="async"),
    pytest.param(AsyncWitness, {"processing_timeout": 0.05}, ["slow"], id="timeout-async"),
]  # fmt: skip


@pytest.mark.parametrize("kind", [LocalTask, ProcessTask])
@pytest.mark.parametrize(("operator", "options", "payloads"), WAYS)
def test_an_operator_that_fails_is_not_closed_while_it_works(
    kind: Any, operator: Any, options: Any, payloads: list[str], tmp_path: Path, tidy: Any
) -> None:
    task = tidy(kind(TaskContext("witness"), OperatorFactory(operator, tmp_path), **options))
    task.input_buffer.put(PacketBatch([Packet(payload) for payload in payloads]))
    task.start_running()
    assert in_other_thread(lambda: task.join(20))
    assert task.state is TaskState.FAILED
    check_that_it_was_closed_in_time(tmp_path, kind is LocalTask)


@pytest.mark.parametrize("kind", [LocalTask, ProcessTask])
@pytest.mark.parametrize(
    ("operator", "options"),
    [(Witness, {}), (Witness, {"worker_threads": 2}), (BatchWitness, {}), (AsyncWitness, {})],
    ids=["plain", "threads", "batch", "async"],
)
@pytest.mark.parametrize("how", ["stop", "cleanup"])
def test_an_operator_of_a_task_that_is_ended_is_not_closed_while_it_works(
    kind: Any, operator: Any, options: Any, how: str, tmp_path: Path, tidy: Any
) -> None:
    task = tidy(kind(TaskContext("witness"), OperatorFactory(operator, tmp_path), **options))
    task.input_buffer.put(PacketBatch([Packet("slow"), Packet("slow")]))
    task.start_running()
    assert until(lambda: (tmp_path / "working").exists())
    if how == "stop":
        assert in_other_thread(lambda: task.stop(drain=False, timeout=20))
    else:
        in_other_thread(lambda: task.cleanup(grace=0))
    check_that_it_was_closed_in_time(tmp_path, how == "stop" or kind is LocalTask)


def check_that_it_was_closed_in_time(folder: Path, closed: bool) -> None:
    """A process that had to be killed closes nothing."""
    if closed:
        assert until(lambda: (folder / "closed").exists())
    assert not (folder / "closed while it worked").exists()


# Something that a coroutine awaits is cancelled.


class Cancelled(BaseOperator):
    """What it awaits, or it itself, is cancelled for one packet; so many times."""

    def __init__(self, what: str, times: int = 1000) -> None:
        self.what = what
        self.times = times

    async def process(self, packet: Packet) -> Packet:
        await asyncio.sleep(0)
        if packet.payload == 5 and self.times:
            self.times -= 1
            if self.what == "awaited":
                awaited = asyncio.ensure_future(asyncio.sleep(10))
                await asyncio.sleep(0)
                awaited.cancel()
                await awaited
            elif self.what == "itself":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(0)
            raise asyncio.CancelledError
        return packet


WHAT = pytest.mark.parametrize("what", ["awaited", "itself", "raised"])


def cancelling(on: Any, policy: str, what: str, **stage: Any) -> Pipeline:
    operator = OperatorFactory(Cancelled, what, stage.pop("times", 1000))
    pipeline = Pipeline("cancelling").source(range(10))
    return pipeline.map(operator, on=on, error_policy=policy, **stage).sink()  # type: ignore[arg-type]


@WHAT
@pytest.mark.parametrize("policy", ["skip", "dead_letter"])
def test_a_cancelled_packet_is_left_out(host: Any, policy: str, what: str) -> None:
    with cancelling(host, policy, what).start() as job:
        assert job.wait(20)
        result = job.result()
    assert result.sink_result == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert result.stages[1].errors == 1
    assert len(result.dead_letters) == (policy == "dead_letter")
    for letter in result.dead_letters:
        assert letter.packet is not None
        assert letter.packet.payload == 5
        assert "CancelledError" in letter.error


@WHAT
def test_a_cancelled_packet_fails_the_job(host: Any, what: str) -> None:
    with pytest.raises(JobFailed, match="failed on packet .*CancelledError"):
        with cancelling(host, "fail", what).start() as job:
            assert job.wait(20)
            job.result()


@WHAT
def test_a_cancelled_packet_is_tried_again(what: str) -> None:
    retry = RetryPolicy(attempts=3, backoff=0.001)
    pipeline = cancelling("thread", "retry", what, retry=retry, times=2)
    with pipeline.start() as job:
        assert job.wait(20)
        result = job.result()
    assert result.sink_result == list(range(10))
    assert job.tasks[1][0].get_status().retries == 2


class GivesUp(BaseOperator):
    """Waits for something itself, and not for long."""

    async def process(self, packet: Packet) -> Packet:
        if packet.payload == 5:
            await asyncio.wait_for(asyncio.Event().wait(), 0.001)
        return packet


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_a_timeout_of_the_operator_is_not_that_of_the_task(timeout: float | None) -> None:
    options = TaskOptions(error_policy="dead_letter", processing_timeout=timeout)  # type: ignore[arg-type]
    result = Pipeline("gives-up", options=options).source(range(10)).map(GivesUp).sink().run()
    assert result.sink_result == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    (letter,) = result.dead_letters
    assert letter.error.startswith("TimeoutError")
    assert result.metrics.stages[1].timeouts == 0


# With one instance any key will do.


class Async(BaseOperator):
    async def process(self, packet: Packet) -> Packet:
        await asyncio.sleep(0)
        return packet


class Batches(BatchOperator):
    def process_batch(self, packets: list[Packet]) -> list[Packet]:
        return packets


def same(item: Any) -> Any:
    return item


CALLS = pytest.mark.parametrize(
    ("operator", "options"),
    [
        (same, {}),
        (same, {"worker_threads": 2}),
        (Async, {}),
        (Batches, {}),
        (Batches, {"worker_threads": 2}),
    ],
    ids=["plain", "threads", "async", "batches", "batches-threads"],
)

KEYS: dict[str, Any] = {
    "list": lambda number: [number % 2],
    "dict": lambda number: {"remainder": number % 2},
    "set": lambda number: {number % 2},
    "tuple": lambda number: (number % 2, [number % 2]),
    "number": lambda number: number % 2,
}


def any_key(number: int) -> Any:
    """Of all kinds in turn."""
    return list(KEYS.values())[number // 2 % len(KEYS)](number)


@CALLS
def test_any_key_will_do_for_one_instance(host: Any, operator: Any, options: Any) -> None:
    pipeline = Pipeline("any-key").source(range(200)).key_by(any_key)
    with pipeline.map(operator, on=host, **options).sink().start() as job:
        assert job.wait(20)
        result = job.result()
    assert sorted(result.sink_result) == list(range(200))
    assert result.errors == 0


@CALLS
def test_keys_that_cannot_be_compared_will_do_for_one_instance(operator: Any, options: Any) -> None:
    pipeline = Pipeline("any-key").source(range(20)).key_by(lambda number: np.arange(number % 3))
    with pipeline.map(operator, **options).sink().start() as job:
        assert job.wait(20)
        result = job.result()
    assert sorted(result.sink_result) == list(range(20))
    assert result.errors == 0


class OneAtATime(BaseOperator):
    """Fails when two packets of equal key are worked on at a time."""

    def open(self) -> None:
        self.lock = threading.Lock()
        self.here: list[Any] = []

    def process(self, packet: Packet) -> Any:
        self._enter(packet.key)
        threading.Event().wait(0.002)
        self._leave(packet.key)
        return packet

    def _enter(self, key: Any) -> None:
        with self.lock:
            assert key not in self.here, "two packets of one key at a time"
            self.here.append(key)

    def _leave(self, key: Any) -> None:
        with self.lock:
            self.here.remove(key)


class OneAtATimeAsync(OneAtATime):
    async def process(self, packet: Packet) -> Packet:
        self._enter(packet.key)
        await asyncio.sleep(0.002)
        self._leave(packet.key)
        return packet


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("operator", "options"),
    [(OneAtATime, {"worker_threads": 3}), (OneAtATimeAsync, {})],
    ids=["threads", "async"],
)
def test_packets_of_any_equal_key_come_one_after_the_other(
    operator: Any, options: Any, key: str
) -> None:
    pipeline = Pipeline("equal-keys").source(range(100)).key_by(KEYS[key])
    with pipeline.map(operator, **options).sink().start() as job:
        assert job.wait(20)
        result = job.result()
    assert len(result.sink_result) == 100
    for remainder in range(2):
        order = [number for number in result.sink_result if number % 2 == remainder]
        assert order == sorted(order)


# One slow packet does not hold up the others.


class OneIsSlow(BaseOperator):
    """One packet waits until 500 others are done, for 10 s at most, and may fail then."""

    def __init__(self, slow: int, fails: bool = False) -> None:
        self.slow = slow
        self.fails = fails

    async def open(self) -> None:
        self.done = 0
        self.most = 0
        self.here = 0
        self.enough = asyncio.Event()

    async def process(self, packet: Packet) -> Packet:
        self.here += 1
        self.most = max(self.most, self.here)
        try:
            return await self._work_on(packet)
        finally:
            self.here -= 1

    async def _work_on(self, packet: Packet) -> Packet:
        if packet.payload == self.slow:
            await asyncio.wait_for(self.enough.wait(), 10)
            if self.fails:
                raise ValueError("slow and bad")
        else:
            await asyncio.sleep(0)
            self.done += 1
            if self.done == 500:
                self.enough.set()
        return packet

    async def finish(self) -> Packet:
        return Packet(("most", self.most))


@pytest.mark.parametrize("slow", [0, 3, 150])
def test_one_slow_packet_does_not_hold_up_others(host: Any, slow: int) -> None:
    operator = OperatorFactory(OneIsSlow, slow)
    pipeline = Pipeline("slow", options=TaskOptions(max_concurrency=100)).source(range(1000))
    with pipeline.map(operator, on=host).sink().start() as job:
        assert job.wait(40)
        result = job.result().sink_result
    _, most = result.pop()
    assert result == list(range(1000))  # in the order of their packets
    assert most <= 100


def test_one_slow_packet_that_fails(host: Any) -> None:
    operator = OperatorFactory(OneIsSlow, 3, True)
    pipeline = Pipeline("slow").source(range(1000))
    pipeline = pipeline.map(operator, on=host, error_policy="dead_letter", max_concurrency=10)
    with pipeline.sink().start() as job:
        assert job.wait(40)
        result = job.result()
    _, most = result.sink_result.pop()
    assert result.sink_result == [number for number in range(1000) if number != 3]
    assert most <= 10
    (letter,) = result.dead_letters
    assert letter.error == "ValueError: slow and bad"


@pytest.mark.parametrize("kind", [LocalTask, ProcessTask])
def test_a_task_that_drains_has_the_slow_packet_done(kind: Any, tidy: Any) -> None:
    task = tidy(kind(TaskContext("slow"), OperatorFactory(OneIsSlow, 0)))
    out = create_queue(scope="machine")
    task.router.add_connection(Connection("out", out))
    for start in range(0, 600, 50):
        task.input_buffer.put(PacketBatch([Packet(n) for n in range(start, start + 50)]))
    task.start_running()
    assert task.stop(timeout=40)
    received = []
    while not out.empty():
        message = out.get()
        if isinstance(message, PacketBatch):
            received += [packet.payload for packet in message.packets]
    assert received[:-1] == list(range(600))
    out.close()


class SlowKeys(BaseOperator):
    """The first packet of one key waits until all of the other keys are done."""

    def __init__(self, others: int) -> None:
        self.others = others

    async def open(self) -> None:
        self.enough = asyncio.Event()
        self.here: dict[Any, int] = defaultdict(int)

    async def process(self, packet: Packet) -> Packet:
        self.here[packet.key] += 1
        assert self.here[packet.key] == 1, "two packets of one key at a time"
        if packet.key == 0 and packet.payload == 0:
            await asyncio.wait_for(self.enough.wait(), 10)
        elif packet.key:
            self.others -= 1
            if self.others == 0:
                self.enough.set()
        await asyncio.sleep(0)
        self.here[packet.key] -= 1
        return packet


def test_the_packets_of_its_key_wait_for_a_slow_one_and_no_others() -> None:
    numbers = range(400)
    others = sum(1 for number in numbers if number % 10)
    pipeline = Pipeline("slow-key").source(numbers).key_by(lambda number: number % 10)
    with pipeline.map(OperatorFactory(SlowKeys, others)).sink().start() as job:
        assert job.wait(20)
        assert job.result().sink_result == list(numbers)


class Sums(BaseOperator):
    """Adds up what it is given, and fails once on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.total = 0

    async def process(self, packet: Packet) -> None:
        await asyncio.sleep(0.0001 * (packet.payload % 7))
        if packet.payload == 1500:
            try:
                (self.folder / "failed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                raise ValueError("the first time")
        self.total += packet.payload

    def snapshot(self) -> int:
        return self.total

    def restore(self, state: int) -> None:
        self.total = state

    async def finish(self) -> Packet:
        return Packet(self.total)


@pytest.mark.parametrize("on", ["thread", "process"])
def test_a_snapshot_is_of_packets_that_are_done(on: Any, tmp_path: Path) -> None:
    def numbers() -> Iterator[int]:
        for number in range(3000):
            if number % 100 == 0:
                threading.Event().wait(0.005)
            yield number

    options = TaskOptions(restart=RestartPolicy(1), batch_size=20)
    pipeline = Pipeline("sums", options=options).source(numbers, on=on)
    pipeline = pipeline.map(OperatorFactory(Sums, tmp_path), on=on).sink()
    checkpoint = CheckpointOptions(tmp_path / "c.db", interval=0.01)
    with pipeline.start(checkpoint=checkpoint) as job:
        assert job.wait(40)
        assert job.result().sink_result == [sum(range(3000))]
    assert (tmp_path / "failed").exists()


# What is sent is sent once, though something beside it cannot be.

LARGE = 9 * 2**20  # two of them are more than goes in one call to a queue of Ray's


@pytest.mark.parametrize("scope", ["machine", "cluster"])
@pytest.mark.parametrize("unsendable", [0, 2, 3, 5], ids=["first", "third", "fourth", "last"])
def test_nothing_is_sent_twice(scope: Any, unsendable: int, request: Any, tidy: Any) -> None:
    if scope == "cluster":
        request.getfixturevalue("ray_cluster")
    payloads: list[Any] = [os.urandom(8) + bytes(LARGE) for _ in range(5)]
    names = [payload[:8] for payload in payloads]
    payloads.insert(unsendable, threading.Lock())
    out = create_queue(scope=scope)
    same_again = OperatorFactory(MapOperator, same)
    task = tidy(LocalTask(TaskContext("large"), same_again, error_policy="skip"))
    task.router.add_connection(Connection("out", out, batch_size=1))
    task.input_buffer.put(PacketBatch([Packet(payload) for payload in payloads]))
    task.start_running()
    assert task.stop(timeout=40)
    received = []
    while not out.empty():
        message = out.get()
        if isinstance(message, PacketBatch):
            received += [packet.payload[:8] for packet in message.packets]
    assert received == names
    assert task.get_status().errors == 1
    out.close()
