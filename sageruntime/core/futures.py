"""Futures: what a function returned or raised, for a thread that waits for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def settle(future: Future[T], function: Callable[[], T]) -> None:
    """Call a function, and give a future what it returns or raises, ``SystemExit`` included."""
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
