"""Services by themselves: calls, futures, coroutines, errors, and the death of either end."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing as mp
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest

from sagequeue import SageQueue, create_queue, list_queues, remove_queue
from sagequeue.errors import EncodeError, QueueExists, QueueNotFound, ShutDown
from sageruntime import BaseOperator, Packet, Pipeline
from sageruntime.errors import (
    InvalidOption,
    JobFailed,
    PipelineError,
    RemoteError,
    ServiceLost,
    ServiceMethodNotFound,
    ServiceNotFound,
    ServiceTimeout,
)
from sageruntime.host.packed_error import PackedError
from sageruntime.recovery import RestartPolicy
from sageruntime.service import Service, ServiceClient, Services, ServiceTask
from sageruntime.service import caller as caller_module
from sageruntime.service import callers as callers_module
from sageruntime.service.messages import PickledValue, Reply, Request, pack, reply_queue_name
from sageruntime.task import TaskState

# Ray's workers cannot import this module: what they need of it travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SERVICES = itertools.count()

# Longer than any call that ends, and shorter than the suite's patience.
FOREVER = 100


class Unpicklable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)
        self.two = two


class BadToUnpickle:
    def __reduce__(self) -> Any:
        return (int, ("no number",))


class Unshowable(Exception):
    """Neither its text nor its pickle can be had."""

    def __str__(self) -> str:
        raise ValueError("no text")

    def __reduce__(self) -> Any:
        raise TypeError("no pickle")


class ExitsWhenUnpickled:
    def __reduce__(self) -> Any:
        return (sys.exit, ("unpickled",))


class ExitsWhenPickled:
    def __reduce__(self) -> Any:
        sys.exit("pickled")


class Library(Service):
    """A service with every kind of method."""

    def __init__(self, greeting: str = "hello") -> None:
        self.greeting = greeting

    def open(self) -> None:
        self.pairs = threading.Barrier(2)
        self.waiting = 0

    def greet(self, name: str, mark: str = "") -> str:
        return f"{self.greeting} {name}{mark}"

    def square(self, number: int) -> int:
        return number * number

    def total(self, array: Any) -> Any:
        return array * 2

    def look_up(self, word: str) -> str:
        raise LookupError(f"no {word}")

    def raise_unpicklable(self) -> None:
        raise Unpicklable("one", "two")

    def raise_unshowable(self) -> None:
        raise Unshowable

    def exit(self) -> None:
        sys.exit("enough")

    async def exit_later(self) -> None:
        sys.exit("enough")

    async def cancel_itself(self) -> None:
        raise asyncio.CancelledError

    async def square_later(self, number: int) -> int:
        return number * number

    def exit_when_pickled(self) -> Any:
        return ExitsWhenPickled()

    def lock(self) -> Any:
        return threading.Lock()

    def unreadable(self) -> Any:
        return BadToUnpickle()

    def pid(self) -> int:
        return os.getpid()

    def instance(self) -> int:
        return self.ctx.index

    def meet(self) -> int:
        return self.pairs.wait(30)

    async def meet_later(self) -> int:
        self.waiting += 1
        while self.waiting < 2:
            await asyncio.sleep(0.001)
        return self.waiting

    def hang(self, started: Any, seconds: float = FOREVER) -> None:
        started.put(os.getpid())
        time.sleep(seconds)

    def hang_once(self, started: Any, tries: Any) -> str:
        tries.put(1)
        if tries.qsize() == 1:
            self.hang(started)
        return f"at try {tries.qsize()}"

    def _private(self) -> None:
        raise AssertionError("out of reach")


@pytest.fixture(params=["thread", "process", "ray"])
def on(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)


@pytest.fixture
def serve(
    request: pytest.FixtureRequest, started: Any, tries: Any
) -> Iterator[Callable[..., ServiceTask]]:
    """Starts services, which end with the test, before the queues it has given them."""
    tasks: list[ServiceTask] = []
    clients: list[ServiceClient] = []

    def start(make: Any = Library, **options: Any) -> ServiceTask:
        name = f"{request.function.__name__}-{os.getpid()}-{next(SERVICES)}"
        task = ServiceTask(name, make, **options)
        tasks.append(task)
        make_client = task.client

        def client() -> ServiceClient:
            clients.append(make_client())
            return clients[-1]

        task.client = client  # type: ignore[method-assign]
        task.start_running()
        return task

    yield start
    for client in clients:
        client.close()
    for task in tasks:
        task.cleanup()


def shared_queue() -> Iterator[Any]:
    """A queue for services on this machine, which is gone in the end however they are killed."""
    with create_queue(scope="machine") as queue:
        yield queue
    with suppress(QueueNotFound):
        while True:
            with suppress(QueueExists):  # a process that was killed is still ending
                remove_queue(queue.name)
            time.sleep(0.01)


@pytest.fixture
def started() -> Iterator[Any]:
    """A queue that tells when a call is under way."""
    yield from shared_queue()


@pytest.fixture
def tries() -> Iterator[Any]:
    """A queue that counts how often a call is tried."""
    yield from shared_queue()


def test_a_call_returns_what_the_method_returns(on: str, serve: Any) -> None:
    library = serve(partial(Library, greeting="good day"), on=on).client()
    assert library.greet("Ada", timeout=60) == "good day Ada"
    assert library.greet("Ada", mark="!") == "good day Ada!"
    array = np.arange(100_000.0)
    assert np.array_equal(library.total(array), array * 2)


def test_a_call_raises_what_the_method_raises(on: str, serve: Any) -> None:
    library = serve(on=on).client()
    with pytest.raises(LookupError, match="no bread") as caught:
        library.look_up("bread", timeout=60)
    if on == "thread":
        assert caught.traceback[-1].name == "look_up"
    else:
        assert "in look_up" in str(caught.value.__cause__)
    if on != "thread":
        with pytest.raises(RemoteError, match="Unpicklable: one"):
            library.raise_unpicklable()
    # and the service goes on
    assert library.square(3) == 9


def test_futures(on: str, serve: Any) -> None:
    library = serve(on=on).client()
    futures = [library.square.submit(n) for n in range(300)]
    assert [future.result(60) for future in futures] == [n * n for n in range(300)]
    assert isinstance(library.look_up.submit("bread").exception(60), LookupError)


def test_coroutines_call(on: str, serve: Any) -> None:
    library = serve(on=on).client()

    async def main() -> list[int]:
        with pytest.raises(LookupError):
            await library.look_up.aio("bread")
        return list(await asyncio.gather(*(library.square.aio(n, timeout=60) for n in range(50))))

    assert asyncio.run(main()) == [n * n for n in range(50)]


def test_many_threads_share_a_client(on: str, serve: Any) -> None:
    library = serve(on=on).client()
    calls = 50 if on == "ray" else 500

    def call(thread: int) -> list[int]:
        if thread % 4 == 0:
            futures = [library.square.submit(n * thread) for n in range(calls)]
            return [future.result(60) for future in futures]
        return [library.square(n * thread, timeout=60) for n in range(calls)]

    with ThreadPoolExecutor(8) as pool:
        for thread, squares in enumerate(pool.map(call, range(8))):
            assert squares == [(n * thread) ** 2 for n in range(calls)]


def test_requests_are_answered_side_by_side(on: str, serve: Any) -> None:
    library = serve(on=on, worker_threads=2).client()
    one, two = library.meet.submit(), library.meet.submit()
    assert {one.result(60), two.result(60)} == {0, 1}


def test_instances_share_the_requests(on: str, serve: Any) -> None:
    library = serve(on=on, instances=2).client()
    seen: set[int] = set()
    while seen != {0, 1}:  # until both have started, and whoever is idle answers
        calls = [library.instance.submit() for _ in range(20)]
        seen |= {call.result(60) for call in calls}


def test_coroutine_methods_run_side_by_side(on: str, serve: Any) -> None:
    library = serve(on=on).client()
    calls = [library.meet_later.submit() for _ in range(2)]
    assert [call.result(60) for call in calls] == [2, 2]


def test_unknown_methods(serve: Any) -> None:
    library = serve(on="thread").client()
    with pytest.raises(ServiceMethodNotFound, match="did you mean 'square'"):
        library.sqare(1)
    assert not hasattr(library, "_private")
    assert not hasattr(library, "open")
    # where the class is not known, the service itself says so
    unknown = serve(lambda: Library()).client()
    with pytest.raises(ServiceMethodNotFound, match=r"known: .*greet.*did you mean 'square'"):
        unknown.sqare(1)
    with pytest.raises(ServiceMethodNotFound):
        unknown.close_(1)


def test_unknown_services() -> None:
    with pytest.raises(ServiceNotFound, match=r"known: embedder; did you mean 'embedder'"):
        Services({"embedder": object()})["embeder"]  # type: ignore[dict-item]


def test_values_that_cannot_travel(serve: Any) -> None:
    library = serve(on="process").client()
    with pytest.raises(EncodeError, match="pickle"):
        library.greet(threading.Lock())
    with pytest.raises(EncodeError, match="pickle"):
        library.lock(timeout=60)
    with pytest.raises(ValueError, match="no number"):
        library.greet(BadToUnpickle(), timeout=60)
    with pytest.raises(ValueError, match="no number"):
        library.unreadable(timeout=60)
    assert library.greet("Ada", timeout=60) == "hello Ada"
    assert library.greet(lambda: 0, timeout=60).startswith("hello <function")


@pytest.mark.parametrize("host", ["thread", "process"])
def test_a_call_that_takes_too_long(host: str, serve: Any, started: Any) -> None:
    library = serve(on=host).client()
    with pytest.raises(ServiceTimeout, match=r"hang\(\) was not answered within 0.2 s"):
        library.hang(started, seconds=0.5, timeout=0.2)
    # the late reply is nobody's
    assert library.square(4, timeout=60) == 16
    with pytest.raises(ServiceTimeout):
        asyncio.run(library.hang.aio(started, seconds=0.5, timeout=0.2))
    cancelled = library.hang.submit(started, seconds=0.1)
    assert cancelled.cancel()
    assert library.square.submit(5).result(60) == 25
    with pytest.raises(CancelledError):
        cancelled.result()


def test_callers_wait_for_room(serve: Any, started: Any) -> None:
    library = serve(on="thread", queue_maxsize=1).client()
    busy = library.hang.submit(started, seconds=1)
    started.get(timeout=30)
    waiting = library.square.submit(2)
    with pytest.raises(ServiceTimeout):
        library.square(3, timeout=0.1)

    async def call() -> int:
        return int(await library.square.aio(4))

    assert asyncio.run(call()) == 16
    assert waiting.result() == 4
    assert busy.result() is None


@pytest.mark.parametrize("host", ["thread", "process"])
def test_a_paused_service_answers_nothing(host: str, serve: Any) -> None:
    task = serve(on=host, worker_threads=2)
    library = task.client()
    assert library.square(1, timeout=60) == 1
    for instance in task.tasks:
        instance.pause()
    # a thread that was taking a request when it was paused answers that one
    with pytest.raises(ServiceTimeout):
        while True:
            library.square(2, timeout=0.5)
    waiting = library.square.submit(3)
    for instance in task.tasks:
        instance.resume()
    assert waiting.result(60) == 9


def test_draining_answers_what_was_asked(on: str, serve: Any) -> None:
    task = serve(on=on, worker_threads=2)
    library = task.client()
    futures = [library.square.submit(n) for n in range(200)]
    assert task.stop(timeout=60)
    assert [future.result(60) for future in futures] == [n * n for n in range(200)]
    assert task.state is TaskState.STOPPED
    assert sum(status.processed for status in task.get_status()) == 200
    with pytest.raises(ServiceLost):
        library.square(1)
    with pytest.raises(ServiceLost):
        library.square.submit(1)


@pytest.mark.parametrize("host", ["thread", "process"])
def test_or_only_what_is_in_hand(host: str, serve: Any, started: Any) -> None:
    task = serve(on=host)
    library = task.client()
    in_hand = library.hang.submit(started, seconds=0.5)
    started.get(timeout=30)
    waiting = library.square.submit(1)
    assert task.stop(drain=False, timeout=30)
    assert in_hand.result(30) is None
    with pytest.raises(ServiceLost):
        waiting.result(30)


def test_a_service_that_cannot_be_opened(on: str, serve: Any) -> None:
    class Broken(Service):
        def open(self) -> None:
            raise OSError("no model here")

        def embed(self) -> None: ...

    task = serve(Broken, on=on)
    library = task.client()
    with pytest.raises(ServiceLost):
        library.embed(timeout=60)
    assert task.join(60)
    assert task.state is TaskState.FAILED
    assert "no model here" in str(task.get_status()[0].error)


def test_a_service_that_is_killed_is_lost(serve: Any, started: Any) -> None:
    task = serve(on="process")
    library = task.client()
    with ThreadPoolExecutor(4) as pool:
        in_hand = pool.submit(library.hang, started)
        pid = started.get(timeout=30)
        waiting = [pool.submit(library.square, n) for n in range(2)]
        future = library.square.submit(1)
        coroutine = pool.submit(lambda: asyncio.run(library.square.aio(2)))
        while task.tasks[0].input_buffer.qsize() < 4:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        for call in (in_hand, *waiting, future, coroutine):
            with pytest.raises(ServiceLost):
                call.result(30)
    with pytest.raises(ServiceLost):
        library.square(1)
    assert task.state is TaskState.FAILED


RESTART = RestartPolicy(max_restarts=5)


def test_or_restarted_and_goes_on(serve: Any, started: Any) -> None:
    task = serve(on="process", restart=RESTART)
    library = task.client()
    in_hand = library.hang.submit(started)
    pid = started.get(timeout=30)
    waiting = [library.square.submit(n) for n in range(100)]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServiceLost, match=r"died while it answered hang\(\)"):
        in_hand.result(60)
    assert [call.result(60) for call in waiting] == [n * n for n in range(100)]
    assert library.pid() != pid
    assert task.get_status()[0].restarts == 1


def pid_of_actor(started: Any) -> int:
    """The pid of the actor, from Ray's own worker: the queue reaches it on this machine."""
    return int(started.get(timeout=60))


def test_a_ray_actor_that_is_killed_is_restarted_too(
    serve: Any, started: Any, tries: Any, ray_cluster: None
) -> None:
    task = serve(on="ray", restart=RESTART)
    library = task.client()
    in_hand = library.hang.submit(started)
    pid = pid_of_actor(started)
    waiting = [library.square.submit(n) for n in range(5)]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServiceLost, match=r"died while it answered hang\(\)"):
        in_hand.result(60)
    assert [call.result(60) for call in waiting] == [n * n for n in range(5)]
    repeated = serve(on="ray", restart=RESTART, idempotent=True, worker_threads=2).client()
    call = repeated.hang_once.submit(started, tries)
    os.kill(pid_of_actor(started), signal.SIGKILL)
    assert call.result(60) == "at try 2"


def test_a_ray_actor_that_is_not_restarted_is_lost(
    serve: Any, started: Any, ray_cluster: None
) -> None:
    library = serve(on="ray").client()
    in_hand = library.hang.submit(started)
    os.kill(pid_of_actor(started), signal.SIGKILL)
    with pytest.raises(ServiceLost):
        in_hand.result(60)


def test_a_call_that_may_be_repeated_is(serve: Any, started: Any, tries: Any) -> None:
    library = serve(on="process", restart=RESTART, idempotent=True).client()
    call = library.hang_once.submit(started, tries)
    os.kill(started.get(timeout=30), signal.SIGKILL)
    assert call.result(60) == "at try 2"


def test_but_not_one_that_kills_whoever_takes_it(serve: Any, started: Any) -> None:
    library = serve(on="process", restart=RESTART, idempotent=True).client()
    call = library.hang.submit(started)
    for _ in range(3):
        os.kill(started.get(timeout=60), signal.SIGKILL)
    with pytest.raises(ServiceLost, match="died while"):
        call.result(60)
    assert library.square(2, timeout=60) == 4


def test_calls_while_the_service_is_killed_again_and_again(serve: Any) -> None:
    task = serve(on="process", instances=2, restart=RestartPolicy(20), idempotent=True)
    library = task.client()
    over = threading.Event()

    def call(thread: int) -> int:
        calls = 0
        while not over.is_set():
            number = thread * 1_000_000 + calls
            assert library.square(number, timeout=60) == number * number
            calls += 1
        return calls

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call, thread) for thread in range(4)]
        for _ in range(5):
            os.kill(library.pid(timeout=60), signal.SIGKILL)
        over.set()
        assert all(caller.result(60) > 0 for caller in callers)
    assert 1 <= sum(status.restarts for status in task.get_status()) <= 5


def call_and_say(client: ServiceClient, said: Any) -> None:
    said.put(client.square(7, timeout=60))
    said.put(client.greet("from afar"))


def call_and_hang(client: ServiceClient, started: Any) -> None:
    client.hang(started)


def test_callers_in_other_processes(serve: Any) -> None:
    library = serve(on="process").client()
    context = mp.get_context("spawn")
    with create_queue(scope="machine") as said:
        child = context.Process(target=call_and_say, args=(library, said))
        child.start()
        assert said.get(timeout=60) == 49
        assert said.get(timeout=60) == "hello from afar"
        child.join(30)
        assert child.exitcode == 0


def test_a_caller_that_is_killed_leaves_nothing(serve: Any, started: Any) -> None:
    task = serve(on="process", worker_threads=2)
    library = task.client()
    child = mp.get_context("spawn").Process(target=call_and_hang, args=(library, started))
    child.start()
    started.get(timeout=60)
    assert library.square(7, timeout=60) == 49
    child.kill()
    child.join()
    assert library.square(8, timeout=60) == 64
    library.close()
    task.cleanup(grace=0)
    assert not [queue.name for queue in list_queues() if queue.name.startswith(task.name)]


def test_callers_learn_that_the_owner_was_killed(tmp_path: Any) -> None:
    script = tmp_path / "owner.py"
    script.write_text(
        textwrap.dedent("""
            import multiprocessing as mp, time
            from concurrent.futures import ThreadPoolExecutor
            from sageruntime.errors import ServiceLost
            from sageruntime.service import Service, ServiceTask

            class Slow(Service):
                def hang(self):
                    time.sleep(100)

            def lose(call):
                try:
                    call()
                except ServiceLost:
                    print("lost", flush=True)

            def call(client):
                calls = [client.hang.submit().result]  # this one is taken
                while client._requests.qsize() > 0:
                    time.sleep(0.01)
                calls.append(client.hang.submit().result)  # this one is waiting
                calls += [client.hang] * 2  # and these find no room
                with ThreadPoolExecutor(4) as pool:
                    lost = [pool.submit(lose, call) for call in calls]
                    time.sleep(0.2)  # likely enough for them to wait; they are lost in any case
                    print("calling", flush=True)

            if __name__ == "__main__":
                task = ServiceTask("orphaned", Slow, on="process", queue_maxsize=1)
                task.start_running()
                caller = mp.get_context("spawn").Process(target=call, args=(task.client(),))
                caller.start()
                caller.join()
        """)
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "calling\n"
        descendants = psutil.Process(owner.pid).children(recursive=True)
        owner.kill()
        assert owner.stdout.read().count("lost") == 4
    _, alive = psutil.wait_procs(descendants, timeout=20)
    assert not alive
    for queue in list_queues():
        assert not (queue.name.startswith("orphaned") and queue.state == "live")


def test_a_client_that_is_closed_may_be_used_again(serve: Any, started: Any) -> None:
    library = serve(on="process", worker_threads=2).client()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(library.hang, started)
        future = library.hang.submit(started)
        started.get(timeout=30)
        started.get(timeout=30)
        library.close()
        with pytest.raises(ServiceLost, match="closed"):
            call.result(30)
        with pytest.raises(ServiceLost, match="closed"):
            future.result(30)


@contextmanager
def silent_caller(task: ServiceTask, maxsize: int = 1) -> Iterator[SageQueue[Any]]:
    """The reply queue of a caller that reads only what a test reads."""
    requests = task.tasks[0].input_buffer.name
    name = reply_queue_name(requests, os.getpid(), f"silent{next(SERVICES)}")
    with SageQueue(maxsize, name=name) as replies:
        yield replies


def ask(task: ServiceTask, replies: SageQueue[Any], method: str, numbers: Any) -> None:
    """Make calls as a client does, with their numbers as arguments."""
    requests = task.tasks[0].input_buffer
    for number in numbers:
        arguments = pack(((number,), {}), requests)
        requests.put(tuple(Request(number, method, arguments, replies.name, time.time_ns())))


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


@pytest.mark.parametrize("method", ["square", "square_later"])
@pytest.mark.parametrize("host", ["thread", "process"])
def test_a_caller_that_reads_no_replies_holds_up_nobody(host: str, method: str, serve: Any) -> None:
    task = serve(on=host, scope="machine", queue_maxsize=1)
    library = task.client()
    with silent_caller(task) as replies:
        ask(task, replies, method, range(1, 200))  # more than a small queue has slots
        assert getattr(library, method)(7, timeout=60) == 49
        # which has not waited until the other caller was given up
        assert not replies.is_shutdown
        # and that one gets all of its replies, when it comes to read them
        assert [replies.get(timeout=60)[0] for _ in range(1, 200)] == list(range(1, 200))
        wait_until(lambda: task.tasks[0].input_buffer.usage().leases == 0)


def test_but_is_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, serve: Any
) -> None:
    monkeypatch.setattr(caller_module, "_PATIENCE_SECONDS", 0.05)
    task = serve(on="thread", scope="machine")
    with silent_caller(task) as replies:
        ask(task, replies, "square", range(1, 10))
        wait_until(lambda: replies.is_shutdown)
        wait_until(lambda: task.tasks[0].input_buffer.usage().leases == 0)
    assert f"gave up the caller that reads {replies.name}: it took no reply" in caplog.text
    assert task.client().square(7, timeout=60) == 49


def test_or_when_too_many_replies_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, serve: Any
) -> None:
    monkeypatch.setattr(caller_module, "MOST_UNSENT", 3)
    monkeypatch.setattr(caller_module, "_PATIENCE_SECONDS", 0.5)
    task = serve(on="thread", scope="machine")
    with silent_caller(task) as replies:
        # one in the queue and three behind it; the next is too much, even if it reads one then
        ask(task, replies, "square", range(1, 6))
        library = task.client()
        assert library.square(7, timeout=60) == 49
        with suppress(ShutDown):
            replies.get(timeout=60)
        wait_until(lambda: replies.is_shutdown)
        wait_until(lambda: task.tasks[0].input_buffer.usage().leases == 0)
    assert "more than 3 replies wait" in caplog.text


def test_replies_that_wait_are_not_lost_with_the_process(serve: Any, tries: Any) -> None:
    task = serve(on="process", restart=RESTART, idempotent=True)
    library = task.client()
    with silent_caller(task) as replies:
        ask(task, replies, "square", range(1, 6))
        os.kill(library.pid(timeout=60), signal.SIGKILL)  # asked last, so they are answered
        answered: set[int] = set()
        while answered != set(range(1, 6)):
            number, value, error = replies.get(timeout=60)
            assert error is None
            assert PickledValue(*value).unpack() == number * number
            answered.add(number)


def reply_queues(task: ServiceTask, pid: int) -> list[str]:
    start = f"{task.tasks[0].input_buffer.name}-replies-{pid}-"
    return [queue.name for queue in list_queues() if queue.name.startswith(start)]


def call_and_wait(client: ServiceClient, started: Any) -> None:
    for _ in range(20):  # until both instances have answered
        client.instance(timeout=60)
    started.put(os.getpid())
    time.sleep(FOREVER)


def test_the_queue_of_a_caller_that_is_killed_is_released(serve: Any, started: Any) -> None:
    task = serve(on="process", instances=2)
    child = mp.get_context("spawn").Process(target=call_and_wait, args=(task.client(), started))
    child.start()
    started.get(timeout=60)
    assert child.pid is not None
    assert reply_queues(task, child.pid)
    child.kill()
    child.join()
    library = task.client()
    while reply_queues(task, child.pid):  # while the service goes on
        assert library.square(2, timeout=60) == 4


def test_so_is_that_of_a_client_that_was_closed(serve: Any) -> None:
    task = serve(on="process")
    library = task.client()
    assert library.square(2, timeout=60) == 4
    assert reply_queues(task, os.getpid())
    library.close()
    wait_until(lambda: not reply_queues(task, os.getpid()))


def reply_actors() -> list[str]:
    import ray

    return [name for name in ray.util.list_named_actors() if "-replies-" in name]


def test_on_ray_it_is_released_when_it_is_not_used(
    monkeypatch: pytest.MonkeyPatch, serve: Any, ray_cluster: None
) -> None:
    monkeypatch.setattr(callers_module, "_IDLE_SECONDS", 0.5)
    wait_until(lambda: not reply_actors())  # those of other tests
    library = serve(on="thread", scope="cluster").client()
    assert library.square(2, timeout=60) == 4
    assert reply_actors()
    library.close()
    wait_until(lambda: not reply_actors())
    assert library.square(3, timeout=60) == 9


def test_and_when_its_caller_is_killed(serve: Any, started: Any, ray_cluster: None) -> None:
    import ray

    wait_until(lambda: not reply_actors())
    task = serve(on="thread", scope="cluster")

    @ray.remote(max_retries=0)
    def call_and_wait(client: ServiceClient, started: Any) -> None:
        client.square(2, timeout=60)
        started.put(os.getpid())
        time.sleep(100)

    caller = call_and_wait.remote(task.client(), started)
    pid = pid_of_actor(started)
    assert reply_actors()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(caller)
    wait_until(lambda: not reply_actors())
    assert task.client().square(3, timeout=60) == 9


@pytest.mark.parametrize("host", ["thread", "process"])
def test_methods_that_raise_something_odd(host: str, serve: Any) -> None:
    library = serve(on=host, worker_threads=2).client()
    for method in (library.exit, library.exit_later):
        with pytest.raises(RemoteError, match="SystemExit: enough"):
            method(timeout=60)
        with pytest.raises(RemoteError, match="SystemExit: enough"):
            method.submit().result(60)
    with pytest.raises(RemoteError, match="CancelledError"):
        library.cancel_itself(timeout=60)
    with pytest.raises(RemoteError, match="CancelledError"):
        asyncio.run(library.cancel_itself.aio(timeout=60))
    if host == "process":
        with pytest.raises(RemoteError, match=r"Unshowable: \(text could not be shown\)"):
            library.raise_unshowable(timeout=60)
        with pytest.raises(RemoteError, match="SystemExit: pickled"):
            library.exit_when_pickled(timeout=60)
        with pytest.raises(RemoteError, match="SystemExit: unpickled"):
            library.greet(ExitsWhenUnpickled(), timeout=60)
    # each worker thread goes on
    one, two = library.meet.submit(), library.meet.submit()
    assert {one.result(60), two.result(60)} == {0, 1}


def test_requests_that_are_none(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    task = serve(on="thread", scope="machine")
    requests = task.tasks[0].input_buffer
    library = task.client()
    for request in (
        None,
        (1, 2),
        (1, 2, 3, 4, 5),
        BadToUnpickle(),
        (1, "square", (), f"{requests.name}-replies-1-0", 5),
    ):
        requests.put(request)
    with create_queue(scope="machine") as other:  # which is nobody's reply queue
        requests.put((1, "square", (), other.name, 5))
        assert library.square(2, timeout=60) == 4
        assert other.empty()
    assert caplog.text.count("dropped a request") == 5
    wait_until(lambda: requests.usage().leases == 0)
    with silent_caller(task) as replies:
        requests.put((1, ["no name"], ("no pickle", []), replies.name, 5))
        assert isinstance(Reply(*replies.get(timeout=60)).error, PackedError)


def test_replies_that_cannot_be_received(
    serve: Any, started: Any, caplog: pytest.LogCaptureFixture
) -> None:
    task = serve(on="process", worker_threads=3)
    library = task.client()
    for reply in (BadToUnpickle(), 5):
        call = library.hang.submit(started)
        started.get(timeout=60)
        (name,) = reply_queues(task, os.getpid())
        with SageQueue.attach(name) as replies:
            replies.put(reply)
        # of which call it was, nobody knows
        with pytest.raises(ServiceLost, match="cannot receive the replies"):
            call.result(60)
        assert "cannot receive the replies" in caplog.text
        del replies, call
        library.close()
        caplog.clear()
        wait_until(lambda: not reply_queues(task, os.getpid()))
    assert library.square.submit(4).result(60) == 16


def test_the_callback_of_a_future_may_do_anything(serve: Any) -> None:
    library = serve(on="process").client()
    future = library.square.submit(2)
    exited = threading.Event()

    def exit(_: Any) -> None:
        exited.set()
        sys.exit("from a callback")

    future.add_done_callback(exit)
    assert future.result(60) == 4
    assert exited.wait(60)
    closed = threading.Event()
    future = library.square.submit(3)
    future.add_done_callback(lambda _: (library.close(), closed.set()))
    assert future.result(60) == 9
    assert closed.wait(60)
    assert library.square.submit(4).result(60) == 16


def test_a_client_that_is_dropped_leaves_nothing(serve: Any) -> None:
    task = serve(on="process")
    library = pickle.loads(pickle.dumps(task.client()))  # this one is not known to the fixture
    assert library.square.submit(2).result(60) == 4
    del library
    wait_until(lambda: not reply_queues(task, os.getpid()))
    assert f"{task.name}-replies" not in [thread.name for thread in threading.enumerate()]


def test_services_that_make_no_sense() -> None:
    class Impatient(Service):
        def wait(self, timeout: float) -> None: ...

    with pytest.raises(InvalidOption, match=r"wait\(\) has a parameter named timeout"):
        ServiceTask("x", Impatient)
    with pytest.raises(InvalidOption, match="expected a subclass of Service"):
        ServiceTask("x", dict)  # type: ignore[arg-type]
    for option in ("instances", "worker_threads", "max_concurrency", "queue_maxsize"):
        with pytest.raises(InvalidOption, match=f"{option}=0"):
            ServiceTask("x", Library, **{option: 0})
        with pytest.raises(InvalidOption, match=f"{option}=True"):
            Pipeline("p").service("x", Library, **{option: True})
    with pytest.raises(InvalidOption, match="known: thread, process, ray"):
        ServiceTask("x", Library, on="moon")


def test_a_client_travels_small(serve: Any) -> None:
    task = serve(on="process")
    library = pickle.loads(pickle.dumps(task.client()))
    assert library.square(6, timeout=60) == 36
    library.close()


class Tagger(BaseOperator):
    """Asks two services about each packet."""

    def process(self, packet: Packet) -> Packet:
        greeting = self.call_service("library").greet(packet.payload, timeout=60)
        packet.payload = self.ctx.services["shout"].shout(greeting, timeout=60)
        return packet


class LaterTagger(BaseOperator):
    async def process(self, packet: Packet) -> Packet:
        packet.payload = await self.call_service("library").greet.aio(packet.payload, timeout=60)
        return packet


class Shouter(Service):
    """Asks another service, too."""

    def shout(self, text: str) -> str:
        return f"{text.upper()} {self.ctx.services['library'].square(3)}"


def test_the_tasks_of_a_job_call_its_services(on: Any) -> None:
    with (
        Pipeline("served")
        .service("library", Library)
        .service("shout", Shouter)
        .source(["Ada", "Grace"])
        .map(Tagger)
        .sink()
        .start(on)
    ) as job:
        client = job.services["library"].client()
        assert client.square(5, timeout=60) == 25
        client.close()
        assert job.result().sink_result == ["HELLO ADA 9", "HELLO GRACE 9"]
        assert job.services["library"].state is TaskState.STOPPED
        assert job.services["library"].get_status()[0].processed >= 5
        assert [service.stage for service in job.measure().services] == ["library", "shout"]
        assert job.measure().services[1].processed == 2


def test_services_and_stages_in_different_places() -> None:
    result = (
        Pipeline("mixed")
        .source([f"n{n}" for n in range(100)])
        .map(LaterTagger, on="process", parallelism=2)
        .sink()
        .service("library", partial(Library, "hi"), on="thread", worker_threads=2)
        .run()
    )
    assert sorted(result.sink_result) == sorted(f"hi n{n}" for n in range(100))


def test_a_service_that_dies_fails_the_job_with_its_own_error() -> None:
    class Dying(Service):
        def die(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    class Caller(BaseOperator):
        def process(self, packet: Packet) -> Any:
            self.call_service("dying").die()

    pipeline = Pipeline("dying").service("dying", Dying, on="process").source([1]).map(Caller)
    with pytest.raises(JobFailed, match="SIGKILL"):
        pipeline.sink().run()


class Closing(Service):
    """Leaves a file when it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def answer(self) -> int:
        return 1

    def close(self) -> None:
        self.path.touch()


def test_a_job_that_fails_closes_its_services(
    host: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(BaseOperator):
        def process(self, packet: Packet) -> Any:
            raise ValueError(self.call_service("closing").answer())

    pipeline = Pipeline("failing").service(
        "closing", partial(Closing, tmp_path / "closed"), on=host
    )
    with pytest.raises(JobFailed, match="ValueError: 1"):
        pipeline.source([1]).map(Fails, on=host).sink().run()
    assert (tmp_path / "closed").exists()
    assert "did not return" not in caplog.text


def test_services_that_a_pipeline_does_not_have() -> None:
    class Caller(BaseOperator):
        def process(self, packet: Packet) -> Any:
            self.call_service("libary").greet("x")

    pipeline = Pipeline("astray").service("library", Library).source([1]).map(Caller).sink()
    with pytest.raises(JobFailed, match="did you mean 'library'"):
        pipeline.run()
    with pytest.raises(PipelineError, match="two services named 'library'"):
        pipeline.service("library", Library)
    with pytest.raises(InvalidOption, match="makes no service"):
        pipeline.service("other", dict)  # type: ignore[arg-type]
    mixed = Pipeline("mixed").service("library", Library, on="ray").source([1], on="process")
    with pytest.raises(PipelineError, match="both process and ray"):
        mixed.sink().run()
    with pytest.raises(PipelineError, match="service name"):
        pipeline.service("no good", Library)
