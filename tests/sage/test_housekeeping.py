"""Who goes last cleans up; what the dead leave is found; coming, going and forking are safe."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagequeue import (
    CorruptSegment,
    ForeignSegment,
    IncompatibleSegment,
    InvalidOption,
    QueueExists,
    QueueNotFound,
    SageQueue,
    ShutDown,
    inspect_queue,
    list_queues,
    prune_queues,
    remove_queue,
)

SHM = Path("/dev/shm")


def file_of(name: str) -> Path:
    return SHM / f"sagequeue-{name}"


def files_of(name: str) -> list[Path]:
    return list(SHM.glob(f"sagequeue-{name}*"))


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-{uuid.uuid4().hex[:12]}"
    yield made
    for file in files_of(made):
        file.unlink()


def killed(work: Callable[[], object]) -> None:
    """Run it in a child that is killed at its end."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            kept = work()  # noqa: F841
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def leave_behind(name: str) -> object:
    queue = SageQueue[Any](name=name, pool_bytes=65536)
    queue.put_many([1, np.arange(100_000), b"x" * 300_000])
    return queue, queue.claim()


def test_what_a_killed_creator_leaves_is_found_and_removed(name: str) -> None:
    killed(lambda: leave_behind(name))
    assert len(files_of(name)) == 3
    info = inspect_queue(name)
    assert (info.state, info.waiting, info.leases, info.message_segments) == ("stale", 2, 1, 2)
    assert info.pids == ()
    assert len(info.dead_pids) == 1
    assert info.bytes_in_memory < info.bytes_reserved
    assert name in [info.name for info in list_queues()]
    assert name in prune_queues()
    assert files_of(name) == []
    with pytest.raises(QueueNotFound):
        inspect_queue(name)


def test_the_next_creator_replaces_it(name: str) -> None:
    killed(lambda: leave_behind(name))
    with SageQueue[int](name=name) as queue:
        assert queue.empty()
        assert len(files_of(name)) == 1


def test_creators_race_for_a_stale_name(name: str) -> None:
    killed(lambda: leave_behind(name))
    tried, all_tried = os.pipe(), os.pipe()
    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            status = 1
            os.close(all_tried[1])
            with contextlib.suppress(QueueExists):
                queue = SageQueue[int](name=name)
                status = 0
            os.write(tried[1], b".")
            os.read(all_tried[0], 1)
            if status == 0:
                queue.close()
            os._exit(status)
        pids.append(pid)
    for _ in pids:
        os.read(tried[0], 1)
    os.close(all_tried[1])
    assert sorted(os.waitpid(pid, 0)[1] for pid in pids).count(0) == 1
    for end in (*tried, all_tried[0]):
        os.close(end)
    assert files_of(name) == []


def test_a_live_queue_is_neither_pruned_nor_removed(name: str) -> None:
    with SageQueue[int](name=name) as queue:
        queue.put(1)
        info = inspect_queue(name)
        assert (info.state, info.pids, info.waiting) == ("live", (os.getpid(),), 1)
        assert name not in prune_queues()
        with pytest.raises(QueueExists, match=str(os.getpid())):
            remove_queue(name)
        assert queue.get() == 1


def test_removed_by_force_everybody_comes_out(name: str) -> None:
    with SageQueue[int](name=name) as queue:
        threading.Timer(0.1, remove_queue, (name,), {"force": True}).start()
        with pytest.raises(ShutDown):
            queue.get(timeout=20)
    assert files_of(name) == []


def test_messages_without_a_queue_are_stale(name: str) -> None:
    file_of(f"{name}.2f").write_bytes(b"left over")
    assert inspect_queue(name).state == "stale"
    assert name in prune_queues()
    assert files_of(name) == []


def test_what_is_no_queue_is_told_and_removed_by_force_only(name: str) -> None:
    file_of(name).write_bytes(b"something else" * 1000)
    file_of(name).chmod(0o600)
    assert inspect_queue(name).state == "incompatible"
    assert name not in prune_queues()
    with pytest.raises(IncompatibleSegment):
        remove_queue(name)
    remove_queue(name, force=True)
    assert files_of(name) == []


def test_a_corrupt_one_is_told(name: str) -> None:
    with SageQueue[int](name=name):
        with file_of(name).open("r+b") as file:
            file.seek(32)  # its capacity
            file.write(b"\x07\x00\x00\x00")
        assert inspect_queue(name).state == "corrupt"
        with pytest.raises(CorruptSegment):
            SageQueue.attach(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file another user's")
def test_another_users_queue_is_never_touched(name: str) -> None:
    killed(lambda: leave_behind(name))
    os.chown(file_of(name), 12345, 12345)
    assert inspect_queue(name).state == "foreign"
    assert name not in prune_queues()
    with pytest.raises(ForeignSegment):
        remove_queue(name, force=True)
    with pytest.raises(ForeignSegment):
        SageQueue.attach(name)
    assert file_of(name).exists()


@pytest.mark.parametrize("bad", ["../x", "", "a/b", "a.b", "x" * 181, "naïve"])
def test_names_are_validated(bad: str) -> None:
    for touch in (inspect_queue, remove_queue, SageQueue.attach):
        with pytest.raises(InvalidOption):
            touch(bad)


def test_a_segment_is_its_owners_alone(name: str) -> None:
    with SageQueue[Any](name=name, pool_bytes=65536) as queue:
        queue.put(b"x" * 300_000)
        assert [file.stat().st_mode & 0o777 for file in files_of(name)] == [0o600, 0o600]


# ---- coming and going ----


def stay_a_moment(queue: SageQueue[int]) -> None:
    queue.put(1)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_that_go_do_not_unlink_and_the_last_one_does(name: str, method: Any) -> None:
    context = mp.get_context(method)
    queue = SageQueue[int](name=name)
    children = [context.Process(target=stay_a_moment, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert file_of(name).exists()
    assert [queue.get(timeout=20), queue.get(timeout=20)] == [1, 1]
    queue.close()
    assert files_of(name) == []


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import atexit, multiprocessing as mp, os, sys, threading, time\n"
        "from multiprocessing import shared_memory\n"
        "from sagequeue import SageQueue\n" + body
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60
    )


QUIET_ENDS = {
    "open handles": "q = SageQueue(name=NAME); q.put(1)",
    "a handle held by a cycle": "q = SageQueue(name=NAME); cycle = [q]; cycle.append(cycle)",
    "a daemon thread that waits": (
        "q = SageQueue(name=NAME)\n"
        "threading.Thread(target=q.get, daemon=True).start(); time.sleep(0.2)"
    ),
    "a daemon thread that waits for room": (
        "q = SageQueue(1, name=NAME); q.put(1)\n"
        "threading.Thread(target=q.put, args=(2,), daemon=True).start(); time.sleep(0.2)"
    ),
    "an unreleased lease and a view": (
        "import numpy\n"
        "q = SageQueue(name=NAME); q.put(numpy.arange(9999)); lease = q.claim(); view = lease.item"
    ),
    "an atexit handler that uses it": ("q = SageQueue(name=NAME); atexit.register(q.put, 1)"),
    "sys.exit in a thread": (
        "q = SageQueue(name=NAME); t = threading.Thread(target=sys.exit); t.start(); t.join()"
    ),
    "shared memory beside it": (
        "q = SageQueue(name=NAME); m = shared_memory.SharedMemory(create=True, size=10)\n"
        "m.close(); m.unlink()"
    ),
}


@pytest.mark.parametrize("end", QUIET_ENDS)
def test_a_program_ends_quietly_and_leaves_nothing(name: str, end: str) -> None:
    done = run_script(f"NAME = {name!r}\n{QUIET_ENDS[end]}\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files_of(name) == []


def test_the_resource_tracker_neither_warns_nor_unlinks(name: str) -> None:
    with SageQueue[int](name=name) as queue:
        done = run_script(
            f"q = SageQueue.attach({name!r}); q.put(5)\n"
            "m = shared_memory.SharedMemory(create=True, size=10)  # which starts the tracker\n"
            "m.close(); m.unlink()\n"
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert queue.get(timeout=20) == 5
        assert file_of(name).exists()


def test_forked_by_a_program_whose_threads_wait(name: str) -> None:
    with SageQueue[int](1, name=name) as queue, SageQueue[int]() as other:
        queue.put(0)
        threads = [
            threading.Thread(target=queue.put, args=(1,)),
            threading.Thread(target=other.get),
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                pids = {os.getpid(), os.getppid()}  # a participant of its own
                os._exit(not set(queue.participants()) == set(other.participants()) == pids)
            assert os.waitpid(pid, 0)[1] == 0
        other.put(1)
        assert {queue.get(timeout=20), queue.get(timeout=20)} == {0, 1}
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert queue.participants() == [os.getpid()]
