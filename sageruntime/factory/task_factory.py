"""create_task: a task for the host that is asked for."""

from __future__ import annotations

from typing import Any, Literal, get_args

from sageruntime.context import TaskContext
from sageruntime.errors import InvalidOption, TaskStartError
from sageruntime.factory.operator_factory import OperatorFactory
from sageruntime.task.base_task import BaseTask
from sageruntime.task.local_task import LocalTask

Host = Literal["thread", "process", "ray"]


def create_task(
    host: Host, ctx: TaskContext, operator_factory: OperatorFactory, **options: Any
) -> BaseTask:
    """Make a task; ``options`` are those of its class.

    Raises:
        InvalidOption: there is no such host.
        TaskStartError: what the host needs is not installed.
    """
    if host == "thread":
        return LocalTask(ctx, operator_factory, **options)
    if host == "process":
        from sageruntime.task.process_task import ProcessTask

        return ProcessTask(ctx, operator_factory, **options)
    if host == "ray":
        try:
            from sageruntime.task.ray_task import RayTask
        except ImportError as error:
            raise TaskStartError(
                "on='ray' needs the ray package: pip install sagequeue[ray]"
            ) from error
        return RayTask(ctx, operator_factory, **options)
    raise InvalidOption(f"on={host!r} is not allowed; expected {', '.join(get_args(Host))}")
