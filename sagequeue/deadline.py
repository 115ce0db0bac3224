"""Timeouts as callers give them, and the deadlines they mean."""

from __future__ import annotations

import threading
import time

from sagequeue.errors import InvalidOption


def deadline_of(block: bool, timeout: float | None) -> float | None:
    """The moment on the monotonic clock at which waiting ends; None: never.

    Raises:
        InvalidOption: the timeout is negative or no number.
    """
    if not block:
        return 0.0
    if timeout is None:
        return None
    if not isinstance(timeout, int | float):
        raise InvalidOption(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        )
    if not timeout >= 0:
        raise InvalidOption(f"'timeout' must be a non-negative number, not {timeout!r}")
    return time.monotonic() + min(timeout, threading.TIMEOUT_MAX)
