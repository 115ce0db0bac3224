"""Service: what other tasks call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from sageruntime.context import TaskContext
from sageruntime.errors import InvalidOption


class Service:
    """Base of services: a subclass's public methods can be called by name from any task.

    Arguments and results travel between processes, so they have to pickle; arrays among the
    arguments may be read-only views of shared memory. With more than one worker thread, methods
    are called side by side. A method may be a coroutine function. It has no parameter named
    ``timeout``, which belongs to the caller.

    Attributes:
        ctx: the task instance that hosts the service, set before ``open``.
    """

    ctx: TaskContext

    def open(self) -> None:
        """Acquire what the methods need: models, files, connections. Called once, first."""

    def close(self) -> None:
        """Release what ``open`` acquired. Called once, last."""


MakeService = Callable[[], Service]
"""A service class, or anything else that makes a service when it is called."""


def find_methods(service: type[Service]) -> frozenset[str]:
    """The names of the methods that can be called.

    Raises:
        InvalidOption: one of them has a parameter named ``timeout``.
    """
    names = frozenset(
        name
        for name, attribute in inspect.getmembers(service, callable)
        if not name.startswith("_")
        and not hasattr(Service, name)
        and not isinstance(attribute, type)
    )
    for name in names:
        if "timeout" in inspect.signature(getattr(service, name)).parameters:
            raise InvalidOption(
                f"{service.__qualname__}.{name}() has a parameter named timeout, which every call "
                "of a service has for itself; rename it"
            )
    return names


def find_service_class(make: MakeService) -> type[Service] | None:
    """The class of the services that ``make`` makes, if that can be told without making one.

    Raises:
        InvalidOption: it makes no services.
    """
    made: Any = make
    while isinstance(made, partial):
        made = made.func
    if not callable(made) or (isinstance(made, type) and not issubclass(made, Service)):
        raise InvalidOption(
            f"{make!r} makes no service; expected a subclass of Service, or a function that "
            "returns a service"
        )
    return made if isinstance(made, type) else None
