"""create_task: a task for the host that is asked for."""

from __future__ import annotations

from typing import Any, Literal

from sageruntime.context import TaskContext
from sageruntime.errors import InvalidOption, TaskNotFound, TaskStartError
from sageruntime.factory.operator_factory import OperatorFactory
from sageruntime.factory.registry import Registry
from sageruntime.task.base_task import BaseTask

Host = Literal["thread", "process", "ray"]

_tasks = Registry(
    "task type",
    "sageruntime.tasks",
    {
        "thread": "sageruntime.task.local_task:LocalTask",
        "process": "sageruntime.task.process_task:ProcessTask",
        "ray": "sageruntime.task.ray_task:RayTask",
    },
    TaskNotFound,
)


def register_task(name: str, task_class: type[BaseTask]) -> None:
    """Let ``on=name`` mean a task type, in this process."""
    _tasks.register(name, task_class)


def find_task(on: str | type[BaseTask]) -> type[BaseTask]:
    """The task type that ``on`` asks for: a class, ``"thread"``, ``"process"``, ``"ray"``, a
    registered name, an entry point of ``sageruntime.tasks``, or an import path.

    Raises:
        TaskNotFound: the name means nothing; the message says what is known.
        InvalidOption: it means something that is no task type.
        TaskStartError: what the task type needs is not installed.
    """
    found = _find(on) if isinstance(on, str) else on
    if not (isinstance(found, type) and issubclass(found, BaseTask)):
        raise InvalidOption(
            f"on={on!r} is not allowed; expected a subclass of BaseTask, or the name of one"
        )
    return found


def create_task(
    on: str | type[BaseTask],
    ctx: TaskContext,
    operator_factory: OperatorFactory,
    **options: Any,
) -> BaseTask:
    """Make a task of the type that ``on`` asks for; ``options`` are those of its class.

    Raises what :func:`find_task` and the class raise.
    """
    return find_task(on)(ctx, operator_factory, **options)


def _find(name: str) -> Any:
    if name == "ray":
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise TaskStartError(
                "on='ray' needs the ray package: pip install sagequeue[ray]"
            ) from error
    return _tasks.find(name)
