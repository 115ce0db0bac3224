"""Participants that are stopped, not dead: who waits for them, who does not, and what is said."""

from __future__ import annotations

import logging
import mmap
import os
import signal
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sagequeue import Empty, Full, ShutDown
from sagequeue.queue import SageQueue

SECONDS = 30.0

# Where the core has its words (csrc/layout.h).
RECOVERER, TAIL, HEAD, PARTICIPANTS, ENTRY = 272, 384, 512, 1024, 128
PUT_INTENT, TAKE_INTENT = 8, 16


@contextmanager
def stopped(queue: SageQueue[Any], work: Callable[[SageQueue[Any]], object]) -> Iterator[int]:
    """A child that has done this and is stopped; it goes on, and ends, with the block."""
    pid = os.fork()
    if pid == 0:
        try:
            finish = work(queue)
            os.kill(os.getpid(), signal.SIGSTOP)
            if callable(finish):
                finish()
            queue.close()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)
        os.waitpid(pid, 0)


def memory_of(queue: SageQueue[Any]) -> mmap.mmap:
    with open(f"/dev/shm/sagequeue-{queue.name}", "r+b") as file:
        return mmap.mmap(file.fileno(), 8192)


def entry_of(memory: mmap.mmap, pid: int) -> int:
    for at in range(PARTICIPANTS, len(memory), ENTRY):
        if struct.unpack_from("<Q", memory, at)[0] & (1 << 22) - 1 == pid:
            return at
    raise AssertionError(f"process {pid} takes no part")


def advance(queue: SageQueue[Any], cursor: int, intent: int, count: int) -> None:
    memory = memory_of(queue)
    (position,) = struct.unpack_from("<Q", memory, cursor)
    entry = entry_of(memory, os.getpid())
    struct.pack_into("<Q", memory, entry + intent, position << 16 | count)
    struct.pack_into("<Q", memory, cursor, position + count)


def reserve(queue: SageQueue[Any], count: int = 1) -> object:
    """As a producer does that is stopped between reserving positions and committing them."""
    return advance(queue, TAIL, PUT_INTENT, count)


def take_position(queue: SageQueue[Any]) -> object:
    """As a consumer does that is stopped between claiming a position and releasing it."""
    return advance(queue, HEAD, TAKE_INTENT, 1)


def test_a_producer_between_reserving_and_committing(caplog: pytest.LogCaptureFixture) -> None:
    """Consumers wait for it, others put behind it, a log line names it; killed, it is passed by."""
    with SageQueue[Any](100, recovery_interval=0.01) as queue:
        with stopped(queue, reserve) as pid:
            queue.put("behind it")
            with pytest.raises(Empty, match=f"first of 2 items is still .* process {pid}$"):
                queue.get(timeout=0.05)
            assert queue.recover() == 0
            with caplog.at_level(logging.WARNING, "sagequeue"):
                getter = threading.Thread(target=lambda: got.append(queue.get(timeout=SECONDS)))
                got: list[Any] = []
                getter.start()
                while not caplog.records and getter.is_alive():
                    getter.join(0.01)
                text = caplog.text
                assert f"process {pid}" in text
                assert "is stopped" in text
                assert queue.name in text
            os.kill(pid, signal.SIGKILL)
            getter.join(SECONDS)
            assert got == ["behind it"]
        assert len(caplog.records) == 1  # said once
        assert queue.qsize() == 0


def test_a_consumer_between_claiming_and_releasing() -> None:
    """Producers wait for it when the ring has come round, and Full does not say that it is full."""
    with SageQueue[Any](2, capacity=2, recovery_interval=0.01) as queue:
        queue.put_many(["claimed", "next"])
        with stopped(queue, take_position) as pid:
            assert queue.get(timeout=SECONDS) == "next"
            for put in (lambda: queue.put_nowait(1), lambda: queue.put(1, timeout=0.05)):
                with pytest.raises(Full, match=f"no room yet .0 items.* process {pid}$"):
                    put()
            os.kill(pid, signal.SIGKILL)
        assert queue.get(timeout=SECONDS) == "claimed"
        queue.put_nowait(1)


def test_callers_that_do_not_wait_say_it_too(caplog: pytest.LogCaptureFixture) -> None:
    with SageQueue[Any](100) as queue:
        with stopped(queue, reserve) as pid:
            deadline = time.monotonic() + SECONDS
            while not caplog.records and time.monotonic() < deadline:
                with pytest.raises(Empty):
                    queue.get_nowait()
                time.sleep(0.005)
            assert f"process {pid}" in caplog.text
            os.kill(pid, signal.SIGKILL)


def test_one_met_in_the_middle_again_and_again_is_not_stopped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is reported is that it stays at one position."""
    with SageQueue[Any](100) as queue:
        with stopped(queue, lambda own: reserve(own, 3)) as pid:
            for position in range(3):
                struct.pack_into("<Q", memory_of(queue), HEAD, position)
                with pytest.raises(Empty, match=f"process {pid}"):
                    queue.get_nowait()
                time.sleep(0.6)
            assert not caplog.records
            os.kill(pid, signal.SIGKILL)


def test_a_recoverer(caplog: pytest.LogCaptureFixture) -> None:
    """While it stands nobody is told that a queue has ended, for a message may come back."""

    def take_role(own: SageQueue[Any]) -> object:
        import fcntl

        role = open(f"/dev/shm/sagequeue-{own.name}", "r+b")  # noqa: SIM115
        fcntl.fcntl(role, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 2, 1, 0))  # F_OFD_SETLK
        struct.pack_into("<I", memory_of(own), RECOVERER, os.getpid())

        def resign() -> None:
            struct.pack_into("<I", memory_of(own), RECOVERER, 0)
            role.close()

        return resign

    with SageQueue[Any](100, recovery_interval=0.01) as queue:
        queue.put("the last message")
        victim = os.fork()
        if victim == 0:
            lease = queue.claim()
            os.kill(os.getpid(), signal.SIGKILL)
            del lease
        os.waitpid(victim, 0)
        queue.shutdown()
        with stopped(queue, take_role) as pid:
            with pytest.raises(Empty):
                queue.get_nowait()
            with pytest.raises(Empty):
                queue.get(timeout=1.5)
            assert f"process {pid}" in caplog.text
        assert queue.get(timeout=SECONDS) == "the last message"
        with pytest.raises(ShutDown):
            queue.get(timeout=SECONDS)


def test_one_that_holds_a_lease_or_a_loan() -> None:
    """Nobody waits for it, nobody gets its message, and its memory is its own."""

    def hold(own: SageQueue[Any]) -> object:
        lease = own.claim()
        loan = own.loan(100_000, "u1")
        array = loan.__enter__()
        array[:] = 7

        def finish() -> None:
            lease.release()
            loan.__exit__(None, None, None)

        return finish

    with SageQueue[Any](100, recovery_interval=0.01) as queue:
        queue.put_many(["leased", "next"])
        with stopped(queue, hold):
            assert queue.recover() == 0
            assert queue.get(timeout=SECONDS) == "next"
            for number in range(300):
                queue.put(number)
                assert queue.get(timeout=SECONDS) == number
            with pytest.raises(Empty):
                queue.get(timeout=0.05)
        assert queue.get(timeout=SECONDS).tolist() == [7] * 100_000
        assert queue.qsize() == 0


def test_opening_and_closing_beside_a_stopped_participant() -> None:
    with SageQueue[Any](10) as queue:
        with stopped(queue, lambda own: None):
            for _ in range(10):
                SageQueue.attach(queue.name).close()
                SageQueue[Any]().close()
            assert len(queue.participants()) == 2
