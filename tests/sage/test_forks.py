"""Forks at awkward moments: what runs in a child before it has rejoined, forks within forks."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagequeue import QueueError, QueueNotFound, remove_queue
from sagequeue.queue import SageQueue

SECONDS = 30.0


def fork_and_exit() -> None:
    """A child that does nothing by itself; what Python does in it comes first."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("closed", [False, True])
def test_what_other_threads_hold_is_not_given_back_by_a_child(closed: bool) -> None:
    """Python clears their thread-locals in a child before any hook runs."""
    with SageQueue[Any]() as queue:
        local = threading.local()
        ready, done = threading.Event(), threading.Event()

        def hold() -> None:
            handle = SageQueue[Any].attach(queue.name)
            handle.put(b"x" * 5000)
            local.lease = handle.claim(timeout=SECONDS)
            if closed:
                handle.close()
            else:
                local.handle = handle
            del handle
            ready.set()
            done.wait(SECONDS)
            local.lease.release()

        thread = threading.Thread(target=hold)
        thread.start()
        assert ready.wait(SECONDS)
        before = queue.participants()
        fork_and_exit()
        assert (queue.usage().leases, queue.qsize()) == (1, 0)
        assert queue.participants() == before
        done.set()
        thread.join(SECONDS)
        assert (queue.usage().leases, queue.qsize()) == (0, 0)


class Uses:
    """Puts into the queue when it goes."""

    def __init__(self, queue: SageQueue[Any]) -> None:
        self.queue = queue

    def __del__(self) -> None:
        self.queue.put(os.getpid())


def test_a_finalizer_in_a_child_does_not_act_as_the_parent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SageQueue[Any]() as queue:
        local = threading.local()
        ready, done = threading.Event(), threading.Event()

        def hold() -> None:
            local.uses = Uses(queue)
            ready.set()
            done.wait(SECONDS)

        thread = threading.Thread(target=hold)
        thread.start()
        assert ready.wait(SECONDS)
        fork_and_exit()
        assert queue.qsize() == 0
        done.set()
        thread.join(SECONDS)
        assert queue.get(timeout=SECONDS) == os.getpid()


def run(script: str) -> str:
    """A program of its own: hooks of forks cannot be taken back."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_handle_closed_between_the_hook_and_the_fork() -> None:
    """The name goes with the last of the family, whoever that is."""
    out = run("""
        import os, threading
        close = None
        os.register_at_fork(before=lambda: close and close())  # runs after the queue's
        from sagequeue import SageQueue

        def close_elsewhere():
            thread = threading.Thread(target=queue.close)
            thread.start()
            thread.join()

        queue = SageQueue()
        file = f"/dev/shm/sagequeue-{queue.name}"
        close = close_elsewhere
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        close = None
        os.close(write)
        os.waitpid(pid, 0)
        print(queue.closed, os.path.exists(file))
    """)
    assert out == "True False\n"


def test_a_fork_within_the_hook_of_a_fork() -> None:
    out = run("""
        import gc, os
        from sagequeue import SageQueue

        class Forks:
            def __del__(self):
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)

        class Garbage:
            pass

        queue = SageQueue()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            garbage = Garbage()
            garbage.itself, garbage.forks = garbage, Forks()
            del garbage
            gc.set_threshold(1)
            pid = os.fork()
            if pid == 0:
                queue.put(os.getpid())
                os._exit(0)
            gc.set_threshold(700)
            os.waitpid(pid, 0)
            assert queue.get_nowait() == pid
        queue.recover()
        print(queue.participants() == [os.getpid()], len(os.listdir("/proc/self/fd")) - before)
    """)
    assert out == "True 0\n"


def test_a_handle_that_was_closed_under_a_view_leaves_others_alone_in_a_child() -> None:
    with SageQueue[Any]() as queue:
        other = SageQueue[Any].attach(queue.name)
        other.put(np.arange(1000))
        lease = other.claim()
        view = lease.item
        other.close()  # it stays for as long as the lease
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                del lease, view
                gc.collect()
                queue.put(b"x" * 100_000)
                code = queue.recover()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert len(queue.get_nowait()) == 100_000
        del lease, view


def test_a_message_is_not_lost_because_the_consumer_is_short_of_something() -> None:
    large = b"a" * (1 << 20)
    with SageQueue[Any](pool_bytes=1 << 16) as queue:
        queue.put_many([large, b"b", large, b"c"])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for call in (queue.get, queue.get_many):
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                with pytest.raises(QueueError, match="Too many open files"):
                    call()
                with pytest.raises(QueueError, match="Too many open files"):
                    queue.put(large)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert queue.get_nowait() == large
            assert queue.get_nowait() in (b"b", b"c")
        assert queue.qsize() == 0


def test_a_lease_of_a_queue_that_was_removed_by_force() -> None:
    with SageQueue[Any](pool_bytes=1 << 16) as queue:
        queue.put_many([b"a" * (1 << 20), b"b" * 5000])
        external, chunk = queue.claim(), queue.claim()
        remove_queue(queue.name, force=True)
        with pytest.raises(QueueNotFound):
            assert external.item
        assert chunk.item == b"b" * 5000


def test_a_segment_whose_codec_is_no_name() -> None:
    from sagequeue import CorruptSegment

    with SageQueue[Any]() as queue:
        file = Path(f"/dev/shm/sagequeue-{queue.name}")
        content = file.read_bytes()[:1024]
        at = content.index(b"pickle\0")
        with file.open("r+b") as segment:
            segment.seek(at)
            segment.write(b"\xff\xfe")
        with pytest.raises(CorruptSegment):
            SageQueue.attach(queue.name)
