"""Pipelines on every host: results, order, errors, and nothing left behind."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import cloudpickle
import psutil
import pytest

from sageruntime import (
    BaseOperator,
    CountByKey,
    DeadLetter,
    JobResult,
    OperatorFactory,
    Packet,
    Pipeline,
    TaskOptions,
)
from sageruntime.errors import InvalidOption, JobFailed, PacketError, PipelineError

HOSTS = ["thread", "process", "ray"]

# Ray's workers cannot import this module: what they need of it travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(params=HOSTS)
def on(request: pytest.FixtureRequest) -> Any:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return request.param


def numbers() -> Iterator[int]:
    return iter(range(1000))


def words_of(number: int) -> list[str]:
    return [f"w{number % 7}", "all"]


def test_map_filter_flat_map(on: Any) -> None:
    result = (
        Pipeline("numbers")
        .source(range(1000))
        .map(lambda n: n * 2)
        .filter(lambda n: n % 3 == 0)
        .flat_map(lambda n: [n, -n])
        .sink()
        .run(on)
    )
    expected = [m for n in range(1000) if n * 2 % 3 == 0 for m in (n * 2, -n * 2)]
    assert result.sink_result == expected
    assert [stage.packets for stage in result.stages] == [1000, 1000, 1000, 334, 668]
    assert result.errors == 0


def test_count_by_key_in_parallel(on: Any) -> None:
    result = (
        Pipeline("wc")
        .source(numbers)
        .flat_map(words_of, parallelism=2)
        .key_by(lambda word: word)
        .map(CountByKey, parallelism=3)
        .sink()
        .run(on)
    )
    expected = Counter(word for n in range(1000) for word in words_of(n))
    assert dict(result.sink_result) == expected
    assert len(result.sink_result) == len(expected)  # no key was counted in two places


def test_a_mixed_pipeline() -> None:
    result = (
        Pipeline("mixed")
        .source(numbers, parallelism=2)
        .map(lambda n: n + 1, on="process")
        .map(lambda n: n * 10, parallelism=2)
        .sink()
        .run()
    )
    assert sorted(result.sink_result) == [10 * n for n in range(1, 1001)]


class Twice(BaseOperator):
    def process(self, packet: Packet) -> list[Packet]:
        return [packet.derive(None), packet.derive(None)]


class Name(BaseOperator):
    def process(self, packet: Packet) -> Packet:
        packet.payload = packet.id
        return packet


def test_the_ids_of_packets_differ_wherever_they_were_made(on: Any) -> None:
    pipeline = Pipeline("ids").source(range(10), parallelism=2).map(Twice, parallelism=2)
    ids = pipeline.map(Name).sink().run(on).sink_result
    assert len(set(ids)) == len(ids) == 20


class Fragile(BaseOperator):
    def process(self, packet: Packet) -> Packet | None:
        if packet.payload % 100 == 99:
            raise LookupError(f"no place for {packet.payload}")
        return packet


def fragile(on: Any, policy: str) -> JobResult:
    pipeline = Pipeline("fragile").source(range(1000))
    return pipeline.map(Fragile, name="fragile", error_policy=policy).sink().run(on)


def test_an_operator_that_raises_fails_the_job_with_its_own_error(on: Any) -> None:
    with pytest.raises(JobFailed, match=r"failed on packet \d+: LookupError") as caught:
        fragile(on, "fail")
    assert isinstance(caught.value.__cause__, PacketError)
    assert isinstance(caught.value.__cause__.__cause__, LookupError)


def test_or_the_packet_is_skipped_and_counted(on: Any) -> None:
    result = fragile(on, "skip")
    assert result.errors == 10
    assert result.sink_result == [n for n in range(1000) if n % 100 != 99]


def test_or_it_becomes_a_dead_letter(on: Any) -> None:
    result = fragile(on, "dead_letter")
    assert len(result.sink_result) == 990
    letters: list[DeadLetter] = result.dead_letters
    assert sorted(letter.packet.payload for letter in letters if letter.packet) == [
        n for n in range(1000) if n % 100 == 99
    ]
    assert "no place for" in letters[0].error
    assert "in process" in letters[0].traceback


class Unshowable(Exception):
    """Neither its text nor its pickle can be had, and it is equal to nothing."""

    def __init__(self, how: type[BaseException]) -> None:
        self.how = how

    def __str__(self) -> str:
        raise self.how("no text")

    def __reduce__(self) -> Any:
        raise self.how("no pickle")

    def __eq__(self, other: object) -> bool:
        raise self.how("not equal")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("how", [ValueError, SystemExit])
@pytest.mark.parametrize("is_cause", [False, True], ids=["the error", "its cause"])
def test_an_error_that_cannot_be_shown_fails_the_job(
    host: Any, is_cause: bool, how: type[BaseException]
) -> None:
    def fail(item: int) -> int:
        if is_cause:
            raise ValueError("outer") from Unshowable(how)
        raise Unshowable(how)

    shown = "ValueError: outer" if is_cause else r"Unshowable: \(text could not be shown\)"
    with pytest.raises(JobFailed, match=shown):
        Pipeline("unshowable").source([1]).map(fail, on=host).sink().run()


class Unbuildable(BaseOperator):
    def __init__(self) -> None:
        raise RuntimeError("cannot be built here")

    def process(self, packet: Packet) -> None:
        return None


@pytest.mark.parametrize("host", ["process", "ray"])
def test_an_operator_that_cannot_be_made_fails_the_job(host: Any, ray_cluster: None) -> None:
    with pytest.raises(JobFailed, match="cannot be built here"):
        Pipeline("unbuildable").source(range(10)).map(Unbuildable).sink().run(host)


def test_on_a_thread_it_raises_at_once() -> None:
    with pytest.raises(RuntimeError, match="cannot be built here"):
        Pipeline("unbuildable").source(range(10)).map(Unbuildable).sink().run()


def test_a_source_that_raises_fails_the_job(on: Any) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(JobFailed, match="the disk is gone"):
        Pipeline("broken").source(broken).sink().run(on)


def test_a_result_that_cannot_travel_goes_the_way_of_errors() -> None:
    options = TaskOptions(batch_size=10)
    result = (
        Pipeline("unpicklable", options=options)
        .source(range(30))
        .map(lambda n: threading.Lock() if n == 7 else n, error_policy="skip")
        .sink(on="process")
        .run()
    )
    assert result.sink_result == [n for n in range(30) if n != 7]
    assert result.errors == 1


def die(payload: int) -> int:
    if payload == 500:
        os.kill(os.getpid(), signal.SIGKILL)
    return payload


def test_a_process_that_is_killed_fails_the_job() -> None:
    with pytest.raises(JobFailed, match="SIGKILL"):
        Pipeline("killed").source(range(1000)).map(die, on="process").sink().run()
    assert not mp.active_children()


def test_backpressure_holds_the_source() -> None:
    produced = 0

    def source() -> Iterator[int]:
        nonlocal produced
        for number in range(100_000):
            produced += 1
            yield number

    gate = threading.Event()

    def slow(_: int) -> None:
        gate.wait(30)

    options = TaskOptions(queue_maxsize=200, batch_size=10, max_buffer_size=10)
    pipeline = Pipeline("slow", options=options).source(source).map(lambda n: n).sink(slow)
    with pipeline.start() as job:
        before = -1
        while produced < 200 or produced != before:  # until nothing moves any more
            before = produced
            time.sleep(0.3)
        assert produced < 5000
        gate.set()
        assert job.result().stages[-1].packets == 100_000


def test_stop_ends_an_endless_source_and_drains() -> None:
    def forever() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    with Pipeline("endless").source(forever).sink().start() as job:
        while job.progress()[-1].packets < 1000:
            time.sleep(0.01)
        job.stop()
        result = job.result()
    assert result.sink_result == list(range(result.stages[0].packets))


def test_ctrl_c_returns_at_once_and_leaves_nothing(tmp_path: Any) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        textwrap.dedent("""
            import itertools, signal, time
            from sageruntime import Pipeline

            # a shell may have started us with SIGINT ignored, which children inherit
            signal.signal(signal.SIGINT, signal.default_int_handler)

            def slowly(n):
                time.sleep(0.01)
                return n

            if __name__ == "__main__":
                pipeline = Pipeline("ctrl-c").source(itertools.count).map(slowly, on="process")
                with pipeline.sink(print, on="process").start() as job:
                    while job.progress()[0].packets == 0:
                        time.sleep(0.01)
                    print("ready", flush=True)
                    job.result()
        """)
    )
    child = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    while "ready" not in child.stdout.readline():
        pass
    descendants = psutil.Process(child.pid).children(recursive=True)
    assert descendants
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in stderr
    # multiprocessing's own tracker ends by itself when it sees its parent gone
    _, alive = psutil.wait_procs(descendants, timeout=10)
    assert not alive
    assert not [name for name in os.listdir("/dev/shm") if "ctrl-c" in name]


def test_pipelines_that_make_no_sense() -> None:
    with pytest.raises(PipelineError, match="begin with"):
        Pipeline("p").map(str)
    with pytest.raises(PipelineError, match="nothing follows"):
        Pipeline("p").source([1]).sink().map(str)
    with pytest.raises(PipelineError, match="end with"):
        Pipeline("p").source([1]).run()
    with pytest.raises(PipelineError, match="two stages named"):
        Pipeline("p").source([1], name="a").map(str, name="a")
    with pytest.raises(PipelineError, match="not allowed"):
        Pipeline("p q")
    with pytest.raises(InvalidOption, match="parallelism"):
        Pipeline("p").source([1], parallelism=0)
    with pytest.raises(InvalidOption, match="thread, process, ray"):
        Pipeline("p").source([1], on="moon")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="fail, skip, retry, dead_letter"):
        Pipeline("p").source([1], error_policy="perhaps")
    with pytest.raises(PipelineError, match="OperatorFactory"):
        Pipeline("p").source([1]).map(Fragile())
    assert Pipeline("p").source([1]).map(OperatorFactory(Fragile)).sink().run().sink_result == [1]
