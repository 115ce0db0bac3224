"""Tasks: one worker loop, hosted by a thread, a process or a Ray actor."""

from sageruntime.task.base_task import BaseTask
from sageruntime.task.error_policy import DeadLetter, ErrorPolicy
from sageruntime.task.local_task import LocalTask
from sageruntime.task.state import TaskState
from sageruntime.task.status import TaskReport, TaskStatus

__all__ = [
    "BaseTask",
    "DeadLetter",
    "ErrorPolicy",
    "LocalTask",
    "TaskReport",
    "TaskState",
    "TaskStatus",
]
