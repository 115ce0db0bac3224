"""RemoteTask: the near end of a task whose worker loop runs in another process."""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
import msgspec

from sageruntime.communication.router import Packet
from sageruntime.errors import HostReplaced, OperatorError, TaskStartError, TaskStateError
from sageruntime.logs import relay
from sageruntime.metrics import MetricsSnapshot
from sageruntime.profiling import StackProfile
from sageruntime.task.base_task import BaseTask
from sageruntime.task.blueprint import TaskBlueprint
from sageruntime.task.hosted_task import (
    CheckpointWanted,
    Completed,
    Exhausted,
    Failed,
    Snapshot,
    Stuck,
)
from sageruntime.task.hung_packets import Name
from sageruntime.task.inbox import give_back_unfinished
from sageruntime.task.packed_error import PackedError
from sageruntime.task.remote_router import RemoteRouter
from sageruntime.task.state import TaskState
from sageruntime.task.status import TaskReport, TaskStatus


@dataclass(frozen=True)
class RemoteReport:
    """A :class:`TaskReport` that can travel."""

    status: TaskStatus
    result: bytes
    error: PackedError | None
    profile: StackProfile | None

    @classmethod
    def of(cls, report: TaskReport) -> RemoteReport:
        """Pack a report; a result that does not pickle becomes an error."""
        status, error = report.status, report.error
        try:
            result = cloudpickle.dumps(report.result)
        except Exception as cause:
            result = cloudpickle.dumps(None)
            error = OperatorError(
                f"the result of {status.name} does not pickle: {cause}; return plain data from "
                "result(), or run the sink on a thread"
            )
            status = replace(status, state=TaskState.FAILED)
        packed = None if error is None else PackedError.of(error)
        return cls(status, result, packed, report.profile)


class RemoteTask(BaseTask):
    """Base of tasks whose operator lives in another process, their host.

    Commands go down to the :class:`~sageruntime.task.hosted_task.HostedTask` there, messages come
    up from it. When the host dies, the next one takes up what it left in the input queue.
    """

    runs_here = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._last = TaskStatus(self.name, self.ctx.stage, self.host, self._state, 0, 0, 0, 0)
        # What the hosts before this one had counted.
        self._before = self._last
        self._measured_before: MetricsSnapshot | None = None
        self._profile: StackProfile | None = None
        self._stuck: Stuck | None = None
        self._left_out: tuple[int, Counter[Name]] | None = None
        # Hosts are begun and commanded one at a time. It is never held by who reads messages,
        # because a command may have to wait for the host to be done with telling.
        self._commanding = threading.RLock()
        attempt = self.router.attempt
        self.router = RemoteRouter(self.ctx, self._commanding, self._change_router)
        self.router.begin(attempt)

    def start_running(self) -> None:
        """See :class:`BaseTask`."""
        with self._commanding:
            blueprint = self._blueprint(*self._beginning)
            self._begin()
            self._launch_or_fail(blueprint)

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """See :class:`BaseTask`."""
        # no new host is begun meanwhile
        with self._commanding, self._changed:
            if self._state is TaskState.CREATED:
                self._advance(TaskState.STOPPED)
            self._draining = self._draining or drain
            self._cancelled = self._cancelled or not drain
            if self._cancelled and self._state is TaskState.RESTARTING and not self._has_host():
                self._advance(TaskState.STOPPED)
            self._changed.notify_all()
        # even to one whose task has failed: it waits to be told whether it begins again
        self._command("stop", drain, 0)
        return self.join(timeout)

    def pause(self) -> None:
        """See :class:`BaseTask`."""
        with self._changed:
            self._check_alive("paused")
            self._paused = True
        self._command("pause")

    def resume(self) -> None:
        """See :class:`BaseTask`."""
        with self._changed:
            self._check_alive("resumed")
            self._paused = False
        self._command("resume")

    def process_packet(self, packet: Packet) -> None:
        """See :class:`BaseTask`."""
        raise TaskStateError(
            f"the operator of {self.name} lives in another process; use put_packet()"
        )

    def get_status(self) -> TaskStatus:
        """See :class:`BaseTask`; as of the last message from the host."""
        return replace(
            self._last.after(self._before),
            host=self.host,
            state=self._state,
            paused=self._paused,
            restarts=self.metrics.restarts,
            attempt=self.router.attempt,
            error=self._describe_error(),
            metrics=None,
        )

    def measure(self) -> MetricsSnapshot:
        """See :class:`BaseTask`; as of the last message from the host."""
        known = self._last.metrics or MetricsSnapshot(
            task=self.name, stage=self.ctx.stage, host="", state="", at=time.time_ns(), seconds=0.0
        )
        if self._measured_before is not None:
            known = known.after(self._measured_before)
        return msgspec.structs.replace(
            known, host=self.host, state=self._state.value, restarts=self.metrics.restarts
        )

    def halt(self) -> None:
        """See :class:`BaseTask`."""
        self._check_started("halted")
        self._command("halt")

    def restore(self, attempt: int, state: bytes | None = None, over: bool = False) -> None:
        """See :class:`BaseTask`."""
        self._check_started("restored")
        with self._commanding:
            self.router.begin(attempt)
            if self._has_host():
                self._command("restore", attempt, state, over)
            elif self._state is TaskState.RESTARTING:
                self._before, self._measured_before = self.get_status(), self.measure()
                self._last = self._last.with_nothing_counted()
                self._launch_or_fail(self._blueprint(state, over))
            # At once: who waits for a task to halt is not to see that it had halted before.
            self._advance(TaskState.RUNNING)

    def take_checkpoint(self, checkpoint: int) -> None:
        """See :class:`BaseTask`."""
        self._command("take_checkpoint", checkpoint)

    def checkpoint_completed(self, checkpoint: int) -> None:
        """See :class:`BaseTask`."""
        if self._left_out is not None and self._left_out[0] == checkpoint:
            self.hung.settle(self._left_out[1])
        self._command("checkpoint_completed", checkpoint)

    def release(self) -> None:
        """See :class:`BaseTask`."""
        self._command("release")

    def dismiss(self) -> None:
        """See :class:`BaseTask`."""
        self._command("dismiss")

    def kill_host(self) -> None:
        """Kill the process that hosts the task; what follows is up to the restart policy."""
        with self._commanding:
            self._kill()

    @abstractmethod
    def _launch(self, blueprint: bytes) -> None:
        """Bring the task to a new host; raises TaskStartError."""

    @abstractmethod
    def _has_host(self) -> bool:
        """Whether there is a host that lives."""

    @abstractmethod
    def _send(self, command: str, arguments: tuple[Any, ...]) -> None:
        """Send a command to the host, which may be gone."""

    @abstractmethod
    def _kill(self) -> None:
        """Kill the host, if there is one."""

    def _command(self, name: str, *arguments: Any) -> None:
        with self._commanding:
            if self._has_host():
                self._send(name, arguments)

    def _change_router(self, method: str, *arguments: object) -> bool:
        with self._commanding:
            if not self._has_host():
                return False
            self._send("change_router", (method, cloudpickle.dumps(arguments)))
            return True

    def _blueprint(self, state: bytes | None, over: bool) -> bytes:
        """What a host gets of the task."""
        return TaskBlueprint.of(self, state, over).dumps()

    def _launch_or_fail(self, blueprint: bytes) -> None:
        try:
            self._launch(blueprint)
        except TaskStartError as error:
            self.fail(error)
            raise
        # by a listener, or while there was no host
        if self._draining or self._cancelled:
            self._command("stop", not self._cancelled, 0)

    def _take(self, message: object) -> None:
        """Act on a message from the host."""
        if isinstance(message, TaskStatus):
            self._take_status(message)
        elif isinstance(message, RemoteReport):
            self._take_report(message)
        elif isinstance(message, logging.LogRecord):
            relay(message)
        elif isinstance(message, PackedError):  # of an operator that cannot be made
            self.fail(message.unpack())
        elif isinstance(message, Failed):
            self._on_failure(message.error.unpack())
        elif isinstance(message, CheckpointWanted):
            self.checkpoint_wanted()
        elif isinstance(message, Exhausted):
            self.exhausted()
        elif isinstance(message, Snapshot):
            self._left_out = message.checkpoint, message.left_out
            self.snapshot_taken(message.checkpoint, message.state)
        elif isinstance(message, Completed):
            self.completed(message.state)
        elif isinstance(message, Stuck):
            self._stuck = message
            self._kill()

    def _take_status(self, status: TaskStatus) -> None:
        self._last = status
        total = self.get_status()
        self.metrics.processed = total.processed
        self.metrics.errors = total.errors
        self.metrics.retries = total.retries
        # The end comes with the report, and what is of an earlier attempt is over.
        if not status.state.ended and status.attempt >= self.router.attempt:
            self._advance(status.state)

    def _take_report(self, report: RemoteReport) -> None:
        self._take_status(report.status)
        self._profile = report.profile
        if report.error is not None:
            # the host has logged it
            self._advance(TaskState.FAILED, error=report.error.unpack())
            return
        try:
            result = cloudpickle.loads(report.result)
        except Exception as error:  # of a class that only the host can import
            self.fail(error)
        else:
            self._advance(TaskState.STOPPED, result)

    def _get_profile(self) -> StackProfile | None:
        return self._profile

    def _on_host_lost(self, error: Exception) -> None:
        """The host has died without a report."""
        if self._state.ended:
            return
        if self._cancelled:
            self._advance(TaskState.STOPPED)
            return
        if not self.coordinated or self.ctx.upstreams == 0:
            give_back_unfinished(self.input_buffer, self.name)
        stuck, self._stuck = self._stuck, None
        if stuck is None:
            self._on_failure(error)
            return
        if stuck.error is not None:
            self._on_failure(stuck.error.unpack())
            return
        self.hung.add(stuck.names)
        if self.supervisor is not None:
            hung = HostReplaced(f"the operator of {self.name} hung; its process is replaced")
            self._on_failure(error if stuck.early else hung)
        elif self._advance(TaskState.RESTARTING):
            self.logger.warning("%s: its operator hung; the process was replaced", self.name)
            self.restore(self.router.attempt)
