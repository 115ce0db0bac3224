"""Worker: the loop that owns a task's operator and the order of events.

It is the same in every host. What comes from upstream travels in the data's order; what others
ask of the worker (to pause, to halt, to take a checkpoint) it does between two messages.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import cloudpickle

from sageruntime.communication.router import BaseRouter, Packet
from sageruntime.errors import CheckpointError, TaskCancelled, TaskHalted
from sageruntime.metrics import TaskMetrics
from sageruntime.operator import BaseOperator, SinkOperator
from sageruntime.operator.results import packets_of
from sageruntime.recovery.checkpoint import LAST_STATE
from sageruntime.recovery.rescaling import FormerStates
from sageruntime.task.calls import Calls
from sageruntime.task.error_policy import ErrorHandler
from sageruntime.task.options import TaskOptions

if TYPE_CHECKING:
    from sageruntime.tracing.batch_tracer import BatchTracer


class WorkerEvents(Protocol):
    """What a worker tells its task, from its own thread."""

    def draining(self) -> None:
        """The input has ended; the last results are being sent."""

    def snapshot_taken(self, checkpoint: int, state: bytes) -> None:
        """The operator's state as of a checkpoint."""

    def checkpoint_wanted(self) -> None:
        """The worker waits for a checkpoint."""

    def exhausted(self) -> None:
        """The source has been read to its end, and waits for :meth:`SourceWorker.release`."""

    def completed(self, state: bytes) -> None:
        """All is processed and sent; this is the last state. The worker waits for ``dismiss``."""

    def failed_outside(self, error: BaseException) -> None:
        """An error came up in another thread than the worker's."""


class Worker(ABC):
    """Runs an operator from open to close.

    Args:
        name: the task's name.
        operator: what to do with the packets.
        calls: how to call it.
        router: where the results go.
        metrics: where to count.
        errors: what to do with packets the operator fails on.
        options: the task's options.
        coordinated: whether the task is part of a job with checkpoints: then it waits for the
            others at its end.
        events: what to tell.
        tracer: makes spans, where traces are wanted.
    """

    def __init__(
        self,
        name: str,
        operator: BaseOperator,
        calls: Calls,
        router: BaseRouter,
        metrics: TaskMetrics,
        errors: ErrorHandler,
        options: TaskOptions,
        coordinated: bool,
        events: WorkerEvents,
        tracer: BatchTracer | None = None,
    ) -> None:
        self.name = name
        self.operator = operator
        self.calls = calls
        self.router = router
        self.metrics = metrics
        self.errors = errors
        self.options = options
        self.coordinated = coordinated
        self.events = events
        self.tracer = tracer
        self.total: int | None = None
        self._asked = threading.Condition(threading.RLock())
        # Set with the others, so that the loop has one flag to look at.
        self._attention = False
        self._cancelled = False
        self._halted = False
        self._paused = False
        self._completed: int | None = None
        self._dismissed = False
        self._latest: int | None = None
        router.on_reject = errors.reject

    def run(self, state: bytes | None = None, over: bool = False) -> Any:
        """Work until the input ends, and return the sink's result.

        Args:
            state: what the operator begins with.
            over: all has been processed and sent already; only the end is missing.

        Raises:
            TaskCancelled: :meth:`cancel` was called.
            TaskHalted: :meth:`halt` was called.
            Exception: the operator's own, or a :class:`RuntimeTaskError`.
        """
        try:
            return self._run(state, over)
        except TaskCancelled:
            if self._halted and not self._cancelled:
                raise TaskHalted(f"{self.name} was halted") from None
            raise

    def pause(self) -> None:
        """Leave off after the message in hand, until :meth:`resume`."""
        with self._asked:
            self._paused = True
            self._call_attention()

    def resume(self) -> None:
        """Go on."""
        with self._asked:
            self._paused = False
            self._call_attention()

    def cancel(self) -> None:
        """Stop after the packet in hand; what waits is not processed."""
        with self._asked:
            self._cancelled = True
            self.router.cancel()
            self._call_attention()

    def halt(self) -> None:
        """Leave off after the packet in hand, to begin again from a checkpoint."""
        with self._asked:
            self._halted = True
            self.router.cancel()
            self._call_attention()

    def checkpoint_completed(self, checkpoint: int) -> None:
        """A checkpoint is complete; it means something if no snapshot was taken since."""
        with self._asked:
            self._completed = checkpoint
            self._call_attention()

    def dismiss(self) -> None:
        """The whole job is over."""
        with self._asked:
            self._dismissed = True
            self._call_attention()

    def wait(self, seconds: float) -> None:
        """Wait, or less when the worker is to stop."""
        with self._asked:
            self._asked.wait_for(lambda: self._cancelled or self._halted, seconds)

    @abstractmethod
    def drain(self) -> None:
        """End the input here: work off what is there, then finish."""

    @abstractmethod
    def take_checkpoint(self, checkpoint: int) -> None:
        """Begin a checkpoint here, if this task is where it begins."""

    def _end_input(self) -> None:  # noqa: B027
        """Nothing will be taken from the input any more, and everything is sent."""

    @abstractmethod
    def _work(self) -> None:
        """Process the input to its end."""

    def _run(self, state: bytes | None, over: bool) -> Any:
        operator, complete = self.operator, self.calls.complete
        result = None
        try:
            complete(operator.open())
            if state is not None:
                self._begin_with(cloudpickle.loads(state))
            if not over:
                self._work()
                self.events.draining()
                self._send_all(packets_of(complete(operator.finish()), operator))
                self.router.flush()
            self._check()
            if isinstance(operator, SinkOperator):
                result = operator.result()
            self.router.stop()
            self._end_input()
            if self.coordinated:
                self.events.completed(self._snapshot(LAST_STATE))
                self._wait_for(lambda: self._dismissed)
        finally:
            complete(operator.close())
            self.calls.close()
            self.errors.summarise()
            if self.tracer is not None:
                self.tracer.close()
        return result

    def _check(self) -> None:
        """Do what was asked meanwhile, if anything was.

        Raises:
            TaskCancelled, TaskHalted: that was to leave off.
        """
        if self._attention:
            self._attend()

    def _attend(self) -> None:
        with self._asked:
            self._await(lambda: not self._paused or self._cancelled or self._halted)
            self._attention = False
            if self._cancelled:
                raise TaskCancelled(f"{self.name} was stopped without draining")
            if self._halted:
                raise TaskHalted(f"{self.name} was halted")
            completed, self._completed = self._completed, None
        if completed is not None and completed == self._latest:
            self._on_checkpoint_completed()

    def _call_attention(self) -> None:
        self._attention = True
        self._asked.notify_all()

    def _wait_for(self, asked: Callable[[], bool]) -> None:
        """Do what is asked until something certain is."""
        while True:
            with self._asked:
                self._await(lambda: self._attention or asked())
                certain = asked()
            self._check()
            if certain:
                return

    def _await(self, asked: Callable[[], bool]) -> None:
        begun = time.perf_counter()
        self._asked.wait_for(asked)
        self.metrics.waiting += time.perf_counter() - begun

    def _on_checkpoint_completed(self) -> None:
        self.operator.checkpoint_completed()

    def _snapshot(self, checkpoint: int) -> bytes:
        self._latest = checkpoint
        state = self._get_state()
        try:
            data: bytes = cloudpickle.dumps(state)
        except Exception as error:
            raise CheckpointError(
                f"{self.name}: what snapshot() returned does not pickle: {error}; return plain data"
            ) from error
        return data

    def _begin_with(self, state: Any) -> None:
        if isinstance(state, FormerStates):
            states = [cloudpickle.loads(one) for one in state.states]
            known = any(one is not None for one in states)
            state = self.operator.rescale(states) if known else None
        self._set_state(state)

    def _get_state(self) -> Any:
        return self.operator.snapshot()

    def _set_state(self, state: Any) -> None:
        if state is not None:
            self.operator.restore(state)

    def _send_all(self, packets: Iterator[Packet]) -> None:
        while part := list(islice(packets, self.options.max_buffer_size)):
            self._check()
            if self.calls.plugins is not None:
                part = self.calls.plugins.after([], part, self.operator)
            self.router.route_batch(part)
