"""Caller: sends replies to one of the processes that call a service, without waiting for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import Any

from sagequeue.errors import BackendUnavailable, Full, QueueClosed, QueueError, ShutDown
from sagequeue.protocol import Queue
from sageruntime.service.messages import NOTHING, Reply, pack_error
from sageruntime.service.request_reader import PendingRequest

MOST_UNSENT = 1024
"""Replies that may wait for room in the queue of one caller."""

# How long a caller may take nothing from its full queue before it is given up.
_PATIENCE_SECONDS = 5.0

# Replies that are put in one call.
_BATCH = 64

_GONE = (ShutDown, QueueClosed, BackendUnavailable)


class Caller:
    """The reply queue of one caller. Any thread may send.

    A reply that cannot be put at once joins a backlog, which has a thread until it is worked off:
    neither another caller nor the sender waits for this one. A request is released once its reply
    has been put: if this process dies before, the request is delivered again.

    Args:
        queue: where the caller receives its replies.
        pid: the caller's process, if it is on this machine.
        logger: told when the caller is given up.

    Attributes:
        called_at: when it last made a call, by the monotonic clock.
    """

    def __init__(self, queue: Queue[Any], pid: int | None, logger: logging.Logger) -> None:
        self.queue = queue
        self.called_at = time.monotonic()
        self._pid = pid
        self._logger = logger
        # To ask the actor of a Ray queue whether it has room is to wait for the actor.
        self._put_waits = queue.backend == "ray"
        self._lock = threading.Lock()
        self._unsent: deque[tuple[Reply, PendingRequest]] = deque()
        self._overflowed = False
        self._sender: threading.Thread | None = None

    @property
    def has_backlog(self) -> bool:
        """Whether replies wait to be put."""
        return self._sender is not None

    @property
    def is_gone(self) -> bool:
        """Whether it is known that nobody receives the replies any more."""
        queue: Any = self.queue
        if queue.backend == "ray":
            return False
        try:
            if queue.closed or queue.is_shutdown:
                return True
            return self._pid is not None and self._pid not in queue.participants()
        except QueueError:
            return True

    def send(self, reply: Reply, request: PendingRequest) -> None:
        """Put the reply to a request, or the error in its place when it cannot be put.

        It does not wait. A caller that is gone needs no reply. One that takes nothing from its
        full queue for a while is given up: its queue is shut down, so that it learns of it.
        """
        if self._put_waits or self._sender is not None:
            self._send_later(reply, request)
            return
        try:
            self.queue.put(tuple(reply), block=False)
        except _GONE:
            pass
        except QueueError:  # there is no room, or no memory
            self._send_later(reply, request)
            return
        request.release()

    def flush(self) -> None:
        """Wait until the backlog is worked off, or the caller is given up."""
        sender = self._sender
        if sender is not None:
            sender.join()

    def _send_later(self, reply: Reply, request: PendingRequest) -> None:
        with self._lock:
            if len(self._unsent) < MOST_UNSENT:
                self._unsent.append((reply, request))
            else:
                self._overflowed = True
            if self._sender is None:
                self._sender = threading.Thread(
                    target=self._work_off, name=f"{self.queue.name}-backlog", daemon=True
                )
                self._sender.start()
            if not self._overflowed:
                return
        request.release()  # its caller is about to be given up

    def _work_off(self) -> None:
        while batch := self._next_batch():
            settled = self._put(batch)
            with self._lock:
                done = [self._unsent.popleft() for _ in range(settled)]
            for _, request in done:
                request.release()

    def _next_batch(self) -> list[tuple[Reply, PendingRequest]]:
        with self._lock:
            batch = list(islice(self._unsent, _BATCH))
            if not batch:
                self._sender = None
            return batch

    def _put(self, batch: list[tuple[Reply, PendingRequest]]) -> int:
        """Put replies, and return how many are settled: put, or of a caller that is given up."""
        if self.is_gone:
            return self._give_up("its process is gone")
        try:
            settled = self.queue.put_many(
                [tuple(reply) for reply, _ in batch], timeout=_PATIENCE_SECONDS
            )
        except _GONE:
            return len(batch)
        except Full as full:
            settled = full.accepted
            if settled == 0:
                return self._give_up(f"it took no reply for {_PATIENCE_SECONDS:g} s")
        except Exception as error:  # there is no memory for one of them
            settled = getattr(error, "accepted", 0)
            reply, request = batch[settled]
            if reply.error is not None:
                return self._give_up(f"not even an error can be sent to it: {error}")
            error_reply = Reply(reply.number, NOTHING, pack_error(error, self.queue))
            with self._lock:
                self._unsent[settled] = error_reply, request
        if self._overflowed:
            return self._give_up(f"more than {MOST_UNSENT} replies wait for room in its queue")
        return settled

    def _give_up(self, why: str) -> int:
        self._logger.warning("gave up the caller that reads %s: %s", self.queue.name, why)
        with suppress(Exception):  # then it cannot be told
            self.queue.shutdown(immediate=True)
        with self._lock:
            self._overflowed = False
            return len(self._unsent)
