"""Callers: the processes that call a service, for as long as they live and make calls."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from itertools import islice
from typing import Any

from sagequeue.protocol import Queue
from sageruntime.service.caller import Caller
from sageruntime.service.messages import parse_caller

# How long the queue of a caller that makes no calls is kept open.
_IDLE_SECONDS = 10.0

# How often, and how many at a time, callers are checked for being gone or idle.
_CHECK_SECONDS = 1.0
_CHECK_AT_ONCE = 8


class Callers:
    """Opens the queue of each caller once, and gives it up when the caller is gone or idle.

    Some are checked whenever a new caller comes, and every so often. Any thread may use it.

    Args:
        logger: told of callers that are given up.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._callers: dict[str, Caller] = {}  # those checked least recently first
        # With those that are given up and still have replies to come.
        self._alive: weakref.WeakSet[Caller] = weakref.WeakSet()
        self._next_check = 0.0
        self._lock = threading.Lock()

    def find(self, reply_to: str | Queue[Any]) -> Caller:
        """The caller that a request names.

        Raises:
            QueueError: its queue cannot be opened; most often because the caller is gone.
            ValueError: it names a queue that is not a caller's.
        """
        # The first handle is kept: one that comes and goes with each request costs Ray more than
        # the reply does.
        name = reply_to if isinstance(reply_to, str) else reply_to.name
        caller = self._callers.get(name)
        if caller is None:
            caller = self._add(name, reply_to)
        caller.called_at = time.monotonic()
        return caller

    def release_unused(self) -> None:
        """Give up the queues of some callers that are gone or idle, if it is time to look."""
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + _CHECK_SECONDS
            with self._lock:
                self._check_some()

    def close(self) -> None:
        """Send what is left, and give up all queues that were opened here."""
        with self._lock:
            callers = list(self._alive)
            self._callers = {}
        for caller in callers:
            caller.flush()

    def _add(self, name: str, reply_to: str | Queue[Any]) -> Caller:
        with self._lock:
            self._check_some()
            caller = self._callers.get(name)
            if caller is None:
                caller = self._callers[name] = self._open(reply_to)
                self._alive.add(caller)
            return caller

    def _open(self, reply_to: str | Queue[Any]) -> Caller:
        if not isinstance(reply_to, str):
            return Caller(reply_to, None, self._logger)
        from sagequeue import SageQueue

        pid = parse_caller(reply_to)
        return Caller(SageQueue.attach(reply_to), pid, self._logger)

    def _check_some(self) -> None:
        now = time.monotonic()
        for name in list(islice(self._callers, _CHECK_AT_ONCE)):
            caller = self._callers.pop(name)
            if caller.has_backlog:
                self._callers[name] = caller
            elif caller.is_gone:
                caller.queue.close()
            elif now - caller.called_at < _IDLE_SECONDS:
                self._callers[name] = caller
            # An idle one may wait for a reply: its queue is closed when no request refers to it.
