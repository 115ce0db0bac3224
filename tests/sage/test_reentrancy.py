"""Code that runs in the middle of a call: items, signal handlers, what a collection finalizes.

It may use the queue, close it and fork. Nothing is lost or doubled by it, and nothing crashes.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from draining import drain
from forked import in_child

from sagequeue import DecodeError, Empty, QueueError, SageQueue

current: SageQueue[Any]
action: Callable[[], object]


def act(value: Any) -> Any:
    action()
    return value


class ActsWhenPickled:
    def __reduce__(self) -> Any:
        action()
        return (str, ("acted",))


class ActsWhenUnpickled:
    def __init__(self, padding: int = 0) -> None:
        self.value = "acted" + "x" * padding

    def __reduce__(self) -> Any:
        return (act, (self.value,))


# ---- the same queue ----


def test_an_item_whose_pickling_uses_the_queue() -> None:
    global action
    with SageQueue[Any](maxsize=100) as queue:
        other = SageQueue[Any].attach(queue.name)
        queue.put_many(["a", "b"])
        got: list[Any] = []
        action = lambda: (queue.put(b"n" * 300), got.append(other.get()), queue.qsize())  # noqa: E731
        queue.put(ActsWhenPickled())
        queue.put_many([1, ActsWhenPickled(), ActsWhenPickled()])
        assert got == ["a", "b", b"n" * 300]
        # a run goes in when all of it is encoded
        assert drain(queue) == ["acted", b"n" * 300, b"n" * 300, 1, "acted", "acted"]
        other.close()


@pytest.mark.parametrize("padding", [0, 5000, 300_000])
def test_an_item_whose_unpickling_uses_the_queue(padding: int) -> None:
    global action
    with SageQueue[Any](pool_bytes=65536) as queue:
        got: list[Any] = []
        action = lambda: (queue.put("put"), got.extend(queue.get_many(1)))  # noqa: E731
        queue.put_many([1, ActsWhenUnpickled(padding), 3, 4])
        assert queue.get_many(3) == [1, "acted" + "x" * padding, 3]
        assert got == [4]
        queue.put_many([ActsWhenUnpickled(padding), 6])
        assert queue.get() == "put"
        assert queue.get() == "acted" + "x" * padding
        assert got == [4, 6]
        with queue.claim() as lease:
            assert lease.item == "put"
        queue.put(ActsWhenUnpickled(padding))
        with queue.claim() as lease:
            action = lease.release
            assert lease.item == "acted" + "x" * padding
            assert lease.ended
        assert queue.usage().chunks_held == 0


def test_a_lease_ended_by_its_own_item_or_finalizer() -> None:
    class Ends:
        def __del__(self) -> None:
            with pytest.raises(QueueError, match="ended"):
                lease.release()
            seen.append(lease.ended)

    seen: list[bool] = []
    with SageQueue[Any](codec="pickle") as queue:
        global action
        action = Ends
        queue.put(ActsWhenUnpickled())
        queue.put(1)
        lease = queue.claim()
        held = Ends()
        lease_of_it = {"held": held, "lease": lease}
        del held
        lease.release()
        lease_of_it.clear()
        assert seen == [True]
        assert queue.get() == 1
        assert queue.usage().leases == 0


# ---- fork ----


def forked_by(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returned or raised whose item forks once, and the pid of the child: 0 in it."""
    global action
    pids: list[int] = []

    def fork_once() -> None:
        global action
        action = lambda: None  # noqa: E731  # the item may come again
        pids.append(os.fork())

    action = fork_once
    try:
        return call(), pids[0]
    except QueueError as error:
        return error, pids[0]


def end_child(ok: bool) -> None:
    os._exit(0 if ok else 1)


@pytest.mark.parametrize("padding", [0, 5000, 300_000])
def test_an_item_whose_unpickling_forks(padding: int) -> None:
    """Child and parent have what was decoded; what was taken with it is the parent's alone."""

    def work() -> None:
        with SageQueue[Any](pool_bytes=65536) as queue:
            acted = "acted" + "x" * padding
            for call, expected in (
                (queue.get, acted),
                (queue.get_many, [acted, b"y" * padding, "end"]),
                (lambda: queue.claim().item, acted),
            ):
                queue.put_many([ActsWhenUnpickled(padding), b"y" * padding, "end"])
                got, pid = forked_by(call)
                if pid == 0:
                    ok = got in (acted, [acted])
                    ok = ok and set(queue.participants()) == {os.getpid(), os.getppid()}
                    queue.close()
                    left = SageQueue[Any].attach(queue.name).participants()
                    end_child(ok and left.count(os.getpid()) == 1)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                assert got == expected
                assert queue.participants() == [os.getpid()]
                drain(queue)
            assert queue.usage().chunks_held == 0

    in_child(work)


@pytest.mark.parametrize("padding", [0, 5000, 300_000])
def test_an_item_whose_pickling_forks(padding: int) -> None:
    """The call goes on in the parent only, so nothing is put twice."""

    def work() -> None:
        with SageQueue[Any](pool_bytes=65536) as queue:
            item = [b"y" * padding, ActsWhenPickled()]
            for call in (
                lambda: queue.put(item),
                lambda: queue.put_many([b"y" * padding, item]),
                lambda: queue.put_many(iter([b"y" * padding, item])),
            ):
                got, pid = forked_by(call)
                if pid == 0:
                    ok = isinstance(got, QueueError) and "forked" in str(got)
                    queue.put("from the child")
                    queue.close()
                    end_child(ok)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                assert got in (None, 2)
                assert sorted(map(str, drain(queue))) == sorted(
                    map(str, [[b"y" * padding, "acted"], "from the child"]
                        + ([b"y" * padding] if got else []))
                )  # fmt: skip
                assert queue.usage().chunks_held == 0

    in_child(work)


def test_a_fork_within_a_loan_leaves_it_to_the_parent() -> None:
    def work() -> None:
        with SageQueue[Any]() as queue:
            loan = queue.loan(5000)
            array = loan.__enter__()
            array[:] = 7
            pid = os.fork()
            if pid == 0:
                try:
                    loan.__exit__(None, None, None)
                except QueueError as error:
                    end_child("not of its child" in str(error))
                end_child(False)
            del array
            loan.__exit__(None, None, None)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert queue.get().sum() == 35000
            assert queue.empty()

    in_child(work)


# ---- signals ----


class Timeout(Exception):
    """A program's own."""


def raise_timeout(*_: object) -> None:
    raise Timeout


class Program:
    def on_signal(self, number: int, frame: object) -> None:
        raise Timeout


def leave(number: int, frame: object) -> None:
    sys.exit(7)


HANDLERS: dict[str, tuple[Any, type[BaseException]]] = {
    "ctrl-c": (signal.default_int_handler, KeyboardInterrupt),
    "own": (raise_timeout, Timeout),
    "method": (Program().on_signal, Timeout),
    "lambda": (lambda number, frame: leave(number, frame), SystemExit),
}


def interrupted_once() -> None:
    global action
    action = lambda: None  # noqa: E731
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.01)


GETS: dict[str, Callable[[SageQueue[Any]], list[Any]]] = {
    "get": lambda queue: [queue.get(block=False)],
    "get_many": lambda queue: queue.get_many(block=False),
    "get_many some": lambda queue: queue.get_many(2, block=False),
    "claim": lambda queue: claimed(queue),
}


def claimed(queue: SageQueue[Any]) -> list[Any]:
    with queue.claim(block=False) as lease:
        return [lease.item]


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("get", GETS)
@pytest.mark.parametrize("padding", [0, 5000, 300_000])
def test_what_a_handler_raises_comes_out_at_once_and_no_item_is_lost(
    handler: str, get: str, padding: int
) -> None:
    global action
    function, kind = HANDLERS[handler]
    before = signal.signal(signal.SIGUSR1, function)
    try:
        with SageQueue[Any](pool_bytes=65536) as queue:
            items = [b"a" * padding, ActsWhenUnpickled(padding), b"b" * padding, "end"]
            expected = [items[0], "acted" + "x" * padding, *items[2:]]
            queue.put_many(items)
            action = interrupted_once
            got: list[Any] = []
            interrupted_at = None
            for call in itertools.count(1):
                try:
                    got += GETS[get](queue)
                except kind:
                    assert interrupted_at is None
                    interrupted_at = call
                except Empty:
                    break
            assert interrupted_at == (1 if get.startswith("get_many") else 2)
            assert got == expected
            assert queue.usage().chunks_held == 0
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("many", [False, True])
def test_what_a_handler_raises_comes_out_of_a_put(handler: str, many: bool) -> None:
    global action
    function, kind = HANDLERS[handler]
    before = signal.signal(signal.SIGUSR1, function)
    try:
        with SageQueue[Any]() as queue:
            action = interrupted_once
            items = [b"a" * 5000, ActsWhenPickled(), 2]
            with pytest.raises(kind):
                queue.put_many(items) if many else queue.put(items)
            assert queue.empty()
            assert queue.usage().chunks_held == 0
            queue.put(3)
            assert queue.get() == 3
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_items_own_errors_are_no_interruptions() -> None:
    global action

    def look_at_the_caller() -> None:
        frame = sys._getframe(1)
        raise ValueError(frame.f_code.co_name)

    with SageQueue[Any]() as queue:
        action = look_at_the_caller
        queue.put_many([ActsWhenUnpickled(), 1])
        with pytest.raises(DecodeError, match="ValueError"):
            queue.get_many()
        assert queue.get_many() == [1]
        action = sys.exit
        queue.put_many([1, ActsWhenUnpickled(), 2])
        with pytest.raises(SystemExit):
            queue.get_many()
        assert [queue.get_many(), queue.get_many()] == [[1], [2]]


def test_ctrl_c_in_a_generator_does_not_wait_for_room() -> None:
    def numbers() -> Any:
        yield from range(5)
        raise KeyboardInterrupt

    with SageQueue[Any](maxsize=3) as queue:
        with pytest.raises(KeyboardInterrupt):
            queue.put_many(numbers())
        assert drain(queue) == [0, 1, 2]


# ---- collections ----


class Finalized:
    """Garbage that acts when it is collected."""

    def __init__(self, queue: SageQueue[Any], action: str) -> None:
        self.itself = self
        self.queue = queue
        self.action = action

    def __del__(self) -> None:
        gc.disable()
        if self.action == "close":
            self.queue.close()
        elif self.action == "use":
            self.queue.put("used", block=False)
            self.queue.qsize()
            self.queue.claim(block=False)  # and gives it back
        else:
            pid = os.fork()
            if pid == 0:
                self.queue.close()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0


def lend(queue: SageQueue[Any]) -> None:
    with queue.loan(4, "u1") as array:
        array[:] = 1


def lend_kept(queue: SageQueue[Any]) -> None:
    with queue.loan(4000, "u1") as array:
        array[:] = 1
        queue.extra = array[:5]  # type: ignore[attr-defined]


CALLS: dict[str, Callable[[SageQueue[Any]], Any]] = {
    "put": lambda queue: queue.put([1, {"a": 2}]),
    "put large": lambda queue: queue.put([b"x" * 400_000]),
    "put array": lambda queue: queue.put({"a": np.zeros(9000)}),
    "put_many": lambda queue: queue.put_many([[n, b"x" * 400] for n in range(9)]),
    "put_many iterator": lambda queue: queue.put_many(iter([b"x" * 400, np.zeros(90), 3])),
    "get": lambda queue: queue.get(),
    "get_many": lambda queue: queue.get_many(),
    "claim": lambda queue: queue.claim().item,
    "claim_many": lambda queue: [lease.item for lease in queue.claim_many()],
    "release": lambda queue: [lease.release() for lease in queue.claim_many()],
    "loan": lend,
    "loan kept": lend_kept,
    "qsize": lambda queue: queue.qsize(),
    "join": lambda queue: (queue.task_done(), queue.task_done()),
    "usage": lambda queue: queue.usage(),
    "participants": lambda queue: queue.participants(),
    "recover": lambda queue: queue.recover(),
    "repr": repr,
    "shutdown": lambda queue: queue.shutdown(),
    "attach": lambda queue: SageQueue.attach(queue.name).close(),
    "close": lambda queue: queue.close(),
}


@pytest.mark.parametrize("act", ["close", "use", "fork"])
@pytest.mark.parametrize("call", CALLS)
def test_a_collection_at_every_allocation(call: str, act: str) -> None:
    def work() -> None:
        for threshold in range(1, 8 if act == "fork" else 20):
            with SageQueue[Any](maxsize=1000, pool_bytes=65536) as other:
                queue = SageQueue[Any].attach(other.name)
                items = [[n, b"y" * size] for n, size in enumerate([1, 300, 1, 300, 100_000])]
                queue.put_many(items)
                gc.collect()
                gc.disable()
                Finalized(queue, act)
                gc.set_threshold(threshold)
                gc.enable()
                result = None
                try:
                    result = CALLS[call](queue)
                except QueueError:
                    pass
                finally:
                    gc.disable()
                gc.collect()  # if it was not collected yet
                if call.startswith("get"):
                    got = result if call == "get_many" else [result]
                    left = [item for item in drain(other) if item != "used"]
                    taken = [item for item in (got or []) if item not in (None, "used")]
                    assert taken + left == items
                del result
                queue.close()
                drain_after_shutdown(other)
                assert other.usage().leases == 0
                del queue

    in_child(work)


def drain_after_shutdown(queue: SageQueue[Any]) -> None:
    try:
        drain(queue)
    except QueueError:
        assert queue.is_shutdown
