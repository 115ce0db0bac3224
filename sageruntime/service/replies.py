"""Replies: where the answers to the calls of one process arrive."""

from __future__ import annotations

import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import count
from typing import Any

from sagequeue import create_queue
from sagequeue.errors import BackendUnavailable, Empty, QueueClosed, ShutDown
from sagequeue.protocol import Queue
from sageruntime.errors import ServiceLost
from sageruntime.service.lifeline import Lifeline
from sageruntime.service.messages import NOTHING, Reply
from sageruntime.task.base_task import Scope

LOOK_SECONDS = 0.1
"""How often somebody who waits for a service looks whether there still is one."""


class PendingCall:
    """A call whose caller's thread waits for the reply."""

    __slots__ = ("_woken", "reply")

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()

    def settle(self, reply: Reply) -> None:
        """Here is the reply."""
        self.reply = reply
        self._woken.put(None)

    def wake(self) -> None:
        """Look again who receives."""
        self._woken.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for :meth:`settle` or :meth:`wake`."""
        try:
            self._woken.get(timeout=seconds)
        except queue.Empty:
            return


class PendingFuture(Future[Any]):
    """A call whose caller goes on meanwhile."""

    def settle(self, reply: Reply) -> None:
        """Here is the reply; it is dropped if the call was cancelled."""
        if not self.set_running_or_notify_cancel():
            return
        try:
            value = reply.outcome()
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(value)


class Replies:
    """One queue for the replies to all calls of this process, from any thread.

    There is no thread that waits for replies and wakes the callers: one of the callers that wait
    receives for all, and when it has its own reply another goes on (leader and followers). That
    saves a change of threads with every call. Only calls that nobody waits for, futures, have a
    thread to receive for them.

    Args:
        service: the service's name.
        requests: the name of its input queue.
        scope: how far away the service may be.
        lifeline: tells the end of the service.
    """

    def __init__(self, service: str, requests: str, scope: Scope, lifeline: Lifeline) -> None:
        self._service = service
        self._lifeline = lifeline
        self._calls: dict[int, PendingCall] = {}
        self._futures: dict[int, PendingFuture] = {}
        self._numbers = count(1)
        self._receiving = threading.Lock()
        self._submitted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._receiver: threading.Thread | None = None
        self.closed = False
        """Whether a new call needs new Replies."""
        self.queue: Queue[Any] = create_queue(
            name=f"{requests}-replies-{os.getpid()}-{secrets.token_hex(4)}", scope=scope
        )

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
            left = LOOK_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return
            if self._receiving.acquire(blocking=False):
                try:
                    self._receive(lambda: call.reply is not None, deadline)
                finally:
                    self._receiving.release()
            else:
                call.wait(min(left, LOOK_SECONDS))

    def end(self, number: int) -> None:
        """Nobody waits for this call any more; if its reply comes, it is dropped."""
        self._calls.pop(number, None)
        self._futures.pop(number, None)
        self._pass_on()

    def receive_future(self) -> None:
        """One more future has been begun and sent: receive for it."""
        if self.closed:  # meanwhile, and nobody receives any more
            self._fail_all(f"the client of service {self._service} was closed")
        self._submitted.put(None)
        if self._receiver is None:
            with self._starting:
                if self._receiver is None:
                    name = f"{self._service}-replies"
                    self._receiver = threading.Thread(target=self._follow, name=name, daemon=True)
                    self._receiver.start()

    def close(self) -> None:
        """Give up the queue. Calls that have no reply yet fail with :class:`ServiceLost`."""
        self.closed = True
        try:
            self.queue.shutdown(immediate=True)
        except (QueueClosed, BackendUnavailable):
            return
        self._submitted.put(None)
        with self._receiving:
            self._fail_all(f"the client of service {self._service} was closed")
            self.queue.close()

    def _pass_on(self) -> None:
        """Let another caller receive, if none does."""
        if self._receiving.locked():
            return
        for call in list(self._calls.values()):
            if call.reply is None:
                call.wake()
                return

    def _receive(self, enough: Callable[[], bool], deadline: float | None) -> None:
        """Hand replies to the calls they answer, until it is enough or time is up."""
        while not enough():
            seconds = LOOK_SECONDS
            if deadline is not None:
                seconds = min(seconds, deadline - time.monotonic())
                if seconds <= 0:
                    return
            try:
                self._settle(self.queue.get_many(timeout=seconds))
            except Empty:
                if self._lifeline.is_cut:
                    self._end()
            except (ShutDown, QueueClosed, BackendUnavailable):
                self.closed = True
                self._fail_all(
                    f"the replies of service {self._service} were closed: by this process, or by "
                    "the service because nobody read them"
                )

    def _settle(self, replies: Iterable[tuple[Any, ...]]) -> None:
        for fields in replies:
            number = fields[0]
            # one that is of neither has been given up: it came too late
            call = self._calls.pop(number, None) or self._futures.pop(number, None)
            if call is not None:
                call.settle(Reply(*fields))

    def _end(self) -> None:
        """The service is no more; what it has answered before its end is there by now."""
        try:
            while True:
                self._settle(self.queue.get_many(block=False))
        except (Empty, ShutDown, QueueClosed, BackendUnavailable):
            self._fail_all(f"service {self._service} has ended")

    def _fail_all(self, why: str) -> None:
        for number in [*self._calls, *self._futures]:
            self._settle([Reply(number, NOTHING, ServiceLost(why))])

    def _follow(self) -> None:
        """Receive for the futures, while there are any."""
        while not self.closed:
            self._submitted.get()
            with self._receiving:
                self._receive(lambda: not self._futures, None)
            self._pass_on()
