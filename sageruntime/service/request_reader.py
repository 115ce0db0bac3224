"""How a service takes requests, so that one whose process dies may be taken again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sagequeue.protocol import Queue
from sagequeue.ray_queue import RayQueue
from sageruntime.runner.inbox import make_claimant


class PendingRequest(Protocol):
    """A request that was taken and is not answered yet."""

    @property
    def item(self) -> tuple[Any, ...]:
        """The fields of the request; DecodeError when they cannot be decoded."""
        ...

    @property
    def deliveries(self) -> int:
        """How often it was taken before by a process that did not answer it."""
        ...

    def release(self) -> None:
        """It has been answered."""
        ...


ReadRequest = Callable[[float], PendingRequest]
"""Takes the next request, waiting at most some seconds; raises what ``get`` raises."""


class _VolatileRequest:
    """A request that is lost with the process that took it."""

    deliveries = 0

    def __init__(self, item: tuple[Any, ...]) -> None:
        self.item = item

    def release(self) -> None:
        pass


def open_request_reader(queue: Queue[Any], task: str) -> ReadRequest:
    """How a task takes requests of a queue: claimed until they are answered, if it has claims."""
    if queue.backend == "sage":
        from sagequeue import SageQueue

        assert isinstance(queue, SageQueue)
        return lambda seconds: queue.claim(timeout=seconds)
    if isinstance(queue, RayQueue):
        claimant = make_claimant(task)
        return lambda seconds: queue.claim(claimant, timeout=seconds)
    return lambda seconds: _VolatileRequest(queue.get(timeout=seconds))
