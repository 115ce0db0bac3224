"""BaseTask: the handle of a task, in the process that made it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle
import msgspec

from sagequeue import create_queue
from sagequeue.errors import ShutDown
from sagequeue.protocol import Queue
from sageruntime.communication.router import BaseRouter, Message, Packet, PacketBatch
from sageruntime.context import TaskContext
from sageruntime.core.scope import Scope
from sageruntime.core.state import TaskState
from sageruntime.core.task_options import TaskOptions, task_options
from sageruntime.dead_letters.letter import DeadLetter
from sageruntime.errors import TaskStartError, TaskStateError, describe_error
from sageruntime.host.blueprint import Blueprint
from sageruntime.host.driver_loop import driver_loop
from sageruntime.host.host import Host
from sageruntime.host.thread_host import ThreadHost
from sageruntime.logs import works_for
from sageruntime.metrics import MetricsSnapshot, Monitor
from sageruntime.operator import BaseOperator
from sageruntime.operator.operator_factory import OperatorFactory
from sageruntime.runner import commands as do
from sageruntime.runner.skip_list import SkipList
from sageruntime.runner.status import TaskReport, TaskStatus
from sageruntime.runner.task_runner import TaskRunner, TaskSpec, make_plugins
from sageruntime.task.control import TaskControl
from sageruntime.task.coordinator import Coordinator, Supervisor
from sageruntime.task.handle_router import HandleRouter
from sageruntime.task.lifecycle import Listener

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
    is_in_this_process: ClassVar[bool] = True

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
        self.coordinated = coordinated or checkpoint is not None
        self._loop = driver_loop()
        self._monitor = Monitor(
            f"{self.name}-monitor", self.measure, self.options.monitoring_interval, self.logger
        )
        if input_buffer is None:
            # The queue's items are batches.
            slots = self.options.queue_slots
            input_buffer = create_queue(
                name=self.ctx.name,
                maxsize=slots,
                scope=queue_scope or self.default_scope,
                # the ends that senders have announced stay claimed
                capacity=2 * (slots + self.ctx.upstreams) + _SPARE_SLOTS,
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
            skip_list=SkipList(by_content=coordinated),
        )
        self._control = TaskControl(self, self._spec, supervisor, self._make_next_host, self._loop)
        self._plugins = make_plugins(self._spec)
        self.router = (
            BaseRouter(self.ctx)
            if self.is_in_this_process
            else HandleRouter(self.ctx, self._change_router)
        )
        if self._plugins is not None and self._plugins.implement("on_state_change"):
            self.add_listener(self._plugins.on_state_change)
        if self.is_in_this_process:
            self._control.host = self._make_thread_host()
        self._coordinator: Coordinator | None = None
        if checkpoint is not None:
            self._coordinator = self._coordinate(checkpoint)

    def _make_thread_host(self) -> ThreadHost:
        if self._spec.custom_process is not None:
            self._spec.custom_process = self.custom_process
        try:
            runner = TaskRunner(
                self._spec, host=self.host, keeps=self._keeps_messages(), task=self,
                tell=lambda event: self._loop.post(self._control.receive, host, event),
                router=self.router, plugins=self._plugins,
            )  # fmt: skip
        except Exception as error:
            self.logger.error("Failed to initialize node %s: %s", self.name, error, exc_info=error)
            raise
        host = ThreadHost(runner)
        return host

    def _make_next_host(self) -> Host:
        host = self._make_host()
        if isinstance(self.router, HandleRouter):
            for name, (_, stop) in self.router.unconfirmed_removals().items():
                arguments = cloudpickle.dumps((name, stop))
                host.send(do.ChangeRouter("remove_connection", arguments))
        return host

    def _make_host(self) -> Host:
        """A host for the next start of the task; a subclass makes one of its kind.

        Raises:
            TaskStartError: what has to go to the host cannot be sent there.
        """
        assert self._control.host is not None
        return self._control.host

    def _make_blueprint(self) -> Blueprint:
        """What a host in another process gets of the task."""
        router = self.router
        connections = router.connections
        if isinstance(router, HandleRouter):
            connections += [removed for removed, _ in router.unconfirmed_removals().values()]
        return Blueprint(
            self._spec, connections, router.partitioners, self.host, self._keeps_messages()
        )

    @property
    def _runner(self) -> TaskRunner:
        """The runner, where it is in this process."""
        host = self._control.host
        if not isinstance(host, ThreadHost):
            raise TaskStateError(
                f"the operator of {self.name} lives in another process; use put_packet()"
            )
        return host.runner

    @property
    def supervisor(self) -> Supervisor | None:
        """Who decides what follows a failure; None: the task's restart policy does."""
        return self._control.supervisor

    @supervisor.setter
    def supervisor(self, supervisor: Supervisor | None) -> None:
        self._control.supervisor = supervisor

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
        return self._control.lifecycle.state

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
        self._control.lifecycle.add_listener(listener)

    def watch(self, watcher: Callable[[TaskState], object]) -> None:
        """Call a function of the runtime's after each change of state, in the driver's loop."""
        self._control.lifecycle.watch(watcher)

    def add_metrics_listener(self, listener: Callable[[MetricsSnapshot], object]) -> None:
        """Call ``listener(snapshot)`` every ``monitoring_interval``, and a last time at the end.

        It is called in a thread of its own, until :meth:`cleanup`. One that raises is logged and
        not called again.
        """
        self._monitor.add_listener(listener)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the task has ended; return whether it has."""
        return self._control.lifecycle.join(timeout)

    def start_running(self) -> None:
        """Start the task in its host and return.

        Raises:
            TaskStateError: the task was started before.
            TaskStartError: the host cannot take it.
        """
        host = self._loop.call(self._control.begin)
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
            timeout: seconds to wait at most; 0 only asks. The task's own operator does not wait:
                the task ends when it has returned.

        Returns:
            Whether the task has ended.
        """
        self._loop.call(self._control.stop, drain)
        return self.join(0 if works_for() == self.name else timeout)

    def pause(self) -> None:
        """Process nothing more, after the packets in hand, until :meth:`resume`.

        What upstream sends waits in the input queue. Pausing twice is pausing once; a task may be
        paused before it is started.

        Raises:
            TaskStateError: the task has ended.
        """
        self._loop.call(self._control.set_paused, True)

    def resume(self) -> None:
        """Go on after :meth:`pause`.

        Raises:
            TaskStateError: the task has ended.
        """
        self._loop.call(self._control.set_paused, False)

    def cleanup(self, grace: float = 1.0) -> None:
        """Give back everything the task holds; may be repeated.

        A task that runs is stopped without draining. An operator that does not return within
        ``grace`` seconds is killed with its process; a thread is left behind.
        """
        if not self.stop(drain=False, timeout=grace):
            self._loop.call(self._control.abandon)
        host = self._control.host
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
        control, host = self._control, self._control.host
        status = None if host is None else host.get_status()
        if status is None:
            status = TaskStatus(self.name, self.ctx.stage, self.host, self.state, 0, 0, 0, 0)
        if control.counted is not None:
            status = status.after(control.counted)
        return replace(
            status,
            state=self.state,
            paused=control.is_paused,
            restarts=control.restarts,
            attempt=control.attempt,
            error=None if control.error is None else describe_error(control.error),
            metrics=None,
        )

    def measure(self) -> MetricsSnapshot:
        """What is measured of the task, as it is now; it may be asked for at any time."""
        control, host = self._control, self._control.host
        known = None if host is None else host.measure()
        if known is None:
            known = MetricsSnapshot(
                task=self.name, stage=self.ctx.stage, host="", state="", at=time.time_ns(),
                seconds=0.0,
            )  # fmt: skip
        if control.measured is not None:
            known = known.after(control.measured)
        return msgspec.structs.replace(
            known, host=self.host, state=self.state.value, restarts=control.restarts
        )

    def get_report(self) -> TaskReport:
        """What the ended task leaves.

        Raises:
            TaskStateError: it has not ended.
        """
        state = self._control.lifecycle.present
        if not state.ended:
            raise TaskStateError(f"{self.name} is {state.value}; a report comes at the end")
        last = self._control.report
        return TaskReport(
            self.get_status(),
            self.measure(),
            None if last is None or state is TaskState.FAILED else last.result,
            self._control.error,
            None if last is None else last.profile,
        )

    # What a supervisor asks.

    @property
    def is_halted(self) -> bool:
        """Whether the task waits for :meth:`restore`, or has ended."""
        return self._control.waits_for_restore or self._control.lifecycle.present.ended

    def halt(self) -> None:
        """Leave off and wait in RESTARTING for :meth:`restore`; the input queue stays.

        Raises:
            TaskStateError: the task has not been started.
        """
        self._check_started("halted")
        self._loop.call(self._control.send, do.Halt())

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
        self._loop.call(self._control.restore, do.Restore(attempt, state, is_final))

    def begin_with(self, state: bytes | None, is_final: bool = False) -> None:
        """What the first attempt begins with, as :meth:`restore` says for the others."""
        self._spec.beginning = do.Restore(self._control.attempt, state, is_final)

    def take_checkpoint(self, checkpoint: int) -> None:
        """Begin a checkpoint here; it travels downstream."""
        self._loop.call(self._control.send, do.TakeCheckpoint(checkpoint))

    def abort_checkpoint(self, checkpoint: int) -> None:
        """Give up a checkpoint."""
        self._loop.call(self._control.send, do.AbortCheckpoint(checkpoint))

    def checkpoint_completed(self, checkpoint: int) -> None:
        """A checkpoint is complete, and the task's snapshot for it is part of it.

        Args:
            checkpoint: its number, or :data:`~sageruntime.recovery.checkpoint.FINAL_CHECKPOINT`.
        """
        self._loop.call(self._control.checkpoint_completed, checkpoint)

    def release(self) -> None:
        """Let a source that has been read to its end finish."""
        self._loop.call(self._control.send, do.Release())

    def dismiss(self) -> None:
        """Let a task that has completed end."""
        self._loop.call(self._control.send, do.Dismiss())

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was stopped without draining; then it does not announce its end."""
        return self._control.is_cancelled

    def sender_ended(self, sender: str) -> None:
        """A task upstream has ended and does not announce it: wait for it no longer."""
        self._loop.call(self._control.sender_ended, sender)

    def kill_host(self) -> None:
        """Kill the process that hosts the task; its thread, if that is all, goes on."""
        self._loop.call(self._control.kill)

    def count_restart(self) -> None:
        """The job goes back to a checkpoint because of this task."""
        self._control.restarts += 1

    def fail(self, error: BaseException) -> None:
        """End the task with an error, unless it has ended."""
        self._loop.call(self._control.fail, error)

    def _start_host(self, host: Host) -> None:
        """Start a host; in any thread but the loop's."""
        try:
            host.start()
        except TaskStartError as error:
            self._loop.call(self._control.fail, error)
            raise

    def _change_router(self, method: str, *arguments: object) -> bool:
        """Have the host make a change to its router; whether there is a host."""
        command = do.ChangeRouter(method, cloudpickle.dumps(arguments))

        def change() -> bool:
            if self._control.host is None or self._control.lifecycle.present.ended:
                return False
            self._control.send(command)
            return True

        return self._loop.call(change)

    def _keeps_messages(self) -> bool:
        """Whether what is unacknowledged comes again after a failure."""
        return self.ctx.upstreams == 0 if self.coordinated else self._is_restartable()

    def _is_restartable(self) -> bool:
        # a process is replaced when its operator hangs
        is_replaced = not self.is_in_this_process and self.options.processing_timeout is not None
        return self.options.restart.max_restarts > 0 or is_replaced

    def _check_started(self, what: str) -> None:
        if self._control.lifecycle.present is TaskState.CREATED:
            raise TaskStateError(f"{self.name} is created and cannot be {what}")

    def _coordinate(self, options: CheckpointOptions) -> Coordinator:
        coordinator = Coordinator(self.name, options, self.options.restart, self.logger, alone=True)
        key = f"{self.ctx.stage}/{self.ctx.index}"
        coordinator.adopt({key: self}, [key])
        self.watch(lambda state: coordinator.close_later() if state.ended else None)
        return coordinator
