"""ServiceClient: calls a service, from any thread and process."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import Future
from typing import Any

from sagequeue.closing import Closing
from sagequeue.errors import BackendUnavailable, Full, QueueClosed, ShutDown
from sagequeue.protocol import Queue
from sageruntime.core.naming import did_you_mean
from sageruntime.core.scope import Scope
from sageruntime.errors import ServiceLost, ServiceMethodNotFound, ServiceTimeout
from sageruntime.service.liveness_token import LivenessToken
from sageruntime.service.messages import Request, pack
from sageruntime.service.replies import PendingCall, PendingFuture, Replies


class ServiceMethod:
    """One method of a service, to be called in one of three ways."""

    def __init__(self, client: ServiceClient, name: str) -> None:
        self._client = client
        self._name = name

    def __call__(self, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Call the method and return what it returns.

        Args:
            args, kwargs: its arguments.
            timeout: seconds to wait at most; None waits for as long as there is the service.

        Raises:
            ServiceTimeout: there is no answer in time.
            ServiceLost: the service has ended, or died over this call.
            ServiceMethodNotFound: the service has no such method.
            EncodeError: the arguments or the result do not pickle.
            Exception: whatever the method raises; its traceback there is among the causes.
        """
        return self._client._call(self._name, args, kwargs, timeout)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the method and return at once; the future has the result, or what was raised.

        Many calls may be pending. It waits only while the service's queue is full. A future
        that is cancelled drops the result; the method may run nevertheless.
        """
        return self._client._submit(self._name, args, kwargs)

    async def aio(self, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Call the method from a coroutine; returns and raises what a plain call does."""
        call = asyncio.ensure_future(self._answer(args, kwargs))
        try:
            done, _ = await asyncio.wait({call}, timeout=timeout)
        finally:
            call.cancel()  # if it is not done
        if not done:
            raise self._client._timed_out(self._name, timeout)
        return call.result()

    async def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            future = self._client._submit(self._name, args, kwargs, wait=False)
        except Full:
            future = await asyncio.to_thread(self.submit, *args, **kwargs)
        return await asyncio.wrap_future(future)

    def __repr__(self) -> str:
        return f"<method {self._name} of {self._client!r}>"


class ServiceClient(Closing):
    """Calls a service: ``client.embed("text", timeout=5)``. Its attributes are the methods.

    It may be used from many threads, and travels to other processes as the service's queue does.

    Args:
        name: the service's name.
        requests: the service's input queue.
        scope: how far away the service may be.
        token: tells the end of the service.
        methods: the names of the methods, if they are known here.
    """

    def __init__(
        self,
        name: str,
        requests: Queue[Any],
        scope: Scope,
        token: LivenessToken,
        methods: frozenset[str] | None,
    ) -> None:
        self._name = name
        self._requests = requests
        self._scope = scope
        self._token = token
        self._methods = methods
        self._replies: Replies | None = None
        self._process = 0
        self._opening = threading.Lock()

    def __getattr__(self, name: str) -> ServiceMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._methods is not None and name not in self._methods:
            raise ServiceMethodNotFound(
                f"service {self._name} has no method {name!r}; {did_you_mean(name, self._methods)}"
            )
        return ServiceMethod(self, name)

    def close(self) -> None:
        """Give up waiting for replies: calls under way raise :class:`ServiceLost`.

        A call after that opens another queue for replies.
        """
        with self._opening:
            if self._replies is not None and self._process == os.getpid():
                self._replies.close()
            self._replies = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            ServiceClient,
            (self._name, self._requests, self._scope, self._token, self._methods),
        )

    def __repr__(self) -> str:
        return f"<client of service {self._name}>"

    def _call(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
    ) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        replies = self._open_replies()
        call = PendingCall()
        number = replies.begin(call)
        try:
            self._send(self._request(number, method, (args, kwargs), replies), deadline)
            replies.wait(call, deadline)
        except Full:
            raise self._timed_out(method, timeout) from None
        finally:
            replies.end(number)
        if call.reply is None:
            raise self._timed_out(method, timeout)
        return call.reply.outcome()

    def _submit(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], wait: bool = True
    ) -> Future[Any]:
        replies = self._open_replies()
        future = PendingFuture()
        number = replies.begin(future)
        try:
            request = self._request(number, method, (args, kwargs), replies)
            self._send(request, None if wait else 0.0)
        except BaseException:
            replies.end(number)
            raise
        replies.receive_future()
        return future

    def _request(
        self, number: int, method: str, arguments: tuple[Any, ...], replies: Replies
    ) -> Request:
        queue = replies.queue
        reply_to = queue.name if queue.backend == "sage" else queue
        return Request(number, method, pack(arguments, self._requests), reply_to, time.time_ns())

    def _send(self, request: Request, deadline: float | None) -> None:
        """Put a request, waiting while the service's queue is full.

        Raises:
            Full: it stays full until the deadline.
            ServiceLost: the service has ended.
        """
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            self._requests.put(tuple(request), timeout=seconds)
        except (ShutDown, QueueClosed, BackendUnavailable):
            raise self._lost() from None

    def _open_replies(self) -> Replies:
        replies = self._replies
        if replies is not None and self._process == os.getpid() and not replies.closed:
            return replies
        with self._opening:
            if self._replies is None or self._process != os.getpid() or self._replies.closed:
                self._replies = Replies(self._name, self._requests, self._scope, self._token)
                self._process = os.getpid()
            return self._replies

    def _lost(self) -> ServiceLost:
        return ServiceLost(f"service {self._name} has ended and takes no more calls")

    def _timed_out(self, method: str, timeout: float | None) -> ServiceTimeout:
        return ServiceTimeout(f"{self._name}.{method}() was not answered within {timeout:g} s")
