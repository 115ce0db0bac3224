"""How tests wait: for a condition or for a call, and always with a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], object], seconds: float = 40) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def in_other_thread(call: Callable[[], Any], seconds: float = 30) -> Any:
    """What the call returns or raises, made in a thread of its own; it does not hang."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "the call hangs"
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
