"""Calls that wait, in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Call ``work`` in a thread; the list gets what it returned, or the type of what it raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(type(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome
