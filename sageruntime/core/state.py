"""The states of a task and the ways between them."""

from __future__ import annotations

from enum import Enum


class TaskState(str, Enum):
    """Where a task is in its life."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    RESTARTING = "restarting"
    """It has failed, or was halted, and may begin again."""
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return not NEXT_STATES[self]


NEXT_STATES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.CREATED: frozenset({TaskState.STARTING, TaskState.STOPPED}),
    TaskState.STARTING: frozenset(
        {
            TaskState.RUNNING,
            TaskState.DRAINING,
            TaskState.RESTARTING,
            TaskState.STOPPED,
            TaskState.FAILED,
        }
    ),
    TaskState.RUNNING: frozenset(
        {TaskState.DRAINING, TaskState.RESTARTING, TaskState.STOPPED, TaskState.FAILED}
    ),
    TaskState.DRAINING: frozenset({TaskState.RESTARTING, TaskState.STOPPED, TaskState.FAILED}),
    TaskState.RESTARTING: frozenset({TaskState.RUNNING, TaskState.STOPPED, TaskState.FAILED}),
    TaskState.STOPPED: frozenset(),
    TaskState.FAILED: frozenset(),
}
"""The legal transitions."""
