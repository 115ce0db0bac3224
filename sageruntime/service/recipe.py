"""ServiceRecipe: a service of a pipeline, before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sageruntime.factory.task_factory import TaskType, check_task_type, find_host
from sageruntime.service.options import service_options
from sageruntime.service.service import MakeService, find_methods, find_service_class


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
        service_options(self.options)
        check_task_type(self.on)
        made = find_service_class(self.service)
        if made is not None:
            find_methods(made)

    @property
    def host(self) -> str:
        """Where they run: ``"thread"``, ``"process"``, ``"ray"``, or what their type says."""
        return find_host(self.on)

    @property
    def instances(self) -> int:
        """How many."""
        return service_options(self.options).instances
