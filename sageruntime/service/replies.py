"""Replies: where the answers to the calls of one process arrive."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from typing import Any

from sagequeue import create_queue
from sagequeue.errors import BackendUnavailable, Empty, Full, QueueClosed, ShutDown
from sagequeue.interruption import is_interruption
from sagequeue.protocol import Queue
from sageruntime.core.scope import Scope
from sageruntime.errors import ServiceLost
from sageruntime.service.liveness_token import LivenessToken
from sageruntime.service.messages import NOTHING, WAKE_UP, Reply, reply_queue_name

# How long a thread that receives for futures outlives the last of them.
_LINGER_SECONDS = 1.0

_logger = logging.getLogger("sageruntime.service")


class PendingCall:
    """A call whose caller's thread waits for the reply."""

    __slots__ = ("_woken", "reply")

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()

    def settle(self, reply: Reply) -> None:
        """Deliver the reply and wake the caller."""
        self.reply = reply
        self._woken.put(None)

    def wake(self) -> None:
        """Wake the caller, so that it can become the receiver."""
        self._woken.put(None)

    def wait(self, seconds: float | None) -> None:
        """Wait for :meth:`settle` or :meth:`wake`."""
        with suppress(queue.Empty):
            self._woken.get(timeout=seconds)


class PendingFuture(Future[Any]):
    """A call whose caller does not wait."""

    def settle(self, reply: Reply) -> None:
        """Deliver the reply; it is dropped if the call was cancelled."""
        if not self.set_running_or_notify_cancel():
            return
        try:
            try:
                value = reply.outcome()
            except BaseException as error:
                self.set_exception(error)
            else:
                self.set_result(value)
        except BaseException as error:  # SystemExit, say, of a callback; Future logs an Exception
            if is_interruption(error):  # of the caller that receives for all
                raise
            _logger.exception("a callback of a future of a service failed")


class Replies:
    """One queue for the replies to all calls of this process, from any thread.

    One of the callers that wait receives for all (leader and followers); when it has its own reply
    it wakes another, which becomes the receiver. That saves a change of threads with every call.
    Only futures, which nobody waits for, have a thread to receive for them.

    Nobody polls: the end of the service is observed by its :class:`LivenessToken`, and then the
    receiver is woken by a message in this queue.

    Args:
        service: the service's name.
        requests: its input queue.
        scope: how far away the service may be.
        token: tells the end of the service.
    """

    def __init__(
        self, service: str, requests: Queue[Any], scope: Scope, token: LivenessToken
    ) -> None:
        self._service = service
        self._requests = requests
        self._calls: dict[int, PendingCall] = {}
        self._futures: dict[int, PendingFuture] = {}
        self._numbers = count(1)
        self._receiving = threading.Lock()
        # Taken from the queue and not delivered yet: here, so that a receiver which is
        # interrupted leaves them to the next one.
        self._received: deque[tuple[Any, ...]] = deque()
        self._submitted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._receiver: threading.Thread | None = None
        self._lost = ""  # why no more replies will come
        self.closed = False
        """Whether a new call needs new Replies."""
        self.queue: Queue[Any] = create_queue(
            name=reply_queue_name(requests.name, os.getpid(), secrets.token_hex(4)), scope=scope
        )
        token.observe(self)

    def begin(self, call: PendingCall | PendingFuture) -> int:
        """The number of a call that is about to be made."""
        number = next(self._numbers)
        if isinstance(call, PendingCall):
            self._calls[number] = call
        else:
            self._futures[number] = call
        return number

    def wait(self, call: PendingCall, deadline: float | None) -> None:
        """Wait for the reply, at most until the monotonic clock shows ``deadline``."""
        while call.reply is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            if self._receiving.acquire(blocking=False):
                try:
                    self._receive(lambda: call.reply is not None, deadline)
                finally:
                    self._receiving.release()
            else:
                call.wait(left)

    def end(self, number: int) -> None:
        """Nobody waits for this call any more; if its reply comes, it is dropped."""
        self._calls.pop(number, None)
        self._futures.pop(number, None)
        self._wake_next_receiver()

    def receive_future(self) -> None:
        """One more future has been begun and sent: receive for it."""
        if self.closed:  # since it was begun, and nobody receives any more
            self._fail_all(f"the client of service {self._service} was closed")
        self._submitted.put(None)
        with self._starting:
            if self._receiver is None:
                name = f"{self._service}-replies"
                self._receiver = threading.Thread(
                    target=self._receive_for_futures, name=name, daemon=True
                )
                self._receiver.start()

    def close(self) -> None:
        """Give up the queue. Calls that have no reply yet fail with :class:`ServiceLost`."""
        self._give_up(f"the client of service {self._service} was closed")

    def service_ended(self) -> None:
        """No request is taken any more, and no reply comes but those that are there."""
        with suppress(ShutDown, QueueClosed, BackendUnavailable):
            # Its owner was killed, and callers may be waiting for room.
            self._requests.shutdown(immediate=True)
        self._lose(f"service {self._service} has ended")

    def service_unreachable(self, error: Exception) -> None:
        """Nobody would tell the callers of this process that the service has ended."""
        self._lose(f"service {self._service} is out of reach: {error}")

    def _lose(self, why: str) -> None:
        self._lost = why
        # A full queue wakes the receiver as well.
        with suppress(Full, ShutDown, QueueClosed, BackendUnavailable):
            self.queue.put(tuple(WAKE_UP), block=False)

    def _wake_next_receiver(self) -> None:
        """Let another caller receive, if none does."""
        if self._receiving.locked():
            return
        for call in list(self._calls.values()):
            if call.reply is None:
                call.wake()
                return

    def _receive(self, enough: Callable[[], bool], deadline: float | None) -> None:
        """Hand replies to the calls they answer, until it is enough or time is up."""
        while True:
            try:
                self._settle_received()
                if enough():
                    return
                seconds = None if deadline is None else deadline - time.monotonic()
                if seconds is not None and seconds <= 0:
                    return
                wait = not self._lost
                self._received.extend(self.queue.get_many(block=wait, timeout=seconds))
            except Empty:
                if self._lost:
                    self._fail_all(self._lost)
            except (ShutDown, QueueClosed, BackendUnavailable):
                self._give_up(
                    f"the replies of service {self._service} were closed: by this process, or by "
                    "the service because nobody read them"
                )
            except Exception as error:  # a reply that cannot be decoded: of which call, is unknown
                _logger.exception("cannot receive the replies of service %s", self._service)
                self._give_up(f"cannot receive the replies of service {self._service}: {error!r}")

    def _settle_received(self) -> None:
        while self._received:
            self._settle(Reply(*self._received.popleft()))

    def _settle(self, reply: Reply) -> None:
        number = reply.number
        # one that is of neither has been given up: it came too late
        call = self._calls.pop(number, None) or self._futures.pop(number, None)
        if call is not None:
            call.settle(reply)

    def _give_up(self, why: str) -> None:
        """Fail all calls; the next one opens another queue."""
        self.closed = True
        self._fail_all(why)
        with suppress(QueueClosed, BackendUnavailable):
            self.queue.shutdown(immediate=True)  # tells the receiver, and the service
        self.queue.close()

    def _fail_all(self, why: str) -> None:
        for number in [*self._calls, *self._futures]:
            self._settle(Reply(number, NOTHING, ServiceLost(why)))

    def _receive_for_futures(self) -> None:
        """Receive as long as there are futures, and a little longer."""
        try:
            while self._await_future():
                with self._receiving:
                    self._receive(lambda: not self._futures, None)
                self._wake_next_receiver()
        except BaseException as error:  # whatever it is, nobody else would receive
            _logger.exception("the receiver of futures of service %s failed", self._service)
            self._give_up(f"cannot receive the replies of service {self._service}: {error!r}")

    def _await_future(self) -> bool:
        """Whether there is a future to receive for; if not, this thread has to end."""
        try:
            self._submitted.get(timeout=_LINGER_SECONDS)
        except queue.Empty:
            with self._starting:
                if not self._futures:
                    self._receiver = None
                    return False
        return True
