"""Every way a queue reaches another process."""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

import pytest

from sagequeue.errors import QueueNotFound
from sagequeue.queue import SageQueue, SageQueueRef

METHODS = ["fork", "spawn", "forkserver"]
SECONDS = 30.0


def echo(requests: SageQueue[Any], replies: SageQueue[Any]) -> None:
    for item in requests:
        replies.put((os.getpid(), item))


def echo_by_reference(requests: SageQueueRef[Any], replies: SageQueueRef[Any]) -> None:
    echo(requests.get_queue(), replies.get_queue())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by_reference", [False, True], ids=["queue", "reference"])
def test_as_an_argument_of_a_process(method: str, by_reference: bool) -> None:
    with SageQueue[Any]() as requests, SageQueue[Any]() as replies:
        target: Callable[..., None] = echo_by_reference if by_reference else echo
        arguments: tuple[Any, ...] = (requests, replies)
        if by_reference:
            arguments = (requests.get_reference(), replies.get_reference())
        child: Any = mp.get_context(method).Process(target=target, args=arguments)  # type: ignore[attr-defined]
        child.start()
        requests.put_many(["a", b"b" * 5000, {"c": 1}])
        pid, first = replies.get(timeout=SECONDS)
        assert (pid, first) == (child.pid, "a")
        assert replies.get(timeout=SECONDS)[1] == b"b" * 5000
        assert replies.get(timeout=SECONDS)[1] == {"c": 1}
        requests.shutdown()
        child.join(SECONDS)
        assert child.exitcode == 0
        assert requests.participants() == [os.getpid()]


def test_attach_from_an_unrelated_process() -> None:
    script = textwrap.dedent("""
        import sys
        from sagequeue.queue import SageQueue
        with SageQueue.attach(sys.argv[1]) as queue:
            queue.put(sum(queue.get()))
    """)
    with SageQueue[Any]() as queue:
        queue.put([1, 2, 3])
        subprocess.run([sys.executable, "-c", script, queue.name], check=True, timeout=SECONDS)
        assert queue.get_nowait() == 6


def test_a_reference_is_small_and_holds_nothing_open() -> None:
    with SageQueue[Any](name="small-reference") as queue:
        wire = pickle.dumps(queue.get_reference())
        assert len(wire) < 150
        assert queue.participants() == [os.getpid()]
    with pytest.raises(QueueNotFound, match="small-reference"):
        pickle.loads(wire).get_queue()


def test_a_queue_travels_through_a_queue() -> None:
    with SageQueue[Any]() as carrier, SageQueue[Any]() as reply:
        carrier.put({"reply_to": reply})
        carrier.get()["reply_to"].put("here")
        assert reply.get(timeout=SECONDS) == "here"


def test_into_a_ray_actor_on_this_node(ray_cluster: None) -> None:
    import ray

    @ray.remote
    class Worker:
        def work(self, requests: SageQueue[Any], replies: SageQueueRef[Any]) -> int:
            with replies.get_queue() as out:
                return out.put_many(item * 2 for item in requests)

    with SageQueue[Any]() as requests, SageQueue[Any]() as replies:
        done = Worker.remote().work.remote(requests, replies.get_reference())
        requests.put_many(range(100))
        requests.shutdown()
        assert ray.get(done, timeout=SECONDS) == 100
        assert replies.get_many() == [2 * n for n in range(100)]


def test_the_child_of_a_fork_is_a_participant_of_its_own() -> None:
    with SageQueue[Any](mode="mpsc") as queue:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                queue.put((os.getpid(), queue.participants()))
                status = 0
            finally:
                os._exit(status)
        pid, participants = queue.get(timeout=SECONDS)
        assert pid == child
        assert participants == [os.getpid(), child]
        assert os.waitpid(child, 0)[1] == 0


def test_the_queue_outlives_its_creator_while_another_holds_it() -> None:
    first = SageQueue[Any]()
    second = SageQueue[Any].attach(first.name)
    first.put("kept")
    first.close()
    assert second.get_nowait() == "kept"
    third = SageQueue[Any].attach(second.name)
    third.close()
    second.close()
    with pytest.raises(QueueNotFound):
        SageQueue.attach(second.name)


def test_a_name_left_by_the_dead_can_be_used_again() -> None:
    script = textwrap.dedent("""
        import os, signal
        from sagequeue.queue import SageQueue
        queue = SageQueue(name="left-by-the-dead")
        queue.put("never read")
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    dead = subprocess.run([sys.executable, "-c", script], timeout=SECONDS)
    assert dead.returncode == -signal.SIGKILL
    assert os.path.exists("/dev/shm/sagequeue-left-by-the-dead")
    with SageQueue[Any](name="left-by-the-dead") as queue:
        assert queue.empty()


def test_multiprocessing_shared_memory_opens_the_same_object() -> None:
    from multiprocessing import resource_tracker
    from multiprocessing.shared_memory import SharedMemory

    with SageQueue[Any]() as queue:
        shared = SharedMemory(f"sagequeue-{queue.name}")
        try:
            assert bytes(shared.buf[:8]) == b"SGQUEUE1"
        finally:
            shared.close()
            # it believes that whoever attaches a segment owns it, which is why we do not use it
            resource_tracker.unregister(shared._name, "shared_memory")  # type: ignore[attr-defined]


def kill_while_getting(queue: SageQueue[Any], ready: Any) -> None:
    ready.set()
    queue.get()


@pytest.mark.parametrize("mode", ["mpmc", "spsc", "mpsc"])
def test_a_consumer_killed_asleep_is_no_obstacle(mode: Any) -> None:
    context = mp.get_context("fork")
    with SageQueue[Any](mode=mode) as queue:
        ready = context.Event()
        victim = context.Process(target=kill_while_getting, args=(queue, ready))
        victim.start()
        assert ready.wait(SECONDS)
        time.sleep(0.3)  # let it fall asleep; if it has not, the kill is only less cruel
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(SECONDS)
        queue.put_many(range(1000))
        items: list[int] = []
        while len(items) < 1000:
            items += queue.get_many(timeout=SECONDS)
        assert items == list(range(1000))
        queue.recover()
        assert queue.participants() == [os.getpid()]
        assert queue.recover() == 0


def exit_without_closing(queue: SageQueue[Any]) -> None:
    queue.put(os.getpid())


def test_children_that_just_end_leave_the_table_and_the_queue_whole() -> None:
    context = mp.get_context("fork")
    with SageQueue[Any](max_participants=4) as queue:
        for _ in range(12):
            child = context.Process(target=exit_without_closing, args=(queue,))
            child.start()
            child.join(SECONDS)
            assert child.exitcode == 0
        assert len(set(queue.get_many())) == 12


def test_a_table_full_of_the_dead_still_takes_newcomers() -> None:
    with SageQueue[Any](max_participants=3) as queue:
        for number in range(8):
            child = os.fork()
            if child == 0:
                queue.put(number)
                os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(child, 0)
        handles = [SageQueue[Any].attach(queue.name) for _ in range(2)]
        assert sorted(queue.get_many()) == list(range(8))
        for handle in handles:
            handle.close()
