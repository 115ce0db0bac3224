"""TaskContext: the identity of a task instance, and the services it can call."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sageruntime.core.naming import did_you_mean
from sageruntime.core.stable_hash import instance_for
from sageruntime.core.tracing import Tracing
from sageruntime.errors import ServiceNotFound
from sageruntime.logs import TaskLogger


class Services(dict[str, Any]):
    """The :class:`~sageruntime.service.ServiceClient` of each service that a task can call."""

    def __missing__(self, name: str) -> NoReturn:
        raise ServiceNotFound(
            f"there is no service {name!r}; {did_you_mean(name, self)}. Add it with "
            "Pipeline.service()"
        )


@dataclass
class TaskContext:
    """The identity of one task instance.

    Args:
        name: unique among running tasks; it names the task's input queue, so it holds letters,
            digits, ``_`` and ``-`` only.
        logger: where the task logs; by default a logger below ``sageruntime.task.<stage>`` whose
            records say which task they are of.
        stage: the pipeline stage the task is an instance of; by default its own name.
        index: which instance of the stage this is, from 0.
        parallelism: how many instances the stage has.
        upstreams: how many tasks send to this one. Each ends its part with a StopSignal, and the
            task drains after the last; with 0 only ``stop()`` ends it.
        job: the job the task is part of, if it is.
        profile: whether to sample the stacks of its worker threads, in a process of its own.
        tracing: where spans of the task's batches go; None makes none.
        services: the services it can call.
    """

    name: str
    logger: logging.Logger = field(default=None)  # type: ignore[assignment]
    stage: str = ""
    index: int = 0
    parallelism: int = 1
    upstreams: int = 0
    job: str = ""
    profile: bool = False
    tracing: Tracing | None = None
    services: Services = field(default_factory=Services)

    def __post_init__(self) -> None:
        if not self.stage:
            self.stage = self.name
        if self.logger is None:
            self.logger = TaskLogger(self.name, self.stage)

    def owns(self, key: Any) -> bool:
        """Whether packets of this key come to this instance, in a stage after ``key_by``.

        Raises:
            UnstableKey: the key is of no type that may be one, and there are several instances.
        """
        return self.parallelism == 1 or instance_for(key, self.parallelism) == self.index
