"""TaskType: what hosts tasks, as a job file names it."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import AfterValidator, WithJsonSchema

from sageruntime.errors import RuntimeTaskError
from sageruntime.factory.task_factory import Host, check_task_type


def _task_type(name: str) -> str:
    # import paths are looked at with the stages, when it is known from where they lead
    if ":" not in name:
        try:
            check_task_type(name)
        except RuntimeTaskError as error:
            raise ValueError(str(error)) from error
    return name


TaskType = Annotated[
    str,
    AfterValidator(_task_type),
    WithJsonSchema({"anyOf": [{"enum": list(get_args(Host))}, {"type": "string"}]}),
]
"""What hosts tasks: a built-in host, or the name or import path of a task type."""
