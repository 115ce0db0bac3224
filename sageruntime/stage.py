"""Stage: one step of a job, before it becomes tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sageruntime.communication.router import KeyHash, Partitioner, RoundRobin
from sageruntime.factory.operator_factory import OperatorFactory
from sageruntime.factory.task_factory import Host
from sageruntime.task.options import TaskOptions


@dataclass(frozen=True)
class Stage:
    """An operator and how many tasks, where, run it.

    Attributes:
        name: unique in the job.
        operator_factory: makes the operator of each instance.
        parallelism: how many instances.
        host: where they run.
        options: how each works.
        keyed: whether the instances share their input by key.
        key_function: gives the key of what comes in; None where packets have one already.
    """

    name: str
    operator_factory: OperatorFactory
    parallelism: int
    host: Host
    options: TaskOptions
    keyed: bool = False
    key_function: Callable[[Any], Any] | None = None

    def partitioner(self) -> Partitioner:
        """How one upstream task deals its packets out to the instances."""
        return KeyHash(self.key_function) if self.keyed else RoundRobin()
