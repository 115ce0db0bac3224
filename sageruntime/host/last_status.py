"""LastStatus: what the driver knows of a task in another process, as of its last event."""

from __future__ import annotations

from sageruntime.metrics import MetricsSnapshot
from sageruntime.runner import events as told
from sageruntime.runner.status import TaskStatus


class LastStatus:
    """The last status and measurement that a host has told.

    Attributes:
        status: the status; None before there is one.
    """

    def __init__(self) -> None:
        self.status: TaskStatus | None = None

    def note(self, event: told.Event) -> None:
        """Take what an event says of it."""
        if isinstance(event, told.StatusReported | told.Stuck | told.PolicyApplied | told.Finished):
            self.status = event.status
        elif isinstance(event, told.Ended):
            self.status = event.report.status.with_metrics(event.report.metrics)

    @property
    def metrics(self) -> MetricsSnapshot | None:
        """The last measurement."""
        return None if self.status is None else self.status.metrics
