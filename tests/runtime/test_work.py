"""How tasks work: batches, async operators, retries, time limits, flushing by time."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from sagequeue import create_queue
from sageruntime import (
    BaseOperator,
    BatchOperator,
    CollectSink,
    Connection,
    LocalTask,
    OperatorFactory,
    Packet,
    Pipeline,
    TaskContext,
    TaskOptions,
    TaskState,
)
from sageruntime.communication.router import PacketBatch
from sageruntime.errors import JobFailed, OperatorError, PacketError, ProcessingTimeout
from sageruntime.recovery import RetryPolicy
from sageruntime.task.process_task import ProcessTask


class Sums(BatchOperator):
    """Each payload with the size of the batch it came in."""

    def process_batch(self, packets: list[Packet]) -> list[Packet]:
        if any(packet.payload == "poison" for packet in packets):
            raise ValueError("poison")
        return [packet.derive((packet.payload, len(packets))) for packet in packets]


def test_a_batch_operator_gets_whole_batches() -> None:
    pipeline = Pipeline("batches", options=TaskOptions(batch_size=50)).source(range(500))
    result = pipeline.map(Sums).sink().run().sink_result
    assert [payload for payload, _ in result] == list(range(500))
    assert max(size for _, size in result) == 50


def test_without_batch_processing_packets_travel_one_by_one() -> None:
    options = TaskOptions(batch_processing=False)
    result = Pipeline("no-batches", options=options).source(range(50)).map(Sums).sink().run()
    assert result.sink_result == [(number, 1) for number in range(50)]


def test_of_a_batch_that_fails_only_the_packets_at_fault_are_left_out() -> None:
    payloads = [*range(30), "poison", *range(30, 60)]
    pipeline = Pipeline("poison", options=TaskOptions(error_policy="skip"))  # type: ignore[arg-type]
    result = pipeline.source(payloads).map(Sums).sink().run()
    assert [payload for payload, _ in result.sink_result] == list(range(60))
    assert result.stages[1].errors == 1


def test_a_batch_operator_returns_packets_too() -> None:
    class Plain(BatchOperator):
        def process_batch(self, packets: list[Packet]) -> Any:
            return [packet.payload for packet in packets]

    with pytest.raises(JobFailed, match="returned int where a Packet is expected"):
        Pipeline("plain").source([1]).map(Plain).sink().run()


def test_a_custom_task_does_as_it_likes_with_the_packets_of_a_batch_operator() -> None:
    class Custom(LocalTask):
        def custom_process(self, packet: Packet) -> Any:
            packet.payload = -packet.payload
            return self.operator.process(packet)

    task = Custom(TaskContext("custom-batch"), OperatorFactory(Sums))
    out = create_queue(scope="thread")
    task.router.add_connection(Connection("out", out))
    task.input_buffer.put(PacketBatch([Packet(1), Packet(2)]))
    task.start_running()
    assert task.stop(timeout=20)
    assert [packet.payload for packet in out.get().packets] == [(-1, 1), (-2, 1)]
    task.cleanup()


class Meetings(BaseOperator):
    """Async: each packet waits until so many others are there, too; keyed ones never meet."""

    def __init__(self, together: int) -> None:
        self.together = together
        self.here = 0
        self.most = 0
        self.by_key: dict[Any, int] = defaultdict(int)

    async def open(self) -> None:
        self.everybody = asyncio.Event()
        await asyncio.sleep(0)

    async def process(self, packet: Packet) -> list[Packet]:
        if packet.payload == "fail":
            raise ValueError("as told")
        self.by_key[packet.key] += packet.key is not None
        assert self.by_key[packet.key] < 2, "two packets of one key at a time"
        self.here += 1
        self.most = max(self.most, self.here)
        if self.here == self.together:
            self.everybody.set()
        await asyncio.wait_for(self.everybody.wait(), 20)
        await asyncio.sleep(0.001 * (packet.payload % 3))
        self.here -= 1
        self.by_key[packet.key] -= packet.key is not None
        return [packet.derive((packet.payload, self.most))]

    async def finish(self) -> Packet:
        await asyncio.sleep(0)
        return Packet("finished")


def test_an_async_operator_works_on_many_packets_at_a_time_and_on_no_more() -> None:
    options = TaskOptions(max_concurrency=20)
    pipeline = Pipeline("async", options=options).source(range(100))
    result = pipeline.map(OperatorFactory(Meetings, 20)).sink().run().sink_result
    assert result.pop() == "finished"
    assert [payload for payload, _ in result] == list(range(100))  # in order
    assert max(most for _, most in result) == 20


def test_an_async_operator_works_on_one_packet_of_a_key_at_a_time() -> None:
    pipeline = Pipeline("async-keys").source(range(60)).key_by(lambda number: number % 5)
    result = pipeline.map(OperatorFactory(Meetings, 1)).sink().run().sink_result
    assert [payload for payload, _ in result[:-1]] == list(range(60))


def test_errors_of_an_async_operator_follow_the_policy() -> None:
    pipeline = Pipeline("async-errors").source([0, "fail", 1])
    options: Any = {"error_policy": "skip"}
    result = pipeline.map(OperatorFactory(Meetings, 1), **options).sink().run()
    assert [payload for payload, _ in result.sink_result[:-1]] == [0, 1]
    assert result.errors == 1


def test_an_async_operator_with_worker_threads_is_refused() -> None:
    with pytest.raises(OperatorError, match="max_concurrency"):
        LocalTask(TaskContext("both"), OperatorFactory(Meetings, 1), worker_threads=2)


class Flaky(BaseOperator):
    """Fails so often on each packet before it takes it."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.seen: dict[Any, int] = defaultdict(int)

    def process(self, packet: Packet) -> Packet:
        self.seen[packet.payload] += 1
        if self.seen[packet.payload] <= self.failures:
            raise ConnectionError(f"{packet.payload}: try again")
        return packet


@pytest.mark.parametrize("on", ["thread", "process"])
def test_retry_tries_again(on: Any) -> None:
    options = TaskOptions(
        error_policy="retry",  # type: ignore[arg-type]
        retry=RetryPolicy(attempts=3, backoff=0.001),
    )
    pipeline = Pipeline("retry", options=options).source(range(20))
    with pipeline.map(OperatorFactory(Flaky, 2), on=on).sink().start() as job:
        result = job.result()
    assert result.sink_result == list(range(20))
    assert result.errors == 0
    assert job.tasks[1][0].get_status().retries == 40


def test_retry_gives_up_and_then_the_other_policy_holds() -> None:
    def run(then: str) -> Any:
        options = TaskOptions(
            error_policy="retry",  # type: ignore[arg-type]
            retry=RetryPolicy(attempts=2, backoff=0.001, then=then),
        )
        pipeline = Pipeline("give-up", options=options).source(range(3))
        return pipeline.map(OperatorFactory(Flaky, 2)).sink().run()

    assert run("skip").errors == 3
    assert [letter.packet.payload for letter in run("dead_letter").dead_letters] == [0, 1, 2]
    with pytest.raises(JobFailed) as failure:
        run("fail")
    assert isinstance(failure.value.__cause__, PacketError)
    assert isinstance(failure.value.__cause__.__cause__, ConnectionError)


class Hangs(BaseOperator):
    """Hangs on one payload until it is set free; tells the process it runs in."""

    freed = threading.Event()

    def process(self, packet: Packet) -> Packet:
        if packet.payload == "hang":
            self.freed.wait(60)
        return packet.derive((packet.payload, os.getpid()))


class HangsAsync(Hangs):
    async def process(self, packet: Packet) -> Packet:  # type: ignore[override]
        if packet.payload == "hang":
            await asyncio.sleep(60)
        return packet.derive((packet.payload, os.getpid()))


PAYLOADS = [1, 2, "hang", 3, 4]


def hanging(on: Any, policy: str, operator: type[BaseOperator] = Hangs) -> Any:
    options = TaskOptions(processing_timeout=0.4, error_policy=policy)  # type: ignore[arg-type]
    pipeline = Pipeline("hanging", options=options).source(PAYLOADS)
    return pipeline.map(operator, on=on).sink()


def test_an_operator_that_hangs_on_a_thread_is_reported_and_its_late_result_dropped() -> None:
    Hangs.freed.clear()
    with hanging("thread", "dead_letter").start() as job:
        while not job.tasks[1][0].get_status().errors:
            time.sleep(0.01)
        Hangs.freed.set()
        result = job.result()
    assert [payload for payload, _ in result.sink_result] == [1, 2, 3, 4]
    (letter,) = result.dead_letters
    assert letter.packet.payload == "hang"
    assert "ProcessingTimeout" in letter.error


def test_an_operator_that_hangs_in_a_process_is_replaced() -> None:
    result = hanging("process", "dead_letter").run()
    assert sorted({payload for payload, _ in result.sink_result}) == [1, 2, 3, 4]
    pids = {pid for _, pid in result.sink_result}
    assert len(pids) >= 1
    assert dict(result.sink_result)[4] not in (os.getpid(), 0)
    assert [letter.packet.payload for letter in result.dead_letters] == ["hang"]


@pytest.mark.parametrize("on", ["thread", "process"])
def test_a_coroutine_that_takes_too_long_is_cancelled(on: Any) -> None:
    result = hanging(on, "skip", HangsAsync).run()
    assert [payload for payload, _ in result.sink_result] == [1, 2, 3, 4]
    assert result.errors == 1


@pytest.mark.parametrize("on", ["thread", "process"])
def test_under_the_policy_fail_a_hanging_operator_fails_the_job(on: Any) -> None:
    Hangs.freed.clear()
    with pytest.raises(JobFailed) as failure:
        hanging(on, "fail").run()
    Hangs.freed.set()
    assert isinstance(failure.value.__cause__, PacketError)
    assert isinstance(failure.value.__cause__.__cause__, ProcessingTimeout)


def test_a_busy_task_sends_batches_that_are_not_full_after_a_while() -> None:
    """The queue is never empty, and the one result of the beginning has to come out of it."""

    class OnlyFirst(BaseOperator):
        def process(self, packet: Packet) -> Packet | None:
            time.sleep(0.001)
            return packet if packet.payload == 0 else None

    task = LocalTask(TaskContext("busy"), OperatorFactory(OnlyFirst), flush_interval=0.05)
    out = create_queue(scope="thread")
    task.router.add_connection(Connection("out", out))
    for start in range(0, 20_000, 100):
        packets = [Packet(number) for number in range(start, start + 100)]
        task.input_buffer.put(PacketBatch(packets))
    task.start_running()
    batch = out.get(timeout=10)
    assert [packet.payload for packet in batch.packets] == [0]
    assert task.input_buffer.qsize() > 0, "it came out because the input had ended"
    task.cleanup()


def test_a_slow_sink_holds_a_fast_source_to_its_own_pace(tmp_path: Path) -> None:
    options = TaskOptions(queue_maxsize=40, batch_size=10, max_buffer_size=10)
    gate = threading.Semaphore(0)
    seen: list[int] = []

    def slowly(number: int) -> None:
        gate.acquire()
        seen.append(number)

    pipeline = Pipeline("backpressure", options=options).source(range(100_000))
    with pipeline.map(lambda number: number).map(lambda number: number).sink(slowly).start() as job:
        for allowed in (50, 150, 300):
            gate.release(allowed - len(seen))
            while len(seen) < allowed:
                time.sleep(0.001)
            before = -1
            while (read := job.progress()[0].packets) != before:  # until the source is held
                before = read
                time.sleep(0.1)
            # three queues of 40 packets; each task holds what it has taken and a batch to send
            assert read <= allowed + 3 * (40 + 8 * 10 + 2 * 10)
        gate.release(200_000)
        assert job.result().stages[-1].packets == 100_000


def test_process_tasks_replace_a_hung_operator_without_a_restart_policy() -> None:
    task = ProcessTask(
        TaskContext("stand-alone"), OperatorFactory(Hangs),
        processing_timeout=0.3, error_policy="skip",
    )  # fmt: skip
    out = create_queue(scope="machine")
    task.router.add_connection(Connection("out", out))
    task.start_running()
    task.put_packet(Packet("hang"))
    task.put_packet(Packet("after"))
    assert out.get(timeout=30).packets[0].payload[0] == "after"
    assert task.state is TaskState.RUNNING
    assert task.stop(timeout=20)
    task.cleanup()
    out.close()


def test_collecting_is_what_a_sink_does_by_default() -> None:
    assert CollectSink().result() == []
