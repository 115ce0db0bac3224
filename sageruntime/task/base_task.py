"""BaseTask: what every task is, whatever hosts its worker loop."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from sagequeue import create_queue
from sagequeue.errors import ShutDown
from sagequeue.protocol import Queue
from sageruntime.communication.router import BaseRouter, Message, Packet, PacketBatch
from sageruntime.context import TaskContext
from sageruntime.errors import TaskStateError
from sageruntime.factory.operator_factory import OperatorFactory
from sageruntime.metrics import TaskMetrics
from sageruntime.operator import BaseOperator, SourceOperator
from sageruntime.task.error_policy import DeadLetter, ErrorHandler, ErrorPolicy
from sageruntime.task.options import TaskOptions
from sageruntime.task.state import NEXT_STATES, TaskState
from sageruntime.task.status import TaskReport, TaskStatus
from sageruntime.task.worker import MailboxWorker, SourceWorker, Worker

Scope = Literal["auto", "thread", "machine", "cluster"]
Listener = Callable[["BaseTask"], None]


class BaseTask(ABC):
    """An operator with an input queue before it and a router behind it.

    Args:
        runtime_context: the task's identity.
        operator_factory: makes its operator.
        max_buffer_size, queue_maxsize, worker_threads, batch_size, error_policy, monitoring_interval:
            see :class:`~sageruntime.task.options.TaskOptions`.
        queue_scope: how far away the tasks are that send to this one; by default as far as its
            own host can be: ``"thread"``, ``"machine"`` or ``"cluster"``.
        input_buffer: the input queue, if there is one already.
        dead_letters: where the error policy ``dead_letter`` puts packets.

    Raises:
        InvalidOption: an option is out of range.
        Exception: what the operator's constructor raises, for a task that runs here.
    """

    host: ClassVar[str]
    default_scope: ClassVar[Scope]
    runs_here: ClassVar[bool] = True
    """Whether the operator is in this process, and not just its task's handle."""

    operator: BaseOperator
    _worker: Worker

    def __init__(
        self,
        runtime_context: TaskContext,
        operator_factory: OperatorFactory,
        *,
        max_buffer_size: int = 30_000,
        queue_maxsize: int = 50_000,
        worker_threads: int = 1,
        batch_size: int = 100,
        error_policy: ErrorPolicy | str = ErrorPolicy.FAIL,
        monitoring_interval: float = 0.2,
        queue_scope: Scope | None = None,
        input_buffer: Queue[Message] | None = None,
        dead_letters: Queue[DeadLetter] | None = None,
    ) -> None:
        self.ctx = runtime_context
        self.name = runtime_context.name
        self.logger = runtime_context.logger
        self.operator_factory = operator_factory
        self.options = TaskOptions(
            max_buffer_size,
            queue_maxsize,
            worker_threads,
            batch_size,
            ErrorPolicy(error_policy),
            monitoring_interval,
        )
        self.metrics = TaskMetrics()
        self.dead_letters = dead_letters
        self.errors = ErrorHandler(self.ctx, self.options.error_policy, self.metrics, dead_letters)
        self.router = BaseRouter(runtime_context)
        if self.runs_here:
            try:
                self.operator = operator_factory.create_operator(self.ctx)
                self.operator.task = self
                self.operator.inject_router(self.router)
            except Exception as error:
                self.logger.error("Failed to make the operator of %s: %s", self.name, error)
                raise
        if input_buffer is None:
            # The queue's items are batches.
            input_buffer = create_queue(
                name=self.ctx.name,
                maxsize=max(1, queue_maxsize // batch_size),
                scope=queue_scope or self.default_scope,
            )
        self.input_buffer: Queue[Message] = input_buffer
        self.input_buffer.logger = self.logger
        self._state = TaskState.CREATED
        self._changed = threading.Condition()
        self._listeners: list[Listener] = []
        self._result: Any = None
        self._error: BaseException | None = None
        if self.runs_here:
            self._worker = self._make_worker()

    @property
    def state(self) -> TaskState:
        """Where the task is in its life."""
        return self._state

    @property
    def is_running(self) -> bool:
        """Whether the task has been started and has not ended."""
        return self._state in (TaskState.STARTING, TaskState.RUNNING, TaskState.DRAINING)

    @property
    def _processed_count(self) -> int:
        return self.metrics.processed

    @property
    def _error_count(self) -> int:
        return self.metrics.errors

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener(task)`` after each change of state, in the thread that made it."""
        self._listeners.append(listener)

    @abstractmethod
    def start_running(self) -> None:
        """Start the worker loop in its host and return.

        Raises:
            TaskStateError: the task was started before.
            TaskStartError: the host cannot take it.
        """

    @abstractmethod
    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """End the task and wait for it.

        Args:
            drain: work off what waits in the input queue and send the last results; otherwise
                stop after the packet in hand.
            timeout: seconds to wait at most; 0 only asks.

        Returns:
            Whether the task has ended.
        """

    @abstractmethod
    def cleanup(self, grace: float = 1.0) -> None:
        """Give back everything the task holds; may be repeated.

        A task that runs is stopped without draining. An operator that does not return within
        ``grace`` seconds is killed with its process; a thread is left behind.
        """

    def put_packet(self, packet: Packet, block: bool = True, timeout: float | None = None) -> None:
        """Put a packet in the input queue.

        Raises:
            sagequeue.errors.Full: there is no room in time.
            TaskStateError: the task has ended, or is draining.
        """
        batch = PacketBatch([packet], packet.input_index, time.time_ns())
        try:
            self.input_buffer.put(batch, block, timeout)
        except ShutDown as error:
            raise TaskStateError(
                f"{self.name} is {self._state.value} and takes no more packets"
            ) from error

    def process_packet(self, packet: Packet) -> None:
        """Let the operator handle one packet and route the results, in the calling thread.

        Raises:
            TaskStateError: the operator is not in this process; use :meth:`put_packet`.
            PacketError: the operator failed and the error policy is ``fail``.
        """
        failed = self._worker.process([packet])
        self.metrics.processed += 1 - failed
        self.router.flush()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the task has ended; return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state.ended, timeout)

    def get_status(self) -> TaskStatus:
        """A snapshot of the task; it may be asked for at any time."""
        return TaskStatus(
            name=self.name,
            stage=self.ctx.stage,
            host=self.host,
            state=self._state,
            processed=self._processed_count,
            emitted=self.router.routed,
            errors=self._error_count,
            queue_depth=0 if self._state.ended else self.input_buffer.qsize(),
            total=self._worker.total,
            error=self._describe_error(),
        )

    def get_report(self) -> TaskReport:
        """What the ended task leaves.

        Raises:
            TaskStateError: it has not ended.
        """
        if not self._state.ended:
            raise TaskStateError(f"{self.name} is {self._state.value}; a report comes at the end")
        return TaskReport(self.get_status(), self.metrics.latency, self._result, self._error)

    def _make_worker(self) -> Worker:
        operator = self.operator
        rest = (self.router, self.metrics, self.errors, self.options)
        if isinstance(operator, SourceOperator):
            return SourceWorker(self.name, operator, *rest, self._fail)
        return MailboxWorker(self.name, operator, *rest, self.input_buffer, self.ctx.upstreams)

    def _describe_error(self) -> str | None:
        return None if self._error is None else f"{type(self._error).__name__}: {self._error}"

    def _begin(self) -> None:
        if not self._advance(TaskState.STARTING):
            raise TaskStateError(
                f"{self.name} is {self._state.value}; start_running() is for a new task"
            )

    def _fail(self, error: BaseException) -> None:
        """End the task with an error, unless it has ended."""
        if self._advance(TaskState.FAILED, error=error):
            self.logger.error("%s failed: %s", self.name, error, exc_info=error)

    def _advance(
        self, state: TaskState, result: Any = None, error: BaseException | None = None
    ) -> bool:
        """Go to ``state`` if that is legal, tell the listeners, and return whether it was."""
        with self._changed:
            if state not in NEXT_STATES[self._state]:
                return False
            if state.ended:
                self.input_buffer.shutdown(immediate=True)
            self._result = result
            self._error = error
            self._state = state
            self._changed.notify_all()
        self.logger.debug("%s is %s", self.name, state.value)
        for listener in self._listeners:
            listener(self)
        return True
