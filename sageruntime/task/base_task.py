"""BaseTask: what every task is, whatever hosts its worker loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sagequeue import create_queue
from sagequeue.errors import QueueClosed, ShutDown
from sagequeue.protocol import Queue
from sageruntime.communication.router import BaseRouter, Message, Packet, PacketBatch
from sageruntime.context import TaskContext
from sageruntime.errors import PacketError, TaskStateError
from sageruntime.factory.operator_factory import OperatorFactory
from sageruntime.factory.plugin_factory import create_plugins
from sageruntime.metrics import Meter, MetricsSnapshot, Monitor
from sageruntime.operator import BaseOperator, SourceOperator
from sageruntime.profiling import StackProfile
from sageruntime.task.calls import calls_of, overdue
from sageruntime.task.error_policy import DeadLetter, ErrorHandler, ErrorPolicy
from sageruntime.task.hung_packets import HungPackets
from sageruntime.task.inbox import Inbox, inbox_of
from sageruntime.task.mailbox_worker import MailboxWorker
from sageruntime.task.options import TaskOptions, task_options
from sageruntime.task.source_worker import SourceWorker
from sageruntime.task.state import TaskState
from sageruntime.task.status import TaskReport, TaskStatus
from sageruntime.task.supervised_task import SupervisedTask
from sageruntime.task.supervisor import Supervisor
from sageruntime.task.watchdog import Watchdog
from sageruntime.task.worker import Worker

if TYPE_CHECKING:
    from sageruntime.recovery import CheckpointOptions
    from sageruntime.recovery.coordinator import Coordinator

Scope = Literal["auto", "thread", "machine", "cluster"]

# Slots of an input queue beyond its maxsize, for what a restartable task may have claimed.
_SPARE_SLOTS = 64


class BaseTask(SupervisedTask):
    """An operator with an input queue before it and a router behind it; base of every task.

    The worker loop runs in a thread of this process, unless a subclass has another host for it.

    Args:
        runtime_context: the task's identity.
        operator_factory: makes its operator.
        queue_scope: how far away the tasks are that send to this one; by default as far as its
            own host can be: ``"thread"``, ``"machine"`` or ``"cluster"``.
        queue_codec: how packets become bytes in an input queue of shared memory; see
            :mod:`sagequeue.codecs`.
        input_buffer: the input queue, if there is one already.
        dead_letters: where dead letters are put.
        supervisor: who decides what follows a failure; by default the task's restart policy.
        coordinated: whether the task is part of a job with checkpoints.
        attempt: the job's attempt: how often it has gone back to a checkpoint.
        checkpoint: keeps the operator's state for a task that is in no job: it is saved every so
            often and when the task has drained, and the next task of this name begins with it.
        plugins: what :func:`~sageruntime.factory.plugin_factory.create_plugins` takes; they are
            made in this process and, for a task that runs in another, there too.
        options: ``max_buffer_size``, ``queue_maxsize``, ``worker_threads``, ``batch_size``,
            ``error_policy`` and the other fields of
            :class:`~sageruntime.task.options.TaskOptions`.

    Raises:
        InvalidOption: an option is unknown or out of range.
        CheckpointError: the store cannot be used.
        Exception: what the operator's constructor raises, for a task that runs here.
    """

    host: ClassVar[str] = "thread"
    default_scope: ClassVar[Scope] = "thread"
    runs_here: ClassVar[bool] = True
    """Whether the operator is in this process, and not just its task's handle."""
    tells_plugins: ClassVar[bool] = True
    """Whether plugins are told here of the task's states and metrics."""

    operator: BaseOperator
    errors: ErrorHandler

    def __init__(
        self,
        runtime_context: TaskContext,
        operator_factory: OperatorFactory,
        *,
        queue_scope: Scope | None = None,
        queue_codec: str = "pickle",
        input_buffer: Queue[Message] | None = None,
        dead_letters: Queue[DeadLetter] | None = None,
        supervisor: Supervisor | None = None,
        coordinated: bool = False,
        attempt: int = 0,
        checkpoint: CheckpointOptions | None = None,
        plugins: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        if type(self) is BaseTask:
            raise TypeError("BaseTask is abstract; use LocalTask, ProcessTask, RayTask or your own")
        self.options: TaskOptions = task_options(options)
        super().__init__(runtime_context, self.options.restart, supervisor)
        self.operator_factory = operator_factory
        interval = self.options.monitoring_interval
        self._meter = Meter(self.ctx, self.host, self.metrics, interval)
        self._monitor = Monitor(f"{self.name}-monitor", self.measure, interval, self.logger)
        self.dead_letters = dead_letters
        self.coordinated = coordinated or checkpoint is not None
        self.given_plugins = tuple(plugins)
        self._plugins = create_plugins(plugins, self.logger)
        self.router = BaseRouter(runtime_context)
        self.router.begin(attempt)
        if self.options.error_policy is ErrorPolicy.RETRY:
            self.router.retry = self.options.retry
        if input_buffer is None:
            # The queue's items are batches.
            slots = self.options.queue_slots
            input_buffer = create_queue(
                name=self.ctx.name,
                maxsize=slots,
                scope=queue_scope or self.default_scope,
                capacity=2 * slots + _SPARE_SLOTS,
                codec=queue_codec,
            )
        self.input_buffer: Queue[Message] = input_buffer
        self.input_buffer.logger = self.logger
        self.hung = HungPackets(anew=coordinated)
        if self._plugins is not None and self.tells_plugins:
            self._plugins.listen_to_states(self)
        self._inbox: Inbox | None = None
        self._watchdog: Watchdog | None = None
        self._paused = False
        self._draining = False
        if self.runs_here:
            self.errors = ErrorHandler(
                self.ctx, self.options.error_policy, self.options.retry, self.metrics,
                self.dead_letters, lambda seconds: self._worker.wait(seconds),
                None if self._plugins is None else self._plugins.on_error,
            )  # fmt: skip
            try:
                self._prepare()
            except Exception as error:
                self.logger.error(
                    "Failed to initialize node %s: %s", self.name, error, exc_info=error
                )
                raise
        self._coordinator: Coordinator | None = None
        if checkpoint is not None:
            self._coordinator = self._coordinate(checkpoint)

    @property
    def _processed_count(self) -> int:
        return self.metrics.processed

    @property
    def _error_count(self) -> int:
        return self.metrics.errors

    def add_metrics_listener(self, listener: Callable[[MetricsSnapshot], object]) -> None:
        """Call ``listener(snapshot)`` every ``monitoring_interval``, and a last time at the end.

        It is called in a thread of its own, until :meth:`cleanup`. One that raises is logged and
        not called again.
        """
        self._monitor.add_listener(listener)

    def measure(self) -> MetricsSnapshot:
        """What is measured of the task, as it is now; it may be asked for at any time."""
        router = self.router
        return self._meter.measure(
            self._state.value, router.routed, self._queue_depth(), router.seconds
        )

    def start_running(self) -> None:
        """Start the worker loop in its host and return.

        Raises:
            TaskStateError: the task was started before.
            TaskStartError: the host cannot take it.
        """
        self._begin()
        threading.Thread(target=self._live, name=self.name, daemon=True).start()

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """End the task and wait for it.

        Args:
            drain: work off what waits in the input queue and send the last results; otherwise
                stop after the packet in hand.
            timeout: seconds to wait at most; 0 only asks.

        Returns:
            Whether the task has ended.
        """
        with self._changed:
            if self._state is TaskState.CREATED:
                self._advance(TaskState.STOPPED)
            elif not self._state.ended:
                if drain:
                    self._draining = True
                    self._resume_worker()
                    self._worker.drain()
                    self._advance(TaskState.DRAINING)
                else:
                    self._cancelled = True
                    self._worker.cancel()
                self._changed.notify_all()
        return self.join(timeout)

    def pause(self) -> None:
        """Process nothing more, after the packets in hand, until :meth:`resume`.

        What upstream sends waits in the input queue. Pausing twice is pausing once; a task may be
        paused before it is started.

        Raises:
            TaskStateError: the task has ended.
        """
        with self._changed:
            self._check_alive("paused")
            self._paused = True
            self._worker.pause()

    def resume(self) -> None:
        """Go on after :meth:`pause`.

        Raises:
            TaskStateError: the task has ended.
        """
        with self._changed:
            self._check_alive("resumed")
            self._resume_worker()

    def cleanup(self, grace: float = 1.0) -> None:
        """Give back everything the task holds; may be repeated.

        A task that runs is stopped without draining. An operator that does not return within
        ``grace`` seconds is killed with its process; a thread is left behind.
        """
        if not self.stop(drain=False, timeout=grace):
            self.logger.warning("%s: the operator did not return; left behind", self.name)
            self._advance(TaskState.STOPPED)
        if self._watchdog is not None:
            self._watchdog.stop()
        self._monitor.close()
        if self._inbox is not None:
            self._inbox.abandon()
        self.input_buffer.close()

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
        failed = self._worker.calls.work_on([packet])
        self.metrics.processed += 1 - failed
        self.router.flush()

    def custom_process(self, packet: Packet) -> Any:
        """What is done with each packet; a subclass may do something else, in any host.

        In the hosts of :class:`ProcessTask` and :class:`RayTask` it is called on the task that
        runs there, which has this task's ``operator``, ``ctx``, ``router`` and ``logger``.
        """
        return self.operator.process(packet)

    def get_status(self) -> TaskStatus:
        """A snapshot of the task; it may be asked for at any time."""
        return TaskStatus(
            name=self.name,
            stage=self.ctx.stage,
            host=self.host,
            state=self._state,
            paused=self._paused,
            processed=self._processed_count,
            emitted=self.router.routed,
            errors=self._error_count,
            retries=self.metrics.retries,
            failed_over=self.router.failed_over,
            restarts=self.metrics.restarts,
            attempt=self.router.attempt,
            queue_depth=self._queue_depth(),
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
        return TaskReport(
            self.get_status(), self.measure(), self._result, self._error, self._get_profile()
        )

    def _prepare(self) -> None:
        """Make an operator and a worker for the next attempt."""
        operator = self.operator_factory.create_operator(self.ctx)
        operator.task = self
        operator.inject_router(self.router)
        if self._inbox is None and not isinstance(operator, SourceOperator):
            keep = self.ctx.upstreams == 0 if self.coordinated else self._is_restartable()
            self._inbox = inbox_of(self.input_buffer, self.name, keep)
        elif self._inbox is not None:
            self._inbox.rewind()
        with self._changed:
            self.operator = operator
            self._worker = self._make_worker(operator)
            if self._paused:
                self._worker.pause()
            if self._draining:
                self._worker.drain()
            if self._halting:
                self._worker.halt()
            if self._cancelled:
                self._worker.cancel()

    def _make_worker(self, operator: BaseOperator) -> Worker:
        options = self.options
        if options.processing_timeout is not None and self._watchdog is None:
            self._watchdog = Watchdog(options.processing_timeout, self._on_overdue, self.name)
        calls = calls_of(
            operator, self.custom_process if self._has_custom_process() else operator.process,
            self.router, self.errors, options, self.name, self._watchdog, self.metrics.add_lane,
            self._plugins,
        )  # fmt: skip
        parts = (self.name, operator, calls, self.router, self.metrics, self.errors, options)
        tracing = self.ctx.tracing
        tracer = None if tracing is None else tracing.tracer_for(self.ctx, self.router)
        if isinstance(operator, SourceOperator):
            return SourceWorker(*parts, self.coordinated, self, tracer)
        assert self._inbox is not None
        return MailboxWorker(
            *parts, self.coordinated, self, tracer,
            inbox=self._inbox, upstreams=self.ctx.upstreams, hung=self.hung,
        )  # fmt: skip

    def _get_profile(self) -> StackProfile | None:
        return None

    def _queue_depth(self) -> int:
        return 0 if self._state.ended else self.input_buffer.qsize()

    def _has_custom_process(self) -> bool:
        return type(self).custom_process is not BaseTask.custom_process

    def _is_restartable(self) -> bool:
        return self.options.restart.max_restarts > 0

    def _coordinate(self, options: CheckpointOptions) -> Coordinator:
        from sageruntime.recovery.coordinator import Coordinator

        coordinator = Coordinator(self.name, options, self.options.restart, self.logger, alone=True)
        key = f"{self.ctx.stage}/{self.ctx.index}"
        coordinator.adopt({key: self}, [key])
        self.add_listener(lambda task: coordinator.close(False) if task.state.ended else None)
        return coordinator

    def _on_overdue(self, packets: list[Packet]) -> None:
        """The operator works on these for too long: report them and apply the error policy."""
        error: BaseException | None = None
        self.metrics.timeouts += len(packets)
        for packet in packets:
            try:
                self.errors.handle(packet, overdue(packet, self.options.processing_timeout or 0))
            except PacketError as failure:
                error = failure
        self._on_stuck(packets, error)

    def _on_stuck(self, packets: list[Packet], error: BaseException | None) -> None:
        """The worker's thread hangs in the operator; it cannot be stopped in this process."""
        if error is not None:
            self.fail(error)

    def _resume_worker(self) -> None:
        self._paused = False
        self._worker.resume()

    def _begin(self) -> None:
        if not self._advance(TaskState.STARTING):
            raise TaskStateError(
                f"{self.name} is {self._state.value}; start_running() is for a new task"
            )
        if self._coordinator is not None:
            self._coordinator.start()
        if self._plugins is not None and self.tells_plugins:
            self._plugins.listen_to_metrics(self)

    def _on_end(self) -> None:
        with suppress(QueueClosed):  # by another task that shares it
            self.input_buffer.shutdown(immediate=True)
