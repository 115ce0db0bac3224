"""RayQueue: a queue that reaches every node of a Ray cluster, kept by an actor.

It is used as ``ray.util.queue.Queue`` is, with the standard exceptions, batches in one call,
shutdown and join. Ray is imported when a RayQueue is made, never before.
"""

from __future__ import annotations

import logging
import pickle
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from sagequeue.closing import Closing
from sagequeue.counts import most_of
from sagequeue.deadline import deadline_of
from sagequeue.errors import (
    BackendUnavailable,
    DecodeError,
    Empty,
    EncodeError,
    Full,
    InvalidOption,
    QueueClosed,
    ShutDown,
)
from sagequeue.interruption import is_interruption
from sagequeue.ray_broker import BATCH, CALL_BYTES, Broker

T = TypeVar("T")

POLL_SECONDS = 1.0
"""Seconds that one call waits in the actor; then the caller asks again."""

ACTOR_EXIT_GRACE_SECONDS = 1.0
"""Seconds within which Ray ends an actor after its last handle is gone."""

# Releases that may be under way before it is looked which of them have come.
_MOST_RELEASES = 256

# When this process last gave up a handle of a queue, by the queue's name.
_given_up: dict[str, float] = {}


class _Call(NamedTuple):
    """A call that waits in the actor for items."""

    answer: Any  # an ObjectRef of items and whether the queue is drained
    accept: Callable[[list[Any]], None]


class _Receiver(threading.local):
    """What a handle knows as a receiver. Each thread is one of its own."""

    def __init__(self, handle: str) -> None:
        self.name = f"{handle}-{secrets.token_hex(4)}"
        self.request = 0
        self.received: deque[bytes] = deque()
        self.claimed: deque[RayLease[Any]] = deque()
        # A take that is broken off (by Ctrl-C, say) leaves it to the next.
        self.call: _Call | None = None


class RayLease(Generic[T]):
    """An item that stays with the broker of a Ray queue until it is released.

    Attributes:
        deliveries: how often it was claimed before and not released.
    """

    def __init__(self, queue: RayQueue[T], number: int, data: bytes, deliveries: int) -> None:
        self.deliveries = deliveries
        self._queue = queue
        self._number = number
        self._data = data
        self._error: DecodeError | None = None

    @cached_property
    def item(self) -> T:
        """The item; DecodeError, each time the same one, when it cannot be unpickled."""
        if self._error is None:
            try:
                return self._queue._decode(self._data, "the lease keeps it until release()")
            except DecodeError as error:
                self._error = error
        raise self._error.with_traceback(None)  # else that would grow each time

    def release(self) -> None:
        """Acknowledge: the item is dealt with. It is not waited for."""
        self._queue.release_many([self])


class RayQueue(Closing, Generic[T]):
    """A FIFO queue for the tasks, actors and drivers of one Ray cluster.

    It may be passed to any of them. With a ``name``, every RayQueue of that name in the same Ray
    namespace is the same queue. Items are pickled by cloudpickle.

    Raises:
        BackendUnavailable: ray is not installed or ``ray.init()`` was not called; later, from
            any method, when the queue's actor has died and its items with it.
    """

    backend = "ray"

    def __init__(self, maxsize: int = 0, *, name: str | None = None) -> None:
        ray = _initialised_ray()
        maxsize = max(0, maxsize)
        options: dict[str, Any] = {
            "num_cpus": 0,
            "max_concurrency": 10_000,
            # it lives as long as its creator's node, and not as long as some other
            "scheduling_strategy": ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            ),
        }
        actor = None
        if name is not None:
            options |= {"name": f"sagequeue-{name}", "get_if_exists": True}
            actor = _broker_of(name, options["name"])
        if actor is None:
            actor = ray.remote(Broker).options(**options).remote(maxsize)
        self._open(name if name is not None else f"ray-{secrets.token_hex(6)}", maxsize, actor)

    def _open(self, name: str, maxsize: int, actor: Any) -> None:
        self.name = name
        self.maxsize = maxsize
        self.logger = logging.getLogger("sagequeue")
        self.closed = False
        self._actor = actor
        self._handle = secrets.token_hex(8)
        self._own = _Receiver(self._handle)
        self._releases: list[Any] = []  # calls that are not known to have come to the broker
        self._waiting: set[str] = set()  # receivers
        self._wakeup_wanted: deque[None] = deque(maxlen=1)  # who pops it takes it

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item; see :class:`sagequeue.protocol.Queue`."""
        self.put_many((item,), block, timeout)

    def put_nowait(self, item: T) -> None:
        """``put(item, block=False)``."""
        self.put(item, block=False)

    def put_many(self, items: Iterable[T], block: bool = True, timeout: float | None = None) -> int:
        """Put all items in order; see :class:`sagequeue.protocol.Queue`."""
        deadline = deadline_of(block, timeout)
        iterator = iter(items)
        total = 0
        while batch := self._encode_some(iterator, total):
            total = self._put_batch(batch, deadline, total)
        return total

    def _encode_some(self, items: Iterator[T], accepted: int) -> list[bytes]:
        """What goes in one call."""
        batch: list[bytes] = []
        size = 0
        for item in islice(items, BATCH):
            batch.append(self._encode(item, accepted))
            size += len(batch[-1])
            if size >= CALL_BYTES:
                break
        return batch

    def _put_batch(self, batch: list[bytes], deadline: float | None, total: int) -> int:
        while batch:
            left = _left(deadline)
            accepted, is_shutdown = self._ask("put_many", batch, min(left, POLL_SECONDS))
            total += accepted
            batch = batch[accepted:]
            if is_shutdown:
                raise ShutDown(f"queue {self.name!r} was shut down; nothing more can be put", total)
            if batch and left == 0:
                raise Full(f"queue {self.name!r} is full: {self.maxsize} items are waiting", total)
        return total

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the oldest item; see :class:`sagequeue.protocol.Queue`."""
        return self.get_many(1, block, timeout)[0]

    def get_nowait(self) -> T:
        """``get(block=False)``."""
        return self.get(block=False)

    def get_many(
        self, max_items: int | None = None, block: bool = True, timeout: float | None = None
    ) -> list[T]:
        """Take what is there, waiting for the first; see :class:`sagequeue.protocol.Queue`."""
        most = _batch_size(max_items)
        deadline = deadline_of(block, timeout)
        self._await_items(self._own.received, lambda s: self._receive(most, s), block, deadline)
        items: list[T] = []
        while self._own.received and len(items) < most:
            try:
                items.append(self._decode(self._own.received[0], "it is consumed"))
            except DecodeError:
                if items:
                    break  # its error comes in its place: with the next call
                self._own.received.popleft()
                raise
            self._own.received.popleft()
        return items

    def claim(self, claimant: str, block: bool = True, timeout: float | None = None) -> RayLease[T]:
        """Lease the oldest item: it stays with the broker until it is released.

        Args:
            claimant: who claims, for :meth:`give_back_claims`.
            block, timeout: as of :meth:`get`, which also says what is raised.
        """
        return self.claim_many(claimant, 1, block, timeout)[0]

    def claim_many(
        self,
        claimant: str,
        max_items: int | None = None,
        block: bool = True,
        timeout: float | None = None,
    ) -> list[RayLease[T]]:
        """Lease what is there, waiting for the first; see :meth:`claim` and :meth:`get_many`."""
        most = _batch_size(max_items)
        deadline = deadline_of(block, timeout)
        claimed = self._own.claimed
        self._await_items(claimed, lambda s: self._claim(claimant, most, s), block, deadline)
        return [claimed.popleft() for _ in range(min(most, len(claimed)))]

    def release_many(self, leases: Iterable[RayLease[T]]) -> None:
        """Acknowledge several of this queue's leases in one call, which is not waited for."""
        call = self._call("release", [lease._number for lease in leases])
        self._releases.append(call)
        if len(self._releases) > _MOST_RELEASES:
            self._await_releases(0.0)

    def give_back_claims(self, of: str) -> None:
        """Let others have what claimants whose names begin with ``of`` have not released.

        For when they have died. It comes before everything else.
        """
        # the broker may take a later call first: what this handle has released is not to come back
        self._await_releases(None)
        self._ask("give_back_claims", of)

    def _await_releases(self, timeout: float | None) -> None:
        """Wait for the releases that are under way, however they end, and forget those that have.

        Other threads may release more in the meantime.
        """
        import ray

        calls = list(self._releases)
        if calls:
            ended, _ = ray.wait(calls, num_returns=len(calls), timeout=timeout)
            for call in ended:
                with suppress(ValueError):  # another thread has forgotten it
                    self._releases.remove(call)

    def wakeup(self) -> None:
        """End the wait of a take with ``Empty``; see :class:`sagequeue.protocol.Queue`.

        The broker is asked to answer the call that waits there, so that it takes no item
        afterwards. If the broker itself does not answer, the take ends within two seconds, and the
        thread's next take goes on waiting for that answer.
        """
        actor = self._actor
        if actor is not None:
            # before we look who waits: who begins to wait after our look sees it
            self._wakeup_wanted.append(None)
            for receiver in list(self._waiting):
                actor.answer_now.remote(receiver)

    def _receive(self, most: int, seconds: float) -> _Call:
        own = self._own

        def accept(batch: list[bytes]) -> None:
            if batch:
                own.request += 1
                own.received.extend(batch)

        return _Call(self._call("get_many", own.name, own.request, most, seconds), accept)

    def _claim(self, claimant: str, most: int, seconds: float) -> _Call:
        own = self._own

        def accept(claims: list[tuple[int, bytes, int]]) -> None:
            own.claimed.extend(RayLease(self, *claim) for claim in claims)

        return _Call(self._call("claim_many", own.name, claimant, most, seconds), accept)

    def _await_items(
        self,
        items: deque[Any],
        ask: Callable[[float], _Call],
        block: bool,
        deadline: float | None,
    ) -> None:
        """Ask the actor until there are items, be it by an earlier call that comes back now."""
        own = self._own
        self._waiting.add(own.name)  # before we look for a wake-up: see wakeup()
        try:
            while not items:
                left = _left(deadline)
                is_earlier = own.call is not None
                if own.call is None:
                    own.call = ask(min(left, POLL_SECONDS))
                if is_earlier or (block and self._wakeup_wanted):
                    self._call("answer_now", own.name)
                drained = self._accept_answer(own.call, block)
                if items or is_earlier:
                    continue
                if drained:
                    raise ShutDown(f"queue {self.name!r} was shut down and nothing is left to get")
                if block:
                    self._take_wakeup()
                if left == 0:
                    raise Empty(f"queue {self.name!r} is empty")
        finally:
            self._waiting.discard(own.name)

    def _accept_answer(self, call: _Call, block: bool) -> bool:
        """Take the items of an answer; returns whether the queue is drained."""
        import ray

        while True:
            try:
                items, drained = self._answer(call.answer, 2 * POLL_SECONDS)
            except ray.exceptions.GetTimeoutError:
                if block:  # the actor does not answer: it is stopped, or out of reach
                    self._take_wakeup()
            else:
                self._own.call = None
                call.accept(items)
                return bool(drained)

    def _take_wakeup(self) -> None:
        try:
            self._wakeup_wanted.pop()
        except IndexError:
            return
        raise Empty(f"queue {self.name!r}: wakeup() was called before an item came")

    def qsize(self) -> int:
        """How many items are waiting; others may change it at any time."""
        return int(self._ask("qsize")) + len(self._own.received)

    def empty(self) -> bool:
        """``qsize() == 0``."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether ``maxsize`` items are waiting."""
        return 0 < self.maxsize <= self.qsize()

    def task_done(self) -> None:
        """Say that one item got has been dealt with."""
        if not self._ask("task_done"):
            raise InvalidOption("task_done() called too many times")

    def join(self) -> None:
        """Wait until every item put has been answered by ``task_done()``."""
        while not self._ask("join", POLL_SECONDS):
            pass

    def shutdown(self, immediate: bool = False) -> None:
        """Refuse further puts by anyone; ``immediate`` also drops what is waiting."""
        self._ask("shutdown", immediate)

    def close(self) -> None:
        """Give up this handle. Ray ends the actor after the last handle is given up."""
        if not self.closed:
            self._call("forget", self._handle)
            self.closed = True
            self._actor = None
            _note_given_up(self.name)

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            _note_given_up(self.name)

    def __iter__(self) -> Iterator[T]:
        """Yield items until the queue is shut down and drained."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        return (_reopen, (type(self), self.name, self.maxsize, self._actor))

    def __repr__(self) -> str:
        return f"<RayQueue {self.name!r}{', closed' if self.closed else ''}>"

    def _check_open(self) -> None:
        if self.closed:
            raise QueueClosed(f"queue {self.name!r} is closed in this process")

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._answer(self._call(method, *arguments))

    def _call(self, method: str, *arguments: Any) -> Any:
        self._check_open()
        return getattr(self._actor, method).remote(*arguments)

    def _answer(self, answer: Any, timeout: float | None = None) -> Any:
        import ray

        try:
            return ray.get(answer, timeout=timeout)
        except ray.exceptions.RayActorError as error:
            raise BackendUnavailable(
                f"the actor of queue {self.name!r} died and its items with it: {error}; "
                "create the queue again"
            ) from error

    def _encode(self, item: T, accepted: int) -> bytes:
        import cloudpickle

        try:
            return bytes(cloudpickle.dumps(item))
        except Exception as error:
            raise EncodeError(
                f"cannot pickle a {type(item).__qualname__}: {error}; it was not put", accepted
            ) from error

    def _decode(self, item: bytes, outcome: str) -> T:
        try:
            return pickle.loads(item)  # type: ignore[no-any-return]
        except Exception as error:
            if is_interruption(error):
                raise
            raise DecodeError(f"cannot unpickle an item: {error!r}; {outcome}", item) from error


def _reopen(kind: type[RayQueue[Any]], name: str, maxsize: int, actor: Any) -> RayQueue[Any]:
    queue = kind.__new__(kind)
    queue._open(name, maxsize, actor)
    return queue


def _note_given_up(name: str) -> None:
    now = time.monotonic()
    for other, at in list(_given_up.items()):
        if now - at > ACTOR_EXIT_GRACE_SECONDS:
            _given_up.pop(other, None)
    _given_up[name] = now


def _broker_of(name: str, actor_name: str) -> Any:
    """The actor of a named queue, if there is one that lives on.

    Ray ends an actor a little after the last handle was given up. Asking for it in that time may
    return one that is dying or, in the process that made it, keep it alive with what is in it.
    """
    import ray

    until = _given_up.get(name, -ACTOR_EXIT_GRACE_SECONDS) + ACTOR_EXIT_GRACE_SECONDS
    while actor_name in ray.util.list_named_actors():
        if time.monotonic() >= until:
            try:
                actor = ray.get_actor(actor_name)
                ray.get(actor.qsize.remote())
            except (ValueError, ray.exceptions.RayActorError):
                until = time.monotonic() + ACTOR_EXIT_GRACE_SECONDS
            else:
                return actor
        time.sleep(0.005)
    return None


def _initialised_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise BackendUnavailable(
            "backend 'ray' needs the ray package: pip install sagequeue[ray]"
        ) from error
    if not ray.is_initialized():
        raise BackendUnavailable(
            "backend 'ray' needs a running cluster: call ray.init() before create_queue()"
        )
    return ray


def _batch_size(max_items: int | None) -> int:
    """How many items a call takes at most."""
    return BATCH if max_items is None else min(most_of(max_items), BATCH)


def _left(deadline: float | None) -> float:
    return POLL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
