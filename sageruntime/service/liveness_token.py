"""LivenessToken: lets the callers of a service, in any process, observe that it has ended."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import weakref
from contextlib import suppress
from typing import Any, Protocol

from sagequeue import create_queue
from sagequeue.errors import BackendUnavailable, LeaseEnded, QueueClosed, ShutDown
from sagequeue.protocol import Queue
from sageruntime.core.scope import Scope

MAX_PARTICIPANTS = 1024
"""Handles of a service's queues that may be open at a time: its own, and those of its callers."""

# How long closing a token waits for the thread that watches it.
_END_SECONDS = 1.0

_logger = logging.getLogger("sageruntime.service")


class Observer(Protocol):
    """Is told of the end of a service."""

    def service_ended(self) -> None:
        """The service has ended, for every caller."""

    def service_unreachable(self, error: Exception) -> None:
        """This process can no longer observe whether the service has ended."""


class LivenessToken:
    """Held by the process that owns a service. It travels to other processes as its queue does.

    It is a queue. Its owner shuts it down when the service has ended, which reaches everybody who
    waits for a message. In shared memory the owner also holds the lease of the only message: when
    it is killed, one of those who wait gets the message and shuts the queue down. On Ray the
    queue's actor dies with its owner.

    The requests' own queue does not serve: it is shut down while a service that drains still
    answers.

    Args:
        name: what the queue's name begins with.
        scope: how far away the callers may be.
    """

    def __init__(self, name: str, scope: Scope) -> None:
        self._queue: Queue[Any] = create_queue(
            # unique, so that a later service of this name is not taken for this one
            name=f"{name}-{secrets.token_hex(4)}",
            maxsize=1,
            scope=scope,
            max_participants=MAX_PARTICIPANTS,
        )
        self._lease: Any = None
        if self._queue.backend == "sage":
            self._queue.put(None)
            self._lease = self._queue.claim(block=False)  # type: ignore[attr-defined]

    def observe(self, observer: Observer) -> None:
        """Tell an observer of the end, in another thread; it is referred to weakly.

        One thread of a process waits for the end of a service, for all observers there.
        """
        with _lock:
            watch = _watches.get(self._queue.name)
            if watch is None:
                watch = _watches[self._queue.name] = _Watch(self._queue)
                watch.start()
            watch.observers.add(observer)

    def end(self) -> None:
        """The service has ended."""
        with suppress(QueueClosed, BackendUnavailable):
            self._queue.shutdown()

    def close(self) -> None:
        """Give up the owner's handle, after :meth:`end`."""
        watch = _watches.get(self._queue.name)
        if watch is not None:
            watch.join(_END_SECONDS)
        if self._lease is not None:
            with suppress(LeaseEnded):  # as it is when the token is closed again
                self._lease.release()
        self._queue.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_queue": self._queue, "_lease": None}


class _Watch(threading.Thread):
    """Waits for the end of one service and tells the observers in this process."""

    def __init__(self, queue: Queue[Any]) -> None:
        super().__init__(name=f"{queue.name}-watch", daemon=True)
        self.observers: weakref.WeakSet[Observer] = weakref.WeakSet()
        self._queue = queue

    def run(self) -> None:
        """Wait, then tell."""
        try:
            _wait_for_end(self._queue)
        except ShutDown:
            self._tell(None)
        except QueueClosed:
            return  # this process is about to end
        except Exception as error:  # the queue's actor has died, or Ray was shut down
            _logger.warning("cannot observe a service by %s any more: %s", self._queue.name, error)
            self._tell(error)

    def _tell(self, error: Exception | None) -> None:
        with _lock:
            _watches.pop(self._queue.name, None)
            observers = list(self.observers)
        for observer in observers:
            try:
                if error is None:
                    observer.service_ended()
                else:
                    observer.service_unreachable(error)
            except Exception as failure:
                _logger.error("%s: %r cannot be told: %s", self.name, observer, failure)


def _wait_for_end(queue: Queue[Any]) -> None:
    """Raise ShutDown once the service has ended, or what else ends the wait."""
    if queue.backend != "sage":
        queue.get()
    # Claimed until the queue is shut down: if this process is killed, too, another one finds it.
    lease = queue.claim()  # type: ignore[attr-defined]
    queue.shutdown()
    lease.release()
    raise ShutDown(f"the owner of {queue.name!r} has died")


_watches: dict[str, _Watch] = {}
_lock = threading.Lock()


def _forget_watches() -> None:
    """In a child that was forked, which has none of its parent's threads."""
    global _lock
    _lock = threading.Lock()
    _watches.clear()


os.register_at_fork(after_in_child=_forget_watches)
