"""Who takes part, and until when: forks, other programs, processes that are just being started."""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sagequeue import QueueError, QueueNotFound, TooManyParticipants
from sagequeue.queue import SageQueue

METHODS = ["fork", "spawn", "forkserver"]
SECONDS = 30.0
LARGE = 2 << 20  # more than the pool of these queues: a segment of its own


@contextmanager
def ends() -> Iterator[None]:
    """A child's part of a test: the child ends with it, and does not go on as another pytest."""
    code = 1
    try:
        yield
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def file_of(queue: SageQueue[Any]) -> Path:
    return Path(f"/dev/shm/sagequeue-{queue.name}")


def get_three(queue: SageQueue[Any], answer: Any) -> None:
    got = [len(queue.get(timeout=SECONDS)) for _ in range(3)]
    SageQueue.attach(queue.name).close()  # the name is still there
    while queue.participants() != [os.getpid()]:
        time.sleep(0.001)
    answer.send(got)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_parent_that_is_done_with_it_at_once(method: str, end: str) -> None:
    """The child has everything, also what lies in a segment of its own, and the name."""
    context: Any = mp.get_context(method)
    for _ in range(10 if method == "fork" else 2):
        queue = SageQueue[Any](pool_bytes=1 << 20)
        file = file_of(queue)
        queue.put_many(["a", b"x" * LARGE, "bcd"])
        near, far = context.Pipe()
        child = context.Process(target=get_three, args=(queue, far))
        child.start()
        if end == "close":
            queue.close()
        del queue
        assert near.poll(SECONDS)
        assert near.recv() == [1, LARGE, 3]
        child.join(SECONDS)
        assert child.exitcode == 0
        assert not file.exists()


def test_a_started_process_that_dies_before_it_opens_the_queue() -> None:
    """An invitation ends with the process that it is for."""
    queue = SageQueue[Any]()
    file = file_of(queue)
    context = mp.get_context("spawn")
    child = context.Process(target=os._exit, args=(0,), kwargs={"unused": queue})
    child.start()
    child.join(SECONDS)
    queue.close()
    assert not file.exists()


def test_invitations_do_not_pile_up() -> None:
    with SageQueue[Any]() as queue:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            child = mp.get_context("spawn").Process(target=os._exit, args=(queue,))
            child.start()
            child.join(SECONDS)
            child.close()
        assert len(os.listdir("/proc/self/fd")) <= before + 3  # one, and what multiprocessing keeps


class Labelled(SageQueue[Any]):
    def __init__(self, label: str) -> None:
        super().__init__(10)
        self.label = label


class Stateful(Labelled):
    def __getstate__(self) -> Any:
        return {"only": self.label}

    def __setstate__(self, state: Any) -> None:
        self.label = state["only"]


def send_label(queue: Labelled, answer: Any) -> None:
    answer.send((type(queue).__name__, queue.label, queue.get(timeout=SECONDS)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Labelled, Stateful])
def test_a_subclass_keeps_its_attributes(method: str, kind: type[Labelled]) -> None:
    context: Any = mp.get_context(method)
    near, far = context.Pipe()
    with kind("blue") as queue:
        queue.put(1)
        child = context.Process(target=send_label, args=(queue, far))
        child.start()
        assert near.poll(SECONDS)
        assert near.recv() == (kind.__name__, "blue", 1)
        child.join(SECONDS)


# ---- other programs ----


@contextmanager
def sleepers(number: int, **options: Any) -> Iterator[None]:
    """Children that were forked as participants, and run another program now."""
    children = [subprocess.Popen(["sleep", "100"], **options) for _ in range(number)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_child_that_runs_another_program_has_left() -> None:
    queue = SageQueue[Any](10)
    with sleepers(2, preexec_fn=lambda: None), sleepers(2):
        while queue.participants() != [os.getpid()]:
            time.sleep(0.001)  # the kernel drops what a program had mapped when the next one starts
        queue.close()
        assert not file_of(queue).exists()


def test_such_children_do_not_fill_the_table() -> None:
    with SageQueue[Any](10, max_participants=4) as queue, sleepers(8, preexec_fn=os.setsid):
        for _ in range(3):
            SageQueue.attach(queue.name).close()


def test_a_program_that_executes_itself_finds_the_name_free() -> None:
    script = textwrap.dedent("""
        import os, sys
        from sagequeue import SageQueue
        turn, name = int(sys.argv[1]), sys.argv[2]
        queue = SageQueue(10, name=name)
        queue.put(turn)
        if turn < 3:
            again = [sys.executable, "-c", os.environ["SCRIPT"], str(turn + 1), name]
            os.execv(sys.executable, again)
        print(turn, queue.qsize())
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, "1", f"executes-itself-{os.getpid()}"],
        env={**os.environ, "SCRIPT": script},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("3 1\n", 0), done.stderr


# ---- forks ----


def test_two_threads_fork_at_the_same_time() -> None:
    """Each child is a participant of its own: the death of one is seen while the other lives."""
    with SageQueue[Any]() as queue:
        ready = threading.Barrier(2)
        read, write = os.pipe()
        pids: list[int] = []

        def fork() -> None:
            ready.wait()
            pid = None
            while pid is None:
                # filelock, where Ray has imported it, refuses a fork beside another one
                with suppress(RuntimeError):
                    pid = os.fork()
            if pid == 0:
                with ends():
                    queue.put(os.getpid())
                    os.read(read, 1)
            pids.append(pid)

        threads = [threading.Thread(target=fork) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(queue.get(timeout=SECONDS) for _ in range(2)) == sorted(pids)
        os.write(write, b"x")
        gone, _ = os.wait()
        assert queue.recover() == 1
        assert gone not in queue.participants()
        os.write(write, b"x")
        os.wait()
        assert queue.recover() == 1
        os.close(read)
        os.close(write)


def test_a_fork_for_which_there_is_no_entry() -> None:
    with SageQueue[Any](max_participants=1) as queue:
        pid = os.fork()
        if pid == 0:
            with ends(), pytest.raises(TooManyParticipants):
                queue.put(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        queue.put(2)
        assert queue.get_nowait() == 2


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def test_out_of_descriptors() -> None:
    """It is said, what is open goes on, and what is closed leaves nothing."""
    with SageQueue[Any]() as queue:
        other = SageQueue[Any]()
        with no_descriptors_left():
            with pytest.raises(QueueError, match="Too many open files"):
                SageQueue[Any]()
            with pytest.raises(QueueError, match="Too many open files"):
                SageQueue.attach(queue.name)
            queue.put(b"x" * 100_000)
            assert len(queue.get_nowait()) == 100_000
            pid = os.fork()
            if pid == 0:
                with ends(), pytest.raises(QueueError, match="Too many open files"):
                    queue.put(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            other.close()
            assert not file_of(other).exists()


def test_all_descriptors_closed_by_somebody_else() -> None:
    """Daemons do that. The process is not taken for dead, and takes nobody for dead."""
    with SageQueue[Any]() as queue:
        queue.put("kept")
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            with ends():
                lease = queue.claim(timeout=SECONDS)
                os.dup2(write, 200)
                os.closerange(3, 200)
                os.open("/dev/null", os.O_RDWR)  # which may get the descriptor's number
                os.write(200, b"x")
                try:
                    queue.recover()
                except QueueError:
                    os.write(200, b"y")
                signal.pause()
                lease.release()
        assert os.read(read, 1) == b"x"
        assert os.read(read, 1) == b"y"
        assert queue.recover() == 0
        assert queue.qsize() == 0  # the lease is still the child's
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert queue.recover() == 1
        assert queue.get_nowait() == "kept"
        os.close(read)
        os.close(write)


def test_the_name_goes_with_the_last_of_a_family() -> None:
    queue = SageQueue[Any]()
    file = file_of(queue)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with ends():
            os.read(read, 1)
            queue.close()
    name = queue.name
    queue.close()
    SageQueue.attach(name).close()
    assert file.exists()
    os.write(write, b"x")
    os.waitpid(pid, 0)
    assert not file.exists()
    with pytest.raises(QueueNotFound):
        SageQueue.attach(name)
    os.close(read)
    os.close(write)
