"""BaseTask: the handle of a task, in the process that made it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle
import msgspec

from sagequeue import create_queue
from sagequeue.errors import QueueClosed, ShutDown
from sagequeue.protocol import Queue
from sageruntime.communication.router import BaseRouter, Message, Packet, PacketBatch
from sageruntime.context import TaskContext
from sageruntime.core.scope import Scope
from sageruntime.core.state import TaskState
from sageruntime.core.task_options import TaskOptions, task_options
from sageruntime.dead_letters.letter import DeadLetter
from sageruntime.errors import (
    HostReplaced,
    PacketError,
    TaskStartError,
    TaskStateError,
    text_of,
)
from sageruntime.host.driver_loop import driver_loop
from sageruntime.host.host import Host
from sageruntime.host.thread_host import ThreadHost
from sageruntime.logs import relay
from sageruntime.metrics import MetricsSnapshot, Monitor
from sageruntime.operator import BaseOperator
from sageruntime.operator.operator_factory import OperatorFactory
from sageruntime.recovery.restart_budget import RestartBudget
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.inbox import give_back_unacknowledged
from sageruntime.runner.skip_list import PacketName, SkipList
from sageruntime.runner.status import TaskReport, TaskStatus
from sageruntime.runner.task_runner import TaskRunner, TaskSpec, make_plugins
from sageruntime.task.coordinator import Coordinator, Supervisor
from sageruntime.task.lifecycle import Lifecycle, Listener

if TYPE_CHECKING:
    from sageruntime.recovery import CheckpointOptions

# Slots of an input queue beyond its maxsize, for what a restartable task may have claimed.
_SPARE_SLOTS = 64


class BaseTask:
    """An operator with an input queue before it and a router behind it; base of every task.

    This is its handle: it starts the task in its host, sends commands there, and follows its
    events. The host is a thread of this process, unless a subclass has another. What a handle owns
    is changed in the driver's loop alone; any thread may call its methods.

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
        plugins: what :func:`~sageruntime.plugins.plugin_factory.create_plugins` takes; they are
            made in this process and, for a task that runs in another, there too.
        options: ``max_buffer_size``, ``queue_maxsize``, ``worker_threads``, ``batch_size``,
            ``error_policy`` and the other fields of
            :class:`~sageruntime.core.task_options.TaskOptions`.

    Raises:
        InvalidOption: an option is unknown or out of range.
        CheckpointError: the store cannot be used.
        Exception: what the operator's constructor raises, for a task that runs here.
    """

    host: ClassVar[str] = "thread"
    default_scope: ClassVar[Scope] = "thread"

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
        self.ctx = runtime_context
        self.name = runtime_context.name
        self.logger = runtime_context.logger
        self.options: TaskOptions = task_options(options)
        self.operator_factory = operator_factory
        self.dead_letters = dead_letters
        self.supervisor = supervisor
        self.coordinated = coordinated or checkpoint is not None
        self._loop = driver_loop()
        self._lifecycle = Lifecycle(self, self.name, self.logger)
        self._monitor = Monitor(
            f"{self.name}-monitor", self.measure, self.options.monitoring_interval, self.logger
        )
        self._budget = RestartBudget(self.options.restart)
        self._restarts = 0
        self._attempt = attempt
        self._error: BaseException | None = None
        self._report: TaskReport | None = None
        self._is_paused = False
        self._is_draining = False
        self._is_cancelled = False
        self._waits_for_restore = False
        self._timer: asyncio.TimerHandle | None = None
        self._skip_list = SkipList(by_content=coordinated)
        self._crashes = CrashRecord(self._skip_list, self.options.max_deliveries)
        self._stuck: told.Stuck | None = None
        self._skipped: dict[int, dict[PacketName, int]] = {}
        self._counted: TaskStatus | None = None
        self._measured: MetricsSnapshot | None = None
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
        custom = type(self).custom_process
        self._spec = TaskSpec(
            ctx=self.ctx,
            operator_factory=operator_factory,
            custom_process=None if custom is BaseTask.custom_process else custom,
            options=self.options,
            input_buffer=self.input_buffer,
            dead_letters=dead_letters,
            plugins=tuple(plugins),
            coordinated=self.coordinated,
            skip_list=self._skip_list,
            beginning=do.Restore(attempt),
        )
        self._plugins = make_plugins(self._spec)
        self.router = self._make_router()
        if self._plugins is not None and self._plugins.implement("on_state_change"):
            self.add_listener(self._plugins.on_state_change)
        self._host: Host | None = self._prepare_host()
        self._coordinator: Coordinator | None = None
        if checkpoint is not None:
            self._coordinator = self._coordinate(checkpoint)

    # What a host is; a subclass has another.

    def _make_router(self) -> BaseRouter:
        """The router that this process has of the task."""
        return BaseRouter(self.ctx)

    def _prepare_host(self) -> Host | None:
        """The host, as far as it can be made before the start."""
        spec = self._spec
        if spec.custom_process is not None:
            spec = replace(spec, custom_process=self.custom_process)
        try:
            runner = TaskRunner(
                spec, host=self.host, keeps=self._keeps_messages(), task=self,
                tell=lambda event: self._loop.post(self._receive, host, event),
                router=self.router, plugins=self._plugins,
            )  # fmt: skip
        except Exception as error:
            self.logger.error("Failed to initialize node %s: %s", self.name, error, exc_info=error)
            raise
        host = ThreadHost(runner, self._loop)
        return host

    def _make_host(self) -> Host:
        """A host for the next start of the task.

        Raises:
            TaskStartError: what has to go to the host cannot be sent there.
        """
        assert self._host is not None
        return self._host

    @property
    def _runner(self) -> TaskRunner:
        """The runner, where it is in this process."""
        if not isinstance(self._host, ThreadHost):
            raise TaskStateError(
                f"the operator of {self.name} lives in another process; use put_packet()"
            )
        return self._host.runner

    # What users ask.

    @property
    def operator(self) -> BaseOperator:
        """The operator of the present attempt, if it is in this process.

        Raises:
            TaskStateError: it is in another process.
        """
        return self._runner.operator

    @property
    def metrics(self) -> Any:
        """What the task counts, if it runs in this process."""
        return self._runner.metrics

    @property
    def state(self) -> TaskState:
        """Where the task is in its life; within a listener, the state that it is told of."""
        return self._lifecycle.state

    @property
    def is_running(self) -> bool:
        """Whether the task has been started and has not ended."""
        return not (self.state is TaskState.CREATED or self.state.ended)

    @property
    def _processed_count(self) -> int:
        return self.get_status().processed

    @property
    def _error_count(self) -> int:
        return self.get_status().errors

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener(task)`` after each change of state, in a thread for listeners.

        There ``task.state`` is the state that it is told of. One that raises is logged; one that
        does not return keeps only other listeners of this task waiting.
        """
        self._lifecycle.add_listener(listener)

    def watch(self, watcher: Callable[[TaskState], object]) -> None:
        """Call a function of the runtime's after each change of state, in the driver's loop."""
        self._lifecycle.watch(watcher)

    def add_metrics_listener(self, listener: Callable[[MetricsSnapshot], object]) -> None:
        """Call ``listener(snapshot)`` every ``monitoring_interval``, and a last time at the end.

        It is called in a thread of its own, until :meth:`cleanup`. One that raises is logged and
        not called again.
        """
        self._monitor.add_listener(listener)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the task has ended; return whether it has."""
        return self._lifecycle.join(timeout)

    def start_running(self) -> None:
        """Start the task in its host and return.

        Raises:
            TaskStateError: the task was started before.
            TaskStartError: the host cannot take it.
        """
        host = self._loop.call(self._begin)
        self._start_host(host)
        if self._coordinator is not None:
            self._coordinator.start()
        if self._plugins is not None and self._plugins.implement("on_metrics"):
            self.add_metrics_listener(self._plugins.on_metrics)

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """End the task and wait for it.

        Args:
            drain: work off what waits in the input queue and send the last results; otherwise
                stop after the packet in hand.
            timeout: seconds to wait at most; 0 only asks.

        Returns:
            Whether the task has ended.
        """
        self._loop.call(self._stop, drain)
        return self.join(timeout)

    def pause(self) -> None:
        """Process nothing more, after the packets in hand, until :meth:`resume`.

        What upstream sends waits in the input queue. Pausing twice is pausing once; a task may be
        paused before it is started.

        Raises:
            TaskStateError: the task has ended.
        """
        self._loop.call(self._set_paused, True)

    def resume(self) -> None:
        """Go on after :meth:`pause`.

        Raises:
            TaskStateError: the task has ended.
        """
        self._loop.call(self._set_paused, False)

    def cleanup(self, grace: float = 1.0) -> None:
        """Give back everything the task holds; may be repeated.

        A task that runs is stopped without draining. An operator that does not return within
        ``grace`` seconds is killed with its process; a thread is left behind.
        """
        if not self.stop(drain=False, timeout=grace):
            self._loop.call(self._abandon)
        host = self._host
        if host is not None:
            host.wait()
            self._loop.call(host.close)
        self._monitor.close()
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
                f"{self.name} is {self.state.value} and takes no more packets"
            ) from error

    def process_packet(self, packet: Packet) -> None:
        """Let the operator handle one packet and route the results, and wait for that.

        Raises:
            TaskStateError: the operator is not in this process; use :meth:`put_packet`.
            PacketError: the operator failed and the error policy is ``fail``.
        """
        self._runner.process_packet(packet)

    def custom_process(self, packet: Packet) -> Any:
        """What is done with each packet; a subclass may do something else, in any host.

        In the hosts of :class:`ProcessTask` and :class:`RayTask` it is called on the task that
        runs there, which has this task's ``operator``, ``ctx``, ``router`` and ``logger``.
        """
        return self.operator.process(packet)

    def get_status(self) -> TaskStatus:
        """A snapshot of the task; it may be asked for at any time.

        Of a task in another process it is as of the host's last message.
        """
        status = None if self._host is None else self._host.get_status()
        if status is None:
            status = TaskStatus(self.name, self.ctx.stage, self.host, self.state, 0, 0, 0, 0)
        if self._counted is not None:
            status = status.after(self._counted)
        return replace(
            status,
            state=self.state,
            paused=self._is_paused,
            restarts=self._restarts,
            attempt=self._attempt,
            error=None if self._error is None else text_of(self._error),
            metrics=None,
        )

    def measure(self) -> MetricsSnapshot:
        """What is measured of the task, as it is now; it may be asked for at any time."""
        known = None if self._host is None else self._host.measure()
        if known is None:
            known = MetricsSnapshot(
                task=self.name, stage=self.ctx.stage, host="", state="", at=time.time_ns(),
                seconds=0.0,
            )  # fmt: skip
        if self._measured is not None:
            known = known.after(self._measured)
        return msgspec.structs.replace(
            known, host=self.host, state=self.state.value, restarts=self._restarts
        )

    def get_report(self) -> TaskReport:
        """What the ended task leaves.

        Raises:
            TaskStateError: it has not ended.
        """
        state = self._lifecycle.present
        if not state.ended:
            raise TaskStateError(f"{self.name} is {state.value}; a report comes at the end")
        last = self._report
        return TaskReport(
            self.get_status(),
            self.measure(),
            None if last is None or state is TaskState.FAILED else last.result,
            self._error,
            None if last is None else last.profile,
        )

    # What a supervisor asks.

    @property
    def is_halted(self) -> bool:
        """Whether the task waits for :meth:`restore`, or has ended."""
        return self._waits_for_restore or self._lifecycle.present.ended

    def halt(self) -> None:
        """Leave off and wait in RESTARTING for :meth:`restore`; the input queue stays.

        Raises:
            TaskStateError: the task has not been started.
        """
        self._check_started("halted")
        self._loop.call(self._send, do.Halt())

    def restore(self, attempt: int, state: bytes | None = None, is_final: bool = False) -> None:
        """Begin again from RESTARTING, with a new operator.

        Args:
            attempt: what earlier attempts have sent is ignored.
            state: what the operator's ``snapshot()`` had returned, pickled.
            is_final: the state is the last: everything was processed and sent.

        Raises:
            TaskStateError: the task has not been started.
        """
        self._check_started("restored")
        self._loop.call(self._restore, do.Restore(attempt, state, is_final))

    def begin_with(self, state: bytes | None, is_final: bool = False) -> None:
        """What the first attempt begins with, as :meth:`restore` says for the others."""
        self._set_beginning(do.Restore(self._attempt, state, is_final))

    def take_checkpoint(self, checkpoint: int) -> None:
        """Begin a checkpoint here; it travels downstream."""
        self._loop.call(self._send, do.TakeCheckpoint(checkpoint))

    def abort_checkpoint(self, checkpoint: int) -> None:
        """Give up a checkpoint."""
        self._loop.call(self._send, do.AbortCheckpoint(checkpoint))

    def checkpoint_completed(self, checkpoint: int) -> None:
        """A checkpoint is complete, and the task's snapshot for it is part of it.

        Args:
            checkpoint: its number; :data:`~sageruntime.recovery.checkpoint.LAST_STATE` for the one
                that holds what the task has told when it had completed.
        """
        self._loop.call(self._on_checkpoint_completed, checkpoint)

    def release(self) -> None:
        """Let a source that has been read to its end finish."""
        self._loop.call(self._send, do.Release())

    def dismiss(self) -> None:
        """Let a task that has completed end."""
        self._loop.call(self._send, do.Dismiss())

    def kill_host(self) -> None:
        """Kill the process that hosts the task; its thread, if that is all, goes on."""
        self._loop.call(self._kill)

    def count_restart(self) -> None:
        """The job goes back to a checkpoint because of this task."""
        self._restarts += 1

    def fail(self, error: BaseException) -> None:
        """End the task with an error, unless it has ended."""
        self._loop.call(self._fail, error)

    # In the driver's loop.

    def _begin(self) -> Host:
        if not self._lifecycle.advance(TaskState.STARTING):
            raise TaskStateError(
                f"{self.name} is {self._lifecycle.present.value}; start_running() is for a new task"
            )
        self._spec.is_paused = self._is_paused
        try:
            self._host = self._make_host()
        except TaskStartError as error:
            self._fail(error)
            raise
        return self._host

    def _start_host(self, host: Host) -> None:
        """Start a host; in any thread but the loop's."""
        try:
            host.start()
        except TaskStartError as error:
            self._loop.call(self._fail, error)
            raise

    def _stop(self, drain: bool) -> None:
        state = self._lifecycle.present
        if state is TaskState.CREATED:
            self._lifecycle.advance(TaskState.STOPPED)
        if self._lifecycle.present.ended:
            self._on_ended()
            return
        self._is_paused = False
        self._is_draining = self._is_draining or drain
        self._is_cancelled = self._is_cancelled or not drain
        if self._is_cancelled:
            self._cancel_timer()
            if self._waits_for_restore and self._is_remote_and_lost():
                self._end(TaskState.STOPPED)
                return
        else:
            self._lifecycle.advance(TaskState.DRAINING)
        self._send(do.Stop(drain))

    def _set_paused(self, paused: bool) -> None:
        state = self._lifecycle.present
        if state.ended:
            what = "paused" if paused else "resumed"
            raise TaskStateError(f"{self.name} is {state.value} and cannot be {what}")
        self._is_paused = paused
        self._send(do.Pause() if paused else do.Resume())

    def _send(self, command: do.Command) -> None:
        if self._host is not None:
            self._host.send(command)

    def _kill(self) -> None:
        if self._host is not None:
            self._host.kill()

    def _abandon(self) -> None:
        """The operator does not return: end without it."""
        if self._lifecycle.present.ended:
            return
        self._kill()
        if isinstance(self._host, ThreadHost):
            self.logger.warning("%s: the operator did not return; left behind", self.name)
        self._end(TaskState.STOPPED)

    def _receive(self, host: Host, event: told.Event) -> None:
        """Take an event of a host; those of a host before it come too late."""
        if host is not self._host:
            return
        if isinstance(event, told.LogEmitted):
            relay(event.record)
        elif isinstance(event, told.Ended):
            self._on_report(event.report)
        elif self._lifecycle.present.ended or isinstance(event, told.StatusReported):
            return
        elif isinstance(event, told.Running):
            self._lifecycle.advance(TaskState.RUNNING)
        elif isinstance(event, told.Draining):
            self._lifecycle.advance(TaskState.DRAINING)
        elif isinstance(event, told.Halted):
            self._waits_for_restore = True
            self._lifecycle.advance(TaskState.RESTARTING)
            self._pass_on(event)
        elif isinstance(event, told.Failed):
            self._on_failed(event.error)
        elif isinstance(event, told.StartFailed):
            self._fail(event.error)
        elif isinstance(event, told.Attempting):
            self._crashes.attempt(event.packet)
        elif isinstance(event, told.Stuck):
            self._on_stuck(event)
        elif isinstance(event, told.HostLost):
            self._on_host_lost(event.error)
        else:
            if isinstance(event, told.SnapshotTaken):
                self._skipped[event.checkpoint] = event.skipped
            self._pass_on(event)

    def _pass_on(self, event: told.Event) -> None:
        if self.supervisor is not None:
            self.supervisor.on_event(self, event)

    def _on_failed(self, error: BaseException) -> None:
        """An attempt has failed: what follows is up to the supervisor or the restart policy."""
        self._waits_for_restore = True
        self._error = error
        if self._is_cancelled:
            self._send(do.Stop(drain=False))
            if self._is_remote_and_lost():
                self._end(TaskState.STOPPED)
            return
        if self.supervisor is not None:
            self._lifecycle.advance(TaskState.RESTARTING)
            self._pass_on(told.Failed(attempt=self._attempt, error=error))
            return
        delay = self._budget.next_delay()
        if delay is None or not isinstance(error, Exception):
            self._fail(error)
            return
        self._lifecycle.advance(TaskState.RESTARTING)
        self._restarts += 1
        self.logger.warning(
            "%s failed and begins again in %.1f s: %s", self.name, delay, text_of(error),
            exc_info=error,
        )  # fmt: skip
        self._timer = self._loop.call_later(delay, self._restore, do.Restore(self._attempt))

    def _restore(self, restore: do.Restore) -> None:
        if self._lifecycle.present.ended:
            return
        self._cancel_timer()
        self._error = None
        self._attempt = self.router.attempt = restore.attempt
        was_waiting, self._waits_for_restore = self._waits_for_restore, False
        if not self._is_remote_and_lost():
            self._send(restore)
        elif was_waiting:
            self._set_beginning(restore)
            self._spec.is_paused = self._is_paused
            self._spec.has_lost_hosts = self._crashes.has_lost_hosts
            try:
                host = self._host = self._make_host()
            except TaskStartError as error:
                self._fail(error)
                return
            if self._is_draining or self._is_cancelled:
                host.send(do.Stop(not self._is_cancelled))
            self._loop.run_elsewhere(host.start, lambda _: None, self._fail)
        self._lifecycle.advance(TaskState.RUNNING)

    def _on_stuck(self, event: told.Stuck) -> None:
        if isinstance(self._host, ThreadHost):
            if event.error is not None:  # a thread cannot be stopped
                self._fail(event.error)
            return
        self._stuck = event
        self._kill()

    def _on_host_lost(self, error: Exception) -> None:
        """The host has died without a report."""
        self._counted, self._measured = self.get_status(), self.measure()
        host, self._host = self._host, None
        if host is not None:
            host.close()
        self._waits_for_restore = True
        if self._is_cancelled:
            self._end(TaskState.STOPPED)
            return
        self._crashes.host_lost(error, was_killed_by_us=self._stuck is not None)
        stuck, self._stuck = self._stuck, None
        if self.coordinated and self.ctx.upstreams > 0:
            self._after_loss(error, stuck)
            return
        self._loop.run_elsewhere(
            lambda: give_back_unacknowledged(self.input_buffer, self.name),
            lambda _: self._after_loss(error, stuck),
            self._fail,
        )

    def _after_loss(self, error: Exception, stuck: told.Stuck | None) -> None:
        """What it had taken is back: go on with another host."""
        if self._lifecycle.present.ended:
            return
        if stuck is None or self._is_cancelled:
            self._on_failed(error)
            return
        if stuck.error is not None:
            self._on_failed(stuck.error)
            return
        known = any(name in self._skip_list for name in stuck.packets)
        for name in stuck.packets:
            self._skip_list.add(name)
        if stuck.early or (known and not self._skip_list.by_content):
            self._on_failed(error)  # it may be one that was dealt with: not for ever
        elif self.supervisor is not None:
            self._on_failed(
                HostReplaced(f"the operator of {self.name} hung; its process is replaced")
            )
        elif self._lifecycle.advance(TaskState.RESTARTING):
            self.logger.warning("%s: its operator hung; the process was replaced", self.name)
            self._restore(do.Restore(self._attempt))

    def _on_checkpoint_completed(self, checkpoint: int) -> None:
        skipped = self._skipped.pop(checkpoint, None)
        if skipped is not None and not isinstance(self._host, ThreadHost):
            self._skip_list.settle(skipped)
        for number in [number for number in self._skipped if number < checkpoint]:
            del self._skipped[number]
        self._crashes.has_lost_hosts = False
        self._send(do.CheckpointCompleted(checkpoint))

    def _on_report(self, report: TaskReport) -> None:
        if self._report is None:
            self._report = report
        if self._lifecycle.present.ended:
            return
        if report.error is not None:
            self._fail(report.error)
        else:
            self._end(TaskState.STOPPED)

    def _fail(self, error: BaseException) -> None:
        if self._lifecycle.present.ended:
            return
        self._error = error
        # before anybody sees the state: who waits for the end may look into the log then
        if isinstance(error, PacketError) and error.is_consequence:
            self.logger.warning("%s failed: %s", self.name, text_of(error))
        elif not self._is_cancelled:
            self.logger.error("%s failed: %s", self.name, text_of(error), exc_info=error)
        self._end(TaskState.FAILED)
        self._send(do.Stop(drain=False))  # its runner waits to be restored

    def _end(self, state: TaskState) -> None:
        self._cancel_timer()
        if state is TaskState.STOPPED:
            self._error = None
        self._on_ended()
        self._lifecycle.advance(state)

    def _on_ended(self) -> None:
        with suppress(QueueClosed):  # by another task that shares it
            self.input_buffer.shutdown(immediate=True)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_remote_and_lost(self) -> bool:
        return self._host is None

    def _set_beginning(self, beginning: do.Restore) -> None:
        self._spec.beginning = beginning
        if isinstance(self._host, ThreadHost):
            self._host.runner.spec.beginning = beginning

    def _change_router(self, method: str, *arguments: object) -> bool:
        """Have the host make a change to its router; whether there is a host."""
        command = do.ChangeRouter(method, cloudpickle.dumps(arguments))

        def change() -> bool:
            if self._host is None or self._lifecycle.present.ended:
                return False
            self._host.send(command)
            return True

        return self._loop.call(change)

    def _keeps_messages(self) -> bool:
        """Whether what is unacknowledged comes again after a failure."""
        return self.ctx.upstreams == 0 if self.coordinated else self._is_restartable()

    def _is_restartable(self) -> bool:
        return self.options.restart.max_restarts > 0

    def _check_started(self, what: str) -> None:
        if self._lifecycle.present is TaskState.CREATED:
            raise TaskStateError(f"{self.name} is created and cannot be {what}")

    def _coordinate(self, options: CheckpointOptions) -> Coordinator:

        coordinator = Coordinator(self.name, options, self.options.restart, self.logger, alone=True)
        key = f"{self.ctx.stage}/{self.ctx.index}"
        coordinator.adopt({key: self}, [key])
        self.watch(lambda state: coordinator.close_later(False) if state.ended else None)
        return coordinator


class CrashRecord:
    """Which packets a task's hosts have died over.

    Args:
        skip_list: gets those that are not to be tried again.
        max_deliveries: how often a packet may be given to the operator.

    Attributes:
        has_lost_hosts: whether a host has died since the latest checkpoint.
    """

    def __init__(self, skip_list: SkipList, max_deliveries: int) -> None:
        self.has_lost_hosts = False
        self._skip_list = skip_list
        self._max_deliveries = max_deliveries
        self._attempting: PacketName | None = None
        self._deaths: Counter[PacketName] = Counter()

    def attempt(self, packet: PacketName) -> None:
        """The operator is given a packet; it has returned from the one before."""
        if self._attempting is not None:
            self._deaths.pop(self._attempting, None)
        self._attempting = packet

    def host_lost(self, error: Exception, was_killed_by_us: bool) -> None:
        """A host has died. What it was processing is not known before the second time."""
        packet, self._attempting = self._attempting, None
        self.has_lost_hosts = True
        if packet is None or was_killed_by_us:
            return
        self._deaths[packet] += 1
        deliveries = self._deaths[packet] + 1
        if deliveries >= self._max_deliveries:
            del self._deaths[packet]
            self._skip_list.add(packet, f"{error}, {deliveries} times while it processed it")
