"""create_task: a task for the host that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from sageruntime.context import TaskContext
from sageruntime.core.registry import Registry
from sageruntime.core.scope import Scope
from sageruntime.errors import InvalidOption, TaskNotFound, TaskStartError
from sageruntime.operator.operator_factory import OperatorFactory
from sageruntime.task.base_task import BaseTask

Host = Literal["thread", "process", "ray"]
"""What hosts the tasks of the built-in types."""

TaskType = Host | str | type[BaseTask]
"""A host, or a task type of your own: its class, registered name, entry point or import path."""

_SCOPES: dict[str, Scope] = {"thread": "thread", "process": "machine"}

# From near to far.
_REACH: tuple[Scope, ...] = ("thread", "auto", "machine", "cluster")

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


def find_task(on: TaskType, folder: Path | None = None) -> type[BaseTask]:
    """The class that ``on`` asks for; names of entry points are those of ``sageruntime.tasks``.

    Args:
        on: the task type.
        folder: where to look for modules of import paths, too; those found there travel by value.

    Raises:
        TaskNotFound: the name means nothing; the message says what is known.
        InvalidOption: it means something that is no task type.
        TaskStartError: what the task type needs is not installed.
    """
    found = _find(on, folder) if isinstance(on, str) else on
    if not (isinstance(found, type) and issubclass(found, BaseTask)):
        raise InvalidOption(
            f"on={on!r} is not allowed; expected a subclass of BaseTask, or the name of one"
        )
    return found


def check_task_type(on: TaskType) -> None:
    """Raise what :func:`find_task` raises, without loading what a built-in type needs."""
    if on not in get_args(Host):
        find_task(on)


def find_host(on: TaskType) -> str:
    """Where tasks of a type run: ``"thread"``, ``"process"``, ``"ray"``, or what it says itself."""
    return on if isinstance(on, str) and on in get_args(Host) else find_task(on).host


def choose_scope(*types: TaskType, ray: Scope = "cluster") -> Scope:
    """How far apart tasks of these types may be.

    Args:
        types: the task types.
        ray: how far Ray reaches.
    """
    return max((_choose_scope(on, ray) for on in types), key=_REACH.index)


def choose_codec(*types: TaskType) -> str:
    """How items become bytes between tasks of these types, where they share memory.

    Actors of Ray cannot import what a script defines; see :mod:`sagequeue.codecs`.
    """
    return "cloudpickle" if "ray" in map(find_host, types) else "pickle"


def create_task(
    on: TaskType,
    ctx: TaskContext,
    operator_factory: OperatorFactory,
    **options: Any,
) -> BaseTask:
    """Make a task of the type that ``on`` asks for; ``options`` are those of its class.

    Raises what :func:`find_task` and the class raise.
    """
    return find_task(on)(ctx, operator_factory, **options)


def _choose_scope(on: TaskType, ray: Scope) -> Scope:
    if find_host(on) == "ray":
        return ray
    known = _SCOPES.get(on) if isinstance(on, str) else None
    return known or find_task(on).default_scope


def _find(name: str, folder: Path | None) -> Any:
    if name == "ray":
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise TaskStartError(
                "on='ray' needs the ray package: pip install sagequeue[ray]"
            ) from error
    return _tasks.find(name, folder)
