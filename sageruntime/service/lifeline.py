"""Lifeline: how callers in any process learn that a service is no more."""

from __future__ import annotations

import os
from typing import Any

from sagequeue import create_queue
from sagequeue.errors import BackendUnavailable, Empty, QueueClosed, ShutDown
from sagequeue.protocol import Queue
from sageruntime.task.base_task import Scope

MAX_PARTICIPANTS = 1024
"""Processes that may hold a service's queue: its own, and those of its callers."""


class Lifeline:
    """Holds until its owner cuts it or dies. It travels to other processes as its queue does.

    It is a queue that nothing is ever put in: being shut down reaches everybody who has a handle.
    The requests' own queue does not serve: it is shut down while a service that drains still
    answers.

    Args:
        name: the queue's name.
        scope: how far away those may be who look at it.
    """

    def __init__(self, name: str, scope: Scope) -> None:
        self._queue: Queue[Any] = create_queue(
            name=name, maxsize=1, scope=scope, max_participants=MAX_PARTICIPANTS
        )
        self._owner = os.getpid()

    @property
    def is_cut(self) -> bool:
        """Whether the service is no more."""
        try:
            self._queue.get_nowait()
        except Empty:
            return not self._has_owner()
        except (ShutDown, QueueClosed, BackendUnavailable):
            return True
        raise AssertionError("something was put in a lifeline")

    def cut(self) -> None:
        """Say that the service is no more."""
        self._queue.shutdown()

    def close(self) -> None:
        """Give up this handle."""
        self._queue.close()

    def _has_owner(self) -> bool:
        from sagequeue import SageQueue

        return not isinstance(self._queue, SageQueue) or self._owner in self._queue.participants()
