"""ServiceRecipe: a service of a pipeline, before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from sageruntime.factory.task_factory import TaskType, check_task_type, host_of
from sageruntime.recovery import RestartPolicy
from sageruntime.service.service import COUNTS, MakeService, check_counts, class_made_by, methods_of


class ServiceOptions(TypedDict, total=False):
    """What every service of a pipeline can be given.

    Attributes:
        instances: how many hosts, each with a service of its own; 1 by default.
        worker_threads: how many requests each answers side by side; 1 by default.
        max_concurrency: how many coroutine methods each runs side by side; 100 by default.
        idempotent: whether a call may be executed again if its process dies; False by default.
        queue_maxsize: most requests waiting; 10 000 by default.
        restart: how often an instance that fails is started again; the pipeline's by default.
    """

    instances: int
    worker_threads: int
    max_concurrency: int
    idempotent: bool
    queue_maxsize: int
    restart: RestartPolicy


@dataclass(frozen=True)
class ServiceRecipe:
    """A service and how many tasks, where, run it.

    Attributes:
        name: unique in the pipeline.
        service: makes the service of each instance.
        on: what hosts them.
        options: of :class:`~sageruntime.service.service_task.ServiceTask`.
    """

    name: str
    service: MakeService
    on: TaskType
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Check what can be checked before anything runs.

        Raises:
            InvalidOption: an option is out of range, or ``service`` makes no service.
        """
        check_counts(**{name: self.options[name] for name in COUNTS if name in self.options})
        check_task_type(self.on)
        made = class_made_by(self.service)
        if made is not None:
            methods_of(made)

    @property
    def host(self) -> str:
        """Where they run: ``"thread"``, ``"process"``, ``"ray"``, or what their type says."""
        return host_of(self.on)

    @property
    def instances(self) -> int:
        """How many."""
        return int(self.options.get("instances", 1))
