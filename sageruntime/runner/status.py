"""What a task tells about itself, while it runs and when it has ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sageruntime.core.state import TaskState
from sageruntime.metrics import MetricsSnapshot
from sageruntime.profiling import StackProfile


@dataclass(frozen=True)
class TaskStatus:
    """A snapshot of one task; every field is JSON-able.

    Attributes:
        name: the task.
        stage: the stage it is an instance of.
        host: ``"thread"``, ``"process"`` or ``"ray"``.
        state: where it is in its life.
        paused: whether it was told to pause.
        processed: packets processed without an error; for a source, packets read.
        emitted: packets routed downstream.
        errors: packets that met the error policy.
        retries: how often a packet was tried again.
        failed_over: packets that other tasks got, because the one they were for had ended.
        restarts: how often the task was started again.
        attempt: how often the job has gone back to a checkpoint.
        queue_depth: batches waiting in the input queue.
        held: packets that are held back until the barriers of all senders have come.
        total: packets a source will read in all, if it knows.
        error: why the task failed, if it did.
        metrics: what its host measured, in a message from the host to the task's handle.
    """

    name: str
    stage: str
    host: str
    state: TaskState
    processed: int
    emitted: int
    errors: int
    queue_depth: int
    held: int = 0
    paused: bool = False
    retries: int = 0
    failed_over: int = 0
    restarts: int = 0
    attempt: int = 0
    total: int | None = None
    error: str | None = None
    metrics: MetricsSnapshot | None = None

    def with_metrics(self, metrics: MetricsSnapshot) -> TaskStatus:
        """This status with a measurement."""
        return replace(self, metrics=metrics)

    def after(self, earlier: TaskStatus) -> TaskStatus:
        """This status, and counted in it what ``earlier`` hosts of the task had counted."""
        return replace(
            self,
            processed=earlier.processed + self.processed,
            emitted=earlier.emitted + self.emitted,
            errors=earlier.errors + self.errors,
            retries=earlier.retries + self.retries,
            failed_over=earlier.failed_over + self.failed_over,
        )


@dataclass(frozen=True)
class TaskReport:
    """What is left of a task that has ended.

    Attributes:
        status: its last status.
        metrics: its last measurement.
        result: what its sink hands back.
        error: what made it fail.
        profile: where its worker threads were, if it was profiled in a process of its own.
    """

    status: TaskStatus
    metrics: MetricsSnapshot
    result: Any = None
    error: BaseException | None = None
    profile: StackProfile | None = None

    def without_result(self) -> TaskReport:
        """This report without the sink's result."""
        return replace(self, result=None)

    def with_result(self, result: Any) -> TaskReport:
        """This report with the sink's result."""
        return replace(self, result=result)

    def with_error(self, error: BaseException) -> TaskReport:
        """This report of a task that failed after all."""
        return replace(self, error=error)
