"""ServiceOperator: answers the requests of a service, in whatever host its task has."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from sagequeue.errors import Empty, QueueNotFound, ShutDown
from sageruntime.core.naming import did_you_mean
from sageruntime.errors import OperatorError, ServiceLost, ServiceMethodNotFound
from sageruntime.operator import IDLE, SourceOperator
from sageruntime.service.caller import Caller
from sageruntime.service.callers import Callers
from sageruntime.service.messages import NOTHING, PickledValue, Reply, Request, pack, pack_error
from sageruntime.service.request_reader import PendingRequest, open_request_reader
from sageruntime.service.service import MakeService, Service, find_methods

# How long one wait for a request lasts. The task that reads this source is paused, stopped and
# asked for checkpoints between two yields only, so that an idle service has to yield that often.
_YIELD_SECONDS = 0.1

# How often a request is tried when the process that answers it dies.
_MAX_ATTEMPTS = 3


class ServiceOperator(SourceOperator):
    """Takes requests from its task's input queue and sends the replies to the callers.

    To its task it is a source, which is handed no packets: each of its threads takes a request,
    answers it and takes the next, so that no request waits behind one that takes long while
    another thread is idle.

    Args:
        make: makes the service.
        threads: how many requests are answered side by side.
        concurrency: how many coroutine methods run side by side.
        idempotent: whether a request is tried again when the process that answers it dies.
    """

    def __init__(self, make: MakeService, threads: int, concurrency: int, idempotent: bool) -> None:
        self._make = make
        self._threads = threads
        self._concurrency = concurrency
        self._attempts = _MAX_ATTEMPTS if idempotent else 1
        self._service: Service | None = None
        self._extra_threads: list[threading.Thread] = []
        self._resumed = threading.Event()  # clear while the task is paused
        self._ending = False
        self._failure: BaseException | None = None
        self._counting = threading.Lock()
        self._coroutines: _Coroutines | None = None

    def open(self) -> None:
        """Make and open the service."""
        service = self._make()
        if not isinstance(service, Service):
            raise OperatorError(
                f"{self._make!r} made a {type(service).__qualname__}; expected a Service"
            )
        service.ctx = self.ctx
        self._callers = Callers(self.ctx.logger)
        self._read_request = open_request_reader(self.task.input_buffer, self.ctx.name)
        self._methods = {name: getattr(service, name) for name in find_methods(type(service))}
        if any(map(inspect.iscoroutinefunction, self._methods.values())):
            self._coroutines = _Coroutines(self._concurrency, f"{self.ctx.name}-coroutines")
        self._service = service
        service.open()

    def read(self) -> Iterator[Any]:
        """Answer requests until the input queue is shut down. Yields IDLE only."""
        self._extra_threads = [
            threading.Thread(target=self._run_extra, name=f"{self.ctx.name}-{n}", daemon=True)
            for n in range(1, self._threads)
        ]
        for thread in self._extra_threads:
            thread.start()
        self._resumed.set()
        while self._answer_next():
            if self._extra_threads:
                self._resumed.clear()
            yield IDLE
            self._resumed.set()
            if self._failure is not None:
                raise self._failure
        self._finish_requests()

    def close(self) -> None:
        """Close the service, after the requests in hand."""
        self._finish_requests()
        if self._service is not None:
            self._service.close()
            self._callers.close()

    def _finish_requests(self) -> None:
        self._ending = True
        self._resumed.set()
        for thread in self._extra_threads:
            thread.join()
        if self._coroutines is not None:
            self._coroutines.close()

    def _run_extra(self) -> None:
        try:
            while self._resumed.wait() and not self._ending and self._answer_next():
                pass
        except BaseException as error:  # whatever it is, the task has to learn of it
            self._failure = error

    def _answer_next(self) -> bool:
        """Answer a request, if one comes soon; return whether more may come."""
        self._callers.release_unused()
        try:
            pending = self._read_request(_YIELD_SECONDS)
        except Empty:
            return True
        except ShutDown:
            return False
        call = self._open_call(pending)
        if call is None:
            pending.release()
        else:
            self._answer(call)
        return True

    def _open_call(self, pending: PendingRequest) -> _Call | None:
        """The call that a request asks for; None if there is nobody to answer."""
        try:
            request = Request(*pending.item)
            return _Call(pending, request, self._callers.find(request.reply_to))
        except QueueNotFound as error:
            self.ctx.logger.debug("%s: a caller is gone: %s", self.ctx.name, error)
        except Exception as error:  # most likely it was put by somebody who is no client
            self.ctx.logger.error("%s dropped a request: %r", self.ctx.name, error)
        return None

    def _answer(self, call: _Call) -> None:
        try:
            if call.pending.deliveries >= self._attempts:
                raise ServiceLost(
                    f"a process of service {self.ctx.stage} died while it answered "
                    f"{call.request.method}()"
                )
            method = self._method(call.request.method)
            arguments, options = PickledValue(*call.request.arguments).unpack()
            value = method(*arguments, **options)
        except BaseException as error:  # it is the caller's, and does not end the service
            self._reply(call, None, error)
            return
        if self._coroutines is not None and inspect.iscoroutine(value):
            self._coroutines.start(self._answer_later(call, value))
        else:
            self._reply(call, value)

    async def _answer_later(self, call: _Call, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            value = await coroutine
        except BaseException as error:  # CancelledError, too, which is not an Exception
            self._reply(call, None, error)
        else:
            self._reply(call, value)

    def _method(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] | None = self._methods.get(name)
        if method is None:
            raise ServiceMethodNotFound(
                f"service {self.ctx.stage} has no method {name!r}; "
                f"{did_you_mean(name, self._methods)}"
            )
        return method

    def _reply(self, call: _Call, value: Any, error: BaseException | None = None) -> None:
        number, queue = call.request.number, call.caller.queue
        if error is None:
            try:
                reply = Reply(number, pack(value, queue))
            except BaseException as cause:  # raised by the value's own __reduce__
                error = cause
        if error is not None:
            reply = Reply(number, NOTHING, pack_error(error, queue))
        self._count(call.request, error is not None)
        call.caller.send(reply, call.pending)

    def _count(self, request: Request, failed: bool) -> None:
        metrics = self.task.metrics
        with self._counting:
            metrics.errors += failed
            metrics.batch_done(1, int(failed), request.sent_at, request.sent_at)


@dataclass(slots=True)
class _Call:
    """A request that is being answered."""

    pending: PendingRequest
    request: Request
    caller: Caller


class _Coroutines:
    """Runs coroutines side by side in a thread of their own."""

    def __init__(self, concurrency: int, name: str) -> None:
        self._permits = threading.BoundedSemaphore(concurrency)
        self._concurrency = concurrency
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run one more, when fewer than the limit are running."""
        self._permits.acquire()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.add_done_callback(lambda _: self._permits.release())

    def close(self) -> None:
        """Wait for all of them."""
        if self._loop.is_closed():
            return
        for _ in range(self._concurrency):
            self._permits.acquire()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
