"""TaskControl: follows one task in the driver's loop: its host, its state, and its restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sagequeue.errors import QueueClosed
from sageruntime.core.policies import ErrorPolicy
from sageruntime.core.state import TaskState
from sageruntime.errors import (
    HostReplaced,
    PacketError,
    TaskStartError,
    TaskStateError,
    describe_error,
)
from sageruntime.host.driver_loop import DriverLoop
from sageruntime.host.host import Host
from sageruntime.host.thread_host import ThreadHost
from sageruntime.logs import relay
from sageruntime.metrics import MetricsSnapshot
from sageruntime.recovery.restart_budget import RestartBudget
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.inbox import give_back_unacknowledged
from sageruntime.runner.skip_list import PacketName
from sageruntime.runner.status import TaskReport, TaskStatus
from sageruntime.runner.task_runner import TaskSpec
from sageruntime.task.coordinator import Supervisor
from sageruntime.task.crash_record import CrashRecord
from sageruntime.task.lifecycle import Lifecycle

# Hosts in a row that are replaced because their operator hung on the first packet it got.
_MOST_REPLACED = 10


class TaskControl:
    """Sends a task's commands, takes its events, and decides what follows a failure.

    All methods are called in the driver's loop; any thread may read the attributes.

    Args:
        task: the task's handle, which listeners and the supervisor get.
        spec: the task.
        supervisor: who decides what follows a failure; by default the task's restart policy.
        make_host: makes a host for a start of the task; raises TaskStartError.
        loop: the driver's loop.

    Attributes:
        lifecycle: the task's state.
        host: its host; None before there is one, and when it has died.
        error: why the task failed, or is restarted.
        report: what it has left.
        counted: what hosts that have died had counted.
        measured: what was measured of them.
        waits_for_restore: whether it has left off, and waits for its next attempt.
        is_cancelled: whether it was stopped without draining.
    """

    def __init__(
        self,
        task: Any,
        spec: TaskSpec,
        supervisor: Supervisor | None,
        make_host: Callable[[], Host],
        loop: DriverLoop,
    ) -> None:
        self.name = spec.ctx.name
        self.logger = spec.ctx.logger
        self.spec = spec
        self.supervisor = supervisor
        self.attempt = 0
        self.lifecycle = Lifecycle(task, self.name, self.logger)
        self.host: Host | None = None
        self.error: BaseException | None = None
        self.report: TaskReport | None = None
        self.counted: TaskStatus | None = None
        self.measured: MetricsSnapshot | None = None
        self.restarts = 0
        self.is_paused = False
        self.waits_for_restore = False
        self._task = task
        self._make_host = make_host
        self._loop = loop
        self._budget = RestartBudget(spec.options.restart)
        self._is_draining = False
        self.is_cancelled = False
        self._is_finished = False
        self._timer: asyncio.TimerHandle | None = None
        self._skip_list = spec.skip_list
        options = spec.options
        self._crashes = CrashRecord(
            spec.skip_list,
            options.max_deliveries,
            options.final_error_policy is not ErrorPolicy.FAIL,
        )
        self._stuck: told.Stuck | None = None
        self._skipped: dict[int, dict[PacketName, int]] = {}
        self._replaced = 0
        self._has_killed = False

    def begin(self) -> Host:
        if not self.lifecycle.advance(TaskState.STARTING):
            raise TaskStateError(
                f"{self.name} is {self.lifecycle.present.value}; start_running() is for a new task"
            )
        self.spec.is_paused = self.is_paused
        try:
            self.host = self._make_host()
        except TaskStartError as error:
            self.fail(error)
            raise
        return self.host

    def stop(self, drain: bool) -> None:
        state = self.lifecycle.present
        if state is TaskState.CREATED:
            self.lifecycle.advance(TaskState.STOPPED)
        if self.lifecycle.present.ended:
            self._on_ended()
            return
        self.is_paused = False
        self._is_draining = self._is_draining or drain
        self.is_cancelled = self.is_cancelled or not drain
        if self.is_cancelled:
            self._cancel_timer()
            if self.waits_for_restore and self.host is None:
                self._end(TaskState.STOPPED)
                return
        else:
            self.lifecycle.advance(TaskState.DRAINING)
        self.send(do.Stop(drain))

    def set_paused(self, paused: bool) -> None:
        state = self.lifecycle.present
        if state.ended:
            what = "paused" if paused else "resumed"
            raise TaskStateError(f"{self.name} is {state.value} and cannot be {what}")
        self.is_paused = paused
        self.send(do.Pause() if paused else do.Resume())

    def sender_ended(self, sender: str) -> None:
        self.spec.senders_ended.add(sender)
        self.send(do.SenderEnded(sender))

    def send(self, command: do.Command) -> None:
        if self.host is not None:
            self.host.send(command)

    def kill(self) -> None:
        if self.host is not None:
            self._has_killed = True
            self.host.kill()

    def abandon(self) -> None:
        """The operator does not return: end without it."""
        if self.lifecycle.present.ended:
            return
        self.kill()
        if isinstance(self.host, ThreadHost):
            self.logger.warning("%s: the operator did not return; left behind", self.name)
        self._end(TaskState.STOPPED)

    def receive(self, host: Host, event: told.Event) -> None:
        """Take an event of a host; those of a host before it come too late."""
        if host is not self.host:
            return
        if isinstance(event, told.LogEmitted):
            relay(event.record)
        elif isinstance(event, told.Ended):
            self._on_report(event.report)
        elif self.lifecycle.present.ended or isinstance(event, told.StatusReported):
            return
        elif isinstance(event, told.Running):
            self.lifecycle.advance(TaskState.RUNNING)
        elif isinstance(event, told.Draining):
            self.lifecycle.advance(TaskState.DRAINING)
        elif isinstance(event, told.Finished):
            self._is_finished = True
        elif isinstance(event, told.ConnectionRemoved):
            self._task.router.confirm_removal(event.name)
        elif isinstance(event, told.Halted):
            self.waits_for_restore = True
            self.lifecycle.advance(TaskState.RESTARTING)
            self._pass_on(event)
        elif isinstance(event, told.Failed):
            self._on_failed(event.error)
        elif isinstance(event, told.StartFailed):
            self.fail(event.error)
        elif isinstance(event, told.Attempting):
            self._crashes.attempt(event.packet)
        elif isinstance(event, told.PolicyApplied):
            if not isinstance(self.host, ThreadHost):  # which has the same list
                self._skip_list.has_met_policy(event.packet)
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
            self.supervisor.on_event(self._task, event)

    def _on_failed(self, error: BaseException) -> None:
        """An attempt has failed: what follows is up to the supervisor or the restart policy."""
        self.waits_for_restore = True
        self.error = error
        if self.is_cancelled:
            self.send(do.Stop(drain=False))
            if self.host is None:
                self._end(TaskState.STOPPED)
            return
        if self.supervisor is not None:
            self.lifecycle.advance(TaskState.RESTARTING)
            self._pass_on(told.Failed(attempt=self.attempt, error=error))
            return
        delay = self._budget.next_delay()
        if delay is None or not isinstance(error, Exception):
            self.fail(error)
            return
        self.lifecycle.advance(TaskState.RESTARTING)
        self.restarts += 1
        self.logger.warning(
            "%s failed and begins again in %.1f s: %s", self.name, delay, describe_error(error),
            exc_info=error,
        )  # fmt: skip
        again = do.Restore(self.attempt, is_final=self._is_finished)
        self._timer = self._loop.call_later(delay, self.restore, again)

    def restore(self, restore: do.Restore) -> None:
        if self.lifecycle.present.ended:
            return
        self._cancel_timer()
        self.error = None
        self.attempt = self._task.router.attempt = restore.attempt
        self._is_finished = restore.is_final
        was_waiting, self.waits_for_restore = self.waits_for_restore, False
        if self.host is not None:
            self.send(restore)
        elif was_waiting:
            self.spec.beginning = restore
            self.spec.is_paused = self.is_paused
            self.spec.cautious_for = self._crashes.cautious_for
            try:
                host = self.host = self._make_host()
            except TaskStartError as error:
                self.fail(error)
                return
            if self._is_draining or self.is_cancelled:
                host.send(do.Stop(not self.is_cancelled))
            self._loop.run_elsewhere(host.start, lambda _: None, self.fail)
        self.lifecycle.advance(TaskState.RUNNING)

    def _on_stuck(self, event: told.Stuck) -> None:
        if isinstance(self.host, ThreadHost):
            if event.error is not None:  # a thread cannot be stopped
                self.fail(event.error)
            return
        self._stuck = event
        self.kill()

    def _on_host_lost(self, error: Exception) -> None:
        """The host has died without a report."""
        self.counted, self.measured = self._task.get_status(), self._task.measure()
        host, self.host = self.host, None
        if host is not None:
            host.close()
        self.waits_for_restore = True
        if self.is_cancelled:
            self._end(TaskState.STOPPED)
            return
        self._crashes.host_lost(error, was_killed_by_us=self._has_killed)
        self._has_killed = False
        stuck, self._stuck = self._stuck, None
        if self.spec.coordinated and self.spec.ctx.upstreams > 0:
            self._after_loss(error, stuck)
            return
        self._loop.run_elsewhere(
            lambda: give_back_unacknowledged(self.spec.input_buffer, self.name),
            lambda _: self._after_loss(error, stuck),
            self.fail,
        )

    def _after_loss(self, error: Exception, stuck: told.Stuck | None) -> None:
        """What it had taken is back: go on with another host."""
        if self.lifecycle.present.ended:
            return
        if stuck is None or self.is_cancelled:
            self._on_failed(error)
            return
        if stuck.error is not None:
            self._on_failed(stuck.error)
            return
        known = any(name in self._skip_list for name in stuck.packets)
        for name in stuck.packets:
            self._skip_list.add(name)
        self._replaced = 0 if stuck.status.processed else self._replaced + 1
        if (
            stuck.early
            or (known and not self._skip_list.by_content)
            or self._replaced > _MOST_REPLACED
        ):
            self._on_failed(error)  # it may be one that was dealt with: not for ever
        elif self.supervisor is not None:
            self._on_failed(
                HostReplaced(f"the operator of {self.name} hung; its process is replaced")
            )
        elif self.lifecycle.advance(TaskState.RESTARTING):
            self.logger.warning("%s: its operator hung; the process was replaced", self.name)
            self.restore(do.Restore(self.attempt))

    def checkpoint_completed(self, checkpoint: int) -> None:
        skipped = self._skipped.pop(checkpoint, None)
        if skipped is not None and not isinstance(self.host, ThreadHost):
            self._skip_list.settle(skipped)
        for number in [number for number in self._skipped if number < checkpoint]:
            del self._skipped[number]
        self._crashes.checkpoint_completed()
        self.send(do.CheckpointCompleted(checkpoint))

    def _on_report(self, report: TaskReport) -> None:
        if self.report is None:
            self.report = report
        if self.lifecycle.present.ended:
            return
        if report.error is not None:
            self.fail(report.error)
        else:
            self._end(TaskState.STOPPED)

    def fail(self, error: BaseException) -> None:
        if self.lifecycle.present.ended:
            return
        self.error = error
        # before anybody sees the state: who waits for the end may look into the log then
        if isinstance(error, PacketError) and error.is_consequence:
            self.logger.warning("%s failed: %s", self.name, describe_error(error))
        elif not self.is_cancelled:
            self.logger.error("%s failed: %s", self.name, describe_error(error), exc_info=error)
        self._end(TaskState.FAILED)
        self.send(do.Stop(drain=False))  # its runner waits to be restored

    def _end(self, state: TaskState) -> None:
        self._cancel_timer()
        if state is TaskState.STOPPED:
            self.error = None
        self._on_ended()
        self.lifecycle.advance(state)

    def _on_ended(self) -> None:
        with suppress(QueueClosed):  # by another task that shares it
            self.spec.input_buffer.shutdown(immediate=True)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
