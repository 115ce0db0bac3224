"""Tasks: their handles, and who follows and restarts them, in the process that made them."""

from sageruntime.core.policies import ErrorPolicy
from sageruntime.core.state import TaskState
from sageruntime.dead_letters.letter import DeadLetter
from sageruntime.runner.status import TaskReport, TaskStatus
from sageruntime.task.base_task import BaseTask
from sageruntime.task.local_task import LocalTask

__all__ = [
    "BaseTask",
    "DeadLetter",
    "ErrorPolicy",
    "LocalTask",
    "TaskReport",
    "TaskState",
    "TaskStatus",
]
