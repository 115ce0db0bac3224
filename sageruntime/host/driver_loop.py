"""DriverLoop: the one thread in which this process follows the tasks that it has started."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from sageruntime.core.futures import as_exception, settle
from sageruntime.errors import TaskStateError

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class DriverLoop:
    """An event loop in a thread of its own. What task handles own is touched there only.

    Nothing that runs there may wait. What has to (to start a process, to write a checkpoint) is
    done in other threads, by :meth:`run_elsewhere`, and goes on in the loop.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="sageruntime-driver", daemon=True)
        self._elsewhere = ThreadPoolExecutor(8, thread_name_prefix="sageruntime-driver")
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the loop's."""
        return threading.current_thread() is self._thread

    @property
    def asyncio_loop(self) -> asyncio.AbstractEventLoop:
        """The loop itself, for transports."""
        return self._loop

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function returns or raises, called in the loop; waits for it.

        Raises:
            TaskStateError: this is a forked child of the process that the loop runs in.
        """
        if os.getpid() != self._pid:
            raise TaskStateError(
                f"this belongs to process {self._pid}, which has forked process {os.getpid()}; "
                "use it there"
            )
        if self.is_current:
            return function(*arguments)
        future: Future[T] = Future()
        self._loop.call_soon_threadsafe(settle, future, partial(function, *arguments))
        return future.result()

    def post(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the loop, in the order of posting."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def call_later(
        self, seconds: float, function: Callable[..., object], *arguments: Any
    ) -> asyncio.TimerHandle:
        """Call a function after some time; to be called in the loop. The timer can be cancelled."""
        return self._loop.call_later(seconds, function, *arguments)

    def run_elsewhere(
        self,
        function: Callable[[], T],
        then: Callable[[T], object],
        on_error: Callable[[Exception], object],
        executor: Executor | None = None,
    ) -> bool:
        """Call a function that may take long in another thread, and go on in the loop.

        Args:
            function: what is called.
            then: is called in the loop with what it returns.
            on_error: is called there with what it raises.
            executor: has the thread; by default there are some for everything.

        Returns:
            Whether that is possible; it is not when the interpreter is ending.
        """

        def run() -> None:
            try:
                result = function()
            except BaseException as error:
                self.post(on_error, as_exception(error))
            else:
                self.post(then, result)

        try:
            (executor or self._elsewhere).submit(run)
        except RuntimeError:
            return False
        return True

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(_report)
        self._loop.run_forever()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback has raised: a fault of ours, which must be seen and must not stop the others."""
    _logger.error(
        "the driver's event loop: %s", context.get("message"), exc_info=context.get("exception")
    )


_lock = threading.Lock()
_driver_loop: DriverLoop | None = None


def driver_loop() -> DriverLoop:
    """The loop of this process, which is made when it is first asked for."""
    global _driver_loop
    with _lock:
        if _driver_loop is None:
            _driver_loop = DriverLoop()
        return _driver_loop


def _forget() -> None:
    """The loop of the parent does not run in a forked child, and its lock may be held for ever."""
    global _lock, _driver_loop
    _lock, _driver_loop = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)
