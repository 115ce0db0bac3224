"""BaseOperator: what a task does with each packet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sageruntime.communication.router import BaseRouter, Packet
from sageruntime.context import TaskContext

if TYPE_CHECKING:
    from sageruntime.task.base_task import BaseTask

Results = Packet | Iterable[Packet] | None
"""What ``process`` may return: one packet, several, or nothing."""


class BaseOperator(ABC):
    """Base of every operator. Its methods are called in this order, each in the task's host:

    ``open`` once, ``process`` for every packet, ``finish`` once if every input ended without an
    error, ``close`` once in any case. Only ``process`` may be called from several threads at once,
    when the task has more than one worker thread; then packets of equal key still come one after
    the other.

    Attributes:
        ctx: the task instance this operator works for.
        task: its task, set before ``open``.
        router: its task's router, set before ``open``. Results are better returned than routed
            from here: returned results are lost or kept together with their packet.
    """

    ctx: TaskContext
    task: BaseTask
    router: BaseRouter

    def inject_router(self, router: BaseRouter) -> None:
        """Give the operator its task's router."""
        self.router = router

    def open(self) -> None:  # noqa: B027
        """Acquire what is needed to process: files, connections, models."""

    @abstractmethod
    def process(self, packet: Packet) -> Results:
        """Handle one packet, which may be changed and returned, and return the results.

        An exception goes to the task's error policy; nothing of this packet is sent then.
        """

    def finish(self) -> Results:
        """Return the results that had to wait for the end of the input."""
        return None

    def close(self) -> None:  # noqa: B027
        """Release what ``open`` acquired."""
