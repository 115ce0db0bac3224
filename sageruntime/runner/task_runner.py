"""TaskRunner: one attempt of a task after the other, all in one thread."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sagequeue.errors import QueueClosed
from sagequeue.protocol import Queue
from sageruntime.communication.router import BaseRouter, Message, Packet
from sageruntime.context import TaskContext
from sageruntime.core.policies import ErrorPolicy
from sageruntime.core.state import TaskState
from sageruntime.core.task_options import TaskOptions
from sageruntime.dead_letters.letter import DeadLetter
from sageruntime.errors import (
    OperatorError,
    TaskCancelled,
    TaskHalted,
    TaskStateError,
)
from sageruntime.logs import work_for
from sageruntime.metrics import Meter, MetricsSnapshot, TaskMetrics
from sageruntime.operator import BaseOperator, BatchOperator, SourceOperator
from sageruntime.operator.operator_factory import OperatorFactory
from sageruntime.plugins.plugin_factory import create_plugins
from sageruntime.profiling import StackProfile
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.attempt import Attempt, Done, Mail, ProcessPacket, Raise, SourceReady
from sageruntime.runner.coroutines import CoroutineInvoker
from sageruntime.runner.error_handler import ErrorHandler
from sageruntime.runner.inbox import Inbox, open_inbox
from sageruntime.runner.inbox_attempt import InboxAttempt
from sageruntime.runner.invoker import (
    ConcurrentInvoker,
    DirectInvoker,
    OperatorCalls,
    Process,
    ProcessBatch,
    Retries,
)
from sageruntime.runner.lanes import LaneInvoker
from sageruntime.runner.mailbox import Mailbox
from sageruntime.runner.skip_list import SkipList
from sageruntime.runner.source_attempt import SourceAttempt
from sageruntime.runner.source_reader import SourceReader
from sageruntime.runner.status import TaskReport, TaskStatus
from sageruntime.tracing.make_tracer import make_tracer

if TYPE_CHECKING:
    from sageruntime.plugins.plugins import Plugins
    from sageruntime.tracing.batch_tracer import BatchTracer

Tell = Callable[[told.Event], None]
"""Takes an event to the driver."""

# Batches of a source that may wait for its runner.
_READ_AHEAD = 32


@dataclass
class TaskSpec:
    """What a runner needs to know of a task; all of it can travel to another process.

    Attributes:
        ctx: the task's identity.
        operator_factory: makes its operators.
        custom_process: what is done with each packet in place of ``operator.process``.
        options: how it works.
        input_buffer: where its packets come from.
        dead_letters: where dead letters go.
        plugins: what :func:`~sageruntime.plugins.plugin_factory.create_plugins` takes.
        coordinated: whether it is part of a job with checkpoints.
        skip_list: packets that are left out.
        cautious_for: how many checkpoints have to be completed before packets are processed without
            being named first, because a host of this task has died.
        beginning: what the first attempt begins with.
        is_paused: whether it begins paused.
        senders_ended: tasks upstream that were stopped without draining.
    """

    ctx: TaskContext
    operator_factory: OperatorFactory
    custom_process: Callable[..., Any] | None
    options: TaskOptions
    input_buffer: Queue[Message]
    dead_letters: Queue[DeadLetter] | None
    plugins: Sequence[Any] = ()
    coordinated: bool = False
    skip_list: SkipList = field(default_factory=lambda: SkipList(by_content=False))
    cautious_for: int = 0
    beginning: do.Restore = field(default_factory=lambda: do.Restore(0))
    is_paused: bool = False
    senders_ended: set[str] = field(default_factory=set)


class TaskRunner:
    """Owns a task's operator, inbox, router and metrics.

    One thread runs it. Others post commands, read its metrics, and use its router, which is made
    for many threads.

    Args:
        spec: the task.
        host: the kind of host, for statuses.
        keeps: whether what is unacknowledged comes again after a failure.
        task: what ``operator.task`` is.
        tell: takes events; called in the runner's thread.
        router: sends the results.
        plugins: those of the task, made in this process.
        profile: what was seen of the task's threads, asked for at its end.

    Raises:
        Exception: what the operator's constructor raises.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        host: str,
        keeps: bool,
        task: Any,
        tell: Tell,
        router: BaseRouter,
        plugins: Plugins | None,
        profile: Callable[[], StackProfile | None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.ctx = spec.ctx
        self.name = spec.ctx.name
        self.options = spec.options
        self.coordinated = spec.coordinated
        self.skip_list = spec.skip_list
        self.cautious_for = spec.cautious_for if spec.coordinated else 0
        self.router = router
        self.plugins = plugins
        self.metrics = TaskMetrics()
        self.mailbox: Mailbox[Mail] = Mailbox()
        self.is_paused = spec.is_paused
        self.is_draining = False
        self.senders_ended = spec.senders_ended
        self._host = host
        self._keeps = keeps
        self._task = task
        self._tell = tell
        self._profile = profile
        self._meter = Meter(self.ctx, host, self.metrics, self.options.monitoring_interval)
        self._thread: threading.Thread | None = None
        self._is_cancelled = False
        self._restore: do.Restore | None = None
        self._deferred: list[ProcessPacket | Raise] = []
        self.state = TaskState.STARTING
        if self.options.error_policy is ErrorPolicy.RETRY:
            router.retry = self.options.retry
        router.begin(spec.beginning.attempt)
        self.errors = ErrorHandler(
            self.ctx, self.options.final_error_policy, self.metrics, spec.dead_letters,
            router.cancelled.is_set, None if plugins is None else plugins.on_error,
        )  # fmt: skip
        router.on_reject = self.errors.reject
        self.tracer: BatchTracer | None = make_tracer(self.ctx, router)
        self._inbox: Inbox | None = None
        self.operator = self._make_operator()
        self._attempt: Attempt | None = None
        _check_concurrency(self.name, self.operator, self.options)

    def post(self, command: do.Command) -> None:
        """Send a command; any thread may do so."""
        self.mailbox.post(command)
        if isinstance(command, do.Halt) or (isinstance(command, do.Stop) and not command.drain):
            self.router.cancel()  # it may wait for room downstream

    def run(self) -> None:
        """Run the task to its end: called once, by the thread that is the runner's."""
        work_for(self.name, self.ctx.stage)
        self._thread = threading.current_thread()
        beginning: do.Restore | None = self.spec.beginning
        while beginning is not None:
            try:
                with self.metrics.running():
                    result = self._run_attempt(beginning)
            except (TaskCancelled, TaskHalted):
                self._note_all()
                if not self._is_cancelled:
                    self._set_state(TaskState.RESTARTING)
                    self.tell(told.Halted)
            except BaseException as error:  # whatever it is, the driver has to learn of it
                self._set_state(TaskState.RESTARTING)
                self.tell(told.Failed, error=error)
            else:
                self._end(result)
                return
            beginning = self._await_restore()
        self._end(None)

    def process_packet(self, packet: Packet) -> None:
        """Let the operator handle one packet and route the results, and wait for that.

        A task that does not run does it in the calling thread.

        Raises:
            PacketError: the operator failed and the error policy is ``fail``.
            TaskStateError: the task is a source, or has ended.
        """
        if self.state.ended:
            raise self._is_over()
        if isinstance(self.operator, SourceOperator):
            raise TaskStateError(f"{self.name} is a source and processes no packets")
        if self._thread not in (None, threading.current_thread()):
            done: Future[None] = Future()
            self.mailbox.post(ProcessPacket(packet, done))
            if self.state.ended:  # since it was asked above, and the runner may not have seen it
                self._refuse_packets()
            done.result()
            return
        attempt = self._attempt = self._attempt or self._make_attempt()
        assert isinstance(attempt, InboxAttempt)
        attempt.process(packet)

    def fail(self, error: BaseException) -> None:
        """Let the present attempt fail with an error of another thread that works for the task."""
        self.mailbox.post(Raise(error))

    def note(self, command: do.Command) -> None:
        """Remember what outlives an attempt."""
        if isinstance(command, do.Pause):
            self.is_paused = True
        elif isinstance(command, do.Resume):
            self.is_paused = False
        elif isinstance(command, do.Stop):
            self.is_draining, self.is_paused = True, False
            self._is_cancelled = self._is_cancelled or not command.drain
            if command.drain:
                self._set_state(TaskState.DRAINING)
        elif isinstance(command, do.SenderEnded):
            self.senders_ended.add(command.sender)
        elif isinstance(command, do.Restore):
            self._restore = command

    def tell(self, event: type[told.Event], **fields: Any) -> None:
        """Send an event to the driver."""
        if event is told.Draining:
            self._set_state(TaskState.DRAINING)
        self._tell(event(attempt=self.router.attempt, **fields))

    def get_status(self) -> TaskStatus:
        """The task as its runner sees it; any thread may ask."""
        metrics, attempt = self.metrics, self._attempt
        return TaskStatus(
            name=self.name,
            stage=self.ctx.stage,
            host=self._host,
            state=self.state,
            paused=self.is_paused,
            processed=metrics.processed,
            emitted=self.router.routed,
            errors=metrics.errors,
            retries=metrics.retries,
            failed_over=self.router.failed_over,
            attempt=self.router.attempt,
            queue_depth=self._queue_depth(),
            held=0 if attempt is None else attempt.held,
            total=None if attempt is None else attempt.total,
        )

    def get_full_status(self) -> TaskStatus:
        """The task as its runner sees it, with a measurement; any thread may ask."""
        return self.get_status().with_metrics(self.measure())

    def measure(self) -> MetricsSnapshot:
        """What is measured of the task; any thread may ask."""
        return self._meter.measure(
            self.state.value, self.router.routed, self._queue_depth(), self.router.seconds
        )

    def abandon(self) -> None:
        """Let go of what the input queue has lent, once the runner has ended."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:  # of a task that processed packets and was never started
            attempt.leave()
        if self._inbox is not None:
            self._inbox.abandon()

    def _queue_depth(self) -> int:
        try:
            return 0 if self.state.ended else self.spec.input_buffer.qsize()
        except QueueClosed:  # an operator that hangs was left behind
            return 0

    def _run_attempt(self, beginning: do.Restore) -> Any:
        self._set_state(TaskState.DRAINING if self.is_draining else TaskState.RUNNING)
        self.tell(told.Running)
        attempt = self._attempt = self._attempt or self._make_attempt()
        try:
            return attempt.run(beginning.state, beginning.is_final)
        finally:
            self._attempt = None
            if self._inbox is not None:
                self._inbox.rewind()

    def _await_restore(self) -> do.Restore | None:
        """What the next attempt begins with, once it can begin; None when none follows."""
        while not self._is_cancelled:
            restore, self._restore = self._restore, None
            if restore is None:
                mail = self.mailbox.take(None)
                assert mail is not None
                self._note_between(mail)
                continue
            self.router.begin(restore.attempt)
            try:
                self.operator = self._make_operator()
            except Exception as error:
                self.tell(told.Failed, error=error)
            else:
                self._post_deferred()
                return restore
        return None

    def _note_all(self) -> None:
        """Note the commands that have come: one of them made the attempt leave off."""
        while (mail := self.mailbox.take()) is not None:
            self._note_between(mail)

    def _note_between(self, mail: Mail) -> None:
        """Note a mail that comes between two attempts; the next one acts on what is for it."""
        if isinstance(mail, do.Command):
            self.note(mail)
        elif isinstance(mail, ProcessPacket | Raise):
            self._deferred.append(mail)

    def _post_deferred(self) -> None:
        for mail in self._deferred:
            self.mailbox.post(mail)
        self._deferred.clear()

    def _refuse_packets(self) -> None:
        """Tell those who wait for a packet that there is no next attempt; any thread may do so."""
        while (mail := self.mailbox.take()) is not None:
            if isinstance(mail, ProcessPacket):
                mail.done.set_exception(self._is_over())

    def _is_over(self) -> TaskStateError:
        return TaskStateError(f"{self.name} is {self.state.value} and processes no packets")

    def _end(self, result: Any) -> None:
        self._set_state(TaskState.STOPPED)
        self._post_deferred()
        self._refuse_packets()
        report = TaskReport(self.get_status(), self.measure(), result, None, self._profile())
        self.tell(told.Ended, report=report)

    def _set_state(self, state: TaskState) -> None:
        if not self.state.ended:
            self.state = state

    # What an attempt is made of.

    def _make_operator(self) -> BaseOperator:
        operator = self.spec.operator_factory.create_operator(self.ctx)
        operator.task = self._task
        operator.inject_router(self.router)
        if self._inbox is None and not isinstance(operator, SourceOperator):
            self._inbox = open_inbox(self.spec.input_buffer, self.name, self._keeps)
        return operator

    def _make_attempt(self) -> Attempt:
        operator, options = self.operator, self.options
        custom = self.spec.custom_process
        process: Process = operator.process
        if custom is not None:
            process = custom
        retries = Retries(self.router.retry, self.router.cancelled.wait)
        batch: ProcessBatch | None = None
        if custom is None and isinstance(operator, BatchOperator):
            batch = operator.process_batch
        if self.plugins is not None:
            process = self.plugins.around(process, operator)
            batch = None if batch is None else self.plugins.around_batch(batch, operator)
        if isinstance(operator, SourceOperator):
            size = options.packets_per_batch
            limit = min(options.max_buffer_size, _READ_AHEAD * size)
            reader = SourceReader(
                operator, self.name, self._begin_lane, limit,
                lambda: self.mailbox.post(SourceReady()),
            )  # fmt: skip
            return SourceAttempt(self, operator, retries, reader)
        assert self._inbox is not None
        invoker = self._make_invoker(OperatorCalls(operator, process, batch, retries))
        return InboxAttempt(self, operator, retries, self._inbox, invoker)

    def _make_invoker(self, calls: OperatorCalls) -> DirectInvoker | ConcurrentInvoker:
        options, timeout = self.options, self.options.processing_timeout
        if inspect.iscoroutinefunction(calls.operator.process):
            return CoroutineInvoker(
                calls, self.name, self._begin_lane, self._post_done,
                options.max_concurrency, timeout,
            )  # fmt: skip
        if options.worker_threads > 1 or timeout is not None:
            return LaneInvoker(
                calls, options.worker_threads, self.name, self._begin_lane, self._post_done,
                timeout,
            )  # fmt: skip
        return DirectInvoker(
            calls, self.router.route_batch, self.errors.handle, options.max_buffer_size
        )

    def _begin_lane(self) -> Any:
        work_for(self.name, self.ctx.stage)
        return self.metrics.add_lane()

    def _post_done(self, work: Any) -> None:
        self.mailbox.post(Done(work))


def make_plugins(spec: TaskSpec) -> Plugins | None:
    """The plugins of a task, made in this process."""
    return create_plugins(spec.plugins, spec.ctx.logger)


def _check_concurrency(name: str, operator: BaseOperator, options: TaskOptions) -> None:
    if inspect.iscoroutinefunction(operator.process) and options.worker_threads > 1:
        raise OperatorError(
            f"{name}: an async operator works in one thread, and worker_threads is "
            f"{options.worker_threads}; use max_concurrency"
        )
