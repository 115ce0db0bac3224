"""Stage: one step of a job, before it becomes tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sageruntime.communication.router import Partitioner, RoundRobin
from sageruntime.core.task_options import TaskOptions
from sageruntime.factory.task_factory import TaskType, find_host
from sageruntime.operator.operator_factory import OperatorFactory


@dataclass(frozen=True)
class Stage:
    """An operator and how many tasks, where, run it.

    Attributes:
        name: unique in the job.
        operator_factory: makes the operator of each instance.
        parallelism: how many instances.
        on: what hosts them.
        options: how each works.
        partitioner: makes the partitioner of each upstream task.
    """

    name: str
    operator_factory: OperatorFactory
    parallelism: int
    on: TaskType
    options: TaskOptions
    partitioner: Callable[[], Partitioner] = RoundRobin

    @property
    def host(self) -> str:
        """Where they run: ``"thread"``, ``"process"``, ``"ray"``, or what their type says."""
        return find_host(self.on)
