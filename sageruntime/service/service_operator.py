"""ServiceOperator: answers the requests of a service, in whatever host its task has."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from sagequeue.errors import DecodeError, Empty, EncodeError, QueueError, ShutDown
from sagequeue.protocol import Queue
from sageruntime.errors import OperatorError, ServiceLost, ServiceMethodNotFound
from sageruntime.naming import what_is_known
from sageruntime.operator import IDLE, SourceOperator
from sageruntime.service.messages import NOTHING, Parcel, Reply, Request, pack, pack_error
from sageruntime.service.outbox import Outbox
from sageruntime.service.service import MakeService, Service, methods_of
from sageruntime.service.taking import Taken, taker_of

# How soon a thread that waits for a request notices that its task is to pause or stop.
_ATTENTION_SECONDS = 0.1

# How often a request is tried when the process that answers it dies.
_ATTEMPTS = 3


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
        self._attempts = _ATTEMPTS if idempotent else 1
        self._service: Service | None = None
        self._others: list[threading.Thread] = []
        # The other threads wait here while the task is paused.
        self._gate = threading.Event()
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
        self._outbox = Outbox(self.ctx.logger)
        self._take = taker_of(self.task.input_buffer, self.ctx.name)
        self._methods = {name: getattr(service, name) for name in methods_of(type(service))}
        if any(map(inspect.iscoroutinefunction, self._methods.values())):
            self._coroutines = _Coroutines(self._concurrency, f"{self.ctx.name}-coroutines")
        self._service = service
        service.open()

    def read(self) -> Iterator[Any]:
        """Answer requests until the input queue is shut down. Yields IDLE only."""
        self._others = [
            threading.Thread(target=self._work_beside, name=f"{self.ctx.name}-{n}", daemon=True)
            for n in range(1, self._threads)
        ]
        for thread in self._others:
            thread.start()
        self._gate.set()
        while self._answer_next():
            if self._others:
                self._gate.clear()
            yield IDLE
            self._gate.set()
            if self._failure is not None:
                raise self._failure
        self._finish_requests()

    def close(self) -> None:
        """Close the service, after the requests in hand."""
        self._finish_requests()
        if self._service is not None:
            self._service.close()
            self._outbox.close()

    def _finish_requests(self) -> None:
        self._ending = True
        self._gate.set()
        for thread in self._others:
            thread.join()
        if self._coroutines is not None:
            self._coroutines.close()

    def _work_beside(self) -> None:
        try:
            while self._gate.wait() and not self._ending and self._answer_next():
                pass
        except BaseException as error:  # whatever it is, the task has to learn of it
            self._failure = error

    def _answer_next(self) -> bool:
        """Answer a request, if one comes soon; return whether more may come."""
        try:
            taken = self._take(_ATTENTION_SECONDS)
        except Empty:
            return True
        except ShutDown:
            return False
        try:
            request = Request(*taken.item)
        except (DecodeError, TypeError) as error:
            self.ctx.logger.error("%s dropped what is no request: %s", self.ctx.name, error)
            taken.release()
            return True
        try:
            reply_queue = self._outbox.queue_for(request.reply_to)
        except QueueError as error:
            self.ctx.logger.debug("%s answers nobody: %s", self.ctx.name, error)
            taken.release()
            return True
        self._answer(_Call(taken, request, reply_queue))
        return True

    def _answer(self, call: _Call) -> None:
        try:
            if call.taken.deliveries >= self._attempts:
                raise ServiceLost(
                    f"a process of service {self.ctx.stage} died while it answered "
                    f"{call.request.method}()"
                )
            method = self._method(call.request.method)
            arguments, options = Parcel(*call.request.arguments).unpack()
            value = method(*arguments, **options)
        except Exception as error:
            self._reply(call, None, error)
            return
        if self._coroutines is not None and inspect.iscoroutine(value):
            self._coroutines.start(self._answer_later(call, value))
        else:
            self._reply(call, value)

    async def _answer_later(self, call: _Call, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            value = await coroutine
        except Exception as error:
            self._reply(call, None, error)
        else:
            self._reply(call, value)

    def _method(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] | None = self._methods.get(name)
        if method is None:
            raise ServiceMethodNotFound(
                f"service {self.ctx.stage} has no method {name!r}; "
                f"{what_is_known(name, self._methods)}"
            )
        return method

    def _reply(self, call: _Call, value: Any, error: BaseException | None = None) -> None:
        number, queue = call.request.number, call.reply_queue
        if error is None:
            try:
                reply = Reply(number, pack(value, queue))
            except EncodeError as cause:
                error = cause
        if error is not None:
            reply = Reply(number, NOTHING, pack_error(error, queue))
        self._outbox.send(queue, reply)
        call.taken.release()
        self._count(call.request, error is not None)

    def _count(self, request: Request, failed: bool) -> None:
        metrics = self.task.metrics
        with self._counting:
            metrics.errors += failed
            metrics.batch_done(1, int(failed), request.sent_at, request.sent_at)


class _Call:
    """A request that is being answered."""

    __slots__ = ("reply_queue", "request", "taken")

    def __init__(self, taken: Taken, request: Request, reply_queue: Queue[Reply]) -> None:
        self.taken = taken
        self.request = request
        self.reply_queue = reply_queue


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
