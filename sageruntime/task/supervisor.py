"""Supervisor: who decides about a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sageruntime.task.supervised_task import SupervisedTask


class Supervisor(Protocol):
    """Who decides about a task: for a job with checkpoints, its coordinator.

    Any thread may call it; it does not wait.
    """

    def failed(self, task: SupervisedTask, error: BaseException) -> None:
        """The task waits in RESTARTING for its ``restore()`` or ``fail()``."""

    def exhausted(self, task: SupervisedTask) -> None:
        """The task's source has been read to its end."""

    def snapshot_taken(self, task: SupervisedTask, checkpoint: int, state: bytes) -> None:
        """The task's part of a checkpoint."""

    def checkpoint_wanted(self, task: SupervisedTask) -> None:
        """The task waits for a checkpoint, because much is unfinished until then."""

    def completed(self, task: SupervisedTask, state: bytes) -> None:
        """The task has processed and sent everything, and waits for its ``dismiss()``."""
