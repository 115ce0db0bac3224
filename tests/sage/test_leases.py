"""Claims and loans: messages worked on in place, and given back when the work came to nothing."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sagequeue import (
    Empty,
    Full,
    InvalidOption,
    Lease,
    LeaseEnded,
    QueueClosed,
    RoleConflict,
    SageQueue,
    ShutDown,
)

ITEMS = [
    b"inline",
    b"x" * 5000,
    "text",
    {"a": [1, 2]},
    None,
    np.arange(3),
    np.arange(50_000).reshape(500, 100),
    {"weights": np.ones(9000), "name": "w"},
    b"y" * 200_000,  # larger than the pool
]


@pytest.fixture(params=["mpmc", "spmc", "mpsc", "spsc"])
def queue(request: pytest.FixtureRequest) -> Iterator[SageQueue[Any]]:
    with SageQueue[Any](mode=request.param, pool_bytes=65536, capacity=64) as queue:
        yield queue


def chunks_are_free(queue: SageQueue[Any]) -> bool:
    """Whether the largest chunk, of which there is one, is free: then nothing holds it."""
    gc.collect()
    with queue.loan(60_000) as array:
        name = os.listdir("/dev/shm")
        array[:] = 0
    assert queue.get().nbytes == 60_000
    return not any(file.startswith(f"sagequeue-{queue.name}.") for file in name)


def same(left: Any, right: Any) -> bool:
    if isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in right)
    if isinstance(right, np.ndarray):
        return bool(np.array_equal(left, right)) and left.dtype == right.dtype
    return bool(left == right)


def test_what_is_claimed_is_what_was_put(queue: SageQueue[Any]) -> None:
    queue.put_many(ITEMS)
    for item in ITEMS:
        with queue.claim(timeout=5) as lease:
            assert isinstance(lease, Lease)
            assert not lease.redelivered
            assert same(lease.item, item)
            assert lease.item is lease.item
        assert lease.ended
    with pytest.raises(Empty):
        queue.claim(block=False)
    assert queue.qsize() == 0


def test_an_exception_gives_it_back_first_in_line_and_flagged(queue: SageQueue[Any]) -> None:
    queue.put_many(["first", "second"])
    for delivery in range(3):
        with pytest.raises(ZeroDivisionError):
            with queue.claim() as lease:
                assert (lease.item, lease.redelivered) == ("first", delivery > 0)
                assert lease.deliveries == delivery
                raise ZeroDivisionError
    assert queue.qsize() == 2
    assert [queue.get(), queue.get()] == ["first", "second"]


def test_reject(queue: SageQueue[Any]) -> None:
    queue.put_many(["again", "drop"])
    queue.claim().reject()
    with queue.claim() as lease:
        assert lease.item == "again"
        assert lease.redelivered
    queue.claim().reject(requeue=False)
    with pytest.raises(Empty):
        queue.get_nowait()


def test_a_dropped_lease_is_given_back(queue: SageQueue[Any]) -> None:
    queue.put("kept")
    queue.claim()
    with queue.claim() as lease:
        assert lease.item == "kept"
        assert lease.redelivered


def test_an_ended_lease_says_so(queue: SageQueue[Any]) -> None:
    queue.put(1)
    lease = queue.claim()
    lease.release()
    for touch in (lease.release, lease.reject, lambda: lease.item):
        with pytest.raises(LeaseEnded, match="released or rejected"):
            touch()
    assert "ended" in repr(lease)


def test_claim_many_in_order_and_released_one_by_one(queue: SageQueue[Any]) -> None:
    queue.put_many(range(10))
    with queue.claim_many(4) as leases:
        assert [lease.item for lease in leases] == [0, 1, 2, 3]
        leases[1].reject()
    with pytest.raises(KeyError):
        with queue.claim_many(4) as leases:
            assert [lease.item for lease in leases] == [1, 4, 5, 6]
            leases[2].release()
            raise KeyError
    assert [queue.get() for _ in range(6)] == [1, 4, 6, 7, 8, 9]
    with pytest.raises(InvalidOption):
        queue.claim_many(0)


def test_leases_are_as_many_as_slots() -> None:
    with SageQueue[int](maxsize=4, capacity=4) as queue:
        queue.put_many(range(4))
        leases = queue.claim_many(4)
        queue.put(4)
        with pytest.raises(Empty, match="leases are out"):
            queue.claim(block=False)
        threading.Timer(0.05, leases[2].release).start()
        with queue.claim(timeout=10) as lease:
            assert lease.item == 4


def test_a_view_outlives_its_lease(queue: SageQueue[Any]) -> None:
    views = []
    for number in range(20):
        queue.put(np.full(5000, number))
        with queue.claim() as lease:
            views.append(lease.item)
        del lease
    assert all((view == number).all() for number, view in enumerate(views))
    assert not any(view.flags.writeable for view in views)
    with pytest.raises(ValueError, match="WRITEABLE"):
        views[0].flags.writeable = True
    part = views[3][100:200]
    views.clear()
    queue.put_many([np.full(5000, 99)] * 20)
    assert (part == 3).all()
    assert [int(queue.get()[0]) for _ in range(20)] == [99] * 20
    del part
    assert chunks_are_free(queue)


def test_a_rejected_message_comes_when_its_views_are_gone(queue: SageQueue[Any]) -> None:
    queue.put(np.arange(1000))
    lease = queue.claim()
    view = lease.item
    lease.reject()
    with pytest.raises(Empty):
        queue.claim(block=False)
    assert view.sum() == 499500
    del view
    assert queue.get().sum() == 499500


def test_a_view_outlives_its_handle() -> None:
    queue = SageQueue[Any]()
    queue.put({"a": np.arange(10_000)})
    with queue.claim() as lease:
        view = lease.item["a"]
    del lease
    queue.close()
    with pytest.raises(QueueClosed):
        queue.claim()
    name = queue.name
    del queue
    assert view.sum() == 49995000
    assert os.path.exists(f"/dev/shm/sagequeue-{name}")
    del view
    assert not os.path.exists(f"/dev/shm/sagequeue-{name}")


def test_a_lease_outlives_its_handle() -> None:
    with SageQueue[str]() as queue:
        other = SageQueue[str].attach(queue.name)
        queue.put_many(["done", "again"])
        done, again = other.claim_many(2)
        other.close()
        assert (done.item, again.item) == ("done", "again")
        done.release()
        again.reject()
        assert queue.participants() == [os.getpid()]
        with queue.claim(timeout=10) as lease:
            assert (lease.item, lease.redelivered) == ("again", True)


def test_a_read_in_place_costs_no_copy() -> None:
    with SageQueue[Any]() as queue:
        for megabytes in (1, 64, 200):  # in the pool, its largest chunk, a segment of its own
            queue.put(np.zeros(megabytes << 20, "u1"))
            with queue.claim() as lease:
                array = lease.item
                assert array.nbytes == megabytes << 20
                assert not array.flags.owndata
                assert array.base is not None
            del lease, array


def test_a_lease_of_a_killed_process_comes_again_in_order() -> None:
    with SageQueue[Any](mode="mpsc", recovery_interval=0.05) as queue:
        queue.put_many(ITEMS)
        pid = os.fork()
        if pid == 0:
            leases = queue.claim_many(len(ITEMS) - 2)
            leases[2].release()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        leased = [0, 1, *range(3, len(ITEMS) - 2)]
        for index in [*leased, len(ITEMS) - 2, len(ITEMS) - 1]:
            with queue.claim(timeout=10) as lease:
                assert same(lease.item, ITEMS[index])
                assert lease.redelivered == (index in leased)
        assert queue.empty()


def test_a_claim_waits_for_what_a_death_gives_back() -> None:
    with SageQueue[str](recovery_interval=0.05) as queue:
        queue.put("precious")
        ready, wait = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            lease = queue.claim()
            os.write(ready[1], b"1")
            os.read(wait[0], 1)
            lease.release()
        os.read(ready[0], 1)
        threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
        with queue.claim(timeout=10) as lease:
            assert lease.item == "precious"
            assert lease.redelivered
        os.waitpid(pid, 0)
        for end in (*ready, *wait):
            os.close(end)


def test_one_that_waits_notices_a_death() -> None:
    """At whatever moment of its wait. Nothing wakes it, so it has to look by itself."""
    with SageQueue[int]() as queue:
        for number in range(9):
            queue.put(number)
            ready = os.pipe()
            pid = os.fork()
            if pid == 0:
                kept = queue.claim()
                os.write(ready[1], b"1")
                time.sleep(0.01 * kept.item)
                os.kill(os.getpid(), signal.SIGKILL)
            os.read(ready[0], 1)
            with queue.claim(timeout=60) as lease:
                assert (lease.item, lease.redelivered) == (number, True)
            os.waitpid(pid, 0)
            for end in ready:
                os.close(end)


def test_a_child_cannot_end_its_parents_lease() -> None:
    with SageQueue[Any]() as queue:
        queue.put_many([np.arange(5000), np.arange(5)])
        kept, dropped = queue.claim_many(2)
        view = kept.item
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                kept.release()
            except LeaseEnded:
                status = 0
            del kept, dropped, view
            gc.collect()
            queue.put("from the child")
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert queue.get() == "from the child"
        kept.release()
        dropped.reject()
        assert view.sum() == 12497500
        assert queue.get().sum() == 10


def test_claims_end_with_a_shutdown(queue: SageQueue[Any]) -> None:
    queue.put(1)
    queue.shutdown()
    queue.claim().reject()
    with queue.claim() as lease:
        assert lease.item == 1
    with pytest.raises(ShutDown):
        queue.claim()


def test_a_second_consumer_may_not_claim() -> None:
    with SageQueue[int](mode="mpsc") as queue, SageQueue[int].attach(queue.name) as other:
        queue.put(1)
        queue.get()
        with pytest.raises(RoleConflict):
            other.claim(block=False)


def test_threads_share_the_claims() -> None:
    with SageQueue[Any](capacity=256) as queue:
        seen: list[int] = []
        done = threading.Event()

        def work() -> None:
            while not done.is_set():
                try:
                    with queue.claim(timeout=0.05) as lease:
                        number = int(lease.item[0])
                        if not lease.redelivered and number % 7 == 0:
                            lease.reject()
                        else:
                            seen.append(number)
                except Empty:
                    pass

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(2000):
            queue.put(np.full(number % 900 + 1, number))
        deadline = time.monotonic() + 60
        while len(seen) < 2000 and time.monotonic() < deadline:
            time.sleep(0.01)
        done.set()
        for thread in threads:
            thread.join()
        assert sorted(seen) == list(range(2000))


# ---- loans ----


@pytest.mark.parametrize(
    ("shape", "dtype", "order"),
    [
        ((4, 5), "f4", "C"),
        ((100, 200, 3), "u1", "F"),
        (300_000, "i8", "C"),
        ((), "f8", "C"),
        ((0, 3), "u2", "C"),
        (7, "M8[s]", "C"),
    ],
)
def test_a_loan_arrives_as_it_was_written(
    queue: SageQueue[Any], shape: Any, dtype: str, order: Any
) -> None:
    expected = np.ones(shape, dtype, order=order)
    with queue.loan(shape, dtype, order=order) as array:
        array[...] = expected
    with queue.claim() as lease:
        assert np.array_equal(lease.item, expected)
        assert lease.item.dtype == expected.dtype
        assert lease.item.flags.f_contiguous == expected.flags.f_contiguous
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_the_lent_memory_stays_while_it_is_looked_at(queue: SageQueue[Any]) -> None:
    with queue.loan(30_000) as array:
        array[:] = 5
    assert (queue.get() == 5).all()
    queue.put_many([np.full(30_000, 7, "u1")] * 5)
    assert (array == 5).all()
    assert [int(queue.get()[0]) for _ in range(5)] == [7] * 5
    del array
    assert chunks_are_free(queue)


def test_parts_that_can_still_be_written_do_not_reach_the_message(queue: SageQueue[Any]) -> None:
    with queue.loan(30_000) as array:
        array[:] = 5
        part = array[10:20]
    part[:] = 6
    assert (queue.get() == 5).all()
    del part, array
    with queue.loan(30_000) as array:
        array[:] = 5
        array = array[10:20]
    array[:] = 6
    assert (queue.get() == 5).all()
    del array
    assert chunks_are_free(queue)


def test_a_loan_that_raises_is_not_put(queue: SageQueue[Any]) -> None:
    with pytest.raises(ZeroDivisionError):
        with queue.loan(60_000) as array:
            array[:] = 1 // 0
    del array
    assert queue.empty()
    assert chunks_are_free(queue)


def test_a_loan_waits_for_room_and_loses_nothing() -> None:
    with SageQueue[Any](maxsize=1) as queue:
        queue.put(0)
        with pytest.raises(Full):
            with queue.loan(1000, timeout=0.05) as array:
                array[:] = 3
        assert (array == 3).all()
        threading.Timer(0.05, queue.get).start()
        with queue.loan(1000, timeout=10) as array:
            array[:] = 4
        assert (queue.get() == 4).all()
        queue.shutdown()
        with pytest.raises(ShutDown):
            with queue.loan(10):
                pass


def test_a_loan_is_used_once_and_of_plain_data() -> None:
    with SageQueue[Any]() as queue, SageQueue[Any](codec="raw") as raw:
        loan = queue.loan(3)
        with loan:
            with pytest.raises(Exception, match="in use"):
                with loan:
                    pass
        with pytest.raises(InvalidOption, match="plain dtype"):
            with queue.loan(3, object):
                pass
        with pytest.raises(InvalidOption, match="codec 'raw'"):
            with raw.loan(3):
                pass
        with pytest.raises(InvalidOption):
            queue.loan((3, -1))
        with pytest.raises(InvalidOption):
            queue.loan(3, order="K")  # type: ignore[arg-type]


def test_memory_lent_by_a_killed_producer_is_free() -> None:
    with SageQueue[Any](pool_bytes=65536, recovery_interval=0.05) as queue:
        pid = os.fork()
        if pid == 0:
            with queue.loan(60_000) as array:
                array[:] = 1
            queue.loan(60_000).__enter__()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        assert queue.get(timeout=10).sum() == 60_000
        queue.recover()
        assert chunks_are_free(queue)


def test_a_loan_may_be_the_first_array_of_a_process() -> None:
    script = (
        "from sagequeue import SageQueue\n"
        "with SageQueue() as queue:\n"
        "    with queue.loan(5, 'f4') as array:\n"
        "        array[:] = 2\n"
        "    del array\n"
        "    print(queue.claim().item.sum())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("10.0\n", "")
