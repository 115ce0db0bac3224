"""ServiceConfig: a service of a job file."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sageruntime.config.policies import RestartConfig, merged_policies
from sageruntime.config.section import Section
from sageruntime.config.task_type import TaskType
from sageruntime.task.options import TaskOptions

_OPTIONS = {"instances", "worker_threads", "max_concurrency", "idempotent", "queue_maxsize"}


class ServiceConfig(Section):
    """A service that the operators of a job can call."""

    name: str
    """What operators call it by; letters, digits, `_` and `-`, at most 64."""
    service: str
    """The import path of a service class, or of a function that makes a service."""
    arguments: dict[str, Any] = Field(default_factory=dict, alias="with")
    """Arguments of the service."""
    on: TaskType | None = None
    """What hosts each instance; `thread`, unless given. `--on` overrides it."""
    instances: int = Field(1, ge=1)
    """How many hosts, each with a service of its own."""
    worker_threads: int = Field(1, ge=1)
    """How many requests each instance answers side by side."""
    max_concurrency: int = Field(100, ge=1)
    """How many coroutine methods each instance runs side by side."""
    idempotent: bool = False
    """Whether a call may be executed again if the process that executes it dies."""
    queue_maxsize: int = Field(10_000, ge=1)
    """Most requests waiting."""
    restart: RestartConfig | None = None
    """Instead of those keys of `task.restart` that are given here."""

    def service_options(self, options: TaskOptions) -> dict[str, Any]:
        """What is given of the options of a service."""
        given = self.model_dump(include=_OPTIONS, exclude_unset=True)
        return {**given, **merged_policies(options, None, self.restart, ())}
