"""Whether a call of a function gives something to await."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from sageruntime.errors import OperatorError


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a function, or an object that is called like one, is an ``async def``."""
    while isinstance(function, partial):
        function = function.func
    if not (inspect.isroutine(function) or isinstance(function, type)):
        function = getattr(type(function), "__call__", function)  # noqa: B004 - not whether, but how
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def check_plain(operator: object, function: Callable[..., Any]) -> None:
    """Raise OperatorError for an ``async`` function that an operator would not await."""
    if is_async(function):
        name = type(operator).__name__
        raise OperatorError(
            f"{name} does not await, and {function!r} is async; give it to the pipeline's method, "
            "which chooses an operator that does, or pass a plain function"
        )
