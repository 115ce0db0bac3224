"""Futures: what a function returned or raised, for somebody who waits for it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sageruntime.errors import describe_error

T = TypeVar("T")


def settle(future: Future[T], function: Callable[[], T]) -> None:
    """Call a function, and give a future what it returns or raises, ``SystemExit`` included."""
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


def as_exception(error: BaseException) -> Exception:
    """An error for where it must end neither a thread nor a loop, as ``SystemExit`` would."""
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(describe_error(error))
    wrapped.__cause__ = error
    return wrapped
