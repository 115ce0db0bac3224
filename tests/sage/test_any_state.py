"""Every attribute and method, on handles in every state, ends with a result or a typed error.

The table is what `dir` lists: what is added later is tried too.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from forked import in_child

from sagequeue import QueueError, SageQueue, _shared

# What a call needs; a name that is not here is called without arguments.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "put": (1, False),
    "put_nowait": (1,),
    "put_many": ([1, b"x" * 5000], False),
    "get": (False,),
    "get_many": (None, False),
    "claim": (False,),
    "claim_many": (None, False),
    "_claim_many": (None, False, None),
    "loan": (4,),
    "_loan": ((4,), np.dtype("u1"), False, False, None),
    "attach": ("no-such-queue",),
    "_attach": ("no-such-queue",),
    "_create": ("any-state", 0, "mpmc", 64, 128, 65536, "pickle", 4, 100),
    "__exit__": (None, None, None),
}
WAITING = {"join", "__iter__"}  # on an open handle
OF_EVERY_OBJECT = {
    name
    for kind in (object, type)
    for name in dir(kind)
    if name not in ("__repr__", "__reduce__", "__reduce_ex__", "__init__")
}


def touch(target: Any, name: str) -> None:
    """Use an attribute: read it, and call what can be called; QueueError is an answer."""
    try:
        value = getattr(target, name)
        if not callable(value) or (name in WAITING and not target.closed):
            return
        result = value(2) if name == "__reduce_ex__" else value(*ARGUMENTS.get(name, ()))
        if name in ("loan", "_loan"):
            with result as array:
                array[:] = 1
        elif name == "__iter__":
            next(result)
    except (QueueError, AttributeError):
        pass  # `logger`, and what `object` has and hides
    except TypeError as error:
        if "argument" not in str(error) and "pickle" not in str(error):
            raise


def touch_all(make: Callable[[], Any], *, first: bool) -> None:
    """Each name on an object of its own, and all in turn on one."""
    names = sorted(set(dir(make())) - OF_EVERY_OBJECT)
    for name in names:
        touch(make(), name)
    target = make()
    for name in names if first else reversed(names):
        touch(target, name)


def never_opened() -> Any:
    return SageQueue.__new__(SageQueue)


def failed_to_open() -> Any:
    queue = never_opened()
    with pytest.raises(QueueError):
        queue.__init__(codec="no-such-codec")
    return queue


def closed() -> Any:
    queue = SageQueue[Any]()
    queue.close()
    return queue


def closed_with_a_lease() -> Any:
    queue = SageQueue[Any]()
    queue.put_many([1, 2])
    queue.lease = queue.claim()  # type: ignore[attr-defined]
    queue.close()
    return queue


def left_at_exit() -> Any:
    queue = SageQueue[Any]()
    _shared._close_all()  # type: ignore[attr-defined]
    return queue


def left_at_exit_with_a_lease() -> Any:
    queue = SageQueue[Any]()
    queue.put_many([1, 2])
    queue.lease = queue.claim()  # type: ignore[attr-defined]
    _shared._close_all()  # type: ignore[attr-defined]
    return queue


def in_use() -> Any:
    queue = SageQueue[Any]()
    queue.put_many([1, b"x" * 5000])
    return queue


def shut_down() -> Any:
    queue = in_use()
    queue.shutdown()
    return queue


HANDLES = [
    never_opened,
    failed_to_open,
    closed,
    closed_with_a_lease,
    left_at_exit,
    left_at_exit_with_a_lease,
    in_use,
    shut_down,
]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("make", HANDLES)
def test_a_handle(make: Callable[[], Any], first: bool) -> None:
    in_child(lambda: touch_all(make, first=first))


def leases_of(state: str) -> Any:
    queue = SageQueue[Any]()
    queue.put_many([np.arange(5000), 2])
    lease = queue.claim()
    if state == "released":
        lease.release()
    elif state == "closed":
        queue.close()
    elif state == "left":
        _shared._close_all()  # type: ignore[attr-defined]
    elif state == "decoded and left":
        assert lease.item is not None
        _shared._close_all()  # type: ignore[attr-defined]
    return lease


def loan_of(state: str) -> Any:
    queue = SageQueue[Any]()
    loan = queue.loan(5000)
    if state != "fresh":
        loan.__enter__()
    if state == "over":
        loan.__exit__(None, None, None)
    elif state == "closed":
        queue.close()
    elif state == "left":
        _shared._close_all()  # type: ignore[attr-defined]
    return loan


OTHERS: dict[str, Callable[[], Any]] = {
    "lease without __init__": lambda: _shared.Lease.__new__(_shared.Lease),
    **{
        f"lease {state}": lambda state=state: leases_of(state)
        for state in ("fresh", "released", "closed", "left", "decoded and left")
    },
    "loan without __init__": lambda: _shared.Loan.__new__(_shared.Loan),  # type: ignore[attr-defined]
    **{
        f"loan {state}": lambda state=state: loan_of(state)
        for state in ("fresh", "begun", "over", "closed", "left")
    },
    "body": lambda: _shared.Body.__new__(_shared.Body),  # type: ignore[attr-defined]
    "batch": lambda: _shared.Batch.__new__(_shared.Batch),  # type: ignore[attr-defined]
    "base class": lambda: _shared.SharedQueue.__new__(_shared.SharedQueue),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_lease_or_a_loan(kind: str, first: bool) -> None:
    in_child(lambda: touch_all(OTHERS[kind], first=first))


def test_a_body_exports_nothing_before_it_has_memory() -> None:
    with pytest.raises(BufferError):
        memoryview(_shared.Body.__new__(_shared.Body))  # type: ignore[attr-defined]


def forked_with(state: str) -> Any:
    """In a child: an object of its parent's, and what it is to keep alive."""
    queue = SageQueue[Any](max_participants=3)
    queue.put_many([np.arange(5000), b"x" * 5000, 2])
    lease = queue.claim()
    loan = queue.loan(5000)
    loan.__enter__()
    if state == "closed":
        queue.close()
    elif state == "orphaned":
        queue.others = [SageQueue.attach(queue.name) for _ in range(2)]  # type: ignore[attr-defined]
    return queue, lease, loan


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("index", [0, 1, 2], ids=["handle", "lease", "loan"])
@pytest.mark.parametrize("state", ["open", "closed", "orphaned"])
def test_after_a_fork(state: str, index: int, first: bool) -> None:
    def work() -> None:
        objects = forked_with(state)
        before = None if state == "closed" else objects[0].usage()
        in_child(lambda: touch_each_once(objects[index], first=first))
        if before is not None:
            assert objects[0].usage().leases == before.leases
            assert objects[1].item.sum() == 12497500
            objects[1].release()
            objects[2].__exit__(None, None, None)

    in_child(work)


def touch_each_once(target: Any, *, first: bool) -> None:
    names = sorted(set(dir(target)) - OF_EVERY_OBJECT - {"others", "recover", "shutdown"})
    for name in names if first else reversed(names):
        touch(target, name)


def test_properties_of_a_closed_handle_are_what_they_were() -> None:
    queue = SageQueue[Any](7, capacity=16, mode="spsc", codec="raw")
    names = ["name", "maxsize", "capacity", "slot_size", "pool_bytes", "mode", "codec_name"]
    before = [getattr(queue, name) for name in names]
    queue.close()
    assert [getattr(queue, name) for name in names] == before


@pytest.mark.parametrize("call", ["get_many", "claim_many"])
def test_numbers_as_limits(call: str) -> None:
    class Index:
        def __index__(self) -> int:
            return 2

    with SageQueue[int]() as queue:
        for number, expected in ((Index(), 2), (np.int64(1), 1), (2**64, 7), (10**400, 7)):
            queue.put_many(range(7))
            assert len(getattr(queue, call)(number)) == expected
            while not queue.empty():
                queue.get_many()
        for wrong in (0, -(10**400), 2.5, "3", np.float64(2)):
            with pytest.raises(QueueError, match="max_items"):
                getattr(queue, call)(wrong)


def test_a_timeout_of_any_size() -> None:
    with SageQueue[int]() as queue:
        queue.put(1)
        assert queue.get(timeout=10**400) == 1
        with pytest.raises(QueueError, match="non-negative"):
            queue.get(timeout=-(10**400))


def test_views_leave_no_reference_to_none() -> None:
    with SageQueue[Any]() as queue:
        queue.put(np.arange(5000))
        body = queue.claim().item.base
        target = io.BytesIO(b"x")
        before = sys.getrefcount(None)
        for _ in range(10_000):
            memoryview(body)
            with contextlib.suppress(TypeError):
                target.readinto(body)  # which is read-only
        assert abs(sys.getrefcount(None) - before) < 1000


def test_a_failed_opening_can_be_repeated() -> None:
    queue = failed_to_open()
    queue.__init__()
    assert queue.participants() == [os.getpid()]
    queue.close()
