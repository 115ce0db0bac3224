"""What SageQueue has beyond the common contract: modes, roles, options, names, memory."""

from __future__ import annotations

import os
import queue as standard
import threading
import time
from typing import Any

import numpy as np
import pytest

from sagequeue.errors import (
    CorruptSegment,
    Empty,
    ForeignSegment,
    Full,
    IncompatibleSegment,
    InvalidOption,
    QueueClosed,
    QueueExists,
    QueueNotFound,
    RoleConflict,
    ShutDown,
    TooManyParticipants,
)
from sagequeue.queue import Mode, SageQueue

MODES: list[Mode] = ["spsc", "mpsc", "spmc", "mpmc"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("maxsize", [1, 2, 3, 7, 1000])
def test_maxsize_is_exact(mode: Mode, maxsize: int) -> None:
    with SageQueue[int](maxsize, mode=mode) as queue:
        for lap in range(5):
            for number in range(maxsize):
                assert queue.qsize() == number
                queue.put_nowait(number)
            assert queue.full()
            with pytest.raises(standard.Full):
                queue.put_nowait(-1)
            with pytest.raises(Full) as caught:
                queue.put_many([1, 2], timeout=0.001)
            assert caught.value.accepted == 0
            assert [queue.get_nowait() for _ in range(maxsize)] == list(range(maxsize)), lap
            with pytest.raises(standard.Empty):
                queue.get_nowait()


@pytest.mark.parametrize("mode", MODES)
def test_many_laps_of_batches_of_every_size(mode: Mode) -> None:
    with SageQueue[int](capacity=64, mode=mode) as queue:
        sent = received = 0
        for size in list(range(1, 65)) * 10:
            queue.put_many(range(sent, sent + size))
            sent += size
            while received < sent:
                for number in queue.get_many():
                    assert number == received
                    received += 1


def test_put_many_tells_how_many_fitted() -> None:
    with SageQueue[int](5) as queue:
        with pytest.raises(Full) as caught:
            queue.put_many(list(range(8)), block=False)
        assert caught.value.accepted == 5
        with pytest.raises(Full) as caught:
            queue.put_many(iter(range(8)), block=False)
        assert caught.value.accepted == 0
        assert queue.get_many() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("mode", "producers", "consumers"),
    [("spsc", 1, 1), ("mpsc", 2, 1), ("spmc", 1, 2), ("mpmc", 2, 2)],
)
def test_a_mode_admits_what_it_says(mode: Mode, producers: int, consumers: int) -> None:
    with SageQueue[int](mode=mode) as first, SageQueue[int].attach(first.name) as second:
        first.put(1)
        if producers == 1:
            with pytest.raises(RoleConflict, match=f"one producer, .*process {os.getpid()};.*mpmc"):
                second.put(2)
        else:
            second.put(2)
        first.put(3)
        assert first.get() == 1
        if consumers == 1:
            with pytest.raises(RoleConflict, match=f"one consumer, .*process {os.getpid()};.*mpmc"):
                second.get()
        else:
            assert second.get() in (2, 3)


def test_a_role_passes_on_when_its_holder_leaves() -> None:
    with SageQueue[int](mode="spsc") as first:
        second = SageQueue[int].attach(first.name)
        second.put(1)
        with pytest.raises(RoleConflict):
            first.put(2)
        second.close()
        first.put(2)
        assert first.get_many() == [1, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "many"},
        {"slot_size": 100},
        {"slot_size": 32},
        {"slot_size": 2048},
        {"pool_bytes": 10},
        {"capacity": 1},
        {"maxsize": 10, "capacity": 5},
        {"capacity": 1 << 25},
        {"max_participants": 0},
        {"recovery_interval": 0},
        {"name": ""},
        {"name": "a/b"},
        {"name": "a.b"},
        {"name": "x" * 181},
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="expected"):
        SageQueue(**options)


def test_timeouts() -> None:
    with SageQueue[int](1) as queue:
        for wrong in (-1, -0.001, float("nan")):
            with pytest.raises(ValueError, match="non-negative"):
                queue.get(timeout=wrong)
            with pytest.raises(ValueError, match="non-negative"):
                queue.put(1, timeout=wrong)
        with pytest.raises(InvalidOption, match="number of seconds"):
            queue.get(timeout="soon")  # type: ignore[arg-type]
        with pytest.raises(Empty):
            queue.get(timeout=0)
        with pytest.raises(InvalidOption, match="max_items"):
            queue.get_many(0)
        start = time.monotonic()
        with pytest.raises(Empty):
            queue.get(timeout=0.15)
        assert time.monotonic() - start >= 0.15


def test_names() -> None:
    with SageQueue[int](name="tests-names") as queue:
        assert queue.name == "tests-names"
        with pytest.raises(QueueExists, match="tests-names"):
            SageQueue(name="tests-names")
        assert SageQueue[int]().name != SageQueue[int]().name
    with pytest.raises(QueueNotFound, match="tests-names"):
        SageQueue.attach("tests-names")
    with pytest.raises(InvalidOption):
        SageQueue.attach("../passwd")


@pytest.fixture
def stranger(tmp_path: Any) -> Any:
    path = f"/dev/shm/sagequeue-stranger-{os.getpid()}"

    def make(content: bytes, mode: int = 0o600) -> str:
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, mode)
        return path.split("sagequeue-")[1]

    yield make
    os.unlink(path)


def test_attach_to_what_is_no_queue(stranger: Any) -> None:
    with pytest.raises(IncompatibleSegment):
        SageQueue.attach(stranger(b""))
    with pytest.raises(IncompatibleSegment):
        SageQueue.attach(stranger(b"x" * 100_000))


def segment_of(queue: SageQueue[Any], size: int = 1 << 20) -> bytes:
    with open(f"/dev/shm/sagequeue-{queue.name}", "rb") as file:
        return file.read(size)


def test_attach_to_another_layout_version_or_size(stranger: Any) -> None:
    with SageQueue[int]() as queue:
        segment = segment_of(queue)
    with pytest.raises(IncompatibleSegment, match="version"):
        SageQueue.attach(stranger(segment[:8] + b"\xff\0\0\0" + segment[12:]))
    with pytest.raises(CorruptSegment):
        SageQueue.attach(stranger(segment))  # cut short


def test_attach_to_what_others_may_write(stranger: Any) -> None:
    with SageQueue[int]() as queue:
        segment = segment_of(queue)
    with pytest.raises(ForeignSegment, match="0600"):
        SageQueue.attach(stranger(segment, 0o666))


def test_a_closed_handle_says_so() -> None:
    queue = SageQueue[int]()
    queue.close()
    queue.close()
    assert queue.closed
    queue.join_thread()
    queue.cancel_join_thread()
    for call in (queue.get, queue.get_many, queue.qsize, queue.join, queue.shutdown):
        with pytest.raises(QueueClosed, match="attach"):
            call()  # type: ignore[operator]
    with pytest.raises(ValueError):
        queue.put(1)
    assert "closed" in repr(queue)


def test_the_participant_table_has_an_end() -> None:
    with SageQueue[int](max_participants=2) as first, SageQueue[int].attach(first.name):
        with pytest.raises(TooManyParticipants, match="max_participants"):
            SageQueue.attach(first.name)


@pytest.mark.parametrize("mode", MODES)
def test_shutdown_drains(mode: Mode) -> None:
    with SageQueue[int](mode=mode) as queue:
        queue.put_many([1, 2, 3])
        queue.shutdown()
        assert queue.is_shutdown
        with pytest.raises(ShutDown):
            queue.put(4)
        with pytest.raises(ShutDown) as caught:
            queue.put_many([4, 5])
        assert caught.value.accepted == 0
        assert list(queue) == [1, 2, 3]
        with pytest.raises(ShutDown):
            queue.get()


def test_shutdown_immediate_drops_what_waits() -> None:
    with SageQueue[int]() as queue:
        queue.put_many([1, 2, 3])
        assert queue.get() == 1
        queue.shutdown(immediate=True)
        assert queue.qsize() == 0
        with pytest.raises(ShutDown):
            queue.get()
        queue.task_done()
        queue.join()


@pytest.mark.parametrize("waiting", ["get", "put", "join"])
def test_shutdown_wakes_who_waits(waiting: str) -> None:
    with SageQueue[int](1) as queue:
        if waiting != "get":
            queue.put(1)
        outcome: list[str] = []

        def wait() -> None:
            try:
                {"get": queue.get, "put": lambda: queue.put(2), "join": queue.join}[waiting]()
                outcome.append("returned")
            except ShutDown:
                outcome.append("shut down")

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)  # so that it sleeps; awake it would only notice sooner
        queue.shutdown(immediate=waiting == "join")
        thread.join(10)
        assert outcome == ["returned" if waiting == "join" else "shut down"]


def test_task_done_and_join() -> None:
    with SageQueue[int]() as queue:
        queue.join()
        with pytest.raises(ValueError, match="too many"):
            queue.task_done()
        queue.put_many(range(100))
        worker = threading.Thread(target=lambda: [queue.task_done() for _ in queue])
        worker.start()
        queue.join()
        queue.shutdown()
        worker.join(10)
        assert not worker.is_alive()


def test_a_message_larger_than_the_pool_passes() -> None:
    with SageQueue[bytes](pool_bytes=64 << 10) as queue:
        large = os.urandom(5 << 20)
        queue.put(large)
        assert queue.get() == large
        queue.put_many([large, b"small", large])
        assert queue.get_many() == [large, b"small", large]


def test_an_exhausted_pool_is_no_limit() -> None:
    with SageQueue[bytes](pool_bytes=64 << 10) as queue:
        items = [bytes([n]) * 50_000 for n in range(40)]
        queue.put_many(items[:20])
        for item in items[20:]:
            queue.put_nowait(item)
        assert queue.get_many() == items


def test_segments_of_their_own_go_with_the_queue() -> None:
    queue = SageQueue[bytes](pool_bytes=64 << 10)
    queue.put(b"x" * (1 << 20))
    assert len([name for name in os.listdir("/dev/shm") if queue.name in name]) == 2
    queue.close()
    assert not [name for name in os.listdir("/dev/shm") if queue.name in name]


def test_a_fresh_queue_costs_little_memory() -> None:
    with SageQueue[Any]() as queue:
        blocks = os.stat(f"/dev/shm/sagequeue-{queue.name}").st_blocks
        assert blocks * 512 < 128 << 10
        queue.put(b"x")
        queue.get()
        blocks = os.stat(f"/dev/shm/sagequeue-{queue.name}").st_blocks
        assert blocks * 512 < 1 << 20


def test_chunks_are_used_again() -> None:
    with SageQueue[Any]() as queue:
        array = np.zeros(1 << 20, np.uint8)
        for _ in range(200):
            queue.put(array)
            queue.get()
        blocks = os.stat(f"/dev/shm/sagequeue-{queue.name}").st_blocks
        assert blocks * 512 < 4 << 20


@pytest.mark.parametrize("mode", MODES)
def test_threads_share_one_handle(mode: Mode) -> None:
    with SageQueue[int](8, mode=mode) as queue:
        received: list[int] = []
        lock = threading.Lock()

        def consume() -> None:
            for number in queue:
                with lock:
                    received.append(number)

        def produce(start: int) -> None:
            for number in range(start, start + 2000):
                queue.put(number)

        consumers = [threading.Thread(target=consume) for _ in range(3)]
        producers = [threading.Thread(target=produce, args=(n * 2000,)) for n in range(3)]
        for thread in consumers + producers:
            thread.start()
        for thread in producers:
            thread.join(30)
        queue.shutdown()
        for thread in consumers:
            thread.join(30)
        assert sorted(received) == list(range(6000))
