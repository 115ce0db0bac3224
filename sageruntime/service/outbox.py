"""Outbox: sends replies to the queues of the callers."""

from __future__ import annotations

import logging
import threading
from typing import Any

from sagequeue.errors import BackendUnavailable, Full, QueueClosed, QueueError, ShutDown
from sagequeue.protocol import Queue
from sageruntime.service.messages import NOTHING, Reply
from sageruntime.host.packed_error import PackedError

# How long a caller's queue may stay full before the caller is given up.
_PATIENCE_SECONDS = 5.0


class Outbox:
    """Opens each caller's queue once. Any thread may send.

    Args:
        logger: told of callers that are given up.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._opened: dict[str, Queue[Any]] = {}
        self._lock = threading.Lock()

    def queue_for(self, reply_to: str | Queue[Any]) -> Queue[Any]:
        """The queue that a request names.

        Raises:
            QueueError: it cannot be opened; most often because the caller is gone.
        """
        if isinstance(reply_to, str):
            queue = self._opened.get(reply_to)
            return queue if queue is not None else self._open(reply_to)
        if reply_to.backend == "ray":
            # A handle that comes and goes with each request costs Ray more than the reply does.
            return self._opened.setdefault(reply_to.name, reply_to)
        return reply_to

    def send(self, queue: Queue[Any], reply: Reply) -> None:
        """Put a reply, or in its place the error when it cannot be put.

        A caller that is gone needs none. One whose queue stays full reads no replies: its queue is
        shut down, so that it learns that it was given up.

        Raises:
            OutOfSharedMemory: there is no room even for the error.
        """
        try:
            queue.put(tuple(reply), timeout=_PATIENCE_SECONDS)
        except (ShutDown, QueueClosed, BackendUnavailable):
            return
        except Full:
            self._logger.warning("gave up a caller that reads no replies from %s", queue.name)
            queue.shutdown(immediate=True)
        except QueueError as error:
            if reply.error is not None:
                raise
            self.send(queue, Reply(reply.number, NOTHING, PackedError.of(error)))

    def close(self) -> None:
        """Give up the queues that were opened here."""
        with self._lock:
            for queue in self._opened.values():
                queue.close()
            self._opened = {}

    def _open(self, name: str) -> Queue[Any]:
        from sagequeue import SageQueue

        with self._lock:
            for other, queue in list(self._opened.items()):
                if isinstance(queue, SageQueue) and queue.is_shutdown:  # its caller has left
                    del self._opened[other]
                    queue.close()
            if name not in self._opened:
                self._opened[name] = SageQueue.attach(name)
            return self._opened[name]
