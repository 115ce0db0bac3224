"""SupervisedTask: one attempt of a worker after another, and who decides what follows."""

from __future__ import annotations

from abc import abstractmethod

from sageruntime.communication.router import BaseRouter
from sageruntime.context import TaskContext
from sageruntime.errors import PacketError, TaskCancelled, TaskHalted
from sageruntime.logs import work_for
from sageruntime.metrics import TaskMetrics
from sageruntime.recovery.policies import RestartPolicy
from sageruntime.recovery.restart_budget import RestartBudget
from sageruntime.task.hung_packets import HungPackets
from sageruntime.task.lifecycle import Lifecycle
from sageruntime.task.source_worker import SourceWorker
from sageruntime.task.state import NEXT_STATES, TaskState
from sageruntime.task.supervisor import Supervisor
from sageruntime.task.worker import Worker


class SupervisedTask(Lifecycle):
    """Lets a worker work, and begins again when it has failed.

    What follows a failure is up to the supervisor or, where there is none, to the task's own
    restart policy.

    Args:
        runtime_context: the task's identity.
        restart: how often it begins again.
        supervisor: who decides instead.
    """

    router: BaseRouter
    hung: HungPackets
    """Packets that the operator hung on, if its process was replaced for them."""
    _worker: Worker

    def __init__(
        self,
        runtime_context: TaskContext,
        restart: RestartPolicy,
        supervisor: Supervisor | None,
    ) -> None:
        super().__init__(runtime_context.name, runtime_context.logger)
        self.ctx = runtime_context
        self.metrics = TaskMetrics()
        self.supervisor = supervisor
        self._budget = RestartBudget(restart)
        self._cancelled = False
        self._halting = False
        # What the next attempt begins with, once it may begin.
        self._restored: tuple[bytes | None, bool] | None = None
        self._beginning: tuple[bytes | None, bool] = (None, False)

    # What a supervisor asks of a task.

    def halt(self) -> None:
        """Leave off and wait in RESTARTING for :meth:`restore`; the input queue stays.

        Raises:
            TaskStateError: the task has not been started.
        """
        with self._changed:
            self._check_started("halted")
            self._halting = True
            self._worker.halt()

    def restore(self, attempt: int, state: bytes | None = None, over: bool = False) -> None:
        """Begin again from RESTARTING, with a new operator.

        Args:
            attempt: what earlier attempts have sent is ignored.
            state: what the operator's ``snapshot()`` had returned, pickled.
            over: the state is the last: everything was processed and sent.

        Raises:
            TaskStateError: the task has not been started.
        """
        with self._changed:
            self._check_started("restored")
            self.router.begin(attempt)
            self._restored = (state, over)
            self._halting = False
            # At once: who waits for a task to halt is not to see that it had halted before.
            self._advance(TaskState.RUNNING)
            self._changed.notify_all()

    def begin_with(self, state: bytes | None, over: bool = False) -> None:
        """What the first attempt begins with, as :meth:`restore` says for the others."""
        self._beginning = (state, over)

    def take_checkpoint(self, checkpoint: int) -> None:
        """Begin a checkpoint here; it travels downstream."""
        with self._changed:
            self._worker.take_checkpoint(checkpoint)

    def checkpoint_completed(self, checkpoint: int) -> None:
        """A checkpoint is complete, and the task's snapshot for it is part of it.

        Args:
            checkpoint: its number; :data:`~sageruntime.recovery.checkpoint.LAST_STATE` for the one
                that holds what the task has told by :meth:`completed`.
        """
        with self._changed:
            self._worker.checkpoint_completed(checkpoint)

    def release(self) -> None:
        """Let a source that has been read to its end finish."""
        with self._changed:
            if isinstance(self._worker, SourceWorker):
                self._worker.release()

    def dismiss(self) -> None:
        """Let a task that has completed end."""
        with self._changed:
            self._worker.dismiss()

    def kill_host(self) -> None:
        """Kill the process that hosts the task; its thread, if that is all, goes on."""

    def fail(self, error: BaseException) -> None:
        """End the task with an error, unless it has ended."""
        with self._changed:
            if TaskState.FAILED not in NEXT_STATES[self._state]:
                return
            # before anybody sees the state: who waits for the end may look into the log then
            if isinstance(error, PacketError) and error.is_consequence:
                self.logger.warning("%s failed: %s", self.name, error)
            else:
                self.logger.error("%s failed: %s", self.name, error, exc_info=error)
            self._advance(TaskState.FAILED, error=error)

    # What the worker tells: see WorkerEvents.

    def draining(self) -> None:
        """See :class:`~sageruntime.task.worker.WorkerEvents`."""
        self._advance(TaskState.DRAINING)

    def snapshot_taken(self, checkpoint: int, state: bytes) -> None:
        """See :class:`~sageruntime.task.worker.WorkerEvents`."""
        if self.supervisor is not None:
            self.supervisor.snapshot_taken(self, checkpoint, state)

    def checkpoint_wanted(self) -> None:
        """See :class:`~sageruntime.task.worker.WorkerEvents`."""
        if self.supervisor is not None:
            self.supervisor.checkpoint_wanted(self)

    def exhausted(self) -> None:
        """See :class:`~sageruntime.task.worker.WorkerEvents`."""
        if self.supervisor is not None:
            self.supervisor.exhausted(self)

    def completed(self, state: bytes) -> None:
        """See :class:`~sageruntime.task.worker.WorkerEvents`."""
        if self.supervisor is not None:
            self.supervisor.completed(self, state)

    def failed_outside(self, error: BaseException) -> None:
        """See :class:`~sageruntime.task.worker.WorkerEvents`."""
        with self._changed:
            self._error = error
            self._worker.halt()

    def _live(self) -> None:
        """The life of the worker loop: one attempt after the other."""
        work_for(self.name, self.ctx.stage)
        beginning: tuple[bytes | None, bool] | None = self._beginning
        # not if it was asked to drain, or was restored, before it came to run
        self._advance(TaskState.RUNNING)
        if self._state.ended:
            return
        while beginning is not None:
            try:
                with self.metrics.running():
                    result = self._worker.run(*beginning)
            except TaskCancelled:
                self._advance(TaskState.STOPPED)
                return
            except TaskHalted:
                outside, self._error = self._error, None
                if outside is None:
                    self._advance(TaskState.RESTARTING)
                else:
                    self._on_failure(outside)
            except BaseException as error:  # whatever it is, somebody has to learn of it
                self._on_failure(error)
            else:
                self._advance(TaskState.STOPPED, result)
                return
            beginning = self._await_beginning()

    def _await_beginning(self) -> tuple[bytes | None, bool] | None:
        """What the next attempt begins with, once all is ready for it; None when none follows."""
        while (restored := self._await_restore()) is not None:
            try:
                self._prepare()
            except Exception as error:
                self._on_failure(error)
            else:
                return restored
        return None

    @abstractmethod
    def _prepare(self) -> None:
        """Make an operator and a worker for the next attempt."""

    def _on_failure(self, error: BaseException) -> None:
        """What follows when an attempt has failed."""
        if self.supervisor is not None:
            # Told before the task is seen to be halted: then the failure belongs to this attempt.
            self.supervisor.failed(self, error)
            self._advance(TaskState.RESTARTING, error=error)
            return
        delay = self._budget.next_delay()
        if delay is None or not isinstance(error, Exception):
            self.fail(error)
            return
        self._advance(TaskState.RESTARTING, error=error)
        if self._state.ended:
            return
        self.metrics.restarts += 1
        self.logger.warning(
            "%s failed and begins again in %.1f s: %s", self.name, delay, error, exc_info=error
        )
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or self._state.ended, delay)
        self.restore(self.router.attempt)

    def _await_restore(self) -> tuple[bytes | None, bool] | None:
        """What the next attempt begins with; None when there is none."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._restored is not None or self._cancelled or self._state.ended
            )
            if self._state.ended:
                return None
            if self._cancelled:
                self._advance(TaskState.STOPPED)
                return None
            restored, self._restored = self._restored, None
            self._advance(TaskState.RUNNING)  # restored before it had halted
            return restored
