"""BaseOperator: what a task does with each packet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from sageruntime.communication.router import BaseRouter, Packet
from sageruntime.context import TaskContext
from sageruntime.core.task_view import TaskView
from sageruntime.errors import CheckpointError, OperatorError
from sageruntime.operator.results import Results


class BaseOperator(ABC):
    """Base of every operator. Its methods are called in this order, each in the task's host:

    ``open`` once, ``restore`` once if there is a state to begin with (after ``rescale`` if the
    stage had another number of instances when it was taken), ``process`` for every packet,
    ``finish`` once if every input ended without an error, ``close`` once in any case. ``snapshot``
    and ``checkpoint_completed`` may come between two packets. Only ``process`` may be called from
    several threads at once, when the task has more than one worker thread; then packets of equal
    key still come one after the other.

    ``process`` may be a coroutine function: then up to ``max_concurrency`` packets are worked on at
    a time, those of equal key one after the other, and ``open``, ``finish`` and ``close`` may be
    coroutine functions, too, on the same event loop.

    Attributes:
        ctx: the task instance this operator works for.
        task: its task, set before ``open``.
        router: its task's router, set before ``open``. Results are better returned than routed
            from here: returned results are lost or kept together with their packet.
    """

    ctx: TaskContext
    task: TaskView
    router: BaseRouter

    def inject_router(self, router: BaseRouter) -> None:
        """Give the operator its task's router."""
        self.router = router

    def call_service(self, name: str) -> Any:
        """The :class:`~sageruntime.service.ServiceClient` of a service of the job:
        ``self.call_service("embedder").embed(text)``.

        Raises:
            ServiceNotFound: the job has no service of that name.
        """
        return self.ctx.services[name]

    def open(self) -> Any:
        """Acquire what is needed to process: files, connections, models."""
        return None

    @abstractmethod
    def process(self, packet: Packet) -> Any:
        """Handle one packet, which may be changed and returned, and return the results.

        An exception goes to the task's error policy; nothing of this packet is sent then.

        Returns:
            A packet, an iterable of packets, or None; a coroutine of one of them.
        """

    def snapshot(self) -> Any:
        """The state that a new operator needs to go on from here; it is pickled at once.

        None says that there is nothing to keep.
        """
        return None

    def restore(self, state: Any) -> None:
        """Go on from what :meth:`snapshot` returned, in this run of the job or an earlier one."""
        raise OperatorError(f"{type(self).__qualname__} has a snapshot() but no restore(); add it")

    def rescale(self, states: list[Any]) -> Any:
        """What to :meth:`restore` of the states of a stage that had more instances, or fewer.

        Every instance is given all of them, and returns its own part: for a state by key, that of
        the keys it ``ctx.owns``. It must be the same part each time.

        Args:
            states: what :meth:`snapshot` of each instance returned, in order of index.

        Returns:
            A state as of :meth:`snapshot`; None when there is none to begin with.
        """
        raise CheckpointError(
            f"the checkpoint has {len(states)} instances of {self.ctx.stage}, the job has "
            f"{self.ctx.parallelism}, and {type(self).__qualname__} has no rescale(); add it, or "
            "run the job with the parallelism it had"
        )

    def checkpoint_completed(self) -> None:  # noqa: B027
        """What :meth:`snapshot` returned last is kept for good: the job never goes back before it.

        It may be called again for the same snapshot after a restart.
        """

    def finish(self) -> Any:
        """Return the results that had to wait for the end of the input, as ``process`` does."""
        return None

    def close(self) -> Any:
        """Release what ``open`` acquired."""
        return None


class BatchOperator(BaseOperator):
    """Base of operators that work on many packets in one call: a model, a database, a vector sum.

    When :meth:`process_batch` raises, nothing of the batch is sent and each of its packets is
    tried by itself; so raise before changing the state.
    """

    @abstractmethod
    def process_batch(self, packets: list[Packet]) -> Results:
        """Handle the packets of a batch, at most ``batch_size``, and return the results."""

    def process(self, packet: Packet) -> Results:
        """Handle one packet as a batch of its own."""
        return self.process_batch([packet])
