"""close() at any moment: from another thread, from an item's own code, from a signal handler.

It only marks the handle closed. Calls at work keep the mapping until they end, with QueueClosed or
with what they have taken, and the last one out leaves the queue.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from draining import drain
from forked import in_child

from sagequeue import DecodeError, Empty, Full, QueueClosed, QueueError, SageQueue

current: SageQueue[Any]


def close_current(value: Any = "closer") -> Any:
    current.close()
    return value


class ClosesWhenPickled:
    def __init__(self, payload: Any = None) -> None:
        self.payload = payload

    def __reduce__(self) -> Any:
        current.close()
        return (str, ("closer",))


class ClosesWhenUnpickled:
    def __init__(self, payload: Any = "closer") -> None:
        self.payload = payload

    def __reduce__(self) -> Any:
        return (close_current, (self.payload,))


def fail(padding: bytes) -> None:
    raise RuntimeError("this one cannot be unpickled")


class Undecodable:
    def __init__(self, size: int = 0) -> None:
        self.padding = b"x" * size

    def __reduce__(self) -> Any:
        return (fail, (self.padding,))


class Slow:
    """Its pickling and unpickling let other threads run."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.padding = "x" * 300

    def __getstate__(self) -> Any:
        return (self.number, self.padding)

    def __setstate__(self, state: Any) -> None:
        self.number, self.padding = state


def make(**options: Any) -> tuple[SageQueue[Any], SageQueue[Any]]:
    """A handle to be closed, and another one of the same queue."""
    global current
    other = SageQueue[Any](**options)
    current = SageQueue[Any].attach(other.name)
    return current, other


PUTS: dict[str, Callable[[SageQueue[Any]], Any]] = {
    "put": lambda queue: queue.put(ClosesWhenPickled()),
    "put large": lambda queue: queue.put([bytes(500_000), ClosesWhenPickled()]),
    "put arrays": lambda queue: queue.put([np.zeros(9000), ClosesWhenPickled()]),
    "first": lambda queue: queue.put_many([ClosesWhenPickled(), 1, bytes(5000)]),
    "last": lambda queue: queue.put_many([1, bytes(5000), np.zeros(9000), ClosesWhenPickled()]),
    "iterator": lambda queue: queue.put_many(iter([1, bytes(5000), ClosesWhenPickled(), 2])),
    "generator": lambda queue: queue.put_many(close_current(n) for n in range(3)),
    "timeout": lambda queue: queue.put(1, timeout=ClosingNumber()),  # type: ignore[arg-type],
}


class ClosingNumber:
    def __float__(self) -> float:
        current.close()
        return 1.0


@pytest.mark.parametrize("put", PUTS)
def test_closed_by_the_pickling_of_an_item(put: str) -> None:
    def work() -> None:
        queue, other = make()
        with pytest.raises(QueueClosed, match="closed") as caught:
            PUTS[put](queue)
        assert caught.value.accepted == other.qsize() == 0
        assert other.participants() == [os.getpid()]
        assert other.usage().chunks_held == 0
        other.close()
        assert not os.path.exists(f"/dev/shm/sagequeue-{other.name}")

    in_child(work)


def test_what_went_in_before_a_close_is_counted() -> None:
    def work() -> None:
        queue, other = make(maxsize=1000)
        items: list[Any] = [*range(300), ClosesWhenPickled(), 1]
        with pytest.raises(QueueClosed) as caught:
            queue.put_many(items)
        assert caught.value.accepted == other.qsize() == 256  # a batch
        assert drain(other) == list(range(256))

    in_child(work)


@pytest.mark.parametrize("padding", [0, 5000, 500_000])
def test_closed_by_the_unpickling_of_an_item(padding: int) -> None:
    """Whatever a call has taken it returns."""

    def work() -> None:
        items: list[Any] = [1, ClosesWhenUnpickled("x" * padding), b"y" * 5000, np.arange(9), "end"]
        queue, other = make()
        other.put_many(items)
        got = queue.get_many()
        assert (got[0], got[2], got[4]) == (1, b"y" * 5000, "end")
        assert len(got) == 5
        queue, _ = make(name=None)
        queue.put_many(items[1:3])
        assert queue.get() == "x" * padding
        queue, other = make()
        other.put_many(items)
        leases = queue.claim_many()
        assert leases[1].item == "x" * padding
        assert leases[2].item == b"y" * 5000
        assert other.participants() == [os.getpid(), os.getpid()]
        leases[1].release()
        leases.clear()  # gives the others back, and then leaves
        assert other.participants() == [os.getpid()]
        assert [type(item) for item in drain(other)] == [int, bytes, np.ndarray, str]

    in_child(work)


def test_closed_by_a_signal_handler() -> None:
    def work() -> None:
        for wait in ("get", "get_many", "claim", "join"):
            queue, other = make()
            other.put(1)
            if wait != "join":
                other.get()
            signal.signal(signal.SIGUSR1, lambda *_: current.close())
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(QueueClosed):
                getattr(queue, wait)()
            assert other.participants() == [os.getpid()]

    in_child(work)


def put_some(queue: SageQueue[Any]) -> None:
    queue.put_many([Slow(n) for n in range(50)], block=False)


def lend_some(queue: SageQueue[Any]) -> None:
    with queue.loan(5000, block=False) as array:
        array[:] = 1


def lease_some(queue: SageQueue[Any]) -> None:
    with queue.claim_many(20, block=False) as leases:
        for lease in leases:
            assert lease.item is not None


def look(queue: SageQueue[Any]) -> None:
    queue.qsize(), queue.full(), queue.usage(), queue.participants(), queue.recover()
    assert "SageQueue" in repr(queue)


CALLS: dict[str, Callable[[SageQueue[Any]], Any]] = {
    "put": lambda queue: queue.put([Slow(0), bytes(9000)], block=False),
    "put_many": put_some,
    "get": lambda queue: queue.get(block=False),
    "get_many": lambda queue: queue.get_many(block=False),
    "claim_many": lease_some,
    "loan": lend_some,
    "look": look,
}


@pytest.mark.parametrize("call", CALLS)
def test_closed_by_another_thread(call: str) -> None:
    def work() -> None:
        sys.setswitchinterval(1e-6)
        for turn in range(60):
            queue, other = make(maxsize=100)
            other.put_many([Slow(n) for n in range(100)])
            started = threading.Event()
            failures: list[BaseException] = []

            def use(queue: Any = queue, failures: Any = failures, started: Any = started) -> None:
                try:
                    while True:
                        started.set()
                        try:
                            CALLS[call](queue)
                        except Full:
                            drain(queue)
                        except Empty:
                            put_some(queue)
                except QueueClosed:
                    pass
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=use) for _ in range(2)]
            for thread in threads:
                thread.start()
            started.wait()
            time.sleep(turn % 7 * 1e-4)  # so that closing meets different moments
            queue.close()
            for thread in threads:
                thread.join()
            assert failures == []
            assert other.participants() == [os.getpid()]
            assert other.usage().leases == 0
            drain(other)
            assert other.usage().chunks_held == 0
            other.close()

    in_child(work)


def test_nothing_is_lost_or_doubled_when_another_thread_closes() -> None:
    def work() -> None:
        sys.setswitchinterval(1e-6)
        for turn in range(60):
            queue, other = make(maxsize=1000)
            other.put_many([Slow(n) for n in range(200)])
            got: list[Slow] = []
            leased: list[Any] = []

            def get(queue: Any = queue, got: Any = got, leased: Any = leased) -> None:
                with contextlib.suppress(QueueClosed, Empty):
                    while True:
                        got.extend(queue.get_many(7, block=False))
                        leased.extend(queue.claim_many(3, block=False))

            threads = [threading.Thread(target=get) for _ in range(2)]
            for thread in threads:
                thread.start()
            time.sleep(turn % 7 * 1e-4)
            queue.close()
            for thread in threads:
                thread.join()
            leased.clear()
            numbers = [item.number for item in got + drain(other)]
            assert sorted(numbers) == list(range(200))
            other.close()

    in_child(work)


# ---- what is behind an item that cannot be decoded ----


@pytest.mark.parametrize(
    "sizes", [[1], [400], [300_000], [300_000, 1, 400]], ids=["slots", "chunks", "segments", "all"]
)
def test_what_is_behind_an_undecodable_item_goes_back_at_a_close(sizes: list[int]) -> None:
    """In its order, wherever it was."""
    with SageQueue[Any](pool_bytes=65536) as other:
        queue = SageQueue[Any].attach(other.name)
        behind = [bytes([n]) * sizes[n % len(sizes)] for n in range(2, 8)]
        other.put_many([b"first", Undecodable(sizes[0]), *behind])
        assert queue.get_many() == [b"first"]
        assert (queue.qsize(), other.qsize()) == (7, 0)
        queue.close()
        assert other.qsize() == 7
        with other.claim() as lease, pytest.raises(DecodeError):
            assert lease.item
        assert drain(other) == behind
        assert other.usage().leases == 0


def test_a_handle_dropped_or_collected_gives_it_back_too() -> None:
    with SageQueue[Any]() as other:
        for collected in (False, True):
            queue = SageQueue[Any].attach(other.name)
            if collected:
                queue.logger = queue  # type: ignore[assignment]
            other.put_many([1, Undecodable(), 2])
            assert queue.get_many() == [1]
            del queue
            if collected:
                gc.collect()
            assert other.participants() == [os.getpid()]
            with pytest.raises(DecodeError):
                other.get(timeout=5)
            assert drain(other) == [2]


def test_claims_do_not_pass_over_it() -> None:
    with SageQueue[Any]() as queue:
        queue.put_many([1, Undecodable(), 2, b"x" * 5000, 4, 5, 6])
        assert queue.get_many(6) == [1]
        with queue.claim() as lease:
            with pytest.raises(DecodeError, match="lease") as caught:
                assert lease.item
            assert "consumed" not in str(caught.value)
        leases = queue.claim_many(2)
        assert [lease.item for lease in leases] == [2, b"x" * 5000]
        assert not any(lease.redelivered for lease in leases)
        assert queue.get() == 4
        leases[0].release()
        leases[1].reject()
        del leases
        assert queue.get() == 5
        with queue.claim() as lease:
            assert lease.item == b"x" * 5000
            assert lease.redelivered
        assert queue.get() == 6
        assert queue.usage().leases == 0


def test_as_many_leases_as_slots_end_the_claims_and_lose_nothing() -> None:
    with SageQueue[Any](maxsize=4, capacity=4) as queue:
        queue.put_many([0, 1, 2, 3])
        leases = queue.claim_many(3)
        queue.put_many([Undecodable(), 5, 6])
        assert queue.get() == 3
        with pytest.raises(DecodeError):
            queue.get_many()
        lease = queue.claim()
        assert lease.item == 5
        with pytest.raises(Empty, match="leases are out"):
            queue.claim(block=False)
        leases[0].release()
        assert queue.claim_many()[0].item == 6
        del leases, lease


def test_a_forked_child_has_none_of_it() -> None:
    with SageQueue[Any]() as queue:
        queue.put_many([1, Undecodable(), 2, b"x" * 5000])
        assert queue.get_many() == [1]

        def work() -> None:
            assert queue.qsize() == 0
            with pytest.raises(Empty):
                queue.get_many(block=False)
            queue.close()

        in_child(work)
        with pytest.raises(DecodeError):
            queue.get_many()
        assert queue.get_many() == [2, b"x" * 5000]


def test_items_that_an_interrupted_call_had_decoded_are_lost_by_a_close_and_it_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with SageQueue[Any]() as other:
        queue = SageQueue[Any].attach(other.name)
        other.put_many([1, 2, InterruptedOnce(), 4])
        InterruptedOnce.pending = True
        with pytest.raises(KeyboardInterrupt):
            queue.get_many()
        assert (queue.qsize(), other.qsize()) == (4, 0)
        with caplog.at_level(logging.WARNING, "sagequeue"):
            queue.close()
        assert "with 2 items" in caplog.text
        assert drain(other) == ["interrupted", 4]


def test_items_that_close_the_queue_when_a_close_drops_them() -> None:
    def work() -> None:
        queue, other = make()
        other.put_many([ClosesWhenDropped(), 2, InterruptedOnce(), Undecodable()])
        InterruptedOnce.pending = True
        with pytest.raises(KeyboardInterrupt):
            queue.get_many()
        queue.close()
        assert other.participants() == [os.getpid()]
        assert other.qsize() == 2

    in_child(work)


class ClosesWhenDropped:
    """Once it has been through a queue."""

    arrived = False

    def __setstate__(self, state: Any) -> None:
        self.arrived = True

    def __getstate__(self) -> Any:
        return True

    def __del__(self) -> None:
        if self.arrived:
            current.close()


def interrupt() -> str:
    if InterruptedOnce.pending:
        InterruptedOnce.pending = False
        raise KeyboardInterrupt
    return "interrupted"


class InterruptedOnce:
    pending = False

    def __reduce__(self) -> Any:
        return (interrupt, ())


def test_a_second_opening_is_refused() -> None:
    with SageQueue[Any]() as queue:
        queue.put(1)
        with pytest.raises(QueueError, match="opened before"):
            queue.__init__()  # type: ignore[misc]
        assert queue.get() == 1
        assert queue.participants() == [os.getpid()]
    with pytest.raises(QueueError, match="opened before"):
        queue.__init__(name=queue.name)  # type: ignore[misc]
    assert not os.path.exists(f"/dev/shm/sagequeue-{queue.name}")
