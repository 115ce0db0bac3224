"""ServiceConfig: a service of a job file."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sageruntime.config.options import OptionsSection, given_options, with_options
from sageruntime.config.task_type import TaskType
from sageruntime.core.options import list_options
from sageruntime.core.task_options import TaskOptions
from sageruntime.service.options import ServiceOptions


@with_options(
    [each for each in list_options(ServiceOptions) if not each.section],
    instead=[each for each in list_options(ServiceOptions) if each.section],
)
class ServiceConfig(OptionsSection):
    """A service that the operators of a job can call."""

    name: str
    """What operators call it by; letters, digits, `_` and `-`, at most 64."""
    service: str
    """The import path of a service class, or of a function that makes a service."""
    arguments: dict[str, Any] = Field(default_factory=dict, alias="with")
    """Arguments of the service."""
    on: TaskType | None = None
    """What hosts each instance; `thread`, unless given. `--on` overrides it."""

    def service_options(
        self, options: TaskOptions, at: tuple[int | str, ...] = ()
    ) -> dict[str, Any]:
        """What is given of the options of a service, in a job whose tasks have these options.

        Raises:
            PydanticCustomError: they do not go together; the service is ``at`` this place.
        """
        return given_options(self, ServiceOptions(restart=options.restart), at)
